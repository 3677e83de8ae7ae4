"""A collector for the many short collections between the updates of a DQN."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tianshou.data as host
from numpy.typing import NDArray
from tianshou.data import Batch, CollectStats
from tianshou.data.collector import TCollectStats
from tianshou.env import BaseVectorEnv, VectorEnvWrapper
from tianshou.utils.determinism import TraceLogger

from dqn_adapters.environments import MASK
from dqn_adapters.finite import check_finite
from dqn_adapters.tianshou.buffers import as_batch, break_off, plain
from dqn_adapters.tianshou.policy import HOSTS_MASK, DQNPolicy


class Collector(host.Collector[TCollectStats]):
    """Tianshou's `Collector`: the same transitions and statistics, in a quarter of the time.

    Tianshou's makes and copies half a dozen `Batch` objects for every step, whoever looks at them.
    This one hands the arrays on as they are, where nobody does. That is where `n_step` steps are
    collected without rendering, in environments that are stepped together; where the policy is a
    `DQNPolicy` of an algorithm that computes in the compiled kernel; and where there are no hooks,
    and no statistics but Tianshou's own. (A subclass is not looked into.) Everything else is
    Tianshou's code.

    Observations are copied where the next step could overwrite them. When a collection ends by an
    error or an interruption, the next one resets the environments, and nothing in the buffer links
    across the gap.
    """

    _interrupted = False

    def _collect(
        self,
        n_step: int | None = None,
        n_episode: int | None = None,
        random: bool = False,
        render: float | None = None,
        gym_reset_kwargs: dict[str, Any] | None = None,
    ) -> TCollectStats:
        if self._interrupted:
            self.reset_env(gym_reset_kwargs)
        self._interrupted = True
        with copying(self):
            obs = self._pre_collect_obs_RO
            if not n_step or render or obs is None or not self._is_unwatched():
                stats = super()._collect(n_step, n_episode, random, render, gym_reset_kwargs)
            else:
                stats = self._collect_unwatched(n_step, random, gym_reset_kwargs)
        self._interrupted = False
        return stats

    def reset_env(self, gym_reset_kwargs: dict[str, Any] | None = None) -> Any:
        """Start an episode in every environment; the running ones are cut in the buffer.

        Raises:
            NonFiniteError: an observation is NaN or infinite.
        """
        self._interrupted = True
        break_off(self.buffer)
        obs, infos = super().reset_env(gym_reset_kwargs)
        if getattr(self.buffer, "check_observations", True):
            check_finite("the observation at the reset", plain(_column(obs)))
        self._interrupted = False
        return obs, infos

    def _collect_unwatched(
        self, n_step: int, random: bool, gym_reset_kwargs: dict[str, Any] | None
    ) -> TCollectStats:
        obs: Any = self._pre_collect_obs_RO
        infos: Any = self._pre_collect_info_R
        ids, stats = np.arange(self.env_num), self.collect_stats_class()
        while stats.n_collected_steps < n_step:
            act, actions = self._act(ids, obs, infos, random)
            obs_next, rew, terminated, truncated, infos = self.env.step(actions, ids)
            done = np.logical_or(terminated, truncated)
            step = as_batch(
                obs=_column(obs),
                act=act,
                policy=Batch(),
                obs_next=_column(obs_next),
                rew=rew,
                terminated=terminated,
                truncated=truncated,
                done=done,
                info=_stacked(infos),
            )
            rows, returns, _, starts = self.buffer.add(step, buffer_ids=ids)
            stats.n_collected_steps += len(ids)
            obs = obs_next
            if done.any():
                over = np.flatnonzero(done)
                for i in over:
                    episode = self.buffer.get_buffer_indices(int(starts[i]), int(rows[i]) + 1)
                    steps: Any = self.buffer[episode]
                    stats.update_at_episode_done(steps, returns[i])
                obs, infos = obs.copy(), infos.copy()
                obs[over], infos[over] = self.env.reset(env_id=over, **(gym_reset_kwargs or {}))
        self.collect_step += stats.n_collected_steps
        self.collect_episode += stats.n_collected_episodes
        self._pre_collect_obs_RO, self._pre_collect_info_R = obs, infos
        self._pre_collect_hidden_state_RH = None
        return stats

    def _is_unwatched(self) -> bool:
        """Whether nothing but the buffer sees the steps; see the class."""
        return (
            type(self) is Collector
            and type(self.policy) is DQNPolicy
            and self.policy.computes_in_kernel
            and self._on_step_hook is None
            and self._on_episode_done_hook is None
            and self.collect_stats_class is CollectStats
            and isinstance(self.env, BaseVectorEnv)
            and not self.env.is_async
            and not TraceLogger.is_enabled
        )

    def _act(
        self, ids: NDArray[np.int64], obs: NDArray[Any], infos: NDArray[Any], random: bool
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The actions, as the buffer and as the environments know them."""
        if random or obs.dtype == object or any(MASK in i or HOSTS_MASK in i for i in infos):
            chosen: Any = self._compute_action_policy_hidden(random, ids, obs, infos)
            return chosen.act, chosen.act_normalized
        policy: Any = self.policy
        act = policy.learner.greedy_actions(obs)
        if self.exploration_noise:
            act = policy.add_exploration_noise(act, as_batch(obs=obs, info=Batch()))
        return act, policy.map_action(act)


def _column(values: NDArray[Any]) -> Any:
    """An array of numbers as it is; dictionaries as a `Batch`."""
    return Batch(column=values).column if values.dtype == object else values


def _stacked(infos: NDArray[Any]) -> Any:
    """Dictionaries as a `Batch`, at once where all have the same names, of numbers."""
    names = infos[0].keys()
    for info in infos:
        if info.keys() != names or not all(isinstance(v, _NUMBER) for v in info.values()):
            return _column(infos)
    return as_batch(**{name: np.array([info[name] for info in infos]) for name in names})


_NUMBER = (bool, int, float, np.bool_, np.number)


class _Copies(VectorEnvWrapper):
    """Gives copies of observations and infos."""

    def reset(self, env_id: Any = None, **kwargs: Any) -> Any:
        return copy.deepcopy(self.venv.reset(env_id, **kwargs))

    def step(self, action: Any, id: Any = None) -> Any:
        return copy.deepcopy(self.venv.step(action, id))


@contextmanager
def copying(collector: Any) -> Iterator[None]:
    """Within the block the collector is given copies of observations that are dictionaries.

    Tianshou stacks arrays, which copies them, but hands dictionaries on as they are: the arrays in
    them are the environment's, which may write its next observation into them, or memory that is
    shared with another process, which does.
    """
    env, obs = collector.env, getattr(collector, "_pre_collect_obs_RO", None)
    arrays = isinstance(obs, np.ndarray) and obs.dtype != object
    if arrays or not isinstance(env, BaseVectorEnv) or isinstance(env, _Copies):
        yield
        return
    collector._pre_collect_obs_RO = copy.deepcopy(obs)
    collector.env = _Copies(env)
    try:
        yield
    finally:
        collector.env = env
