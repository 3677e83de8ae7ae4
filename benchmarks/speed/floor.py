"""The time that a step needs in any implementation, measured alone."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces

from dqn_adapters.config import DQNConfig
from speed.side import Floor

SECONDS = 0.05
"""How long a call is repeated in each of five measurements, about."""


def floor(q_net: Any, space: spaces.Space[Any], config: DQNConfig) -> Callable[[float], Floor]:
    """The floor of an environment step, as a function of the updates per step."""

    def measured(updates: float) -> Floor:
        store, gather = moves(space, config)
        parameters = [p.detach().numpy() for p in q_net.parameters()]
        copies = [np.empty_like(p) for p in parameters for _ in range(4)]

        def adam() -> None:  # parameters, gradients and two averages: as many bytes
            for k, copy in enumerate(copies):
                np.copyto(copy, parameters[k // 4])

        memory = alone(store) + updates * (alone(gather) + alone(adam))
        return Floor(updates * products(q_net, space, config.batch_size), memory)

    return measured


def alone(call: Callable[[], object]) -> float:
    """Microseconds of processor time of a call on one thread, repeated: the best of five."""
    import torch

    def seconds(times: int) -> float:
        start = time.thread_time()
        for _ in range(times):
            call()
        return time.thread_time() - start

    torch.set_num_threads(1)
    call()
    times = max(3, round(SECONDS / max(1e-9, seconds(3)) * 3))
    return 1e6 * min(seconds(times) for _ in range(5)) / times


def products(q_net: Any, space: spaces.Space[Any], batch_size: int) -> float:
    """Microseconds of the matrix products and convolutions of one update: forward on s and s', then
    the gradients of weights and (but for the first layer) of inputs. Matrix products are numpy's,
    which costs less around them than torch."""
    import torch

    layers: list[tuple[Any, Any, Any]] = []
    with torch.no_grad(), ExitStack() as stack:
        for module in q_net.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                hook = module.register_forward_hook(
                    lambda module, x, out: layers.append((module, x[0], torch.rand_like(out)))
                )
                stack.callback(hook.remove)
        q_net(torch.as_tensor(np.stack([space.sample() for _ in range(batch_size)])))
        calls = [
            call
            for k, (layer, x, d_out) in enumerate(layers)
            for call in (_linear if isinstance(layer, torch.nn.Linear) else _convolution)(
                layer, x, d_out, first=k == 0
            )
        ]

    @torch.no_grad()
    def update() -> None:
        for call in calls:
            call()

    return alone(update)


def _linear(layer: Any, x: Any, d_out: Any, *, first: bool) -> list[Callable[[], object]]:
    weight, x, d_out = layer.weight.numpy(), x.numpy(), d_out.numpy()
    pairs = [(x, weight.T), (x, weight.T), (d_out.T, x)] + [(d_out, weight)] * (not first)
    return [partial(np.matmul, a, b, out=a @ b) for a, b in pairs]


def _convolution(layer: Any, x: Any, d_out: Any, *, first: bool) -> list[Callable[[], object]]:
    from torch.nn import functional as F
    from torch.nn.grad import conv2d_input, conv2d_weight

    weight, stride = layer.weight, layer.stride
    forward = partial(F.conv2d, x, weight, None, stride)
    calls = [forward, forward, partial(conv2d_weight, x, weight.shape, d_out, stride)]
    return calls + [partial(conv2d_input, x.shape, weight, d_out, stride)] * (not first)


def moves(
    space: spaces.Space[Any], config: DQNConfig
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Storing one transition in a full replay buffer, and gathering a batch from it at random. A
    row of one array holds s, s', an action of 8 bytes, a reward and a discount of 4 bytes each."""
    assert isinstance(space, spaces.Box)
    width = 2 * int(np.prod(space.shape)) * space.dtype.itemsize + 16
    rows = np.zeros((config.buffer_size, width), np.uint8)
    row, batch = np.ones(width, np.uint8), np.empty((config.batch_size, width), np.uint8)
    rows[:] = row  # touched, so that its pages exist
    slots = np.random.default_rng(0).integers(len(rows), size=(64, config.batch_size))
    draws, places = itertools.cycle(slots), itertools.cycle(range(len(rows)))

    def store() -> None:
        rows[next(places)] = row

    def gather() -> None:
        np.take(rows, next(draws), axis=0, out=batch, mode="clip")

    return store, gather
