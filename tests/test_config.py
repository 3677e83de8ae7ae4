from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import numpy as np
import pytest

from dqn_adapters import DQNConfig


def test_round_trip_through_json() -> None:
    config = DQNConfig(variant="double", hidden_sizes=(8, 4), max_grad_norm=None)
    assert DQNConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_frozen_and_keyword_only() -> None:
    config = DQNConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.gamma = 0.5  # type: ignore[misc]
    with pytest.raises(TypeError):
        DQNConfig("double")  # type: ignore[misc]


def test_numbers_are_normalised() -> None:
    config = DQNConfig(
        gamma=np.float32(0.5), batch_size=np.int64(4), hidden_sizes=[np.int32(3)], tau=1
    )
    assert type(config.gamma) is type(config.tau) is float
    assert type(config.batch_size) is int
    assert config.hidden_sizes == (3,)
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("variant", "doubel", "one of 'vanilla', 'target', 'double'"),
        ("variant", None, "one of 'vanilla', 'target', 'double'"),
        ("variant", ["double"], "one of 'vanilla', 'target', 'double'"),
        ("loss", "l1", "one of 'huber', 'mse'"),
        ("target_update_unit", "frames", "one of 'steps', 'episodes', 'updates'"),
        ("learning_rate", -1e-3, r"a number in (0, inf)"),
        ("learning_rate", 0, r"a number in (0, inf)"),
        ("learning_rate", float("nan"), r"a number in (0, inf)"),
        ("learning_rate", float("inf"), r"a number in (0, inf)"),
        ("learning_rate", "0.1", r"a number in (0, inf)"),
        ("learning_rate", True, r"a number in (0, inf)"),
        ("learning_rate", None, r"a number in (0, inf)"),
        ("adam_eps", 0.0, r"a number in (0, inf)"),
        ("gamma", 1.01, "a number in [0, 1]"),
        ("n_steps", 1_000_001, "at most buffer_size=1000000"),
        ("gamma", -0.1, "a number in [0, 1]"),
        ("tau", 0.0, "a number in (0, 1]"),
        ("tau", 1.5, "a number in (0, 1]"),
        ("exploration_initial_eps", 2, "a number in [0, 1]"),
        ("exploration_final_eps", -1, "a number in [0, 1]"),
        ("exploration_fraction", 1.5, "a number in [0, 1]"),
        ("exploration_steps", -1, "an integer >= 0 or None"),
        ("buffer_size", 0, "an integer >= 1"),
        ("batch_size", 32.0, "an integer >= 1"),
        ("batch_size", True, "an integer >= 1"),
        ("learning_starts", -1, "an integer >= 0"),
        ("train_freq", 0, "an integer >= 1"),
        ("gradient_steps", -1, "an integer >= 1"),
        ("target_update_interval", 0, "an integer >= 1"),
        ("huber_delta", 0, "a number in (0, inf)"),
        ("max_grad_norm", 0, "a number in (0, inf) or None"),
        ("hidden_sizes", 64, "a tuple of integers >= 1"),
        ("hidden_sizes", "64", "a tuple of integers >= 1"),
        ("hidden_sizes", (64, 0), "a tuple of integers >= 1"),
    ],
)
def test_errors_name_the_field_the_value_and_what_is_accepted(
    field: str, value: Any, accepted: str
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        DQNConfig(**{field: value})
    assert str(error.value) == f"{field}={value!r} is not accepted; {field} must be {accepted}"


def test_an_unknown_field_of_a_stored_config_is_named() -> None:
    with pytest.raises(ValueError, match="unknown field 'gama'; the fields are variant, "):
        DQNConfig.from_dict({"gama": 0.9})


def test_every_field_is_documented() -> None:
    """Attribute docstrings are not kept at run time, so they are looked for in the source."""
    source = inspect.getsource(DQNConfig)
    for field in dataclasses.fields(DQNConfig):
        _, _, after = source.partition(f"\n    {field.name}: ")
        assert after.split("\n", 2)[1].startswith('    """'), field.name
