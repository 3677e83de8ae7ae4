"""A tree of sums for sampling in proportion to priorities."""

from __future__ import annotations

import importlib.util
import itertools
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FAN_OUT = 64


@cache
def loops() -> Any:
    """The module `compiled`, or None."""
    if importlib.util.find_spec("numba") is None:
        return None
    from dqn_adapters.replay import compiled  # numba takes half a second to import

    return compiled


class SumTree:
    """Non-negative values, and the sums of ever larger blocks of 64 of them.

    A binary tree over a million values has 20 levels, and numpy pays for every level; with 64
    children to a node there are 4, whose blocks are summed and searched whole (or, where numba is
    installed, by the loops of `compiled`, which find the same). Sums are taken
    anew from the children, never updated by differences, so rounding does not pile up.

    Args:
        capacity: Number of values, >= 1; all are 0 at first.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        sizes = [_blocks(capacity)]
        while sizes[-1] > 1:
            sizes.append(_blocks(sizes[-1]))
        self.starts = np.cumsum([0, *sizes[:-1]])
        """The row in `nodes` at which each level begins."""
        self.nodes = np.zeros((sum(sizes), _FAN_OUT))
        """Level 0 holds the values; one row of level k + 1 the sums of 64 rows of level k."""

    @property
    def _levels(self) -> list[NDArray[np.float64]]:
        return np.split(self.nodes, self.starts[1:])

    @property
    def total(self) -> float:
        """The sum of all values."""
        return float(self.nodes[-1].sum())

    @property
    def nbytes(self) -> int:
        """Bytes of the tree."""
        return self.nodes.nbytes

    def get(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """The values at `indices`, any shape."""
        return self.nodes.ravel()[indices]

    def set(self, indices: NDArray[np.int64], values: ArrayLike) -> None:
        """Set the values at `indices`; where an index comes twice, the last value counts."""
        compiled = loops()
        if compiled is not None:
            every = np.ascontiguousarray(np.broadcast_to(values, np.shape(indices)), np.float64)
            if compiled.set_values(self.nodes, self.starts, indices, every):
                return
        levels = self._levels
        levels[0].ravel()[indices] = values
        rows = indices // _FAN_OUT
        for level, above in itertools.pairwise(levels):
            above.ravel()[rows] = level[rows].sum(axis=1)
            rows = rows // _FAN_OUT

    def find(self, masses: NDArray[np.float64]) -> NDArray[np.int64]:
        """For each mass in [0, total) the first index at which the running sum exceeds it.

        An index whose value is 0 is never found.
        """
        compiled = loops()
        if compiled is not None:
            indices = np.empty(len(masses), np.int64)
            compiled.find(self.nodes, self.starts, masses, indices)
            return indices
        rows = np.zeros(len(masses), np.int64)
        for level in reversed(self._levels):
            sums = level[rows].cumsum(axis=1)
            # By rounding a mass may reach the sum of its block: it stays within the block.
            masses = np.minimum(masses, np.nextafter(sums[:, -1], 0))
            child = (sums <= masses[:, None]).sum(axis=1)
            below = np.where(child > 0, sums[np.arange(len(rows)), child - 1], 0.0)
            masses, rows = masses - below, rows * _FAN_OUT + child
        return rows

    def state_dict(self) -> dict[str, Any]:
        """The values."""
        return {"values": self.nodes.ravel()[: self.capacity]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values of a tree of the same capacity."""
        self.set(np.arange(self.capacity), state["values"])


def _blocks(size: int) -> int:
    return -(-size // _FAN_OUT)
