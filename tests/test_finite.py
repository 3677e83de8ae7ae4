from __future__ import annotations

import numpy as np
import pytest
import torch

from dqn_adapters.finite import CUDA_CHECK_INTERVAL, NonFiniteError, check_finite, check_loss


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1.0, np.nan]), "reward of environment 8 is nan; it must be finite"),
        (np.array([[0.0, -np.inf], [0.0, 0.0]]), r"environment 7 is -inf, at index \(1,\)"),
        ({"a": np.ones(2), "b": np.array([0.0, np.inf])}, r"reward\['b'\] of environment 8 is inf"),
        (np.float64(np.nan), "environment 0 is nan"),
    ],
)
def test_what_is_not_finite_is_named(values: object, message: str) -> None:
    with pytest.raises(NonFiniteError, match=message):
        check_finite("reward", values, [7, 8])


@pytest.mark.parametrize(
    "values", [None, np.array([1.0]), np.array([255], np.uint8), {"a": np.zeros((2, 2))}, 3]
)
def test_what_is_finite_passes(values: object) -> None:
    check_finite("reward", values)


def test_a_loss_is_named_by_its_update() -> None:
    check_loss(torch.tensor(1.0), 0)
    with pytest.raises(NonFiniteError, match="the loss of gradient update 8 is nan"):
        check_loss(torch.tensor(torch.nan), 7)
    unread = torch.empty((), device="meta")  # reading it would fail
    check_loss(unread, CUDA_CHECK_INTERVAL + 1)
