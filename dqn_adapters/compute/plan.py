"""Which networks the kernel takes, and how it sees them.

A network is a *plan*: an int64 array of a row for every layer (see `layout`), in an order in which
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
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import nn

from dqn_adapters.compute.layout import (
    ACTIVATION,
    ELU,
    END,
    GATHERS,
    INPUTS,
    INPUTS_AT,
    NONE,
    OUTPUTS_AT,
    PIXELS,
    POSITIONS,
    RELU,
    SIZE,
    SOURCE,
    TANH,
    UNITS,
    VALUE,
)
from dqn_adapters.networks import BinaryCNN, DuelingHead, QNetwork

OBSERVED = -1
"""The source of the first layer."""

MAX_UNITS = 1024
"""Networks with a wider layer are left to torch: there the products are all, and torch has the
better ones, on all cores."""

MAX_GATHERED = 50_000
"""Convolutions over larger images are left to torch: its own gather nothing."""

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
    """True if the network takes observations of any dtype, as the numbers they are."""

    flattens: bool = False
    """True if it flattens every observation first."""

    image: Image | None = None
    """The observations that a convolution reads, if they are of a fixed size."""

    channels_last: bool = False
    """True if these are `(height, width, channels)`."""


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
        """The shapes of weights and biases, in the order of the table."""
        return [
            tuple(parameter.shape)
            for layer in self.layers
            for parameter in layer._parameters.values()
            if parameter is not None
        ]

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether the network takes a batch of observations of this shape."""
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
        self._rows: list[Row] = []
        self._layers: list[nn.Module] = []
        self._images: list[Image] = []  # what the layers make
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
        image = self._stack.image if type(self._layers[0]) is nn.Conv2d else None
        if image is not None and self._stack.channels_last:
            image = (*image[1:], image[0])
        return Plan(
            table=make_plan(self._rows),
            layers=self._layers,
            features=first[SIZE],
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
        activation = known.get(type(module))
        if activation is None or (type(module) is nn.ELU and module.alpha != 1.0):
            raise NotTaken(f"{module} is not one of its layers or activations")
        if not self._rows or self._rows[-1][ACTIVATION] != NONE:
            raise NotTaken(f"{module} does not follow a layer")
        self._rows[-1][ACTIVATION] = activation

    def _append(self, layer: nn.Module, row: Row, makes: Image) -> None:
        self._rows.append(row)
        self._layers.append(layer)
        self._images.append(makes)

    def _add_linear(self, layer: nn.Linear, source: int | None = None) -> None:
        weight, _ = _tensors(layer)
        source = len(self._rows) - 1 if source is None else source
        units, inputs = weight.shape
        image = (inputs, 1, 1) if source == OBSERVED else self._images[source]
        if inputs != math.prod(image):
            raise NotTaken(f"{layer} does not take what the layer before it makes")
        if self._image not in (None, FLAT):
            raise NotTaken(f"{layer} reads images")
        if image[1:] == (1, 1):
            row = dense(source, inputs, units)
        else:  # torch flattens (C, H, W), the order of the weights of a kernel over the whole image
            row = convolution(source, image, image[1:], (1, 1), units)
        self._append(layer, row, (units, 1, 1))
        self._image = None

    def _add_convolution(self, layer: nn.Conv2d) -> None:
        weight, _ = _tensors(layer)
        plain = (
            layer.padding in ((0, 0), "valid")
            and layer.dilation == (1, 1)
            and layer.groups == 1
            and layer.padding_mode == "zeros"
        )
        units, channels, height, width = weight.shape
        if not plain or self._flattens:
            raise NotTaken(f"{layer} is not a convolution without padding over an image")
        image = self._image
        if image is None or image == FLAT:
            raise NotTaken(f"{layer} reads images of a size that is not known")
        if image[0] != channels or image[1] < height or image[2] < width:
            raise NotTaken(f"{layer} does not take what is before it")
        down, right = layer.stride
        last = bool(self._rows) or self._stack.channels_last
        row = convolution(
            *(len(self._rows) - 1, image, (height, width), (down, right), units),
            channels_last=last,
        )
        if len(row) > MAX_GATHERED:
            raise NotTaken(f"{layer} reads more than {MAX_GATHERED} numbers of an image")
        self._image = units, (image[1] - height) // down + 1, (image[2] - width) // right + 1
        self._append(layer, row, self._image)

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


Row = list[int]
"""A layer: its columns up to `VALUE`, then the pixels that it gathers."""


def dense(source: int, inputs: int, units: int, activation: int = NONE, *, value: int = -1) -> Row:
    """A dense layer of weights `(units, inputs)`.

    One that reads the images of a convolution is a `convolution` whose kernel covers the image:
    torch flattens images `(C, H, W)`, which is the order of such a kernel's weights.
    """
    return [source, inputs, 1, inputs, units, activation, value]


def convolution(
    source: int,
    image: tuple[int, int, int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    units: int,
    activation: int = NONE,
    *,
    channels_last: bool = True,
    value: int = -1,
) -> Row:
    """A convolution of weights `(units, C, *kernel_size)`, without padding.

    Args:
        source: The layer that makes the images; -1: they are the observations.
        image: Their shape `(C, H, W)`.
        kernel_size: Height and width.
        stride: Downwards and to the right.
        units: Channels that it makes.
        activation: Behind it.
        channels_last: The numbers come in the order `(H, W, C)`, as those of all layers do.
        value: See `layout.VALUE`.
    """
    c, h, w = image
    places = np.arange(c * h * w).reshape((h, w, c) if channels_last else image)
    if channels_last:
        places = places.transpose(2, 0, 1)
    windows = sliding_window_view(places, kernel_size, (1, 2))[:, :: stride[0], :: stride[1]]
    pixels = windows.transpose(1, 2, 0, 3, 4)  # (positions down, right, C, *kernel_size)
    positions, inputs = math.prod(pixels.shape[:2]), math.prod(pixels.shape[2:])
    return [source, c * h * w, positions, inputs, units, activation, value, *pixels.flat]


def make_plan(rows: list[Row]) -> NDArray[np.int64]:
    """The plan of a network of these layers.

    Raises:
        ValueError: a layer reads more or fewer numbers than its source makes.
    """
    head = VALUE + 1
    plan = np.zeros((len(rows), PIXELS + max(len(row) - head for row in rows)), np.int64)
    end = 0
    for layer, row in zip(plan, rows, strict=True):
        pixels = row[head:]
        layer[:head] = row[:head]
        layer[PIXELS : PIXELS + len(pixels)] = pixels
        source, size = layer[SOURCE], layer[SIZE]
        made = size if source < 0 else math.prod(plan[source, [POSITIONS, UNITS]])
        if size != made:
            raise ValueError(f"a layer reads {size} numbers of layer {source}, which makes {made}")
        layer[OUTPUTS_AT] = end
        end += layer[POSITIONS] * layer[UNITS]
        layer[INPUTS_AT] = -1 if source < 0 else plan[source, OUTPUTS_AT]
        if pixels:
            layer[GATHERS], layer[INPUTS_AT] = 1, end
            end += layer[POSITIONS] * layer[INPUTS]
        layer[END] = end
    return plan


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
