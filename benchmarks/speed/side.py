"""A side of a comparison: something that trains when it is told to, and says how much it did."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from speed.parts import Part, breakdown


@dataclass(frozen=True)
class Work:
    """The work that a side has done since it was made."""

    steps: int
    """Environment steps of all environments together, or rounds."""

    updates: int
    """Gradient updates."""

    stored: int
    """Transitions in the replay buffer."""

    capacity: int
    """Transitions that the replay buffer can hold."""

    loss: float = math.nan
    """Loss of the last update; NaN if it is not known."""


@dataclass(frozen=True)
class Floor:
    """Processor time that an environment step needs in any implementation, in microseconds."""

    products: float
    """Matrix products and convolutions."""

    memory: float
    """Storing and gathering rows, and moving the parameters and the state of Adam once."""


class Side(Protocol):
    """One of the two that are compared."""

    def run(self, steps: int) -> object:
        """Train for so many more environment steps."""

    def work(self) -> Work:
        """The work done so far."""

    def set_threads(self, count: int) -> None:
        """Compute with so many threads."""

    def breakdown(self, steps: int) -> dict[str, float]:
        """Train for twice as many more steps; microseconds of processor time per step and part."""

    def close(self) -> None:
        """Free what it holds."""


@dataclass
class Local:
    """A side in this process."""

    train: Callable[[int], object]
    """Trains for so many more environment steps."""

    work: Callable[[], Work]

    parts: Sequence[Part] = ()
    """Where the time of a step may go; see `speed.parts`."""

    floor: Callable[[float], Floor] | None = None
    """Takes updates per environment step; None where a step has no floor."""

    def run(self, steps: int) -> object:
        return self.train(steps)

    def set_threads(self, count: int) -> None:
        import torch

        torch.set_num_threads(count)

    def breakdown(self, steps: int) -> dict[str, float]:
        return breakdown(self.train, steps, self.parts)

    def close(self) -> None:
        """Nothing is held."""


def adam_steps(optimizer: Any) -> int:
    """Updates that a torch Adam has made, by its own state."""
    states = [state for state in optimizer.state.values() if "step" in state]
    return int(states[0]["step"]) if states else 0
