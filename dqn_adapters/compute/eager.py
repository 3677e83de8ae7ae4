"""An update in torch. It defines what every other way of computing must give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from dqn_adapters.compute.seen import UpdateMetrics
from dqn_adapters.config import DQNConfig, Loss, Variant
from dqn_adapters.finite import check_loss
from dqn_adapters.replay import ReplayBuffer
from dqn_adapters.targets import double_q_learning_target, greedy_actions, q_learning_target
from dqn_adapters.transition import Arrays, Observations, Transition, to_tensor, to_tensors

QFunction = Callable[[Observations], torch.Tensor]
"""Maps observations `(B, ...)` to action values `(B, A)`."""

Use = Literal["act", "learn"]
"""The two uses of a backend: greedy actions and updates."""


class TDLoss(NamedTuple):
    """The parts of a TD loss. All but `loss` are detached."""

    loss: torch.Tensor
    """`()`, the weighted mean over the batch."""

    td_error: torch.Tensor
    """`(B,)`, target - prediction."""

    q_value: torch.Tensor
    """`(B,)`, the prediction Q(s, a)."""

    td_target: torch.Tensor
    """`(B,)`."""


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


def _check_batch(q_values: torch.Tensor, batch: Transition) -> None:
    size = len(q_values)
    if q_values.ndim != 2:
        raise ValueError(f"the Q-network must return (B, A), got {tuple(q_values.shape)}")
    for name in ("actions", "rewards", "discounts", "weights"):
        values = getattr(batch, name)
        if values is not None and values.shape != (size,):
            raise ValueError(f"{name} must have shape ({size},), got {tuple(values.shape)}")


class Learner(Protocol):
    """The part of a learner that a backend uses."""

    config: DQNConfig
    q_net: nn.Module
    optimizer: torch.optim.Optimizer
    counts: Any

    @property
    def target_net(self) -> nn.Module:
        """The target network, or the online network itself."""

    @property
    def num_updates(self) -> int:
        """Gradient updates made so far."""

    @property
    def defines_loss(self) -> bool:
        """True if a user has overridden the loss or the action values."""

    def q_values(self, observations: Observations) -> torch.Tensor:
        """The action values of the online network."""

    def td_loss(self, batch: Transition) -> TDLoss:
        """The loss on a batch, with the gradient of the prediction recorded."""

    def update(self, batch: Transition) -> UpdateMetrics:
        """One gradient step on a batch."""

    def sync_target(self) -> None:
        """Move the target network towards the online network."""

    def sync_is_due(self) -> bool:
        """True if the next update has to sync the target network."""


class StepRule(Protocol):
    """Clips a gradient and makes a step of the optimiser in another way than torch."""

    def step(self, learner: Learner) -> float | None:
        """The gradient's norm before clipping; None, and nothing is done, if this is not for the
        learner's network and optimiser as they are."""


class Eager:
    """Computes in torch, for any network and optimiser.

    Args:
        learner: Whose networks and optimiser it works on.
        step_rule: Tried before the optimiser's own step.
    """

    name: Literal["eager", "compiled", "kernel"] = "eager"

    def __init__(self, learner: Learner, step_rule: StepRule | None = None) -> None:
        self._learner, self._step_rule = learner, step_rule

    def refuses(self, use: Use) -> str | None:
        """Why the learner, as it is now, cannot be computed for in this way; None: it can be."""
        return None

    def greedy_actions(
        self, observations: Arrays, action_masks: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """See `DQNLearner.greedy_actions`."""
        device = next(self._learner.q_net.parameters()).device
        masks = None if action_masks is None else to_tensor(action_masks, device)
        with torch.no_grad():
            q_values = self._learner.q_values(to_tensors(observations, device))
        chosen: NDArray[np.int64] = greedy_actions(q_values, masks).cpu().numpy()
        return chosen

    def fast_greedy_actions(
        self, observations: Arrays, action_masks: NDArray[np.bool_] | None
    ) -> NDArray[np.int64] | None:
        """See `DQNLearner.fast_greedy_actions`."""
        return None

    def update(self, batch: Transition) -> UpdateMetrics:
        """One update, which is not counted; see `DQNLearner.update`."""
        loss, td_error, q_value, td_target = self._gradient(batch)
        return UpdateMetrics(loss, td_error, q_value, td_target, self._finish(loss))

    def train(self, replay: ReplayBuffer, updates: int, batch_size: int) -> Sequence[UpdateMetrics]:
        """A training phase; see `DQNLearner.train`."""
        phase = []
        for _ in range(updates):
            indices = replay.draw(batch_size)
            metrics = self._learner.update(replay.gather(indices, reuse=True))
            if replay.prioritized:
                replay.update_priorities(indices, metrics.td_error)
            phase.append(metrics)
        return phase

    def _gradient(self, batch: Transition) -> TDLoss:
        """The loss, with its gradient in the parameters' `grad`."""
        result = self._learner.td_loss(batch)
        self._learner.optimizer.zero_grad()
        result.loss.backward()  # type: ignore[no-untyped-call]
        return result._replace(loss=result.loss.detach())

    def _finish(self, loss: torch.Tensor) -> torch.Tensor:
        """Sync, clip and step after the gradient; returns its norm before clipping."""
        learner = self._learner
        check_loss(loss, learner.num_updates)
        if learner.sync_is_due():
            learner.sync_target()
        norm = None if self._step_rule is None else self._step_rule.step(learner)
        if norm is not None:
            return torch.tensor(norm)
        parameters, max_norm = list(learner.q_net.parameters()), learner.config.max_grad_norm
        if max_norm is None:
            total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        else:
            total = nn.utils.clip_grad_norm_(parameters, max_norm)
        learner.optimizer.step()
        return total
