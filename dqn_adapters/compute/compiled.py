"""An update whose loss and gradient are compiled by `torch.compile`, on CUDA as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from dqn_adapters.compute.eager import Eager, Learner, StepRule, TDLoss, Use
from dqn_adapters.transition import Transition


class Compiled(Eager):
    """Compiles in its first update, which takes from seconds to minutes, and again for every new
    shape of a batch. Greedy actions are computed in eager torch."""

    name: Literal["eager", "compiled", "kernel"] = "compiled"

    def __init__(self, learner: Learner, step_rule: StepRule | None = None) -> None:
        super().__init__(learner, step_rule)
        self._compiled: Callable[[Transition], Any] | None = None
        self._failure: str | None = None

    def __getstate__(self) -> dict[str, Any]:  # a copy compiles for itself
        return {**self.__dict__, "_compiled": None}

    def refuses(self, use: Use) -> str | None:
        return self._failure

    def _gradient(self, batch: Transition) -> TDLoss:
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        if self._failure is not None:
            return super()._gradient(batch)
        if self._compiled is None:
            graphs = batch.rewards.device.type == "cuda"
            mode = "reduce-overhead" if graphs else None
            self._compiled = torch.compile(self._learner.td_loss, mode=mode, dynamic=False)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            result = self._compiled(batch)
            self._learner.optimizer.zero_grad()
            result[0].backward()
        except TorchDynamoException as error:
            self._failure = f"torch could not compile it: {str(error).strip().splitlines()[0]}"
            return super()._gradient(batch)
        # The next replay of a graph writes into the same memory.
        return TDLoss(*(tensor.detach().clone() for tensor in result))
