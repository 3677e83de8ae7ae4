"""The loops of replay, compiled by numba where it is installed.

Numpy pays for every array that an operation touches, which for one step or one batch of a few dozen
rows is all there is to pay. `SumTree` and `ReplayBuffer` define what these functions compute, and
the tests hold them to that.

A tree is given by `nodes` and `starts`, see `SumTree`; without priorities `nodes` is empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


@njit(cache=True, inline="always")
def _sum(block: Any) -> Any:
    """The sum of a block of 64 values, in an order that is the same wherever this is compiled."""
    sums = block[:8].copy()
    for k in range(8, len(block), 8):
        for j in range(8):
            sums[j] += block[k + j]
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]))


@njit(cache=True)
def total(nodes: Any, starts: Any) -> Any:
    """The sum of all values."""
    return _sum(nodes[starts[-1]])


@njit(cache=True)
def find(nodes: Any, starts: Any, masses: Any, indices: Any) -> None:
    """See `SumTree.find`; the indices go into `indices` `(B,)`."""
    for i in range(len(masses)):
        mass, row = masses[i], 0
        for k in range(len(starts) - 1, -1, -1):
            block = nodes[starts[k] + row]
            child, below, running = 0, 0.0, 0.0
            for j in range(len(block)):
                if block[j] > 0:  # by rounding a mass may reach the sum of its block: then the last
                    child, below = j, running
                    running += block[j]
                    if running > mass:
                        break
            mass -= below
            row = row * len(block) + child
        indices[i] = row


@njit(cache=True)
def set_value(nodes: Any, starts: Any, index: int, value: float) -> None:
    """Set one value and the sums above it."""
    fan_out = nodes.shape[1]
    row = index // fan_out
    nodes[row, index % fan_out] = value
    for k in range(1, len(starts)):
        below = _sum(nodes[starts[k - 1] + row])
        nodes[starts[k] + row // fan_out, row % fan_out] = below
        row //= fan_out


@njit(cache=True)
def set_values(nodes: Any, starts: Any, indices: Any, values: Any) -> bool:
    """See `SumTree.set`. False if an index is out of range; nothing is written then."""
    room = (starts[1] if len(starts) > 1 else len(nodes)) * nodes.shape[1]
    for i in range(len(indices)):
        if not 0 <= indices[i] < room:
            return False
    for i in range(len(indices)):
        set_value(nodes, starts, indices[i], values[i])
    return True


@njit(cache=True)
def set_priorities(
    nodes: Any, starts: Any, indices: Any, td_errors: Any, alpha: float, largest: float
) -> tuple[int, float]:
    """See `ReplayBuffer.update_priorities`.

    Returns:
        Which of the TD errors is not finite or has a slot out of range, and then nothing is
        written; -1: none. And the largest priority so far.
    """
    room = (starts[1] if len(starts) > 1 else len(nodes)) * nodes.shape[1]
    for i in range(len(indices)):
        if not np.isfinite(td_errors[i]) or not 0 <= indices[i] < room:
            return i, largest
    for i in range(len(indices)):
        priority = (abs(td_errors[i]) + 1e-6) ** alpha
        largest = max(largest, priority)
        set_value(nodes, starts, indices[i], priority)
    return -1, largest


def _next(bits: Any, result: Any) -> Any:
    """A compiled function that calls a function of one of numpy's bit generators with its state,
    both given by their addresses."""

    @intrinsic
    def call_next(typing_context: Any, function: Any, state: Any) -> Any:
        def call(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            void = ir.IntType(8).as_pointer()
            pointer = ir.FunctionType(bits, [void]).as_pointer()
            return builder.call(
                builder.inttoptr(args[0], pointer), [builder.inttoptr(args[1], void)]
            )

        return result(types.int64, types.int64), call

    return call_next


_next_uint32 = _next(ir.IntType(32), types.uint32)
_next_double = _next(ir.DoubleType(), types.float64)


@njit(cache=True, inline="always")
def _bits(function: int, state: int) -> Any:
    return np.uint64(_next_uint32(function, state))


@njit(types.void(*[types.int64] * 5, types.int64[::1]), cache=True)
def draw(function: int, state: int, oldest: int, count: int, capacity: int, slots: Any) -> None:
    """Slots of uniformly drawn rows, into `slots` `(B,)`.

    They are those of `Generator.integers(count)`, which takes ten times as long: the method of
    Lemire (2019) on 32 bits.

    Args:
        function: Address of the bit generator's `next_uint32`.
        state: Address of its state.
        oldest: Number of the first row; row n lies in slot n % `capacity`.
        count: Of the rows, in 1 .. 2**32 - 1.
    """
    span = np.uint64(count)
    low = np.uint64(0xFFFFFFFF)
    threshold = (np.uint64(1 << 32) - span) % span
    for i in range(len(slots)):
        number = np.uint64(0)
        if count > 1:
            product = _bits(function, state) * span
            while (product & low) < threshold:
                product = _bits(function, state) * span
            number = product >> np.uint64(32)
        slots[i] = (oldest + np.int64(number)) % capacity


@njit(cache=True)
def draw_prioritized(function: int, state: int, nodes: Any, starts: Any, slots: Any) -> None:
    """Slots by one draw from [0, 1) for each of `len(slots)` equal parts of the total.

    The draws are those of `Generator.random`.

    Args:
        function: Address of the bit generator's `next_double`.
        state: Address of its state.
        slots: int64 `(B,)`, where they go.
    """
    masses = np.empty(len(slots))
    mass = total(nodes, starts)
    for i in range(len(slots)):
        masses[i] = (i + _next_double(function, state)) / len(slots) * mass
    find(nodes, starts, masses, slots)


def _rows(dtype: Any, ndim: int = 1) -> Any:
    """The type of arrays of any layout that are only read."""
    return types.Array(dtype, ndim, "A", readonly=True)


# Given beforehand, so that it is compiled once and not for every layout that a step may have.
_STORED = [
    types.int64(
        *(types.float32[:, ::1], types.float32[:, ::1]),
        *(types.int64[::1], types.float32[::1], types.boolean[::1], types.int64[::1]),
        *(types.boolean[:, ::1], types.float64[:, ::1], types.int64[::1]),
        *(types.int64[::1], types.int64, types.float64, _rows(types.int64)),
        *(_rows(types.float32, 2), _rows(types.int64), _rows(reward), _rows(types.float32, 2)),
        *(_rows(types.boolean), _rows(types.boolean), _rows(types.boolean)),
        _rows(types.boolean, 2),
    )
    for reward in (types.float64, types.float32)
]


@njit(_STORED, cache=True)
def store(
    observations: Any,
    next_observations: Any,
    actions: Any,
    rewards: Any,
    terminated: Any,
    successor: Any,
    masks: Any,
    nodes: Any,
    starts: Any,
    last: Any,
    added: int,
    priority: float,
    streams: Any,
    s: Any,
    a: Any,
    r: Any,
    s_next: Any,
    terminal: Any,
    truncated: Any,
    valid: Any,
    next_masks: Any,
) -> int:
    """Store the valid rows of a step; see `ReplayBuffer.add`.

    Args:
        observations: `(capacity, F)`, and the arrays of the buffer that follow; `masks` is
            `(capacity, A)`, or `(0, 0)`: there are none.
        last: Number of every stream's newest row, or -1.
        added: Rows stored so far.
        priority: Of new rows.
        streams: `(N,)`, distinct.
        s: `(N, F)`, and the fields of the step that follow; `next_masks` is `(N, A)` or `(0, 0)`.

    Returns:
        How many rows there were.
    """
    capacity, before = len(actions), added
    for i in range(len(valid)):
        if not valid[i]:
            continue
        slot = added % capacity
        for j in range(observations.shape[1]):
            observations[slot, j] = s[i, j]
            next_observations[slot, j] = s_next[i, j]
        actions[slot], rewards[slot], terminated[slot] = a[i], r[i], terminal[i]
        for j in range(masks.shape[1]):
            masks[slot, j] = next_masks[i, j]
        successor[slot] = -1
        previous = last[streams[i]]
        if previous >= 0 and previous > added - capacity:
            successor[previous % capacity] = slot
        last[streams[i]] = -1 if terminal[i] or truncated[i] else added
        if len(nodes):
            set_value(nodes, starts, slot, priority)
        added += 1
    return added - before


@njit(cache=True, error_model="numpy")
def gather(
    observations: Any,
    next_observations: Any,
    actions: Any,
    rewards: Any,
    terminated: Any,
    successor: Any,
    masks: Any,
    nodes: Any,
    starts: Any,
    indices: Any,
    n_steps: int,
    gamma: float,
    count: int,
    beta: float,
    s: Any,
    a: Any,
    r: Any,
    d: Any,
    s_next: Any,
    legal: Any,
    weights: Any,
) -> bool:
    """See `ReplayBuffer.gather` and `n_step_returns`.

    Args:
        observations: `(capacity, F)`, and the arrays of the buffer that follow; `masks` is
            `(capacity, A)`, or `(0, 0)`: there are none.
        indices: The slots.
        n_steps: And `gamma`: of the returns.
        count: Rows stored; and `beta`: of the importance weights.
        s: `(B, F)`, and the arrays of the batch that follow, which are written.

    Returns:
        False if an index is out of range.
    """
    mass, largest = total(nodes, starts) if len(nodes) else 0.0, 0.0
    importance = np.empty(len(weights))
    for i in range(len(indices)):
        row = indices[i]
        if not 0 <= row < len(actions):
            return False
        if len(nodes):
            probability = nodes[row // nodes.shape[1], row % nodes.shape[1]] / mass
            importance[i] = (count * probability) ** -beta
            largest = max(largest, importance[i])
        a[i] = actions[row]
        for j in range(s.shape[1]):
            s[i, j] = observations[row, j]
        value, discount = float(rewards[row]), gamma
        for _ in range(n_steps - 1):
            if successor[row] < 0 or successor[row] == row:
                break
            row = successor[row]
            value += discount * rewards[row]
            discount *= gamma
        r[i], d[i] = value, 0.0 if terminated[row] else discount
        for j in range(s.shape[1]):
            s_next[i, j] = next_observations[row, j]
        for j in range(masks.shape[1]):
            legal[i, j] = masks[row, j]
    for i in range(len(weights)):
        weights[i] = importance[i] / largest
    return True
