"""Replay between the core and Stable-Baselines3: its buffer interface, its samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from dqn_adapters import replay
from dqn_adapters.transition import EnvStep, Observations, Transition


def to_transition(
    samples: ReplayBufferSamples | DictReplayBufferSamples, gamma: float
) -> Transition:
    """The samples of any Stable-Baselines3 replay buffer as the core's batch.

    Args:
        samples: Actions, rewards, dones and discounts are `(B, 1)`. `dones` is 0 where a time limit
            ended the episode. `discounts` is what an n-step buffer gives, else None.
        gamma: Discount factor per step, for buffers that give no discounts.
    """
    discounts = gamma if samples.discounts is None else samples.discounts
    return Transition(
        observations=samples.observations,
        actions=samples.actions.squeeze(1).long(),
        rewards=samples.rewards.squeeze(1),
        discounts=((1.0 - samples.dones) * discounts).squeeze(1),
        next_observations=samples.next_observations,
    )


class CoreReplayBuffer(ReplayBuffer):
    """The core's replay behind Stable-Baselines3's `ReplayBuffer` interface.

    `observations`, `next_observations`, `actions`, `rewards` and `dones` are copies of what is
    stored: `(size, n_envs, ...)`. `dones` is 0 where a time limit ended the episode.

    Args:
        buffer_size: Capacity in transitions of all environments together; the attribute of that
            name is, as in Stable-Baselines3, the capacity per environment.
        observation_space: Any space of Stable-Baselines3 but `Dict`.
        action_space: A `Discrete`; actions are stored counted from 0.
        device: Where samples go.
        n_envs: Number of environments that add together.
        optimize_memory_usage: Refused: both observations of a transition are stored.
        handle_timeout_termination: Treat an episode that a time limit ended as cut, not terminated.
        generator: Source of the sampled indices. None: fresh entropy.

    Raises:
        ValueError: `optimize_memory_usage` is True, or the observation space is a `Dict`.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        generator: np.random.Generator | None = None,
    ) -> None:
        # Past ReplayBuffer, which would allocate its own arrays.
        super(ReplayBuffer, self).__init__(
            buffer_size, observation_space, action_space, device, n_envs=n_envs
        )
        if isinstance(observation_space, spaces.Dict):
            raise ValueError("CoreReplayBuffer does not support Dict observation spaces")
        if optimize_memory_usage:
            raise ValueError("CoreReplayBuffer does not support optimize_memory_usage=True")
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.replay = self._make_replay(generator or np.random.default_rng())

    def _make_replay(self, generator: np.random.Generator) -> replay.ReplayBuffer:
        # gamma=1 leaves 1 - terminated in the discounts: the algorithm's gamma may yet change.
        return replay.ReplayBuffer(
            self.buffer_size * self.n_envs,
            self.observation_space,
            gamma=1.0,
            generator=generator,
            num_envs=self.n_envs,
        )

    @property
    def generator(self) -> np.random.Generator:
        """Source of the sampled indices."""
        return self.replay.generator

    @generator.setter
    def generator(self, generator: np.random.Generator) -> None:
        self.replay.generator = generator

    def __getattr__(self, name: str) -> NDArray[Any]:
        if name not in ReplayBufferSamples._fields[:5] or "replay" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        rows: torch.Tensor = getattr(self._get_samples(np.arange(len(self.replay))), name)
        shape = rows.shape[1:] if name not in ("rewards", "dones") else ()
        return rows.cpu().numpy().reshape(-1, self.n_envs, *shape)

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one step of all environments; see `ReplayBuffer.add`."""
        truncated = np.zeros(self.n_envs, np.bool_)
        if self.handle_timeout_termination:
            truncated[:] = [info.get("TimeLimit.truncated", False) for info in infos]
        shape = (self.n_envs, *(self.observation_space.shape or ()))
        self.replay.add(
            EnvStep(
                observations=np.reshape(obs, shape),
                actions=np.reshape(action, self.n_envs),
                rewards=np.asarray(reward),
                next_observations=np.reshape(next_obs, shape),
                terminated=np.asarray(done, np.bool_) & ~truncated,
                truncated=truncated,
                valid=np.ones(self.n_envs, np.bool_),
            )
        )
        self.pos = (self.pos + 1) % self.buffer_size
        self.full = self.full or self.pos == 0

    def reset(self) -> None:
        """Forget everything but the state of the generator."""
        super().reset()
        self.replay = self._make_replay(self.generator)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw `batch_size` transitions uniformly; normalised by `env` where it is given."""
        return self._to_samples(self.replay.sample(batch_size), env)

    def _get_samples(
        self, batch_inds: NDArray[np.int64], env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        return self._to_samples(self.replay.gather(batch_inds), env)

    def _to_samples(self, batch: Transition, env: VecNormalize | None) -> ReplayBufferSamples:
        data = (
            self._observed(batch.observations, env),
            batch.actions.numpy()[:, None],
            self._observed(batch.next_observations, env),
            1.0 - batch.discounts.numpy()[:, None],
            self._normalize_reward(batch.rewards.numpy()[:, None], env),
        )
        return ReplayBufferSamples(*(self.to_torch(array, copy=False) for array in data))

    def _observed(self, observations: Observations, env: VecNormalize | None) -> NDArray[Any]:
        assert isinstance(observations, torch.Tensor)
        rows = observations.numpy().reshape(-1, *self.obs_shape)
        return rows if env is None else np.asarray(env.normalize_obs(rows))
