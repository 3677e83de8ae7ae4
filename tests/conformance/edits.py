"""Edits that people make to a network, its optimizer or torch itself after an agent was made.

An edit is a function of a `Surgery`: it changes the trained adapter through what the adapter's
user holds. `EDITS` is the table. `pair` runs edits with two executions, from equal weights and on
the same data; `check_same` says what differs.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from support import Chain
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from conformance.drivers import ADAPTERS, Trained
from dqn_adapters import DQNConfig
from dqn_adapters.config import VARIANTS

CONFIG = DQNConfig(
    learning_rate=1e-3,
    buffer_size=500,
    learning_starts=20,
    batch_size=8,
    gamma=0.9,
    train_freq=4,
    gradient_steps=3,
    target_update_interval=20,
    # Which transitions are seen must not depend on the rounding of action values.
    exploration_initial_eps=1.0,
    exploration_final_eps=1.0,
    exploration_steps=1,
    hidden_sizes=(16, 16),
)
BEFORE, AFTER = 28, (16, 16)
"""Environment steps before the edit, and of both calls of `learn` after it: 6 and 24 updates."""
DEEP = {"hidden_sizes": (16, 16, 16)}
"""With two square layers."""
NO_SYNC = {"target_update_interval": 10_000}
"""For a network whose parameters are no longer those of the target network."""

OBSERVATIONS = np.random.default_rng(0).random((64, 5), np.float32)
CLEAR = 1e-4
"""Where the best two action values are nearer than this, rounding may choose the action."""


@dataclass
class Surgery:
    """A trained adapter under the knife."""

    trained: Trained
    undo: ExitStack
    """Restores what an edit changed outside the adapter."""
    calls: Counter[str] = field(default_factory=Counter)
    """How often each hook or override was called."""
    between: list[Callable[[], None]] = field(default_factory=list)
    """What the user does between the two calls of `learn`."""

    @property
    def q_net(self) -> nn.Module:
        return self.trained.q_net

    @property
    def networks(self) -> list[nn.Module]:
        """The online network, and the target network if that is another one."""
        target = self.trained.target_net
        return [self.q_net] if target is self.q_net else [self.q_net, target]

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.trained.optimizer

    def counting(self, name: str, result: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """A hook that counts its calls and gives what `result` makes of its arguments."""

        def hook(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return None if result is None else result(*args, **kwargs)

        return hook

    def tell(self) -> None:
        """Tell the optimizer of all parameters that the network has now."""
        groups = self.optimizer.param_groups
        groups[0]["params"] = list(self.q_net.parameters())
        del groups[1:]

    def in_both(self, select: Callable[[nn.Module], nn.Module], new: nn.Module) -> None:
        """Put a module in the place of one, and a copy of it into the target network."""
        copied = copy.deepcopy(new).requires_grad_(False).eval()
        for net in self.networks:
            put(net, select(net), new if net is self.q_net else copied)


def linears(net: nn.Module) -> list[nn.Linear]:
    return [module for module in net.modules() if isinstance(module, nn.Linear)]


def activations(net: nn.Module) -> list[nn.Module]:
    kinds = nn.ReLU, nn.Tanh, nn.LeakyReLU
    return [module for module in net.modules() if isinstance(module, kinds)]


def linear(i: int) -> Callable[[nn.Module], nn.Linear]:
    return lambda net: linears(net)[i]


def activation(i: int) -> Callable[[nn.Module], nn.Module]:
    return lambda net: activations(net)[i]


def put(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in net.modules():
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)
                return
    raise LookupError("the module is not in the network")


@dataclass(frozen=True)
class Edit:
    """A row of the table."""

    apply: Callable[[Surgery], None]
    core: bool
    """Whether it is tried with all adapters, and with the native agent in all variants."""
    variants: tuple[str, ...]
    """In which it can be tried."""
    config: dict[str, Any]
    """What it needs of the configuration."""
    raises: type[Exception] | None
    """What torch raises in the training that follows."""
    trains: bool
    """Whether weights move in the training that follows."""
    settled: bool
    """Whether the network gives the same values whenever it is asked."""
    invisible: tuple[str, ...]
    """Adapters in which torch's results are as if nothing had been edited."""


EDITS: dict[str, Edit] = {}


def some(names: Sequence[Any], key: str) -> Any:
    """One of them, the same whenever it is asked for this key."""
    return names[zlib.crc32(key.encode()) % len(names)]


def cases() -> list[tuple[str, str, str]]:
    """Adapter, variant and edit: core edits with all adapters and, for the native agent, in all
    variants; the others with one adapter in one variant."""
    chosen = []
    for name, row in EDITS.items():
        for adapter in ADAPTERS if row.core else [some([*ADAPTERS], name)]:
            every = row.core and adapter == "native"
            variants = row.variants if every else [some(row.variants, adapter + name)]
            chosen += [(adapter, variant, name) for variant in variants]
    return chosen


def other_cases() -> list[tuple[str, str, str]]:
    """All others that there are."""
    every = {
        (adapter, variant, name)
        for name, row in EDITS.items()
        for adapter in ADAPTERS
        for variant in row.variants
    }
    return sorted(every - set(cases()))


def edit(
    name: str,
    *,
    core: bool = False,
    variants: Sequence[str] = VARIANTS,
    config: dict[str, Any] | None = None,
    raises: type[Exception] | None = None,
    trains: bool = True,
    settled: bool = True,
    invisible: Sequence[str] = (),
) -> Callable[[Callable[[Surgery], None]], Callable[[Surgery], None]]:
    """Put a function into the table; see `Edit`."""

    def register(function: Callable[[Surgery], None]) -> Callable[[Surgery], None]:
        assert name not in EDITS
        EDITS[name] = Edit(
            function,
            core,
            tuple(variants),
            config or {},
            raises,
            trains and raises is None,
            settled,
            tuple(invisible),
        )
        return function

    return register


# Hooks


@edit("forward hook", core=True)
def _(s: Surgery) -> None:
    linears(s.q_net)[0].register_forward_hook(s.counting("hook"))


@edit("forward hook that halves")
def _(s: Surgery) -> None:
    linears(s.q_net)[1].register_forward_hook(s.counting("hook", lambda m, x, y: y * 0.5))


@edit("forward hook on an activation of the target network")
def _(s: Surgery) -> None:
    activations(s.networks[-1])[0].register_forward_hook(s.counting("hook"))


@edit("forward hooks on all modules", core=True)
def _(s: Surgery) -> None:
    for module in s.q_net.modules():
        module.register_forward_hook(s.counting(type(module).__name__))


@edit("forward pre-hook that doubles")
def _(s: Surgery) -> None:
    hook = s.counting("hook", lambda module, inputs: (inputs[0] * 2,))
    linears(s.q_net)[-1].register_forward_pre_hook(hook)


@edit("full backward hook", core=True)
def _(s: Surgery) -> None:
    linears(s.q_net)[1].register_full_backward_hook(s.counting("hook"))


@edit("full backward hook that halves")
def _(s: Surgery) -> None:
    halve = s.counting("hook", lambda module, inputs, outputs: (inputs[0] * 0.5,))
    linears(s.q_net)[1].register_full_backward_hook(halve)


@edit("full backward pre-hook that zeroes")
def _(s: Surgery) -> None:
    zero = s.counting("hook", lambda module, outputs: (outputs[0] * 0,))
    linears(s.q_net)[1].register_full_backward_pre_hook(zero)


@edit("global forward hook", core=True)
def _(s: Surgery) -> None:
    hook = s.counting("hook")
    s.undo.callback(nn.modules.module.register_module_forward_hook(hook).remove)


@edit("global forward pre-hook")
def _(s: Surgery) -> None:
    hook = s.counting("hook")
    s.undo.callback(nn.modules.module.register_module_forward_pre_hook(hook).remove)


@edit("global full backward hook")
def _(s: Surgery) -> None:
    hook = s.counting("hook")
    s.undo.callback(nn.modules.module.register_module_full_backward_hook(hook).remove)
    # torch warns that the network's input needs no gradient, and of outputs that are no tensors.
    s.undo.enter_context(warnings.catch_warnings())
    for message in ("Full backward hook is firing", "For backward hooks to be called"):
        warnings.filterwarnings("ignore", message)


@edit("gradient hook that zeroes", core=True)
def _(s: Surgery) -> None:
    linears(s.q_net)[0].weight.register_hook(s.counting("hook", lambda gradient: gradient * 0))


@edit("gradient hook that only looks")
def _(s: Surgery) -> None:
    linears(s.q_net)[-1].bias.register_hook(s.counting("hook"))


@edit("hook after the gradient is accumulated")
def _(s: Surgery) -> None:
    bias = linears(s.q_net)[1].bias
    bias.register_post_accumulate_grad_hook(s.counting("hook", _halve_gradient))


def _halve_gradient(parameter: nn.Parameter) -> None:
    assert parameter.grad is not None
    parameter.grad.mul_(0.5)


@edit("hook removed between two trainings")
def _(s: Surgery) -> None:
    s.between.append(linears(s.q_net)[0].register_forward_hook(s.counting("hook")).remove)


@edit("hook added between two trainings")
def _(s: Surgery) -> None:
    hook = s.counting("hook", lambda gradient: gradient * 0.5)
    s.between.append(lambda: linears(s.q_net)[1].weight.register_hook(hook) and None)


@edit("optimizer's step hooks", core=True)
def _(s: Surgery) -> None:
    s.optimizer.register_step_pre_hook(s.counting("before"))
    s.optimizer.register_step_post_hook(s.counting("after"))


@edit("optimizer's step hook that changes gradients")
def _(s: Surgery) -> None:
    def zero(optimizer: torch.optim.Optimizer, *args: Any) -> None:
        optimizer.param_groups[0]["params"][0].grad.zero_()

    s.optimizer.register_step_pre_hook(s.counting("before", zero))


@edit("global step hooks of optimizers")
def _(s: Surgery) -> None:
    from torch.optim import optimizer

    for name in ("register_optimizer_step_pre_hook", "register_optimizer_step_post_hook"):
        s.undo.callback(getattr(optimizer, name)(s.counting(name)).remove)


# Weights computed of others


@edit("pruning", core=True)
def _(s: Surgery) -> None:
    for net in s.networks:
        for layer in linears(net):
            prune.random_unstructured(layer, "weight", 0.3)


@edit("pruning of the online network alone", config=NO_SYNC)
def _(s: Surgery) -> None:
    for layer in linears(s.q_net):
        prune.random_unstructured(layer, "weight", 0.3)


@edit("pruning of biases", config=NO_SYNC)
def _(s: Surgery) -> None:
    prune.l1_unstructured(linears(s.q_net)[0], "bias", 5)


@edit("pruning made permanent", core=True)
def _(s: Surgery) -> None:
    for net in s.networks:
        for layer in linears(net):
            prune.ln_structured(layer, "weight", 0.3, n=2, dim=0)
            prune.remove(layer, "weight")


@edit("spectral norm as a parametrization", core=True, settled=False)
def _(s: Surgery) -> None:
    for net in s.networks:
        parametrizations.spectral_norm(linears(net)[0])


@edit("weight norm as a parametrization, optimizer told")
def _(s: Surgery) -> None:
    for net in s.networks:
        parametrizations.weight_norm(linears(net)[1])
    s.tell()


@edit("weight norm as a parametrization, optimizer not told")
def _(s: Surgery) -> None:
    for net in s.networks:
        parametrizations.weight_norm(linears(net)[1])


@edit("spectral norm of the old style", settled=False)
def _(s: Surgery) -> None:
    for net in s.networks:
        nn.utils.spectral_norm(linears(net)[1])


# Other modules


@edit("new last layer, optimizer told", core=True)
def _(s: Surgery) -> None:
    s.in_both(linear(-1), nn.Linear(linears(s.q_net)[-1].in_features, 2))
    s.tell()


@edit("new last layer, optimizer not told")
def _(s: Surgery) -> None:
    s.in_both(linear(-1), nn.Linear(linears(s.q_net)[-1].in_features, 2))


@edit("new last layer of the online network alone")
def _(s: Surgery) -> None:
    put(s.q_net, linears(s.q_net)[-1], nn.Linear(linears(s.q_net)[-1].in_features, 2))
    s.tell()


@edit("layer without bias")
def _(s: Surgery) -> None:
    s.in_both(linear(1), nn.Linear(16, linears(s.q_net)[1].out_features, bias=False))
    s.tell()


@edit("Tanh in place of ReLU", core=True)
def _(s: Surgery) -> None:
    for i in range(len(activations(s.q_net))):
        s.in_both(activation(i), nn.Tanh())


@edit("one LeakyReLU in place of ReLU")
def _(s: Surgery) -> None:
    s.in_both(activation(1), nn.LeakyReLU(0.3))


class _Shifted(nn.ReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0.1)


@edit("subclass of ReLU")
def _(s: Surgery) -> None:
    s.in_both(activation(0), _Shifted())


@edit("Dropout inserted", core=True, settled=False)
def _(s: Surgery) -> None:
    s.in_both(activation(0), nn.Sequential(activations(s.q_net)[0], nn.Dropout(0.3)))


# Only hosts put it into training mode again.
@edit("Dropout inserted, network in evaluation mode", invisible=("native", "pettingzoo"))
def _(s: Surgery) -> None:
    s.in_both(activation(0), nn.Sequential(activations(s.q_net)[0], nn.Dropout(0.3)))
    s.q_net.eval()


@edit("layer inserted, optimizer told by a group", core=True)
def _(s: Surgery) -> None:
    width = linears(s.q_net)[0].out_features
    layer = nn.Linear(width, width)
    s.in_both(activation(0), nn.Sequential(activations(s.q_net)[0], layer, nn.ReLU()))
    s.optimizer.add_param_group({"params": list(layer.parameters())})


@edit("LayerNorm inserted")
def _(s: Surgery) -> None:
    norm = nn.LayerNorm(linears(s.q_net)[0].out_features)
    s.in_both(activation(0), nn.Sequential(norm, activations(s.q_net)[0]))
    s.tell()


@edit("BatchNorm inserted", settled=False)
def _(s: Surgery) -> None:
    norm = nn.BatchNorm1d(linears(s.q_net)[0].out_features)
    s.in_both(activation(0), nn.Sequential(activations(s.q_net)[0], norm))
    s.tell()


@edit("Tanh behind the last layer")
def _(s: Surgery) -> None:
    for net in s.networks:
        put(net, linears(net)[-1], nn.Sequential(linears(net)[-1], nn.Tanh()))


@edit("hidden layer resized", core=True)
def _(s: Surgery) -> None:
    first, second = linears(s.q_net)[:2]
    s.in_both(linear(0), nn.Linear(first.in_features, 24))
    s.in_both(linear(1), nn.Linear(24, second.out_features))
    s.trained.optimizer = torch.optim.Adam(s.q_net.parameters(), lr=1e-3)


@edit("network with a module that it does not use")
def _(s: Surgery) -> None:
    for net in s.networks:
        net.register_module("unused", nn.Linear(3, 3).requires_grad_(net is s.q_net))
    s.tell()


@edit("layer whose forward is another function", core=True)
def _(s: Surgery) -> None:
    layer = linears(s.q_net)[1]
    forward = s.counting("forward", lambda x: F.linear(x, layer.weight * 0.5, layer.bias))
    layer.forward = forward  # type: ignore[method-assign]


@edit("network whose forward is another function")
def _(s: Surgery) -> None:
    s.q_net.forward = s.counting("forward", s.q_net.forward)  # type: ignore[method-assign]


@edit("class of a layer changed")
def _(s: Surgery) -> None:
    layer = linears(s.q_net)[0]

    class Halved(type(layer)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0.5

    layer.__class__ = Halved


@edit("class of the network changed")
def _(s: Surgery) -> None:
    calls = s.calls

    class Counted(type(s.q_net)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            calls["forward"] += 1
            return super().forward(*args, **kwargs)

    s.q_net.__class__ = Counted


@edit("forward of all ReLUs patched", core=True)
def _(s: Surgery) -> None:
    def leaky(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(x, 0.2)

    s.undo.enter_context(mock.patch.object(nn.ReLU, "forward", leaky))


@edit("forward of all linear layers patched")
def _(s: Surgery) -> None:
    calls, original = s.calls, nn.Linear.forward

    def counted(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        calls["forward"] += 1
        return original(self, x)

    s.undo.enter_context(mock.patch.object(nn.Linear, "forward", counted))


@edit("network replaced", core=True)
def _(s: Surgery) -> None:
    networks = [_other(net) for net in s.networks]
    s.trained.set_networks(networks[0], networks[-1])
    s.trained.optimizer = torch.optim.Adam(s.q_net.parameters(), lr=1e-3)


@edit("online network replaced, target network kept")
def _(s: Surgery) -> None:
    q_net = _other(s.q_net)
    s.trained.set_networks(q_net, q_net if len(s.networks) == 1 else s.networks[1])
    s.trained.optimizer = torch.optim.Adam(q_net.parameters(), lr=1e-3)


@edit("network replaced, optimizer told", core=True)
def _(s: Surgery) -> None:
    networks = [_other(net) for net in s.networks]
    s.trained.set_networks(networks[0], networks[-1])
    s.tell()


def _other(net: nn.Module) -> nn.Module:
    other = copy.deepcopy(net)
    for parameter in other.parameters():
        parameter.data = torch.empty_like(parameter).uniform_(-0.4, 0.4)
    return other


# Other weights


@edit("weight replaced by a narrower one", core=True, raises=RuntimeError)
def _(s: Surgery) -> None:
    layer = linears(s.q_net)[1]
    layer.weight = nn.Parameter(layer.weight.detach()[:, :-3].clone())
    s.tell()


@edit("weight's data replaced by narrower ones", raises=RuntimeError)
def _(s: Surgery) -> None:
    weight = linears(s.q_net)[0].weight
    weight.data = weight.data[:, :-1].clone()


@edit("weight's data replaced by shorter ones", raises=RuntimeError)
def _(s: Surgery) -> None:
    weight = linears(s.q_net)[1].weight
    weight.data = weight.data[:-3].clone()


# In "vanilla" it would be the online network.
@edit(
    "target's weight replaced by a narrower one",
    variants=("target", "double"),
    raises=RuntimeError,
)
def _(s: Surgery) -> None:
    layer = linears(s.networks[-1])[1]
    layer.weight = nn.Parameter(layer.weight.detach()[:, :-3].clone(), requires_grad=False)


@edit("bias of one number, optimizer told", config=NO_SYNC)
def _(s: Surgery) -> None:
    layer = linears(s.q_net)[1]
    layer.bias = nn.Parameter(layer.bias.detach()[:1].clone())
    s.tell()


@edit("bias of one number in the place of its data", config=NO_SYNC, raises=RuntimeError)
def _(s: Surgery) -> None:
    bias = linears(s.q_net)[1].bias
    bias.data = bias.data[:1].clone()


@edit("no bias")
def _(s: Surgery) -> None:
    for net in s.networks:
        linears(net)[0].bias = None  # type: ignore[assignment]
    s.tell()


@edit("weight that is no parameter")
def _(s: Surgery) -> None:
    for net in s.networks:
        weight = linears(net)[0].weight.detach().clone()
        del linears(net)[0].weight
        linears(net)[0].weight = weight * 2  # type: ignore[assignment]
    s.tell()


@edit("new weights of the same shape, optimizer told")
def _(s: Surgery) -> None:
    for layer in linears(s.q_net):
        layer.weight = nn.Parameter(torch.empty_like(layer.weight).uniform_(-0.4, 0.4))
    s.tell()


@edit("new weights of the same shape, optimizer not told")
def _(s: Surgery) -> None:
    layer = linears(s.q_net)[0]
    layer.weight = nn.Parameter(torch.empty_like(layer.weight).uniform_(-0.4, 0.4))


@edit("new weights in the target network")
def _(s: Surgery) -> None:
    layer = linears(s.networks[-1])[1]
    weight = torch.empty_like(layer.weight).uniform_(-0.4, 0.4)
    layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    s.tell()


@edit("weight's data replaced")
def _(s: Surgery) -> None:
    for net in s.networks:
        for parameter in net.parameters():
            parameter.data = torch.empty_like(parameter).uniform_(-0.4, 0.4)


@edit("weights changed in place")
def _(s: Surgery) -> None:
    with torch.no_grad():
        for parameter in s.q_net.parameters():
            parameter.mul_(0.5)


@edit("weights transposed in place", core=True)
def _(s: Surgery) -> None:
    weight = linears(s.q_net)[1].weight
    weight.data = weight.data.t()


@edit("target's weights transposed in place")
def _(s: Surgery) -> None:
    weight = linears(s.networks[-1])[1].weight
    weight.data = weight.data.t()


@edit("weights in columns", invisible=tuple(ADAPTERS))
def _(s: Surgery) -> None:
    for net in s.networks:
        for layer in linears(net):
            layer.weight.data = layer.weight.data.t().contiguous().t()


@edit("parameters in one vector", invisible=tuple(ADAPTERS))
def _(s: Surgery) -> None:
    for net in s.networks:
        vector = nn.utils.parameters_to_vector(net.parameters()).detach()
        nn.utils.vector_to_parameters(vector, net.parameters())


@edit("two biases on one memory")
def _(s: Surgery) -> None:
    first, second = linears(s.q_net)[:2]
    second.bias.data = first.bias.data


@edit("target's weight on the online weight's memory", variants=("target", "double"))
def _(s: Surgery) -> None:
    online, target = s.networks[0], s.networks[-1]
    linears(target)[0].weight.data = linears(online)[0].weight.data


@edit("weights on a memory of one number", raises=RuntimeError)
def _(s: Surgery) -> None:
    weight = linears(s.q_net)[1].weight
    weight.data = torch.full((1,), 0.1).expand_as(weight)


@edit("tied weights", core=True, config=DEEP)
def _(s: Surgery) -> None:
    for net in s.networks:
        linears(net)[2].weight = linears(net)[1].weight


@edit("tied layers", config=DEEP)
def _(s: Surgery) -> None:
    for net in s.networks:
        put(net, linears(net)[2], linears(net)[1])


@edit("frozen parameter", core=True)
def _(s: Surgery) -> None:
    linears(s.q_net)[0].weight.requires_grad_(False)


@edit("frozen but for the head", core=True)
def _(s: Surgery) -> None:
    s.q_net.requires_grad_(False)
    linears(s.q_net)[-1].requires_grad_(True)


@edit("frozen until the second training")
def _(s: Surgery) -> None:
    s.q_net.requires_grad_(False)
    linears(s.q_net)[-1].requires_grad_(True)
    s.between.append(lambda: s.q_net.requires_grad_(True) and None)


@edit("everything frozen", raises=RuntimeError)
def _(s: Surgery) -> None:
    s.q_net.requires_grad_(False)


@edit("gradients set to None", invisible=tuple(ADAPTERS))
def _(s: Surgery) -> None:
    for parameter in s.q_net.parameters():
        parameter.grad = None


@edit("gradients of others", invisible=tuple(ADAPTERS))
def _(s: Surgery) -> None:
    for parameter in s.q_net.parameters():
        parameter.grad = torch.ones_like(parameter)


@edit("gradients in columns", invisible=tuple(ADAPTERS))
def _(s: Surgery) -> None:
    for parameter in s.q_net.parameters():
        parameter.grad = torch.ones(1).expand_as(parameter)


@edit("gradients on one memory", invisible=tuple(ADAPTERS))
def _(s: Surgery) -> None:
    first, second = linears(s.q_net)[:2]
    second.bias.grad = first.bias.grad = torch.zeros_like(first.bias)


# Numbers of another kind, and other devices


@edit("double", raises=RuntimeError)
def _(s: Surgery) -> None:
    for net in s.networks:
        net.double()


@edit("half precision", raises=RuntimeError)
def _(s: Surgery) -> None:
    for net in s.networks:
        net.half()


def _converted(s: Surgery, dtype: torch.dtype, result: torch.dtype) -> None:
    """Networks of another dtype, that convert what they get and what they give."""
    for net in s.networks:
        net.to(dtype)
        linears(net)[0].register_forward_pre_hook(lambda module, x: (x[0].to(dtype),))
        linears(net)[-1].register_forward_hook(lambda module, x, y: y.to(result))
    s.trained.optimizer = torch.optim.Adam(s.q_net.parameters(), lr=1e-3)


@edit("double, with inputs converted", core=True)
def _(s: Surgery) -> None:
    _converted(s, torch.float64, torch.float64)


@edit("bfloat16, with inputs and values converted")
def _(s: Surgery) -> None:
    _converted(s, torch.bfloat16, torch.float32)


@edit("double target network", raises=RuntimeError)
def _(s: Surgery) -> None:
    s.networks[-1].double()


@edit("to the CPU", invisible=tuple(ADAPTERS))
def _(s: Surgery) -> None:
    for net in s.networks:
        net.to("cpu")


@edit("automatic mixed precision")
def _(s: Surgery) -> None:
    s.undo.enter_context(torch.autocast("cpu", torch.bfloat16))


@edit("no gradients are recorded", raises=RuntimeError)
def _(s: Surgery) -> None:
    s.undo.enter_context(torch.no_grad())


# Other optimizers


def _optimizer(name: str, make: Callable[[Surgery], torch.optim.Optimizer], **keys: Any) -> None:
    @edit(name, **keys)
    def _(s: Surgery) -> None:
        s.trained.optimizer = make(s)


class _Slow(torch.optim.Adam):
    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.grad.mul_(0.1)
        return super().step(closure)


_optimizer(
    "SGD",
    lambda s: torch.optim.SGD(s.q_net.parameters(), lr=0.01, momentum=0.9),
    core=True,
)
_optimizer("AdamW", lambda s: torch.optim.AdamW(s.q_net.parameters(), weight_decay=0.1))
_optimizer("another Adam", lambda s: torch.optim.Adam(s.q_net.parameters(), lr=1e-3), core=True)
_optimizer(
    "Adam with other options",
    lambda s: torch.optim.Adam(s.q_net.parameters(), weight_decay=0.1, amsgrad=True),
)
_optimizer("Adam that maximizes", lambda s: torch.optim.Adam(s.q_net.parameters(), maximize=True))
_optimizer(
    "Adam with two groups",
    lambda s: torch.optim.Adam(
        [
            {"params": list(s.q_net.parameters())[:-2]},
            {"params": list(s.q_net.parameters())[-2:], "betas": (0.5, 0.9)},
        ],
        lr=1e-3,
    ),
    core=True,
)
_optimizer(
    "Adam over the head alone",
    lambda s: torch.optim.Adam(linears(s.q_net)[-1].parameters(), lr=1e-3),
)
_optimizer(
    "Adam over the parameters in another order",
    lambda s: torch.optim.Adam(list(s.q_net.parameters())[::-1], lr=1e-3),
)
_optimizer("subclass of Adam", lambda s: _Slow(s.q_net.parameters(), lr=1e-3))


@edit("optimizer's options changed")
def _(s: Surgery) -> None:
    s.optimizer.param_groups[0].update(betas=(0.5, 0.9), eps=1e-3)


@edit("optimizer's weight decay changed")
def _(s: Surgery) -> None:
    s.optimizer.param_groups[0]["weight_decay"] = 0.5


@edit("optimizer's amsgrad switched on", raises=KeyError)
def _(s: Surgery) -> None:
    s.optimizer.param_groups[0]["amsgrad"] = True


@edit("optimizer whose step is another function")
def _(s: Surgery) -> None:
    s.optimizer.step = s.counting("step", s.optimizer.step)  # type: ignore[method-assign]


@edit("schedule of the learning rate", invisible=("sb3",))  # the host sets its own rate
def _(s: Surgery) -> None:
    schedule = torch.optim.lr_scheduler.ExponentialLR(s.optimizer, 0.1)
    s.between.append(schedule.step)


@edit("optimizer's state cleared", core=True)
def _(s: Surgery) -> None:
    s.optimizer.state.clear()


@edit("optimizer's state replaced")
def _(s: Surgery) -> None:
    s.optimizer.state = defaultdict(dict)


@edit("optimizer's state of one parameter removed")
def _(s: Surgery) -> None:
    del s.optimizer.state[linears(s.q_net)[0].weight]


@edit("optimizer's state loaded from itself", invisible=tuple(ADAPTERS))
def _(s: Surgery) -> None:
    s.optimizer.load_state_dict(copy.deepcopy(s.optimizer.state_dict()))


@edit("optimizer's state of other widths", core=True, raises=RuntimeError)
def _(s: Surgery) -> None:
    narrow = [nn.Parameter(torch.zeros([2 for _ in p.shape])) for p in s.q_net.parameters()]
    optimizer = torch.optim.Adam(narrow, lr=1e-3)
    for parameter in narrow:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    s.optimizer.load_state_dict(optimizer.state_dict())


@edit("optimizer's moments in double", raises=RuntimeError)
def _(s: Surgery) -> None:
    for state in s.optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].double()


@edit("optimizer's moments in columns", invisible=tuple(ADAPTERS))
def _(s: Surgery) -> None:
    for state in s.optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = state[name].t().contiguous().t()


@edit("optimizer's moments on one memory")
def _(s: Surgery) -> None:
    first, second = linears(s.q_net)[:2]
    s.optimizer.state[second.bias]["exp_avg"] = s.optimizer.state[first.bias]["exp_avg"]


@edit("optimizer's step counts replaced")
def _(s: Surgery) -> None:
    for state in s.optimizer.state.values():
        state["step"] = torch.tensor(2.0)


# Overrides of the learner


def _override(s: Surgery, name: str, result: Callable[[Any], Any] = lambda given: given) -> None:
    """Give the learner a class that counts the calls of a method and changes what it gives."""
    calls, learner = s.calls, s.trained.learner

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return result(getattr(super(changed, self), name)(*args, **kwargs))

    changed = type("Changed", (type(learner),), {name: method})
    learner.__class__ = changed


@edit("learner's td_loss overridden", core=True)
def _(s: Surgery) -> None:
    _override(s, "td_loss", lambda result: result._replace(loss=result.loss * 0.01))


@edit("learner's update overridden", core=True)
def _(s: Surgery) -> None:
    _override(s, "update")


@edit("learner's sync_target overridden")
def _(s: Surgery) -> None:
    _override(s, "sync_target")


# These hosts ask their policies.
@edit("learner's greedy_actions overridden", settled=False, invisible=("sb3", "tianshou"))
def _(s: Surgery) -> None:
    _override(s, "greedy_actions", np.zeros_like)


@edit("learner's td_loss is another function")
def _(s: Surgery) -> None:
    s.trained.learner.td_loss = s.counting(  # type: ignore[method-assign]
        "td_loss", s.trained.learner.td_loss
    )


# Copies


@edit("deep copy", core=True, invisible=tuple(ADAPTERS))
def _(s: Surgery) -> None:
    s.trained = copy.deepcopy(s.trained)


@edit("pickled", invisible=tuple(ADAPTERS))
def _(s: Surgery) -> None:
    s.trained = pickle.loads(pickle.dumps(s.trained))


@edit("nothing", core=True, invisible=tuple(ADAPTERS))
def _(s: Surgery) -> None:
    pass


# What came of it


@dataclass
class Outcome:
    """What can be seen of an adapter after edits."""

    errors: dict[str, str]
    """The type of the error at each stage that failed."""
    messages: dict[str, str]
    calls: dict[str, int]
    actions: list[Any]
    """Greedy actions `(N,)` as in training and as predicted, directly after the edits and in the
    end."""
    values: list[Any]
    """Action values `(N, A)` of the network at the same moments."""
    online: list[torch.Tensor]
    target: list[torch.Tensor]
    state: list[dict[str, Any]]
    """Of the optimizer, for each parameter that it has."""
    counts: dict[str, int]
    moved: bool
    """Whether an online parameter is another than directly after the edits."""


def start(adapter: str, variant: str, execution: str, config: dict[str, Any]) -> Trained:
    """An adapter that was trained for a while."""
    if execution == "eager":  # it has nothing that a copy could lose, and is slower
        return copy.deepcopy(_start_eagerly(adapter, variant, tuple(config.items())))
    return _start(adapter, variant, execution, config)


@functools.cache
def _start_eagerly(adapter: str, variant: str, config: tuple[tuple[str, Any], ...]) -> Trained:
    return _start(adapter, variant, "eager", dict(config))


def _start(adapter: str, variant: str, execution: str, config: dict[str, Any]) -> Trained:
    changed = dataclasses.replace(CONFIG, variant=variant, **config)  # type: ignore[arg-type]
    trained = ADAPTERS[adapter](Chain, changed, 0, execution=execution)
    trained.learn(BEFORE)
    return trained


@torch.no_grad()
def level(trained: Trained, other: Trained) -> None:
    """Give an adapter the very numbers of another, in place, from which rounding has parted it."""
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for ours, theirs in zip(_tensors(trained), _tensors(other), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        pairs.append((ours, theirs))
    for ours, theirs in pairs:
        ours.copy_(theirs)


def _tensors(trained: Trained) -> Iterator[torch.Tensor]:
    yield from trained.q_net.parameters()
    yield from trained.target_net.parameters()
    for state in trained.optimizer.state.values():
        yield from state.values()


def operate(trained: Trained, names: Sequence[str]) -> Outcome:
    """Apply edits, then train on. Errors are noted, and what comes next is tried nevertheless."""
    errors: dict[str, str] = {}
    messages: dict[str, str] = {}
    actions: list[Any] = []
    values: list[Any] = []

    def attempt(stage: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:
            errors[stage] = type(error).__name__
            messages[stage] = str(error)
            return None

    def ask(moment: str) -> None:
        for name in ("greedy", "predict", "q_values"):
            torch.manual_seed(1)
            function = getattr(s.trained, name)
            answer = attempt(f"{name} {moment}", functools.partial(function, OBSERVATIONS))
            (values if name == "q_values" else actions).append(answer)

    with torch.random.fork_rng(devices=[]), ExitStack() as undo:
        torch.manual_seed(0)
        s = Surgery(trained, undo)
        for name in names:
            attempt(f"edit {name}", functools.partial(EDITS[name].apply, s))
        ask("after the edit")
        before = [parameter.detach().clone() for parameter in s.q_net.parameters()]
        torch.manual_seed(2)
        attempt("learn", lambda: s.trained.learn(AFTER[0]))
        for function in s.between:
            attempt("between", function)
        attempt("learn again", lambda: s.trained.learn(AFTER[1]))
        ask("in the end")
        online, target = (
            [parameter.detach().clone() for parameter in net.parameters()]
            for net in (s.q_net, s.trained.target_net)
        )
        optimizer = s.optimizer
        return Outcome(
            errors,
            messages,
            dict(s.calls),
            actions,
            values,
            online,
            target,
            [
                copy.deepcopy(optimizer.state[parameter]) if parameter in optimizer.state else {}
                for group in optimizer.param_groups
                for parameter in group["params"]
            ],
            dict(s.trained.learner.counts),
            len(before) != len(online) or not all(map(torch.equal, before, online)),
        )


def pair(
    adapter: str,
    variant: str,
    names: Sequence[str],
    executions: tuple[str, str] = ("eager", "auto"),
    config: dict[str, Any] | None = None,
) -> tuple[Outcome, Outcome]:
    """What comes of edits with two executions, from the same weights and on the same data."""
    if config is None:
        config = {key: value for name in names for key, value in EDITS[name].config.items()}
    first, second = (start(adapter, variant, execution, config) for execution in executions)
    level(second, first)
    return operate(first, names), operate(second, names)


CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}


def _named(name: str) -> Callable[[str], str]:
    return lambda message: f"{name}: {message}"


def check_same(expected: Outcome, actual: Outcome, *, settled: bool = True) -> None:
    """Raise `AssertionError` unless the outcomes are the same, but for rounding."""
    for name in ("errors", "calls", "counts"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert ours == theirs, f"{name}: {ours}, not {theirs}; {actual.messages}"
    for name in ("online", "target"):
        ours, theirs = getattr(actual, name), getattr(expected, name)
        assert len(ours) == len(theirs), f"{name}: {len(ours)} parameters, not {len(theirs)}"
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            torch.testing.assert_close(a, b, **CLOSE, msg=_named(f"parameter {i} of {name}"))
    assert len(actual.state) == len(expected.state), "state"
    for state, other in zip(actual.state, expected.state, strict=True):
        assert state.keys() == other.keys(), f"state: {[*state]}, not {[*other]}"
        for key in state:
            # Squares of gradients are small.
            close = {"rtol": 1e-3, "atol": 1e-6, "equal_nan": True}
            torch.testing.assert_close(state[key], other[key], **close, msg=_named(key))
    for outcome in (expected, actual):
        check_actions(outcome, settled=settled)
    if not settled:  # the same draws
        for a, b in zip(actual.actions, expected.actions, strict=True):
            np.testing.assert_array_equal(a, b)


def check_actions(outcome: Outcome, *, settled: bool) -> None:
    """Raise `AssertionError` unless greedy actions are those of the network's values."""
    greedy, predicted = outcome.actions[::2], outcome.actions[1::2]
    for values, *chosen in zip(outcome.values, greedy, predicted, strict=True):
        if values is None or not settled:
            continue
        best = np.sort(values, axis=1)
        clear = best[:, -1] - best[:, -2] > CLEAR
        for actions in chosen:
            if actions is None:  # an error, which is among the errors
                continue
            np.testing.assert_array_equal(actions[clear], values.argmax(1)[clear])


def differs(outcome: Outcome, other: Outcome) -> bool:
    """Whether an edit can be seen in an outcome, beside one without it."""
    try:
        check_same(other, outcome, settled=False)
    except AssertionError:
        return True
    return False
