"""2 N steps are N steps, a file, a new process, and N steps: to the last bit."""

from __future__ import annotations

import copy
import dataclasses
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
from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactoryLinear
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


def make(option: str, seed: int, **changes: Any) -> tuple[DQN[DQNPolicy], Collector[Any]]:
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
    hidden_sizes = changes.pop("hidden_sizes", config.hidden_sizes)  # of the network alone
    config = dataclasses.replace(config, **changes)

    def env() -> Any:
        cart_pole = gym.make("CartPole-v1")
        return Frames(cart_pole) if option == "frames" else cart_pole

    torch.manual_seed(seed)
    space = env().observation_space
    policy = DQNPolicy(
        model=QNet(space, 2, hidden_sizes), action_space=spaces.Discrete(2), seed=seed
    )
    envs = DummyVectorEnv([env] * 2)
    envs.seed(seed)
    buffer = make_buffer(config, 2, seed=seed)
    optim = AdamOptimizerFactory(lr=1e-2)
    if option == "plain":
        optim.with_lr_scheduler_factory(LRSchedulerFactoryLinear(1, 100, 1))
    algorithm: DQN[DQNPolicy] = DQN(policy=policy, config=config, optim=optim)
    return algorithm, Collector(policy, envs, buffer, True)


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
        "learning rate": torch.tensor([s.get_last_lr()[0] for s in algorithm.lr_schedulers]),
        "random actions": random_actions(collector),
    }


def random_actions(collector: Any) -> torch.Tensor:
    """Those of `collect(random=True)`, which Tianshou draws from the action spaces."""
    collector.reset()
    collector.collect(n_step=40, random=True)
    return torch.tensor(collector.buffer.act)


def main(folder: str) -> None:
    for option in OPTIONS:
        algorithm, collector = make(option, seed=5)
        load_checkpoint(f"{folder}/{option}", algorithm, collector)
        run(algorithm, collector)
        torch.save(fingerprint(algorithm, collector), f"{folder}/{option}.out")


def test_a_new_process_goes_on_exactly(tmp_path: Path) -> None:
    expected = {}
    for option in OPTIONS:
        algorithm, collector = make(option, seed=0)
        collector.reset()
        collector.collect(n_step=6, random=True)
        run(algorithm, collector)
        save_checkpoint(tmp_path / option, algorithm, collector)
        run(algorithm, collector)
        expected[option] = fingerprint(algorithm, collector)
        assert expected[option]["counts"].tolist()[0] == 160
    assert expected["plain"]["learning rate"] == pytest.approx(1e-2 * 0.3)  # after 70 updates

    code = f"import test_resume; test_resume.main({str(tmp_path)!r})"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    for option, values in expected.items():
        resumed = torch.load(tmp_path / f"{option}.out", weights_only=True)
        for name, value in values.items():
            assert torch.equal(resumed[name], value), (option, name)


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
    for change, message in (
        ({"n_steps": 3}, "trained with n_steps=1, this algorithm has 3"),
        ({"hidden_sizes": (17,)}, r"shape \(17, 4\), got \(16, 4\)"),
    ):
        other, empty = make("plain", seed=1, **change)
        before = copy.deepcopy(dict(other.state_dict()))
        with pytest.raises(ValueError, match=message):
            load_checkpoint(path, other, empty)
        for name, value in other.state_dict().items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, before[name]), name
            else:
                assert str(value) == str(before[name]), name
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
