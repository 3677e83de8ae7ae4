"""How greedy actions and updates are computed.

`eager` defines the result, in torch. `compiled` is `torch.compile`; `fused` is compiled code for
small networks on the CPU. `Compute` chooses between them, here and nowhere else, at every use.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Literal, get_args

from dqn_adapters.compute.adam import CompiledAdam
from dqn_adapters.compute.compiled import Compiled
from dqn_adapters.compute.eager import Eager, Learner, Use
from dqn_adapters.compute.fused import Kernel, why_not_compiled
from dqn_adapters.compute.plan import AsStack, Stack, as_stack
from dqn_adapters.config import rejected

__all__ = ["AsStack", "Compute", "Execution", "Stack", "as_stack"]

log = logging.getLogger(__name__)

Execution = Literal["auto", "eager", "compiled", "kernel"]
"""`"eager"` is torch; `"compiled"` is `torch.compile`; `"kernel"` is compiled code for small
networks, and an error where it cannot be used; `"auto"` is the kernel where it can be used, and
else torch."""

_DESCRIPTIONS = {
    "eager": "eager torch",
    "compiled": "torch.compile",
    "kernel": "the compiled kernel",
}


class Compute:
    """Chooses how to compute for a learner, anew at every use.

    Args:
        learner: Whose networks and optimiser are used.
        execution: Which ways are tried; see `Execution`.
        as_stack: Sees in a network what the kernel takes.
        before_torch: Called before an update is computed in torch.

    Raises:
        ValueError: `execution` is unknown, or it is `"kernel"` and the kernel cannot be used.
    """

    def __init__(
        self,
        learner: Learner,
        execution: Execution,
        as_stack: AsStack,
        before_torch: Callable[[], None] | None = None,
    ) -> None:
        if execution not in get_args(Execution):
            accepted = "one of " + ", ".join(map(repr, get_args(Execution)))
            raise rejected("execution", execution, accepted)
        self._asked, self._before_torch = execution, before_torch
        rule = None if execution == "eager" else CompiledAdam()
        self._ways: list[Eager] = []
        if execution in ("auto", "kernel"):
            self._ways.append(Kernel(learner, as_stack, rule))
        elif execution == "compiled":
            self._ways.append(Compiled(learner, rule))
        self._eager = Eager(learner, rule)
        self._said: tuple[str, str | None] | None = None
        if execution == "auto":
            _warn_without_numba()
        if execution == "kernel" and self.reason is not None:
            raise ValueError(f"execution='kernel' cannot be used: {self.reason}")

    def __call__(self, use: Use) -> Eager:
        """Choose the backend for one use, by what the learner is now."""
        way, reason = self._choose(use)
        if use == "learn":
            if (way.name, reason) != self._said:
                self._say(way, reason)
            if way.name != "kernel" and self._before_torch is not None:
                self._before_torch()
        return way

    @property
    def name(self) -> Literal["eager", "compiled", "kernel"]:
        """The backend of updates, by what the learner is now."""
        return self._choose("learn")[0].name

    @property
    def reason(self) -> str | None:
        """Why that is not what was asked for; None if it is."""
        return self._choose("learn")[1]

    def _choose(self, use: Use) -> tuple[Eager, str | None]:
        reason = None
        for way in self._ways:
            reason = way.refuses(use)
            if reason is None:
                return way, None
        return self._eager, reason

    def _say(self, way: Eager, reason: str | None) -> None:
        """Log how updates are computed, at first and when it changes."""
        because = "" if reason is None else f": {reason}"
        fell_back = self._said is not None and reason is not None
        level = (
            logging.WARNING if fell_back or (self._asked == "kernel" and reason) else logging.INFO
        )
        log.log(level, "DQN computes in %s%s", _DESCRIPTIONS[way.name], because)
        self._said = way.name, reason


@functools.cache
def _warn_without_numba() -> None:
    reason = why_not_compiled()
    if reason is not None:
        warnings.warn(f"DQN computes in eager torch, several times slower: {reason}", stacklevel=5)
