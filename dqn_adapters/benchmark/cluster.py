"""Runs on a Ray cluster: on many machines, with one processor and one thread each.

Results come back to the process that asks, and it alone stores them. A run whose worker or node
dies has failed, as one has with `executor` whose process dies; the same command tries it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import socket
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any, Self

from dqn_adapters._extras import require
from dqn_adapters.benchmark.executor import (
    ONE_THREAD,
    Event,
    Outcome,
    Progressed,
    Started,
    Trainer,
    conclude,
    save,
)
from dqn_adapters.benchmark.provenance import versions
from dqn_adapters.benchmark.spec import RunSpec
from dqn_adapters.benchmark.store import Failure, RunResult, Store
from dqn_adapters.files import PARTIAL

_POLL_SECONDS = 0.5
_CONNECT_SECONDS = 5.0
_PATIENCE_SECONDS = 300.0
"""How long a cluster may be without any processor; one that grows on demand needs minutes."""

_STARTS = 3
"""How often a worker may fail to start, one time after the other."""


class ClusterError(Exception):
    """The cluster cannot be reached, or cannot train."""


class RayCluster:
    """A connection to Ray, for as long as the context lasts.

    Args:
        address: As `ray.init` takes it: `HOST:PORT`, or `auto` for the cluster that this machine
            is part of. None: the one that `RAY_ADDRESS` names, or else Ray on this machine alone,
            started here.

    Raises:
        ImportError: Ray is not installed.
    """

    def __init__(self, address: str | None = None) -> None:
        require("ray", extra="ray")
        self._address = address

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            ClusterError: there is no such cluster.
        """
        _check_reachable(self._address)
        try:
            _ray().init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, RuntimeError, ValueError) as error:
            raise ClusterError(f"Ray does not connect: {' '.join(str(error).split())}") from error
        return self

    def __exit__(self, *_: object) -> None:
        _ray().shutdown()

    @property
    def cores(self) -> int:
        """Processors of the cluster."""
        return _processors()

    def execute(
        self,
        runs: Sequence[RunSpec],
        store: Store,
        *,
        workers: int,
        checkpoint_every: int | None = None,
    ) -> Iterator[Event]:
        """As `Processes.execute`; a run starts when the cluster has a processor for it.

        Workers that do not see the results directory under its path here make no checkpoints.

        Raises:
            ClusterError: workers do not start, have libraries of other versions than are installed
                here, or the cluster has had no processor for minutes. What is finished is stored.
        """
        with _marker(store) as marker:
            job = _Job(runs, store, workers, (marker, checkpoint_every))
            try:
                yield from job.events()
            finally:
                job.stop()


def _check_reachable(address: str | None) -> None:
    """Ray tries for minutes, and then ends the process."""
    address = address or os.environ.get("RAY_ADDRESS")
    found = re.fullmatch(r"(?:ray://)?\[?([^/\]]+)\]?:(\d+)", address or "")
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"nothing answers at the Ray address {address}: {error}") from error


@contextlib.contextmanager
def _marker(store: Store) -> Iterator[Store]:
    """A directory in the store that workers can look for; `Store.prepare` knows its name."""
    path = store.path.absolute()
    marker = path / f"{PARTIAL}{uuid.uuid4().hex}-{os.getpid()}"
    marker.mkdir(parents=True)
    try:
        yield Store(path, marker.name)
    finally:
        with contextlib.suppress(OSError):
            marker.rmdir()


def _ray() -> Any:  # much of it has no types
    import ray

    return ray


def _processors() -> int:
    return int(_ray().cluster_resources().get("CPU", 0))


class _Worker:
    """An actor: it trains in one thread and answers from another."""

    def __init__(self, marker: Store, checkpoint_every: int | None, path: Sequence[str]) -> None:
        # As a new process of the same machine has it: that is where systems of the user's own are.
        sys.path.extend(each for each in path if each not in sys.path)
        self._trainer = Trainer()
        self._store = Store(marker.path.parent.parent, marker.path.parent.name)
        self._checkpoint_every = checkpoint_every if marker.path.is_dir() else None
        self._progress = ("", 0)

    def hello(self) -> tuple[str, dict[str, str]]:
        """The node it is on, and the versions of its libraries."""
        return _ray().get_runtime_context().get_node_id(), versions()

    def progress(self) -> tuple[str, int]:
        """The name of the run, and the environment steps done."""
        return self._progress

    def train(self, run: RunSpec, workers: int) -> RunResult | Failure:
        def progress(timestep: int) -> None:
            self._progress = run.name, timestep

        checkpoints = self._store.checkpoints(run, self._checkpoint_every)
        return self._trainer.train(run, progress, workers, checkpoints)


class _Slot:
    """A worker of the cluster, or the place where the next one will be."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.actor: Any = None
        self.node = ""
        """Empty: the worker has not started yet."""

        self.run: RunSpec | None = None
        self.reply: Any = None
        """What the worker is to answer: its hello, or the result of the run."""

        self.progress: Any = None
        self.timestep = 0
        self.failed_starts = 0


class _Job:
    def __init__(
        self,
        runs: Sequence[RunSpec],
        store: Store,
        workers: int,
        arguments: tuple[Store, int | None],
    ) -> None:
        self._ray = ray = _ray()
        self._pending = deque(runs)
        self._store = store
        self._arguments = (*arguments, sys.path)
        self._remote = ray.remote(
            num_cpus=1,
            max_concurrency=2,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": ONE_THREAD},
        )(_Worker)
        self._slots = [_Slot(number) for number in range(min(workers, len(runs)))]
        self._most: Counter[str] = Counter()  # workers that a node has had at once
        self._seen = time.monotonic()

    def events(self) -> Iterator[Event]:
        for slot in self._slots:
            self._start(slot)
        while live := [slot for slot in self._slots if slot.actor is not None]:
            replies = {slot.reply: slot for slot in live}
            ready, _ = self._ray.wait(list(replies), timeout=_POLL_SECONDS)
            for reply in ready:
                yield from self._hear(replies[reply])
            for slot in live:
                yield from self._ask(slot)
            if not self._pending:
                for slot in live:
                    if slot.run is None:
                        self._end(slot)
            self._check_processors()

    def stop(self) -> None:
        for slot in self._slots:
            self._end(slot)

    def _start(self, slot: _Slot) -> None:
        slot.actor = self._remote.remote(*self._arguments)
        slot.reply = slot.actor.hello.remote()

    def _end(self, slot: _Slot) -> None:
        if slot.actor is not None:
            self._ray.kill(slot.actor)
        slot.actor = slot.reply = slot.progress = slot.run = None
        slot.node = ""

    def _hear(self, slot: _Slot) -> Iterator[Event]:
        run = slot.run
        try:
            answer = self._ray.get(slot.reply)
        except self._ray.exceptions.RayError as error:
            reason = self._reason(error, slot.node)
            self._end(slot)
            if run is not None:
                yield conclude(self._store, run, slot.number, Failure(run, reason, str(error)))
            else:
                slot.failed_starts += 1
            if not self._pending:
                return
            if slot.failed_starts < _STARTS:
                self._start(slot)
            elif all(each.actor is None for each in self._slots):
                raise ClusterError(
                    f"no worker starts on the cluster: {reason}. Every node needs "
                    "dqn-adapters[bench,ray], the libraries of the suite's systems, and systems of "
                    "your own"
                ) from error
            return
        if run is None:
            self._welcome(slot, *answer)
        else:
            yield conclude(self._store, run, slot.number, self._outcome(answer, slot))
            slot.run = None
        if self._pending:
            yield self._assign(slot)

    def _welcome(self, slot: _Slot, node: str, theirs: dict[str, str]) -> None:
        ours = versions()
        other = [
            f"{name} {theirs.get(name, 'missing')} (here {ours.get(name, 'missing')})"
            for name in sorted({*ours, *theirs})
            if theirs.get(name) != ours.get(name)
        ]
        if other:
            raise ClusterError(
                f"node {self._address(node)} would give other numbers, for it has "
                f"{', '.join(other)}; install the same versions everywhere"
            )
        slot.node, slot.failed_starts = node, 0
        count = sum(each.node == node for each in self._slots)
        self._most[node] = max(self._most[node], count)

    def _assign(self, slot: _Slot) -> Started:
        run = slot.run = self._pending.popleft()
        slot.timestep, slot.progress = 0, None
        slot.reply = slot.actor.train.remote(run, self._most[slot.node])
        return Started(run, slot.number)

    def _outcome(self, answer: RunResult | Failure, slot: _Slot) -> Outcome:
        if isinstance(answer, Failure):
            return answer
        # Others may have come to the node since it began.
        return save(self._store, dataclasses.replace(answer, workers=self._most[slot.node]))

    def _ask(self, slot: _Slot) -> Iterator[Event]:
        """How far the run is."""
        if slot.run is None:
            return
        if slot.progress is not None:
            if not self._ray.wait([slot.progress], timeout=0)[0]:
                return
            with contextlib.suppress(self._ray.exceptions.RayError):  # its reply will tell
                name, timestep = self._ray.get(slot.progress)
                if name == slot.run.name and timestep > slot.timestep:
                    slot.timestep = timestep
                    yield Progressed(slot.run, slot.number, timestep)
        slot.progress = slot.actor.progress.remote()

    def _check_processors(self) -> None:
        now = time.monotonic()
        if any(slot.run for slot in self._slots) or _processors():
            self._seen = now
        elif now - self._seen > _PATIENCE_SECONDS:
            raise ClusterError("the cluster has no processor left")

    def _reason(self, error: Exception, node: str) -> str:
        """In one line, without what Ray says at every death."""
        alive = {each["NodeID"] for each in self._ray.nodes() if each["Alive"]}
        if node and node not in alive:
            return f"node {self._address(node)} of the cluster died"
        text = " ".join(str(error).split())
        detail = re.search(r"Worker exit detail: (.*?)(?: Some common causes|$)", text)
        return f"the worker on the cluster died: {detail[1] if detail else text}"

    def _address(self, node: str) -> str:
        addresses = {each["NodeID"]: each["NodeManagerAddress"] for each in self._ray.nodes()}
        return str(addresses.get(node, node))
