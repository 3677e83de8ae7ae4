"""Experience replay. Each buffer owns the random generator that it samples with."""

from dqn_adapters.replay.uniform import UniformReplay

__all__ = ["UniformReplay"]
