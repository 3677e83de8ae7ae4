"""Toy environments whose right answers are known, and batches, shared by the tests."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from dqn_adapters import Transition
from dqn_adapters.transition import EnvStep


class Chain(gym.Env[np.ndarray, int]):
    """States 0 .. n - 1 in a row, observed one-hot; action 1 goes right, action 0 left.

    Reaching the last state pays 1 and terminates; every other step pays 0. An episode is cut
    after `limit` steps, which must not change the values.
    """

    def __init__(self, n: int = 5, limit: int = 20) -> None:
        self.n, self.limit = n, limit
        self.observation_space = spaces.Box(0.0, 1.0, (n,), np.float32)
        self.action_space = spaces.Discrete(2)

    def _observe(self) -> np.ndarray:
        return np.eye(self.n, dtype=np.float32)[self.state]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.state, self.steps = int(self.np_random.integers(self.n - 1)), 0
        return self._observe(), {}

    def step(self, action: int) -> Any:
        self.state = max(0, self.state + (1 if action == 1 else -1))
        self.steps += 1
        terminated = self.state == self.n - 1
        return self._observe(), float(terminated), terminated, self.steps >= self.limit, {}


def chain_q_star(gamma: float, n: int = 5) -> np.ndarray:
    """Q*(s, a) of the chain's non-terminal states, `(n - 1, 2)`: V(s) = gamma ** (n - 2 - s)."""
    values = gamma ** np.arange(n - 2, -1, -1)
    right = values
    left = gamma * np.concatenate([values[:1], values[:-1]])
    return np.stack([left, right], axis=1)


class Count(gym.Env[np.ndarray, int]):
    """Observes (episode, step) and its last action; ends by script, so that every event is known.

    Episode k (from 0) lasts `lengths[k % len]` steps, and is truncated if k is odd, else
    terminated. The reward is the step's number within its episode.
    """

    def __init__(self, lengths: tuple[int, ...] = (2, 3), start: int = 0) -> None:
        self.lengths = lengths
        self.episode, self.events = -1, []
        self.observation_space = spaces.Box(-1.0, 1000.0, (3,), np.float32)
        self.action_space = spaces.Discrete(2, start=start)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        self.events.append(("reset", self.episode))
        return np.array([self.episode, 0, -1], np.float32), {}

    def step(self, action: int) -> Any:
        assert self.action_space.contains(action), action
        self.t += 1
        self.events.append(("step", self.episode, self.t))
        over = self.t == self.lengths[self.episode % len(self.lengths)]
        cut = over and self.episode % 2 == 1
        observation = np.array([self.episode, self.t, action], np.float32)
        return observation, float(self.t), over and not cut, cut, {}


def random_batch(
    generator: np.random.Generator, size: int = 16, features: int = 4, actions: int = 3
) -> Transition:
    """B transitions of noise; about one in four is terminal."""

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(generator.normal(size=shape).astype(np.float32))

    return Transition(
        observations=normal(size, features),
        actions=torch.from_numpy(generator.integers(actions, size=size)),
        rewards=normal(size),
        discounts=torch.from_numpy(
            np.where(generator.random(size) < 0.25, 0.0, 0.99).astype(np.float32)
        ),
        next_observations=normal(size, features),
    )


def env_step(observations: Any, *, terminated: Any = False, valid: Any = True) -> EnvStep:
    """A step of N environments with the given observations `(N, ...)`; s' = s + 0.5."""
    observations = np.asarray(observations)
    n = len(observations)
    return EnvStep(
        observations=observations,
        actions=np.arange(n) % 2,
        rewards=np.arange(n, dtype=np.float64),
        next_observations=observations + 0.5,
        terminated=np.broadcast_to(np.asarray(terminated), n),
        truncated=np.zeros(n, np.bool_),
        valid=np.broadcast_to(np.asarray(valid), n),
    )
