"""Tianshou's replay buffers, sampling by the experiment's seed and checking only what is new."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tianshou.data as host
from numpy.typing import NDArray

if TYPE_CHECKING:
    _Base = host.ReplayBuffer
else:
    _Base = object


class _Buffer(_Base):
    """Mends two things of the buffer behind it in the method resolution order.

    Its arguments are those of Tianshou's buffer, and `seed`: it decides which transitions are
    sampled, None draws fresh entropy. (Tianshou's uniform buffers draw from seed 42, whatever the
    experiment's seed; its prioritised ones from numpy's global state.)
    """

    _unchecked: set[int] | None = None  # rows that may hold a NaN; None: all of them

    def __init__(
        self, *args: Any, seed: int | np.random.SeedSequence | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if not isinstance(seed, np.random.SeedSequence):
            seed = np.random.SeedSequence(seed)
        buffers = [self, *getattr(self, "buffers", ())]  # a vector buffer's parts draw too
        for buffer, child in zip(buffers, seed.spawn(len(buffers)), strict=True):
            buffer._random_state = np.random.RandomState(np.random.MT19937(child))

    def hasnull(self) -> bool:
        """Whether a value is missing or NaN; only rows that were not found sound are looked at."""
        if self._unchecked is None:
            if super().hasnull():
                return True
        elif self._unchecked and self[np.fromiter(self._unchecked, np.int64)].hasnull():
            return True
        self._unchecked = set()
        return False

    def add(self, *args: Any, **kwargs: Any) -> Any:
        """See Tianshou's `ReplayBuffer.add`."""
        added = super().add(*args, **kwargs)
        if self._unchecked is not None:
            self._unchecked.update(added[0].tolist())
        return added

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """See Tianshou's `ReplayBuffer.update`."""
        self._unchecked = None
        return super().update(*args, **kwargs)

    def set_batch(self, *args: Any, **kwargs: Any) -> None:
        """See Tianshou's `ReplayBuffer.set_batch`."""
        self._unchecked = None
        super().set_batch(*args, **kwargs)

    def set_array_at_key(self, *args: Any, **kwargs: Any) -> None:
        """See Tianshou's `ReplayBuffer.set_array_at_key`."""
        self._unchecked = None
        super().set_array_at_key(*args, **kwargs)

    def dropnull(self) -> None:
        """See Tianshou's `ReplayBuffer.dropnull`."""
        self._unchecked = None
        super().dropnull()

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """See Tianshou's `ReplayBuffer.reset`."""
        self._unchecked = None
        super().reset(*args, **kwargs)


class _PrioritizedBuffer(_Buffer):
    def sample_indices(self, batch_size: int | None) -> NDArray[Any]:
        """See Tianshou's `PrioritizedReplayBuffer.sample_indices`."""
        if not batch_size or batch_size < 0 or not len(self):
            return super().sample_indices(batch_size)
        uniform = self._random_state.random_sample(batch_size)
        indices: NDArray[Any] = self.weight.get_prefix_sum_idx(uniform * self.weight.reduce())
        return indices


class ReplayBuffer(_Buffer, host.ReplayBuffer):
    """Tianshou's `ReplayBuffer` with `seed=`."""


class VectorReplayBuffer(_Buffer, host.VectorReplayBuffer):
    """Tianshou's `VectorReplayBuffer` with `seed=`."""


class PrioritizedReplayBuffer(_PrioritizedBuffer, host.PrioritizedReplayBuffer):
    """Tianshou's `PrioritizedReplayBuffer` with `seed=`."""


class PrioritizedVectorReplayBuffer(_PrioritizedBuffer, host.PrioritizedVectorReplayBuffer):
    """Tianshou's `PrioritizedVectorReplayBuffer` with `seed=`."""
