"""What comes from an environment is checked before anything moves, in every adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
from gymnasium import spaces
from pettingzoo import ParallelEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.env import DummyVectorEnv, ShmemVectorEnv

from dqn_adapters import DQNAgent, DQNConfig
from dqn_adapters.finite import NonFiniteError
from dqn_adapters.pettingzoo import MultiAgentDQN
from dqn_adapters.sb3 import DQN as SB3DQN
from dqn_adapters.tianshou import DQN, Collector, DQNPolicy, QNet, VectorReplayBuffer
from dqn_adapters.tianshou.buffers import _Buffer

CONFIG = DQNConfig(learning_starts=50, buffer_size=200, hidden_sizes=(8,), batch_size=8)
BOX = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Faulty(gym.Env[np.ndarray, int]):
    """Counts its steps; at the reset (step 0) or step 9, once, something is wrong."""

    observation_space, action_space = BOX, spaces.Discrete(2)

    def __init__(self, fault: str = "", at: int = 9, shape: tuple[int, ...] | None = None) -> None:
        self.fault, self.at, self.shape = fault, at, shape
        self.made = 0

    def look(self) -> np.ndarray:
        seen = np.array([self.made, self.made], np.float32)
        if self.made == self.at and self.fault in ("nan", "inf", "shape"):
            seen = {"nan": seen * np.nan, "inf": seen + np.inf, "shape": np.zeros(3, np.float32)}[
                self.fault
            ]
            self.fault = ""
        return seen

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.look(), {}

    def step(self, action: int) -> Any:
        self.made += 1
        reward: Any = float(self.made)
        info = {}
        if self.made == self.at:
            reward = {"reward": np.nan, "large reward": 1e39}.get(self.fault, reward)
            if self.fault == "mask":
                info = {"action_mask": np.ones(3, np.int8)}
        if self.shape is not None:
            reward = np.full(self.shape, reward)
        return self.look(), reward, False, self.made % 20 == 0, info


class Alone(ParallelEnv[str, np.ndarray, int]):
    """A Gymnasium environment as one of a single agent."""

    metadata = {"name": "alone"}  # noqa: RUF012
    render_mode = None
    possible_agents = ["a"]  # noqa: RUF012

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env

    def observation_space(self, agent: str) -> Any:
        return self.env.observation_space

    def action_space(self, agent: str) -> Any:
        return self.env.action_space

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents = ["a"]
        seen, info = self.env.reset(seed=seed)
        return {"a": seen}, {"a": info}

    def step(self, actions: dict[str, int]) -> Any:
        results = self.env.step(actions["a"])
        self.agents = [] if results[2] or results[3] else ["a"]
        return tuple({"a": value} for value in results)


class Agent(NamedTuple):
    learn: Callable[[int], object]
    save: Callable[[Path], object]
    rewards: Callable[[], list[float]]
    steps: Callable[[], int]
    """As the agent counts them."""


def native(env: gym.Env[Any, Any], **options: Any) -> Agent:
    agent = DQNAgent(env, CONFIG, seed=0, device="cpu", **options)
    rewards = lambda: agent.replay.gather(np.arange(len(agent.replay))).rewards.tolist()  # noqa: E731
    return Agent(agent.learn, agent.save, rewards, lambda: agent.num_timesteps)


def sb3(env: gym.Env[Any, Any], **options: Any) -> Agent:
    vec_env = DummyVecEnv([lambda: env])
    model = SB3DQN("MlpPolicy", vec_env, train_freq=1, seed=0, device="cpu", **options)
    return Agent(
        lambda steps: model.learn(steps, reset_num_timesteps=False),
        model.save,
        lambda: model.replay_buffer.rewards.ravel().tolist(),
        lambda: model.num_timesteps,
    )


def tianshou(env: gym.Env[Any, Any], **options: Any) -> Agent:
    policy = DQNPolicy(model=QNet(BOX, 2, (8,)), action_space=Faulty.action_space, seed=0)
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(), variant="vanilla")
    buffer = VectorReplayBuffer(200, 1, seed=0, **options)
    collector = Collector(algorithm, DummyVectorEnv([lambda: env]), buffer)

    def learn(steps: int) -> None:
        if collector._pre_collect_obs_RO is None:
            collector.reset()
        for _ in range(steps):
            collector.collect(n_step=1)

    return Agent(
        learn,
        lambda path: algorithm.state_dict(),
        lambda: buffer[:].rew.tolist() if len(buffer) else [],
        lambda: collector.collect_step,
    )


def pettingzoo(env: gym.Env[Any, Any], **options: Any) -> Agent:
    agent = MultiAgentDQN(Alone(env), CONFIG, seed=0, device="cpu", **options)
    replay = agent.policies["a"].replay
    rewards = lambda: replay.gather(np.arange(len(replay))).rewards.tolist()  # noqa: E731
    return Agent(agent.learn, agent.save, rewards, lambda: agent.num_timesteps)


ADAPTERS = {"native": native, "sb3": sb3, "tianshou": tianshou, "pettingzoo": pettingzoo}
every_adapter = pytest.mark.parametrize("build", ADAPTERS.values(), ids=ADAPTERS)


@every_adapter
@pytest.mark.parametrize("fault", ["reward", "large reward", "nan", "inf", "shape"])
def test_a_step_that_is_wrong_is_refused_once(build: Any, fault: str, tmp_path: Path) -> None:
    agent = build(Faulty(fault))
    # (SB3's vector environment keeps rewards in float32 and warns when it overflows.)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=r"finite|shape") as caught:
        agent.learn(30)
    if not (build is sb3 and fault == "shape"):  # there the host's vector environment refuses it
        assert isinstance(caught.value, NonFiniteError) == (fault != "shape")
        assert any(word in str(caught.value) for word in ("environment", "agent 'a'"))
        if build is not tianshou:  # whose trainer knows the step
            assert "step 9" in str(caught.value)
    assert agent.rewards() == [*range(1, 9)]
    assert agent.steps() == 8
    agent.save(tmp_path / "agent.zip")
    agent.learn(30)
    assert agent.rewards() == [*range(1, 9), *range(10, 40)]


@every_adapter
@pytest.mark.parametrize("fault", ["nan", "shape"])
def test_a_first_observation_that_is_wrong_is_refused_once(build: Any, fault: str) -> None:
    agent = build(Faulty(fault, at=0))
    if fault == "shape" and build is tianshou:
        pytest.skip("the collector has no space to compare a first observation with")
    with pytest.raises(ValueError, match=r"finite|shape"):
        agent.learn(30)
    assert agent.rewards() == []
    agent.learn(30)
    assert agent.rewards() == [*range(1, 31)]


@every_adapter
def test_observations_need_not_be_finite_where_the_user_says_so(build: Any) -> None:
    agent = build(Faulty("inf"), check_observations=False)
    agent.learn(30)
    assert agent.rewards() == [*range(1, 31)]
    with pytest.raises(NonFiniteError, match="rew"):
        build(Faulty("reward"), check_observations=False).learn(30)


@pytest.mark.parametrize("build", [native, tianshou, pettingzoo])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_rewards_in_arrays_are_numbers(build: Any, shape: tuple[int, ...]) -> None:
    """(In numpy 2.4 the vector environment of SB3 refuses arrays of shape (1,).)"""
    agent = build(Faulty(shape=shape))
    agent.learn(30)
    assert agent.rewards() == [*range(1, 31)]


class Column(DummyVecEnv):
    """Gives rewards of shape (N, 1), as home-made vector environments do."""

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = super().step_wait()
        return obs, rewards[:, None], dones, infos


@pytest.mark.parametrize("normalize", [False, True])
def test_rewards_in_columns_are_numbers_in_sb3(normalize: bool) -> None:
    env: Any = Column([Faulty, Faulty])
    env = VecNormalize(env) if normalize else env
    model = SB3DQN("MlpPolicy", env, train_freq=1, seed=0, device="cpu").learn(20)
    assert model.replay_buffer.rewards.tolist() == [[i, i] for i in range(1, 11)]


@pytest.mark.parametrize("build", [native, sb3, pettingzoo])
def test_a_mask_of_a_wrong_shape_is_refused_once(build: Any) -> None:
    agent = build(Faulty("mask"))
    with pytest.raises(ValueError, match=r"must have shape \(2,\)"):
        agent.learn(30)
    agent.learn(30)
    assert agent.steps() >= 38
    assert agent.rewards()[:8] == [*range(1, 9)]


class LateMask(Faulty):
    """From step 5 on, the mask allows the second action only."""

    def step(self, action: int) -> Any:
        *rest, info = super().step(action)
        if self.made > 5:
            assert action == 1
        if self.made >= 5:
            info = {"action_mask": np.array([0, 1], np.int8)}
        return *rest, info


@pytest.mark.parametrize("build", [native, sb3, pettingzoo])
def test_a_mask_that_first_appears_late_is_followed(build: Any) -> None:
    class NeverEnds(LateMask):
        def step(self, action: int) -> Any:
            seen, reward, _, _, info = super().step(action)
            return seen, reward, False, False, info

    agent = build(NeverEnds())
    agent.learn(30)
    assert agent.rewards() == [*range(1, 31)]


def test_sb3_refuses_a_late_mask_that_its_own_buffer_cannot_store() -> None:
    buffer: Any = stable_baselines3.common.buffers.ReplayBuffer
    env = DummyVecEnv([lambda: LateMask()])
    model = SB3DQN("MlpPolicy", env, replay_buffer_class=buffer, seed=0, device="cpu")
    with pytest.raises(ValueError, match=r"learn\(use_masking=False\)"):
        model.learn(30)


def test_sb3_keeps_the_digits_of_float64_until_they_are_normalised() -> None:
    """As in SB3: seconds since 1970, which float32 tells apart by 128 at best."""

    class Clock(Faulty):
        observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)

        def look(self) -> np.ndarray:
            return np.array([1.7e9 + self.made])

    for base in (stable_baselines3.DQN, SB3DQN):
        env = VecNormalize(DummyVecEnv([Clock]))
        model = base("MlpPolicy", env, buffer_size=100, seed=0, device="cpu").learn(60)
        buffer: Any = model.replay_buffer
        batch = buffer._get_samples(np.arange(60), env=env)
        assert len(np.unique(batch.observations.numpy())) == 60
        assert len(np.unique(batch.next_observations.numpy())) == 60


class InOneMemory(gym.Env[Any, int]):
    """Gives the same nested arrays each time, which count its steps."""

    observation_space = spaces.Dict(
        pos=spaces.Box(-1e3, 1e3, (2,), np.float32), flag=spaces.MultiBinary(2)
    )
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.seen = {"pos": np.zeros(2, np.float32), "flag": np.ones(2, np.int8)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.seen["pos"][:] = 0
        return self.seen, {}

    def step(self, action: int) -> Any:
        self.seen["pos"] += 1
        return self.seen, 1.0, False, bool(self.seen["pos"][0] == 6), {}


@pytest.mark.parametrize("kind", [DummyVectorEnv, ShmemVectorEnv])
@pytest.mark.parametrize("lean", [False, True])
def test_tianshous_collector_gets_copies(kind: Any, lean: bool) -> None:
    envs = kind([InOneMemory for _ in range(2)])
    space = InOneMemory.observation_space
    policy = DQNPolicy(model=QNet(space, 2, (8,)), action_space=InOneMemory.action_space, seed=0)
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(), variant="vanilla")
    buffer: _Buffer = VectorReplayBuffer(100, 2, seed=0, ignore_obs_next=lean)
    collector = Collector(algorithm, envs, buffer)
    collector.reset()
    for _ in range(2):
        collector.collect(n_step=20)
    envs.close()
    batch = buffer[buffer.sample_indices(0)]
    assert len(batch.obs.pos) == 40
    np.testing.assert_array_equal(batch.obs_next.pos, batch.obs.pos + 1)
    assert set(batch.obs.pos[:, 0].tolist()) == set(range(6))


def test_tianshou_warns_of_a_mask_that_it_does_not_read() -> None:
    class Named(Faulty):
        def step(self, action: int) -> Any:
            *rest, _ = super().step(action)
            return *rest, {"mask": np.array([True, False])}

    with pytest.warns(UserWarning, match=r"info\['action_mask'\]"):
        tianshou(Named()).learn(3)
