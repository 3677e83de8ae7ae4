"""The learner: networks, gradient step and target network. It knows no environment."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dqn_adapters import stored
from dqn_adapters.compute import AsStack, Compute, Execution
from dqn_adapters.compute import as_stack as stack_of_core
from dqn_adapters.compute.eager import Eager, QFunction, TDLoss, td_loss
from dqn_adapters.compute.seen import METRICS, UpdateMetrics, mean_metrics
from dqn_adapters.config import DQNConfig
from dqn_adapters.overrides import Methods
from dqn_adapters.replay import ReplayBuffer
from dqn_adapters.transition import Arrays, Observations, Transition

__all__ = [
    "METRICS",
    "DQNLearner",
    "QFunction",
    "TDLoss",
    "UpdateMetrics",
    "mean_metrics",
    "td_loss",
]


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
        execution: `"auto"` computes in compiled code where that takes the network and the
            optimiser as they are at the time, and else in torch, whose results it has but for
            rounding; `"eager"` is always torch; `"kernel"` must be compiled code at first;
            `"compiled"` is `torch.compile`, on CUDA as CUDA graphs. See `compute`.
        as_stack: For networks that compiled code would not recognise: sees the layers in them.
            None: as for networks of the core, unless `q_values` is given.
        before_torch: Called before an update is computed in torch: a host puts its modules into
            training mode, which makes no difference to compiled code.

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
        as_stack: AsStack | None = None,
        before_torch: Callable[[], None] | None = None,
    ) -> None:
        self.config = config
        self.q_net = q_net
        """The online network; may be replaced."""
        if config.variant == "vanilla":
            if target_net is not None and target_net is not q_net:
                raise ValueError("variant='vanilla' has no target network: target_net must be None")
            target_net = None
        else:
            if target_net is q_net:
                raise ValueError(
                    f"variant={config.variant!r} needs a target_net that is not q_net itself"
                )
            target_net = copy.deepcopy(q_net) if target_net is None else target_net
            target_net.requires_grad_(False).eval()
        self._target_net = target_net
        self.optimizer = optimizer or torch.optim.Adam(
            q_net.parameters(), lr=config.learning_rate, eps=config.adam_eps
        )
        """Steps the online network; may be replaced."""
        self._q_values = q_values or _call
        self.counts: dict[Literal["steps", "episodes", "updates"], int] = {
            "steps": 0,
            "episodes": 0,
            "updates": 0,
        }
        """Environment steps and finished episodes it was told of, and gradient updates made."""
        if as_stack is None:
            as_stack = stack_of_core if q_values is None else _no_stack
        self._compute = Compute(self, execution, as_stack, before_torch)

    @property
    def target_net(self) -> nn.Module:
        """The target network, which may be replaced; for `"vanilla"` the online network."""
        return self.q_net if self._target_net is None else self._target_net

    @target_net.setter
    def target_net(self, network: nn.Module) -> None:
        if self._target_net is None and network is not self.q_net:
            raise ValueError("variant='vanilla' has no target network")
        if self._target_net is not None:
            self._target_net = network

    @property
    def num_updates(self) -> int:
        """Gradient updates made so far."""
        return self.counts["updates"]

    @property
    def execution(self) -> Literal["eager", "compiled", "kernel"]:
        """How updates are computed, as the networks and the optimiser are now."""
        return self._compute.name

    @property
    def execution_reason(self) -> str | None:
        """Why `execution` is not what was asked for; None if it is."""
        return self._compute.reason

    def __repr__(self) -> str:
        because = "" if self.execution_reason is None else f", because: {self.execution_reason}"
        return (
            f"DQNLearner(variant={self.config.variant!r}, num_updates={self.num_updates}, "
            f"execution={self.execution!r}{because})"
        )

    @property
    def defines_loss(self) -> bool:
        """Whether a subclass or a patch has its own loss or action values."""
        return not _LOSS.are_those_of(self)

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
        return self._compute("act").greedy_actions(observations, action_masks)

    def fast_greedy_actions(
        self, observations: Arrays, action_masks: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """`greedy_actions` by compiled code; None where torch has to be asked."""
        return self._compute("act").fast_greedy_actions(observations, action_masks)

    def q_values(self, observations: Observations) -> torch.Tensor:
        """The action values of the online network, `(B, A)`."""
        return self._q_values(self.q_net, observations)

    def td_loss(self, batch: Transition) -> TDLoss:
        """The loss on a batch, with the gradient of the prediction recorded; see `td_loss`."""
        return td_loss(
            self.q_values,
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
        metrics = self._compute("learn").update(batch)
        self.counts["updates"] += 1
        return metrics

    def train(self, replay: ReplayBuffer, updates: int, batch_size: int) -> Sequence[UpdateMetrics]:
        """A training phase: updates on batches that are drawn from replay, and its priorities.

        Args:
            replay: Where transitions are drawn from.
            updates: How many updates are made.
            batch_size: Transitions in one batch.

        Returns:
            What each update saw.

        Raises:
            NonFiniteError: a loss is not finite; the updates before it are made.
        """
        way = self._compute("learn")
        if not _STEP.are_those_of(self):
            return Eager.train(way, replay, updates, batch_size)
        return way.train(replay, updates, batch_size)

    def sync_is_due(self) -> bool:
        """Whether the next update has to sync the target network; see `update`."""
        in_updates = self.config.target_update_unit == "updates" and self.num_updates > 0
        return in_updates and self.num_updates % self.config.target_update_interval == 0

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


def _no_stack(network: nn.Module) -> None:
    return None


_LOSS = Methods(DQNLearner, "td_loss", "q_values", "_target", "_online_next", "sync_target")
_STEP = Methods(DQNLearner, "update", "sync_is_due")
