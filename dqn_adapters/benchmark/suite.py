"""Suites: which systems train on which environments, how, and with which seeds.

A suite is a TOML file. Its name is looked up in `benchmarks/suites/` of the working directory,
then among the suites of the package; anything that ends in `.toml` is a path.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium as gym

from dqn_adapters.benchmark import systems as systems_
from dqn_adapters.benchmark.locating import Source
from dqn_adapters.benchmark.recorder import make_environment
from dqn_adapters.benchmark.spec import EnvironmentSpec, EvaluationSpec, RunSpec
from dqn_adapters.benchmark.systems import ALL_SYSTEMS, System
from dqn_adapters.config import DQNConfig
from dqn_adapters.environments import MASK
from dqn_adapters.networks import image_network

LOCAL_SUITES = Path("benchmarks/suites")
BUILT_IN_SUITES = Path(__file__).parent / "suites"

_ADAPTERS = ("sb3", "tianshou")
"""Implementations in which a host runs our algorithm."""

_LONGEST_LABEL = 80
"""Runs are directories that have their system's label in their names."""

_LABEL = (
    f"a text of at most {_LONGEST_LABEL} printable characters without |, which does not begin "
    "with an underscore"
)


class SuiteError(ValueError):
    """A suite cannot be run as it is written or asked for."""


Measure = Literal["training", "final"]
"""What a published score is: the mean return of the last training episodes, exploration included,
or that of the final policy, evaluated greedily."""

Metric = Literal["area", "final", "bias"]
"""What a claim is measured by: the area under the learning curve, divided by its length; the last
evaluation; the mean overestimation in the second half of the training."""


@dataclass(frozen=True)
class Published:
    """A score that somebody has published for DQN on an environment."""

    source: str
    """Who."""

    url: str
    score: float
    steps: int
    """Environment steps of the training."""

    measure: Measure
    plus_minus: float | None = None
    """As published; what it is, `note` says."""

    seeds: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Claim:
    """A statement about a part of DQN, and the systems that are compared to test it: every one of
    `having` against every one of `lacking`, seed by seed."""

    question: str
    part: str
    """What is tested, as the subject of a sentence."""

    experiment: str
    """What the systems are, and what is equal between them."""

    having: tuple[str, ...]
    """Names of systems of the suite with the part."""

    lacking: tuple[str, ...]
    """Names of systems without it."""

    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class SuiteEnvironment:
    """An environment of a suite, and how long and with what is trained on it."""

    spec: EnvironmentSpec
    config: DQNConfig
    """The suite's, with the settings that this environment has of its own. Each system sets its own
    `variant`, and what the suite gives it."""

    evaluation: EvaluationSpec
    """When and how long; the last evaluation is after the last step."""
    threshold: float | None = None
    """Score at which it counts as solved; drawn in the report, nothing else."""

    score_range: tuple[float, float] | None = None
    """Scores that become 0 and 1 where environments are taken together. None: it is left out
    there."""

    margin: float | None = None
    """Difference between two areas under the curve that counts as none, for tests of equivalence.
    None: they are not made."""

    published: tuple[Published, ...] = ()
    """Scores to set beside ours."""

    @property
    def total_timesteps(self) -> int:
        """Environment steps of a training."""
        return self.evaluation.timesteps[-1]


@dataclass(frozen=True)
class Suite:
    """A validated suite."""

    name: str
    description: str
    environments: tuple[SuiteEnvironment, ...]
    systems: tuple[System, ...]
    seeds: tuple[int, ...]
    """Seed indices; the seeds themselves are derived from (root seed, index)."""

    root_seed: int
    total_timesteps: int
    evaluation: EvaluationSpec
    config: DQNConfig
    """The levelled configuration. It, the steps and their evaluation are those of every environment
    that has none of its own."""

    source: str
    """The file."""

    checkpoint_every: int | None = None
    """Environment steps after which runs of systems that can be continued save what they need for
    that. It decides no number. None: they do not."""

    claims: tuple[Claim, ...] = ()
    """If there are any, the report is about them."""

    example: bool = False
    """Whether the report shows Example 6.7 of Sutton & Barto; see `maximization_bias`."""

    @property
    def many_agents(self) -> bool:
        """Whether the environments are PettingZoo's; see `games`."""
        return self.systems[0].many_agents

    @property
    def shipped(self) -> bool:
        """Whether every library runs as it is shipped, and nothing is levelled."""
        return self.systems[0].shipped

    @property
    def one_configuration(self) -> bool:
        """Whether no environment has settings of its own."""
        return all(environment.config == self.config for environment in self.environments)

    def runs(self) -> list[RunSpec]:
        """All runs, seed by seed, so that an interrupted suite has compared something.

        Within a seed the order of the systems is turned round: the hosts' own, which take longest,
        come first, and no core is left with a long run at the end.
        """
        return [
            self.run(environment, system, seed)
            for seed in self.seeds
            for environment in self.environments
            for system in reversed(self.systems)
        ]

    @cached_property
    def protocols(self) -> dict[str, SuiteEnvironment]:
        """The environments, by what runs must share with the suite's to be compared with them."""
        return {
            self.run(environment, self.systems[0], self.seeds[0]).protocol: environment
            for environment in self.environments
        }

    def belongs(self, run: RunSpec) -> SuiteEnvironment | None:
        """The environment of the suite on which a finished run may be compared with the suite's.

        None: the run is of another configuration than the suite has now, of other settings under
        the label of one of its systems, or as its library ships it among levelled ones, or the
        other way round.
        """
        environment = self.protocols.get(run.protocol)
        shipped = any(each.shipped for each in ALL_SYSTEMS if each.name == run.system)
        if environment is None or shipped != self.shipped:
            return None
        for system in self.systems:
            if system.name == run.title:
                same = self.run(environment, system, run.seed_index).identity == run.identity
                return environment if same else None
        return environment

    def run(self, environment: SuiteEnvironment, system: System, seed: int) -> RunSpec:
        """One of them."""
        return RunSpec(
            environment=environment.spec,
            system=system.origin,
            config=system.configure(environment.config),
            total_timesteps=environment.total_timesteps,
            evaluation=environment.evaluation,
            root_seed=self.root_seed,
            seed_index=seed,
            label="" if system.name == system.origin else system.name,
            levelled={name: environment.config.to_dict()[name] for name in system.settings},
        )

    def replace_systems(self, names: Sequence[str]) -> Suite:
        """The suite with other systems.

        Raises:
            SuiteError: a name is unknown, the system cannot run the configuration, or it is
                shipped and the suite is levelled, or the other way round.
        """
        chosen = dataclasses.replace(self, systems=_systems(names, "--systems", self.systems))
        if chosen.shipped != self.shipped:
            kinds = ("levelled", "as their libraries ship them")
            raise SuiteError(
                f"--systems {','.join(names)}: suite {self.name!r} has systems "
                f"{kinds[self.shipped]}, and these are {kinds[chosen.shipped]}; the two are never "
                "compared, so they need a suite of their own"
            )
        _check_systems(chosen, "--systems")
        return chosen

    def replace_seeds(self, count: int) -> Suite:
        """The suite with so many seeds: its first ones, or more than it has."""
        if count < 1:
            raise SuiteError(f"--seeds {count} is not accepted; it must be an integer >= 1")
        seeds = list(self.seeds[:count])
        candidate = 0
        while len(seeds) < count:
            if candidate not in seeds:
                seeds.append(candidate)
            candidate += 1
        return dataclasses.replace(self, seeds=tuple(seeds))

    def check_runnable(self) -> None:
        """Make every environment once and look for every host.

        Raises:
            SuiteError: an environment is unknown, has no time limit or no discrete actions; a
                library is not installed.
        """
        for system in self.systems:
            missing = system.missing()
            if missing:
                raise SuiteError(missing)
        for environment in self.environments:
            if self.many_agents:
                self._check_game(environment)
            else:
                _check_environment(environment.spec, self.source, self.systems)

    def _check_game(self, environment: SuiteEnvironment) -> None:
        from dqn_adapters.benchmark import games

        try:
            games.check(self.run(environment, self.systems[0], self.seeds[0]))
        except (TypeError, ValueError) as error:
            place = f"{self.source}: environment {environment.spec.id!r}"
            raise SuiteError(f"{place}: {error}") from error


def find_suites() -> dict[str, Path]:
    """All suites by name; one of the working directory hides a built-in one."""
    found: dict[str, Path] = {}
    for directory in (BUILT_IN_SUITES, LOCAL_SUITES):
        found.update({path.stem: path for path in sorted(directory.glob("*.toml"))})
    return found


def load_suite(name: str) -> Suite:
    """Read and validate a suite by name or by path.

    Raises:
        SuiteError: there is no such suite, or it is malformed; the message names the file, the
            line, the key, what it holds and what is accepted.
    """
    if name.endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise SuiteError(f"there is no file {name}")
    else:
        suites = find_suites()
        if name not in suites:
            raise SuiteError(
                f"unknown suite {name!r}{did_you_mean(name, suites)}; the suites are "
                f"{', '.join(sorted(suites)) or 'none'}, or give the path of a .toml file"
            )
        path = suites[name]
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise SuiteError(f"{path} cannot be read: {error.strerror}") from error
    return _parse(values, path, Source(str(path), text))


def _parse(values: dict[str, Any], path: Path, source: Source) -> Suite:
    top = _Table(values, source, "")
    config = _config(top.table("config", default={}))
    seeds = _seeds(top)
    listed = top.take("systems", _is_systems, '"all", a list of names, or tables, [[systems]]')
    chosen = _listed_systems(["all"] if listed == "all" else listed, top, config)
    evaluation = top.table("evaluation")
    points = evaluation.integer("points", low=1)
    episodes = evaluation.integer("episodes", low=1)
    measured = evaluation.boolean("values")
    evaluation.finish()
    total = top.integer("total_timesteps", low=1)

    def timesteps(steps: int, own: DQNConfig, place: str) -> EvaluationSpec:
        phase = math.lcm(own.train_freq, *(each.period or own.train_freq for each in chosen))
        if steps % phase:
            raise SuiteError(
                f"{place} = {steps} is not accepted; it must be a multiple of "
                + (
                    f"config.train_freq = {phase}, or the last steps would be learned from by some "
                    "libraries only"
                    if phase == own.train_freq
                    else f"{phase}, after which all of the libraries have learned as often"
                )
            )
        if points > steps // phase:
            raise SuiteError(
                f"{evaluation.at('points')} = {points} is not accepted; there are only "
                f"{steps // phase} training phases between which to evaluate"
            )
        return EvaluationSpec(_evaluation_timesteps(steps, points, phase), episodes, measured)

    evaluated = timesteps(total, config, top.at("total_timesteps"))
    environments = []
    for table in top.tables("environments"):
        settings = table.table("config", default={})
        own = _overriding(settings, config)
        for system in chosen:
            try:
                system.configure(own)
            except ValueError as error:
                raise SuiteError(
                    f"{settings.error(error)}, with the settings of system {system.name!r}"
                ) from error
        steps = table.integer("total_timesteps", low=1, default=None)
        place = (top if steps is None else table).at("total_timesteps")
        environments.append(
            _environment(table, own, timesteps(total if steps is None else steps, own, place))
        )
    suite = Suite(
        name=path.stem,
        description=top.take("description", _is_text, "a text", default=""),
        environments=tuple(environments),
        systems=chosen,
        seeds=seeds,
        root_seed=top.integer("root_seed", low=0, default=0),
        total_timesteps=total,
        evaluation=evaluated,
        config=config,
        source=str(path),
        checkpoint_every=top.integer("checkpoint_every", low=1, default=None),
        claims=tuple(
            _claim(table, [each.name for each in chosen], measured)
            for table in top.tables("claims", default=())
        ),
        example=top.boolean("example"),
    )
    top.finish()
    names: dict[str, System] = {}
    for system in chosen:
        other = names.setdefault(suite.run(environments[0], system, seeds[0]).name, system)
        if other is not system:
            raise SuiteError(
                f"{top.at('systems')} has {other.name!r} and {system.name!r} with the same "
                "settings, and the names differ only in characters that directories do not have: "
                "these would be the same runs"
            )
    titles = [environment.spec.title for environment in environments]
    for repeated in {name for name in titles if titles.count(name) > 1}:
        raise SuiteError(f"{path}: environments names {repeated!r} twice; give them labels")
    distinct = {id(each) for each in suite.protocols.values()}
    for environment in environments:
        if id(environment) not in distinct:
            raise SuiteError(
                f"{path}: environments has {environment.spec.title!r} under another label as well, "
                "with the same settings: these would be the same runs"
            )
    _check_systems(suite, top.at("systems"))
    return suite


def _evaluation_timesteps(total: int, points: int, phase: int) -> tuple[int, ...]:
    # Between two training phases every library has learned from exactly the steps before.
    phases = total // phase
    return tuple(round(point * phases / points) * phase for point in range(points + 1))


def _environment(table: _Table, config: DQNConfig, evaluation: EvaluationSpec) -> SuiteEnvironment:
    environment = SuiteEnvironment(
        EnvironmentSpec(
            id=table.take("id", _is_text, "the id of a Gymnasium environment"),
            kwargs=table.take(
                "kwargs",
                lambda value: isinstance(value, dict) and _is_json(value),
                "a table of texts, finite numbers, booleans, lists and tables",
                {},
            ),
            max_episode_steps=table.integer("max_episode_steps", low=1, default=None),
            label=table.take("label", _is_label, _LABEL, default=""),
            reward_noise=float(
                table.take("reward_noise", _is_positive, "a standard deviation > 0", default=0.0)
            ),
        ),
        config,
        evaluation,
        threshold=table.take("threshold", _is_number, "a number", None),
        score_range=table.take("score_range", _is_range, "two numbers, [low, high]", None),
        margin=table.take("margin", _is_positive, "a number > 0", None),
        published=tuple(map(_published, table.tables("published", default=()))),
    )
    table.finish()
    limits = environment.score_range
    return dataclasses.replace(environment, score_range=limits and (limits[0], limits[1]))


def _published(table: _Table) -> Published:
    published = Published(
        source=table.take("source", _is_text, "a text"),
        url=table.take("url", _is_url, "an address, https://..."),
        score=float(table.take("score", _is_number, "a number")),
        steps=table.integer("steps", low=1),
        measure=table.choice("measure", get_args(Measure)),
        plus_minus=table.take("plus_minus", _is_positive_or_zero, "a number >= 0", None),
        seeds=table.integer("seeds", low=1, default=None),
        note=table.take("note", _is_text, "a text", default=""),
    )
    table.finish()
    return published


def _claim(table: _Table, known: Sequence[str], values: bool) -> Claim:
    def names(key: str) -> tuple[str, ...]:
        listed = table.take(key, _is_texts, "a list of names of systems of the suite")
        for name in listed:
            if name not in known:
                raise SuiteError(
                    f"{table.at(key)}: {name!r} is not a system of the suite"
                    f"{did_you_mean(name, known)}; they are {', '.join(known)}"
                )
        return tuple(listed)

    claim = Claim(
        question=table.take("question", _is_text, "a text"),
        part=table.take("part", _is_text, "a text"),
        experiment=table.take("experiment", _is_text, "a text"),
        having=names("having"),
        lacking=names("lacking"),
        metrics=tuple(
            table.take(
                "metrics",
                lambda value: _is_texts(value) and set(value) <= set(get_args(Metric)),
                f"a list of {', '.join(map(repr, get_args(Metric)))}",
            )
        ),
    )
    table.finish()
    if both := set(claim.having) & set(claim.lacking):
        raise SuiteError(f"{table.at('lacking')}: {min(both)!r} is also in having")
    if "bias" in claim.metrics and not values:
        raise SuiteError(f"{table.at('metrics')}: 'bias' needs [evaluation] values = true")
    return claim


def _config(table: _Table) -> DQNConfig:
    values = _settings(table)
    try:
        return DQNConfig.from_dict(values)
    except ValueError as error:
        raise table.error(error) from error


def _overriding(table: _Table, config: DQNConfig) -> DQNConfig:
    values = _settings(table)
    try:
        return dataclasses.replace(config, **values)
    except ValueError as error:
        raise table.error(error) from error


def _settings(table: _Table) -> dict[str, Any]:
    known = [field.name for field in dataclasses.fields(DQNConfig) if field.name != "variant"]
    if "variant" in table.values:
        raise SuiteError(f"{table.at('variant')} is not accepted; the variant is part of a system")
    table.check_keys(known)
    # TOML has no null.
    return {name: None if value == "none" else value for name, value in table.values.items()}


def _seeds(table: _Table) -> tuple[int, ...]:
    accepted = "a count >= 1, or a list of distinct integers >= 0"
    value = table.take("seeds", lambda value: _is_int(value) or isinstance(value, list), accepted)
    seeds = list(range(value)) if _is_int(value) else value
    if not seeds or not all(_is_int(seed) and seed >= 0 for seed in seeds):
        raise _rejected(table.at("seeds"), value, accepted)
    if len(set(seeds)) < len(seeds):
        raise _rejected(table.at("seeds"), value, accepted)
    return tuple(seeds)


def _listed_systems(
    listed: Sequence[str | dict[str, Any]], top: _Table, config: DQNConfig
) -> tuple[System, ...]:
    chosen: dict[str, System] = {}
    for number, entry in enumerate(listed, 1):
        if isinstance(entry, str):
            chosen.update({each.name: each for each in _systems([entry], top.at("systems"))})
            continue
        table = _Table(entry, top.source, f"systems.{number}")
        name = table.take("system", _is_text, "the name of a system")
        label = table.take(
            "label",
            lambda value: _is_label(value) and "," not in value,
            f"{_LABEL}, without a comma",
            default=name,
        )
        settings = table.table("config", default={})
        table.finish()
        found = _systems([name], table.at("system"))
        if len(found) > 1:
            raise _rejected(
                table.at("system"), name, f"one of {', '.join(each.name for each in found)}"
            )
        (system,) = found
        values = _settings(settings)
        if values and label == name:
            raise SuiteError(
                f"{table.at('label')} is missing; a system with settings of its own needs a name "
                "of its own"
            )
        if label in chosen or (label != name and label in systems_.selectors()):
            raise _rejected(table.at("label"), label, "a name that no other system has")
        made = dataclasses.replace(system, name=label, base=name, settings=values)
        try:
            values = {key: made.configure(config).to_dict()[key] for key in values}
        except ValueError as error:
            raise settings.error(error) from error
        chosen[label] = dataclasses.replace(made, settings=values)
    return tuple(chosen.values())


def _systems(names: Sequence[str], place: str, suite: Sequence[System] = ()) -> tuple[System, ...]:
    """The systems of that name in a suite, and else in the package or of the user's."""
    own = {system.name: system for system in suite}
    chosen: dict[str, System] = {}
    for name in names:
        if name in own:
            chosen[name] = own[name]
            continue
        try:
            found = systems_.find(name)
        except systems_.UnknownSystemError as error:
            known = list(dict.fromkeys([*systems_.selectors(), *own]))
            raise SuiteError(
                f"{place}: unknown system {name!r}{did_you_mean(name, known)}; the systems are "
                f"{', '.join(known)}, or a function of yours as 'package.module:function'"
            ) from error
        except systems_.EntryPointError as error:
            raise SuiteError(f"{place}: {error}") from error
        chosen.update({system.name: system for system in found})
    if not chosen:
        raise SuiteError(f"{place} is empty; name at least one system")
    return tuple(chosen.values())


def _check_systems(suite: Suite, place: str) -> None:
    shipped = [system for system in suite.systems if system.shipped]
    if shipped and len(shipped) < len(suite.systems):
        levelled = next(system for system in suite.systems if not system.shipped)
        raise SuiteError(
            f"{place}: {shipped[0].name!r} runs as it is shipped and {levelled.name!r} levelled; "
            "they are never compared in one table, so make two suites"
        )
    if suite.evaluation.values:
        for system in suite.systems:
            if not system.values:
                raise SuiteError(
                    f"{place}: system {system.name!r} cannot tell the values that "
                    "[evaluation] values = true asks for"
                )
    settings = next((system for system in shipped if system.settings), None)
    configs = [suite.config, *(environment.config for environment in suite.environments)]
    if shipped and (settings or any(config != DQNConfig() for config in configs)):
        raise SuiteError(
            f"{place}: {shipped[0].name!r} runs as it is shipped, so [config] must be empty"
        )
    if len({system.many_agents for system in suite.systems}) > 1:
        raise SuiteError(
            f"{place}: systems that train in PettingZoo's environments and systems that train in "
            "Gymnasium's cannot be in one suite"
        )
    for environment in suite.environments:
        steps = environment.evaluation.timesteps
        for system in suite.systems:
            own = system.configure(environment.config)
            freq = system.period or own.train_freq
            if any(step % freq for step in steps):
                raise SuiteError(
                    f"{place}: system {system.name!r} has train_freq = {freq}; the steps of the "
                    f"evaluations must be multiples of it, and are {steps}"
                )
            if not system.shipped and own.learning_starts >= steps[-1]:
                raise SuiteError(
                    f"{place}: system {system.name!r} learns nothing on "
                    f"{environment.spec.title!r}: learning_starts = {own.learning_starts}, and the "
                    f"training has {steps[-1]} steps"
                )
            for problem in system.cannot(environment.config):
                raise SuiteError(f"{place}: system {system.name!r} cannot be levelled: {problem}")


def _check_environment(spec: EnvironmentSpec, source: str, systems: Sequence[System]) -> None:
    try:
        environment = make_environment(spec)
        info = environment.reset(seed=0)[1]
    except gym.error.Error as error:
        # Gymnasium's own message has the spelling mistake or the missing package.
        raise SuiteError(f"{source}: environment {spec.id!r}: {error}") from error
    except Exception as error:  # an environment may raise whatever it likes at its arguments
        raise SuiteError(
            f"{source}: environment {spec.id!r} cannot be made: {type(error).__name__}: {error}"
        ) from error
    try:
        actions = environment.action_space
        if not isinstance(actions, gym.spaces.Discrete):
            raise SuiteError(
                f"{source}: environment {spec.id!r} has the action space {actions}; DQN needs a "
                "Discrete one"
            )
        if environment.has_wrapper_attr("action_masks") or MASK in info:
            raise SuiteError(
                f"{source}: environment {spec.id!r} tells which actions are legal in its info or "
                f"by action_masks(), where an evaluation does not look; put the mask under the key "
                f"{MASK!r} into a Dict observation"
            )
        if environment.spec is None or environment.spec.max_episode_steps is None:
            raise SuiteError(
                f"{source}: environment {spec.id!r} has no time limit, so an evaluation may never "
                "end; set max_episode_steps"
            )
        for system in systems:
            if problem := _obstacle(system, actions, environment.observation_space):
                raise SuiteError(f"{source}: environment {spec.id!r} has {problem}")
    finally:
        environment.close()


def _obstacle(system: System, actions: gym.spaces.Discrete, space: gym.Space[Any]) -> str:
    """What of an environment's spaces the harness cannot train a system on; empty if nothing."""
    if system.requires is None:
        return ""
    if actions.start and system.implementation not in _ADAPTERS:
        return (
            f"actions from {actions.start} on, and system {system.name!r} knows only actions from "
            "0 on"
        )
    vectors = system.implementation.startswith("tianshou")
    if isinstance(space, gym.spaces.Dict) or (vectors and not isinstance(space, gym.spaces.Box)):
        return (
            f"the observation space {space}, for which system {system.name!r} has no network in "
            "the harness"
        )
    if image_network(space) and not system.shipped:
        return (
            f"images, for which system {system.name!r} cannot be levelled: the harness brings the "
            "network of convolutions to the native agent only"
        )
    return ""


class _Table:
    """A TOML table that is read key by key; what is left over is an error."""

    def __init__(self, values: Mapping[str, Any], source: Source, name: str) -> None:
        self.values = values
        self.source = source
        self.name = name
        self._taken: set[str] = set()

    def at(self, key: str) -> str:
        """The place of a key, for messages."""
        return f"{self._place(key)} {key}"

    def error(self, error: ValueError) -> SuiteError:
        """What a configuration says to the values of the table, with their place."""
        return SuiteError(f"{self._place(str(error).partition('=')[0])}: {error}")

    def _place(self, key: str) -> str:
        line = self.source.at(".".join(filter(None, [self.name, key])))
        return f"{line}: [{self.name}]" if self.name else f"{line}:"

    def take(
        self, key: str, accepts: Callable[[Any], bool], accepted: str, default: Any = ...
    ) -> Any:
        self._taken.add(key)
        if key not in self.values:
            if default is ...:
                close = difflib.get_close_matches(key, self.values, n=1)
                hint = f" (is it {close[0]!r}?)" if close else ""
                raise SuiteError(f"{self.at(key)} is missing{hint}; it must be {accepted}")
            return default
        value = self.values[key]
        if not accepts(value):
            raise _rejected(self.at(key), value, accepted)
        return value

    def integer(self, key: str, *, low: int, default: Any = ...) -> Any:
        return self.take(
            key, lambda value: _is_int(value) and value >= low, f"an integer >= {low}", default
        )

    def table(self, key: str, default: Any = ...) -> _Table:
        name = f"{self.name}.{key}" if self.name else key
        value = self.take(key, lambda value: isinstance(value, dict), f"a table, [{name}]", default)
        return _Table(value, self.source, name)

    def boolean(self, key: str) -> bool:
        """False if it is not there."""
        value: bool = self.take(
            key, lambda value: isinstance(value, bool), "true or false", default=False
        )
        return value

    def choice(self, key: str, choices: Sequence[str]) -> Any:
        return self.take(
            key,
            lambda value: isinstance(value, str) and value in choices,
            f"one of {', '.join(map(repr, choices))}",
        )

    def tables(self, key: str, default: Any = ...) -> list[_Table]:
        name = f"{self.name}.{key}" if self.name else key
        value = self.take(
            key,
            lambda value: (
                isinstance(value, list)
                and bool(value)
                and all(isinstance(row, dict) for row in value)
            ),
            f"one or more tables, [[{name}]]",
            default,
        )
        return [_Table(row, self.source, f"{name}.{number}") for number, row in enumerate(value, 1)]

    def check_keys(self, known: Collection[str]) -> None:
        for key in self.values:
            if key not in known:
                raise SuiteError(
                    f"{self.at(key)} is not known{did_you_mean(key, known)}; the keys are "
                    f"{', '.join(known)}"
                )

    def finish(self) -> None:
        self.check_keys(sorted(self._taken))


def did_you_mean(name: str, known: Collection[str]) -> str:
    """A hint for a message about an unknown name; empty if none is close."""
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _rejected(place: str, value: object, accepted: str) -> SuiteError:
    return SuiteError(f"{place} = {value!r} is not accepted; it must be {accepted}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    try:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    except OverflowError:  # an int may be too large for a float
        return False


def _is_label(value: object) -> bool:
    """Labels stand in names of directories, in tables and in legends, which leave out what begins
    with an underscore."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= _LONGEST_LABEL
        and value.isprintable()
        and "|" not in value
        and not value.startswith("_")
    )


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0  # type: ignore[operator]


def _is_positive_or_zero(value: object) -> bool:
    return _is_number(value) and value >= 0  # type: ignore[operator]


def _is_range(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(map(_is_number, value))
        and value[0] < value[1]
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _is_url(value: object) -> bool:
    return isinstance(value, str) and value.startswith("https://")


def _is_systems(value: object) -> bool:
    return value == "all" or (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(entry, str | dict) for entry in value)
    )
