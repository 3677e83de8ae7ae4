"""Tianshou's high-level interface over this package's DQN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tianshou.highlevel.config import OffPolicyTrainingConfig
from tianshou.highlevel.env import EnvFactoryRegistered, VectorEnvType
from tianshou.highlevel.experiment import Experiment, ExperimentConfig
from tianshou.highlevel.params.algorithm_params import DQNParams
from tianshou.highlevel.params.lr_scheduler import LRSchedulerFactoryFactoryLinear
from tianshou.highlevel.persistence import PolicyPersistence
from tianshou.highlevel.trainer import (
    EpochStopCallbackRewardThreshold,
    EpochTestCallbackDQNSetEps,
    EpochTrainCallbackDQNEpsLinearDecay,
    EpochTrainCallbackDQNSetEps,
)

from dqn_adapters import DQNConfig
from dqn_adapters.config import VARIANTS, Variant
from dqn_adapters.tianshou import (
    DQN,
    Collector,
    PrioritizedVectorReplayBuffer,
    VectorReplayBuffer,
)
from dqn_adapters.tianshou.highlevel import DQNExperimentBuilder, training_config

CONFIG = DQNConfig(
    variant="double",
    batch_size=8,
    buffer_size=400,
    learning_starts=20,
    train_freq=4,
    gradient_steps=2,
    target_update_interval=20,
    hidden_sizes=(16,),
    exploration_fraction=0.5,
)


def builder(
    config: DQNConfig | None = CONFIG, path: Path | None = None, seed: int = 0, **options: Any
) -> DQNExperimentBuilder:
    made = DQNExperimentBuilder(
        EnvFactoryRegistered(task="CartPole-v1", venv_type=VectorEnvType.DUMMY),
        ExperimentConfig(
            seed=seed,
            watch=False,
            persistence_enabled=path is not None,
            persistence_base_dir=str(path),
            log_file_enabled=False,
            policy_persistence_mode=PolicyPersistence.Mode.POLICY_STATE_DICT,
        ),
        training_config(
            config or CONFIG,
            80,
            num_training_envs=2,
            max_epochs=2,
            num_test_envs=1,
            test_step_num_episodes=2,
            **options,
        ),
    )
    return made if config is None else made.with_config(config)


def weights(algorithm: DQN[Any]) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in algorithm.policy.model.parameters()])


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_with_every_option(variant: Variant) -> None:
    options = {"n_steps": 3, "dueling": True, "prioritized_replay": True}
    config = DQNConfig(**{**CONFIG.to_dict(), **options, "variant": variant})
    runs = []
    for seed in (0, 0, 1):
        world = builder(config, seed=seed).build().run().world
        assert isinstance(world.algorithm, DQN)
        assert world.algorithm.config is config
        assert world.algorithm.learner.counts["steps"] == 80
        assert world.algorithm.learner.num_updates == (80 - 20) / 2
        assert type(world.training_collector) is type(world.test_collector) is Collector
        assert type(world.training_collector.buffer) is PrioritizedVectorReplayBuffer
        runs.append(weights(world.algorithm))
    assert torch.equal(runs[0], runs[1])  # the experiment's seed decides all
    assert not torch.equal(runs[0], runs[2])


def test_parameters_of_tianshou_work() -> None:
    params = DQNParams(
        lr=1e-2, target_update_freq=5, n_step_return_horizon=2, eps_training=0.3, gamma=0.9
    )
    made = builder(None).with_dqn_params(params).with_model_factory_default((8,))
    world = made.build().run().world
    config = world.algorithm.config
    assert (config.variant, config.target_update_unit, config.n_steps) == ("double", "updates", 2)
    assert world.algorithm.policy.eps_training == 0.3
    assert world.algorithm.learner.optimizer.param_groups[0]["lr"] == 1e-2
    assert type(world.training_collector.buffer) is VectorReplayBuffer


def test_callbacks_world_logger_and_persistence(tmp_path: Path) -> None:
    """The files of a run, its TensorBoard scalars, and the policy restored from them."""
    made = (
        builder(path=tmp_path)
        .with_name("run")
        .with_epoch_train_callback(EpochTrainCallbackDQNEpsLinearDecay(0.8, 0.2, 40))
        .with_epoch_test_callback(EpochTestCallbackDQNSetEps(0.25))
        .with_epoch_stop_callback(EpochStopCallbackRewardThreshold(1e6))
    )
    world = made.build().run().world
    assert world.algorithm.policy.eps_inference == 0.25
    directory = Path(world.persist_directory)
    assert (directory / "policy_state_dict.pt").is_file()
    logged = world.logger.restore_logged_data(str(directory))
    epsilon = logged["train"]["train"]["eps"]
    assert epsilon[0] == pytest.approx(0.8)
    assert epsilon[-1] == pytest.approx(0.2)
    assert len(logged["test"]["returns_stat"]["mean"]) == 3  # once before the training

    restored = Experiment.from_directory(str(directory))
    restored.config.persistence_enabled = False
    again = restored.create_experiment_world().algorithm
    saved = torch.load(directory / "policy_state_dict.pt", weights_only=True)
    name = "policy.model.network.head.0.weight"
    assert torch.equal(again.state_dict()[name], saved[name])


def test_the_default_persistence_writes_the_whole_algorithm(tmp_path: Path) -> None:
    """Tianshou's default mode pickles it. (To read it back is up to the user: Tianshou calls
    `torch.load` as if it held weights alone.)"""
    made = builder(path=tmp_path).with_name("run")
    made.experiment_config.policy_persistence_mode = PolicyPersistence.Mode.POLICY
    world = made.build().run().world
    loaded = torch.load(Path(world.persist_directory) / "policy.pt", weights_only=False)
    assert isinstance(loaded, DQN)
    assert loaded.config == CONFIG
    assert weights(loaded).shape == weights(world.algorithm).shape


def test_a_constant_epsilon_of_a_callback_has_the_last_word() -> None:
    seen = []

    class Note(EpochTrainCallbackDQNSetEps):
        def callback(self, epoch: int, env_step: int, context: Any) -> None:
            super().callback(epoch, env_step, context)
            seen.append(context.algorithm.policy)

    world = builder().with_epoch_train_callback(Note(0.0)).build().create_experiment_world()
    collect = world.training_collector.collect

    def greedy(**kwargs: Any) -> Any:
        assert world.algorithm.policy.eps_training == 0.0
        return collect(**kwargs)

    world.training_collector.collect = greedy
    world.trainer.run()
    assert len(seen) == 20


def test_a_schedule_of_the_learning_rate() -> None:
    made = builder().with_config(
        CONFIG, LRSchedulerFactoryFactoryLinear(OffPolicyTrainingConfig(max_epochs=10))
    )
    algorithm = made.build().create_experiment_world().algorithm
    assert len(algorithm.lr_schedulers) == 1
    assert algorithm.learner.optimizer.param_groups[0]["lr"] == pytest.approx(CONFIG.learning_rate)


def test_a_training_config_that_contradicts_is_an_error() -> None:
    made = builder().with_config(DQNConfig(**{**CONFIG.to_dict(), "batch_size": 9}))
    with pytest.raises(ValueError, match=r"batch_size=8.*contradicts 9.*training_config\(config"):
        made.build()


def test_experiments_over_several_seeds() -> None:
    collection = builder().build_seeded_collection(2)
    scores = [experiment.run().world for experiment in collection.experiments]
    assert not torch.equal(*(weights(world.algorithm) for world in scores))
    assert np.isfinite([world.trainer._best_reward for world in scores]).all()
