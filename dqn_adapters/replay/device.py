"""The observations of a replay buffer on the device that learns from them."""

from __future__ import annotations

import logging
from typing import Any

import torch
from numpy.typing import NDArray

from dqn_adapters.replay.storage import Kind, Storage, rings_nbytes
from dqn_adapters.transition import Arrays, Observations, map_arrays, to_tensor

log = logging.getLogger(__name__)


class DeviceCopy:
    """A ring of rows, copied to a device and brought up to date when it is read.

    Every row crosses over once, in place of every batch.

    Args:
        rows: The ring, `(room, ...)`; only read.
        device: Where the copy is; float64 is float32 there.
    """

    def __init__(self, rows: Arrays, device: torch.device) -> None:
        self._rows, self._device = rows, device
        self._copies: Any = map_arrays(self._make, rows)
        self._seen = 0

    def _make(self, rows: NDArray[Any]) -> torch.Tensor:
        return torch.empty(rows.shape, dtype=to_tensor(rows[:0]).dtype, device=self._device)

    def take(self, places: NDArray[Any], added: int) -> Observations:
        """The rows at the places, `(B,)` or `(B, K)`, of a ring that `added` rows were written
        into, one after the other, since it was made."""
        if added > self._seen:
            map_arrays(
                lambda rows, copy: self._catch_up(rows, copy, added), self._rows, self._copies
            )
            self._seen = added
        index = to_tensor(places, self._device)
        taken: Observations = map_arrays(lambda copy: copy[index], self._copies)
        return taken

    def _catch_up(self, rows: NDArray[Any], copy: torch.Tensor, added: int) -> None:
        room = len(rows)
        first = max(self._seen, added - room)
        begin, count = first % room, added - first
        for part in (
            slice(begin, min(begin + count, room)),
            slice(0, max(begin + count - room, 0)),
        ):
            copy[part].copy_(torch.from_numpy(rows[part]), non_blocking=True)


class DeviceStorage:
    """A copy of a `Storage` on a device."""

    def __init__(self, storage: Storage, device: torch.device) -> None:
        self._storage = storage
        self._copies = {name: DeviceCopy(ring, device) for name, ring in storage.rings.items()}

    @classmethod
    def where_it_fits(cls, storage: Storage, device: torch.device) -> DeviceStorage | None:
        """The copy, if the device has twice as much memory free; the log says which."""
        needed, free = rings_nbytes(storage.rings), free_memory(device)
        fits = 2 * needed <= free
        log.info(
            "Replay: %.1f GB of observations %s, which has %.1f GB free",
            needed / 1e9,
            f"are copied to {device}" if fits else f"stay in the host's memory, not on {device}",
            free / 1e9,
        )
        return cls(storage, device) if fits else None

    def gather(self, kind: Kind, slots: NDArray[Any], added: int) -> Observations:
        """s or s' of the given slots, as `Storage.gather` has them.

        Args:
            kind: Which of them.
            slots: `(B,)`.
            added: Rows that were ever added to the buffer.
        """
        name, places = self._storage.places(kind, slots)
        rows = self._copies[name].take(places, self._storage.written(added))
        if places.ndim == 1:
            return rows
        stacks: Observations = map_arrays(lambda frames: frames.flatten(1, 2), rows)
        return stacks


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; 0 for one that has no memory of its own, or does not say."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
