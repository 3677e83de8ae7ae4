"""Networks as the plans that the compiled `kernel` computes by; see the columns there."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dqn_adapters.compute import kernel

Row = list[int]
"""A layer: its columns up to `VALUE`, then the pixels that it gathers."""


def dense(
    source: int, inputs: int, units: int, activation: int = kernel.NONE, *, value: int = -1
) -> Row:
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
    activation: int = kernel.NONE,
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
        value: See `kernel.VALUE`.
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
    head = kernel.VALUE + 1
    plan = np.zeros((len(rows), kernel.PIXELS + max(len(row) - head for row in rows)), np.int64)
    end = 0
    for layer, row in zip(plan, rows, strict=True):
        pixels = row[head:]
        layer[:head] = row[:head]
        layer[kernel.PIXELS : kernel.PIXELS + len(pixels)] = pixels
        source, size = layer[kernel.SOURCE], layer[kernel.SIZE]
        made = size if source < 0 else math.prod(plan[source, [kernel.POSITIONS, kernel.UNITS]])
        if size != made:
            raise ValueError(f"a layer reads {size} numbers of layer {source}, which makes {made}")
        layer[kernel.OUTPUTS_AT] = end
        end += layer[kernel.POSITIONS] * layer[kernel.UNITS]
        layer[kernel.INPUTS_AT] = -1 if source < 0 else plan[source, kernel.OUTPUTS_AT]
        if pixels:
            layer[kernel.GATHERS], layer[kernel.INPUTS_AT] = 1, end
            end += layer[kernel.POSITIONS] * layer[kernel.INPUTS]
        layer[kernel.END] = end
    return plan
