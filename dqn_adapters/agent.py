"""The host-free agent: DQN over a Gymnasium environment."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import ArrayLike, NDArray

from dqn_adapters import checkpoint
from dqn_adapters.config import DQNConfig, checked_int
from dqn_adapters.environments import make_stepper
from dqn_adapters.exploration import LinearSchedule, epsilon_greedy, epsilon_schedule
from dqn_adapters.learner import DQNLearner, UpdateMetrics
from dqn_adapters.networks import MLP, seeded_initialization
from dqn_adapters.replay import UniformReplay
from dqn_adapters.targets import greedy_actions
from dqn_adapters.transition import to_tensor


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
            are a `Box`, flattened for the MLP, or a `Discrete`; actions are `Discrete`.
        config: Hyper-parameters; None is `DQNConfig()`.
        seed: Decides everything that is random: network, environment, actions, replay.
            None draws fresh entropy.
        device: `"auto"` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: a space is not supported, or the device is unknown.
        TypeError: `env` or `config` is of another type.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | str,
        config: DQNConfig | None = None,
        *,
        seed: int | None = None,
        device: torch.device | str = "auto",
    ) -> None:
        config = DQNConfig() if config is None else config
        if not isinstance(config, DQNConfig):
            raise TypeError(f"config={config!r} is not accepted; it must be a DQNConfig")
        self.config = config
        self.device = resolve_device(device)
        self._stepper = make_stepper(env)
        self.observation_space = self._stepper.observation_space
        self.action_space = self._stepper.action_space
        env_seed, net_seed, act_seed, replay_seed = np.random.SeedSequence(
            checked_int("seed", seed, low=0, none=True)
        ).spawn(4)
        self._env_generator = np.random.default_rng(env_seed)
        self._generator = np.random.default_rng(act_seed)
        with seeded_initialization(int(net_seed.generate_state(1)[0])):
            q_net = MLP(self.observation_space, int(self.action_space.n), config.hidden_sizes)
        self.learner = DQNLearner(q_net.to(self.device), config)
        self.replay = UniformReplay(
            config.buffer_size,
            self.observation_space,
            gamma=config.gamma,
            generator=np.random.default_rng(replay_seed),
            device=self.device,
        )
        self.num_timesteps = 0
        """Environment steps taken, all environments together."""
        self._schedule: LinearSchedule | None = None
        self._episode_returns = np.zeros(self._stepper.num_envs)
        self._episode_lengths = np.zeros(self._stepper.num_envs, np.int64)
        self._started = False

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
        if self._schedule is None or self.num_timesteps < self.config.learning_starts:
            return 1.0
        return self._schedule(self.num_timesteps)

    def learn(
        self,
        total_timesteps: int,
        callback: Callback | None = None,
        progress_bar: bool = False,
    ) -> DQNAgent:
        """Train for `total_timesteps` more environment steps (of all environments together).

        The first call fixes the length of the epsilon schedule; later ones go on where the last
        one stopped, in the same episode.

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
            ValueError: `total_timesteps` is not an integer >= 1.
        """
        checked_int("total_timesteps", total_timesteps, low=1)
        return self._train(total_timesteps)

    def _train(self, total_timesteps: int) -> Iterator[TrainingStep]:
        config, stepper = self.config, self._stepper
        if self._schedule is None:
            self._schedule = epsilon_schedule(config, total_timesteps)
        if not self._started:
            stepper.reset(int(self._env_generator.integers(2**31)))
            self._started = True
        end = self.num_timesteps + total_timesteps
        while self.num_timesteps < end:
            epsilon = self.epsilon
            step = stepper.step(self._act(stepper.observations, epsilon))
            self.replay.add(step)
            before = self.num_timesteps
            self.num_timesteps += int(step.valid.sum())

            done = (step.terminated | step.truncated) & step.valid
            self._episode_returns += np.where(step.valid, step.rewards, 0.0)
            self._episode_lengths += step.valid
            returns = tuple(self._episode_returns[done].tolist())
            lengths = tuple(self._episode_lengths[done].tolist())
            self._episode_returns[done] = 0.0
            self._episode_lengths[done] = 0

            self.learner.count(steps=self.num_timesteps - before, episodes=len(returns))
            metrics = None
            phases = self.num_timesteps // config.train_freq - before // config.train_freq
            if self.num_timesteps > config.learning_starts:
                for _ in range(phases * config.gradient_steps):
                    metrics = self.learner.update(self.replay.sample(config.batch_size))
            yield TrainingStep(self, self.num_timesteps, epsilon, returns, lengths, metrics)

    def predict(
        self, observation: ArrayLike, deterministic: bool = True
    ) -> int | NDArray[np.int64]:
        """Choose an action.

        Args:
            observation: One observation, or a batch `(N, ...)` of them.
            deterministic: True is greedy; False explores with the current `epsilon`.

        Returns:
            An action of the environment's action space for one observation, or an array `(N,)`.

        Raises:
            ValueError: the observation does not have the shape of the observation space.
        """
        space = self.observation_space
        observations = np.asarray(observation, space.dtype)
        batched = observations.shape[1:] == space.shape and observations.ndim > len(space.shape)
        if not batched and observations.shape != space.shape:
            raise ValueError(
                f"observation must have shape {space.shape}, or (N, ...) for N of them, "
                f"got {observations.shape}"
            )
        batch = observations if batched else observations[None]
        actions = self._greedy(batch) if deterministic else self._act(batch, self.epsilon)
        actions = actions + self.action_space.start
        return actions if batched else int(actions[0])

    def _greedy(self, observations: NDArray[Any]) -> NDArray[np.int64]:
        with torch.no_grad():
            q_values = self.q_net(to_tensor(observations, self.device))
        actions: NDArray[np.int64] = greedy_actions(q_values).cpu().numpy()
        return actions

    def _act(self, observations: NDArray[Any], epsilon: float) -> NDArray[np.int64]:
        return epsilon_greedy(
            lambda: self._greedy(observations),
            epsilon,
            num_envs=len(observations),
            num_actions=int(self.action_space.n),
            generator=self._generator,
        )

    def save(self, path: str | Path, *, replay: bool = False) -> Path:
        """Save the agent to one file, atomically and without pickle.

        Saved are configuration, networks, optimiser, counters, the epsilon schedule and every
        random stream of the agent; with `replay=True` the replay buffer too, which exact
        continuation needs. The environment is not saved: a loaded agent begins a new episode.

        Returns:
            The path.
        """
        state = {
            "config": self.config.to_dict(),
            "learner": self.learner.state_dict(),
            "num_timesteps": self.num_timesteps,
            "schedule": None if self._schedule is None else self._schedule.steps,
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
        device: torch.device | str = "auto",
    ) -> DQNAgent:
        """Open what `save` wrote, over an environment with the same spaces.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointError: the file is not an agent of ours, is damaged, or is newer.
            ValueError: the environment's spaces do not fit the saved networks.
        """
        state = checkpoint.load(path, "agent")
        agent = cls(env, DQNConfig.from_dict(state["config"]), device=device)
        try:
            agent.learner.load_state_dict(state["learner"])
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit the spaces of {env}: {error}") from error
        agent.num_timesteps = state["num_timesteps"]
        if state["schedule"] is not None:
            config = agent.config
            agent._schedule = LinearSchedule(
                config.exploration_initial_eps, config.exploration_final_eps, state["schedule"]
            )
        agent._generator.bit_generator.state = state["generator"]
        agent._env_generator.bit_generator.state = state["env_generator"]
        if state["replay"] is not None:
            agent.replay.load_state_dict(state["replay"])
        return agent


def resolve_device(device: torch.device | str) -> torch.device:
    """`"auto"` is CUDA where there is one, else the CPU; an unknown name raises `ValueError`."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is not accepted: {error}") from error


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
