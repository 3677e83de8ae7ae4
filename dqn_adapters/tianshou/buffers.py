"""Tianshou's replay buffers: seeded, right about s' where only frames are kept, checking only what
is new."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import tianshou.data as host
import torch
from numpy.typing import NDArray
from tianshou.data import Batch

from dqn_adapters.config import DQNConfig, rejected
from dqn_adapters.finite import REWARD_LIMIT, check_finite

if TYPE_CHECKING:
    _Base = host.ReplayBuffer
else:
    _Base = object

Rows = NDArray[np.int64]


class _Buffer(_Base):
    """Fixes five things of the buffer behind it in the method resolution order.

    Its arguments are those of Tianshou's buffer, and `seed`: it decides which transitions are
    sampled, None draws fresh entropy. (Tianshou's uniform buffers draw from seed 42, whatever the
    experiment's seed; its prioritised ones from numpy's global state.) With
    `check_observations=False` observations may be NaN or infinite, for a network that can handle
    them.

    What is added is checked, and then stored whole, also if that is interrupted; or nothing is.

    With `ignore_obs_next=True` the s' of a row is the s of the next one; where there is none (the
    episode ended, or the row is the newest) it is kept aside. With `stack_num` rows of which the
    ring has overwritten a frame are not sampled.
    """

    check_observations = True
    _unchecked: set[int] | None = None  # rows that may hold a NaN; None: all of them

    def __init__(
        self,
        *args: Any,
        seed: int | np.random.SeedSequence | None = None,
        check_observations: bool = True,
        **kwargs: Any,
    ) -> None:
        self._aside: dict[int, Any] = {}  # s' of rows that no row follows; the newest frame of it
        super().__init__(*args, **kwargs)
        self.check_observations = check_observations
        if not isinstance(seed, np.random.SeedSequence):
            seed = np.random.SeedSequence(seed)
        buffers = [self, *getattr(self, "buffers", ())]  # a vector buffer's parts draw too
        for buffer, child in zip(buffers, seed.spawn(len(buffers)), strict=True):
            buffer._random_state = np.random.RandomState(np.random.MT19937(child))
        if np.diff(self.subbuffer_edges).min() < self.stack_num:
            raise rejected("stack_num", self.stack_num, "at most the rows of one environment")

    def hasnull(self) -> bool:
        """Whether a value is missing or NaN; only rows that were not found sound are looked at."""
        if self._unchecked is None:
            if super().hasnull():
                return True
        elif self._unchecked and _is_null(self._meta, np.fromiter(self._unchecked, np.int64)):
            return True
        self._unchecked = set()
        return False

    def add(self, batch: Any, buffer_ids: Any = None) -> Any:
        """See Tianshou's `ReplayBuffer.add`. Rewards may be `(N, 1)`.

        Raises:
            NonFiniteError: a reward or an observation is NaN or infinite; nothing is stored.
            ValueError: `obs_next` is missing, or something has another shape than what is stored;
                nothing is stored.
        """
        single = buffer_ids is None and not hasattr(self, "buffers")
        batch = with_plain_rewards(batch, single)
        self._check_shapes(batch, 0 if single else 1)
        check_transitions(batch, buffer_ids, observations=self.check_observations)
        counters = self._counters(buffer_ids)
        try:
            return self._add(batch, buffer_ids, single)
        except BaseException as error:
            self._set_counters(counters)
            if not isinstance(error, Exception):  # interrupted: rows of the step may be there
                self._add(batch, buffer_ids, single)
            raise

    def _add(self, batch: Any, buffer_ids: Any, single: bool) -> Any:
        added = super().add(batch, buffer_ids)
        if self._unchecked is not None:
            self._unchecked.update(added[0].tolist())
        if not self._save_obs_next:
            self._keep_aside(added[0], [batch.obs_next] if single else batch.obs_next)
        return added

    def _check_shapes(self, batch: Any, axes: int) -> None:
        """Raise `ValueError` unless the batch has the shapes of what is stored.

        Args:
            batch: What is to be added.
            axes: How many axes its arrays have before those of one row.
        """
        for name in ("obs", "act", "rew", "obs_next"):
            stored, given = self._meta.get(name), batch.get(name)
            if stored is not None and given is not None:
                stack = self._save_only_last_obs and name.startswith("obs")
                check_shape(name, stored, given, axes + stack)

    def _counters(self, buffer_ids: Any) -> Any:
        """Where the next row goes, of the sub-buffers that are to get one."""
        parts = getattr(self, "buffers", None)
        if parts is None:
            return _counters_of(self)
        ids = range(len(parts)) if buffer_ids is None else buffer_ids
        of_parts = [(i, _counters_of(parts[i])) for i in ids]
        return self.last_index.copy(), np.array(self._lengths), of_parts

    def _set_counters(self, counters: Any) -> None:
        parts = getattr(self, "buffers", None)
        if parts is None:
            _set_counters_of(self, counters)
            return
        buffer: Any = self
        buffer.last_index[:], buffer._lengths[:], of_parts = counters
        for i, values in of_parts:
            _set_counters_of(parts[i], values)

    def _keep_aside(self, rows: Rows, following: Any) -> None:
        start, stop, _ = self._parts(rows)
        previous = np.where(rows == start, stop, rows) - 1
        for i, (row, before) in enumerate(zip(rows.tolist(), previous.tolist(), strict=True)):
            if not self.done[before]:
                self._aside.pop(before, None)
            newest = following[i][-1] if self._save_only_last_obs else following[i]
            self._aside[row] = copy.deepcopy(newest)  # an environment may use its memory again

    def _parts(self, rows: Rows) -> tuple[Rows, Rows, Rows]:
        """For rows the first row of their sub-buffer, the one behind its last, and its number."""
        part = np.searchsorted(self.subbuffer_edges, rows, side="right") - 1
        return self.subbuffer_edges[part], self.subbuffer_edges[part + 1], part

    def _gather(self, rows: Rows) -> Any:
        """What Tianshou's `__getitem__` gives for whole rows, without looking at every value."""
        batch = _take(self._meta, rows)
        for name in ("info", "policy"):
            batch.__dict__.setdefault(name, Batch())
        return batch

    def __getitem__(self, index: Any) -> Any:
        rows = type(index) is np.ndarray and index.dtype == np.int64 and index.ndim == 1
        plain = self._save_obs_next and self.stack_num == 1 and not is_prioritized(self)
        if rows and plain:
            return self._gather(index)
        if self._save_obs_next or not isinstance(
            index, slice | int | np.integer | list | np.ndarray
        ):
            return super().__getitem__(index)
        if isinstance(index, slice):
            everything = index == slice(None)
            index = self.sample_indices(0) if everything else self._indices[: len(self)][index]
        rows = np.atleast_1d(index)
        if rows.dtype == np.bool_:
            rows = np.flatnonzero(rows)
        batch: Any = super().__getitem__(rows)
        for i, row in enumerate(rows.tolist()):
            if row in self._aside:
                _set_next(batch.obs_next, i, batch.obs, self._aside[row], self.stack_num > 1)
        return batch if np.ndim(index) else batch[0]

    def sample_indices(self, batch_size: int | None) -> Any:
        """See Tianshou's `ReplayBuffer.sample_indices`."""
        indices = self._draw(batch_size)
        if self.stack_num == 1:
            return indices
        if not batch_size or batch_size < 0:
            return indices[~self._is_cut(indices)]
        while (cut := self._is_cut(indices)).any():
            indices[cut] = self._draw(batch_size)[: cut.sum()]
        return indices

    def _draw(self, batch_size: int | None) -> Any:
        frames = self.stack_num > 1 and self._sample_avail
        if not batch_size or batch_size < 0 or not len(self) or frames:
            return super().sample_indices(batch_size)
        # Tianshou draws a sub-buffer for every row, and then the rows, from lists of probabilities.
        drawn = (self._random_state.random_sample(batch_size) * len(self)).astype(np.int64)
        lengths = getattr(self, "_lengths", ())
        if len(lengths) < 2:
            return drawn
        ends = np.cumsum(lengths)
        part = np.searchsorted(ends, drawn, side="right")
        return drawn + (self.subbuffer_edges[:-1] - ends + lengths)[part]

    def _is_cut(self, rows: Rows) -> NDArray[np.bool_]:
        """Whether the ring has overwritten a frame of the rows' stacks."""
        start, stop, part = self._parts(rows)
        lengths = np.atleast_1d(getattr(self, "_lengths", len(self)))[part]
        last = np.asarray(self.last_index)[part]
        oldest = np.where(lengths < stop - start, -1, np.where(last + 1 == stop, start, last + 1))
        cut = begun = np.zeros(len(rows), np.bool_)
        for _ in range(self.stack_num - 1):
            cut = cut | ((rows == oldest) & ~begun)
            before = self.prev(rows)
            begun = begun | (before == rows)
            rows = before
        return cut

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """See Tianshou's `ReplayBuffer.update`."""
        self._refuse_unknown_next("update")
        self._unchecked = None
        return super().update(*args, **kwargs)

    def set_batch(self, *args: Any, **kwargs: Any) -> None:
        """See Tianshou's `ReplayBuffer.set_batch`."""
        self._refuse_unknown_next("set_batch")
        self._unchecked = None
        super().set_batch(*args, **kwargs)

    def save_hdf5(self, *args: Any, **kwargs: Any) -> None:
        """See Tianshou's `ReplayBuffer.save_hdf5`."""
        self._refuse_unknown_next("save_hdf5")
        super().save_hdf5(*args, **kwargs)

    def _refuse_unknown_next(self, name: str) -> None:
        if not self._save_obs_next:
            raise ValueError(
                f"{name} knows no s' of final rows: ignore_obs_next must be False for it"
            )

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
        self._aside.clear()
        super().reset(*args, **kwargs)


class _PrioritizedBuffer(_Buffer):
    def _draw(self, batch_size: int | None) -> Any:
        if not batch_size or batch_size < 0 or not len(self):
            return super()._draw(batch_size)
        uniform = self._random_state.random_sample(batch_size)
        indices: Rows = self.weight.get_prefix_sum_idx(uniform * self.weight.reduce())
        return indices

    def update_weight(self, index: Rows, new_weight: Any) -> None:
        """See Tianshou's `PrioritizedReplayBuffer.update_weight`."""
        buffer: Any = self
        host.PrioritizedReplayBuffer.update_weight(buffer, index, new_weight)
        # Tianshou's are numbers of float32, which round another way than those of a checkpoint.
        buffer._max_prio, buffer._min_prio = float(buffer._max_prio), float(buffer._min_prio)

    def set_beta(self, beta: float) -> None:
        """See Tianshou's `PrioritizedReplayBuffer.set_beta`; heeded in a vector buffer too."""
        set_beta(self, beta)


class ReplayBuffer(_Buffer, host.ReplayBuffer):
    """Tianshou's `ReplayBuffer` with `seed=`."""


class VectorReplayBuffer(_Buffer, host.VectorReplayBuffer):
    """Tianshou's `VectorReplayBuffer` with `seed=`."""


class PrioritizedReplayBuffer(_PrioritizedBuffer, host.PrioritizedReplayBuffer):
    """Tianshou's `PrioritizedReplayBuffer` with `seed=`."""


class PrioritizedVectorReplayBuffer(_PrioritizedBuffer, host.PrioritizedVectorReplayBuffer):
    """Tianshou's `PrioritizedVectorReplayBuffer` with `seed=`."""


def make_buffer(
    config: DQNConfig,
    num_envs: int,
    *,
    seed: int | np.random.SeedSequence | None = None,
    **options: Any,
) -> VectorReplayBuffer | PrioritizedVectorReplayBuffer:
    """The buffer that a configuration asks for, over `num_envs` environments.

    That is `buffer_size`, `prioritized_replay` with its alpha and beta, and `frame_stack`: every
    frame is kept once, and stacked when it is sampled.

    Args:
        config: Hyper-parameters.
        num_envs: Environments of the collector.
        seed: Decides which transitions are sampled.
        **options: Any other option of Tianshou's buffer.

    Raises:
        ValueError: `priority_alpha` is 0, which is uniform sampling, and Tianshou's prioritised
            buffer does not know it.
    """
    if config.frame_stack is not None:
        frames = {"save_only_last_obs": True, "ignore_obs_next": True}
        options = {"stack_num": config.frame_stack, **frames, **options}
    if not config.prioritized_replay:
        return VectorReplayBuffer(config.buffer_size, num_envs, seed=seed, **options)
    if config.priority_alpha == 0:
        raise rejected("priority_alpha", 0.0, "> 0 in Tianshou; prioritized_replay=False is 0")
    options = {"alpha": config.priority_alpha, "beta": config.priority_beta, **options}
    return PrioritizedVectorReplayBuffer(config.buffer_size, num_envs, seed=seed, **options)


def is_prioritized(buffer: Any) -> bool:
    """Whether a buffer of Tianshou samples by priorities."""
    return isinstance(buffer, host.PrioritizedReplayBuffer)


def set_beta(buffer: Any, beta: float) -> None:
    """Set the exponent of the importance weights.

    A vector buffer of Tianshou's hands it to its parts, and goes on weighing by its own.
    """
    host.PrioritizedReplayBuffer.set_beta(buffer, beta)


def next_of(buffer: Any, rows: Rows) -> Any:
    """The next observations of rows, `(B, ...)`."""
    return buffer.get(rows, "obs_next") if buffer._save_obs_next else buffer[rows].obs_next


def break_off(buffer: Any) -> None:
    """The running episodes are cut where they are: what is added next begins new ones.

    A collector that is reset leaves them open, so that n-step returns, frame stacks and the
    episodes' returns of Tianshou run on from one episode into the next.
    """
    if not len(buffer):
        return
    rows = buffer.unfinished_index()
    buffer.truncated[rows] = buffer.done[rows] = True
    for part in getattr(buffer, "buffers", [buffer]):
        part._ep_return, part._ep_len, part._ep_start_idx = 0.0, 0, part._insertion_idx


def check_transitions(
    batch: Any, rows: Any = None, *, where: str = "environment", observations: bool = True
) -> None:
    """Raise `NonFiniteError` if a reward of the batch is NaN, infinite or beyond float32; or an
    observation NaN or infinite, if these are to be looked at."""
    check_finite("rew", getattr(batch, "rew", None), rows, where=where, largest=REWARD_LIMIT)
    for name in ("obs", "obs_next") if observations else ():
        check_finite(name, plain(getattr(batch, name, None)), rows, where=where)


def check_shape(name: str, stored: Any, given: Any, axes: int) -> None:
    """Raise `ValueError` unless rows have the keys and the shape of the stored ones.

    Args:
        name: What they are.
        stored: `(size, ...)`, or a `Batch` of such.
        given: Arrays with so many `axes` before those of one row, or a `Batch` of such.
        axes: See there.
    """
    nested = _is_batch(stored), _is_batch(given)
    if nested == (True, True):
        keys = set(stored.get_keys()), set(given.get_keys())
        if keys[0] != keys[1]:
            raise ValueError(f"{name} must have the keys {sorted(keys[0])}, got {sorted(keys[1])}")
        for key in keys[0]:
            check_shape(f"{name}[{key!r}]", stored[key], given[key], axes)
    elif nested != (False, False) or np.shape(given)[axes:] != stored.shape[1:]:
        got = "a Batch" if nested[1] else f"shape {np.shape(given)[axes:]}"
        wanted = "a Batch" if nested[0] else f"shape {stored.shape[1:]}"
        raise ValueError(f"{name} of one step of an environment must have {wanted}, got {got}")


def with_plain_rewards(batch: Any, single: bool = False) -> Any:
    """The batch with rewards `(N,)` where they are `(N, 1)`; of one environment alone, a number.

    A vector for each row is left to a manager of many agents, whose observations name the agent.
    """
    shape = np.shape(batch.rew)
    if shape[0 if single else 1 :] != (1,) or hasattr(batch.obs, "agent_id"):
        return batch
    return as_batch(**{**batch.__dict__, "rew": np.asarray(batch.rew)[..., 0]})


_COUNTERS = ("_insertion_idx", "_size", "_ep_return", "_ep_len", "_ep_start_idx")


def _counters_of(part: Any) -> tuple[Any, ...]:
    values = tuple(copy.copy(getattr(part, name)) for name in _COUNTERS)
    return part.last_index.copy(), values


def _set_counters_of(part: Any, counters: tuple[Any, ...]) -> None:
    part.last_index[:], values = counters
    for name, value in zip(_COUNTERS, values, strict=True):
        setattr(part, name, value)


def _is_null(values: Any, rows: Rows) -> bool:
    """Whether a value is missing or NaN in these rows of what is stored; as `Batch.hasnull`, which
    copies all that it is asked about, twice."""
    if _is_batch(values):
        return any(_is_null(part, rows) for part in values.__dict__.values())
    if isinstance(values, torch.Tensor):
        values = values.numpy(force=True)
    if values.dtype.kind in "biuSU":
        return False
    isnull = np.isnan if values.dtype.kind in "fc" else pd.isnull
    return bool(np.count_nonzero(isnull(values[rows])))


def as_batch(**values: Any) -> Any:
    """A `Batch` of arrays, and of what else needs no conversion: Tianshou's constructor takes ten
    times as long, to look at each of them."""
    batch = Batch()
    batch.__dict__.update(values)
    return batch


def _take(values: Any, rows: Rows) -> Any:
    """Rows of an array, or of all arrays of a `Batch`."""
    if not _is_batch(values):
        return values[rows]
    return as_batch(**{key: _take(part, rows) for key, part in values.__dict__.items()})


def _is_batch(values: Any) -> bool:
    # Tianshou's Batch is a protocol, of which Python asks at length whether an array has it.
    return not isinstance(values, np.ndarray) and isinstance(values, Batch)


def plain(values: Any) -> Any:
    """A `Batch` as nested dictionaries, and any array as it is."""
    if not _is_batch(values):
        return values
    return {key: plain(values[key]) for key in values.get_keys()}


def _set_next(obs_next: Any, i: int, obs: Any, frame: Any, stacked: bool) -> None:
    """Set row i of s' to `frame`, behind all but the first frame of s if they are stacked."""
    if _is_batch(obs_next):
        for key in obs_next.get_keys():
            _set_next(obs_next[key], i, obs[key], frame[key], stacked)
    elif stacked:
        obs_next[i, :-1], obs_next[i, -1] = obs[i, 1:], frame
    else:
        obs_next[i] = frame
