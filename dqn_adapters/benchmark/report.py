"""The report of a suite: one self-contained HTML page, and the same as Markdown with pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dqn_adapters.benchmark import figures, systems
from dqn_adapters.benchmark.levelling import (
    Row,
    by_environment,
    levelling_table,
    own_settings,
    shipped_table,
)
from dqn_adapters.benchmark.recorder import CUT, Evaluation, ValueCheck
from dqn_adapters.benchmark.spec import EvaluationSpec, RunSpec
from dqn_adapters.benchmark.statistics import (
    CONFIDENCE,
    MIN_SAMPLES,
    Aggregate,
    Band,
    Equivalence,
    Estimate,
    aggregate_iqm,
    aggregate_mean,
    band,
    equivalence,
    estimate,
    iqm_curve,
    mean_difference,
    normalised_area,
    paired_differences,
    performance_profile,
    probability_of_improvement,
)
from dqn_adapters.benchmark.store import Failure, ForeignRunError, RunResult, Store
from dqn_adapters.benchmark.suite import Published, Suite, SuiteEnvironment
from dqn_adapters.config import VARIANTS
from dqn_adapters.files import replacing_text

FAMILIES = {
    "native": "Native agent",
    "sb3": "Stable-Baselines3",
    "tianshou": "Tianshou",
    "contrib": "Other algorithms",
    "sbx": "SBX",
    "ablation": "DQN without a part",
    "pettingzoo": "PettingZoo",
}
"""Implementations that are drawn in one panel, by the name without `-reference`."""

LEARNED = 0.05
"""Share of the range of scores by which a run must end above its untrained score, or it has learned
nothing."""

BIAS_IS = (
    "Where the time limit cuts an episode, a state is left out unless what comes after the cut "
    f"would be discounted to at most {100 * CUT:g} %; estimates that are right can look so much "
    "off. Bias is the mean over the evaluations in the second half of the training: a network "
    "begins with estimates near 0, too high where returns are negative and too low where they are "
    "positive, whatever it is taught. The curves show all of it."
)
"""For pages, as `DIVERGED_IS`."""

DIVERGED_IS = (
    "counts the runs in which some estimate was beyond the largest absolute reward of the run / "
    "(1 \N{MINUS SIGN} \N{GREEK SMALL LETTER GAMMA}), which no return can reach, or no finite "
    "number (soft divergence, van Hasselt et al. 2018)."
)

LAST_EPISODES = 100
"""Training episodes at the end whose mean return is held against published ones."""

_OTHERS = "Your systems"
_REFERENCE = "-reference"

_IDLE_SHARE = 0.9
"""A training of one thread that gets less of a core has shared it."""


class ReportError(Exception):
    """There is nothing to report."""


@dataclass(frozen=True)
class SystemResult:
    """All finished runs of one system on one environment."""

    name: str
    label: str
    """Within its family: the variant, and whether it is the host's own."""

    family: str
    variant: str
    reference: bool
    implementation: str
    own: bool
    """Whether it has settings of its own, or is another algorithm than DQN: not one of the variants
    that are levelled."""

    runs: tuple[RunResult, ...]
    """By seed."""

    area: Estimate
    """Area under the curve, normalised: the mean greedy return over the training."""

    final: Estimate
    """Mean greedy return of the last evaluation."""

    steps_per_second: Estimate
    updates_per_second: Estimate
    seconds: Estimate
    """Of training."""

    memory: Estimate | None
    """Peak of the resident memory above what the libraries take, in MiB; None: a run was not
    measured."""

    failed: int
    """Runs that learned nothing: they end no higher than they began, untrained, or by no more than
    `LEARNED` of the range of scores, if the suite has one."""

    solved_at: tuple[int | None, ...]
    """By run: environment steps at the first evaluation that reached the threshold; None: it never
    did, or there is no threshold."""

    @property
    def solved(self) -> int:
        """Runs that reached the threshold."""
        return sum(step is not None for step in self.solved_at)

    @property
    def median_steps(self) -> int | None:
        """Environment steps at which half of the runs had reached the threshold; None: fewer than
        half did."""
        reached = sorted(step for step in self.solved_at if step is not None)
        half = (len(self.solved_at) + 1) // 2
        return reached[half - 1] if len(reached) >= half else None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed indices of the runs."""
        return tuple(run.run.seed_index for run in self.runs)

    def by_seed(self, value: Estimate) -> dict[int, float]:
        """The samples of one of the estimates, by seed index."""
        return dict(zip(self.seeds, value.samples, strict=True))


@dataclass(frozen=True)
class Difference:
    """A system against another one on the same seeds."""

    system: str
    reference: str
    area: Estimate
    """Of the paired differences of the area, system - reference; positive: the system scores
    more."""

    speed: float
    """Environment steps per second, system / reference."""

    equivalence: Equivalence | None
    """Whether they score the same, if the suite states a margin and there are enough seeds."""

    idle: bool
    """No run of either learned anything, so that they score the same says nothing."""


@dataclass(frozen=True)
class Overestimation:
    """What a system's estimates are off from what its greedy policy earns."""

    system: SystemResult
    bias: Estimate
    """Mean over seeds of the mean over evaluations and states of estimate - return; see
    `value_checks`, as for the rest but `diverged`."""

    normalised: Estimate
    """The same, divided by the mean absolute return."""

    positive: Estimate
    """Share of the states that are overestimated."""

    diverged: int
    """Runs in which some estimate was beyond what is possible."""

    left_out: int
    """Evaluations without a state that could be kept, or with estimates that are not finite."""


@dataclass(frozen=True)
class BiasDifference:
    """How much more one system overestimates than another, seed by seed."""

    system: str
    reference: str
    bias: Estimate


@dataclass(frozen=True)
class Picture:
    """A figure: SVG text and what it says."""

    name: str
    title: str
    description: str
    svg: str

    @property
    def inline(self) -> Markup:
        """For an HTML page: no declarations, identifiers that are unique in the page."""
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", self.svg, flags=re.DOTALL)
        text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
        text = re.sub(r'\bid="', f'id="{self.name}-', text)
        text = re.sub(r'(href="#|url\(#)', rf"\g<1>{self.name}-", text)
        text = re.sub(r'\s(width|height)="[\d.]+pt"', "", text, count=2)
        label = Markup.escape(f"{self.title}. {self.description}")
        return Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


@dataclass(frozen=True)
class PublishedRow:
    """A published score, and ours of the same kind."""

    published: Published
    ours: tuple[tuple[str, Estimate], ...]
    """By system."""


@dataclass(frozen=True)
class EnvironmentReport:
    """One environment's part of the report."""

    id: str
    slug: str
    """In names of files."""

    evaluation: EvaluationSpec
    threshold: float | None
    score_range: tuple[float, float] | None
    margin: float | None
    reward_noise: float
    systems: tuple[SystemResult, ...]
    differences: tuple[Difference, ...]
    """Adapters against the hosts' own DQN of the same variant."""

    comparisons: tuple[Difference, ...]
    """Variants against the target variant of the same implementation, and systems with settings of
    their own against what they come from."""

    overestimation: tuple[Overestimation, ...]
    """Empty: the suite does not ask for it."""

    bias_differences: tuple[BiasDifference, ...]
    """Of the pairs of `comparisons`."""

    bias_curves: tuple[Picture, ...]
    curves_by_family: tuple[Picture, ...]
    curves_by_variant: tuple[Picture, ...]
    scores: tuple[Picture, ...]
    throughput: Picture
    published: tuple[PublishedRow, ...]

    @property
    def uncertainty(self) -> str:
        """What brackets, lines and shades of single systems stand for."""
        kinds = {system.area.kind for system in self.systems}
        if kinds == {"range"}:
            return "the range of the seeds"
        text = "the 95 % bootstrap interval"
        if "range" in kinds:
            text += f", or with fewer than {MIN_SAMPLES} seeds their range"
        return text

    @property
    def total_timesteps(self) -> int:
        """Environment steps of a training."""
        return self.evaluation.timesteps[-1]

    @property
    def families(self) -> dict[str, list[SystemResult]]:
        """The systems under the headings of tables and plots."""
        return _grouped(self.systems)


@dataclass(frozen=True)
class AcrossRow:
    """A system over all environments."""

    system: SystemResult
    """On one of them."""

    iqm: Aggregate
    mean: Aggregate
    """Of the normalised areas."""


@dataclass(frozen=True)
class Improvement:
    """P(a run of the system scores more than one of the reference), over all environments."""

    system: str
    reference: str
    probability: Aggregate


@dataclass(frozen=True)
class AcrossReport:
    """The environments taken together, with scores normalised by the ranges that the suite has."""

    environments: tuple[EnvironmentReport, ...]
    rows: tuple[AcrossRow, ...]
    improvements: tuple[Improvement, ...]
    curves: tuple[Picture, ...]
    """Empty: the environments were not evaluated equally often."""

    intervals: Picture
    profiles: tuple[Picture, ...]

    @property
    def families(self) -> dict[str, list[AcrossRow]]:
        """The rows under the headings of the table."""
        rows = {row.system.name: row for row in self.rows}
        grouped = _grouped([row.system for row in self.rows])
        return {name: [rows[each.name] for each in members] for name, members in grouped.items()}


@dataclass(frozen=True)
class Missing:
    """A run of the suite that is not finished."""

    run: RunSpec
    failure: Failure | None


@dataclass(frozen=True)
class NotRun:
    """Runs that were never begun, or not finished: every one of the systems with every one of the
    seeds in every one of the environments."""

    systems: tuple[str, ...]
    environments: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """Everything that the templates print."""

    suite: Suite
    environments: tuple[EnvironmentReport, ...]
    across: AcrossReport | None
    """None: there are fewer than two environments with a range, or too few seeds."""

    summary: tuple[str, ...]
    finished: int
    missing: tuple[Missing, ...]
    foreign: int
    """Finished runs in the folder that belong to another configuration."""

    seeds: Mapping[str, str]
    """By system: the seed indices."""

    levelling: tuple[Row, ...]
    implementations: Mapping[str, str]
    """Those in the results, with their labels."""

    versions: Mapping[str, str]
    machines: tuple[str, ...]
    busy: float | None
    """Share of a core that the trainings got, if it is so small that others must have used the
    machine."""

    commands: tuple[str, ...]
    made: str
    games: tuple[Any, ...] = ()
    """Of PettingZoo's games: who won how often against whom; see `games.GameReport`."""

    claims: tuple[Any, ...] = ()
    """What the suite tests, and what came of it; see `claims.ClaimReport`. If there are any, the
    page is about them."""

    example: Any = None
    """Example 6.7 of Sutton & Barto, if the suite asks for it; see `claims.ExampleReport`."""

    @property
    def not_run(self) -> list[NotRun]:
        """The missing runs that did not fail, in as few lines as say which they are."""
        absent = [each.run for each in self.missing if each.failure is None]
        seeds: dict[tuple[str, str], list[int]] = {}
        for run in absent:
            seeds.setdefault((run.title, run.environment.title), []).append(run.seed_index)
        environments: dict[tuple[str, tuple[int, ...]], list[str]] = {}
        for (system, environment), found in seeds.items():
            environments.setdefault((system, tuple(sorted(found))), []).append(environment)
        names: dict[tuple[tuple[str, ...], tuple[int, ...]], list[str]] = {}
        for (system, indices), where in environments.items():
            names.setdefault((tuple(where), indices), []).append(system)
        return [NotRun(tuple(found), *key) for key, found in names.items()]

    @property
    def pictures(self) -> list[Picture]:
        """All that are on the page."""
        example = [] if self.example is None else [self.example.picture]
        if self.claims:
            return [picture for claim in self.claims for picture in claim.pictures] + example
        return (
            example
            + [
                picture
                for environment in self.environments
                for picture in (
                    *environment.bias_curves,
                    *environment.curves_by_family,
                    *environment.curves_by_variant,
                    *environment.scores,
                    environment.throughput,
                )
            ]
            + (
                [*self.across.curves, self.across.intervals, *self.across.profiles]
                if self.across
                else []
            )
        )


def write_report(suite: Suite, store: Store, output: Path, *, asked_as: str) -> Path:
    """Write `index.html`, `index.md` and the pictures of the Markdown.

    Args:
        suite: What was to be run.
        store: Its results.
        output: A directory; made if it is not there.
        asked_as: The suite as the user names it, for the commands in the report.

    Returns:
        The HTML page.

    Raises:
        ReportError: no run of the suite is finished.
        StoreError: a run is damaged.
    """
    report = collect(suite, store, asked_as=asked_as)
    template = "claims" if report.claims else "report"
    page = _render(f"{template}.html.j2", report, autoescape=True)
    text = _render(f"{template}.md.j2", report, autoescape=False)
    output.mkdir(parents=True, exist_ok=True)
    for picture in report.pictures:
        _replace(output / f"{picture.name}.svg", picture.svg)
    _replace(output / "index.md", re.sub(r"\n{3,}", "\n\n", text))
    _replace(output / "index.html", page)
    return output / "index.html"


def collect(suite: Suite, store: Store, *, asked_as: str) -> Report:
    """Read the results and compute what the report says; see `write_report`."""
    names = store.names()
    results = list(_load(store, names))
    places = [suite.belongs(result.run) for result in results]
    placed = [
        (
            environment,
            [result for place, result in zip(places, results, strict=True) if place is environment],
        )
        for environment in suite.environments
    ]
    used = [result for _, found in placed for result in found]
    foreign = len(names) - len(used)
    if not used:
        others = (
            f"; the {foreign} finished {'run' if foreign == 1 else 'runs'} there belong to another "
            "configuration of the suite"
            if foreign
            else ""
        )
        raise ReportError(
            f"no run of suite {suite.name!r} is finished in {store.path}{others}. "
            f"Train first: dqn-bench run {asked_as}"
        )
    slugs = _slugs([each.spec.title for each in suite.environments])
    environments = tuple(
        _environment(environment, slugs[environment.spec.title], found)
        for environment, found in placed
        if found
    )
    missing = tuple(Missing(run, store.failure(run)) for run in suite.runs() if not store.has(run))
    seeds = _seeds(environments)
    present = {_implementation(result.run.system) for result in used}
    across = _across(environments)
    return Report(
        suite=suite,
        environments=environments,
        across=across,
        # Where there are claims, the verdicts follow.
        summary=tuple(
            islice(
                _summary(suite, environments, across, len(used), len(missing)),
                1 if suite.claims else None,
            )
        ),
        finished=len(used),
        missing=missing,
        foreign=foreign,
        seeds=seeds,
        levelling=_settings(suite, present),
        implementations={name: label for name, label in systems.LABELS.items() if name in present},
        versions=_merged(result.versions for result in used),
        machines=tuple(_machines(used)),
        busy=_busy(used),
        commands=(*_run_commands(used, suite, asked_as), f"dqn-bench report {asked_as}"),
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        games=_games().reports(suite, placed, store.path) if suite.many_agents else (),
        claims=_claims().reports(suite.claims, environments) if suite.claims else (),
        example=_claims().example() if suite.example else None,
    )


def _seeds(environments: Sequence[EnvironmentReport]) -> dict[str, str]:
    """By system: its seed indices, by environment where these differ."""
    found: dict[str, dict[str, str]] = {}
    for environment in environments:
        for system in environment.systems:
            found.setdefault(system.name, {})[environment.id] = _ranges(system.seeds)
    return {
        name: ", ".join(f"{seeds} on {environment}" for environment, seeds in where.items())
        if len(set(where.values())) > 1
        else next(iter(where.values()))
        for name, where in found.items()
    }


def _check_label(label: str, results: Sequence[RunResult]) -> None:
    """Raise `ReportError` if on one environment a label stands for two systems or configurations.
    Those of the suite's systems do not; others may have been trained under another state of it."""
    first = results[0].run
    for run in (each.run for each in results):
        if (first.system, first.config) != (run.system, run.config):
            raise ReportError(
                f"label {label!r}, which is of no system of the suite, stands for two "
                f"configurations: {first.name} and {run.name}; put the system into the suite "
                "again, or remove the runs of one"
            )


def _settings(suite: Suite, present: Collection[str]) -> tuple[Row, ...]:
    if suite.many_agents:
        rows: tuple[Row, ...] = _games().settings(suite)
        return rows
    if suite.shipped:
        return tuple(shipped_table(suite.total_timesteps, present))
    tables = {
        each.spec.title: levelling_table(each.config, each.total_timesteps)
        for each in suite.environments
    }
    return (*by_environment(tables), *own_settings(suite.systems))


def _games() -> Any:
    from dqn_adapters.benchmark import games  # which needs PettingZoo

    return games


def _claims() -> Any:
    from dqn_adapters.benchmark import claims  # which is made of what is here

    return claims


def _load(store: Store, names: Iterable[str]) -> Iterable[RunResult]:
    for name in names:
        with contextlib.suppress(ForeignRunError):
            yield store.load(name)


def _environment(
    environment: SuiteEnvironment, slug: str, results: Sequence[RunResult]
) -> EnvironmentReport:
    by_system: dict[str, list[RunResult]] = {}
    for result in results:
        by_system.setdefault(result.run.title, []).append(result)
    for label, of_label in by_system.items():
        _check_label(label, of_label)
    order = {system.name: number for number, system in enumerate(systems.ALL_SYSTEMS)}

    def place(name: str) -> tuple[int, bool, str]:
        origin = by_system[name][0].run.system
        return order.get(origin, len(order)), name != origin, name

    threshold = environment.threshold
    found = [_system(name, by_system[name], environment) for name in sorted(by_system, key=place)]
    limits = score_limits(found)
    if threshold is not None and not limits[0] <= threshold <= limits[1]:
        threshold = None

    def panels(
        groups: Mapping[str, list[SystemResult]],
        kind: str,
        line: Callable[[SystemResult], figures.Line],
        says: str,
    ) -> tuple[Picture, ...]:
        return tuple(
            Picture(
                f"{slug}-{kind}-{number}",
                f"{environment.spec.title}: {title}",
                says + " " + _curve_ends(members),
                figures.learning_curves(
                    title,
                    distinct([line(system) for system in members]),
                    limits=limits,
                    threshold=threshold,
                ),
            )
            for number, (title, members) in enumerate(groups.items(), 1)
        )

    measured = [system for system in found if any(value_checks(run) for run in system.runs)]
    by_variant: dict[str, list[SystemResult]] = {}
    for variant in VARIANTS:
        members = [each for each in found if each.variant == variant and not each.own]
        if len(members) > 1:
            by_variant[variant] = members
    says = "Greedy return against environment steps, mean over seeds."
    return EnvironmentReport(
        id=environment.spec.title,
        slug=slug,
        evaluation=environment.evaluation,
        threshold=environment.threshold,
        score_range=environment.score_range,
        margin=environment.margin,
        reward_noise=environment.spec.reward_noise,
        systems=tuple(found),
        differences=tuple(
            _difference(adapter, reference, environment.margin)
            for adapter, reference in _host_pairs(found)
        ),
        comparisons=tuple(
            _difference(system, reference, environment.margin)
            for system, reference in _variant_pairs(found)
        ),
        overestimation=tuple(overestimation(system) for system in measured),
        bias_differences=tuple(_bias_differences(measured)),
        bias_curves=_bias_pictures(slug, environment, measured),
        curves_by_family=panels(_grouped(found), "family", variant_line, says),
        curves_by_variant=panels(by_variant, "variant", _library_line, says),
        scores=(
            _interval_picture(
                f"{slug}-area", "Area under the curve", "greedy return", found, lambda s: s.area
            ),
            _interval_picture(
                f"{slug}-final", "Final score", "greedy return", found, lambda s: s.final
            ),
        ),
        throughput=_interval_picture(
            f"{slug}-throughput",
            "Training throughput",
            "environment steps per second",
            found,
            lambda s: s.steps_per_second,
            from_zero=True,
        ),
        published=tuple(
            PublishedRow(
                each,
                tuple(
                    (system.name, ours)
                    for system in found
                    if (ours := _measure(system, each)) is not None
                ),
            )
            for each in environment.published
        ),
    )


def _measure(system: SystemResult, published: Published) -> Estimate | None:
    """What was published, of ours; None: no run has finished a training episode."""
    if published.measure == "final":
        return system.final
    last = [run.episodes[-LAST_EPISODES:] for run in system.runs if run.episodes]
    returns = [float(np.mean([each.episode_return for each in episodes])) for episodes in last]
    return estimate(returns) if returns else None


def value_checks(run: RunResult) -> dict[int, ValueCheck]:
    """By environment step: of the evaluations of which the bias is the mean, those with finite
    estimates; see `BIAS_IS`."""
    return {
        each.timestep: each.values
        for each in _late(run)
        if each.values is not None and each.values.finite
    }


def _late(run: RunResult) -> list[Evaluation]:
    return [each for each in run.evaluations if 2 * each.timestep > run.run.total_timesteps]


def bias_differences(system: SystemResult, reference: SystemResult) -> tuple[float, ...]:
    """How much more a system overestimates than another, seed by seed: the mean over the
    evaluations that both runs of a seed have."""
    theirs = {run.run.seed_index: value_checks(run) for run in reference.runs}
    differences = []
    for run in system.runs:
        ours, other = value_checks(run), theirs.get(run.run.seed_index, {})
        if common := sorted(ours.keys() & other.keys()):
            each = [ours[step].bias - other[step].bias for step in common]
            differences.append(float(np.mean(each)))
    return tuple(differences)


def overestimation(system: SystemResult) -> Overestimation:
    by_run = [list(checks.values()) for run in system.runs if (checks := value_checks(run))]

    def over_runs(value: Callable[[ValueCheck], float]) -> Estimate:
        return estimate([float(np.mean([value(each) for each in checks])) for checks in by_run])

    scale = float(np.mean([abs(each.realised) for checks in by_run for each in checks])) or 1.0
    return Overestimation(
        system,
        over_runs(lambda each: each.bias),
        over_runs(lambda each: each.bias / scale),
        over_runs(lambda each: each.positive),
        diverged=sum(
            any(each.values is not None and each.values.diverged for each in run.evaluations[1:])
            for run in system.runs
        ),
        left_out=sum(len(_late(run)) - len(value_checks(run)) for run in system.runs),
    )


def _bias_differences(measured: Sequence[SystemResult]) -> Iterable[BiasDifference]:
    for system, reference in _variant_pairs(measured):
        if differences := bias_differences(system, reference):
            yield BiasDifference(system.name, reference.name, mean_difference(differences))


def bias_band(system: SystemResult) -> Band | None:
    """Mean overestimation against environment steps; None if it was not measured often enough."""
    points = [
        (step, biases)
        for number, step in enumerate(system.runs[0].timesteps)
        if len(
            biases := [
                check.bias
                for run in system.runs
                if (check := run.evaluations[number].values) is not None and check.finite
            ]
        )
        == len(system.runs)  # else the runs of the curve would change on the way
    ]
    if len(points) < 2:
        return None
    steps, curves = zip(*points, strict=True)
    return band(steps, np.transpose(curves))


def bias_limits(bands: Iterable[Band]) -> tuple[float, float]:
    """Of a common vertical axis, with 0 on it."""
    ends = [(float(each.low.min()), float(each.high.max())) for each in bands]
    low, high = min(0.0, *(low for low, _ in ends)), max(0.0, *(high for _, high in ends))
    if max(-low, high) > figures.DIVERGED:  # margins on a logarithmic axis
        return 1.5 * low - 1.0, 1.5 * high + 1.0
    margin = 0.06 * max(high - low, 1.0)
    return low - margin, high + margin


def score_limits(found: Iterable[SystemResult]) -> tuple[float, float]:
    """Of a common vertical axis of learning curves."""
    return _around([value for system in found for run in system.runs for value in run.scores])


def _around(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis that holds the values."""
    low, high = float(min(values)), float(max(values))
    margin = 0.04 * (high - low) or 1.0
    return low - margin, high + margin


def _bias_pictures(
    slug: str, environment: SuiteEnvironment, measured: Sequence[SystemResult]
) -> tuple[Picture, ...]:
    bands = {each.name: found for each in measured if (found := bias_band(each)) is not None}
    shown = [system for system in measured if system.name in bands]
    if not shown:
        return ()
    limits = bias_limits(bands.values())
    return tuple(
        Picture(
            f"{slug}-bias-{number}",
            f"{environment.spec.title}: overestimation, {title}",
            "Mean over the visited states of the estimated value minus the discounted return.",
            figures.bias_curves(
                title,
                distinct(
                    [
                        dataclasses.replace(variant_line(each), band=bands[each.name])
                        for each in members
                    ]
                ),
                limits=limits,
            ),
        )
        for number, (title, members) in enumerate(_grouped(shown).items(), 1)
    )


def _system(name: str, results: Sequence[RunResult], environment: SuiteEnvironment) -> SystemResult:
    runs = tuple(sorted(results, key=lambda result: result.run.seed_index))
    origin = runs[0].run.system
    implementation = _implementation(origin)
    own = name != origin or any(each.name == name and each.peer for each in systems.ALL_SYSTEMS)
    family = implementation.removesuffix(_REFERENCE)
    reference = implementation.endswith(_REFERENCE)
    variant = runs[0].run.config.variant
    told = next((each.label for each in systems.ALL_SYSTEMS if each.name == name), "")
    if own or family not in FAMILIES:
        label = name
    elif told:
        label = told
    elif reference:
        label = f"{variant}, host's own"
    else:
        label = variant
    low, high = environment.score_range or (0.0, 0.0)
    seconds = [run.timing.training_seconds for run in runs]
    peaks = [run.timing.peak_memory for run in runs if run.timing.peak_memory is not None]
    return SystemResult(
        name=name,
        label=label,
        family=family,
        variant=variant,
        reference=reference,
        implementation=implementation,
        own=own,
        runs=runs,
        area=estimate([normalised_area(run.timesteps, run.scores) for run in runs]),
        final=estimate([run.scores[-1] for run in runs]),
        steps_per_second=estimate(
            [run.run.total_timesteps / time for run, time in zip(runs, seconds, strict=True)]
        ),
        updates_per_second=estimate(
            [run.timing.updates / time for run, time in zip(runs, seconds, strict=True)]
        ),
        seconds=estimate(seconds),
        memory=estimate([peak / 2**20 for peak in peaks]) if len(peaks) == len(runs) else None,
        failed=sum(run.scores[-1] - run.scores[0] <= LEARNED * (high - low) for run in runs),
        solved_at=tuple(_reaches(run, environment.threshold) for run in runs),
    )


def _reaches(run: RunResult, threshold: float | None) -> int | None:
    if threshold is None:
        return None
    points = zip(run.timesteps, run.scores, strict=True)
    return next((step for step, score in points if score >= threshold), None)


Pairs = Iterable[tuple[SystemResult, SystemResult]]


def _host_pairs(found: Sequence[SystemResult]) -> Pairs:
    """Adapters and the hosts' own DQN, of the same variant, that have seeds in common."""
    for reference in found:
        if not reference.reference or reference.own:
            continue
        for adapter in found:
            levelled = not adapter.reference and not adapter.own
            same = (adapter.family, adapter.variant) == (reference.family, reference.variant)
            if levelled and same and set(adapter.seeds) & set(reference.seeds):
                yield adapter, reference


def _variant_pairs(found: Sequence[SystemResult]) -> Pairs:
    """Variants and the target variant, systems with settings of their own and their origin."""
    for system in found:
        for reference in found:
            if reference.own or system.implementation != reference.implementation:
                continue
            origin = system.own and reference.name == system.runs[0].run.system
            variant = not system.own and reference.variant == "target" != system.variant
            if (origin or variant) and set(system.seeds) & set(reference.seeds):
                yield system, reference


def _difference(system: SystemResult, reference: SystemResult, margin: float | None) -> Difference:
    samples = paired_differences(system.by_seed(system.area), reference.by_seed(reference.area))
    return Difference(
        system.name,
        reference.name,
        mean_difference(samples),
        system.steps_per_second.mean / reference.steps_per_second.mean,
        equivalence(samples, margin) if margin and len(samples) >= MIN_SAMPLES else None,
        idle=system.failed + reference.failed == len(system.runs) + len(reference.runs),
    )


@dataclass(frozen=True)
class Comparison:
    """Two systems on one environment."""

    environment: EnvironmentReport
    difference: Difference
    improvement: Aggregate | None
    """P(a run of the first scores more than one of the second); None: too few seeds."""


def compare(
    suite: Suite, store: Store, names: tuple[str, str], *, asked_as: str
) -> list[Comparison]:
    """Two systems seed by seed, on every environment where both have seeds in common.

    Raises:
        ReportError: no run of the suite is finished, or the two have no seed in common.
    """
    found = []
    report = collect(suite, store, asked_as=asked_as)
    for environment in report.environments:
        by_name = {system.name: system for system in environment.systems}
        one, other = (by_name.get(name) for name in names)
        if one is None or other is None or not set(one.seeds) & set(other.seeds):
            continue
        enough = min(len(one.runs), len(other.runs)) >= MIN_SAMPLES
        found.append(
            Comparison(
                environment,
                _difference(one, other, environment.margin),
                probability_of_improvement([one.area.samples], [other.area.samples])
                if enough
                else None,
            )
        )
    if not found:
        known = sorted({each.name for part in report.environments for each in part.systems})
        raise ReportError(
            f"{names[0]!r} and {names[1]!r} have no finished run of the same environment and seed; "
            f"finished runs are there of {', '.join(known)}"
        )
    return found


def _across(environments: Sequence[EnvironmentReport]) -> AcrossReport | None:
    """The environments together, and the systems that have enough seeds on all of them."""
    ranged = tuple(each for each in environments if each.score_range is not None)
    if len(ranged) < 2:
        return None
    scores: dict[str, list[list[float]]] = {}
    for system in ranged[0].systems:
        curves = _normalised(system.name, ranged)
        if len(curves[0]) >= MIN_SAMPLES:
            scores[system.name] = [
                [normalised_area(each.evaluation.timesteps, curve) for curve in members]
                for members, each in zip(curves, ranged, strict=True)
            ]
    if not scores:
        return None
    found = [system for system in ranged[0].systems if system.name in scores]
    rows_ = tuple(
        AcrossRow(each, aggregate_iqm(scores[each.name]), aggregate_mean(scores[each.name]))
        for each in found
    )
    pairs = [*_variant_pairs(found), *_host_pairs(found)]
    grid = np.linspace(0.0, max(1.0, *(max(map(max, rows)) for rows in scores.values())), 101)
    iqm = {row.system.name: row.iqm for row in rows_}
    return AcrossReport(
        environments=ranged,
        rows=rows_,
        improvements=tuple(
            Improvement(a.name, b.name, probability_of_improvement(scores[a.name], scores[b.name]))
            for a, b in pairs
        ),
        curves=tuple(_efficiency(ranged, found)),
        intervals=_interval_picture(
            "across-iqm",
            "All environments: interquartile mean",
            "normalised area under the curve",
            found,
            lambda s: Estimate(
                iqm[s.name].value, iqm[s.name].low, iqm[s.name].high, (), "interval"
            ),
        ),
        profiles=tuple(
            Picture(
                f"across-profile-{number}",
                f"All environments: {title}",
                "Share of runs whose normalised area under the curve is above a score.",
                figures.profiles(
                    title,
                    distinct(
                        [
                            dataclasses.replace(
                                variant_line(each), band=_profile(scores[each.name], grid)
                            )
                            for each in members
                        ]
                    ),
                ),
            )
            for number, (title, members) in enumerate(_grouped(found).items(), 1)
        ),
    )


def _normalised(
    name: str, environments: Sequence[EnvironmentReport]
) -> list[list[NDArray[np.float64]]]:
    """By environment, the normalised scores of a system's runs `(evaluations,)`, of the seeds that
    it has on every environment: with more on one, that one would count more."""
    found = [
        {
            run.run.seed_index: run
            for each in there.systems
            if each.name == name
            for run in each.runs
        }
        for there in environments
    ]
    seeds = sorted(set.intersection(*map(set, found)))
    return [
        [(np.array(runs[seed].scores) - low) / (high - low) for seed in seeds]
        for runs, each in zip(found, environments, strict=True)
        for low, high in [each.score_range or (0.0, 1.0)]
    ]


def _efficiency(
    environments: Sequence[EnvironmentReport], found: Sequence[SystemResult]
) -> Iterable[Picture]:
    """Curves of the systems over the environments together, a panel per family."""
    if len({len(each.evaluation.timesteps) for each in environments}) > 1:
        return
    timesteps = {each.evaluation.timesteps for each in environments}
    shares = len(timesteps) > 1
    x = np.array(environments[0].evaluation.timesteps, np.float64)
    if shares:
        x /= x[-1]
    lines = {
        system.name: dataclasses.replace(
            variant_line(system), band=iqm_curve(x, _normalised(system.name, environments))
        )
        for system in found
    }
    ends = [end for line in lines.values() for end in (*line.band.low, *line.band.high)]
    limits = _around(ends)
    for number, (title, members) in enumerate(_grouped(found).items(), 1):
        last = [f"{each.name} {_two_decimals(lines[each.name].band.mean[-1])}" for each in members]
        yield Picture(
            f"across-curves-{number}",
            f"All environments: {title}",
            "Interquartile mean of the normalised greedy return along the training. At the end: "
            f"{'; '.join(last)}.",
            figures.efficiency_curves(
                title,
                distinct([lines[each.name] for each in members]),
                limits=limits,
                shares=shares,
            ),
        )


def _profile(scores: Sequence[Sequence[float]], grid: NDArray[np.float64]) -> Band:
    found = performance_profile(scores, grid)
    samples = np.stack([found.low, found.high])
    return Band(found.thresholds, found.share, found.low, found.high, samples, "interval")


def _summary(
    suite: Suite,
    environments: Sequence[EnvironmentReport],
    across: AcrossReport | None,
    finished: int,
    missing: int,
) -> Iterable[str]:
    names = {system.name for each in environments for system in each.systems}
    counts = sorted({len(system.runs) for each in environments for system in each.systems})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    steps = sorted({each.total_timesteps for each in environments})
    under = "as its library ships it" if suite.shipped else "under one levelled configuration"
    if not suite.one_configuration:
        under += " per environment"
    yield (
        f"{_count(len(names), 'system')}, {'each ' if len(names) > 1 else ''}an implementation "
        "and a variant of DQN, trained on "
        f"{join_and([each.id for each in environments])} for "
        f"{' to '.join(f'{each:,}' for each in dict.fromkeys([steps[0], steps[-1]]))} environment "
        f"steps {under}, with {seeds} "
        f"{'seed' if counts == [1] else 'seeds'} each. "
        + (
            f"All {_count(finished, 'run')} finished."
            if not missing
            else f"{_count(finished, 'run')} finished, {missing} missing."
        )
    )
    if counts[-1] >= MIN_SAMPLES:
        yield (
            f"Square brackets give {CONFIDENCE:.0%} confidence intervals of the mean over seeds, "
            "of a system by itself (BCa bootstrap, somewhat narrow with few seeds) or of a "
            "difference seed by seed (Student's t). Overlapping intervals of two systems do not "
            "prove equality."
        )
    if counts[0] < MIN_SAMPLES:
        yield (
            f"With fewer than {MIN_SAMPLES} seeds there is no honest confidence interval. Round "
            "brackets give the smallest and the largest seed instead, and which system is better "
            "is not decided."
        )
    if across is not None:
        yield _taken_together(across)
    yield from _verdicts(environments)
    for each in environments:
        yield " ".join(_on_one(each))


def _taken_together(across: AcrossReport) -> str:
    ranked = sorted(across.rows, key=lambda row: row.iqm.value)
    best, worst = ranked[-1], ranked[0]
    text = (
        f"Over {len(across.environments)} environments together, where 0 and 1 are the ends of a "
        "range that the suite states for each, the interquartile mean of the area under the curve "
        f"is highest for {best.system.name}, {show_aggregate(best.iqm)}"
    )
    if best is not worst:
        text += f", and lowest for {worst.system.name}, {show_aggregate(worst.iqm)}"
    return f"{text}."


def _verdicts(environments: Sequence[EnvironmentReport]) -> Iterable[str]:
    """What the paired differences decide; the numbers are in their tables."""
    groups: dict[str, list[tuple[str, Difference]]] = {}
    for environment in environments:
        members = {system.name: system for system in environment.systems}
        for each in environment.comparisons:
            if each.area.kind == "interval":
                system, reference = members[each.system], members[each.reference]
                names = (
                    f"{system.name} against {reference.name}"
                    if system.own
                    else f"The {system.variant} variant against the {reference.variant} variant"
                )
                groups.setdefault(names, []).append((environment.id, each))
    for names, found in groups.items():
        yield _verdict(names, found)
    hosts = [
        (environment.id, each)
        for environment in environments
        for each in environment.differences
        if each.area.kind == "interval"
    ]
    if not hosts:
        return
    text = _verdict("Adapters against their hosts' own DQN", hosts)
    tested = [(each.idle, test.equivalent) for _, each in hosts if (test := each.equivalence)]
    if tested:
        shown = [equivalent for idle, equivalent in tested if not idle]
        text += (
            f" Equivalence within the margin of the suite is shown in {sum(shown)} of {len(shown)}"
        )
        idle = len(tested) - len(shown)
        text += f"; in {idle} more neither learned anything." if idle else "."
    yield text


def _verdict(names: str, found: Sequence[tuple[str, Difference]]) -> str:
    """Of paired differences whose intervals are known."""

    def told(chosen: Sequence[tuple[str, Difference]]) -> str:
        which = [
            f"{each.system} on {environment} {show_difference(each.area)}"
            for environment, each in chosen
        ]
        return f"in {len(which)} ({join_and(which)})" if which else "in none"

    more = [pair for pair in found if pair[1].area.outcome == "more"]
    less = [pair for pair in found if pair[1].area.outcome == "less"]
    return (
        f"{names}, the area under the curve seed by seed, {_count(len(found), 'comparison')}: more "
        f"{told(more)}, less {told(less)}, no difference shown in "
        f"{len(found) - len(more) - len(less) or 'none'}."
    )


def _on_one(environment: EnvironmentReport) -> Iterable[str]:
    ranked = sorted(environment.systems, key=lambda system: system.area.mean)
    lowest, highest = ranked[0], ranked[-1]
    start = {round(run.scores[0], 9) for system in environment.systems for run in system.runs}
    text = f"On {environment.id} the mean greedy return over the training is "
    if lowest is highest:
        text += f"{show_estimate(highest.area)} for {highest.name}"
    else:
        text += (
            f"highest for {highest.name}, {show_estimate(highest.area)}, and lowest for "
            f"{lowest.name}, {show_estimate(lowest.area)}"
        )
    yield f"{text}. Untrained networks score {_span(start)}."
    if text := _variant_means(environment.systems):
        yield text
    yield _nothing_learned(environment.systems)
    if environment.overestimation:
        yield _overestimated(environment)
    fastest = max(environment.systems, key=lambda system: system.steps_per_second.mean)
    text = (
        f"Fastest in training is {fastest.name} with "
        f"{fastest.steps_per_second.mean:,.0f} environment steps per second"
    )
    ratios = [f"{item.system} is {item.speed:.2f} times" for item in environment.differences]
    yield text + (f"; {join_and(ratios)} as fast as the host's own DQN." if ratios else ".")


def _variant_means(found: Sequence[SystemResult]) -> str:
    groups: dict[str, dict[str, float]] = {}
    for system in found:
        if not system.own:
            groups.setdefault(system.implementation, {})[system.variant] = system.area.mean
    complete = [group for group in groups.values() if set(group) == set(VARIANTS)]
    if len(complete) < 2:  # the average of one is in the table
        return ""
    means = [
        f"{variant} {show_number(sum(group[variant] for group in complete) / len(complete))}"
        for variant in VARIANTS
    ]
    return (
        f"Averaged over the {len(complete)} implementations with all three variants: "
        f"{join_and(means)}."
    )


def _nothing_learned(found: Sequence[SystemResult]) -> str:
    worse = {system.name: system.failed for system in found}
    names = [f"{name} ({count})" for name, count in worse.items() if count]
    if not names:
        return "Every run learned something."
    runs = sum(len(system.runs) for system in found)
    return f"{sum(worse.values())} of {runs} runs learned nothing: {join_and(names)}."


def _overestimated(environment: EnvironmentReport) -> str:
    off = [f"{each.system.name} {show_ratio(each.bias)}" for each in environment.overestimation]
    text = (
        "Estimates minus what was then earned are, in the mean over states and the second half of "
        f"the training, {join_and(off)}"
    )
    differences = [
        f"{each.system} minus {each.reference} is {show_ratio(each.bias)}"
        for each in environment.bias_differences
    ]
    return text + (f"; seed by seed {join_and(differences)}." if differences else ".")


def variant_line(system: SystemResult) -> figures.Line:
    return figures.Line(
        system.label,
        _band(system),
        figures.VARIANT_COLOURS[system.variant],
        figures.VARIANT_MARKERS[system.variant],
        dashed=system.reference,
    )


def distinct(lines: Sequence[figures.Line]) -> list[figures.Line]:
    """The lines; systems with settings of their own do not look like those they come from."""
    spare = iter(figures.SPARE * len(lines))
    seen: set[tuple[str, str, bool]] = set()
    distinct = []
    for line in lines:
        if (line.colour, line.marker, line.dashed) in seen:
            colour, marker = next(spare)
            line = dataclasses.replace(line, colour=colour, marker=marker)
        seen.add((line.colour, line.marker, line.dashed))
        distinct.append(line)
    return distinct


def _library_line(system: SystemResult) -> figures.Line:
    return figures.Line(
        systems.LABELS.get(system.implementation, system.name),
        _band(system),
        figures.LIBRARY_COLOURS.get(system.family, figures.SKY),
        figures.LIBRARY_MARKERS.get(system.family, "P"),
        dashed=system.reference,
    )


def _band(system: SystemResult) -> Any:
    return band(system.runs[0].timesteps, [run.scores for run in system.runs])


def _interval_picture(
    name: str,
    title: str,
    label: str,
    found: Sequence[SystemResult],
    value: Callable[[SystemResult], Estimate],
    *,
    from_zero: bool = False,
) -> Picture:
    groups = {
        heading: [
            figures.Mark(
                system.label,
                value(system),
                figures.VARIANT_COLOURS[system.variant],
                figures.VARIANT_MARKERS[system.variant],
                hollow=system.reference,
            )
            for system in members
        ]
        for heading, members in _grouped(found).items()
    }
    return Picture(
        name,
        title,
        f"A row per system, {label}; the numbers are in the table.",
        figures.intervals(title, groups, label=label, from_zero=from_zero),
    )


def _curve_ends(members: Sequence[SystemResult]) -> str:
    return (
        "At the end: "
        + "; ".join(f"{system.name} {show_number(system.final.mean)}" for system in members)
        + "."
    )


def _grouped(found: Sequence[SystemResult]) -> dict[str, list[SystemResult]]:
    groups: dict[str, list[SystemResult]] = {}
    for system in found:
        groups.setdefault(FAMILIES.get(system.family, _OTHERS), []).append(system)
    return groups


def _implementation(name: str) -> str:
    return next((each.implementation for each in systems.ALL_SYSTEMS if each.name == name), name)


def _merged(found: Iterable[Mapping[str, str]]) -> dict[str, str]:
    values: dict[str, dict[str, None]] = {}
    for versions in found:
        for name, version in versions.items():
            values.setdefault(name, {})[version] = None
    return {name: " and ".join(versions) for name, versions in values.items()}


def _machines(results: Sequence[RunResult]) -> Iterable[str]:
    counts = Counter(
        "{processor}, {cores} cores, {threads} threads, {memory_gib} GiB, {system}".format_map(
            result.machine
        )
        + f"; {_count(result.workers, 'worker process', 'worker processes')} of one thread"
        for result in results
    )
    for text, count in counts.items():
        yield text if len(counts) == 1 else f"{text} ({_count(count, 'run')})"


def _busy(results: Sequence[RunResult]) -> float | None:
    cpu = sum(result.timing.cpu_seconds for result in results)
    share = cpu / sum(result.timing.training_seconds for result in results)
    return share if share < _IDLE_SHARE else None


def _run_commands(used: Sequence[RunResult], suite: Suite, asked_as: str) -> Iterable[str]:
    """What makes the runs in the report: a line, and one more for systems with more seeds."""
    seeds = {each.name: set(suite.seeds) for each in suite.systems}
    declared = list(seeds)
    for result in used:
        seeds.setdefault(result.run.title, set(suite.seeds)).add(result.run.seed_index)
    for count in sorted({len(each) for each in seeds.values()}):
        chosen = [name for name, each in seeds.items() if len(each) >= count]
        command = f"dqn-bench run {asked_as}"
        if chosen != declared:
            command += f" --systems {','.join(chosen)}"
        yield command if count == len(suite.seeds) else f"{command} --seeds {count}"


def _ranges(numbers: Sequence[int]) -> str:
    parts: list[str] = []
    start = previous = numbers[0]
    for number in (*numbers[1:], None):
        if number is not None and number == previous + 1:
            previous = number
            continue
        if previous - start > 1:
            parts.append(f"{start} to {previous}")
        else:
            parts += [f"{each}" for each in range(start, previous + 1)]
        if number is not None:
            start = previous = number
    return ", ".join(parts)


def show_estimate(value: Estimate) -> str:
    """`12.3 [10.1, 14.5]` is a mean with its interval, `12.3 (10.1 to 14.5)` one with the range."""
    return f"{show_mean(value)} {show_bounds(value)}".rstrip()


def show_mean(value: Estimate) -> str:
    """With as many decimals as `show_bounds`."""
    return show_number(value.mean, _decimals(value))


def show_difference(value: Estimate) -> str:
    """As `show_estimate`, with a sign also where it is a plus."""
    return show_estimate(value) if value.mean < 0 else f"+{show_estimate(value)}"


def show_bounds(value: Estimate) -> str:
    if value.n == 1:
        return ""
    decimals = _decimals(value)
    if value.kind == "range":
        return f"({show_number(value.low, decimals)} to {show_number(value.high, decimals)})"
    return f"[{show_number(value.low, decimals)}, {show_number(value.high, decimals)}]"


def _decimals(value: Estimate) -> int:
    """Two more digits where scores are below 1."""
    largest = max(abs(value.low), abs(value.mean), abs(value.high))
    return 1 if largest >= 1 or largest == 0 else 2 if largest >= 0.1 else 3


def show_aggregate(value: Aggregate) -> str:
    """A number of the order of 1 with its interval."""
    text = f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"
    return text.replace("-", "\N{MINUS SIGN}")


def show_ratio(value: Estimate) -> str:
    """As `show_estimate`, with two decimals where there are no thousands."""
    return f"{_two_decimals(value.mean)} {_ratio_bounds(value)}".rstrip()


def _ratio_bounds(value: Estimate) -> str:
    if value.n == 1:
        return ""
    low, high = _two_decimals(value.low), _two_decimals(value.high)
    return f"({low} to {high})" if value.kind == "range" else f"[{low}, {high}]"


def _two_decimals(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}"
    return text.replace("-", "\N{MINUS SIGN}")


def show_equivalence(difference: Difference) -> str:
    """Whether two systems are shown to score the same."""
    text = _equivalent(difference.equivalence)
    return f"{text}; neither learned" if difference.idle else text


def _equivalent(found: Equivalence | None) -> str:
    if found is None:
        return f"fewer than {MIN_SAMPLES} seeds"
    p = "p < 0.001" if found.p_value < 0.001 else f"p = {found.p_value:.3f}"
    interval = f"[{show_number(found.low)}, {show_number(found.high)}]"
    return f"{'yes' if found.equivalent else 'not shown'}, {p}, {interval}"


def _solved_by(system: SystemResult) -> str:
    steps = system.median_steps
    return "(\N{EN DASH})" if steps is None else f"({steps:,})"


def _by_value(mapping: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Names that share a value, together."""
    groups: dict[str, list[str]] = {}
    for name, value in mapping.items():
        groups.setdefault(value, []).append(name)
    return list(groups.items())


def show_number(value: float, decimals: int = 1) -> str:
    rounded = round(value, decimals) + 0.0  # no -0.0
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{rounded:.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def _span(values: set[float]) -> str:
    low, high = show_number(min(values)), show_number(max(values))
    return low if low == high else f"{low} to {high}"


def _count(count: int, noun: str, plural: str = "") -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def join_and(items: Sequence[str]) -> str:
    """`a, b and c`; with semicolons if there are commas in what is joined."""
    if len(items) < 3:
        return " and ".join(items)
    if any("," in item for item in items):
        return f"{'; '.join(items[:-1])}; and {items[-1]}"
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _slugs(titles: Sequence[str]) -> dict[str, str]:
    """Names of files; those that would be the same, or empty, are numbered."""
    plain = [re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in titles]
    return {
        title: slug if slug and plain.count(slug) == 1 else f"{slug or 'environment'}-{number}"
        for number, (title, slug) in enumerate(zip(titles, plain, strict=True), 1)
    }


def _render(template: str, report: Report, *, autoescape: bool) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dqn_adapters.benchmark"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        estimate=show_estimate,
        bounds=show_bounds,
        mean=show_mean,
        number=show_number,
        count=_count,
        aggregate=show_aggregate,
        equivalent=_equivalent,
        solved_by=_solved_by,
        ratio=show_ratio,
        ratio_bounds=_ratio_bounds,
        two_decimals=_two_decimals,
        by_value=_by_value,
        ranges=_ranges,
        minus=lambda value: f"{value:g}".replace("-", "\N{MINUS SIGN}"),
        sum_effects=lambda claims: sum(
            len(e.effects) for each in claims for e in each.environments
        ),
        # `name` in a text of a suite.
        code=lambda text: Markup(
            re.sub(r"`([^`]+)`", r"<code>\1</code>", str(Markup.escape(text)))
        ),
        breakable=lambda text: Markup(re.sub(r"([_=])", r"\1<wbr>", str(Markup.escape(text)))),
        cell=lambda text: " ".join(text.split()).replace("|", "\\|"),
    )
    return environment.get_template(template).render(
        report=report,
        suite=report.suite,
        bias_is=BIAS_IS,
        diverged_is=DIVERGED_IS,
        last_episodes=LAST_EPISODES,
        learned=LEARNED,
        min_samples=MIN_SAMPLES,
    )


def _replace(path: Path, text: str) -> None:
    with replacing_text(path) as file:
        file.write(text)
