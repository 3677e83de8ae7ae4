"""A peer for the tests of child processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from speed.side import Local, Work


def train(settings: Mapping[str, Any]) -> Local:
    steps = 0

    def run(more: int) -> int:
        nonlocal steps
        print("a library that prints")
        if more == settings["fatal"]:
            os._exit(3)
        steps += more
        return steps

    return Local(run, lambda: Work(steps, steps, steps, settings["buffer_size"]), [("update", run)])
