"""Compiled code looks whether anything at all has changed in a set of Python objects.

A signature that was checked in Python holds as long as no dictionary of the modules and of the
optimiser has another key or value, no object has another class, and no tensor is another one. To
compare some hundred references takes Python tens of microseconds and compiled code less than one.
"""

from __future__ import annotations

import ctypes
import functools
import sysconfig
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dqn_adapters.compute import extents
from dqn_adapters.compute.caching import compiled

number_at: Any = extents.number_at

_TYPE = ctypes.sizeof(ctypes.c_ssize_t)
"""The offset of the reference to an object's class, behind its reference count."""


@functools.cache
def implementation_offset() -> int | None:
    """The offset of a tensor's reference to its implementation; None if it is not known, or
    objects are laid out in another way than in CPython with its global lock."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None
    places = []
    for tensor in torch.zeros(1), torch.nn.Parameter(torch.zeros(2)):
        size = type(tensor).__basicsize__ // _TYPE
        words = (ctypes.c_ssize_t * size).from_address(id(tensor))
        places.append([k * _TYPE for k in range(size) if words[k] == tensor._cdata])
        if words[1] != id(type(tensor)):
            return None
    return places[0][0] if places[0] == places[1] and len(places[0]) == 1 else None


def _next_item(typing_context: Any, dictionary: Any, state: Any) -> Any:
    """`PyDict_Next`: `state` is the address of a position, a key and a value."""

    def call(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        void, word = ir.IntType(8).as_pointer(), ir.IntType(64)
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, ir.FunctionType(ir.IntType(32), [void] * 4), "PyDict_Next"
        )
        parts = [
            builder.inttoptr(builder.add(args[1], ir.Constant(word, 8 * k)), void) for k in range(3)
        ]
        return builder.call(function, [builder.inttoptr(args[0], void), *parts])

    return types.int32(types.int64, types.int64), call


next_item: Any = intrinsic(_next_item)
_compiled = compiled(extents)


@_compiled
def _unchanged(
    dictionaries: Any,
    starts: Any,
    keys: Any,
    values: Any,
    objects: Any,
    classes: Any,
    tensors: Any,
    implementations: Any,
    type_offset: int,
    offset: int,
) -> bool:
    """Return whether dictionaries have the keys and values, objects the classes, and tensors the
    implementations that are given, all by their addresses; a value of 0 may be any."""
    for k in range(len(objects)):
        if number_at(objects[k] + type_offset) != classes[k]:
            return False
    for k in range(len(tensors)):
        if number_at(tensors[k] + offset) != implementations[k]:
            return False
    state = np.zeros(3, np.int64)
    for d in range(len(dictionaries)):
        state[0] = 0
        k = starts[d]
        while next_item(dictionaries[d], state.ctypes.data) != 0:
            if k == starts[d + 1] or state[1] != keys[k]:
                return False
            if values[k] != 0 and state[2] != values[k]:
                return False
            k += 1
        if k != starts[d + 1]:
            return False
    return True


class Stamp:
    """Objects as they are when it is made.

    Args:
        dictionaries: Compared by the identity of keys and values, and their order.
        objects: Compared by their class.
        tensors: Compared by their implementation.
        free: Keys, in any dictionary, whose value may change.
    """

    def __init__(
        self,
        dictionaries: Sequence[dict[Any, Any]],
        objects: Sequence[object],
        tensors: Sequence[torch.Tensor],
        free: Collection[str],
    ) -> None:
        items = [(key, value) for named in dictionaries for key, value in named.items()]
        self._kept = dictionaries, objects, tensors, items  # so that no address is used again
        offset = implementation_offset()
        assert offset is not None
        self._arguments = (
            _addresses(dictionaries),
            np.cumsum([0, *map(len, dictionaries)]),
            _addresses([key for key, _ in items]),
            np.array(
                [0 if isinstance(key, str) and key in free else id(value) for key, value in items],
                np.int64,
            ),
            _addresses(objects),
            _addresses([type(value) for value in objects]),
            _addresses(tensors),
            np.array([tensor._cdata for tensor in tensors], np.int64),
            _TYPE,
            offset,
        )

    def holds(self) -> bool:
        """Return whether nothing has changed."""
        return bool(_unchanged(*self._arguments))


def _addresses(values: Sequence[object]) -> Any:
    return np.array([id(value) for value in values], np.int64)
