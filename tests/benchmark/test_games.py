"""Suites on PettingZoo: the environment, the perfect player, runs, reports."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pettingzoo
import pytest
from support_pettingzoo import best_moves as other_best_moves

from dqn_adapters.benchmark import SuiteError, games, load_suite, systems
from dqn_adapters.benchmark.games import Setup
from dqn_adapters.benchmark.report import collect, write_report
from dqn_adapters.benchmark.store import Store
from dqn_adapters.pettingzoo import MatchResult, MultiAgentDQN, RandomPlayer


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


SUITE = """
systems = ["pettingzoo-double", "pettingzoo-vanilla"]
seeds = 1
total_timesteps = 120

[evaluation]
points = 2
episodes = 4

[[environments]]
id = "aec/classic/tictactoe-v3"
kwargs = { opponents = ["random", "perfect"], opening_turns = 3 }

[[environments]]
id = "parallel/dqn_adapters/spread-v0"
kwargs = { size = 3 }
max_episode_steps = 10

[config]
train_freq = 6
learning_starts = 12
batch_size = 8
buffer_size = 100
target_update_interval = 12
hidden_sizes = [8]
"""


def test_a_suite_is_run_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    suite = load_suite(str(path))
    suite.check_runnable()
    store = Store(tmp_path, suite.name)
    for run in suite.runs():
        result = systems.train(run)
        store.save(result)
        assert result.timesteps == (0, 60, 120)
        assert result.timing.updates > 10
        assert sum(episode.length for episode in result.episodes) <= 120
        folder = store.path / run.name
        loaded = store.load(run.name)
        if run.environment.id.startswith("parallel"):
            assert all(lengths == (30,) * 4 for lengths in (e.lengths for e in loaded.evaluations))
            assert min(loaded.scores) >= 0
            assert max(loaded.scores) <= 10
            assert not loaded.notes
            assert not (folder / games.AGENT_FILE).exists()
            continue
        assert {value for e in loaded.evaluations for value in e.returns} <= {-100.0, 0.0, 100.0}
        rows = loaded.notes["matches"]
        assert [(row["opponent"], row["seat"]) for row in rows] == [
            *(("random", "player_1"), ("random", "player_2")),
            *(("perfect", "player_1"), ("perfect", "player_2")),
        ]
        assert all(row["wins"] + row["draws"] + row["losses"] == 20 for row in rows)
        assert all(row["wins"] == 0 for row in rows if row["opponent"] == "perfect")
        agent = MultiAgentDQN.load(
            folder / games.AGENT_FILE, pettingzoo.make("aec", "classic/tictactoe-v3")
        )
        assert agent.policies["all"].config.variant == run.config.variant
    # The same run again has the same numbers.
    again = systems.train(run)
    assert again.scores == loaded.scores
    assert again.notes == loaded.notes

    report = collect(suite, store, asked_as="small.toml")
    assert {row.setting for row in report.levelling} >= {
        "Agents",
        "TD target",
        "Adam",
        "Evaluation",
    }
    assert all(set(row.cells) == {"pettingzoo"} for row in report.levelling)
    (game,) = report.games
    assert len(game.opponents) == 8
    (met,) = game.each_other
    assert (met.system, met.opponent) == ("pettingzoo-double", "pettingzoo-vanilla")
    assert met.result.games == 20
    assert collect(suite, store, asked_as="small.toml").games == report.games
    page = write_report(suite, store, tmp_path / "report", asked_as="small.toml")
    text = page.with_suffix(".md").read_text()
    row = game.opponents[0]
    assert (
        f"| {row.system} | random | player_1 | {row.result.wins} | {row.result.draws} | "
        f"{row.result.losses} |"
    ) in text
    assert "<h2>aec/classic/tictactoe-v3: games</h2>" in page.read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("aec/classic", "classic", "id='classic/tictactoe-v3' .* must be 'aec/' or 'parallel/'"),
        ("tictactoe-v3", "tiktaktoe-v3", "tiktaktoe"),
        ('"random", ', '"rnd", ', r"opponents=\['rnd', 'perfect'\] .* list of \['random', 'perf"),
        ("tictactoe-v3", "connect_four-v3", "the perfect opponent plays tictactoe-v3 only"),
        ("opening_turns = 3", "opening_turns = -1", "opening_turns=-1"),
        ("size = 3", 'size = 3, opponents = ["random"]', "games of two players; the agents are"),
        ("train_freq = 6", "train_freq = 4", "train_freq=4 must be a multiple of .*, 3"),
        ('"pettingzoo-double"', '"native"', "cannot be in one suite"),
        ('systems = ["pettingzoo-double", "pettingzoo-vanilla"]', 'systems = "all"', "aec/classic"),
    ],
)
def test_a_suite_that_cannot_be_run(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "small.toml"
    assert old in SUITE
    path.write_text(SUITE.replace(old, new))
    with pytest.raises(SuiteError, match=message):
        load_suite(str(path)).check_runnable()


def test_the_suite_of_the_package() -> None:
    suite = load_suite("pettingzoo")
    suite.check_runnable()
    assert [system.variant for system in suite.systems] == ["vanilla", "target", "double"]
    setups = [Setup.of(environment.spec) for environment in suite.environments]
    assert [setup.opponents for setup in setups] == [("random", "perfect"), ("random",), ()]


def test_standings_add_up() -> None:
    def note(wins: int, draws: int, losses: int, opponent: str = "random") -> dict[str, Any]:
        row = {"opponent": opponent, "seat": "x", "wins": wins, "draws": draws, "losses": losses}
        return {"matches": [row]}

    found = games.standings({"one": [note(1, 2, 3), note(4, 5, 6)], "two": [note(7, 8, 9)]})
    assert [dataclasses.astuple(each)[:3] for each in found] == [
        ("one", "random", "x"),
        ("two", "random", "x"),
    ]
    assert [each.result for each in found] == [MatchResult(5, 7, 9), MatchResult(7, 8, 9)]


def test_a_meeting_tells_the_better_one() -> None:
    env = pettingzoo.make("aec", "classic/tictactoe-v3")
    perfect, random = games.PerfectPlayer(env, seed=0), RandomPlayer(env, seed=0)
    for players, better in (((perfect, random), 0), ((random, perfect), 2)):
        total = np.zeros(3, int)
        for number in range(100):
            total += games._meet(env, *players, first=number % 2 == 0, seed=number)
        assert total.sum() == 100
        assert total[better] > 70
        assert total[2 - better] < 10  # it can lose after a random opening


def test_a_tournament_is_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    run = load_suite(str(path)).runs()[0]
    agent = games._make_agent(run, Setup.of(run.environment), Setup.of(run.environment).make())
    file = agent.save(tmp_path / "agent")
    files = {"a": {0: file, 1: file}, "b": {1: file, 2: file}, "c": {2: file}}
    met = games.tournament(run.environment, files, 6, 0)
    assert [(each.system, each.opponent, each.result.games) for each in met] == [
        ("a", "b", 6),
        ("b", "c", 6),
    ]
