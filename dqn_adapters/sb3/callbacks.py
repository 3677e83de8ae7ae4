"""A callback that holds the estimated values against what is really earned."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from dqn_adapters.config import checked_float, checked_int
from dqn_adapters.evaluation import discounted_returns, settled
from dqn_adapters.sb3.dqn import DQN
from dqn_adapters.sb3.masks import masks_in
from dqn_adapters.sb3.policies import action_values


class OverestimationCallback(BaseCallback):
    """Logs how much the Q-values promise and how much is earned (van Hasselt et al. 2015, fig. 3).

    In greedy episodes of an environment of its own, for every step: `value/estimate`, the mean of
    Q(s, a) of the actions that are taken; `value/return`, the mean of the discounted returns from
    there to the episode's end; `value/overestimation`, their difference. Of an episode that a time
    limit cuts count only the steps whose returns hardly depend on what would have come.

    Args:
        eval_env: An environment like the one that is trained in; with a `VecNormalize` there, a
            `VecEnv` with one here, whose statistics are then kept equal.
        eval_freq: Environment steps between two looks.
        n_eval_episodes: Episodes in a look.
        tolerance: Largest discount of what is not seen behind a time limit.
        verbose: See `BaseCallback`.

    Raises:
        ValueError: a number is not accepted.
    """

    model: DQN

    def __init__(
        self,
        eval_env: Any,
        eval_freq: int = 10_000,
        n_eval_episodes: int = 5,
        tolerance: float = 0.01,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        checked_int("eval_freq", eval_freq, low=1)
        checked_int("n_eval_episodes", n_eval_episodes, low=1)
        checked_float("tolerance", tolerance, open_low=True, high=1.0)
        self.eval_env: VecEnv = DQN._wrap_env(eval_env)
        self.eval_freq = eval_freq
        self.n_eval_episodes = n_eval_episodes
        self.tolerance = tolerance
        self._next = eval_freq

    def _on_training_start(self) -> None:
        self._next = self.num_timesteps + self.eval_freq

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next:
            self._next += self.eval_freq
            self._look()
        return True

    def _look(self) -> None:
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        estimates, returns = self._episodes()
        if not len(estimates):
            return  # every episode was cut before anything could be said
        self.logger.record("value/estimate", float(np.mean(estimates)))
        self.logger.record("value/return", float(np.mean(returns)))
        self.logger.record("value/overestimation", float(np.mean(estimates) - np.mean(returns)))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _episodes(self) -> tuple[list[float], list[float]]:
        """The estimates and the returns of all steps that count."""
        env, model = self.eval_env, self.model
        num_envs, num_actions = env.num_envs, int(model.action_space.n)
        quota = [(self.n_eval_episodes + i) // num_envs for i in range(num_envs)]
        running: list[list[tuple[float, float]]] = [[] for _ in range(num_envs)]
        estimates: list[float] = []
        returns: list[float] = []
        observations: Any = env.reset()
        masks = masks_in(env.unwrapped.reset_infos, num_actions)
        while any(quota):
            actions, _ = model.predict(observations, deterministic=True, action_masks=masks)
            values = action_values(model.policy, observations, actions - model.action_space.start)
            observations, rewards, dones, infos = env.step(actions)
            for i in range(num_envs):
                running[i].append((float(values[i]), float(rewards[i])))
                if dones[i]:
                    if quota[i]:
                        quota[i] -= 1
                        predicted, earned = zip(*running[i], strict=True)
                        count = len(earned)
                        if infos[i].get("TimeLimit.truncated", False):
                            count = settled(count, model.gamma, self.tolerance)
                        estimates += predicted[:count]
                        returns += discounted_returns(np.array(earned), model.gamma)[
                            :count
                        ].tolist()
                    running[i] = []
            if masks is not None:
                now = [
                    env.unwrapped.reset_infos[i] if dones[i] else infos[i] for i in range(num_envs)
                ]
                masks = masks_in(now, num_actions, expected=True)
        return estimates, returns
