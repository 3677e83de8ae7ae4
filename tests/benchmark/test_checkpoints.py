"""Runs that are stopped go on, and nothing shows in their numbers."""

import dataclasses
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from dqn_adapters.benchmark import RunSpec, Suite, load_suite, systems
from dqn_adapters.benchmark.checkpoints import (
    BusyRunError,
    Checkpoints,
    DamagedCheckpointError,
)
from dqn_adapters.benchmark.executor import Failed, Finished, Progressed, execute
from dqn_adapters.benchmark.store import RunResult, Store
from dqn_adapters.checkpoint import CheckpointError
from dqn_adapters.config import DQNConfig

Make = Callable[..., Suite]


class Stopped(Exception):
    pass


def numbers(result: RunResult) -> tuple[object, ...]:
    return result.run, result.evaluations, result.episodes, result.timing.updates


def train_with_a_stop(run: RunSpec, checkpoints: Checkpoints, at: int) -> RunResult:
    def stop(timestep: int) -> None:
        if timestep >= at:
            raise Stopped

    with pytest.raises(Stopped):
        systems.train(run, progress=stop, checkpoints=checkpoints)
    return systems.train(run, checkpoints=checkpoints)


@pytest.fixture(autouse=True)
def tell_every_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told by the clock; here a clock that jumps, so that it is told every time."""
    now = iter(range(10**6))
    monkeypatch.setattr("dqn_adapters.benchmark.recorder.time.perf_counter", lambda: next(now))


@pytest.mark.parametrize("variant", ["vanilla", "double"])
def test_a_resumed_run_has_the_numbers_of_one_that_was_not_stopped(
    variant: str, make_suite: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (run,) = make_suite(
        [f"native-{variant}"],
        seeds=1,
        total_timesteps=800,
        points=6,
        config="n_steps = 3\ndueling = true\nprioritized_replay = true\nexploration_fraction = 0.8",
    ).runs()
    checkpoints = Checkpoints(tmp_path / "checkpoint", 200)
    resumed = train_with_a_stop(run, checkpoints, at=600)
    assert numbers(resumed) == numbers(systems.train(run))
    (line,) = capfd.readouterr().out.splitlines()
    step = int(line.removeprefix("continues at environment step "))
    assert 350 < step <= 640  # it did not begin anew
    assert step in {episode.timestep for episode in resumed.episodes}


def test_a_resumed_run_on_frames_has_the_numbers_of_one_that_was_not_stopped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    suite = load_suite("pong")
    (environment,) = suite.environments
    config = dataclasses.replace(
        suite.config,
        buffer_size=150,  # it wraps
        learning_starts=100,
        batch_size=4,
        train_freq=8,
        target_update_interval=50,
        hidden_sizes=(16,),
    )
    environment = dataclasses.replace(
        environment,
        spec=dataclasses.replace(environment.spec, max_episode_steps=40),
        config=config,
        evaluation=dataclasses.replace(environment.evaluation, timesteps=(0, 160, 280), episodes=1),
    )
    small = dataclasses.replace(suite, environments=(environment,), config=config)
    dueling = next(run for run in small.runs() if run.config.dueling)
    resumed = train_with_a_stop(dueling, Checkpoints(tmp_path / "checkpoint", 70), at=250)
    assert numbers(resumed) == numbers(systems.train(dueling))
    assert "continues at environment step 240" in capfd.readouterr().out


def test_a_killed_worker_is_continued_by_the_same_command(make_suite: Make, tmp_path: Path) -> None:
    suite = make_suite(["native-double"], seeds=1, total_timesteps=6000, points=3)
    runs = suite.runs()
    store, other = Store(tmp_path / "killed", suite.name), Store(tmp_path / "whole", suite.name)

    events = execute(runs, store, workers=1, checkpoint_every=500)
    for event in events:
        if isinstance(event, Progressed) and any((store.path / "checkpoints").glob("*/progress*")):
            (worker,) = multiprocessing.active_children()
            worker.kill()
            break
    (failed,) = [event for event in events if not isinstance(event, Progressed)]
    assert isinstance(failed, Failed)
    assert "SIGKILL" in failed.failure.reason

    assert isinstance([*execute(runs, store, workers=1, checkpoint_every=500)][-1], Finished)
    [*execute(runs, other, workers=1)]
    (name,) = store.names()
    for file in ("spec.json", "evaluations.jsonl", "episodes.jsonl"):
        assert (store.path / name / file).read_bytes() == (other.path / name / file).read_bytes()
    assert "continues at environment step" in (store.logs / "worker-0.log").read_text()
    assert "continues" not in (other.logs / "worker-0.log").read_text()
    assert not (store.path / "checkpoints" / name).exists()  # no longer needed


def test_a_run_that_another_process_trains_is_left_to_it(make_suite: Make, tmp_path: Path) -> None:
    runs = make_suite(["native-double"], seeds=1, total_timesteps=400).runs()
    store = Store(tmp_path, "suite")
    checkpoints = store.checkpoints(runs[0], 100)
    assert checkpoints is not None
    with checkpoints.held():
        (*_, failed) = execute(runs, store, workers=1, checkpoint_every=100)
        assert isinstance(failed, Failed)
        assert failed.failure.reason.startswith("BusyRunError: another process trains the run")
        assert runs[0].name in failed.failure.reason

    (*_, finished) = execute(runs, store, workers=1, checkpoint_every=100)
    assert isinstance(finished, Finished)
    assert store.failure(runs[0]) is None


def test_a_run_stays_held_while_its_checkpoint_is_replaced(tmp_path: Path) -> None:
    first, second = Checkpoints(tmp_path / "run", 10), Checkpoints(tmp_path / "run", 10)
    with first.held():
        first.save(10, {}, Path.touch)
        first.save(20, {}, Path.touch)
        with pytest.raises(BusyRunError, match=r"its checkpoint in .*run; wait"), second.held():
            pass
    with second.held():
        assert second.load() == (tmp_path / "run" / "agent-20", {"agent": "agent-20"})


def test_a_checkpoint_that_was_not_completed_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run", 10)
    assert checkpoints.load() is None
    checkpoints.save(10, {"timestep": 10}, lambda path: path.write_text("ten"))

    def killed(path: Path) -> None:
        path.write_text("twen")
        (path.parent / ".agent-20.xyz").touch()
        raise Stopped

    with pytest.raises(Stopped):
        checkpoints.save(20, {"timestep": 20}, killed)
    loaded = checkpoints.load()
    assert loaded is not None
    path, progress = loaded
    assert path.read_text() == "ten"
    assert progress["timestep"] == 10
    assert sorted(file.name for file in path.parent.iterdir()) == ["agent-10", "progress.json"]

    checkpoints.save(30, {"timestep": 30}, lambda path: path.write_text("thirty"))
    assert sorted(file.name for file in path.parent.iterdir()) == ["agent-30", "progress.json"]


def test_a_damaged_checkpoint_is_named(make_suite: Make, tmp_path: Path) -> None:
    (run,) = make_suite(["native-double"], seeds=1, total_timesteps=400).runs()
    checkpoints = Checkpoints(tmp_path / "run", 100)

    def stop(timestep: int) -> None:
        if timestep > 300:
            raise Stopped

    with pytest.raises(Stopped):
        systems.train(run, progress=stop, checkpoints=checkpoints)
    progress = tmp_path / "run" / "progress.json"
    (agent,) = (tmp_path / "run").glob("agent-*")

    whole = agent.read_bytes()
    agent.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="agent-"):
        systems.train(run, checkpoints=checkpoints)
    text = progress.read_text()
    for damaged in ("{", "[]", json.dumps({"agent": agent.name}), text.replace("agent-", "a-")):
        progress.write_text(damaged)
        with pytest.raises(DamagedCheckpointError, match="run is damaged.*delete it"):
            systems.train(run, checkpoints=checkpoints)


def test_pong_is_what_it_is_for() -> None:
    suite = load_suite("pong")
    labels = {run.title: run for run in suite.runs()}
    assert set(labels) == {"native-target", "native-double", "native-double-dueling"}
    assert next(iter(labels)) == "native-double-dueling"  # it is trained first
    assert len({run.protocol for run in labels.values()}) == 1
    for run in labels.values():
        assert run.config.buffer_size == 100_000
        assert run.config.frame_stack == 4
        plain = dataclasses.replace(run.config, variant="target", dueling=False)
        assert plain == dataclasses.replace(suite.config, variant=DQNConfig.variant)
    assert labels["native-double-dueling"].config.dueling
    suite.check_runnable()
