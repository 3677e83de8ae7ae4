"""Checks of what a file holds, before anything is changed by it.

Checksums guard against accidents, not against people. So whatever will be an index, a shape, a
dtype or a count is checked here against what it belongs to. Each check raises a `ValueError` that
names the field.
"""

from __future__ import annotations

import copy
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from dqn_adapters.config import DQNConfig, checked_int, rejected
from dqn_adapters.networks import DuelingHead, Encoder, QNetwork

_ROW = 21
"""Bytes of a transition in a replay buffer beside its observations."""

_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_LARGEST = 2**62  # sums of two counts are still numbers of 64 bits


def check_mapping(name: str, value: Any, keys: Iterable[str] | None = None) -> dict[Any, Any]:
    """The value, a dictionary that has these keys; others are for newer versions."""
    if not isinstance(value, dict):
        raise rejected(name, value, "a mapping")
    for key in keys or ():
        if key not in value:
            raise ValueError(f"{name}.{key} is missing" if name else f"{key} is missing")
    return value


def check_count(name: str, value: Any, *, low: int = 0, high: int = _LARGEST) -> int:
    """The value, an integer in `low` .. `high`."""
    number = checked_int(name, value, low=low)
    if number is None or number > high:
        raise rejected(name, value, f"an integer in {low} .. {high}")
    return number


def check_bool(name: str, value: Any) -> bool:
    """The value, True or False."""
    if not isinstance(value, bool):
        raise rejected(name, value, "True or False")
    return value


def check_array(name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """The value, an array of this shape and dtype."""
    if not isinstance(value, np.ndarray):
        raise rejected(name, value, "an array")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    if value.dtype != dtype:
        raise ValueError(f"{name} must be {np.dtype(dtype)}, got {value.dtype}")
    return value


def check_range(name: str, values: NDArray[Any], low: int, high: int) -> None:
    """Raise unless all elements are in `low` .. `high`."""
    wrong = np.flatnonzero((values < low) | (values > high))
    if len(wrong):
        raise ValueError(
            f"{name} must be in {low} .. {high}, got {values.ravel()[wrong[0]]} at {wrong[0]}"
        )


def check_finite_values(name: str, values: NDArray[Any]) -> None:
    """Raise unless all elements are finite."""
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise ValueError(f"{name} must be finite, got {values.ravel()[wrong[0]]} at {wrong[0]}")


def check_values(name: str, values: Any, space: spaces.Space[Any]) -> None:
    """Raise unless stored observations are such as a network encodes by their number: those of a
    Discrete and of a MultiDiscrete are in the range of their space.

    Args:
        name: How messages call them.
        values: `(N, ...)`, or a dictionary of such arrays.
        space: Of one observation.
    """
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            check_values(f"{name}.{key}", values[key], part)
    elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        counts = space.n if isinstance(space, spaces.Discrete) else space.nvec
        wrong = np.argwhere((values < space.start) | (values - space.start >= counts))
        if len(wrong):
            place = tuple(wrong[0].tolist())
            raise ValueError(f"{name} must be in {space}, got {values[place]} at {place}")


def check_generator(name: str, value: Any, generator: np.random.Generator) -> dict[str, Any]:
    """The value, a state of the generator's kind of random stream."""
    probe: Any = copy.deepcopy(generator.bit_generator)
    try:
        probe.state = value
        same = probe.state == value
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is not the state of a random generator: {error!r}") from error
    if not same:
        raise ValueError(f"{name} is not the state of a random generator")
    return check_mapping(name, value)


def check_random_state(name: str, value: Any) -> dict[str, Any]:
    """The value, a state of a `RandomState` over a Mersenne twister, as a dictionary."""
    check_mapping(name, value, ("bit_generator", "state", "has_gauss", "gauss"))
    state = check_mapping(f"{name}.state", value["state"], ("key", "pos"))
    check_array(f"{name}.state.key", state["key"], (624,), np.uint32)
    check_count(f"{name}.state.pos", state["pos"], high=624)
    check_count(f"{name}.has_gauss", value["has_gauss"], high=1)
    if value["bit_generator"] != "MT19937" or not _is_number(value["gauss"]):
        raise ValueError(f"{name} is not the state of a random generator")
    return dict(value)


def check_torch_state(name: str, value: Any) -> torch.Tensor:
    """The value, a state of torch's random generator."""
    try:
        torch.Generator().set_state(value)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{name} is not the state of torch's random generator: {error}") from error
    assert isinstance(value, torch.Tensor)
    return value


def check_tensors(name: str, saved: Any, own: Mapping[str, Any]) -> None:
    """Raise unless `saved` can be loaded into a module whose `state_dict` is `own`: the same names,
    shapes and kinds of numbers."""
    check_mapping(name, saved)
    odd = own.keys() ^ saved.keys()
    if odd:
        raise ValueError(
            f"{name} does not fit the network: {', '.join(sorted(map(str, odd)))} are in one and "
            "not in the other"
        )
    for key, tensor in own.items():
        if isinstance(tensor, torch.Tensor):
            _check_tensor(f"{name}.{key}", saved[key], tuple(tensor.shape), tensor)


def _check_tensor(name: str, value: Any, shape: tuple[int, ...], like: torch.Tensor) -> None:
    if not isinstance(value, torch.Tensor):
        raise rejected(name, value, "a tensor")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    if value.is_floating_point() != like.is_floating_point() or value.is_complex():
        raise ValueError(f"{name} must be {like.dtype}, got {value.dtype}")


def load_module(name: str, module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Load a state that passed `check_tensors`.

    Raises:
        ValueError: The module refuses it (one of a user's may look at more); it is then unchanged.
    """
    before = copy.deepcopy(module.state_dict())
    try:
        module.load_state_dict(saved)
    except Exception as error:  # whatever a user's module raises
        module.load_state_dict(before)
        raise ValueError(f"{name} does not fit the network: {error}") from error


_DECISIVE = "amsgrad", "centered", "momentum"
"""Options of an optimizer that decide what its state consists of."""

_HOW = "foreach", "fused", "capturable", "differentiable"
"""Options that decide only how a step is computed: they stay the optimizer's own."""


_SQUARES = "exp_avg_sq", "max_exp_avg_sq", "square_avg"
"""Means of squares, whose roots are taken."""


def optimizer_state(
    name: str, saved: Any, optimizer: torch.optim.Optimizer, *, options: bool = True
) -> dict[str, Any]:
    """Check a state for `optimizer.load_state_dict` against the optimizer's parameters.

    Args:
        name: How messages call the state.
        saved: What `state_dict` of an optimizer gave.
        optimizer: Of the same class; it is not changed.
        options: Take the saved options too (learning rate, ...). False: the optimizer's own stay.

    Returns:
        A copy: torch's optimizers go on working in the very tensors that they are given.

    Raises:
        ValueError: Parameters, shapes, dtypes, options or step counts do not fit.
    """
    check_mapping(name, saved, ("state", "param_groups"))
    own = optimizer.state_dict()["param_groups"]
    groups, where = saved["param_groups"], f"{name}.param_groups"
    if not isinstance(groups, list) or len(groups) != len(own):
        raise ValueError(f"{where} must be {len(own)} groups, as the optimizer has")
    taken = []
    for i, (mine, theirs) in enumerate(zip(own, groups, strict=True)):
        check_mapping(f"{where}[{i}]", theirs, ("params",))
        if theirs["params"] != mine["params"]:
            raise ValueError(
                f"{where}[{i}].params are {theirs['params']!r}, and the optimizer's are "
                f"{mine['params']}"
            )
        for key in _DECISIVE:
            if bool(mine.get(key)) != bool(theirs.get(key)):
                raise ValueError(
                    f"{where}[{i}].{key} is {theirs.get(key)!r}, and the optimizer's is "
                    f"{mine.get(key)!r}"
                )
        taken.append(dict(mine))
        if options:
            for key in mine.keys() & theirs.keys() - {"params", *_HOW}:
                _check_option(f"{where}[{i}].{key}", theirs[key], mine[key])
                taken[-1][key] = theirs[key]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = check_mapping(f"{name}.state", saved["state"])
    wanted = _entries(optimizer) if state else None
    for number, entries in state.items():
        where = f"{name}.state[{number!r}]"
        check_count(f"{name}.state, parameter", number, high=len(parameters) - 1)
        check_mapping(where, entries)
        if wanted is not None and entries.keys() != wanted.keys():
            raise ValueError(f"{where} has {sorted(entries)}, and must have {sorted(wanted)}")
        for key, value in entries.items():
            like = None if wanted is None else wanted[key]
            _check_entry(f"{where}.{key}", value, parameters[number], like)
            if key in _SQUARES and isinstance(value, torch.Tensor) and (value < 0).any():
                raise ValueError(f"{where}.{key} must be >= 0")
    return copy.deepcopy({"state": state, "param_groups": taken})


def check_like(name: str, value: Any, own: Any) -> None:
    """Raise unless a nested value has the keys, lengths and kinds of `own`."""
    if isinstance(own, dict) and not isinstance(own, Counter):
        check_mapping(name, value, own)
        if value.keys() != own.keys():
            raise ValueError(f"{name} has {sorted(value)}, and must have {sorted(own)}")
        for key in own:
            check_like(f"{name}.{key}", value[key], own[key])
    elif isinstance(own, list | tuple):
        if not isinstance(value, list | tuple) or len(value) != len(own):
            raise rejected(name, value, f"a list of {len(own)}")
        for i, (theirs, mine) in enumerate(zip(value, own, strict=True)):
            check_like(f"{name}[{i}]", theirs, mine)
    elif value != own:
        _check_option(name, value, own)


def _check_option(name: str, value: Any, own: Any) -> None:
    """Raise unless an option is of the kind that the optimizer has."""
    if isinstance(own, bool) or isinstance(value, bool):
        fits = isinstance(own, bool) and isinstance(value, bool)
    elif own is None or isinstance(own, str):
        fits = value is None or isinstance(value, str)
    elif isinstance(own, tuple | list):
        fits = isinstance(value, tuple | list) and len(value) == len(own)
        fits = fits and all(map(_is_number, value))
    elif isinstance(own, torch.Tensor) or isinstance(value, torch.Tensor):
        fits = isinstance(value, torch.Tensor) and value.numel() == 1 and _is_number(value.item())
    else:
        fits = _is_number(value)
    if not fits:
        raise rejected(name, value, f"of the kind of {own!r}")


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) <= _LARGEST
    return math.isfinite(value) and abs(value) <= _LARGEST_FLOAT


def _check_entry(
    name: str, value: Any, parameter: torch.Tensor, wanted: torch.Tensor | None
) -> None:
    """Raise unless an entry is of its parameter's shape, or one finite number >= 0: a count."""
    if isinstance(value, torch.Tensor):
        shapes = [tuple(parameter.shape), ()]
        if isinstance(wanted, torch.Tensor):
            shapes = shapes[:1] if wanted.ndim else shapes[1:]
        if tuple(value.shape) not in shapes:
            raise ValueError(
                f"{name} must have shape {' or '.join(map(str, shapes))}, got {tuple(value.shape)}"
            )
        if not value.is_floating_point():
            raise ValueError(f"{name} must be {parameter.dtype}, got {value.dtype}")
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} must be finite")
        if value.ndim or parameter.ndim == 0:
            return
        value = value.item()
    elif isinstance(wanted, torch.Tensor) and wanted.ndim:
        raise rejected(name, value, "a tensor")
    if value is not None and not (_is_number(value) and value >= 0):
        raise rejected(name, value, "a finite number >= 0")


def _entries(optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """The optimizer's state of a parameter, by name, as one step on a small one shows.

    None: it cannot be told (the optimizer needs more than gradients).
    """
    memo: dict[int, Any] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            small = nn.Parameter(torch.zeros(2, 3, dtype=parameter.dtype, device=parameter.device))
            memo[id(parameter)] = small
    for entries in optimizer.state.values():
        memo.update(
            (id(value), torch.zeros(()))
            for value in entries.values()
            if isinstance(value, torch.Tensor)
        )
    try:
        probe = copy.deepcopy(optimizer, memo)
        probe.state.clear()
        parameter = probe.param_groups[0]["params"][0]
        parameter.grad = torch.zeros_like(parameter)
        probe.step()
        return dict(probe.state[parameter])
    except Exception:  # an optimizer of a user's may need anything
        return None


def check_q_net(
    name: str,
    saved: Any,
    observation_space: spaces.Space[Any],
    num_actions: int,
    config: DQNConfig,
) -> None:
    """Raise unless a saved state is of the `QNetwork` of a configuration.

    No memory is taken for the network: its sizes, too, come from the file.
    """
    with torch.device("meta"):
        network = QNetwork(
            observation_space, num_actions, config.hidden_sizes, dueling=config.dueling
        )
    check_tensors(name, saved, network.state_dict())


def check_memory(config: DQNConfig, space: spaces.Space[Any]) -> None:
    """Raise unless the replay buffer and the batches that a saved configuration asks for have room
    in memory."""
    parts = space.values() if isinstance(space, spaces.Dict) else [space]
    observation = sum(math.prod(part.shape or ()) * np.dtype(part.dtype).itemsize for part in parts)
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # a system that does not tell
        return
    # s and s' of every row; in a buffer of stacks, every frame once.
    kept = 2 if config.frame_stack is None else 1 / config.frame_stack
    for name, rows, size in (
        ("buffer_size", config.buffer_size, observation * kept),
        ("batch_size", config.batch_size, observation * 2),
    ):
        needed = rows * (size + _ROW)
        if needed > there:
            raise ValueError(
                f"config.{name}={rows} needs {needed / 2**30:.0f} GiB of memory, and here are "
                f"{there / 2**30:.0f}: pass a config= with fewer"
            )


Moves = list[tuple[int, torch.Tensor | None]]
"""For every parameter which one it was, and which columns its columns were (None: the same)."""


def moves(net: QNetwork, saved: spaces.Space[Any], wanted: spaces.Space[Any]) -> Moves | None:
    """The places of a `QNetwork`'s parameters in one over the same space with its
    keys in another order; None: the order is the same."""
    if not isinstance(saved, spaces.Dict) or not isinstance(wanted, spaces.Dict):
        return None
    if list(saved.spaces) == list(wanted.spaces):
        return None
    numbers: dict[str, range] = {}
    columns: dict[str, range] = {}
    number = column = 0
    for key, part in saved.spaces.items():
        with torch.device("meta"):
            encoder = Encoder(part)
        count = len(list(encoder.parameters()))
        numbers[key], columns[key] = (
            range(number, number + count),
            range(column, column + encoder.size),
        )
        number, column = number + count, column + encoder.size
    first: Any = next(iter(net.head.children()))
    several = isinstance(first, DuelingHead)
    heads: list[Any] = [first.value, first.advantage] if several else [[first]]
    reading = [head[0] for head in heads]
    order = torch.tensor([i for key in wanted.spaces for i in columns[key]])
    moves: Moves = [(i, None) for key in wanted.spaces for i in numbers[key]]
    for i, parameter in enumerate(net.parameters()):
        if i >= number:
            reads = any(parameter is layer.weight for layer in reading)
            moves.append((i, order if reads else None))
    return moves


def picked(value: Any, columns: torch.Tensor | None) -> Any:
    """The columns of a weight, or of what an optimizer remembers of one."""
    if columns is None or not isinstance(value, torch.Tensor) or value.ndim != 2:
        return value
    return value[:, columns.to(value.device)]


def reordered(entries: dict[Any, Any], moves: Moves) -> dict[int, Any]:
    """The optimizer's state, by the number of the parameter, after such moves."""
    return {
        i: {
            key: picked(value, columns)
            for key, value in check_mapping("optimizer.state", entries[number]).items()
        }
        for i, (number, columns) in enumerate(moves)
        if number in entries
    }
