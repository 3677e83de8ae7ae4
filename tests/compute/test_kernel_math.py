"""The compiled functions against torch: the same numbers, from the same memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from support import random_batch
from torch import nn

from dqn_adapters import DQNConfig, DQNLearner, Transition
from dqn_adapters.config import VARIANTS
from dqn_adapters.finite import NonFiniteError
from dqn_adapters.networks import DuelingHead, QNetwork, mlp, q_head, seeded_initialization

pytest.importorskip("numba")

from numba import njit

from dqn_adapters.compute import kernel, layout
from dqn_adapters.compute.plan import convolution, dense, make_plan

ACTIONS = 3
ACTIVATIONS = {nn.ReLU: layout.RELU, nn.Tanh: layout.TANH, nn.ELU: layout.ELU}


class Images(nn.Module):
    """Layers over images that come flattened.

    Args:
        shape: `(C, H, W)`.
        channels_last: They come as `(H, W, C)`.
    """

    def __init__(
        self, *layers: nn.Module, shape: tuple[int, int, int], channels_last: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.shape, self.channels_last = shape, channels_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c, h, w = self.shape
        if self.channels_last:
            return self.layers(x.view(-1, h, w, c).permute(0, 3, 1, 2))
        return self.layers(x.view(-1, c, h, w))


def plan_of(net: nn.Module, features: int) -> NDArray[np.int64]:
    """The plan of a network of dense layers, convolutions, activations, `Images`, `DuelingHead`."""
    rows: list[list[int]] = []

    def add(module: nn.Module, source: int, shape: tuple[int, ...], last: bool) -> Any:
        """Append the rows of a module; the layer and the shape of what it makes."""
        if isinstance(module, Images):
            return add(module.layers, source, module.shape, module.channels_last)
        if isinstance(module, nn.Conv2d):
            rows.append(
                convolution(
                    *(source, shape, module.kernel_size, module.stride, module.out_channels),  # type: ignore[arg-type]
                    channels_last=last or source >= 0,
                )
            )
            size = [
                (n - kernel) // stride + 1
                for n, kernel, stride in zip(
                    shape[1:], module.kernel_size, module.stride, strict=True
                )
            ]
            return len(rows) - 1, (module.out_channels, *size)
        if isinstance(module, nn.Linear):
            if len(shape) == 3:
                rows.append(convolution(source, shape, shape[1:], (1, 1), module.out_features))  # type: ignore[arg-type]
            else:
                rows.append(dense(source, shape[0], module.out_features))
            return len(rows) - 1, (module.out_features,)
        if isinstance(module, DuelingHead):
            value, _ = add(module.value, source, shape, last)
            source, shape = add(module.advantage, source, shape, last)
            rows[-1][layout.VALUE] = value
        elif type(module) in ACTIVATIONS:
            rows[-1][layout.ACTIVATION] = ACTIVATIONS[type(module)]
        else:
            for child in module.children():
                source, shape = add(child, source, shape, last)
        return source, shape

    add(net, -1, (features,), False)
    return make_plan(rows)


def table(*tensors: torch.Tensor) -> NDArray[np.int64]:
    return np.array([tensor.data_ptr() for tensor in tensors], np.int64)


class Compiled:
    """A pair of networks that the compiled functions train, as `DQNLearner` does in torch."""

    def __init__(self, q_net: nn.Module, target: nn.Module, features: int, config: DQNConfig):
        self.q_net, self.config = q_net, config
        self.plan = plan_of(q_net, features)
        self.parameters = [p.data for p in q_net.parameters()]
        zeros = [[torch.zeros_like(p) for p in self.parameters] for _ in range(3)]
        self.gradient, self.moments = zeros[0], zeros[1:]
        self.steps = [torch.tensor(0.0) for _ in self.parameters]
        targets = self.parameters
        if config.variant != "vanilla":
            targets = [p.data for p in target.parameters()]
        self.targets = targets
        rows = [targets, self.parameters, self.gradient, *self.moments, self.steps]
        self.tensors = np.stack([table(*row) for row in rows])
        self.counts = np.array([p.numel() for p in self.parameters], np.int64)
        self.loss = config.variant == "double", config.loss == "mse", config.huber_delta
        norm = math.inf if config.max_grad_norm is None else config.max_grad_norm
        self.options = norm, float(config.learning_rate), 0.9, 0.999, 1e-8  # type: ignore[arg-type]
        self.seen = np.full(0, np.nan, np.float32)

    def update(self, batch: Transition) -> bool:
        fields = [torch.empty(0) if field is None else field for field in batch]
        self.seen = np.full(layout.seen_size(len(batch.rewards)), np.nan, np.float32)
        done: bool = kernel.update(
            self.plan,
            self.counts,
            self.tensors,
            table(*fields),
            self.seen,
            *self.loss,
            *self.options,
        )
        return done

    def greedy(self, s: NDArray[np.float32], masks: NDArray[np.bool_]) -> NDArray[np.int64]:
        actions = np.full(len(s), -1)
        layers = self.tensors[layout.ONLINE].reshape(-1, 2)
        kernel.greedy(self.plan, layers, s, masks, actions)
        return actions


def dueling(features: int, *hidden_sizes: int, activation: Any = nn.ReLU) -> nn.Module:
    return q_head(features, ACTIONS, hidden_sizes, dueling=True, activation=activation)


def uneven() -> nn.Module:
    """A dueling head whose branches differ, behind a layer that both read."""
    head = DuelingHead(mlp(8, 1, (5, 6), nn.Tanh), mlp(8, ACTIONS, ()))
    return nn.Sequential(nn.Linear(4, 8), nn.ELU(), head)


def one_convolution(channels_last: bool) -> nn.Module:
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), *mlp(6 * 4 * 5, ACTIONS, (16,))
    return Images(*layers, shape=(3, 6, 7), channels_last=channels_last)


def two_convolutions(channels_last: bool, head: Callable[[int], nn.Module]) -> nn.Module:
    """Neither images, kernels nor strides are square; the second kernel leaves pixels over."""
    first, second = nn.Conv2d(2, 5, (3, 2), (2, 1)), nn.Conv2d(5, 7, (2, 3), (1, 2))
    layers = first, nn.ReLU(), second, nn.ELU(), nn.Flatten(), head(7 * 3 * 2)
    return Images(*layers, shape=(2, 9, 7), channels_last=channels_last)


NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "linear": (4, lambda: mlp(4, ACTIONS, ())),
    "one layer": (4, lambda: mlp(4, ACTIONS, (16,))),
    "two layers": (4, lambda: mlp(4, ACTIONS, (32, 24))),
    "three layers": (5, lambda: mlp(5, ACTIONS, (8, 16, 24))),
    "tanh": (4, lambda: mlp(4, ACTIONS, (16, 8), nn.Tanh)),
    "elu": (4, lambda: mlp(4, ACTIONS, (16, 8), nn.ELU)),
    "dueling, linear": (4, lambda: dueling(4)),
    "dueling, one layer": (4, lambda: dueling(4, 16)),
    "dueling, two layers": (4, lambda: dueling(4, 32, 24)),
    "dueling, uneven": (4, uneven),
    "convolution": (3 * 6 * 7, lambda: one_convolution(False)),
    "convolution, channels last": (3 * 6 * 7, lambda: one_convolution(True)),
    "convolutions": (2 * 9 * 7, lambda: two_convolutions(False, lambda n: nn.Linear(n, ACTIONS))),
    "convolutions, channels last": (
        2 * 9 * 7,
        lambda: two_convolutions(True, lambda n: mlp(n, ACTIONS, (8,), nn.Tanh)),
    ),
    "convolutions, dueling": (2 * 9 * 7, lambda: two_convolutions(True, lambda n: dueling(n, 8))),
    "convolutions, dueling at once": (2 * 9 * 7, lambda: two_convolutions(False, dueling)),
}


def pair(name: str, **config: Any) -> tuple[DQNLearner, Compiled]:
    """Equal networks, one to be trained in torch. Online and target differ."""
    features, make = NETWORKS[name]
    with seeded_initialization(0):
        online, target = make(), make()
    settings = DQNConfig(**{"learning_rate": 1e-3, "target_update_interval": 1000, **config})
    learner = DQNLearner(
        copy.deepcopy(online),
        settings,
        target_net=None if settings.variant == "vanilla" else copy.deepcopy(target),
        execution="eager",
    )
    return learner, Compiled(online, target, features, settings)


def batches(
    name: str, count: int, size: int = 32, *, weights: bool = False, masks: bool = False
) -> list[Transition]:
    """Rewards are large enough that errors lie on both sides of Huber's delta."""
    rng, result = np.random.default_rng(0), []
    for _ in range(count):
        batch = random_batch(rng, size, NETWORKS[name][0], ACTIONS)
        fading = torch.from_numpy(rng.choice([1.0, 0.9], size).astype(np.float32))
        batch = batch._replace(discounts=batch.discounts * fading)
        if weights:
            some = torch.from_numpy(rng.uniform(0.1, 1, size).astype(np.float32))
            batch = batch._replace(weights=some)
        if masks:
            legal = torch.from_numpy(rng.random((size, ACTIONS)) < 0.5)
            legal[:, 0] |= ~legal.any(1) & (batch.discounts > 0)  # terminal rows may allow none
            batch = batch._replace(next_action_masks=legal)
        result.append(batch)
    return result


def assert_same_parameters(learner: DQNLearner, compiled: Compiled) -> None:
    """Networks, gradients and Adam's state. After many updates rounding may have put an input of a
    ReLU on the other side of zero, where a gradient jumps."""
    close = torch.testing.assert_close
    for i, theirs in enumerate(learner.q_net.parameters()):
        close(compiled.parameters[i], theirs.data, rtol=0, atol=2e-5)
        close(compiled.gradient[i], theirs.grad, rtol=1e-3, atol=1e-4)
        state = learner.optimizer.state[theirs]
        close(compiled.moments[0][i], state["exp_avg"], rtol=1e-3, atol=1e-4)
        close(compiled.moments[1][i], state["exp_avg_sq"], rtol=1e-3, atol=1e-4)
        assert compiled.steps[i] == state["step"]


def assert_same_metrics(metrics: Any, seen: NDArray[np.float32]) -> None:
    td_error, q_value, td_target = seen[layout.ROWS :].reshape(3, -1)
    for ours, theirs in (
        (seen[layout.LOSS], metrics.loss),
        (seen[layout.TD_ERROR_MEAN], metrics.td_error.abs().mean()),
        (seen[layout.Q_VALUE_MEAN], metrics.q_value.mean()),
        (seen[layout.TD_TARGET_MEAN], metrics.td_target.mean()),
        (seen[layout.GRAD_NORM], metrics.grad_norm),
        (td_error, metrics.td_error),
        (q_value, metrics.q_value),
        (td_target, metrics.td_target),
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=2e-5)


def check_updates(name: str, count: int, *, rich: bool, **config: Any) -> None:
    """Rich: with weights and masks."""
    learner, compiled = pair(name, **config)
    before = [p.clone() for p in compiled.targets]
    for i, batch in enumerate(batches(name, count, weights=rich, masks=rich)):
        metrics = learner.update(batch)
        assert compiled.update(batch)
        if i % 20 == 19:
            assert_same_metrics(metrics, compiled.seen)
    assert_same_parameters(learner, compiled)
    fixed = [torch.equal(p, q) for p, q in zip(compiled.targets, before, strict=True)]
    assert not any(fixed) if learner.config.variant == "vanilla" else all(fixed)


@pytest.mark.parametrize("name", NETWORKS)
def test_two_hundred_updates_are_those_of_torch(name: str) -> None:
    check_updates(name, 200, rich=False, variant="double", huber_delta=0.8)


@pytest.mark.parametrize("rich", [False, True])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("loss", ["huber", "mse"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["two layers", "convolutions, dueling"])
def test_variants_losses_clipping_weights_and_masks(
    name: str, variant: Any, loss: Any, max_grad_norm: float | None, rich: bool
) -> None:
    options = {"variant": variant, "loss": loss, "max_grad_norm": max_grad_norm}
    check_updates(name, 20, rich=rich, **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_is_that_of_torch(name: str) -> None:
    """For batches of any size, to the last digits."""
    for size in (1, 7, 64):
        learner, compiled = pair(name, variant="double", max_grad_norm=None)
        (batch,) = batches(name, 1, size, weights=True, masks=True)
        learner.td_loss(batch).loss.backward()
        assert compiled.update(batch)
        for ours, theirs in zip(compiled.gradient, learner.q_net.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_greedy_actions_with_and_without_masks(name: str) -> None:
    learner, compiled = pair(name)
    rng = np.random.default_rng(0)
    for rows in (1, 7, 200):
        s = rng.normal(size=(rows, NETWORKS[name][0])).astype(np.float32)
        legal = rng.random((rows, ACTIONS)) < 0.4
        legal[:, 0] |= ~legal.any(1)
        for masks in (None, legal, np.zeros_like(legal)):
            theirs = learner.greedy_actions(s, masks)
            ours = compiled.greedy(s, legal[:0] if masks is None else masks)
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("shape", [(10, 10, 4), (3, 7, 7)])
@pytest.mark.parametrize("dueling_head", [False, True])
def test_binary_images_through_the_networks_of_the_core(
    shape: tuple[int, int, int], dueling_head: bool
) -> None:
    """The channels are last in MinAtar's images, and first where they are the shorter axis."""
    space = spaces.Box(0, 1, shape, np.bool_)
    with seeded_initialization(0):
        net = QNetwork(space, ACTIONS, (32,), dueling=dueling_head)
    last = shape[2] < shape[0]
    image = (shape[2], *shape[:2]) if last else shape
    wrapped = Images(net.encoder.convolutions[0].layers, net.head, shape=image, channels_last=last)
    config = DQNConfig(learning_rate=1e-3)
    learner = DQNLearner(copy.deepcopy(net), config, execution="eager")
    compiled = Compiled(wrapped, copy.deepcopy(wrapped), math.prod(shape), config)
    rng = np.random.default_rng(0)
    for _ in range(20):
        batch = random_batch(rng, 32, math.prod(shape), ACTIONS)
        batch = batch._replace(
            observations=(batch.observations > 1).float(),
            next_observations=(batch.next_observations > 1).float(),
        )
        images = batch._replace(
            observations=batch.observations.bool().view(-1, *shape),
            next_observations=batch.next_observations.bool().view(-1, *shape),
        )
        metrics = learner.update(images)
        assert compiled.update(batch)
        assert_same_metrics(metrics, compiled.seen)
    assert_same_parameters(learner, compiled)


@pytest.mark.parametrize("poison", ["observations", "rewards", "next_observations"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["two layers", "tanh", "elu", "dueling, one layer", "convolution"])
def test_nan_and_infinity_spread_as_in_torch(name: str, poison: str, value: float) -> None:
    for terminal in (False, True):  # behind a terminal state nothing is looked at
        learner, compiled = pair(name, variant="double")
        (batch,) = batches(name, 1)
        getattr(batch, poison).view(32, -1)[5, 0] = value
        batch.discounts[5] = 0.0 if terminal else 0.9
        before = [p.clone() for p in compiled.parameters]
        assert compiled.update(batch)
        finite = math.isfinite(compiled.seen[layout.LOSS])
        try:
            learner.update(batch)
            assert finite
        except NonFiniteError:
            assert not finite
            assert math.isnan(compiled.seen[layout.GRAD_NORM])  # what was there before
            assert all(map(torch.equal, compiled.parameters, before))
        assert (
            not finite
            or name in ("tanh", "elu")
            or (poison, terminal)
            == (
                "next_observations",
                True,
            )
        )
        for ours, theirs in zip(compiled.gradient, learner.q_net.parameters(), strict=True):
            # Torch multiplies what is not finite by the zeros of actions that were not taken; the
            # kernel leaves them out. Nobody steps with either.
            seen = torch.isfinite(theirs.grad)
            torch.testing.assert_close(ours[seen], theirs.grad[seen], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["linear", "dueling, linear"])
def test_nan_in_the_selector_is_its_highest_value(name: str) -> None:
    """As argmax of torch has it, where one action's value is NaN, and where all are."""
    learner, compiled = pair(name, variant="double")
    for parameters in (list(learner.q_net.parameters()), compiled.parameters):
        parameters[-1].data[1] = torch.nan
    (batch,) = batches(name, 1)
    batch.actions[:] = 0
    theirs = learner.td_loss(batch)
    assert compiled.update(batch)
    target = compiled.seen[layout.ROWS :].reshape(3, -1)[2]
    np.testing.assert_allclose(target, theirs.td_target, rtol=1e-5)
    assert np.isfinite(target).all()
    s = batch.observations.numpy()
    ours = compiled.greedy(s, np.zeros((0, ACTIONS), np.bool_))
    np.testing.assert_array_equal(ours, learner.greedy_actions(s))
    assert (ours == (1 if name == "linear" else 0)).all()


@pytest.mark.parametrize("name", ["two layers", "dueling, two layers", "convolutions"])
def test_a_batch_that_cannot_be_right_changes_nothing(name: str) -> None:
    _, compiled = pair(name, variant="double")
    (batch,) = batches(name, 1, masks=True)
    assert batch.next_action_masks is not None
    stuck, going_on = batch.next_action_masks.clone(), batch.discounts.clone()
    stuck[3], going_on[3] = False, 0.9
    before = [p.clone() for p in [*compiled.parameters, *compiled.gradient]]
    for wrong in (
        {"actions": torch.full((32,), ACTIONS)},
        {"actions": torch.full((32,), -1)},
        {"next_action_masks": stuck, "discounts": going_on},
    ):
        assert not compiled.update(batch._replace(**wrong))
        assert np.isnan(compiled.seen).all()
        now = [*compiled.parameters, *compiled.gradient]
        assert all(map(torch.equal, before, now))
    assert compiled.update(batch)
    assert not any(map(torch.equal, before, compiled.parameters))


def test_inside_another_compiled_function_the_numbers_are_the_same() -> None:
    """To the last bit, for a caller that is compiled by itself and may inline what it calls."""

    @njit(error_model="numpy", fastmath=True)
    def updates(plan, counts, tensors, batch, seen, loss, options):  # type: ignore[no-untyped-def]
        for _ in range(20):
            kernel.td_gradient(plan, tensors, batch, seen, *loss)
            seen[layout.GRAD_NORM] = kernel.clipped_adam(counts, tensors[layout.ONLINE :], *options)

    name = "convolutions, dueling"
    (batch,) = batches(name, 1, weights=True, masks=True)
    alone, inside = (pair(name, variant="double")[1] for _ in range(2))
    for _ in range(20):
        alone.update(batch)
    seen = np.empty(layout.seen_size(32), np.float32)
    updates(
        *(inside.plan, inside.counts, inside.tensors, table(*batch), seen),  # type: ignore[arg-type]
        *(inside.loss, inside.options),
    )
    assert all(map(torch.equal, inside.parameters, alone.parameters))
    np.testing.assert_array_equal(seen, alone.seen)


def test_a_plan_whose_layers_do_not_fit_is_refused() -> None:
    image = convolution(-1, (2, 5, 5), (2, 2), (1, 1), 3)
    with pytest.raises(ValueError, match="a layer reads 47 numbers of layer 0, which makes 48"):
        make_plan([image, dense(0, 47, 2)])
