"""The metrics of a gradient update; compiled code reports them as a row of `layout`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dqn_adapters.compute.layout import GRAD_NORM, LOSS, PER_ROW, ROWS


@dataclass(eq=False)
class UpdateMetrics:
    """The metrics of one update: detached tensors on the learner's device, not synchronised."""

    loss: torch.Tensor
    """`()`."""

    td_error: torch.Tensor
    """`(B,)`, target - prediction, before the update."""

    q_value: torch.Tensor
    """`(B,)`, the prediction Q(s, a), before the update."""

    td_target: torch.Tensor
    """`(B,)`."""

    grad_norm: torch.Tensor
    """`()`, the global L2 norm of the gradient before clipping."""

    _seen: NDArray[np.float32] | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, seen: NDArray[np.float32]) -> UpdateMetrics:
        """From a row of numbers. The tensors are made when one is asked for."""
        metrics = cls.__new__(cls)
        metrics._seen = seen
        return metrics

    def __getattr__(self, name: str) -> Any:  # only for what is not there yet
        if name not in METRICS or self._seen is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        seen = torch.from_numpy(self._seen)
        per_row = seen[ROWS:].view(PER_ROW, -1).unbind()
        self.__dict__.update(zip(METRICS, (seen[LOSS], *per_row, seen[GRAD_NORM]), strict=True))
        return self.__dict__[name]


METRICS = tuple(part.name for part in fields(UpdateMetrics))[:ROWS]


def mean_metrics(metrics: Sequence[UpdateMetrics]) -> dict[str, float]:
    """Means over updates and their batches, as numbers for a log.

    Returns:
        `loss`, `td_error` (of its absolute value), `q_value`, `td_target`, `grad_norm`.
    """
    rows = [update._seen[:ROWS].tolist() for update in metrics if update._seen is not None]
    if len(rows) == len(metrics):
        means = [sum(values) / len(rows) for values in zip(*rows, strict=True)]
        return dict(zip(METRICS, means, strict=True))
    stacked = [torch.stack([getattr(update, name) for update in metrics]) for name in METRICS]
    stacked[METRICS.index("td_error")].abs_()
    # One transfer for all: each would wait for the device.
    numbers = torch.stack([values.mean() for values in stacked]).tolist()
    return dict(zip(METRICS, numbers, strict=True))
