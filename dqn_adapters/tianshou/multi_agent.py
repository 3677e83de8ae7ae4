"""Many agents: Tianshou's multi-agent manager, corrected, over the environments of PettingZoo.

    manager = MultiAgentOffPolicyAlgorithm(algorithms=[dqn, random], env=env)
    buffer = VectorReplayBuffer(20_000, 10, seed=0)
    collector = Collector(manager, envs, buffer, exploration_noise=True)
    manager.run_training(OffPolicyTrainerParams(training_collector=collector))

The environment is the `PettingZooEnv` of `dqn_adapters.pettingzoo.turn_env`. All agents share one
buffer, whose rows are turns; an agent learns from its own, see `Turns`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from tianshou.algorithm.algorithm_base import OffPolicyAlgorithm, TrainingStats
from tianshou.algorithm.multiagent import marl as host
from tianshou.data import Batch
from tianshou.trainer import OffPolicyTrainerParams

from dqn_adapters.config import rejected
from dqn_adapters.tianshou.algorithm import DQN
from dqn_adapters.tianshou.trainer import DQNTrainer

Rows = NDArray[np.int64]


class Turns:
    """The turns of one agent in a buffer of all agents' turns, as its algorithm sees a buffer.

    A transition runs from the agent's turn to its own next one, or to its end: its reward is the
    sum of what it is given in between, s' and its mask are what the agent finds there, and `next`
    goes to its own next turn. A turn behind which there is none yet is no transition.
    """

    stack_num = 1
    _save_obs_next = True

    def __init__(self, buffer: Any, agent: Any, index: int) -> None:
        self.buffer, self.agent, self.index = buffer, agent, index
        self.rew = _Lookup(lambda rows: self._follow(rows)[0])
        self.terminated = _Lookup(lambda rows: buffer.obs.terminated[self._follow(rows)[1]])

    def transitions(self, rows: Rows) -> Rows:
        """Those of the rows that are transitions of the agent."""
        own: Rows = rows[self.buffer.obs.agent_id[rows] == self.agent]
        found: Rows = own[self._acted(own) & (self._follow(own)[1] >= 0)]
        return found

    def next(self, rows: Rows) -> Rows:
        """The agent's next transitions; the rows themselves where there is none."""
        successors, following = rows.copy(), self._follow(rows)[1]
        more = np.flatnonzero(following >= 0)
        more = more[self._acted(following[more])]
        more = more[self._follow(following[more])[1] >= 0]
        successors[more] = following[more]
        return successors

    def get(self, rows: Rows, key: str, stack_num: int | None = None) -> Any:
        """`"obs"`, `"act"` or `"obs_next"` of transitions; their `"info"` is empty."""
        del stack_num
        if key == "obs_next":
            return self.buffer.get(self._follow(rows)[1], "obs", stack_num=1)
        return Batch() if key == "info" else self.buffer.get(rows, key, stack_num=1)

    def _acted(self, rows: Rows) -> NDArray[np.bool_]:
        seen = self.buffer.obs
        acted: NDArray[np.bool_] = ~(seen.terminated[rows] | seen.truncated[rows])
        return acted

    def _follow(self, rows: Rows) -> tuple[NDArray[np.float64], Rows]:
        """What the agent is given from each row to its own next turn, and where that is; -1 is
        nowhere."""
        rewards, found = np.zeros(len(rows)), np.full(len(rows), -1)
        places, here = np.arange(len(rows)), np.asarray(rows)
        while len(places):
            rewards[places] += self.buffer.rew[here, self.index]
            following = self.buffer.next(here)
            more = following != here
            places, here = places[more], following[more]
            own = self.buffer.obs.agent_id[here] == self.agent
            found[places[own]] = here[own]
            places, here = places[~own], here[~own]
        return rewards, found


class _Lookup:
    """A column that is computed for the rows that are asked for."""

    def __init__(self, compute: Any) -> None:
        self._compute = compute

    def __getitem__(self, rows: Rows) -> Any:
        return self._compute(rows)


class MultiAgentPolicy(host.MultiAgentPolicy):
    """Tianshou's; whether it is within a training step, its policies know too, and so explore."""

    @property
    def is_within_training_step(self) -> bool:
        """Whether data is collected for the training; see Tianshou's `Policy`."""
        return self._training_step

    @is_within_training_step.setter
    def is_within_training_step(self, value: bool) -> None:
        self._training_step = value
        for policy in getattr(self, "policies", {}).values():
            policy.is_within_training_step = value


class MultiAgentOffPolicyAlgorithm(host.MultiAgentOffPolicyAlgorithm):
    """Tianshou's manager, one DQN for every agent.

    Agents that are given the same algorithm share it: its network plays and learns for all of them.

    A step, in which the target network's period, epsilon's schedule and the warm-up are counted, is
    a turn of any agent.

    Args:
        algorithms: One for each agent, in the order of `env.agents`: a `DQN` of this package, or
            one that learns nothing (Tianshou's `MARLRandomDiscreteMaskedOffPolicyAlgorithm`).
        env: A `PettingZooEnv` of `dqn_adapters.pettingzoo.turn_env`: who its agents are.

    Raises:
        ValueError: their number is not that of the agents.
        TypeError: an argument is of another kind.
    """

    def __init__(self, *, algorithms: list[OffPolicyAlgorithm[Any]], env: Any) -> None:
        turn_by_turn = isinstance(env, gym.Env) and hasattr(env, "agent_idx")
        if not turn_by_turn:
            raise TypeError(
                f"env={env!r} is not accepted; env must be a PettingZooEnv of "
                "dqn_adapters.pettingzoo.turn_env"
            )
        if len(algorithms) != len(env.agents):
            raise ValueError(
                f"there are {len(algorithms)} algorithms for the {len(env.agents)} agents "
                f"{env.agents}; algorithms must have one for each"
            )
        for algorithm in algorithms:
            if not isinstance(algorithm, DQN) and getattr(algorithm, "_optimizers", True):
                raise TypeError(
                    f"{type(algorithm).__name__} of algorithms is not accepted; it must be a DQN "
                    "of dqn_adapters.tianshou, or an algorithm that learns nothing"
                )
        self._dispatcher = host.MARLDispatcher(algorithms, env)
        policies = {agent: a.policy for agent, a in self._dispatcher.algorithms.items()}
        OffPolicyAlgorithm.__init__(self, policy=MultiAgentPolicy(policies))
        self._submodules = torch.nn.ModuleList(algorithms)
        for algorithm in self.learners():
            if algorithm.policy.action_space.n != env.action_space.n:
                raise rejected("action_space", algorithm.policy.action_space, f"{env.action_space}")

    def learners(self) -> Iterator[DQN[Any]]:
        """The algorithms that learn, each once."""
        for algorithm in dict.fromkeys(self._dispatcher.algorithms.values()):
            if isinstance(algorithm, DQN):
                yield algorithm

    @property
    def counts(self) -> Mapping[Any, int]:
        """Of the algorithm that has learned most; see `DQN.counts`."""
        counts = [algorithm.counts for algorithm in self.learners()]
        return max(counts, key=lambda c: c["updates"], default={"steps": 0, "updates": 0})

    @property
    def warming_up(self) -> bool:
        """Whether nobody learns yet."""
        return all(algorithm.warming_up for algorithm in self.learners())

    def count(self, *, steps: int = 0, episodes: int = 0) -> None:
        """Tell of new turns and finished episodes; see `DQN.count`."""
        for algorithm in self.learners():
            algorithm.count(steps=steps, episodes=episodes)

    def start_schedule(self, total_timesteps: int) -> None:
        """See `DQN.start_schedule`."""
        for algorithm in self.learners():
            algorithm.start_schedule(total_timesteps)

    def create_trainer(self, params: OffPolicyTrainerParams) -> DQNTrainer:
        """The trainer of `run_training`.

        Raises:
            ValueError: the buffer or the collector cannot give what the algorithms need.
        """
        collector = params.training_collector
        for algorithm in self.learners():
            algorithm.check_collector(collector)
        if collector.buffer.stack_num != 1:
            raise rejected(
                "stack_num", collector.buffer.stack_num, "1: the rows are of many agents"
            )
        return DQNTrainer(self, params)

    def update(self, buffer: Any, sample_size: int | None) -> Any:
        """One gradient step of every algorithm, on those of the drawn rows that are turns of its
        agents; see `DQN.update`."""
        for algorithm in self.learners():
            algorithm.prepare(buffer)
        return super().update(buffer, sample_size)

    def _preprocess_batch(self, batch: Any, buffer: Any, indices: Rows) -> Any:
        """For every agent that learns the batch of its transitions. Of agents that share an
        algorithm the first has them all."""
        prepared: dict[Any, Any] = {agent: Batch() for agent in self._dispatcher.algorithms}
        first: dict[Any, Any] = {}
        for agent, algorithm in self._dispatcher.algorithms.items():
            if not isinstance(algorithm, DQN) or algorithm.warming_up:
                continue
            turns = Turns(buffer, agent, self._dispatcher.agent_idx[agent])
            rows = turns.transitions(indices)
            if not len(rows):
                continue
            own = Batch({key: turns.get(rows, key) for key in ("obs", "act", "obs_next", "info")})
            own.rew, own.row = turns.rew[rows], rows
            if hasattr(batch, "weight"):
                weights = dict(zip(indices.tolist(), batch.weight, strict=True))
                own.weight = np.array([weights[row] for row in rows.tolist()])
            own = algorithm._preprocess_batch(own, turns, rows)
            owner = first.setdefault(algorithm, agent)
            known = prepared[owner]
            prepared[owner] = Batch.cat([known, own]) if len(known.get_keys()) else own
        return prepared

    def _update_with_batch(self, batch: Any) -> Any:
        if not any(len(own.get_keys()) for own in batch.values()):
            return TrainingStats()  # no transition was drawn; Tianshou's would be an error
        return super()._update_with_batch(batch)

    def _postprocess_batch(self, batch: Any, buffer: Any, indices: Rows) -> None:
        """The priorities of a prioritised buffer. Rows that nobody will ever learn from (an agent's
        end, and turns of who learns nothing) get the least."""
        if not hasattr(buffer, "update_weight"):
            return
        seen, algorithms = buffer.obs[indices], self._dispatcher.algorithms
        learning = [agent for agent, a in algorithms.items() if isinstance(a, DQN)]
        acted = ~(seen.terminated | seen.truncated) & np.isin(seen.agent_id, learning)
        idle = indices[~acted]
        if len(idle):  # Tianshou's tree hangs where there are none
            buffer.update_weight(idle, np.zeros(len(idle)))
        for own in batch.values():
            if len(own.get_keys()):
                buffer.update_weight(own.row, own.weight)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Restore what `state_dict` gave; the mapping is not changed.

        Raises:
            ValueError: entries are missing or too many, or a tensor has another shape.
        """
        parts = self.fitted_state(state_dict, strict)
        for algorithm, part in zip(self._submodules, parts, strict=True):
            keys = algorithm.load_state_dict(part, strict=strict, assign=assign)
        return keys

    def fitted_state(
        self, state_dict: Mapping[str, Any], strict: bool = True
    ) -> list[dict[str, Any]]:
        """The states of all algorithms, as copies that are checked; see `DQN.fitted_state`.

        Raises:
            ValueError: they cannot be loaded.
        """
        odd = set(self.state_dict()) ^ set(state_dict)  # type: ignore[no-untyped-call]
        if strict and odd:
            raise ValueError(
                f"the state does not fit: {', '.join(sorted(odd))} are in one and not in the other"
            )
        parts = []
        for i, algorithm in enumerate(self._submodules):
            prefix = f"_submodules.{i}."
            part = {
                name.removeprefix(prefix): copy.deepcopy(value)
                for name, value in state_dict.items()
                if name.startswith(prefix)
            }
            if isinstance(algorithm, DQN):
                algorithm.fitted_state(part, strict)
            parts.append(part)
        return parts
