"""2 N steps are N steps, a file, a new process, and N steps: to the last bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.data import Collector
from tianshou.env import DummyVectorEnv

from dqn_adapters import DQNConfig
from dqn_adapters.checkpoint import CheckpointError
from dqn_adapters.tianshou import (
    DQN,
    DQNPolicy,
    QNet,
    load_checkpoint,
    make_buffer,
    save_checkpoint,
    trainer_params,
)

OPTIONS = {
    "plain": {"variant": "vanilla"},
    "priorities": {"variant": "double", "prioritized_replay": True, "n_steps": 3},
    "frames": {"variant": "target", "frame_stack": 2, "n_steps": 2},
}


class Frames(gym.ObservationWrapper[Any, Any, Any]):
    """The last two observations."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, (2, 4))

    def reset(self, **kwargs: Any) -> Any:
        self.last = None
        return super().reset(**kwargs)

    def observation(self, observation: Any) -> Any:
        last, self.last = self.last, observation
        return np.array([observation if last is None else last, observation], np.float32)


def make(option: str, seed: int) -> tuple[DQN[DQNPolicy], Collector[Any]]:
    config = DQNConfig(
        learning_starts=20,
        batch_size=8,
        buffer_size=60,
        train_freq=2,
        learning_rate=1e-2,
        target_update_interval=15,
        exploration_steps=150,
        priority_beta_steps=150,
        hidden_sizes=(16,),
        **OPTIONS[option],
    )

    def env() -> Any:
        cart_pole = gym.make("CartPole-v1")
        return Frames(cart_pole) if option == "frames" else cart_pole

    torch.manual_seed(seed)
    space = env().observation_space
    policy = DQNPolicy(model=QNet(space, 2, (16,)), action_space=spaces.Discrete(2), seed=seed)
    envs = DummyVectorEnv([env] * 2)
    envs.seed(seed)
    buffer = make_buffer(config, 2, seed=seed)
    return DQN(policy=policy, config=config), Collector(policy, envs, buffer, True)


def run(algorithm: Any, collector: Any) -> None:
    params = trainer_params(
        algorithm.config, 80, training_collector=collector, verbose=False, show_progress=False
    )
    algorithm.run_training(params)


def fingerprint(algorithm: Any, collector: Any) -> dict[str, torch.Tensor]:
    """What a run leaves behind; the draws at the end are of the streams where they now stand."""
    buffer = collector.buffer
    rows = buffer.sample_indices(32)
    batch = buffer[rows]
    return {
        "weights": torch.cat([p.detach().flatten() for p in algorithm.parameters()]),
        "epsilon": torch.tensor(algorithm.policy.eps_training),
        "counts": torch.tensor([*algorithm.learner.counts.values(), collector.collect_step]),
        "rows": torch.tensor(rows),
        "obs": torch.tensor(batch.obs),
        "obs_next": torch.tensor(batch.obs_next),
        "reset": torch.tensor(collector.env.reset()[0]),
        "torch": torch.rand(2),
    }


def main(option: str, checkpoint: str, out: str) -> None:
    algorithm, collector = make(option, seed=5)
    load_checkpoint(checkpoint, algorithm, collector)
    run(algorithm, collector)
    torch.save(fingerprint(algorithm, collector), out)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_new_process_goes_on_exactly(option: str, tmp_path: Path) -> None:
    path, out = tmp_path / "checkpoint", tmp_path / "out"
    algorithm, collector = make(option, seed=0)
    run(algorithm, collector)
    save_checkpoint(path, algorithm, collector)
    run(algorithm, collector)
    expected = fingerprint(algorithm, collector)
    assert expected["counts"].tolist()[0] == 160

    code = f"import test_resume; test_resume.main({option!r}, {str(path)!r}, {str(out)!r})"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    resumed = torch.load(out, weights_only=True)
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    algorithm, collector = make("plain", seed=0)
    run(algorithm, collector)
    save_checkpoint(path, algorithm, collector)
    for option, message in (("priorities", "class="), ("frames", "stack_num=1, this one has 2")):
        other, empty = make(option, seed=1)
        before = torch.cat([p.detach().flatten() for p in other.parameters()])
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path, other, empty)
        assert torch.equal(torch.cat([p.detach().flatten() for p in other.parameters()]), before)
        assert not len(empty.buffer)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path, algorithm, collector)


def test_an_emptied_buffer_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`Collector.reset` empties the buffer that was just loaded."""
    algorithm, collector = make("plain", seed=0)
    run(algorithm, collector)
    save_checkpoint(tmp_path / "checkpoint", algorithm, collector)
    load_checkpoint(tmp_path / "checkpoint", algorithm, collector)
    assert len(collector.buffer) == 60
    assert not caplog.text
    collector.reset()
    run(algorithm, collector)
    assert "the replay buffer is empty, and the algorithm has made 30 updates" in caplog.text
