"""The buffers hold only steps that were made, however a training was broken off.

A trace function raises KeyboardInterrupt between any two bytecodes of the package; environments
raise, and give a NaN. After each of these the training goes on, and every stored row must be a step
that a recording environment made, and every link one from a step to the next of its episode.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import dqn_adapters
from dqn_adapters import DQNAgent, DQNConfig
from dqn_adapters.replay import ReplayBuffer

PACKAGE = str(Path(dqn_adapters.__file__).parent)
SPACE = spaces.Box(-1.0, 1e9, (3,), np.float32)
Row = tuple[tuple[float, ...], int, float, tuple[float, ...]]


class Broken(Exception):
    """An environment is broken."""


class Recorder:
    """What the environments of a test have done; and when one of them breaks, and how."""

    def __init__(self) -> None:
        self.made: set[Row] = set()
        self.episodes, self.rewards = itertools.count(), itertools.count()
        self.steps_left, self.fault = -1, ""

    def record(self, s: Any, action: int, s_next: Any) -> float:
        """Record a step; its reward, which no other step has. Or break."""
        self.steps_left -= 1
        fault = self.fault if self.steps_left == 0 else ""
        if fault == "raises":
            raise Broken
        reward = float(next(self.rewards))
        self.made.add((tuple(s.tolist()), int(action), reward, tuple(s_next.tolist())))
        return np.nan if fault == "nan" else reward


class Taped(gym.Env[np.ndarray, int]):
    """Observes its number, its episode and its step in it; every second episode is truncated."""

    observation_space, action_space = SPACE, spaces.Discrete(2)

    def __init__(self, recorder: Recorder, number: int = 0) -> None:
        self.recorder, self.number = recorder, number

    def see(self) -> np.ndarray:
        return np.array([self.number, self.episode, self.t], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.t = next(self.recorder.episodes), 0
        return self.see(), {}

    def step(self, action: int) -> Any:
        s, self.t = self.see(), self.t + 1
        reward = self.recorder.record(s, action, self.see())
        over = self.t == 4 + self.number
        cut = over and self.episode % 2 == 1
        return self.see(), reward, over and not cut, cut, {}


class Interrupt:
    """Within the block KeyboardInterrupt is raised at bytecode `at` of the package; where that is
    None, none is, and the bytecodes are counted."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.count = at, 0

    def __enter__(self) -> Interrupt:
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._opcode

    def _opcode(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
        return self._opcode


class Training:
    """An adapter in training: `learn` for some steps, and the `rows` that are stored."""

    learn: Callable[[int], object]
    rows: Callable[[], list[Row]]
    links: Callable[[], list[tuple[Row, Row]]]
    """From each row to the next one of its episode."""

    n_step_ends: Callable[[], list[tuple[Any, Any]]]
    """s and s' of every n-step return."""


def of_cores(replays: Callable[[], list[ReplayBuffer]], training: Training) -> Training:
    def slots(replay: ReplayBuffer) -> np.ndarray:
        return np.arange(replay.oldest, replay._added) % replay.capacity

    def gathered(replay: ReplayBuffer, n_steps: int) -> Any:
        usual, replay.n_steps = replay.n_steps, n_steps
        batch = replay.gather(slots(replay))
        replay.n_steps = usual
        return batch

    def rows_of(replay: ReplayBuffer) -> list[Row]:
        batch = gathered(replay, 1)
        return as_rows(batch.observations, batch.actions, batch.rewards, batch.next_observations)

    def links() -> list[tuple[Row, Row]]:
        pairs = []
        for replay in replays():
            places = {slot: i for i, slot in enumerate(slots(replay).tolist())}
            rows = rows_of(replay)
            for slot, i in places.items():
                following = int(replay._arrays["successor"][slot])
                if following in places:
                    pairs.append((rows[i], rows[places[following]]))
        return pairs

    def ends() -> list[tuple[Any, Any]]:
        batches = [gathered(replay, replay.n_steps) for replay in replays()]
        return [pair for b in batches for pair in zip(b[0].tolist(), b[4].tolist(), strict=True)]

    training.rows = lambda: [row for replay in replays() for row in rows_of(replay)]
    training.links, training.n_step_ends = links, ends
    return training


def as_rows(*fields: Any) -> list[Row]:
    s, a, r, s_next = (torch.as_tensor(field).tolist() for field in fields)
    return [
        (tuple(one), int(action), float(reward), tuple(two))
        for one, action, reward, two in zip(s, a, r, s_next, strict=True)
    ]


def config(n_steps: int) -> DQNConfig:
    return DQNConfig(
        n_steps=n_steps,
        buffer_size=60,
        learning_starts=10,
        batch_size=8,
        train_freq=4,
        hidden_sizes=(8,),
        prioritized_replay=n_steps > 1,
    )


def native(recorder: Recorder, num_envs: int, n_steps: int) -> Training:
    makers = [lambda i=i: Taped(recorder, i) for i in range(num_envs)]
    env: Any = makers[0]()
    if num_envs > 1:
        mode = AutoresetMode.NEXT_STEP if n_steps > 1 else AutoresetMode.SAME_STEP
        env = SyncVectorEnv(makers, autoreset_mode=mode)
    agent = DQNAgent(env, config(n_steps), seed=0, device="cpu")
    training = Training()
    training.learn = agent.learn
    return of_cores(lambda: [agent.replay], training)


def sb3(recorder: Recorder, num_envs: int, n_steps: int) -> Training:
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    from dqn_adapters.sb3 import DQN

    env: Any = DummyVecEnv([lambda i=i: Taped(recorder, i) for i in range(num_envs)])
    if n_steps > 1:
        env = VecNormalize(env)
    model = DQN(
        *("MlpPolicy", env),
        n_steps=n_steps,
        buffer_size=60,
        learning_starts=10,
        batch_size=8,
        policy_kwargs={"net_arch": [8]},
        seed=0,
        device="cpu",
    )
    training = Training()
    training.learn = lambda steps: model.learn(steps, reset_num_timesteps=False)
    return of_cores(lambda: [model.replay_buffer.replay], training)


def tianshou(recorder: Recorder, num_envs: int, n_steps: int) -> Training:
    from tianshou.algorithm.algorithm_base import policy_within_training_step
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.env import DummyVectorEnv

    from dqn_adapters.tianshou import DQN, Collector, DQNPolicy, QNet, VectorReplayBuffer

    envs = DummyVectorEnv([lambda i=i: Taped(recorder, i) for i in range(num_envs)])
    policy = DQNPolicy(
        model=QNet(SPACE, 2, (8,)), action_space=Taped.action_space, eps_training=0.5, seed=0
    )
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(), n_steps=n_steps, variant="vanilla")
    buffer = VectorReplayBuffer(60, num_envs, seed=0, ignore_obs_next=n_steps > 1)
    collector = Collector(algorithm, envs, buffer, exploration_noise=True)
    collector.reset()

    def learn(steps: int) -> None:
        for _ in range(steps // 4):
            with policy_within_training_step(policy):
                collector.collect(n_step=4)
                algorithm.count(steps=4)
                algorithm.update(buffer, 8)

    def rows() -> list[Row]:
        batch = buffer[buffer.sample_indices(0)]
        return as_rows(batch.obs, batch.act, batch.rew, batch.obs_next)

    def links() -> list[tuple[Row, Row]]:
        indices = buffer.sample_indices(0)
        places, stored = {row: i for i, row in enumerate(indices.tolist())}, rows()
        following = buffer.next(indices).tolist()
        return [
            (stored[i], stored[places[j]])
            for i, j in enumerate(following)
            if j != indices[i] and j in places
        ]

    def ends() -> list[tuple[Any, Any]]:
        if not len(buffer):
            return []
        indices = buffer.sample_indices(0)
        batch = algorithm._preprocess_batch(buffer[indices], buffer, indices)
        return list(zip(batch.obs.tolist(), batch.obs_next.tolist(), strict=True))

    training = Training()
    training.learn, training.rows, training.links, training.n_step_ends = learn, rows, links, ends
    return training


def pettingzoo(recorder: Recorder, num_agents: int, n_steps: int) -> Training:
    from pettingzoo import ParallelEnv

    from dqn_adapters.pettingzoo import MultiAgentDQN

    class Together(ParallelEnv[str, np.ndarray, int]):
        """Taped environments as agents of one; all leave when the first one's episode ends."""

        metadata = {"name": "together"}  # noqa: RUF012
        render_mode = None
        possible_agents = [f"agent{i}" for i in range(num_agents)]  # noqa: RUF012

        def observation_space(self, agent: str) -> Any:
            return SPACE

        def action_space(self, agent: str) -> Any:
            return Taped.action_space

        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            self.agents = list(self.possible_agents)
            self.players = {a: Taped(recorder, i) for i, a in enumerate(self.agents)}
            seen = {agent: player.reset()[0] for agent, player in self.players.items()}
            return seen, {agent: {} for agent in seen}

        def step(self, actions: dict[str, int]) -> Any:
            given = {agent: self.players[agent].step(action) for agent, action in actions.items()}
            s, r, terminated, truncated, info = (
                {agent: values[k] for agent, values in given.items()} for k in range(5)
            )
            if any(terminated.values()) or any(truncated.values()):
                truncated = {agent: not over for agent, over in terminated.items()}
                self.agents = []
            return s, r, terminated, truncated, info

    agent = MultiAgentDQN(
        Together(),
        config(n_steps),
        policy_groups={"all": Together.possible_agents},
        seed=0,
        device="cpu",
    )
    training = Training()
    training.learn = agent.learn
    return of_cores(lambda: [p.replay for p in agent.policies.values()], training)


ADAPTERS = {"native": native, "sb3": sb3, "tianshou": tianshou, "pettingzoo": pettingzoo}


def check(training: Training, recorder: Recorder) -> None:
    rows = training.rows()
    false = [row for row in rows if row not in recorder.made]
    assert not false, false
    assert len(set(rows)) == len(rows)
    assert all(row[3] == following[0] for row, following in training.links())
    assert all(s[:2] == s_next[:2] for s, s_next in training.n_step_ends())


def interrupt(build: Any, num_envs: int, n_steps: int, times: int, seed: int) -> None:
    recorder, generator = Recorder(), np.random.default_rng(seed)
    training = build(recorder, num_envs, n_steps)
    training.learn(40)
    with Interrupt() as interrupt:
        training.learn(12)
    check(training, recorder)
    broken = 0
    for _ in range(times):
        fault = generator.choice(["interrupt", "interrupt", "interrupt", "raises", "nan"])
        at = None
        if fault == "interrupt":
            at = int(generator.integers(1, interrupt.count))
        else:
            recorder.fault, recorder.steps_left = fault, int(generator.integers(1, 8))
        try:
            with Interrupt(at) if at else Interrupt():
                training.learn(12)
        except (KeyboardInterrupt, Broken, ValueError):
            broken += 1
        recorder.fault = ""
        check(training, recorder)
        training.learn(int(generator.integers(4, 9)))
        check(training, recorder)
    assert broken > 0.8 * times
    assert len(training.rows()) > 40
    assert len(training.links()) > 15


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(("num_envs", "n_steps"), [(1, 3), (4, 1)])
def test_only_steps_that_were_made(adapter: str, num_envs: int, n_steps: int) -> None:
    interrupt(ADAPTERS[adapter], num_envs, n_steps, times=10, seed=num_envs)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_only_steps_that_were_made_200_times(adapter: str, num_envs: int, n_steps: int) -> None:
    interrupt(ADAPTERS[adapter], num_envs, n_steps, times=200, seed=10 * num_envs + n_steps)
