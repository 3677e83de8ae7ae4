"""TD targets: one pure function per rule.

With d = gamma ** n * (1 - terminated), every rule is an instance of

    y = r + d * Q_value(s')[argmax_a Q_selector(s')]

The functions do not stop gradients; the caller evaluates the networks without recording them.
"""

from __future__ import annotations

import torch

__all__ = ["double_q_learning_target", "greedy_actions", "q_learning_target"]


def q_learning_target(
    rewards: torch.Tensor,
    discounts: torch.Tensor,
    next_q_value: torch.Tensor,
    *,
    next_action_masks: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = r + d * max_a Q(s', a), over the legal actions (Watkins 1989; Mnih et al. 2015, eq. 2).

    Args:
        rewards: `(B,)`.
        discounts: `(B,)`, gamma ** n * (1 - terminated).
        next_q_value: `(B, A)`, the action values of s'.
        next_action_masks: `(B, A)`, bool, True where an action is legal in s'. A row that allows
            no action is accepted where its discount is 0, and then its target is the reward.

    Returns:
        `(B,)` targets.

    Raises:
        ValueError: a shape is not as above, the mask is not boolean, or a row whose discount is
            not 0 allows no action.
    """
    return double_q_learning_target(
        rewards, discounts, next_q_value, next_q_value, next_action_masks=next_action_masks
    )


def double_q_learning_target(
    rewards: torch.Tensor,
    discounts: torch.Tensor,
    next_q_value: torch.Tensor,
    next_q_selector: torch.Tensor,
    *,
    next_action_masks: torch.Tensor | None = None,
) -> torch.Tensor:
    """y = r + d * Q_value(s', argmax_a Q_selector(s', a)) (van Hasselt et al. 2015, eq. 4).

    Args:
        rewards: `(B,)`.
        discounts: `(B,)`, gamma ** n * (1 - terminated).
        next_q_value: `(B, A)`, the action values of s' that evaluate the selected action.
        next_q_selector: `(B, A)`, the action values of s' that select it.
        next_action_masks: as in `q_learning_target`.

    Returns:
        `(B,)` targets.

    Raises:
        ValueError: as `q_learning_target`.
    """
    _check_shapes(rewards, discounts, next_q_value, next_q_selector)
    if next_action_masks is not None:
        _check_masks(next_action_masks, discounts, next_q_value.shape)
    selected = greedy_actions(next_q_selector, next_action_masks)
    bootstrap = next_q_value.gather(1, selected.unsqueeze(1)).squeeze(1)
    # `where` and not a bare product: what lies behind a terminal state may be infinite or NaN.
    return rewards + torch.where(discounts == 0, 0.0, discounts * bootstrap)


def greedy_actions(
    q_values: torch.Tensor, action_masks: torch.Tensor | None = None
) -> torch.Tensor:
    """argmax_a Q(s, a) over the legal actions.

    Args:
        q_values: `(B, A)`.
        action_masks: `(B, A)`, bool, True where an action is legal. None: all are.

    Returns:
        `(B,)`, int64. The first of equally good actions; 0 in a row that allows none.
    """
    if action_masks is not None:
        q_values = torch.where(action_masks, q_values, -torch.inf)
    return q_values.argmax(dim=1)


def _check_shapes(
    rewards: torch.Tensor,
    discounts: torch.Tensor,
    next_q_value: torch.Tensor,
    next_q_selector: torch.Tensor,
) -> None:
    # A (B, 1) reward would broadcast to a (B, B) target without a word: refuse it at the door.
    if rewards.ndim != 1:
        raise ValueError(f"rewards must have shape (B,), got {tuple(rewards.shape)}")
    if discounts.shape != rewards.shape:
        raise ValueError(
            f"discounts must have the shape of rewards, {tuple(rewards.shape)}, "
            f"got {tuple(discounts.shape)}"
        )
    for name, values in (("next_q_value", next_q_value), ("next_q_selector", next_q_selector)):
        if values.ndim != 2 or len(values) != len(rewards) or values.shape[1] == 0:
            raise ValueError(
                f"{name} must have shape (B, A) with B={len(rewards)} and A >= 1, "
                f"got {tuple(values.shape)}"
            )
    if next_q_selector.shape != next_q_value.shape:
        raise ValueError(
            f"next_q_selector must have the shape of next_q_value, {tuple(next_q_value.shape)}, "
            f"got {tuple(next_q_selector.shape)}"
        )


def _check_masks(masks: torch.Tensor, discounts: torch.Tensor, shape: torch.Size) -> None:
    if masks.shape != shape:
        raise ValueError(
            f"next_action_masks must have the shape of next_q_value, {tuple(shape)}, "
            f"got {tuple(masks.shape)}"
        )
    if masks.dtype != torch.bool:
        raise ValueError(f"next_action_masks must be of dtype torch.bool, got {masks.dtype}")
    stuck = ~masks.any(dim=1) & (discounts != 0)
    if stuck.any():
        rows = stuck.nonzero().flatten().tolist()
        raise ValueError(f"next_action_masks allows no action in rows {rows} with a discount > 0")
