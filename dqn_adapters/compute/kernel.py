"""DQN on small networks, compiled by numba: acting, the gradient of the TD loss, clipping and Adam.

On networks of this size an update in torch is nearly all overhead: some hundred small operations,
each of which costs more to call than to compute. Here it is one call, `update`; its two halves can
be called alone, where another optimiser steps or another network gives the gradient. They compute
what `learner.td_loss` and `torch.optim.Adam` define, and the tests hold them to that.

The functions work in torch's own memory: networks, gradients and the optimiser's state come as the
addresses of contiguous float32 tensors, so nothing is copied, and torch sees every change. The
caller keeps the tensors alive and has checked dtypes, shapes and layout.

No function may reorder or fuse floating-point operations (numba's `fastmath` is off), so it gives
the same numbers wherever the compiler inlines it: in the process that compiles, in one that loads
the cache, and inside another compiled function. Sums that are worth vector instructions are BLAS
calls. NaN and infinity spread as they do in torch.

A network is a *plan*: an int64 array of a row for every layer, in an order in which the source of a
layer comes before it; see the columns, and `plan.make_plan`. Its tensors are the weights and biases
of the layers in this order. A convolution is a dense layer that is used at several positions of an
image: what each of them reads is gathered first.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

from dqn_adapters.compute import layout
from dqn_adapters.compute.caching import compiled
from dqn_adapters.compute.layout import (
    ACTIONS,
    ACTIVATION,
    DISCOUNTS,
    ELU,
    END,
    GATHERS,
    GRAD_NORM,
    GRADIENT,
    INPUTS,
    INPUTS_AT,
    LOSS,
    NEXT_ACTION_MASKS,
    NEXT_OBSERVATIONS,
    OBSERVATIONS,
    ONLINE,
    OUTPUTS_AT,
    PIXELS,
    POSITIONS,
    RELU,
    REWARDS,
    ROWS,
    SIZE,
    SOURCE,
    TANH,
    TARGET,
    UNITS,
    VALUE,
    WEIGHTS,
)

TINY = np.float32(2.0**-100)
"""First moments below this are 0. Those of a unit that is never active would decay to subnormal
numbers, with which a processor computes many times as slowly, and stay there."""


def _pointer_to(element: Any) -> Any:
    """A compiled function from an address to a pointer to elements of a type."""

    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        def cast(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), cast  # type: ignore[no-untyped-call]

    return pointer


floats_at = _pointer_to(types.float32)
_ints = _pointer_to(types.int64)
_bools = _pointer_to(types.boolean)

_compiled = compiled(layout)
_inlined = njit(cache=True, error_model="numpy", inline="always")


@_inlined
def _outputs(plan: Any, k: int, work: Any, rows: int) -> Any:
    """The outputs `(rows * POSITIONS, UNITS)` of layer k in `work`."""
    places, units, start = rows * plan[k, POSITIONS], plan[k, UNITS], rows * plan[k, OUTPUTS_AT]
    return work[start : start + places * units].reshape((places, units))


@_inlined
def _inputs(plan: Any, k: int, observations: Any, work: Any, rows: int) -> Any:
    """The inputs `(rows * POSITIONS, INPUTS)` of layer k."""
    if plan[k, INPUTS_AT] < 0:
        return observations
    places, width, start = rows * plan[k, POSITIONS], plan[k, INPUTS], rows * plan[k, INPUTS_AT]
    return work[start : start + places * width].reshape((places, width))


@_compiled
def _gather(layer: Any, source: Any, x: Any, rows: int) -> None:
    """Copy to x what the positions of a layer read in as many images as there are rows."""
    images = source.reshape((rows, layer[SIZE]))
    x = x.reshape((rows, layer[POSITIONS] * layer[INPUTS]))
    for i in range(rows):
        for j in range(x.shape[1]):
            x[i, j] = images[i, np.uint64(layer[PIXELS + j])]


@_compiled
def _scatter(layer: Any, d_source: Any, d_x: Any, rows: int) -> None:
    """Add the gradient of what `_gather` copied to that of the images."""
    d_images = d_source.reshape((rows, layer[SIZE]))
    d_x = d_x.reshape((rows, layer[POSITIONS] * layer[INPUTS]))
    for i in range(rows):
        for j in range(d_x.shape[1]):
            d_images[i, np.uint64(layer[PIXELS + j])] += d_x[i, j]


@_compiled
def _activate(x: Any, bias: Any, activation: int) -> None:
    """Add the bias to `(N, U)` and apply an activation, in place; NaN stays NaN."""
    relu, zero = activation == RELU, np.float32(0.0)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            z = x[i, j] + bias[j]
            x[i, j] = zero if relu and z < 0 else z
    flat = x.reshape(x.size)
    if activation == TANH:
        for i in range(len(flat)):
            flat[i] = math.tanh(flat[i])
    elif activation == ELU:
        for i in range(len(flat)):
            flat[i] = math.expm1(flat[i]) if flat[i] < 0 else flat[i]


@_compiled
def _deactivate(d_x: Any, x: Any, activation: int) -> None:
    """From the gradient of outputs x `(N, U)` that of what was before the activation, in place."""
    d_flat, flat, one = d_x.reshape(d_x.size), x.reshape(x.size), np.float32(1.0)
    if activation == RELU:
        for i in range(len(flat)):
            d_flat[i] = np.float32(0.0) if flat[i] <= 0 else d_flat[i]
    elif activation == TANH:
        for i in range(len(flat)):
            d_flat[i] *= one - flat[i] * flat[i]
    elif activation == ELU:
        for i in range(len(flat)):
            d_flat[i] *= flat[i] + one if flat[i] <= 0 else one


@_compiled
def _forward(plan: Any, layers: Any, observations: Any, work: Any) -> Any:
    """Q-values `(B, A)` of observations `(B, F)`; `work` keeps the numbers of all layers, see
    `OUTPUTS_AT`."""
    rows, last = len(observations), len(plan) - 1
    for k in range(len(plan)):
        layer = plan[k]
        x = _inputs(plan, k, observations, work, rows)
        if layer[GATHERS]:
            source = observations
            if layer[SOURCE] >= 0:
                source = _outputs(plan, layer[SOURCE], work, rows)
            _gather(layer, source, x, rows)
        weight = carray(floats_at(layers[k, 0]), (layer[UNITS], layer[INPUTS]))
        out = _outputs(plan, k, work, rows)
        np.dot(x, weight.T, out)
        _activate(out, carray(floats_at(layers[k, 1]), (layer[UNITS],)), layer[ACTIVATION])
    q_values = _outputs(plan, last, work, rows)
    if plan[last, VALUE] >= 0:
        value = _outputs(plan, plan[last, VALUE], work, rows)
        for i in range(rows):
            shift = value[i, 0] - np.mean(q_values[i])
            for j in range(q_values.shape[1]):
                q_values[i, j] += shift
    return q_values


@_compiled
def _backward(
    plan: Any, layers: Any, gradient: Any, observations: Any, taken: Any, work: Any, d_work: Any
) -> None:
    """The gradient of all parameters.

    Args:
        layers: int64 `(L, 2)`, addresses of weights and biases.
        gradient: int64 `(L, 2)`, addresses of where their gradients go.
        observations: float32 `(B, F)`, which `_forward` was called with.
        taken: int64 `(B,)`, the only outputs of the last layer that have a gradient; or `(0,)`.
        work: Filled by `_forward`.
        d_work: Like `work`. The gradient of the last layer's outputs (in a dueling head, of those
            of both last layers) is in its place there.
    """
    rows, last = len(observations), len(plan) - 1
    reached = np.zeros(last + 1, np.bool_)  # the layers whose outputs have a gradient by now
    for k in range(last, -1, -1):
        layer = plan[k]
        units, width, source = layer[UNITS], layer[INPUTS], layer[SOURCE]
        weight = carray(floats_at(layers[k, 0]), (units, width))
        d_weight = carray(floats_at(gradient[k, 0]), (units, width))
        d_bias = carray(floats_at(gradient[k, 1]), (units,))
        x, d_out = _inputs(plan, k, observations, work, rows), _outputs(plan, k, d_work, rows)
        d_source = d_x = d_work[:0].reshape((0, 0))
        if source >= 0:
            d_source = _outputs(plan, source, d_work, rows)
            d_x = _inputs(plan, k, observations, d_work, rows)  # which may be `d_source`
            if reached[source] and not layer[GATHERS]:
                d_x = np.empty((rows, width), np.float32)
        if k == last and len(taken):
            _backward_of_taken(x, weight, taken, d_out, d_weight, d_bias, d_x)
        else:
            _deactivate(d_out, _outputs(plan, k, work, rows), layer[ACTIVATION])
            np.dot(d_out.T, x, d_weight)
            d_bias[:] = 0
            for i in range(len(d_out)):
                for j in range(units):
                    d_bias[j] += d_out[i, j]
            if source >= 0:
                np.dot(d_out, weight, d_x)
        if source >= 0:
            if layer[GATHERS]:
                if not reached[source]:
                    d_source[:] = 0
                _scatter(layer, d_source, d_x, rows)
            elif reached[source]:
                d_source += d_x
            reached[source] = True


@_compiled
def _backward_of_taken(
    x: Any, weight: Any, taken: Any, d_out: Any, d_weight: Any, d_bias: Any, d_x: Any
) -> None:
    """Gradients of the last layer, where one output in each row has one. (As products of matrices
    they take three times as long.)"""
    d_weight[:] = 0
    d_bias[:] = 0
    for i in range(len(taken)):
        action = taken[i]
        slope = d_out[i, action]
        d_bias[action] += slope
        for j in range(x.shape[1]):
            d_weight[action, j] += slope * x[i, j]
        for j in range(d_x.shape[1]):
            d_x[i, j] = slope * weight[action, j]


@_compiled
def _argmax(q_values: Any, legal: Any) -> int:
    """The first legal action of the highest value, where NaN is the highest, as in torch; 0 where
    no action is legal. All are, if `legal` is empty."""
    best, value = 0, np.float32(-np.inf)
    for a in range(len(q_values)):
        q = q_values[a] if len(legal) == 0 or legal[a] else np.float32(-np.inf)
        if q > value:
            best, value = a, q
        elif np.isnan(q):
            return a
    return best


@_compiled
def greedy(plan: Any, layers: Any, observations: Any, legal: Any, actions: Any) -> None:
    """argmax_a Q(s, a) over the legal actions.

    Args:
        plan: int64 `(L, PIXELS or more)`, the network.
        layers: int64 `(L, 2)`, addresses of its weights and biases.
        observations: float32 `(B, F)`, contiguous.
        legal: bool `(B, A)`, or `(0, A)`: all are.
        actions: int64 `(B,)`, where they go. (To return an array costs more than to fill one.)
    """
    rows = len(observations)
    work = np.empty(rows * plan[-1, END], np.float32)
    q_values = _forward(plan, layers, observations, work)
    for i in range(rows):
        actions[i] = _argmax(q_values[i], legal[i] if len(legal) else legal[:0, 0])


@_compiled
def td_gradient(
    plan: Any, tensors: Any, batch: Any, seen: Any, double: bool, mse: bool, delta: float
) -> bool:
    """The TD loss of a batch and its gradient; see `learner.td_loss`.

    Args:
        plan: int64 `(L, PIXELS or more)`, the network.
        tensors: int64 `(3 or more, 2 L)`, addresses of the weights and biases of the target
            network, of those that are learned (which may be the same), and of their gradients;
            see `TARGET`.
        batch: int64 `(7,)`, addresses: the fields of a `Transition` in their order; 0 is None.
        seen: float32 `(seen_size(B),)`, the report; see `LOSS`. `GRAD_NORM` is left as it is.
        double: The learned network selects the next action; else the target network does.
        mse: Squared errors; else Huber's loss.
        delta: TD error at which Huber's loss turns linear.

    Returns:
        False if the batch cannot be right (an action out of range, no legal next action where
        there is a next state); nothing is written then.
    """
    rows, last = (len(seen) - ROWS) // 3, len(plan) - 1
    actions, value = plan[last, UNITS], plan[last, VALUE]
    layers = tensors.reshape((len(tensors), len(plan), 2))
    s = carray(floats_at(batch[OBSERVATIONS]), (rows, plan[0, SIZE]))
    a = carray(_ints(batch[ACTIONS]), (rows,))
    rewards = carray(floats_at(batch[REWARDS]), (rows,))
    discounts = carray(floats_at(batch[DISCOUNTS]), (rows,))
    s_next = carray(floats_at(batch[NEXT_OBSERVATIONS]), (rows, plan[0, SIZE]))
    masks, weighted = batch[NEXT_ACTION_MASKS], batch[WEIGHTS] != 0
    legal = carray(_bools(masks), (rows if masks else 0, actions))
    weights = carray(floats_at(batch[WEIGHTS]), (rows if weighted else 0,))
    td_error, q_value, target = seen[ROWS:].reshape((3, rows))

    for i in range(rows):
        if a[i] < 0 or a[i] >= actions:
            return False
        if masks and discounts[i] != 0 and not legal[i].any():
            return False

    work = np.empty(rows * plan[last, END], np.float32)
    q_next = _forward(plan, layers[ONLINE if double else TARGET], s_next, work)
    selected = np.empty(rows, np.int64)
    for i in range(rows):
        selected[i] = _argmax(q_next[i], legal[i] if masks else legal[:0, 0])
    if double:
        q_next = _forward(plan, layers[TARGET], s_next, work)
    for i in range(rows):
        target[i] = rewards[i]
        if discounts[i] != 0:  # what lies behind a terminal state may be infinite or NaN
            target[i] += discounts[i] * q_next[i, selected[i]]

    q_values = _forward(plan, layers[ONLINE], s, work)
    d_work = np.empty(len(work), np.float32)
    d_last = _outputs(plan, last, d_work, rows)  # of the Q-values, or of the advantages
    d_last[:] = 0
    totals = np.zeros(4)
    for i in range(rows):
        q_value[i] = q_values[i, a[i]]
        td_error[i] = target[i] - q_value[i]
        size = abs(td_error[i])
        weight = weights[i] if weighted else np.float32(1.0)
        if mse:
            element, slope = size * size, -2 * td_error[i]
        elif size > delta:
            element, slope = delta * (size - delta / 2), -math.copysign(delta, td_error[i])
        else:
            element, slope = size * size / 2, -td_error[i]
        d_last[i, a[i]] = weight * slope / rows
        totals[0] += weight * element
        totals[1] += size
        totals[2] += q_value[i]
        totals[3] += target[i]
    for k in range(4):
        seen[LOSS + k] = totals[k] / rows
    if value >= 0:
        d_value = _outputs(plan, value, d_work, rows)
        for i in range(rows):
            d_value[i, 0] = d_last[i, a[i]]
            for j in range(actions):
                d_last[i, j] -= d_value[i, 0] / actions
    taken = a[:0] if value >= 0 else a
    _backward(plan, layers[ONLINE], layers[GRADIENT], s, taken, work, d_work)
    return True


@_compiled
def clipped_adam(
    counts: Any, tensors: Any, max_norm: float, lr: float, beta1: float, beta2: float, eps: float
) -> float:
    """Clip the gradient to a global L2 norm (as `clip_grad_norm_`), in place; a step of Adam
    (Kingma & Ba 2015; as `torch.optim.Adam`).

    Args:
        counts: int64 `(P,)`, elements of every parameter.
        tensors: int64 `(5, P)`, addresses of the parameters, their gradients, the first moments,
            the second moments, and the step counts.
        max_norm: Infinite: the gradient is not clipped.
        lr: Step size.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the denominator.

    Returns:
        The norm before clipping.
    """
    parameters, gradients, moments1, moments2, steps = tensors
    squares = 0.0
    for p in range(len(counts)):
        g = carray(floats_at(gradients[p]), (counts[p],))
        squares += np.dot(g, g)
    norm = math.sqrt(squares)
    ratio = max_norm / (norm + 1e-6) if max_norm < np.inf else 1.0
    scale = np.float32(1.0 if ratio > 1 else ratio)  # NaN stays NaN
    decay1, decay2 = np.float32(1 - beta1), np.float32(1 - beta2)
    keep2, small = np.float32(beta2), np.float32(eps)
    for p in range(len(counts)):
        x = carray(floats_at(parameters[p]), (counts[p],))
        g = carray(floats_at(gradients[p]), (counts[p],))
        m = carray(floats_at(moments1[p]), (counts[p],))
        v = carray(floats_at(moments2[p]), (counts[p],))
        step = carray(floats_at(steps[p]), (1,))
        step[0] += 1
        rate = np.float32(lr / (1 - beta1 ** step[0]))
        inverse_root = np.float32(1 / math.sqrt(1 - beta2 ** step[0]))
        for i in range(len(x)):
            g[i] *= scale
            first = m[i] + decay1 * (g[i] - m[i])
            m[i] = np.float32(0.0) if abs(first) < TINY else first
            v[i] = keep2 * v[i] + decay2 * g[i] * g[i]
            x[i] -= rate * m[i] / (np.sqrt(v[i]) * inverse_root + small)
    return norm


@_compiled
def update(
    plan: Any,
    counts: Any,
    tensors: Any,
    batch: Any,
    seen: Any,
    double: bool,
    mse: bool,
    delta: float,
    max_norm: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> bool:
    """`td_gradient` and then, if the loss is finite, `clipped_adam`.

    Args:
        tensors: int64 `(6, 2 L)`, addresses of the target network's parameters, and of what
            `clipped_adam` takes.

    Returns:
        As `td_gradient`.
    """
    if not td_gradient(plan, tensors, batch, seen, double, mse, delta):
        return False
    if np.isfinite(seen[LOSS]):
        seen[GRAD_NORM] = clipped_adam(counts, tensors[ONLINE:], max_norm, lr, beta1, beta2, eps)
    return True
