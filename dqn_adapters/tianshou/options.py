"""The keywords of `DQN`, ours and Tianshou's, and what they mean as a `DQNConfig`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypedDict

from dqn_adapters.config import DQNConfig, Loss, TargetUpdateUnit, Variant, checked_int

log = logging.getLogger(__name__)

TIANSHOU_DEFAULTS: Mapping[str, Any] = {"loss": "mse", "max_grad_norm": None, "learning_starts": 0}
"""Where Tianshou's defaults are not those of `DQNConfig`, and the same in both otherwise."""

SCHEDULE = (
    "learning_starts",
    "exploration_initial_eps",
    "exploration_final_eps",
    "exploration_fraction",
    "exploration_steps",
)
"""The options that ask for an epsilon schedule; without one epsilon is what the user sets."""

PRIORITIES = (
    "priority_alpha",
    "priority_beta",
    "priority_beta_final",
    "priority_beta_steps",
)
"""The options of prioritised replay."""

_TARGET = ("target_update_interval", "target_update_unit", "tau", "target_update_freq")


class Options(TypedDict, total=False):
    """The keywords of `DQN`; the fields of `DQNConfig` by their names, then Tianshou's names."""

    variant: Variant
    gamma: float
    n_steps: int
    tau: float
    target_update_interval: int
    target_update_unit: TargetUpdateUnit
    loss: Loss
    huber_delta: float
    max_grad_norm: float | None
    learning_starts: int
    exploration_initial_eps: float
    exploration_final_eps: float
    exploration_fraction: float
    exploration_steps: int | None
    prioritized_replay: bool
    priority_alpha: float
    priority_beta: float
    priority_beta_final: float
    priority_beta_steps: int | None

    n_step_return_horizon: int
    target_update_freq: int
    is_double: bool
    huber_loss_delta: float | None


def config_from_options(options: Mapping[str, Any]) -> DQNConfig:
    """The configuration that the keywords ask for.

    Tianshou's names alone mean what they mean there. `target_update_freq=0`, its default, is no
    target network, so `"vanilla"`, whatever the default of `is_double`; with a period it is
    `"double"`, or `"target"` where `is_double=False`, synced every so many gradient updates.

    Raises:
        ValueError: a value is not accepted, two names say the same thing, or two options
            contradict each other.
        TypeError: there is no such option.
    """
    for name in options:
        if name not in Options.__annotations__:
            accepted = ", ".join(Options.__annotations__)
            raise TypeError(
                f"DQN has no option {name!r}; it has {accepted}. Learning rate, batch size, buffer "
                "size and update ratio belong to Tianshou's optim, trainer parameters and buffer; "
                "hidden layers and dueling to the policy's model"
            )
    _one_name(options, "variant", "is_double")
    _one_name(options, "target_update_interval", "target_update_freq")
    _one_name(options, "target_update_unit", "target_update_freq")
    _one_name(options, "loss", "huber_loss_delta")
    _one_name(options, "huber_delta", "huber_loss_delta")
    _one_name(options, "n_steps", "n_step_return_horizon")
    if "n_step_return_horizon" in options:
        checked_int("n_step_return_horizon", options["n_step_return_horizon"], low=1)
    unused = [name for name in PRIORITIES if name in options]
    if unused and not options.get("prioritized_replay"):
        raise ValueError(f"{', '.join(unused)}: write prioritized_replay=True beside it")
    values = {
        **TIANSHOU_DEFAULTS,
        **{name: value for name, value in options.items() if hasattr(DQNConfig, name)},
        "variant": _variant(options),
    }
    if "n_step_return_horizon" in options:
        values["n_steps"] = options["n_step_return_horizon"]
    if options.get("target_update_freq"):
        values["target_update_interval"] = options["target_update_freq"]
        values["target_update_unit"] = "updates"
    if options.get("huber_loss_delta") is not None:
        values["loss"], values["huber_delta"] = "huber", options["huber_loss_delta"]
    config = DQNConfig(**values)
    if "huber_delta" in options and config.loss != "huber":
        raise ValueError("huber_delta has no meaning for loss='mse': write loss='huber' beside it")
    return config


def _variant(options: Mapping[str, Any]) -> Variant:
    freq = checked_int("target_update_freq", options.get("target_update_freq", 0), low=0)
    named: Variant = "double" if options.get("is_double", True) else "target"
    variant: Variant = options.get("variant") or (named if freq else "vanilla")
    asked = None
    if options.get("is_double"):
        asked = "is_double=True"
    elif variant != "vanilla" and "target_update_freq" in options:
        asked = f"variant={variant!r}"
    if asked and not freq:
        raise ValueError(
            f"{asked} needs a target network, and target_update_freq=0 is none: write "
            "variant='double' or 'target' with target_update_interval=N (environment steps), or "
            "variant='vanilla' for the maximum over the online network"
        )
    unused = [name for name in _TARGET if options.get(name)]
    if variant == "vanilla" and unused:
        raise ValueError(
            f"{', '.join(unused)}: variant='vanilla' has no target network; write "
            "variant='double' or variant='target', or leave it out"
        )
    if not options.keys() & {"variant", "is_double", "target_update_freq"}:
        log.warning(
            "DQN trains without a target network (variant='vanilla'), as is Tianshou's default; "
            "variant='double' or 'target' use one"
        )
    return variant


def _one_name(options: Mapping[str, Any], ours: str, tianshous: str) -> None:
    if ours in options and tianshous in options:
        raise ValueError(f"{tianshous} and {ours} say the same thing: write {ours} alone")
