"""What a system trains in and reports to: the training environment, evaluation and the clock.

It is the same for every system, so that counting, evaluating and timing cannot differ.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dqn_adapters.benchmark.checkpoints import Checkpoints
from dqn_adapters.benchmark.spec import EnvironmentSpec, RunSpec
from dqn_adapters.evaluation import discounted_returns, settled

CUT = 0.05
"""In episodes that a time limit cuts, states are kept if what comes after the cut is discounted to
at most this."""

Values = Callable[[NDArray[Any]], NDArray[Any]]
"""Maps a batch of observations `(N, ...)` to the greedy actions' values `(N,)`."""

Greedy = Callable[[NDArray[Any]], NDArray[Any]]
"""Maps a batch of observations `(N, ...)` to the greedy actions `(N,)`; draws no random number."""


@dataclass(frozen=True)
class Episode:
    """A finished training episode."""

    timestep: int
    """Environment step at which it ended."""

    episode_return: float
    length: int


@dataclass(frozen=True)
class ValueCheck:
    """Estimated values held against what was earned, as van Hasselt et al. (2015) do: means over
    all states that the evaluation episodes visit.

    In an episode that the time limit cuts, the return of a state near its end is not known. Such
    states are left out; see `CUT`.
    """

    states: int
    """How many were kept."""

    estimate: float
    """Mean of max_a Q(s, a); infinity if an estimate is no finite number."""

    realised: float
    """Mean of the discounted return that the greedy policy earned from s."""

    positive: float
    """Share of the states with an estimate above the return."""

    largest: float
    """Largest absolute estimate; infinity likewise."""

    possible: float
    """Largest absolute value that is possible: the largest absolute reward that the run has seen by
    then, in training and evaluation and without noise, / (1 - gamma)."""

    @property
    def bias(self) -> float:
        """Mean of estimate - return; positive is overestimation."""
        return self.estimate - self.realised

    @property
    def diverged(self) -> bool:
        """Whether an estimate is beyond what is possible (van Hasselt et al. 2018)."""
        return self.largest > self.possible

    @property
    def finite(self) -> bool:
        """Whether all estimates are finite; else there is no bias to speak of."""
        return math.isfinite(self.estimate) and math.isfinite(self.largest)


@dataclass(frozen=True)
class Evaluation:
    """The greedy policy after `timestep` environment steps."""

    timestep: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    values: ValueCheck | None = None
    """None: not asked for, or no state could be kept."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible: what is not finite is null."""
        row = asdict(self)
        if self.values is None:
            del row["values"]
        else:
            checks = row["values"]
            row["values"] = {
                name: value if math.isfinite(value) else None for name, value in checks.items()
            }
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_dict`, and of its JSON."""
        values = row.get("values")
        if values is not None:
            checks: dict[str, Any] = {
                name: math.inf if each is None else each for name, each in values.items()
            }
        return cls(
            row["timestep"],
            tuple(row["returns"]),
            tuple(row["lengths"]),
            None if values is None else ValueCheck(**checks),
        )


class ValueWatch:
    """Collects what a `ValueCheck` is made of while episodes run.

    Args:
        values: Maps observations `(N, ...)` to max_a Q(s, a), `(N,)`.
        gamma: Discount factor per step.
        episodes: How many run together.
    """

    def __init__(self, values: Values, gamma: float, episodes: int) -> None:
        self._values, self._gamma = values, gamma
        self._estimates: list[list[float]] = [[] for _ in range(episodes)]
        self._rewards: list[list[float]] = [[] for _ in range(episodes)]
        self._kept: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def act(self, running: Sequence[int], observations: NDArray[Any]) -> None:
        """The episodes `running` act on these observations."""
        for index, value in zip(running, np.asarray(self._values(observations)), strict=True):
            self._estimates[index].append(float(value))

    def earn(self, index: int, reward: float, terminated: bool, truncated: bool) -> None:
        """Episode `index` got a reward, and perhaps ended."""
        self._rewards[index].append(reward)
        if terminated or truncated:
            estimates, rewards = np.array(self._estimates[index]), np.array(self._rewards[index])
            kept = len(rewards) if terminated else settled(len(rewards), self._gamma, CUT)
            returns = discounted_returns(rewards, self._gamma)
            self._kept.append((estimates[:kept], returns[:kept]))

    @property
    def largest_reward(self) -> float:
        """Largest absolute reward."""
        return max(abs(value) for rewards in self._rewards for value in rewards)

    def check(self, largest_reward: float = 0.0) -> ValueCheck | None:
        """The result; None if no state could be kept.

        Args:
            largest_reward: Largest absolute reward that the run saw elsewhere.
        """
        estimates, returns = (np.concatenate(each) for each in zip(*self._kept, strict=True))
        if not len(estimates):
            return None
        reward = max(largest_reward, self.largest_reward)
        finite = bool(np.isfinite(estimates).all())
        return ValueCheck(
            states=len(estimates),
            estimate=float(estimates.mean()) if finite else math.inf,
            realised=float(returns.mean()),
            positive=float((estimates > returns).mean()),
            largest=float(np.abs(estimates).max()) if finite else math.inf,
            possible=reward / (1 - self._gamma) if self._gamma < 1 else sys.float_info.max,
        )


def make_environment(spec: EnvironmentSpec) -> gym.Env[Any, Any]:
    """The environment of a run. The checker is off: it is for authors, and slow."""
    return gym.make(
        spec.id,
        max_episode_steps=spec.max_episode_steps,
        disable_env_checker=True,
        **spec.kwargs,
    )


def _stack(observations: Sequence[Any]) -> Any:
    """A batch of observations, which may be a Dict's."""
    if isinstance(observations[0], dict):
        return {key: np.stack([each[key] for each in observations]) for key in observations[0]}
    return np.stack(observations)


def evaluate(
    greedy: Greedy,
    environments: Sequence[gym.Env[Any, Any]],
    seeds: Sequence[int],
    watch: ValueWatch | None = None,
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """One greedy episode in each environment, all advanced together.

    Args:
        greedy: The policy; called once per step with the observations of the episodes that go on.
        environments: One per episode, with a time limit.
        seeds: Their reset seeds.
        watch: Is shown observations and rewards.

    Returns:
        The undiscounted returns and the lengths.
    """
    observations = [
        environment.reset(seed=seed)[0]
        for environment, seed in zip(environments, seeds, strict=True)
    ]
    returns, lengths = [0.0] * len(environments), [0] * len(environments)
    running = list(range(len(environments)))
    while running:
        batch = _stack([observations[index] for index in running])
        actions = greedy(batch)
        if watch is not None:
            watch.act(running, batch)
        ended = []
        for index, action in zip(running, actions.tolist(), strict=True):
            observation, reward, terminated, truncated, _ = environments[index].step(action)
            observations[index] = observation
            returns[index] += float(reward)
            lengths[index] += 1
            if watch is not None:
                watch.earn(index, float(reward), terminated, truncated)
            if terminated or truncated:
                ended.append(index)
        if ended:
            running = [index for index in running if index not in ended]
    return tuple(returns), tuple(lengths)


class Recorder:
    """Watches one run.

    A system asks for the training `environment()`, calls `start(greedy)` when its agent is ready,
    and `observe()` whenever the agent is between two training phases, at the latest when training
    is over. Evaluation happens inside these calls, in other environments, off the clock.

    A system that can be continued asks for `resume()` first of all, and calls `checkpoint(save)`
    after `observe()`.

    Args:
        run: What is trained.
        progress: Called with the environment steps done, now and then.
        checkpoints: Where a long run can be continued from; None: it begins anew.
    """

    def __init__(
        self,
        run: RunSpec,
        progress: Callable[[int], None] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.run = run
        self.timestep = 0
        self.episodes: list[Episode] = []
        self.evaluations: list[Evaluation] = []
        self.evaluation_seconds: list[float] = []
        """Training seconds before each evaluation."""
        self.cpu_seconds = 0.0
        """Processor time of the training."""
        self.notes: dict[str, Any] = {}
        """Stored with the result: what a system has to say beside the scores, as JSON."""
        self.attachments: dict[str, bytes] = {}
        """Files that are stored beside the result, by name."""

        self._checkpoints = checkpoints
        self._saved_at = 0
        self._begun = 0  # training episodes before the current one
        self._progress = progress
        self._next_progress = 0.0
        self._training: _TrainingEnv | None = None
        self._evaluation: list[gym.Env[Any, Any]] = []
        self._greedy: Greedy | None = None
        self._values: Values | None = None
        self._watch: ValueWatch | None = None
        self._largest_reward = 0.0
        self._seconds = 0.0
        self._since: float | None = None
        self._cpu_since = 0.0

    def environment(self) -> gym.Env[Any, Any]:
        """The training environment: it counts steps and episodes, and its resets take the run's
        seeds, whatever seed the library passes."""
        if self._training is None:
            self._training = _TrainingEnv(make_environment(self.run.environment), self)
        return self._training

    def resume(self) -> Path | None:
        """The file from which the agent goes on, as `checkpoint` had it written; None: it begins.

        The counters and records go on too. An agent that goes on begins a new episode.

        Raises:
            DamagedCheckpointError: there is a checkpoint, and it cannot be read.
        """
        found = self._checkpoints.load() if self._checkpoints is not None else None
        if found is None or self._checkpoints is None:
            return None
        path, progress = found
        try:
            self._restore(progress)
        except (KeyError, TypeError, ValueError) as error:
            raise self._checkpoints.damaged(error) from error
        print(f"continues at environment step {self.timestep}")
        return path

    def checkpoint(self, save: Callable[[Path], object]) -> None:
        """Save if it is time to, and the training environment is at the start of an episode.

        Args:
            save: Writes all that the agent needs to go on exactly, replay and random streams
                included, to the file that it is given.
        """
        kept = self._checkpoints
        if kept is None or self._training is None or not self._training.fresh:
            return
        due = self._saved_at + kept.every <= self.timestep
        if not due or self.timestep >= self.run.total_timesteps:
            return
        self._stop_clock()
        kept.save(
            self.timestep,
            {
                "timestep": self.timestep,
                "begun": self._begun,
                "episodes": [asdict(each) for each in self.episodes],
                "evaluations": [each.to_dict() for each in self.evaluations],
                "largest_reward": self._largest_reward,
                "evaluation_seconds": self.evaluation_seconds,
                "seconds": self._seconds,
                "cpu_seconds": self.cpu_seconds,
            },
            save,
        )
        self._saved_at = self.timestep
        self._start_clock()

    def start(self, greedy: Greedy, values: Values | None = None) -> None:
        """Evaluate the untrained agent, then start the clock.

        Args:
            greedy: Its greedy policy.
            values: What it estimates the greedy actions to be worth, for runs that ask.

        Raises:
            RuntimeError: it was started before, or the run asks for values and there are none.
        """
        if self._greedy is not None:
            raise RuntimeError("start() is called once per run")
        if self.run.evaluation.values and values is None:
            raise RuntimeError(f"system {self.run.system!r} does not tell start() its values")
        self._values = values if self.run.evaluation.values else None
        episodes = self.run.evaluation.episodes
        self._evaluation = [make_environment(self.run.environment) for _ in range(episodes)]
        self._greedy = greedy
        self._begin()

    def _begin(self) -> None:
        self._start_clock()
        self.observe()

    def observe(self) -> None:
        """Evaluate if an evaluation is due."""
        points = self.run.evaluation.timesteps
        point = len(self.evaluations)
        if point == len(points) or self.timestep < points[point]:
            return
        if self._since is None:
            raise RuntimeError("observe() is called after start()")
        if self.timestep != points[point]:
            raise RuntimeError(
                f"system {self.run.system!r} called observe() at environment step {self.timestep} "
                f"and not at {points[point]}, where an evaluation was due: it must be called every "
                "train_freq steps"
            )
        self._stop_clock()
        self.evaluation_seconds.append(self._seconds)
        returns, lengths = self._evaluate(self.run.evaluation_seeds(point))
        values = None
        if self._watch is not None:
            self._largest_reward = max(self._largest_reward, self._watch.largest_reward)
            values = self._watch.check(self._largest_reward)
        self.evaluations.append(Evaluation(self.timestep, returns, lengths, values))
        self._start_clock()

    def _evaluate(self, seeds: Sequence[int]) -> tuple[tuple[float, ...], tuple[int, ...]]:
        assert self._greedy is not None
        if self._values is not None:
            self._watch = ValueWatch(self._values, self.run.config.gamma, len(seeds))
        return evaluate(self._greedy, self._evaluation, seeds, self._watch)

    def finish(self) -> float:
        """Close the environments.

        Returns:
            Training seconds, without evaluation.

        Raises:
            RuntimeError: the system trained for fewer steps than it should, or for more.
        """
        if self._since is None:
            raise RuntimeError(f"system {self.run.system!r} never called start()")
        self.observe()
        self._stop_clock()
        self.close()
        if self.timestep != self.run.total_timesteps:
            raise RuntimeError(
                f"system {self.run.system!r} trained for {self.timestep} environment steps instead "
                f"of {self.run.total_timesteps}"
            )
        return self._seconds

    def close(self) -> None:
        """Close the environments; harmless if done before."""
        for environment in (*self._evaluation, self._training):
            if environment is not None:
                environment.close()
        self._evaluation, self._training = [], None

    def _restore(self, progress: Mapping[str, Any]) -> None:
        self.episodes = [Episode(**row) for row in progress["episodes"]]
        self.evaluations = [Evaluation.from_dict(row) for row in progress["evaluations"]]
        self.evaluation_seconds = list(progress["evaluation_seconds"])
        self._seconds, self.cpu_seconds = progress["seconds"], progress["cpu_seconds"]
        self._begun = progress["begun"]
        self._largest_reward = progress.get("largest_reward", 0.0)
        self.timestep = self._saved_at = progress["timestep"]

    def _start_clock(self) -> None:
        self._since, self._cpu_since = time.perf_counter(), time.process_time()

    def _stop_clock(self) -> None:
        assert self._since is not None
        self._seconds += time.perf_counter() - self._since
        self.cpu_seconds += time.process_time() - self._cpu_since

    def _count(self, steps: int, reward: float = 0.0) -> None:
        self.timestep += steps
        self._largest_reward = max(self._largest_reward, abs(reward))
        if self._progress is not None and self.timestep % 64 == 0:
            now = time.perf_counter()
            if now >= self._next_progress:
                self._next_progress = now + 0.25
                self._progress(self.timestep)


class _TrainingEnv(gym.Wrapper[Any, Any, Any, Any]):
    def __init__(self, env: gym.Env[Any, Any], recorder: Recorder) -> None:
        super().__init__(env)
        self._recorder = recorder
        self._return, self._length = 0.0, 0
        self._noise: np.random.Generator | None = None

    @property
    def fresh(self) -> bool:
        """Whether it was reset, and no step was taken since."""
        return self._length == 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        # Any other seed would make the library's choice of seeds part of the comparison.
        recorder = self._recorder
        if self._length:
            recorder._begun += 1
        self._return, self._length = 0.0, 0
        if recorder.run.environment.reward_noise:
            self._noise = recorder.run.noise_generator(recorder._begun)
        return self.env.reset(seed=recorder.run.episode_seed(recorder._begun), options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._return += float(reward)
        self._length += 1
        self._recorder._count(1, float(reward))
        if terminated or truncated:
            self._recorder.episodes.append(
                Episode(self._recorder.timestep, self._return, self._length)
            )
        if self._noise is not None:
            reward = float(reward) + self._noise.normal(
                scale=self._recorder.run.environment.reward_noise
            )
        return observation, reward, terminated, truncated, info
