"""DQN as a Stable-Baselines3 algorithm: `from dqn_adapters.sb3 import DQN`, and nothing else."""

from dqn_adapters._extras import require

require("stable_baselines3", extra="sb3")

from stable_baselines3.dqn import CnnPolicy, MlpPolicy, MultiInputPolicy  # noqa: E402

from dqn_adapters.sb3.buffers import CoreReplayBuffer  # noqa: E402
from dqn_adapters.sb3.callbacks import OverestimationCallback  # noqa: E402
from dqn_adapters.sb3.dqn import DQN  # noqa: E402
from dqn_adapters.sb3.vector_env import VectorEnvAdapter  # noqa: E402

__all__ = [
    "DQN",
    "CnnPolicy",
    "CoreReplayBuffer",
    "MlpPolicy",
    "MultiInputPolicy",
    "OverestimationCallback",
    "VectorEnvAdapter",
]
