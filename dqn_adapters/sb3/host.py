"""Small things around Stable-Baselines3 that are not the algorithm."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import VecEnv


def check_spaces(env: Any) -> None:
    """Raise `ValueError` unless the host can train DQN in these spaces, and encode what is seen."""
    if isinstance(env, VectorEnv):
        action_space, space = env.single_action_space, env.single_observation_space
    elif isinstance(env, gym.Env | VecEnv):
        action_space, space = env.action_space, env.observation_space
    else:
        return  # of the old gym: the host converts it, or says what is missing
    if not isinstance(action_space, spaces.Discrete):
        raise ValueError(f"action space {action_space} is not supported; it must be a Discrete")
    for part in space.spaces.values() if isinstance(space, spaces.Dict) else (space,):
        encodable = isinstance(
            part, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
        )
        if not encodable or np.any(getattr(part, "start", 0) != 0):
            raise ValueError(
                f"observation space {part} is not supported; it must be a Box, a Discrete or "
                "MultiDiscrete that starts at 0, a MultiBinary, or a Dict of these"
            )


def forget_hosts_buffer(model: Any) -> None:
    """Let a model out of a file of the host choose its replay buffer: the host writes the class
    that it chose itself as if it had been asked for."""
    if model.replay_buffer_class in (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer):
        model.replay_buffer_class = None
        model.replay_buffer_kwargs = {
            name: value
            for name, value in model.replay_buffer_kwargs.items()
            if name not in ("n_steps", "gamma")
        }


def keep_online(module: torch.nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """A hook for a policy whose target network is an alias of the online network: the online
    weights are what is loaded, whatever target network the saved policy had."""
    for key in state_dict:
        online = key.replace(f"{prefix}q_net_target.", f"{prefix}q_net.", 1)
        if online in state_dict:
            state_dict[key] = state_dict[online]


def joined_signature(host: Callable[..., Any], ours: Callable[..., Any]) -> inspect.Signature:
    """The host's arguments and then our keyword-only ones, for help, notebooks and tools."""
    signature = inspect.signature(host)
    parameters = inspect.signature(ours).parameters.values()
    own = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    return signature.replace(parameters=[*signature.parameters.values(), *own])
