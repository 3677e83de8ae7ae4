"""What a system trains in and reports to: the training environment, evaluation and the clock.

It is the same for every system, so that counting, evaluating and timing cannot differ.
"""

from __future__ import annotations

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
class Evaluation:
    """The greedy policy after `timestep` environment steps."""

    timestep: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]


def make_environment(spec: EnvironmentSpec) -> gym.Env[Any, Any]:
    """The environment of a run. The checker is off: it is for authors, and slow."""
    return gym.make(
        spec.id,
        max_episode_steps=spec.max_episode_steps,
        disable_env_checker=True,
        **spec.kwargs,
    )


def evaluate(
    greedy: Greedy, environments: Sequence[gym.Env[Any, Any]], seeds: Sequence[int]
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """One greedy episode in each environment, all advanced together.

    Args:
        greedy: The policy; called once per step with the observations of the episodes that go on.
        environments: One per episode, with a time limit.
        seeds: Their reset seeds.

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
        actions = greedy(np.stack([observations[index] for index in running]))
        ended = []
        for index, action in zip(running, actions.tolist(), strict=True):
            observation, reward, terminated, truncated, _ = environments[index].step(action)
            observations[index] = observation
            returns[index] += float(reward)
            lengths[index] += 1
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
                "evaluations": [asdict(each) for each in self.evaluations],
                "evaluation_seconds": self.evaluation_seconds,
                "seconds": self._seconds,
                "cpu_seconds": self.cpu_seconds,
            },
            save,
        )
        self._saved_at = self.timestep
        self._start_clock()

    def start(self, greedy: Greedy) -> None:
        """Evaluate the untrained agent, then start the clock."""
        if self._greedy is not None:
            raise RuntimeError("start() is called once per run")
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
        if point + 1 < len(points) and self.timestep >= points[point + 1]:
            raise RuntimeError(
                f"system {self.run.system!r} did not call observe() between environment steps "
                f"{points[point]} and {points[point + 1]}"
            )
        self._stop_clock()
        self.evaluation_seconds.append(self._seconds)
        returns, lengths = self._evaluate(self.run.evaluation_seeds(point))
        self.evaluations.append(Evaluation(self.timestep, returns, lengths))
        self._start_clock()

    def _evaluate(self, seeds: Sequence[int]) -> tuple[tuple[float, ...], tuple[int, ...]]:
        assert self._greedy is not None
        return evaluate(self._greedy, self._evaluation, seeds)

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
        self.evaluations = [
            Evaluation(row["timestep"], tuple(row["returns"]), tuple(row["lengths"]))
            for row in progress["evaluations"]
        ]
        self.evaluation_seconds = list(progress["evaluation_seconds"])
        self._seconds, self.cpu_seconds = progress["seconds"], progress["cpu_seconds"]
        self._begun = progress["begun"]
        self.timestep = self._saved_at = progress["timestep"]

    def _start_clock(self) -> None:
        self._since, self._cpu_since = time.perf_counter(), time.process_time()

    def _stop_clock(self) -> None:
        assert self._since is not None
        self._seconds += time.perf_counter() - self._since
        self.cpu_seconds += time.process_time() - self._cpu_since

    def _count(self, steps: int) -> None:
        self.timestep += steps
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
        return self.env.reset(seed=recorder.run.episode_seed(recorder._begun), options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        _, reward, terminated, truncated, _ = result
        self._return += float(reward)
        self._length += 1
        self._recorder._count(1)
        if terminated or truncated:
            self._recorder.episodes.append(
                Episode(self._recorder.timestep, self._return, self._length)
            )
        return result
