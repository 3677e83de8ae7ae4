"""The checkpoint of a run that is not finished: one at most, whole or absent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dqn_adapters.files import replacing_text

_PROGRESS = "progress.json"
_LOCK = "lock"


class DamagedCheckpointError(Exception):
    """A checkpoint is there and cannot be read."""


class BusyRunError(Exception):
    """Another process trains the run."""


class Checkpoints:
    """What an unfinished run needs to go on, in a directory of its own.

    It is the agent's file, named after the environment steps, and `progress.json`, which names it
    and holds what the recorder knows. The latter is renamed into place last: until then the old
    checkpoint is the valid one.

    Args:
        directory: Of the run; made when something is saved.
        every: Environment steps between two checkpoints, at least.
    """

    def __init__(self, directory: Path, every: int) -> None:
        self.directory = directory
        self.every = every

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes off: two that replace one checkpoint in turn would damage it. A
        process that dies lets go.

        Raises:
            BusyRunError: another one has it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.directory / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise BusyRunError(
                f"another process trains the run, and has its checkpoint in {self.directory}; "
                "wait for it, or end it"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def load(self) -> tuple[Path, dict[str, Any]] | None:
        """The agent's file and what the recorder knew; None if there is no checkpoint.

        What a killed process left half written is removed.

        Raises:
            DamagedCheckpointError: it cannot be read.
        """
        progress = self.progress()
        if progress is None:
            return None
        agent = self.directory / progress["agent"]
        if not agent.is_file():
            raise self.damaged(ValueError(f"{agent.name} is missing"))
        self._keep(agent)
        return agent, progress

    def progress(self) -> dict[str, Any] | None:
        """What the recorder knew; None if there is no checkpoint. It only reads.

        Raises:
            DamagedCheckpointError: it cannot be read.
        """
        try:
            text = (self.directory / _PROGRESS).read_text(encoding="utf-8")
            progress: dict[str, Any] = json.loads(text)
            if not isinstance(progress["agent"], str):
                raise TypeError("it names no agent")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.damaged(error) from error
        return progress

    def save(
        self, timestep: int, progress: Mapping[str, Any], write: Callable[[Path], object]
    ) -> None:
        """Replace the checkpoint.

        Args:
            timestep: Environment steps done.
            progress: What the recorder knows, JSON-compatible.
            write: Writes the agent to the file that it is given.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        agent = self.directory / f"agent-{timestep}"
        write(agent)
        with replacing_text(self.directory / _PROGRESS) as file:
            json.dump({**progress, "agent": agent.name}, file, allow_nan=False)
        self._keep(agent)

    def damaged(self, error: Exception) -> DamagedCheckpointError:
        """The error to raise where the checkpoint turns out to be unreadable."""
        return DamagedCheckpointError(
            f"the checkpoint in {self.directory} is damaged ({type(error).__name__}: {error}); "
            "delete it, and the run begins anew"
        )

    def _keep(self, agent: Path) -> None:
        for path in self.directory.iterdir():
            if path.name not in (_LOCK, _PROGRESS, agent.name):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
