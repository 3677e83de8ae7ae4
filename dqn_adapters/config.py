"""The hyper-parameters of DQN: one definition of every name, default, unit and check."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

Variant = Literal["vanilla", "target", "double"]
Loss = Literal["huber", "mse"]
TargetUpdateUnit = Literal["steps", "episodes", "updates"]

VARIANTS: tuple[Variant, ...] = get_args(Variant)

_CHOICES = {
    "variant": VARIANTS,
    "loss": get_args(Loss),
    "target_update_unit": get_args(TargetUpdateUnit),
}
_FLOATS: dict[str, dict[str, Any]] = {
    "learning_rate": {"open_low": True},
    "adam_eps": {"open_low": True},
    "huber_delta": {"open_low": True},
    "gamma": {"high": 1.0},
    "tau": {"open_low": True, "high": 1.0},
    "exploration_initial_eps": {"high": 1.0},
    "exploration_final_eps": {"high": 1.0},
    "exploration_fraction": {"high": 1.0},
    "priority_alpha": {"high": 1.0},
    "priority_beta": {"high": 1.0},
    "priority_beta_final": {"high": 1.0},
    "max_grad_norm": {"open_low": True, "none": True},
}
_INTS = {
    "buffer_size": 1,
    "learning_starts": 0,
    "batch_size": 1,
    "train_freq": 1,
    "gradient_steps": 1,
    "target_update_interval": 1,
    "n_steps": 1,
    "exploration_steps": 0,
    "priority_beta_steps": 0,
    "frame_stack": 1,
}
_OPTIONAL_INTS = ("exploration_steps", "priority_beta_steps", "frame_stack")
_BOOLS = ("dueling", "prioritized_replay")


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

    n_steps: int = 1
    """Rewards in the n-step return of the TD target."""

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
    """Units of the hidden layers, behind the convolutions if there are any; `()` is a linear
    Q-function."""

    dueling: bool = False
    """Split the last hidden layer and the output into V(s) and A(s, a) (Wang et al. 2016)."""

    prioritized_replay: bool = False
    """Sample transitions in proportion to their last TD error (Schaul et al. 2016), and weigh
    their losses by the importance of the sample."""

    priority_alpha: float = 0.6
    """Exponent of the priorities, in [0, 1]; 0 is uniform."""

    priority_beta: float = 0.4
    """Exponent of the importance weights at step 0, in [0, 1]; 1 corrects the bias fully."""

    priority_beta_final: float = 1.0
    """The same at the end of its linear schedule."""

    priority_beta_steps: int | None = None
    """Length of that schedule in environment steps; None: the total of the first `learn`."""

    frame_stack: int | None = None
    """Observations are so many frames stacked along their first axis: the replay buffer keeps
    every frame once. None: it keeps observations as they are."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                accepted = "one of " + ", ".join(map(repr, choices))
                raise rejected(name, getattr(self, name), accepted)
        for name, bounds in _FLOATS.items():
            self._normalise(name, checked_float(name, getattr(self, name), **bounds))
        for name, low in _INTS.items():
            none = name in _OPTIONAL_INTS
            self._normalise(name, checked_int(name, getattr(self, name), low=low, none=none))
        for name in _BOOLS:
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise rejected(name, getattr(self, name), "True or False")
            self._normalise(name, bool(getattr(self, name)))
        if self.n_steps > self.buffer_size:
            raise rejected("n_steps", self.n_steps, f"at most buffer_size={self.buffer_size}")
        sizes = self.hidden_sizes
        accepted = "a tuple of integers >= 1"
        if isinstance(sizes, str) or not isinstance(sizes, Sequence):
            raise rejected("hidden_sizes", sizes, accepted)
        numbers = tuple(map(_as_int, sizes))
        if any(number is None or number < 1 for number in numbers):
            raise rejected("hidden_sizes", sizes, accepted)
        self._normalise("hidden_sizes", numbers)

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

    def _normalise(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # once, here; the instance is frozen afterwards


def checked_int(name: str, value: object, *, low: int, none: bool = False) -> int | None:
    """Return `value` as an int, or raise `ValueError` unless it is an integer >= `low`.

    None is returned as it is where `none` allows it. Floats are refused, also whole ones.
    """
    if value is None and none:
        return None
    number = _as_int(value)
    if number is None or number < low:
        raise rejected(name, value, f"an integer >= {low}", none=none)
    return number


def checked_float(
    name: str,
    value: Any,
    *,
    low: float = 0.0,
    high: float = math.inf,
    open_low: bool = False,
    none: bool = False,
) -> float | None:
    """Return `value` as a float, or raise `ValueError` unless it is finite and within the range.

    None is returned as it is where `none` allows it.
    """
    if value is None and none:
        return None
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):  # an int may be too large for a float
        number = math.nan
    above = number > low if open_low else number >= low
    if not (above and number <= high and math.isfinite(number)):
        right = "inf)" if high == math.inf else f"{high:g}]"
        accepted = f"a number in {'(' if open_low else '['}{low:g}, {right}"
        raise rejected(name, value, accepted, none=none)
    return number


def rejected(name: str, value: object, accepted: str, *, none: bool = False) -> ValueError:
    """The error for a value that is not accepted: it names the argument, the value, the remedy."""
    suffix = " or None" if none else ""
    return ValueError(f"{name}={value!r} is not accepted; {name} must be {accepted}{suffix}")


def _as_int(value: object) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
