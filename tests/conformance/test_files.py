"""Laws of files: an agent computes the same, bit for bit, before and after a file, in any adapter,
also over an equal space whose keys are in another order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

from dqn_adapters import (
    DQNAgent,
    DQNConfig,
    DQNLearner,
    Transition,
    load_policy,
    restore_policy,
    save_policy,
)
from dqn_adapters.pettingzoo import MultiAgentDQN
from dqn_adapters.transition import map_arrays, to_tensors

CONFIG = DQNConfig(hidden_sizes=(16,), buffer_size=50, learning_rate=1e-2, max_grad_norm=None)


class OwnBox(spaces.Box):
    pass


class OwnDiscrete(spaces.Discrete):
    pass


class OwnMultiDiscrete(spaces.MultiDiscrete):
    pass


class OwnMultiBinary(spaces.MultiBinary):
    pass


class OwnDict(spaces.Dict):
    pass


NUMBERS = spaces.Box(-1.0, 1.0, (2,), np.float32)
SPACES: dict[str, spaces.Space[Any]] = {
    **{
        f"Box of {np.dtype(dtype)}": spaces.Box(0, 1, (2, 3), dtype)
        for dtype in (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64)
    },
    **{
        f"Box of {np.dtype(dtype)}": spaces.Box(0, 1, (2, 3), dtype)
        for dtype in (np.uint8, np.uint16, np.uint32, np.uint64, np.bool_)
    },
    "scalar": spaces.Box(-1.0, 1.0, (), np.float32),
    "unbounded": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "Discrete": spaces.Discrete(4),
    "Discrete with a start": spaces.Discrete(4, start=-2),
    "MultiDiscrete": spaces.MultiDiscrete([2, 4]),
    "MultiDiscrete with starts": spaces.MultiDiscrete([2, 4], start=[3, -1], dtype=np.int32),
    "table": spaces.MultiDiscrete([[2, 4], [3, 2]]),
    "MultiBinary": spaces.MultiBinary(3),
    "MultiBinary table": spaces.MultiBinary([2, 3]),
    "own Box": OwnBox(-1.0, 1.0, (3,), np.float32),
    "own Discrete": OwnDiscrete(4),
    "own MultiDiscrete": OwnMultiDiscrete([2, 4]),
    "own MultiBinary": OwnMultiBinary(3),
    "keywords": spaces.Dict(position=NUMBERS, phase=spaces.Discrete(3), bits=spaces.MultiBinary(2)),
    "own Dict": OwnDict(b=OwnBox(-1.0, 1.0, (2,), np.float32), a=spaces.Discrete(3)),
    "images": spaces.Dict(
        z=spaces.Box(0, 255, (36, 37, 3), np.uint8),
        phase=spaces.Discrete(3),
        a=spaces.Box(0, 255, (40, 36, 1), np.uint8),
        grid=spaces.Box(0, 1, (5, 5, 2), np.bool_),
    ),
}
REFUSED = ("Discrete with a start", "MultiDiscrete with starts", "table", "scalar")
"""Stable-Baselines3 has no network for these."""

OF_THEIR_OWN = ("Box of uint8", "images")
"""Stable-Baselines3 has other networks for these, which no other library has."""


def reordered(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """An equal space, with the keys in the opposite order, of Gymnasium's own classes."""
    if not isinstance(space, spaces.Dict):
        return copy.deepcopy(space)
    return spaces.Dict(list(reversed(space.spaces.items())))


class Noise(gym.Env[Any, int]):
    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = copy.deepcopy(space), spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: int) -> Any:
        return self.observation_space.sample(), 1.0, False, True, {}


class NoiseForMany(ParallelEnv):
    metadata = {"name": "noise"}  # noqa: RUF012 - as PettingZoo has it

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.possible_agents = ["one"]
        self.agents: list[str] = []
        self._space = copy.deepcopy(space)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self._space

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.agents = ["one"]
        return {"one": self._space.sample()}, {"one": {}}


@dataclass
class Made:
    learner: DQNLearner
    q_values: Callable[[Any], np.ndarray]
    policy: Any
    """What a portable policy is saved from and restored into."""

    save: Callable[[Path], object]
    load: Callable[[Path, spaces.Space[Any]], Made]
    """Opens a file over another space."""


def native(space: spaces.Space[Any], agent: DQNAgent | None = None) -> Made:
    agent = agent or DQNAgent(Noise(space), CONFIG, seed=0, device="cpu")

    def q_values(observations: Any) -> np.ndarray:
        with torch.no_grad():
            return agent.q_net(to_tensors(agent._stepper.view.arrays(observations))).numpy()

    def load(path: Path, other: spaces.Space[Any]) -> Made:
        return native(other, DQNAgent.load(path, Noise(other), device="cpu"))

    return Made(agent.learner, q_values, agent, agent.save, load)


def sb3(space: spaces.Space[Any], model: Any = None) -> Made:
    from dqn_adapters.sb3 import DQN

    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    keys = {"net_arch": [16], "optimizer_kwargs": {"eps": CONFIG.adam_eps}}
    model = model or DQN(
        policy,
        Noise(space),
        learning_rate=CONFIG.learning_rate,
        policy_kwargs=keys,
        buffer_size=50,
        max_grad_norm=np.inf,
        variant=CONFIG.variant,
        device="cpu",
        seed=0,
    )

    def q_values(observations: Any) -> np.ndarray:
        with torch.no_grad():
            return model.q_net(model.policy.obs_to_tensor(observations)[0]).numpy()

    def load(path: Path, other: spaces.Space[Any]) -> Made:
        return sb3(other, DQN.load(path, env=Noise(other), device="cpu"))

    return Made(model.learner, q_values, model, model.save, load)


def tianshou(space: spaces.Space[Any]) -> Made:
    from tianshou.data import Batch

    from dqn_adapters.networks import seeded_initialization
    from dqn_adapters.tianshou import DQN, DQNPolicy, QNet

    with seeded_initialization(0):
        model = QNet(space, 3, CONFIG.hidden_sizes)
    policy = DQNPolicy(model=model, action_space=spaces.Discrete(3), observation_space=space)
    algorithm = DQN(policy=policy, config=CONFIG)

    def q_values(observations: Any) -> np.ndarray:
        batch = Batch(observations) if isinstance(observations, dict) else observations
        with torch.no_grad():
            return model(batch)[0].numpy()

    def load(path: Path, other: spaces.Space[Any]) -> Made:
        made = tianshou(other)
        made.policy.load_state_dict(torch.load(path, weights_only=True))
        return made

    def save(path: Path) -> None:
        torch.save(algorithm.state_dict(), path)

    return Made(algorithm.learner, q_values, algorithm, save, load)


def pettingzoo(space: spaces.Space[Any], agent: MultiAgentDQN | None = None) -> Made:
    agent = agent or MultiAgentDQN(NoiseForMany(space), CONFIG, seed=0, device="cpu")
    policy = agent.policies["one"]

    def q_values(observations: Any) -> np.ndarray:
        with torch.no_grad():
            return policy.q_net(to_tensors(policy._view.arrays(observations))).numpy()

    def load(path: Path, other: spaces.Space[Any]) -> Made:
        return pettingzoo(other, MultiAgentDQN.load(path, NoiseForMany(other), device="cpu"))

    return Made(policy.learner, q_values, policy, agent.save, load)


ADAPTERS: dict[str, Callable[[spaces.Space[Any]], Made]] = {
    "native": native,
    "sb3": sb3,
    "tianshou": tianshou,
    "pettingzoo": pettingzoo,
}


def observations_of(space: spaces.Space[Any], count: int = 5) -> Any:
    space = copy.deepcopy(space)
    space.seed(0)
    rows = [space.sample() for _ in range(count)]
    rows = [dict(row) if isinstance(row, dict) else row for row in rows]
    return map_arrays(lambda *parts: np.stack(parts), *rows)


def takes(adapter: str, name: str, *, portable: bool = False) -> bool:
    if adapter != "sb3":
        return True
    return name not in REFUSED and not (portable and name in OF_THEIR_OWN)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_loaded_agent_has_the_same_q_values(adapter: str, name: str, tmp_path: Path) -> None:
    if not takes(adapter, name):
        pytest.skip("Stable-Baselines3 does not take it")
    space = SPACES[name]
    made, observations = ADAPTERS[adapter](space), observations_of(space)
    expected = made.q_values(observations)
    made.save(tmp_path / "file")
    for other in (space, reordered(space)):
        loaded = made.load(tmp_path / "file", other)
        np.testing.assert_array_equal(loaded.q_values(observations), expected)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_portable_policy_has_the_same_q_values_everywhere(
    adapter: str, name: str, tmp_path: Path
) -> None:
    if not takes(adapter, name, portable=True):
        pytest.skip("the network is Stable-Baselines3's own")
    space = SPACES[name]
    made, observations = ADAPTERS[adapter](space), observations_of(space)
    expected, path = made.q_values(observations), tmp_path / "policy"
    save_policy(made.policy, path)
    policy = load_policy(path)
    np.testing.assert_array_equal(policy.q_values(observations), expected)
    assert policy.observation_space == space
    for target in ADAPTERS:
        if takes(target, name, portable=True):
            other = ADAPTERS[target](reordered(space))
            restore_policy(path, other.policy)
            # Columns in another order are summed in another order.
            np.testing.assert_allclose(other.q_values(observations), expected, atol=1e-6)
            same = ADAPTERS[target](space)
            restore_policy(path, same.policy)
            np.testing.assert_array_equal(same.q_values(observations), expected)


def batch(space: spaces.Space[Any], seed: int) -> Transition:
    space, generator = copy.deepcopy(space), np.random.default_rng(seed)
    space.seed(seed)
    first, second = (observations_of(space, 8) for _ in range(2))
    return Transition(
        observations=to_tensors(first),
        actions=torch.from_numpy(generator.integers(3, size=8)),
        rewards=torch.from_numpy(generator.normal(size=8).astype(np.float32)),
        discounts=torch.full((8,), 0.9),
        next_observations=to_tensors(second),
    )


@pytest.mark.parametrize("target", ADAPTERS)
@pytest.mark.parametrize("dueling", [False, True])
def test_a_training_goes_on_over_keys_in_another_order(
    target: str, dueling: bool, tmp_path: Path
) -> None:
    """The moments of the optimizer and the target network go with the weights."""
    space = SPACES["keywords"]
    config = DQNConfig(**{**CONFIG.to_dict(), "dueling": dueling})
    agent = DQNAgent(Noise(space), config, seed=0, device="cpu", execution="eager")
    if dueling and target != "native":
        pytest.skip("the head is the same for all")
    for seed in range(5):
        agent.learner.update(batch(space, seed))
    save_policy(agent, tmp_path / "policy")
    if dueling:
        other = native(space, DQNAgent(Noise(reordered(space)), config, device="cpu"))
    else:
        other = ADAPTERS[target](reordered(space))
    restore_policy(tmp_path / "policy", other.policy)
    for seed in range(5, 10):
        expected = agent.learner.update(batch(space, seed))
        metrics = other.learner.update(batch(space, seed))
        torch.testing.assert_close(metrics.td_error, expected.td_error, atol=1e-5, rtol=1e-4)


DIFFERENT = [
    (spaces.MultiDiscrete([2, 4]), spaces.MultiDiscrete([4, 2]), "had nvec"),
    (spaces.Discrete(4), spaces.Box(-1, 1, (4,), np.float32), "was Discrete"),
    (spaces.Box(0, 1, (4,), np.uint8), spaces.Box(0, 1, (4,), np.float32), "had dtype uint8"),
    (spaces.Box(0, 1, (4,), np.float32), spaces.Box(0, 1, (2, 2), np.float32), "had shape"),
    (spaces.Discrete(4), spaces.Discrete(4, start=1), "had start 0, and has 1"),
    (spaces.Dict(a=NUMBERS, b=NUMBERS), spaces.Dict(a=NUMBERS, c=NUMBERS), "had the keys"),
    (
        spaces.Dict(a=spaces.Discrete(2), b=NUMBERS),
        spaces.Dict(b=spaces.Discrete(2), a=NUMBERS),
        r"\['a'\] was Discrete",
    ),
]


@pytest.mark.parametrize(("saved", "given", "message"), DIFFERENT)
@pytest.mark.parametrize("adapter", [name for name in ADAPTERS if name != "sb3"])
def test_another_space_is_refused_by_its_difference(
    adapter: str, saved: Any, given: Any, message: str, tmp_path: Path
) -> None:
    made = ADAPTERS[adapter](saved)
    made.save(tmp_path / "file")
    with pytest.raises(ValueError, match=rf"observation_space.*{message}"):
        made.load(tmp_path / "file", given)
    save_policy(made.policy, tmp_path / "policy")
    with pytest.raises(ValueError, match=rf"observation_space.*{message}"):
        restore_policy(tmp_path / "policy", ADAPTERS[adapter](given).policy)


def test_bounds_are_kept_and_may_be_others(tmp_path: Path) -> None:
    low = np.array([-0.1, -np.inf, 0.0], np.float32)
    high = np.array([np.inf, 1e30, 0.3], np.float32)
    path = save_policy(native(spaces.Box(low, high)).policy, tmp_path / "policy")
    space = load_policy(path).observation_space
    assert isinstance(space, spaces.Box)
    assert np.array_equal(space.low, low)
    assert np.array_equal(space.high, high)
    restore_policy(path, native(spaces.Box(-1.0, 1.0, (3,), np.float32)).policy)


def test_what_cannot_be_opened_again_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    space = spaces.Dict([((1, 2), NUMBERS), ("b", NUMBERS)])
    with pytest.raises(ValueError, match="cannot be saved: its keys must be strings"):
        DQNAgent(Noise(space), CONFIG).save(tmp_path / "agent")
    assert not [*tmp_path.iterdir()]
