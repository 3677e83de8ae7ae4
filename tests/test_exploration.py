from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dqn_adapters import DQNConfig
from dqn_adapters.exploration import LinearSchedule, epsilon_greedy, epsilon_schedule


def test_linear_schedule_by_hand() -> None:
    schedule = LinearSchedule(1.0, 0.1, 90)
    assert schedule(0) == 1.0
    assert schedule(45) == pytest.approx(0.55)
    assert schedule(90) == schedule(10**9) == 0.1
    assert LinearSchedule(1.0, 0.1, 0)(0) == 0.1


def test_the_schedule_is_a_fraction_of_the_training_or_a_number_of_steps() -> None:
    assert epsilon_schedule(DQNConfig(exploration_fraction=0.1), 1000).steps == 100
    assert epsilon_schedule(DQNConfig(exploration_steps=7), 1000).steps == 7


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 100), st.integers(0, 200))
def test_the_schedule_stays_between_its_ends(a: float, b: float, steps: int, t: int) -> None:
    assert min(a, b) - 1e-12 <= LinearSchedule(a, b, steps)(t) <= max(a, b) + 1e-12


def draw(epsilon: float, num_envs: int, seed: int = 0, **kwargs: object) -> np.ndarray:
    return epsilon_greedy(
        lambda: np.full(num_envs, 3),
        epsilon,
        num_envs=num_envs,
        num_actions=4,
        generator=np.random.default_rng(seed),
        **kwargs,  # type: ignore[arg-type]
    )


def test_epsilon_0_is_greedy_and_1_is_uniform() -> None:
    assert (draw(0.0, 1000) == 3).all()
    counts = np.bincount(draw(1.0, 40_000), minlength=4)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_every_environment_draws_for_itself() -> None:
    """With one draw for all, either all of a step's environments explore or none does."""
    steps = np.stack([draw(0.5, 8, seed) for seed in range(4000)])
    deviating = (steps != 3).sum(axis=1)  # binomial: 8 draws, 0.5 * 3/4
    observed = np.bincount(deviating, minlength=9)
    expected = stats.binom.pmf(np.arange(9), 8, 0.375) * len(steps)
    # The rare ends are pooled: the test wants a few counts in every cell.
    observed, expected = (np.append(x[:6], x[6:].sum()) for x in (observed, expected))
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_masked_exploration_is_uniform_over_the_legal_actions() -> None:
    masks = np.tile([[True, False, True, True]], (30_000, 1))
    counts = np.bincount(draw(1.0, 30_000, action_masks=masks), minlength=4)
    assert counts[1] == 0
    assert stats.chisquare(counts[[0, 2, 3]]).pvalue > 1e-3


@given(st.integers(0, 2**32 - 1))
def test_masked_exploration_is_legal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((64, 4)) < 0.3
    masks[np.arange(64), rng.integers(4, size=64)] = True
    actions = draw(1.0, 64, seed, action_masks=masks)
    assert masks[np.arange(64), actions].all()


def test_the_greedy_network_is_not_asked_when_all_explore() -> None:
    def never() -> np.ndarray:
        raise AssertionError("the greedy actions are not needed")

    generator = np.random.default_rng(0)
    epsilon_greedy(never, 1.0, num_envs=3, num_actions=2, generator=generator)


def test_the_stream_advances_by_the_same_amount_whatever_is_drawn() -> None:
    states = []
    for epsilon in (0.0, 0.5, 1.0):
        generator = np.random.default_rng(0)
        epsilon_greedy(
            lambda: np.zeros(5, np.int64), epsilon, num_envs=5, num_actions=2, generator=generator
        )
        states.append(generator.bit_generator.state)
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.ones((2, 3), bool), r"action_masks must have shape \(2, 4\), got \(2, 3\)"),
        (np.ones((2, 4)), "action_masks must be of dtype bool, got float64"),
        (np.array([[True] * 4, [False] * 4]), r"action_masks allows no action in rows \[1\]"),
    ],
)
def test_bad_masks_are_named(masks: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(0.5, 2, action_masks=masks)
