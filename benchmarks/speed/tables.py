"""The results for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich.table import Column, Table

from speed.measuring import Result
from speed.parts import PARTS


def tables(results: Sequence[Result]) -> list[Table]:
    """The ratios, and where a step's time goes."""
    right = partial(Column, justify="right")
    ratios = Table(
        Column("row", no_wrap=True),
        *map(right, ("ours", "peer's", "ratio", "95 %", "environment")),
        "peer, and what else",
        box=None,
    )
    for result in results:
        threads = f"{result.peer_threads} threads" if result.peer_threads > 1 else "1 thread"
        what = (result.peer_name, threads, result.note, f"load {result.load:.1f}")
        ratios.add_row(
            result.name,
            f"{result.ours:,.0f}/s",
            f"{result.peer:,.0f}/s",
            f"[bold]{result.ratio:.1f}[/]",
            f"{result.ratio_low:.1f}-{result.ratio_high:.1f}",
            "" if result.environment is None else f"{result.environment:,.0f}/s",
            ", ".join(filter(None, what)),
        )
    times = Table(
        Column("processor time, us a step", no_wrap=True),
        *map(right, (*PARTS, "products", "memory", "overhead")),
        box=None,
    )
    for result in results:
        for label, parts in (result.name, result.parts), ("peer", result.peer_parts):
            if not parts:
                continue
            cells = [f"{parts[name]:,.0f}" if name in parts else "" for name in PARTS]
            if label == result.name and result.overhead is not None:
                cells += [f"{result.products:,.1f}", f"{result.memory:,.1f}"]
                cells.append(f"{result.overhead:.0%}")
            times.add_row(label, *cells)
    return [ratios, times]
