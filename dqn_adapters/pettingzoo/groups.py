"""Groups of agents that share one network, its replay buffer and its learner."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from dqn_adapters import stored
from dqn_adapters.agent import learner_state_for
from dqn_adapters.compute import Execution, as_stack
from dqn_adapters.config import DQNConfig, checked_float, checked_int, rejected
from dqn_adapters.environments import (
    MASK,
    Masks,
    ObservationView,
    as_masks,
    check_action_space,
)
from dqn_adapters.exploration import beta_schedule, epsilon_greedy, epsilon_schedule
from dqn_adapters.finite import check_finite
from dqn_adapters.learner import DQNLearner, UpdateMetrics
from dqn_adapters.networks import Network, make_q_net
from dqn_adapters.replay import ReplayBuffer
from dqn_adapters.replay.storage import check_shape
from dqn_adapters.spaces import difference, to_state
from dqn_adapters.targets import greedy_actions
from dqn_adapters.transition import Arrays, EnvStep, map_arrays, to_tensor, to_tensors

PolicyGroups = Mapping[str, Sequence[Any]] | Callable[[Any], str]


_MOST_TURNS = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class SelfPlay:
    """How the agents of a group that share a network play against themselves.

    In an episode with a past opponent (Bansal et al. 2018, section 3.2) one agent of the group,
    drawn at random, plays with the network that learns; the others play with one snapshot of it,
    drawn uniformly from the pool, and nothing is learned from their turns.

    With random openings (exploring starts: Sutton and Barto 2018, section 5.3) every position is
    the start of some episode, so that epsilon can be small: an opponent that plays at random
    half of the time teaches to rely on its mistakes.
    """

    opening_turns: int = 0
    """The first k turns of the group in an episode are uniformly random, k drawn uniformly from
    0 .. `opening_turns` for each episode. Only the last of them is learned from: what follows the
    others is not what the agents would play."""

    past_probability: float = 0.0
    """Fraction of episodes with a past opponent, in [0, 1]."""

    random_probability: float = 0.0
    """Fraction of episodes in which the others play uniformly at random instead, in [0, 1], and
    nothing is learned from their turns. In what is left all play with the network that learns."""

    snapshot_interval: int = 5_000
    """Turns of the group between two snapshots, >= 1."""

    pool_size: int = 10
    """Snapshots kept, >= 1: the newest."""

    def __post_init__(self) -> None:
        turns = checked_int("opening_turns", self.opening_turns, low=0)
        if turns is not None and turns > _MOST_TURNS:
            raise rejected("opening_turns", turns, f"at most {_MOST_TURNS}")
        past = checked_float("past_probability", self.past_probability, high=1.0)
        random = checked_float("random_probability", self.random_probability, high=1.0)
        assert past is not None
        assert random is not None
        if past + random > 1.0:
            raise ValueError(
                f"past_probability={past} and random_probability={random} are not accepted; "
                "together they must not be more than 1"
            )
        checked_int("snapshot_interval", self.snapshot_interval, low=1)
        checked_int("pool_size", self.pool_size, low=1)


class TurnTransition(NamedTuple):
    """What came of an action, from its agent's turn to its own next one, or to its end."""

    stream: int
    """The agent, as the replay buffer counts it."""

    observation: Arrays
    action: int
    """In 0 .. A - 1."""

    reward: float
    """The sum of all rewards of the agent in between."""

    next_observation: Arrays
    terminated: bool
    truncated: bool
    next_mask: Masks


class GroupPolicy:
    """One network with its learner and its replay buffer, for one agent or for several.

    Args:
        name: Of the policy.
        group: Of its group of agents; several policies are of one group where an agent came back
            with other spaces.
        config: Its hyper-parameters.
        observation_space: Of each of its agents.
        action_space: Of each of its agents.
        seeds: Decides its network, actions and replay.
        device: Where it computes.
        execution: How its learner does; see `DQNLearner`.
        check_observations: Refuse observations that are NaN or infinite.
        self_play: Against past versions of itself; None: not.
        network: Makes its network; None: a `QNetwork`. See `networks.make_q_net`.

    Raises:
        ValueError: a space is not supported, or the network does not fit it.
    """

    def __init__(
        self,
        name: str,
        group: str,
        config: DQNConfig,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        seeds: np.random.SeedSequence,
        device: torch.device,
        execution: Execution = "auto",
        check_observations: bool = True,
        self_play: SelfPlay | None = None,
        network: Network | None = None,
    ) -> None:
        self.name = name
        self.group = group
        self.config = config
        self.device = device
        self.self_play = self_play
        self.check_observations = check_observations
        self.env_observation_space = observation_space
        self.action_space = check_action_space(action_space)
        self.num_actions = int(self.action_space.n)
        self._view = ObservationView(observation_space, self.num_actions)
        self.observation_space = self._view.space
        """What the network sees: the agents' space, without an `"action_mask"` in it."""
        self.agents: list[str] = []
        """The names of its agents, in the order in which they were first seen."""
        self._streams: dict[str, int] = {}
        net_seed, act_seed, replay_seed = seeds.spawn(3)
        self._generator = np.random.default_rng(act_seed)
        q_net = make_q_net(network, self.observation_space, self.num_actions, config, net_seed)
        self.learner = DQNLearner(
            q_net.to(device),
            config,
            execution=execution,
            as_stack=partial(as_stack, space=self.observation_space),
        )
        self.replay = ReplayBuffer.from_config(
            config,
            self.observation_space,
            num_envs=1,  # more as agents join
            generator=np.random.default_rng(replay_seed),
            device=device,
        )
        self.pool: list[dict[str, torch.Tensor]] = []
        """Weights of past versions, the newest last."""
        self._past = copy.deepcopy(q_net).requires_grad_(False)
        self.learning_agent: str | None = None
        """In an episode with another opponent: who plays with the network that learns."""
        self.random_opponent = False
        """Whether that opponent is one that plays at random."""
        self.opening = 0
        """Turns of this episode that will still be random."""

    @property
    def q_net(self) -> torch.nn.Module:
        """The online network: observations `(B, ...)` to action values `(B, A)`."""
        return self.learner.q_net

    @property
    def num_turns(self) -> int:
        """Turns of its agents that were learned from."""
        return self.learner.counts["steps"]

    def join(self, agent: Any) -> int:
        """Take in an agent; its stream in the replay buffer."""
        name = name_of(agent)
        if name not in self._streams:
            self._streams[name] = len(self.agents)
            self.agents.append(name)
            self.replay.reserve(len(self.agents))
        return self._streams[name]

    def fits(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> bool:
        """Whether agents of these spaces can belong to the group."""
        known = self.env_observation_space, self.action_space
        given = observation_space, action_space
        return all(a is b or not difference(a, b) for a, b in zip(known, given, strict=True))

    def see(self, agent: Any, observation: Any, action_mask: Any) -> tuple[Arrays, Masks | None]:
        """What the network sees of an agent's observation, copied, and its mask `(A,)`.

        Raises:
            ValueError: a shape is not that of the agent's spaces.
            NonFiniteError: the observation holds NaN or infinity.
        """
        try:
            if not self._view.has_mask or (
                isinstance(observation, Mapping) and MASK in observation
            ):
                seen, own_mask = self._view.split(observation)
            elif action_mask is not None:  # the parts were given one by one
                seen, own_mask = observation, None
            else:
                raise ValueError(f"observation must have {MASK!r}, or action_mask must be given")
            arrays = self._view.arrays(seen)
            for name, array, space in self._leaves(arrays):
                check_shape(name, array, space.shape or ())
            mask = own_mask if action_mask is None else action_mask
            masks = None if mask is None else as_masks(mask, (self.num_actions,))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"agent {agent!r}: {error}") from error
        if self.check_observations:
            check_finite("the observation", map_arrays(_as_row, arrays), [agent], where="agent")
        return arrays, masks

    def _leaves(self, arrays: Arrays) -> Iterator[tuple[str, NDArray[Any], spaces.Space[Any]]]:
        if isinstance(arrays, dict):
            assert isinstance(self.observation_space, spaces.Dict)
            for key, array in arrays.items():
                yield f"observation[{key!r}]", array, self.observation_space[key]
        else:
            yield "observation", arrays, self.observation_space

    def epsilon(self, num_timesteps: int, total_timesteps: int | None) -> float:
        """Probability of a random action after `num_timesteps` turns of all agents, in a training
        of `total_timesteps`."""
        if total_timesteps is None or self.num_turns < self.config.learning_starts:
            return 1.0
        return epsilon_schedule(self.config, total_timesteps)(num_timesteps)

    def act(
        self,
        observations: Sequence[Arrays],
        masks: Sequence[Masks],
        epsilon: float,
        *,
        past: bool = False,
    ) -> list[int]:
        """Epsilon-greedy actions of the action space, one for each observation."""
        batch, action_masks = stacked(observations), np.stack(masks)
        actions = epsilon_greedy(
            lambda: self._greedy(batch, action_masks, past),
            epsilon,
            num_envs=len(action_masks),
            num_actions=self.num_actions,
            generator=self._generator,
            action_masks=action_masks,
        )
        return [int(action) for action in actions + self.action_space.start]

    def act_greedily(self, observation: Arrays, mask: Masks) -> int:
        """The greedy action of the action space; nothing is drawn."""
        action = self._greedy(stacked([observation]), mask[None], past=False)
        return int(action[0] + self.action_space.start)

    def _greedy(self, batch: Arrays, masks: Masks, past: bool) -> NDArray[np.int64]:
        if not past:
            return self.learner.greedy_actions(batch, masks)
        with torch.no_grad():
            q_values = self._past(to_tensors(batch, self.device))
            chosen = greedy_actions(q_values, to_tensor(masks, self.device))
        actions: NDArray[np.int64] = chosen.cpu().numpy()
        return actions

    def store(self, rows: Sequence[TurnTransition]) -> None:
        """Store transitions of different agents in the replay buffer."""
        step = EnvStep(
            observations=stacked([row.observation for row in rows]),
            actions=np.array([row.action for row in rows], np.int64),
            rewards=np.array([row.reward for row in rows], np.float64),
            next_observations=stacked([row.next_observation for row in rows]),
            terminated=np.array([row.terminated for row in rows], np.bool_),
            truncated=np.array([row.truncated for row in rows], np.bool_),
            valid=np.ones(len(rows), np.bool_),
            next_action_masks=np.stack([row.next_mask for row in rows]),
        )
        self.replay.add(step, np.array([row.stream for row in rows], np.int64))

    def learn(
        self, turns: int, episodes: int, num_timesteps: int, total_timesteps: int
    ) -> UpdateMetrics | None:
        """Count new turns and finished episodes, and make the updates that are due.

        Returns:
            What the last update saw; None if none was due.
        """
        config, before = self.config, self.num_turns
        self.learner.count(steps=turns, episodes=episodes)
        phases = self.num_turns // config.train_freq - before // config.train_freq
        metrics = None
        if self.num_turns > config.learning_starts:
            self.replay.beta = beta_schedule(config, total_timesteps)(num_timesteps)
            if phases:
                updates = phases * config.gradient_steps
                metrics = self.learner.train(self.replay, updates, config.batch_size)[-1]
        if self.self_play is not None and self.self_play.past_probability > 0:
            interval = self.self_play.snapshot_interval
            if self.num_turns // interval > before // interval:
                self.pool.append(copy.deepcopy(self.q_net.state_dict()))
                del self.pool[: -self.self_play.pool_size]
        return metrics

    def start_episode(self) -> None:
        """Draw the opening of the next episode, and who plays whom."""
        self.learning_agent, self.random_opponent = None, False
        rule = self.self_play
        if rule is None:
            return
        self.opening = int(self._generator.integers(rule.opening_turns + 1))
        if len(self.agents) < 2:
            return
        draw = self._generator.random() - rule.random_probability
        self.random_opponent = draw < 0
        past = bool(self.pool) and 0 <= draw < rule.past_probability
        if past or self.random_opponent:
            self.learning_agent = self.agents[self._generator.integers(len(self.agents))]
        if past:
            self._past.load_state_dict(self.pool[self._generator.integers(len(self.pool))])

    def is_opponent(self, agent: Any) -> bool:
        """Whether another than the network that learns plays for the agent in this episode."""
        return self.learning_agent is not None and name_of(agent) != self.learning_agent

    def state_dict(self, *, replay: bool) -> dict[str, Any]:
        """All that decides how it goes on; without the stored transitions unless `replay`."""
        return {
            "name": self.name,
            "group": self.group,
            "config": self.config.to_dict(),
            "observation_space": to_state(self.env_observation_space),
            "action_space": to_state(self.action_space),
            "agents": list(self.agents),
            "learner": self.learner.state_dict(),
            "generator": self._generator.bit_generator.state,
            "pool": list(self.pool),
            "replay": self.replay.state_dict() if replay else None,
        }

    def load_state_dict(
        self, state: Mapping[str, Any], *, replay: bool = True, changed: bool = False
    ) -> None:
        """Restore what `state_dict` gave, at the start of an episode.

        Args:
            state: Not changed.
            replay: Take over the stored transitions, if there are any.
            changed: It was saved under another configuration.

        Raises:
            ValueError: the state does not fit.
        """
        stored.check_mapping(self.name, state, ("learner", "generator", "pool", "agents", "replay"))
        learner_state = stored.check_mapping("learner", state["learner"], ("q_net", "optimizer"))
        if changed:
            learner_state = learner_state_for(self.learner, learner_state)
        self.learner.load_state_dict(learner_state)
        self._generator.bit_generator.state = stored.check_generator(
            "generator", state["generator"], self._generator
        )
        own = self.q_net.state_dict()
        for i, weights in enumerate(state["pool"]):
            stored.check_tensors(f"pool[{i}]", weights, own)
        self.pool = list(state["pool"])
        self.agents, self._streams = [], {}
        for name in state["agents"]:
            self.join(name)
        if state["replay"] is not None and replay:
            self.replay.load_state_dict(state["replay"], self.num_actions)
            self.replay.cut()


def _as_row(array: NDArray[Any]) -> NDArray[Any]:
    return array[None]


def stacked(rows: Sequence[Arrays]) -> Arrays:
    """Observations as one batch."""
    batch: Arrays = map_arrays(lambda *parts: np.stack(parts), *rows)
    return batch


class Grouping:
    """Which agent belongs to which group, and each group's configuration.

    Args:
        config: One for all groups, or one for each by its name.
        policy_groups: The agents of every group, or a function from an agent to the name of its
            group. An agent in none is a group of its own, with its own name.
        agents: Those that the environment declares; none if it declares none.

    Raises:
        ValueError: an agent is in two groups or unknown, a group is empty or has the name of an
            agent that is not in it, or a group has no configuration.
        TypeError: an argument is of another type.
    """

    def __init__(
        self,
        config: DQNConfig | Mapping[str, DQNConfig] | None,
        policy_groups: PolicyGroups | None,
        agents: Sequence[Any],
    ) -> None:
        config = DQNConfig() if config is None else config
        configs = list(config.values()) if isinstance(config, Mapping) else [config]
        for given in configs:
            if not isinstance(given, DQNConfig):
                raise TypeError(
                    f"config={given!r} is not accepted; it must be a DQNConfig, or a mapping from "
                    "the names of groups to DQNConfigs"
                )
        self.configs = config
        self.function = policy_groups if callable(policy_groups) else None
        self.group_of: dict[str, str] = {}
        """The group of every agent that was put into one, by name."""
        known = {name_of(agent) for agent in agents}
        if isinstance(policy_groups, Mapping):
            self._read(policy_groups, known)
        elif policy_groups is not None and self.function is None:
            raise TypeError(
                f"policy_groups={policy_groups!r} is not accepted; it must be a mapping from the "
                "names of groups to lists of agents, or a function from an agent to such a name"
            )
        if isinstance(config, Mapping) and agents:
            groups = {self.group(agent) for agent in agents}
            for group in config:
                if group not in groups:
                    raise ValueError(f"config has {group!r}; the groups are {sorted(groups)}")

    def _read(self, policy_groups: Mapping[str, Sequence[Any]], known: set[str]) -> None:
        for group, members in policy_groups.items():
            if isinstance(members, str) or not isinstance(members, Sequence) or not members:
                raise ValueError(
                    f"policy_groups[{group!r}]={members!r} is not accepted; it must be a list of "
                    "at least one agent"
                )
            for agent in map(name_of, members):
                if known and agent not in known:
                    raise ValueError(
                        f"agent {agent!r} of policy_groups[{group!r}] is unknown; the environment "
                        f"has {sorted(known)}"
                    )
                if agent in self.group_of:
                    raise ValueError(
                        f"agent {agent!r} is in two groups, {self.group_of[agent]!r} and {group!r}"
                    )
                self.group_of[agent] = group
        for group in policy_groups:
            if group in known and self.group_of.get(group) != group:
                raise ValueError(
                    f"the group {group!r} of policy_groups has the name of an agent that is not "
                    "in it"
                )

    def group(self, agent: Any) -> str:
        """The name of an agent's group."""
        if self.function is not None:
            return name_of(self.function(agent))
        return self.group_of.get(name_of(agent), name_of(agent))

    def shared(self, agent: Any) -> bool:
        """Whether the agent was put into a group."""
        return self.function is not None or name_of(agent) in self.group_of

    def config(self, group: str) -> DQNConfig:
        """The configuration of a group."""
        if isinstance(self.configs, DQNConfig):
            return self.configs
        if group not in self.configs:
            raise ValueError(
                f"there is no config for the group {group!r}; there are {sorted(self.configs)}"
            )
        return self.configs[group]


def name_of(agent: Any) -> str:
    """The name of an agent, whose identity may be anything hashable."""
    return str(agent)
