"""Epsilon-greedy acting and its schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dqn_adapters.config import DQNConfig


@dataclass(frozen=True)
class LinearSchedule:
    """A value that goes linearly from `initial` to `final` over `steps` and then stays."""

    initial: float
    final: float
    steps: int
    """Environment steps; 0 is `final` from the start."""

    def __call__(self, step: int) -> float:
        """The value at environment step `step` >= 0."""
        if step >= self.steps:
            return self.final
        return self.initial + (self.final - self.initial) * (step / self.steps)


def epsilon_schedule(config: DQNConfig, total_timesteps: int) -> LinearSchedule:
    """The schedule of epsilon for a training of `total_timesteps` environment steps."""
    steps = config.exploration_steps
    if steps is None:
        steps = round(config.exploration_fraction * total_timesteps)
    return LinearSchedule(config.exploration_initial_eps, config.exploration_final_eps, steps)


def current_epsilon(config: DQNConfig, schedule: LinearSchedule | None, step: int) -> float:
    """Epsilon at environment step `step`: 1 while warming up or without a schedule, else its value.

    Without one nobody has yet said how long the training is to be.
    """
    if schedule is None or step < config.learning_starts:
        return 1.0
    return schedule(step)


def beta_schedule(config: DQNConfig, total_timesteps: int) -> LinearSchedule:
    """The schedule of the importance weights' exponent, likewise."""
    steps = config.priority_beta_steps
    return LinearSchedule(
        config.priority_beta,
        config.priority_beta_final,
        total_timesteps if steps is None else steps,
    )


def epsilon_greedy(
    greedy: Callable[[], NDArray[np.int64]],
    epsilon: float,
    *,
    num_envs: int,
    num_actions: int,
    generator: np.random.Generator,
    action_masks: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Each environment draws for itself: with probability epsilon a uniformly random legal action,
    otherwise the greedy one.

    Args:
        greedy: Gives the greedy actions `(N,)`; not called when every environment explores.
        epsilon: Probability of exploring, in [0, 1].
        num_envs: N.
        num_actions: A.
        generator: Source of the draws. Their number does not depend on what is drawn, so two runs
            with the same seed stay in step.
        action_masks: `(N, A)`, bool, True where an action is legal. None: all are.

    Returns:
        `(N,)`, int64, in 0 .. A - 1.

    Raises:
        ValueError: the mask has another shape or dtype, or a row allows no action.
    """
    if action_masks is not None:
        check_action_masks(action_masks, num_envs, num_actions)
    elif num_envs == 1:  # the same draws as below, without arrays
        draw, uniform_draw = generator.random(2).tolist()
        return np.array([int(uniform_draw * num_actions)]) if draw < epsilon else greedy()
    draws = generator.random((2, num_envs))
    explores, uniform = draws[0] < epsilon, draws[1]
    count = np.count_nonzero(explores)
    if count == 0:
        return greedy()
    if action_masks is None:
        random_actions: NDArray[np.int64] = (uniform * num_actions).astype(np.int64)
    else:
        # The k-th legal action, k uniform: exactly uniform over the legal ones.
        kth = (uniform * action_masks.sum(axis=1)).astype(np.int64)
        random_actions = np.argmax(np.cumsum(action_masks, axis=1) > kth[:, None], axis=1)
    if count == num_envs:
        return random_actions
    return np.where(explores, random_actions, greedy())


def check_action_masks(action_masks: NDArray[np.bool_], num_envs: int, num_actions: int) -> None:
    """Raise `ValueError` unless the masks are `(N, A)`, boolean, and each row allows an action."""
    if action_masks.shape != (num_envs, num_actions):
        raise ValueError(
            f"action_masks must have shape ({num_envs}, {num_actions}), got {action_masks.shape}"
        )
    if action_masks.dtype != np.bool_:
        raise ValueError(f"action_masks must be of dtype bool, got {action_masks.dtype}")
    stuck = np.flatnonzero(~action_masks.any(axis=1))
    if len(stuck):
        raise ValueError(f"action_masks allows no action in rows {stuck.tolist()}")
