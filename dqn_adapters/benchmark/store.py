"""Results on disk: one directory per run, complete or absent.

Under `<results>/<suite>/`:

- `<run name>/spec.json`: what was run; it decides the numbers;
- `<run name>/evaluations.jsonl` and `episodes.jsonl`: an evaluation, a training episode per line;
- `<run name>/result.json`: timing, versions, machine, and what the system notes of itself;
- `<run name>/...`: files that a system attaches, such as its trained agent;
- `failures/<run name>.json`: the last failure of a run that is not finished;
- `checkpoints/<run name>/`: what a run that is not finished goes on from;
- `logs/worker-<n>.log`: what the workers printed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import psutil

from dqn_adapters.benchmark.checkpoints import Checkpoints
from dqn_adapters.benchmark.recorder import Episode, Evaluation
from dqn_adapters.benchmark.spec import RunSpec
from dqn_adapters.files import PARTIAL, replacing_text, sync


@dataclass(frozen=True)
class Timing:
    """What a run cost. Never part of what is compared bit for bit."""

    training_seconds: float
    """Wall clock of training, without start-up and evaluation."""

    evaluation_seconds: tuple[float, ...]
    """Training seconds before each evaluation."""

    updates: int
    """Gradient updates made."""

    cpu_seconds: float
    """Processor time of training. Much less than the wall clock: others used the machine."""

    peak_memory: int | None = None
    """Bytes by which the resident memory of the process rose at most, evaluation included, above
    what it held before with the libraries loaded. Of a run that was continued: of its last process.
    None: not measured."""


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    run: RunSpec
    evaluations: tuple[Evaluation, ...]
    episodes: tuple[Episode, ...]
    timing: Timing
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    workers: int
    """Worker processes that shared the machine."""

    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the system has to say beside the scores, as JSON."""

    attachments: Mapping[str, bytes] = field(default_factory=dict)
    """Files to be stored, by name; a result that is loaded leaves them where they are."""

    @property
    def scores(self) -> tuple[float, ...]:
        """Mean greedy return at each evaluation."""
        return tuple(sum(point.returns) / len(point.returns) for point in self.evaluations)

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Environment steps before each evaluation."""
        return tuple(point.timestep for point in self.evaluations)


@dataclass(frozen=True)
class Failure:
    """Why a run did not finish."""

    run: RunSpec
    reason: str
    """One line."""

    details: str
    """A traceback, or the end of the worker's log."""


class StoreError(Exception):
    """A result directory is damaged."""


class ForeignRunError(StoreError):
    """A result directory is sound, but of another version of this package."""


class Store:
    """The results of one suite.

    Args:
        root: The results directory.
        suite: The suite's name.
    """

    def __init__(self, root: Path, suite: str) -> None:
        self.path = root / suite

    @property
    def logs(self) -> Path:
        """Directory of the workers' logs."""
        return self.path / "logs"

    def has(self, run: RunSpec) -> bool:
        """Whether the run is finished."""
        return (self.path / run.name / "result.json").is_file()

    def save(self, result: RunResult) -> None:
        """Write a finished run; it appears under its name as a whole or not at all.

        A run that is already there, from another process with the same results directory, stays.
        """
        with self._arriving(result.run) as directory:
            _write(directory / "spec.json", _json(result.run.to_dict(), indent=2))
            evaluations = (each.to_dict() for each in result.evaluations)
            _write(directory / "evaluations.jsonl", _lines(evaluations))
            _write(directory / "episodes.jsonl", _lines(map(asdict, result.episodes)))
            _write(
                directory / "result.json",
                _json(
                    {
                        **asdict(result.timing),
                        "versions": result.versions,
                        "machine": result.machine,
                        "workers": result.workers,
                        **({"notes": result.notes} if result.notes else {}),
                    },
                    indent=2,
                ),
            )
            for name, content in result.attachments.items():
                _write(directory / name, content)

    def take(self, run: RunSpec, other: Store) -> None:
        """Copy a finished run from another store, as `save` writes one."""
        with self._arriving(run) as directory:
            for file in (other.path / run.name).iterdir():
                _write(directory / file.name, file.read_bytes())

    @contextmanager
    def _arriving(self, run: RunSpec) -> Iterator[Path]:
        partial = self.path / f"{PARTIAL}{run.name}-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            try:
                sync(partial)
                partial.rename(self.path / run.name)
                sync(self.path)
            except OSError:
                if not self.has(run):
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._forget(run.name)

    def load(self, name: str) -> RunResult:
        """Read the run of that name.

        Raises:
            ForeignRunError: this version does not know its settings, or names it otherwise.
            StoreError: a file is missing or damaged.
        """
        run = self.spec(name)
        directory = self.path / name
        try:
            result = json.loads((directory / "result.json").read_text())
            loaded = RunResult(
                run=run,
                evaluations=tuple(
                    map(Evaluation.from_dict, _rows(directory / "evaluations.jsonl"))
                ),
                episodes=tuple(Episode(**row) for row in _rows(directory / "episodes.jsonl")),
                timing=Timing(
                    result["training_seconds"],
                    tuple(result["evaluation_seconds"]),
                    result["updates"],
                    result["cpu_seconds"],
                    result.get("peak_memory"),  # runs of older versions have none
                ),
                versions=result["versions"],
                machine=result["machine"],
                workers=result["workers"],
                notes=result.get("notes", {}),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(directory, error) from error
        if loaded.timesteps != run.evaluation.timesteps:
            raise StoreError(f"{directory} is damaged: its evaluations are not those of its spec")
        return loaded

    def spec(self, name: str) -> RunSpec:
        """What the run of that name is.

        Raises:
            ForeignRunError, StoreError: as `load`.
        """
        directory = self.path / name
        try:
            values = json.loads((directory / "spec.json").read_text())
            try:
                run = RunSpec.from_dict(values)
            except ValueError as error:
                raise ForeignRunError(f"{directory} is of another version: {error}") from error
            if run.name != name:
                raise ForeignRunError(f"{directory} is of another version: it is now {run.name}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(directory, error) from error
        return run

    def names(self) -> list[str]:
        """Names of the finished runs, sorted."""
        return sorted(path.parent.name for path in self.path.glob("[!.]*/result.json"))

    def save_failure(self, failure: Failure) -> None:
        """Remember why a run failed, until it succeeds."""
        path = self._failure(failure.run.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {
            "spec": failure.run.to_dict(),
            "reason": failure.reason,
            "details": failure.details,
        }
        with replacing_text(path) as file:
            file.write(_json(values, indent=2))

    def failure(self, run: RunSpec) -> Failure | None:
        """The last failure of a run that is not finished."""
        try:
            values = json.loads(self._failure(run.name).read_text())
        except FileNotFoundError:
            return None
        return Failure(run, values["reason"], values["details"])

    def checkpoints(self, run: RunSpec, every: int | None) -> Checkpoints | None:
        """Where a run keeps what it can go on from.

        Args:
            run: Not finished.
            every: Environment steps between two checkpoints; None: it makes none.
        """
        return None if every is None else Checkpoints(self._checkpoints(run.name), every)

    def unfinished(self, run: RunSpec) -> tuple[tuple[Evaluation, ...], tuple[Episode, ...]] | None:
        """Evaluations and training episodes of a run up to its checkpoint; None if it has none.

        Raises:
            DamagedCheckpointError: the checkpoint cannot be read.
        """
        checkpoints = Checkpoints(self._checkpoints(run.name), 1)
        progress = checkpoints.progress()
        if progress is None:
            return None
        try:
            return (
                tuple(map(Evaluation.from_dict, progress["evaluations"])),
                tuple(Episode(**row) for row in progress["episodes"]),
            )
        except (KeyError, TypeError) as error:
            raise checkpoints.damaged(error) from error

    def prepare(self) -> None:
        """Make ready to be written to, and `sweep`.

        Raises:
            OSError: it cannot be written to.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=self.path).close()
        self.sweep()

    def sweep(self) -> None:
        """Remove what killed processes left half written, and the checkpoints and failures of
        finished runs that they had no time to remove; what living ones write stays."""
        for name in self.names():
            self._forget(name)
        for partial in self.path.glob(f"{PARTIAL}*-*"):
            process = partial.name.rpartition("-")[2]
            if process.isdecimal() and not psutil.pid_exists(int(process)):
                shutil.rmtree(partial, ignore_errors=True)

    def _forget(self, name: str) -> None:
        """Remove what was kept of a run until it was finished."""
        self._failure(name).unlink(missing_ok=True)
        shutil.rmtree(self._checkpoints(name), ignore_errors=True)

    def _checkpoints(self, name: str) -> Path:
        return self.path / "checkpoints" / name

    def _failure(self, name: str) -> Path:
        return self.path / "failures" / f"{name}.json"


def _damaged(directory: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{directory} is damaged ({type(error).__name__}: {error}); "
        "delete it, and the next `dqn-bench run` makes it anew"
    )


def _json(values: Any, indent: int | None = None) -> str:
    return json.dumps(values, indent=indent, allow_nan=False) + "\n"


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(map(_json, rows))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in path.read_text().splitlines())


def _write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(path)
