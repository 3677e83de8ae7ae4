from __future__ import annotations

import copy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dqn_adapters.replay import sum_tree
from dqn_adapters.replay.sum_tree import SumTree


@pytest.fixture(autouse=True, params=["numpy", "compiled"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "compiled":
        pytest.importorskip("numba")
    else:
        monkeypatch.setattr(sum_tree, "loops", lambda: None)
    return str(request.param)


def naive_find(values: np.ndarray, mass: float) -> int:
    return int(np.flatnonzero(np.cumsum(values) > mass)[0])


@pytest.mark.parametrize("capacity", [1, 5, 64, 65, 4096, 4097, 300_000])
def test_find_by_integers(capacity: int) -> None:
    """Integer values have exact sums, so every boundary is exact."""
    rng = np.random.default_rng(capacity)
    values = rng.integers(0, 4, capacity).astype(float)
    values[rng.integers(capacity)] = 3
    tree = SumTree(capacity)
    tree.set(np.arange(capacity), values)
    assert tree.total == values.sum()
    running = np.cumsum(values)
    masses = np.unique(np.concatenate([running[:-1][:500], rng.random(500) * running[-1], [0.0]]))
    masses = masses[masses < running[-1]]
    expected = np.searchsorted(running, masses, side="right")
    np.testing.assert_array_equal(tree.find(masses), expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # it holds no state
@given(st.integers(0, 2**32 - 1), st.integers(1, 9000))
def test_updates_against_a_naive_sum(seed: int, capacity: int) -> None:
    rng = np.random.default_rng(seed)
    tree, values = SumTree(capacity), np.zeros(capacity)
    for _ in range(5):
        indices = rng.integers(capacity, size=rng.integers(1, 50))
        new = rng.random(len(indices)) * 10.0 ** rng.integers(-6, 6)
        tree.set(indices, new)
        values[indices] = new  # as in numpy, the last of an index that comes twice counts
    np.testing.assert_allclose(tree.total, values.sum(), rtol=1e-12)
    np.testing.assert_array_equal(tree.get(np.arange(capacity)), values)
    found = tree.find(rng.random(100) * tree.total)
    assert (values[found] > 0).all()


def test_a_value_of_zero_is_never_found() -> None:
    tree = SumTree(1000)
    indices = np.array([3, 500, 999])
    tree.set(indices, [0.1, 0.2, 0.3])
    found = tree.find(np.linspace(0, tree.total, 10_001))  # the last mass is the total itself
    assert set(found) == set(indices)
    tree.set(np.array([500]), 0.0)
    assert set(tree.find(np.linspace(0, tree.total, 10_001))) == {3, 999}


def test_rounding_does_not_pile_up() -> None:
    tree = SumTree(100)
    rng = np.random.default_rng(0)
    for _ in range(2000):
        tree.set(rng.integers(100, size=8), 10.0 ** rng.uniform(-8, 8, 8))
    tree.set(np.arange(100), 0.1)
    assert tree.total == pytest.approx(10, rel=1e-14)


def test_the_compiled_loops_do_what_numpy_does(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "numpy":
        pytest.skip("is compared from the other side")
    compiled, rng = sum_tree.loops, np.random.default_rng(0)
    plain, fast = SumTree(5000), SumTree(5000)
    for _ in range(50):
        indices, values, masses = rng.integers(5000, size=64), rng.random(64), rng.random(64)
        fast.set(indices, values)
        found = fast.find(masses * fast.total)
        monkeypatch.setattr(sum_tree, "loops", lambda: None)
        plain.set(indices, values)
        np.testing.assert_array_equal(plain.find(masses * plain.total), found)
        assert fast.total == pytest.approx(plain.total, rel=1e-14)
        monkeypatch.setattr(sum_tree, "loops", compiled)
    twin = copy.deepcopy(fast)
    assert twin.total == fast.total
    twin.set(np.arange(5000), 0.0)
    assert twin.total == 0 < fast.total


def test_an_index_out_of_range_is_refused() -> None:
    tree = SumTree(100)
    with pytest.raises(IndexError):
        tree.set(np.array([3, 10_000_000]), 1.0)
