"""Where numbers come from: library versions and the machine."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

DISTRIBUTIONS = (
    "dqn-adapters",
    "torch",
    "numpy",
    "gymnasium",
    "stable-baselines3",
    "tianshou",
    "pettingzoo",
    "numba",
    "sb3-contrib",
    "sbx-rl",
    "jax",
    "box2d",
    "ale-py",
    "minatar",
)

_HARNESS = Path(__file__).parent
_TRAINING = ("ablations", "games", "levelling", "minatar", "recorder", "spec", "systems")
"""The modules of the harness that can decide a result; the others store and show it."""


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that can decide a result; ours with a hash
    of its source, for between two releases it changes."""
    found = {"python": platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if "dqn-adapters" in found:
        found["dqn-adapters"] += f"+{_source()}"
    return found


def _source() -> str:
    """8 hexadecimal digits: a hash of all modules that can decide a result."""
    package = _HARNESS.parent
    files = [path for path in package.rglob("*.py") if _HARNESS not in path.parents]
    files += [_HARNESS / f"{name}.py" for name in _TRAINING]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


@cache
def machine() -> dict[str, Any]:
    """The machine, without anything that names it."""
    import psutil

    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "threads": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
