"""Where the processor time of a step goes, by sampling.

A wrapper around a method would lengthen the step, and a fast path that sees a method that is not
the stock one steps aside, so that something else would be measured. A profiler that is called at
every function call lengthens Python code and not compiled code. So a timer interrupts the training,
and the time since the last interruption goes to the innermost named method on the stack. Nothing is
replaced. Python handles an interruption when the call into compiled code that it fell into returns,
while the stack still shows who called.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from types import CodeType, FrameType

PARTS = ("environment", "act", "store", "sample", "update", "phase", "host")
"""Names of parts in the order of a step. `"phase"` is a whole training phase in one call: sampling
and updates together. `"host"` is the loop around the others."""

Part = tuple[str, object]
"""A name and its function or method; None where there is none. Several may share a name."""

INTERVAL = 0.001
"""Seconds between two interruptions."""


def part(name: str, owner: object, method: str) -> Part:
    """A part that is a method, which may be absent."""
    return name, getattr(owner, method, None)


class Sampler:
    """Counts nanoseconds for the parts; one that is not a Python function is left out."""

    def __init__(self, parts: Iterable[Part], clock: Callable[[], int]) -> None:
        self.spent: Counter[str] = Counter()
        codes = ((getattr(function, "__code__", None), name) for name, function in parts)
        self._names = {code: name for code, name in codes if isinstance(code, CodeType)}
        self._clock = clock
        self._last = clock()

    def sample(self, frame: FrameType | None) -> None:
        """Count the time since the last call for the innermost part of a stack."""
        now = self._clock()
        while frame is not None and frame.f_code not in self._names:
            frame = frame.f_back
        self.spent["host" if frame is None else self._names[frame.f_code]] += now - self._last
        self._last = now


def breakdown(
    train: Callable[[int], object], steps: int, parts: Iterable[Part]
) -> dict[str, float]:
    """Microseconds of processor time of this thread per step in every part, without the parts
    within it. Other processes do not count. Empty if no parts are given.

    Trains for twice as many steps: without interruptions for the time, which they would lengthen,
    and with them for the shares. Needs the main thread of a POSIX system.
    """
    parts = tuple(parts)
    if not parts:
        return {}
    start = time.thread_time_ns()
    train(steps)
    total = (time.thread_time_ns() - start) / 1e3 / steps
    sampler = Sampler(parts, time.thread_time_ns)
    handler = signal.signal(signal.SIGALRM, lambda _signal, frame: sampler.sample(frame))
    signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)
    try:
        train(steps)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    sampler.sample(None)
    spent = sampler.spent
    return {name: total * spent[name] / spent.total() for name in PARTS if spent[name] > 0}
