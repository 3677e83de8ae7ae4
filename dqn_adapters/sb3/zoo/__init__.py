"""The variants as algorithms of the RL Zoo: `python -m dqn_adapters.sb3.zoo train --algo ...`."""

from dqn_adapters._extras import require

require("rl_zoo3", extra="zoo")

from dqn_adapters.sb3.zoo.algorithms import (  # noqa: E402
    ALGORITHMS,
    DoubleDQN,
    TargetDQN,
    VanillaDQN,
    register,
)
from dqn_adapters.sb3.zoo.command import main  # noqa: E402

__all__ = ["ALGORITHMS", "DoubleDQN", "TargetDQN", "VanillaDQN", "main", "register"]
