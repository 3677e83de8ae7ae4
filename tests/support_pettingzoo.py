"""Players and games with known answers, for the PettingZoo tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv

_LINES = [
    *((3 * i, 3 * i + 1, 3 * i + 2) for i in range(3)),
    *((i, i + 3, i + 6) for i in range(3)),
    (0, 4, 8),
    (2, 4, 6),
]
Marks = frozenset[int]


class PerfectPlayer:
    """Plays tic-tac-toe by minimax, and draws uniformly from the best moves."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def __call__(self, agent: Any, observation: Any, action_mask: Any) -> int:
        planes = observation["observation"].reshape(9, 2)
        own, other = (frozenset(np.flatnonzero(planes[:, k]).tolist()) for k in range(2))
        moves = best_moves(own, other)
        return int(moves[self.generator.integers(len(moves))])


def best_moves(own: Marks, other: Marks) -> list[int]:
    """The moves with the best outcome for the player whose turn it is."""
    outcomes = {move: -value(other, own | {move}) for move in free(own, other)}
    best = max(outcomes.values())
    return [move for move, outcome in outcomes.items() if outcome == best]


@cache
def value(own: Marks, other: Marks) -> int:
    """1, 0 or -1: the player whose turn it is wins, draws or loses, both playing their best."""
    if any(other.issuperset(line) for line in _LINES):
        return -1
    moves = free(own, other)
    return max((-value(other, own | {move}) for move in moves), default=0)


def free(own: Marks, other: Marks) -> list[int]:
    return [square for square in range(9) if square not in own | other]


# (who plays, rewards to anyone, terminated, truncated, vanished)
GAME = [
    ("a", {"a": 1, "b": 10}, "", "", ""),  # b's reward comes before its first action: of no action
    ("b", {"b": 2, "a": 20}, "", "", ""),
    ("c", {"a": 40, "c": 3}, "", "", ""),
    ("a", {"a": 4, "c": 80}, "", "", ""),
    ("b", {"b": 5, "c": 160}, "b", "", ""),  # b dies by its own act: its last reward is 5
    ("c", {"c": 6}, "", "", ""),
    ("a", {"a": 7, "c": 320}, "", "", ""),
    ("c", {"c": 8}, "", "", ""),
    ("a", {"a": 9, "c": 640}, "", "c", ""),  # c is cut on a's turn
    ("a", {"a": 11}, "a", "", ""),
]

# Of each step: who is in the game from then on, the rewards, terminated, truncated.
PARALLEL = [
    ("ab",),
    ("abc", {"a": 1, "b": 2}, "", ""),  # c appears
    ("ac", {"a": 3, "b": 4, "c": 5}, "b", ""),  # b dies
    ("c", {"c": 6}, "", ""),  # a vanishes
    ("bc", {"c": 7}, "", ""),  # b comes back
    ("", {"b": 8, "c": 9}, "b", "c"),
]


class Script(AECEnv[str, Any, int]):
    """Three players, turn by turn, whose every event is known.

    A player observes (episode, its own turns so far, its number) and may play action 0 and one
    other, which its mask names; a mask is in the observation of player a and in the info of the
    others. The script of an episode is a list of turns: (who plays, the rewards that this gives to
    anyone, who is terminated, who is truncated, who vanishes).
    """

    metadata: dict[str, Any] = {"name": "script"}  # noqa: RUF012 - as the base class has it
    possible_agents = ["a", "b", "c"]  # noqa: RUF012

    def __init__(self, scripts: list[list[tuple[Any, ...]]]) -> None:
        self.scripts = scripts
        self.episode = -1
        self.events: list[Any] = []
        # Distinct spaces: 3, 4 and 5 features, 3, 4 and 5 actions.
        self.sizes = {"a": 3, "b": 4, "c": 5}

    def action_space(self, agent: str) -> spaces.Discrete:
        # Actions of c start at 10.
        return spaces.Discrete(self.sizes[agent], start=10 if agent == "c" else 0)

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        size = self.sizes[agent]
        seen = spaces.Box(-1, 100, (size,), np.float32)
        if agent != "a":
            return seen
        mask = spaces.Box(0, 1, (size,), np.int8)
        return spaces.Dict({"observation": seen, "action_mask": mask})

    def mask(self, agent: str) -> np.ndarray:
        mask = np.zeros(self.sizes[agent], np.int8)
        mask[[0, 1 + self.turns[agent] % 2]] = 1
        return mask

    def observe(self, agent: str) -> Any:
        seen = np.zeros(self.sizes[agent], np.float32)
        seen[:3] = self.episode, self.turns[agent], "abc".index(agent)
        if agent != "a":
            return seen
        return {"observation": seen, "action_mask": self.mask(agent)}

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.episode += 1
        self.events.append(("reset", self.episode))
        self.script = iter(self.scripts[self.episode % len(self.scripts)])
        self.agents = list(self.possible_agents)
        self.turns = dict.fromkeys(self.agents, 0)
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self._infos()
        self._advance()

    def _infos(self) -> None:
        self.infos = {
            agent: {} if agent == "a" else {"action_mask": self.mask(agent)}
            for agent in self.agents
        }

    def _advance(self) -> None:
        self._skip_agent_selection = None
        turn = next(self.script, None)
        if turn is not None:
            self.agent_selection = turn[0]
            self.turn = turn

    def step(self, action: int | None) -> None:
        agent = self.agent_selection
        self.events.append((agent, None if action is None else int(action)))
        if self.terminations[agent] or self.truncations[agent]:
            self._was_dead_step(action)
            return
        mask = self.mask(agent)
        assert mask[action - self.action_space(agent).start], (agent, action, mask)
        _, rewards, terminated, truncated, vanished = self.turn
        self.turns[agent] += 1
        self._cumulative_rewards[agent] = 0.0
        self._clear_rewards()
        self.rewards.update(rewards)
        self._accumulate_rewards()
        for other in terminated:
            self.terminations[other] = True
        for other in truncated:
            self.truncations[other] = True
        for other in vanished:
            self.agents.remove(other)
            for table in (
                *(self.rewards, self._cumulative_rewards, self.terminations, self.truncations),
            ):
                del table[other]
        self._infos()
        self._advance()
        self._deads_step_first()


class ParallelScript(ParallelEnv[str, Any, int]):
    """A parallel game whose every event is known.

    The script of an episode is a list of steps: (who is in the game from then on, the rewards,
    who is terminated, who is truncated). Observations are (step, the agent's number); agents are
    called by letters, and are not declared beforehand.
    """

    metadata: dict[str, Any] = {"name": "parallel_script"}  # noqa: RUF012

    def __init__(self, scripts: list[list[tuple[Any, ...]]]) -> None:
        self.scripts = scripts
        self.episode = -1
        self.events: list[Any] = []
        self.agents = []

    def observation_space(self, agent: str) -> spaces.Box:
        return spaces.Box(-1, 100, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete(2)

    def _observe(self, agents: Any) -> dict[str, np.ndarray]:
        return {a: np.array([self.t, ord(a) - ord("a")], np.float32) for a in agents}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.episode += 1
        self.t = 0
        script = self.scripts[self.episode % len(self.scripts)]
        self.events.append(("reset", self.episode))
        self.agents, self.script = list(script[0][0]), iter(script[1:])
        return self._observe(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        assert list(actions) == self.agents
        self.events.append("".join(actions))
        self.t += 1
        after, rewards, terminated, truncated = next(self.script)
        seen = [a for a in self.agents if a in after or a in terminated + truncated]
        seen += [a for a in after if a not in self.agents]
        self.agents = list(after)
        return (
            self._observe(seen),
            {agent: rewards.get(agent, 0.0) for agent in seen},
            {agent: agent in terminated for agent in seen},
            {agent: agent in truncated for agent in seen},
            {agent: {} for agent in seen},
        )


class Solo(ParallelEnv[str, Any, int]):
    """A Gymnasium environment as a game of one agent, called "solo"."""

    metadata: dict[str, Any] = {"name": "solo"}  # noqa: RUF012 - as the base class has it
    possible_agents = ["solo"]  # noqa: RUF012

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env
        self.agents = []

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return self.env.observation_space

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return self.env.action_space

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        observation, info = self.env.reset(seed=seed, options=options)
        self.agents = ["solo"]
        return {"solo": observation}, {"solo": info}

    def step(self, actions: dict[str, int]) -> Any:
        *results, info = self.env.step(actions["solo"])
        if results[2] or results[3]:
            self.agents = []
        return *({"solo": result} for result in results), {"solo": info}
