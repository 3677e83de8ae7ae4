"""What must be learned: tic-tac-toe and connect four, by self-play, in minutes on one core."""

from __future__ import annotations

from typing import Any

import pettingzoo
import pytest
from support_pettingzoo import PerfectPlayer

from dqn_adapters import DQNConfig
from dqn_adapters.pettingzoo import (
    MultiAgentDQN,
    MultiAgentStep,
    RandomPlayer,
    SelfPlay,
    match,
)

pytestmark = pytest.mark.slow


def train(name: str, config: DQNConfig, self_play: SelfPlay, turns: int) -> tuple[Any, Any]:
    """One network for both players, with a step size that goes linearly to 0; and another
    environment to play in."""
    env = pettingzoo.make("aec", name)
    groups = {"both": env.possible_agents}
    agent = MultiAgentDQN(
        env, config, policy_groups=groups, self_play=self_play, seed=0, device="cpu"
    )
    (policy,) = agent.policies.values()
    (group,) = policy.learner.optimizer.param_groups

    def anneal(step: MultiAgentStep) -> None:
        group["lr"] = config.learning_rate * max(1 - step.num_timesteps / turns, 0.01)

    agent.learn(turns, anneal)
    return agent, pettingzoo.make("aec", name)


def test_tictactoe_is_played_perfectly() -> None:
    config = DQNConfig(
        variant="double",
        learning_rate=1e-3,
        buffer_size=100_000,
        learning_starts=1_000,
        batch_size=128,
        train_freq=4,
        gradient_steps=4,
        target_update_interval=500,
        exploration_final_eps=0.1,
        loss="mse",
        hidden_sizes=(128, 128),
    )
    agent, env = train("classic/tictactoe-v3", config, SelfPlay(opening_turns=5), 240_000)
    for seat in ("player_1", "player_2"):
        result = match(env, agent.choose, PerfectPlayer(seed=1), 200, seat=seat, seed=0)
        assert result.losses == 0, seat
    random = RandomPlayer(env, seed=1)
    assert match(env, agent.choose, random, 200, seat="player_1", seed=0).win_rate >= 0.9


def test_connect_four_beats_a_random_player() -> None:
    """One update per four turns: where a network learns as often as there are turns, it knows the
    stored positions by heart and others badly, and wins 90 % of the games."""
    config = DQNConfig(
        variant="double",
        learning_rate=7e-4,
        buffer_size=300_000,
        learning_starts=1_000,
        batch_size=64,
        gamma=0.9,
        train_freq=4,
        gradient_steps=1,
        target_update_interval=1_000,
        exploration_fraction=0.1,
        exploration_final_eps=0.05,
        loss="mse",
        hidden_sizes=(256, 128),
    )
    agent, env = train("classic/connect_four-v3", config, SelfPlay(opening_turns=12), 500_000)
    result = match(env, agent.choose, RandomPlayer(env, seed=1), 1_000, seed=0)
    assert result.win_rate >= 0.95, result
