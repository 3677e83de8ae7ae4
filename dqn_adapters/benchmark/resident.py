"""How much memory a training takes, in a process that may have done others before."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = (
    "5"  # proc(5): the peak becomes what is resident now; getrusage would keep the old one
)


class PeakMemory:
    """Measures from its creation on how far the resident memory of this process rises.

    What is held at that moment does not count: the libraries, also those that other systems had
    loaded into the process. What earlier work has freed is given back to the system first.
    """

    def __init__(self) -> None:
        gc.collect()
        with contextlib.suppress(OSError, AttributeError, TypeError):  # a C library without it
            ctypes.CDLL(None).malloc_trim(0)
        self._before: int | None = None
        with contextlib.suppress(OSError):
            _CLEAR.write_text(_RESET_PEAK)
            self._before = _kibibytes("VmRSS")

    @property
    def rise(self) -> int | None:
        """Bytes, from the creation to the highest point since; None where the system cannot tell:
        only Linux can."""
        if self._before is None:
            return None
        return max(0, _kibibytes("VmHWM") - self._before) * 1024


def _kibibytes(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise OSError(f"{_STATUS} has no {name}")
