"""The numbers of the report: areas under curves, means, comparisons, and their uncertainty.

Comparisons across environments are those of Agarwal et al. (2021), "Deep Reinforcement Learning at
the Edge of the Statistical Precipice": few runs per task, all of them shown, interval estimates by
a bootstrap that resamples the runs of every task by themselves (stratified).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CONFIDENCE = 0.95
MIN_SAMPLES = 5
"""Fewer samples give no bootstrap interval. Its coverage falls far below what it states: of two
samples it is just [min, max], which holds the mean every other time, not 95 times in 100."""

_RESAMPLES = 9999
_STRATIFIED_RESAMPLES = 2000


Outcome = Literal["more", "less", "not shown", "too few"]


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
    def outcome(self) -> Outcome:
        """What is shown of a difference: that it is more than 0, or less."""
        if self.kind == "range":
            return "too few"
        if self.low > 0:
            return "more"
        return "less" if self.high < 0 else "not shown"

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.samples)


@dataclass(frozen=True)
class Aggregate:
    """A number that is computed from the runs of several tasks, with its uncertainty."""

    value: float
    low: float
    high: float
    """Ends of the 95 % interval by the stratified percentile bootstrap."""


@dataclass(frozen=True)
class Profile:
    """Share of runs above a score, for every score; arrays `(thresholds,)`."""

    thresholds: NDArray[np.float64]
    share: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided t-tests (TOST, Schuirmann 1987) of paired differences."""

    margin: float
    """Differences within +- margin count as none."""

    p_value: float
    """Of the hypothesis that the mean difference is outside of the margin."""

    low: float
    high: float
    """Ends of the 90 % interval of the mean: within the margin just when p < 0.05."""

    @property
    def equivalent(self) -> bool:
        """Whether equivalence is shown at the 5 % level. False shows nothing."""
        return self.p_value < 1 - CONFIDENCE


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
    `MIN_SAMPLES` on. Of few samples it is narrow: of normal ones it holds the mean in 84 of 100
    cases if there are 5, in 90 if there are 10, in 94 if there are 20.

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


def paired_differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[float, ...]:
    """ours - theirs, seed by seed, of the seeds that both have, in their order.

    Args:
        ours: By seed.
        theirs: By seed.
    """
    return tuple(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))


def mean_difference(differences: Sequence[float]) -> Estimate:
    """The mean of paired differences, with the 95 % interval of Student's t from `MIN_SAMPLES` on.

    By it is decided what is shown, and for that the bootstrap of few seeds is too narrow (see
    `estimate`): of five seeds it calls three times as often an effect what is 0 in truth.

    Raises:
        ValueError: there are no differences, or one is not finite.
    """
    values = _checked(differences, ndim=1)
    low, high = float(values.min()), float(values.max())
    kind: Literal["interval", "range"] = "range" if len(values) < MIN_SAMPLES else "interval"
    if kind == "interval" and low < high:  # else there is no spread: t is infinite, or nan
        interval = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
        low, high = float(interval.low), float(interval.high)
    return Estimate(float(values.mean()), low, high, tuple(values.tolist()), kind)


def equivalence(differences: Sequence[float], margin: float) -> Equivalence:
    """Whether paired differences are shown to be within a margin, in the mean.

    Args:
        differences: At least two.
        margin: > 0, in their unit; stated before the data are seen.

    Raises:
        ValueError: there are fewer than two, one is not finite, or the margin is not > 0.
    """
    values = _checked(differences, ndim=1)
    if len(values) < 2 or not margin > 0:
        raise ValueError(
            f"at least two differences and a margin > 0 are needed, got {len(values)} and {margin}"
        )
    if values.min() == values.max():  # no spread: the t statistic is infinite, or nan
        inside = abs(values[0]) < margin
        return Equivalence(margin, 0.0 if inside else 1.0, float(values[0]), float(values[0]))
    above = stats.ttest_1samp(values, -margin, alternative="greater")
    below = stats.ttest_1samp(values, margin, alternative="less")
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(2 * CONFIDENCE - 1)
    return Equivalence(
        margin, float(max(above.pvalue, below.pvalue)), float(interval.low), float(interval.high)
    )


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the middle half of all scores, of all runs and tasks together."""
    return float(stats.trim_mean(np.ravel(_checked(np.ravel(scores), ndim=1)), 0.25))


def aggregate_iqm(scores: Sequence[ArrayLike]) -> Aggregate:
    """The interquartile mean over runs and tasks.

    Args:
        scores: By task, the normalised scores of its runs, `(runs,)`; tasks may differ in number.
    """
    return _aggregate(_tasks(scores), _iqm)


def iqm_curve(x: ArrayLike, curves: Sequence[ArrayLike]) -> Band:
    """The interquartile mean over runs and tasks along learning curves.

    Args:
        x: `(points,)`.
        curves: By task, the normalised scores of its runs, `(runs, points)`.
    """
    tasks = _tasks(curves, ndim=2)
    low, high = _stratified(tasks, _iqm, axis=0)
    ends = np.stack([low, high])
    return Band(np.asarray(x, np.float64), _iqm(*tasks, axis=0), low, high, ends, "interval")


def aggregate_mean(scores: Sequence[ArrayLike]) -> Aggregate:
    """The mean over tasks of the mean over runs; see `aggregate_iqm`."""
    tasks = _tasks(scores)

    def mean(*samples: NDArray[np.float64], axis: int = -1) -> Any:
        return np.mean([sample.mean(axis=axis) for sample in samples], axis=0)

    return _aggregate(tasks, mean)


def probability_of_improvement(x: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> Aggregate:
    """P(a run of X scores more than one of Y), ties counted half, averaged over tasks.

    Args:
        x: By task, the scores of the runs of X, `(runs,)`.
        y: The same of Y, in the same order of tasks.

    Raises:
        ValueError: X and Y do not have the same number of tasks.
    """
    if len(x) != len(y):
        raise ValueError(f"X and Y must have the same tasks, got {len(x)} and {len(y)}")
    tasks = _tasks([*x, *y])

    def probability(*samples: NDArray[np.float64], axis: int = -1) -> Any:
        moved = [np.moveaxis(sample, axis, -1) for sample in samples]
        half = len(moved) // 2
        wins = [
            (a[..., :, None] > b[..., None, :]).mean(axis=(-2, -1))
            + (a[..., :, None] == b[..., None, :]).mean(axis=(-2, -1)) / 2
            for a, b in zip(moved[:half], moved[half:], strict=True)
        ]
        return np.mean(wins, axis=0)

    return _aggregate(tasks, probability)


def performance_profile(scores: Sequence[ArrayLike], thresholds: ArrayLike) -> Profile:
    """Share of runs, of all tasks together, that score more than each threshold.

    Args:
        scores: See `aggregate_iqm`.
        thresholds: `(thresholds,)`.
    """
    tasks = _tasks(scores)
    grid = _checked(thresholds, ndim=1)

    def shares(*samples: NDArray[np.float64], axis: int = -1) -> Any:
        values = np.concatenate([np.moveaxis(sample, axis, -1) for sample in samples], axis=-1)
        return np.array([(values > threshold).mean(axis=-1) for threshold in grid])

    low, high = _stratified(tasks, shares)
    return Profile(grid, shares(*tasks), low, high)


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


def _iqm(*samples: NDArray[np.float64], axis: int = -1) -> Any:
    return stats.trim_mean(np.concatenate(samples, axis=axis), 0.25, axis=axis)


def _aggregate(tasks: Sequence[NDArray[np.float64]], statistic: Callable[..., Any]) -> Aggregate:
    low, high = _stratified(tasks, statistic)
    return Aggregate(float(statistic(*tasks)), float(low), float(high))


def _stratified(
    tasks: Sequence[NDArray[np.float64]], statistic: Callable[..., Any], axis: int = -1
) -> Any:
    """Ends of the percentile interval; SciPy resamples each of several samples by itself."""
    interval = stats.bootstrap(
        tuple(tasks),
        statistic,
        vectorized=True,
        axis=axis,
        confidence_level=CONFIDENCE,
        n_resamples=_STRATIFIED_RESAMPLES,
        batch=500,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return interval.low, interval.high


def _tasks(scores: Sequence[ArrayLike], ndim: int = 1) -> list[NDArray[np.float64]]:
    tasks = [_checked(task, ndim=ndim) for task in scores]
    if not tasks or min(map(len, tasks)) < 2:
        counts = [len(task) for task in tasks]
        raise ValueError(f"at least one task with two runs each is needed, got {counts} runs")
    return tasks


def _checked(samples: ArrayLike, *, ndim: int) -> NDArray[np.float64]:
    values = np.asarray(samples, np.float64)
    if values.ndim != ndim or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"samples must be finite and at least one, got {samples!r}")
    return values
