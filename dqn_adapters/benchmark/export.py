"""Curves for other programs: as CSV files, for TensorBoard, and for Weights & Biases."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqn_adapters._extras import require
from dqn_adapters.benchmark.recorder import Episode, Evaluation, ValueCheck
from dqn_adapters.benchmark.spec import RunSpec, in_a_path
from dqn_adapters.benchmark.store import ForeignRunError, RunResult, Store
from dqn_adapters.benchmark.suite import Suite
from dqn_adapters.files import replacing_text

RUNS = "runs.csv"
EVALUATIONS = "evaluations.csv"
EPISODES = "episodes.csv"
VALUES = "values.csv"


class ExportError(Exception):
    """There is nothing to export."""


@dataclass(frozen=True)
class Curve:
    """What is known of a run."""

    run: RunSpec
    evaluations: tuple[Evaluation, ...]
    episodes: tuple[Episode, ...]
    """Of training."""

    result: RunResult | None
    """None: it is not finished, and known up to its last checkpoint."""

    @property
    def finished(self) -> bool:
        """Whether it is known to its end."""
        return self.result is not None


Rows = Callable[[Curve], Iterator[tuple[object, ...]]]
"""The rows of a run in a table."""


def curves(suite: Suite, store: Store) -> list[Curve]:
    """The runs that are finished or have a checkpoint: those of the suite in its order, then other
    seeds and systems under the same configuration.

    Raises:
        ExportError: there are none.
        StoreError, DamagedCheckpointError: one cannot be read.
    """
    found = list(_curves(suite, store))
    if not found:
        raise ExportError(f"no run of suite {suite.name!r} is finished or begun in {store.path}")
    return found


def _curves(suite: Suite, store: Store) -> Iterator[Curve]:
    runs = suite.runs()
    for run in (*runs, *_more(suite, store, {run.name for run in runs})):
        if store.has(run):
            result = store.load(run.name)
            yield Curve(run, result.evaluations, result.episodes, result)
        elif (known := store.unfinished(run)) is not None:
            yield Curve(run, *known, None)


def _more(suite: Suite, store: Store, known: Collection[str]) -> Iterator[RunSpec]:
    for name in store.names():
        if name not in known:
            with contextlib.suppress(ForeignRunError):
                run = store.spec(name)
                if (environment := suite.belongs(run)) is not None:
                    yield dataclasses.replace(run, environment=environment.spec)


def write_csv(found: list[Curve], folder: Path) -> list[Path]:
    """Write `runs.csv`, a row per finished run: what was trained, under which versions, on which
    machine, and what it took in seconds and bytes; `evaluations.csv`, a row per evaluation episode;
    `episodes.csv`, a row per training episode; and, where estimates were held against returns,
    `values.csv`, a row per evaluation (see `ValueCheck`). Each is written beside its place and
    renamed.

    Returns:
        The files.
    """
    columns = ("timestep", "episode", "return", "length")
    tables: dict[str, tuple[Sequence[str], Rows]] = {
        RUNS: (_RUN_COLUMNS, _runs),
        EVALUATIONS: (columns, _evaluations),
        EPISODES: (columns, _training_episodes),
    }
    if any(point.values is not None for curve in found for point in curve.evaluations):
        checks = [field.name for field in dataclasses.fields(ValueCheck)]
        tables[VALUES] = (("timestep", *checks), _values)
    folder.mkdir(parents=True, exist_ok=True)
    return [_write(folder / name, found, columns, rows) for name, (columns, rows) in tables.items()]


_RUN_COLUMNS = (
    "run",
    "training_seconds",
    "cpu_seconds",
    "updates",
    "peak_memory",
    "workers",
    "machine",
    "versions",
    "spec",
)


def _runs(curve: Curve) -> Iterator[tuple[object, ...]]:
    if curve.result is not None:
        timing = curve.result.timing
        yield (
            curve.run.name,
            timing.training_seconds,
            timing.cpu_seconds,
            timing.updates,
            timing.peak_memory,
            curve.result.workers,
            json.dumps(curve.result.machine),
            json.dumps(curve.result.versions),
            json.dumps(curve.run.to_dict()),
        )


def _evaluations(curve: Curve) -> Iterator[tuple[object, ...]]:
    for point in curve.evaluations:
        for number, outcome in enumerate(zip(point.returns, point.lengths, strict=True)):
            yield point.timestep, number, *outcome


def _training_episodes(curve: Curve) -> Iterator[tuple[object, ...]]:
    for number, episode in enumerate(curve.episodes):
        yield episode.timestep, number, episode.episode_return, episode.length


def _values(curve: Curve) -> Iterator[tuple[object, ...]]:
    for point in curve.evaluations:
        if point.values is not None:
            yield point.timestep, *dataclasses.astuple(point.values)


def _write(
    path: Path,
    found: list[Curve],
    columns: Sequence[str],
    rows: Rows,
) -> Path:
    with replacing_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["environment", "system", "variant", "seed", "finished", *columns])
        for curve in found:
            run = curve.run
            of = (run.environment.title, run.title, run.config.variant, run.seed_index)
            writer.writerows((*of, int(curve.finished), *row) for row in rows(curve))
    return path


def write_tensorboard(found: list[Curve], folder: Path) -> None:
    """Write event files, a folder per run: `evaluation/return`, `training/return` and, where it was
    measured, `evaluation/overestimation`, over environment steps.

    Raises:
        ImportError: TensorBoard is not installed.
        FileExistsError: a folder of a run is there already; TensorBoard would show both in one.
    """
    require("tensorboard", extra="dev")
    from torch.utils.tensorboard import SummaryWriter

    names = [_name(curve.run) for curve in found]
    places = [
        folder / (name if names.count(name) == 1 else f"{name}-{curve.run.identity}")
        for name, curve in zip(names, found, strict=True)
    ]
    for place in places:
        if place.exists():
            raise FileExistsError(f"{place} is there already; choose another folder or delete it")
    for curve, place in zip(found, places, strict=True):
        with SummaryWriter(str(place)) as writer:
            scalar: Any = writer.add_scalar
            for name, value, timestep in _series(curve):
                scalar(name, value, timestep)


def write_wandb(found: list[Curve], project: str, folder: Path) -> None:
    """Log the same to a project of Weights & Biases, a run per run, grouped by environment.

    Whether that is online, and as whom, is for W&B's own variables to say (`WANDB_MODE=offline`
    writes below `folder` only). A run's id is its name in the store, so it cannot come twice.

    Raises:
        ImportError: `wandb` is not installed.
        ExportError: W&B refuses (nobody is logged in, or the project has the run).
    """
    require("wandb", extra="wandb")
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    for curve in found:
        run = curve.run
        described = {
            "environment": run.environment.title,
            "system": run.title,
            "seed": run.seed_index,
            "finished": curve.finished,
        }
        try:
            with wandb.init(
                project=project,
                dir=folder,
                id=run.name,
                resume="never",
                name=_name(run),
                group=run.environment.title,
                job_type=run.title,
                config={**described, **run.config.to_dict()},
                settings=wandb.Settings(silent=True, console="off"),
            ) as session:
                session.define_metric("timestep", hidden=True)
                session.define_metric("*", step_metric="timestep")
                for name, value, timestep in sorted(_series(curve), key=lambda point: point[2]):
                    session.log({"timestep": timestep, name: value})
        except wandb.Error as error:
            raise ExportError(f"Weights & Biases does not take {run.name}: {error}") from error


def _series(curve: Curve) -> Iterator[tuple[str, float, int]]:
    """Name, value and environment steps of every point."""
    for point in curve.evaluations:
        yield "evaluation/return", sum(point.returns) / len(point.returns), point.timestep
        if point.values is not None:
            yield "evaluation/overestimation", point.values.bias, point.timestep
    for episode in curve.episodes:
        yield "training/return", episode.episode_return, episode.timestep


def _name(run: RunSpec) -> str:
    parts = (run.environment.title, run.title, f"seed-{run.seed_index}")
    return "/".join(in_a_path(part).strip(".") or "-" for part in parts)
