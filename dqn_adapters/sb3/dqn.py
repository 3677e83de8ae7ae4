"""DQN as a Stable-Baselines3 algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from dqn_adapters.config import DQNConfig, Loss, TargetUpdateUnit, Variant
from dqn_adapters.exploration import epsilon_greedy, epsilon_schedule
from dqn_adapters.learner import DQNLearner, UpdateMetrics
from dqn_adapters.sb3.buffers import CoreReplayBuffer, to_transition
from dqn_adapters.sb3.config import live_values, to_config
from dqn_adapters.sb3.host import (
    check_spaces,
    joined_signature,
    keep_online,
)

Observation = NDArray[Any] | dict[str, NDArray[Any]]
States = tuple[NDArray[Any], ...] | None


class DQN(stable_baselines3.DQN):
    """`stable_baselines3.DQN` with a choice of variant, loss and target period.

    All arguments of `stable_baselines3.DQN` come first, with their names, order and defaults; with
    nothing else given it is the same algorithm. `model.learner` is the core's `DQNLearner` over
    `policy.q_net`, `policy.q_net_target` and `policy.optimizer`; hyper-parameters that are changed
    on the model take effect at the next training phase.

    Different from `stable_baselines3.DQN`:

    - every environment draws for itself whether it explores;
    - the target period holds for any number of environments, it is not floored by it;
    - exploration and replay draw from generators of their own, derived from `seed`;
    - actions of a `Discrete` space that does not start at 0 are translated;
    - `max_grad_norm=None` is off;
    - logged are also, as means over a training phase, `train/qf_mean_value` (the prediction
      Q(s, a)), `train/td_target`, `train/td_error` (the absolute difference of the two) and
      `train/grad_norm` (the gradient's L2 norm before it is clipped).

    Args:
        variant: `"vanilla"`, `"target"` or `"double"`; see `DQNConfig.variant`. In `"vanilla"`
            `q_net_target` is `q_net` itself.
        loss: `"huber"` or `"mse"`.
        huber_delta: TD error at which the Huber loss turns linear.
        target_update_unit: What `target_update_interval` counts: environment `"steps"`, finished
            `"episodes"` or gradient `"updates"`.
        exploration_steps: Length of the epsilon schedule in environment steps. None: the fraction
            `exploration_fraction` of the call to `learn`.

    Raises:
        ValueError: a hyper-parameter is not accepted; see `DQNConfig`. Or a space is not: actions
            must be `Discrete`, observations a `Box`, a `Discrete` or `MultiDiscrete` that starts
            at 0, a `MultiBinary`, or a `Dict` of these.
    """

    action_space: spaces.Discrete
    learner: DQNLearner

    def __init__(
        self,
        *args: Any,
        variant: Variant = DQNConfig.variant,
        loss: Loss = DQNConfig.loss,
        huber_delta: float = DQNConfig.huber_delta,
        target_update_unit: TargetUpdateUnit = DQNConfig.target_update_unit,
        exploration_steps: int | None = DQNConfig.exploration_steps,
        **kwargs: Any,
    ) -> None:
        self.variant = variant
        self.loss = loss
        self.huber_delta = huber_delta
        self.target_update_unit = target_update_unit
        self.exploration_steps = exploration_steps
        self._counts: dict[Any, int] = {}
        self._finished_episodes = 0
        super().__init__(*args, **kwargs)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_spaces(env)
        return OffPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        self._convert_train_freq()
        config = to_config(self)  # what is not accepted is refused before anything is built
        given = self.replay_buffer_class, self.replay_buffer_kwargs
        self.replay_buffer_kwargs = dict(self.replay_buffer_kwargs)
        host_only = self.n_steps > 1 or self.optimize_memory_usage
        host_only = host_only or isinstance(self.observation_space, spaces.Dict)
        if self.replay_buffer_class is None and not host_only:
            self.replay_buffer_class = CoreReplayBuffer
        # Past the parent, which would warn of a floored target period.
        OffPolicyAlgorithm._setup_model(self)
        # What was chosen here is not kept: `load` chooses again, for the gamma it is given.
        self.replay_buffer_class, self.replay_buffer_kwargs = given
        self._seed_replay()
        self._create_aliases()
        eps = config.exploration_initial_eps, config.exploration_final_eps
        self.exploration_schedule = LinearSchedule(*eps, config.exploration_fraction)
        self._make_learner(config)

    def _make_learner(self, config: DQNConfig) -> None:
        self._live = live_values(self)
        self.learner = DQNLearner(
            self.q_net, config, target_net=self.q_net_target, optimizer=self.policy.optimizer
        )
        self.learner.counts.update(
            # A model that the host saved has its own counters only.
            self._counts
            or {
                "steps": self._n_calls * self.n_envs,
                "episodes": self._episode_num,
                "updates": self._n_updates,
            }
        )
        self._counts = self.learner.counts  # one dictionary, which `save` finds on the model

    def _create_aliases(self) -> None:
        if self.variant == "vanilla":
            self.policy.q_net_target = self.policy.q_net
            self.policy.register_load_state_dict_pre_hook(keep_online)  # type: ignore[no-untyped-call]
        super()._create_aliases()

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed everything that is random; None seeds our own generators with fresh entropy."""
        super().set_random_seed(seed)
        acting, sampling = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(2))
        self._generator, self._replay_generator = acting, sampling
        self._seed_replay()

    def _seed_replay(self) -> None:
        if isinstance(self.replay_buffer, CoreReplayBuffer):
            self.replay_buffer.generator = self._replay_generator

    def predict(
        self,
        observation: Observation,
        state: States = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], States]:
        """The greedy actions, or where not `deterministic` epsilon-greedy ones, with the current
        `exploration_rate`; one draw per environment. See `stable_baselines3.DQN.predict`."""
        if deterministic:
            actions, state = self.policy.predict(observation, state, episode_start, deterministic)
        else:
            actions = self._explore(observation, self.exploration_rate)
        return np.asarray(actions + self.action_space.start), state

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        warmup = self.num_timesteps < learning_starts
        assert self._last_obs is not None
        actions = self._explore(self._last_obs, 1.0 if warmup else self.exploration_rate)
        return actions + self.action_space.start, actions  # stored counted from 0

    def _explore(self, observation: Observation, epsilon: float) -> NDArray[np.int64]:
        """Epsilon-greedy actions, counted from 0."""
        batched = self.policy.is_vectorized_observation(observation)
        rows = next(iter(observation.values())) if isinstance(observation, dict) else observation
        actions = epsilon_greedy(
            lambda: self.policy.predict(observation)[0],
            epsilon,
            num_envs=len(rows) if batched else 1,
            num_actions=int(self.action_space.n),
            generator=self._generator,
        )
        return actions if batched else actions[0]

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: NDArray[Any],
        new_obs: Observation,
        reward: NDArray[Any],
        dones: NDArray[np.bool_],
        infos: list[dict[str, Any]],
    ) -> None:
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        self._finished_episodes = int(np.sum(dones))

    def _on_step(self) -> None:
        self._n_calls += 1
        self.learner.count(steps=self.n_envs, episodes=self._finished_episodes)
        if self.exploration_steps is None:
            epsilon = self.exploration_schedule(self._current_progress_remaining)
        else:
            schedule = epsilon_schedule(self.learner.config, self._total_timesteps)
            epsilon = schedule(self.num_timesteps)
        self.exploration_rate = epsilon
        self.logger.record("rollout/exploration_rate", epsilon)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Make `gradient_steps` updates, each on `batch_size` sampled transitions."""
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        if self._live != live_values(self) or self.policy.optimizer is not self.learner.optimizer:
            self._make_learner(to_config(self))
        metrics = []
        for _ in range(gradient_steps):
            samples = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            metrics.append(self.learner.update(to_transition(samples, self.gamma)))
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if metrics:
            self._record(UpdateMetrics(*map(torch.stack, zip(*metrics, strict=True))))

    def _record(self, metrics: UpdateMetrics) -> None:
        means = {
            "train/loss": metrics.loss.mean(),
            "train/td_error": metrics.td_error.abs().mean(),
            "train/qf_mean_value": metrics.q_value.mean(),
            "train/td_target": metrics.td_target.mean(),
            "train/grad_norm": metrics.grad_norm.mean(),
        }
        # One transfer for all: on a GPU each would wait for the device.
        for key, value in zip(means, torch.stack([*means.values()]).tolist(), strict=True):
            self.logger.record(key, value)

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "learner",
            "_live",
            "_generator",
            "_replay_generator",
        ]


DQN.__init__.__signature__ = joined_signature(  # type: ignore[attr-defined]
    stable_baselines3.DQN.__init__, DQN.__init__
)
