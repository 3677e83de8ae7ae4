"""n-step returns over linked rows (Sutton 1988)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def n_step_returns(
    indices: Indices,
    *,
    n_steps: int,
    gamma: float,
    rewards: NDArray[Any],
    terminated: NDArray[np.bool_],
    successor: Callable[[Indices], Indices],
) -> tuple[NDArray[np.float64], NDArray[np.float64], Indices]:
    """r_0 + gamma r_1 + ... + gamma ** (k - 1) r_{k - 1}, and the discount gamma ** k behind it.

    k is `n_steps`, or less where the row's episode or the stored data end before; the discount is
    0 where the last of the k rows terminated.

    Args:
        indices: `(B,)`, the rows at which the returns start.
        n_steps: Most rewards in a return, >= 1.
        gamma: Discount factor per step.
        rewards: `(capacity,)`, of all rows.
        terminated: `(capacity,)`, of all rows.
        successor: For rows `(B,)` the row that follows each in its episode. A row that none
            follows (the episode ended there, or it is the newest) gives a negative number or
            itself.

    Returns:
        Returns `(B,)`, discounts `(B,)`, and the rows `(B,)` whose s' is bootstrapped from.
    """
    last = indices
    returns = np.asarray(rewards[indices], np.float64)
    discounts: Any = np.float64(gamma)  # a float would multiply float32 rewards in float32
    for _ in range(n_steps - 1):
        following = successor(last)
        more = (following >= 0) & (following != last)
        if not more.any():
            break
        last = np.where(more, following, last)
        returns += np.where(more, discounts * rewards[last], 0.0)
        discounts = np.where(more, discounts * gamma, discounts)
    return returns, np.where(terminated[last], 0.0, discounts), last
