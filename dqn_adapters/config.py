"""The hyper-parameters of DQN: one definition of every name, default, unit and check."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Variant = Literal["vanilla", "target", "double"]
Loss = Literal["huber", "mse"]
TargetUpdateUnit = Literal["steps", "episodes", "updates"]

VARIANTS: tuple[Variant, ...] = get_args(Variant)


@dataclass(frozen=True, kw_only=True)
class DQNConfig:
    """Hyper-parameters of DQN. Immutable, and checked once, here.

    The defaults are those of Stable-Baselines3's DQN. Every field is checked at construction;
    a value that is not accepted raises `ValueError` with the field, the value and what is accepted.
    Use `dataclasses.replace` for a changed copy.
    """

    variant: Variant = "target"
    """Which network selects and which evaluates the next action in the TD target.
    `"vanilla"`: the online network does both, there is no target network.
    `"target"`: the target network does both (Mnih et al. 2015).
    `"double"`: the online network selects, the target network evaluates (van Hasselt et al. 2015).
    """

    learning_rate: float = 1e-4
    """Step size of Adam, > 0."""

    adam_eps: float = 1e-8
    """Term added to Adam's denominator, > 0."""

    buffer_size: int = 1_000_000
    """Capacity of the replay buffer, in transitions of all environments together."""

    learning_starts: int = 100
    """Warm-up: for so many environment steps actions are uniformly random and nothing is learned.
    They count as environment steps."""

    batch_size: int = 32
    """Transitions in one minibatch."""

    gamma: float = 0.99
    """Discount factor per environment step, in [0, 1]."""

    tau: float = 1.0
    """Polyak coefficient of a target update: target <- tau * online + (1 - tau) * target.
    In (0, 1]; 1 is a hard copy."""

    train_freq: int = 4
    """Environment steps (of all environments together) between two training phases."""

    gradient_steps: int = 1
    """Gradient updates in one training phase."""

    target_update_interval: int = 10_000
    """Period of the target update, in `target_update_unit`. Unused by `"vanilla"`."""

    target_update_unit: TargetUpdateUnit = "steps"
    """What the period counts: environment `"steps"` (of all environments together), finished
    `"episodes"`, or gradient `"updates"`."""

    exploration_initial_eps: float = 1.0
    """Probability of a uniformly random action at step 0, in [0, 1]."""

    exploration_final_eps: float = 0.05
    """Probability of a uniformly random action after the schedule, in [0, 1]."""

    exploration_fraction: float = 0.1
    """Length of the linear epsilon schedule as a fraction, in [0, 1], of the total environment
    steps of the first call to `learn`. Later calls do not restart it."""

    exploration_steps: int | None = None
    """Length of the linear epsilon schedule in environment steps; overrides the fraction."""

    loss: Loss = "huber"
    """`"huber"` (quadratic up to `huber_delta`, then linear) or `"mse"` (the squared TD error)."""

    huber_delta: float = 1.0
    """TD error at which the Huber loss turns linear, > 0."""

    max_grad_norm: float | None = 10.0
    """Gradients are scaled down to this global L2 norm; `None` is off."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of the hidden layers of the MLP; `()` is a linear Q-function."""

    def __post_init__(self) -> None:
        self._check_choice("variant", VARIANTS)
        self._check_choice("loss", get_args(Loss))
        self._check_choice("target_update_unit", get_args(TargetUpdateUnit))
        for name in ("learning_rate", "adam_eps", "huber_delta"):
            self._check_float(name, low=0.0, open_low=True)
        self._check_float("tau", low=0.0, high=1.0, open_low=True)
        for name in (
            "gamma",
            "exploration_initial_eps",
            "exploration_final_eps",
            "exploration_fraction",
        ):
            self._check_float(name, low=0.0, high=1.0)
        if self.max_grad_norm is not None:
            self._check_float("max_grad_norm", low=0.0, open_low=True, none="or None")
        for name in (
            "buffer_size",
            "batch_size",
            "train_freq",
            "gradient_steps",
            "target_update_interval",
        ):
            self._check_int(name, low=1)
        self._check_int("learning_starts", low=0)
        if self.exploration_steps is not None:
            self._check_int("exploration_steps", low=0, none="or None")
        self._check_hidden_sizes()

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-compatible values; `from_dict` is the inverse."""
        return {**dataclasses.asdict(self), "hidden_sizes": list(self.hidden_sizes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DQNConfig:
        """Build a config from a mapping; an unknown name raises `ValueError`."""
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"unknown field {name!r}; the fields are {', '.join(known)}")
        return cls(**values)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # normalise once; the instance is frozen afterwards

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str) or value not in choices:
            raise _rejected(name, value, "one of " + ", ".join(map(repr, choices)))

    def _check_float(
        self,
        name: str,
        *,
        low: float,
        high: float = math.inf,
        open_low: bool = False,
        none: str = "",
    ) -> None:
        value = getattr(self, name)
        right = ", inf)" if high == math.inf else f", {high:g}]"
        accepted = f"a number in {'(' if open_low else '['}{low:g}{right} {none}".rstrip()
        try:
            if isinstance(value, (bool, str)):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise _rejected(name, value, accepted) from None
        above = number > low if open_low else number >= low
        if not (above and number <= high and math.isfinite(number)):
            raise _rejected(name, value, accepted)
        self._set(name, number)

    def _check_int(self, name: str, *, low: int, none: str = "") -> None:
        number = _as_int(getattr(self, name))
        if number is None or number < low:
            raise _rejected(name, getattr(self, name), f"an integer >= {low} {none}".rstrip())
        self._set(name, number)

    def _check_hidden_sizes(self) -> None:
        accepted = "a tuple of integers >= 1"
        try:
            sizes = tuple(self.hidden_sizes)
        except TypeError:
            raise _rejected("hidden_sizes", self.hidden_sizes, accepted) from None
        numbers = [_as_int(size) for size in sizes]
        if isinstance(self.hidden_sizes, str) or any(n is None or n < 1 for n in numbers):
            raise _rejected("hidden_sizes", self.hidden_sizes, accepted)
        self._set("hidden_sizes", tuple(numbers))


def _as_int(value: object) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _rejected(name: str, value: object, accepted: str) -> ValueError:
    return ValueError(f"{name}={value!r} is not accepted; {name} must be {accepted}")
