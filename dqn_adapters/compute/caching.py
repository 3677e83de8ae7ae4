"""Compiled functions that are kept on disk, and compiled anew when a source of theirs changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from numba import njit


def compiled(*sources: ModuleType) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function by numba, without reordering floating-point operations.

    Numba keeps the machine code beside the source, for as long as that file is the same. It does
    not look at other files, whose functions and constants are a part of the machine code: an
    edited checkout would go on with old ones.

    Args:
        *sources: The modules that are a part of it.
    """
    stamps = tuple(_stamp(module) for module in sources)

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher: Any = njit(cache=True, error_model="numpy")(function)
        file = dispatcher._cache._cache_file
        file._source_stamp = (file._source_stamp, *stamps)
        return dispatcher

    return decorate


def _stamp(module: ModuleType) -> tuple[str, float, int]:
    assert module.__file__ is not None
    stat = Path(module.__file__).stat()
    return module.__name__, stat.st_mtime, stat.st_size
