"""A script as Tianshou's users write it, with an import changed; and its vector environments."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import pytest
import torch
from support import Chain
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import CollectStats
from tianshou.env import DummyVectorEnv, RayVectorEnv, ShmemVectorEnv, SubprocVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils import MovAvg, TensorboardLogger
from tianshou.utils.net.common import Net
from torch.utils.tensorboard import SummaryWriter

from dqn_adapters import DQNConfig
from dqn_adapters.tianshou import (
    DQN,
    Collector,
    DQNPolicy,
    PrioritizedVectorReplayBuffer,
    QNet,
    VectorReplayBuffer,
    trainer_params,
)


def test_cart_pole_reaches_its_threshold(tmp_path: Path) -> None:
    training_envs = DummyVectorEnv([lambda: gym.make("CartPole-v1") for _ in range(10)])
    test_envs = DummyVectorEnv([lambda: gym.make("CartPole-v1") for _ in range(10)])
    training_envs.seed(0)
    test_envs.seed(1)
    torch.manual_seed(0)
    env = gym.make("CartPole-v1")
    net = Net(
        state_shape=env.observation_space.shape,
        action_shape=env.action_space.n,
        hidden_sizes=(128, 128),
    )
    policy = DQNPolicy(
        model=net,
        action_space=env.action_space,
        observation_space=env.observation_space,
        eps_training=0.1,
        seed=0,
    )
    algorithm: DQN[DQNPolicy] = DQN(
        policy=policy,
        optim=AdamOptimizerFactory(lr=1e-3),
        gamma=0.99,
        n_step_return_horizon=3,
        target_update_freq=150,
    )
    buffer = PrioritizedVectorReplayBuffer(20_000, 10, alpha=0.6, beta=0.4, seed=0)
    training_collector = Collector[CollectStats](
        algorithm, training_envs, buffer, exploration_noise=True
    )
    test_collector = Collector[CollectStats](algorithm, test_envs)
    training_collector.reset()
    training_collector.collect(n_step=640, random=True)
    writer = SummaryWriter(str(tmp_path))
    best = tmp_path / "best.pth"

    def decay(epoch: int, env_step: int) -> None:
        policy.set_eps_training(max(0.05, 0.6 - env_step / 5000))

    result = algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=training_collector,
            test_collector=test_collector,
            max_epochs=15,
            epoch_num_steps=2000,
            collection_step_num_env_steps=10,
            test_step_num_episodes=10,
            batch_size=64,
            update_step_num_gradient_steps_per_sample=0.3,
            training_fn=decay,
            stop_fn=lambda mean_reward: mean_reward >= 195,
            save_best_fn=lambda algorithm: torch.save(algorithm.state_dict(), best),
            logger=TensorboardLogger(writer, update_interval=10),
            test_in_training=False,
            verbose=False,
            show_progress=False,
        )
    )
    writer.close()
    assert result.best_reward >= 195
    assert result.train_step == algorithm.learner.counts["steps"]
    assert algorithm.learner.num_updates == 0.3 * algorithm.learner.counts["steps"]
    logged = TensorboardLogger.restore_logged_data(str(tmp_path))
    assert {"loss", "q_value", "td_error", "epsilon"} <= set(logged["update"])
    assert max(logged["test"]["returns_stat"]["mean"]) == pytest.approx(result.best_reward)

    algorithm.load_state_dict(torch.load(best, weights_only=True))
    test_envs.seed(2)
    stats = test_collector.collect(n_episode=20, reset_before_collect=True)
    assert stats.returns_stat.mean > 120  # other episodes than those that decided


def trained(envs: Any, env: Any) -> torch.Tensor:
    torch.manual_seed(0)
    config = DQNConfig(
        variant="double", learning_starts=8, batch_size=8, n_steps=2, target_update_interval=10
    )
    shape = env.observation_space.shape
    net = Net(state_shape=shape, action_shape=2, hidden_sizes=(8,))
    policy = DQNPolicy(model=net, action_space=env.action_space, seed=0)
    algorithm = DQN(policy=policy, config=config)
    envs.seed(0)
    collector = Collector(
        policy, envs, VectorReplayBuffer(200, len(envs), seed=0), exploration_noise=True
    )
    algorithm.run_training(
        trainer_params(config, 60, training_collector=collector, verbose=False, show_progress=False)
    )
    envs.close()
    assert algorithm.learner.num_updates == 13
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("kind", [SubprocVectorEnv, ShmemVectorEnv])
def test_environments_in_processes_train_alike(kind: Any) -> None:
    weights = [trained(make([Chain] * 2), Chain()) for make in (kind, DummyVectorEnv)]
    assert torch.equal(*weights)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_environments_of_ray_train_alike() -> None:
    makers = [lambda: gym.make("CartPole-v1")] * 2  # found by Ray's workers, too
    with warnings.catch_warnings():
        # Ray's own: a deprecation of its settings, and sockets of its local processes.
        warnings.simplefilter("ignore")
        import ray

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            weights = trained(RayVectorEnv(makers), makers[0]())
        finally:
            ray.shutdown()
    assert torch.equal(weights, trained(DummyVectorEnv(makers), makers[0]()))


def test_smoothed_losses_are_those_of_tianshou_also_where_nothing_is_logged() -> None:
    config = DQNConfig(
        variant="vanilla", batch_size=4, learning_starts=4, train_freq=1, hidden_sizes=(8,)
    )
    envs = DummyVectorEnv([Chain])
    env = Chain()
    model = QNet(env.observation_space, env.action_space.n, (8,))
    algorithm = DQN(policy=DQNPolicy(model=model, action_space=env.action_space), config=config)
    buffer = VectorReplayBuffer(500, 1, seed=0)
    collector = Collector(algorithm, envs, buffer, exploration_noise=True)
    collector.reset()
    update, seen = algorithm.update, []

    def noted(**arguments: Any) -> Any:
        seen.append(update(**arguments))
        return seen[-1]

    with mock.patch.object(algorithm, "update", noted):
        algorithm.run_training(
            trainer_params(config, 150, training_collector=collector, show_progress=False)
        )
    averages: dict[str, MovAvg] = {}
    assert len(seen) > 110  # longer than what is averaged over
    for stats in seen:
        losses = stats.get_loss_stats_dict()
        assert {"loss", "q_value", "td_error", "grad_norm"} <= losses.keys()
        expected = {name: averages.setdefault(name, MovAvg()).add(x) for name, x in losses.items()}
        assert stats.smoothed_loss == pytest.approx(expected)
