"""DQN on a ReLU MLP, compiled by numba: acting, the gradient of the TD loss, clipping and Adam.

On networks of this size an update in torch is nearly all overhead: some hundred small operations,
each of which costs more to call than to compute. Here it is one call, `update`; its two halves can
be called alone, where another optimiser steps or another network gives the gradient. They compute
what `learner.td_loss` and `torch.optim.Adam` define, and the tests hold them to that.

The functions work in torch's own memory: networks, gradients and the optimiser's state come as the
addresses of contiguous float32 tensors, so nothing is copied, and torch sees every change. Whoever
calls them (see `execution`) keeps the tensors alive and has checked dtypes, shapes and layout.

`_MATH` lets the compiler reorder sums and fuse multiply-adds; it does not assume that NaN and
infinity are absent, which spread here as they do in torch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic

_MATH = {"reassoc", "contract"}
# Functions that others call are inlined: a process that compiles keeps them as functions of their
# own beside what it stores in the cache, and their sums may be in another order there.


def _pointer_to(element: Any) -> Any:
    """A compiled function from an address to a pointer to elements of a type."""

    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        def cast(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(types.int64), cast  # type: ignore[no-untyped-call]

    return pointer


_floats = _pointer_to(types.float32)
_ints = _pointer_to(types.int64)
_bools = _pointer_to(types.boolean)


@njit(cache=True, fastmath=_MATH, error_model="numpy", inline="always")
def _forward(sizes: Any, layers: Any, inputs: Any, work: Any) -> Any:
    """Q-values `(B, A)` of inputs `(B, sizes[0])`; the outputs of all layers stay in `work`, one
    behind the other."""
    rows, last = len(inputs), len(layers) - 1
    x, at = inputs, 0
    for k in range(len(layers)):
        wide = sizes[k + 1]
        weight = carray(_floats(layers[k, 0]), (wide, sizes[k]))
        bias = carray(_floats(layers[k, 1]), (wide,))
        out = work[at : at + rows * wide].reshape((rows, wide))
        np.dot(x, weight.T, out)
        for i in range(rows):
            for j in range(wide):
                z = out[i, j] + bias[j]
                out[i, j] = np.float32(0.0) if k < last and z < 0 else z  # NaN stays NaN
        x, at = out, at + rows * wide
    return x


@njit(cache=True, error_model="numpy")
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


@njit(cache=True, error_model="numpy")
def greedy(sizes: Any, layers: Any, inputs: Any, legal: Any, actions: Any) -> None:
    """argmax_a Q(s, a) over the legal actions.

    Args:
        sizes: int64 `(L + 1,)`, inputs and units of the L layers.
        layers: int64 `(L, 2)`, addresses of weights and biases.
        inputs: float32 `(B, sizes[0])`, contiguous.
        legal: bool `(B, A)`, or `(0, A)`: all are.
        actions: int64 `(B,)`, where they go. (To return an array costs more than to fill one.)
    """
    rows = len(inputs)
    q_values = _forward(sizes, layers, inputs, np.empty(rows * sizes[1:].sum(), np.float32))
    for i in range(rows):
        actions[i] = _argmax(q_values[i], legal[i] if len(legal) else legal[:0, 0])


@njit(cache=True, fastmath=_MATH, error_model="numpy", inline="always")
def td_gradient(
    sizes: Any, tensors: Any, batch: Any, seen: Any, double: bool, mse: bool, delta: float
) -> bool:
    """The TD loss of a batch and its gradient; see `learner.td_loss`.

    Args:
        sizes: int64 `(L + 1,)`, inputs and units of the L layers.
        tensors: int64 `(3 or more, 2 L)`, addresses of the weights and biases of the target
            network, of those that are learned (which may be the same), and of their gradients.
        batch: int64 `(7,)`, addresses: the fields of a `Transition` in their order; 0 is None.
        seen: float32 `(5 + 3 B,)`, where it goes what the update saw: loss, means of the absolute
            TD errors, of predictions and targets, a place for the gradient's norm; then the B TD
            errors, predictions and targets.
        double: The learned network selects the next action; else the target network does.
        mse: Squared errors; else Huber's loss.
        delta: Of Huber's loss.

    Returns:
        False if the batch cannot be right (an action out of range, no legal next action where
        there is a next state); nothing is written then.
    """
    rows, actions, last = (len(seen) - 5) // 3, sizes[-1], len(sizes) - 2
    target_net, online, gradient = tensors[:3].reshape((3, last + 1, 2))
    s = carray(_floats(batch[0]), (rows, sizes[0]))
    a = carray(_ints(batch[1]), (rows,))
    rewards = carray(_floats(batch[2]), (rows,))
    discounts = carray(_floats(batch[3]), (rows,))
    s_next = carray(_floats(batch[4]), (rows, sizes[0]))
    legal = carray(_bools(batch[5]), (rows if batch[5] else 0, actions))
    weights = carray(_floats(batch[6]), (rows if batch[6] else 0,))
    td_error, q_value, target = seen[5:].reshape((3, rows))

    for i in range(rows):
        if a[i] < 0 or a[i] >= actions:
            return False
        if len(legal) and discounts[i] != 0 and not legal[i].any():
            return False

    work = np.empty(rows * sizes[1:].sum(), np.float32)
    q_next = _forward(sizes, online if double else target_net, s_next, work)
    selected = np.empty(rows, np.int64)
    for i in range(rows):
        selected[i] = _argmax(q_next[i], legal[i] if len(legal) else legal[:0, 0])
    if double:
        q_next = _forward(sizes, target_net, s_next, work)
    for i in range(rows):
        target[i] = rewards[i]
        if discounts[i] != 0:  # what lies behind a terminal state may be infinite or NaN
            target[i] += discounts[i] * q_next[i, selected[i]]

    q_values = _forward(sizes, online, s, work)
    slopes = np.empty(rows, np.float32)  # of the loss, in the predictions
    totals = np.zeros(4)
    for i in range(rows):
        q_value[i] = q_values[i, a[i]]
        td_error[i] = target[i] - q_value[i]
        size = abs(td_error[i])
        weight = weights[i] if len(weights) else np.float32(1.0)
        if mse:
            element, slope = size * size, -2 * td_error[i]
        elif size > delta:
            element, slope = delta * (size - delta / 2), -math.copysign(delta, td_error[i])
        else:
            element, slope = size * size / 2, -td_error[i]
        slopes[i] = weight * slope / rows
        totals[0] += weight * element
        totals[1] += size
        totals[2] += q_value[i]
        totals[3] += target[i]
    for k in range(4):
        seen[k] = totals[k] / rows

    # Backwards; `end` is where in `work` the outputs of the layer below end. In the last layer the
    # actions that were not taken have no gradient.
    end = len(work) - rows * actions
    d_out = np.empty((0, 0), np.float32)
    for k in range(last, -1, -1):
        wide, narrow = sizes[k + 1], sizes[k]
        x = s
        if k > 0:
            x = work[end - rows * narrow : end].reshape((rows, narrow))
            end -= rows * narrow
        weight_k = carray(_floats(online[k, 0]), (wide, narrow))
        d_weight = carray(_floats(gradient[k, 0]), (wide, narrow))
        d_bias = carray(_floats(gradient[k, 1]), (wide,))
        d_x = np.empty((rows, narrow if k else 0), np.float32)
        d_bias[:] = 0
        if k == last:
            d_weight[:] = 0
            for i in range(rows):
                slope, taken = slopes[i], a[i]
                d_bias[taken] += slope
                for j in range(narrow):
                    d_weight[taken, j] += slope * x[i, j]
                for j in range(d_x.shape[1]):
                    d_x[i, j] = slope * weight_k[taken, j]
        else:
            for i in range(rows):
                for j in range(wide):
                    d_bias[j] += d_out[i, j]
            np.dot(d_out.T, x, d_weight)
            if k > 0:
                np.dot(d_out, weight_k, d_x)
        for i in range(rows):
            for j in range(d_x.shape[1]):
                d_x[i, j] = np.float32(0.0) if x[i, j] <= 0 else d_x[i, j]
        d_out = d_x
    return True


@njit(cache=True, fastmath=_MATH, error_model="numpy", inline="always")
def clipped_adam(
    counts: Any,
    tensors: Any,
    max_norm: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
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
    squares = 0.0
    for p in range(len(counts)):
        g = carray(_floats(tensors[1, p]), (counts[p],))
        part = np.float32(0.0)
        for i in range(len(g)):
            part += g[i] * g[i]
        squares += float(part)
    norm = math.sqrt(squares)
    ratio = max_norm / (norm + 1e-6) if max_norm < np.inf else 1.0
    scale = np.float32(1.0 if ratio > 1 else ratio)  # NaN stays NaN
    decay1, decay2 = np.float32(1 - beta1), np.float32(1 - beta2)
    keep2 = np.float32(beta2)
    for p in range(len(counts)):
        x = carray(_floats(tensors[0, p]), (counts[p],))
        g = carray(_floats(tensors[1, p]), (counts[p],))
        m = carray(_floats(tensors[2, p]), (counts[p],))
        v = carray(_floats(tensors[3, p]), (counts[p],))
        step = carray(_floats(tensors[4, p]), (1,))
        step[0] += 1
        rate = np.float32(lr / (1 - beta1 ** step[0]))
        root = np.float32(math.sqrt(1 - beta2 ** step[0]))
        small = np.float32(eps)
        for i in range(len(x)):
            g[i] *= scale
            m[i] += decay1 * (g[i] - m[i])
            v[i] = keep2 * v[i] + decay2 * g[i] * g[i]
            x[i] -= rate * m[i] / (np.sqrt(v[i]) / root + small)
    return norm


@njit(cache=True, fastmath=_MATH, error_model="numpy")
def update(
    sizes: Any,
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
    if not td_gradient(sizes, tensors, batch, seen, double, mse, delta):
        return False
    if np.isfinite(seen[0]):
        seen[4] = clipped_adam(counts, tensors[1:], max_norm, lr, beta1, beta2, eps)
    return True
