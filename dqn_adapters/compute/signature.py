"""The signature of networks and optimisers: the conditions of the compiled path.

A user may do anything to a network or an optimiser between two uses. The classes here look at
everything that could change the result, in a few microseconds, every time.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import lr_scheduler
from torch.optim import optimizer as torch_optimizer
from torch.utils.hooks import RemovableHandle

from dqn_adapters.compute.plan import NotTaken, Plan

IMPLEMENTATION = operator.attrgetter("_cdata")
"""The address of what torch keeps of a tensor; another one is another tensor."""

_GRADIENT = operator.attrgetter("grad")
_LEARNED = operator.attrgetter("requires_grad")
_TENSOR_HOOKS = operator.attrgetter("_backward_hooks", "_post_accumulate_grad_hooks")
_FORWARD = operator.attrgetter("forward")
_VALUES = dict.values

_HOOKS = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"

_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
_GLOBAL_STEP_HOOKS = (
    torch_optimizer._global_optimizer_pre_hooks,
    torch_optimizer._global_optimizer_post_hooks,
)
_CALL = nn.Module.__call__

HOOKS = RemovableHandle
"""Its `next_id` grows with every hook that is registered anywhere: of a module, of all modules, of
a tensor, of an optimiser. While it is the same, no hook is new."""
_STEP = inspect.unwrap(torch.optim.Adam.step).__code__
_FILES = {_STEP.co_filename, torch_optimizer.__file__, lr_scheduler.__file__}


def torch_is_plain() -> bool:
    """Return whether torch computes as it does by default: no autocasting, no mode that sees its
    operations, no other way to call a module."""
    return not (
        _autocasts("cpu")
        or _function_modes()
        or _dispatch_modes()
        or nn.Module.__call__ is not _CALL
    )


_autocasts = torch.is_autocast_enabled
_function_modes = torch._C._len_torch_function_stack
_dispatch_modes = torch._C._len_torch_dispatch_stack


def has_global_hooks() -> bool:
    """Return whether hooks look at what goes through all modules."""
    return any(_GLOBAL_HOOKS)


def is_stock(module: nn.Module) -> bool:
    """Return whether a call of the module is its class's own forward pass, and nothing else."""
    attributes, kind = vars(module), type(module)
    return not (
        any(attributes[name] for name in _HOOKS)
        or attributes.get("_compiled_call_impl") is not None
        or any(callable(getattr(kind, name, None)) for name in attributes)  # in place of a method
        or not _is_original(kind)
    )


def _is_original(kind: type[nn.Module]) -> bool:
    """Return whether the forward pass of a class is the one that its author wrote into it."""
    owner = next(cls for cls in kind.__mro__ if "forward" in vars(cls))
    forward = vars(owner)["forward"]
    return owner is nn.Module or (
        getattr(forward, "__module__", None) == owner.__module__
        and getattr(forward, "__qualname__", None) == f"{owner.__qualname__}.forward"
        and not hasattr(forward, "__wrapped__")
    )


class NetworkSignature:
    """The modules and parameters of one network or of several that are used together.

    Args:
        networks: The networks.
        plans: How the kernel sees each.

    Raises:
        NotTaken: something looks at what goes through a network or changes it, or it has parameters
            or buffers that the kernel does not know.
    """

    def __init__(self, networks: Sequence[nn.Module], plans: Sequence[Plan]) -> None:
        modules = [module for network in networks for module in network.modules()]
        if not all(map(is_stock, modules)):
            raise NotTaken("it has hooks, or a module whose forward pass was replaced")
        for network, plan in zip(networks, plans, strict=True):
            _check_tensors(network, plan)
        layers = [layer for plan in plans for layer in plan.layers]
        attributes = [vars(module) for module in modules]
        children = [names["_modules"] for names in attributes if names["_modules"]]
        self._children = [child for named in children for child in named.values()]
        self._containers = [*children, *(layer._parameters for layer in layers)]
        self.modules, self._attributes = modules, attributes
        self.dictionaries = [*attributes, *children, *(layer._parameters for layer in layers)]
        """The dictionaries of the modules: attributes, submodules and parameters."""
        self._counts = list(map(len, attributes))
        self._types = list(map(type, modules))
        self._kinds = list(set(self._types))
        self._forwards = list(map(_FORWARD, self._kinds))
        self.parameters: list[Any] = [p for layer in layers for p in layer._parameters.values()]
        """The parameters of all layers, in the order of the plans."""
        self.implementations = list(map(IMPLEMENTATION, self.parameters))

    def holds(self) -> bool:
        """Return whether the networks are unchanged; updates `parameters`."""
        contents = [*chain.from_iterable(map(_VALUES, self._containers))]
        count = len(self._children)
        self.parameters = parameters = contents[count:]
        try:
            return (
                list(map(IMPLEMENTATION, parameters)) == self.implementations
                and contents[:count] == self._children
                and list(map(len, self._attributes)) == self._counts
                and list(map(type, self.modules)) == self._types
                and self.classes_hold()
            )
        except AttributeError:  # a bias that was set to None
            return False

    def classes_hold(self) -> bool:
        """Return whether the classes of the modules still have the same forward passes."""
        return list(map(_FORWARD, self._kinds)) == self._forwards


def _check_tensors(network: nn.Module, plan: Plan) -> None:
    """Raise `NotTaken` unless the network has just the tensors of its layers, each once."""
    known = [id(p) for layer in plan.layers for p in layer._parameters.values()]
    if len(set(known)) != len(known) or set(known) != set(map(id, network.parameters())):
        raise NotTaken("it has parameters beside those of its layers, or shares them")
    if next(network.buffers(), None) is not None:
        raise NotTaken("it has buffers")


def check_learned(parameters: Sequence[Any]) -> None:
    """Raise `NotTaken` if a parameter is not learned, or a hook looks at its gradient."""
    if not are_learned(parameters):
        raise NotTaken("a parameter does not require a gradient")
    if any(hooks for parameter in parameters for hooks in _TENSOR_HOOKS(parameter)):
        raise NotTaken("a parameter has hooks")


def are_learned(parameters: Sequence[Any]) -> bool:
    """Return whether autograd gives all parameters a gradient."""
    return False not in map(_LEARNED, parameters)


def same_gradients(parameters: Sequence[Any], gradients: Sequence[Any]) -> bool:
    """Return whether these are the very gradients of the parameters."""
    return are(list(map(_GRADIENT, parameters)), gradients)


def gradients_of(parameters: Sequence[Any]) -> list[int]:
    """The implementations of the gradients, which are made where there are none."""
    try:
        return list(map(IMPLEMENTATION, map(_GRADIENT, parameters)))
    except AttributeError:
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return gradients_of(parameters)


_ADAM = operator.itemgetter("lr", "betas", "eps")
FIXED = "params", "weight_decay", "amsgrad", "maximize", "differentiable", "capturable"
"""The options of Adam that may not change."""

_OPTIONS = operator.itemgetter(*FIXED[1:])
_PLAIN_OPTIONS = (0, False, False, False, False)
ADAM_STATE = "step", "exp_avg", "exp_avg_sq"
"""The state that Adam keeps of a parameter, in its order."""


def adam_options(optimizer: Any, parameters: Sequence[Any]) -> tuple[float, ...] | None:
    """Step size, both decays and eps of an optimiser.

    None unless it is `torch.optim.Adam` itself with nothing but these, over just the parameters,
    without hooks.
    """
    groups = optimizer.param_groups
    if (
        type(optimizer) is not torch.optim.Adam
        or len(groups) != 1
        or _OPTIONS(groups[0]) != _PLAIN_OPTIONS
        or not are(groups[0]["params"], parameters)
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or any(_GLOBAL_STEP_HOOKS)
        or not _steps_as_adam(optimizer)
    ):
        return None
    return adam_numbers(groups[0])


def adam_numbers(group: Any) -> tuple[float, ...]:
    """Step size, both decays and eps."""
    lr, (beta1, beta2), eps = _ADAM(group)
    return float(lr), float(beta1), float(beta2), float(eps)


def adam_state(optimizer: Any, parameters: Sequence[Any]) -> list[int] | None:
    """The implementations of what Adam keeps of every parameter: its step count, and two moments.
    They are made as Adam makes them where there are none; None if there is something else."""
    state: Any = optimizer.state
    if not are([*state], parameters):
        if not state:
            for parameter in parameters:
                tensors = torch.tensor(0.0), *(torch.zeros_like(parameter) for _ in range(2))
                state[parameter] = dict(zip(ADAM_STATE, tensors, strict=True))
        if len(state) != len(parameters) or any(p not in state for p in parameters):
            return None
        states = [state[parameter] for parameter in parameters]
    else:
        states = state.values()
    if [*chain.from_iterable(states)] != [*ADAM_STATE] * len(parameters):
        return None
    return list(map(IMPLEMENTATION, chain.from_iterable(map(_VALUES, states))))


def _steps_as_adam(optimizer: Any) -> bool:
    """Return whether a step of the optimiser is torch's own code."""
    own = vars(optimizer).get("step")  # a learning-rate scheduler puts one there
    return _is_torchs(torch.optim.Adam.step) and (own is None or _is_torchs(own))


@functools.lru_cache(maxsize=64)
def _is_torchs(step: Any) -> bool:
    """Return whether a function is Adam's step, in wrappers of torch at most."""
    while getattr(getattr(step, "__code__", None), "co_filename", None) in _FILES:
        if not hasattr(step, "__wrapped__"):
            return step.__code__ is _STEP
        step = step.__wrapped__
    return False


def zeroes(optimizer: Any, parameters: Sequence[Any]) -> bool:
    """Return whether `optimizer.zero_grad` forgets the gradients of all parameters."""
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return known.issuperset(map(id, parameters))


def are(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Return whether these are the same objects (tensors have no == that says so)."""
    return len(some) == len(others) and all(map(operator.is_, some, others))
