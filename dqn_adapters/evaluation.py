"""What was really earned, to hold against what was estimated."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def discounted_returns(rewards: NDArray[Any], gamma: float) -> NDArray[np.float64]:
    """r_t + gamma r_{t+1} + gamma ** 2 r_{t+2} + ... to the end of the rewards, for every t.

    Args:
        rewards: `(T,)`, of one episode.
        gamma: Discount factor per step, in [0, 1].

    Returns:
        `(T,)`.
    """
    returns = np.zeros(len(rewards))
    following = 0.0
    for t in reversed(range(len(rewards))):
        following = float(rewards[t]) + gamma * following
        returns[t] = following
    return returns


def settled(length: int, gamma: float, tolerance: float) -> int:
    """How many of the first steps of a cut episode have returns that hardly depend on what would
    have come: those behind which the discount gamma ** (length - t) is at most `tolerance`."""
    steps = np.arange(length)
    return int((gamma ** (length - steps) <= tolerance).sum())
