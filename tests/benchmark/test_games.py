"""Suites on PettingZoo: the environment, the perfect player, runs, reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pettingzoo
import pytest
from support_pettingzoo import best_moves as other_best_moves

from dqn_adapters.benchmark import games


def positions() -> Any:
    """Every position of tic-tac-toe in which a move is to be made."""
    found, todo = set(), [(0, 0)]
    while todo:
        own, other = todo.pop()
        if (own, other) in found or games._won(other):
            continue
        free = games._free(own | other)
        if free:
            found.add((own, other))
            todo += [(other, own | 1 << square) for square in free]
    return found


def squares(bits: int) -> frozenset[int]:
    return frozenset(square for square in range(9) if bits >> square & 1)


def test_two_minimaxes_agree_in_every_position() -> None:
    """That of the package, and that of the tests."""
    found = positions()
    assert len(found) == 4520
    for own, other in found:
        assert games.best_moves(own, other) == sorted(
            other_best_moves(squares(own), squares(other))
        )


def test_the_perfect_player_draws_from_the_best_moves() -> None:
    env = pettingzoo.make("aec", "classic/tictactoe-v3")
    env.reset()
    for square in (0, 3, 1, 4):
        env.step(square)
    observation = env.last()[0]
    player = games.PerfectPlayer(env, seed=0)
    assert {player("player_1", observation) for _ in range(30)} == {2}  # it wins
    env.reset()
    first = {player("player_1", env.last()[0]) for _ in range(200)}
    assert first == set(range(9))  # all of them draw


def spread(**kwargs: Any) -> games.Spread:
    return games.Spread(**kwargs)


# `pettingzoo.test` itself imports environments in the way that PettingZoo deprecates.
@pytest.mark.filterwarnings("ignore:The old environment creation API:DeprecationWarning")
def test_spread_is_an_environment_of_pettingzoo() -> None:
    from pettingzoo.test import parallel_api_test, parallel_seed_test

    env = pettingzoo.make("parallel", "dqn_adapters/spread-v0", num_agents=2)
    assert isinstance(env, games.Spread)
    parallel_api_test(env, num_cycles=60)
    parallel_seed_test(spread)


def test_spread_by_hand() -> None:
    env = spread(num_agents=2, size=3, max_cycles=3)
    env.reset(seed=0)
    env._landmarks = np.array([(0, 0), (2, 1)])
    env._positions = np.array([(0, 1), (2, 2)])
    stay, up, down, left, right = range(5)
    seen, rewards, terminated, truncated, _ = env.step({"agent_0": stay, "agent_1": left})
    assert rewards == {"agent_0": 0.5, "agent_1": 0.5}  # agent_1 covers the second
    # Its own place, then the landmarks, then the other agent, as it sees them.
    assert np.allclose(seen["agent_0"] * 3, [0, 1, 0, -1, 2, 0, 2, 0])
    assert np.allclose(seen["agent_1"] * 3, [2, 1, -2, -1, 0, 0, -2, 0])
    _, rewards, *_ = env.step({"agent_0": left, "agent_1": down})  # there is a wall below
    assert rewards == {"agent_0": 1.0, "agent_1": 1.0}
    _, rewards, terminated, truncated, _ = env.step({"agent_0": up, "agent_1": right})
    assert rewards == {"agent_0": 0.5, "agent_1": 0.5}
    assert terminated == {"agent_0": False, "agent_1": False}
    assert truncated == {"agent_0": True, "agent_1": True}
    assert env.agents == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_agents": 0}, "num_agents=0"),
        ({"size": 1}, "size=1"),
        ({"max_cycles": 0}, "max_cycles=0"),
        ({"num_agents": 5, "size": 2}, "has room for 4"),
    ],
)
def test_spread_refuses(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spread(**kwargs)
