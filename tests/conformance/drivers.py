"""The three adapters behind one face, so that one file of laws holds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from dqn_adapters import DQNConfig, DQNLearner
from dqn_adapters.transition import to_tensors

MakeEnv = Callable[[], gym.Env[Any, Any]]


@dataclass
class Trained:
    """What a law needs to know of a trained adapter."""

    learner: DQNLearner
    q_values: Callable[[np.ndarray], np.ndarray]
    """Observations `(N, ...)` to action values `(N, A)`."""

    act: Callable[[np.ndarray, float], np.ndarray]
    """Observations `(N, ...)` and an epsilon to actions `(N,)`, as the adapter acts in training."""

    save: Callable[[Path], object]
    learn: Callable[[int], object]

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.learner.q_net.parameters()]

    def greedy(self, observations: np.ndarray) -> np.ndarray:
        return self.act(observations, 0.0)


Build = Callable[..., Trained]


def native(make_env: MakeEnv, config: DQNConfig, seed: int, load: Path | None = None) -> Trained:
    from dqn_adapters import DQNAgent

    agent = DQNAgent.load(load, make_env()) if load else DQNAgent(make_env(), config, seed=seed)

    def act(observations: np.ndarray, epsilon: float) -> np.ndarray:
        return agent._act(observations, epsilon, None)

    return Trained(
        learner=agent.learner,
        q_values=lambda s: agent.q_net(to_tensors(s)).detach().numpy(),
        act=act,
        save=agent.save,
        learn=agent.learn,
    )


def sb3(make_env: MakeEnv, config: DQNConfig, seed: int, load: Path | None = None) -> Trained:
    from stable_baselines3.common.torch_layers import FlattenExtractor

    from dqn_adapters.benchmark.levelling import sb3_adapter_arguments
    from dqn_adapters.sb3 import DQN

    class Scaled(FlattenExtractor):
        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return super().forward(observations) / 255.0

    if load:
        model = DQN.load(load, env=make_env(), device="cpu")
    else:
        arguments = sb3_adapter_arguments(config, config.exploration_steps or 1)
        options = ("exploration_steps", "n_steps", "dueling", "prioritized_replay", "frame_stack")
        arguments |= {name: getattr(config, name) for name in options}
        env = make_env()
        several = isinstance(env.observation_space, gym.spaces.Dict)
        policy = "MultiInputPolicy" if several else "MlpPolicy"
        if env.observation_space.dtype == np.uint8:
            # Bytes of what is no picture are scaled by whoever chooses the extractor.
            arguments["policy_kwargs"]["features_extractor_class"] = Scaled
        model = DQN(policy, env, **arguments, seed=seed, device="cpu")

    def act(observations: np.ndarray, epsilon: float) -> np.ndarray:
        model.exploration_rate = epsilon
        return model.predict(observations, deterministic=False)[0]

    return Trained(
        learner=model.learner,
        q_values=lambda s: model.q_net(model.policy.obs_to_tensor(s)[0]).detach().numpy(),
        act=act,
        save=model.save,
        learn=lambda n: model.learn(n, reset_num_timesteps=False),
    )


def tianshou(make_env: MakeEnv, config: DQNConfig, seed: int, load: Path | None = None) -> Trained:
    from tianshou.data import Batch, Collector
    from tianshou.env import DummyVectorEnv
    from tianshou.utils.torch_utils import policy_within_training_step

    from dqn_adapters.networks import seeded_initialization
    from dqn_adapters.tianshou import DQN, DQNPolicy, QNet, make_buffer, trainer_params

    env = make_env()
    with seeded_initialization(seed):
        net = QNet(
            env.observation_space,
            int(env.action_space.n),
            config.hidden_sizes,
            dueling=config.dueling,
        )
    policy = DQNPolicy(model=net, action_space=env.action_space, seed=seed)
    algorithm = DQN(policy=policy, config=config)
    if load:
        algorithm.load_state_dict(torch.load(load, weights_only=False))
    envs = DummyVectorEnv([lambda: env])
    envs.seed(seed)
    buffer = make_buffer(config, 1, seed=seed)
    collector = Collector(algorithm, envs, buffer, exploration_noise=True)

    def q_values(observations: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return net(Batch(observations) if isinstance(observations, dict) else observations)[
                0
            ].numpy()

    def act(observations: np.ndarray, epsilon: float) -> np.ndarray:
        batch = Batch(obs=observations, info=Batch())
        policy.set_eps_training(epsilon)
        with torch.no_grad(), policy_within_training_step(policy):
            return policy.map_action(policy.add_exploration_noise(policy(batch).act, batch))

    def learn(total_timesteps: int) -> None:
        params = trainer_params(
            config,
            total_timesteps,
            training_collector=collector,
            verbose=False,
            show_progress=False,
        )
        algorithm.run_training(params)

    return Trained(
        learner=algorithm.learner,
        q_values=q_values,
        act=act,
        save=lambda path: torch.save(algorithm.state_dict(), path),
        learn=learn,
    )


ADAPTERS: dict[str, Build] = {"native": native, "sb3": sb3, "tianshou": tianshou}
