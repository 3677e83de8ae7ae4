"""The TD targets, by hand-computed numbers and by laws.

The poisoned values (99) stand where a right target never looks: a max over the wrong array, a
value behind a terminal state, or an illegal action would show.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dqn_adapters.targets import double_q_learning_target, greedy_actions, q_learning_target

R = torch.tensor([1.0, -2.0, 0.5])
D = torch.tensor([0.9, 0.5, 0.0])  # a running, an n-step and a terminal row


def test_q_learning_target_by_hand() -> None:
    next_q = torch.tensor([[1.0, 3.0, 2.0], [-4.0, -6.0, -8.0], [99.0, 99.0, 99.0]])
    y = q_learning_target(R, D, next_q)
    # 1 + 0.9 * 3;  -2 + 0.5 * -4;  terminal: the reward
    torch.testing.assert_close(y, torch.tensor([3.7, -4.0, 0.5]))


def test_double_q_learning_target_by_hand() -> None:
    value = torch.tensor([[99.0, 2.0, 99.0], [-3.0, 99.0, 99.0], [99.0, 99.0, 99.0]])
    selector = torch.tensor([[0.0, 5.0, 4.0], [-1.0, -2.0, -3.0], [7.0, 0.0, 0.0]])
    y = double_q_learning_target(R, D, value, selector)
    # 1 + 0.9 * 2;  -2 + 0.5 * -3;  terminal: the reward
    torch.testing.assert_close(y, torch.tensor([2.8, -3.5, 0.5]))


def test_truncated_row_bootstraps() -> None:
    """A time limit leaves the discount at gamma, so the value behind it counts."""
    y = q_learning_target(torch.ones(1), torch.tensor([0.99]), torch.tensor([[10.0, 20.0]]))
    torch.testing.assert_close(y, torch.tensor([20.8]))


def test_masked_rows() -> None:
    next_q = torch.tensor([[8.0, 2.0], [8.0, 2.0], [8.0, 99.0]])
    masks = torch.tensor([[False, True], [True, True], [False, False]])
    y = q_learning_target(R, D, next_q, next_action_masks=masks)
    torch.testing.assert_close(y, torch.tensor([1 + 0.9 * 2, -2 + 0.5 * 8, 0.5]))
    selector = torch.tensor([[9.0, -9.0], [-9.0, 9.0], [0.0, 0.0]])
    y = double_q_learning_target(R, D, next_q, selector, next_action_masks=masks)
    torch.testing.assert_close(y, torch.tensor([1 + 0.9 * 2, -2 + 0.5 * 2, 0.5]))


def test_masked_values_may_be_enormous() -> None:
    """`where`, not a large number added: no finite penalty survives these."""
    next_q = torch.tensor([[1e38, -1e38]])
    masks = torch.tensor([[False, True]])
    y = q_learning_target(torch.zeros(1), torch.ones(1), next_q, next_action_masks=masks)
    assert y.item() == pytest.approx(-1e38)


@pytest.mark.parametrize("poison", [torch.inf, -torch.inf, torch.nan])
def test_nothing_comes_from_behind_a_terminal_state(poison: float) -> None:
    next_q = torch.full((3, 2), poison)
    assert torch.equal(q_learning_target(R, torch.zeros(3), next_q), R)
    assert torch.equal(double_q_learning_target(R, torch.zeros(3), next_q, next_q), R)


def test_a_mask_that_allows_nothing_is_an_error() -> None:
    masks = torch.tensor([[True, True], [False, False], [True, True]])
    with pytest.raises(ValueError, match=r"next_action_masks allows no action in rows \[1\]"):
        q_learning_target(R, D, torch.zeros(3, 2), next_action_masks=masks)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rewards": torch.zeros(3, 1)}, "rewards"),
        ({"discounts": torch.zeros(3, 1)}, "discounts"),
        ({"discounts": torch.zeros(1)}, "discounts"),
        ({"next_q_value": torch.zeros(3)}, "next_q_value"),
        ({"next_q_value": torch.zeros(1, 2)}, "next_q_value"),
        ({"next_q_value": torch.zeros(3, 2, 1)}, "next_q_value"),
        ({"next_q_selector": torch.zeros(3, 3)}, "next_q_selector"),
        ({"next_action_masks": torch.ones(3, dtype=torch.bool)}, "next_action_masks"),
        ({"next_action_masks": torch.ones(3, 2)}, "next_action_masks"),
    ],
)
def test_other_shapes_are_refused(change: dict[str, torch.Tensor], name: str) -> None:
    inputs = {
        "rewards": R,
        "discounts": D,
        "next_q_value": torch.zeros(3, 2),
        "next_q_selector": torch.zeros(3, 2),
        **change,
    }
    with pytest.raises(ValueError, match=f"^{name} "):
        double_q_learning_target(**inputs)
    inputs.pop("next_q_selector")
    if name != "next_q_selector":
        with pytest.raises(ValueError, match=f"^{name} "):
            q_learning_target(**inputs)


def test_greedy_actions() -> None:
    q = torch.tensor([[1.0, 2.0, 2.0], [5.0, -1.0, 4.0]])
    assert greedy_actions(q).tolist() == [1, 0]
    masks = torch.tensor([[True, False, True], [False, True, False]])
    assert greedy_actions(q, masks).tolist() == [2, 1]


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    """(rewards, discounts, value, selector, masks) with B rows and A actions."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    b, a = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    scale = draw(st.sampled_from([0.1, 1.0, 1000.0]))
    masks = rng.random((b, a)) < 0.6
    masks[np.arange(b), rng.integers(a, size=b)] = True
    return (
        torch.from_numpy(rng.normal(size=b) * scale),
        torch.from_numpy(np.where(rng.random(b) < 0.3, 0.0, rng.random(b))),
        torch.from_numpy(rng.normal(size=(b, a)) * scale),
        torch.from_numpy(rng.normal(size=(b, a)) * scale),
        torch.from_numpy(masks),
    )


@given(problems())
def test_double_with_equal_networks_is_the_max_bitwise(problem: tuple[torch.Tensor, ...]) -> None:
    r, d, q, _, m = problem
    assert torch.equal(double_q_learning_target(r, d, q, q), q_learning_target(r, d, q))
    assert torch.equal(
        double_q_learning_target(r, d, q, q, next_action_masks=m),
        q_learning_target(r, d, q, next_action_masks=m),
    )


@given(problems())
def test_double_is_at_most_the_max(problem: tuple[torch.Tensor, ...]) -> None:
    r, d, value, selector, m = problem
    double = double_q_learning_target(r, d, value, selector, next_action_masks=m)
    assert (double <= q_learning_target(r, d, value, next_action_masks=m)).all()


@given(problems())
def test_zero_discount_is_the_reward(problem: tuple[torch.Tensor, ...]) -> None:
    r, d, value, selector, _ = problem
    assert torch.equal(double_q_learning_target(r, torch.zeros_like(d), value, selector), r)


@given(problems(), st.floats(-100, 100))
def test_a_constant_added_to_every_next_value_adds_its_discounted_self(
    problem: tuple[torch.Tensor, ...], c: float
) -> None:
    r, d, value, selector, m = problem
    plain = double_q_learning_target(r, d, value, selector, next_action_masks=m)
    moved = double_q_learning_target(r, d, value + c, selector, next_action_masks=m)
    torch.testing.assert_close(moved, plain + d * c)


@given(problems(), st.randoms(use_true_random=False))
def test_a_permuted_batch_permutes_the_targets(
    problem: tuple[torch.Tensor, ...], random: object
) -> None:
    r, d, value, selector, m = problem
    order = list(range(len(r)))
    random.shuffle(order)  # type: ignore[attr-defined]
    y = double_q_learning_target(r, d, value, selector, next_action_masks=m)
    permuted = double_q_learning_target(
        r[order], d[order], value[order], selector[order], next_action_masks=m[order]
    )
    assert torch.equal(permuted, y[order])


@given(problems(), st.floats(50, 1000))
def test_illegal_actions_do_not_matter(problem: tuple[torch.Tensor, ...], poison: float) -> None:
    r, d, value, selector, m = problem
    y = double_q_learning_target(r, d, value, selector, next_action_masks=m)
    poisoned = [torch.where(m, q, poison * 1000) for q in (value, selector)]
    assert torch.equal(double_q_learning_target(r, d, *poisoned, next_action_masks=m), y)
