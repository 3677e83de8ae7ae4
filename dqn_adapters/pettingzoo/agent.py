"""Multi-agent DQN over a PettingZoo environment."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from dqn_adapters import checkpoint, stored
from dqn_adapters.agent import resolve_device
from dqn_adapters.compute import Execution
from dqn_adapters.config import DQNConfig, checked_int, rejected
from dqn_adapters.environments import Masks, ObservationView, check_action_space
from dqn_adapters.exploration import check_action_masks
from dqn_adapters.finite import as_reward, moment
from dqn_adapters.learner import UpdateMetrics
from dqn_adapters.networks import Network, check_network_was_given
from dqn_adapters.pettingzoo.games import AnyEnv, Turn, make_game, possible_agents
from dqn_adapters.pettingzoo.groups import (
    Grouping,
    GroupPolicy,
    PolicyGroups,
    SelfPlay,
    TurnTransition,
    name_of,
)
from dqn_adapters.pettingzoo.matches import play
from dqn_adapters.replay.storage import check_frame_stack
from dqn_adapters.spaces import difference, from_state
from dqn_adapters.transition import Arrays


class MultiAgentStep(NamedTuple):
    """What happened in one step of training; callbacks receive it."""

    agent: MultiAgentDQN
    num_timesteps: int
    """Turns of all agents so far."""

    actions: dict[Any, int]
    """Who acted, and how: one agent of a turn-based environment, all agents of a parallel one."""

    epsilons: dict[str, float]
    """Of each policy that acted: its probability of a random action."""

    episode_returns: dict[Any, float]
    """If the episode ended at this step, the undiscounted return of every agent that was in it."""

    episode_length: int
    """If the episode ended at this step: how many turns it had; else 0."""

    metrics: dict[str, UpdateMetrics]
    """Of each policy that learned: its last gradient update of this step."""


Callback = Callable[[MultiAgentStep], bool | None]


class _Seat:
    """An agent in the running episode."""

    def __init__(self, policy: GroupPolicy, stream: int, past: bool) -> None:
        self.policy, self.stream, self.past = policy, stream, past
        self.observation: Arrays
        self.mask: Masks
        self.action: int | None = None  # what it did, if that is to be learned from


class MultiAgentDQN:
    """DQN for many agents, each with a network of its own or sharing one with its group.

    An agent's transition runs from its turn to its own next turn, or to its end: its reward is the
    sum of all that it was given in between, s' and its mask are its own, and n-step returns and
    discounts count its own turns. All other agents are a part of the environment.

    A *step* is one turn of one agent. `learn`, epsilon's schedule and that of the importance
    weights count the turns of all agents together; a group's `learning_starts`, `train_freq`,
    `target_update_interval` and `buffer_size` count the turns of its own agents.

    Masks of legal actions are taken from `"action_mask"` in an agent's observation or its info; one
    that allows nothing is taken to say nothing.

    Args:
        env: An `AECEnv` or a `ParallelEnv`. Spaces are those of `DQNAgent`, of each agent for
            itself.
        config: Hyper-parameters of all groups, or of each by its name; None is `DQNConfig()`.
        policy_groups: The agents of every group, or a function from an agent to the name of its
            group, for agents that appear. An agent in no group has a network of its own, under its
            own name.
        self_play: Random openings and past opponents for groups; see `SelfPlay`. None: neither.
        network: A function that makes the network of a group, from the space of its observations
            (without an `"action_mask"`), the number of actions A and its configuration: a module
            that maps observations `(B, ...)`, in the dtype of the space, to action values
            `(B, A)`. None: a `QNetwork`.
        seed: Decides everything that is random: networks, environment, actions, replay.
            None draws fresh entropy.
        device: `"auto"` is CUDA where there is one, else the CPU.
        execution: How the learners compute; see `DQNLearner`. It is not saved.
        check_observations: Refuse observations that are NaN or infinite. False is for a network
            that can handle them. It is not saved.

    Raises:
        ValueError: a space is not supported, agents of a group have different ones, an agent is in
            two groups or unknown, the device or `execution` is, or the network does not fit the
            spaces.
        TypeError: an argument is of another type.
    """

    def __init__(
        self,
        env: AnyEnv,
        config: DQNConfig | Mapping[str, DQNConfig] | None = None,
        *,
        policy_groups: PolicyGroups | None = None,
        self_play: SelfPlay | None = None,
        network: Network | None = None,
        seed: int | None = None,
        device: torch.device | str = "auto",
        execution: Execution = "auto",
        check_observations: bool = True,
    ) -> None:
        self._game = make_game(env)
        if self_play is not None and not isinstance(self_play, SelfPlay):
            raise TypeError(f"self_play={self_play!r} is not accepted; it must be a SelfPlay")
        self.grouping = Grouping(config, policy_groups, possible_agents(env))
        self.self_play = self_play
        self._network = network
        self.device = resolve_device(device)
        self._execution = execution
        self._check_observations = check_observations
        self._seeds = np.random.SeedSequence(checked_int("seed", seed, low=0, none=True))
        self._env_generator = np.random.default_rng(self._seeds.spawn(1)[0])
        self.policies: dict[str, GroupPolicy] = {}
        """The policy of every group, by its name."""
        self._policy_of: dict[str, GroupPolicy] = {}
        self.num_timesteps = 0
        """Turns of all agents."""
        self._total: int | None = None  # of the first `learn`: the length of the schedules
        self._seats: dict[Any, _Seat] = {}
        self._to_act: list[Any] = []
        self._returns: dict[Any, float] = {}
        self._length = 0
        self._is_whole = True  # whether the last step was taken up
        for agent in possible_agents(env):
            self._assign(agent)

    def __repr__(self) -> str:
        learners = ", ".join(f"{name!r}: {p.learner}" for name, p in self.policies.items())
        return f"MultiAgentDQN(num_timesteps={self.num_timesteps}, learners={{{learners}}})"

    @property
    def env(self) -> AnyEnv:
        """The environment that it trains in."""
        return self._game.env

    def policy(self, agent: Any) -> GroupPolicy:
        """The policy of an agent.

        Raises:
            ValueError: the agent was never seen, and belongs to no known group.
        """
        name = name_of(agent)
        known = self._policy_of.get(name) or self.policies.get(self.grouping.group(agent))
        if known is None:
            raise ValueError(f"agent {agent!r} is unknown; known are {sorted(self._policy_of)}")
        return known

    def learn(
        self,
        total_timesteps: int,
        callback: Callback | None = None,
        progress_bar: bool = False,
    ) -> MultiAgentDQN:
        """Train for `total_timesteps` more turns of all agents together.

        The first call fixes the length of the schedules; later ones go on where the last one
        stopped, in the same episode. After an error or an interruption within a step they begin a
        new episode, and the replay buffers never link what came before to what comes after.

        Args:
            total_timesteps: At least so many turns; a parallel environment takes whole steps.
            callback: Called after every step; returning False ends the training, and nothing is
                lost.
            progress_bar: Show a progress bar.

        Returns:
            The agent.
        """
        steps = self.train(total_timesteps)
        if progress_bar:
            steps = _with_progress(steps, total_timesteps)
        for step in steps:
            if callback is not None and callback(step) is False:
                break
        return self

    def train(self, total_timesteps: int) -> Iterator[MultiAgentStep]:
        """The training loop as a generator: one `MultiAgentStep` per step of the environment in
        which agents acted.

        Whoever iterates may log, evaluate, save or stop; see `learn`.

        Raises:
            ValueError: `total_timesteps` is not an integer >= 1; or, in the loop, an observation or
                a mask is not as the agent's spaces have it.
            NonFiniteError: a reward or an observation is NaN or infinite.
        """
        checked_int("total_timesteps", total_timesteps, low=1)
        return self._train(total_timesteps)

    def _train(self, total_timesteps: int) -> Iterator[MultiAgentStep]:
        self._total = self._total or total_timesteps
        end = self.num_timesteps + total_timesteps
        if not self._is_whole:
            for policy in self.policies.values():
                policy.replay.cut()
            self._seats = {}
        while self.num_timesteps < end:
            self._is_whole = False  # until the step is taken up
            if not self._seats:
                self._start_episode()
            actions, epsilons = self._act()
            rows = self._arrive(self._game.step(actions), self.num_timesteps + 1)
            self.num_timesteps += len(actions)
            self._length += len(actions)
            over = not self._game.agents
            metrics = self._learn(rows, episodes=int(over))
            returns, length = (self._returns, self._length) if over else ({}, 0)
            if over:
                self._seats = {}  # the next episode starts when it is needed
            self._is_whole = True
            yield MultiAgentStep(
                self, self.num_timesteps, actions, epsilons, returns, length, metrics
            )

    def _start_episode(self) -> None:
        """Start an episode, with a seed of its own: so it does not depend on those before."""
        self._returns, self._length = {}, 0
        for policy in self.policies.values():
            policy.start_episode()
        self._arrive(self._game.reset(int(self._env_generator.integers(2**31))), None)
        if not self._seats:
            raise ValueError(f"{self.env} has no agent that could act after its reset")

    def _act(self) -> tuple[dict[Any, int], dict[str, float]]:
        """Actions of the agents whose turn it is; those of one policy are computed together."""
        together: dict[tuple[str, bool], list[Any]] = {}
        for agent in self._to_act:
            seat = self._seats[agent]
            together.setdefault((seat.policy.name, seat.past), []).append(agent)
        actions, epsilons = {}, {}
        for (name, past), agents in together.items():
            policy, seats = self.policies[name], [self._seats[agent] for agent in agents]
            opening = policy.opening > 0
            at_random = opening or (past and policy.random_opponent)
            epsilons[name] = 1.0 if at_random else policy.epsilon(self.num_timesteps, self._total)
            chosen = policy.act(
                [seat.observation for seat in seats],
                [seat.mask for seat in seats],
                epsilons[name],
                past=past,
            )
            for agent, seat, action in zip(agents, seats, chosen, strict=True):
                actions[agent] = action
                # What follows the last turn of an opening is played as it is played later.
                told = policy.opening <= len(agents)
                seat.action = action - int(policy.action_space.start) if told else None
            policy.opening = max(policy.opening - len(agents), 0)
        return {agent: actions[agent] for agent in self._to_act}, epsilons

    def _arrive(self, turns: Iterator[Turn], step: int | None) -> dict[str, list[TurnTransition]]:
        """Take up the turns that environment step `step` (None: a reset) led to; the transitions
        that they complete, by policy."""
        rows: dict[str, list[TurnTransition]] = {}
        self._to_act = []
        for turn in turns:
            agent = turn.agent
            if agent not in self._seats:
                policy = self._assign(agent)
                self._seats[agent] = _Seat(policy, policy.join(agent), policy.is_opponent(agent))
            seat = self._seats[agent]
            as_reward(turn.reward, step or 0, agent, where="agent")
            self._returns[agent] = self._returns.get(agent, 0.0) + turn.reward
            if turn.observation is not None:
                try:
                    given = turn.observation, turn.action_mask
                    observation, mask = _see(seat.policy, agent, *given)
                except ValueError as error:  # or a NonFiniteError, which is one
                    raise type(error)(f"{error} ({moment(step)})") from error
            elif turn.terminated and seat.action is not None:
                observation, mask = seat.observation, seat.mask  # nothing is bootstrapped from it
            else:
                self._leave(agent)  # cut at a state that nobody saw: nothing can be learned
                continue
            if seat.action is not None and not seat.past:
                rows.setdefault(seat.policy.name, []).append(
                    TurnTransition(
                        seat.stream,
                        seat.observation,
                        seat.action,
                        turn.reward,
                        observation,
                        turn.terminated,
                        turn.truncated,
                        mask,
                    )
                )
            seat.observation, seat.mask, seat.action = observation, mask, None
            if turn.over:
                del self._seats[agent]
            else:
                self._to_act.append(agent)
        for agent in self._seats.keys() - set(self._game.agents):
            self._leave(agent)
        return rows

    def _leave(self, agent: Any) -> None:
        """An agent is gone, and its last transition will never be complete."""
        seat = self._seats.pop(agent)
        seat.policy.replay.cut(seat.stream)

    def _learn(
        self, rows: dict[str, list[TurnTransition]], episodes: int
    ) -> dict[str, UpdateMetrics]:
        assert self._total is not None
        metrics = {}
        for name in self.policies if episodes else rows:
            policy, own = self.policies[name], rows.get(name, [])
            if own:
                policy.store(own)
            seen = policy.learn(len(own), episodes, self.num_timesteps, self._total)
            if seen is not None:
                metrics[name] = seen
        return metrics

    def _assign(self, agent: Any) -> GroupPolicy:
        """The policy of an agent that enters; a new one if there is none for it."""
        env, name = self._game.env, name_of(agent)
        spaces = env.observation_space(agent), env.action_space(agent)
        policy = self._policy_of.get(name)
        if policy is not None and policy.fits(*spaces):
            return policy
        group, shared = self.grouping.group(agent), self.grouping.shared(agent)
        # An agent of its own may come back with other spaces: it then needs another network.
        candidates = [policy for policy in self.policies.values() if policy.group == group]
        fitting = [p for p in candidates if p.fits(*spaces)]
        if fitting:
            policy = fitting[0]
        elif candidates and shared:
            first = candidates[0]
            raise ValueError(
                f"agents of the group {group!r} must have equal spaces; {agent!r} has {spaces}, "
                f"{first.agents} have {(first.env_observation_space, first.action_space)}"
            )
        else:
            if candidates:
                warnings.warn(
                    f"agent {agent!r} had other spaces in an earlier episode; it gets another "
                    "network for the new ones",
                    stacklevel=2,
                )
            key = group if not candidates else f"{group}@{len(candidates) + 1}"
            policy = self._make_policy(key, group, agent, *spaces)
        policy.join(agent)
        self._policy_of[name] = policy
        return policy

    def _make_policy(
        self, key: str, group: str, agent: Any, observation_space: Any, action_space: Any
    ) -> GroupPolicy:
        (seeds,) = self._seeds.spawn(1)
        config = self.grouping.config(group)
        try:
            policy = GroupPolicy(
                key,
                group,
                config,
                observation_space,
                action_space,
                seeds=seeds,
                device=self.device,
                execution=self._execution,
                check_observations=self._check_observations,
                self_play=self.self_play,
                network=self._network,
            )
        except ValueError as error:
            raise ValueError(f"agent {agent!r}: {error}") from error
        self.policies[key] = policy
        return policy

    def predict(
        self,
        agent: Any,
        observation: Any,
        action_mask: ArrayLike | None = None,
        deterministic: bool = True,
    ) -> int:
        """Choose an action for an agent.

        Args:
            agent: Whose turn it is.
            observation: Its observation, as the environment gives it; an `"action_mask"` in it is
                heeded.
            action_mask: Which actions are legal, `(A,)`, True or 1 is legal; None: those of the
                observation's mask, or all.
            deterministic: True is greedy; False explores with the current epsilon.

        Returns:
            An action of the agent's action space.

        Raises:
            ValueError: the agent is unknown, the observation does not have the shape of its space,
                or a mask has not that of the actions or allows none.
        """
        policy = self.policy(agent)
        seen, mask = policy.see(agent, observation, action_mask)
        if mask is None:
            mask = np.ones(policy.num_actions, np.bool_)
        check_action_masks(mask[None], 1, policy.num_actions)
        if deterministic:
            return policy.act_greedily(seen, mask)
        epsilon = policy.epsilon(self.num_timesteps, self._total)
        return policy.act([seen], [mask], epsilon)[0]

    def evaluate(
        self,
        env: AnyEnv,
        episodes: int = 10,
        *,
        seed: int | None = None,
        max_turns: int | None = None,
    ) -> dict[Any, float]:
        """Play whole episodes greedily, all agents with their networks.

        Args:
            env: Another instance of the environment: an episode may be running in the own one.
            episodes: How many, >= 1.
            seed: Decides the seeds with which the environment is reset.
            max_turns: As in `play`: an episode that never ends needs it.

        Returns:
            For each agent its mean undiscounted return over the episodes that it was in.
        """
        if env is self.env:
            raise ValueError("env is the environment that is trained in; evaluate in another one")
        returns: dict[Any, list[float]] = {}
        for episode in play(env, self.choose, episodes, seed=seed, max_turns=max_turns):
            for agent, value in episode.items():
                returns.setdefault(agent, []).append(value)
        return {agent: float(np.mean(values)) for agent, values in returns.items()}

    def choose(self, agent: Any, observation: Any, action_mask: Any = None) -> int:
        """`predict`, greedily, but a mask that allows nothing says nothing, as in training: the
        agent as a `Player`."""
        policy = self.policy(agent)
        return policy.act_greedily(*_see(policy, agent, observation, action_mask))

    def save(self, path: str | Path, *, replay: bool = False) -> Path:
        """Save to one file, atomically and without pickle.

        Saved are configurations, networks, optimisers, counters, schedules, pools of past versions
        and every random stream; with `replay=True` the replay buffers too, which exact
        continuation needs. The environment is not saved: a loaded agent begins a new episode, the
        same that this one would begin next. So a training goes on exactly if it was saved when an
        episode had ended; within an episode, the rest of it is lost, and its open transitions.

        Returns:
            The path.
        """
        state = {
            "groups": None if self.grouping.function is not None else self.grouping.group_of,
            "configs": _configs_to_state(self.grouping.configs),
            "self_play": None if self.self_play is None else vars(self.self_play),
            "own_network": self._network is not None,
            "entropy": str(self._seeds.entropy),  # 128 bits
            "policies": [p.state_dict(replay=replay) for p in self.policies.values()],
            "policy_of": {agent: policy.name for agent, policy in self._policy_of.items()},
            "env_generator": self._env_generator.bit_generator.state,
            "num_timesteps": self.num_timesteps,
            "total_timesteps": self._total,
        }
        return checkpoint.save(path, "pettingzoo", state)

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: AnyEnv,
        *,
        config: DQNConfig | Mapping[str, DQNConfig] | None = None,
        replay: bool = True,
        policy_groups: PolicyGroups | None = None,
        network: Network | None = None,
        device: torch.device | str = "auto",
        execution: Execution = "auto",
        check_observations: bool = True,
    ) -> MultiAgentDQN:
        """Open what `save` wrote, over an environment with the same agents and spaces.

        Args:
            path: The file.
            env: The environment to go on in. Keys of a Dict may be in another order.
            config: Other hyper-parameters to go on with, as in the constructor. The networks'
                layers must be the saved ones, and with `replay` kinds and sizes of the buffers.
            replay: Take over the stored transitions, if the file has any.
            policy_groups: The function that assigned groups, if it was one; groups that were given
                as lists are in the file.
            network: The function that made the networks, if there was one.
            device: As in the constructor.
            execution: Likewise.
            check_observations: Likewise.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is not one of ours, is damaged, is newer, or its content does
                not fit.
            ValueError: the environment's agents or spaces do not fit, or a function is missing.
        """
        state = checkpoint.load(path, "pettingzoo")
        with checkpoint.reading(path):
            _check_state(state)
            check_network_was_given(state.get("own_network", False), network)
            configs = _configs_from_state(stored.check_mapping("configs", state["configs"]))
            if network is None:
                for policy in state["policies"]:
                    _check_policy(policy, configs if config is None else config, config is None)
        if (state["groups"] is None) != callable(policy_groups):
            raise ValueError(
                "policy_groups must be the function that assigned the groups"
                if state["groups"] is None
                else "policy_groups must be None: the groups are in the file"
            )
        groups: dict[str, list[str]] = {}
        for agent, group in (state["groups"] or {}).items():
            groups.setdefault(group, []).append(agent)
        with checkpoint.reading(path):
            self_play = state["self_play"]
            self_play = None if self_play is None else SelfPlay(**self_play)
        agent = cls(
            env,
            configs if config is None else config,
            policy_groups=groups or policy_groups,
            self_play=self_play,
            network=network,
            device=device,
            execution=execution,
            check_observations=check_observations,
        )
        agent._load(path, state, replay=replay, changed=config is not None)
        return agent

    def _load(
        self, path: str | Path, state: Mapping[str, Any], *, replay: bool, changed: bool
    ) -> None:
        saved = {policy["name"]: policy for policy in state["policies"]}
        for name, policy in self.policies.items():
            if name not in saved:
                raise ValueError(f"{path} has no policy {name!r}; it has {sorted(saved)}")
            now = policy.env_observation_space, policy.action_space
            for key, space in zip(("observation_space", "action_space"), now, strict=True):
                changes = difference(from_state(saved[name][key]), space, key)
                if changes:
                    raise ValueError(
                        f"{path} does not fit the environment: the agents of {name!r}: {changes}"
                    )
        with checkpoint.reading(path):
            self._seeds = np.random.SeedSequence(int(state["entropy"]))
            self._seeds.spawn(1)  # the environment's
            self.policies = {}
            for name, policy_state in saved.items():
                # In the saved order of keys, in which the network reads them.
                spaces = [from_state(policy_state[k]) for k in _SPACES]
                policy = self._make_policy(
                    name, policy_state["group"], policy_state["agents"], *spaces
                )
                try:
                    policy.load_state_dict(policy_state, replay=replay, changed=changed)
                except ValueError as error:
                    raise ValueError(f"policy {name!r}: {error}") from error
            self._policy_of = {
                agent: self.policies[name] for agent, name in state["policy_of"].items()
            }
            self._env_generator.bit_generator.state = stored.check_generator(
                "env_generator", state["env_generator"], self._env_generator
            )
            self.num_timesteps = stored.check_count("num_timesteps", state["num_timesteps"])
            total = state["total_timesteps"]
            self._total = None if total is None else stored.check_count("total_timesteps", total)


_SPACES = "observation_space", "action_space"


def _check_state(state: dict[str, Any]) -> None:
    """Raise `ValueError` unless a saved state has all its parts, and they are of the right kind."""
    names = ("groups", "configs", "self_play", "entropy", "policies", "policy_of", "env_generator")
    stored.check_mapping("", state, (*names, "num_timesteps", "total_timesteps"))
    stored.check_bool("own_network", state.get("own_network", False))
    for name in ("groups", "policy_of"):
        members = {} if name == "groups" and state[name] is None else state[name]
        for agent, group in stored.check_mapping(name, members).items():
            if not isinstance(agent, str) or not isinstance(group, str):
                raise rejected(name, members, "a mapping from names to names")
    if not isinstance(state["policies"], list):
        raise rejected("policies", state["policies"], "a list")
    for policy in state["policies"]:
        stored.check_mapping("policies", policy, ("name", "group", "agents", "learner", *_SPACES))
        named = [policy["name"], policy["group"], *policy["agents"]]
        if not isinstance(policy["agents"], list) or not all(isinstance(n, str) for n in named):
            raise rejected("agents", policy["agents"], "a list of names")
    known = [policy["name"] for policy in state["policies"]]
    if len(set(known)) < len(known):
        raise rejected("policies", known, "different names")
    for agent, name in state["policy_of"].items():
        if name not in known:
            raise ValueError(f"policy_of.{agent} is {name!r}; the policies are {known}")


def _check_policy(
    policy: dict[str, Any], configs: DQNConfig | Mapping[str, DQNConfig], saved: bool
) -> None:
    """Raise `ValueError` unless a policy's network is that of its configuration and its spaces."""
    config = configs if isinstance(configs, DQNConfig) else configs.get(policy["group"])
    if config is None:
        raise ValueError(f"there is no config for the group {policy['group']!r}")
    action_space = check_action_space(from_state(policy["action_space"]))
    view = ObservationView(from_state(policy["observation_space"]), int(action_space.n))
    learner = stored.check_mapping("learner", policy["learner"], ("q_net",))
    name = f"policy {policy['name']!r}: q_net"
    stored.check_q_net(name, learner["q_net"], view.space, int(action_space.n), config)
    if saved:
        stored.check_memory(config, view.space)
        check_frame_stack(config.frame_stack, view.space)


def _see(
    policy: GroupPolicy, agent: Any, observation: Any, action_mask: Any
) -> tuple[Arrays, Masks]:
    """What the network sees, and a mask: one that allows nothing says nothing."""
    seen, mask = policy.see(agent, observation, action_mask)
    if mask is None or not mask.any():
        mask = np.ones(policy.num_actions, np.bool_)
    return seen, mask


def _configs_to_state(configs: DQNConfig | Mapping[str, DQNConfig]) -> dict[str, Any]:
    if isinstance(configs, DQNConfig):
        return {"all": configs.to_dict()}
    return {"groups": {group: config.to_dict() for group, config in configs.items()}}


def _configs_from_state(state: Mapping[str, Any]) -> DQNConfig | dict[str, DQNConfig]:
    if "all" in state:
        return DQNConfig.from_dict(state["all"])
    return {group: DQNConfig.from_dict(config) for group, config in state["groups"].items()}


def _with_progress(steps: Iterator[MultiAgentStep], total: int) -> Iterator[MultiAgentStep]:
    from rich.progress import BarColumn, Progress, TimeRemainingColumn  # only for who wants it

    columns = ("{task.completed}/{task.total} turns", BarColumn(), TimeRemainingColumn())
    with Progress(*columns, "{task.description}") as progress:
        bar = progress.add_task("", total=total)
        episodes = 0
        for step in steps:
            episodes += step.episode_length > 0
            progress.update(bar, advance=len(step.actions), description=f"{episodes} episodes")
            yield step
