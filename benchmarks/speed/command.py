"""The command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from speed import measuring, rows
from speed.measuring import Result
from speed.tables import tables

FAILED_ROWS = 1
BAD_INPUT = 2

out, err = Console(width=None if sys.stdout.isatty() else 140), Console(stderr=True)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def speed(
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAME", help="Only the row of this name.")
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", metavar="S", min=0.1, help="How long a row is measured, about."),
    ] = measuring.SECONDS,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the rows to this file.")
    ] = None,
) -> None:
    """Measure training throughput against the libraries' own DQN, side by side.

    Both do the same work, which is asserted, in turns; a ratio is the median over the turns with
    its 95 % interval. Leave the machine alone meanwhile: the whole table takes about a quarter of
    an hour. A peer with requirements of its own is installed when its row is first measured.
    """
    try:
        chosen = rows.table() if only is None else (rows.find(only),)
    except ValueError as error:
        raise _refused(str(error)) from None
    if json is not None and not json.absolute().parent.is_dir():
        raise _refused(f"--json {json}: there is no directory {json.parent}")
    results: list[Result] = []
    left_out: list[str] = []
    failures: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task("", total=len(chosen))
        for row in chosen:
            progress.update(task, description=row.name)
            try:
                results.append(measuring.measure(row, seconds))
            except ImportError as error:
                left_out.append(f"{row.name} is left out: {error}")
            except RuntimeError as error:
                failures.append(str(error))
            if json is not None and results:
                measuring.write_json(json, results)
            progress.advance(task)
    out.print(*tables(results), sep="\n")
    for line in left_out:
        out.print(f"[yellow]{escape(line)}[/]", soft_wrap=True)
    for line in failures:
        err.print(f"[red]error:[/] {escape(line)}", soft_wrap=True)
    if failures:
        raise typer.Exit(FAILED_ROWS)
    if not results:
        raise typer.Exit(BAD_INPUT)
    if only is None:
        once = measuring.compile_seconds()
        out.print(f"Compiling the kernel takes {once:.0f} s, once on a machine; not counted.")


def _refused(message: str) -> typer.Exit:
    err.print(f"[red]error:[/] {escape(message)}", soft_wrap=True)
    return typer.Exit(BAD_INPUT)
