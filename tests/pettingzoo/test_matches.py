"""Playing without learning: limits, outcomes, seats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pettingzoo
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv
from support_pettingzoo import GAME, PerfectPlayer, Script

from dqn_adapters import DQNConfig
from dqn_adapters.pettingzoo import MatchResult, MultiAgentDQN, RandomPlayer, match, play

CONFIG = DQNConfig(learning_starts=10_000, buffer_size=10, hidden_sizes=(4,))


class Endless(ParallelEnv[str, Any, int]):
    """Two agents, a reward of 1 and 2 for every step, and no end."""

    metadata: dict[str, Any] = {"name": "endless"}  # noqa: RUF012
    possible_agents = ["x", "y"]  # noqa: RUF012

    def observation_space(self, agent: str) -> spaces.Box:
        return spaces.Box(0, 1, (1,), np.float32)

    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete(2)

    def _every(self, value: Any) -> dict[str, Any]:
        return dict.fromkeys(self.agents, value)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents = list(self.possible_agents)
        return self._every(np.zeros(1, np.float32)), self._every({})

    def step(self, actions: dict[str, int]) -> Any:
        seen = self._every(np.zeros(1, np.float32))
        return seen, {"x": 1, "y": 2}, self._every(False), self._every(False), self._every({})


def test_a_limit_ends_an_episode_without_an_end() -> None:
    env = Endless()
    players = RandomPlayer(env, seed=0)
    assert play(env, players, 2, max_turns=6) == [{"x": 3, "y": 6}] * 2
    # A parallel environment takes whole steps.
    assert play(env, players, 1, max_turns=5) == [{"x": 3, "y": 6}]
    agent = MultiAgentDQN(Endless(), CONFIG, seed=0)
    assert agent.evaluate(env, 3, max_turns=20) == {"x": 10, "y": 20}
    assert match(env, players, players, 4, max_turns=2) == MatchResult(2, 0, 2)
    with pytest.raises(ValueError, match="max_turns=0 is not accepted"):
        play(env, players, 1, max_turns=0)


def test_a_limit_counts_the_turns_of_all_and_keeps_what_was_earned() -> None:
    env = Script([GAME])
    agent = MultiAgentDQN(Script([GAME]), CONFIG, seed=0)
    (whole,) = play(env, agent.choose, 1)
    assert whole == {"a": 92, "b": 17, "c": 1217}
    assert play(Script([GAME]), agent.choose, 1, max_turns=10) == [whole]
    # After 4 turns it is b's, which finds its 10 from before its first turn, and the 2 of it.
    (cut,) = play(Script([GAME]), agent.choose, 1, max_turns=4)
    assert cut == {"a": 61, "b": 12, "c": 0}
    (none,) = play(Script([GAME]), RandomPlayer(env, seed=0), 1, max_turns=1)
    assert none == {"a": 0, "b": 10}


def first_legal(agent: Any, observation: Any, action_mask: Any) -> int:
    return int(np.flatnonzero(action_mask)[0])


def test_outcomes_and_seats_of_a_match() -> None:
    env = pettingzoo.make("aec", "classic/tictactoe-v3")
    # Both take the first free square: the first player has 0, 2, 4 and then 6, and wins.
    assert match(env, first_legal, first_legal, 5, seat="player_1") == (5, 0, 0)
    assert match(env, first_legal, first_legal, 5, seat="player_2") == (0, 0, 5)
    assert match(env, first_legal, first_legal, 5) == (3, 0, 2)  # it begins in the first seat
    result = match(env, PerfectPlayer(0), PerfectPlayer(1), 20, seed=0)
    assert result == MatchResult(0, 20, 0)
    assert (result.games, result.win_rate) == (20, 0.0)
    with pytest.raises(ValueError, match=r"seat='player_3' .* \['player_1', 'player_2'\]"):
        match(env, first_legal, first_legal, 1, seat="player_3")
    with pytest.raises(ValueError, match="no player for agent 'player_2'"):
        play(env, {"player_1": first_legal}, 1)


def test_random_players_are_uniform_over_what_is_legal() -> None:
    env = Script([GAME])
    player = RandomPlayer(env, seed=0)
    drawn = [player("c", None, [1, 0, 1, 1, 0]) for _ in range(3000)]
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [10, 12, 13]
    assert abs(counts - 1000).max() < 120  # more than four standard deviations
    again = RandomPlayer(env, seed=0)
    assert drawn[:50] == [again("c", None, [1, 0, 1, 1, 0]) for _ in range(50)]
    assert {player("c", None) for _ in range(200)} == {10, 11, 12, 13, 14}
