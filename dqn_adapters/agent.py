"""The host-free agent: DQN over a Gymnasium environment."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import ArrayLike, NDArray

from dqn_adapters import checkpoint, stored
from dqn_adapters import spaces as spaces_of
from dqn_adapters.compute import Execution, as_stack
from dqn_adapters.config import DQNConfig, checked_int, rejected
from dqn_adapters.environments import Masks, as_masks, check_action_space, make_stepper
from dqn_adapters.exploration import (
    LinearSchedule,
    beta_schedule,
    check_action_masks,
    current_epsilon,
    epsilon_greedy,
    epsilon_schedule,
)
from dqn_adapters.learner import DQNLearner, UpdateMetrics
from dqn_adapters.networks import Network, check_network_was_given, make_q_net
from dqn_adapters.replay import ReplayBuffer
from dqn_adapters.replay.storage import check_frame_stack
from dqn_adapters.transition import Arrays, EnvStep, map_arrays


class TrainingStep(NamedTuple):
    """What happened in one step of training; callbacks receive it."""

    agent: DQNAgent
    num_timesteps: int
    """Environment steps so far, all environments together."""

    epsilon: float
    """Probability of a random action with which the step acted."""

    episode_returns: tuple[float, ...]
    """Undiscounted returns of the episodes that ended at this step."""

    episode_lengths: tuple[int, ...]
    """Their lengths in environment steps."""

    metrics: UpdateMetrics | None
    """Of the last gradient update of this step; None if there was none."""


Callback = Callable[[TrainingStep], bool | None]


class DQNAgent:
    """DQN over a Gymnasium environment, without any other library.

    Args:
        env: An environment, a vector environment (in any autoreset mode), or an id. Observations
            are a Box, Discrete, MultiBinary, MultiDiscrete, or a Dict of these; actions are
            Discrete. A mask of legal actions is taken from `"action_mask"` in the observation or
            in `info`, or from the environment's method `action_masks()`.
        config: Hyper-parameters; None is `DQNConfig()`.
        network: A function that makes the network, from the space of observations (without an
            `"action_mask"`), the number of actions A and the configuration: a module that maps
            observations `(B, ...)`, in the dtype of the space, to action values `(B, A)`.
            None: a `QNetwork`.
        seed: Decides everything that is random: network, environment, actions, replay.
            None draws fresh entropy.
        device: `"auto"` is CUDA where there is one, else the CPU.
        execution: How the learner computes; see `DQNLearner`. It is not saved.
        check_observations: Refuse observations that are NaN or infinite. False is for a network
            that can handle them. It is not saved.

    Raises:
        ValueError: a space is not supported, the network does not fit it, the device is unknown, or
            `execution` is, or it insists on the kernel and the network is not one for it.
        TypeError: `env`, `config` or `network` is of another type.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | str,
        config: DQNConfig | None = None,
        *,
        network: Network | None = None,
        seed: int | None = None,
        device: torch.device | str = "auto",
        execution: Execution = "auto",
        check_observations: bool = True,
    ) -> None:
        config = DQNConfig() if config is None else config
        if not isinstance(config, DQNConfig):
            raise TypeError(f"config={config!r} is not accepted; it must be a DQNConfig")
        self.config = config
        self.device = resolve_device(device)
        self._stepper = make_stepper(env, check_observations=check_observations)
        self.observation_space = self._stepper.view.space
        """What the network sees: the environment's space, without an `"action_mask"` in it."""
        self.action_space = self._stepper.action_space
        env_seed, net_seed, act_seed, replay_seed = np.random.SeedSequence(
            checked_int("seed", seed, low=0, none=True)
        ).spawn(4)
        self._env_generator = np.random.default_rng(env_seed)
        self._generator = np.random.default_rng(act_seed)
        q_net = make_q_net(
            network, self.observation_space, int(self.action_space.n), config, net_seed
        )
        self._own_network = network is not None
        self.learner = self._make_learner(q_net, execution)
        self.replay = ReplayBuffer.from_config(
            config,
            self.observation_space,
            num_envs=self._stepper.num_envs,
            generator=np.random.default_rng(replay_seed),
            device=self.device,
        )
        self.num_timesteps = 0
        """Environment steps taken, all environments together."""
        self._schedule: LinearSchedule | None = None  # of epsilon; the first `learn` fixes it
        self._beta = beta_schedule(config, 1)  # of the importance weights, likewise
        self._episode_returns = [0.0] * self._stepper.num_envs
        self._episode_lengths = [0] * self._stepper.num_envs
        self._started = False  # whether the next step continues what is stored

    def __repr__(self) -> str:
        return (
            f"DQNAgent(observation_space={self.observation_space}, "
            f"action_space={self.action_space}, num_timesteps={self.num_timesteps}, "
            f"learner={self.learner})"
        )

    def _make_learner(self, q_net: torch.nn.Module, execution: Execution) -> DQNLearner:
        return DQNLearner(
            q_net.to(self.device),
            self.config,
            execution=execution,
            as_stack=partial(as_stack, space=self.observation_space),
        )

    @property
    def q_net(self) -> torch.nn.Module:
        """The online network: observations `(B, ...)` to action values `(B, A)`."""
        return self.learner.q_net

    @property
    def num_updates(self) -> int:
        """Gradient updates made."""
        return self.learner.num_updates

    @property
    def epsilon(self) -> float:
        """Probability of a random action in the next training step."""
        return current_epsilon(self.config, self._schedule, self.num_timesteps)

    def learn(
        self,
        total_timesteps: int,
        callback: Callback | None = None,
        progress_bar: bool = False,
    ) -> DQNAgent:
        """Train for `total_timesteps` more environment steps (of all environments together).

        The first call fixes the length of the epsilon schedule; later ones go on where the last
        one stopped, in the same episode. After an error or an interruption within a step they
        begin a new episode: the buffer never links what came before to what comes after.

        Args:
            total_timesteps: At least so many steps; a vector environment takes whole steps.
            callback: Called after every step, with its transition already stored and learned
                from; returning False ends the training, and nothing is lost.
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

    def train(self, total_timesteps: int) -> Iterator[TrainingStep]:
        """The training loop as a generator: one `TrainingStep` per step of the environments.

        Whoever iterates may log, evaluate, or stop; see `learn`.

        Raises:
            ValueError: `total_timesteps` is not an integer >= 1; or, in the loop, a reward, an
                observation or a mask does not have the shape that it must.
            NonFiniteError: a reward, an observation or the loss is NaN or infinite.
        """
        checked_int("total_timesteps", total_timesteps, low=1)
        return self._train(total_timesteps)

    def _train(self, total_timesteps: int) -> Iterator[TrainingStep]:
        config, stepper = self.config, self._stepper
        if self._schedule is None:
            self._schedule = epsilon_schedule(config, total_timesteps)
            self._beta = beta_schedule(config, total_timesteps)
        if not self._started:
            stepper.reset(int(self._env_generator.integers(2**31)))
            self.replay.cut()  # a loaded buffer may end within an episode, and so may this one
            self._episode_returns = [0.0] * stepper.num_envs
            self._episode_lengths = [0] * stepper.num_envs
            self._started = True
        end = self.num_timesteps + total_timesteps
        while self.num_timesteps < end:
            epsilon = self.epsilon
            self._started = False  # until the step is taken up whole
            if stepper.only_resets:  # nothing is drawn: a loaded agent has reset already
                actions = np.zeros(stepper.num_envs, np.int64)
            else:
                actions = self._act(stepper.observations, epsilon, stepper.action_masks)
            step = stepper.step(actions, self.num_timesteps + 1)
            self.replay.add(step)
            before = self.num_timesteps
            experienced, returns, lengths = self._count(step)
            self.num_timesteps += experienced
            self.learner.count(steps=experienced, episodes=len(returns))
            self._started = True
            metrics = None
            phases = self.num_timesteps // config.train_freq - before // config.train_freq
            if self.num_timesteps > config.learning_starts:
                if self.replay.prioritized:
                    self.replay.beta = self._beta(self.num_timesteps)
                if phases:
                    updates = phases * config.gradient_steps
                    metrics = self.learner.train(self.replay, updates, config.batch_size)[-1]
            yield TrainingStep(self, self.num_timesteps, epsilon, returns, lengths, metrics)

    def _count(self, step: EnvStep) -> tuple[int, tuple[float, ...], tuple[int, ...]]:
        """Environment steps in a step, and the returns and lengths of the episodes it ended.

        In lists: for a few environments they are quicker than numpy.
        """
        experienced, ended = 0, []
        fields = step.rewards, step.terminated, step.truncated, step.valid
        rows = zip(*(values.tolist() for values in fields), strict=True)
        for i, (reward, terminated, truncated, valid) in enumerate(rows):
            if not valid:
                continue
            experienced += 1
            self._episode_returns[i] += reward
            self._episode_lengths[i] += 1
            if terminated or truncated:
                ended.append((self._episode_returns[i], self._episode_lengths[i]))
                self._episode_returns[i], self._episode_lengths[i] = 0.0, 0
        returns, lengths = zip(*ended, strict=True) if ended else ((), ())
        return experienced, returns, lengths

    def predict(
        self,
        observation: Any,
        deterministic: bool = True,
        *,
        action_masks: ArrayLike | None = None,
    ) -> int | NDArray[np.int64]:
        """Choose an action.

        Args:
            observation: One observation of the environment, or a batch `(N, ...)` of them; of a
                Dict space a dictionary of these. Its `"action_mask"`, if it has one, is heeded.
            deterministic: True is greedy; False explores with the current `epsilon`.
            action_masks: Which actions are legal, `(A,)` or `(N, A)`, True or 1 is legal.

        Returns:
            An action of the environment's action space for one observation, or an array `(N,)`.

        Raises:
            ValueError: the observation does not have the shape of the observation space, or a
                mask has not that of the actions or allows none.
        """
        view = self._stepper.view
        seen, mask = view.split(observation)
        batch, batched = self._as_batch(view.arrays(seen))
        masks = None
        if action_masks is not None or mask is not None:
            count = len(next(iter(batch.values())) if isinstance(batch, dict) else batch)
            rows = np.asarray(mask if action_masks is None else action_masks)
            masks = as_masks(rows if batched else rows[None], (count, int(self.action_space.n)))
            check_action_masks(masks, *masks.shape)
        if deterministic:
            actions = self._greedy(batch, masks)
        else:
            actions = self._act(batch, self.epsilon, masks)
        actions = actions + self.action_space.start
        return actions if batched else int(actions[0])

    def _as_batch(self, arrays: Arrays) -> tuple[Arrays, bool]:
        """The observations with a first axis for the batch, and whether they had it."""
        space = self.observation_space
        leaves = arrays.items() if isinstance(arrays, dict) else [("observation", arrays)]
        batched = set()
        for name, array in leaves:
            shape = (space[name] if isinstance(space, spaces.Dict) else space).shape
            assert shape is not None
            batched.add(array.shape[1:] == shape and array.ndim > len(shape))
            if (not any(batched) and array.shape != shape) or len(batched) > 1:
                raise ValueError(
                    f"{name} must have shape {shape}, or (N, ...) for N of them, got {array.shape}"
                )
        if True in batched:
            return arrays, True
        return map_arrays(lambda array: array[None], arrays), False

    def _greedy(self, observations: Arrays, action_masks: Masks | None) -> NDArray[np.int64]:
        return self.learner.greedy_actions(observations, action_masks)

    def _act(
        self, observations: Arrays, epsilon: float, action_masks: Masks | None
    ) -> NDArray[np.int64]:
        rows = next(iter(observations.values())) if isinstance(observations, dict) else observations
        return epsilon_greedy(
            lambda: self._greedy(observations, action_masks),
            epsilon,
            num_envs=len(rows),
            num_actions=int(self.action_space.n),
            generator=self._generator,
            action_masks=action_masks,
        )

    def save(self, path: str | Path, *, replay: bool = False) -> Path:
        """Save the agent to one file, atomically and without pickle.

        Saved are configuration, networks, optimiser, counters, the epsilon schedule and every
        random stream of the agent; with `replay=True` the replay buffer too, which exact
        continuation needs. The environment is not saved: a loaded agent begins a new episode.

        Returns:
            The path.

        Raises:
            ValueError: a file cannot hold the observation space.
            OSError: the file cannot be written.
        """
        state = {
            "config": self.config.to_dict(),
            "observation_space": spaces_of.to_state(self.observation_space),
            "action_space": spaces_of.to_state(self.action_space),
            "own_network": self._own_network,
            "learner": self.learner.state_dict(),
            "num_timesteps": self.num_timesteps,
            "schedules": None
            if self._schedule is None
            else [self._schedule.steps, self._beta.steps],
            "generator": self._generator.bit_generator.state,
            "env_generator": self._env_generator.bit_generator.state,
            "replay": self.replay.state_dict() if replay else None,
        }
        return checkpoint.save(path, "agent", state)

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | str,
        *,
        config: DQNConfig | None = None,
        replay: bool = True,
        network: Network | None = None,
        device: torch.device | str = "auto",
        execution: Execution = "auto",
        check_observations: bool = True,
    ) -> DQNAgent:
        """Open what `save` wrote, over an environment with the same spaces, with the function that
        made its network if there was one.

        The number of environments may be another one; keys of a Dict may be in another order, they
        are told apart by their names.

        Args:
            path: The file.
            env: As in the constructor. Its spaces must mean the same as the saved ones.
            config: Other hyper-parameters to go on with. The network's layers must be the saved
                ones, and with `replay` the kind and the size of the replay buffer. A schedule whose
                length is not in the config keeps the length of the training it was fixed for.
            replay: Take over the stored transitions, if the file has any.
            network: The function that made the network, if there was one.
            device: As in the constructor.
            execution: Likewise.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is not an agent of ours, is damaged, is newer, or its content
                does not fit.
            ValueError: the environment's spaces are not the saved ones, or `network` is missing, or
                is too much.
        """
        state = checkpoint.load(path, "agent")
        saved_spaces: dict[str, spaces.Space[Any]] = {}
        with checkpoint.reading(path):
            stored.check_mapping("", state, _STATE)
            made_by_user = stored.check_bool("own_network", state.get("own_network", False))
            saved_config = DQNConfig.from_dict(stored.check_mapping("config", state["config"]))
            if "observation_space" in state:  # files of earlier versions have none
                for name in ("observation_space", "action_space"):
                    saved_spaces[name] = spaces_of.from_state(state[name])
            check_network_was_given(made_by_user, network)
            learner = stored.check_mapping("learner", state["learner"], ("q_net", "optimizer"))
            if saved_spaces and network is None:
                stored.check_q_net(
                    "q_net",
                    learner["q_net"],
                    saved_spaces["observation_space"],
                    int(check_action_space(saved_spaces["action_space"]).n),
                    config or saved_config,
                )
            if saved_spaces and config is None:
                stored.check_memory(saved_config, saved_spaces["observation_space"])
                check_frame_stack(saved_config.frame_stack, saved_spaces["observation_space"])
        agent = cls(
            env,
            config or saved_config,
            network=network,
            device=device,
            execution=execution,
            check_observations=check_observations,
        )
        if saved_spaces:
            agent._adopt(saved_spaces, network, execution, path)
        with checkpoint.reading(path):
            agent._load(state, saved_config, replay=replay, changed=config is not None)
        return agent

    def _adopt(
        self,
        saved: dict[str, spaces.Space[Any]],
        network: Network | None,
        execution: Execution,
        path: str | Path,
    ) -> None:
        """Compare the spaces, and have a network that reads the keys in the saved order."""
        given = {"observation_space": self.observation_space, "action_space": self.action_space}
        try:
            ordered = [
                spaces_of.in_saved_order(saved[name], space, name) for name, space in given.items()
            ]
        except ValueError as error:
            raise ValueError(f"{path} does not fit the environment: {error}") from error
        if ordered[0] is self.observation_space:
            return
        self.observation_space = self._stepper.view.space = ordered[0]
        seeds = np.random.SeedSequence(0)  # of weights that are loaded over
        q_net = make_q_net(network, ordered[0], int(self.action_space.n), self.config, seeds)
        self.learner = self._make_learner(q_net, execution)

    def _load(
        self, state: dict[str, Any], saved: DQNConfig, *, replay: bool, changed: bool
    ) -> None:
        learner_state = state["learner"]
        if changed:
            learner_state = learner_state_for(self.learner, learner_state)
        self.learner.load_state_dict(learner_state)
        self.num_timesteps = stored.check_count("num_timesteps", state["num_timesteps"])
        if state["schedules"] is not None:
            self._schedule, self._beta = _schedules(state["schedules"], saved, self.config)
        streams = {"generator": self._generator, "env_generator": self._env_generator}
        for name, generator in streams.items():
            value = stored.check_generator(name, state[name], generator)
            generator.bit_generator.state = value
        if state["replay"] is not None and replay:
            try:
                self.replay.load_state_dict(state["replay"], int(self.action_space.n))
            except ValueError as error:
                raise ValueError(f"{error} (replay=False opens it without the buffer)") from error


def resolve_device(device: torch.device | str) -> torch.device:
    """`"auto"` is CUDA where there is one, else the CPU; an unknown name raises `ValueError`."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not accepted: {error}") from error


def _schedules(
    steps: Any, saved: DQNConfig, config: DQNConfig
) -> tuple[LinearSchedule, LinearSchedule]:
    """The schedules of epsilon and beta, whose saved lengths were fixed under another config."""
    if not isinstance(steps, list | tuple) or len(steps) != 2:
        raise rejected("schedules", steps, "two lengths")
    epsilon, beta = (stored.check_count("schedules", length) for length in steps)
    if saved.exploration_steps is None and saved.exploration_fraction > 0:
        epsilon = round(epsilon * config.exploration_fraction / saved.exploration_fraction)
    schedules = epsilon_schedule(config, 1), beta_schedule(config, 1)
    if config.exploration_steps is None or config.exploration_steps == saved.exploration_steps:
        schedules = dataclasses.replace(schedules[0], steps=epsilon), schedules[1]
    if config.priority_beta_steps is None or (
        config.priority_beta_steps == saved.priority_beta_steps
    ):
        schedules = schedules[0], dataclasses.replace(schedules[1], steps=beta)
    return schedules


def learner_state_for(learner: DQNLearner, state: dict[str, Any]) -> dict[str, Any]:
    """A saved learner's state for a learner of another configuration: with or without a target
    network as its variant has one, and with the optimizer's own learning rate and other options."""
    taken = {key: value for key, value in state.items() if key != "target_net"}
    if learner.target_net is not learner.q_net:
        taken["target_net"] = state.get("target_net", state["q_net"])
    own = learner.optimizer.state_dict()["param_groups"]
    taken["optimizer"] = {**state["optimizer"], "param_groups": own}
    return taken


_STATE = (
    *("config", "learner", "num_timesteps", "schedules", "generator", "env_generator", "replay"),
)
"""What every saved agent has."""


def _with_progress(steps: Iterator[TrainingStep], total: int) -> Iterator[TrainingStep]:
    from rich.progress import BarColumn, Progress, TimeRemainingColumn  # only for who wants it

    columns = ("{task.completed}/{task.total} steps", BarColumn(), TimeRemainingColumn())
    with Progress(*columns, "{task.description}") as progress:
        bar = progress.add_task("", total=total)
        recent: deque[float] = deque(maxlen=100)
        start = None
        for step in steps:
            recent.extend(step.episode_returns)
            mean = f"mean return {np.mean(recent):.1f}" if recent else ""
            start = step.num_timesteps - 1 if start is None else start
            progress.update(bar, completed=step.num_timesteps - start, description=mean)
            yield step
