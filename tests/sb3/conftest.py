"""A small model, and what the tests ask of networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import Chain

from dqn_adapters.sb3 import DQN


@pytest.fixture
def make() -> Any:
    """Makes a model that begins to learn early: `make(env, cls=DQN, policy=..., **settings)`."""

    def make(env: Any = None, cls: Any = DQN, policy: Any = "MlpPolicy", **settings: Any) -> Any:
        small = {
            "learning_rate": 1e-2,
            "learning_starts": 20,
            "batch_size": 16,
            "target_update_interval": 50,
            "buffer_size": 1000,
            "policy_kwargs": {"net_arch": [16]},
            "seed": 0,
            "device": "cpu",
        }
        return cls(policy, Chain() if env is None else env, **{**small, **settings})

    return make


@pytest.fixture
def weights() -> Any:
    """All parameters of a module in one vector, as they are now."""

    def weights(module: torch.nn.Module) -> torch.Tensor:
        return torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()

    return weights
