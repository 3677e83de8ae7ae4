"""What Tianshou steps: an environment of PettingZoo as one that asks one agent after the other.

    env = PettingZooEnv(pettingzoo.make("aec", "classic/tictactoe-v3"))

It stands where Tianshou's own `PettingZooEnv` does, for the manager of many agents in this
package's adapter for Tianshou.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dqn_adapters.config import rejected
from dqn_adapters.environments import MASK, ObservationView, check_action_space
from dqn_adapters.pettingzoo.games import AnyEnv, Turn, legal_actions, make_game, possible_agents
from dqn_adapters.pettingzoo.groups import name_of


class PettingZooEnv(gym.Env[Any, Any]):
    """An environment of PettingZoo, turn-based or parallel, as Tianshou steps it: turn by turn.

    An observation is a dictionary of `agent_id`, the name of the agent whose turn it is; `obs`,
    what this agent observes; `mask`, its legal actions (of its observation or of its info; one that
    allows nothing says nothing); and `terminated` and `truncated`, whether the agent has come to
    its end. An agent that has is shown once more, with its last observation: the action is ignored
    then. The episode is over when nobody is left.

    The reward is a vector over `agents`: what is given to the agent whose turn comes next, since it
    last acted. Actions count from 0.

    Agents with unequal spaces are padded: their observations are flattened and filled with zeros to
    one length, and of the actions of the largest action space the mask allows them theirs.

    Args:
        env: An `AECEnv` or a `ParallelEnv`, in which the agents are known beforehand.

    Raises:
        ValueError: no agents are declared, or a space is not supported.
        TypeError: `env` is neither.
    """

    metadata: dict[str, Any] = {}  # noqa: RUF012 - as the base class has it

    def __init__(self, env: AnyEnv) -> None:
        self._game = make_game(env)
        self.env = env
        agents = possible_agents(env)
        if not agents:
            raise ValueError(f"{env} declares no possible_agents; Tianshou's manager needs them")
        self.agents = [name_of(agent) for agent in agents]
        self.agent_idx = {name: i for i, name in enumerate(self.agents)}
        observed = {agent: env.observation_space(agent) for agent in agents}
        self._actions = {agent: check_action_space(env.action_space(agent)) for agent in agents}
        self._views = {
            agent: ObservationView(space, int(self._actions[agent].n))
            for agent, space in observed.items()
        }
        first = observed[agents[0]]
        self._padded = any(space != first for space in observed.values())
        self.observation_space: Any = first
        if self._padded:
            size = max(spaces.flatdim(view.space) for view in self._views.values())
            self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space: Any = spaces.Discrete(max(int(s.n) for s in self._actions.values()))
        self._turn: Turn
        self._seen: dict[str, Any] = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode, with a seed of its own that is drawn from `np_random`."""
        super().reset(seed=seed)
        self._turns = self._game.reset(int(self.np_random.integers(2**31)))
        self._acts: dict[Any, int] = {}
        self._last: dict[Any, Any] = {}
        self._truncated = False
        if not self._advance(np.zeros(len(self.agents))):
            raise ValueError(f"{self.env} has no agent that could act after its reset")
        return self._seen, self._info()

    def step(
        self, action: Any
    ) -> tuple[dict[str, Any], NDArray[np.float64], bool, bool, dict[str, Any]]:
        """Act for the agent whose turn it is.

        Raises:
            ValueError: it has no such action.
        """
        turn, rewards = self._turn, np.zeros(len(self.agents))
        if not turn.over:
            space = self._actions[turn.agent]
            if not 0 <= action < space.n:
                raise rejected("action", action, f"in 0 .. {space.n - 1} for {turn.agent!r}")
            self._acts[turn.agent] = int(action) + int(space.start)
        goes_on = self._advance(rewards)
        over = not goes_on
        return (
            self._seen,
            rewards,
            over and not self._truncated,
            over and self._truncated,
            self._info(),
        )

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def render(self) -> Any:
        """What the environment renders."""
        return self.env.render()

    def _advance(self, rewards: NDArray[np.float64]) -> bool:
        """Go to the next turn; False if there is none."""
        while True:
            turn = next(self._turns, None)
            if turn is None:
                if not self._game.agents:
                    return False
                self._turns, self._acts = self._game.step(self._acts), {}
                continue
            rewards[self.agent_idx[name_of(turn.agent)]] += turn.reward
            self._truncated |= turn.truncated
            if turn.observation is None and not (turn.terminated and turn.agent in self._last):
                continue  # cut at a state that nobody saw
            self._turn, self._seen = turn, self._observe(turn)
            return True

    def _observe(self, turn: Turn) -> dict[str, Any]:
        view, n = self._views[turn.agent], int(self._actions[turn.agent].n)
        if turn.observation is not None:
            seen: Any = view.arrays(view.split(turn.observation)[0])
            if self._padded:
                flat = np.zeros(self.observation_space.shape, np.float32)
                flat[: spaces.flatdim(view.space)] = spaces.flatten(view.space, seen)
                seen = flat
            self._last[turn.agent] = seen
        mask = np.zeros(self.action_space.n, np.bool_)
        mask[:n] = legal_actions(turn.action_mask, n)
        return {
            "agent_id": name_of(turn.agent),
            "obs": self._last[turn.agent],
            "mask": mask,
            "terminated": turn.terminated,
            "truncated": turn.truncated,
        }

    def _info(self) -> dict[str, Any]:
        return {key: value for key, value in self._turn.info.items() if key != MASK}
