"""A tree of sums for sampling in proportion to priorities."""

from __future__ import annotations

import importlib.util
import itertools
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dqn_adapters.stored import check_array, check_finite_values, check_mapping

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

    def load_state_dict(self, state: Any, live: NDArray[np.bool_] | None = None) -> None:
        """Restore the values of a tree of the same capacity; see `check_state`."""
        self.set(np.arange(self.capacity), self.check_state(state, live))

    def check_state(self, state: Any, live: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """The values in a state.

        Args:
            state: What `state_dict` of a tree of the same capacity gave.
            live: `(capacity,)`, where a value may be more than 0. None: everywhere.

        Raises:
            ValueError: they are not finite numbers >= 0, one for each place, or they are more than
                0 where nothing is; or all are 0 although something is stored.
        """
        check_mapping("tree", state, ("values",))
        values = check_array("tree.values", state["values"], (self.capacity,), np.float64)
        check_finite_values("tree.values", values)
        if len(wrong := np.flatnonzero(values < 0)):
            raise ValueError(f"tree.values must be >= 0, got {values[wrong[0]]} at {wrong[0]}")
        with np.errstate(over="ignore"):
            total = values.sum()
        if not np.isfinite(total):
            raise ValueError("tree.values must have a finite sum")
        if live is not None:
            if len(wrong := np.flatnonzero(values[~live])):
                raise ValueError("tree.values must be 0 where no transition is stored")
            if live.any() and not total > 0:
                raise ValueError("tree.values must be more than 0 where transitions are stored")
        return values


def _blocks(size: int) -> int:
    return -(-size // _FAN_OUT)
