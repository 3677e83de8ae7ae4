"""The compiled kernel against torch: the same numbers, from the same memory."""

from __future__ import annotations

import copy
import itertools
import logging
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from support import random_batch
from torch import nn

from dqn_adapters import DQNConfig, DQNLearner, Transition, compute
from dqn_adapters.config import VARIANTS
from dqn_adapters.finite import NonFiniteError
from dqn_adapters.learner import METRICS
from dqn_adapters.networks import QNetwork, seeded_initialization

pytest.importorskip("numba")

FEATURES, ACTIONS = 4, 3
SPACE = spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32)


def learners(hidden_sizes: tuple[int, ...] = (32, 24), **config: Any) -> list[DQNLearner]:
    """Two that are equal but for how they compute: eager, kernel. Online and target differ."""
    with seeded_initialization(0):
        online, target = (QNetwork(SPACE, ACTIONS, hidden_sizes) for _ in range(2))
    config = {"learning_rate": 1e-3, "target_update_interval": 20, **config}
    made = [
        DQNLearner(
            copy.deepcopy(online),
            DQNConfig(**config),
            target_net=None if config.get("variant") == "vanilla" else copy.deepcopy(target),
            execution=execution,  # type: ignore[arg-type]
        )
        for execution in ("eager", "kernel")
    ]
    assert [learner.execution for learner in made] == ["eager", "kernel"]
    return made


def batches(
    count: int, size: int = 32, *, weights: bool = False, masks: bool = False
) -> list[Transition]:
    """Rewards are large enough that errors lie on both sides of Huber's delta."""
    rng = np.random.default_rng(0)
    result = []
    for _ in range(count):
        batch = random_batch(rng, size, FEATURES, ACTIONS)
        batch = batch._replace(
            discounts=batch.discounts
            * torch.from_numpy(rng.choice([1.0, 0.9], size).astype(np.float32))
        )
        if weights:
            batch = batch._replace(
                weights=torch.from_numpy(rng.uniform(0.1, 1, size).astype(np.float32))
            )
        if masks:
            legal = torch.from_numpy(rng.random((size, ACTIONS)) < 0.5)
            legal[:, 0] |= ~legal.any(1) & (batch.discounts > 0)  # terminal rows may allow none
            batch = batch._replace(next_action_masks=legal)
        result.append(batch)
    return result


def assert_same(eager: DQNLearner, kernel: DQNLearner, atol: float = 1e-5) -> None:
    """Networks, gradients and the optimisers' states."""
    for name in ("q_net", "target_net"):
        for ours, theirs in zip(
            getattr(kernel, name).parameters(), getattr(eager, name).parameters(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
            if name == "q_net":
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=atol)
    ours, theirs = (learner.optimizer.state_dict() for learner in (kernel, eager))
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for key, state in theirs["state"].items():
        assert torch.equal(ours["state"][key]["step"], state["step"])
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours["state"][key][moment], state[moment], rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("variant", "loss", "max_grad_norm"),
    list(itertools.product(VARIANTS, ["huber", "mse"], [None, 0.5])),
)
@pytest.mark.parametrize(("weights", "masks"), [(False, False), (True, True)])
def test_two_hundred_updates_are_those_of_torch(
    variant: Any, loss: Any, max_grad_norm: float | None, weights: bool, masks: bool
) -> None:
    """Learning rate changed, state saved and loaded, target synced in between."""
    eager, kernel = pair = learners(
        variant=variant, loss=loss, max_grad_norm=max_grad_norm, huber_delta=0.8, tau=0.7
    )
    schedules = [
        torch.optim.lr_scheduler.StepLR(learner.optimizer, 50, gamma=0.5) for learner in pair
    ]
    for i, batch in enumerate(batches(200, weights=weights, masks=masks)):
        seen = [learner.update(batch) for learner in pair]
        for name in METRICS:
            ours, theirs = (getattr(one, name) for one in reversed(seen))
            assert ours.shape == theirs.shape, name
            assert ours.dtype == theirs.dtype, name
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5)
        if i == 100:
            for learner in pair:
                state = copy.deepcopy(learner.state_dict())
                learner.update(batch)
                learner.load_state_dict(state)
        for learner, schedule in zip(pair, schedules, strict=True):
            learner.count(steps=1)
            schedule.step()
    assert eager.optimizer.param_groups[0]["lr"] == 1e-3 / 16
    assert eager.counts == kernel.counts
    assert_same(*pair)


@pytest.mark.parametrize("hidden_sizes", [(), (16,), (8, 16, 24)])
def test_any_depth_and_batch_size(hidden_sizes: tuple[int, ...]) -> None:
    pair = learners(hidden_sizes, variant="double")
    for batch in [*batches(20, 8), *batches(20, 1), *batches(20, 33)]:
        for learner in pair:
            learner.update(batch)
    assert_same(*pair)


def test_a_period_in_updates() -> None:
    pair = learners(target_update_unit="updates", target_update_interval=3, learning_rate=0.01)
    for batch in batches(20):
        for learner in pair:
            learner.update(batch)
    assert_same(*pair)


def test_other_optimizers_step_with_the_gradient_of_the_kernel() -> None:
    """Decay, AMSGrad, hooks, another class: torch steps, as it does without the kernel."""
    for make in (
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, lr=1e-3),
        lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
        lambda p: torch.optim.Adam(p, lr=1e-3, maximize=True),
        lambda p: torch.optim.Adam([{"params": [q], "lr": 1e-3} for q in p]),
    ):
        nets = [copy.deepcopy(learner.q_net) for learner in learners()]
        pair = [
            DQNLearner(net, DQNConfig(), optimizer=make(list(net.parameters())), execution=how)
            for net, how in zip(nets, ("eager", "kernel"), strict=True)
        ]
        for batch in batches(30):
            for learner in pair:
                learner.update(batch)
        for ours, theirs in zip(nets[1].parameters(), nets[0].parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_hooks_of_the_optimizer_are_called() -> None:
    _, learner = learners()
    calls = []
    handle = learner.optimizer.register_step_post_hook(lambda *_: calls.append(1))
    first, second = batches(2)
    learner.update(first)
    handle.remove()
    learner.update(second)
    assert len(calls) == 1
    assert {int(state["step"]) for state in learner.optimizer.state.values()} == {2}


@pytest.mark.parametrize("poison", ["observations", "rewards", "next_observations"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_grad_norm", [None, 10.0])
def test_nan_and_infinity_spread_as_in_torch(
    poison: str, value: float, max_grad_norm: float | None
) -> None:
    for terminal in (False, True):  # behind a terminal state nothing is looked at
        pair = learners(max_grad_norm=max_grad_norm, variant="double")
        (batch,) = batches(1)
        getattr(batch, poison).view(32, -1)[5, 0] = value
        batch.discounts[5] = 0.0 if terminal else 0.9
        finite = poison == "next_observations" and terminal
        for learner in pair:
            if finite:
                assert torch.isfinite(learner.update(batch).loss)
            else:
                with pytest.raises(NonFiniteError):
                    learner.update(batch)
        for ours, theirs in zip(
            pair[1].q_net.parameters(), pair[0].q_net.parameters(), strict=True
        ):
            # Torch multiplies what is not finite by the zeros of actions that were not taken; the
            # kernel leaves them out. Nobody steps with either.
            seen = torch.isfinite(theirs.grad)
            torch.testing.assert_close(ours.grad[seen], theirs.grad[seen], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_nan_in_the_selector_is_its_highest_value() -> None:
    """As argmax of torch has it: action 1's NaN is selected, in both."""
    pair = learners((), variant="double")
    for learner in pair:
        with torch.no_grad():
            learner.q_net.head[0].bias[1] = torch.nan
    (batch,) = batches(1)
    batch.actions[:] = 0
    eager, kernel = (learner.update(batch) for learner in pair)
    torch.testing.assert_close(kernel.td_target, eager.td_target)
    assert torch.isfinite(eager.td_target).all()
    s = batch.observations.numpy()
    assert (pair[1].greedy_actions(s) == 1).all()
    assert (pair[0].greedy_actions(s) == 1).all()


def test_memory_is_torchs_own() -> None:
    """What is written into parameters and state from outside is what the kernel works with."""
    pair = learners()
    for i, batch in enumerate(batches(12)):
        for learner in pair:
            parameters = list(learner.q_net.parameters())
            if i == 3:
                learner.q_net.load_state_dict(
                    {name: value * 0.5 for name, value in learner.q_net.state_dict().items()}
                )
            if i == 5:
                parameters[0].data = parameters[0].data.clone() + 0.01  # another address
            if i == 7:
                learner.optimizer.state.clear()
            if i == 9:
                for state in learner.optimizer.state.values():
                    state["exp_avg"] = torch.zeros_like(state["exp_avg"])
            if i == 10:
                learner.optimizer.zero_grad(set_to_none=False)
            if i == 11:
                learner.optimizer.zero_grad()
            learner.update(batch)
    assert_same(*pair)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_is_on_its_own(how: str) -> None:
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, ACTIONS))
    learner = DQNLearner(net, DQNConfig(), execution="kernel")
    first, second = batches(2)
    learner.update(first)
    twin = copy.deepcopy(learner) if how == "deepcopy" else pickle.loads(pickle.dumps(learner))
    assert twin.execution == "kernel"
    before = [p.detach().clone() for p in learner.q_net.parameters()]
    twin.update(second)
    assert all(map(torch.equal, before, learner.q_net.parameters()))
    learner.update(second)
    assert all(map(torch.equal, twin.q_net.parameters(), learner.q_net.parameters()))


def test_a_frozen_layer_stays() -> None:
    pair = learners()
    for learner in pair:
        learner.q_net.head[0].requires_grad_(False)
        before = learner.q_net.head[0].weight.clone()
        for batch in batches(3):
            learner.update(batch)
        assert torch.equal(learner.q_net.head[0].weight, before)
    for ours, theirs in zip(pair[1].q_net.parameters(), pair[0].q_net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_batches_that_are_wrong_raise_what_torch_raises() -> None:
    pair = learners()
    (batch,) = batches(1, masks=True)
    before = [p.detach().clone() for p in pair[1].q_net.parameters()]
    stuck = batch.next_action_masks.clone()
    stuck[3], batch.discounts[3] = False, 0.9
    for wrong in (
        {"actions": torch.full((32,), ACTIONS)},
        {"actions": torch.full((32,), -1)},
        {"rewards": batch.rewards[:, None]},
        {"weights": torch.ones(31)},
        {"next_action_masks": stuck},
        {"next_action_masks": batch.next_action_masks.int()},
        {"observations": batch.observations[:, :-1]},
    ):
        errors = []
        for learner in pair:
            with pytest.raises((ValueError, RuntimeError, IndexError)) as caught:
                learner.update(batch._replace(**wrong))
            errors.append((caught.type, str(caught.value)))
        assert errors[0] == errors[1]
    assert all(map(torch.equal, before, pair[1].q_net.parameters()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_observations_of_any_layout(dtype: torch.dtype) -> None:
    """Converted and flattened as the network does it; of memory that is used again, the contents
    of now."""
    with seeded_initialization(0):
        net = QNetwork(spaces.Box(-1, 1, (2, 2), np.float64), ACTIONS)
    pair = [
        DQNLearner(copy.deepcopy(net), DQNConfig(), execution=how) for how in ("eager", "kernel")
    ]
    (batch,) = batches(1)
    batch = batch._replace(
        observations=batch.observations.to(dtype).view(32, 2, 2),
        next_observations=batch.next_observations.to(dtype).view(32, 2, 2).transpose(1, 2),
    )
    for _ in range(5):
        for learner in pair:
            learner.update(batch)
        batch.observations.mul_(-1.1)
        batch.rewards.add_(0.1)
    assert_same(*pair)


def test_greedy_actions_with_and_without_masks() -> None:
    pair = learners()
    rng = np.random.default_rng(0)
    for rows in (1, 7, 200):
        s = rng.normal(size=(rows, FEATURES))
        legal = rng.random((rows, ACTIONS)) < 0.4
        legal[:, 0] |= ~legal.any(1)
        for masks in (None, legal, np.zeros_like(legal)):
            eager, kernel = (learner.greedy_actions(s, masks) for learner in pair)
            np.testing.assert_array_equal(kernel, eager)
            assert kernel.dtype == np.int64


def test_what_the_kernel_takes_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    class Shift(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    hooked = nn.Sequential(nn.Linear(4, 3))
    hooked[0].register_forward_hook(lambda module, inputs, output: output * 2)
    image = spaces.Box(0, 255, (40, 40, 3), np.uint8)
    takes = {
        "an MLP": (QNetwork(SPACE, 3), True),
        "a linear map": (QNetwork(SPACE, 3, ()), True),
        "bits": (QNetwork(spaces.MultiBinary(5), 3), True),
        "a sequence": (
            nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
            True,
        ),
        "a dueling head": (QNetwork(SPACE, 3, dueling=True), True),
        "binary images": (QNetwork(spaces.Box(0, 1, (10, 10, 4), np.bool_), 3), True),
        "an image": (QNetwork(image, 3), False),
        "bytes": (QNetwork(spaces.Box(0, 255, (4,), np.uint8), 3), False),
        "one-hot": (QNetwork(spaces.Discrete(4), 3), False),
        "a Dict": (QNetwork(spaces.Dict(a=SPACE, b=SPACE), 3), False),
        "tanh": (nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), True),
        "another slope": (nn.Sequential(nn.Linear(4, 8), nn.ELU(0.5), nn.Linear(8, 3)), False),
        "leaks": (nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(), nn.Linear(8, 3)), False),
        "ReLU at the end": (nn.Sequential(nn.Linear(4, 3), nn.ReLU()), False),
        "no bias": (nn.Sequential(nn.Linear(4, 3, bias=False)), False),
        "double precision": (nn.Sequential(nn.Linear(4, 3)).double(), False),
        "a subclass": (Shift(nn.Linear(4, 3)), False),
        "weight norm": (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))),
            False,
        ),
        "a hook": (hooked, False),
        "layer norm": (nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)), False),
        "too wide": (QNetwork(SPACE, 3, (4096,)), False),
    }
    for name, (net, taken) in takes.items():
        learner = DQNLearner(net, DQNConfig(variant="vanilla"))
        assert learner.execution == ("kernel" if taken else "eager"), name
        assert (learner.execution_reason is None) == taken, name
        if not taken:
            with pytest.raises(ValueError, match="execution='kernel' cannot be used: the network"):
                DQNLearner(net, DQNConfig(variant="vanilla"), execution="kernel")
    with pytest.raises(ValueError, match="execution='fast' is not accepted"):
        DQNLearner(nn.Linear(4, 3), DQNConfig(), execution="fast")  # type: ignore[arg-type]


def test_without_numba_torch_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    compute._warn_without_numba.cache_clear()
    with pytest.warns(UserWarning, match="eager torch, several times slower: numba is not inst"):
        learner = DQNLearner(QNetwork(SPACE, ACTIONS), DQNConfig())
    DQNLearner(QNetwork(SPACE, ACTIONS), DQNConfig())  # it is said once
    assert learner.execution == "eager"
    with caplog.at_level(logging.INFO, "dqn_adapters"):
        for batch in batches(3):
            learner.update(batch)
    (record,) = caplog.records
    assert record.getMessage() == (
        "DQN computes in eager torch: numba is not installed; it comes with: "
        "pip install numba scipy"
    )
    with pytest.raises(ValueError, match="pip install numba scipy"):
        DQNLearner(QNetwork(SPACE, ACTIONS), DQNConfig(), execution="kernel")


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("name", ["layer norm", "convolutions"])
def test_of_other_networks_the_kernel_makes_adams_step(
    name: str, max_grad_norm: float | None
) -> None:
    """Torch computes the gradient; the steps are torch's own within rounding."""
    space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    with seeded_initialization(0):
        net: nn.Module = QNetwork(space, ACTIONS, (16,))
        if name == "layer norm":
            net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, ACTIONS))
    config = DQNConfig(learning_rate=1e-3, max_grad_norm=max_grad_norm, target_update_interval=3)
    pair = [DQNLearner(copy.deepcopy(net), config, execution=how) for how in ("eager", "auto")]
    assert [learner.execution for learner in pair] == ["eager", "eager"]
    rng = np.random.default_rng(0)
    for batch in batches(8):
        if name == "convolutions":
            images = torch.from_numpy(rng.integers(0, 256, (2, 32, *space.shape), np.uint8))
            batch = batch._replace(observations=images[0], next_observations=images[1])
        seen = [learner.update(batch) for learner in pair]
        torch.testing.assert_close(seen[1].grad_norm, seen[0].grad_norm)
        for learner in pair:
            learner.count(steps=1)
    assert_same(*pair)


def test_what_computes_is_told() -> None:
    """In the representation, by the learner, and once in the log of every change."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    learner = DQNLearner(net, DQNConfig(variant="vanilla"))
    assert "execution='kernel')" in repr(learner)
    net[1] = nn.LeakyReLU()
    assert learner.execution == "eager"
    assert str(learner.execution_reason).startswith("the network is not one for the kernel: Leaky")
    assert f"execution='eager', because: {learner.execution_reason})" in repr(learner)
    net[1] = nn.Tanh()
    assert (learner.execution, learner.execution_reason) == ("kernel", None)


def test_a_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    learner = DQNLearner(net, DQNConfig(variant="vanilla"))
    with caplog.at_level(logging.INFO, "dqn_adapters"):
        for activation in (nn.ReLU(), nn.LeakyReLU(), nn.ReLU()):
            net[1] = activation
            for batch in batches(3):
                learner.update(batch)
    said = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert [level for level, _ in said] == ["INFO", "WARNING", "INFO"]
    assert [message.split(":")[0] for _, message in said] == [
        "DQN computes in the compiled kernel",
        "DQN computes in eager torch",
        "DQN computes in the compiled kernel",
    ]
