"""Runs in worker processes: every core, one thread each, and no run can take another one down.

Each slot owns one process, which lives on from run to run (importing the hosts takes seconds). A
process that dies fails its run alone and is replaced; a pool of the standard library would break
as a whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Protocol, Self

from dqn_adapters.benchmark.checkpoints import Checkpoints
from dqn_adapters.benchmark.provenance import usable_cores
from dqn_adapters.benchmark.resident import PeakMemory
from dqn_adapters.benchmark.spec import RunSpec
from dqn_adapters.benchmark.store import Failure, RunResult, Store

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
_GRACE_SECONDS = 5.0
_LOG_TAIL = 40


@dataclass(frozen=True)
class Started:
    """A worker took a run."""

    run: RunSpec
    worker: int


@dataclass(frozen=True)
class Progressed:
    """A run got further."""

    run: RunSpec
    worker: int
    timestep: int


@dataclass(frozen=True)
class Finished:
    """A run is done and stored."""

    run: RunSpec
    worker: int
    final_score: float
    training_seconds: float


@dataclass(frozen=True)
class Failed:
    """A run failed; the reason is stored."""

    run: RunSpec
    worker: int
    failure: Failure


Event = Started | Progressed | Finished | Failed


class Executor(Protocol):
    """Where runs are trained; a context manager."""

    def __enter__(self) -> Executor:
        """Make ready."""

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind."""

    @property
    def cores(self) -> int:
        """How many can be trained at once."""

    def execute(
        self,
        runs: Sequence[RunSpec],
        store: Store,
        *,
        workers: int,
        checkpoint_every: int | None = None,
    ) -> Iterator[Event]:
        """Train the runs and tell what happens; see the function `execute`."""


class Processes:
    """In processes of this machine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def cores(self) -> int:
        """Cores that this process may run on."""
        return usable_cores()

    def execute(
        self,
        runs: Sequence[RunSpec],
        store: Store,
        *,
        workers: int,
        checkpoint_every: int | None = None,
    ) -> Iterator[Event]:
        """As the function `execute`."""
        return execute(runs, store, workers=workers, checkpoint_every=checkpoint_every)


def execute(
    runs: Sequence[RunSpec],
    store: Store,
    *,
    workers: int,
    checkpoint_every: int | None = None,
) -> Iterator[Event]:
    """Train the runs and tell what happens, as it happens.

    Finished runs are in the store before their event. Leaving the loop early, by an exception or
    by `close()`, ends the workers; of the runs in flight their checkpoints are left, if they have
    any, and no other run is lost.

    Args:
        runs: What to train, in this order.
        store: Where results and failures go.
        workers: Number of processes.
        checkpoint_every: Environment steps after which runs that can be continued save what they
            need for that; None: they do not.
    """
    pending = deque(runs)
    slots = [
        _Slot(number, store, workers, checkpoint_every)
        for number in range(min(workers, len(pending)))
    ]
    store.prepare()
    try:
        for slot in slots:
            yield slot.assign(pending.popleft())
        while busy := [slot for slot in slots if slot.run is not None]:
            # A worker that died with messages unread shows in both; the messages come first.
            ready = wait([thing for slot in busy for thing in slot.waitables])
            for slot in busy:
                if any(thing in ready for thing in slot.waitables):
                    yield from slot.events()
                if slot.run is None and pending:
                    yield slot.assign(pending.popleft())
    finally:
        _stop(slots)


class _Slot:
    def __init__(
        self, number: int, store: Store, workers: int, checkpoint_every: int | None
    ) -> None:
        self.number = number
        self.run: RunSpec | None = None
        self._store = store
        self._workers = workers
        self._checkpoint_every = checkpoint_every
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    @property
    def log(self) -> Path:
        return self._store.logs / f"worker-{self.number}.log"

    @property
    def waitables(self) -> list[Connection | int]:
        assert self._process is not None
        assert self._connection is not None
        return [self._connection, self._process.sentinel]

    def assign(self, run: RunSpec) -> Started:
        self.run = run
        if self._process is None:
            self._spawn()
        assert self._connection is not None
        with contextlib.suppress(BrokenPipeError):  # it died idle: the sentinel tells
            self._connection.send(run)
        return Started(run, self.number)

    def events(self) -> Iterator[Event]:
        assert self._process is not None
        assert self._connection is not None
        died = not self._process.is_alive()
        with contextlib.suppress(EOFError, OSError):  # it ended, perhaps in the middle of a message
            while self.run is not None and self._connection.poll():
                message = self._connection.recv()
                yield self._event(message)
        if died:
            self._process.join()
            code = self._process.exitcode or 0
            self._connection.close()
            self._process = self._connection = None
            if self.run is not None:
                yield self._event(Failure(self.run, _death(code), self._log_tail()))

    def _event(self, message: int | Outcome) -> Event:
        run = self.run
        assert run is not None
        if isinstance(message, int):
            return Progressed(run, self.number, message)
        self.run = None
        return conclude(self._store, run, self.number, message)

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work,
            args=(theirs, self._store, self._workers, self.log, self._checkpoint_every),
            name=f"dqn-bench worker {self.number}",
            daemon=True,
        )
        with _one_thread(), _interrupts_held_back():
            self._process.start()
        theirs.close()

    def stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None and self.run is not None:
            self._process.terminate()

    def join(self, deadline: float) -> None:
        if self._process is None:
            return
        self._process.join(max(0.0, deadline - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _log_tail(self) -> str:
        assert self.run is not None
        with contextlib.suppress(OSError):
            text = self.log.read_text(errors="replace").rpartition(_heading(self.run))[2]
            return "\n".join(text.splitlines()[-_LOG_TAIL:]).strip()
        return ""


def _stop(slots: Sequence[_Slot]) -> None:
    for slot in slots:
        slot.stop()
    deadline = time.monotonic() + _GRACE_SECONDS
    for slot in slots:
        slot.join(deadline)


def _heading(run: RunSpec) -> str:
    return f"--- {run.name}"


def _death(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"the worker process was killed by {signal.Signals(-code).name}"
    return f"the worker process ended by itself with exit code {code}"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The libraries of a child started inside read these variables when they are imported."""
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Ctrl-C reaches the whole process group. A child started inside inherits the blocked signal:
    only the parent is interrupted, and it ends the children."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    connection: Connection, store: Store, workers: int, log: Path, checkpoint_every: int | None
) -> None:
    """The worker process: receive a run, train it, store it, tell; until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    _redirect_output(log)
    trainer = Trainer()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            run: RunSpec = connection.recv()
            checkpoints = store.checkpoints(run, checkpoint_every)
            result = trainer.train(run, connection.send, workers, checkpoints)
            connection.send(result if isinstance(result, Failure) else save(store, result))


def _end_with_the_parent() -> None:
    """A parent that is killed closes no pipe while this process trains."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Trainer:
    """Trains run after run in this process, with one thread."""

    def __init__(self) -> None:
        self._warm: set[tuple[str, str]] = set()

    def train(
        self,
        run: RunSpec,
        progress: Callable[[int], None],
        workers: int,
        checkpoints: Checkpoints | None,
    ) -> RunResult | Failure:
        """Train a run and measure what it takes, with the libraries loaded and compiled before.

        Args:
            run: What to train.
            progress: Called with the environment steps done, now and then.
            workers: How many processes share the machine; recorded.
            checkpoints: Where a system that can be continued keeps what it needs for that.
        """
        import torch

        from dqn_adapters.benchmark.systems import train, warm_up

        _log(_heading(run))
        try:
            torch.set_num_threads(1)
            if (run.title, run.protocol) not in self._warm:
                warm_up(run)
                self._warm.add((run.title, run.protocol))
            with checkpoints.held() if checkpoints else contextlib.nullcontext():
                memory = PeakMemory()
                result = train(run, progress=progress, workers=workers, checkpoints=checkpoints)
                timing = dataclasses.replace(result.timing, peak_memory=memory.rise)
            return dataclasses.replace(result, timing=timing)
        except Exception as error:
            return failure_of(run, error)


Outcome = Failure | tuple[float, float]
"""How a run ended: why it failed; or, of one that is stored, its final score and its training
seconds."""


def save(store: Store, result: RunResult) -> Outcome:
    """Store a result; a disk that is full fails the run alone."""
    try:
        store.save(result)
    except Exception as error:
        return failure_of(result.run, error)
    return result.scores[-1], result.timing.training_seconds


def conclude(store: Store, run: RunSpec, worker: int, outcome: Outcome) -> Finished | Failed:
    """The event of a run that has ended; why it failed is stored, if that can be."""
    if not isinstance(outcome, Failure):
        return Finished(run, worker, *outcome)
    with contextlib.suppress(OSError):  # it is told all the same
        store.save_failure(outcome)
    return Failed(run, worker, outcome)


def failure_of(run: RunSpec, error: Exception) -> Failure:
    """The failure that the exception at hand stands for."""
    details = traceback.format_exc()
    _log(details)
    return Failure(run, f"{type(error).__name__}: {error}".partition("\n")[0], details)


def _log(text: str) -> None:
    with contextlib.suppress(OSError):  # the disk may be full
        print(text, flush=True)


def _redirect_output(log: Path) -> None:
    """What the libraries print belongs in a file, not across the progress display."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
