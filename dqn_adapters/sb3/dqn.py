"""DQN as a Stable-Baselines3 algorithm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np
import stable_baselines3
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from dqn_adapters.compute import Execution
from dqn_adapters.config import DQNConfig, Loss, TargetUpdateUnit, Variant
from dqn_adapters.environments import Masks, as_masks
from dqn_adapters.exploration import beta_schedule, epsilon_greedy, epsilon_schedule
from dqn_adapters.learner import DQNLearner, UpdateMetrics, mean_metrics
from dqn_adapters.overrides import Methods
from dqn_adapters.replay import ReplayBuffer
from dqn_adapters.sb3.buffers import (
    CoreReplayBuffer,
    has_own_replay,
    samples_otherwise,
    to_transition,
)
from dqn_adapters.sb3.collect import Collecting
from dqn_adapters.sb3.config import (
    check_replay_options,
    live_values,
    replay_arguments,
    to_config,
)
from dqn_adapters.sb3.host import (
    check_spaces,
    forget_hosts_buffer,
    joined_signature,
    keep_online,
)
from dqn_adapters.sb3.masks import with_mask_info
from dqn_adapters.sb3.policies import (
    as_stack,
    has_stock_methods,
    masked_greedy,
    q_values,
    sees_images,
)
from dqn_adapters.sb3.policies import dueling as with_dueling_head
from dqn_adapters.sb3.resume import load_full, save_full
from dqn_adapters.sb3.streams import continue_streams, get_streams, set_streams
from dqn_adapters.sb3.vector_env import VectorEnvAdapter

Observation = NDArray[Any] | dict[str, NDArray[Any]]
States = tuple[NDArray[Any], ...] | None

LOGGED = {
    "loss": "loss",
    "td_error": "td_error",
    "qf_mean_value": "q_value",
    "td_target": "td_target",
    "grad_norm": "grad_norm",
}
"""What is logged under `train/`, and what it is in the learner's metrics."""


class DQN(Collecting):
    """`stable_baselines3.DQN` with a choice of variant and of what the core can do beyond it.

    All arguments of `stable_baselines3.DQN` come first, with their names, order and defaults; with
    nothing else given it is the same algorithm. `model.learner` is the core's `DQNLearner` over
    `policy.q_net`, `policy.q_net_target` and `policy.optimizer`; hyper-parameters that are changed
    on the model take effect at the next training phase.

    The environment may also be a Gymnasium `VectorEnv`, in any autoreset mode. Action masks are
    used where the environment has them: by sb3-contrib's protocol, its method `action_masks()`, or
    in `info["action_mask"]`. A reward or an observation that is not finite raises `NonFiniteError`
    before it is stored.

    What differs from `stable_baselines3.DQN` because something is wrong there is listed in
    `docs/sb3.md`. Logged are also, as means over a training phase, `train/qf_mean_value` (the
    prediction Q(s, a)), `train/td_target`, `train/td_error` (the absolute difference of the two)
    and `train/grad_norm` (the gradient's L2 norm before it is clipped).

    Args:
        variant: `"vanilla"`, `"target"` or `"double"`; see `DQNConfig.variant`. In `"vanilla"`
            `q_net_target` is `q_net` itself.
        loss: `"huber"` or `"mse"`.
        huber_delta: TD error at which the Huber loss turns linear.
        target_update_unit: What `target_update_interval` counts: environment `"steps"`, finished
            `"episodes"` or gradient `"updates"`.
        exploration_steps: Length of the epsilon schedule in environment steps. None: the fraction
            `exploration_fraction` of the `learn` that began the training.
        dueling: Behind the policy's features extractor and within its `net_arch` the head is split
            into V(s) and A(s, a); see `DQNConfig.dueling`.
        prioritized_replay: Sample in proportion to the last TD error.
        priority_alpha: Exponent of the priorities.
        priority_beta: Exponent of the importance weights at step 0.
        priority_beta_final: The same at the end of its schedule.
        priority_beta_steps: Length of that schedule in environment steps. None: the total of the
            `learn` that began the training.
        frame_stack: Observations are so many frames stacked along the first axis of what the model
            sees (images have their channels first): the replay buffer keeps every frame once.
        execution: How the learner computes; see `DQNLearner`.
        check_observations: Refuse observations that are NaN or infinite. False is for a features
            extractor that can handle them.

    Raises:
        ValueError: a hyper-parameter is not accepted; see `DQNConfig`. Or two of them exclude each
            other. Or a space is not supported: actions must be `Discrete`, observations a `Box`, a
            `Discrete` or `MultiDiscrete` that starts at 0, a `MultiBinary`, or a `Dict` of these.
    """

    action_space: spaces.Discrete
    learner: DQNLearner
    _generator: np.random.Generator  # of exploration
    _replay_generator: np.random.Generator
    _resets_generator: np.random.Generator  # of seeds for the host and the environments

    def __init__(
        self,
        *args: Any,
        variant: Variant = DQNConfig.variant,
        loss: Loss = DQNConfig.loss,
        huber_delta: float = DQNConfig.huber_delta,
        target_update_unit: TargetUpdateUnit = DQNConfig.target_update_unit,
        exploration_steps: int | None = DQNConfig.exploration_steps,
        dueling: bool = DQNConfig.dueling,
        prioritized_replay: bool = DQNConfig.prioritized_replay,
        priority_alpha: float = DQNConfig.priority_alpha,
        priority_beta: float = DQNConfig.priority_beta,
        priority_beta_final: float = DQNConfig.priority_beta_final,
        priority_beta_steps: int | None = DQNConfig.priority_beta_steps,
        frame_stack: int | None = DQNConfig.frame_stack,
        execution: Execution = "auto",
        check_observations: bool = True,
        **kwargs: Any,
    ) -> None:
        self.variant = variant
        self.loss = loss
        self.huber_delta = huber_delta
        self.target_update_unit = target_update_unit
        self.exploration_steps = exploration_steps
        self.dueling = dueling
        self.prioritized_replay = prioritized_replay
        self.priority_alpha = priority_alpha
        self.priority_beta = priority_beta
        self.priority_beta_final = priority_beta_final
        self.priority_beta_steps = priority_beta_steps
        self.frame_stack = frame_stack
        self.execution = execution
        self.check_observations = check_observations
        self._counts: dict[Any, int] = {}
        self._collected, self._experienced, self._schedule_timesteps = (0, 0), None, 0
        self._use_masking, self._action_masks = None, None
        self._streams: dict[str, Any] | None = None
        self._full = False  # whether the file that it is written to, or comes from, is full
        # Only `load` leaves the model to be set up later, with what it has read.
        self._loading = not kwargs.get("_init_setup_model", True)
        super().__init__(*args, **kwargs)

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        check_spaces(env)
        if isinstance(env, VectorEnv):
            env = VectorEnvAdapter(env)
        return OffPolicyAlgorithm._wrap_env(with_mask_info(env), verbose, monitor_wrapper)

    def _setup_model(self) -> None:
        if self._loading and self._streams is None:
            forget_hosts_buffer(self)
        self._convert_train_freq()
        config = to_config(self)  # what is not accepted is refused before anything is built
        check_replay_options(self, config)
        given = self.replay_buffer_class, self.replay_buffer_kwargs, self.policy_class
        if self.replay_buffer_class is None:
            self.replay_buffer_class = CoreReplayBuffer
        if issubclass(self.replay_buffer_class, CoreReplayBuffer):
            self.replay_buffer_kwargs = replay_arguments(self, config)
        if config.dueling:
            self.policy_class = with_dueling_head(self.policy_class)
        n_steps, self.n_steps = self.n_steps, 1  # the host would warn of a buffer that is not its
        # Past the parent, which would warn of a floored target period.
        OffPolicyAlgorithm._setup_model(self)
        self.n_steps = n_steps
        # What was chosen here is not kept: `load` chooses again, for the gamma it is given.
        self.replay_buffer_class, self.replay_buffer_kwargs, self.policy_class = given
        self._loading, self._streams = False, None
        self._seed_replay()
        self._create_aliases()
        eps = config.exploration_initial_eps, config.exploration_final_eps
        self.exploration_schedule = LinearSchedule(*eps, config.exploration_fraction)
        self._make_learner(config)

    def _make_learner(self, config: DQNConfig) -> None:
        self._live = live_values(self)
        self.learner = DQNLearner(
            self.q_net,
            config,
            target_net=self.q_net_target,
            optimizer=self.policy.optimizer,
            q_values=q_values,
            execution=self.execution,
            as_stack=as_stack,
            before_torch=self._enter_training_mode,
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
        """Seed everything that is random; None seeds our own generators with fresh entropy.

        A model that is being loaded goes on with the streams it was saved with instead, unless it
        is given another seed.
        """
        if self._loading and continue_streams(self):
            seed = int(self._resets_generator.integers(2**31))
        else:
            set_streams(self, np.random.SeedSequence(seed))
        super().set_random_seed(seed)
        self._seed_replay()

    def _seed_replay(self) -> None:
        if isinstance(self.replay_buffer, CoreReplayBuffer):
            self.replay_buffer.generator = self._replay_generator

    def learn(
        self,
        *args: Any,
        use_masking: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Train; see `stable_baselines3.DQN.learn`, whose arguments all are taken.

        Args:
            args: Those of the host.
            use_masking: None: use the action masks of the environment, if it has any. True: it
                must have some. False: do not use them.
            kwargs: Those of the host.

        Raises:
            ValueError: masks are asked for and the environment has none, or the replay buffer
                cannot store them.
            NonFiniteError: a reward, an observation or the loss is not finite. The model is as it
                was before, and can be saved.
        """
        self._use_masking = use_masking
        return super().learn(*args, **kwargs)

    def predict(
        self,
        observation: Observation,
        state: States = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: ArrayLike | None = None,
    ) -> tuple[NDArray[Any], States]:
        """The greedy actions, or where not `deterministic` epsilon-greedy ones, with the current
        `exploration_rate`; one draw per environment. See `stable_baselines3.DQN.predict`.

        Args:
            observation: One, or a batch `(N, ...)`.
            state: Returned as it is.
            episode_start: Not used.
            deterministic: Whether to be greedy.
            action_masks: Which actions are legal, `(A,)` or `(N, A)`, True or 1 is legal.
        """
        masks = None
        if action_masks is not None:
            masks = as_masks(
                np.atleast_2d(action_masks), (self._count(observation), int(self.action_space.n))
            )
        if not deterministic:
            actions = self._act(observation, self.exploration_rate, masks)
        elif masks is None:
            actions, state = self.policy.predict(observation, state, episode_start, deterministic)
        else:
            actions = masked_greedy(self.policy, observation, masks)
            actions = actions if self.policy.is_vectorized_observation(observation) else actions[0]
        return np.asarray(actions + self.action_space.start), state

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        warmup = self.num_timesteps < learning_starts
        assert self._last_obs is not None
        if not warmup and not _PREDICTION.are_those_of(self):
            masks: dict[str, Any] = {}
            if self._action_masks is not None:
                masks["action_masks"] = self._action_masks
            actions, _ = self.predict(self._last_obs, deterministic=False, **masks)
            return actions, actions - self.action_space.start
        epsilon = 1.0 if warmup else self.exploration_rate
        actions = self._act(self._last_obs, epsilon, self._action_masks, n_envs)
        return actions + self.action_space.start, actions  # stored counted from 0

    def _act(
        self,
        observation: Observation,
        epsilon: float,
        masks: Masks | None,
        num_envs: int | None = None,
    ) -> NDArray[np.int64]:
        """Epsilon-greedy actions, counted from 0; None: see whether it is a batch, and of what."""
        batched = num_envs is not None or self.policy.is_vectorized_observation(observation)

        def greedy() -> NDArray[np.int64]:
            stock = has_stock_methods(self.policy) and self.policy.q_net is self.learner.q_net
            if stock and not isinstance(observation, dict):
                rows = observation if batched else observation[None]
                actions = self.learner.fast_greedy_actions(rows, masks)
                if actions is not None:
                    return actions
            # As the environment has them:
            if stock and num_envs is not None and sees_images(self.q_net):
                self.policy.set_training_mode(False)
                return self.learner.greedy_actions(observation, masks)
            if masks is None:
                return np.atleast_1d(self.policy.predict(observation)[0])
            return masked_greedy(self.policy, observation, masks)

        actions = epsilon_greedy(
            greedy,
            epsilon,
            num_envs=self._count(observation) if num_envs is None else num_envs,
            num_actions=int(self.action_space.n),
            generator=self._generator,
            action_masks=masks,
        )
        return actions if batched else actions[0]

    def _count(self, observation: Observation) -> int:
        if not self.policy.is_vectorized_observation(observation):
            return 1
        rows = next(iter(observation.values())) if isinstance(observation, dict) else observation
        return len(rows)

    def _on_step(self) -> None:
        self._n_calls += 1
        steps, episodes = self._experienced or (self.n_envs, 0)
        self.learner.count(steps=steps, episodes=episodes)
        if self.exploration_steps is None and not self._schedule_timesteps:
            epsilon = self.exploration_schedule(self._current_progress_remaining)
        elif self.exploration_steps is None:
            # Of the training as it began: a total that grows later must not raise epsilon again.
            left = 1.0 - float(self.num_timesteps) / float(self._schedule_timesteps)
            epsilon = self.exploration_schedule(max(left, 0.0))
        else:
            schedule = epsilon_schedule(self.learner.config, self._schedule_timesteps)
            epsilon = schedule(self.num_timesteps)
        self.exploration_rate = epsilon
        self.logger.record("rollout/exploration_rate", epsilon)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Make `gradient_steps` updates, each on `batch_size` sampled transitions."""
        if not has_stock_methods(self.policy):
            self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        if self._live != live_values(self):
            self._make_learner(to_config(self))
        self._follow_host()
        buffer = self.replay_buffer
        if isinstance(buffer, CoreReplayBuffer):
            self._follow(buffer.replay)
        metrics: Sequence[UpdateMetrics]
        if self._vec_normalize_env is None and has_own_replay(buffer):
            metrics = self.learner.train(buffer.replay, gradient_steps, batch_size)
        else:
            metrics = [self._update(batch_size) for _ in range(gradient_steps)]
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if metrics:
            self._record(mean_metrics(metrics))

    def _enter_training_mode(self) -> None:
        if has_stock_methods(self.policy):  # `train` calls another one, once, as the host does
            self.policy.set_training_mode(True)

    def _follow_host(self) -> None:
        """Learn the networks with the optimiser that the host would use."""
        learner = self.learner
        learner.q_net, learner.optimizer = self.q_net, self.policy.optimizer
        if self.variant != "vanilla":
            learner.target_net = self.q_net_target

    def _follow(self, replay: ReplayBuffer) -> None:
        """Hyper-parameters of the buffer as they are now."""
        config = self.learner.config
        replay.gamma, replay.n_steps = config.gamma, config.n_steps
        if replay.prioritized:
            replay.beta = beta_schedule(config, self._schedule_timesteps)(self.num_timesteps)

    def _update(self, batch_size: int) -> UpdateMetrics:
        buffer, env = self.replay_buffer, self._vec_normalize_env
        if not isinstance(buffer, CoreReplayBuffer) or samples_otherwise(buffer):
            return self.learner.update(
                to_transition(buffer.sample(batch_size, env=env), self.gamma)
            )
        batch, indices = buffer.draw(batch_size, env)
        metrics = self.learner.update(batch)
        if buffer.replay.prioritized:
            buffer.update_priorities(indices, metrics.td_error)
        return metrics

    def _record(self, means: dict[str, float]) -> None:
        for key, name in LOGGED.items():
            self.logger.record(f"train/{key}", means[name])

    def save(
        self,
        path: Any,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
        *,
        full: bool = False,
    ) -> None:
        """Save the model to a zip file, which `stable_baselines3.DQN.load` opens as well.

        Args:
            path: See `stable_baselines3.DQN.save`.
            exclude: See there.
            include: See there.
            full: Save also what exact continuation needs: replay buffer, random streams,
                environments. See `docs/sb3.md`. A file is then written beside and renamed.
        """
        self._settle()
        self._streams, self._full = get_streams(self), full
        try:
            if full:
                save_full(self, path, lambda file: super(DQN, self).save(file, exclude, include))
            else:
                super().save(path, exclude, include)
        finally:
            self._streams, self._full = None, False

    @classmethod
    def load(
        cls, path: Any, env: Any = None, *args: Any, full: bool | None = None, **kwargs: Any
    ) -> Self:
        """Load a model that was saved by this class or by `stable_baselines3.DQN`.

        Args:
            path: See `stable_baselines3.DQN.load`.
            env: See there. The environments of a full file are put back into the state in which
                they were saved.
            args: See there.
            full: None: go on exactly where a file was saved that says that it was saved with
                `full=True`. False: load the model alone. True: the file must be full. Any file of
                the host is read with pickle, which executes what is in it: open only files that
                you trust.
            kwargs: See there.

        Raises:
            ValueError: `full=True` and the file is not full, or what it holds does not fit.
        """
        model = super().load(path, env, *args, **kwargs)
        if full is not False:
            load_full(model, path, required=bool(full))
        model._full = False
        return model

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """See `OffPolicyAlgorithm.load_replay_buffer`."""
        super().load_replay_buffer(path, truncate_last_traj)
        if truncate_last_traj and isinstance(self.replay_buffer, CoreReplayBuffer):
            self.replay_buffer.replay.cut()

    def _excluded_save_params(self) -> list[str]:
        ours = ("learner", "_live", "_generator", "_replay_generator", "_resets_generator")
        return [
            *super()._excluded_save_params(),
            *ours,
            *(
                "_action_masks",
                "_experienced",
                "_loading",
                "_moved",
                "_step_to_take_up",
                "_tap",
                "_valid",
            ),
        ]


DQN.__init__.__signature__ = joined_signature(  # type: ignore[attr-defined]
    stable_baselines3.DQN.__init__, DQN.__init__
)

_PREDICTION = Methods(DQN, "predict", "_act")
