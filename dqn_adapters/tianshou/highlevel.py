"""DQN in Tianshou's high-level interface: an experiment builder beside `DQNExperimentBuilder`.

It needs what Tianshou's high-level interface needs: the extra `tianshou-highlevel`.
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
import torch

from dqn_adapters._extras import require

require("tianshou", extra="tianshou-highlevel")
require("rliable", extra="tianshou-highlevel")
require("joblib", extra="tianshou-highlevel")

from tianshou.data import BaseCollector
from tianshou.env import BaseVectorEnv
from tianshou.highlevel import experiment as host
from tianshou.highlevel.algorithm import OffPolicyAlgorithmFactory
from tianshou.highlevel.config import OffPolicyTrainingConfig
from tianshou.highlevel.env import Environments
from tianshou.highlevel.module.core import ModuleFactory, TDevice
from tianshou.highlevel.params.algorithm_params import DQNParams, ParamTransformerData
from tianshou.highlevel.params.collector import CollectorFactoryDefault
from tianshou.highlevel.params.lr_scheduler import LRSchedulerFactoryFactory
from tianshou.highlevel.params.optim import OptimizerFactoryFactory, OptimizerFactoryFactoryAdam

from dqn_adapters.config import DQNConfig, checked_int
from dqn_adapters.tianshou.algorithm import DQN
from dqn_adapters.tianshou.buffers import ReplayBuffer, VectorReplayBuffer, make_buffer
from dqn_adapters.tianshou.collector import Collector
from dqn_adapters.tianshou.networks import QNet
from dqn_adapters.tianshou.policy import DQNPolicy


def training_config(
    config: DQNConfig,
    total_timesteps: int,
    *,
    num_training_envs: int = 1,
    max_epochs: int = 1,
    **options: Any,
) -> OffPolicyTrainingConfig:
    """Tianshou's training configuration that follows a `DQNConfig`.

    Args:
        config: Hyper-parameters.
        total_timesteps: Environment steps of the training, warm-up included.
        num_training_envs: Environments that are stepped together.
        max_epochs: Epochs into which the steps are divided; Tianshou evaluates after each.
        **options: Any other field of `OffPolicyTrainingConfig`.
    """
    checked_int("total_timesteps", total_timesteps, low=1)
    return OffPolicyTrainingConfig(
        max_epochs=max_epochs,
        epoch_num_steps=math.ceil(total_timesteps / max_epochs),
        num_training_envs=num_training_envs,
        **_training_fields(config),
        **options,
    )


def _training_fields(config: DQNConfig) -> dict[str, Any]:
    return {
        "batch_size": config.batch_size,
        "buffer_size": config.buffer_size,
        "collection_step_num_env_steps": config.train_freq,
        "update_step_num_gradient_steps_per_sample": config.gradient_steps / config.train_freq,
    }


class QNetFactory(ModuleFactory):
    """Makes the `QNet` of a configuration: `hidden_sizes` and `dueling`."""

    def __init__(self, config: DQNConfig) -> None:
        self.config = config

    def create_module(self, envs: Environments, device: TDevice) -> torch.nn.Module:
        """A network over the environments' observations."""
        space: Any = envs.get_action_space()
        config = self.config
        return QNet(
            envs.get_observation_space(),
            int(space.n),
            config.hidden_sizes,
            dueling=config.dueling,
        ).to(device)


class CollectorFactory(CollectorFactoryDefault):
    """Makes our collectors; the builder's `with_collector_factory` takes another."""

    def create_collector(
        self,
        algorithm: Any,
        vector_env: BaseVectorEnv,
        buffer: Any = None,
        exploration_noise: bool = False,
    ) -> Collector[Any]:
        """A collector of the policy; see Tianshou's `CollectorFactory`."""
        return Collector(algorithm, vector_env, buffer, exploration_noise=exploration_noise)


class DQNAlgorithmFactory(OffPolicyAlgorithmFactory):
    """Makes policy, algorithm and collectors of an experiment.

    Args:
        params: A `DQNConfig`, or Tianshou's `DQNParams`.
        training_config: Tianshou's.
        model_factory: Makes the network.
        optim_factory: Makes the optimiser. None: Adam.
        lr_scheduler: Of the optimiser, for a `DQNConfig`; Tianshou's params have their own.
    """

    def __init__(
        self,
        params: DQNConfig | DQNParams,
        training_config: OffPolicyTrainingConfig,
        model_factory: ModuleFactory,
        optim_factory: OptimizerFactoryFactory | None,
        lr_scheduler: LRSchedulerFactoryFactory | None = None,
    ) -> None:
        self.params = params
        self.model_factory = model_factory
        self.lr_scheduler = lr_scheduler
        if optim_factory is None:
            eps = params.adam_eps if isinstance(params, DQNConfig) else 1e-8
            optim_factory = OptimizerFactoryFactoryAdam(eps=eps)
        super().__init__(training_config, optim_factory)
        self.set_collector_factory(CollectorFactory())

    def _create_algorithm(self, envs: Environments, device: TDevice) -> DQN[DQNPolicy]:
        envs.get_type().assert_discrete(self)
        model = self.model_factory.create_module(envs, device)
        options: dict[str, Any] = {}
        epsilons: dict[str, float] = {}
        if isinstance(self.params, DQNConfig):
            optim = self.optim_factory.create_optimizer_factory(self.params.learning_rate)
            if self.lr_scheduler is not None:
                scheduler = self.lr_scheduler.create_lr_scheduler_factory()
                optim.with_lr_scheduler_factory(scheduler)
            options = {"config": self.params, "optim": optim}
        else:
            data = ParamTransformerData(
                envs=envs, device=device, optim_factory_default=self.optim_factory
            )
            options = self.params.create_kwargs(data)
            epsilons = {name: options.pop(name) for name in ("eps_training", "eps_inference")}
        policy = DQNPolicy(
            model=model,
            action_space=envs.get_action_space(),
            observation_space=envs.get_observation_space(),
            seed=_seed(),
            **epsilons,
        )
        return DQN(policy=policy, **options)

    def create_train_test_collectors(
        self, algorithm: Any, envs: Environments, reset_collectors: bool = True
    ) -> tuple[BaseCollector[Any], BaseCollector[Any]]:
        """The collectors, the one for training over a buffer of ours."""
        training, num_envs = self.training_config, len(envs.training_envs)
        stored: dict[str, Any] = {
            "stack_num": training.replay_buffer_stack_num,
            "save_only_last_obs": training.replay_buffer_save_only_last_obs,
            "ignore_obs_next": training.replay_buffer_ignore_obs_next,
        }
        buffer: Any
        if isinstance(self.params, DQNConfig):
            options = stored if self.params.frame_stack is None else {}
            buffer = make_buffer(self.params, num_envs, seed=_seed(), **options)
        elif num_envs > 1:
            buffer = VectorReplayBuffer(training.buffer_size, num_envs, seed=_seed(), **stored)
        else:
            buffer = ReplayBuffer(training.buffer_size, seed=_seed(), **stored)
        make = self.collector_factory.create_collector
        collectors = (
            make(algorithm, envs.training_envs, buffer, exploration_noise=True),
            make(algorithm, envs.test_envs),
        )
        if reset_collectors:
            for collector in collectors:
                collector.reset()
        return collectors


class DQNExperimentBuilder(host.DQNExperimentBuilder):
    """Tianshou's `DQNExperimentBuilder` over the DQN of this package.

        config = DQNConfig(variant="double", n_steps=3, prioritized_replay=True)
        experiment = (
            DQNExperimentBuilder(
                EnvFactoryRegistered(task="CartPole-v1", venv_type=VectorEnvType.DUMMY),
                training_config=training_config(config, 50_000, num_training_envs=10),
            )
            .with_config(config)
            .build()
        )
        experiment.run()

    Everything of Tianshou's builder works, `with_dqn_params` with Tianshou's `DQNParams` included.
    A callback that sets epsilon has the last word over the schedule of a config. Steps that
    `start_timesteps` collects before the training are not counted in it; `learning_starts` is the
    warm-up within.
    """

    _dqn_config: DQNConfig | None = None
    _lr_scheduler: LRSchedulerFactoryFactory | None = None
    _own_model = False

    def with_config(
        self, config: DQNConfig, lr_scheduler: LRSchedulerFactoryFactory | None = None
    ) -> Self:
        """Set all hyper-parameters; the network too, unless a model factory is given.

        Args:
            config: Hyper-parameters. Those of the loop must be those of the builder's training
                config; `training_config` makes one that follows.
            lr_scheduler: Of the optimiser.
        """
        self._dqn_config, self._lr_scheduler = config, lr_scheduler
        return self

    def with_dqn_params(self, params: DQNParams) -> Self:
        """Set the parameters of Tianshou's own DQN."""
        self._dqn_config = self._lr_scheduler = None
        return super().with_dqn_params(params)

    def with_model_factory(self, module_factory: Any) -> Self:
        """See Tianshou's builder."""
        self._own_model = True
        return super().with_model_factory(module_factory)

    def with_model_factory_default(self, *args: Any, **kwargs: Any) -> Self:
        """See Tianshou's builder."""
        self._own_model = True
        return super().with_model_factory_default(*args, **kwargs)

    def _create_algorithm_factory(self) -> DQNAlgorithmFactory:
        config = self._dqn_config
        if config is None:
            params: Any = self._params
            return DQNAlgorithmFactory(
                params, self._training_config, self._model_factory, self._optim_factory
            )
        for name, value in _training_fields(config).items():
            given = getattr(self._training_config, name)
            if given != value:
                raise ValueError(
                    f"{name}={given!r} of the training config contradicts {value!r} of the "
                    "config: write training_config=training_config(config, total_timesteps)"
                )
        return DQNAlgorithmFactory(
            config,
            self._training_config,
            self._model_factory if self._own_model else QNetFactory(config),
            self._optim_factory,
            self._lr_scheduler,
        )


def _seed() -> int:
    # An experiment hands its seed to its factories in no other way than through these streams,
    # which it has seeded.
    return int(np.random.randint(2**31))  # noqa: NPY002
