"""One levelled configuration, as every implementation takes it. The only place that translates.

The systems are built from what is returned here, and the table of the report is drawn from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dqn_adapters.config import DQNConfig
from dqn_adapters.exploration import LinearSchedule, epsilon_schedule

if TYPE_CHECKING:
    from dqn_adapters.benchmark.systems import System

LEVELLED = (
    *("variant", "learning_rate", "adam_eps", "buffer_size", "learning_starts", "batch_size"),
    *("gamma", "tau", "train_freq", "gradient_steps"),
    *("target_update_interval", "target_update_unit"),
    *("exploration_initial_eps", "exploration_final_eps", "exploration_fraction"),
    *("exploration_steps", "loss", "huber_delta", "max_grad_norm", "hidden_sizes"),
)
"""Fields of `DQNConfig` that are brought to the hosts here."""


def unlevelled(config: DQNConfig) -> list[str]:
    """Fields that are set to something else than their default, and are not levelled."""
    values, defaults = config.to_dict(), DQNConfig().to_dict()
    return [name for name in values if name not in LEVELLED and values[name] != defaults[name]]


TIANSHOU_PERIOD = 2048
"""Environment steps that Tianshou, as it is shipped, collects before it learns; a test holds it
against the library."""


def sb3_arguments(config: DQNConfig, total_timesteps: int) -> dict[str, Any]:
    """Arguments of `stable_baselines3.DQN`, which `dqn_adapters.sb3.DQN` takes as well."""
    epsilon = epsilon_schedule(config, total_timesteps)
    return {
        "learning_rate": config.learning_rate,
        "buffer_size": config.buffer_size,
        "learning_starts": config.learning_starts,
        "batch_size": config.batch_size,
        "tau": config.tau,
        "gamma": config.gamma,
        "train_freq": config.train_freq,
        "gradient_steps": config.gradient_steps,
        "target_update_interval": config.target_update_interval,
        # SB3 divides by the fraction, so a schedule without length is one of constant epsilon.
        "exploration_fraction": epsilon.steps / total_timesteps if epsilon.steps else 1.0,
        "exploration_initial_eps": epsilon.initial if epsilon.steps else epsilon.final,
        "exploration_final_eps": epsilon.final,
        "max_grad_norm": float("inf") if config.max_grad_norm is None else config.max_grad_norm,
        "policy_kwargs": {
            "net_arch": list(config.hidden_sizes),
            "optimizer_kwargs": {"eps": config.adam_eps},
        },
    }


def sb3_adapter_arguments(config: DQNConfig, total_timesteps: int) -> dict[str, Any]:
    """Arguments of `dqn_adapters.sb3.DQN`."""
    arguments = sb3_arguments(config, total_timesteps)
    # A fraction above 1, of a training that ends before its schedule, is one for SB3's own alone.
    del arguments["exploration_fraction"]
    return {
        **arguments,
        "exploration_steps": epsilon_schedule(config, total_timesteps).steps,
        "variant": config.variant,
        "loss": config.loss,
        "huber_delta": config.huber_delta,
        "target_update_unit": config.target_update_unit,
    }


def qrdqn_arguments(config: DQNConfig, total_timesteps: int) -> dict[str, Any]:
    """Arguments of `sb3_contrib.QRDQN`. It sets Adam's epsilon unless it is given the class."""
    import torch

    arguments = sb3_arguments(config, total_timesteps)
    arguments["policy_kwargs"]["optimizer_class"] = torch.optim.Adam
    return arguments


def sbx_arguments(config: DQNConfig, total_timesteps: int) -> dict[str, Any]:
    """Arguments of `sbx.DQN`. It does not clip, so its Adam is given as one that does."""
    arguments = sb3_arguments(config, total_timesteps)
    arguments["policy_kwargs"] = {
        "net_arch": arguments["policy_kwargs"]["net_arch"],
        "optimizer_class": _clipped_adam,
        "optimizer_kwargs": {
            **arguments["policy_kwargs"]["optimizer_kwargs"],
            "max_grad_norm": arguments.pop("max_grad_norm"),
        },
    }
    return arguments


def _clipped_adam(learning_rate: float, *, max_grad_norm: float, eps: float) -> Any:
    import optax

    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(learning_rate, eps=eps))


@dataclass(frozen=True)
class TianshouSettings:
    """What the parts of a Tianshou training take."""

    warm_up: int
    """Steps collected at random before the trainer starts; they count as steps."""

    epsilon: LinearSchedule
    """Over all environment steps; set before every collection step."""

    optimizer: Mapping[str, Any]
    """Arguments of `AdamOptimizerFactory`."""

    algorithm: Mapping[str, Any]
    """Arguments of the algorithm."""

    trainer: Mapping[str, Any]
    """Arguments of `OffPolicyTrainerParams`."""

    max_grad_norm: float | None
    buffer_size: int
    hidden_sizes: Sequence[int]
    replay_seed: int | None = None
    """None: the run's. Left alone, the buffer draws from seed 42 in every experiment."""


def tianshou_settings(config: DQNConfig, total_timesteps: int) -> TianshouSettings:
    """Settings of Tianshou's own DQN."""
    # The last phase of the warm-up trains in SB3 and here: the trainer begins one phase earlier.
    warm_up = config.learning_starts // config.train_freq * config.train_freq
    updates = config.target_update_interval * config.gradient_steps // config.train_freq
    return TianshouSettings(
        warm_up=warm_up,
        epsilon=epsilon_schedule(config, total_timesteps),
        optimizer={"lr": config.learning_rate, "eps": config.adam_eps},
        algorithm={
            "gamma": config.gamma,
            "target_update_freq": 0 if config.variant == "vanilla" else updates,
            "is_double": config.variant == "double",
            "huber_loss_delta": config.huber_delta if config.loss == "huber" else None,
        },
        trainer={
            "max_epochs": 1,
            "epoch_num_steps": total_timesteps - warm_up,
            "collection_step_num_env_steps": config.train_freq,
            "update_step_num_gradient_steps_per_sample": (
                config.gradient_steps / config.train_freq
            ),
            "batch_size": config.batch_size,
        },
        max_grad_norm=config.max_grad_norm,
        buffer_size=config.buffer_size,
        hidden_sizes=config.hidden_sizes,
    )


def tianshou_shipped(total_timesteps: int) -> TianshouSettings:
    """Settings of Tianshou's own DQN as its high-level interface has them by default, the only
    place where Tianshou has defaults for all of them. Only the number of environments, there one
    per processor, is set: to one."""
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.highlevel.config import OffPolicyTrainingConfig
    from tianshou.highlevel.module.actor import ActorFactoryDefault
    from tianshou.highlevel.params.algorithm_params import DQNParams

    training, params = OffPolicyTrainingConfig(), DQNParams()
    trainer = ("collection_step_num_env_steps", "update_step_num_gradient_steps_per_sample")
    algorithm = ("gamma", "n_step_return_horizon", "target_update_freq", "is_double")
    return TianshouSettings(
        warm_up=training.start_timesteps,
        epsilon=LinearSchedule(params.eps_training, params.eps_training, 0),
        optimizer={"lr": params.lr, "eps": AdamOptimizerFactory().eps},
        algorithm={
            **{name: getattr(params, name) for name in algorithm},
            "huber_loss_delta": params.huber_loss_delta,
        },
        trainer={
            "max_epochs": 1,
            "epoch_num_steps": total_timesteps,
            "batch_size": training.batch_size,
            **{name: getattr(training, name) for name in trainer},
        },
        max_grad_norm=None,
        buffer_size=training.buffer_size,
        hidden_sizes=ActorFactoryDefault.DEFAULT_HIDDEN_SIZES,
        replay_seed=42,
    )


def shipped_table(total_timesteps: int, implementations: Collection[str]) -> list[Row]:
    """What libraries do where nothing is set, read from the installed libraries."""
    readers: dict[str, Callable[[], Mapping[str, Any]]] = {
        "native": lambda: DQNConfig().to_dict(),
        "sb3": lambda: _sb3_defaults("dqn_adapters.sb3", "DQN"),
        "sb3-reference": lambda: _sb3_defaults("stable_baselines3", "DQN"),
        "tianshou-reference": lambda: _tianshou_defaults(tianshou_shipped(total_timesteps)),
        "contrib": lambda: _sb3_defaults("sb3_contrib", "QRDQN"),
        "sbx": lambda: {
            **_sb3_defaults("sbx", "DQN"),
            "max_grad_norm": None,
            "hidden_sizes": [256, 256],
        },
    }
    found: dict[str, Mapping[str, Any]] = {}
    for name in implementations:
        with contextlib.suppress(ImportError):
            found[name] = {"environments": 1, **readers[name]()}
    settings = (
        *("learning_rate", "buffer_size", "learning_starts", "batch_size", "gamma", "tau"),
        *("train_freq", "gradient_steps", "target_update_interval", "exploration_fraction"),
        *("exploration_initial_eps", "exploration_final_eps", "max_grad_norm", "loss"),
        *("adam_eps", "hidden_sizes", "environments"),
    )
    notes = {
        "target_update_interval": "Environment steps; Tianshou counts gradient updates, and 0 is "
        "no target network.",
        "environments": "The only thing that is set: Tianshou has one per processor by default.",
    }
    return [
        Row(
            name,
            {key: str(values.get(name, "")) for key, values in found.items()},
            notes.get(name, ""),
        )
        for name in settings
    ]


def _sb3_defaults(library: str, algorithm: str) -> Mapping[str, Any]:
    constructor = getattr(importlib.import_module(library), algorithm)
    parameters = inspect.signature(constructor).parameters.values()
    values = {each.name: each.default for each in parameters if each.default is not each.empty}
    quantiles = algorithm == "QRDQN"
    return {
        "loss": "quantile Huber" if quantiles else "huber",
        "adam_eps": 0.01 / values["batch_size"] if quantiles else DQNConfig.adam_eps,
        "hidden_sizes": [64, 64],
        **values,
    }


def _tianshou_defaults(settings: TianshouSettings) -> Mapping[str, Any]:
    collected = settings.trainer["collection_step_num_env_steps"]
    per_sample = settings.trainer["update_step_num_gradient_steps_per_sample"]
    return {
        "learning_rate": settings.optimizer["lr"],
        "buffer_size": settings.buffer_size,
        "learning_starts": settings.warm_up,
        "batch_size": settings.trainer["batch_size"],
        "gamma": settings.algorithm["gamma"],
        "tau": 1.0,
        "train_freq": collected,
        "gradient_steps": round(collected * per_sample),
        "target_update_interval": settings.algorithm["target_update_freq"],
        "exploration_fraction": 0.0,
        "exploration_initial_eps": settings.epsilon.initial,
        "exploration_final_eps": settings.epsilon.final,
        "max_grad_norm": settings.max_grad_norm,
        "adam_eps": settings.optimizer["eps"],
        "loss": "mse" if settings.algorithm["huber_loss_delta"] is None else "huber",
        "hidden_sizes": list(settings.hidden_sizes),
    }


@dataclass(frozen=True)
class Row:
    """One levelled setting."""

    setting: str
    cells: Mapping[str, str]
    """By implementation: how the setting is made there."""

    note: str = ""
    """What is not the same in spite of that."""


def levelling_table(config: DQNConfig, total_timesteps: int) -> list[Row]:
    """How every built-in implementation was brought to the configuration.

    The cells hold the very values that the systems are built from.
    """
    ours = config.to_dict()
    sb3 = sb3_adapter_arguments(config, total_timesteps)
    # The double variant: it has all settings.
    host = tianshou_settings(dataclasses.replace(config, variant="double"), total_timesteps)
    adam_eps = sb3["policy_kwargs"]["optimizer_kwargs"]["eps"]
    owns = "the run's seed"

    def row(
        setting: str,
        core: str,
        sb3: str,
        tianshou_reference: str,
        *,
        sb3_reference: str | None = None,
        tianshou: str | None = None,
        qrdqn: str | None = None,
        sbx: str | None = None,
        ablation: str | None = None,
        note: str = "",
    ) -> Row:
        # The native agent and our Tianshou adapter both take a DQNConfig as it is.
        peer = sb3 if sb3_reference is None else sb3_reference
        cells = {
            "native": core,
            "sb3": sb3,
            "sb3-reference": peer,
            "tianshou": core if tianshou is None else tianshou,
            "tianshou-reference": tianshou_reference,
            "contrib": peer if qrdqn is None else qrdqn,
            "sbx": peer if sbx is None else sbx,
            "ablation": core if ablation is None else ablation,
        }
        return Row(setting, cells, note)

    return [
        row(
            "TD target",
            "variant",
            "variant",
            "is_double; vanilla: target_update_freq=0",
            sb3_reference="the target network selects and evaluates",
            qrdqn="the target network selects and evaluates, 200 quantiles",
            ablation="variant; ablation-residual does not stop the gradient through it",
        ),
        row(
            "Target period",
            f"{_show(ours, 'target_update_interval')} {config.target_update_unit}",
            f"{_show(sb3, 'target_update_interval')} {sb3['target_update_unit']}",
            f"{_show(host.algorithm, 'target_update_freq')} gradient updates",
            note="The same number of steps. Tianshou's own DQN counts from the first update, the "
            "others from the first step, so the copies fall on other moments.",
        ),
        row("Target update", _show(ours, "tau"), _show(sb3, "tau"), "copies the network (tau=1)"),
        row(
            "Loss",
            _show(ours, "loss", "huber_delta"),
            _show(sb3, "loss", "huber_delta"),
            _show(host.algorithm, "huber_loss_delta"),
            sb3_reference="smooth_l1_loss (Huber, delta 1)",
            qrdqn="quantile Huber (another algorithm)",
            sbx="optax.huber_loss (delta 1)",
        ),
        row(
            "Gradient clip, L2",
            _show(ours, "max_grad_norm"),
            _show(sb3, "max_grad_norm"),
            f"max_grad_norm={host.max_grad_norm}",
            sbx=f"optax.clip_by_global_norm({sb3['max_grad_norm']})",
            note="Tianshou's own DQN does not clip. A subclass hands max_grad_norm to the "
            "optimiser wrapper that Tianshou has for it, and changes nothing else. SBX's does not "
            "clip either; its optimiser is given as a chain of the clip and Adam.",
        ),
        row(
            "Adam",
            _show(ours, "learning_rate", "adam_eps"),
            f"{_show(sb3, 'learning_rate')}, optimizer_kwargs eps={adam_eps}",
            _show(host.optimizer, "lr", "eps"),
            sbx=f"optax.adam, {_show(sb3, 'learning_rate')}, eps={adam_eps}",
        ),
        row("Discount", _show(ours, "gamma"), _show(sb3, "gamma"), _show(host.algorithm, "gamma")),
        row(
            "Training phase",
            _show(ours, "train_freq", "gradient_steps", "batch_size"),
            _show(sb3, "train_freq", "gradient_steps", "batch_size"),
            _show(
                host.trainer,
                "collection_step_num_env_steps",
                "update_step_num_gradient_steps_per_sample",
                "batch_size",
            ),
            note="After every collection step Tianshou looks for NaN in the whole replay buffer, "
            "as shipped; the adapter's buffer looks at what is new. That is speed, not learning.",
        ),
        row(
            "Replay",
            f"{_show(ours, 'buffer_size')}, {owns}",
            f"{_show(sb3, 'buffer_size')}, {owns}",
            f"ReplayBuffer({host.buffer_size}), random_seed={owns}",
            ablation=f"{_show(ours, 'buffer_size')}, {owns}; in ablation-stream the newest "
            "batch_size transitions alone",
            note="Left alone, Tianshou's buffer draws from seed 42 in every experiment. One seed "
            "is another stream in each library, so minibatches are not paired.",
        ),
        row(
            "Warm-up",
            _show(ours, "learning_starts"),
            _show(sb3, "learning_starts"),
            f"collect(n_step={host.warm_up}, random=True), then the trainer",
            note="Its steps count as environment steps everywhere."
            + (
                ""
                if host.warm_up == config.learning_starts
                else " It ends with a training phase: in Tianshou's own DQN "
                f"{config.learning_starts - host.warm_up} steps earlier than in the others."
            ),
        ),
        row(
            "Exploration",
            "epsilon " + _epsilon(epsilon_schedule(config, total_timesteps)),
            _show(sb3, "exploration_steps", "exploration_initial_eps", "exploration_final_eps"),
            f"set_eps_training: {_epsilon(host.epsilon)}",
            sb3_reference=_show(
                sb3_arguments(config, total_timesteps),
                *("exploration_fraction", "exploration_initial_eps", "exploration_final_eps"),
            ),
            note="In Tianshou, ours and its own, epsilon is set before every collection step "
            f"({config.train_freq} environment steps), in the others before every step. One seed "
            "is another stream in each library, so exploration is not paired.",
        ),
        row(
            "Network",
            f"{_show(ours, 'hidden_sizes')}, ReLU",
            f"net_arch={sb3['policy_kwargs']['net_arch']}, ReLU",
            f"Net(hidden_sizes={list(host.hidden_sizes)}), ReLU",
            tianshou=f"Net(hidden_sizes={list(host.hidden_sizes)}), ReLU",
            note="SBX has two hidden layers of one size, and no others.",
        ),
        *(
            Row(name, {"native": _show(ours, name)}, "Set for the native agent only.")
            for name in unlevelled(config)
        ),
        row(
            "Initialisation",
            f"torch's default, {owns}",
            f"torch's default, {owns}",
            f"torch's default, {owns}",
            qrdqn=f"torch's default, {owns}; an output per quantile",
            sbx=f"torch's default, {owns}, copied",
            note="Paired: the networks of one seed begin equal in all systems but QR-DQN, which "
            "has more outputs, and so does the curve.",
        ),
        row(
            "Training environment",
            "seeded by the harness",
            "seeded by the harness; Monitor",
            "seeded by the harness; DummyVectorEnv",
            tianshou="seeded by the harness; DummyVectorEnv",
            note="Paired: every episode has a seed of its own, the same in all systems, whatever "
            "seed the library passes.",
        ),
        row(
            "Evaluation",
            "by the harness",
            "by the harness",
            "by the harness",
            note="Greedy, between two training phases, in other environments whose seeds are "
            "paired across systems. Its time is not training time.",
        ),
    ]


def by_environment(tables: Mapping[str, Sequence[Row]]) -> list[Row]:
    """The tables of several environments as one: a setting that is not the same in all of them has
    a row for each.

    Args:
        tables: By the title of the environment, as `levelling_table` makes them.
    """
    found: dict[str, dict[str, Row]] = {}
    for title, rows in tables.items():
        for each in rows:
            found.setdefault(each.setting, {})[title] = each
    merged = []
    for setting, rows_of in found.items():
        distinct = list(rows_of.values())
        if len(rows_of) == len(tables) and all(each == distinct[0] for each in distinct):
            merged.append(distinct[0])
            continue
        notes = {each.note for each in distinct}
        for title, each in rows_of.items():
            repeated = len(notes) == 1 and each is not distinct[-1]
            note = "" if repeated else each.note
            merged.append(dataclasses.replace(each, setting=f"{setting}, {title}", note=note))
    return merged


def own_settings(systems: Sequence[System]) -> list[Row]:
    """What a suite sets for single systems, and so is not levelled."""
    return [
        Row(
            f"Only {system.name}",
            {
                system.implementation: _show(
                    system.configure(DQNConfig()).to_dict(), *system.settings
                )
            },
            "Set for this system by the suite; the rest of its settings is levelled.",
        )
        for system in systems
        if system.settings
    ]


def _show(values: Mapping[str, Any], *names: str) -> str:
    return ", ".join(f"{name}={values[name]}" for name in names)


def _epsilon(schedule: LinearSchedule) -> str:
    return f"{schedule.initial:g} to {schedule.final:g} over {schedule.steps} steps"
