"""Which networks the kernel takes, and how it sees them.

A network is a *plan*: an int64 array `(L, COLUMNS)` of a row for every layer, in an order in which
the source of a layer comes before it. Its tensors are the weights and biases of the layers in this
order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import nn

from dqn_adapters.networks import BinaryCNN, DuelingHead, QNetwork

# Columns of a plan.
SOURCE = 0
"""The layer whose outputs are read; `OBSERVED` for the observations."""
CHANNELS, HEIGHT, WIDTH = 1, 2, 3
"""The image that is read; that of a dense layer has one pixel."""
KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W = 4, 5, 6, 7
CHANNELS_LAST = 8
"""Whether the image is read as `(H, W, C)`, not `(C, H, W)`. All outputs are channels-last."""
POSITIONS = 9
"""Places of the kernel in the image."""
INPUTS, UNITS = 10, 11
"""Numbers that a place reads (`C * KERNEL_H * KERNEL_W`) and numbers that it makes."""
ACTIVATION = 12
"""Behind the layer: `NONE`, `RELU`, `TANH`, `ELU` (with alpha 1)."""
VALUE = 13
"""In the last layer: the layer that makes V in a dueling head, where this one makes A; else -1."""
OUTPUTS_AT, INPUTS_AT, END = 14, 15, 16
"""Where in the numbers that a pass through the network keeps, counted per row of the batch, the
layer's outputs begin, its inputs (-1: the observations are its inputs), and where both end."""
COLUMNS = 17

NONE, RELU, TANH, ELU = range(4)
OBSERVED = -1

MAX_UNITS = 1024
"""Networks with a wider layer are left to torch: there the products are all, and torch has the
better ones, on all cores."""

Image = tuple[int, int, int]
"""Channels, height, width."""

FLAT: Image = (0, 0, 0)
"""An image that was flattened."""


@dataclass(frozen=True)
class Stack:
    """The part of a network that maps its observations to action values.

    The modules around it do nothing but convert and flatten observations.
    """

    modules: Sequence[nn.Module]
    """Called one after the other."""

    converts: bool = False
    """Whether the network takes observations of any dtype, as the numbers they are."""

    flattens: bool = False
    """Whether it flattens every observation first."""

    image: Image | None = None
    """The observations that a convolution reads, if they are of a fixed size."""

    channels_last: bool = False
    """Whether these are `(height, width, channels)`."""


AsStack = Callable[[nn.Module], Stack | None]
"""Sees the stack in a network; None where the network is something else. It answers for the type of
every module around the stack."""


@dataclass(frozen=True)
class Plan:
    """A network as the kernel sees it."""

    table: NDArray[np.int64]
    layers: Sequence[nn.Module]
    """The modules that have the parameters, in the order of the table."""

    features: int
    """Numbers in an observation."""

    num_actions: int
    converts: bool
    flattens: bool
    image: tuple[int, ...] | None
    """The shape of an observation where it must be an image."""

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the weights and biases, in the order of the table."""
        return [
            tuple(parameter.shape)
            for layer in self.layers
            for parameter in layer._parameters.values()
            if parameter is not None
        ]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether the network takes a batch of observations of this shape."""
        if self.image is not None:
            return tuple(shape[1:]) == self.image
        if self.flattens:
            return len(shape) > 1 and math.prod(shape[1:]) == self.features
        return len(shape) == 2 and shape[1] == self.features


def as_stack(network: nn.Module, space: spaces.Space[Any] | None = None) -> Stack | None:
    """The stack in a network of the core, or in a `torch.nn.Sequential`; see `AsStack`.

    Args:
        network: The network.
        space: The space of one observation; a `Sequential` of convolutions needs it.
    """
    if type(network) is nn.Sequential:
        is_image = isinstance(space, spaces.Box) and len(space.shape) == 3
        return Stack([network], image=space.shape if is_image else None)  # type: ignore[union-attr,arg-type]
    if type(network) is not QNetwork:
        return None
    if network.encoder.only_flattens:
        return Stack([network.head], converts=True, flattens=True)
    cnn = network.encoder.only_convolution
    if type(cnn) is not BinaryCNN:
        return None
    return Stack(
        [cnn.layers, network.head], converts=True, image=cnn.image, channels_last=cnn.channels_last
    )


class NotTaken(Exception):
    """The network is not one for the kernel; the message says why."""


def plan_of(network: nn.Module, as_stack: AsStack) -> Plan:
    """See a network as the kernel does.

    Raises:
        NotTaken: it cannot.
    """
    stack = as_stack(network)
    if stack is None:
        raise NotTaken(
            f"{type(network).__name__} is not a plain stack of layers over the numbers of an "
            "observation"
        )
    return _Builder(stack).plan()


class _Builder:
    """Makes a plan of a stack, module by module."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._rows: list[list[int]] = []
        self._layers: list[nn.Module] = []
        self._image: Image | None = stack.image  # what the next layer reads, while it is one
        self._flattens = stack.flattens

    def plan(self) -> Plan:
        leaves = list(_leaves(self._stack.modules))
        for index, module in enumerate(leaves):
            if type(module) is DuelingHead:
                if index != len(leaves) - 1:
                    raise NotTaken("a dueling head is not its last module")
                self._add_dueling(module)
            else:
                self._add(module)
        if not self._rows:
            raise NotTaken("it has no layer")
        first, last = self._rows[0], self._rows[-1]
        if last[ACTIVATION] != NONE or last[POSITIONS] != 1:
            raise NotTaken("its last module is not a linear layer")
        if max(row[UNITS] for row in self._rows) > MAX_UNITS:
            raise NotTaken(f"a layer has more than {MAX_UNITS} units")
        image: tuple[int, ...] | None = None
        if type(self._layers[0]) is nn.Conv2d:
            image = tuple(first[CHANNELS : WIDTH + 1])
            if self._stack.channels_last:
                image = (*image[1:], image[0])
        return Plan(
            table=make_table(self._rows),
            layers=self._layers,
            features=math.prod(first[CHANNELS : WIDTH + 1]),
            num_actions=last[UNITS],
            converts=self._stack.converts,
            flattens=self._flattens,
            image=image,
        )

    def _add(self, module: nn.Module) -> None:
        if type(module) is nn.Linear:
            self._add_linear(module)
        elif type(module) is nn.Conv2d:
            self._add_convolution(module)
        elif type(module) is nn.Flatten:
            if (module.start_dim, module.end_dim) != (1, -1):
                raise NotTaken(f"{module} does not flatten every observation")
            if not self._rows:
                self._flattens, self._image = True, None
            elif self._image is not None:
                self._image = FLAT
        else:
            self._activate(module)

    def _activate(self, module: nn.Module) -> None:
        known = {nn.ReLU: RELU, nn.Tanh: TANH, nn.ELU: ELU}
        activation = known.get(type(module))  # type: ignore[call-overload]
        if activation is None or (type(module) is nn.ELU and module.alpha != 1.0):
            raise NotTaken(f"{module} is not one of its layers or activations")
        if not self._rows or self._rows[-1][ACTIVATION] != NONE:
            raise NotTaken(f"{module} does not follow a layer")
        self._rows[-1][ACTIVATION] = activation

    def _add_linear(
        self, layer: nn.Linear, source: int | None = None, value: int = -1
    ) -> None:
        weight, _ = _tensors(layer)
        source = len(self._rows) - 1 if source is None else source
        units, inputs = weight.shape
        if source != OBSERVED and inputs != _outputs(self._rows[source]):
            raise NotTaken(f"{layer} does not take what the layer before it makes")
        if self._image not in (None, FLAT):
            raise NotTaken(f"{layer} reads images")
        if source == OBSERVED or self._rows[source][POSITIONS] == 1:
            self._rows.append([source, inputs, *[1] * 6, 0, 1, inputs, units, NONE, value])
        else:  # torch flattens (C, H, W), the order of the weights of a kernel over the whole image
            image = _output_image(self._rows[source])
            self._rows.append(_convolution(source, image, image[1:], (1, 1), units, False, value))
        self._image = None
        self._layers.append(layer)

    def _add_convolution(self, layer: nn.Conv2d) -> None:
        weight, _ = _tensors(layer)
        plain = (
            layer.padding in ((0, 0), "valid")
            and layer.dilation == (1, 1)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
        )
        units, channels, *kernel = weight.shape
        if not plain or self._flattens:
            raise NotTaken(f"{layer} is not a convolution without padding over an image")
        image = self._image
        if image in (None, FLAT):
            raise NotTaken(f"{layer} reads images of a size that is not known")
        if image[0] != channels or any(n < k for n, k in zip(image[1:], kernel, strict=True)):
            raise NotTaken(f"{layer} does not take what is before it")
        last = self._stack.channels_last if not self._rows else True
        stride = layer.stride
        row = _convolution(len(self._rows) - 1, image, kernel, stride, units, not last)
        self._rows.append(row)
        self._layers.append(layer)
        self._image = _output_image(row)

    def _add_dueling(self, head: DuelingHead) -> None:
        source, makers = len(self._rows) - 1, []
        if source >= 0 and self._rows[source][ACTIVATION] == NONE:
            raise NotTaken("its dueling head does not follow an activation")
        image = self._image
        for branch in (head.value, head.advantage):
            self._image, before = image, source
            for module in _leaves([branch]):
                if type(module) is nn.Linear:
                    self._add_linear(module, before)
                    before = len(self._rows) - 1
                elif before == source:
                    raise NotTaken(f"{module} does not follow a layer")
                else:
                    self._activate(module)
            if before == source or self._rows[before][ACTIVATION] != NONE:
                raise NotTaken("a branch of its dueling head does not end in a linear layer")
            makers.append(before)
        if self._rows[makers[0]][UNITS] != 1:
            raise NotTaken("its dueling head has more than one value")
        self._rows[makers[1]][VALUE] = makers[0]


def make_table(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """The table of a plan, from its rows up to `VALUE`."""
    table = np.zeros((len(rows), COLUMNS), np.int64)
    end = 0
    for layer, row in zip(table, rows, strict=True):
        layer[: len(row)] = row
        layer[OUTPUTS_AT] = end
        end += layer[POSITIONS] * layer[UNITS]
        if layer[HEIGHT] * layer[WIDTH] > 1:  # its numbers are gathered from an image
            layer[INPUTS_AT] = end
            end += layer[POSITIONS] * layer[INPUTS]
        else:
            source = layer[SOURCE]
            layer[INPUTS_AT] = table[source, OUTPUTS_AT] if source != OBSERVED else -1
        layer[END] = end
    return table


def _convolution(
    source: int,
    image: Image,
    kernel: Sequence[int],
    stride: Sequence[int],
    units: int,
    channels_first: bool,
    value: int = -1,
) -> list[int]:
    channels, *size = image
    places = [(n - k) // s + 1 for n, k, s in zip(size, kernel, stride, strict=True)]
    geometry = [*image, *kernel, *stride, int(not channels_first), math.prod(places)]
    return [source, *geometry, channels * math.prod(kernel), units, NONE, value]


def _output_image(row: Sequence[int]) -> Image:
    height = (row[HEIGHT] - row[KERNEL_H]) // row[STRIDE_H] + 1
    width = (row[WIDTH] - row[KERNEL_W]) // row[STRIDE_W] + 1
    return row[UNITS], height, width


def _outputs(row: Sequence[int]) -> int:
    return row[UNITS] * row[POSITIONS]


def _leaves(modules: Sequence[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if type(module) is nn.Sequential:
            yield from _leaves([*module])
        else:
            yield module


def _tensors(layer: nn.Module) -> list[Any]:
    """Weight and bias of a layer, float32 on the CPU."""
    parameters = layer._parameters
    if list(parameters) != ["weight", "bias"] or parameters["bias"] is None:
        raise NotTaken(f"{layer} does not have just a weight and a bias")
    for name, parameter in parameters.items():
        if type(parameter) is not nn.Parameter or parameter.dtype != torch.float32:
            raise NotTaken(f"the {name} of {layer} is not a parameter of float32")
        if parameter.device.type != "cpu" or not parameter.is_contiguous():
            raise NotTaken(f"the {name} of {layer} is not contiguous memory of the CPU")
    weight, bias = parameters["weight"], parameters["bias"]
    assert weight is not None
    if weight.ndim != (2 if type(layer) is nn.Linear else 4) or bias.shape != weight.shape[:1]:
        raise NotTaken(f"the weight and the bias of {layer} do not fit together")
    return [weight, bias]
