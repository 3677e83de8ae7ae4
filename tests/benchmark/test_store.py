import dataclasses
import json
import os
from pathlib import Path

import pytest

from dqn_adapters import DQNConfig
from dqn_adapters.benchmark import EnvironmentSpec, Evaluation, EvaluationSpec, RunSpec
from dqn_adapters.benchmark.recorder import Episode
from dqn_adapters.benchmark.store import (
    Failure,
    ForeignRunError,
    RunResult,
    Store,
    StoreError,
    Timing,
)

RUN = RunSpec(
    environment=EnvironmentSpec("CartPole-v1"),
    system="native-double",
    config=DQNConfig(variant="double"),
    total_timesteps=8,
    evaluation=EvaluationSpec((0, 8), 2),
    root_seed=0,
    seed_index=0,
)
RESULT = RunResult(
    run=RUN,
    evaluations=(Evaluation(0, (9.0, 11.0), (9, 11)), Evaluation(8, (20.0, 0.1), (20, 1))),
    episodes=(Episode(3, 3.0, 3), Episode(8, 1 / 3, 5)),
    timing=Timing(1.5, (0.0, 1.5), 4, 1.25, 2**20),
    versions={"torch": "1.0"},
    machine={"cores": 2},
    workers=2,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, "suite")


def test_what_is_saved_is_loaded(store: Store) -> None:
    assert not store.has(RUN)
    store.save(RESULT)
    assert store.has(RUN)
    assert store.names() == [RUN.name]
    assert store.load(RUN.name) == RESULT
    assert store.load(RUN.name).scores == (10.0, 10.05)


def test_results_from_before_memory_was_measured_are_loaded(store: Store) -> None:
    store.save(RESULT)
    file = store.path / RUN.name / "result.json"
    values = json.loads(file.read_text())
    assert values.pop("peak_memory") == 2**20
    file.write_text(json.dumps(values))
    assert store.load(RUN.name).timing == dataclasses.replace(RESULT.timing, peak_memory=None)


def test_records_are_json_lines(store: Store) -> None:
    store.save(RESULT)
    lines = (store.path / RUN.name / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["timestep"] for line in lines] == [0, 8]
    assert json.loads((store.path / RUN.name / "spec.json").read_text())["system"] == RUN.system


def test_a_run_that_cannot_be_written_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.save(RESULT)
    assert not store.has(RUN)
    assert list(store.path.iterdir()) == []


def test_a_run_that_is_there_stays(store: Store) -> None:
    store.save(RESULT)
    store.save(dataclasses.replace(RESULT, timing=Timing(9.0, (0.0, 9.0), 4, 9.0)))
    assert store.load(RUN.name).timing.training_seconds == 1.5
    assert store.names() == [RUN.name]
    assert not list(store.path.glob(".*"))


def test_what_a_killed_worker_left_is_no_run_and_is_swept(store: Store) -> None:
    store.save(RESULT)
    dead = store.path / f".partial-{RUN.name}-99999999"
    alive = store.path / f".partial-{RUN.name}-{os.getpid()}"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "result.json").write_text("{}")
    assert store.names() == [RUN.name]
    store.prepare()
    assert not dead.exists()
    assert alive.exists()


def test_what_a_worker_killed_after_storing_a_run_left_is_swept(store: Store) -> None:
    other = dataclasses.replace(RUN, seed_index=RUN.seed_index + 1)
    store.save(RESULT)
    for run in (RUN, other):
        checkpoints = store.checkpoints(run, 1)
        assert checkpoints is not None
        checkpoints.save(1, {}, Path.touch)
        store.save_failure(Failure(run, "it was tired", "very"))
    store.sweep()
    assert [path.name for path in store.path.glob("checkpoints/*")] == [other.name]
    assert store.failure(RUN) is None
    assert store.failure(other) is not None


@pytest.mark.parametrize(
    "name", ["spec.json", "evaluations.jsonl", "episodes.jsonl", "result.json"]
)
def test_damage_is_reported_with_the_directory(store: Store, name: str) -> None:
    store.save(RESULT)
    file = store.path / RUN.name / name
    file.write_text(file.read_text()[:-4])
    with pytest.raises(StoreError, match=f"{RUN.name} is damaged.*delete it"):
        store.load(RUN.name)


def test_missing_evaluations_are_damage(store: Store) -> None:
    store.save(RESULT)
    file = store.path / RUN.name / "evaluations.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    with pytest.raises(StoreError, match="not those of its spec"):
        store.load(RUN.name)


def test_runs_of_another_version_are_told_from_damage(store: Store) -> None:
    store.save(RESULT)
    spec = store.path / RUN.name / "spec.json"
    values = json.loads(spec.read_text())
    spec.write_text(json.dumps({**values, "config": {**values["config"], "gone": 1}}))
    with pytest.raises(ForeignRunError, match="gone"):
        store.load(RUN.name)
    spec.write_text(json.dumps({**values, "seed_index": 1}))
    with pytest.raises(ForeignRunError, match="it is now"):
        store.load(RUN.name)


def test_a_failure_is_remembered_until_the_run_succeeds(store: Store) -> None:
    assert store.failure(RUN) is None
    failure = Failure(RUN, "ValueError: no", "Traceback")
    store.save_failure(failure)
    assert store.failure(RUN) == failure
    assert not store.has(RUN)
    store.save(RESULT)
    assert store.failure(RUN) is None
