"""One way to step environments: a single one, or a vector of them in any autoreset mode."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from dqn_adapters.transition import EnvStep


class Stepper(Protocol):
    """N environments that are stepped together and start the next episode by themselves."""

    num_envs: int
    observation_space: spaces.Space[Any]
    action_space: spaces.Discrete
    observations: NDArray[Any]
    """What the next actions act on: `(N, ...)`."""

    def reset(self, seed: int | None = None) -> None:
        """Start an episode in every environment."""

    def step(self, actions: NDArray[np.int64]) -> EnvStep:
        """Act with `(N,)` actions in 0 .. A - 1."""


def make_stepper(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | str) -> Stepper:
    """The stepper for an environment, a vector environment or the id of an environment.

    Raises:
        TypeError: `env` is none of these.
        ValueError: its spaces are not supported, or a vector environment does not say how it
            resets.
    """
    if isinstance(env, str):
        env = gym.make(env)
    if isinstance(env, VectorEnv):
        return VectorStepper(env)
    if isinstance(env, gym.Env):
        return SingleStepper(env)
    raise TypeError(
        f"env={env!r} is not accepted; it must be a gymnasium.Env, a gymnasium.vector.VectorEnv "
        "or the id of a registered environment"
    )


class SingleStepper:
    """A single environment, as N = 1."""

    num_envs = 1

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self.observation_space = check_observation_space(env.observation_space)
        self.action_space = check_action_space(env.action_space)

    def reset(self, seed: int | None = None) -> None:
        self._set_observation(self.env.reset(seed=seed)[0])

    def step(self, actions: NDArray[np.int64]) -> EnvStep:
        action = actions[0] + self.action_space.start
        observation, reward, terminated, truncated, _ = self.env.step(action)
        acted_on = self.observations
        self._set_observation(observation)
        step = EnvStep(
            observations=acted_on,
            actions=actions,
            rewards=np.array([reward], np.float64),
            next_observations=self.observations,
            terminated=np.array([terminated], np.bool_),
            truncated=np.array([truncated], np.bool_),
            valid=np.ones(1, np.bool_),
        )
        if terminated or truncated:
            self.reset()
        return step

    def _set_observation(self, observation: Any) -> None:
        # A copy: an environment may write its next observation into the same array.
        self.observations = np.array(observation, self.observation_space.dtype)[None]


class VectorStepper:
    """A vector environment, in any of Gymnasium's autoreset modes."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self.env = env
        self.num_envs = env.num_envs
        self.observation_space = check_observation_space(env.single_observation_space)
        self.action_space = check_action_space(env.single_action_space)
        mode = env.metadata.get("autoreset_mode")
        try:
            self._mode = AutoresetMode(mode)
        except ValueError:
            raise ValueError(
                f"env.metadata['autoreset_mode'] is {mode!r}; a vector environment must say with "
                f"one of {', '.join(map(str, AutoresetMode))} how it resets"
            ) from None

    def reset(self, seed: int | None = None) -> None:
        self.observations = np.array(self.env.reset(seed=seed)[0])
        self._resetting = np.zeros(self.num_envs, np.bool_)

    def step(self, actions: NDArray[np.int64]) -> EnvStep:
        # A copy of the observations: the environment may reuse its array for the next ones.
        observations, rewards, terminated, truncated, info = self.env.step(
            actions + self.action_space.start
        )
        observations = next_observations = np.array(observations)
        done = terminated | truncated
        valid = ~self._resetting
        if self._mode is AutoresetMode.NEXT_STEP:
            # The step after an episode's end ignores the action and returns the first observation.
            self._resetting = np.array(done)
        elif done.any():
            next_observations = observations.copy()
            if self._mode is AutoresetMode.SAME_STEP:
                for i in np.flatnonzero(done):
                    next_observations[i] = info["final_obs"][i]
            else:
                observations = np.array(self.env.reset(options={"reset_mask": done})[0])
        step = EnvStep(
            observations=self.observations,
            actions=actions,
            rewards=np.asarray(rewards),
            next_observations=next_observations,
            terminated=np.array(terminated),
            truncated=np.array(truncated),
            valid=valid,
        )
        self.observations = observations
        return step


def check_action_space(space: spaces.Space[Any]) -> spaces.Discrete:
    """Return the space, or raise `ValueError` unless it is `Discrete`."""
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"action space {space} is not supported; DQN needs a gymnasium.spaces.Discrete"
        )
    return space


def check_observation_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return the space, or raise `ValueError` unless it is a `Box` or a `Discrete`."""
    if not isinstance(space, spaces.Box | spaces.Discrete):
        raise ValueError(
            f"observation space {space} is not supported; it must be a Box or a Discrete"
        )
    return space
