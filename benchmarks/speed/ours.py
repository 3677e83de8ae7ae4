"""Our sides that no library hosts."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from dqn_adapters.benchmark.executor import execute
from dqn_adapters.benchmark.provenance import usable_cores
from dqn_adapters.benchmark.spec import EnvironmentSpec, EvaluationSpec, RunSpec
from dqn_adapters.benchmark.store import Store
from dqn_adapters.config import DQNConfig
from speed import configurations
from speed.configurations import ENVIRONMENT, SMALL, SWEEP
from speed.environments import one
from speed.floor import floor
from speed.parts import part
from speed.side import Local, Work


def native(config: DQNConfig, make_env: Callable[[], Any] = one) -> Local:
    """The host-free agent."""
    from dqn_adapters import DQNAgent

    agent = DQNAgent(make_env(), config, seed=0, device="cpu")
    replay, learner = agent.replay, agent.learner
    loss = math.nan

    def train(steps: int) -> None:
        nonlocal loss
        for step in agent.train(steps):
            metrics = step.metrics
        loss = math.nan if metrics is None else float(metrics.loss)

    return Local(
        train,
        lambda: Work(agent.num_timesteps, agent.num_updates, len(replay), config.buffer_size, loss),
        (
            ("environment", agent._stepper.step),
            ("act", agent._act),
            ("store", replay.add),
            part("sample", replay, "draw"),
            part("sample", replay, "gather"),
            part("update", learner, "update"),
            part("phase", learner, "train"),
        ),
        floor(agent.q_net, agent.observation_space, config),
    )


def prioritized() -> Local:
    """A full prioritised buffer: store a transition, sample a batch, set its priorities."""
    from dqn_adapters.replay import ReplayBuffer
    from dqn_adapters.transition import EnvStep

    capacity, size, count, rounds = configurations.PRIORITIZED, SMALL.batch_size, 1000, 0
    rng = np.random.default_rng(0)
    errors = rng.random((64, size)).astype(np.float32)
    replay = ReplayBuffer(
        capacity,
        spaces.Box(-1, 1, (4,), np.float32),
        gamma=1.0,
        generator=rng,
        num_envs=count,
        prioritized=True,
    )

    def step(n: int) -> EnvStep:
        s, no = np.zeros((n, 4), np.float32), np.zeros(n, np.bool_)
        return EnvStep(s, np.zeros(n, np.int64), np.zeros(n), s, no, no, ~no)

    for _ in range(capacity // count):
        replay.add(step(count))
    row, streams = step(1), np.zeros(1, np.int64)

    def train(more: int) -> None:
        nonlocal rounds
        for _ in range(more):
            replay.add(row, streams)
            indices = replay.draw(size)
            replay.gather(indices, reuse=True)
            replay.update_priorities(indices, errors[rounds % len(errors)])
            rounds += 1

    return Local(
        train,
        lambda: Work(capacity + rounds, rounds, len(replay), capacity),
        (
            ("store", replay.add),
            ("sample", replay.draw),
            ("sample", replay.gather),
            ("update", replay.update_priorities),
        ),
    )


def sweep(system: str) -> Local:
    """Seeds through the harness: worker processes on all cores, one thread each. A step is one of
    any of them; the time includes the start of the processes and two evaluations a seed."""
    steps = updates = 0
    seeds = configurations.SWEEP_SEEDS

    def train(more: int) -> None:
        nonlocal steps, updates
        length = more // seeds
        runs = [
            RunSpec(
                environment=EnvironmentSpec(ENVIRONMENT),
                system=system,
                config=SWEEP,
                total_timesteps=length,
                evaluation=EvaluationSpec((0, length), 1),
                root_seed=0,
                seed_index=index,
            )
            for index in range(seeds)
        ]
        with tempfile.TemporaryDirectory() as directory:
            store = Store(Path(directory), "speed")
            for _ in execute(runs, store, workers=usable_cores()):
                pass
            updates += sum(store.load(run.name).timing.updates for run in runs)
        steps += length * seeds

    return Local(train, lambda: Work(steps, updates, steps, steps))
