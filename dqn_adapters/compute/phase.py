"""Acting, an update, and a training phase, each as one compiled call.

Every function here looks up itself where the tensors lie that it is given, and checks them; see
`extents`. The slots that a phase draws are bit for bit those of `ReplayBuffer.draw`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from dqn_adapters.compute import extents, kernel, layout
from dqn_adapters.compute.caching import compiled
from dqn_adapters.compute.extents import locate, locate_disjoint
from dqn_adapters.compute.layout import (
    ACTIONS,
    DISCOUNTS,
    GRAD_NORM,
    GRADIENT,
    LOSS,
    MOMENT1,
    MOMENT2,
    NEXT_ACTION_MASKS,
    NEXT_OBSERVATIONS,
    OBSERVATIONS,
    ONLINE,
    REWARDS,
    ROWS,
    STEPS,
    TARGET,
    WEIGHTS,
)
from dqn_adapters.replay import compiled as replay

_compiled = compiled(extents, kernel, layout, replay)


@_compiled
def act(
    functions: Any,
    implementations: Any,
    wanted: Any,
    addresses: Any,
    plan: Any,
    inputs: Any,
    legal: Any,
    actions: Any,
) -> int:
    """`kernel.greedy` with the parameters that are given; -1, or the one that does not fit."""
    misfit = locate(functions, implementations, wanted, addresses)
    if misfit < 0:
        kernel.greedy(plan, addresses.reshape((len(plan), 2)), inputs, legal, actions)
    return misfit


@_compiled
def _tensors(addresses: Any, parameters: int, rows: int) -> Any:
    """The first rows of the table that `kernel` takes.

    Args:
        addresses: Of the online network's parameters, of the target network's if it has its own, of
            the gradients, and of the step count and the moments of every parameter, if given.
        parameters: How many a network has.
        rows: How many rows are made.
    """
    tensors = np.empty((rows, parameters), np.int64)
    own = len(addresses) // parameters - (2 if rows <= MOMENT1 else 5)  # 1: it has a target
    for p in range(parameters):
        tensors[ONLINE, p] = addresses[p]
        tensors[TARGET, p] = addresses[own * parameters + p]
        tensors[GRADIENT, p] = addresses[(1 + own) * parameters + p]
    if rows > MOMENT1:
        state = addresses[(2 + own) * parameters :]
        for p in range(parameters):
            tensors[STEPS, p] = state[3 * p]
            tensors[MOMENT1, p] = state[3 * p + 1]
            tensors[MOMENT2, p] = state[3 * p + 2]
    return tensors


@_compiled
def _batch(functions: Any, implementations: Any, wanted: Any, fields: Any) -> Any:
    """The addresses of a batch as `kernel` takes them; empty if a tensor does not fit."""
    batch, found = np.zeros(7, np.int64), np.zeros(len(fields), np.int64)
    if locate(functions, implementations, wanted, found) >= 0:
        return batch[:0]
    for k in range(len(fields)):
        batch[fields[k]] = found[k]
    return batch


@_compiled
def gradient(
    functions: Any,
    implementations: Any,
    wanted: Any,
    addresses: Any,
    known: Any,
    batch_implementations: Any,
    batch_wanted: Any,
    batch_fields: Any,
    plan: Any,
    seen: Any,
    double: bool,
    mse: bool,
    delta: float,
) -> Any:
    """`kernel.td_gradient` on a batch of tensors.

    Args:
        implementations: See `_tensors`; without the optimiser's state.
        batch_fields: Which fields of a `Transition` the tensors of the batch are.

    Returns:
        False if something does not fit, or the batch is wrong; nothing is written then.
    """
    if locate_disjoint(functions, implementations, wanted, addresses, known) >= 0:
        return False
    batch = _batch(functions, batch_implementations, batch_wanted, batch_fields)
    if len(batch) == 0:
        return False
    tensors = _tensors(addresses, 2 * len(plan), GRADIENT + 1)
    return kernel.td_gradient(plan, tensors, batch, seen, double, mse, delta)


@_compiled
def update(
    functions: Any,
    implementations: Any,
    wanted: Any,
    addresses: Any,
    known: Any,
    batch_implementations: Any,
    batch_wanted: Any,
    batch_fields: Any,
    plan: Any,
    sizes: Any,
    seen: Any,
    double: bool,
    mse: bool,
    delta: float,
    max_norm: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> Any:
    """`gradient`, and then, if the loss is finite, `kernel.clipped_adam`.

    Args:
        implementations: See `_tensors`.
        sizes: Elements of every parameter.
    """
    if locate_disjoint(functions, implementations, wanted, addresses, known) >= 0:
        return False
    batch = _batch(functions, batch_implementations, batch_wanted, batch_fields)
    if len(batch) == 0:
        return False
    tensors = _tensors(addresses, 2 * len(plan), STEPS + 1)
    return kernel.update(
        *(plan, sizes, tensors, batch, seen, double, mse, delta),
        *(max_norm, lr, beta1, beta2, eps),
    )


@_compiled
def _sync(sizes: Any, tensors: Any, tau: Any) -> None:
    """target <- tau * online + (1 - tau) * target; see `DQNLearner.sync_target`."""
    for p in range(len(sizes)):
        target = carray(kernel.floats_at(tensors[TARGET, p]), (sizes[p],))
        online = carray(kernel.floats_at(tensors[ONLINE, p]), (sizes[p],))
        for i in range(len(target)):
            # As torch computes it: exact at either end.
            if tau < 0.5:
                target[i] += tau * (online[i] - target[i])
            else:
                target[i] = online[i] - (online[i] - target[i]) * (np.float32(1) - tau)


@_compiled
def step(
    functions: Any,
    implementations: Any,
    wanted: Any,
    addresses: Any,
    known: Any,
    sizes: Any,
    max_norm: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> Any:
    """`kernel.clipped_adam`; -1 if a tensor does not fit, and then nothing is written.

    Args:
        implementations: See `_tensors`; without a target network.
        sizes: Elements of every parameter.
    """
    if locate_disjoint(functions, implementations, wanted, addresses, known) >= 0:
        return -1.0
    tensors = _tensors(addresses, len(sizes), STEPS + 1)
    return kernel.clipped_adam(sizes, tensors[1:], max_norm, lr, beta1, beta2, eps)


@_compiled
def phase(
    functions: Any,
    implementations: Any,
    wanted: Any,
    addresses: Any,
    known: Any,
    plan: Any,
    sizes: Any,
    observations: Any,
    next_observations: Any,
    actions: Any,
    rewards: Any,
    terminated: Any,
    successor: Any,
    masks: Any,
    nodes: Any,
    starts: Any,
    slots: Any,
    seen: Any,
    double: bool,
    mse: bool,
    delta: float,
    max_norm: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    made: int,
    period: int,
    tau: float,
    oldest: int,
    stored: int,
    n_steps: int,
    gamma: float,
    beta: float,
    alpha: float,
    largest: float,
    next_uint32: int,
    next_double: int,
    random_state: int,
) -> tuple[int, float]:
    """Updates on transitions drawn from replay; see `update` and `ReplayBuffer`.

    Args:
        observations: And what follows: the `Tables` of the buffer.
        slots: int64 `(updates, B)`, where the slots go that were drawn.
        seen: float32 `(updates, seen_size(B))`, where it goes what the updates saw.
        made: Updates made before.
        period: Of the target network's syncs, in updates; 0: there are none.
        tau: See `_sync`.
        oldest: And what follows: see `ReplayBuffer.sampling`.

    Returns:
        How many updates were made, and the largest priority. The update behind them had a loss
        that is not finite or a wrong batch, and the phase ends with it. -1: a tensor does not fit,
        and nothing was drawn.
    """
    if locate_disjoint(functions, implementations, wanted, addresses, known) >= 0:
        return -1, largest
    tensors = _tensors(addresses, 2 * len(plan), STEPS + 1)
    size, features = slots.shape[1], observations.shape[1]
    s, s_next = np.empty((size, features), np.float32), np.empty((size, features), np.float32)
    a, r, d = np.empty(size, np.int64), np.empty(size, np.float32), np.empty(size, np.float32)
    legal = np.empty((size if len(masks) else 0, masks.shape[1]), np.bool_)
    weights = np.empty(size if len(nodes) else 0, np.float32)
    batch = np.zeros(7, np.int64)
    batch[OBSERVATIONS], batch[ACTIONS] = s.ctypes.data, a.ctypes.data
    batch[REWARDS], batch[DISCOUNTS] = r.ctypes.data, d.ctypes.data
    batch[NEXT_OBSERVATIONS] = s_next.ctypes.data
    if len(masks):
        batch[NEXT_ACTION_MASKS] = legal.ctypes.data
    if len(nodes):
        batch[WEIGHTS] = weights.ctypes.data
    for k in range(len(slots)):
        drawn = slots[k]
        if len(nodes):
            replay.draw_prioritized(next_double, random_state, nodes, starts, drawn)
        else:
            replay.draw(next_uint32, random_state, oldest, stored, len(actions), drawn)
        if not replay.gather(
            *(observations, next_observations, actions, rewards, terminated, successor, masks),
            *(nodes, starts, drawn, n_steps, gamma, stored, beta),
            *(s, a, r, d, s_next, legal, weights),
        ):
            return k, largest
        if not kernel.td_gradient(plan, tensors, batch, seen[k], double, mse, delta):
            return k, largest
        if not np.isfinite(seen[k, LOSS]):
            return k, largest
        if period > 0 and made + k > 0 and (made + k) % period == 0:
            _sync(sizes, tensors, np.float32(tau))
        seen[k, GRAD_NORM] = kernel.clipped_adam(
            sizes, tensors[1:], max_norm, lr, beta1, beta2, eps
        )
        if len(nodes):
            td_errors = seen[k, ROWS : ROWS + size].astype(np.float64)
            _, largest = replay.set_priorities(nodes, starts, drawn, td_errors, alpha, largest)
    return len(slots), largest
