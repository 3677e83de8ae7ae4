"""The numbers of the report: areas under curves, means and their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
MIN_SAMPLES = 5
"""Fewer samples give no bootstrap interval. Its coverage falls far below what it states: of two
samples it is just [min, max], which holds the mean every other time, not 95 times in 100."""

_RESAMPLES = 9999


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its uncertainty."""

    mean: float
    low: float
    high: float
    samples: tuple[float, ...]
    """One value per seed, in the order of the seeds."""

    kind: Literal["interval", "range"]
    """`"interval"`: `low` and `high` are the ends of a 95 % confidence interval of the mean.
    `"range"`: too few samples for one, they are the smallest and the largest sample."""

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.samples)


@dataclass(frozen=True)
class Band:
    """Estimates along a curve; arrays `(points,)`."""

    x: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    samples: NDArray[np.float64]
    """`(seeds, points)`."""

    kind: Literal["interval", "range"]


def estimate(samples: Sequence[float]) -> Estimate:
    """The mean of the samples, with a 95 % interval by the BCa bootstrap (Efron 1987) from
    `MIN_SAMPLES` on.

    The resampling is seeded: the same samples give the same interval.

    Raises:
        ValueError: there are no samples, or one is not finite.
    """
    values = _checked(samples, ndim=1)
    low, high, kind = _bounds(values[:, None], method="BCa")
    return Estimate(
        float(values.mean()), float(low[0]), float(high[0]), tuple(values.tolist()), kind
    )


def band(x: ArrayLike, curves: ArrayLike) -> Band:
    """Mean and pointwise 95 % interval (percentile bootstrap over seeds) of curves.

    Args:
        x: `(points,)`.
        curves: `(seeds, points)`.
    """
    values = _checked(curves, ndim=2)
    low, high, kind = _bounds(values, method="percentile")
    return Band(np.asarray(x, np.float64), values.mean(axis=0), low, high, values, kind)


def normalised_area(timesteps: ArrayLike, scores: ArrayLike) -> float:
    """Area under the linearly interpolated curve, divided by its length: the mean score over the
    training, in the unit of the score.

    Raises:
        ValueError: the shapes differ, there are fewer than two points, or the timesteps do not
            ascend.
    """
    x, y = np.asarray(timesteps, np.float64), np.asarray(scores, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2 or not (np.diff(x) > 0).all():
        raise ValueError(
            "timesteps and scores must be two sequences of the same length >= 2, the timesteps "
            f"ascending; got shapes {x.shape} and {y.shape}"
        )
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def _bounds(
    values: NDArray[np.float64], *, method: Literal["BCa", "percentile"]
) -> tuple[NDArray[np.float64], NDArray[np.float64], Literal["interval", "range"]]:
    low, high = values.min(axis=0), values.max(axis=0)
    if len(values) < MIN_SAMPLES:
        return low, high, "range"
    varied = low < high  # equal samples have a bootstrap distribution without width: BCa is nan
    if varied.any():
        result = stats.bootstrap(
            (values[:, varied],),
            np.mean,
            axis=0,
            confidence_level=CONFIDENCE,
            n_resamples=_RESAMPLES,
            batch=1000,
            method=method,
            rng=np.random.default_rng(0),
        )
        low[varied] = result.confidence_interval.low
        high[varied] = result.confidence_interval.high
    return low, high, "interval"


def _checked(samples: ArrayLike, *, ndim: int) -> NDArray[np.float64]:
    values = np.asarray(samples, np.float64)
    if values.ndim != ndim or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"samples must be finite and at least one, got {samples!r}")
    return values
