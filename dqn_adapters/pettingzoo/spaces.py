"""Spaces as a state that a checkpoint can hold: an agent may appear that a new environment does not
know of beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces


def to_state(space: spaces.Space[Any]) -> dict[str, Any]:
    """The space as a nested state of numbers, strings and arrays; `from_state` is the inverse."""
    kind = {"kind": type(space).__name__}
    if isinstance(space, spaces.Dict):
        return {**kind, "parts": {key: to_state(part) for key, part in space.items()}}
    if isinstance(space, spaces.Discrete):
        return {**kind, "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Box):
        return {
            **kind,
            "low": np.array(space.low),
            "high": np.array(space.high),
            "dtype": space.dtype.str,
        }
    if isinstance(space, spaces.MultiDiscrete):
        return {**kind, "nvec": np.array(space.nvec), "start": np.array(space.start)}
    assert isinstance(space, spaces.MultiBinary)  # there are no others in an ObservationView
    return {**kind, "n": list(space.n) if isinstance(space.n, tuple) else int(space.n)}


def from_state(state: Mapping[str, Any]) -> spaces.Space[Any]:
    """The space that `to_state` described."""
    arguments = {key: value for key, value in state.items() if key != "kind"}
    if state["kind"] == "Dict":
        return spaces.Dict({key: from_state(part) for key, part in arguments["parts"].items()})
    if state["kind"] == "Box":
        arguments["dtype"] = np.dtype(arguments["dtype"])
    kinds: dict[str, Any] = {
        kind.__name__: kind
        for kind in (spaces.Box, spaces.Discrete, spaces.MultiBinary, spaces.MultiDiscrete)
    }
    space: spaces.Space[Any] = kinds[state["kind"]](**arguments)
    return space
