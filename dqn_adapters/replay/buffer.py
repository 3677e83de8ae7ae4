"""The replay buffer: a ring of transitions, n-step returns, uniform or prioritised sampling."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from dqn_adapters import checkpoint
from dqn_adapters.config import DQNConfig, checked_float, checked_int
from dqn_adapters.replay.device import DeviceStorage
from dqn_adapters.replay.n_step import Indices, n_step_returns
from dqn_adapters.replay.storage import (
    DenseStorage,
    FrameStorage,
    Kind,
    Slots,
    Storage,
    check_links,
    check_shape,
    check_stored,
    row_numbers,
)
from dqn_adapters.replay.sum_tree import SumTree, loops
from dqn_adapters.stored import (
    check_array,
    check_count,
    check_finite_values,
    check_generator,
    check_mapping,
    check_range,
)
from dqn_adapters.transition import (
    Arrays,
    EnvStep,
    Observations,
    Transition,
    map_arrays,
    to_tensor,
    to_tensors,
)

_NO_TREE = np.zeros((0, 1)), np.zeros(1, np.int64)
_NO_WEIGHTS = np.zeros(0, np.float32)
_NO_MASKS = np.zeros((0, 0), np.bool_)


class Tables(NamedTuple):
    """What a replay buffer holds, as compiled code sees it."""

    observations: NDArray[Any]
    """`(capacity, F)`."""

    next_observations: NDArray[Any]
    """`(capacity, F)`."""

    actions: NDArray[np.int64]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    successor: NDArray[np.int64]
    masks: NDArray[np.bool_]
    """`(capacity, A)`; `(0, 0)` if there are none."""

    nodes: NDArray[np.float64]
    """Of the `SumTree`; empty without priorities."""

    starts: NDArray[np.int64]


class RandomBits(NamedTuple):
    """Where compiled code finds the bits of a numpy generator: addresses."""

    next_uint32: int
    """A function that gives the next 32 bits."""

    next_double: int
    """A function that gives the next number in [0, 1)."""

    state: int
    """What they are called with."""


_NO_BITS: tuple[Any, RandomBits] = (None, RandomBits(0, 0, 0))

# Of the fields of a step that compiled code stores.
_SHAPE, _DTYPE = operator.attrgetter("shape"), operator.attrgetter("dtype")
_ARRAYS = [np.ndarray] * 7
_BOOLS = [np.dtype(np.bool_)] * 3
_DTYPES = [
    [*map(np.dtype, (np.float32, np.int64, reward, np.float32)), *_BOOLS]
    for reward in (np.float64, np.float32)
]


class ReplayBuffer:
    """The last `capacity` transitions of N environments (Lin 1992).

    Memory is allocated at construction and taken from the system as it is filled; observations
    keep the dtype of their space. One step of one environment is stored as it was experienced;
    n-step returns and discounts are made when a batch is gathered, so `gamma` and `n_steps` may be
    changed at any time. Rows are linked to the next row of their own environment: a return never
    runs into another episode, another environment, or past the newest row.

    Where numba is installed, compiled loops draw and set priorities, and, where observations are
    vectors of float32, also store steps and gather batches. What they do is defined by the numpy
    beside each call.

    Args:
        capacity: Transitions kept, >= 1.
        observation_space: The space of one observation: a Box, Discrete, MultiBinary,
            MultiDiscrete, or a Dict of these.
        gamma: Discount factor per step, in [0, 1].
        generator: Source of the sampled indices; the buffer owns it.
        num_envs: Environments whose steps come together.
        n_steps: Rewards in a return, >= 1 (Sutton 1988): r_0 + gamma r_1 + ... and a discount of
            gamma ** k for the k <= n_steps rewards that there are.
        frame_stack: Observations are so many frames stacked along the first axis, each of which
            is kept once (see `FrameStorage`). None: observations are kept whole.
        prioritized: Sample in proportion to the priorities (Schaul et al. 2016) instead of
            uniformly.
        alpha: Prioritised: priorities are (|TD error| + 1e-6) ** alpha, alpha in [0, 1].
        beta: Prioritised: exponent of the importance weights, in [0, 1]; may be changed.
        device: Where batches go. On a GPU, a copy of the observations is kept there too if it has
            twice as much memory free when the first batch is gathered.
    """

    def __init__(
        self,
        capacity: int,
        observation_space: spaces.Space[Any],
        *,
        gamma: float,
        generator: np.random.Generator,
        num_envs: int = 1,
        n_steps: int = 1,
        frame_stack: int | None = None,
        prioritized: bool = False,
        alpha: float = 0.6,
        beta: float = 0.4,
        device: torch.device | str = "cpu",
    ) -> None:
        checked_int("capacity", capacity, low=1)
        checked_int("n_steps", n_steps, low=1)
        checked_float("alpha", alpha, high=1.0)
        checked_float("beta", beta, high=1.0)
        self.capacity = capacity
        self.num_envs = num_envs
        self.gamma = gamma
        self.n_steps = n_steps
        self.alpha = alpha
        self.beta = beta
        self.generator = generator
        self.device = device
        self._storage: Storage = (
            DenseStorage(capacity, observation_space)
            if frame_stack is None
            else FrameStorage(capacity, observation_space, stack=frame_stack, num_streams=num_envs)
        )
        self._arrays: dict[str, NDArray[Any]] = {
            "actions": np.zeros(capacity, np.int64),
            "rewards": np.zeros(capacity, np.float32),
            "terminated": np.zeros(capacity, np.bool_),
            # Slot of the next row of the same environment and episode; -1: there is none (yet).
            "successor": np.full(capacity, -1, np.int64),
        }
        self._tree = SumTree(capacity) if prioritized else None
        self.largest_priority = 1.0
        """That of a new transition."""
        self._reused: tuple[Transition, Any] | None = None  # a batch, and its fields as arrays
        self._tables: Tables | None = None  # made when wanted, and anew when an array is replaced
        self._bits = _NO_BITS  # the generator's, and where they come from
        # By device, the copy of the observations there; None where it does not fit.
        self._copies: dict[torch.device, DeviceStorage | None] = {}
        self._added = 0
        self._adding = 0  # rows that are being written behind those
        self._last = np.full(num_envs, -1, np.int64)  # number of every environment's newest row
        self._envs = np.arange(num_envs)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without the reused batch, whose tensors and arrays would no
        longer share memory in a copy, and what is made again when it is wanted."""
        return {**self.__dict__, "_reused": None, "_tables": None, "_bits": _NO_BITS, "_copies": {}}

    @classmethod
    def from_config(
        cls,
        config: DQNConfig,
        observation_space: spaces.Space[Any],
        *,
        num_envs: int,
        generator: np.random.Generator,
        device: torch.device | str = "cpu",
    ) -> ReplayBuffer:
        """The buffer that a configuration asks for."""
        return cls(
            config.buffer_size,
            observation_space,
            gamma=config.gamma,
            generator=generator,
            num_envs=num_envs,
            n_steps=config.n_steps,
            frame_stack=config.frame_stack,
            prioritized=config.prioritized_replay,
            alpha=config.priority_alpha,
            beta=config.priority_beta,
            device=device,
        )

    def __len__(self) -> int:
        """Transitions stored."""
        return self._added - self.oldest

    @property
    def oldest(self) -> int:
        """The number of the oldest transition stored; number n lies in slot n % `capacity`."""
        return max(self._added + self._adding - self.capacity, self._storage.oldest)

    @property
    def observation_shape(self) -> tuple[int, ...] | None:
        """The shape of one observation; None for a dictionary of arrays."""
        return self._storage.shape

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays, filled or not."""
        tree = 0 if self._tree is None else self._tree.nbytes
        return sum(array.nbytes for array in self._arrays.values()) + self._storage.nbytes + tree

    @property
    def has_masks(self) -> bool:
        """Whether action masks are stored."""
        return "next_action_masks" in self._arrays

    @property
    def prioritized(self) -> bool:
        """Whether sampling is prioritised."""
        return self._tree is not None

    def add(self, step: EnvStep, streams: Indices | None = None) -> None:
        """Store the valid rows of a step; beyond the capacity the oldest are overwritten.

        A step is stored whole or not at all, also if it is interrupted; the running episodes are
        then cut. Rows that came without masks, before or after others, are ones where all actions
        are legal.

        Args:
            step: One step of all environments, or of those that `streams` names.
            streams: `(len(step.valid),)`, the environment of every row, each at most once. None:
                row i is of environment i, and all are there.

        Raises:
            ValueError: the arrays do not have the shapes of this buffer, there are more
                environments than the buffer was made for; nothing is stored then.
        """
        if self._adding:
            self._undo()
        count = len(step.valid)
        if self._add_vectors(step, count, streams):
            return
        self._check(step, count, streams)
        valid = np.flatnonzero(step.valid)
        if not len(valid):
            return
        if len(valid) < count:
            step = EnvStep(*(_rows(values, valid) for values in step))
        envs = valid if streams is None else streams[valid]
        oldest, first = self.oldest, self._added % self.capacity
        numbers = self._added + np.arange(len(valid))
        slots: Slots = slice(first, first + len(valid))
        if first + len(valid) > self.capacity:
            slots = numbers % self.capacity
        self._adding = len(valid)
        if self._tree is not None:
            self._tree.set(np.arange(oldest, self.oldest) % self.capacity, 0.0)
        arrays = self._arrays
        arrays["actions"][slots] = step.actions
        arrays["rewards"][slots] = step.rewards
        arrays["terminated"][slots] = step.terminated
        if self.has_masks:
            masks = step.next_action_masks
            arrays["next_action_masks"][slots] = True if masks is None else masks
        self._storage.add(numbers, slots, envs, step.observations, step.next_observations)
        self._link(envs, numbers, done=step.terminated | step.truncated)
        if self._tree is not None:
            evicted = np.arange(oldest, self.oldest)  # a storage of frames may evict more
            self._tree.set(evicted % self.capacity, 0.0)
            self._tree.set(numbers % self.capacity, self.largest_priority)
        self._added += len(envs)
        self._adding = 0

    def _undo(self) -> None:
        """What an interrupted `add` has written of its rows is not stored, and nothing links to
        it; the running episodes are cut."""
        slots = (self._added + np.arange(self._adding)) % self.capacity
        successor = self._arrays["successor"]
        successor[np.isin(successor, slots)] = -1
        if self._tree is not None:
            # Written anew as a whole: the sums above an interrupted change may be old.
            values = self._tree.state_dict()["values"].copy()
            values[slots] = 0.0
            self._tree.set(np.arange(self.capacity), values)
        self._last[:] = -1
        self._storage.oldest = self.oldest
        self._adding = 0

    def _add_vectors(self, step: EnvStep, count: int, streams: Indices | None) -> bool:
        """Store the step by compiled code; False if that is not for this step (or it is wrong)."""
        rows, compiled, masks = self.tables, loops(), step.next_action_masks
        if compiled is None or rows is None or rows[0].dtype != np.float32:
            return False
        if (masks is None) == self.has_masks:  # they come now and then, or the first time
            return False
        masks = _NO_MASKS if masks is None else masks
        fields: Any = step[:7]
        vectors, numbers = (count, rows[0].shape[1]), (count,)
        if (
            list(map(type, fields)) != _ARRAYS
            or list(map(_DTYPE, fields)) not in _DTYPES
            or list(map(_SHAPE, fields)) != [vectors, numbers, numbers, vectors, *[numbers] * 3]
            or count > self.capacity
            or type(masks) is not np.ndarray
            or masks.dtype != np.bool_
            or masks.shape != (count if self.has_masks else 0, rows.masks.shape[1])
        ):
            return False
        if streams is None:
            if count != self.num_envs:
                return False
            streams = self._envs
        elif count != 1 or streams.shape != numbers or not 0 <= streams[0] < self.num_envs:
            return False  # whether several are distinct, `_check` finds out
        self._adding = count
        self._added += compiled.store(
            *(*rows, self._last, self._added, self.largest_priority, streams), *fields, masks
        )
        self._adding = 0
        return True

    @property
    def tables(self) -> Tables | None:
        """The arrays that compiled code works with; None if observations are not kept whole, one
        array of numbers each."""
        if self._tables is None:
            self._tables = self._make_tables()
        return self._tables

    def _make_tables(self) -> Tables | None:
        observations, arrays, tree = self._storage.vectors, self._arrays, self._tree
        if observations is None:
            return None
        return Tables(
            *observations,
            arrays["actions"],
            arrays["rewards"],
            arrays["terminated"],
            arrays["successor"],
            arrays.get("next_action_masks", _NO_MASKS),
            *(_NO_TREE if tree is None else (tree.nodes, tree.starts)),
        )

    def _check(self, step: EnvStep, count: int, streams: Indices | None) -> None:
        if (streams is None and count != self.num_envs) or count > self.capacity:
            raise ValueError(
                f"a step of {count} environments does not fit a buffer of capacity "
                f"{self.capacity} for {self.num_envs}"
            )
        if streams is not None:
            check_shape("streams", streams, (count,))
            distinct = {stream for stream in streams.tolist() if 0 <= stream < self.num_envs}
            if len(distinct) < count:
                raise ValueError(
                    f"streams must be different numbers in 0 .. {self.num_envs - 1}, "
                    f"got {streams.tolist()}"
                )
        self._storage.check(step.observations, count, "observations")
        self._storage.check(step.next_observations, count, "next_observations")
        for name in ("actions", "rewards", "terminated", "truncated"):
            check_shape(name, getattr(step, name), (count,))
        masks = step.next_action_masks
        if masks is None:
            return
        stored = self._arrays.get("next_action_masks")
        num_actions = np.shape(masks)[-1:] if stored is None else stored.shape[1:]
        check_shape("next_action_masks", masks, (count, *num_actions))
        if stored is None:
            stored = np.zeros((self.capacity, *num_actions), np.bool_)
            stored[: self._added] = True
            self._reused = None  # that batch has no masks
            self._arrays["next_action_masks"] = stored
            self._tables = None

    def _link(self, envs: Indices, numbers: Indices, *, done: NDArray[np.bool_]) -> None:
        successor, capacity, newest = self._arrays["successor"], self.capacity, int(numbers[-1])
        for env, number, over in zip(envs.tolist(), numbers.tolist(), done.tolist(), strict=True):
            successor[number % capacity] = -1
            previous = self._last[env]
            if 0 <= previous > newest - capacity:
                successor[previous % capacity] = number % capacity
            self._last[env] = -1 if over else number

    def cut(self, streams: Indices | int | None = None) -> None:
        """The running episodes (None: all) are broken off: the rows that come next begin new
        ones."""
        if self._adding:
            self._undo()
        self._last[slice(None) if streams is None else streams] = -1

    def reserve(self, num_envs: int) -> None:
        """Make room for the steps of so many environments, at least."""
        more = num_envs - self.num_envs
        if more > 0:
            self._last = np.append(self._last, np.full(more, -1, np.int64))
            self._storage.reserve(num_envs)
            self.num_envs = num_envs
            self._envs = np.arange(num_envs)

    def draw(self, batch_size: int) -> Indices:
        """Draw the slots of `batch_size` transitions, with replacement.

        Prioritised sampling is stratified: one draw from each of `batch_size` equal parts of the
        total priority (Schaul et al. 2016, appendix B.2.1).

        Raises:
            ValueError: the buffer is empty.
        """
        oldest = self.oldest
        if self._added == oldest:
            raise ValueError("the replay buffer is empty: there is nothing to sample")
        compiled, count = loops(), self._added - oldest
        if self._tree is None:
            if compiled is not None and count < 2**32:
                slots, bits = np.empty(batch_size, np.int64), self.random_bits
                compiled.draw(bits.next_uint32, bits.state, oldest, count, self.capacity, slots)
                return slots
            numbers = self.generator.integers(count, size=batch_size)
            return (oldest + numbers) % self.capacity if oldest else numbers
        if compiled is not None:
            slots, bits = np.empty(batch_size, np.int64), self.random_bits
            compiled.draw_prioritized(
                bits.next_double, bits.state, self._tree.nodes, self._tree.starts, slots
            )
            return slots
        parts = (np.arange(batch_size) + self.generator.random(batch_size)) / batch_size
        return self._tree.find(parts * self._tree.total)

    @property
    def sampling(self) -> tuple[Any, ...]:
        """What compiled code draws and gathers by, beside `tables`: the oldest number, how many are
        stored, `n_steps`, `gamma`, `beta`, `alpha`, the largest priority, and `random_bits`."""
        oldest = self.oldest
        return (
            *(oldest, self._added - oldest, self.n_steps, float(self.gamma)),
            *(float(self.beta), float(self.alpha), self.largest_priority, *self.random_bits),
        )

    @property
    def random_bits(self) -> RandomBits:
        """The bits of the generator."""
        bits = self.generator.bit_generator
        if bits is not self._bits[0]:
            interface: Any = bits.ctypes
            next_uint32, next_double = (
                ctypes.cast(function, ctypes.c_void_p).value or 0
                for function in (interface.next_uint32, interface.next_double)
            )
            self._bits = bits, RandomBits(next_uint32, next_double, interface.state_address)
        return self._bits[1]

    def gather(
        self,
        indices: Indices,
        *,
        transform_rewards: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
        reuse: bool = False,
        device: torch.device | str | None = None,
    ) -> Transition:
        """The transitions at the given slots, `(B,)`, with their importance weights if the buffer
        is prioritised: (len * P) ** -beta, divided by the largest of the batch.

        Args:
            indices: The slots.
            transform_rewards: Applied to every reward before it is summed; a host's normaliser.
            reuse: The batch may be written into the memory of the last one that was gathered so,
                which is cheaper; on the CPU it is the very same object.
            device: Where the batch goes. None: to that of the buffer.
        """
        device = torch.device(self.device if device is None else device)
        reuse = reuse and device.type == "cpu"
        if reuse and transform_rewards is None:
            reused = self._gather_vectors(indices)
            if reused is not None:
                return reused
        rewards_of: Any = self._arrays["rewards"]
        if transform_rewards is not None:
            rewards_of = _Transformed(rewards_of, transform_rewards)
        successor = self._arrays["successor"]
        rewards, discounts, last = n_step_returns(
            indices,
            n_steps=self.n_steps,
            gamma=self.gamma,
            rewards=rewards_of,
            terminated=self._arrays["terminated"],
            successor=lambda rows: successor[rows],
        )
        masks = self._arrays.get("next_action_masks")
        weights = None
        if self._tree is not None:
            probabilities = self._tree.get(indices) / self._tree.total
            weights = (len(self) * probabilities) ** -self.beta
            weights /= weights.max()
        actions = self._arrays["actions"]
        next_masks = None if masks is None else masks[last]
        if reuse and self._reused is not None and len(self._reused[1].rewards) == len(indices):
            batch, arrays = self._reused
            self._storage.gather(0, indices, out=arrays.observations)
            self._storage.gather(1, last, out=arrays.next_observations)
            np.take(actions, indices, out=arrays.actions, mode="clip")
            arrays.rewards[...] = rewards
            arrays.discounts[...] = discounts
            if next_masks is not None:
                arrays.next_action_masks[...] = next_masks
            if weights is not None:
                arrays.weights[...] = weights
            return batch
        batch = Transition(
            observations=self._observations(0, indices, device),
            actions=to_tensor(actions[indices], device),
            rewards=to_tensor(rewards, device),
            discounts=to_tensor(discounts, device),
            next_observations=self._observations(1, last, device),
            next_action_masks=None if next_masks is None else to_tensor(next_masks, device),
            weights=None if weights is None else to_tensor(weights, device),
        )
        if reuse:
            self._reused = batch, Transition(*map(_as_arrays, batch))
        return batch

    def observations(self, indices: Indices) -> tuple[Arrays, Arrays]:
        """s and s' of what `gather` gives, `(B, ...)`, in the dtype of their space: tensors of
        float64 observations are float32."""
        successor = self._arrays["successor"]
        last = n_step_returns(
            indices,
            n_steps=self.n_steps,
            gamma=self.gamma,
            rewards=self._arrays["rewards"],
            terminated=self._arrays["terminated"],
            successor=lambda rows: successor[rows],
        )[2]
        return self._storage.gather(0, indices), self._storage.gather(1, last)

    def _observations(self, kind: Kind, slots: Indices, device: torch.device) -> Observations:
        if device.type != "cpu" and device not in self._copies:
            self._copies[device] = DeviceStorage.where_it_fits(self._storage, device)
        copy = self._copies.get(device)
        if copy is not None:
            return copy.gather(kind, slots, self._added)
        return to_tensors(self._storage.gather(kind, slots), device)

    def _gather_vectors(self, indices: Indices) -> Transition | None:
        """Gather into the batch that is used again, by compiled code; None if that is not for
        these indices (or they are wrong)."""
        rows, compiled = self.tables, loops()
        if compiled is None or rows is None or rows[0].dtype != np.float32:
            return None
        if indices.dtype != np.int64 or indices.ndim != 1 or len(self._storage.shape or ()) != 1:
            return None
        if (
            self._reused is None
            or len(self._reused[1].rewards) != len(indices)
            or (self._reused[1].next_action_masks is None) == self.has_masks
        ):
            size, features = len(indices), rows[0].shape[1]
            batch = Transition(
                observations=torch.empty(size, features),
                actions=torch.empty(size, dtype=torch.int64),
                rewards=torch.empty(size),
                discounts=torch.empty(size),
                next_observations=torch.empty(size, features),
                next_action_masks=torch.empty(size, rows.masks.shape[1], dtype=torch.bool)
                if self.has_masks
                else None,
                weights=torch.empty(size) if self.prioritized else None,
            )
            self._reused = batch, Transition(*map(_as_arrays, batch))
        batch, (s, a, r, d, s_next, legal, weights) = self._reused
        done = compiled.gather(
            *(*rows, indices, self.n_steps, float(self.gamma), len(self), float(self.beta)),
            *(s, a, r, d, s_next, _NO_MASKS if legal is None else legal),
            _NO_WEIGHTS if weights is None else weights,
        )
        return batch if done else None

    def sample(self, batch_size: int) -> Transition:
        """`gather(draw(batch_size))`."""
        return self.gather(self.draw(batch_size))

    def update_priorities(self, indices: Indices, td_errors: NDArray[Any] | torch.Tensor) -> None:
        """Set the priorities of the given slots by their TD errors; nothing if uniform.

        Raises:
            ValueError: a TD error is not finite.
        """
        if self._tree is None:
            return
        if isinstance(td_errors, torch.Tensor):
            td_errors = td_errors.detach().cpu().numpy()
        errors, compiled = np.asarray(td_errors, np.float64), loops()
        if compiled is not None and errors.shape == indices.shape and indices.dtype == np.int64:
            row, largest = compiled.set_priorities(
                *(self._tree.nodes, self._tree.starts, indices, errors),
                *(self.alpha, self.largest_priority),
            )
            if row < 0:
                self.largest_priority = largest
                return
        errors = np.abs(errors)
        if not np.isfinite(errors).all():
            row = int(np.flatnonzero(~np.isfinite(errors))[0])
            raise ValueError(
                f"the priority of transition {int(indices[row])} would be {errors[row]}: "
                "its TD error must be finite"
            )
        priorities = (errors + 1e-6) ** self.alpha
        self._tree.set(indices, priorities)
        self.largest_priority = max(self.largest_priority, float(priorities.max()))

    def state_dict(self) -> dict[str, Any]:
        """The stored transitions (views), priorities, links and the generator's state."""
        if self._adding:
            self._undo()
        size = min(self._added, self.capacity)
        return {
            "capacity": self.capacity,
            "arrays": {name: array[:size] for name, array in self._arrays.items()},
            "storage": self._storage.state_dict(size),
            "tree": None if self._tree is None else self._tree.state_dict(),
            "largest_priority": self.largest_priority,
            "added": self._added,
            "last": self._last,
            "generator": self.generator.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any], num_actions: int | None = None) -> None:
        """Restore what `state_dict` gave, into a buffer made alike.

        A buffer of another number of environments keeps the transitions, and begins new episodes.

        Args:
            state: The state; it is not changed.
            num_actions: A: the stored actions must be in 0 .. A - 1. None: any number of them.

        Raises:
            ValueError: the stored buffer does not fit; this one is then unchanged.
        """
        own = self.state_dict()
        check_mapping("replay", state, own)
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"the stored buffer has the capacity {state['capacity']}, this one {self.capacity}"
            )
        if (state["tree"] is None) != (self._tree is None):
            raise ValueError("one of the buffers is prioritised, the other is not")
        added = check_count("added", state["added"])
        size = min(added, self.capacity)
        stored = check_mapping("arrays", state["arrays"])
        masks = stored.get("next_action_masks")
        arrays = dict(self._arrays)
        arrays.pop("next_action_masks", None)
        if masks is not None:
            width = np.shape(masks)[-1] if num_actions is None and np.ndim(masks) else num_actions
            arrays["next_action_masks"] = np.zeros((self.capacity, width or 1), np.bool_)
        for name, array in arrays.items():
            check_stored(name, array, stored.get(name), size)
        last = state["last"]
        check_array("last of the stored buffer", last, (np.size(last),), np.int64)
        check_range("last of the stored buffer", last, -1, added - 1)
        check_range(
            "actions of the stored buffer", stored["actions"], 0, (num_actions or 2**62) - 1
        )
        check_finite_values("rewards of the stored buffer", stored["rewards"])
        numbers = row_numbers(size, added)
        check_links(stored["successor"], numbers, stored["terminated"])
        oldest = self._storage.check_state(state["storage"], size, added)
        largest = checked_float("largest_priority", state["largest_priority"], open_low=True)
        assert largest is not None
        if self._tree is not None:
            live = np.zeros(self.capacity, np.bool_)
            live[:size] = numbers >= oldest
            self._tree.check_state(state["tree"], live)
        generator = check_generator("generator", state["generator"], self.generator)
        self._storage.load_state_dict(state["storage"], size, added)
        for name, array in arrays.items():
            array[:size] = stored[name]
        self._arrays, self._tables = arrays, None
        self._copies.clear()
        self._reused = None
        self._last[:] = last if len(last) == self.num_envs else -1
        self._added, self._adding = added, 0
        self.largest_priority = largest
        if self._tree is not None:
            self._tree.load_state_dict(state["tree"])
        self.generator.bit_generator.state = generator

    def save(self, path: str | Path) -> Path:
        """Write the buffer to a file, atomically; see `checkpoint.save`."""
        return checkpoint.save(path, "replay", self.state_dict())

    def load(self, path: str | Path, num_actions: int | None = None) -> None:
        """Restore what `save` wrote, into a buffer made alike; see `load_state_dict`.

        Raises:
            CheckpointError: the file is not a buffer of ours, is damaged, or does not fit; this
                buffer is then unchanged.
        """
        state = checkpoint.load(path, "replay")
        with checkpoint.reading(path):
            self.load_state_dict(state, num_actions)


def _rows(values: Any, rows: Indices) -> Any:
    return None if values is None else map_arrays(lambda array: array[rows], values)


def _as_arrays(field: Any) -> Any:
    return None if field is None else map_arrays(lambda tensor: tensor.numpy(), field)


class _Transformed:
    """An array whose elements are transformed as they are read."""

    def __init__(
        self, array: NDArray[Any], function: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> None:
        self._array = array
        self._function = function

    def __getitem__(self, indices: Indices) -> NDArray[Any]:
        return self._function(self._array[indices])
