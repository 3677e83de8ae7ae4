"""How the learner computes: in torch, by `torch.compile`, or on a plain ReLU MLP by the compiled
`kernel`.

The rule is here and nowhere else: `plain_layers` says for which networks the kernel computes the
gradient; `make_kernels` and `AdamKernel.step` for which networks and optimisers it makes the step.
What it does not take runs in torch, which defines the result.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dqn_adapters.config import DQNConfig, rejected
from dqn_adapters.networks import QNetwork
from dqn_adapters.transition import Arrays, Transition

log = logging.getLogger(__name__)

Execution = Literal["auto", "eager", "compiled", "kernel"]
"""`"eager"` is torch; `"compiled"` is `torch.compile`, see `CompiledGradient`; `"kernel"` the
compiled kernel, and an error where it cannot be used; `"auto"` the kernel where it can be used, and
else torch."""

AsMLP = Callable[[nn.Module], nn.Sequential | None]
"""Sees in a network the plain MLP that maps its observations, converted to float32 and flattened to
`(B, F)`, to its action values; None where it is something else."""

MAX_UNITS = 1024
"""Networks with a wider layer are left to torch: there the products are all, and torch has the
better ones, on all cores."""


def as_mlp(network: nn.Module) -> nn.Sequential | None:
    """The plain MLP in a network of the core, or in a `torch.nn.Sequential`; see `AsMLP`."""
    if type(network) is QNetwork and network.encoder.only_flattens:
        head = network.head
        return head if isinstance(head, nn.Sequential) else None
    return network if isinstance(network, nn.Sequential) else None


def plain_layers(mlp: nn.Module | None) -> list[nn.Linear] | None:
    """The linear layers of a plain MLP: float32 on the CPU, with biases, ReLU between them; None if
    it is not one. (A dueling head is not one.)"""
    if type(mlp) is not nn.Sequential:
        return None
    parts = [part for part in mlp if type(part) is not nn.Flatten]
    layers: list[nn.Linear] = []
    for i, part in enumerate(parts):
        if type(part) is not (nn.ReLU if i % 2 else nn.Linear):
            return None
        if isinstance(part, nn.Linear):
            layers.append(part)
    plain = len(parts) % 2 and all(map(_is_plain_tensor, _parameters(layers)))
    return layers if plain and max(layer.out_features for layer in layers) <= MAX_UNITS else None


_FLOAT = torch.float32
_ADDRESS = torch.Tensor.data_ptr
_ADAM = operator.itemgetter("lr", "betas", "eps")
_NOT_PLAIN_ADAM = "weight_decay", "amsgrad", "maximize", "differentiable", "capturable"
_MOMENTS = tuple(map(operator.itemgetter, ("exp_avg", "exp_avg_sq", "step")))


def make_kernels(
    execution: Execution,
    q_net: nn.Module,
    target_net: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: DQNConfig,
    as_mlp: AsMLP,
) -> tuple[MLPKernel | None, AdamKernel | None]:
    """The kernels for the gradient and for the optimiser's step, or None for torch.

    Raises:
        ValueError: `execution` is unknown, or it is `"kernel"` and the network is not one that the
            kernel takes.
    """
    if execution not in get_args(Execution):
        accepted = "one of " + ", ".join(map(repr, get_args(Execution)))
        raise rejected("execution", execution, accepted)
    if execution == "eager":
        return None, None
    layers, target_layers = (plain_layers(as_mlp(net)) for net in (q_net, target_net))
    parameters = list(q_net.parameters())
    installed = all(importlib.util.find_spec(module) for module in ("numba", "scipy"))
    reason = None
    if layers is None or target_layers is None or not _are(parameters, _parameters(layers)):
        reason = (
            "the network is not a plain ReLU MLP over numbers, in float32 on the CPU, with at most "
            f"{MAX_UNITS} units in a layer"
        )
    elif any(map(watched, [*q_net.modules(), *target_net.modules()])):
        reason = "the network has hooks"
    elif not installed:
        reason = "numba is not installed; it comes with: pip install 'dqn-adapters[fast]'"
    if execution == "kernel" and reason is not None:
        raise ValueError(f"execution='kernel' cannot be used: {reason}")
    if execution == "auto" and reason is not None:
        log.info("DQN computes in torch, not in the compiled kernel: %s", reason)
    # Adam's step is worth it for any network on the CPU: torch's makes a dozen passes over memory.
    # But behind a bias that batch normalisation cancels the gradient is rounding alone, of which
    # Adam makes whole steps: such a network follows torch to the last digit, or not at all.
    statistics = next(q_net.buffers(), None) is not None
    plain = installed and not statistics and all(map(_is_plain_tensor, parameters))
    adam = AdamKernel(parameters, optimizer, config) if plain else None
    if execution == "compiled" or reason is not None:
        return None, adam
    assert layers is not None
    assert target_layers is not None
    return MLPKernel(layers, target_layers, adam, config), adam


class CompiledGradient:
    """The TD loss and its gradient by `torch.compile`, on CUDA as CUDA graphs.

    It compiles in its first call, which takes from seconds to minutes, and again for every new
    shape of a batch. Where torch cannot compile, it says so once in the log and gives None for
    good, and the caller goes on in eager torch.

    Args:
        td_loss: Maps a batch to a named tuple of tensors, the first of which is the loss.
        optimizer: Whose parameters get the gradient.
    """

    def __init__(
        self, td_loss: Callable[[Transition], Any], optimizer: torch.optim.Optimizer
    ) -> None:
        self._td_loss, self._optimizer = td_loss, optimizer
        self._compiled: Callable[[Transition], Any] | None = None
        self._failed = False

    def __reduce__(self) -> Any:  # a copy compiles for itself
        return CompiledGradient, (self._td_loss, self._optimizer)

    def __call__(self, batch: Transition) -> Any | None:
        """What `td_loss` gives, detached, with the gradient of the loss in the parameters' `grad`;
        None, and the caller has to do it, if torch cannot compile."""
        if self._failed:
            return None
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        if self._compiled is None:
            graphs = batch.rewards.device.type == "cuda"
            mode = "reduce-overhead" if graphs else None
            self._compiled = torch.compile(self._td_loss, mode=mode, dynamic=False)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            result = self._compiled(batch)
            self._optimizer.zero_grad()
            result[0].backward()
        except TorchDynamoException as error:
            self._failed = True
            first = str(error).strip().splitlines()[0]
            log.warning("DQN computes in eager torch, which could not compile it: %s", first)
            return None
        # The next replay of a graph writes into the same memory.
        return type(result)(*(tensor.detach().clone() for tensor in result))


class MLPKernel:
    """Greedy actions, the gradient of the TD loss, or a whole update, by the compiled `kernel`, on
    torch's memory.

    Tensors are looked at anew in every call, so whatever was loaded, moved or replaced is seen. A
    call that the kernel cannot take gives None, and the caller goes on in torch.

    Args:
        layers: The layers that are learned; see `plain_layers`.
        target_layers: Those of the target network, or `layers` themselves.
        adam: For whole updates.
        config: `variant`, `loss` and `huber_delta` are used.
    """

    def __init__(
        self,
        layers: list[nn.Linear],
        target_layers: list[nn.Linear],
        adam: AdamKernel | None,
        config: DQNConfig,
    ) -> None:
        from dqn_adapters import kernel  # numba takes half a second to import

        self._kernel = kernel
        self._layers, self._target_layers, self._adam = layers, target_layers, adam
        self._config = config
        self._loss = config.variant == "double", config.loss == "mse", config.huber_delta
        widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
        self._sizes = np.array(widths, np.int64)
        self._features, self._actions = widths[0], widths[-1]
        self._no_masks = np.zeros((0, self._actions), np.bool_)
        self._batch: Transition | None = None  # the last one, if it was read in place
        self._kept: tuple[Any, ...] = ()  # what the addresses in `_batch_table` belong to
        self._batch_table, self._rows = np.zeros(0, np.int64), 0
        self._acting = _Table(len(layers), 2)
        self._gradient = _Table(3, 2 * len(layers))  # of target, learned, gradient
        self._tensors = _Table(6, 2 * len(layers))  # and of Adam's state

    def __reduce__(self) -> Any:  # a copy works on the copies, by addresses of its own
        return MLPKernel, (self._layers, self._target_layers, self._adam, self._config)

    def greedy(
        self, observations: Arrays, action_masks: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """The greedy legal actions `(N,)` for N observations."""
        layers = self._acting.of(_parameters(self._layers))
        if layers is None or isinstance(observations, dict):
            return None
        rows, shape = observations, (len(observations), self._features)
        if rows.shape != shape or rows.dtype != np.float32 or not rows.flags.c_contiguous:
            if rows.size != shape[0] * shape[1]:
                return None
            rows = np.ascontiguousarray(rows, np.float32).reshape(shape)
        masks = self._no_masks
        if action_masks is not None:
            masks = np.ascontiguousarray(action_masks, np.bool_)
            if masks.shape != (shape[0], self._actions):
                return None
        actions = np.empty(shape[0], np.int64)
        self._kernel.greedy(self._sizes, layers, rows, masks, actions)
        return actions

    def gradient(self, batch: Transition) -> NDArray[np.float32] | None:
        """What the gradient was made of, laid out as by `kernel.td_gradient`; the gradient itself
        is left in the parameters' `grad`, as by torch."""
        networks = self._networks()
        tensors = None if networks is None else self._gradient.of(networks)
        if tensors is None or not self._look_at(batch):
            return None
        seen = np.empty(5 + 3 * self._rows, np.float32)
        done = self._kernel.td_gradient(self._sizes, tensors, self._batch_table, seen, *self._loss)
        return seen if done else None

    def update(self, batch: Transition) -> NDArray[np.float32] | None:
        """The same and the optimiser's step, in one call. If the loss is not finite, there is no
        step."""
        networks = self._networks()
        options = None if self._adam is None else self._adam.options()
        if self._adam is None or options is None or networks is None:
            return None
        tensors = self._tensors.of([*networks, *self._adam.moments()])
        if tensors is None or not self._look_at(batch):
            return None
        seen = np.empty(5 + 3 * self._rows, np.float32)
        done = self._kernel.update(
            *(self._sizes, self._adam.counts, tensors, self._batch_table, seen),
            *self._loss,
            *options,
        )
        return seen if done else None

    def _networks(self) -> list[Any] | None:
        """Target, learned parameters and gradients; None if one is not to be learned."""
        parameters, gradient = _parameters(self._layers), []
        for parameter in parameters:
            if not parameter.requires_grad:
                return None
            grad = parameter.grad
            if grad is None:
                grad = parameter.grad = torch.zeros_like(parameter)
            gradient.append(grad)
        return [*_parameters(self._target_layers), *parameters, *gradient]

    def _look_at(self, batch: Transition) -> bool:
        """Whether the kernel can read the batch; its addresses are then in `_batch_table`."""
        if batch is self._batch:  # a batch whose memory is used again
            return True
        if isinstance(batch.observations, dict) or isinstance(batch.next_observations, dict):
            return False
        rows = batch.rewards.shape[0]
        table = []
        s, s_next = _flat(batch.observations), _flat(batch.next_observations)
        kept = s, *batch[1:4], s_next, *batch[5:]
        shapes = (rows, self._features), (rows, self._actions)
        for field, shape, dtype in zip(
            kept,
            (shapes[0], (rows,), (rows,), (rows,), shapes[0], shapes[1], (rows,)),
            (_FLOAT, torch.int64, _FLOAT, _FLOAT, _FLOAT, torch.bool, _FLOAT),
            strict=True,
        ):
            if field is None:
                table.append(0)
            elif (
                field.shape == shape
                and field.dtype == dtype
                and field.is_contiguous()
                and field.device.type == "cpu"
            ):
                table.append(field.data_ptr())
            else:
                return False
        self._batch_table, self._kept, self._rows = np.array(table, np.int64), kept, rows
        converted = any(a is not b for a, b in zip(kept, batch, strict=True))
        self._batch = None if converted else batch
        return True


class AdamKernel:
    """Clips the gradient and makes a step of `torch.optim.Adam` by the compiled `kernel`, in the
    optimiser's own state.

    Args:
        parameters: Of the network; all that the optimiser has.
        optimizer: Any optimiser; what is not plain Adam is left to torch, see `options`.
        config: `max_grad_norm` is used.
    """

    def __init__(
        self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, config: DQNConfig
    ) -> None:
        from dqn_adapters import kernel

        self._kernel = kernel
        self._parameters, self._optimizer, self._config = parameters, optimizer, config
        self._max_norm = math.inf if config.max_grad_norm is None else config.max_grad_norm
        self.counts = np.array([parameter.numel() for parameter in parameters], np.int64)
        self._tensors = _Table(5, len(parameters))

    def __reduce__(self) -> Any:
        return AdamKernel, (self._parameters, self._optimizer, self._config)

    def options(self) -> tuple[float, ...] | None:
        """The norm to clip to, step size, both decays and eps.

        None unless the optimiser is `torch.optim.Adam` itself with nothing but these, over just
        the parameters, without hooks.
        """
        optimizer = self._optimizer
        groups = optimizer.param_groups
        if not _is_plain_adam(optimizer) or not _are(groups[0]["params"], self._parameters):
            return None
        lr, (beta1, beta2), eps = _ADAM(groups[0])
        optimizer._opt_called = True  # type: ignore[attr-defined]  # what torch's schedulers ask
        return self._max_norm, float(lr), float(beta1), float(beta2), eps

    def moments(self) -> list[Any]:
        """First moments, second moments and step counts of all parameters."""
        state: Any = self._optimizer.state
        states = state.values()
        if not _are([*state], self._parameters):
            for parameter in self._parameters:
                if parameter not in state:  # as Adam begins
                    state[parameter] = {
                        "step": torch.tensor(0.0),
                        "exp_avg": torch.zeros_like(parameter),
                        "exp_avg_sq": torch.zeros_like(parameter),
                    }
            states = [state[parameter] for parameter in self._parameters]
        return [moment(one) for moment in _MOMENTS for one in states]

    def step(self) -> float | None:
        """Clip to the global norm and step; the norm before clipping. None, and nothing is done,
        where the kernel cannot; see `options`."""
        options = self.options()
        gradient = [parameter.grad for parameter in self._parameters]
        if options is None or any(g is None for g in gradient):
            return None
        tensors = self._tensors.of([*self._parameters, *gradient, *self.moments()])
        if tensors is None:
            return None
        norm: float = self._kernel.clipped_adam(self.counts, tensors, *options)
        return norm


class _Table:
    """The addresses of tensors as an int64 array of a shape."""

    def __init__(self, *shape: int) -> None:
        self._shape = shape
        self._pointers: list[int] = []
        self._array: NDArray[np.int64] | None = None

    def of(self, tensors: list[Any]) -> NDArray[np.int64] | None:
        """The addresses of these tensors; None unless all are contiguous float32 on the CPU."""
        pointers = list(map(_ADDRESS, tensors))
        if pointers != self._pointers:
            plain = all(map(_is_plain_tensor, tensors))
            self._pointers = pointers
            self._array = np.array(pointers, np.int64).reshape(self._shape) if plain else None
        return self._array


def _are(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether these are the same objects (tensors have no == that says so)."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _parameters(layers: list[nn.Linear]) -> list[Any]:
    return [tensor for layer in layers for tensor in layer._parameters.values()]


def _flat(observations: Any) -> torch.Tensor:
    rows = torch.as_tensor(observations, dtype=_FLOAT)
    return rows if rows.ndim == 2 else rows.reshape(len(rows), -1)


def _is_plain_tensor(tensor: Any) -> bool:
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.is_contiguous()
    )


def _is_plain_adam(optimizer: torch.optim.Optimizer) -> bool:
    groups = optimizer.param_groups
    if type(optimizer) is not torch.optim.Adam or len(groups) != 1:
        return False
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    step = optimizer.__dict__.get("step")  # a learning-rate scheduler wraps it, and nothing else
    wrapped = step is not None and not hasattr(step, "_wrapped_by_lr_sched")
    return not (hooks or wrapped or any(map(groups[0].get, _NOT_PLAIN_ADAM)))


def watched(module: nn.Module) -> bool:
    """Whether hooks look at what goes through a module, or change it."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
