"""The door: what comes from an environment is checked and named before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

REWARD_LIMIT = float(np.finfo(np.float32).max)
"""Largest magnitude of a reward: replay buffers keep float32."""

CUDA_CHECK_INTERVAL = 100
"""Updates between two looks at the loss on a device other than the CPU."""


class NonFiniteError(ValueError):
    """A reward, an observation or a loss is NaN or infinite; the message says what and where.

    It is raised before anything is stored or learned of it, so what was learned until then can be
    saved.
    """


def check_finite(
    name: str,
    values: Any,
    rows: Any = None,
    *,
    where: str = "environment",
    largest: float | None = None,
) -> None:
    """Raise `NonFiniteError` if one of the values is NaN or infinite.

    Costs about two microseconds for the numbers of one step. Integers cannot be, so images of uint8
    cost nothing.

    Args:
        name: What the values are.
        values: `(N, ...)`, one entry for every row, or a mapping of such; None is nothing.
        rows: `(N,)`, what the rows are called in the message; None: by their index.
        where: What a row is.
        largest: Magnitude that none may exceed; None: there is no such bound.
    """
    if values is None:
        return
    if isinstance(values, Mapping):  # Tianshou's Batch is one
        for key in values:
            check_finite(f"{name}[{key!r}]", values[key], rows, where=where, largest=largest)
        return
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return
    fine = np.isfinite(array) if largest is None else np.abs(array) <= largest
    if np.count_nonzero(fine) == array.size:  # counting takes a quarter of the time of `all`
        return
    bad = np.argwhere(~np.atleast_1d(fine))[0]
    row = int(bad[0]) if rows is None or np.ndim(array) == 0 else rows[bad[0]]
    row = row.item() if isinstance(row, np.generic) else row
    at = f", at index {tuple(bad[1:].tolist())}" if len(bad) > 1 else ""
    value = np.atleast_1d(array)[tuple(bad)]
    raise _not_finite(name, where, row, value, at)


def moment(step: int | None) -> str:
    """When something came: at an environment step, or at the reset that None stands for."""
    return "at the reset" if step is None else f"at step {step}"


def as_number(value: Any, name: str) -> float:
    """The number that a reward is: a float, a numpy scalar, or an array of one element.

    Raises:
        ValueError: it is anything else.
    """
    if type(value) is float:
        return value
    try:
        return float(np.asarray(value).item())
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be one number, got {value!r}") from None


def as_reward(reward: Any, step: int, row: Any = 0, *, where: str = "environment") -> float:
    """The reward of one environment step as a finite number; see `as_number`.

    Args:
        reward: As the environment gives it.
        step: The environment step.
        row: Of which environment or agent.
        where: What `row` is.

    Raises:
        ValueError: it is not one number.
        NonFiniteError: it is NaN, infinite or beyond float32.
    """
    number: float = reward
    if type(reward) is not float:
        number = as_number(reward, f"the reward at step {step} of {where} {row!r}")
    if not -REWARD_LIMIT <= number <= REWARD_LIMIT:
        raise _not_finite(f"the reward at step {step}", where, row, number)
    return number


def as_rewards(rewards: Any, num_envs: int, step: int) -> NDArray[Any]:
    """The rewards of one step of N environments as finite numbers `(N,)`, of their own dtype.

    Args:
        rewards: `(N,)` or `(N, 1)`.
        num_envs: N.
        step: The environment step.

    Raises:
        ValueError: they have another shape, or are not numbers.
        NonFiniteError: one is NaN, infinite or beyond float32.
    """
    array = np.asarray(rewards)
    if array.shape not in ((num_envs,), (num_envs, 1)) or array.dtype.kind not in "biuf":
        raise ValueError(
            f"the rewards at step {step} must be numbers of shape ({num_envs},), got an array of "
            f"{array.dtype} of shape {array.shape}"
        )
    array = array.reshape(num_envs)
    check_finite(f"the reward at step {step}", array, largest=REWARD_LIMIT)
    return array


def check_observations(
    observations: Any,
    space: spaces.Space[Any],
    rows: Any,
    *,
    name: str = "the observation",
    finite: bool = True,
) -> None:
    """Raise unless these are observations of the space, one for each row.

    Args:
        observations: `(N, ...)`, or a dictionary of such arrays.
        space: Of one observation.
        rows: What the N rows are called in the message.
        name: What the observations are.
        finite: Whether they must be finite.

    Raises:
        ValueError: the shape is another.
        NonFiniteError: one is NaN or infinite.
    """
    if isinstance(space, spaces.Dict):
        given = set(observations) if isinstance(observations, Mapping) else set()
        if not given >= set(space.spaces):
            raise ValueError(
                f"{name} of {_whose(rows)} must have the keys {sorted(space.spaces)}, got "
                f"{sorted(given) or type(observations).__name__}"
            )
        for key, part in space.items():
            check_observations(
                observations[key], part, rows, name=f"{name}[{key!r}]", finite=finite
            )
        return
    shape = (len(rows), *(space.shape or ()))
    if np.shape(observations) != shape:
        raise ValueError(
            f"{name} of {_whose(rows)} must have shape {shape[1:]}, got "
            f"{np.shape(observations)[1:]}"
        )
    if finite:
        check_finite(name, observations, rows)


def _whose(rows: Any) -> str:
    return f"environment {rows[0]}" if len(rows) == 1 else f"{len(rows)} environments"


def _not_finite(name: str, where: str, row: Any, value: Any, at: str = "") -> NonFiniteError:
    bound = " in float32" if math.isfinite(value) else ""
    return NonFiniteError(f"{name} of {where} {row!r} is {value}{at}; it must be finite{bound}")


def check_loss(loss: torch.Tensor, num_updates: int) -> None:
    """Raise `NonFiniteError` if the loss of the next update is NaN or infinite.

    To be called before the optimiser's step. On the CPU reading the number costs less than a
    microsecond, so every update is looked at. On a GPU it would wait for the device, which
    otherwise runs behind; there it is done once in `CUDA_CHECK_INTERVAL` updates. (What comes from
    an environment is checked on its way in, on any device.)
    """
    if loss.device.type != "cpu" and num_updates % CUDA_CHECK_INTERVAL:
        return
    value = loss.item()
    if not math.isfinite(value):
        raise NonFiniteError(
            f"the loss of gradient update {num_updates + 1} is {value}: the learning has diverged, "
            "or a value in the batch is not finite; the network is as it was before this update. "
            "A smaller learning rate, max_grad_norm or loss='huber' keep it from diverging"
        )
