"""Quick systems for the harness, named in suites as `benchmark.fake_systems:NAME`."""

import json
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np

from dqn_adapters.benchmark import Recorder, RunSpec

FOLDER = "FAKE_SYSTEMS_FOLDER"
"""Environment variable: where the systems that need it find and leave files."""


def learns(run: RunSpec, recorder: Recorder) -> int:
    """Acts at random from its seed; its greedy policy follows the pole with a drawn weight."""
    generator = np.random.default_rng(run.seeds.agent)
    weights = generator.normal(size=4)
    environment = recorder.environment()
    environment.reset(seed=run.seeds.agent)
    recorder.start(lambda observations: (observations @ weights > 0).astype(int))
    for _ in range(run.total_timesteps):
        _, _, terminated, truncated, _ = environment.step(int(generator.integers(2)))
        if terminated or truncated:
            environment.reset()
        recorder.observe()
        weights += 0.01 * generator.normal(size=4)
    return run.total_timesteps // run.config.train_freq


def continues(run: RunSpec, recorder: Recorder) -> int:
    """As `learns`, and it can go on from a checkpoint. In the middle it holds while there is a
    file `hold`; where it goes on from, it tells."""
    generator = np.random.default_rng(run.seeds.agent)
    weights = generator.normal(size=4)
    before = recorder.resume()
    if before is not None:
        state = json.loads(before.read_text())
        weights[:] = state["weights"]
        generator.bit_generator.state = state["generator"]
        _tell(run, "resumed", recorder.timestep)

    def save(path: Path) -> None:
        now = {"weights": weights.tolist(), "generator": generator.bit_generator.state}
        path.write_text(json.dumps(now))

    environment = recorder.environment()
    environment.reset()
    recorder.start(lambda observations: (observations @ weights > 0).astype(int))
    while recorder.timestep < run.total_timesteps:
        _, _, terminated, truncated, _ = environment.step(int(generator.integers(2)))
        weights += 0.01 * generator.normal(size=4)
        if terminated or truncated:
            environment.reset()
        recorder.observe()
        recorder.checkpoint(save)
        if recorder.timestep == run.total_timesteps // 2:
            _tell(run, "holding", recorder.timestep)
            while FOLDER in os.environ and (Path(os.environ[FOLDER]) / "hold").exists():
                time.sleep(0.05)
    return run.total_timesteps // run.config.train_freq


def _tell(run: RunSpec, what: str, timestep: int) -> None:
    if FOLDER in os.environ:
        (Path(os.environ[FOLDER]) / f"{what}-{run.seed_index}").write_text(str(timestep))


def fails(run: RunSpec, recorder: Recorder) -> int:
    """Seed 1 fails."""
    if run.seed_index == 1:
        raise ValueError("the learning rate | is made of cheese")
    return learns(run, recorder)


def exits(run: RunSpec, recorder: Recorder) -> int:
    """Seed 1 ends its process."""
    if run.seed_index == 1:
        raise SystemExit(7)
    return learns(run, recorder)


def is_killed_once(run: RunSpec, recorder: Recorder) -> int:
    """Seed 0 is killed in the middle of its training, the first time."""
    marker = Path(os.environ[FOLDER]) / "killed"
    if run.seed_index == 0 and not marker.exists():
        marker.touch()
        recorder.environment()
        os.kill(os.getpid(), signal.SIGKILL)
    return learns(run, recorder)


def waits_once(run: RunSpec, recorder: Recorder) -> int:
    """Seed 1 says that it waits, and waits until it is ended, while the file `wait` is there."""
    folder = Path(os.environ[FOLDER])
    if run.seed_index == 1 and (folder / "wait").exists():
        (folder / "waiting").write_text(str(os.getpid()))
        time.sleep(600)
    return learns(run, recorder)


def fills_the_disk(run: RunSpec, recorder: Recorder) -> int:
    """From seed 1 on its process cannot write another byte to any file, while `full` is there."""
    if run.seed_index == 1 and (Path(os.environ[FOLDER]) / "full").exists():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    return learns(run, recorder)


MEBIBYTES = 64


def takes_memory(run: RunSpec, recorder: Recorder) -> int:
    """Seed 0 holds so much memory for a moment of its training."""
    if run.seed_index == 0:
        np.ones(MEBIBYTES << 17).sum()
    return learns(run, recorder)


NOT_A_FUNCTION = 3
