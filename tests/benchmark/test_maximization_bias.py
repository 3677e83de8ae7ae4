"""Sutton & Barto's Example 6.7 by the TD targets of the core, against tables in plain Python."""

import random

import numpy as np
import pytest
from numpy.typing import NDArray

from dqn_adapters.benchmark.maximization_bias import Toy, simulate
from dqn_adapters.config import VARIANTS, Variant

TOY = Toy(runs=1000)


def oracle(variant: Variant, runs: int, toy: Toy = TOY) -> NDArray[np.float64]:
    """Share of runs that go left, by episode: the textbook's algorithm, run by run, step by step.

    Q-learning takes its own maximum; with a second table, which is copied now and then, that one
    gives the value, at its own maximum or at that of the first table.
    """
    rng = random.Random(1)
    left = np.zeros(toy.episodes)
    for _ in range(runs):
        q = {"A": [0.0, 0.0], "B": [0.0] * 10}
        lagged = q if variant == "vanilla" else {"A": [0.0, 0.0], "B": [0.0] * 10}
        for episode in range(toy.episodes):
            state = "A"
            while state != "end":
                best = max(q[state])
                action = rng.choice([a for a, value in enumerate(q[state]) if value == best])
                if rng.random() < toy.epsilon:
                    action = rng.randrange(len(q[state]))
                reward, successor = 0.0, "end"
                if state == "B":
                    reward = rng.gauss(toy.reward_mean, toy.reward_std)
                elif action == 0:
                    successor = "B"
                    left[episode] += 1
                y = reward
                if successor != "end":
                    chosen_by = q if variant == "double" else lagged
                    greedy = max(range(10), key=chosen_by[successor].__getitem__)
                    y += lagged[successor][greedy]
                q[state][action] += toy.alpha * (y - q[state][action])
                state = successor
            if (episode + 1) % toy.target_update_interval == 0 and lagged is not q:
                lagged = {name: list(values) for name, values in q.items()}
    return left / runs


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_targets_do_as_the_tabular_oracle(variant: Variant) -> None:
    ours, theirs = simulate(variant, TOY).left, oracle(variant, 400)
    blocks = ours.reshape(-1, 25).mean(axis=1) - theirs.reshape(-1, 25).mean(axis=1)
    # An episode's share has a standard error of at most 0.5 sqrt(1/1000 + 1/400) = 0.03; the
    # episodes of a block are nearly as good as one, for a run goes on as it does.
    assert np.abs(blocks).max() < 0.09
    assert ours[0] == pytest.approx(0.5, abs=0.06)


def test_q_learning_goes_left_as_in_the_book() -> None:
    """Figure 6.5 there: nine of ten runs at the worst, and still too many after 300 episodes."""
    left = simulate("vanilla", TOY).left
    assert 0.9 < left.max() < 0.98
    assert 10 < left.argmax() < 40
    assert TOY.optimal == 0.05
    assert 0.08 < left[-20:].mean() < 0.16


def test_double_goes_left_less_often_than_target() -> None:
    target, double = simulate("target", TOY), simulate("double", TOY)
    # Alike until there is a copy in which values differ.
    np.testing.assert_array_equal(target.left[:25], double.left[:25])
    assert target.left[50:150].mean() - double.left[50:150].mean() > 0.15


def test_without_noise_there_is_no_bias() -> None:
    sure = Toy(runs=200, episodes=600, reward_std=0.0)
    for variant in VARIANTS:
        outcome = simulate(variant, sure)
        assert outcome.left[-50:].mean() == pytest.approx(sure.optimal, abs=0.02)
        assert (outcome.bias >= 0).all()


def test_the_seed_decides() -> None:
    toy = Toy(runs=20, episodes=50)
    first, same = simulate("double", toy, seed=3), simulate("double", toy, seed=3)
    np.testing.assert_array_equal(first.left, same.left)
    np.testing.assert_array_equal(first.bias, same.bias)
    assert not np.array_equal(first.left, simulate("double", toy, seed=4).left)


@pytest.mark.parametrize(
    "values", [{"runs": 0}, {"episodes": 1.5}, {"epsilon": 1.1}, {"reward_mean": float("nan")}]
)
def test_settings_are_checked(values: dict[str, float]) -> None:
    (name,) = values
    with pytest.raises(ValueError, match=name):
        Toy(**values)  # type: ignore[arg-type]
