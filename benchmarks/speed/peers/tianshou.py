"""Tianshou's DQN and its prioritised replay, and what is compared with them."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from speed.peers import Peer
from speed.side import Local, Work, adam_steps

if TYPE_CHECKING:
    from dqn_adapters.config import DQNConfig
    from speed.rows import Row

PEER = Peer("Tianshou", "tianshou", "'dqn-adapters[tianshou]'")


def rows() -> tuple[Row, ...]:
    """The rows against this peer."""
    from speed import ours
    from speed.configurations import PRIORITIZED, SMALL
    from speed.rows import Row

    adapter = partial(train, SMALL, ours=True)
    return (
        Row("tianshou", PEER, adapter, partial(train, SMALL, ours=False), stored()),
        Row(
            "tianshou-no-scan",
            PEER,
            adapter,
            partial(train, SMALL, ours=False, scan=False),
            "Tianshou's scan for NaN is off",
        ),
        Row(
            "prioritized",
            PEER,
            ours.prioritized,
            prioritized,
            f"one transition stored, {SMALL.batch_size} drawn of {PRIORITIZED:,}, "
            "their priorities set",
            unit="rounds",
            environment=None,
        ),
    )


def stored() -> str:
    """The note of rows that begin with a filled buffer."""
    from speed.configurations import STORED

    return f"{STORED:,} transitions are stored when it begins"


def train(config: DQNConfig, *, ours: bool, scan: bool = True) -> Local:
    """Tianshou's trainer: with our algorithm, collector and buffer, or with its own."""
    from tianshou import data
    from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OffPolicyTrainerParams
    from tianshou.utils.net.common import Net

    import dqn_adapters.tianshou as adapter
    from dqn_adapters.benchmark.levelling import tianshou_settings
    from speed.configurations import HORIZON, STORED
    from speed.environments import one
    from speed.floor import floor

    settings = tianshou_settings(config, HORIZON)
    envs = DummyVectorEnv([one])
    (action_space,) = envs.get_env_attr("action_space")
    (observation_space,) = envs.get_env_attr("observation_space")
    net = Net(
        state_shape=observation_space.shape,
        action_shape=int(action_space.n),
        hidden_sizes=list(config.hidden_sizes),
    )
    policy_class: Any = adapter.DQNPolicy if ours else DiscreteQLearningPolicy
    algorithm_class: Any = adapter.DQN if ours else DQN
    parts: Any = adapter if ours else data
    policy = policy_class(
        model=net, action_space=action_space, eps_training=config.exploration_final_eps
    )
    optim = AdamOptimizerFactory(**settings.optimizer)
    algorithm = algorithm_class(policy=policy, optim=optim, **settings.algorithm)
    buffer = parts.VectorReplayBuffer(config.buffer_size, 1)
    if not scan:
        buffer.hasnull = lambda: False
    collector = parts.Collector(policy, envs, buffer, exploration_noise=True)
    collector.reset()
    collector.collect(n_step=STORED, random=True)
    steps, loss = STORED, math.nan

    def run(more: int) -> None:
        nonlocal steps, loss
        values: dict[str, Any] = {**settings.trainer, "epoch_num_steps": more}
        trainer = algorithm.create_trainer(
            OffPolicyTrainerParams(training_collector=collector, show_progress=False, **values)
        )
        trainer.reset()
        statistics = trainer.execute_epoch().training_stat
        steps, loss = steps + more, statistics.get_loss_stats_dict()["loss"]

    return Local(
        run,
        lambda: Work(
            steps, adam_steps(algorithm.optim._optim), len(buffer), config.buffer_size, loss
        ),
        (
            ("environment", envs.step),
            ("act", collector._act if ours else policy.forward),
            ("store", buffer.add),
            ("sample", buffer.sample),
            # Tianshou computes the targets in the one and the rest of the update in the other.
            ("update", algorithm._preprocess_batch),
            ("update", algorithm._update_with_batch),
        ),
        floor(net, observation_space, config) if ours else None,
    )


def prioritized() -> Local:
    """A full prioritised buffer: store a transition, sample a batch, set its priorities."""
    import numpy as np
    from tianshou.data import Batch, PrioritizedReplayBuffer, ReplayBuffer

    from speed import configurations
    from speed.configurations import SMALL

    capacity, size, rounds = configurations.PRIORITIZED, SMALL.batch_size, 0
    errors = np.random.default_rng(0).random((64, size)).astype(np.float32)
    zeros, no = np.zeros(capacity), np.zeros(capacity, np.bool_)
    s = np.zeros((capacity, 4), np.float32)
    fields: Any = (s, zeros.astype(np.int64), zeros, no, no, no, s)
    buffer = PrioritizedReplayBuffer(capacity, alpha=SMALL.priority_alpha, beta=SMALL.priority_beta)
    buffer.update(ReplayBuffer.from_data(*fields))
    row = Batch(obs=s[0], act=0, rew=0.0, terminated=False, truncated=False, obs_next=s[0], info={})

    def run(more: int) -> None:
        nonlocal rounds
        for _ in range(more):
            buffer.add(row)
            _, indices = buffer.sample(size)
            buffer.update_weight(indices, errors[rounds % len(errors)])
            rounds += 1

    return Local(
        run,
        lambda: Work(capacity + rounds, rounds, len(buffer), capacity),
        (("store", buffer.add), ("sample", buffer.sample), ("update", buffer.update_weight)),
    )
