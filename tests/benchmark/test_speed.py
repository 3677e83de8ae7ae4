"""The comparison itself: that both sides do the same work. No test looks at a time."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from typer.testing import CliRunner

from dqn_adapters.benchmark import speed
from dqn_adapters.benchmark.cli import app
from dqn_adapters.benchmark.speed import Peer, Row, Side, Work, breakdown, compare, find

FIELDS = {
    *("name", "ours", "peer", "peer_name", "ratio", "ratio_low", "ratio_high", "mark", "met"),
}
HOST_ROWS = [
    *("native", "sb3", "tianshou-no-scan", "native-16", "sb3-16"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("native-cnn", "sb3-cnn")),
]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(speed, "STORED", 128)
    monkeypatch.setattr(speed, "PRIORITIZED", 2000)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", HOST_ROWS)
def test_a_row_is_of_equal_work_and_says_where_the_time_goes(name: str) -> None:
    row = dataclasses.replace(find(name), turns=2)
    result = compare(row, seconds=0.02)
    assert result.name == name
    assert result.ratio == pytest.approx(result.ours / result.peer, rel=1.0)
    assert result.ratio_low <= result.ratio <= result.ratio_high
    assert result.met == (result.ratio >= row.mark)
    assert set(result.parts) == set(result.peer_parts) == set(speed.PARTS)
    assert min(result.parts.values()) > 0
    assert (result.products is not None) == name.startswith("native")


def test_prioritised_replay_of_both_is_full() -> None:
    result = compare(dataclasses.replace(find("prioritized"), turns=2), seconds=0.02)
    assert set(result.parts) == set(result.peer_parts) == {"store", "sample", "update", "host"}
    for side in (speed.prioritized(ours=True), speed.prioritized(ours=False)):
        side.run(32)
        assert side.work() == Work(2032, 32, 2000, 2000)


@pytest.mark.slow
def test_a_sweep_goes_through_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SWEEP_SEEDS", 2)
    side = speed.sweep("native-target")
    side.run(64)
    assert side.work() == Work(64, 64, 64, 64)


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

        return Side(run, work)

    return make


def row_of(ours: Callable[[], Side], theirs: Callable[[], Side]) -> Row:
    return Row("fake", Peer("Python", "sys", "python"), 0.0, ours, theirs, turns=2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"updates": 0.5}, "updates per step"),
        ({"stored": 0.9}, "stored"),
        ({"loss": 1e6}, "losses"),
    ],
)
def test_a_side_that_does_less_is_found_out(changed: dict[str, float], message: str) -> None:
    assert compare(row_of(counting(), counting()), seconds=0.001).met
    for sides in ((counting(**changed), counting()), (counting(), counting(**changed))):
        with pytest.raises(AssertionError, match=message):
            compare(row_of(*sides), seconds=0.001)


def test_parts_within_parts_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0

    class Loop:
        def outer(self) -> None:
            nonlocal now
            now += 5_000
            self.inner()
            self.inner()

        def inner(self) -> None:
            nonlocal now
            now += 1_000

        def run(self, steps: int) -> None:
            nonlocal now
            for _ in range(steps):
                self.outer()
                now += 10_000

    monkeypatch.setattr(speed.time, "thread_time_ns", lambda: now)
    loop = Loop()
    side = Side(loop.run, lambda: Work(0, 0, 0, 0), [("a", loop, "outer"), ("b", loop, "inner")])
    assert breakdown(side, 10) == {"a": 5.0, "b": 2.0, "host": 10.0}
    assert vars(loop) == {}


def test_the_products_are_those_of_the_network() -> None:
    """A wider network takes longer; one without layers has none to take."""
    space = spaces.Box(-1, 1, (4,), np.float32)
    assert speed.products(nn.Linear(4, 2), space, 8) > 0
    assert math.isfinite(speed.products(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), space, 8))


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    arguments = ["speed", "--only", "native", "--seconds", "0.5", "--json", str(path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "native" in result.output
    (row,) = json.loads(path.read_text())
    assert set(row) >= FIELDS
    assert row["name"] == "native"
    assert row["peer_name"] == "Stable-Baselines3"
    assert row["met"] is (row["ratio"] >= row["mark"])
    assert [file.name for file in tmp_path.iterdir()] == ["speed.json"]


def test_wrong_input_is_named_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "measure", lambda *_: pytest.fail("it was measured"))
    result = CliRunner().invoke(app, ["speed", "--only", "nothing"])
    assert result.exit_code == 2
    assert "there is no row 'nothing'" in result.output
    missing = str(tmp_path / "missing" / "speed.json")
    result = CliRunner().invoke(app, ["speed", "--json", missing])
    assert result.exit_code == 2
    assert "there is no directory" in result.output


def test_a_peer_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = dataclasses.replace(find("native-sbx"), peer=Peer("SBX", "no_such_module", "sbx-rl"))
    monkeypatch.setattr(speed, "ROWS", (absent,))
    result = CliRunner().invoke(app, ["speed"])
    assert result.exit_code == 2
    output = " ".join(result.output.split())
    assert (
        "native-sbx is left out: SBX is not installed; it comes with: pip install sbx-rl" in output
    )


def test_a_row_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="measuring 'native' failed: exit code 1"):
        speed.measure(find("native"), 1.0)


def test_what_was_measured_is_kept_when_a_row_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "speed.json"
    good = compare(row_of(counting(), counting()), seconds=0.001)
    seen = []

    def measure(row: Row, seconds: float) -> speed.Result:
        seen.append(row.name)
        if row.name == "broken":
            raise RuntimeError("updates per step: [1.0, 0.5]")
        return dataclasses.replace(good, name=row.name)

    rows = tuple(dataclasses.replace(find("native"), name=name) for name in ("a", "broken", "b"))
    monkeypatch.setattr(speed, "ROWS", rows)
    monkeypatch.setattr(speed, "measure", measure)
    result = CliRunner().invoke(app, ["speed", "--json", str(path)])
    assert result.exit_code == 1
    assert "updates per step: [1.0, 0.5]" in result.output
    assert [row["name"] for row in json.loads(path.read_text())] == ["a", "b"]
    assert seen == ["a", "broken", "b"]


def test_names_are_unique() -> None:
    assert [find(row.name) for row in speed.ROWS] == list(speed.ROWS)
