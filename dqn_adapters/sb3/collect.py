"""Collecting experience: Stable-Baselines3's loop, which here loses and falsifies nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import numpy as np
import stable_baselines3
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import (
    MaybeCallback,
    RolloutReturn,
    TrainFreq,
    TrainFrequencyUnit,
)
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from dqn_adapters.environments import Masks
from dqn_adapters.finite import as_rewards, check_observations, moment
from dqn_adapters.learner import DQNLearner
from dqn_adapters.sb3.buffers import CoreReplayBuffer, break_off
from dqn_adapters.sb3.masks import check_masking, masks_in
from dqn_adapters.sb3.policies import has_stock_methods


class Collecting(stable_baselines3.DQN):
    """The part of the algorithm that steps the environments and stores what they give.

    Callbacks are called where the host calls them, before the step is stored, and see the host's
    names in `locals`. When one ends the training, the step is taken up nevertheless, and the next
    `learn(reset_num_timesteps=False)` goes on within the same phase of `train_freq`.

    A step that an error or an interruption kept from being taken up is lost: the next `learn` then
    resets the environments, and nothing in the replay buffer links across the gap.
    """

    action_space: spaces.Discrete
    learner: DQNLearner
    replay_buffer: Any
    _collected: tuple[int, int]  # calls of step and episodes since the last training phase
    _experienced: tuple[int, int] | None  # environment steps and finished episodes of the last step
    _schedule_timesteps: int  # the training's total when it began: the length of its schedules
    _use_masking: bool | None
    _action_masks: Masks | None  # the legal actions in _last_obs
    check_observations: bool = True
    _step_to_take_up: tuple[Any, ...] | None = None
    _valid: NDArray[np.bool_] | None = None  # where the step that is stored did something
    _moved: bool = False  # whether the environments may have gone on from _last_obs
    _tap: Tap | None = None

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self._settle()
        resets = reset_num_timesteps or self._last_obs is None
        self._moved = resets
        began_with = 0 if reset_num_timesteps else self._schedule_timesteps or self._total_timesteps
        host = super()._setup_learn
        if isinstance(self.replay_buffer, CoreReplayBuffer):
            # Past the host's, which marks the last row of a memory-lean buffer as an episode's end.
            host = super(OffPolicyAlgorithm, self)._setup_learn
        with self._tapped(None):
            result = host(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        self._schedule_timesteps = began_with or self._total_timesteps
        if resets:
            if reset_num_timesteps:
                self._collected = (0, 0)
            assert self.env is not None
            if self._vec_normalize_env is None:
                check(self.env, self._last_obs, None, finite=self.check_observations)
            self._take_up_masks()
            break_off(self.replay_buffer)  # what is stored may end within an episode
            self._moved = False
        return result

    def _settle(self) -> None:
        """Take up a step whose callback failed; if a step was lost, the next `learn` resets."""
        if self._last_obs is None:
            self._step_to_take_up = None
        self._take_up_step()
        if self._moved:
            self._last_obs = None

    @contextmanager
    def _tapped(self, step: int | None) -> Iterator[None]:
        """Within the block a `VecNormalize` is given only what was checked."""
        normalize = self._vec_normalize_env
        if normalize is None:
            yield
            return
        venv = normalize.venv
        while isinstance(venv, Tap):  # an interruption may leave it there
            venv = venv.venv
        if self._tap is None or self._tap.venv is not venv:
            self._tap = Tap(venv)
        self._tap.finite = self.check_observations
        with self._tap.below(normalize, step):
            yield

    def _take_up_masks(self) -> None:
        assert self.env is not None
        masks = masks_in(self.env.unwrapped.reset_infos, int(self.action_space.n))
        check_masking(self.env, masks, self._use_masking)
        if self._use_masking is False:
            masks = None
        if not isinstance(self.replay_buffer, CoreReplayBuffer):
            self._refuse_masks(masks)
        self._action_masks = masks

    def _refuse_masks(self, masks: Masks | None) -> None:
        if masks is not None:
            raise ValueError(
                f"replay_buffer_class={type(self.replay_buffer).__name__} cannot store action "
                "masks; leave replay_buffer_class out, or call learn(use_masking=False)"
            )

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: ReplayBuffer,
        action_noise: ActionNoise | None = None,
        learning_starts: int = 0,
        log_interval: int | None = None,
    ) -> RolloutReturn:
        """Collect `train_freq` steps or episodes; see `OffPolicyAlgorithm.collect_rollouts`."""
        # Compiled code has no modes; `DQN` enters training mode where torch computes.
        if self.policy.training or not has_stock_methods(self.policy):
            self.policy.set_training_mode(False)
        if env.num_envs > 1 and train_freq.unit is not TrainFrequencyUnit.STEP:
            raise ValueError(
                f"train_freq={tuple(train_freq)} is not accepted with {env.num_envs} environments; "
                "train_freq must count steps"
            )
        callback.on_rollout_start()
        num_collected_steps, num_collected_episodes = self._collected
        continue_training = True
        while continue_training and should_collect_more_steps(train_freq, *self._collected):
            self._moved = True  # until the step is taken up
            actions, buffer_actions = self._sample_action(
                learning_starts, action_noise, env.num_envs
            )
            new_obs, rewards, dones, infos = self._step(env, actions)
            valid = getattr(env.unwrapped, "valid", None)  # of a vector environment of ours
            self.num_timesteps += env.num_envs if valid is None else int(valid.sum())
            num_collected_steps += 1
            self._step_to_take_up = (
                *(replay_buffer, buffer_actions, new_obs, rewards, dones, infos),
                *(valid, log_interval),
            )
            callback.update_locals(locals())
            continue_training = callback.on_step()
            self._take_up_step()
            num_collected_steps, num_collected_episodes = self._collected
        if continue_training:
            callback.on_rollout_end()
            self._collected = (0, 0)
        return RolloutReturn(
            num_collected_steps * env.num_envs, num_collected_episodes, continue_training
        )

    def _step(self, env: VecEnv, actions: NDArray[Any]) -> Any:
        step = self.num_timesteps + 1
        if self._vec_normalize_env is None:
            return check_step(env, env.step(actions), step, finite=self.check_observations)
        with self._tapped(step):
            return env.step(actions)

    def _take_up_step(self) -> None:
        """Store the step that was made last, and count it; nothing if that is done."""
        if self._step_to_take_up is None:
            return
        replay_buffer, actions, new_obs, rewards, dones, infos, valid, log_interval = (
            self._step_to_take_up
        )
        self._step_to_take_up = None
        self._update_info_buffer(infos, dones)
        self._valid = valid
        self._store_transition(replay_buffer, actions, new_obs, rewards, dones, infos)
        self._moved = False
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        finished = int(np.count_nonzero(dones if valid is None else dones & valid))
        self._experienced = (len(dones) if valid is None else int(valid.sum()), finished)
        self._on_step()
        steps, episodes = self._collected
        self._collected = (steps + 1, episodes + finished)
        for _ in range(finished):
            self._episode_num += 1
            if log_interval is not None and self._episode_num % log_interval == 0:
                self.dump_logs()

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: Any,
        reward: NDArray[Any],
        dones: NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> None:
        """Store what the environment gave, not what a `VecNormalize` made of it."""
        normalize, valid = self._vec_normalize_env, self._valid
        terminal: dict[int, Any] = {
            i: infos[i].get("terminal_observation") for i in dones.nonzero()[0].tolist()
        }
        if normalize is None:
            self._last_original_obs, original_obs = self._last_obs, new_obs
        else:
            original_obs, reward = normalize.get_original_obs(), normalize.get_original_reward()
            assert self._tap is not None
            terminal = self._tap.terminal_observations
        next_obs = with_rows(original_obs, terminal)
        if isinstance(replay_buffer, CoreReplayBuffer):
            replay_buffer.add(
                self._last_original_obs,
                next_obs,
                buffer_action,
                reward,
                dones,
                infos,
                valid=valid,
                next_action_masks=self._next_masks(replay_buffer, dones, infos),
            )
        else:
            if self._use_masking is not False:
                self._refuse_masks(masks_in(infos, int(self.action_space.n)))
            if valid is not None and not valid.all():
                raise ValueError(
                    f"replay_buffer_class={type(replay_buffer).__name__} stores a step of all "
                    "environments, and in some nothing was done (autoreset mode NEXT_STEP, agents "
                    "that wait); leave replay_buffer_class out"
                )
            replay_buffer.add(
                self._last_original_obs,  # type: ignore[arg-type]
                deepcopy(next_obs),
                buffer_action,
                reward,
                dones,
                infos,
            )
        self._last_obs = new_obs
        if normalize is not None:
            self._last_original_obs = original_obs

    def _next_masks(
        self, replay_buffer: CoreReplayBuffer, dones: NDArray[np.bool_], infos: list[dict[str, Any]]
    ) -> Masks | None:
        """The masks of the true next states; those of `new_obs` are kept for the next actions."""
        num_actions = int(self.action_space.n)
        if self._use_masking is False:
            return masks_in([{}] * len(dones), num_actions, expected=replay_buffer.has_masks)
        expected = self._action_masks is not None or replay_buffer.has_masks
        masks = masks_in(infos, num_actions, expected=expected)
        if masks is not None:
            assert self.env is not None
            current = [*infos]
            for i in np.flatnonzero(dones):
                current[i] = self.env.unwrapped.reset_infos[i]
            self._action_masks = masks_in(current, num_actions, expected=True)
        return masks


class Tap(VecEnvWrapper):
    """Lies below a `VecNormalize` while it steps, and sees what that is given.

    `VecNormalize` clips the terminal observation, and a clipped one cannot be restored. It also
    takes what it is given into its running statistics, which one NaN would spoil.
    """

    terminal_observations: dict[int, Any]
    finite = True
    """Whether observations must be finite."""

    @contextmanager
    def below(self, normalize: VecNormalize, step: int | None) -> Iterator[None]:
        """Within the block `normalize` steps the environments through this wrapper."""
        self._step, normalize.venv = step, self
        try:
            yield
        finally:
            normalize.venv = self.venv

    def reset(self) -> Any:
        obs = self.venv.reset()
        check(self.venv, obs, None, finite=self.finite)
        return obs

    def step_wait(self) -> Any:
        assert self._step is not None
        obs, rewards, dones, infos = check_step(
            self.venv, self.venv.step_wait(), self._step, finite=self.finite
        )
        self.terminal_observations = {
            i: infos[i].get("terminal_observation") for i in np.flatnonzero(dones).tolist()
        }
        return obs, rewards, dones, infos


def check_step(env: VecEnv, result: Any, step: int, *, finite: bool) -> Any:
    """What environment step `step` gave, with rewards `(N,)`.

    Raises:
        ValueError: rewards or observations have another shape than they must.
        NonFiniteError: a reward is not finite; or, where it must be, an observation.
    """
    obs, rewards, dones, infos = result
    rewards = as_rewards(rewards, len(dones), step)
    check(env, obs, step, finite=finite)
    for i in dones.nonzero()[0].tolist():
        final = with_row_axis(infos[i].get("terminal_observation"))
        if final is not None:
            check(env, final, step, [i], name="the final observation", finite=finite)
    return obs, rewards, dones, infos


def check(
    env: VecEnv,
    obs: Any,
    step: int | None,
    rows: list[int] | None = None,
    *,
    name: str = "the observation",
    finite: bool,
) -> None:
    """Raise unless these are observations of the environments; see `check_observations`. None is
    the step of a reset."""
    space = env.observation_space
    if isinstance(space, spaces.Discrete):  # `(N, 1)` is taken as well
        return
    check_observations(
        obs,
        space,
        range(env.num_envs) if rows is None else rows,
        name=f"{name} {moment(step)}",
        finite=finite,
    )


def with_row_axis(observation: Any) -> Any:
    """One observation as a batch of one; None stays None."""
    if isinstance(observation, dict):
        return {key: np.asarray(value)[None] for key, value in observation.items()}
    return None if observation is None else np.asarray(observation)[None]


def with_rows(observations: Any, rows: dict[int, Any]) -> Any:
    """A copy of the observations `(N, ...)` with some rows replaced, where these are not None."""
    rows = {i: row for i, row in rows.items() if row is not None}
    if not rows:
        return observations
    changed = deepcopy(observations)
    for i, row in rows.items():
        if isinstance(changed, dict):
            for key in changed:
                changed[key][i] = row[key]
        else:
            changed[i] = row
    return changed
