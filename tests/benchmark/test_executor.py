import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmark import fake_systems

from dqn_adapters.benchmark import Suite
from dqn_adapters.benchmark.executor import Event, Failed, Finished, Started, execute
from dqn_adapters.benchmark.store import Store

Make = Callable[..., Suite]


def run_all(suite: Suite, store: Store, workers: int = 1) -> list[Event]:
    pending = [run for run in suite.runs() if not store.has(run)]
    return list(execute(pending, store, workers=workers))


def learning_numbers(store: Store) -> dict[str, bytes]:
    return {
        f"{name}/{file}": (store.path / name / file).read_bytes()
        for name in store.names()
        for file in ("spec.json", "evaluations.jsonl", "episodes.jsonl")
    }


def test_a_failed_run_takes_no_other_with_it_and_the_same_again_finishes_the_rest(
    make_suite: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker: it raises, it is killed (kill -9), it exits; the runs between go on."""
    monkeypatch.setenv(fake_systems.FOLDER, str(tmp_path))
    suite = make_suite(["learns", "is_killed_once", "fails", "exits"])
    store = Store(tmp_path, suite.name)
    events = run_all(suite, store)

    finished = {(e.run.system, e.run.seed_index) for e in events if isinstance(e, Finished)}
    failed = {
        (e.run.system.partition(":")[2], e.run.seed_index): e.failure
        for e in events
        if isinstance(e, Failed)
    }
    assert len(finished) == 5
    assert set(failed) == {("fails", 1), ("is_killed_once", 0), ("exits", 1)}
    assert failed["is_killed_once", 0].reason == "the worker process was killed by SIGKILL"
    assert failed["exits", 1].reason == "the worker process ended by itself with exit code 7"
    assert failed["fails", 1].reason == "ValueError: the learning rate | is made of cheese"
    assert "fake_systems.py" in failed["fails", 1].details
    assert len(store.names()) == 5
    assert all(store.failure(failure.run) == failure for failure in failed.values())
    assert not list(store.path.glob(".partial-*"))

    again = run_all(suite.replace_systems([suite.systems[1].name]), store)
    started = [event.run for event in again if isinstance(event, Started)]
    assert [run.seed_index for run in started] == [0]
    assert [type(event) for event in again if event.run in started][-1] is Finished
    assert store.failure(started[0]) is None


def test_a_full_disk_fails_what_cannot_be_written_and_nothing_is_half_there(
    make_suite: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fake_systems.FOLDER, str(tmp_path))
    (tmp_path / "full").touch()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    suite = make_suite(["fills_the_disk"], seeds=3)
    store = Store(tmp_path, suite.name)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)  # of this process, which keeps the reasons of failures
        events = run_all(suite, store)
    assert [event.run.seed_index for event in events if isinstance(event, Finished)] == [0]
    failures = [event.failure for event in events if isinstance(event, Failed)]
    assert [failure.run.seed_index for failure in failures] == [1, 2]
    assert all("File too large" in failure.reason for failure in failures)
    assert "store.py" in failures[0].details
    assert store.names() == [suite.runs()[0].name]
    assert not list(store.path.rglob(".partial-*"))
    assert not list((store.path / "failures").iterdir())

    (tmp_path / "full").unlink()
    again = run_all(suite, store)
    assert [event.run.seed_index for event in again if isinstance(event, Finished)] == [1, 2]
    assert len(store.names()) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak anew for each run")
def test_peak_memory_is_that_of_the_run_and_not_of_the_one_before(
    make_suite: Make, tmp_path: Path
) -> None:
    suite = make_suite(["takes_memory"], seeds=2)
    store = Store(tmp_path, suite.name)
    run_all(suite, store)
    first, second = (store.load(run.name).timing.peak_memory for run in suite.runs())
    assert first is not None
    assert second is not None
    size = fake_systems.MEBIBYTES << 20
    assert size <= first < 1.5 * size
    assert 0 <= second < 0.5 * size


def test_the_same_suite_twice_gives_the_same_learning_numbers(
    make_suite: Make, tmp_path: Path
) -> None:
    suite = make_suite(["learns", "native-double"], seeds=2)
    stores = [Store(tmp_path / name, suite.name) for name in ("first", "second")]
    run_all(suite, stores[0], workers=1)
    run_all(suite, stores[1], workers=2)
    first, second = map(learning_numbers, stores)
    assert len(first) == 12
    assert first == second
    curves = {data for name, data in first.items() if name.endswith("evaluations.jsonl")}
    assert len(curves) == 4  # and another system or seed gives others
