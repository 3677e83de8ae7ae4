"""`MultiAgentDQN`: groups, spaces, seeds, checkpoints, errors."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pettingzoo
import pytest
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv
from support_pettingzoo import GAME, PARALLEL, ParallelScript, Script

from dqn_adapters import DQNConfig
from dqn_adapters.checkpoint import CheckpointError
from dqn_adapters.finite import NonFiniteError
from dqn_adapters.pettingzoo import MultiAgentDQN, MultiAgentStep, SelfPlay

SMALL = DQNConfig(
    variant="double",
    learning_starts=4,
    batch_size=4,
    train_freq=2,
    target_update_interval=3,
    buffer_size=100,
    hidden_sizes=(8,),
    learning_rate=1e-2,
    n_steps=2,
)


def tictactoe() -> Any:
    return pettingzoo.make("aec", "classic/tictactoe-v3")


def parameters(agent: MultiAgentDQN) -> list[torch.Tensor]:
    return [p.detach().clone() for x in agent.policies.values() for p in x.q_net.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def actions(agent: MultiAgentDQN, turns: int) -> list[dict[Any, int]]:
    return [step.actions for step in agent.train(turns)]


def test_each_agent_has_a_network_for_its_spaces() -> None:
    agent = MultiAgentDQN(Script([GAME]), SMALL, seed=0)
    assert list(agent.policies) == ["a", "b", "c"]
    assert [policy.num_actions for policy in agent.policies.values()] == [3, 4, 5]
    # The mask is no part of what the network sees.
    assert agent.policy("a").observation_space == spaces.Box(-1, 100, (3,), np.float32)
    assert 10 <= agent.predict("c", np.zeros(5)) < 15


def test_a_group_shares_a_network_and_has_its_own_config() -> None:
    config = {"both": SMALL, "z": dataclasses.replace(SMALL, variant="vanilla", hidden_sizes=(5,))}
    env = ParallelScript([[("xyz",), ("xyz", {}, "", ""), ("", {}, "xyz", "")]])
    agent = MultiAgentDQN(
        env, config, policy_groups={"both": ["x", "y"]}, seed=0
    )  # fmt: skip
    agent.learn(60)
    assert list(agent.policies) == ["both", "z"]
    assert agent.policy("x") is agent.policy("y") is agent.policies["both"]
    assert agent.policies["both"].num_turns == 40
    assert agent.policies["z"].num_turns == 20
    assert agent.policies["z"].learner.target_net is agent.policies["z"].q_net
    assert agent.policies["z"].config.hidden_sizes == (5,)


def test_same_seed_same_run() -> None:
    runs = [MultiAgentDQN(tictactoe(), SMALL, seed=seed) for seed in (3, 3, 4)]
    taken = [actions(agent, 200) for agent in runs]
    assert taken[0] == taken[1] != taken[2]
    assert equal(parameters(runs[0]), parameters(runs[1]))


def test_predict_and_evaluate_do_not_disturb_the_training() -> None:
    plain, watched = (MultiAgentDQN(tictactoe(), SMALL, seed=0) for _ in range(2))
    plain.learn(200)

    def watch(step: MultiAgentStep) -> None:
        env = tictactoe()
        env.reset()
        step.agent.predict("player_1", env.last()[0])
        if step.num_timesteps % 50 == 0:
            returns = step.agent.evaluate(env, 2, seed=0)
            assert sum(returns.values()) == 0

    watched.learn(200, watch)
    assert equal(parameters(plain), parameters(watched))


def test_a_callback_ends_the_training_and_nothing_is_lost() -> None:
    whole, parts = (MultiAgentDQN(tictactoe(), SMALL, seed=0) for _ in range(2))
    whole.learn(100)
    parts.learn(100, lambda step: step.num_timesteps < 33)
    assert parts.num_timesteps == 33
    parts.learn(67)
    assert equal(parameters(whole), parameters(parts))


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    MultiAgentDQN(tictactoe(), SMALL, seed=0).learn(20, progress_bar=True)
    assert "20/20 turns" in capsys.readouterr().out


RESUME = """
import sys, pettingzoo
from dqn_adapters.pettingzoo import MultiAgentDQN
agent = MultiAgentDQN.load(sys.argv[1], pettingzoo.make("aec", "classic/tictactoe-v3"))
agent.learn(int(sys.argv[2]))
agent.save(sys.argv[3], replay=True)
"""


@pytest.mark.parametrize("prioritized", [False, True])
def test_exact_resume_in_another_process(tmp_path: Path, prioritized: bool) -> None:
    """A training that was saved at an episode's end goes on as if it had not been."""
    config = dataclasses.replace(
        SMALL, prioritized_replay=prioritized, exploration_steps=150, dueling=True
    )
    options: dict[str, Any] = {
        "policy_groups": {"all": ["player_1", "player_2"]},
        "self_play": SelfPlay(past_probability=0.5, snapshot_interval=20, opening_turns=2),
    }
    agent = MultiAgentDQN(tictactoe(), config, seed=0, **options)
    agent.learn(100, lambda step: step.num_timesteps < 80 or step.episode_length == 0)
    turns = 200 - agent.num_timesteps
    saved = agent.save(tmp_path / "agent.safetensors", replay=True)
    agent.learn(turns)
    assert agent.policies["all"].pool
    resumed = tmp_path / "resumed.safetensors"
    code = [sys.executable, "-c", RESUME, str(saved), str(turns), str(resumed)]
    subprocess.run(code, check=True, timeout=120)
    other = MultiAgentDQN.load(resumed, tictactoe())
    assert other.num_timesteps == agent.num_timesteps == 200
    assert equal(parameters(other), parameters(agent))
    agent.learn(5)  # within an episode: what comes next differs, what was learned does not
    again = MultiAgentDQN.load(agent.save(tmp_path / "within"), tictactoe())
    assert equal(parameters(again), parameters(agent))


def test_load_knows_agents_that_appeared(tmp_path: Path) -> None:
    agent = MultiAgentDQN(ParallelScript([PARALLEL]), SMALL, seed=0)
    agent.learn(40)
    path = agent.save(tmp_path / "agent.safetensors")
    loaded = MultiAgentDQN.load(path, ParallelScript([PARALLEL]))
    assert list(loaded.policies) == ["a", "b", "c"]
    observation = np.array([2.0, 1.0], np.float32)
    for name in "abc":
        assert loaded.predict(name, observation) == agent.predict(name, observation)
    assert equal(parameters(loaded), parameters(agent))


def test_load_with_a_function_and_with_spaces_that_do_not_fit(tmp_path: Path) -> None:
    function = MultiAgentDQN(
        ParallelScript([PARALLEL]), SMALL, policy_groups=lambda agent: "all", seed=0
    )
    function.learn(20)
    path = function.save(tmp_path / "function")
    with pytest.raises(ValueError, match="must be the function that assigned"):
        MultiAgentDQN.load(path, ParallelScript([PARALLEL]))
    loaded = MultiAgentDQN.load(path, ParallelScript([PARALLEL]), policy_groups=lambda agent: "all")
    assert equal(parameters(loaded), parameters(function))
    own = MultiAgentDQN(Script([GAME]), SMALL, seed=0).save(tmp_path / "own")
    other = Script([GAME])
    other.sizes["b"] = 6
    with pytest.raises(ValueError, match="does not fit the environment: the agents of 'b'"):
        MultiAgentDQN.load(own, other)
    with pytest.raises(ValueError, match="must be None: the groups are in the file"):
        MultiAgentDQN.load(own, Script([GAME]), policy_groups=lambda agent: "all")
    (tmp_path / "broken").write_bytes(own.read_bytes()[:-9])
    with pytest.raises(CheckpointError):
        MultiAgentDQN.load(tmp_path / "broken", Script([GAME]))


class Tanh(torch.nn.Sequential):
    def __init__(self, space: Any, num_actions: int, config: DQNConfig) -> None:
        (width,) = config.hidden_sizes
        size = int(np.prod(space.shape))
        super().__init__(
            torch.nn.Linear(size, width), torch.nn.Tanh(), torch.nn.Linear(width, num_actions)
        )

    def forward(self, observations: torch.Tensor) -> Any:
        return super().forward(observations.float().flatten(1))


def test_each_group_has_a_network_of_ones_own_for_its_spaces() -> None:
    config = {**dict.fromkeys("abc", SMALL), "b": dataclasses.replace(SMALL, hidden_sizes=(5,))}
    agent = MultiAgentDQN(Script([GAME]), config, network=Tanh, seed=0)
    shapes = [[tuple(p.shape) for p in x.q_net.parameters()] for x in agent.policies.values()]
    assert shapes[0] == [(8, 3), (8,), (3, 8), (3,)]
    assert shapes[1] == [(5, 4), (5,), (4, 5), (4,)]
    again = MultiAgentDQN(Script([GAME]), config, network=Tanh, seed=0)
    assert equal(parameters(again), parameters(agent))


def test_a_network_of_ones_own_is_trained_and_goes_on_exactly(tmp_path: Path) -> None:
    agent = MultiAgentDQN(tictactoe(), SMALL, network=Tanh, seed=0)
    before = parameters(agent)
    agent.learn(100, lambda step: step.num_timesteps < 40 or step.episode_length == 0)
    assert not equal(parameters(agent), before)
    path = agent.save(tmp_path / "agent", replay=True)
    with pytest.raises(ValueError, match="network must be the function that made the networks"):
        MultiAgentDQN.load(path, tictactoe())
    loaded = MultiAgentDQN.load(path, tictactoe(), network=Tanh)
    assert equal(parameters(loaded), parameters(agent))
    assert equal(parameters(loaded.learn(40)), parameters(agent.learn(40)))
    shipped = MultiAgentDQN(tictactoe(), SMALL, seed=0).save(tmp_path / "shipped")
    with pytest.raises(ValueError, match="network must be None: the networks that were saved"):
        MultiAgentDQN.load(shipped, tictactoe(), network=Tanh)


class Spaces(ParallelEnv[str, Any, Any]):
    """Never stepped: two agents of the given spaces."""

    metadata: dict[str, Any] = {"name": "spaces"}  # noqa: RUF012
    possible_agents = ["x", "y"]  # noqa: RUF012

    def __init__(self, observation: Any, action: Any) -> None:
        self.spaces = {"x": (observation, action), "y": (spaces.Discrete(3), spaces.Discrete(2))}

    def observation_space(self, agent: str) -> Any:
        return self.spaces[agent][0]

    def action_space(self, agent: str) -> Any:
        return self.spaces[agent][1]


BOX = spaces.Box(0, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("env", "arguments", "error", "message"),
    [
        (Spaces(BOX, BOX), {}, ValueError, "agent 'x': action space Box.* is not supported"),
        (
            Spaces(spaces.Text(3), spaces.Discrete(2)),
            {},
            ValueError,
            "agent 'x': observation space",
        ),
        (
            Spaces(spaces.Dict(seen=BOX, action_mask=spaces.MultiBinary(3)), spaces.Discrete(2)),
            {},
            ValueError,
            r"agent 'x': the action mask of .* must have shape \(2,\)",
        ),
        (
            Spaces(BOX, spaces.Discrete(2)),
            {"policy_groups": {"all": ["x", "y"]}},
            ValueError,
            r"group 'all' must have equal spaces; 'y' has .*\['x'\] have",
        ),
        (Script([GAME]), {"policy_groups": {"all": []}}, ValueError, "at least one agent"),
        (Script([GAME]), {"policy_groups": {"all": "abc"}}, ValueError, "list of at least one"),
        (Script([GAME]), {"policy_groups": ["a"]}, TypeError, "policy_groups=.* must be a mapping"),
        (
            Script([GAME]),
            {"policy_groups": {"one": ["a", "b"], "two": ["b"]}},
            ValueError,
            "agent 'b' is in two groups, 'one' and 'two'",
        ),
        (
            Script([GAME]),
            {"policy_groups": {"g": ["d"]}},
            ValueError,
            "agent 'd' of .*'g'.* unknown",
        ),
        (Script([GAME]), {"policy_groups": {"c": ["a"]}}, ValueError, "'c' .* has the name of an"),
        (Script([GAME]), {"config": {"a": SMALL}}, ValueError, "no config for the group 'b'"),
        (Script([GAME]), {"config": {"d": SMALL}}, ValueError, "config has 'd'; the groups are"),
        (Script([GAME]), {"config": 3}, TypeError, "config=3 .* DQNConfig"),
        (Script([GAME]), {"self_play": 3}, TypeError, "self_play=3"),
        (Script([GAME]), {"network": torch.nn.Linear(4, 2)}, TypeError, "network=.* a function of"),
        (Script([GAME]), {"network": lambda *_: None}, TypeError, "network must make .* made None"),
        (
            Script([GAME]),
            {"network": lambda space, n, _: torch.nn.Linear(space.shape[0], n + 1)},
            ValueError,
            r"agent 'a': network must map .* \(B, A\), here \(2, 3\); it gave \(2, 4\)",
        ),
        (Script([GAME]), {"seed": -1}, ValueError, "seed=-1"),
        (Script([GAME]), {"device": "gpu?"}, ValueError, "device="),
        ("a", {}, TypeError, "env='a' .* pettingzoo.AECEnv or a pettingzoo.ParallelEnv"),
    ],
)
def test_bad_input(env: Any, arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MultiAgentDQN(env, **{"config": SMALL, **arguments})


@pytest.mark.parametrize(
    ("agent", "observation", "mask", "message"),
    [
        ("d", np.zeros(4), None, r"agent 'd' is unknown; known are \['a', 'b', 'c'\]"),
        ("b", np.zeros(3), None, r"agent 'b': observation must have shape \(4,\), got \(3,\)"),
        ("b", np.zeros(4), [1, 1, 1], r"agent 'b': the action mask .* must have shape \(4,\)"),
        ("b", np.zeros(4), [1, 1, 1, 2], "agent 'b': the action mask of .* must hold 0 and 1 only"),
        ("b", np.zeros(4), [0, 0, 0, 0], "allows no action"),
        ("a", np.zeros(3), None, "agent 'a': observation must have 'action_mask', or action_mask"),
    ],
)
def test_bad_predictions(agent: str, observation: Any, mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiAgentDQN(Script([GAME]), SMALL, seed=0).predict(agent, observation, mask)


def test_more_bad_input() -> None:
    agent = MultiAgentDQN(Script([GAME]), SMALL, seed=0)
    for total in (0, 1.5):
        with pytest.raises(ValueError, match="total_timesteps="):
            agent.train(total)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="evaluate in another one"):
        agent.evaluate(agent.env)
    with pytest.raises(ValueError, match="past_probability=2"):
        SelfPlay(past_probability=2)
    with pytest.raises(ValueError, match="pool_size=0"):
        SelfPlay(pool_size=0)
    with pytest.raises(ValueError, match=r"past_probability=0.6 and random_probability=0.5 .* 1"):
        SelfPlay(past_probability=0.6, random_probability=0.5)


class Spoiled(Script):
    """The known game, in which from the second turn of b on something is wrong."""

    def __init__(self, what: str) -> None:
        super().__init__([GAME])
        self.what = what

    def last(self, observe: bool = True) -> Any:
        observation, reward, terminated, truncated, info = super().last(observe)
        if self.agent_selection == "b" and self.turns["b"] == 1:
            if self.what == "reward":
                reward = float("nan")
            elif self.what == "observation":
                observation = observation * np.inf
            elif self.what == "shape":
                observation = observation[:2]
            else:
                info = {"action_mask": np.ones(3, np.int8)}
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("reward", NonFiniteError, "the reward at step 4 of agent 'b' is nan; it must be finite"),
        (
            "observation",
            NonFiniteError,
            "the observation of agent 'b' is nan.* .at step 4.",
        ),
        ("shape", ValueError, r"agent 'b': observation must have shape \(4,\), got \(2,\)"),
        ("mask", ValueError, r"agent 'b': the action mask .* must have shape \(4,\)"),
    ],
)
def test_a_bad_turn_is_named_before_it_is_learned(
    what: str, error: type[Exception], message: str
) -> None:
    agent = MultiAgentDQN(Spoiled(what), SMALL, seed=0)
    with pytest.raises(error, match=message), np.errstate(invalid="ignore"):
        agent.learn(20)
    assert agent.num_timesteps == 3
    assert len(agent.policies["b"].replay) == 0
    assert all(torch.isfinite(p).all() for p in parameters(agent))


def test_predict_heeds_every_mask() -> None:
    agent = MultiAgentDQN(Script([GAME]), SMALL, seed=0)
    for action in range(4):
        mask = np.eye(4, dtype=np.int8)[action]
        for deterministic in (True, False):
            assert agent.predict("b", np.zeros(4), mask, deterministic) == action
    for action in range(3):
        seen = {"observation": np.zeros(3), "action_mask": np.eye(3, dtype=np.int8)[action]}
        assert agent.predict("a", seen) == action
        assert agent.predict("a", np.zeros(3), seen["action_mask"]) == action
    assert agent.predict("c", np.zeros(5), [0, 0, 1, 0, 0]) == 12


def test_a_million_masked_draws_are_legal() -> None:
    """Greedy and exploring alike, for a policy's batches as in the training."""
    agent = MultiAgentDQN(Script([GAME]), SMALL, seed=0)
    policy, generator = agent.policy("c"), np.random.default_rng(0)
    size = 10_000
    rows = np.arange(size)
    for epsilon, past in ((0.0, False), (0.0, True), (0.3, False), (1.0, False)):
        for _ in range(26):
            masks = generator.random((size, 5)) < 0.4
            masks[rows, generator.integers(5, size=size)] = True
            seen = generator.normal(size=(size, 5)).astype(np.float32)
            acted = np.array(policy.act(seen, masks, epsilon, past=past)) - 10
            assert masks[rows, acted].all()


def test_random_opponents_are_random_and_not_learned_from() -> None:
    agent = MultiAgentDQN(
        tictactoe(),
        dataclasses.replace(
            SMALL, learning_starts=0, exploration_initial_eps=0.0, exploration_final_eps=0.0
        ),
        policy_groups={"all": ["player_1", "player_2"]},
        self_play=SelfPlay(random_probability=0.5),
        seed=0,
    )
    policy = agent.policies["all"]
    turns, kinds, first = 0, [], []
    for step in agent.train(600):
        (player,) = step.actions
        opponent = policy.learning_agent not in (None, player)
        assert step.epsilons["all"] == float(opponent)
        if opponent:
            first.append(step.actions[player])
        if step.episode_length:
            kinds.append(policy.learning_agent)
            assert policy.random_opponent == (policy.learning_agent is not None)
            learned, turns = policy.num_turns - turns, policy.num_turns
            if policy.learning_agent is None:
                assert learned == step.episode_length
            else:
                assert learned in (step.episode_length // 2, (step.episode_length + 1) // 2)
    share = sum(kind is not None for kind in kinds) / len(kinds)
    assert 0.3 < share < 0.7
    assert {"player_1", "player_2", None} == set(kinds)
    assert set(first) == set(range(9))
    assert not policy.pool


def test_past_opponents_are_not_learned_from_and_openings_are_random() -> None:
    self_play = SelfPlay(
        past_probability=1.0, snapshot_interval=10, pool_size=2, opening_turns=2
    )  # fmt: skip
    agent = MultiAgentDQN(
        tictactoe(),
        dataclasses.replace(SMALL, learning_starts=0, exploration_initial_eps=0.0,
                            exploration_final_eps=0.0),
        policy_groups={"all": ["player_1", "player_2"]},
        self_play=self_play,
        seed=0,
    )  # fmt: skip
    policy = agent.policies["all"]
    turns, past, openings = 0, [], set()
    opening = 0
    for step in agent.train(300):
        opening += step.epsilons["all"] == 1.0
        if step.episode_length:
            past.append(policy.learning_agent)
            before, turns = turns, policy.num_turns
            openings.add(opening)
            if policy.learning_agent is None:  # of an opening the last turn is learned from
                assert turns - before == step.episode_length - max(opening - 1, 0)
            else:
                assert turns - before <= (step.episode_length + 1) // 2
            opening = 0
    assert {None, "player_1", "player_2"} == set(past)
    assert None not in past[past.index("player_1") :][:5]
    assert openings == {0, 1, 2}
    assert len(policy.pool) == 2
