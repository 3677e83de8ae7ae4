from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from support import random_batch
from torch import nn
from torch.nn import functional as F

from dqn_adapters import DQNConfig, DQNLearner, Transition
from dqn_adapters.config import VARIANTS, Variant
from dqn_adapters.learner import METRICS, mean_metrics


class Table(nn.Module):
    """Q-values looked up by state number."""

    def __init__(self, values: list[list[float]]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.values[states]


ONLINE = [[1.0, 4.0], [2.0, 7.0], [99.0, 99.0]]
TARGET = [[99.0, 99.0], [5.0, 3.0], [99.0, 99.0]]
# s=0 -> s'=1 running; s=0 -> s'=2 terminal: its 99s must never be seen.
BATCH = Transition(
    observations=torch.tensor([0, 0]),
    actions=torch.tensor([1, 0]),
    rewards=torch.tensor([1.0, 2.0]),
    discounts=torch.tensor([0.5, 0.0]),
    next_observations=torch.tensor([1, 2]),
)
# vanilla: 1 + .5 * max(2, 7); target: 1 + .5 * max(5, 3); double: 1 + .5 * TARGET[argmax(2, 7)]
TARGETS = {"vanilla": 4.5, "target": 3.5, "double": 2.5}


def table_learner(variant: Variant, **config: Any) -> DQNLearner:
    target = None if variant == "vanilla" else Table(TARGET)
    config = {"learning_rate": 0.1, "max_grad_norm": None, **config}
    return DQNLearner(Table(ONLINE), DQNConfig(variant=variant, **config), target_net=target)


@pytest.mark.parametrize("variant", VARIANTS)
def test_td_loss_by_hand(variant: Variant) -> None:
    y = TARGETS[variant]
    seen = table_learner(variant, loss="mse").td_loss(BATCH)
    torch.testing.assert_close(seen.td_target, torch.tensor([y, 2.0]))
    torch.testing.assert_close(seen.q_value, torch.tensor([4.0, 1.0]))
    torch.testing.assert_close(seen.td_error, torch.tensor([y - 4.0, 1.0]))
    assert seen.loss.item() == pytest.approx(((y - 4) ** 2 + 1) / 2)


def test_huber_loss_by_hand() -> None:
    # TD errors 0.5 and 1; delta 0.25: each is delta * (|e| - delta / 2)
    seen = table_learner("vanilla", huber_delta=0.25).td_loss(BATCH)
    assert seen.loss.item() == pytest.approx((0.25 * 0.375 + 0.25 * 0.875) / 2)
    # delta 1: e^2 / 2
    seen = table_learner("vanilla", huber_delta=1.0).td_loss(BATCH)
    assert seen.loss.item() == pytest.approx((0.125 + 0.5) / 2)


@pytest.mark.parametrize("loss", ["huber", "mse"])
def test_importance_weights_weigh_every_loss(loss: str) -> None:
    learner = table_learner("double", loss=loss)
    one, other = (
        learner.td_loss(BATCH._replace(weights=torch.tensor(weights))).loss.item()
        for weights in ([1.0, 0.0], [0.0, 1.0])
    )
    both = learner.td_loss(BATCH._replace(weights=torch.tensor([0.25, 0.5]))).loss.item()
    assert both == pytest.approx(0.25 * one + 0.5 * other)
    assert one != other


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_gradient_reaches_anything_but_the_prediction(variant: Variant) -> None:
    """In vanilla s' is read from the very network that learns: its rows must get no gradient."""
    learner = table_learner(variant, loss="mse")
    batch = BATCH._replace(
        rewards=BATCH.rewards.requires_grad_(), discounts=BATCH.discounts.requires_grad_()
    )
    seen = learner.td_loss(batch)
    seen.loss.backward()
    y = TARGETS[variant]
    # d/dq mean((q - y)^2) = q - y over a batch of 2, at (s=0, a=1) and (s=0, a=0) and nowhere else
    expected = torch.tensor([[1.0 - 2.0, 4.0 - y], [0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(learner.q_net.values.grad, expected)
    assert batch.rewards.grad is None
    assert batch.discounts.grad is None
    assert not seen.td_error.requires_grad
    if variant != "vanilla":
        assert learner.target_net.values.grad is None
    BATCH.rewards.requires_grad_(False)
    BATCH.discounts.requires_grad_(False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_target(variant: Variant) -> None:
    """The only legal next action is worth 2, another is worth 8: the target uses 2."""
    values = [[0.0, 0.0], [2.0, 8.0], [0.0, 0.0]]
    learner = DQNLearner(
        Table(values),
        DQNConfig(variant=variant),
        target_net=None if variant == "vanilla" else Table(values),
    )
    batch = BATCH._replace(next_action_masks=torch.tensor([[True, False], [False, False]]))
    torch.testing.assert_close(learner.td_loss(batch).td_target, torch.tensor([1 + 0.5 * 2, 2.0]))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("variant", VARIANTS)
def test_update_is_adam_on_the_clipped_gradient(variant: Variant) -> None:
    """Against the same step written out with torch's pieces."""
    torch.manual_seed(0)
    net = mlp()
    config = DQNConfig(variant=variant, learning_rate=1e-2, max_grad_norm=0.05, gamma=0.9)
    learner = DQNLearner(copy.deepcopy(net), config)
    target = learner.q_net if variant == "vanilla" else copy.deepcopy(net)
    reference = copy.deepcopy(net)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(5):
        batch = random_batch(rng)
        with torch.no_grad():
            online_next = reference(batch.next_observations)
            values = online_next if variant == "vanilla" else target(batch.next_observations)
            pick = online_next if variant == "double" else values
            y = batch.rewards + batch.discounts * values[range(16), pick.argmax(1)]
        q = reference(batch.observations)[range(16), batch.actions]
        optimizer.zero_grad()
        loss = F.smooth_l1_loss(q, y)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
        optimizer.step()
        metrics = learner.update(batch)
        torch.testing.assert_close(metrics.loss, loss.detach())
        torch.testing.assert_close(metrics.grad_norm, norm)
        assert norm > 0.05
        assert not any(getattr(metrics, name).requires_grad for name in METRICS)
    for ours, theirs in zip(learner.q_net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert learner.num_updates == 5


def test_vanilla_has_no_copy() -> None:
    learner = DQNLearner(mlp(), DQNConfig(variant="vanilla", tau=0.5, target_update_interval=1))
    assert learner.target_net is learner.q_net
    assert "target_net" not in learner.state_dict()
    before = copy.deepcopy(learner.q_net.state_dict())
    learner.count(steps=1)  # a Polyak update in place on an alias would shrink the weights
    for name, value in learner.q_net.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(ValueError, match="vanilla.*target_net must be None"):
        DQNLearner(mlp(), DQNConfig(variant="vanilla"), target_net=mlp())


@pytest.mark.parametrize("variant", ["target", "double"])
def test_the_target_is_another_network(variant: Variant) -> None:
    net = mlp()
    with pytest.raises(ValueError, match="needs a target_net that is not q_net itself"):
        DQNLearner(net, DQNConfig(variant=variant), target_net=net)
    learner = DQNLearner(net, DQNConfig(variant=variant))
    assert learner.target_net is not net
    assert not any(p.requires_grad for p in learner.target_net.parameters())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("unit", ["steps", "episodes"])
def test_target_is_frozen_between_syncs_and_equal_after(unit: str) -> None:
    config = DQNConfig(target_update_interval=3, target_update_unit=unit, learning_rate=0.1)
    learner = DQNLearner(mlp(), config)
    rng = np.random.default_rng(0)
    for i in range(1, 8):
        before = copy.deepcopy(learner.target_net.state_dict())
        learner.update(random_batch(rng))
        synced = learner.count(**{unit: 1})
        assert synced == (i % 3 == 0)
        source = learner.q_net.state_dict() if synced else before
        for name, value in learner.target_net.state_dict().items():
            assert torch.equal(value, source[name])


def test_a_period_in_updates_is_synced_after_the_targets_and_before_the_step() -> None:
    config = DQNConfig(target_update_interval=3, target_update_unit="updates", learning_rate=0.1)
    learner = DQNLearner(mlp(), config)
    rng = np.random.default_rng(0)
    for i in range(8):
        batch = random_batch(rng)
        old, online = (
            copy.deepcopy(net.state_dict()) for net in (learner.target_net, learner.q_net)
        )
        expected_targets = learner.td_loss(batch).td_target
        torch.testing.assert_close(learner.update(batch).td_target, expected_targets)
        assert not learner.count(steps=1)
        source = online if i in (3, 6) else old
        for name, value in learner.target_net.state_dict().items():
            assert torch.equal(value, source[name])


def test_the_period_holds_for_any_number_of_environments() -> None:
    """A period of 10 with 4 environments: synced on passing 10, 20, 30, ... (SB3 floors to 8)."""
    learner = DQNLearner(mlp(), DQNConfig(target_update_interval=10))
    synced_at = [i * 4 for i in range(1, 16) if learner.count(steps=4)]
    assert synced_at == [12, 20, 32, 40, 52, 60]


def test_polyak_sync() -> None:
    learner = table_learner("target", tau=0.25)
    learner.sync_target()
    expected = 0.25 * torch.tensor(ONLINE) + 0.75 * torch.tensor(TARGET)
    torch.testing.assert_close(learner.target_net.values.detach(), expected)


def test_buffers_are_copied_and_the_next_state_is_evaluated_without_batch_statistics() -> None:
    """Only s passes in training mode: the running mean is that of s alone; the sync copies it."""
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    learner = DQNLearner(net, DQNConfig(variant="double", tau=0.5))
    net.train()
    batch = random_batch(np.random.default_rng(0))
    learner.update(batch)
    assert net.training
    assert not learner.target_net.training
    torch.testing.assert_close(net[0].running_mean, 0.1 * batch.observations.mean(0))
    assert torch.equal(learner.target_net[0].running_mean, torch.zeros(4))
    learner.sync_target()
    assert torch.equal(learner.target_net[0].running_mean, net[0].running_mean)


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_dict_continues_exactly(variant: Variant) -> None:
    config = DQNConfig(variant=variant, target_update_interval=2, target_update_unit="updates")
    first = DQNLearner(mlp(), config)
    rng = np.random.default_rng(0)
    batches = [random_batch(rng) for _ in range(6)]
    for batch in batches[:3]:
        first.update(batch)
    state = copy.deepcopy(first.state_dict())
    second = DQNLearner(mlp(), config)
    second.load_state_dict(state)
    third = DQNLearner(mlp(), config)
    third.load_state_dict(state)  # loading took nothing out of the caller's dictionary
    for batch in batches[3:]:
        for learner in (first, second, third):
            learner.update(batch)
    for other in (second, third):
        assert other.counts == first.counts
        for net in ("q_net", "target_net"):
            for a, b in zip(
                getattr(first, net).parameters(), getattr(other, net).parameters(), strict=True
            ):
                assert torch.equal(a, b)


def test_a_state_of_another_variant_is_refused() -> None:
    state = DQNLearner(mlp(), DQNConfig(variant="vanilla")).state_dict()
    with pytest.raises(ValueError, match="variant='double' needs .*'target_net'"):
        DQNLearner(mlp(), DQNConfig(variant="double")).load_state_dict(state)


def test_given_modules_and_optimizer_are_used_and_not_copied() -> None:
    net, target = mlp(), mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    learner = DQNLearner(net, DQNConfig(), target_net=target, optimizer=optimizer)
    assert learner.q_net is net
    assert learner.target_net is target
    assert learner.optimizer is optimizer
    before = copy.deepcopy(net.state_dict())
    learner.update(random_batch(np.random.default_rng(0)))
    assert any(not torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_networks_that_return_more_than_q_values() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.net(x), None

    learner = DQNLearner(Recurrent(), DQNConfig(), q_values=lambda net, x: net(x)[0])
    assert learner.update(random_batch(np.random.default_rng(0))).loss.shape == ()


@pytest.mark.parametrize("name", ["actions", "rewards", "discounts", "weights"])
def test_columns_are_refused_not_broadcast(name: str) -> None:
    learner = DQNLearner(mlp(), DQNConfig())
    batch = random_batch(np.random.default_rng(0))
    column = torch.zeros(16, 1, dtype=torch.int64 if name == "actions" else torch.float32)
    with pytest.raises(ValueError, match=rf"{name} must have shape \(16,\), got \(16, 1\)"):
        learner.update(batch._replace(**{name: column}))


def test_means_for_a_log() -> None:
    learner = table_learner("target", loss="mse")
    seen = [learner.update(BATCH) for _ in range(2)]
    means = mean_metrics(seen)
    assert list(means) == ["loss", "td_error", "q_value", "td_target", "grad_norm"]
    for name, mean in means.items():
        values = torch.stack([getattr(metrics, name) for metrics in seen])
        assert mean == pytest.approx((values.abs() if name == "td_error" else values).mean().item())
    assert means["td_error"] != pytest.approx(seen[0].td_error.mean().item())  # one is negative
