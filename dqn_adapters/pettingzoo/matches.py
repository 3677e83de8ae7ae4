"""Playing without learning: evaluation, and matches between players."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dqn_adapters.config import checked_int
from dqn_adapters.environments import check_action_space
from dqn_adapters.exploration import epsilon_greedy
from dqn_adapters.pettingzoo.games import AnyEnv, legal_actions, make_game, possible_agents

Player = Callable[[Any, Any, Any], int]
"""Maps an agent, its observation and its action mask (or None), as the environment gives them, to
an action of its action space. `MultiAgentDQN.predict` is one."""


class RandomPlayer:
    """A player that draws uniformly from the legal actions.

    Args:
        env: Where it plays: it knows the agents' action spaces.
        seed: Decides the draws.
    """

    def __init__(self, env: AnyEnv, seed: int | None = None) -> None:
        self.env = env
        self.generator = np.random.default_rng(checked_int("seed", seed, low=0, none=True))

    def __call__(self, agent: Any, observation: Any, action_mask: Any = None) -> int:
        space = check_action_space(self.env.action_space(agent))
        actions = epsilon_greedy(
            lambda: np.zeros(1, np.int64),  # never asked: it always explores
            1.0,
            num_envs=1,
            num_actions=int(space.n),
            generator=self.generator,
            action_masks=legal_actions(action_mask, int(space.n))[None],
        )
        return int(actions[0] + space.start)


def play(
    env: AnyEnv,
    players: Mapping[Any, Player] | Player,
    episodes: int,
    *,
    seed: int | None = None,
    max_turns: int | None = None,
) -> list[dict[Any, float]]:
    """Play whole episodes.

    Args:
        env: An AEC or a parallel environment.
        players: Who plays for each agent, or one player for all of them.
        episodes: How many, >= 1.
        seed: Decides the seeds with which the environment is reset.
        max_turns: An episode is broken off as soon as all agents together had so many turns.
            None: it is played to its end, and if it has none, `play` does not return.

    Returns:
        For each episode the undiscounted return of every agent that was in it.

    Raises:
        ValueError: there is no player for an agent.
    """
    game = make_game(env)
    checked_int("episodes", episodes, low=1)
    checked_int("max_turns", max_turns, low=1, none=True)
    generator = np.random.default_rng(checked_int("seed", seed, low=0, none=True))
    results = []
    for _ in range(episodes):
        returns: dict[Any, float] = {}
        played = 0
        turns = game.reset(int(generator.integers(2**31)))
        while True:
            actions = {}
            last = max_turns is not None and played >= max_turns
            for turn in turns:
                returns[turn.agent] = returns.get(turn.agent, 0.0) + turn.reward
                if not (turn.over or last):
                    player = _player(players, turn.agent)
                    actions[turn.agent] = player(turn.agent, turn.observation, turn.action_mask)
            if last or not game.agents:
                break
            turns = game.step(actions)
            played += len(actions)
        results.append(returns)
    return results


class MatchResult(NamedTuple):
    """How often a player won, drew and lost."""

    wins: int
    draws: int
    losses: int

    @property
    def games(self) -> int:
        """All games."""
        return sum(self)

    @property
    def win_rate(self) -> float:
        """Wins per game."""
        return self.wins / self.games


def match(
    env: AnyEnv,
    player: Player,
    opponent: Player,
    games: int,
    *,
    seat: Any = None,
    seed: int | None = None,
    max_turns: int | None = None,
) -> MatchResult:
    """Let a player play games against an opponent.

    A game is won by a return above that of every other agent, lost by one below that of another
    agent, and drawn otherwise.

    Args:
        env: An environment that declares its agents.
        player: Plays for the agent `seat`.
        opponent: Plays for all other agents.
        games: How many, >= 1.
        seat: An agent. None: the player takes turns in all seats.
        seed: Decides the seeds with which the environment is reset.
        max_turns: As in `play`; a game that is broken off is decided by the returns so far.

    Raises:
        ValueError: the environment has no such agent.
    """
    checked_int("games", games, low=1)
    agents = possible_agents(env)
    if seat is not None and seat not in agents:
        raise ValueError(f"seat={seat!r} is not an agent of {env}; its agents are {agents}")
    seats = agents if seat is None else [seat]
    seeds = np.random.SeedSequence(checked_int("seed", seed, low=0, none=True))
    outcomes = []
    for number, game_seed in enumerate(seeds.generate_state(games)):
        own = seats[number % len(seats)]
        players = {agent: player if agent == own else opponent for agent in agents}
        (returns,) = play(env, players, 1, seed=int(game_seed), max_turns=max_turns)
        margins = [returns[own] - value for agent, value in returns.items() if agent != own]
        outcomes.append(1 if min(margins) > 0 else -1 if min(margins) < 0 else 0)
    return MatchResult(*(outcomes.count(outcome) for outcome in (1, 0, -1)))


def _player(players: Mapping[Any, Player] | Player, agent: Any) -> Player:
    if not isinstance(players, Mapping):
        return players
    if agent not in players:
        raise ValueError(f"there is no player for agent {agent!r}; there are {list(players)}")
    return players[agent]
