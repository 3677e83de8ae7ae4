"""The learner: networks, TD loss, gradient step and target network. It knows no environment."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from dqn_adapters import stored
from dqn_adapters.config import DQNConfig, Loss, Variant
from dqn_adapters.execution import AsMLP, CompiledGradient, Execution, as_mlp, make_kernels
from dqn_adapters.finite import check_loss
from dqn_adapters.targets import double_q_learning_target, greedy_actions, q_learning_target
from dqn_adapters.transition import Arrays, Observations, Transition, to_tensor, to_tensors

QFunction = Callable[[Observations], torch.Tensor]
"""Maps observations `(B, ...)` to action values `(B, A)`."""


class TDLoss(NamedTuple):
    """What the loss was made of. All but `loss` are detached."""

    loss: torch.Tensor
    """`()`, the weighted mean over the batch."""

    td_error: torch.Tensor
    """`(B,)`, target - prediction."""

    q_value: torch.Tensor
    """`(B,)`, the prediction Q(s, a)."""

    td_target: torch.Tensor
    """`(B,)`."""


@dataclass(eq=False)
class UpdateMetrics:
    """What one update saw: detached tensors on the learner's device, nothing synchronised."""

    loss: torch.Tensor
    """`()`."""

    td_error: torch.Tensor
    """`(B,)`, target - prediction, before the update."""

    q_value: torch.Tensor
    """`(B,)`, the prediction Q(s, a), before the update."""

    td_target: torch.Tensor
    """`(B,)`."""

    grad_norm: torch.Tensor
    """`()`, the global L2 norm of the gradient before clipping."""

    _seen: NDArray[np.float32] | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, seen: NDArray[np.float32]) -> UpdateMetrics:
        """From what `kernel.td_gradient` wrote. The tensors are made when one is asked for."""
        metrics = cls.__new__(cls)
        metrics._seen = seen
        return metrics

    def __getattr__(self, name: str) -> Any:  # only for what is not there yet
        if name not in METRICS or self._seen is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        seen = torch.from_numpy(self._seen)
        values = seen[0], *seen[5:].view(3, -1).unbind(), seen[4]
        self.__dict__.update(zip(METRICS, values, strict=True))
        return self.__dict__[name]


METRICS = tuple(part.name for part in fields(UpdateMetrics))[:5]


def mean_metrics(metrics: Sequence[UpdateMetrics]) -> dict[str, float]:
    """Means over updates and their batches, as numbers for a log.

    Returns:
        `loss`, `td_error` (of its absolute value), `q_value`, `td_target`, `grad_norm`.
    """
    seen = [one._seen[:5].tolist() for one in metrics if one._seen is not None]
    if len(seen) == len(metrics):
        means = [sum(values) / len(seen) for values in zip(*seen, strict=True)]
        return dict(zip(METRICS, means, strict=True))
    stacked = [torch.stack([getattr(one, name) for one in metrics]) for name in METRICS]
    stacked[1] = stacked[1].abs()
    # One transfer for all: each would wait for the device.
    numbers = torch.stack([values.mean() for values in stacked]).tolist()
    return dict(zip(METRICS, numbers, strict=True))


def td_loss(
    online: QFunction,
    target: QFunction,
    batch: Transition,
    *,
    variant: Variant,
    loss: Loss = "huber",
    huber_delta: float = 1.0,
    online_next: QFunction | None = None,
) -> TDLoss:
    """The loss of DQN on one batch. Its only gradient is that of the prediction `online(s)[a]`.

    Args:
        online: The function that is learned.
        target: The lagged copy; unused by `"vanilla"`.
        batch: B transitions.
        variant: See `DQNConfig.variant`.
        loss: `"huber"` or `"mse"`; the mean over the batch of the weighted element losses.
        huber_delta: TD error at which the Huber loss turns linear.
        online_next: The learned function as it is evaluated on s', if that is not done by
            `online` (a network with dropout or batch normalisation in evaluation mode).

    Raises:
        ValueError: the batch's shapes do not fit together; see `targets`.
    """
    q_values = online(batch.observations)
    _check_batch(q_values, batch)
    q_value = q_values.gather(1, batch.actions.unsqueeze(1)).squeeze(1)
    with torch.no_grad():
        online_next = online_next or online
        value = (online_next if variant == "vanilla" else target)(batch.next_observations)
        if variant == "double":
            selector = online_next(batch.next_observations)
            target_y = double_q_learning_target(
                batch.rewards,
                batch.discounts,
                value,
                selector,
                next_action_masks=batch.next_action_masks,
            )
        else:
            target_y = q_learning_target(
                batch.rewards, batch.discounts, value, next_action_masks=batch.next_action_masks
            )
    if loss == "huber":
        losses = F.huber_loss(q_value, target_y, reduction="none", delta=huber_delta)
    else:
        losses = F.mse_loss(q_value, target_y, reduction="none")
    if batch.weights is not None:
        losses = losses * batch.weights
    prediction = q_value.detach()
    return TDLoss(losses.mean(), target_y - prediction, prediction, target_y)


class DQNLearner:
    """Learns a Q-function from batches of transitions.

    It works on the modules and the optimiser that it is given and hides no copies: a host that
    owns and saves them goes on doing so.

    Args:
        q_net: The online network.
        config: Hyper-parameters. Of these the learner uses `variant`, `loss`, `huber_delta`,
            `max_grad_norm`, `tau`, `target_update_interval` and `target_update_unit`, and where it
            makes the optimiser `learning_rate` and `adam_eps`.
        target_net: The target network. None: a copy of `q_net`, or for `"vanilla"` the very
            `q_net`: there the target network is an alias, and another module is refused.
        optimizer: None: Adam over the parameters of `q_net`.
        q_values: How a network is called: `(module, observations) -> (B, A)`, for networks whose
            result is more than the action values. None: `module(observations)`.
        execution: `"auto"` computes in a compiled kernel where the network and the optimiser are
            such as it takes, and else in torch, whose results it has but for rounding; `"eager"`
            is always torch; `"kernel"` insists; `"compiled"` is `torch.compile`, on CUDA as CUDA
            graphs. See `execution` for the rule.
        as_mlp: For networks that the kernel would not recognise: sees the plain MLP in them.

    Raises:
        ValueError: a target network is given for `"vanilla"`, or none other than `q_net` itself
            for the others. Or `execution="kernel"` and the network is not one for the kernel.
    """

    def __init__(
        self,
        q_net: nn.Module,
        config: DQNConfig,
        *,
        target_net: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        q_values: Callable[[nn.Module, Observations], torch.Tensor] | None = None,
        execution: Execution = "auto",
        as_mlp: AsMLP = as_mlp,
    ) -> None:
        self.config = config
        self.q_net = q_net
        if config.variant == "vanilla":
            if target_net is not None and target_net is not q_net:
                raise ValueError("variant='vanilla' has no target network: target_net must be None")
            self.target_net = q_net
        else:
            if target_net is q_net:
                raise ValueError(
                    f"variant={config.variant!r} needs a target_net that is not q_net itself"
                )
            self.target_net = copy.deepcopy(q_net) if target_net is None else target_net
            self.target_net.requires_grad_(False).eval()
        self.optimizer = optimizer or torch.optim.Adam(
            q_net.parameters(), lr=config.learning_rate, eps=config.adam_eps
        )
        self._q_values = q_values or _call
        self.counts: dict[Literal["steps", "episodes", "updates"], int] = {
            "steps": 0,
            "episodes": 0,
            "updates": 0,
        }
        """Environment steps and finished episodes it was told of, and gradient updates made."""
        self._mlp, self._adam = make_kernels(
            execution, q_net, self.target_net, self.optimizer, config, as_mlp
        )
        self._compiled = None
        if execution == "compiled":
            self._compiled = CompiledGradient(self.td_loss, self.optimizer)

    @property
    def num_updates(self) -> int:
        """Gradient updates made so far."""
        return self.counts["updates"]

    @property
    def execution(self) -> Execution:
        """Where gradients are computed: `"kernel"`, `"compiled"` or `"eager"`."""
        if self._mlp is not None:
            return "kernel"
        return "eager" if self._compiled is None else "compiled"

    def greedy_actions(
        self, observations: Arrays, action_masks: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """argmax_a Q(s, a) over the legal actions.

        Args:
            observations: `(N, ...)`, or a dictionary of such arrays.
            action_masks: `(N, A)`, bool, True where an action is legal. None: all are.

        Returns:
            `(N,)`; see `targets.greedy_actions`.
        """
        actions = None if self._mlp is None else self._mlp.greedy(observations, action_masks)
        if actions is not None:
            return actions
        device = next(self.q_net.parameters()).device
        masks = None if action_masks is None else to_tensor(action_masks, device)
        with torch.no_grad():
            q_values = self._online(to_tensors(observations, device))
        chosen: NDArray[np.int64] = greedy_actions(q_values, masks).cpu().numpy()
        return chosen

    def td_loss(self, batch: Transition) -> TDLoss:
        """The loss on a batch, with the gradient of the prediction recorded; see `td_loss`."""
        return td_loss(
            self._online,
            self._target,
            batch,
            variant=self.config.variant,
            loss=self.config.loss,
            huber_delta=self.config.huber_delta,
            online_next=self._online_next,
        )

    def update(self, batch: Transition) -> UpdateMetrics:
        """One gradient step on a batch; counts one update.

        With `target_update_unit="updates"` the first update after a complete period syncs the
        target network: with the weights that it began with, after its own TD targets. This is
        Tianshou's order, whose unit it is.
        """
        in_updates = self.config.target_update_unit == "updates" and self.num_updates > 0
        sync = in_updates and self.num_updates % self.config.target_update_interval == 0
        seen = None if self._mlp is None or sync else self._mlp.update(batch)
        if seen is None:
            metrics = self._update_in_parts(batch, sync)
        else:
            metrics = UpdateMetrics.of(seen)
            if not math.isfinite(seen[0]):
                check_loss(metrics.loss, self.num_updates)
        self.counts["updates"] += 1
        return metrics

    def _update_in_parts(self, batch: Transition, sync: bool) -> UpdateMetrics:
        """Gradient and step one after the other, each by the kernel or by torch."""
        seen = None if self._mlp is None else self._mlp.gradient(batch)
        if seen is None:
            loss, *per_row = self._gradient(batch)
        else:
            loss = torch.tensor(seen[0])
        check_loss(loss, self.num_updates)
        if sync:
            self.sync_target()
        norm = self._step()
        if seen is None:
            return UpdateMetrics(loss, *per_row, norm)  # type: ignore[call-arg]
        seen[4] = norm.item()
        return UpdateMetrics.of(seen)

    def _gradient(self, batch: Transition) -> TDLoss:
        """The loss, with its gradient in the parameters' `grad`, by torch."""
        compiled = None if self._compiled is None else self._compiled(batch)
        if compiled is not None:
            return TDLoss(*compiled)
        result = self.td_loss(batch)
        self.optimizer.zero_grad()
        result.loss.backward()  # type: ignore[no-untyped-call]
        return result._replace(loss=result.loss.detach())

    def _step(self) -> torch.Tensor:
        norm = None if self._adam is None else self._adam.step()
        if norm is not None:
            return torch.tensor(norm)
        parameters, max_norm = list(self.q_net.parameters()), self.config.max_grad_norm
        if max_norm is None:
            total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        else:
            total = nn.utils.clip_grad_norm_(parameters, max_norm)
        self.optimizer.step()
        return total

    def count(self, *, steps: int = 0, episodes: int = 0) -> bool:
        """Add to the counters; sync the target network if they complete its period.

        The period is complete when the counter of `target_update_unit` reaches or passes a
        multiple of `target_update_interval`, so it holds for any number of environments. Updates
        are counted by `update`.

        Args:
            steps: New environment steps.
            episodes: Newly finished episodes.

        Returns:
            Whether the target network was synced.
        """
        interval = self.config.target_update_interval
        unit = self.config.target_update_unit
        before = self.counts[unit] // interval
        self.counts["steps"] += steps
        self.counts["episodes"] += episodes
        due = self.counts[unit] // interval > before
        if due:
            self.sync_target()
        return due

    @torch.no_grad()
    def sync_target(self) -> None:
        """target <- tau * online + (1 - tau) * target; buffers (batch statistics) are copied.

        Does nothing for `"vanilla"`, whose target network is the online network.
        """
        if self.target_net is self.q_net:
            return
        online: list[torch.Tensor] = list(self.q_net.parameters())
        target: list[torch.Tensor] = list(self.target_net.parameters())
        if self.config.tau == 1.0:
            torch._foreach_copy_(target, online)
        else:
            torch._foreach_lerp_(target, online, self.config.tau)
        for buffer, source in zip(self.target_net.buffers(), self.q_net.buffers(), strict=True):
            buffer.copy_(source)

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimiser and counters. `"vanilla"` has no entry `target_net`."""
        state: dict[str, Any] = {
            "q_net": self.q_net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": dict(self.counts),
        }
        if self.target_net is not self.q_net:
            state["target_net"] = self.target_net.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave; the mapping is not changed.

        Raises:
            ValueError: the state is of a learner with a target network and this one has none,
                or the other way round, or an entry is missing; or a name, a shape, a dtype or a
                count in it does not fit. The learner is then unchanged.
        """
        own = self.state_dict()
        if own.keys() != state.keys():
            raise ValueError(
                f"the state has the entries {sorted(state)}; a learner with "
                f"variant={self.config.variant!r} needs {sorted(own)}"
            )
        networks = {"q_net": self.q_net, "target_net": self.target_net}
        networks = {name: network for name, network in networks.items() if name in own}
        for name in networks:
            stored.check_tensors(name, state[name], own[name])
        optimizer = stored.optimizer_state("optimizer", state["optimizer"], self.optimizer)
        counts = stored.check_mapping("counts", state["counts"], self.counts)
        checked = {unit: stored.check_count(f"counts.{unit}", counts[unit]) for unit in self.counts}
        before = own["q_net"] if len(networks) == 1 else copy.deepcopy(own["q_net"])
        stored.load_module("q_net", self.q_net, state["q_net"])
        if "target_net" in networks:
            try:
                stored.load_module("target_net", self.target_net, state["target_net"])
            except ValueError:
                self.q_net.load_state_dict(before)
                raise
        self.optimizer.load_state_dict(optimizer)
        self.counts.update(checked)

    def _online(self, observations: Observations) -> torch.Tensor:
        return self._q_values(self.q_net, observations)

    def _online_next(self, observations: Observations) -> torch.Tensor:
        # s' is evaluated as the target network evaluates it: no dropout, and no batch statistics
        # that the running ones would take up.
        with _evaluating(self.q_net):
            return self._q_values(self.q_net, observations)

    def _target(self, observations: Observations) -> torch.Tensor:
        return self._q_values(self.target_net, observations)


def _call(module: nn.Module, observations: Observations) -> torch.Tensor:
    q_values: torch.Tensor = module(observations)
    return q_values


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = module.training
    if training:
        module.eval()
    try:
        yield
    finally:
        if training:
            module.train()


def _check_batch(q_values: torch.Tensor, batch: Transition) -> None:
    size = len(q_values)
    if q_values.ndim != 2:
        raise ValueError(f"the Q-network must return (B, A), got {tuple(q_values.shape)}")
    for name in ("actions", "rewards", "discounts", "weights"):
        values = getattr(batch, name)
        if values is not None and values.shape != (size,):
            raise ValueError(f"{name} must have shape ({size},), got {tuple(values.shape)}")
