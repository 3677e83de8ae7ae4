"""Optional dependencies: one clear error where a host library is missing."""

from __future__ import annotations

import importlib.util


def require(module: str, *, extra: str) -> None:
    """Raise `ImportError` that names the extra to install, unless `module` can be imported."""
    if importlib.util.find_spec(module) is None:
        raise ImportError(
            f"{module} is not installed; it comes with: pip install 'dqn-adapters[{extra}]'",
            name=module,
        )
