"""Updates and greedy actions in compiled code, on torch's own memory.

`Kernel` looks at every use whether the networks and the optimiser are still what it was made for
(see `signature`), and makes itself anew for what is there or steps aside. The compiled functions
look up and check the memory themselves (see `extents`).
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dqn_adapters.compute.eager import Eager, Learner, StepRule, Use
from dqn_adapters.compute.layout import GRAD_NORM, LOSS, seen_size
from dqn_adapters.compute.plan import AsStack, NotTaken, Plan, plan_of
from dqn_adapters.compute.seen import UpdateMetrics
from dqn_adapters.compute.signature import (
    FIXED,
    HOOKS,
    IMPLEMENTATION,
    NetworkSignature,
    adam_numbers,
    adam_options,
    adam_state,
    are,
    are_learned,
    check_learned,
    gradients_of,
    has_global_hooks,
    same_gradients,
    torch_is_plain,
    zeroes,
)
from dqn_adapters.config import DQNConfig
from dqn_adapters.finite import check_loss
from dqn_adapters.overrides import Methods
from dqn_adapters.replay import ReplayBuffer
from dqn_adapters.transition import Arrays, Transition

_FLOAT = torch.float32
_FIELDS = (_FLOAT, torch.int64, _FLOAT, _FLOAT, _FLOAT, torch.bool, _FLOAT)
"""Dtypes of the fields of a `Transition`."""

_REPLAY = Methods(ReplayBuffer, "draw", "gather", "update_priorities")


def why_not_compiled() -> str | None:
    """Why there is no compiled code on this machine; None: there is."""
    for module in ("numba", "scipy"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed; it comes with: pip install numba scipy"
    from dqn_adapters.compute import extents, stamp  # numba takes half a second to import

    if extents.torch_functions() is None or stamp.implementation_offset() is None:
        return f"torch {torch.__version__} does not tell compiled code where tensors lie"
    return None


class Tensors:
    """The tensors that a compiled function works on.

    Args:
        shapes: Their shapes; all are float32.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        from dqn_adapters.compute import extents

        self._implementations: list[int] = []
        self._given = np.zeros(0, np.int64)
        self._wanted = extents.expected([(_FLOAT, shape) for shape in shapes])
        self._functions = extents.torch_functions()
        self._addresses, self._known = (np.zeros(len(shapes), np.int64) for _ in range(2))

    def of(self, implementations: list[int]) -> tuple[Any, ...]:
        """The first arguments of a function that finds them."""
        if implementations != self._implementations:
            self._implementations = implementations
            self._given = np.array(implementations, np.int64)
        return self._functions, self._given, self._wanted, self._addresses

    def disjoint(self, implementations: list[int]) -> tuple[Any, ...]:
        """The same for a function that makes sure that they share no memory."""
        return *self.of(implementations), self._known


class _Acting:
    """The online network, for greedy actions."""

    def __init__(self, learner: Learner, as_stack: AsStack) -> None:
        from dqn_adapters.compute import phase, stamp

        self.hooks = HOOKS.next_id
        self._network = learner.q_net
        self.plan = plan_of(learner.q_net, as_stack)
        self._signature = NetworkSignature([learner.q_net], [self.plan])
        self._tensors = Tensors(self.plan.shapes)
        self._act = phase.act
        signature = self._signature
        self._stamp = stamp.Stamp(
            signature.dictionaries, signature.modules, signature.parameters, {"training"}
        )

    def holds(self, learner: Learner) -> bool:
        if learner.q_net is not self._network:
            return False
        signature = self._signature
        return (self._stamp.holds() and signature.classes_hold()) or signature.holds()

    def greedy(
        self, rows: NDArray[np.float32], masks: NDArray[np.bool_]
    ) -> NDArray[np.int64] | None:
        """Greedy actions for observations `(N, F)`; None if a tensor is not what it was."""
        actions = np.empty(len(rows), np.int64)
        tensors = self._tensors.of(self._signature.implementations)
        misfit = self._act(*tensors, self.plan.table, rows, masks, actions)
        return actions if misfit < 0 else None


class _Learning:
    """Both networks, and what an update changes."""

    def __init__(self, learner: Learner, as_stack: AsStack) -> None:
        self.hooks = HOOKS.next_id
        self._online, self._target = learner.q_net, learner.target_net
        self.plan = plan_of(learner.q_net, as_stack)
        networks, plans = [self._online], [self.plan]
        if self._target is not self._online:
            networks, plans = [*networks, self._target], [*plans, plan_of(self._target, as_stack)]
            if not np.array_equal(plans[1].table, self.plan.table):
                raise NotTaken("the target network is another network than the online network")
        self._signature = NetworkSignature(networks, plans)
        self._count = 2 * len(self.plan.layers)
        check_learned(self.parameters)
        shapes = self.plan.shapes
        self.sizes = np.array([math.prod(shape) for shape in shapes], np.int64)
        both = shapes * len(networks)
        state = [part for shape in shapes for part in ((), shape, shape)]
        self._with_state = Tensors([*both, *shapes, *state])
        self._without_state = Tensors([*both, *shapes])
        self._options: tuple[Any, ...] | None = None  # the configuration, and what is made of it
        self._stamp: Any = None
        self._stamped: tuple[Any, ...] = ()  # what the stamp is of
        self.prepared: tuple[Any, Any] | None = None
        """The tensors as arguments of `phase.update`, and the numbers of Adam, for this use."""

    @property
    def parameters(self) -> list[Any]:
        """The learned parameters, in the order of the plan."""
        return self._signature.parameters[: self._count]

    def holds(self, learner: Learner) -> bool:
        self.prepared = None
        if learner.q_net is not self._online or learner.target_net is not self._target:
            return False
        if self._stamp is not None and self._is_as_stamped(learner.optimizer):
            tensors, group = self._stamped[-2:]
            self.prepared = tensors, adam_numbers(group)
            return True
        return self._signature.holds() and are_learned(self.parameters)

    def prepare(self, optimizer: Any) -> tuple[Any, Any] | None:
        """Make `prepared`; None if the optimiser is not one for compiled code."""
        if self.prepared is None:
            parameters = self.parameters
            numbers = adam_options(optimizer, parameters)
            tensors = None if numbers is None else self.with_state(optimizer)
            if numbers is not None and tensors is not None:
                optimizer._opt_called = True  # torch's schedulers look for it
                self.prepared = tensors, numbers
                self._put_stamp(optimizer, parameters, tensors)
        return self.prepared

    def _put_stamp(self, optimizer: Any, parameters: list[Any], tensors: Any) -> None:
        from dqn_adapters.compute import stamp

        (group,), states = optimizer.param_groups, [*optimizer.state.values()]
        gradients = [parameter.grad for parameter in parameters]
        kept = [tensor for state in states for tensor in state.values()]
        self._stamp = stamp.Stamp(
            [*self._signature.dictionaries, vars(optimizer), group, optimizer.state, *states],
            [*self._signature.modules, optimizer],
            [*self._signature.parameters, *gradients, *kept],
            {"training", *(set(group) - set(FIXED))},
        )
        step = torch.optim.Adam.step
        self._stamped = optimizer, step, parameters, gradients, tensors, group

    def _is_as_stamped(self, optimizer: Any) -> bool:
        known, step, parameters, gradients, _, group = self._stamped
        groups = optimizer.param_groups
        return (
            optimizer is known
            and torch.optim.Adam.step is step
            and self._stamp.holds()
            and self._signature.classes_hold()
            and len(groups) == 1
            and groups[0] is group
            and are(group["params"], parameters)
            and are_learned(parameters)
            and same_gradients(parameters, gradients)
        )

    def without_state(self) -> tuple[Any, ...]:
        """Networks and gradients as the first arguments of a compiled function."""
        gradients = gradients_of(self.parameters)
        return self._without_state.disjoint([*self._signature.implementations, *gradients])

    def with_state(self, optimizer: torch.optim.Optimizer) -> tuple[Any, ...] | None:
        """The same, and where the state of Adam is; None if the optimiser has another one."""
        parameters = self.parameters
        state = adam_state(optimizer, parameters)
        if state is None:
            return None
        gradients = gradients_of(parameters)
        return self._with_state.disjoint([*self._signature.implementations, *gradients, *state])

    def options(self, config: DQNConfig) -> tuple[Any, ...]:
        """The options of an update: double, squared errors, delta, largest norm."""
        if self._options is None or self._options[0] is not config:
            max_norm = math.inf if config.max_grad_norm is None else config.max_grad_norm
            options = (
                config.variant == "double",
                config.loss == "mse",
                config.huber_delta,
                max_norm,
            )
            self._options = config, options
        made: tuple[Any, ...] = self._options[1]
        return made


class Kernel(Eager):
    """Computes in compiled code.

    What is not for it goes on in torch, part by part: another optimiser than plain Adam makes its
    own step, and a batch or an observation of another kind is computed in torch.

    Args:
        learner: Whose networks and optimiser it works on.
        as_stack: Sees in a network what the kernel takes.
        step_rule: For steps that follow a gradient computed in torch.
    """

    name: Literal["eager", "compiled", "kernel"] = "kernel"

    def __init__(
        self, learner: Learner, as_stack: AsStack, step_rule: StepRule | None = None
    ) -> None:
        super().__init__(learner, step_rule)
        self._as_stack = as_stack
        self._acting: _Acting | None = None
        self._learning: _Learning | None = None
        self._checked: tuple[Any, Any] = (None, None)  # tables of replay that fit a plan

    def __getstate__(self) -> dict[str, Any]:  # a copy looks at its own networks
        return {**self.__dict__, "_acting": None, "_learning": None, "_checked": (None, None)}

    def refuses(self, use: Use) -> str | None:
        learner = self._learner
        made = self._acting if use == "act" else self._learning
        if not torch_is_plain():
            return "torch is in another mode than its default"
        if learner.defines_loss:
            return "the learner computes another loss, or other action values"
        if use == "learn" and not torch.is_grad_enabled():
            return "torch computes without gradients"
        if made is None or made.hooks != HOOKS.next_id or not made.holds(learner):
            return self._make(use)
        return None

    def _make(self, use: Use) -> str | None:
        """Make it for the networks as they are now; why that cannot be done, or None."""
        reason = why_not_compiled()
        if has_global_hooks():
            reason = "hooks look at all modules"
        try:
            if reason is None and use == "act":
                self._acting = _Acting(self._learner, self._as_stack)
            elif reason is None:
                self._learning = _Learning(self._learner, self._as_stack)
        except NotTaken as error:
            self._acting = self._learning = None
            reason = f"the network is not one for the kernel: {error}"
        return reason

    def greedy_actions(
        self, observations: Arrays, action_masks: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        actions = self.fast_greedy_actions(observations, action_masks)
        return super().greedy_actions(observations, action_masks) if actions is None else actions

    def fast_greedy_actions(
        self, observations: Arrays, action_masks: NDArray[np.bool_] | None
    ) -> NDArray[np.int64] | None:
        acting = self._acting
        assert acting is not None
        rows, masks = _rows(observations, acting.plan), _NO_MASKS
        if rows is None:
            return None
        if action_masks is not None:
            masks = np.ascontiguousarray(action_masks, np.bool_)
            if masks.shape != (len(rows), acting.plan.num_actions):
                return None
        return acting.greedy(rows, masks)

    def update(self, batch: Transition) -> UpdateMetrics:
        from dqn_adapters.compute import phase

        learner, learning = self._learner, self._learning
        assert learning is not None
        fields = _Batch.of(batch, learning.plan)
        if fields is None:
            return super().update(batch)
        plan, options = learning.plan.table, learning.options(learner.config)
        seen = np.empty(seen_size(len(batch.rewards)), np.float32)
        prepared = None if learner.sync_is_due() else learning.prepare(learner.optimizer)
        if prepared is not None:
            tensors, adam = prepared
            if phase.update(
                *(*tensors, *fields.arguments, plan, learning.sizes, seen, *options, *adam)
            ):
                if not math.isfinite(seen[LOSS]):
                    check_loss(torch.tensor(seen[LOSS]), learner.num_updates)
                return UpdateMetrics.of(seen)
        if not zeroes(learner.optimizer, learning.parameters):  # the others' add up in torch
            return super().update(batch)
        learner.optimizer.zero_grad()
        if not phase.gradient(
            *(*learning.without_state(), *fields.arguments, plan, seen, *options[:-1])
        ):
            return super().update(batch)
        seen[GRAD_NORM] = self._finish(torch.tensor(seen[LOSS])).item()
        return UpdateMetrics.of(seen)

    def train(self, replay: ReplayBuffer, updates: int, batch_size: int) -> Sequence[UpdateMetrics]:
        from dqn_adapters.compute import phase

        learner, learning = self._learner, self._learning
        assert learning is not None
        tables = self._tables(replay, learning.plan)
        prepared = None if tables is None else learning.prepare(learner.optimizer)
        if tables is None or prepared is None:
            return super().train(replay, updates, batch_size)
        tensors, adam = prepared
        config, made = learner.config, learner.counts["updates"]
        in_updates = config.target_update_unit == "updates" and config.variant != "vanilla"
        slots = np.empty((updates, batch_size), np.int64)
        seen = np.empty((updates, seen_size(batch_size)), np.float32)
        done, replay.largest_priority = phase.phase(
            *(*tensors, learning.plan.table, learning.sizes, *tables, slots, seen),
            *(*learning.options(config), *adam),
            *(made, config.target_update_interval if in_updates else 0, config.tau),
            *replay.sampling,
        )
        if done < 0:
            return super().train(replay, updates, batch_size)
        learner.counts["updates"] = made + done
        metrics = [UpdateMetrics.of(row) for row in seen[:done]]
        if done < updates:  # torch says what is wrong with the next batch, if anything is
            update = learner.update(replay.gather(slots[done]))
            replay.update_priorities(slots[done], update.td_error)
            metrics += [update, *super().train(replay, updates - done - 1, batch_size)]
        return metrics

    def _tables(self, replay: ReplayBuffer, plan: Plan) -> Any | None:
        """The replay tables for compiled code; None if it cannot draw from them."""
        if not _REPLAY.are_those_of(replay):
            return None
        tables = replay.tables
        if tables is None or not 0 < len(replay) < 2**32 or not _is_cpu(replay.device):
            return None
        if tables is self._checked[0] and plan is self._checked[1]:
            return tables
        if not plan.fits((1, *(replay.observation_shape or ()))):
            return None
        if not plan.converts and tables.observations.dtype not in (np.float32, np.float64):
            return None
        if len(tables.masks) and tables.masks.shape[1] != plan.num_actions:
            return None
        self._checked = tables, plan
        return tables


def _is_cpu(device: torch.device | str) -> bool:
    return device == "cpu" or (isinstance(device, torch.device) and device.type == "cpu")


_NO_MASKS = np.zeros((0, 0), np.bool_)


def _rows(observations: Arrays, plan: Plan) -> NDArray[np.float32] | None:
    """Observations as float32 `(N, F)`; None if the network takes no such ones."""
    if isinstance(observations, dict):
        return None
    if (
        observations.ndim == 2
        and observations.dtype == np.float32
        and observations.flags.c_contiguous
        and observations.shape[1] == plan.features
        and plan.image is None
    ):
        return observations
    if not plan.fits(observations.shape):
        return None
    if not plan.converts and observations.dtype not in (np.float32, np.float64):
        return None
    rows = np.ascontiguousarray(observations, np.float32)
    return rows if rows.ndim == 2 else rows.reshape(len(rows), -1)


class _Batch:
    """The fields of a batch, as compiled code finds them."""

    def __init__(self, batch: Transition, plan: Plan) -> None:
        rows = len(batch.rewards)
        widths = (plan.features, None, None, None, plan.features, plan.num_actions, None)
        flat = batch._replace(
            observations=_flat(batch.observations), next_observations=_flat(batch.next_observations)
        )
        self._tensors = [tensor for tensor in flat if tensor is not None]  # kept while it is used
        fields = tuple(index for index, tensor in enumerate(flat) if tensor is not None)
        wanted = tuple(
            (_FIELDS[index], (rows,) if widths[index] is None else (rows, widths[index]))
            for index in fields
        )
        implementations = np.array(list(map(IMPLEMENTATION, self._tensors)), np.int64)
        self.arguments = implementations, _wanted(wanted), np.array(fields, np.int64)

    @classmethod
    def of(cls, batch: Transition, plan: Plan) -> _Batch | None:
        """None if the batch is not one for compiled code."""
        for observations in (batch.observations, batch.next_observations):
            if isinstance(observations, dict) or not plan.fits(observations.shape):
                return None
            if not plan.converts and observations.dtype != _FLOAT:
                return None
        return cls(batch, plan)


def _flat(observations: Any) -> torch.Tensor:
    rows: torch.Tensor = observations.to(_FLOAT).reshape(len(observations), -1).contiguous()
    return rows


@functools.lru_cache(maxsize=8)
def _wanted(tensors: tuple[Any, ...]) -> NDArray[np.int64]:
    from dqn_adapters.compute import extents

    return extents.expected(tensors)
