"""The page about Tianshou: its code runs as it stands, but shorter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.env import DummyVectorEnv
from tianshou.highlevel.env import EnvFactoryRegistered, VectorEnvType
from tianshou.highlevel.experiment import ExperimentConfig
from tianshou.utils.net.common import Net

from dqn_adapters import DQNConfig
from dqn_adapters.tianshou import DQN, load_checkpoint, save_checkpoint

PAGE = (Path(__file__).parents[2] / "docs" / "tianshou.md").read_text()
IMPORT, ALL, HIGH_LEVEL, RAY, AGENTS, RESUME = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(code: str, **names: Any) -> dict[str, Any]:
    for steps in ("50_000", "20_000"):
        code = code.replace(steps, "250")
    exec(compile(code, "docs/tianshou.md", "exec"), names)
    return names


def given() -> dict[str, Any]:
    envs = DummyVectorEnv([lambda: gym.make("CartPole-v1")])
    return {"env": gym.make("CartPole-v1"), "envs": envs}


def test_the_changed_import() -> None:
    net = Net(state_shape=4, action_shape=2)
    made = run(IMPORT, net=net, AdamOptimizerFactory=AdamOptimizerFactory, **given())
    assert made["algorithm"].config.variant == "double"


def test_all_of_it_and_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = run(ALL, **given())
    algorithm: DQN[Any] = made["algorithm"]
    assert algorithm.counts["steps"] >= 250
    params = made["trainer_params"](made["config"], 8, training_collector=made["collector"])
    functions = {"save_checkpoint": save_checkpoint, "load_checkpoint": load_checkpoint}
    run(RESUME, algorithm=algorithm, collector=made["collector"], params=params, **functions)
    assert algorithm.counts["steps"] >= 258


def test_high_level(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = ExperimentConfig(watch=False, persistence_enabled=False, log_file_enabled=False)
    monkeypatch.setattr("tianshou.highlevel.experiment.ExperimentConfig", lambda: quiet)
    code = HIGH_LEVEL.replace("SUBPROC", "DUMMY")
    config = DQNConfig(learning_starts=20, train_freq=10)
    names = {"EnvFactoryRegistered": EnvFactoryRegistered, "VectorEnvType": VectorEnvType}
    made = run(code, config=config, **names)
    assert made["experiment"].config is quiet


def test_many_agents() -> None:
    import dqn_adapters.tianshou as ours

    names = {name: getattr(ours, name) for name in ours.__all__}
    options = {"n_steps": 3, "dueling": True, "prioritized_replay": True}  # those of the page
    config = DQNConfig(variant="double", learning_starts=100, train_freq=10, **options)
    made = run(AGENTS, config=config, DummyVectorEnv=DummyVectorEnv, **names)
    assert made["dqn"].counts["steps"] >= 250
    assert 10 < made["dqn"].counts["updates"] <= 15


def test_ray_is_named() -> None:
    """It is run in test_training_script.py."""
    assert "RayVectorEnv" in RAY
