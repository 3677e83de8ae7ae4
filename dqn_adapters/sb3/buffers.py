"""Replay between the core and Stable-Baselines3: its buffer interface, its samples."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from dqn_adapters import replay as core
from dqn_adapters.config import DQNConfig, checked_float
from dqn_adapters.environments import Masks
from dqn_adapters.overrides import Methods
from dqn_adapters.transition import EnvStep, Transition, map_arrays, to_tensors

Samples = ReplayBufferSamples | DictReplayBufferSamples
Indices = NDArray[np.int64]


def to_transition(samples: Samples, gamma: float) -> Transition:
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


def break_off(buffer: Any) -> None:
    """The running episodes are cut where they are: what is added next begins new ones."""
    if isinstance(buffer, CoreReplayBuffer):
        buffer.replay.cut()
    elif isinstance(buffer, HerReplayBuffer):
        with warnings.catch_warnings():  # that it does so
            warnings.simplefilter("ignore", UserWarning)
            buffer.truncate_last_trajectory()
    elif isinstance(buffer, ReplayBuffer) and (buffer.pos or buffer.full):
        last = buffer.pos - 1
        if buffer.optimize_memory_usage:  # as the host does: the next row is taken for s'
            buffer.dones[last] = True
        else:
            buffer.timeouts[last] = np.where(buffer.dones[last], buffer.timeouts[last], True)


class CoreReplayBuffer(ReplayBuffer):
    """The core's replay behind Stable-Baselines3's `ReplayBuffer` interface.

    `observations`, `next_observations`, `actions`, `rewards` and `dones` are copies of what is
    stored: `(size, n_envs, ...)`. `dones` is 0 where a time limit ended the episode.

    Args:
        buffer_size: Capacity in transitions of all environments together; the attribute of that
            name is, as in Stable-Baselines3, the capacity per environment.
        observation_space: Any space of Stable-Baselines3.
        action_space: A `Discrete`; actions are stored counted from 0.
        device: Where samples go.
        n_envs: Number of environments that add together.
        optimize_memory_usage: Keep an observation once that is the next one of one transition and
            the first of another, for half the memory. Right at time limits, with n-step returns and
            for any number of environments; for a `Box` only.
        handle_timeout_termination: Treat an episode that a time limit ended as cut, not terminated.
        n_steps: Rewards in a return.
        gamma: Discount factor per step in it.
        frame_stack: Observations are so many frames stacked along their first axis: every frame is
            kept once.
        prioritized: Sample in proportion to the priorities.
        alpha: Exponent of the priorities.
        beta: Exponent of the importance weights.
        generator: Source of the sampled indices. None: fresh entropy.

    Raises:
        ValueError: `optimize_memory_usage` or `frame_stack` does not fit the observation space, or
            both are asked for; or a number is not accepted.
    """

    replay: core.ReplayBuffer

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
        n_steps: int = DQNConfig.n_steps,
        gamma: float = DQNConfig.gamma,
        frame_stack: int | None = DQNConfig.frame_stack,
        prioritized: bool = DQNConfig.prioritized_replay,
        alpha: float = DQNConfig.priority_alpha,
        beta: float = DQNConfig.priority_beta,
        generator: np.random.Generator | None = None,
    ) -> None:
        # Past ReplayBuffer, which would allocate its own arrays.
        super(ReplayBuffer, self).__init__(
            buffer_size, observation_space, action_space, device, n_envs=n_envs
        )
        checked_float("gamma", gamma, high=1.0)
        if optimize_memory_usage and frame_stack is not None:
            raise ValueError(
                f"optimize_memory_usage=True and frame_stack={frame_stack} exclude each other; "
                "frame_stack alone keeps every frame once, and with it every observation"
            )
        if optimize_memory_usage and not isinstance(observation_space, spaces.Box):
            raise ValueError(
                "optimize_memory_usage=True is for a Box of observations; it does not support "
                f"{observation_space}"
            )
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.buffer_size = max(buffer_size // n_envs, 1)
        self._options: dict[str, Any] = {
            "n_steps": n_steps,
            "gamma": gamma,
            "frame_stack": 1 if optimize_memory_usage else frame_stack,
            "prioritized": prioritized,
            "alpha": alpha,
            "beta": beta,
        }
        self.gives_as_stored = self.obs_shape == self.observation_space.shape
        """Whether samples are what is stored, in shape; a VecNormalize may change them."""
        space = self.observation_space
        parts = space.values() if isinstance(space, spaces.Dict) else (space,)
        self._has_doubles = any(part.dtype == np.float64 for part in parts)
        self._none = np.zeros(n_envs, np.bool_)
        self.replay = self._make_replay(generator or np.random.default_rng())

    def _make_replay(self, generator: np.random.Generator) -> core.ReplayBuffer:
        return core.ReplayBuffer(
            self.buffer_size * self.n_envs,
            self.observation_space,
            generator=generator,
            num_envs=self.n_envs,
            **self._options,
        )

    @property
    def generator(self) -> np.random.Generator:
        """Source of the sampled indices."""
        return self.replay.generator

    @generator.setter
    def generator(self, generator: np.random.Generator) -> None:
        self.replay.generator = generator

    @property
    def has_masks(self) -> bool:
        """Whether action masks are stored."""
        return self.replay.has_masks

    def size(self) -> int:
        """Transitions stored, per environment."""
        return -(-len(self.replay) // self.n_envs)

    def __getattr__(self, name: str) -> Any:
        if name not in ReplayBufferSamples._fields[:5] or "replay" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        size = self.size() * self.n_envs
        if name in ("rewards", "dones"):  # of one step, whatever is sampled
            stored = self.replay.state_dict()["arrays"][name.replace("dones", "terminated")][:size]
            return stored.astype(np.float32).reshape(-1, self.n_envs)
        rows = getattr(self._get_samples(np.arange(size)), name)
        return map_arrays(
            lambda part: part.cpu().numpy().reshape(-1, self.n_envs, *part.shape[1:]), rows
        )

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
        *,
        valid: NDArray[np.bool_] | None = None,
        next_action_masks: Masks | None = None,
    ) -> None:
        """Store one step of all environments; see `ReplayBuffer.add`.

        Args:
            valid: `(n_envs,)`, False where nothing was experienced: the environment was only reset,
                or its agent was not in the game. None: something was in all.
            next_action_masks: `(n_envs, A)`, the legal actions in the true next state.
        """
        over = np.asarray(done, np.bool_)
        truncated = self._none
        if self.handle_timeout_termination:
            cut = [bool(info.get("TimeLimit.truncated", False)) for info in infos]
            truncated = np.array(cut) if True in cut else truncated
        self.replay.add(
            EnvStep(
                observations=self._shaped(obs),
                actions=np.reshape(action, self.n_envs),
                rewards=np.asarray(reward),
                next_observations=self._shaped(next_obs),
                terminated=over & ~truncated,
                truncated=truncated,
                valid=~self._none if valid is None else valid,
                next_action_masks=next_action_masks,
            )
        )
        if valid is not None:  # an end that was not experienced: an agent was taken away
            self.replay.cut(np.flatnonzero(over & ~valid))
        self.pos = (self.pos + 1) % self.buffer_size
        self.full = self.full or self.pos == 0

    def _shaped(self, observations: Any) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {
                key: np.reshape(observations[key], (self.n_envs, *(space.shape or ())))
                for key, space in self.observation_space.items()
            }
        shape = self.n_envs, *(self.observation_space.shape or ())
        if isinstance(observations, np.ndarray) and observations.shape == shape:
            return observations
        return np.reshape(observations, shape)

    def reset(self) -> None:
        """Forget everything but the state of the generator."""
        super().reset()
        self.replay = self._make_replay(self.generator)

    def draw(self, batch_size: int, env: VecNormalize | None) -> tuple[Transition, Indices]:
        """A batch for the learner, and where it lies, for `update_priorities`."""
        indices = self.replay.draw(batch_size)
        return self._gather(indices, env, reuse=True), indices

    def update_priorities(self, indices: Indices, td_errors: ArrayLike | torch.Tensor) -> None:
        """See `ReplayBuffer.update_priorities` of the core."""
        self.replay.update_priorities(indices, td_errors)  # type: ignore[arg-type]

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """Draw `batch_size` transitions; normalised by `env` where it is given."""
        return self._get_samples(self.replay.draw(batch_size), env)

    def _get_samples(self, batch_inds: Indices, env: VecNormalize | None = None) -> Any:
        batch = self._gather(batch_inds, env)
        actions, rewards, discounts = (part[:, None] for part in batch[1:4])
        terminated = discounts == 0
        kind: Any = ReplayBufferSamples
        if isinstance(batch.observations, dict):
            kind = DictReplayBufferSamples
        return kind(
            batch.observations,
            actions,
            batch.next_observations,
            terminated.float(),
            rewards,
            # Those of the terminated are multiplied by 0, whatever they are.
            torch.where(terminated, self.replay.gamma, discounts)
            if self.replay.n_steps > 1
            else None,
        )

    def _gather(
        self, indices: Indices, env: VecNormalize | None, reuse: bool = False
    ) -> Transition:
        normalize = None if env is None else env.normalize_reward
        as_stored = env is None and self.gives_as_stored
        batch = self.replay.gather(
            indices,
            transform_rewards=normalize,
            reuse=reuse,
            device=self.device if as_stored else "cpu",
        )
        if as_stored:
            return batch
        seen: Any = batch.observations, batch.next_observations
        if env is not None and self._has_doubles:  # normalised before they are float32
            seen = self.replay.observations(indices)
        return Transition(
            observations=self._observed(seen[0], env),
            actions=batch.actions.to(self.device),
            rewards=batch.rewards.to(self.device),
            discounts=batch.discounts.to(self.device),
            next_observations=self._observed(seen[1], env),
            next_action_masks=self._moved(batch.next_action_masks),
            weights=self._moved(batch.weights),
        )

    def _moved(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor.to(self.device)

    def _observed(self, observations: Any, env: VecNormalize | None) -> Any:
        """Observations as the host has them sampled: in its shapes, and normalised."""
        shapes = self.obs_shape
        rows = map_arrays(
            lambda part, shape: np.asarray(part).reshape(-1, *shape), observations, shapes
        )
        return to_tensors(rows if env is None else env.normalize_obs(rows), self.device)


_SAMPLING = Methods(CoreReplayBuffer, "sample", "_get_samples")
_DRAWING = Methods(CoreReplayBuffer, "draw", "update_priorities", "_gather", "_observed")


def samples_otherwise(buffer: CoreReplayBuffer) -> bool:
    """Whether a subclass or a patch has its own way to sample."""
    return not _SAMPLING.are_those_of(buffer)


def has_own_replay(buffer: ReplayBuffer) -> bool:
    """Whether batches are what the core's replay gives, without anything in between."""
    return (
        isinstance(buffer, CoreReplayBuffer)
        and buffer.gives_as_stored
        and buffer.device.type == "cpu"
        and _SAMPLING.are_those_of(buffer)
        and _DRAWING.are_those_of(buffer)
    )
