"""Everything that the host's DQN can be asked for goes on working, for every variant."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import (
    BitFlippingEnv,
    FakeImageEnv,
    IdentityEnv,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize
from support import Chain

from dqn_adapters.config import VARIANTS
from dqn_adapters.sb3 import CnnPolicy, CoreReplayBuffer, MlpPolicy, MultiInputPolicy
from dqn_adapters.sb3.policies import q_values

pytestmark = pytest.mark.parametrize("variant", VARIANTS)


def dict_env() -> Any:
    return SimpleMultiObsEnv(random_start=False, discrete_actions=True)


class Regularised(BaseFeaturesExtractor):
    """Batch normalisation and dropout: training and evaluation differ."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=8)
        size = int(np.prod(observation_space.shape))
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(size, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5)
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.layers(observations)


OPTIONS: dict[str, dict[str, Any]] = {
    "train once an episode": {"train_freq": (1, "episode")},
    "train every second step": {"train_freq": (2, "step"), "gradient_steps": 3},
    "as many updates as steps": {"train_freq": 5, "gradient_steps": -1},
    "no updates": {"gradient_steps": 0},
    "polyak": {"tau": 0.05, "target_update_interval": 1},
    "sgd": {"policy_kwargs": {"optimizer_class": torch.optim.SGD, "net_arch": []}},
    "batch norm, dropout": {"policy_kwargs": {"features_extractor_class": Regularised}},
    "policy class": {"policy": MlpPolicy},
}
EXPECTED_UPDATES = {"no updates": 0, "as many updates as steps": 80}


@pytest.mark.parametrize("option", OPTIONS)
def test_options(make: Any, weights: Any, variant: str, option: str) -> None:
    model = make(variant=variant, **OPTIONS[option])
    before = weights(model.q_net)
    model.learn(100)
    updates = EXPECTED_UPDATES.get(option)
    assert model._n_updates > 0 if updates is None else model._n_updates == updates
    assert torch.equal(before, weights(model.q_net)) == (model._n_updates == 0)
    assert isinstance(model.replay_buffer, CoreReplayBuffer)


def test_training_once_an_episode_is_the_hosts_unit(make: Any, variant: str) -> None:
    model = make(variant=variant, train_freq=(2, "episode"))
    assert model.train_freq.unit == TrainFrequencyUnit.EPISODE
    model.learn(60)
    assert model._episode_num % 2 == 0


@pytest.mark.parametrize(
    ("settings", "cls"),
    [
        ({"replay_buffer_class": ReplayBuffer}, ReplayBuffer),
        ({"replay_buffer_class": CoreReplayBuffer}, CoreReplayBuffer),
        ({"n_steps": 3}, CoreReplayBuffer),
        (
            {
                "replay_buffer_class": NStepReplayBuffer,
                "replay_buffer_kwargs": {"n_steps": 3, "gamma": 0.9},
            },
            NStepReplayBuffer,
        ),
        (
            {
                "optimize_memory_usage": True,
                "replay_buffer_kwargs": {"handle_timeout_termination": False},
            },
            CoreReplayBuffer,
        ),
        (
            {
                "optimize_memory_usage": True,
                "replay_buffer_class": ReplayBuffer,
                "replay_buffer_kwargs": {"handle_timeout_termination": False},
            },
            ReplayBuffer,
        ),
        ({"replay_buffer_kwargs": {"handle_timeout_termination": False}}, CoreReplayBuffer),
    ],
)
def test_the_replay_buffer_that_is_asked_for(
    make: Any, variant: str, settings: dict[str, Any], cls: type[ReplayBuffer]
) -> None:
    model = make(variant=variant, **settings)
    assert type(model.replay_buffer) is cls
    for name, value in settings.items():
        assert getattr(model, name) == value
    model.learn(80)
    assert model._n_updates == 15
    assert model.replay_buffer.size() == 80


def test_a_core_buffer_that_is_asked_for_follows_the_seed(make: Any, variant: str) -> None:
    draws = [
        make(variant=variant, seed=seed, replay_buffer_class=cls).replay_buffer.generator.random()
        for seed, cls in ((4, CoreReplayBuffer), (4, None), (5, None))
    ]
    assert draws[0] == draws[1] != draws[2]


def test_n_step_discounts_are_the_buffers(make: Any, variant: str) -> None:
    model = make(variant=variant, n_steps=3, gamma=0.5).learn(60)
    discounts = {round(d, 6) for d in model.replay_buffer.sample(500).discounts.flatten().tolist()}
    assert {0.5**3} < discounts <= {0.5, 0.25, 0.125}


def test_dict_observations(make: Any, variant: str) -> None:
    env = make_vec_env(dict_env, n_envs=2)
    for policy in ("MultiInputPolicy", MultiInputPolicy):
        model = make(env, policy=policy, variant=variant, buffer_size=200, policy_kwargs=None)
        assert isinstance(model.replay_buffer, CoreReplayBuffer)
        model.learn(60)
        assert model._n_updates > 0
    batch = {key: np.repeat(value, 3, axis=0) for key, value in env.reset().items()}
    model.exploration_rate = 0.5
    assert model.predict(batch)[0].shape == (6,)
    single = {key: value[0] for key, value in batch.items()}
    assert (
        model.predict(single)[0].shape == model.predict(single, deterministic=True)[0].shape == ()
    )


def test_hindsight_replay(make: Any, variant: str) -> None:
    model = make(
        BitFlippingEnv(n_bits=3, continuous=False),
        policy="MultiInputPolicy",
        variant=variant,
        replay_buffer_class=HerReplayBuffer,
        replay_buffer_kwargs={"n_sampled_goal": 2, "goal_selection_strategy": "future"},
        policy_kwargs=None,
    )
    model.learn(60)
    assert model._n_updates == 10


def test_images(make: Any, variant: str) -> None:
    env = VecFrameStack(make_vec_env(FakeImageEnv, 2, env_kwargs={"n_channels": 1}), n_stack=2)
    model = make(
        env,
        policy=CnnPolicy,
        variant=variant,
        buffer_size=60,
        learning_starts=10,
        train_freq=8,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 16}},
    )
    model.learn(32)
    assert model.replay_buffer.observations.dtype == np.uint8
    assert model._n_updates == 2
    observation = env.reset()  # channels last, as the user has it
    model.exploration_rate = 0.5
    assert model.predict(observation)[0].shape == (2,)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_go_through_the_hosts_modules(make: Any, variant: str, dtype: torch.dtype) -> None:
    """In place, and with the values, gradients and hooks of the host's own forward pass."""
    kwargs = {"features_extractor_kwargs": {"features_dim": 16}}
    env = FakeImageEnv(n_channels=4, channel_first=True)
    network = make(
        env, policy=CnnPolicy, variant=variant, policy_kwargs=kwargs, buffer_size=9
    ).q_net
    images = torch.randint(0, 256, (5, *env.observation_space.shape)).to(dtype)
    before = images.clone()

    def with_gradient(values: torch.Tensor) -> list[torch.Tensor]:
        return [values, *torch.autograd.grad(values.square().sum(), [*network.parameters()])]

    theirs = with_gradient(network(images))
    torch.testing.assert_close(with_gradient(q_values(network, images)), theirs)
    assert torch.equal(images, before)

    heard: list[torch.Tensor] = []
    rectifier = network.features_extractor.cnn[1]
    rectifier.register_forward_hook(lambda module, inputs, output: heard.append(output))
    torch.testing.assert_close(q_values(network, images), theirs[0])
    assert len(heard) == 1


def test_images_that_come_scaled_stay_as_they_are(make: Any, variant: str) -> None:
    class Scaled(gym.ObservationWrapper):
        def __init__(self) -> None:
            super().__init__(FakeImageEnv(n_channels=4, channel_first=True))
            self.observation_space = spaces.Box(0.0, 1.0, (4, 84, 84), np.float32)

        def observation(self, observation: Any) -> Any:
            return np.float32(observation / 255.0)

    kwargs = {
        "normalize_images": False,
        "features_extractor_kwargs": {"features_dim": 16, "normalized_image": True},
    }
    env = Scaled()
    network = make(
        env, policy=CnnPolicy, variant=variant, policy_kwargs=kwargs, buffer_size=9
    ).q_net
    images = torch.rand(5, 4, 84, 84)
    assert torch.equal(q_values(network, images), network(images))


@pytest.mark.parametrize("settings", [{}, {"n_steps": 3}, {"replay_buffer_class": ReplayBuffer}])
def test_normalised_environments(make: Any, variant: str, settings: dict[str, Any]) -> None:
    env = VecNormalize(DummyVecEnv([lambda: Chain(limit=6)] * 2))
    model = make(env, variant=variant, **settings).learn(100)
    # Stored is what the environment gave: one-hot states, rewards 0 and 1.
    buffer, size = model.replay_buffer, model.replay_buffer.size()
    assert {*np.unique(buffer.rewards[:size])} == {0.0, 1.0}
    np.testing.assert_array_equal(buffer.observations[:size].sum(-1), 1.0)
    samples = buffer.sample(64, env=env)
    assert samples.observations.min() < 0


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.MultiDiscrete([3, 2]),
        spaces.MultiBinary(3),
        spaces.Box(0, 1, (4, 4, 2), np.bool_),
        spaces.Box(-1.0, 1.0, (2, 3), np.float64),
    ],
    ids=str,
)
def test_observation_spaces(make: Any, variant: str, space: spaces.Space[Any]) -> None:
    class Noise(gym.Env[Any, int]):
        observation_space, action_space = space, spaces.Discrete(3)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            space.seed(seed)
            return space.sample(), {}

        def step(self, action: int) -> Any:
            return space.sample(), 0.0, bool(self.np_random.random() < 0.2), False, {}

    model = make(Noise(), variant=variant).learn(60)
    assert model._n_updates == 10
    model.exploration_rate = 0.5
    assert model.predict(space.sample())[0].shape == ()


def test_the_hosts_identity_environment_is_solved(make: Any, variant: str) -> None:
    model = make(
        DummyVecEnv([lambda: IdentityEnv(4, ep_length=20)]),
        variant=variant,
        gamma=0.5,
        exploration_fraction=0.3,
        train_freq=1,
    ).learn(400)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=4, warn=False)
    assert mean == 20.0


def test_environments_in_other_processes(make: Any, variant: str) -> None:
    env = make_vec_env("CartPole-v1", n_envs=2, vec_env_cls=SubprocVecEnv)
    model = make(env, variant=variant, n_steps=2, prioritized_replay=True).learn(60)
    assert model.replay_buffer.size() == 32
    env.close()


def test_the_target_network_evaluates_while_the_online_one_trains(make: Any, variant: str) -> None:
    model = make(variant=variant, policy_kwargs={"features_extractor_class": Regularised})
    modes: list[tuple[bool, bool]] = []
    update = model.learner.update

    def spy(batch: Any) -> Any:
        modes.append((model.q_net.training, model.q_net_target.training))
        return update(batch)

    model.learner.update = spy
    model.learn(60)
    assert {*modes} == {(True, variant == "vanilla")}
    actions = [model.predict(np.eye(5, dtype=np.float32), deterministic=True)[0] for _ in range(5)]
    assert all((a == actions[0]).all() for a in actions)  # no dropout, no batch statistics
    assert not model.q_net.training
