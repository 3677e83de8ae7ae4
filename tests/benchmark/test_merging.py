"""Runs of several machines in one store."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmark.test_cli import invoke
from benchmark.test_report import result, rising

from dqn_adapters.benchmark import Suite, load_suite, merging
from dqn_adapters.benchmark.store import Failure, Store

Write = Callable[..., Path]


def contents(store: Store) -> dict[str, bytes]:
    return {
        str(file.relative_to(store.path)): file.read_bytes()
        for file in store.path.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def suite(write_suite: Write) -> Suite:
    return load_suite(str(write_suite(["native-double", "native-target"], seeds=3)))


def machine(path: Path, suite: Suite, seeds: set[int], seconds: float = 2.0) -> Store:
    store = Store(path, suite.name)
    for run in suite.runs():
        if run.seed_index in seeds:
            store.save(dataclasses.replace(result(run, rising, seconds), attachments={"a": b"\0"}))
    return store


def test_every_run_is_taken_once_and_as_it_is(suite: Suite, tmp_path: Path) -> None:
    here = machine(tmp_path / "here", suite, {0})
    one = machine(tmp_path / "one", suite, {0, 1}, seconds=3.0)
    two = machine(tmp_path / "two", suite, {1, 2}, seconds=4.0)
    before = contents(here)
    waited = next(run for run in suite.runs() if run.seed_index == 1)
    here.save_failure(Failure(waited, "it was killed", ""))
    code, output = invoke(
        "merge", suite.source, tmp_path / "one", tmp_path / "two", "--results", tmp_path / "here"
    )
    assert code == 0
    assert "4 runs taken, 2 there already" in output
    taken = contents(one) | contents(two) | contents(one)  # the first one that has a run
    assert contents(here) == taken | before
    assert here.failure(waited) is None
    assert [here.load(run.name).timing.training_seconds for run in suite.runs()] == [
        {0: 2.0, 1: 3.0, 2: 4.0}[run.seed_index] for run in suite.runs()
    ]
    code, output = invoke("merge", suite.source, tmp_path / "one", "--results", tmp_path / "here")
    assert code == 0
    assert "0 runs taken, 4 there already" in output


def test_other_numbers_under_the_same_name_are_refused_and_nothing_is_taken(
    suite: Suite, tmp_path: Path
) -> None:
    here = machine(tmp_path / "here", suite, {0})
    there = machine(tmp_path / "there", suite, {1})
    odd = next(run for run in suite.runs() if run.seed_index == 0)
    there.save(result(odd, lambda run, step: rising(run, step) + 1e-12))
    before = contents(here)
    code, output = invoke("merge", suite.source, tmp_path / "there", "--results", tmp_path / "here")
    assert code == 2
    assert "1 run has other numbers under the same name" in output
    assert str(there.path / odd.name) in output
    assert str(here.path / odd.name) in output
    assert contents(here) == before

    code, output = invoke(
        *("merge", suite.source, tmp_path / "there", tmp_path / "here"),
        *("--results", tmp_path / "new"),
    )
    assert code == 2  # the two contradict each other
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_read_is_refused_and_nothing_is_taken(suite: Suite, tmp_path: Path) -> None:
    there = machine(tmp_path / "there", suite, {0, 1})
    merge = ("merge", suite.source, tmp_path / "there", "--results", tmp_path / "here")
    spec = there.path / suite.runs()[0].name / "spec.json"
    whole = spec.read_text()
    spec.write_text(json.dumps({**json.loads(whole), "format": 1}))
    code, output = invoke(*merge)
    assert code == 2
    assert "is of another version: format=1 is not accepted" in output
    spec.write_text(whole[:-9])
    code, output = invoke(*merge)
    assert code == 2
    assert f"{spec.parent} is damaged" in output
    assert not (tmp_path / "here").exists()

    code, output = invoke(*merge[:2], tmp_path / "nowhere", *merge[3:])
    assert code == 2
    assert f"no run is finished in {tmp_path / 'nowhere' / 'small'}" in output
    code, output = invoke(*merge[:2], tmp_path / "there" / ".", "--results", tmp_path / "there")
    assert code == 2
    assert "is the directory to merge into" in output


def test_a_merge_that_is_cut_short_leaves_whole_runs(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = machine(tmp_path / "there", suite, {0, 1, 2})
    here = Store(tmp_path / "here", suite.name)
    syncs = iter(range(13))  # of five files for each run

    def full(descriptor: int) -> None:
        if next(syncs, None) is None:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            merging.merge(here, [there])
    assert len(here.names()) == 2
    assert set(contents(here).items()) < set(contents(there).items())
    merged = merging.merge(here, [there])
    assert len(merged.taken) == 4
    assert contents(here) == contents(there)


def test_runs_of_another_configuration_are_taken_and_told(
    suite: Suite, write_suite: Write, tmp_path: Path
) -> None:
    machine(tmp_path / "there", suite, {0})
    path = write_suite(["native-double", "native-target"], config="learning_rate = 0.5")
    code, output = invoke("merge", path, tmp_path / "there", "--results", tmp_path / "here")
    assert code == 0
    assert "2 runs taken" in output
    assert "are of another configuration or version than suite 'small' has now" in output
