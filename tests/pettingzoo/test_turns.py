"""Turn-wise transitions: the exact events and rows of hand-written games."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from support_pettingzoo import GAME, PARALLEL, ParallelScript, Script

from dqn_adapters import DQNConfig
from dqn_adapters.pettingzoo import GroupPolicy, MultiAgentDQN

CONFIG = DQNConfig(
    learning_starts=10_000, buffer_size=50, batch_size=4, gamma=0.5, hidden_sizes=(4,)
)

# (who plays, rewards to anyone, terminated, truncated, vanished)
VANISHING = [
    ("a", {"a": 1}, "", "", ""),
    ("b", {"b": 1}, "", "", ""),
    ("c", {"c": 1}, "", "", "b"),  # b has acted, and is gone without a word
    ("a", {"a": 2}, "", "", ""),
    ("c", {"c": 2}, "ac", "", ""),
]


def rows(policy: GroupPolicy) -> list[tuple[Any, ...]]:
    """(turn of s, reward, discount, turn of s', next mask) of every stored transition."""
    replay = policy.replay
    batch = replay.gather(np.arange(len(replay)))
    masks = batch.next_action_masks
    assert masks is not None
    return [
        (
            int(batch.observations[i, 1]),
            float(batch.rewards[i]),
            float(batch.discounts[i]),
            int(batch.next_observations[i, 1]),
            "".join(map(str, masks[i].int().tolist())),
        )
        for i in range(len(replay))
    ]


def test_tape_of_a_turn_based_game() -> None:
    env = Script([GAME])
    agent = MultiAgentDQN(env, CONFIG, seed=0)
    steps = list(agent.train(len(GAME)))
    actors = [event[0] for event in env.events]
    assert actors == ["reset", *"abcabbcacacaa"]
    assert [event[1] is None for event in env.events[1:]] == [
        *(False, False, False, False, False, True),  # b is stepped with None
        *(False, False, False, False, True),  # c
        *(False, True),  # a
    ]
    assert [list(step.actions) for step in steps] == [[turn[0]] for turn in GAME]
    assert all(10 <= step.actions["c"] < 15 for step in steps if "c" in step.actions)
    assert [step.num_timesteps for step in steps] == list(range(1, 11))
    assert [step.episode_returns for step in steps[:-1]] == [{}] * 9
    assert steps[-1].episode_returns == {"a": 92, "b": 17, "c": 1217}
    assert steps[-1].episode_length == 10
    # a: 1 + 20 + 40 until its next turn, and so on; its last act ends the game for it.
    assert rows(agent.policies["a"]) == [
        (0, 61.0, 0.5, 1, "101"),
        (1, 4.0, 0.5, 2, "110"),
        (2, 7.0, 0.5, 3, "101"),
        (3, 9.0, 0.5, 4, "110"),
        (4, 11.0, 0.0, 5, "101"),
    ]
    assert rows(agent.policies["b"]) == [(0, 2.0, 0.5, 1, "1010"), (1, 5.0, 0.0, 2, "1100")]
    # c is truncated: its last transition bootstraps, with all that it was given before its end.
    assert rows(agent.policies["c"]) == [
        (0, 243.0, 0.5, 1, "10100"),
        (1, 326.0, 0.5, 2, "11000"),
        (2, 648.0, 0.5, 3, "10100"),
    ]


def test_n_step_returns_count_own_turns_and_end_with_the_agent() -> None:
    config = dataclasses.replace(CONFIG, n_steps=3)
    agent = MultiAgentDQN(Script([GAME]), config, seed=0)
    agent.learn(2 * len(GAME))
    first = [
        (0, 61 + 4 / 2 + 7 / 4, 0.125, 3, "101"),
        (1, 4 + 7 / 2 + 9 / 4, 0.125, 4, "110"),
        (2, 7 + 9 / 2 + 11 / 4, 0.0, 5, "101"),
        (3, 9 + 11 / 2, 0.0, 5, "101"),
        (4, 11.0, 0.0, 5, "101"),
    ]
    assert rows(agent.policies["a"]) == first * 2  # nothing runs into the second episode
    assert rows(agent.policies["c"])[:3] == [
        (0, 243 + 326 / 2 + 648 / 4, 0.125, 3, "10100"),
        (1, 326 + 648 / 2, 0.25, 3, "10100"),
        (2, 648.0, 0.5, 3, "10100"),
    ]


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_vanished_agent_leaves_nothing_open(n_steps: int) -> None:
    config = dataclasses.replace(CONFIG, n_steps=n_steps)
    agent = MultiAgentDQN(Script([VANISHING, GAME]), config, seed=0)
    returns = [
        s.episode_returns for s in agent.train(len(VANISHING) + len(GAME)) if s.episode_length
    ]
    # What b got by its last act is never told; its rows are those of the second game alone.
    assert returns[0] == {"a": 3, "b": 0, "c": 3}
    last = (1, 5.0, 0.0, 2, "1100")
    assert rows(agent.policies["b"]) == [
        (0, 2.0, 0.5, 1, "1010") if n_steps == 1 else (0, 4.5, 0.0, 2, "1100"),
        last,
    ]


def test_learn_goes_on_within_an_episode() -> None:
    whole, parts = (MultiAgentDQN(Script([GAME]), CONFIG, seed=0) for _ in range(2))
    whole.learn(25)
    for turns in (3, 4, 18):
        parts.learn(turns)
    for name in "abc":
        assert rows(parts.policies[name]) == rows(whole.policies[name])
    assert parts.env.events == whole.env.events


def test_tape_of_a_parallel_game() -> None:
    env = ParallelScript([PARALLEL])
    agent = MultiAgentDQN(env, CONFIG, policy_groups=lambda agent: "all", seed=0)
    steps = list(agent.train(9))
    assert env.events == [("reset", 0), "ab", "abc", "ac", "c", "bc"]
    assert [list(step.actions) for step in steps] == [[*"ab"], [*"abc"], [*"ac"], [*"c"], [*"bc"]]
    assert [step.num_timesteps for step in steps] == [2, 5, 7, 8, 10]
    assert steps[-1].episode_returns == {"a": 4, "b": 14, "c": 27}
    policy = agent.policies["all"]
    assert policy.agents == ["a", "b", "c"]
    batch = policy.replay.gather(np.arange(len(policy.replay)))
    told = [
        ("abc"[int(s[1])], int(s[0]), float(r), float(d), int(s2[0]))
        for s, r, d, s2 in zip(
            batch.observations, batch.rewards, batch.discounts, batch.next_observations, strict=True
        )
    ]
    assert told == [
        ("a", 0, 1.0, 0.5, 1),
        ("b", 0, 2.0, 0.5, 1),
        ("b", 1, 4.0, 0.0, 2),  # those who are gone come first
        ("a", 1, 3.0, 0.5, 2),
        ("c", 1, 5.0, 0.5, 2),
        ("c", 2, 6.0, 0.5, 3),  # what a did at step 2 is never told
        ("c", 3, 7.0, 0.5, 4),
        ("b", 4, 8.0, 0.0, 5),
        ("c", 4, 9.0, 0.5, 5),
    ]


def test_n_step_returns_of_a_parallel_game_keep_the_agents_apart() -> None:
    config = dataclasses.replace(CONFIG, n_steps=9)
    agent = MultiAgentDQN(
        ParallelScript([PARALLEL]), config, policy_groups=lambda agent: "all", seed=0
    )
    agent.learn(20)  # two episodes
    replay = agent.policies["all"].replay
    batch = replay.gather(np.arange(len(replay)))
    c = 5 + 6 / 2 + 7 / 4 + 9 / 8
    first = [1 + 3 / 2, 2 + 4 / 2, 4, 3, c, 2 * (c - 5), 4 * (c - 8), 8, 9]
    assert batch.rewards.tolist() == first * 2
    assert batch.discounts.tolist() == [0.25, 0, 0, 0.5, 0.0625, 0.125, 0.25, 0, 0.5] * 2


def test_a_group_counts_its_own_turns() -> None:
    """Of a's 5 turns the 3rd and later come after the warm-up, and every second one learns."""
    config = dataclasses.replace(CONFIG, learning_starts=2, train_freq=2, batch_size=1)
    agent = MultiAgentDQN(Script([GAME]), config, seed=0)
    learned = [list(step.metrics) for step in agent.train(len(GAME))]
    # a completes its 4th transition when its 5th turn comes, which is right after its 4th act.
    assert learned == [[]] * 8 + [["a"], []]
    assert {name: policy.num_turns for name, policy in agent.policies.items()} == {
        "a": 5,
        "b": 2,
        "c": 3,
    }
