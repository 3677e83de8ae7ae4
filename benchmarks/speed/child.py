"""A side in a process and an environment of its own, which takes its turns over a pipe."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, Any

from speed.side import Side, Work

CODE = "from speed.child import serve; serve()"
"""The program of a child; its argument is the module of its peer."""


class Remote:
    """The parent's end. A message is a line of JSON: the name of a method and its arguments; so is
    the answer.

    Args:
        python: The interpreter of the child.
        peer: The module in `speed.peers` whose `train` makes the side.
        settings: The fields of a `DQNConfig`.
    """

    def __init__(self, python: str | Path, peer: str, settings: Mapping[str, Any]) -> None:
        self._peer = peer
        package = Path(__file__).resolve().parent.parent
        self._process = subprocess.Popen(
            [str(python), "-c", CODE, peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(package)},
        )
        self._ask("make", settings)

    def _ask(self, method: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([method, arguments]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait()
            raise RuntimeError(f"the process of {self._peer} ended with exit code {code}")
        return json.loads(answer)

    def run(self, steps: int) -> None:
        self._ask("run", steps)

    def work(self) -> Work:
        return Work(**self._ask("work"))

    def set_threads(self, count: int) -> None:
        self._ask("set_threads", count)

    def breakdown(self, steps: int) -> dict[str, float]:
        return dict(self._ask("breakdown", steps))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    """The child's end: does what the lines on its standard input ask for, until they end."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # whatever a library prints must not be an answer
        _serve(sys.argv[1], sys.stdin, answers)


def _serve(peer: str, requests: IO[str], answers: IO[str]) -> None:
    side: Side | None = None
    for line in requests:
        method, arguments = json.loads(line)
        if method == "make":
            side = importlib.import_module(f"speed.peers.{peer}").train(*arguments)
            answer = None
        else:
            answer = getattr(side, method)(*arguments)
        if is_dataclass(answer) and not isinstance(answer, type):
            answer = asdict(answer)
        elif method == "run":
            answer = None
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
