"""The command `dqn-bench`."""

from __future__ import annotations

import os
import sys
import typing
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from dqn_adapters.benchmark import merging
from dqn_adapters.benchmark import systems as systems_
from dqn_adapters.benchmark.cluster import ClusterError, RayCluster
from dqn_adapters.benchmark.executor import (
    Event,
    Executor,
    Failed,
    Finished,
    Processes,
    Progressed,
    Started,
)
from dqn_adapters.benchmark.spec import RunSpec
from dqn_adapters.benchmark.store import Failure, Store, StoreError
from dqn_adapters.benchmark.suite import Suite, SuiteError, find_suites, load_suite

FAILED_RUNS = 1
BAD_INPUT = 2
INTERRUPTED = 130

app = typer.Typer(
    name="dqn-bench",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Train DQN variants in several libraries under one levelled configuration, and compare "
    "them.\n\n"
    "A *suite* is a TOML file: environments, systems, seeds, configuration. A *system* is an "
    "implementation and a variant, such as `sb3-double`.\n\n"
    "Exit codes: 0 done, 1 some runs failed, 2 the input is wrong (nothing was trained), "
    "130 interrupted (finished runs are kept).",
)

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

SuiteArgument = Annotated[
    str, typer.Argument(help="Name of a suite (see `list`), or path of a .toml.")
]
ResultsOption = Annotated[
    Path, typer.Option("--results", metavar="DIR", help="Where results are kept.")
]
RESULTS = Path("results")


class ExecutorName(StrEnum):
    """Where runs are trained."""

    PROCESSES = "processes"
    RAY = "ray"


@app.command("list")
def list_() -> None:
    """Show the suites and the systems."""
    suites = Table(Column("suite", no_wrap=True), "what it is", box=None)
    for name in sorted(find_suites()):
        try:
            suites.add_row(f"[bold]{name}[/]", _summary(load_suite(name)))
        except SuiteError as error:
            suites.add_row(f"[bold]{name}[/]", f"[red]{escape(str(error))}[/]")
    out.print(suites)
    out.print()
    table = Table(Column("system", no_wrap=True), "implementation", "variant", "", box=None)
    lacking: dict[str, None] = {}
    for system in systems_.ALL_SYSTEMS:
        missing = system.missing()
        if missing:
            lacking[missing.partition(": ")[2]] = None
        table.add_row(
            f"[bold]{system.name}[/]",
            systems_.LABELS[system.implementation],
            system.variant,
            "[yellow]missing[/]" if missing else "ready",
        )
    out.print(table)
    for reason in lacking:
        out.print(f"[yellow]{escape(reason)}[/]", soft_wrap=True)


def _summary(suite: Suite) -> str:
    steps = sorted({run.total_timesteps for run in suite.runs()})
    counts = (
        f"{len(suite.systems)} {_plural(len(suite.systems), 'system')}, "
        f"{len(suite.seeds)} {_plural(len(suite.seeds), 'seed')}, "
        f"{' to '.join(f'{count:,}' for count in dict.fromkeys((steps[0], steps[-1])))} steps"
    )
    titles = "; ".join(environment.spec.title for environment in suite.environments)
    sentence = suite.description.partition(". ")[0].removesuffix(".")
    return escape(f"{sentence}.\n" if sentence else "") + f"[dim]{escape(titles)}: {counts}[/]"


@app.command()
def run(
    suite: SuiteArgument,
    systems: Annotated[
        str | None,
        typer.Option(
            "--systems",
            metavar="A,B,..",
            help="Only these systems, implementations, or functions of yours as "
            "`package.module:function`.",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", metavar="N", help="So many seeds instead.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="Worker processes. Default: all cores."),
    ] = None,
    executor: Annotated[
        ExecutorName,
        typer.Option("--executor", help="Processes of this machine, or a Ray cluster."),
    ] = ExecutorName.PROCESSES,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address",
            metavar="HOST:PORT",
            help="The cluster; `auto`: the one this machine is part of. Default: $RAY_ADDRESS, or "
            "else Ray on this machine alone.",
        ),
    ] = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Train what is not finished yet.

    Every finished run is kept, whatever happens to the others; the same command again goes on, and
    more seeds or systems add to what is there.
    """
    if ray_address is not None and executor is not ExecutorName.RAY:
        _fail("--ray-address is for --executor ray")
    loaded = _load(suite)
    try:
        if systems is not None:
            loaded = loaded.replace_systems([name.strip() for name in systems.split(",")])
        if seeds is not None:
            loaded = loaded.replace_seeds(seeds)
        loaded.check_runnable()
    except SuiteError as error:
        _fail(str(error))
    store = Store(results, loaded.name)
    runs = loaded.runs()
    try:
        pending = [each for each in runs if not store.has(each)]
    except OSError as error:  # the directory may not be entered, or a name is too long for it
        _fail(f"results cannot be kept in {store.path}: {error}")
    out.print(
        f"Suite [bold]{escape(loaded.name)}[/]: {len(runs)} runs, "
        f"{len(runs) - len(pending)} finished before, {len(pending)} to do. "
        f"Results in {escape(str(store.path))}."
    )
    failures: list[Failure] = []
    if pending:
        try:
            store.prepare()
        except OSError as error:
            _fail(f"results cannot be kept in {store.path}: {error}")
        try:
            with _executor(executor, ray_address) as chosen:
                failures = _train(loaded, pending, store, chosen, workers)
        except KeyboardInterrupt:
            err.print(f"\nInterrupted. {_kept(runs, store)}")
            raise typer.Exit(INTERRUPTED) from None
        except (ClusterError, ImportError) as error:
            code = FAILED_RUNS if any(map(store.has, pending)) else BAD_INPUT
            _fail(f"{error}. {_kept(runs, store)}", code)
    else:
        store.sweep()
    if failures:
        _print_failures(failures, store)
        raise typer.Exit(FAILED_RUNS)
    out.print(f"All {len(runs)} runs are finished. The report: dqn-bench report {escape(suite)}")


def _executor(name: ExecutorName, ray_address: str | None) -> AbstractContextManager[Executor]:
    return Processes() if name is ExecutorName.PROCESSES else RayCluster(ray_address)


def _train(
    suite: Suite,
    pending: Sequence[RunSpec],
    store: Store,
    executor: Executor,
    workers: int | None,
) -> list[Failure]:
    """Train these runs with a display of it, and tell which failed."""
    count = min(workers or executor.cores, len(pending))
    if not count:
        _fail("the cluster has no processor; if it gets some on demand, say how many: --workers N")
    out.print(f"Training with {count} {_plural(count, 'worker')}.")
    events = executor.execute(
        pending, store, workers=count, checkpoint_every=suite.checkpoint_every
    )
    failures: list[Failure] = []
    with _Display(pending, count) as display:
        for event in events:
            display.show(event)
            if isinstance(event, Failed):
                failures.append(event.failure)
    return failures


def _kept(runs: Sequence[RunSpec], store: Store) -> str:
    return (
        f"{sum(map(store.has, runs))} of {len(runs)} runs are finished and kept; "
        "the same command goes on with the rest."
    )


@app.command()
def merge(
    suite: SuiteArgument,
    others: Annotated[
        list[Path],
        typer.Argument(metavar="DIR", help="Results directories, as --results names them."),
    ],
    results: ResultsOption = RESULTS,
) -> None:
    """Take the finished runs of other results directories, such as other machines'.

    Runs that are there already stay. If a run has other numbers than the one that is there,
    nothing is taken.
    """
    loaded = _load(suite)
    store = Store(results, loaded.name)
    try:
        merged = merging.merge(store, [Store(other, loaded.name) for other in others])
    except (StoreError, OSError) as error:
        _fail(str(error))
    out.print(
        f"{len(merged.taken)} {_plural(len(merged.taken), 'run')} taken, {len(merged.known)} there "
        f"already: {escape(str(store.path))}",
        soft_wrap=True,
    )
    _tell_of_others(loaded, store)


def _tell_of_others(suite: Suite, store: Store) -> None:
    """Runs under the suite's name that are not of it as it is written now."""
    others = 0
    for name in store.names():
        try:
            others += suite.belongs(store.spec(name)) is None
        except StoreError:
            others += 1
    if others:
        err.print(
            f"[yellow]{others} finished {_plural(others, 'run')} in {escape(str(store.path))} "
            f"{'is' if others == 1 else 'are'} of another configuration or version than suite "
            f"{escape(suite.name)!r} has now, and left out.[/]",
            soft_wrap=True,
        )


@app.command()
def report(
    suite: SuiteArgument,
    results: ResultsOption = RESULTS,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Default: report/ beside the suite's runs."),
    ] = None,
) -> None:
    """Write the results of a suite as one HTML page and as Markdown with pictures.

    The page holds everything in one file and opens without a network.
    """
    from dqn_adapters.benchmark.report import ReportError, write_report  # takes seconds

    loaded = _load(suite)
    store = Store(results, loaded.name)
    folder = output or store.path / "report"
    try:
        with err.status("Reading the runs and drawing the pictures"):
            page = write_report(loaded, store, folder, asked_as=suite)
    except (ReportError, StoreError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"the report cannot be written to {folder}: {error}")
    _tell_of_others(loaded, store)
    out.print(f"The report: {escape(str(page.resolve()))}", soft_wrap=True)
    out.print(f"The same in Markdown: {escape(str(page.with_suffix('.md')))}", soft_wrap=True)


@app.command()
def compare(
    suite: SuiteArgument,
    first: Annotated[str, typer.Argument(metavar="A", help="A system.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    results: ResultsOption = RESULTS,
) -> None:
    """Compare two systems of a suite seed by seed.

    The number is the area under the curve of A minus that of B; positive is in favour of A.
    """
    from dqn_adapters.benchmark import report as report_

    loaded = _load(suite)
    if first == second:
        _fail(f"A and B are both {first!r}; name two systems")
    store = Store(results, loaded.name)
    try:
        with err.status("Reading the runs"):
            found = report_.compare(loaded, store, (first, second), asked_as=suite)
    except (report_.ReportError, StoreError) as error:
        _fail(str(error))
    _tell_of_others(loaded, store)
    table = Table(
        "environment",
        Column("seeds", justify="right"),
        Column(f"{escape(first)} - {escape(second)}", justify="right"),
        Column("P(A > B)", justify="right"),
        "equivalent",
        box=None,
    )
    for each in found:
        difference = each.difference
        table.add_row(
            escape(each.environment.id),
            str(difference.area.n),
            escape(report_.show_estimate(difference.area)),
            "" if each.improvement is None else escape(report_.show_aggregate(each.improvement)),
            "" if each.environment.margin is None else report_.show_equivalence(difference),
        )
    out.print(table)
    out.print(
        "Square brackets are 95 % intervals, round ones the range of too few seeds for an interval."
    )


@app.command()
def export(
    suite: SuiteArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Default: export/ beside the suite's runs."),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Event files for TensorBoard in place of CSV.")
    ] = False,
    wandb: Annotated[
        str | None,
        typer.Option(
            "--wandb",
            metavar="PROJECT",
            help="Runs of a project of Weights & Biases in place of CSV.",
        ),
    ] = None,
    results: ResultsOption = RESULTS,
) -> None:
    """Write curves as CSV, for TensorBoard or for Weights & Biases; of unfinished runs up to their
    last checkpoint."""
    from dqn_adapters.benchmark import export as export_
    from dqn_adapters.benchmark.checkpoints import DamagedCheckpointError

    if tensorboard and wandb is not None:
        _fail("--tensorboard and --wandb exclude each other: give one of them")
    loaded = _load(suite)
    store = Store(results, loaded.name)
    folder = output or store.path / "export"
    try:
        found = export_.curves(loaded, store)
        if tensorboard:
            export_.write_tensorboard(found, folder)
        elif wandb is not None:
            export_.write_wandb(found, wandb, folder)
        else:
            export_.write_csv(found, folder)
    except (export_.ExportError, StoreError, DamagedCheckpointError, ImportError) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"curves cannot be written to {folder}: {error}")
    _tell_of_others(loaded, store)
    begun = sum(not curve.finished for curve in found)
    out.print(
        f"{len(found)} {_plural(len(found), 'run')}"
        + (f", {begun} of them not finished" if begun else "")
        + f": {escape(str(folder))}",
        soft_wrap=True,
    )


@app.command()
def memory(
    transitions: Annotated[
        int, typer.Option("--transitions", metavar="N", min=1000, help="How many are stored.")
    ] = 10_000,
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAME", help="Only the buffer of this name.")
    ] = None,
) -> None:
    """Measure how many bytes replay buffers need per transition of stacked Atari frames.

    Each buffer is filled in a process of its own, and the growth of that process is what counts.
    """
    from dqn_adapters.benchmark.memory import BUFFERS, find, measure

    try:
        buffers = BUFFERS if only is None else (find(only),)
    except ValueError as error:
        _fail(str(error))
    table = Table(
        "replay buffer",
        Column("bytes per transition", justify="right"),
        Column("a million", justify="right"),
        "",
        box=None,
    )
    for buffer in buffers:
        try:
            row = measure(buffer.name, transitions)
        except (ImportError, RuntimeError) as error:
            table.add_row(buffer.name, "", "", f"[yellow]{escape(str(error))}[/]")
            continue
        size = row.bytes_per_transition
        table.add_row(buffer.name, f"{size:,.0f}", f"{size / 1000:.1f} GB", escape(row.note))
    out.print(table)


class _Display:
    """Live bars on a terminal, a line per finished run elsewhere."""

    def __init__(self, runs: Sequence[RunSpec], workers: int) -> None:
        self._live = out.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=out,
            speed_estimate_period=120.0,
            disable=not self._live,
        )
        self._steps: Counter[str] = Counter()
        self._count = len(runs)
        self._done = 0
        self._overall = self._progress.add_task(
            "[bold]all runs", total=sum(run.total_timesteps for run in runs), amount=""
        )
        self._tasks: list[TaskID] = []
        if len(runs) > 0:
            self._tasks = [
                self._progress.add_task("", total=1, amount="", visible=False)
                for _ in range(workers)
            ]

    def __enter__(self) -> _Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: Event) -> None:
        """Bring the display up to date."""
        run = event.run
        label = escape(f"{run.environment.title} {run.title} seed {run.seed_index}")
        task = self._tasks[event.worker]
        if isinstance(event, Started):
            self._progress.reset(
                task, description=label, total=run.total_timesteps, visible=True, amount=""
            )
        elif isinstance(event, Progressed):
            self._step(run, event.timestep)
            self._progress.update(task, completed=event.timestep, amount=f"{event.timestep:,}")
        else:
            self._done += 1
            self._step(run, run.total_timesteps)
            self._progress.update(task, visible=False)
            count = f"{self._done}/{self._count}"
            if isinstance(event, Finished):
                text = f"score {event.final_score:.1f}, {event.training_seconds:.1f} s"
                line = f"[green]done[/]   {count} {label}: {text}"
            else:
                line = f"[red]failed[/] {count} {label}: {escape(event.failure.reason)}"
            self._progress.console.print(line, soft_wrap=True)

    def _step(self, run: RunSpec, timestep: int) -> None:
        self._steps[run.name] = timestep
        self._progress.update(
            self._overall,
            completed=self._steps.total(),
            amount=f"{self._done}/{self._count}",
        )


def _print_failures(failures: Sequence[Failure], store: Store) -> None:
    err.print(f"[red]{len(failures)} {_plural(len(failures), 'run')} failed:[/]")
    for failure in failures:
        err.print(f"  {escape(failure.run.name)}: {escape(failure.reason)}", soft_wrap=True)
    err.print(
        f"Details are in {escape(str(store.path / 'failures'))}. "
        "The same command tries these runs again."
    )


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else noun + "s"


def _load(name: str) -> Suite:
    try:
        return load_suite(name)
    except SuiteError as error:
        _fail(str(error))


def _fail(message: str, code: int = BAD_INPUT) -> typing.Never:
    err.print(f"[red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the console script."""
    if os.getcwd() not in sys.path:  # systems of the user's own are found as `python -m` finds them
        sys.path.insert(0, os.getcwd())
    app()
