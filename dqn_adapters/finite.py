"""NaN and infinity are named where they come in, before they are learned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

CUDA_CHECK_INTERVAL = 100
"""Updates between two looks at the loss on a device other than the CPU."""


class NonFiniteError(ValueError):
    """A reward, an observation or a loss is NaN or infinite; the message says what and where.

    It is raised before anything is stored or learned of it, so what was learned until then can be
    saved.
    """


def check_finite(name: str, values: Any, rows: Any = None, *, where: str = "environment") -> None:
    """Raise `NonFiniteError` if one of the values is NaN or infinite.

    Costs about two microseconds for the numbers of one step. Integers cannot be, so images of uint8
    cost nothing.

    Args:
        name: What the values are.
        values: `(N, ...)`, one entry for every row, or a mapping of such; None is nothing.
        rows: `(N,)`, what the rows are called in the message; None: by their index.
        where: What a row is.
    """
    if values is None:
        return
    if isinstance(values, Mapping):  # Tianshou's Batch is one
        for key in values:
            check_finite(f"{name}[{key!r}]", values[key], rows, where=where)
        return
    array = np.asarray(values)
    # Counting takes a quarter of the time of `all`.
    if array.dtype.kind != "f" or np.count_nonzero(np.isfinite(array)) == array.size:
        return
    bad = np.argwhere(~np.isfinite(np.atleast_1d(array)))[0]
    row = int(bad[0]) if rows is None or np.ndim(array) == 0 else int(rows[bad[0]])
    at = f", at index {tuple(bad[1:].tolist())}" if len(bad) > 1 else ""
    value = np.atleast_1d(array)[tuple(bad)]
    raise NonFiniteError(f"{name} of {where} {row} is {value}{at}; it must be finite")


def check_loss(loss: torch.Tensor, num_updates: int) -> None:
    """Raise `NonFiniteError` if the loss of the next update is NaN or infinite.

    To be called before the optimiser's step. On the CPU reading the number costs less than a
    microsecond, so every update is looked at. On a GPU it would wait for the device, which
    otherwise runs behind; there it is done once in `CUDA_CHECK_INTERVAL` updates. (What comes from
    an environment is checked on its way in, on any device.)
    """
    if loss.device.type != "cpu" and num_updates % CUDA_CHECK_INTERVAL:
        return
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the loss of gradient update {num_updates + 1} is {value}: the learning has diverged, "
            "or a value in the batch is not finite; the network is as it was before this update. "
            "A smaller learning rate, max_grad_norm or loss='huber' keep it from diverging"
        )
