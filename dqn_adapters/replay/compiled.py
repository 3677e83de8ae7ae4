"""The loops of `SumTree`, compiled by numba where it is installed.

Numpy pays for every level with several passes over whole blocks; here a block is read until its
child is found. `SumTree` defines what they compute, and the tests hold them to that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True)
def find(levels: Any, masses: Any) -> NDArray[np.int64]:
    """See `SumTree.find`; the levels are its own, the values first."""
    found = np.empty(len(masses), np.int64)
    for i in range(len(masses)):
        mass, row = masses[i], 0
        for k in range(len(levels) - 1, -1, -1):
            block = levels[k][row]
            total = 0.0
            for value in block:
                total += value
            mass = min(mass, np.nextafter(total, 0.0))
            child, below, running = 0, 0.0, block[0]
            while running <= mass and child < len(block) - 1:
                child, below = child + 1, running
                running += block[child]
            mass -= below
            row = row * len(block) + child
        found[i] = row
    return found


@njit(cache=True)
def set_values(levels: Any, indices: Any, values: Any) -> bool:
    """See `SumTree.set`. False if an index is out of range; nothing is written then."""
    fan_out = levels[0].shape[1]
    for i in range(len(indices)):
        if not 0 <= indices[i] < levels[0].size:
            return False
    for i in range(len(indices)):
        levels[0][indices[i] // fan_out, indices[i] % fan_out] = values[i]
    width = 1
    for k in range(len(levels) - 1):
        width *= fan_out
        for i in range(len(indices)):
            row = indices[i] // width
            total = 0.0
            for value in levels[k][row]:
                total += value
            levels[k + 1][row // fan_out, row % fan_out] = total
    return True
