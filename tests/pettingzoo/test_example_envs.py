"""PettingZoo's own examples: agents that appear and die, with masks, with tuples as names."""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.utils import seeding
from pettingzoo import AECEnv
from pettingzoo.utils.env_logger import EnvLogger

from dqn_adapters import DQNConfig
from dqn_adapters.pettingzoo import MultiAgentDQN, RandomPlayer, play

CONFIG = DQNConfig(
    variant="double",
    learning_starts=20,
    batch_size=8,
    train_freq=4,
    target_update_interval=50,
    buffer_size=500,
    hidden_sizes=(16,),
    n_steps=2,
)

EXAMPLES = [
    ("generated_agents_env_v0", "env"),
    ("generated_agents_env_action_mask_info_v0", "env"),
    ("generated_agents_env_action_mask_info_v0", "raw_env"),
    ("generated_agents_env_action_mask_obs_v0", "env"),
    ("generated_agents_env_action_mask_obs_v0", "raw_env"),
    ("generated_agents_env_cust_agentid_v0", "env"),
    ("generated_agents_parallel_v0", "env"),
    ("generated_agents_parallel_v0", "parallel_env"),
    ("generated_agents_parallel_cust_agentid_v0", "env"),
    ("generated_agents_parallel_cust_agentid_v0", "parallel_env"),
]


def make(module: str, function: str) -> Any:
    with warnings.catch_warnings():
        # `pettingzoo.test` itself imports environments in the way that PettingZoo deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        example = importlib.import_module(f"pettingzoo.test.example_envs.{module}")
    return getattr(example, function)()


@pytest.fixture(autouse=True)
def _same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds for what the examples leave unseeded: the spaces of every episode but the first."""
    draw, seeds = seeding.np_random, itertools.count()
    monkeypatch.setattr(
        seeding, "np_random", lambda seed=None: draw(next(seeds) if seed is None else seed)
    )


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    EnvLogger.flush()
    yield
    EnvLogger.flush()


class Ledger:
    """Notes what an environment says and is told, as the truth that the agent is held to."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.turn_based = isinstance(env, AECEnv)
        self.rewards: list[float] = []  # of every complete transition, in no order
        self.played: list[tuple[Any, Any, int | None]] = []  # (agent, mask, action)
        self.acted: set[Any] = set()
        for name in ("reset", "step", *(["last"] if self.turn_based else [])):
            setattr(self, f"_{name}", getattr(env, name))
            setattr(env, name, getattr(self, name))

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        assert not self.acted  # nobody's end was missed
        return self._reset(seed=seed, options=options)

    def last(self, observe: bool = True) -> Any:
        self.seen = self._last(observe)
        return self.seen

    def step(self, action: Any) -> Any:
        return self._step_turn(action) if self.turn_based else self._step_all(action)

    def _step_turn(self, action: int | None) -> None:
        agent = self.env.agent_selection
        observation, reward, terminated, truncated, info = self.seen
        assert (action is None) == (terminated or truncated)
        if agent in self.acted:
            self.acted.remove(agent)
            self.rewards.append(reward)
        if action is not None:
            assert self.env.action_space(agent).contains(action)
            self.acted.add(agent)
            mask = observation["action_mask"] if isinstance(observation, dict) else None
            self.played.append((agent, info.get("action_mask") if mask is None else mask, action))
        self._step(action)

    def _step_all(self, actions: dict[Any, int]) -> Any:
        assert list(actions) == self.env.agents
        for agent, action in actions.items():
            assert self.env.action_space(agent).contains(action)
            self.played.append((agent, None, action))
        results = self._step(actions)
        self.rewards += [results[1][agent] for agent in actions]
        return results


@pytest.mark.filterwarnings("ignore:agent .* had other spaces")  # these examples draw them anew
@pytest.mark.parametrize(("module", "function"), EXAMPLES)
def test_trains(module: str, function: str) -> None:
    env = make(module, function)
    ledger = Ledger(env)
    agent = MultiAgentDQN(env, CONFIG, seed=0)
    updates = sum(len(step.metrics) for step in agent.train(2_000))
    assert updates > 20
    assert agent.num_timesteps >= 2_000
    # Rewards: every transition that was complete is in a replay buffer, with its reward.
    stored = [
        float(reward)
        for policy in agent.policies.values()
        for reward in policy.replay._arrays["rewards"][: len(policy.replay)]
    ]
    assert len(stored) >= 500
    assert max(len(policy.replay) for policy in agent.policies.values()) < CONFIG.buffer_size
    complete = ledger.rewards
    if ledger.turn_based:  # the agent whose turn it is has been asked, but not acted
        complete = complete + [ledger.seen[1]] * (env.agent_selection in ledger.acted)
    assert sorted(stored) == sorted(complete)
    assert sum(stored) > 0
    # Masks: nothing illegal was played, where anything was legal.
    masked = [(mask, action) for _, mask, action in ledger.played if mask is not None]
    assert bool(masked) == ("mask" in module)
    for mask, action in masked:
        assert mask[action] or not np.any(mask)
    if "mask_info" in module:  # one action is legal at a time
        assert not EnvLogger.mqueue


@pytest.mark.filterwarnings("ignore:agent .* had other spaces")
@pytest.mark.parametrize(("module", "function"), EXAMPLES)
def test_random_players_play(module: str, function: str) -> None:
    env = make(module, function)
    endless = "parallel" in module
    (returns,) = play(env, RandomPlayer(env, seed=0), 1, seed=0, max_turns=500 if endless else None)
    assert len(returns) >= 5
    assert sum(returns.values()) != 0


def test_other_spaces_are_another_network() -> None:
    env = make("generated_agents_env_v0", "env")
    agent = MultiAgentDQN(env, CONFIG, seed=0)
    with pytest.warns(UserWarning, match="agent '.*' had other spaces in an earlier episode"):
        agent.learn(6_000)
    again = [name for name in agent.policies if name.endswith("@2")]
    assert again
    for name in again:
        first, second = agent.policies[name.removesuffix("@2")], agent.policies[name]
        assert not first.fits(second.env_observation_space, second.action_space)


def test_same_seed_same_run() -> None:
    env = "generated_agents_parallel_cust_agentid_v0", "parallel_env"
    taken = []
    for _ in range(2):
        agent = MultiAgentDQN(make(*env), CONFIG, policy_groups=lambda a: f"{a[0]}", seed=0)
        taken.append([step.actions for step in agent.train(300)])
    assert taken[0] == taken[1]
