"""Uniform experience replay (Lin 1992)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from dqn_adapters.config import checked_int
from dqn_adapters.transition import EnvStep, Transition, to_tensor


class UniformReplay:
    """A ring of the last `capacity` transitions, sampled uniformly with replacement.

    The memory is allocated at construction (and taken from the system as it is filled), and
    observations keep the dtype of their space. s and s' are both stored, so a final observation is
    there also when the episode was only truncated.

    Args:
        capacity: Transitions kept, >= 1.
        observation_space: The space of one observation.
        gamma: Discount factor per step, in [0, 1].
        generator: Source of the sampled indices; the buffer owns it.
        device: Where sampled batches go.
    """

    def __init__(
        self,
        capacity: int,
        observation_space: spaces.Space[Any],
        *,
        gamma: float,
        generator: np.random.Generator,
        device: torch.device | str = "cpu",
    ) -> None:
        checked_int("capacity", capacity, low=1)
        shape, dtype = observation_space.shape, observation_space.dtype
        if shape is None or dtype is None:
            raise ValueError(f"observations of {observation_space} cannot be stored in one array")
        self.capacity = capacity
        self.gamma = gamma
        self.generator = generator
        self.device = device
        self._arrays = {
            "observations": np.zeros((capacity, *shape), dtype),
            "actions": np.zeros(capacity, np.int64),
            "rewards": np.zeros(capacity, np.float32),
            "next_observations": np.zeros((capacity, *shape), dtype),
            "terminated": np.zeros(capacity, np.bool_),
        }
        self._added = 0

    def __len__(self) -> int:
        """Transitions stored."""
        return min(self._added, self.capacity)

    def add(self, step: EnvStep) -> None:
        """Store the valid rows of a step; beyond the capacity the oldest are overwritten.

        Raises:
            ValueError: the arrays do not have the shapes of this buffer, or more rows come at once
                than the buffer holds.
        """
        rows = np.flatnonzero(step.valid)
        if len(rows) > self.capacity:
            raise ValueError(
                f"a step of {len(rows)} environments does not fit a buffer of capacity "
                f"{self.capacity}"
            )
        for name, array in self._arrays.items():
            values = np.asarray(getattr(step, name))
            if values.shape != (len(step.valid), *array.shape[1:]):
                raise ValueError(
                    f"{name} must have shape {(len(step.valid), *array.shape[1:])}, "
                    f"got {values.shape}"
                )
        slots = (self._added + np.arange(len(rows))) % self.capacity
        for name, array in self._arrays.items():
            array[slots] = np.asarray(getattr(step, name))[rows]
        self._added += len(rows)

    def sample(self, batch_size: int) -> Transition:
        """Draw `batch_size` transitions.

        Raises:
            ValueError: the buffer is empty.
        """
        if not len(self):
            raise ValueError("the replay buffer is empty: there is nothing to sample")
        return self.gather(self.generator.integers(len(self), size=batch_size))

    def gather(self, indices: np.ndarray[Any, np.dtype[np.int64]]) -> Transition:
        """The transitions at the given slots, `(B,)`."""
        rows = {name: array[indices] for name, array in self._arrays.items()}
        discounts = np.where(rows["terminated"], 0.0, self.gamma)
        return Transition(
            observations=to_tensor(rows["observations"], self.device),
            actions=to_tensor(rows["actions"], self.device),
            rewards=to_tensor(rows["rewards"], self.device),
            discounts=to_tensor(discounts, self.device),
            next_observations=to_tensor(rows["next_observations"], self.device),
        )

    def state_dict(self) -> dict[str, Any]:
        """The stored transitions (views), the write position and the generator's state."""
        return {
            "arrays": {name: array[: len(self)] for name, array in self._arrays.items()},
            "added": self._added,
            "generator": self.generator.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, into a buffer of the same capacity and spaces.

        Raises:
            ValueError: the stored arrays do not fit; the buffer is then unchanged.
        """
        stored, added = state["arrays"], int(state["added"])
        size = min(added, self.capacity)
        for name, array in self._arrays.items():
            values = stored.get(name)
            if values is None or values.shape != (size, *array.shape[1:]):
                got = None if values is None else values.shape
                raise ValueError(
                    f"{name} of the stored buffer must have shape {(size, *array.shape[1:])} "
                    f"(capacity {self.capacity}), got {got}"
                )
            if values.dtype != array.dtype:
                raise ValueError(
                    f"{name} of the stored buffer must be {array.dtype}, got {values.dtype}"
                )
        self.generator.bit_generator.state = state["generator"]
        for name, array in self._arrays.items():
            array[:size] = stored[name]
        self._added = added
