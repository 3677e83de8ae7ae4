"""Experience replay. A buffer owns the random generator that it samples with."""

from dqn_adapters.replay.buffer import ReplayBuffer
from dqn_adapters.replay.n_step import n_step_returns

__all__ = ["ReplayBuffer", "n_step_returns"]
