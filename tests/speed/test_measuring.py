"""The comparison itself: that both sides do the same work. No test looks at a time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from speed import command, configurations, floor, measuring, ours, peers, rows
from speed.command import app
from speed.measuring import Result, compare
from speed.parts import PARTS
from speed.peers import Peer, tianshou
from speed.rows import Row, find
from speed.side import Local, Side, Work
from typer.testing import CliRunner

FIELDS = {"name", "ours", "peer", "peer_name", "ratio", "ratio_low", "ratio_high"}
HOST_ROWS = [
    *("native", "sb3", "tianshou-no-scan", "native-16", "sb3-16"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("native-cnn", "sb3-cnn")),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(measuring, "usable_cores", lambda: 1)
    monkeypatch.setattr(floor, "SECONDS", 0.001)
    monkeypatch.setattr(configurations, "STORED", 128)
    monkeypatch.setattr(configurations, "PRIORITIZED", 2000)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", HOST_ROWS)
def test_a_row_is_of_equal_work_and_says_where_the_time_goes(name: str) -> None:
    result = compare(dataclasses.replace(find(name), turns=2), seconds=0.02)
    assert result.name == name
    assert result.ratio == pytest.approx(result.ours / result.peer, rel=1.0)
    assert result.ratio_low <= result.ratio <= result.ratio_high
    for parts in (result.parts, result.peer_parts):
        assert set(parts) <= set(PARTS)
        assert sum(parts.values()) > 0
    assert result.environment is not None
    assert result.environment > 0
    assert result.products is not None
    assert result.products > 0
    assert result.memory is not None
    assert result.memory > 0
    assert result.overhead is not None
    assert result.overhead < 1


def test_prioritised_replay_of_both_is_full() -> None:
    result = compare(dataclasses.replace(find("prioritized"), turns=2), seconds=0.02)
    assert set(result.parts) | set(result.peer_parts) <= {"store", "sample", "update", "host"}
    assert result.environment is None
    assert result.overhead is None
    for side in (ours.prioritized(), tianshou.prioritized()):
        side.run(32)
        assert side.work() == Work(2032, 32, 2000, 2000)


@pytest.mark.slow
def test_a_sweep_goes_through_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "SWEEP_SEEDS", 2)
    side = ours.sweep("native-target")
    side.run(64)
    assert side.work() == Work(64, 64, 64, 64)
    assert side.breakdown(64) == {}


def counting(**changed: float) -> Callable[[], Side]:
    """A side that does what it is told to have done in every step."""

    def make() -> Side:
        steps = 0
        per_step = {"updates": 1.0, "stored": 1.0, "loss": 0.5, **changed}

        def run(more: int) -> None:
            nonlocal steps
            steps += more

        def work() -> Work:
            updates, stored = (int(per_step[name] * steps) for name in ("updates", "stored"))
            return Work(steps, updates, stored, 10**9, per_step["loss"])

        return Local(run, work)

    return make


def row_of(ours: Callable[[], Side], theirs: Callable[[], Side]) -> Row:
    return Row("fake", Peer("Python", "sys", "python"), ours, theirs, turns=2, environment=None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"updates": 0.5}, "updates per step"),
        ({"stored": 0.9}, "stored"),
        ({"loss": 1e6}, "losses"),
    ],
)
def test_a_side_that_does_less_is_found_out(changed: dict[str, float], message: str) -> None:
    assert compare(row_of(counting(), counting()), seconds=0.001).ratio > 0
    for sides in ((counting(**changed), counting()), (counting(), counting(**changed))):
        with pytest.raises(AssertionError, match=message):
            compare(row_of(*sides), seconds=0.001)


def test_sides_are_closed_when_a_row_fails() -> None:
    closed = []

    class Closing(Local):
        def close(self) -> None:
            closed.append(self)

    def make() -> Side:
        side = counting(updates=0.5)()
        assert isinstance(side, Local)
        return Closing(side.train, side.work)

    with pytest.raises(AssertionError):
        compare(row_of(make, counting()), seconds=0.001)
    assert len(closed) == 1


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    arguments = ["--only", "native", "--seconds", "0.5", "--json", str(path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "native" in result.output
    (row,) = json.loads(path.read_text())
    assert set(row) >= FIELDS
    assert row["name"] == "native"
    assert row["peer_name"] == "Stable-Baselines3"
    assert [file.name for file in tmp_path.iterdir()] == ["speed.json"]


def test_wrong_input_is_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "measure", lambda *_: pytest.fail("it was measured"))
    result = CliRunner().invoke(app, ["--only", "nothing"])
    assert result.exit_code == 2
    assert "there is no row 'nothing'; the rows are native-rlox, " in result.output
    missing = str(tmp_path / "missing" / "speed.json")
    result = CliRunner().invoke(app, ["--json", missing])
    assert result.exit_code == 2
    assert "there is no directory" in result.output


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(find("native-sbx"), peer=Peer("SBX", "no_such_module", "sbx-rl"))
    monkeypatch.setattr(rows, "table", lambda: (absent,))
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 2
    assert (
        "native-sbx is left out: SBX is not installed; it comes with: pip install sbx-rl"
        in result.output
    )


def test_a_row_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="measuring 'native' failed: exit code 1"):
        measuring.measure(find("native"), 1.0)


def test_what_was_measured_is_kept_when_a_row_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "speed.json"
    good = compare(row_of(counting(), counting()), seconds=0.001)
    seen = []

    def measure(row: Row, seconds: float) -> Result:
        seen.append(row.name)
        if row.name == "broken":
            raise RuntimeError("updates per step: [1.0, 0.5]")
        return dataclasses.replace(good, name=row.name)

    table = tuple(dataclasses.replace(find("native"), name=name) for name in ("a", "broken", "b"))
    monkeypatch.setattr(rows, "table", lambda: table)
    monkeypatch.setattr(measuring, "measure", measure)
    result = CliRunner().invoke(app, ["--json", str(path)])
    assert result.exit_code == command.FAILED_ROWS
    assert "updates per step: [1.0, 0.5]" in result.output
    assert [row["name"] for row in json.loads(path.read_text())] == ["a", "b"]
    assert seen == ["a", "broken", "b"]


def test_peers_are_discovered_and_names_are_unique() -> None:
    table = rows.table()
    assert {row.peer.name for row in table} == {module.PEER.name for module in peers.modules()}
    names = [row.name for row in table]
    assert len(set(names)) == len(names)
    assert [find(name).name for name in names] == names
