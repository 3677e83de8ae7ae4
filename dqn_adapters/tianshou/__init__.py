"""DQN for Tianshou 2: `DQNPolicy` acts, `Collector` stores, `DQN` learns, each where Tianshou's own
is accepted.

    policy = DQNPolicy(model=net, action_space=env.action_space, seed=0)
    algorithm = DQN(
        policy=policy,
        optim=AdamOptimizerFactory(lr=1e-3),
        variant="double",
        target_update_interval=500,
    )
    buffer = VectorReplayBuffer(100_000, len(envs), seed=0)
    collector = Collector(policy, envs, buffer, exploration_noise=True)
    algorithm.run_training(OffPolicyTrainerParams(training_collector=collector))

A run is decided by the seeds of the policy, of the buffer (Tianshou's own buffers draw every
experiment's indices from seed 42), of the environments (`envs.seed`) and of the network's
initialisation (`torch.manual_seed`).
"""

from dqn_adapters._extras import require

require("tianshou", extra="tianshou")

from dqn_adapters.tianshou.algorithm import DQN, DQNTrainingStats  # noqa: E402
from dqn_adapters.tianshou.buffers import (  # noqa: E402
    PrioritizedReplayBuffer,
    PrioritizedVectorReplayBuffer,
    ReplayBuffer,
    VectorReplayBuffer,
    make_buffer,
)
from dqn_adapters.tianshou.collector import Collector  # noqa: E402
from dqn_adapters.tianshou.networks import QNet  # noqa: E402
from dqn_adapters.tianshou.policy import DQNPolicy  # noqa: E402
from dqn_adapters.tianshou.resume import load_checkpoint, save_checkpoint  # noqa: E402
from dqn_adapters.tianshou.trainer import DQNTrainer, trainer_params  # noqa: E402

__all__ = [
    "DQN",
    "Collector",
    "DQNPolicy",
    "DQNTrainer",
    "DQNTrainingStats",
    "PrioritizedReplayBuffer",
    "PrioritizedVectorReplayBuffer",
    "QNet",
    "ReplayBuffer",
    "VectorReplayBuffer",
    "load_checkpoint",
    "make_buffer",
    "save_checkpoint",
    "trainer_params",
]
