"""The hyper-parameters on a Stable-Baselines3 model as the core's configuration."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.type_aliases import TrainFreq

from dqn_adapters.config import DQNConfig, checked_int

if TYPE_CHECKING:
    from dqn_adapters.sb3.dqn import DQN

live_values = operator.attrgetter(
    *("variant", "loss", "huber_delta", "max_grad_norm", "gamma", "batch_size"),
    *("tau", "target_update_interval", "target_update_unit", "exploration_steps"),
)
"""Those hyper-parameters of a model that may be changed while it trains."""


def to_config(model: DQN) -> DQNConfig:
    """The model's hyper-parameters as they are now, checked. The model is not changed.

    Not converted is what the host's loop counts in its own way: `train_freq` in calls of `step` or
    in episodes, `gradient_steps` with -1 for one per environment step.

    Raises:
        ValueError: a value is not accepted; see `DQNConfig`.
    """
    assert isinstance(model.train_freq, TrainFreq)
    checked_int("gradient_steps", model.gradient_steps, low=-1)
    # A schedule is the host's, and so is 0, its idiom for loading a model only to act.
    rate = model.learning_rate
    return DQNConfig(
        variant=model.variant,
        learning_rate=DQNConfig.learning_rate if callable(rate) or rate == 0 else rate,
        buffer_size=model.buffer_size,
        learning_starts=_whole(model.learning_starts),
        batch_size=model.batch_size,
        gamma=model.gamma,
        n_steps=model.n_steps,
        tau=model.tau,
        train_freq=model.train_freq.frequency,
        target_update_interval=_whole(model.target_update_interval),
        target_update_unit=model.target_update_unit,
        exploration_initial_eps=model.exploration_initial_eps,
        exploration_final_eps=model.exploration_final_eps,
        exploration_fraction=model.exploration_fraction,
        exploration_steps=model.exploration_steps,
        loss=model.loss,
        huber_delta=model.huber_delta,
        max_grad_norm=None if model.max_grad_norm == np.inf else model.max_grad_norm,
    )


def _whole(value: Any) -> Any:
    """A whole float as an integer: Stable-Baselines3 takes 1e4 for 10_000 in some places."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
