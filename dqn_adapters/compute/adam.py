"""Adam's step in compiled code, for networks whose gradient comes from torch.

torch's own step makes a dozen passes over memory; this makes one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dqn_adapters.compute.eager import Learner
from dqn_adapters.compute.fused import Tensors, why_not_compiled
from dqn_adapters.compute.signature import (
    IMPLEMENTATION,
    adam_options,
    adam_state,
)


class CompiledAdam:
    """Clips the gradient and steps; see `StepRule`. It looks at the optimiser every time."""

    def __init__(self) -> None:
        self._shapes: list[Any] = []
        self._tensors: Tensors | None = None

    def __reduce__(self) -> Any:  # a copy looks at its own tensors
        return CompiledAdam, ()

    def step(self, learner: Learner) -> float | None:
        if why_not_compiled() is not None:
            return None
        # Behind a bias that batch normalisation cancels the gradient is rounding alone, of which
        # Adam makes whole steps: such a network follows torch to the last digit, or not at all.
        if next(learner.q_net.buffers(), None) is not None:
            return None
        parameters = list(learner.q_net.parameters())
        gradients = [parameter.grad for parameter in parameters]
        options = adam_options(learner.optimizer, parameters)
        if options is None or any(gradient is None for gradient in gradients):
            return None
        state = adam_state(learner.optimizer, parameters)
        if state is None:
            return None
        from dqn_adapters.compute import extents, phase

        shapes = [tuple(parameter.shape) for parameter in parameters]
        if self._tensors is None or shapes != self._shapes:
            if max(map(len, shapes)) > extents.MAX_DIMENSIONS:
                return None
            kept = [part for shape in shapes for part in ((), shape, shape)]
            self._shapes, self._tensors = shapes, Tensors([*shapes * 2, *kept])
            self._sizes = np.array([math.prod(shape) for shape in shapes], np.int64)
        max_norm = learner.config.max_grad_norm
        found = self._tensors.disjoint([*map(IMPLEMENTATION, [*parameters, *gradients]), *state])
        limit = math.inf if max_norm is None else max_norm
        norm = float(phase.step(*found, self._sizes, limit, *options))
        if norm < 0:
            return None
        learner.optimizer._opt_called = True  # type: ignore[attr-defined]
        return norm
