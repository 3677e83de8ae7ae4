from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from dqn_adapters.benchmark.statistics import (
    MIN_SAMPLES,
    Aggregate,
    aggregate_iqm,
    aggregate_mean,
    band,
    equivalence,
    estimate,
    interquartile_mean,
    iqm_curve,
    mean_difference,
    normalised_area,
    paired_differences,
    performance_profile,
    probability_of_improvement,
)

Scores = list[NDArray[np.float64]]


def test_area_is_the_mean_of_the_interpolated_curve() -> None:
    # Trapezoids: 10 * (0 + 4) / 2 + 30 * (4 + 8) / 2 = 20 + 180, over 40 steps.
    assert normalised_area([0, 10, 40], [0.0, 4.0, 8.0]) == 5.0
    assert normalised_area([0, 1, 2, 3], [7.0] * 4) == 7.0
    assert normalised_area([100, 200], [-3.0, 1.0]) == -1.0


@pytest.mark.parametrize(
    ("x", "y"), [([0], [1.0]), ([0, 1], [1.0]), ([0, 0], [1.0, 2.0]), ([1, 0], [1.0, 2.0])]
)
def test_area_refuses_what_is_no_curve(x: list[int], y: list[float]) -> None:
    with pytest.raises(ValueError, match="same length >= 2"):
        normalised_area(x, y)


def test_few_samples_give_their_range_and_not_an_interval() -> None:
    found = estimate([3.0, 1.0])
    assert (found.mean, found.low, found.high, found.n) == (2.0, 1.0, 3.0, 2)
    assert found.kind == "range"
    assert found.samples == (3.0, 1.0)
    assert estimate([5.0] * (MIN_SAMPLES - 1)).kind == "range"
    assert estimate([4.0]).low == estimate([4.0]).high == 4.0


def test_the_reason_for_that_rule() -> None:
    """[min, max] of two samples, their percentile bootstrap interval, holds the mean in half of
    the cases: both samples lie on the same side of it otherwise."""
    samples = np.random.default_rng(0).normal(size=(20_000, 2))
    covered = (samples.min(axis=1) < 0) & (samples.max(axis=1) > 0)
    assert covered.mean() == pytest.approx(0.5, abs=0.02)


def test_intervals_hold_the_mean_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    samples = generator.exponential(size=(400, 30))
    found = [estimate(row.tolist()) for row in samples]
    covered = np.mean([each.low <= 1.0 <= each.high for each in found])
    # The bootstrap of 30 skewed samples is known to fall a little short of 0.95.
    assert 0.89 <= covered <= 0.97
    assert all(each.kind == "interval" for each in found)
    # Not by being wide: about 2 * 1.96 standard errors.
    width = np.mean([each.high - each.low for each in found])
    assert width == pytest.approx(2 * 1.96 / np.sqrt(30), rel=0.12)


def test_interval_of_normal_samples_is_near_the_normal_one() -> None:
    samples = np.random.default_rng(2).normal(10.0, 2.0, size=200)
    found = estimate(samples.tolist())
    error = samples.std(ddof=1) / np.sqrt(200)
    assert found.low == pytest.approx(samples.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(samples.mean() + 1.96 * error, abs=0.15 * error)


def test_the_same_samples_give_the_same_interval() -> None:
    samples = np.random.default_rng(3).normal(size=10).tolist()
    assert estimate(samples) == estimate(samples)


def test_equal_samples_have_an_interval_without_width() -> None:
    found = estimate([500.0] * 6)
    assert (found.low, found.high, found.kind) == (500.0, 500.0, "interval")


@pytest.mark.parametrize("samples", [[], [float("nan")], [1.0, float("inf")]])
def test_samples_must_be_finite(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        estimate(samples)


def test_band_is_pointwise() -> None:
    curves = np.random.default_rng(4).normal(size=(8, 3))
    curves[:, 1] = 2.0  # every seed the same here
    found = band([0, 1, 2], curves)
    np.testing.assert_allclose(found.mean, curves.mean(axis=0))
    assert (found.low[1], found.high[1]) == (2.0, 2.0)
    assert (found.low[[0, 2]] < found.mean[[0, 2]]).all()
    assert (found.mean[[0, 2]] < found.high[[0, 2]]).all()
    few = band([0, 1, 2], curves[:2])
    assert few.kind == "range"
    np.testing.assert_array_equal(few.low, curves[:2].min(axis=0))


def scores(seed: int = 0, shift: float = 0.0, runs: int = 12) -> NDArray[np.float64]:
    """`(runs, 3 tasks)`."""
    generator = np.random.default_rng(seed)
    return generator.normal([0.2, 0.5, 0.8], [0.1, 0.3, 0.2], size=(runs, 3)) + shift


def test_the_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    # Of 8 scores the two lowest and the two highest: (3 + 4 + 5 + 6) / 4.
    assert interquartile_mean([[8, 1, 3, 1000], [-1000, 4, 6, 5]]) == 4.5
    assert aggregate_iqm([[8, 1, 3, 1000], [-1000, 4, 6, 5]]).value == 4.5
    # Tasks with other numbers of runs: (2 + 3) / 2 of 0, 2, 3, 9.
    assert aggregate_iqm([[0, 2], [3, 9]]).value == 2.5
    assert aggregate_mean([[0, 2], [3, 9, 9]]).value == (1 + 7) / 2


def test_the_probability_of_improvement_counts_pairs() -> None:
    # Of 2 x 3 pairs X wins (3 > 1), (3 > 2), (2 > 1) and ties (3 = 3), (2 = 2): (3 + 2 / 2) / 6.
    found = probability_of_improvement([[3, 2], [5, 5]], [[1, 2, 3], [7, 8]])
    assert found.value == pytest.approx((4 / 6 + 0) / 2)
    same = probability_of_improvement([[1, 2]], [[1, 2]])
    assert same.value == 0.5
    with pytest.raises(ValueError, match="same tasks, got 1 and 2"):
        probability_of_improvement([[1, 2]], [[1, 2], [1, 2]])


@pytest.mark.parametrize("function", [aggregate_iqm, aggregate_mean])
def test_a_task_with_one_run_has_no_interval(function: Callable[..., Aggregate]) -> None:
    with pytest.raises(ValueError, match=r"two runs each is needed, got \[2, 1\] runs"):
        function([[1, 2], [3]])
    with pytest.raises(ValueError, match="finite"):
        function([[1, float("nan")]])


def by_task(matrix: NDArray[np.float64]) -> Scores:
    return list(matrix.T)


def assert_agrees(ours: Aggregate, point: float, interval: NDArray[np.float64]) -> None:
    """rliable's point estimate; its interval within the noise of a bootstrap."""
    assert ours.value == pytest.approx(point, abs=1e-12)
    width = interval[1] - interval[0]
    assert [ours.low, ours.high] == pytest.approx(interval.tolist(), abs=0.08 * width)


def rliable(
    data: dict[str, Any], function: Callable[..., Any], reps: int = 4000
) -> tuple[Any, NDArray[np.float64]]:
    library = pytest.importorskip("rliable.library")
    # rliable seeds its bootstrap through an argument that `arch`, which does it, calls deprecated.
    with pytest.warns(FutureWarning, match="random_state is deprecated"):
        points, intervals = library.get_interval_estimates(
            data,
            lambda *each: np.array([function(*each)]),
            reps=reps,
            random_state=np.random.RandomState(1),
        )
    return points["x"][0], intervals["x"][:, 0]


@pytest.mark.parametrize("name", ["iqm", "mean"])
def test_aggregates_agree_with_rliable(name: str) -> None:
    metrics = pytest.importorskip("rliable.metrics")
    ours = {"iqm": aggregate_iqm, "mean": aggregate_mean}[name]
    theirs = getattr(metrics, f"aggregate_{name}")
    matrix = scores()
    assert_agrees(ours(by_task(matrix)), *rliable({"x": matrix}, theirs))


def test_curves_of_the_interquartile_mean_agree_with_rliable() -> None:
    metrics = pytest.importorskip("rliable.metrics")
    generator = np.random.default_rng(3)
    tasks = [generator.normal(level, 0.2, size=(9, 4)).cumsum(axis=1) for level in (0.1, 0.3)]
    ours = iqm_curve([0, 10, 20, 30], tasks)
    for point in range(4):
        column = np.stack([task[:, point] for task in tasks], axis=1)
        value, interval = rliable({"x": column}, metrics.aggregate_iqm)
        here = Aggregate(ours.mean[point], ours.low[point], ours.high[point])
        assert_agrees(here, value, interval)
        alone = aggregate_iqm(by_task(column))
        assert (here.value, here.low, here.high) == pytest.approx(
            (alone.value, alone.low, alone.high), abs=1e-12
        )
    with pytest.raises(ValueError, match=r"two runs each is needed, got \[9, 1\] runs"):
        iqm_curve([0, 10, 20, 30], [tasks[0], tasks[1][:1]])


def test_the_probability_of_improvement_agrees_with_rliable() -> None:
    metrics = pytest.importorskip("rliable.metrics")
    x, y = scores(1, shift=0.05), scores(2, runs=9)
    assert_agrees(
        probability_of_improvement(by_task(x), by_task(y)),
        *rliable({"x": (x, y)}, metrics.probability_of_improvement, reps=1000),
    )


def test_performance_profiles_agree_with_rliable() -> None:
    library = pytest.importorskip("rliable.library")
    matrix, grid = scores(), np.linspace(-0.2, 1.4, 17)
    shares, intervals = library.create_performance_profile({"x": matrix}, grid, reps=2000)
    ours = performance_profile(by_task(matrix), grid)
    np.testing.assert_allclose(ours.share, shares["x"])
    np.testing.assert_allclose([ours.low, ours.high], intervals["x"], atol=0.04)
    assert ours.share[0] == 1.0
    assert (np.diff(ours.share) <= 0).all()


def test_stratified_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(5)
    # The quartiles of a symmetric distribution lie evenly around its centre, so the interquartile
    # mean of the mixture is 0.5; tasks of very different spread, as returns have them.
    covered = [
        found.low <= 0.5 <= found.high
        for found in (
            aggregate_iqm([generator.normal(0.5, 0.1, 15), generator.normal(0.5, 1.0, 15)])
            for _ in range(200)
        )
    ]
    assert 0.88 <= np.mean(covered) <= 0.98

    covered = [
        found.low <= 0.5 <= found.high
        for found in (
            probability_of_improvement([generator.normal(size=12)], [generator.normal(size=12)])
            for _ in range(200)
        )
    ]
    assert 0.88 <= np.mean(covered) <= 0.98


def test_differences_are_paired_by_seed() -> None:
    assert paired_differences({0: 5.0, 2: 7.0, 9: 1.0}, {2: 6.5, 0: 1.0, 3: 0.0}) == (4.0, 0.5)
    assert paired_differences({0: 1.0}, {1: 1.0}) == ()
    # What seeds share does not widen the interval of the difference.
    generator = np.random.default_rng(6)
    common, effect = generator.normal(0, 100, 12), generator.normal(3, 1, 12)
    difference = mean_difference(
        paired_differences(dict(enumerate(common + effect)), dict(enumerate(common)))
    )
    assert 1 < difference.low < 3 < difference.high + 1
    assert difference.high < 5


def test_the_interval_of_a_difference_is_that_of_students_t() -> None:
    differences = [2.0, -1.0, 4.0, 3.0, 0.5]
    found = mean_difference(differences)
    half = stats.t.ppf(0.975, 4) * np.std(differences, ddof=1) / np.sqrt(5)
    assert (found.mean, found.samples) == (1.7, tuple(differences))
    assert [found.low, found.high] == pytest.approx([1.7 - half, 1.7 + half])
    assert found.outcome == "not shown"
    assert mean_difference([each + 3 for each in differences]).outcome == "more"
    assert mean_difference([each - 6 for each in differences]).outcome == "less"
    assert mean_difference([9.0, 9.1, 9.2, 9.3]).outcome == "too few"
    assert mean_difference([3.0] * 5).outcome == "more"
    same = mean_difference([0.0] * 5)
    assert (same.low, same.high, same.outcome) == (0.0, 0.0, "not shown")
    with pytest.raises(ValueError, match="finite"):
        mean_difference([float("nan")])


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("share", [1.0, 0.2])
def test_an_effect_is_shown_wrongly_in_at_most_one_case_of_twenty(seeds: int, share: float) -> None:
    """Also if most seeds do not differ at all, as on a task that hardly any run learns."""
    generator = np.random.default_rng(8)
    rows = generator.normal(size=(2000, seeds)) * (generator.random((2000, seeds)) < share)
    wrong = [mean_difference(row.tolist()).outcome != "not shown" for row in rows]
    assert np.mean(wrong) < 0.065


def test_why_the_bootstrap_does_not_decide_it() -> None:
    generator = np.random.default_rng(9)
    found = [estimate(row.tolist()) for row in generator.normal(size=(300, 5))]
    assert np.mean([each.outcome != "not shown" for each in found]) > 0.12


def test_equivalence_is_two_one_sided_tests() -> None:
    differences = [0.5, -0.2, 0.1, 0.3, -0.4, 0.0]
    found = equivalence(differences, 1.0)
    n, mean = 6, np.mean(differences)
    error = np.std(differences, ddof=1) / np.sqrt(n)
    p = max(stats.t.sf((mean + 1.0) / error, n - 1), stats.t.cdf((mean - 1.0) / error, n - 1))
    assert found.p_value == pytest.approx(p)
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.95, n - 1) * error)
    assert found.equivalent
    assert -1.0 < found.low < found.high < 1.0


@pytest.mark.parametrize("margin", [0.05, 0.2, 0.29, 0.31, 0.5])
def test_equivalence_is_that_the_90_percent_interval_is_within_the_margin(margin: float) -> None:
    differences = [0.5, -0.2, 0.1, 0.3, -0.4, 0.0]
    found = equivalence(differences, margin)
    assert found.equivalent == (-margin < found.low and found.high < margin)


def test_equivalence_is_claimed_wrongly_in_one_case_of_twenty() -> None:
    generator = np.random.default_rng(7)
    # The truth lies on the margin, which is where a test at 5 % errs most.
    wrong = [
        equivalence(row.tolist(), 1.0).equivalent for row in generator.normal(1, 1, (2000, 10))
    ]
    assert np.mean(wrong) == pytest.approx(0.05, abs=0.02)
    within = generator.normal(0, 1, (200, 10))
    right = [equivalence(row.tolist(), 1.5).equivalent for row in within]
    assert np.mean(right) > 0.9


def test_equivalence_of_equal_runs() -> None:
    assert equivalence([0.0, 0.0], 1.0).equivalent
    assert not equivalence([2.0, 2.0], 1.0).equivalent
    for differences, margin in (([0.0], 1.0), ([0.0, 1.0], 0.0), ([0.0, 1.0], float("nan"))):
        with pytest.raises(ValueError, match="at least two differences and a margin > 0"):
            equivalence(differences, margin)
