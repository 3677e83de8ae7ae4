"""The table: what is compared with what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym

from dqn_adapters.config import DQNConfig
from speed import peers
from speed.child import Remote
from speed.configurations import ENVIRONMENT
from speed.environments import one
from speed.ours import native
from speed.peers import Peer, sb3
from speed.side import Side
from speed.venvs import python_of


@dataclass(frozen=True)
class Row:
    """A comparison."""

    name: str
    peer: Peer
    ours: Callable[[], Side]
    theirs: Callable[[], Side]
    note: str = ""
    unit: str = "environment steps"
    steps: tuple[int, int] | None = None
    """Steps of ours and of theirs in a turn, however long; None: as many as fit."""

    turns: int = 15
    environment: Callable[[], gym.Env[Any, Any]] | None = one
    """Makes the environment that is also measured alone; None if there is none."""


def in_its_process(peer: Peer, config: DQNConfig, note: str = "") -> tuple[Row, ...]:
    """The rows against a peer that has an environment and a process of its own."""
    theirs = partial(_remote, peer, config)
    ours = partial(sb3.train, config, library=sb3.OURS)
    return (
        Row(f"native-{peer.module}", peer, partial(native, config), theirs, note),
        Row(f"sb3-{peer.module}", peer, ours, theirs, note),
    )


def _remote(peer: Peer, config: DQNConfig) -> Remote:
    return Remote(python_of(peer), peer.module, {**config.to_dict(), "environment": ENVIRONMENT})


def table() -> tuple[Row, ...]:
    """All rows, peer by peer."""
    return tuple(row for module in peers.modules() for row in module.rows())


def find(name: str) -> Row:
    """The row of that name; `ValueError` if there is none."""
    rows = table()
    for row in rows:
        if row.name == name:
            return row
    names = ", ".join(row.name for row in rows)
    raise ValueError(f"there is no row {name!r}; the rows are {names}")
