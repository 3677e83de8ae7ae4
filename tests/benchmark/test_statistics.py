import numpy as np
import pytest

from dqn_adapters.benchmark.statistics import MIN_SAMPLES, band, estimate, normalised_area


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
