"""An environment that breaks is named, and what was learned is kept; beside Tianshou."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tianshou.data as host
import torch
from gymnasium import spaces
from support import Chain
from tianshou.algorithm import DQN as HostDQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector
from tianshou.env import DummyVectorEnv

from dqn_adapters import DQNConfig
from dqn_adapters.finite import NonFiniteError
from dqn_adapters.tianshou import (
    DQN,
    DQNPolicy,
    QNet,
    make_buffer,
    save_checkpoint,
    trainer_params,
)

CONFIG = DQNConfig(variant="vanilla", learning_starts=4, batch_size=8, train_freq=2)


class Breaks(Chain):
    """Gives an infinite reward, or an observation with a NaN, at its 41st step."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.count = what, 0

    def step(self, action: int) -> Any:
        observation, reward, *rest = super().step(action)
        self.count += 1
        if self.count == 41:
            if self.what == "reward":
                reward = np.inf
            else:
                observation[2] = np.nan
        return observation, reward, *rest


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def train(algorithm: Any, what: str, buffer: Any) -> Collector[Any]:
    envs = DummyVectorEnv([lambda: Chain(), lambda: Breaks(what)])
    collector = Collector(
        algorithm.policy, envs, buffer, exploration_noise=True, raise_on_nan_in_buffer=False
    )
    params = trainer_params(
        CONFIG, 300, training_collector=collector, verbose=False, show_progress=False
    )
    try:
        algorithm.run_training(params)
    finally:
        algorithm.collector = collector
    return collector


def ours() -> DQN[DQNPolicy]:
    torch.manual_seed(0)
    model = QNet(Chain().observation_space, 2, (8,))
    return DQN(
        policy=DQNPolicy(model=model, action_space=spaces.Discrete(2), seed=0), config=CONFIG
    )


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("reward", r"^rew of environment 1 is inf; it must be finite"),
        ("observation", r"^obs_next of environment 1 is nan, at index \(2,\)"),
    ],
)
def test_it_is_named_before_it_is_learned(what: str, message: str, tmp_path: Path) -> None:
    algorithm = ours()
    with pytest.raises(NonFiniteError, match=message + r".*while collecting after step 80\)"):
        train(algorithm, what, make_buffer(CONFIG, 2, seed=0))
    assert algorithm.learner.num_updates == 38
    assert torch.isfinite(weights(algorithm.policy.model)).all()
    save_checkpoint(tmp_path / "last", algorithm, algorithm.collector)


def test_a_buffer_of_tianshou_is_looked_at_when_it_is_sampled() -> None:
    algorithm = ours()
    with pytest.raises(NonFiniteError, match="rew of row .* is inf"):
        train(algorithm, "reward", host.VectorReplayBuffer(400, 2))
    assert torch.isfinite(weights(algorithm.policy.model)).all()


@pytest.mark.filterwarnings("ignore:invalid value")  # of Tianshou's statistics of the returns
def test_tianshou_learns_it() -> None:
    policy = DiscreteQLearningPolicy(
        model=QNet(Chain().observation_space, 2, (8,)), action_space=spaces.Discrete(2)
    )
    theirs = HostDQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3))
    train(theirs, "reward", host.VectorReplayBuffer(400, 2))
    assert torch.isnan(weights(policy.model)).any()
