"""SBX's DQN, in JAX, in the loop of Stable-Baselines3."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from speed.peers import Peer

if TYPE_CHECKING:
    from speed.rows import Row

PEER = Peer("SBX", "sbx", "'dqn-adapters[sbx]'")


def rows() -> tuple[Row, ...]:
    """The rows against this peer."""
    from speed.configurations import SMALL
    from speed.ours import native
    from speed.peers import sb3, tianshou
    from speed.rows import Row

    theirs = partial(sb3.train, SMALL, library="sbx")
    ours = partial(sb3.train, SMALL, library=sb3.OURS)
    return (
        Row("native-sbx", PEER, partial(native, SMALL), theirs),
        Row("sb3-sbx", PEER, ours, theirs),
        Row(
            "tianshou-sbx",
            PEER,
            partial(tianshou.train, SMALL, ours=True),
            theirs,
            tianshou.stored(),
        ),
    )
