"""One file between three libraries: the same Q-values to the last bit, and training goes on."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from support import Chain, random_batch
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.utils.net.common import Net

from dqn_adapters import DQNAgent, DQNConfig, checkpoint, load_policy, restore_policy, save_policy
from dqn_adapters.checkpoint import CheckpointError
from dqn_adapters.finite import NonFiniteError
from dqn_adapters.portable import load_config
from dqn_adapters.sb3 import DQN as SB3DQN
from dqn_adapters.tianshou import DQN as TianshouDQN
from dqn_adapters.tianshou import DQNPolicy, QNet

CONFIG = DQNConfig(
    variant="double",
    learning_rate=1e-2,
    learning_starts=0,
    batch_size=16,
    hidden_sizes=(16, 8),
    max_grad_norm=10.0,
    buffer_size=500,
)


class Start(Chain):
    """The chain with actions 3 and 4."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(2, start=3)

    def step(self, action: int) -> Any:
        return super().step(action - 3)


def native(env: Any, config: DQNConfig = CONFIG) -> DQNAgent:
    return DQNAgent(env(), config, seed=1)


def sb3(env: Any, config: DQNConfig = CONFIG) -> Any:
    space = env().observation_space
    return SB3DQN(
        "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy",
        env(),
        variant=config.variant,
        learning_rate=config.learning_rate,
        buffer_size=500,
        policy_kwargs={"net_arch": list(config.hidden_sizes)},
        device="cpu",
        seed=2,
    )


def tianshou(env: Any, config: DQNConfig = CONFIG) -> Any:
    model = QNet(env().observation_space, 2, config.hidden_sizes, dueling=config.dueling)
    policy = DQNPolicy(model=model, action_space=env().action_space)
    return TianshouDQN(policy=policy, config=config)


MAKERS: dict[str, Callable[..., Any]] = {"native": native, "sb3": sb3, "tianshou": tianshou}


def q_values(agent: Any, observations: Any) -> np.ndarray:
    with torch.no_grad():
        if isinstance(agent, DQNAgent):
            return agent.q_net(torch.from_numpy(observations)).numpy()
        if hasattr(agent.policy, "model"):
            return agent.policy.model(observations)[0].numpy()
        return agent.policy.q_net(agent.policy.obs_to_tensor(observations)[0]).numpy()


def train(agent: Any, seed: int, updates: int = 5) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(updates):
        agent.learner.update(random_batch(generator, features=5, actions=2))


@pytest.mark.parametrize("source", MAKERS)
@pytest.mark.parametrize("target", MAKERS)
def test_a_policy_moves_and_goes_on_training(source: str, target: str, tmp_path: Path) -> None:
    """After the move both are trained on the same batches: with the optimiser's moments they end
    at the same weights, without them they do not."""
    first, path = MAKERS[source](Start), tmp_path / "policy"
    train(first, 0)
    first.learner.sync_target()
    train(first, 1)
    save_policy(first, path)

    second, anew = MAKERS[target](Start), MAKERS[target](Start)
    assert restore_policy(path, second) is second
    restore_policy(path, anew, optimizer=False)
    observations = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    expected = q_values(first, observations)
    for opened in (second, anew):
        np.testing.assert_array_equal(q_values(opened, observations), expected)
    policy = load_policy(path)
    np.testing.assert_array_equal(policy.q_values(observations), expected)
    np.testing.assert_array_equal(policy(observations), 3 + expected.argmax(1))
    assert second.learner.counts == first.learner.counts

    for agent in (first, second, anew):
        train(agent, 2)
    expected = q_values(first, observations)
    np.testing.assert_allclose(q_values(second, observations), expected, atol=1e-4)
    assert np.abs(q_values(anew, observations) - expected).max() > 1e-3


def test_models_of_the_hosts_themselves(tmp_path: Path) -> None:
    arch = {"policy_kwargs": {"net_arch": [16, 8]}, "buffer_size": 100, "device": "cpu"}
    theirs = stable_baselines3.DQN("MlpPolicy", Chain(), **arch)
    net = Net(state_shape=5, action_shape=2, hidden_sizes=(16, 8))
    env = Chain()
    policy = DiscreteQLearningPolicy(
        model=net, action_space=env.action_space, observation_space=env.observation_space
    )
    observations = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    save_policy(theirs, tmp_path / "sb3")
    restore_policy(tmp_path / "sb3", policy)
    expected = q_values(theirs, observations)
    np.testing.assert_array_equal(net(observations)[0].detach().numpy(), expected)
    save_policy(policy, tmp_path / "tianshou")
    agent = restore_policy(tmp_path / "tianshou", native(Chain))
    np.testing.assert_array_equal(q_values(agent, observations), expected)
    assert load_config(tmp_path / "tianshou").hidden_sizes == (16, 8)


class Spaces(gym.Env[Any, int]):
    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("sizes", [(), (8,), (16, 8)])
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (2, 3), np.float64),
        spaces.Box(0, 255, (3, 2), np.uint8),
        spaces.Box(0, 255, (36, 36, 2), np.uint8),
        spaces.Discrete(4, start=2),
        spaces.MultiBinary(3),
        spaces.MultiDiscrete([2, 3]),
        spaces.Dict(a=spaces.Discrete(3), b=spaces.Box(-np.inf, np.inf, (2,))),
    ],
    ids=str,
)
def test_spaces_and_networks(space: Any, sizes: Any, dueling: bool, tmp_path: Path) -> None:
    config = DQNConfig(hidden_sizes=sizes, dueling=dueling, buffer_size=10, variant="vanilla")
    path = tmp_path / "policy"
    save_policy(DQNAgent(Spaces(space), config), path)
    policy, loaded = load_policy(path), load_config(path)
    assert policy.observation_space == space
    assert (loaded.hidden_sizes, loaded.dueling, loaded.variant) == (sizes, dueling, "vanilla")
    algorithm = tianshou(lambda: Spaces(space), loaded)
    restore_policy(path, algorithm)
    save_policy(algorithm, tmp_path / "again")
    space.seed(0)
    again = load_policy(tmp_path / "again")
    for observation in (space.sample() for _ in range(5)):
        assert policy(observation) == again(observation) in (0, 1)
        assert policy(observation, action_masks=[0, 1]) == 1


def test_what_the_callable_refuses(tmp_path: Path) -> None:
    save_policy(native(Chain), tmp_path / "policy")
    policy = load_policy(tmp_path / "policy")
    with pytest.raises(ValueError, match=r"observation must have shape \(5,\).*got \(4,\)"):
        policy(np.zeros(4))
    with pytest.raises(ValueError, match="allows no action"):
        policy(np.zeros(5), action_masks=[0, 0])


def test_a_network_that_is_something_else_is_refused(tmp_path: Path) -> None:
    env = Chain()
    tanh = Net(state_shape=5, action_shape=2, hidden_sizes=(8,), activation=torch.nn.Tanh)
    streams = ({"hidden_sizes": (8,)}, {"hidden_sizes": (8,)})
    duel = Net(state_shape=5, action_shape=2, hidden_sizes=(8,), dueling_param=streams)
    for net in (tanh, duel):
        policy = DQNPolicy(
            model=net, action_space=env.action_space, observation_space=env.observation_space
        )
        with pytest.raises(ValueError, match="Net cannot be saved for other libraries"):
            save_policy(policy, tmp_path / "policy")
    assert not (tmp_path / "policy").exists()
    policy = DQNPolicy(model=tanh, action_space=env.action_space)
    with pytest.raises(ValueError, match="pass observation_space= to DQNPolicy"):
        save_policy(policy, tmp_path / "policy")
    with pytest.raises(TypeError, match="int has no policy"):
        save_policy(3, tmp_path / "policy")


@pytest.mark.parametrize("target", MAKERS)
def test_what_does_not_fit_is_refused_and_the_target_unchanged(target: str, tmp_path: Path) -> None:
    path = tmp_path / "policy"
    observations = np.eye(5, dtype=np.float32)
    agent = MAKERS[target](Chain)
    before = q_values(agent, observations)

    class Wide(Chain):
        def __init__(self) -> None:
            super().__init__(6)

    sizes = DQNConfig(hidden_sizes=(8, 16), buffer_size=10)
    for source, message in (
        (native(Chain, sizes), r"hidden_sizes=\(8, 16\).*the target's has other layers"),
        (native(Wide), "does not fit the target: observation_space had"),
        (native(Start), "action_space had start"),
    ):
        save_policy(source, path)
        with pytest.raises(ValueError, match=message):
            restore_policy(path, agent)
    np.testing.assert_array_equal(q_values(agent, observations), before)


def test_another_optimiser_is_refused(tmp_path: Path) -> None:
    first = native(Chain)
    train(first, 0)
    save_policy(first, tmp_path / "policy")
    other = sb3(Chain)
    other.policy.optimizer = torch.optim.SGD(other.policy.q_net.parameters(), 0.1)
    other.learner.optimizer = other.policy.optimizer
    with pytest.raises(ValueError, match="state of Adam.*SGD: pass optimizer=False"):
        restore_policy(tmp_path / "policy", other)
    restore_policy(tmp_path / "policy", other, optimizer=False)


def test_the_optimisers_options_stay_the_targets_own(tmp_path: Path) -> None:
    first = native(Chain)
    train(first, 0)
    save_policy(first, tmp_path / "policy")
    for make in MAKERS.values():
        other = make(Chain, dataclasses.replace(CONFIG, learning_rate=0.5))
        restore_policy(tmp_path / "policy", other)
        (group,) = other.learner.optimizer.param_groups
        assert group["lr"] == 0.5
        moments = [state["exp_avg"] for state in other.learner.optimizer.state.values()]
        for mine, theirs in zip(moments, first.learner.optimizer.state.values(), strict=True):
            assert torch.equal(mine, theirs["exp_avg"])
    other = tianshou(Chain)
    other.learner.optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(
        ValueError, match="amsgrad is False, and the optimizer's is True; pass optimizer=False"
    ):
        restore_policy(tmp_path / "policy", other)


def test_what_is_not_finite_is_named(tmp_path: Path) -> None:
    agent = native(Chain)
    save_policy(agent, tmp_path / "policy")
    policy = load_policy(tmp_path / "policy")
    with pytest.raises(NonFiniteError, match=r"observations of row 1 is nan, at index \(0,\)"):
        policy(np.array([[0.0] * 5, [np.nan] * 5]))
    with torch.no_grad():
        next(agent.q_net.parameters()).fill_(np.inf)
    with pytest.raises(NonFiniteError, match="weights that are not finite"):
        save_policy(agent, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


def test_devices(tmp_path: Path) -> None:
    save_policy(native(Chain), tmp_path / "policy")
    observation = np.zeros(5)
    expected = load_policy(tmp_path / "policy").q_values(observation[None])
    for device in ("cpu:0", "auto", torch.device("cpu")):
        policy = load_policy(tmp_path / "policy", device=device)
        np.testing.assert_allclose(policy.q_values(observation[None]), expected, atol=1e-5)
    for name in ("toaster", *(["cuda"] if not torch.cuda.is_available() else [])):
        with pytest.raises(ValueError, match=f"device='{name}' is not accepted"):
            load_policy(tmp_path / "policy", device=name)


@pytest.mark.parametrize("target", MAKERS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_policy_moves_to_a_gpu_and_back(target: str, tmp_path: Path) -> None:
    first, observations = native(Chain), np.eye(5, dtype=np.float32)
    first.q_net.to("cpu")
    save_policy(first, tmp_path / "policy")
    other = MAKERS[target](Chain)
    module = other.learner.q_net.to("cuda")
    other.learner.target_net.to("cuda")
    restore_policy(tmp_path / "policy", other, optimizer=False)
    save_policy(other, tmp_path / "again")
    assert next(module.parameters()).device.type == "cuda"
    again = load_policy(tmp_path / "again").q_values(observations)
    np.testing.assert_array_equal(again, load_policy(tmp_path / "policy").q_values(observations))


def test_masks_of_tianshou_in_the_observation_are_no_input(tmp_path: Path) -> None:
    """`Net` sees `obs["obs"]` alone, as `QNet` does."""
    seen = spaces.Box(0.0, 1.0, (5,), np.float32)
    space = spaces.Dict(obs=seen, mask=spaces.MultiBinary(2))
    policy = DQNPolicy(
        model=Net(state_shape=5, action_shape=2, hidden_sizes=(8,)),
        action_space=spaces.Discrete(2),
        observation_space=space,
    )
    save_policy(policy, tmp_path / "policy")
    assert load_policy(tmp_path / "policy").observation_space == seen


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("the file was executed",)


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    agent = native(Chain)
    save_policy(agent, good)

    def refused(message: str) -> None:
        for open_it in (load_policy, lambda path: restore_policy(path, agent)):
            with pytest.raises(CheckpointError, match=message):
                open_it(bad)

    whole = good.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:size])
        refused("not a readable checkpoint")
    bad.write_bytes(pickle.dumps(Bomb()))
    refused("not a readable checkpoint")
    torch.save({"bomb": Bomb()}, bad)
    refused("not a readable checkpoint")
    save_file({"q_net": torch.zeros(3)}, bad)
    refused("not a checkpoint of dqn_adapters")
    agent.save(bad)
    refused("holds a 'agent', not a 'policy'")

    with checkpoint.safe_open(good, framework="pt") as file:
        header = dict(file.metadata())
    tensors = load_file(good)
    save_file(tensors, bad, {**header, "version": str(checkpoint.VERSION + 1)})
    refused("upgrade it")
    state = checkpoint.load(good, "policy")
    for change in ({"q_net": {}}, {"dueling": True}, {"observation_space": {"type": "Graph"}}):
        checkpoint.save(bad, "policy", {**state, **change})
        refused("does not fit")
    assert json.loads(header["state"])["counts"] == agent.learner.counts
    with pytest.raises(FileNotFoundError):
        load_policy(tmp_path / "none")
