from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from gymnasium import spaces
from tianshou.algorithm.optim import AdamOptimizerFactory

from dqn_adapters import DQNConfig
from dqn_adapters.tianshou import DQN, DQNPolicy


def make(**options: Any) -> DQN[DQNPolicy]:
    policy = DQNPolicy(model=torch.nn.Linear(2, 2), action_space=spaces.Discrete(2))
    options.setdefault("optim", AdamOptimizerFactory())
    return DQN(policy=policy, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_update_freq": 0}, {"variant": "vanilla", "loss": "mse", "max_grad_norm": None}),
        ({"is_double": False}, {"variant": "vanilla"}),
        (
            {"target_update_freq": 9},
            {"variant": "double", "target_update_interval": 9, "target_update_unit": "updates"},
        ),
        ({"target_update_freq": 9, "is_double": False}, {"variant": "target"}),
        ({"target_update_freq": 9, "variant": "target", "tau": 0.5}, {"variant": "target"}),
        ({"variant": "vanilla", "huber_loss_delta": 2.0}, {"loss": "huber", "huber_delta": 2.0}),
        ({"variant": "vanilla", "huber_loss_delta": None, "gamma": 0.5}, {"gamma": 0.5}),
        (
            {"variant": "double", "target_update_interval": 50, "loss": "huber"},
            {"target_update_interval": 50, "target_update_unit": "steps", "huber_delta": 1.0},
        ),
        ({"variant": "vanilla", "n_step_return_horizon": 3}, {"n_steps": 3}),
        ({"variant": "vanilla", "n_steps": 3}, {"n_steps": 3}),
        (
            {"variant": "vanilla", "prioritized_replay": True, "priority_beta": 0.5},
            {"prioritized_replay": True, "priority_beta": 0.5, "priority_beta_final": 1.0},
        ),
        ({"variant": "target"}, {"target_update_interval": DQNConfig().target_update_interval}),
    ],
)
def test_what_the_keywords_mean(options: dict[str, Any], expected: dict[str, Any]) -> None:
    config = make(**options).config
    assert {name: getattr(config, name) for name in expected} == expected


def test_a_config_says_everything() -> None:
    config = DQNConfig(variant="double", learning_rate=0.5, adam_eps=0.25)
    algorithm = make(config=config, optim=None)
    assert algorithm.config is config
    assert isinstance(algorithm.learner.optimizer, torch.optim.Adam)
    group = algorithm.learner.optimizer.param_groups[0]
    assert (group["lr"], group["eps"]) == (0.5, 0.25)
    assert algorithm.policy.eps_training == 1.0


def test_the_default_is_tianshous_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert make().config.variant == "vanilla"
    assert "without a target network (variant='vanilla')" in caplog.text
    caplog.clear()
    make(variant="vanilla")
    make(target_update_freq=0)
    assert not caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # T10: Tianshou takes this for the maximum over one network, without a word.
        ({"is_double": True}, "is_double=True needs a target network.*write variant='double'"),
        ({"is_double": True, "target_update_freq": 0}, "target_update_interval=N"),
        ({"variant": "double", "target_update_freq": 0}, "variant='double' needs a target"),
        ({"variant": "vanilla", "target_update_freq": 5}, "target_update_freq: variant='vanilla'"),
        ({"variant": "vanilla", "target_update_interval": 5}, "has no target network; write"),
        ({"target_update_interval": 5}, "write variant='double' or variant='target'"),
        ({"tau": 0.5}, "tau: variant='vanilla' has no target network"),
        ({"variant": "double", "is_double": True}, "is_double and variant say the same thing"),
        (
            {"variant": "double", "target_update_freq": 5, "target_update_interval": 5},
            "target_update_freq and target_update_interval say the same thing",
        ),
        (
            {"variant": "double", "target_update_freq": 5, "target_update_unit": "steps"},
            "target_update_freq and target_update_unit say the same thing",
        ),
        ({"loss": "mse", "huber_loss_delta": 1.0}, "huber_loss_delta and loss say the same thing"),
        ({"huber_delta": 1.0, "huber_loss_delta": 1.0}, "write huber_delta alone"),
        ({"variant": "vanilla", "huber_delta": 1.0}, "write loss='huber' beside it"),
        ({"n_step_return_horizon": 0}, "n_step_return_horizon=0.*an integer >= 1"),
        ({"n_step_return_horizon": 3, "n_steps": 3}, "write n_steps alone"),
        ({"priority_beta": 0.5}, "priority_beta: write prioritized_replay=True beside it"),
        ({"config": DQNConfig(dueling=True), "optim": None}, "has no dueling head.*QNet"),
        ({"target_update_freq": -1}, "target_update_freq=-1 .* an integer >= 0"),
        ({"target_update_freq": 2.5}, "target_update_freq=2.5"),
        ({"variant": "dueling"}, "one of 'vanilla', 'target', 'double'"),
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"optim": None}, r"optim=AdamOptimizerFactory\(lr"),
        ({"config": DQNConfig(), "gamma": 0.9}, r"config and gamma.*dataclasses\.replace"),
    ],
)
def test_contradictions_are_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": torch.optim.Adam}, "optim must be an OptimizerFactory"),
        ({"config": {"gamma": 0.9}}, "config must be a DQNConfig"),
    ],
)
def test_arguments_of_another_type_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make(**options)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="no option 'learning_rate'.*belong to Tianshou's optim"):
        make(learning_rate=0.1)
