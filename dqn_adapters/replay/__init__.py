"""Experience replay. A buffer owns the random generator that it samples with."""

from dqn_adapters.replay.buffer import ReplayBuffer
from dqn_adapters.replay.n_step import n_step_returns
from dqn_adapters.replay.uniform import UniformReplay

__all__ = ["ReplayBuffer", "UniformReplay", "n_step_returns"]
