"""The libraries that ours are compared with, one module each.

A module has `PEER` and `rows()`. If `PEER` has an environment of its own, there are its pinned
requirements in `NAME.txt` beside it, and a function `train(settings)` that makes its side there.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class Peer:
    """A library to compare with."""

    name: str
    """The library's name as it writes it."""

    module: str
    """The module that can be imported where it is installed."""

    install: str = ""
    """The argument of `pip install` for it; empty if it has an environment of its own."""

    requirements: Path | None = None
    """The file of pinned requirements of its environment; None if it shares ours."""

    def check_installed(self) -> None:
        """Raise `ImportError` if it shares our environment and is not in it."""
        if self.requirements is None and importlib.util.find_spec(self.module) is None:
            raise ImportError(
                f"{self.name} is not installed; it comes with: pip install {self.install}",
                name=self.module,
            )


def modules() -> list[ModuleType]:
    """The module of every peer, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]
