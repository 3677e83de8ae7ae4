import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from dqn_adapters import DQNConfig
from dqn_adapters.benchmark import EnvironmentSpec, EvaluationSpec, RunSpec

RUN = RunSpec(
    environment=EnvironmentSpec("CartPole-v1"),
    system="native-double",
    config=DQNConfig(variant="double", learning_rate=1e-3, hidden_sizes=(32, 16)),
    total_timesteps=64,
    evaluation=EvaluationSpec((0, 32, 64), 2),
    root_seed=0,
    seed_index=3,
)

CHANGES: dict[str, Callable[[RunSpec], RunSpec]] = {
    "environment": lambda run: dataclasses.replace(run, environment=EnvironmentSpec("Acrobot-v1")),
    "kwargs": lambda run: dataclasses.replace(
        run, environment=EnvironmentSpec("CartPole-v1", {"sutton_barto_reward": True})
    ),
    "time limit": lambda run: dataclasses.replace(
        run, environment=EnvironmentSpec("CartPole-v1", max_episode_steps=100)
    ),
    "configuration": lambda run: dataclasses.replace(
        run, config=dataclasses.replace(run.config, gamma=0.9)
    ),
    "steps": lambda run: dataclasses.replace(run, total_timesteps=128),
    "evaluation": lambda run: dataclasses.replace(run, evaluation=EvaluationSpec((0, 64), 2)),
    "values": lambda run: dataclasses.replace(
        run, evaluation=EvaluationSpec((0, 32, 64), 2, values=True)
    ),
    "noise": lambda run: dataclasses.replace(
        run, environment=EnvironmentSpec("CartPole-v1", reward_noise=1.0)
    ),
    "root seed": lambda run: dataclasses.replace(run, root_seed=1),
}
FREE: dict[str, Callable[[RunSpec], RunSpec]] = {
    "system": lambda run: dataclasses.replace(run, system="sb3-double"),
    "variant": lambda run: dataclasses.replace(
        run,
        system="native-vanilla",
        config=dataclasses.replace(run.config, variant="vanilla"),
    ),
    "seed": lambda run: dataclasses.replace(run, seed_index=4),
}


def test_a_spec_survives_json() -> None:
    again = RunSpec.from_dict(json.loads(json.dumps(RUN.to_dict())))
    assert again == RUN
    assert again.identity == RUN.identity
    assert again.name == RUN.name


@pytest.mark.parametrize("change", CHANGES)
def test_every_spec_survives_json(change: str) -> None:
    run = CHANGES[change](RUN)
    assert RunSpec.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format=0"):
        RunSpec.from_dict({**RUN.to_dict(), "format": 0})


def test_labels_and_what_was_levelled_survive_json_and_decide_nothing() -> None:
    labelled = dataclasses.replace(
        RUN,
        environment=EnvironmentSpec("CartPole-v1", label="Pole"),
        label="mine",
        levelled={"learning_rate": 1e-4},
    )
    again = RunSpec.from_dict(json.loads(json.dumps(labelled.to_dict())))
    assert again == labelled
    assert again.environment.title == "Pole"
    assert labelled.identity == RUN.identity
    assert labelled.name == f"CartPole-v1_mine_s003_{RUN.identity}"
    assert RUN.title == "native-double"


def test_settings_of_a_systems_own_are_compared_with_what_was_levelled() -> None:
    """The same levelled configuration is the same protocol, and nothing else is."""
    own = dataclasses.replace(RUN.config, gamma=0.5, learning_rate=3e-4)
    changed = dataclasses.replace(
        RUN, config=own, label="mine", levelled={"gamma": 0.99, "learning_rate": 1e-3}
    )
    assert changed.protocol == RUN.protocol
    assert changed.identity != RUN.identity
    elsewhere = dataclasses.replace(changed, levelled={"gamma": 0.99, "learning_rate": 1e-4})
    assert elsewhere.protocol != RUN.protocol


@pytest.mark.parametrize("change", {**CHANGES, **FREE})
def test_whatever_changes_the_numbers_changes_the_identity(change: str) -> None:
    other = {**CHANGES, **FREE}[change](RUN)
    assert other.identity != RUN.identity
    assert other.name != RUN.name


@pytest.mark.parametrize("change", CHANGES)
def test_runs_of_another_protocol_are_not_compared(change: str) -> None:
    assert CHANGES[change](RUN).protocol != RUN.protocol


@pytest.mark.parametrize("change", FREE)
def test_systems_variants_and_seeds_are_compared(change: str) -> None:
    assert FREE[change](RUN).protocol == RUN.protocol


def test_the_name_can_be_read_and_is_a_file_name() -> None:
    assert RUN.name == f"CartPole-v1_native-double_s003_{RUN.identity}"
    odd = dataclasses.replace(RUN, system="my.package:train", environment=EnvironmentSpec("A/B-v1"))
    assert odd.name == f"A-B-v1_my.package-train_s003_{odd.identity}"
    imported = dataclasses.replace(RUN, environment=EnvironmentSpec("my.module:My/Env-v0"))
    assert imported.name == f"My-Env-v0_native-double_s003_{imported.identity}"


def test_a_new_field_with_its_default_leaves_results_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    before = RUN.identity, RUN.protocol
    to_dict = DQNConfig.to_dict

    def with_new_field(self: DQNConfig) -> dict[str, Any]:
        return {**to_dict(self), "n_steps": 1}

    monkeypatch.setattr(DQNConfig, "to_dict", with_new_field)
    assert (RUN.identity, RUN.protocol) == before


def test_the_defaults_that_format_2_stands_for() -> None:
    """If this fails because a default changed, raise `spec.FORMAT`: results that were stored are
    those of the old default. New fields are free."""
    defaults = DQNConfig().to_dict()
    assert (
        defaults
        | {
            "variant": "target",
            "learning_rate": 1e-4,
            "adam_eps": 1e-8,
            "buffer_size": 1_000_000,
            "learning_starts": 100,
            "batch_size": 32,
            "gamma": 0.99,
            "tau": 1.0,
            "train_freq": 4,
            "gradient_steps": 1,
            "target_update_interval": 10_000,
            "target_update_unit": "steps",
            "exploration_initial_eps": 1.0,
            "exploration_final_eps": 0.05,
            "exploration_fraction": 0.1,
            "exploration_steps": None,
            "loss": "huber",
            "huber_delta": 1.0,
            "max_grad_norm": 10.0,
            "hidden_sizes": [64, 64],
        }
        == defaults
    )


def test_seeds_are_paired_across_systems_and_independent_otherwise() -> None:
    assert FREE["system"](RUN).seeds == RUN.seeds
    assert CHANGES["environment"](RUN).seeds == RUN.seeds
    runs = [
        dataclasses.replace(RUN, root_seed=root, seed_index=index)
        for root in range(3)
        for index in range(10)
    ]
    seeds = [seed for run in runs for seed in dataclasses.astuple(run.seeds)]
    seeds += [seed for run in runs for point in range(5) for seed in run.evaluation_seeds(point)]
    seeds += [run.episode_seed(number) for run in runs for number in range(5)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert FREE["system"](RUN).evaluation_seeds(1) == RUN.evaluation_seeds(1)
    assert FREE["system"](RUN).episode_seed(1) == RUN.episode_seed(1)
