"""Compiled code looks up and checks tensors in the same call in which it works on them.

libtorch has a stable C interface (`torch/csrc/inductor/aoti_torch/c/shim.h`) that tells the memory,
dtype, sizes and strides of a tensor in a few nanoseconds; the same from Python takes a microsecond
for every tensor.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

MAX_DIMENSIONS = 6
DTYPE, ITEM_SIZE, DIMENSIONS, SIZES = range(4)
"""Columns of what is expected of a tensor: its dtype, the bytes of an element, its number of
dimensions, its sizes."""

COLUMNS = SIZES + MAX_DIMENSIONS

_DEVICE, _LAYOUT, _DTYPE, _DIM, _SIZES, _STRIDES, _DATA = range(7)
_NAMES = ("device_type", "layout", "dtype", "dim", "sizes", "strides", "data_ptr")


@functools.cache
def torch_functions() -> NDArray[np.int64] | None:
    """Addresses of the functions that tell of a tensor; None where libtorch has not got them."""
    library = _library()
    if library is None:
        return None
    functions = [getattr(library, f"aoti_torch_get_{name}") for name in _NAMES]
    addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
    return np.array(addresses, np.int64)


@functools.cache
def _library() -> ctypes.CDLL | None:
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            library = ctypes.CDLL(str(path))
            complete = all(hasattr(library, f"aoti_torch_get_{name}") for name in _NAMES)
            return library if complete else None
    return None


@functools.cache
def _dtype_code(dtype: torch.dtype) -> int:
    """The number of a dtype in libtorch."""
    library = _library()
    assert library is not None
    code: int = getattr(library, f"aoti_torch_dtype_{str(dtype).removeprefix('torch.')}")()
    return code


def expected(tensors: Sequence[tuple[torch.dtype, Sequence[int]]]) -> NDArray[np.int64]:
    """A row of `COLUMNS` for the dtype and the shape of every tensor, which has at most
    `MAX_DIMENSIONS` dimensions."""
    table = np.zeros((len(tensors), COLUMNS), np.int64)
    for row, (dtype, shape) in zip(table, tensors, strict=True):
        row[DTYPE], row[ITEM_SIZE], row[DIMENSIONS] = _dtype_code(dtype), dtype.itemsize, len(shape)
        row[SIZES : SIZES + len(shape)] = shape
    return table


@intrinsic
def _ask(typing_context: Any, function: Any, tensor: Any, answer: Any) -> Any:
    """Call `int32_t function(void **tensor, void *answer)`, all given by their addresses."""

    def call(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        void = ir.IntType(8).as_pointer()
        pointer = ir.FunctionType(ir.IntType(32), [void, void]).as_pointer()
        pointers = [builder.inttoptr(args[k], void) for k in (1, 2)]
        return builder.call(builder.inttoptr(args[0], pointer), pointers)

    return types.int32(types.int64, types.int64, types.int64), call


@intrinsic
def number_at(typing_context: Any, address: Any) -> Any:
    """The int64 at an address."""

    def load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), load


@njit(cache=True, inline="always")
def _told(function: Any, tensor: Any, answer: Any) -> Any:
    """The number that a function tells of a tensor; -1 if it fails."""
    answer[0] = 0
    return answer[0] if _ask(function, tensor, answer.ctypes.data) == 0 else -1  # type: ignore[call-arg]


@njit(cache=True)
def locate(functions: Any, implementations: Any, wanted: Any, addresses: Any) -> int:
    """Look up where tensors lie.

    Args:
        functions: int64 `(7,)`; see `torch_functions`.
        implementations: int64 `(T,)`, of tensors that are alive.
        wanted: int64 `(T, COLUMNS)`; see `expected`.
        addresses: int64 `(T,)`, where they go.

    Returns:
        The first of the tensors that is not contiguous memory of the CPU with the dtype and the
        shape that are wanted; -1: there is none.
    """
    answer = np.zeros(1, np.int64)
    for t in range(len(implementations)):
        tensor = implementations.ctypes.data + 8 * t  # what C++ calls a Tensor is this pointer
        dimensions = wanted[t, DIMENSIONS]
        if (
            _told(functions[_DEVICE], tensor, answer) != 0
            or _told(functions[_LAYOUT], tensor, answer) != 0
            or _told(functions[_DTYPE], tensor, answer) != wanted[t, DTYPE]
            or _told(functions[_DIM], tensor, answer) != dimensions
        ):
            return t
        sizes = _told(functions[_SIZES], tensor, answer)
        strides = _told(functions[_STRIDES], tensor, answer)
        step = 1
        for k in range(dimensions - 1, -1, -1):
            size = wanted[t, SIZES + k]
            if number_at(sizes + 8 * k) != size:  # type: ignore[call-arg]
                return t
            if size != 1 and number_at(strides + 8 * k) != step:
                return t
            step *= size
        addresses[t] = _told(functions[_DATA], tensor, answer)
    return -1


@njit(cache=True)
def locate_disjoint(
    functions: Any, implementations: Any, wanted: Any, addresses: Any, known: Any
) -> Any:
    """`locate`, and the index of a tensor that shares memory with another if one does.

    Args:
        known: int64 `(T,)`, addresses that were found disjoint; those of now go there.
    """
    misfit = locate(functions, implementations, wanted, addresses)
    if misfit >= 0:
        return misfit
    moved = False
    for t in range(len(known)):
        moved = moved or addresses[t] != known[t]
    if not moved:
        return -1
    order = np.argsort(addresses)
    for k in range(len(order) - 1):
        t = order[k]
        size = wanted[t, ITEM_SIZE]
        for d in range(wanted[t, DIMENSIONS]):
            size *= wanted[t, SIZES + d]
        if addresses[t] + size > addresses[order[k + 1]]:
            return t
    known[:] = addresses
    return -1
