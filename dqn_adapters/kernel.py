"""DQN on a ReLU MLP, compiled by numba: acting, the gradient of the TD loss, clipping and Adam.

On networks of this size an update in torch is nearly all overhead: some hundred small operations,
each of which costs more to call than to compute. Here the gradient is one call and the optimiser's
step another. They compute what `learner.td_loss` and `torch.optim.Adam` define, and the tests hold
them to that.

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
from numpy.typing import NDArray

_MATH = {"reassoc", "contract"}


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


@njit(cache=True, fastmath=_MATH, error_model="numpy")
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
def greedy(sizes: Any, layers: Any, inputs: Any, legal: Any) -> NDArray[np.int64]:
    """argmax_a Q(s, a) over the legal actions, `(B,)`.

    Args:
        sizes: int64 `(L + 1,)`, inputs and units of the L layers.
        layers: int64 `(L, 2)`, addresses of weights and biases.
        inputs: float32 `(B, sizes[0])`, contiguous.
        legal: bool `(B, A)`, or `(0, A)`: all are.
    """
    rows = len(inputs)
    q_values = _forward(sizes, layers, inputs, np.empty(rows * sizes[1:].sum(), np.float32))
    actions = np.empty(rows, np.int64)
    for i in range(rows):
        actions[i] = _argmax(q_values[i], legal[i] if len(legal) else legal[:0, 0])
    return actions


@njit(cache=True, fastmath=_MATH, error_model="numpy")
def td_gradient(
    sizes: Any,
    online: Any,
    selector: Any,
    value: Any,
    gradient: Any,
    batch: Any,
    rows: int,
    loss_address: int,
    rows_address: int,
    mse: bool,
    delta: float,
) -> bool:
    """The TD loss of a batch and its gradient; see `learner.td_loss`.

    Args:
        sizes: int64 `(L + 1,)`, inputs and units of the L layers.
        online: int64 `(L, 2)`, addresses of the weights and biases that are learned.
        selector: Likewise, of the network that selects the next action.
        value: Likewise, of the network that evaluates it; may be the same as `selector`.
        gradient: Likewise, where the gradient goes.
        batch: int64 `(7,)`, addresses: the fields of a `Transition` in their order; 0 is None.
        rows: B.
        loss_address: Where the loss goes.
        rows_address: Where `(3, B)` go: TD errors, predictions, targets.
        mse: Squared errors; else Huber's loss.
        delta: Of Huber's loss.

    Returns:
        False if the batch cannot be right (an action out of range, no legal next action where
        there is a next state); nothing is written then.
    """
    actions = sizes[-1]
    s = carray(_floats(batch[0]), (rows, sizes[0]))
    a = carray(_ints(batch[1]), (rows,))
    rewards = carray(_floats(batch[2]), (rows,))
    discounts = carray(_floats(batch[3]), (rows,))
    s_next = carray(_floats(batch[4]), (rows, sizes[0]))
    legal = carray(_bools(batch[5]), (rows if batch[5] else 0, actions))
    weights = carray(_floats(batch[6]), (rows if batch[6] else 0,))
    loss = carray(_floats(loss_address), (1,))
    td_error, q_value, target = carray(_floats(rows_address), (3, rows))

    for i in range(rows):
        if a[i] < 0 or a[i] >= actions:
            return False
        if len(legal) and discounts[i] != 0 and not legal[i].any():
            return False

    work = np.empty(rows * sizes[1:].sum(), np.float32)
    q_next = _forward(sizes, selector, s_next, work)
    selected = np.empty(rows, np.int64)
    for i in range(rows):
        selected[i] = _argmax(q_next[i], legal[i] if len(legal) else legal[:0, 0])
    if value[0, 0] != selector[0, 0]:
        q_next = _forward(sizes, value, s_next, work)
    for i in range(rows):
        target[i] = rewards[i]
        if discounts[i] != 0:  # what lies behind a terminal state may be infinite or NaN
            target[i] += discounts[i] * q_next[i, selected[i]]

    q_values = _forward(sizes, online, s, work)
    # From here on `work` holds the gradients with respect to the layers' outputs, one by one.
    d_out = np.zeros((rows, actions), np.float32)
    total = 0.0
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
        total += weight * element
        d_out[i, a[i]] = weight * slope / rows
    loss[0] = total / rows

    end = len(work) - rows * actions  # where the outputs of the layer below end
    for k in range(len(online) - 1, -1, -1):
        wide, narrow = sizes[k + 1], sizes[k]
        x = s
        if k > 0:
            x = work[end - rows * narrow : end].reshape((rows, narrow))
            end -= rows * narrow
        d_bias = carray(_floats(gradient[k, 1]), (wide,))
        d_bias[:] = 0
        for i in range(rows):
            for j in range(wide):
                d_bias[j] += d_out[i, j]
        np.dot(d_out.T, x, carray(_floats(gradient[k, 0]), (wide, narrow)))
        if k > 0:
            d_x = np.empty((rows, narrow), np.float32)
            np.dot(d_out, carray(_floats(online[k, 0]), (wide, narrow)), d_x)
            for i in range(rows):
                for j in range(narrow):
                    if x[i, j] <= 0:
                        d_x[i, j] = 0
            d_out = d_x
    return True


@njit(cache=True, fastmath=_MATH, error_model="numpy")
def clipped_adam(
    sizes: Any,
    parameters: Any,
    gradient: Any,
    moments: Any,
    norm_address: int,
    max_norm: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Clip the gradient to a global L2 norm (as `clip_grad_norm_`), in place; a step of Adam
    (Kingma & Ba 2015; as `torch.optim.Adam`).

    Args:
        sizes: int64 `(P,)`, elements of every parameter.
        parameters: int64 `(P,)`, addresses of the parameters.
        gradient: int64 `(P,)`, addresses of their gradients.
        moments: int64 `(P, 3)`, addresses of first and second moments and of step counts.
        norm_address: Where the norm before clipping goes.
        max_norm: Infinite: the gradient is not clipped.
        lr: Step size.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        eps: Added to the denominator.
    """
    squares = 0.0
    for p in range(len(sizes)):
        g = carray(_floats(gradient[p]), (sizes[p],))
        part = np.float32(0.0)
        for i in range(len(g)):
            part += g[i] * g[i]
        squares += float(part)
    norm = math.sqrt(squares)
    carray(_floats(norm_address), (1,))[0] = norm
    ratio = max_norm / (norm + 1e-6) if max_norm < np.inf else 1.0
    scale = np.float32(1.0 if ratio > 1 else ratio)  # NaN stays NaN
    decay1, decay2 = np.float32(1 - beta1), np.float32(1 - beta2)
    keep2 = np.float32(beta2)
    for p in range(len(sizes)):
        x = carray(_floats(parameters[p]), (sizes[p],))
        g = carray(_floats(gradient[p]), (sizes[p],))
        m = carray(_floats(moments[p, 0]), (sizes[p],))
        v = carray(_floats(moments[p, 1]), (sizes[p],))
        step = carray(_floats(moments[p, 2]), (1,))
        step[0] += 1
        rate = np.float32(lr / (1 - beta1 ** step[0]))
        root = np.float32(math.sqrt(1 - beta2 ** step[0]))
        small = np.float32(eps)
        for i in range(len(x)):
            g[i] *= scale
            m[i] += decay1 * (g[i] - m[i])
            v[i] = keep2 * v[i] + decay2 * g[i] * g[i]
            x[i] -= rate * m[i] / (np.sqrt(v[i]) / root + small)
