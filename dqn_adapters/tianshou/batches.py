"""A batch of Tianshou's as transitions of the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from dqn_adapters.tianshou.policy import split_mask
from dqn_adapters.transition import Transition

_DTYPES = {
    "observations": torch.float32,
    "actions": torch.int64,
    "rewards": torch.float32,
    "discounts": torch.float32,
    "next_observations": torch.float32,
    "next_action_masks": torch.bool,
    "weights": torch.float32,
}
"""Of the fields of a `Transition`, in their order."""


def fields_of(batch: Any) -> dict[str, Any]:
    """What a batch has for the fields of a `Transition`, by their names."""
    observations, _ = split_mask(batch.obs)
    next_observations, masks = split_mask(batch.obs_next, batch.info)  # info came with s'
    return {
        "observations": observations,
        "actions": batch.act,
        "rewards": batch.returns,
        "discounts": batch.discounts,
        "next_observations": next_observations,
        "next_action_masks": masks,
        "weights": getattr(batch, "weight", None),
    }


def to_transition(fields: Mapping[str, Any], device: torch.device) -> Transition:
    """The fields as tensors, but for the observations: a model of Tianshou converts its own."""
    tensors = {
        name: values
        if values is None or name.endswith("observations")
        else torch.as_tensor(values, dtype=_DTYPES[name], device=device)
        for name, values in fields.items()
    }
    return Transition(**tensors)


class TransitionMemory:
    """Tensors on the CPU for one batch after the other.

    The next batch of the same shapes is copied into the memory of the last: that takes less time
    than to make seven tensors, and the kernel knows where they are.
    """

    def __init__(self) -> None:
        self._shapes: list[Any] = []
        self._arrays: list[NDArray[Any]] = []
        self._transition: Any = None

    def __reduce__(self) -> Any:  # a copy has memory of its own
        return TransitionMemory, ()

    def put(self, fields: Mapping[str, Any]) -> Transition:
        """The fields as tensors, observations included; they hold until the next call."""
        shapes = [None if values is None else values.shape for values in fields.values()]
        if shapes != self._shapes:
            tensors = {
                name: None if shape is None else torch.empty(shape, dtype=_DTYPES[name])
                for name, shape in zip(fields, shapes, strict=True)
            }
            self._shapes, self._transition = shapes, Transition(**tensors)  # type: ignore[arg-type]
            self._arrays = [tensor.numpy() for tensor in tensors.values() if tensor is not None]
        given = [values for values in fields.values() if values is not None]
        for array, values in zip(self._arrays, given, strict=True):
            array[...] = values
        transition: Transition = self._transition
        return transition
