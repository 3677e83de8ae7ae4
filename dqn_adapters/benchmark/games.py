"""Suites on PettingZoo: agents that learn together, and games that they play.

An environment of such a suite is named `"aec/<id>"` or `"parallel/<id>"`, with an id as
`pettingzoo.make` takes it. All agents share one network. Two entries of its `kwargs` are read here,
the others go to `pettingzoo.make`:

- `opponents`: for games of two players, the names of those (see `OPPONENTS`) whom the trained agent
  plays, its score being that against the first. Without it the score is the mean return over the
  agents, which act together.
- `opening_turns`: see `SelfPlay`.

The numbers of one run are stored in its `notes`: how it plays against its opponents in every seat.
The trained agents are stored beside them, and meet in `tournament`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pettingzoo
from gymnasium import spaces
from numpy.typing import NDArray
from pettingzoo import ParallelEnv

from dqn_adapters.benchmark.checkpoints import Checkpoints
from dqn_adapters.benchmark.levelling import Row, levelling_table
from dqn_adapters.benchmark.recorder import Episode, Recorder
from dqn_adapters.benchmark.spec import EnvironmentSpec, RunSpec
from dqn_adapters.benchmark.store import RunResult
from dqn_adapters.benchmark.suite import Suite, SuiteEnvironment
from dqn_adapters.config import checked_int
from dqn_adapters.pettingzoo import (
    MatchResult,
    MultiAgentDQN,
    MultiAgentStep,
    RandomPlayer,
    SelfPlay,
    match,
    play,
)
from dqn_adapters.pettingzoo.games import AnyEnv, possible_agents
from dqn_adapters.pettingzoo.matches import Player

AGENT_FILE = "agent.safetensors"
"""The trained agent, in the directory of its run."""

WIN = 100.0
"""Score of a game won; one lost is -WIN, one drawn 0."""

GAMES = 5
"""Games that a trained agent plays against an opponent in each seat, and against another trained
agent, in episodes of an evaluation."""

RANDOM_TURNS = 2
"""Turns with which a game between two trained agents begins, drawn uniformly: left alone they would
play the same game again and again."""

_OWN = "dqn_adapters/"


class PerfectPlayer:
    """Plays tic-tac-toe by minimax, and draws uniformly from the moves that are best.

    Args:
        env: PettingZoo's tic-tac-toe.
        seed: Decides the draws.
    """

    def __init__(self, env: AnyEnv, seed: int | None = None) -> None:
        self.env = env
        self.generator = np.random.default_rng(checked_int("seed", seed, low=0, none=True))

    def __call__(self, agent: Any, observation: Any, action_mask: Any = None) -> int:
        planes = np.asarray(observation["observation"]).reshape(9, 2).astype(np.int64)
        own, other = (int(plane @ _SQUARES) for plane in planes.T)
        moves = best_moves(own, other)
        return int(moves[self.generator.integers(len(moves))])


_SQUARES = 1 << np.arange(9)
_LINES = (0o7, 0o70, 0o700, 0o111, 0o222, 0o444, 0o421, 0o124)


def best_moves(own: int, other: int) -> list[int]:
    """The best moves in tic-tac-toe of the player whose turn it is.

    Args:
        own: Its squares, as a set of bits.
        other: Those of the opponent.
    """
    values = {square: -_value(other, own | 1 << square) for square in _free(own | other)}
    best = max(values.values())
    return [square for square, value in values.items() if value == best]


@cache
def _value(own: int, other: int) -> int:
    """1: the player whose turn it is wins; 0: it draws; -1: it loses."""
    if _won(other):
        return -1
    return max((-_value(other, own | 1 << square) for square in _free(own | other)), default=0)


def _won(squares: int) -> bool:
    return any(squares & line == line for line in _LINES)


def _free(taken: int) -> list[int]:
    return [square for square in range(9) if not taken >> square & 1]


OPPONENTS: dict[str, Callable[[AnyEnv, int], Player]] = {
    "random": RandomPlayer,
    "perfect": PerfectPlayer,
}
"""Players that do not learn, by name."""


class Spread(ParallelEnv[str, NDArray[np.float32], int]):  # type: ignore[misc]
    """Agents on a grid that must cover landmarks together: `simple_spread` of Lowe et al. (2017)
    without physics.

    Each of N agents moves by one square (stay, up, down, left, right); several may share one. All
    begin, and the N landmarks lie, on squares drawn uniformly, the landmarks on different ones.
    After every step each agent is given the fraction of the landmarks that have an agent on them.
    After `max_cycles` steps the episode is truncated; nothing terminates it.

    An agent observes its own position, and relative to it the landmarks and the other agents, in
    units of the grid's size: `(4 N,)`, float32.

    Args:
        num_agents: N, >= 1.
        size: Squares along an edge, >= 2, with N <= size ** 2.
        max_cycles: Steps of an episode, >= 1.
    """

    metadata: dict[str, Any] = {"name": "spread_v0", "render_modes": []}  # noqa: RUF012
    render_mode = None
    _MOVES = np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])

    def __init__(self, num_agents: int = 3, size: int = 5, max_cycles: int = 25) -> None:
        checked_int("num_agents", num_agents, low=1)
        checked_int("size", size, low=2)
        checked_int("max_cycles", max_cycles, low=1)
        if num_agents > size**2:
            raise ValueError(
                f"num_agents={num_agents} is not accepted; the grid has room for {size**2}"
            )
        self.size, self.max_cycles = size, max_cycles
        self.possible_agents = [f"agent_{i}" for i in range(num_agents)]
        self.agents: list[str] = []
        self._observation_space = spaces.Box(-1.0, 1.0, (4 * num_agents,), np.float32)
        self._action_space = spaces.Discrete(len(self._MOVES))
        self._generator = np.random.default_rng()

    def observation_space(self, agent: str) -> spaces.Box:
        """`(4 N,)`."""
        return self._observation_space

    def action_space(self, agent: str) -> spaces.Discrete:
        """Stay, up, down, left, right."""
        return self._action_space

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        """Draw all positions."""
        if seed is not None:
            self._generator = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        count, squares = len(self.agents), self.size**2
        self._cycles = 0
        self._landmarks = self._places(self._generator.choice(squares, count, replace=False))
        self._positions = self._places(self._generator.integers(squares, size=count))
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: Mapping[str, int]) -> Any:
        """Move all agents."""
        moves = self._MOVES[[int(actions[agent]) for agent in self.agents]]
        self._positions = np.clip(self._positions + moves, 0, self.size - 1)
        self._cycles += 1
        covered = (self._landmarks[:, None] == self._positions).all(axis=2).any(axis=1)
        over = self._cycles == self.max_cycles
        agents = self.agents
        observations = self._observe()
        self.agents = [] if over else agents
        return (
            observations,
            dict.fromkeys(agents, float(covered.mean())),
            dict.fromkeys(agents, False),
            dict.fromkeys(agents, over),
            {agent: {} for agent in agents},
        )

    def _places(self, squares: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack([squares // self.size, squares % self.size], axis=1)

    def _observe(self) -> dict[str, NDArray[np.float32]]:
        seen = {}
        for i, agent in enumerate(self.agents):
            own = self._positions[i]
            others = np.delete(self._positions, i, axis=0)
            rows = np.concatenate([own[None], self._landmarks - own, others - own])
            seen[agent] = (rows / self.size).astype(np.float32).ravel()
        return seen


if f"{_OWN}spread-v0" not in pettingzoo.parallel_registry:
    pettingzoo.register("parallel", f"{_OWN}spread-v0", Spread)


@dataclass(frozen=True)
class Setup:
    """An environment of a suite, as it is read here."""

    kind: str
    """`"aec"` or `"parallel"`."""

    id: str
    kwargs: Mapping[str, Any]
    max_cycles: int | None
    opponents: tuple[str, ...]
    opening_turns: int

    @classmethod
    def of(cls, spec: EnvironmentSpec) -> Setup:
        """Read the description of an environment.

        Raises:
            ValueError: it is none of PettingZoo's, or one of the two entries is malformed.
        """
        kind, _, name = spec.id.partition("/")
        if kind not in ("aec", "parallel") or not name:
            raise ValueError(
                f"id={spec.id!r} is not accepted; it must be 'aec/' or 'parallel/' and the id of "
                "an environment of PettingZoo"
            )
        kwargs = dict(spec.kwargs)
        opponents = kwargs.pop("opponents", [])
        if not isinstance(opponents, list) or not all(name in OPPONENTS for name in opponents):
            raise ValueError(
                f"opponents={opponents!r} is not accepted; it must be a list of {list(OPPONENTS)}"
            )
        turns = checked_int("opening_turns", kwargs.pop("opening_turns", 0), low=0)
        assert turns is not None
        return cls(kind, name, kwargs, spec.max_episode_steps, tuple(opponents), turns)

    def make(self) -> AnyEnv:
        """A new environment."""
        return pettingzoo.make(self.kind, self.id, max_cycles=self.max_cycles, **self.kwargs)


def check(run: RunSpec) -> None:
    """Make the environment of a run once.

    Raises:
        ValueError: it cannot be made, its agents cannot share a network, or it does not fit the
            opponents or the period of training; the message says what and why.
    """
    setup = Setup.of(run.environment)
    try:
        env = setup.make()
    except Exception as error:  # PettingZoo's own are of many kinds; the message is what counts
        raise ValueError(str(error)) from error
    try:
        agents = possible_agents(env)
        if setup.opponents and len(agents) != 2:
            raise ValueError(f"opponents are for games of two players; the agents are {agents}")
        if "perfect" in setup.opponents and setup.id.rpartition("/")[2] != "tictactoe-v3":
            raise ValueError("the perfect opponent plays tictactoe-v3 only")
        together = 1 if setup.kind == "aec" else len(agents)
        if not agents or run.config.train_freq % together:
            raise ValueError(
                f"train_freq={run.config.train_freq} must be a multiple of the number of agents "
                f"that act at once, {together}"
            )
        _make_agent(run, setup, env)
    finally:
        env.close()


def _make_agent(run: RunSpec, setup: Setup, env: AnyEnv) -> MultiAgentDQN:
    return MultiAgentDQN(
        env,
        run.config,
        policy_groups={"all": possible_agents(env)},
        self_play=SelfPlay(opening_turns=setup.opening_turns) if setup.opening_turns else None,
        seed=run.seeds.agent,
        device="cpu",
    )


def train(run: RunSpec, recorder: Recorder) -> int:
    """Train all agents together, with one network; see `Train`."""
    assert isinstance(recorder, GameRecorder)
    agent = _make_agent(run, recorder.setup, recorder.setup.make())
    recorder.begin(agent)
    for step in agent.train(run.total_timesteps):
        recorder.stepped(step)
    (policy,) = agent.policies.values()
    return policy.learner.num_updates


class GameRecorder(Recorder):
    """A `Recorder` of agents that train in an environment of their own, and are evaluated in
    games or together."""

    def __init__(
        self,
        run: RunSpec,
        progress: Callable[[int], None] | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        super().__init__(run, progress, checkpoints)
        self.setup = Setup.of(run.environment)
        self._env = self.setup.make()
        self._agent: MultiAgentDQN | None = None

    def begin(self, agent: MultiAgentDQN) -> None:
        """Evaluate the untrained agent, then start the clock."""
        self._agent = agent
        self._begin()

    def stepped(self, step: MultiAgentStep) -> None:
        """Count the turns, and evaluate if an evaluation is due."""
        self._count(len(step.actions))
        if step.episode_length:
            mean = float(np.mean(list(step.episode_returns.values())))
            self.episodes.append(Episode(self.timestep, mean, step.episode_length))
        self.observe()

    def _evaluate(self, seeds: Sequence[int]) -> tuple[tuple[float, ...], tuple[int, ...]]:
        assert self._agent is not None
        rows = [self._episode(self._agent, number, seed) for number, seed in enumerate(seeds)]
        returns, lengths = zip(*rows, strict=True)
        return returns, lengths

    def _episode(self, agent: MultiAgentDQN, number: int, seed: int) -> tuple[float, int]:
        agents, turns = possible_agents(self._env), 0

        def counted(player: Player) -> Player:
            def act(*seen: Any) -> int:
                nonlocal turns
                turns += 1
                return player(*seen)

            return act

        players = dict.fromkeys(agents, counted(agent.choose))
        own = agents[number % len(agents)]
        if self.setup.opponents:
            opponent = OPPONENTS[self.setup.opponents[0]](self._env, seed)
            players = {each: players[own] if each == own else counted(opponent) for each in agents}
        (returns,) = play(self._env, players, 1, seed=seed)
        if self.setup.opponents:
            return WIN * float(np.sign(returns[own])), turns
        return float(np.mean(list(returns.values()))), turns

    def finish(self) -> float:
        """As in `Recorder`; then the trained agent plays its opponents, off the clock."""
        seconds = super().finish()
        assert self._agent is not None
        if self.setup.opponents:
            self.notes["matches"] = list(self._matches(self._agent))
            with tempfile.TemporaryDirectory() as folder:
                file = self._agent.save(Path(folder) / AGENT_FILE)
                self.attachments[AGENT_FILE] = file.read_bytes()
        return seconds

    def _matches(self, agent: MultiAgentDQN) -> Iterator[dict[str, Any]]:
        seed, games = self.run.seeds.evaluation, GAMES * self.run.evaluation.episodes
        for name in self.setup.opponents:
            opponent = OPPONENTS[name](self._env, seed)
            for seat in possible_agents(self._env):
                result = match(self._env, agent.choose, opponent, games, seat=seat, seed=seed)
                yield {"opponent": name, "seat": seat, **result._asdict()}

    def close(self) -> None:
        """Close the environments; harmless if done before."""
        super().close()
        self._env.close()


@dataclass(frozen=True)
class Standing:
    """Games of one system against one opponent, of all seeds together."""

    system: str
    opponent: str
    """`"perfect"` and the like, or another system."""

    seat: str
    """Of the system; empty: it took turns in both."""

    result: MatchResult


@dataclass(frozen=True)
class GameReport:
    """One game's part of a report."""

    id: str
    opponents: tuple[Standing, ...]
    """The trained agents against players that do not learn, seat by seat."""

    each_other: tuple[Standing, ...]
    """The trained agents against each other."""


def reports(
    suite: Suite,
    results: Sequence[tuple[SuiteEnvironment, Sequence[RunResult]]],
    folder: Path,
) -> tuple[GameReport, ...]:
    """What the games of a suite gave.

    Args:
        suite: Of environments of PettingZoo.
        results: By environment, its finished runs.
        folder: Where their directories are.
    """
    found = []
    order = {system.name: number for number, system in enumerate(suite.systems)}
    for environment, runs in results:
        own = sorted(runs, key=lambda each: order.get(each.run.title, len(order)))
        notes: dict[str, list[Mapping[str, Any]]] = {}
        files: dict[str, dict[int, Path]] = {}
        for result in own:
            run = result.run
            notes.setdefault(run.title, []).append(result.notes)
            files.setdefault(run.title, {})[run.seed_index] = folder / run.name / AGENT_FILE
        games = GAMES * environment.evaluation.episodes
        against = standings(notes)
        if against:
            met = tournament(environment.spec, files, games, suite.root_seed)
            found.append(GameReport(environment.spec.title, tuple(against), tuple(met)))
    return tuple(found)


def settings(suite: Suite) -> tuple[Row, ...]:
    """The configuration, as the table of a report has it: the native agent's, but for what differs
    with many agents."""
    own = {
        "Training environment": "its own, all agents in it, seeded by the run's seed",
        "Initialisation": "torch's default, the run's seed",
        "Evaluation": "by the harness: greedy, in games against the first opponent, or all agents "
        "together",
    }
    rows = levelling_table(suite.config, suite.total_timesteps)
    return (
        Row("Agents", {"pettingzoo": "one network for all; steps are turns of all agents"}),
        *(Row(row.setting, {"pettingzoo": own.get(row.setting) or row.cells["native"]})
          for row in rows),
    )  # fmt: skip


def standings(notes: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Standing]:
    """Sum up the matches of the runs.

    Args:
        notes: By system the notes of its runs.
    """
    sums: dict[tuple[str, str, str], list[int]] = {}
    for system, runs in notes.items():
        for row in (row for run in runs for row in run.get("matches", ())):
            total = sums.setdefault((system, row["opponent"], row["seat"]), [0, 0, 0])
            for i, field in enumerate(MatchResult._fields):
                total[i] += row[field]
    return [Standing(*key, MatchResult(*total)) for key, total in sums.items()]


def tournament(
    spec: EnvironmentSpec, files: Mapping[str, Mapping[int, Path]], games: int, root_seed: int
) -> list[Standing]:
    """Every system against every other, seed by seed, from random openings.

    Args:
        spec: The game.
        files: By system and seed index, the trained agents.
        games: Of each pair and seed.
        root_seed: Decides the openings.
    """
    setup = Setup.of(spec)
    if not setup.opponents:
        return []
    env = setup.make()
    load = cache(partial(MultiAgentDQN.load, env=env, device="cpu"))
    found = []
    for one, other in combinations(files, 2):
        total = np.zeros(3, np.int64)
        for seed in sorted(files[one].keys() & files[other].keys()):
            entropy = np.random.SeedSequence(root_seed, spawn_key=(seed,))
            for number, state in enumerate(entropy.generate_state(games)):
                pair = load(files[one][seed]).choose, load(files[other][seed]).choose
                total += _meet(env, *pair, first=number % 2 == 0, seed=int(state))
        if total.any():
            found.append(Standing(one, other, "", MatchResult(*total.tolist())))
    env.close()
    return found


def _meet(env: AnyEnv, one: Player, other: Player, *, first: bool, seed: int) -> MatchResult:
    """One game, whose first turns are random."""
    agents, turns = possible_agents(env), 0
    draws = RandomPlayer(env, seed)

    def opened(player: Player) -> Player:
        def act(*seen: Any) -> int:
            nonlocal turns
            turns += 1
            return (draws if turns <= RANDOM_TURNS else player)(*seen)

        return act

    return match(env, opened(one), opened(other), 1, seat=agents[not first], seed=seed)
