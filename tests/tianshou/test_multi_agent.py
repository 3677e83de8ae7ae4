"""Many agents in Tianshou: turns, rewards, masks and ends that are right, beside its own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pettingzoo
import pytest
import torch
from gymnasium import spaces
from support_pettingzoo import GAME, PARALLEL, ParallelScript, Script
from tianshou import env as host_env
from tianshou.algorithm import DQN as HostDQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.multiagent import marl as host
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.algorithm.random import MARLRandomDiscreteMaskedOffPolicyAlgorithm as RandomAlgorithm
from tianshou.data import Batch, Collector
from tianshou.data import VectorReplayBuffer as HostVectorReplayBuffer
from tianshou.env import DummyVectorEnv, SubprocVectorEnv
from tianshou.utils.torch_utils import policy_within_training_step

from dqn_adapters import DQNConfig
from dqn_adapters.config import VARIANTS
from dqn_adapters.pettingzoo.turn_env import PettingZooEnv
from dqn_adapters.tianshou import (
    DQN,
    DQNPolicy,
    PrioritizedVectorReplayBuffer,
    QNet,
    VectorReplayBuffer,
    load_checkpoint,
    make_buffer,
    save_checkpoint,
    trainer_params,
)
from dqn_adapters.tianshou.multi_agent import MultiAgentOffPolicyAlgorithm, Turns

# Tianshou's statistics say that they flatten what is a vector for the agents.
CONFIG = DQNConfig(
    variant="vanilla",
    learning_starts=0,
    buffer_size=100,
    batch_size=16,
    gamma=0.5,
    hidden_sizes=(8,),
    train_freq=4,
    gradient_steps=2,
    exploration_steps=1,
    exploration_final_eps=0.5,
)


class Equal(Script):
    """The game of three players with equal spaces, as Tianshou demands them."""

    def __init__(self, scripts: Any, where: str = "obs") -> None:
        super().__init__(scripts)
        self.sizes = dict.fromkeys("abc", 3)
        self.where = where

    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete(3)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        seen = spaces.Box(-1, 100, (3,), np.float32)
        mask = spaces.Box(0, 1, (3,), np.int8)
        if self.where == "info":
            return seen
        return spaces.Dict({"observation": seen, "action_mask": mask})

    def observe(self, agent: str) -> Any:
        seen = np.array([self.episode, self.turns[agent], "abc".index(agent)], np.float32)
        if self.where == "info":
            return seen
        return {"observation": seen, "action_mask": self.mask(agent)}

    def _infos(self) -> None:
        masks = {agent: {"action_mask": self.mask(agent)} for agent in self.agents}
        self.infos = masks if self.where == "info" else {agent: {} for agent in self.agents}


def manager(
    env: PettingZooEnv, config: DQNConfig = CONFIG, *, shared: bool = False, seed: int = 0
) -> MultiAgentOffPolicyAlgorithm:
    torch.manual_seed(seed)

    def dqn(i: int) -> DQN[DQNPolicy]:
        n = int(env.action_space.n)
        policy = DQNPolicy(
            model=QNet(env.observation_space, n, config.hidden_sizes),
            action_space=env.action_space,
            seed=10 * seed + i,
        )
        return DQN(policy=policy, config=config)

    algorithms: list[Any] = [dqn(i) for i in range(len(env.agents))]
    if shared:
        algorithms = algorithms[:1] * len(env.agents)
    return MultiAgentOffPolicyAlgorithm(algorithms=algorithms, env=env)


def collector(
    algorithm: Any, *envs: PettingZooEnv, buffer: Any = None, seed: int = 0
) -> Collector[Any]:
    made = DummyVectorEnv([lambda env=env: env for env in envs])
    made.seed(seed)
    buffer = VectorReplayBuffer(100 * len(envs), len(envs), seed=seed) if buffer is None else buffer
    return Collector(algorithm, made, buffer, exploration_noise=True)


def train(algorithm: Any, using: Collector[Any], steps: int, **params: Any) -> Any:
    config = next(algorithm.learners()).config
    return algorithm.run_training(
        trainer_params(
            config,
            steps,
            training_collector=using,
            verbose=False,
            show_progress=False,
            **{"multi_agent_return_reduction": lambda returns: returns[:, 0], **params},
        )
    )


def rows(algorithm: Any, buffer: Any, agent: str, index: int) -> list[tuple[Any, ...]]:
    """(turn of s, reward, discount, turn of s', next mask) of every transition of an agent."""
    turns = Turns(buffer, agent, index)
    own = turns.transitions(buffer.sample_indices(0))
    batch = Batch({key: turns.get(own, key) for key in ("obs", "act", "obs_next", "info")})
    batch.rew = turns.rew[own]
    algorithm.count(steps=1)
    batch = algorithm.get_algorithm(agent)._preprocess_batch(batch, turns, own)
    return [
        (
            int(batch.obs.obs[i, 1]),
            float(batch.returns[i]),
            float(batch.discounts[i]),
            int(batch.obs_next.obs[i, 1]),
            "".join(map(str, batch.obs_next.mask[i].astype(int))),
        )
        for i in range(len(own))
    ]


def played(env: PettingZooEnv, steps: int, n_steps: int = 1) -> tuple[Any, Any]:
    config = DQNConfig(**{**CONFIG.to_dict(), "n_steps": n_steps, "learning_starts": 1000})
    algorithm = manager(env, config)
    using = collector(algorithm, env)
    using.reset()
    using.collect(n_step=steps)
    return algorithm, using.buffer


# Turns


def test_tape_of_a_turn_based_game_with_unequal_spaces() -> None:
    """The rows of the native agent; see tests/pettingzoo. Masks are padded with zeros."""
    env = PettingZooEnv(Script([GAME]))
    algorithm, buffer = played(env, 13)
    assert "".join(buffer.obs.agent_id[:13]) == "abcabbcacacaa"
    ends = (buffer.obs.terminated | buffer.obs.truncated)[:13]
    assert np.flatnonzero(ends).tolist() == [5, 10, 12]
    assert np.flatnonzero(buffer.done[:13]).tolist() == [12]
    assert buffer.truncated[12]
    assert rows(algorithm, buffer, "a", 0) == [
        (0, 61.0, 0.5, 1, "10100"),
        (1, 4.0, 0.5, 2, "11000"),
        (2, 7.0, 0.5, 3, "10100"),
        (3, 9.0, 0.5, 4, "11000"),
        (4, 11.0, 0.0, 5, "10100"),
    ]
    assert rows(algorithm, buffer, "b", 1) == [(0, 2.0, 0.5, 1, "10100"), (1, 5.0, 0.0, 2, "11000")]
    assert rows(algorithm, buffer, "c", 2) == [
        (0, 243.0, 0.5, 1, "10100"),
        (1, 326.0, 0.5, 2, "11000"),
        (2, 648.0, 0.5, 3, "10100"),
    ]


def test_n_steps_are_own_turns_and_end_with_the_agent() -> None:
    algorithm, buffer = played(PettingZooEnv(Script([GAME])), 26, n_steps=3)
    first = [
        (0, 61 + 4 / 2 + 7 / 4, 0.125, 3, "10100"),
        (1, 4 + 7 / 2 + 9 / 4, 0.125, 4, "11000"),
        (2, 7 + 9 / 2 + 11 / 4, 0.0, 5, "10100"),
        (3, 9 + 11 / 2, 0.0, 5, "10100"),
        (4, 11.0, 0.0, 5, "10100"),
    ]
    assert rows(algorithm, buffer, "a", 0) == first * 2
    assert rows(algorithm, buffer, "c", 2)[:3] == [
        (0, 243 + 326 / 2 + 648 / 4, 0.125, 3, "10100"),
        (1, 326 + 648 / 2, 0.25, 3, "10100"),
        (2, 648.0, 0.5, 3, "10100"),
    ]


def test_what_is_not_over_yet_is_no_transition() -> None:
    """Of the second game's two turns only rows whose agent has come to its turn again."""
    algorithm, buffer = played(PettingZooEnv(Equal([GAME])), 13 + 4)
    assert [row[0] for row in rows(algorithm, buffer, "a", 0)] == [0, 1, 2, 3, 4, 0]
    assert [row[0] for row in rows(algorithm, buffer, "b", 1)] == [0, 1]
    assert [row[0] for row in rows(algorithm, buffer, "c", 2)] == [0, 1, 2]


class Declared(ParallelScript):
    possible_agents = ["a", "b", "c"]  # noqa: RUF012


def test_tape_of_a_parallel_game() -> None:
    """All that act at once are asked one after the other, and then the environment is stepped."""
    env = Declared([PARALLEL])
    _, buffer = played(PettingZooEnv(env), 13)
    assert env.events[1:7] == [("reset", 1), "ab", "abc", "ac", "c", "bc"]
    assert "".join(buffer.obs.agent_id[:13]) == "ababcbaccbcbc"
    assert np.flatnonzero(buffer.done[:13]).tolist() == [12]
    expected = {  # c comes in the first step; a vanishes after its second act, unlearned
        "a": [(0, 1.0, 0.5, 1), (1, 3.0, 0.5, 2)],
        "b": [(0, 2.0, 0.5, 1), (1, 4.0, 0.0, 2), (4, 8.0, 0.0, 5)],
        "c": [(1, 5.0, 0.5, 2), (2, 6.0, 0.5, 3), (3, 7.0, 0.5, 4), (4, 9.0, 0.5, 5)],
    }
    for i, agent in enumerate("abc"):
        turns = Turns(buffer, agent, i)
        own = turns.transitions(np.arange(13))
        batch = Batch({key: turns.get(own, key) for key in ("obs", "obs_next")})
        ended = np.where(turns.terminated[own], 0.0, 0.5)
        told = zip(
            batch.obs.obs[:, 0], turns.rew[own], ended, batch.obs_next.obs[:, 0], strict=True
        )
        assert [tuple(map(float, row)) for row in told] == expected[agent]


# Beside Tianshou


def host_manager(env: Any, **options: Any) -> host.MultiAgentOffPolicyAlgorithm:
    """Tianshou's, over its own DQN with Q-values of 0."""

    def dqn() -> Any:
        model = QNet(spaces.Box(-1, 100, (3,)), 3, ())
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
        policy = DiscreteQLearningPolicy(
            model=model, action_space=env.action_space, eps_training=1.0
        )
        optim = AdamOptimizerFactory()
        return HostDQN(policy=policy, optim=optim, **{"target_update_freq": 5, **options})

    algorithms = [dqn() for _ in env.agents]
    return host.MultiAgentOffPolicyAlgorithm(algorithms=algorithms, env=env)


def test_t1_agents_explore_in_training() -> None:
    env = host_env.PettingZooEnv(Equal([GAME]))
    mine = manager(PettingZooEnv(Equal([GAME])))
    for algorithm in mine.learners():
        algorithm.policy.set_eps_training(1.0)
    names = np.array([*"abc"] * 100)
    obs = Batch(agent_id=names, obs=np.zeros((300, 3), np.float32), mask=np.ones((300, 3), bool))
    deviating = []
    for algorithm in (host_manager(env), mine):
        with policy_within_training_step(algorithm.policy), torch.no_grad():
            batch = Batch(obs=obs, info=Batch())
            greedy = algorithm.policy(batch).act
            noisy = algorithm.policy.add_exploration_noise(greedy.copy(), batch)
        deviating.append(np.mean(noisy != greedy))
    assert deviating[0] == 0.0
    assert deviating[1] == pytest.approx(2 / 3, abs=0.1)
    assert not any(a.policy.is_within_training_step for a in mine.learners())


def test_t4_and_t5_the_next_state_and_the_rewards_are_the_agents_own() -> None:
    """In Tianshou s' is what b sees, the reward is that of a's own turn alone, and three steps are
    turns of all three."""

    def first_of_a(n_step: int) -> Any:
        env = host_env.PettingZooEnv(Equal([GAME]))
        algorithm = host_manager(env, n_step_return_horizon=n_step, gamma=0.5)
        buffer = HostVectorReplayBuffer(20, 1)
        Collector(algorithm, DummyVectorEnv([lambda: env]), buffer).collect(
            n_step=4, reset_before_collect=True
        )
        indices = np.array([0])
        batch = algorithm._preprocess_batch(buffer[indices], buffer, indices)
        return batch["a"]

    one, three = first_of_a(1), first_of_a(3)
    assert one.obs_next.agent_id[0] == "b"
    assert one.returns.item() == 1.0
    assert three.returns.item() == 1.0 + 20 / 2 + 40 / 4

    algorithm, buffer = played(PettingZooEnv(Equal([GAME])), 13)
    assert rows(algorithm, buffer, "a", 0)[0] == (0, 61.0, 0.5, 1, "101")


def test_t6_rewards_are_cleared_and_one_end_is_not_the_end_of_all() -> None:
    def play(env: Any, actions: list[Any]) -> list[Any]:
        env.reset()
        return [copy.deepcopy(env.step(action)) for action in actions]

    theirs = play(host_env.PettingZooEnv(Equal([GAME])), [0] * 5 + [None] + [0] * 2)
    mine = play(PettingZooEnv(Equal([GAME])), [0] * 13)
    assert theirs[4][2]  # terminated, as b is; a and c play on
    assert [over for _, _, *over, _ in mine] == [[False, False]] * 12 + [[False, True]]
    assert [theirs[i][1][1] for i in (6, 7)] == [5, 5]  # the last reward of b, for ever
    assert [mine[i][1][1] for i in range(5, 13)] == [0.0] * 8
    assert sum(step[1] for step in mine).tolist() == [92.0, 17.0, 1217.0]


def test_t6_masks_of_the_info() -> None:
    theirs = host_env.PettingZooEnv(Equal([GAME], "info"))
    assert theirs.reset()[0]["mask"] == [True] * 3
    env = PettingZooEnv(Equal([GAME], "info"))
    assert env.reset()[0]["mask"].tolist() == [True, True, False]
    algorithm = manager(env)
    for learner in algorithm.learners():
        learner.policy.set_eps_inference(1.0)
    using = collector(algorithm, env)  # an illegal action is an error of the game
    using.reset()
    using.collect(n_step=200)


def test_t6_unequal_spaces_and_parallel_environments() -> None:
    with pytest.raises(AssertionError, match="must be identical"):
        host_env.PettingZooEnv(Script([GAME]))
    env = PettingZooEnv(Script([GAME]))
    assert env.observation_space.shape == (5,)
    assert env.action_space == spaces.Discrete(5)
    with pytest.raises(AttributeError):
        host_env.PettingZooEnv(Declared([PARALLEL]))
    assert PettingZooEnv(Declared([PARALLEL])).reset()[0]["agent_id"] == "a"


@pytest.mark.parametrize("shared", [False, True])
def test_t7_a_checkpoint_loads(shared: bool) -> None:
    env = host_env.PettingZooEnv(Equal([GAME]))
    theirs = host_manager(env)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        theirs.load_state_dict(theirs.state_dict())

    def make(seed: int) -> Any:
        return manager(PettingZooEnv(Equal([GAME])), shared=shared, seed=seed)

    first, second = make(0), make(1)
    train(first, collector(first, PettingZooEnv(Equal([GAME]))), 40)
    state = first.state_dict()
    for _ in range(2):
        second.load_state_dict(state)
    for mine, other in zip(first.learners(), second.learners(), strict=True):
        assert other.counts == mine.counts
        assert other.policy.random_state == mine.policy.random_state
        for a, b in zip(mine.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
        moments = [x.learner.optimizer.state_dict()["state"][0]["exp_avg"] for x in (mine, other)]
        assert torch.equal(*moments)
    with pytest.raises(ValueError, match=r"the state does not fit: _submodules\.0"):
        second.load_state_dict({name: v for name, v in state.items() if "submodules.0" not in name})


# Training


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(variant: Any, shared: bool) -> None:
    options = {"variant": variant, "n_steps": 2, "prioritized_replay": True, "learning_starts": 10}
    config = DQNConfig(**{**CONFIG.to_dict(), **options, "target_update_interval": 20})
    weights = []
    for seed in (0, 0, 1):
        envs = [PettingZooEnv(Script([GAME])) for _ in range(2)]
        algorithm = manager(envs[0], config, shared=shared, seed=seed)
        before = [copy.deepcopy(a.policy.model.state_dict()) for a in algorithm.learners()]
        buffer = make_buffer(config, 2, seed=seed)
        assert isinstance(buffer, PrioritizedVectorReplayBuffer)
        stats = train(algorithm, collector(algorithm, *envs, buffer=buffer, seed=seed), 80)
        assert stats.train_step == 80
        learners = list(algorithm.learners())
        assert len(learners) == (1 if shared else 3)
        for learner, old in zip(learners, before, strict=True):
            assert learner.counts["steps"] == 80
            assert 8 <= learner.counts["updates"] <= 36  # not every batch has a row of everyone
            new = learner.policy.model.state_dict()
            assert any(not torch.equal(new[name], old[name]) for name in new)
        assert not shared or learners[0].counts["updates"] == 36
        assert learners[0].policy.eps_training == 0.5
        ends = buffer.obs.terminated[:40] | buffer.obs.truncated[:40]
        drawn_ends = buffer.weight[np.flatnonzero(ends)]
        assert drawn_ends.min() < 1e-3 * buffer.weight[np.flatnonzero(~ends)].max()
        weights.append(torch.cat([p.detach().flatten() for p in algorithm.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_environments_in_processes() -> None:
    def make() -> PettingZooEnv:
        return PettingZooEnv(Equal([GAME]))

    results = []
    for kind in (SubprocVectorEnv, DummyVectorEnv):
        algorithm = manager(make())
        envs = kind([make] * 2)
        envs.seed(0)
        buffer = VectorReplayBuffer(100, 2, seed=0)
        train(algorithm, Collector(algorithm, envs, buffer, exploration_noise=True), 60)
        envs.close()
        results.append(torch.cat([p.detach().flatten() for p in algorithm.parameters()]))
    assert torch.equal(*results)


def test_exact_resume(tmp_path: Path) -> None:
    """Names of unequal length are in the buffer, too."""
    path = tmp_path / "checkpoint"

    def make(seed: int) -> tuple[Any, Any]:
        env = PettingZooEnv(pettingzoo.make("aec", "classic/tictactoe-v3"))
        algorithm = manager(env, DQNConfig(**{**CONFIG.to_dict(), "buffer_size": 60}), seed=seed)
        return algorithm, collector(algorithm, env, seed=seed)

    def go_on(algorithm: Any, using: Any) -> torch.Tensor:
        train(algorithm, using, 60)
        return torch.cat([p.detach().flatten() for p in algorithm.parameters()])

    first = make(0)
    train(*first, 60)
    save_checkpoint(path, *first)
    expected = go_on(*first)
    second = make(1)
    load_checkpoint(path, *second)
    assert torch.equal(go_on(*second), expected)
    third = make(1)
    assert not torch.equal(go_on(*third), expected)


@pytest.mark.parametrize("seat", [0, 1])
def test_tic_tac_toe_against_a_random_player(seat: int) -> None:
    """A random player wins 58 % of the games as the first, 29 % as the second."""

    def make() -> PettingZooEnv:
        return PettingZooEnv(pettingzoo.make("aec", "classic/tictactoe-v3"))

    env = make()
    config = DQNConfig(
        variant="double",
        learning_rate=1e-3,
        learning_starts=500,
        buffer_size=10_000,
        batch_size=64,
        gamma=0.95,
        train_freq=10,
        gradient_steps=5,
        target_update_interval=250,
        exploration_final_eps=0.1,
        exploration_fraction=0.5,
    )
    np.random.seed(0)  # noqa: NPY002 - Tianshou's random player draws from it
    learner = next(manager(env, config).learners())
    opponent = RandomAlgorithm(env.action_space)
    algorithms: list[Any] = [opponent, opponent]
    algorithms[seat] = learner
    algorithm = MultiAgentOffPolicyAlgorithm(algorithms=algorithms, env=env)
    test_envs = DummyVectorEnv([make] * 10)
    test_envs.seed(1)
    test = Collector(algorithm, test_envs, HostVectorReplayBuffer(4000, 10))
    train(algorithm, collector(algorithm, *(make() for _ in range(10))), 4000)
    assert learner.counts["updates"] > 1500
    outcome = test.collect(n_episode=200, reset_before_collect=True).returns[:, seat]
    assert np.mean(outcome == 1) > (0.8, 0.6)[seat]


# Errors


def test_what_is_refused() -> None:
    env = PettingZooEnv(Equal([GAME]))
    learner = next(manager(env).learners())
    with pytest.raises(ValueError, match=r"2 algorithms for the 3 agents \['a', 'b', 'c'\]"):
        MultiAgentOffPolicyAlgorithm(algorithms=[learner, learner], env=env)
    theirs = host_manager(host_env.PettingZooEnv(Equal([GAME])))
    with pytest.raises(TypeError, match="must be a DQN of dqn_adapters"):
        MultiAgentOffPolicyAlgorithm(algorithms=[theirs.get_algorithm("a")] * 3, env=env)
    with pytest.raises(TypeError, match="must be a PettingZooEnv of dqn_adapters"):
        MultiAgentOffPolicyAlgorithm(
            algorithms=[learner] * 3,
            env=host_env.PettingZooEnv(Equal([GAME])),  # type: ignore[arg-type]
        )
    with pytest.raises(ValueError, match=r"action_space=Discrete\(3\).*must be Discrete\(5\)"):
        MultiAgentOffPolicyAlgorithm(algorithms=[learner] * 3, env=PettingZooEnv(Script([GAME])))
    with pytest.raises(ValueError, match="declares no possible_agents"):
        PettingZooEnv(ParallelScript([PARALLEL]))
    with pytest.raises(TypeError, match="AECEnv"):
        PettingZooEnv(3)  # type: ignore[arg-type]
    unequal = PettingZooEnv(Script([GAME]))
    unequal.reset()
    with pytest.raises(ValueError, match="action=3 is not accepted.* 0 .. 2 for 'a'"):
        unequal.step(3)  # of the five of c
    algorithm = manager(env)
    stacked = collector(algorithm, env, buffer=VectorReplayBuffer(20, 1, stack_num=2))
    with pytest.raises(ValueError, match="stack_num=2"):
        train(algorithm, stacked, 10)

    class Continuous(Equal):
        def action_space(self, agent: str) -> Any:
            return spaces.Box(0.0, 1.0)

    with pytest.raises(ValueError, match="DQN needs a gymnasium.spaces.Discrete"):
        PettingZooEnv(Continuous([GAME]))
