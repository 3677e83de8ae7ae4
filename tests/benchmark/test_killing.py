"""`dqn-bench run` is killed at random moments; what was finished stays, and nothing shows."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmark.test_executor import learning_numbers

from dqn_adapters.benchmark import load_suite
from dqn_adapters.benchmark.store import Store
from dqn_adapters.benchmark.systems import train

Write = Callable[..., Path]
WORKERS = 2


def start(path: Path, output: Path) -> "subprocess.Popen[bytes]":
    """In a process group of its own."""
    command = [sys.executable, "-m", "dqn_adapters.benchmark", "run", str(path)]
    with output.open("wb") as file:
        return subprocess.Popen(
            [*command, "--results", str(path.parent), "--workers", str(WORKERS)],
            cwd=path.parent,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def begun(store: Store) -> int:
    """How many runs the workers have begun, by their logs."""
    logs = store.logs.glob("worker-*.log")
    return sum(log.read_text().count("--- CartPole-v1_") for log in logs)


@pytest.mark.parametrize(
    ("kills", "seeds", "steps"),
    [(3, 5, 4_000), pytest.param(20, 25, 10_000, marks=pytest.mark.slow)],
)
def test_killed_at_any_moment_at_most_the_runs_in_flight_are_lost(
    kills: int, seeds: int, steps: int, write_suite: Write, tmp_path: Path
) -> None:
    path = write_suite(["learns", "continues"], seeds=seeds, total_timesteps=steps, points=5)
    path.write_text("checkpoint_every = 500\n" + path.read_text())
    suite = load_suite(str(path))
    runs = {f"CartPole-v1 {run.title} seed {run.seed_index}": run for run in suite.runs()}
    whole = Store(tmp_path / "whole", suite.name)
    for run in runs.values():
        whole.save(train(run))
    expected = learning_numbers(whole)

    store = Store(tmp_path, suite.name)
    output = tmp_path / "output"
    generator = random.Random(0)
    kept: dict[str, bytes] = {}
    told = 0
    for kill in range(kills):
        before = begun(store)
        process = start(path, output)
        if kill % 5 < 4:  # in the middle of the work, whatever the speed of the machine
            runs_begun = before + generator.randint(1, 3)
            while begun(store) < runs_begun:
                assert process.poll() is None, output.read_text()
                time.sleep(0.01)
            time.sleep(generator.uniform(0.0, 0.5))
        else:  # while it starts
            time.sleep(generator.uniform(0.0, 5.0))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, output.read_text()

        finished = learning_numbers(store)
        assert kept.items() <= finished.items()
        assert finished.items() <= expected.items()
        assert all(store.load(name) for name in store.names())
        for line in output.read_text().splitlines():
            if line.startswith("done"):
                told += 1
                assert store.has(runs[line.split(maxsplit=2)[2].partition(": ")[0]])
        new = (len(finished) - len(kept)) // 3  # three files each
        assert begun(store) - before - new <= WORKERS
        kept = finished

    assert told > 0
    checkpoints = list(store.path.glob("checkpoints/*/progress.json"))  # if it had come that far
    process = start(path, output)
    assert process.wait() == 0, output.read_text()
    assert learning_numbers(store) == expected
    logs = "".join(log.read_text() for log in store.logs.iterdir())
    assert "continues at environment step" in logs or not checkpoints
    left = {file.name for file in store.path.iterdir()} - set(store.names())
    assert left <= {"logs", "checkpoints"}
    assert not list((store.path / "checkpoints").iterdir())
