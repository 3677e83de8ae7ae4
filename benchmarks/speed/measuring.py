"""How a row is measured."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dqn_adapters.benchmark.executor import ONE_THREAD
from dqn_adapters.benchmark.provenance import usable_cores
from dqn_adapters.files import replacing_text
from speed.configurations import LOT, SMALL
from speed.environments import Alone
from speed.rows import Row, find
from speed.side import Side, Work
from speed.venvs import python_of

SECONDS = 30.0
"""How long a row is measured, about, beside what it takes to start and to warm up."""


@dataclass
class Result:
    """What a row gave; `ours` and `peer` are medians, in units per second."""

    name: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    """Median over the turns; its 95 % interval by the bootstrap ends at the next two."""

    ratio_low: float
    ratio_high: float
    unit: str
    turns: int
    threads: int
    peer_threads: int
    load: float
    """Load average of the machine in the minute before: above 0 others used it too."""

    environment: float | None = None
    """Steps per second of one environment alone, median over the turns."""

    parts: dict[str, float] = field(default_factory=dict)
    """Microseconds of processor time per unit of ours, on one thread."""

    peer_parts: dict[str, float] = field(default_factory=dict)
    products: float | None = None
    """Microseconds of processor time per unit of the matrix products alone."""

    memory: float | None = None
    """The same of the least movement of memory alone."""

    overhead: float | None = None
    """Share of the processor time of ours that is not environment, products or memory, each as
    measured alone."""

    note: str = ""


class _Turns:
    """Two sides that train in turns."""

    def __init__(self, sides: tuple[Side, Side], row: Row, seconds: float) -> None:
        self._sides, self._seconds = sides, seconds / row.turns / 2
        self.lots, self.threads = (1, 1), (1, 1)
        if row.steps is not None:
            self.lots = (_lot(row.steps[0]), _lot(row.steps[1]))
            return
        for side in sides:
            side.run(SMALL.learning_starts // LOT * LOT + 2 * LOT)  # compiles, fills, settles
        self.lots = (2 * LOT, 2 * LOT)
        for _ in range(2):
            self.lots = (self._fitting(0), self._fitting(1))
        self.threads = (self._fastest(0), self._fastest(1))

    def rate(self, which: int, steps: int, threads: int) -> float:
        """Steps per second of a side in one turn."""
        side = self._sides[which]
        side.set_threads(threads)
        before, start = side.work().steps, time.perf_counter()
        side.run(steps)
        spent = time.perf_counter() - start
        return (side.work().steps - before) / spent

    def take(self) -> tuple[float, float]:
        """A turn of each."""
        ours, peers = (self.rate(k, self.lots[k], self.threads[k]) for k in (0, 1))
        return ours, peers

    def _fitting(self, which: int) -> int:
        return _lot(self.rate(which, self.lots[which], 1) * self._seconds)

    def _fastest(self, which: int) -> int:
        counts = range(1, usable_cores() + 1)
        rates = {n: max(self.rate(which, 2 * LOT, n) for _ in range(3)) for n in counts}
        return max(rates, key=lambda n: rates[n])


def compare(row: Row, seconds: float = SECONDS) -> Result:
    """Run one row in this process.

    Raises:
        AssertionError: the two did not do the same work.
    """
    load = os.getloadavg()[0]
    alone = None if row.environment is None else Alone(row.environment)
    with ExitStack() as stack:
        sides = row.ours(), row.theirs()
        for side in sides:
            stack.callback(side.close)
        turns = _Turns(sides, row, seconds)
        before = [side.work() for side in sides]
        rates = []
        for _ in range(row.turns):
            rates.append(turns.take())
            if alone is not None:
                alone.run(seconds / row.turns / 10)
        after = [side.work() for side in sides]
        check_work(before, after)
        ours, peers = np.array(rates).T
        low, high = _interval(ours / peers)
        result = Result(
            name=row.name,
            ours=float(np.median(ours)),
            peer=float(np.median(peers)),
            peer_name=row.peer.name,
            ratio=float(np.median(ours / peers)),
            ratio_low=low,
            ratio_high=high,
            unit=row.unit,
            turns=row.turns,
            threads=turns.threads[0],
            peer_threads=turns.threads[1],
            load=load,
            environment=None if alone is None else float(np.median(alone.rates)),
            note=row.note,
        )
        for side, lot, parts in zip(
            sides, turns.lots, (result.parts, result.peer_parts), strict=True
        ):
            side.set_threads(1)
            parts.update(side.breakdown(lot))
        floor = getattr(sides[0], "floor", None)
        if floor is not None and alone is not None:
            updates = (after[0].updates - before[0].updates) / (after[0].steps - before[0].steps)
            least = floor(updates)
            result.products, result.memory = least.products, least.memory
            environment = 1e6 * alone.seconds / alone.steps
            step = sum(result.parts.values())
            result.overhead = 1 - (environment + least.products + least.memory) / step
    return result


def _lot(steps: float) -> int:
    return max(1, round(steps / LOT)) * LOT


def _interval(samples: NDArray[np.float64]) -> tuple[float, float]:
    """95 % for the median, by the percentile bootstrap."""
    interval = stats.bootstrap(
        (samples,), np.median, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def check_work(before: Sequence[Work], after: Sequence[Work]) -> None:
    """Updates per step are equal, all steps are stored, and the losses are of one scale."""
    pairs = [
        (now.updates - then.updates, now.steps - then.steps)
        for then, now in zip(before, after, strict=True)
    ]
    done = [updates / steps for updates, steps in pairs]
    phase = LOT / min(steps for _, steps in pairs)  # one that has begun may be counted or not
    assert abs(done[0] - done[1]) <= 0.01 + phase, f"updates per step: {done}"
    for work in after:
        assert work.stored == min(work.steps, work.capacity), f"stored: {work}"
    losses = [work.loss for work in after if not math.isnan(work.loss)]
    assert not losses or max(losses) <= 1000 * min(losses), f"losses: {losses}"


def measure(row: Row, seconds: float = SECONDS) -> Result:
    """Run one row in a process of its own.

    Raises:
        ImportError: the peer is not installed, or cannot be.
        RuntimeError: the process failed; the message is what it wrote last.
    """
    row.peer.check_installed()
    if row.peer.requirements is not None:
        python_of(row.peer)
    code = (
        "import sys; from speed.measuring import compare_and_print as run; "
        "run(sys.argv[1], float(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, row.name, str(seconds)],
        capture_output=True,
        text=True,
        env=_environment(),
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeError(f"measuring {row.name!r} failed: {last}")
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def compare_and_print(name: str, seconds: float) -> None:
    """`compare` for a process that `measure` starts: the result as the last line."""
    result = compare(find(name), seconds)
    print(json.dumps(asdict(result)))


def compile_seconds() -> float:
    """Seconds that the kernel takes to compile, once on a machine: the first updates in a process
    with an empty cache, less those of one with a full cache."""
    code = (
        "import time; from speed.configurations import SMALL; from speed.ours import native; "
        "side = native(SMALL); start = time.perf_counter(); side.run(SMALL.learning_starts + 1); "
        "print(time.perf_counter() - start)"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = {**_environment(), "NUMBA_CACHE_DIR": cache}
        first, second = (
            float(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))
            for _ in range(2)
        )
    return first - second


def _environment() -> dict[str, str]:
    """Environment variables of a measuring process: this package is on its path, and it has one
    thread until a side is told to have more."""
    package = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return {**os.environ, **ONE_THREAD, "PYTHONPATH": path}


def write_json(path: Path, results: Sequence[Result]) -> None:
    """Write the results as a list of rows; the file is written beside and renamed."""
    with replacing_text(path) as file:
        file.write(json.dumps([asdict(result) for result in results], indent=2) + "\n")
