"""One DQN, written once, for the reinforcement-learning library you already use.

The core imports no host library; the adapters are `dqn_adapters.sb3` and `dqn_adapters.tianshou`.
"""

from dqn_adapters.agent import DQNAgent, TrainingStep
from dqn_adapters.config import DQNConfig
from dqn_adapters.learner import DQNLearner
from dqn_adapters.portable import load_policy, restore_policy, save_policy
from dqn_adapters.targets import double_q_learning_target, q_learning_target
from dqn_adapters.transition import Transition

__all__ = [
    "DQNAgent",
    "DQNConfig",
    "DQNLearner",
    "TrainingStep",
    "Transition",
    "double_q_learning_target",
    "load_policy",
    "q_learning_target",
    "restore_policy",
    "save_policy",
]
