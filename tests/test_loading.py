"""Opening an agent's file under other conditions, and what is refused before anything changes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from support import Chain, env_step
from support_pettingzoo import PARALLEL, ParallelScript

from dqn_adapters import DQNAgent, DQNConfig, DQNLearner, checkpoint
from dqn_adapters.checkpoint import CheckpointError
from dqn_adapters.pettingzoo import MultiAgentDQN
from dqn_adapters.replay import ReplayBuffer
from dqn_adapters.replay.sum_tree import SumTree

SMALL = DQNConfig(
    hidden_sizes=(8,), buffer_size=50, batch_size=8, learning_starts=5, target_update_interval=7
)


def weights(agent: DQNAgent) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(agent.q_net.parameters()).detach().clone()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return DQNAgent(Chain(), SMALL, seed=0).learn(60).save(tmp_path / "agent", replay=True)


def test_an_agent_opens_without_its_buffer(path: Path) -> None:
    whole, alone = (DQNAgent.load(path, Chain(), replay=replay) for replay in (True, False))
    assert (len(whole.replay), len(alone.replay)) == (50, 0)
    assert torch.equal(weights(whole), weights(alone))
    assert alone.learn(10).num_timesteps == 70


def test_an_agent_opens_with_other_hyperparameters(path: Path) -> None:
    config = dataclasses.replace(SMALL, gamma=0.5, n_steps=3, learning_rate=0.5, adam_eps=0.1)
    agent = DQNAgent.load(path, Chain(), config=config)
    (group,) = agent.learner.optimizer.param_groups
    assert (group["lr"], group["eps"]) == (0.5, 0.1)
    assert (agent.replay.gamma, agent.replay.n_steps, len(agent.replay)) == (0.5, 3, 50)
    assert agent.learner.optimizer.state_dict()["state"][0]["step"] > 0
    assert agent.learn(20).config is config


@pytest.mark.parametrize("saved", ["vanilla", "target"])
@pytest.mark.parametrize("opened", ["vanilla", "double"])
def test_a_variant_can_be_changed(saved: Any, opened: Any, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, variant=saved)
    agent = DQNAgent(Chain(), config, seed=0).learn(60)
    path = agent.save(tmp_path / "agent", replay=True)
    config = dataclasses.replace(SMALL, variant=opened)
    loaded = DQNAgent.load(path, Chain(), config=config)
    assert torch.equal(weights(loaded), weights(agent))
    target = loaded.learner.target_net
    assert (target is loaded.q_net) == (opened == "vanilla")
    if opened != "vanilla":
        before = agent.learner.target_net.state_dict()
        assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    loaded.learn(20)


def test_schedules_keep_the_length_that_was_fixed_unless_the_config_has_one(path: Path) -> None:
    def epsilon_steps(**changes: Any) -> int:
        config = dataclasses.replace(SMALL, **changes)
        schedule = DQNAgent.load(path, Chain(), config=config)._schedule
        assert schedule is not None
        return schedule.steps

    fixed = round(SMALL.exploration_fraction * 60)
    assert epsilon_steps(gamma=0.5) == fixed
    assert epsilon_steps(exploration_fraction=2 * SMALL.exploration_fraction) == 2 * fixed
    assert epsilon_steps(exploration_steps=1234) == 1234


def test_what_cannot_be_changed_says_why(path: Path) -> None:
    for changes, message in (
        ({"hidden_sizes": (9,)}, r"head\.0\.weight must have shape \(9, 5\), got \(8, 5\)"),
        ({"buffer_size": 99}, "capacity 50, this one 99.*replay=False opens it without"),
        ({"prioritized_replay": True}, "one of the buffers is prioritised.*replay=False"),
    ):
        config = dataclasses.replace(SMALL, **changes)
        with pytest.raises(ValueError, match=message):
            DQNAgent.load(path, Chain(), config=config)
    config = dataclasses.replace(SMALL, buffer_size=99, prioritized_replay=True)
    assert DQNAgent.load(path, Chain(), config=config, replay=False).learn(20).replay.prioritized


def test_a_buffer_of_many_environments_opens_over_others(path: Path, tmp_path: Path) -> None:
    several = gym.vector.SyncVectorEnv([Chain] * 3)
    agent = DQNAgent(several, SMALL, seed=0).learn(60)
    path = agent.save(tmp_path / "several", replay=True)
    one = DQNAgent.load(path, Chain())
    slots = np.arange(50)
    batches = one.replay.gather(slots), agent.replay.gather(slots)
    for kept, was in zip(*batches, strict=True):
        assert was is None or torch.equal(kept, was)
    one.learn(20)
    again = DQNAgent.load(one.save(path, replay=True), gym.vector.SyncVectorEnv([Chain] * 2))
    assert again.learn(20).num_timesteps == 100


def test_stacked_frames_of_other_environments_say_why(tmp_path: Path) -> None:
    class Stacked(Chain):
        def __init__(self) -> None:
            super().__init__(4)

    config = dataclasses.replace(SMALL, frame_stack=2)
    several = gym.vector.SyncVectorEnv([Stacked] * 3)
    path = DQNAgent(several, config, seed=0).learn(60).save(tmp_path / "agent", replay=True)
    with pytest.raises(ValueError, match="are of 3 environments, here are 1; frames.*replay=False"):
        DQNAgent.load(path, Stacked())
    assert DQNAgent.load(path, Stacked(), replay=False).learn(20).num_timesteps == 80


def test_a_file_without_spaces_opens_as_before(path: Path) -> None:
    state = checkpoint.load(path, "agent")
    expected = DQNAgent.load(path, Chain())
    del state["observation_space"], state["action_space"]
    checkpoint.save(path, "agent", state)
    assert torch.equal(weights(DQNAgent.load(path, Chain())), weights(expected))
    with pytest.raises(CheckpointError, match=r"agent does not fit: q_net\.head\.0\.weight must"):
        DQNAgent.load(path, "CartPole-v1")


def test_a_file_cannot_ask_for_more_memory_than_there_is(path: Path) -> None:
    state = checkpoint.load(path, "agent")
    state["config"]["buffer_size"] = 2**50
    checkpoint.save(path, "agent", {**state, "replay": None})
    with pytest.raises(CheckpointError, match="config.buffer_size=.* GiB of memory.*config="):
        DQNAgent.load(path, Chain())
    DQNAgent.load(path, Chain(), config=SMALL)


def test_many_agents_open_with_other_hyperparameters_and_without_buffers(tmp_path: Path) -> None:
    agent = MultiAgentDQN(ParallelScript([PARALLEL]), SMALL, seed=0).learn(60)
    path = agent.save(tmp_path / "agent", replay=True)
    config = dataclasses.replace(SMALL, gamma=0.5, buffer_size=99)
    with pytest.raises(ValueError, match="policy .*capacity 50, this one 99"):
        MultiAgentDQN.load(path, ParallelScript([PARALLEL]), config=config)
    loaded = MultiAgentDQN.load(path, ParallelScript([PARALLEL]), config=config, replay=False)
    for name, policy in loaded.policies.items():
        assert policy.config is config
        assert len(policy.replay) == 0
        saved = agent.policies[name].q_net.state_dict()
        assert all(torch.equal(v, saved[k]) for k, v in policy.q_net.state_dict().items())
    loaded.learn(20)


# What a state of the replay buffer, the learner and the tree may not hold


def buffer(prioritized: bool = True) -> ReplayBuffer:
    replay = ReplayBuffer(
        6,
        spaces.Box(-9.0, 9.0, (2,), np.float32),
        gamma=0.9,
        generator=np.random.default_rng(0),
        num_envs=2,
        prioritized=prioritized,
    )
    for i in range(4):
        replay.add(env_step(np.full((2, 2), i, np.float32), terminated=i == 2))
    return replay


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        for key in path[:-1]:
            state = state[key]
        if isinstance(state, np.ndarray) and isinstance(path[-1], int):
            state[path[-1]] = value
        else:
            state[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("arrays", "successor", 0, value=6), "successor.* must be in -1 .. 5, got 6 at 0"),
        (put("arrays", "successor", 0, value=0), "successor.* must be a later row"),
        (put("arrays", "actions", 1, value=2), "actions.* must be in 0 .. 1, got 2"),
        (put("arrays", "actions", 1, value=-1), "actions.* must be in 0 .. 1, got -1"),
        (put("arrays", "rewards", 1, value=np.nan), "rewards.* must be finite, got nan at 1"),
        (put("arrays", "rewards", value=[1.0]), "rewards.* must be an array"),
        (put("last", 1, value=8), "last.* must be in -1 .. 7, got 8"),
        (put("last", value=np.zeros(2, np.float32)), "last.* must be int64, got float32"),
        (put("added", value=-1), "added=-1 is not accepted"),
        (put("added", value=2**63), "added=9223372036854775808 is not accepted"),
        (put("largest_priority", value=np.nan), "largest_priority=nan is not accepted"),
        (put("tree", "values", 0, value=-1.0), "tree.values must be >= 0, got -1.0 at 0"),
        (put("tree", "values", 0, value=np.inf), "tree.values must be finite, got inf at 0"),
        (put("tree", value=None), "one of the buffers is prioritised"),
        (put("generator", "state", value={}), "generator is not the state of a random generator"),
        (put("generator", value=3), "generator is not the state of a random generator"),
        (put("storage", value=3), "storage=3 is not accepted; storage must be a mapping"),
    ],
)
def test_a_replay_state_that_does_not_fit_changes_nothing(change: Any, message: str) -> None:
    replay, state = buffer(), copy.deepcopy(buffer().state_dict())
    change(state)
    before = str(replay.state_dict())
    with pytest.raises(ValueError, match=message):
        replay.load_state_dict(state, num_actions=2)
    assert str(replay.state_dict()) == before


def test_successors_are_links_within_an_episode() -> None:
    replay, state = buffer(), copy.deepcopy(buffer().state_dict())
    successor, terminated = state["arrays"]["successor"], state["arrays"]["terminated"]
    linked = np.flatnonzero(successor >= 0)
    assert len(linked) == 2
    doubled = copy.deepcopy(state)
    doubled["arrays"]["successor"][linked[0]] = successor[linked[1]]
    with pytest.raises(ValueError, match=r"successor.* must be (different|a later)"):
        replay.load_state_dict(doubled)
    terminated[linked[0]] = True
    with pytest.raises(ValueError, match=r"successor.* must be -1 where the episode terminated"):
        replay.load_state_dict(state)


def test_a_tree_of_places_where_nothing_is_stored_is_refused() -> None:
    replay = buffer()
    replay._added = 0
    state = ReplayBuffer(
        6,
        spaces.Box(-9.0, 9.0, (2,), np.float32),
        gamma=0.9,
        generator=np.random.default_rng(0),
        num_envs=2,
        prioritized=True,
    ).state_dict()
    state["tree"]["values"][3] = 1.0
    with pytest.raises(ValueError, match=r"tree\.values must be 0 where no transition is stored"):
        buffer().load_state_dict(state)


def test_a_sum_tree_looks_at_its_values() -> None:
    tree = SumTree(3)
    tree.set(np.arange(3), [1.0, 2.0, 3.0])
    for values in (np.ones(2), np.ones(3, np.float32), np.array([1.0, -1.0, 1.0]), [1.0] * 3):
        with pytest.raises(ValueError, match=r"tree\.values"):
            tree.load_state_dict({"values": values})
    assert tree.total == 6


def test_stored_values_that_are_encoded_by_their_number_are_in_their_space(tmp_path: Path) -> None:
    def make() -> ReplayBuffer:
        space = spaces.Dict(a=spaces.Discrete(3, start=1), b=spaces.MultiDiscrete([2, 2]))
        return ReplayBuffer(4, space, gamma=0.9, generator=np.random.default_rng(0))

    replay = make()
    rows = {"a": np.array([1]), "b": np.array([[0, 1]])}
    step = env_step(np.zeros((1, 1)))
    replay.add(step._replace(observations=rows, next_observations=rows))
    for key, value in (("a", 0), ("a", 4), ("b", 2)):
        state = copy.deepcopy(replay.state_dict())
        state["storage"]["observations"][key][...] = value
        with pytest.raises(ValueError, match=rf"observations .*\.{key} must be in"):
            make().load_state_dict(state)


def test_bytes_that_are_no_booleans_are_refused(tmp_path: Path) -> None:
    flags = np.array([0, 2], np.uint8).view(np.bool_)
    path = checkpoint.save(tmp_path / "file", "test", {"flags": flags})
    with pytest.raises(CheckpointError, match="flags holds bytes that are neither False nor True"):
        checkpoint.load(path, "test")


def learner(width: int = 4, updates: int = 0) -> DQNLearner:
    from support import random_batch

    net = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 3))
    made = DQNLearner(net, DQNConfig())
    generator = np.random.default_rng(0)
    for _ in range(updates):
        made.update(random_batch(generator))
    return made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("counts", "steps", value=-1), "counts.steps=-1 is not accepted"),
        (put("counts", "updates", value=1.5), "counts.updates=1.5 is not accepted"),
        (put("counts", value=[]), r"counts=\[\] is not accepted"),
        (put("q_net", "0.weight", value=torch.zeros(5, 4)), r"0\.weight must have shape \(4, 4\)"),
        (put("q_net", "0.weight", value=torch.zeros(4, 4, dtype=torch.int64)), "must be torch.flo"),
        (put("q_net", value={}), "q_net does not fit the network: 0.bias"),
        (put("optimizer", "state", 0, "exp_avg", value=torch.zeros(9)), r"state\[0\].exp_avg must"),
        (put("optimizer", "state", 0, "step", value=torch.tensor(np.nan)), "step must be finite"),
        (put("optimizer", "state", 0, "step", value=-1.0), "step=-1.0 is not accepted"),
        (put("optimizer", "state", 9, value={}), "optimizer.state, parameter=9 is not accepted"),
        (put("optimizer", "state", 0, value={"step": 1.0}), r"has \['step'\], and must have"),
        (put("optimizer", "param_groups", 0, "lr", value="fast"), "lr='fast' is not accepted"),
        (put("optimizer", "param_groups", 0, "betas", value=(0.9,)), "betas=.* is not accepted"),
        (put("optimizer", "param_groups", 0, "amsgrad", value=True), "amsgrad is True"),
        (put("optimizer", "param_groups", 0, "params", value=[0, 1, 2]), r"params are \[0, 1, 2\]"),
    ],
)
def test_a_learner_state_that_does_not_fit_changes_nothing(change: Any, message: str) -> None:
    target, state = learner(updates=1), copy.deepcopy(learner(updates=2).state_dict())
    change(state)
    before = str(target.state_dict())
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(state)
    assert str(target.state_dict()) == before


def test_a_learner_state_of_another_width_is_refused() -> None:
    target, other = learner(8, updates=1), learner(4, updates=3).state_dict()
    before = str(target.state_dict())
    with pytest.raises(ValueError, match=r"0\.weight must have shape \(8, 4\), got \(4, 4\)"):
        target.load_state_dict(other)
    assert str(target.state_dict()) == before
