"""A parallel environment as a Stable-Baselines3 `VecEnv`: all agents share one policy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from dqn_adapters._extras import require
from dqn_adapters.environments import (
    MASK,
    METHOD,
    Masks,
    ObservationView,
    check_action_space,
)
from dqn_adapters.pettingzoo.games import ParallelGame, Turn, legal_actions, possible_agents

require("stable_baselines3", extra="sb3")

from stable_baselines3.common.vec_env import VecEnv  # noqa: E402
from stable_baselines3.common.vec_env.base_vec_env import (  # noqa: E402
    VecEnvObs,
    VecEnvStepReturn,
)


class ParallelVecEnv(VecEnv):
    """Shows each agent of a parallel environment as one sub-environment.

    Observations stay as they are, Dict or not. At an agent's end `dones` is True,
    `terminal_observation` is in its info, and `TimeLimit.truncated` tells a cut from a termination.
    Masks of legal actions, from observations or infos, are what `env_method("action_masks")`
    returns, for the next actions; `info["action_mask"]` is that of the state that the step led to,
    which at an end is the final one. An agent that says nothing of its actions may do all.

    Stable-Baselines3 steps all sub-environments at all times. An agent that is not in the game (it
    has come to its end before the others, or has not appeared yet) *waits*: its action is ignored,
    its observation stays its last one (or zeros), its reward is 0, and its info and `valid` tell:
    `dqn_adapters.sb3.DQN` neither stores nor counts such a step. For other algorithms the waiting
    ends with `dones` True and a termination, so nothing is bootstrapped from one episode into
    another.

    Args:
        env: A parallel environment that declares its agents, with equal spaces.

    Raises:
        TypeError: it is not a parallel environment.
        ValueError: it declares no agents, their spaces differ, or an agent's actions are not
            `Discrete`.
    """

    def __init__(self, env: ParallelEnv[Any, Any, Any]) -> None:
        if not isinstance(env, ParallelEnv):
            raise TypeError(f"env={env!r} is not accepted; it must be a pettingzoo.ParallelEnv")
        self.env = env
        self.agents = possible_agents(env)
        """The agent of every sub-environment."""
        if not self.agents:
            raise ValueError(f"{env} declares no possible_agents, which sub-environments need")
        observation_spaces, action_spaces = (
            [function(agent) for agent in self.agents]
            for function in (env.observation_space, env.action_space)
        )
        for kinds in (observation_spaces, action_spaces):
            for agent, space in zip(self.agents, kinds, strict=True):
                if space != kinds[0]:
                    raise ValueError(
                        f"agents must have equal spaces to share a policy; {self.agents[0]!r} has "
                        f"{kinds[0]}, {agent!r} has {space}"
                    )
        self._game = ParallelGame(env)
        self._num_actions = int(check_action_space(action_spaces[0]).n)
        self._view = ObservationView(observation_spaces[0], self._num_actions)
        self._index = {agent: i for i, agent in enumerate(self.agents)}
        super().__init__(len(self.agents), observation_spaces[0], action_spaces[0])
        self._observations = [self._zeros() for _ in self.agents]
        self._masks: Masks = np.ones((self.num_envs, self._num_actions), np.bool_)
        self._playing = np.zeros(self.num_envs, np.bool_)
        self.valid = np.ones(self.num_envs, np.bool_)
        """Whose last step was one of its agent, `(N,)`; False where it waited."""
        self._actions: NDArray[Any] = np.zeros(self.num_envs, np.int64)

    def reset(self) -> VecEnvObs:
        """Start an episode; `seed` decides the first one."""
        seed = self._seeds[0]
        self._reset_seeds()
        self.valid[:] = True
        self._start(seed)
        self._tell_masks(range(self.num_envs))
        first: VecEnvObs = self._batch()
        return first

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions, `(N,)`, of the action space."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step, and start the next episode if this one is over."""
        rewards = np.zeros(self.num_envs, np.float32)
        dones = np.zeros(self.num_envs, np.bool_)
        infos: list[dict[str, Any]] = []
        self.valid = np.ones(self.num_envs, np.bool_)
        acting = {agent: self._actions[self._slot(agent)] for agent in self.env.agents}
        # All of them at once: they come from one step, and use memory of their own.
        turns = {turn.agent: turn for turn in self._game.step(acting)}
        over = not self.env.agents
        for i, agent in enumerate(self.agents):
            turn, waited = turns.get(agent), not self._playing[i]
            enters = waited and turn is not None and not turn.over
            if waited or turn is None:
                # One that is gone without a word or an observation was cut where it was last seen.
                gone = not waited and agent not in self.env.agents
                self.valid[i] = False
                infos.append({"valid": False, "TimeLimit.truncated": gone})
                dones[i] = gone or over or enters
                self._playing[i] = not (waited or gone)
            else:
                cut = turn.truncated and not turn.terminated
                infos.append({**turn.info, "TimeLimit.truncated": cut})
                rewards[i], dones[i] = turn.reward, turn.over
                self._take(i, turn)
            infos[i][MASK] = self._masks[i].copy()
            if dones[i]:
                infos[i]["terminal_observation"] = self._observations[i]
            if enters:
                assert turn is not None
                self._take(i, turn)
                self.reset_infos[i] = dict(turn.info)
        for agent in self.env.agents:
            self._slot(agent)
        if over:
            self._start(None)
        self._tell_masks(np.flatnonzero(dones).tolist())
        return self._batch(), rewards, dones, infos

    def _start(self, seed: int | None) -> None:
        """Start an episode."""
        self._playing[:] = False
        self.reset_infos = [{} for _ in self.agents]
        for turn in self._game.reset(seed):
            i = self._slot(turn.agent)
            self.reset_infos[i].update(turn.info)
            self._take(i, turn)

    def _tell_masks(self, rows: Iterable[int]) -> None:
        """Put the masks into the infos of the sub-environments that begin."""
        for i in rows:
            self.reset_infos[i][MASK] = self._masks[i].copy()

    def _take(self, i: int, turn: Turn) -> None:
        """Take up what an agent finds."""
        self._playing[i] = not turn.over
        if turn.observation is not None:
            self._observations[i] = self._copy(turn.observation)
        self._masks[i] = legal_actions(turn.action_mask, self._num_actions)

    def _slot(self, agent: Any) -> int:
        if agent not in self._index:
            raise ValueError(f"agent {agent!r} is not one of possible_agents, {self.agents}")
        return self._index[agent]

    def _copy(self, observation: Any) -> Any:
        """An environment may write its next observation into the same memory."""
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: np.array(observation[key], part.dtype) for key, part in space.items()}
        return np.array(observation, space.dtype)

    def _zeros(self) -> Any:
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {key: np.zeros(part.shape or (), part.dtype) for key, part in space.items()}
        return np.zeros(space.shape or (), space.dtype)

    def _batch(self) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {
                key: np.stack([seen[key] for seen in self._observations])
                for key in self.observation_space
            }
        return np.stack(self._observations)

    def action_masks(self) -> Masks:
        """Which actions are legal, `(N, A)`, True is legal."""
        return self._masks.copy()

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the environment, once per sub-environment."""
        if attr_name == METHOD:
            return [lambda i=i: self._masks[i].copy() for i in self._get_indices(indices)]
        default = {"render_mode": None}
        value = (
            getattr(self.env, attr_name, default[attr_name])
            if attr_name in default
            else getattr(self.env, attr_name)
        )
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the environment, which all sub-environments share."""
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of the environment, once for all; `action_masks` gives each agent's."""
        rows = self._get_indices(indices)
        if method_name == METHOD:
            return [self._masks[i].copy() for i in rows]
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result for _ in rows]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """False: wrappers of single environments do not apply."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """The one picture of the environment."""
        return [self.env.render()]

    def _get_indices(self, indices: int | Iterable[int] | None) -> Iterable[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else indices
