"""The environments of the rows, and how fast they are alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from speed.configurations import ENVIRONMENT, NUM_ENVS


class Images(gym.Env[np.ndarray, int]):
    """Stacked frames of noise, 4x84x84 bytes: an environment that costs next to nothing."""

    observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space: spaces.Space[Any] = spaces.Discrete(6)

    def __init__(self) -> None:
        self._frames = np.random.default_rng(0).integers(0, 256, (64, 4, 84, 84), np.uint8)
        self._step = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        return self._frames[self._step % 64], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Any]:
        self._step += 1
        return self._frames[self._step % 64], 1.0, self._step % 500 == 0, False, {}


def one() -> gym.Env[Any, Any]:
    """A single environment."""
    return gym.make(ENVIRONMENT)


def many() -> gym.vector.VectorEnv[Any, Any, Any]:
    """A vector environment of Gymnasium, in this process."""
    return gym.make_vec(ENVIRONMENT, NUM_ENVS, vectorization_mode="sync")


def many_in_sb3() -> Any:
    """A vector environment of Stable-Baselines3, in this process."""
    from stable_baselines3.common.env_util import make_vec_env

    return make_vec_env(ENVIRONMENT, NUM_ENVS)


class Alone:
    """A single environment that is stepped with random actions and nothing else."""

    def __init__(self, make_env: Callable[[], gym.Env[Any, Any]]) -> None:
        self._env = make_env()
        assert isinstance(self._env.action_space, spaces.Discrete)
        generator = np.random.default_rng(0)
        self._actions = generator.integers(self._env.action_space.n, size=1000).tolist()
        self._env.reset(seed=0)
        self.rates: list[float] = []
        """Steps per second of every run."""

        self.seconds = 0.0
        """Processor time of all runs."""

        self.steps = 0
        """Steps of all runs."""

    def run(self, seconds: float) -> None:
        """Take steps for about so long."""
        begun, clock, steps = time.thread_time(), time.perf_counter(), 0
        while (spent := time.perf_counter() - clock) < seconds or not steps:
            for action in self._actions:
                _, _, terminated, truncated, _ = self._env.step(action)
                if terminated or truncated:
                    self._env.reset()
            steps += len(self._actions)
        self.rates.append(steps / spent)
        self.seconds += time.thread_time() - begun
        self.steps += steps
