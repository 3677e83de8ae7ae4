"""One way to play turn-based (AEC) and parallel environments: as turns of agents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from pettingzoo import AECEnv, ParallelEnv

from dqn_adapters.environments import MASK, Masks, as_masks
from dqn_adapters.finite import as_number

AnyEnv: TypeAlias = AECEnv[Any, Any, Any] | ParallelEnv[Any, Any, Any]


def legal_actions(action_mask: Any, num_actions: int) -> Masks:
    """The legal actions, `(A,)`: all of them, where there is no mask or it allows nothing.

    Raises:
        ValueError: the mask has another shape, or holds other than 0 and 1.
    """
    if action_mask is None or not np.any(action_mask):
        return np.ones(num_actions, np.bool_)
    return as_masks(action_mask, (num_actions,))


class Turn(NamedTuple):
    """What an agent finds when it is its turn, or when it has come to its end."""

    agent: Any
    observation: Any
    """Its own, as the environment gives it; None where the environment gives none."""

    reward: float
    """The sum of its rewards since it last acted (or entered)."""

    terminated: bool
    truncated: bool
    info: Mapping[str, Any]

    @property
    def over(self) -> bool:
        """The agent has come to its end: it does not act any more."""
        return self.terminated or self.truncated

    @property
    def action_mask(self) -> Any:
        """Its mask of legal actions, as the environment gives it, or None: of the observation
        where that has one, else of the info."""
        if isinstance(self.observation, Mapping) and MASK in self.observation:
            return self.observation[MASK]
        return self.info.get(MASK)


class Game(Protocol):
    """An environment as turns.

    `reset` and `step` give the turns up to the next action: of agents that have come to their end,
    and of those that must act now, whose actions the next `step` is given. A turn must be used
    before the next one is taken: the environment may reuse the memory of its observation.
    """

    env: AnyEnv

    @property
    def agents(self) -> list[Any]:
        """Who is in the game; nobody when the episode is over."""

    def reset(self, seed: int | None = None) -> Iterator[Turn]:
        """Start an episode."""

    def step(self, actions: Mapping[Any, int]) -> Iterator[Turn]:
        """Act, with one action of its action space for each agent whose turn it is."""


class TurnBasedGame:
    """An AEC environment: one agent acts at a time."""

    def __init__(self, env: AECEnv[Any, Any, Any]) -> None:
        self.env = env

    @property
    def agents(self) -> list[Any]:
        return list(self.env.agents)

    def reset(self, seed: int | None = None) -> Iterator[Turn]:
        self.env.reset(seed=seed)
        return self._turns()

    def step(self, actions: Mapping[Any, int]) -> Iterator[Turn]:
        (action,) = actions.values()
        self.env.step(action)
        return self._turns()

    def _turns(self) -> Iterator[Turn]:
        while self.env.agents:
            agent = self.env.agent_selection
            # Once per turn: an environment may draw its observation anew at every call.
            observation, reward, terminated, truncated, info = self.env.last()
            turn = Turn(
                agent=agent,
                observation=observation,
                reward=as_number(reward, f"the reward of agent {agent!r}"),
                terminated=bool(terminated),
                truncated=bool(truncated),
                info=info or {},
            )
            yield turn
            if not turn.over:
                return
            self.env.step(None)  # which removes it


class ParallelGame:
    """A parallel environment: all agents act at once."""

    def __init__(self, env: ParallelEnv[Any, Any, Any]) -> None:
        self.env = env
        self._owed: dict[Any, float] = {}  # rewards of agents that were not asked to act

    @property
    def agents(self) -> list[Any]:
        return list(self.env.agents)

    def reset(self, seed: int | None = None) -> Iterator[Turn]:
        observations, infos = self.env.reset(seed=seed)
        self._owed = {}
        return self._turns(list(self.env.agents), observations, {}, {}, {}, infos)

    def step(self, actions: Mapping[Any, int]) -> Iterator[Turn]:
        before = list(self.env.agents)
        results = self.env.step(dict(actions))
        gone = [agent for agent in before if agent not in self.env.agents]
        return self._turns(gone + list(self.env.agents), *results)

    def _turns(
        self,
        agents: list[Any],
        observations: Mapping[Any, Any],
        rewards: Mapping[Any, float],
        terminations: Mapping[Any, bool],
        truncations: Mapping[Any, bool],
        infos: Mapping[Any, Any],
    ) -> Iterator[Turn]:
        for agent in agents:
            reward = as_number(rewards.get(agent, 0.0), f"the reward of agent {agent!r}")
            self._owed[agent] = self._owed.get(agent, 0.0) + reward
            terminated = bool(terminations.get(agent, False))
            truncated = bool(truncations.get(agent, False))
            observation = observations.get(agent)
            if observation is None and not (terminated or truncated):
                if agent not in self.env.agents:  # it has gone without a word; else it waits
                    del self._owed[agent]
                continue
            # Gone unflagged, but with a last observation: the episode was cut for it.
            gone = agent not in self.env.agents and not terminated
            yield Turn(
                agent,
                observation,
                self._owed.pop(agent),
                terminated,
                truncated or gone,
                infos.get(agent) or {},
            )


def make_game(env: AnyEnv) -> Game:
    """The game of an environment; `TypeError` unless it is an AEC or a parallel one."""
    if isinstance(env, AECEnv):
        return TurnBasedGame(env)
    if isinstance(env, ParallelEnv):
        return ParallelGame(env)
    raise TypeError(
        f"env={env!r} is not accepted; it must be a pettingzoo.AECEnv or a pettingzoo.ParallelEnv"
    )


def possible_agents(env: AnyEnv) -> list[Any]:
    """The agents that an environment declares; none where agents appear as they like."""
    return list(getattr(env, "possible_agents", None) or [])
