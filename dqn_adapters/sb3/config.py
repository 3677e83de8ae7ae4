"""The hyper-parameters on a Stable-Baselines3 model as the core's configuration."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecTransposeImage,
    is_vecenv_wrapped,
)

from dqn_adapters.config import DQNConfig, checked_int
from dqn_adapters.sb3.buffers import CoreReplayBuffer
from dqn_adapters.sb3.vector_env import VectorEnvAdapter

if TYPE_CHECKING:
    from dqn_adapters.sb3.dqn import DQN

live_values = operator.attrgetter(
    *("variant", "loss", "huber_delta", "max_grad_norm", "gamma", "batch_size", "n_steps"),
    *("tau", "target_update_interval", "target_update_unit", "exploration_steps"),
    *("priority_beta", "priority_beta_final", "priority_beta_steps"),
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
        dueling=model.dueling,
        prioritized_replay=model.prioritized_replay,
        priority_alpha=model.priority_alpha,
        priority_beta=model.priority_beta,
        priority_beta_final=model.priority_beta_final,
        priority_beta_steps=model.priority_beta_steps,
        frame_stack=model.frame_stack,
    )


def _whole(value: Any) -> Any:
    """A whole float as an integer: Stable-Baselines3 takes 1e4 for 10_000 in some places."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def replay_arguments(model: DQN, config: DQNConfig) -> dict[str, Any]:
    """What a `CoreReplayBuffer` is made with for this model."""
    return {
        "n_steps": config.n_steps,
        "gamma": config.gamma,
        "frame_stack": config.frame_stack,
        "prioritized": config.prioritized_replay,
        "alpha": config.priority_alpha,
        "beta": config.priority_beta,
        **model.replay_buffer_kwargs,
    }


def check_replay_options(model: DQN, config: DQNConfig) -> None:
    """Raise `ValueError` if a replay buffer is asked for that does not do what else is asked for.

    The host warns of an n-step return that it leaves out; here it is an error.
    """
    cls = model.replay_buffer_class
    asked = {
        "n_steps": config.n_steps > 1,
        "prioritized_replay": config.prioritized_replay,
        "frame_stack": config.frame_stack is not None,
    }
    if cls is not None and not issubclass(cls, CoreReplayBuffer):
        for name in asked:
            if asked[name]:
                raise ValueError(
                    f"{name}={getattr(model, name)!r} is not what "
                    f"replay_buffer_class={cls.__name__} does; leave one of the two out"
                    + (
                        " (its own n_steps go into replay_buffer_kwargs)"
                        if name == "n_steps"
                        else ""
                    )
                )
    elif config.frame_stack is not None:
        check_frame_stack(model.env, config.frame_stack)
    env = model.env
    normalize = model.get_vec_normalize_env()
    if normalize is not None and normalize.observation_space != model.observation_space:
        raise ValueError(
            "VecNormalize must be the outermost wrapper: what is stored is what it is given, "
            f"{normalize.observation_space}, and the model sees {model.observation_space}"
        )
    base = None if env is None else env.unwrapped
    if env is not None and isinstance(base, VectorEnvAdapter) and base.resets_in_next_step:
        if cls is not None and not issubclass(cls, CoreReplayBuffer):
            raise ValueError(
                f"replay_buffer_class={cls.__name__} stores a step of all environments; with the "
                "autoreset mode NEXT_STEP leave it out"
            )
        if is_vecenv_wrapped(env, VecFrameStack):
            raise ValueError(
                "VecFrameStack needs environments that reset in the same step; make the vector "
                "environment with autoreset_mode=AutoresetMode.SAME_STEP"
            )


def check_frame_stack(env: VecEnv | None, frame_stack: int) -> None:
    """Raise `ValueError` if a `VecFrameStack` stacks another number of frames, or along another
    axis than the first of what the model sees."""
    transposed = False
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecTransposeImage):
            transposed = True
        if isinstance(env, VecFrameStack):
            stacked = env.stacked_obs
            if stacked.n_stack != frame_stack:
                raise ValueError(
                    f"frame_stack={frame_stack} does not fit "
                    f"VecFrameStack(n_stack={stacked.n_stack})"
                )
            last = not getattr(stacked, "channels_first", False)
            if last and not transposed and len(env.observation_space.shape or ()) > 1:
                raise ValueError(
                    "frame_stack needs frames that are stacked along the first axis; make "
                    'VecFrameStack(..., channels_order="first")'
                )
        env = env.venv
