from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import dqn_adapters.atari
from dqn_adapters import DQNAgent, DQNConfig
from dqn_adapters.atari import make_atari


def test_observations_and_actions() -> None:
    env = gym.make("dqn_adapters.atari:dqn_adapters/Atari-v0", game="Pong")
    assert env.observation_space == spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert env.action_space == spaces.Discrete(6)
    first, _ = env.reset(seed=0)
    assert (first == first[:1]).all()  # the stack begins with the first frame, repeated
    second, reward, *_ = env.step(0)
    np.testing.assert_array_equal(second[:3], first[1:])
    assert reward in (-1.0, 0.0, 1.0)
    env.close()


def test_an_unknown_game_is_named() -> None:
    with pytest.raises(gym.error.Error, match="Pnog"):
        make_atari("Pnog")


def test_the_agent_trains_and_keeps_every_frame_once() -> None:
    """Pong's rows, against the observations that the environment really gave."""
    seen: list[np.ndarray] = []

    class Record(gym.ObservationWrapper):
        def observation(self, observation: np.ndarray) -> np.ndarray:
            seen.append(observation.copy())
            return observation

    config = DQNConfig(
        frame_stack=4,
        hidden_sizes=(32,),
        buffer_size=60,
        learning_starts=95,
        batch_size=4,
        train_freq=4,
    )
    agent = DQNAgent(Record(make_atari("Pong")), config, seed=0)
    agent.learn(100)
    assert agent.num_updates == 2
    batch = agent.replay.gather(np.arange(40, 100) % 60)  # the last 60 of 100, none ended
    np.testing.assert_array_equal(batch.observations, np.stack(seen[40:100]))
    np.testing.assert_array_equal(batch.next_observations, np.stack(seen[41:101]))
    assert batch.observations.dtype == torch.uint8
    assert agent.replay.nbytes < 60 * 84 * 84 * 2.5  # kept whole it is 8 frames a transition


def test_the_module_registers_once() -> None:
    assert dqn_adapters.atari.ATARI_ID in gym.registry
