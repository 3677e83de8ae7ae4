"""Where the observations of a replay buffer are kept.

A storage keeps s and s' of every slot of the buffer's ring. `DenseStorage` keeps both whole;
`FrameStorage` keeps stacks of frames, and every frame once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dqn_adapters.stored import (
    check_array,
    check_count,
    check_mapping,
    check_range,
    check_values,
)
from dqn_adapters.transition import Arrays, map_arrays

Slots = slice | NDArray[np.int64]
Kind = Literal[0, 1]
"""Of an observation of a transition: s or s'."""


class Storage(Protocol):
    """Keeps the observations of a ring of `capacity` rows, numbered from 0 as they come."""

    oldest: int
    """Rows before this number are lost, beyond those that the ring overwrote."""

    shape: tuple[int, ...] | None
    """The shape of one observation; None for a dictionary of arrays."""

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, filled or not."""

    def add(
        self,
        numbers: NDArray[np.int64],
        slots: Slots,
        streams: NDArray[np.int64],
        observations: Arrays,
        next_observations: Arrays,
    ) -> None:
        """Store rows `numbers`, which belong to the streams (environments) `streams` and go to
        the slots `slots` of the ring."""

    @property
    def vectors(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """s and s' as views `(capacity, F)`, if each is kept whole, as one array."""

    def reserve(self, num_streams: int) -> None:
        """Make room for rows of so many streams, more than there were."""

    def gather(self, kind: Kind, slots: NDArray[np.int64], out: Arrays | None = None) -> Arrays:
        """s or s' of the given slots, in `out` if it is given."""

    @property
    def rings(self) -> dict[str, Arrays]:
        """The rows that observations are made of, `(room, ...)` each, written one after the
        other."""

    def places(self, kind: Kind, slots: NDArray[np.int64]) -> tuple[str, NDArray[Any]]:
        """Which ring the observations of the slots are in, and where: `(B,)`, or `(B, K)` for
        stacks of K."""

    def written(self, added: int) -> int:
        """Rows that were ever written into a ring, when `added` were added to the buffer."""

    def check(self, observations: Arrays, count: int, name: str) -> None:
        """Raise `ValueError` unless these are `count` observations of the space."""

    def state_dict(self, size: int) -> dict[str, Any]:
        """What is stored in the first `size` slots."""

    def check_state(self, state: Any, size: int, added: int) -> int:
        """Raise `ValueError` unless `load_state_dict` can restore the state of `size` slots of a
        ring to which `added` rows were added; the number of the oldest row that is left."""

    def load_state_dict(self, state: Any, size: int, added: int) -> None:
        """Restore it. Raises `ValueError` before anything is changed if it does not fit."""


class DenseStorage:
    """s and s', each whole, in the dtype of their space."""

    def __init__(self, capacity: int, space: spaces.Space[Any]) -> None:
        self.capacity = capacity
        self.oldest = 0
        self.shape = None if isinstance(space, spaces.Dict) else space.shape
        self._space = space
        self._arrays = {
            name: _empty(capacity, space) for name in ("observations", "next_observations")
        }

    @property
    def nbytes(self) -> int:
        return rings_nbytes(self.rings)

    def add(
        self,
        numbers: NDArray[np.int64],
        slots: Slots,
        streams: NDArray[np.int64],
        observations: Arrays,
        next_observations: Arrays,
    ) -> None:
        for name, rows in (
            ("observations", observations),
            ("next_observations", next_observations),
        ):
            map_arrays(lambda array, row: array.__setitem__(slots, row), self._arrays[name], rows)

    @property
    def vectors(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        s, s_next = self._arrays["observations"], self._arrays["next_observations"]
        if isinstance(s, dict) or isinstance(s_next, dict):
            return None
        if s.ndim != 2:
            s, s_next = s.reshape(len(s), -1), s_next.reshape(len(s), -1)
        return s, s_next

    def reserve(self, num_streams: int) -> None:
        pass  # whole observations need nothing of their stream

    def gather(self, kind: Kind, slots: NDArray[np.int64], out: Arrays | None = None) -> Arrays:
        name, slots = self.places(kind, slots)
        return _take(self._arrays[name], slots, out)

    @property
    def rings(self) -> dict[str, Arrays]:
        return self._arrays

    def places(self, kind: Kind, slots: NDArray[np.int64]) -> tuple[str, NDArray[Any]]:
        return ("observations", "next_observations")[kind], slots

    def written(self, added: int) -> int:
        return added

    def check(self, observations: Arrays, count: int, name: str) -> None:
        stored = self._arrays["observations"]
        if isinstance(stored, dict) != isinstance(observations, dict) or (
            isinstance(stored, dict)
            and isinstance(observations, dict)
            and stored.keys() != observations.keys()
        ):
            wanted = sorted(stored) if isinstance(stored, dict) else "one array"
            got = sorted(observations) if isinstance(observations, dict) else "one array"
            raise ValueError(f"{name} must be {wanted}, got {got}")
        map_arrays(
            lambda array, row: check_shape(name, row, (count, *array.shape[1:])),
            stored,
            observations,
        )

    def state_dict(self, size: int) -> dict[str, Any]:
        stored: dict[str, Any] = {
            name: map_arrays(lambda array: array[:size], arrays)
            for name, arrays in self._arrays.items()
        }
        return {**stored, "oldest": self.oldest}

    def check_state(self, state: Any, size: int, added: int) -> int:
        check_mapping("storage", state)
        for name, arrays in self._arrays.items():
            check_stored(name, arrays, state.get(name), size)
            check_values(f"{name} of the stored buffer", state[name], self._space)
        return check_count("oldest of the stored buffer", state.get("oldest", 0), high=added)

    def load_state_dict(self, state: Any, size: int, added: int) -> None:
        self.oldest = self.check_state(state, size, added)
        for name, arrays in self._arrays.items():
            map_arrays(lambda array, row: array.__setitem__(slice(size), row), arrays, state[name])


class FrameStorage:
    """Observations that are stacks of frames along their first axis, every frame kept once.

    An observation `(stack * c, ...)` consists of `stack` frames `(c, ...)`. s' shares all but its
    newest frame with s, and the next s is s'; both are recognised by comparing, so any stream is
    stored right, and one of stacked frames also small. Every row holds the places of its frames
    in a ring of frames. That ring has a little more room than the buffer has rows, since an
    episode of T steps has T + 1 frames; where short episodes need more, the oldest rows go early.

    Args:
        capacity: Rows.
        space: The space of one observation, a `Box`.
        stack: Frames in an observation.
        num_streams: Environments whose rows come interleaved.
    """

    def __init__(
        self, capacity: int, space: spaces.Space[Any], *, stack: int, num_streams: int
    ) -> None:
        check_frame_stack(stack, space)
        assert isinstance(space, spaces.Box)
        self.capacity = capacity
        self.oldest = 0
        self.shape: tuple[int, ...] | None = space.shape
        self._stack_shape = space.shape
        frame = (space.shape[0] // stack, *space.shape[1:])
        self._room = capacity + capacity // 32 + 4 * stack * num_streams
        self._frames = np.zeros((self._room, *frame), space.dtype)
        self._last_row = np.full(self._room, -1, np.int64)  # the newest row that uses a frame
        self._rows = np.zeros((2, capacity, stack), np.int32)  # places of the frames of s and s'
        self._added = 0
        # Of every stream the frames of its last s': the next s is usually the same.
        self._tails = np.full((num_streams, stack), -1, np.int64)

    @property
    def nbytes(self) -> int:
        return self._frames.nbytes + self._last_row.nbytes + self._rows.nbytes + self._tails.nbytes

    def add(
        self,
        numbers: NDArray[np.int64],
        slots: Slots,
        streams: NDArray[np.int64],
        observations: Arrays,
        next_observations: Arrays,
    ) -> None:
        assert not isinstance(observations, dict)
        assert not isinstance(next_observations, dict)
        stack = self._rows.shape[2]
        for number, stream, s, s2 in zip(
            numbers, streams, observations, next_observations, strict=True
        ):
            known = self._tails[stream]
            ids = self._intern(s.reshape(stack, *self._frames.shape[1:]), known)
            next_ids = self._intern(
                s2.reshape(stack, *self._frames.shape[1:]), np.append(ids[1:], -1)
            )
            self._tails[stream] = next_ids
            for kind, places in enumerate((ids, next_ids)):
                self._rows[kind, number % self.capacity] = places % self._room
                self._last_row[places % self._room] = number

    def _intern(self, frames: NDArray[Any], candidates: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of the frames: the candidates where they are these frames, else new ones."""
        ids = np.empty(len(frames), np.int64)
        # A frame about to be overwritten is stored anew: the rest of this row may take its place.
        alive = self._added - self._room + 2 * len(frames)
        for k, frame in enumerate(frames):
            for candidate in (candidates[k], ids[k - 1] if k else -1):
                if candidate >= max(alive, 0) and np.array_equal(
                    self._frames[candidate % self._room], frame
                ):
                    ids[k] = candidate
                    break
            else:
                ids[k] = self._append(frame)
        return ids

    def _append(self, frame: NDArray[Any]) -> int:
        place = self._added % self._room
        self.oldest = max(self.oldest, int(self._last_row[place]) + 1)
        self._frames[place] = frame
        self._last_row[place] = -1
        self._added += 1
        return self._added - 1

    @property
    def vectors(self) -> None:
        return None

    def reserve(self, num_streams: int) -> None:
        more = np.full((num_streams - len(self._tails), self._rows.shape[2]), -1, np.int64)
        self._tails = np.concatenate([self._tails, more])

    def gather(self, kind: Kind, slots: NDArray[np.int64], out: Arrays | None = None) -> Arrays:
        return self._stacks(self._rows[kind, slots], out)

    @property
    def rings(self) -> dict[str, Arrays]:
        return {"frames": self._frames}

    def places(self, kind: Kind, slots: NDArray[np.int64]) -> tuple[str, NDArray[Any]]:
        return "frames", self._rows[kind, slots]

    def written(self, added: int) -> int:
        return self._added

    def _stacks(self, places: NDArray[np.int32], out: Arrays | None) -> Arrays:
        if out is not None:
            assert not isinstance(out, dict)
            out = out.reshape(*places.shape, *self._frames.shape[1:])
        stacks = _take(self._frames, places, out)
        assert not isinstance(stacks, dict)
        return stacks.reshape(len(places), *self._stack_shape)

    def check(self, observations: Arrays, count: int, name: str) -> None:
        check_shape(name, observations, (count, *self._stack_shape))

    def state_dict(self, size: int) -> dict[str, Any]:
        used = min(self._added, self._room)
        return {
            "frames": self._frames[:used],
            "last_row": self._last_row[:used],
            "rows": self._rows[:, :size].copy(),
            "tails": self._tails,
            "added": self._added,
            "oldest": self.oldest,
        }

    def check_state(self, state: Any, size: int, added: int) -> int:
        check_mapping("storage", state, ("added", "oldest", "rows"))
        written = check_count("storage.added", state["added"])
        oldest = check_count("storage.oldest", state["oldest"], high=added)
        used, streams = min(written, self._room), len(self._tails)
        tails = state.get("tails")
        if isinstance(tails, np.ndarray) and tails.ndim and len(tails) != streams:
            raise ValueError(
                f"tails of the stored buffer are of {len(tails)} environments, here are {streams}; "
                "frames of another number of environments cannot be taken over"
            )
        check_stored("frames", self._frames, state.get("frames"), used)
        check_stored("last_row", self._last_row, state.get("last_row"), used)
        check_stored("tails", self._tails, tails, streams)
        shape = 2, size, self._rows.shape[2]
        rows = check_array("rows of the stored buffer", state["rows"], shape, np.int32)
        check_range("rows of the stored buffer", rows, 0, used - 1)
        check_range("tails of the stored buffer", state["tails"], -1, written - 1)
        check_range("last_row of the stored buffer", state["last_row"], -1, added - 1)
        numbers = row_numbers(size, added)
        newest = np.full(used, -1, np.int64)
        alive = numbers >= oldest
        for places in rows[:, alive]:
            np.maximum.at(newest, places, numbers[alive, None])
        if (newest > state["last_row"]).any():
            raise ValueError("last_row of the stored buffer must be the newest row of each frame")
        return oldest

    def load_state_dict(self, state: Any, size: int, added: int) -> None:
        self.check_state(state, size, added)
        used = min(int(state["added"]), self._room)
        self._frames[:used] = state["frames"]
        self._last_row[:used] = state["last_row"]
        self._rows[:, :size] = state["rows"]
        self._tails[:] = state["tails"]
        self._added, self.oldest = int(state["added"]), int(state["oldest"])


def _take(arrays: Arrays, slots: NDArray[Any], out: Arrays | None) -> Arrays:
    """The rows at the slots. `out` may be of another dtype than the arrays."""

    def take(array: NDArray[Any], into: NDArray[Any] | None = None) -> NDArray[Any]:
        if into is None:
            rows: NDArray[Any] = array[slots]
            return rows
        if into.dtype == array.dtype:
            return np.take(array, slots, axis=0, out=into, mode="clip")  # "raise" would buffer
        into[...] = array[slots]
        return into

    taken: Arrays = map_arrays(take, arrays) if out is None else map_arrays(take, arrays, out)
    return taken


def rings_nbytes(rings: Mapping[str, Arrays]) -> int:
    """Bytes of the arrays of all rings, filled or not."""
    leaves = (
        array
        for arrays in rings.values()
        for array in (arrays.values() if isinstance(arrays, dict) else [arrays])
    )
    return sum(array.nbytes for array in leaves)


def check_shape(name: str, array: Any, shape: tuple[int, ...]) -> None:
    """Raise `ValueError` unless the array has this shape."""
    if isinstance(array, np.ndarray) and array.shape == shape:
        return  # numpy's own function takes longer
    got = np.shape(array) if not isinstance(array, dict) else sorted(array)
    if got != shape:
        raise ValueError(f"{name} must have shape {shape}, got {got}")


def check_stored(name: str, ours: Arrays, stored: Any, size: int) -> None:
    """Raise `ValueError` unless `stored` can be copied into the first `size` rows of `ours`."""

    def check(array: NDArray[Any], rows: Any) -> None:
        check_array(f"{name} of the stored buffer", rows, (size, *array.shape[1:]), array.dtype)

    if stored is None or isinstance(stored, dict) != isinstance(ours, dict):
        raise ValueError(f"{name} of the stored buffer are missing or of another kind")
    if isinstance(ours, dict) and ours.keys() != stored.keys():
        raise ValueError(
            f"{name} of the stored buffer must be {sorted(ours)}, got {sorted(stored)}"
        )
    map_arrays(check, ours, stored)


def check_frame_stack(stack: int | None, space: spaces.Space[Any]) -> None:
    """Raise `ValueError` unless observations of the space are so many frames; None is not said."""
    if stack is None:
        return
    if not isinstance(space, spaces.Box) or not space.shape or space.shape[0] % stack:
        raise ValueError(
            f"frame_stack={stack} needs a Box whose first axis is a multiple of {stack}, "
            f"got {space}"
        )


def check_links(
    successor: NDArray[np.int64], numbers: NDArray[np.int64], terminated: NDArray[np.bool_]
) -> None:
    """Raise `ValueError` unless every row's successor is a later row that is stored, and is that
    of one row only; -1 is none, and a row that terminated has none.

    Args:
        successor: `(size,)`, slots.
        numbers: `(size,)`, the numbers of the rows in the slots.
        terminated: `(size,)`.
    """
    name = "successor of the stored buffer"
    check_range(name, successor, -1, len(successor) - 1)
    rows = np.flatnonzero(successor >= 0)
    following = successor[rows]
    if (numbers[following] <= numbers[rows]).any():
        raise ValueError(f"{name} must be a later row")
    if len(np.unique(following)) < len(following):
        raise ValueError(f"{name} must be different for all rows")
    if terminated[rows].any():
        raise ValueError(f"{name} must be -1 where the episode terminated")


def row_numbers(size: int, added: int) -> NDArray[np.int64]:
    """The numbers of the rows in the first `size` slots, when `added` were added: `(size,)`."""
    newest = added - 1
    return newest - (newest - np.arange(size)) % max(size, 1)


def _empty(capacity: int, space: spaces.Space[Any]) -> Arrays:
    if isinstance(space, spaces.Dict):
        return {name: _leaf(capacity, part) for name, part in space.items()}
    return _leaf(capacity, space)


def _leaf(capacity: int, space: spaces.Space[Any]) -> NDArray[Any]:
    if space.shape is None or space.dtype is None:
        raise ValueError(f"observations of {space} cannot be stored in an array")
    return np.zeros((capacity, *space.shape), space.dtype)
