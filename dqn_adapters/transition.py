"""What flows from the environment to the replay buffer, and from there to the learner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Observations = torch.Tensor | dict[str, torch.Tensor]
"""Observations as tensors: one of shape `(B, ...)`, or one for every key of a Dict space."""

Arrays = NDArray[Any] | dict[str, NDArray[Any]]
"""Observations as numpy arrays: one of shape `(N, ...)`, or one for every key of a Dict space."""


class EnvStep(NamedTuple):
    """One step of N environments, as numpy arrays."""

    observations: Arrays
    """s, which was acted on: `(N, ...)`."""

    actions: NDArray[np.int64]
    """a: `(N,)`, in 0 .. A - 1."""

    rewards: NDArray[Any]
    """r: `(N,)`."""

    next_observations: Arrays
    """s', the true successor: `(N, ...)`. At the end of an episode it is the final observation,
    never the first one of the next episode."""

    terminated: NDArray[np.bool_]
    """`(N,)`. s' is a terminal state: there is no value behind it."""

    truncated: NDArray[np.bool_]
    """`(N,)`. The episode was cut at s', which has a value."""

    valid: NDArray[np.bool_]
    """`(N,)`. False where the environment was only reset and nothing was experienced."""

    next_action_masks: NDArray[np.bool_] | None = None
    """Which actions are legal in s': `(N, A)`, True is legal. None: all of them."""


class Transition(NamedTuple):
    """A batch of B transitions (s, a, r, d, s'), as tensors.

    There is no `dones`: `discounts` is gamma ** n * (1 - terminated), which is what the TD target
    needs. A transition cut by a time limit is not terminated, so it bootstraps by construction.
    """

    observations: Observations
    """s: `(B, ...)`, or a dictionary of such tensors."""

    actions: torch.Tensor
    """a: `(B,)`, int64, in 0 .. A - 1."""

    rewards: torch.Tensor
    """r: `(B,)`, float32."""

    discounts: torch.Tensor
    """d: `(B,)`, float32; 0 where the episode terminated."""

    next_observations: Observations
    """s': as `observations`."""

    next_action_masks: torch.Tensor | None = None
    """Which actions are legal in s': `(B, A)`, bool, True is legal. None: all of them."""

    weights: torch.Tensor | None = None
    """Importance weights of the losses: `(B,)`, float32. None: all 1."""


def map_arrays(function: Callable[..., Any], arrays: Any, *others: Any) -> Any:
    """Apply a function to an array (and its counterparts), or to every value of a dictionary."""
    if isinstance(arrays, dict):
        return {
            key: function(value, *(other[key] for other in others)) for key, value in arrays.items()
        }
    return function(arrays, *others)


def to_tensors(arrays: Arrays, device: torch.device | str = "cpu") -> Observations:
    """The arrays as tensors of their dtype, but float64 as float32, in which networks compute.

    On the CPU a tensor shares the array's memory where no conversion is needed. To a GPU the copy
    runs on while Python does, and is there before what is launched behind it.
    """
    tensors: Observations = map_arrays(lambda array: to_tensor(array, device), arrays)
    return tensors


def to_tensor(array: NDArray[Any], device: torch.device | str = "cpu") -> torch.Tensor:
    """One array as a tensor; see `to_tensors`."""
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    tensor = torch.from_numpy(array)
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
