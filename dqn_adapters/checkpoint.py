"""Checkpoints: one file, written atomically, versioned, read without executing anything.

A checkpoint is a safetensors file. Its tensors are the arrays of a nested state; the rest of the
state (numbers, names, configuration) is JSON in the header of the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dqn_adapters.files import replacing

FORMAT = "dqn_adapters"
VERSION = 1

_TENSOR, _ARRAY, _TUPLE, _PAIRS = "__tensor__", "__array__", "__tuple__", "__pairs__"


class CheckpointError(ValueError):
    """The file is not a checkpoint that can be read here; the message says why."""


def save(path: str | Path, kind: str, state: Mapping[str, Any]) -> Path:
    """Write a nested state of dictionaries, lists, tuples, numbers, strings, tensors and arrays.

    The file is written beside `path` and renamed, so `path` is at every moment either the old or
    the new checkpoint.

    Args:
        path: The file; its folder is made.
        kind: What is saved, checked by `load`.
        state: The state; anything else in it is refused.

    Returns:
        The path.

    Raises:
        TypeError: the state holds something else.
        OSError: the file cannot be written, as on a full disk; what was there stays.
    """
    path = Path(path)
    tensors: dict[str, torch.Tensor] = {}
    skeleton = _flatten(state, tensors, "")
    header = {"format": FORMAT, "version": str(VERSION), "kind": kind}
    header["state"] = json.dumps(skeleton)
    header["checksums"] = json.dumps(_checksums(header["state"], tensors))
    with replacing(path) as written:
        try:
            save_file(tensors, written, header)
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    return path


def load(path: str | Path, kind: str) -> dict[str, Any]:
    """Read what `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a checkpoint of ours, is truncated or damaged, is of a
            newer version, or holds another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise CheckpointError(f"{path} is not a checkpoint of {FORMAT}")
            version = int(header["version"])
            if version > VERSION:
                raise CheckpointError(
                    f"{path} has the format version {version}; this {FORMAT} reads up to "
                    f"{VERSION}: upgrade it"
                )
            if header["kind"] != kind:
                raise CheckpointError(f"{path} holds a {header['kind']!r}, not a {kind!r}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if json.loads(header["checksums"]) != _checksums(header["state"], tensors):
                raise ValueError("its contents do not have the checksums they were written with")
            for name, tensor in tensors.items():
                if tensor.dtype == torch.bool and (tensor.view(torch.uint8) > 1).any():
                    raise ValueError(f"{name[1:]} holds bytes that are neither False nor True")
            state = _unflatten(json.loads(header["state"]), tensors)
            if not isinstance(state, dict):
                raise ValueError("its state is not a mapping")
    except CheckpointError:
        raise
    except (SafetensorError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {error}") from error
    return state


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Within the block, what is wrong with the content of a file is an error that names it.

    Raises:
        CheckpointError: for all that a value of another kind than expected can lead to.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (
        *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
        *(RuntimeError, TypeError, ValueError),
    ) as error:
        missing = " is missing" if isinstance(error, KeyError) else ""
        raise CheckpointError(f"{path} does not fit: {error}{missing}") from error


def _flatten(value: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """Replace tensors and arrays by references; what is left is JSON."""
    if isinstance(value, torch.Tensor | np.ndarray):
        marker = _TENSOR if isinstance(value, torch.Tensor) else _ARRAY
        tensor = torch.as_tensor(value).detach().cpu()
        if isinstance(value, torch.Tensor) or not tensor.is_contiguous():
            # A copy: safetensors refuses tensors that share memory, and views of larger ones.
            # (An array becomes a tensor over its own rows alone; a replay buffer may be huge.)
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        tensors[name] = tensor
        return {marker: name}
    if isinstance(value, Mapping):
        items = [(key, _flatten(item, tensors, f"{name}.{key}")) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("__") for key, _ in items):
            return dict(items)
        if all(isinstance(key, str | int) for key, _ in items):
            return {_PAIRS: items}
    if isinstance(value, list | tuple):
        rows = [_flatten(item, tensors, f"{name}.{i}") for i, item in enumerate(value)]
        return rows if isinstance(value, list) else {_TUPLE: rows}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"state{name}: a {type(value).__name__} cannot be saved")


def _unflatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _ARRAY in value:
        return tensors[value[_ARRAY]].numpy()
    if _TUPLE in value:
        return tuple(_unflatten(item, tensors) for item in value[_TUPLE])
    pairs = value[_PAIRS] if _PAIRS in value else value.items()
    return {key: _unflatten(item, tensors) for key, item in pairs}


def _checksums(state: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    sums = {
        name: zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)
        for name, tensor in tensors.items()
    }
    return {**sums, "": zlib.crc32(state.encode())}
