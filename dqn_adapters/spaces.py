"""Spaces of Gymnasium as the state that a file holds, and how two spaces compare.

Every file of this package holds the spaces that its networks were trained on. A network reads the
parts of a Dict in the order of their keys, so a state keeps that order, which Gymnasium's
constructor does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

_READING = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""Raised by Gymnasium and numpy for arguments that make no space."""


def to_state(space: spaces.Space[Any]) -> dict[str, Any]:
    """The space as a nested state of numbers, strings and tensors; `from_state` is the inverse.

    An object of a subclass is described as the Box, Discrete, ... that it is.

    Raises:
        ValueError: A file cannot hold the space, or not exactly.
    """
    try:
        state = _state(space)
        read = from_state(state)
    except _READING as error:
        raise ValueError(f"the space {space} cannot be saved: {error}") from error
    changed = difference(read, space) or _other_bounds(read, space)
    if changed:
        raise ValueError(f"the space {space} cannot be saved: {changed}")
    return state


def from_state(state: Any) -> spaces.Space[Any]:
    """The space that `to_state` described.

    Raises:
        ValueError: The state describes none.
    """
    try:
        return _space(state)
    except _READING as error:
        missing = " is missing" if isinstance(error, KeyError) else ""
        raise ValueError(f"it describes no space: {error}{missing}") from error


def difference(saved: spaces.Space[Any], given: spaces.Space[Any], name: str = "") -> str | None:
    """How the meaning of two spaces differs; None if observations (or actions) of both are the
    same to a network.

    Keys, shapes, dtypes, starts and numbers of values are compared. The order of keys and the
    bounds of a Box are not, and an object of a subclass of Box is a Box.

    Args:
        saved: The space in a file.
        given: The space that should be the same.
        name: How the message calls it.
    """
    kinds = [_kind(saved), _kind(given)]
    if kinds[0] is not kinds[1] or kinds[0] is None:
        return f"{name} was {saved}, and is {given}"
    if isinstance(saved, spaces.Dict) and isinstance(given, spaces.Dict):
        if saved.spaces.keys() != given.spaces.keys():
            return f"{name} had the keys {list(saved.spaces)}, and has {list(given.spaces)}"
        parts = (
            difference(part, given.spaces[key], f"{name}[{key!r}]")
            for key, part in saved.spaces.items()
        )
        return next(filter(None, parts), None)
    for attribute in ("shape", "dtype", "n", "nvec", "start"):
        was, now = (getattr(space, attribute, None) for space in (saved, given))
        if attribute in ("nvec", "start"):
            was, now = np.asarray(was).tolist(), np.asarray(now).tolist()
        if was != now:
            return f"{name} had {attribute} {was}, and has {now}"
    return None


def in_saved_order(
    saved: spaces.Space[Any], given: spaces.Space[Any], name: str
) -> spaces.Space[Any]:
    """The given space with its keys in the order of the saved one.

    Raises:
        ValueError: Their meaning differs; see `difference`.
    """
    changed = difference(saved, given, name)
    if changed:
        raise ValueError(changed)
    if not isinstance(saved, spaces.Dict) or not isinstance(given, spaces.Dict):
        return given
    if list(saved.spaces) == list(given.spaces):
        return given
    return spaces.Dict([(key, given.spaces[key]) for key in saved.spaces])


def _kind(space: Any) -> type[spaces.Space[Any]] | None:
    kinds: tuple[type[spaces.Space[Any]], ...] = (
        spaces.Dict,
        spaces.Box,
        spaces.Discrete,
        spaces.MultiDiscrete,
        spaces.MultiBinary,
    )
    return next((kind for kind in kinds if isinstance(space, kind)), None)


def _state(space: spaces.Space[Any]) -> dict[str, Any]:
    kind = _kind(space)
    if kind is None:
        raise ValueError("it is not a Box, Discrete, MultiBinary, MultiDiscrete or Dict")
    state: dict[str, Any] = {"type": kind.__name__}
    if isinstance(space, spaces.Dict):
        if not all(isinstance(key, str | int) for key in space.spaces):
            raise ValueError(f"its keys must be strings, they are {list(space.spaces)}")
        return {**state, "spaces": {key: _state(part) for key, part in space.spaces.items()}}
    if isinstance(space, spaces.MultiBinary):
        return {**state, "n": list(space.n) if isinstance(space.n, tuple) else int(space.n)}
    state["dtype"] = str(space.dtype)
    if isinstance(space, spaces.Box):
        return {**state, "low": _tensor(space.low), "high": _tensor(space.high)}
    if isinstance(space, spaces.Discrete):
        return {**state, "n": int(space.n), "start": int(space.start)}
    assert isinstance(space, spaces.MultiDiscrete)
    return {**state, "nvec": _tensor(space.nvec), "start": _tensor(space.start)}


def _space(state: Any) -> spaces.Space[Any]:
    if not isinstance(state, Mapping):
        raise TypeError(f"{state!r} is not a mapping")
    # Files of earlier versions say "kind" and "parts" where PettingZoo's agents wrote them.
    kind = state["type"] if "type" in state else state["kind"]
    dtype: dict[str, Any] = {}
    if "dtype" in state:
        dtype["dtype"] = np.dtype(state["dtype"]).type
    match kind:
        case "Dict":
            parts = state["spaces"] if "spaces" in state else state["parts"]
            return spaces.Dict([(key, _space(part)) for key, part in parts.items()])
        case "Box":
            low, high = _array(state["low"]), _array(state["high"])
            return spaces.Box(low, high, shape=low.shape, **dtype)
        case "Discrete":
            if dtype.get("dtype") is np.int64:  # older versions of Gymnasium have no other
                dtype = {}
            return spaces.Discrete(_whole(state["n"]), start=_whole(state["start"]), **dtype)
        case "MultiDiscrete":
            return spaces.MultiDiscrete(
                _array(state["nvec"]), start=_array(state["start"]), **dtype
            )
        case "MultiBinary":
            n = state["n"]
            several = isinstance(n, list | tuple)
            return spaces.MultiBinary(list(map(_whole, n)) if several else _whole(n))
    raise ValueError(f"its type is {kind!r}")


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


def _array(values: Any) -> NDArray[Any]:
    if not isinstance(values, torch.Tensor | np.ndarray):
        raise TypeError(f"{values!r} is not an array")
    return values.numpy(force=True) if isinstance(values, torch.Tensor) else values


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not an integer")
    return value


def _other_bounds(read: spaces.Space[Any], space: spaces.Space[Any]) -> str | None:
    """Return whether a Box did not keep its bounds exactly."""
    if isinstance(read, spaces.Dict) and isinstance(space, spaces.Dict):
        parts = (_other_bounds(part, space.spaces[key]) for key, part in read.spaces.items())
        return next(filter(None, parts), None)
    if not isinstance(read, spaces.Box) or not isinstance(space, spaces.Box):
        return None
    same = np.array_equal(read.low, space.low) and np.array_equal(read.high, space.high)
    return None if same else "its bounds would change"
