"""The four adapters behind one face, so that one file of laws holds for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from support_pettingzoo import Solo
from torch import nn

from dqn_adapters import DQNConfig, DQNLearner
from dqn_adapters.transition import map_arrays, to_tensors

MakeEnv = Callable[[], gym.Env[Any, Any]]


class Trained(ABC):
    """A trained adapter, as a law sees it.

    It holds no closures, so that a deep copy of it is a deep copy of the adapter.

    Args:
        make_env: Makes the Gymnasium environment to train in.
        config: Hyperparameters.
        seed: Decides everything that is random.
        load: The file of an adapter that was saved; None makes a new one.
        execution: How the learner computes.
    """

    host: Any
    """The object that the user of the adapter holds."""

    def __init__(
        self,
        make_env: MakeEnv,
        config: DQNConfig,
        seed: int,
        load: Path | None = None,
        execution: Any = "auto",
    ) -> None:
        raise NotImplementedError

    @property
    def learner(self) -> DQNLearner:
        return self.host.learner

    @property
    def q_net(self) -> nn.Module:
        """The online network, where the user of the adapter finds it."""
        return self.learner.q_net

    @property
    def target_net(self) -> nn.Module:
        return self.learner.target_net

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.learner.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.learner.optimizer = optimizer

    def set_networks(self, q_net: nn.Module, target_net: nn.Module) -> None:
        """Give the adapter other networks, as its user would."""
        self.learner.q_net, self.learner.target_net = q_net, target_net

    @abstractmethod
    def q_values(self, observations: Any) -> np.ndarray:
        """Observations `(N, ...)` to action values `(N, A)`, by calling the online network."""

    @abstractmethod
    def act(self, observations: Any, epsilon: float) -> np.ndarray:
        """Observations `(N, ...)` and an epsilon to actions `(N,)`, as the adapter acts in
        training."""

    @abstractmethod
    def predict(self, observations: Any) -> np.ndarray:
        """Observations `(N, ...)` to greedy actions `(N,)`, as its user asks the adapter."""

    def save(self, path: Path) -> None:
        self.host.save(path)

    def learn(self, total_timesteps: int) -> None:
        """Train for so many more environment steps."""
        self.host.learn(total_timesteps)

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.q_net.parameters()]

    def greedy(self, observations: Any) -> np.ndarray:
        return self.act(observations, 0.0)


Build = Callable[..., Trained]


class Native(Trained):
    """`DQNAgent`."""

    def __init__(
        self,
        make_env: MakeEnv,
        config: DQNConfig,
        seed: int,
        load: Path | None = None,
        execution: Any = "auto",
    ) -> None:
        from dqn_adapters import DQNAgent

        if load:
            self.host = DQNAgent.load(load, make_env(), execution=execution)
        else:
            self.host = DQNAgent(make_env(), config, seed=seed, execution=execution)

    def q_values(self, observations: Any) -> np.ndarray:
        return self.q_net(to_tensors(observations)).detach().float().numpy()

    def act(self, observations: Any, epsilon: float) -> np.ndarray:
        return self.host._act(observations, epsilon, None)

    def predict(self, observations: Any) -> np.ndarray:
        return self.host.predict(observations)


SAME_IN_SB3 = (
    *("learning_rate", "buffer_size", "learning_starts", "batch_size", "tau", "gamma"),
    *("train_freq", "gradient_steps", "target_update_interval", "target_update_unit"),
    *("exploration_initial_eps", "exploration_final_eps", "exploration_fraction"),
    *("exploration_steps", "variant", "loss", "huber_delta", "n_steps", "dueling"),
    *("prioritized_replay", "frame_stack"),
)
"""Arguments of the adapter for Stable-Baselines3 that are fields of `DQNConfig`."""


class SB3(Trained):
    """`dqn_adapters.sb3.DQN`."""

    def __init__(
        self,
        make_env: MakeEnv,
        config: DQNConfig,
        seed: int,
        load: Path | None = None,
        execution: Any = "auto",
    ) -> None:
        from stable_baselines3.common.torch_layers import FlattenExtractor

        from dqn_adapters.sb3 import DQN

        class Scaled(FlattenExtractor):
            def forward(self, observations: torch.Tensor) -> torch.Tensor:
                return super().forward(observations) / 255.0

        if load:
            self.host = DQN.load(load, env=make_env(), device="cpu", execution=execution)
            return
        arguments = {name: getattr(config, name) for name in SAME_IN_SB3}
        arguments["max_grad_norm"] = (
            np.inf if config.max_grad_norm is None else config.max_grad_norm
        )
        policy_kwargs: dict[str, Any] = {
            "net_arch": list(config.hidden_sizes),
            "optimizer_kwargs": {"eps": config.adam_eps},
        }
        env = make_env()
        several = isinstance(env.observation_space, spaces.Dict)
        policy = "MultiInputPolicy" if several else "MlpPolicy"
        if env.observation_space.dtype == np.uint8:
            # Bytes of what is no picture are scaled by whoever chooses the extractor.
            policy_kwargs["features_extractor_class"] = Scaled
        self.host = DQN(
            policy,
            env,
            **arguments,
            policy_kwargs=policy_kwargs,
            seed=seed,
            device="cpu",
            execution=execution,
        )

    @property
    def q_net(self) -> nn.Module:
        return self.host.policy.q_net

    @property
    def target_net(self) -> nn.Module:
        return self.host.policy.q_net_target

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.host.policy.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.host.policy.optimizer = optimizer

    def set_networks(self, q_net: nn.Module, target_net: nn.Module) -> None:
        # As with the host, whose `train` uses the names on the model and whose `predict` those on
        # the policy.
        policy = self.host.policy
        policy.q_net, policy.q_net_target = q_net, target_net
        self.host._create_aliases()

    def q_values(self, observations: Any) -> np.ndarray:
        return self.q_net(self.host.policy.obs_to_tensor(observations)[0]).detach().float().numpy()

    def act(self, observations: Any, epsilon: float) -> np.ndarray:
        model = self.host
        before = model._last_obs, model.exploration_rate
        model._last_obs, model.exploration_rate = observations, epsilon
        try:
            rows = next(iter(observations.values())) if isinstance(observations, dict) else None
            count = len(observations if rows is None else rows)
            return model._sample_action(0, None, count)[0]
        finally:
            model._last_obs, model.exploration_rate = before

    def predict(self, observations: Any) -> np.ndarray:
        return self.host.predict(observations, deterministic=True)[0]

    def learn(self, total_timesteps: int) -> None:
        self.host.learn(total_timesteps, reset_num_timesteps=False)


class Tianshou(Trained):
    """`dqn_adapters.tianshou.DQN` with a `DQNPolicy` and a `QNet`."""

    def __init__(
        self,
        make_env: MakeEnv,
        config: DQNConfig,
        seed: int,
        load: Path | None = None,
        execution: Any = "auto",
    ) -> None:
        from tianshou.data import Collector
        from tianshou.env import DummyVectorEnv

        from dqn_adapters.networks import seeded_initialization
        from dqn_adapters.tianshou import DQN, DQNPolicy, QNet, make_buffer

        env = make_env()
        with seeded_initialization(seed):
            net = QNet(
                env.observation_space,
                int(env.action_space.n),
                config.hidden_sizes,
                dueling=config.dueling,
            )
        policy = DQNPolicy(model=net, action_space=env.action_space, seed=seed)
        self.config = config
        self.host = DQN(policy=policy, config=config, execution=execution)
        if load:
            self.host.load_state_dict(torch.load(load, weights_only=False))
        envs = DummyVectorEnv([partial(_given, env)])
        envs.seed(seed)
        buffer = make_buffer(config, 1, seed=seed)
        self.collector = Collector(self.host, envs, buffer, exploration_noise=True)

    @property
    def q_net(self) -> nn.Module:
        return self.host.policy.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.host.optim._optim

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self.host.optim._optim = self.learner.optimizer = optimizer

    def set_networks(self, q_net: nn.Module, target_net: nn.Module) -> None:
        from tianshou.utils.lagged_network import EvalModeModuleWrapper

        self.host.policy.model = q_net
        super().set_networks(q_net, target_net)
        self.host.model_old = None if target_net is q_net else EvalModeModuleWrapper(target_net)

    def _batch(self, observations: Any) -> Any:
        from tianshou.data import Batch

        return Batch(obs=observations, info=Batch())

    def q_values(self, observations: Any) -> np.ndarray:
        with torch.no_grad():
            return self.q_net(self._batch(observations).obs)[0].float().numpy()

    def act(self, observations: Any, epsilon: float) -> np.ndarray:
        from tianshou.utils.torch_utils import policy_within_training_step

        policy, batch = self.host.policy, self._batch(observations)
        before = policy.eps_training
        policy.set_eps_training(epsilon)
        try:
            with torch.no_grad(), policy_within_training_step(policy):
                return policy.map_action(policy.add_exploration_noise(policy(batch).act, batch))
        finally:
            policy.set_eps_training(before)

    def predict(self, observations: Any) -> np.ndarray:
        policy = self.host.policy
        with torch.no_grad():
            return policy.map_action(policy(self._batch(observations)).act)

    def save(self, path: Path) -> None:
        torch.save(self.host.state_dict(), path)

    def learn(self, total_timesteps: int) -> None:
        from dqn_adapters.tianshou import trainer_params

        params = trainer_params(
            self.config,
            total_timesteps,
            training_collector=self.collector,
            verbose=False,
            show_progress=False,
        )
        self.host.run_training(params)


def _given(env: Any) -> Any:
    return env


class PettingZoo(Trained):
    """`MultiAgentDQN` over a game of one agent."""

    def __init__(
        self,
        make_env: MakeEnv,
        config: DQNConfig,
        seed: int,
        load: Path | None = None,
        execution: Any = "auto",
    ) -> None:
        from dqn_adapters.pettingzoo import MultiAgentDQN

        game = Solo(make_env())
        if load:
            self.host = MultiAgentDQN.load(load, game, execution=execution)
        else:
            self.host = MultiAgentDQN(game, config, seed=seed, execution=execution)

    @property
    def policy(self) -> Any:
        return self.host.policies["solo"]

    @property
    def learner(self) -> DQNLearner:
        return self.policy.learner

    def q_values(self, observations: Any) -> np.ndarray:
        return self.q_net(to_tensors(observations)).detach().float().numpy()

    def act(self, observations: Any, epsilon: float) -> np.ndarray:
        rows = _rows(observations)
        masks = [np.ones(self.policy.num_actions, np.bool_)] * len(rows)
        return np.array(self.policy.act(rows, masks, epsilon))

    def predict(self, observations: Any) -> np.ndarray:
        return np.array([self.host.predict("solo", row) for row in _rows(observations)])


def _rows(observations: Any) -> list[Any]:
    leaves = observations.values() if isinstance(observations, dict) else [observations]
    count = len(next(iter(leaves)))
    return [map_arrays(lambda array, i=i: array[i], observations) for i in range(count)]


ADAPTERS: dict[str, Build] = {
    "native": Native,
    "sb3": SB3,
    "tianshou": Tianshou,
    "pettingzoo": PettingZoo,
}
