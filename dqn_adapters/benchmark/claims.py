"""Claims about the parts of DQN: what was compared, and what the numbers say, whichever way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dqn_adapters.benchmark import figures
from dqn_adapters.benchmark.maximization_bias import Toy, agreement, simulate, tabular
from dqn_adapters.benchmark.report import (
    EnvironmentReport,
    Overestimation,
    Picture,
    SystemResult,
    bias_band,
    bias_differences,
    bias_limits,
    distinct,
    join_and,
    score_limits,
    show_difference,
    show_ratio,
    variant_line,
)
from dqn_adapters.benchmark.statistics import (
    MIN_SAMPLES,
    Estimate,
    Outcome,
    mean_difference,
    paired_differences,
)
from dqn_adapters.benchmark.suite import Claim, Metric
from dqn_adapters.config import VARIANTS


@dataclass(frozen=True)
class _Words:
    """How a metric is spoken of."""

    noun: str
    """The metric."""

    of: str
    """The same in titles."""

    label: str
    """On the axis of differences."""

    more: str
    """The part makes it larger."""

    less: str
    not_shown: str
    """Neither is shown."""

    show: Callable[[Estimate], str]


_SCORE = ("helps the score", "hurts the score", "is not shown to change the score")
_WORDS: Mapping[Metric, _Words] = {
    "area": _Words(
        "area under the curve",
        "the area",
        "difference of the area, greedy return",
        *_SCORE,
        show_difference,
    ),
    "final": _Words(
        "final score",
        "the final score",
        "difference of the final score, greedy return",
        *_SCORE,
        show_difference,
    ),
    "bias": _Words(
        "overestimation",
        "overestimation",
        "difference of the overestimation",
        "raises the estimates",
        "lowers the estimates",
        "is not shown to change the estimates",
        lambda value: show_ratio(value) if value.mean < 0 else f"+{show_ratio(value)}",
    ),
}


@dataclass(frozen=True)
class Effect:
    """A system with the part against one without it, on one environment."""

    metric: Metric
    having: str
    lacking: str
    difference: Estimate
    """Of the paired differences, having - lacking."""

    without: Estimate
    """The metric of the system without the part."""

    @property
    def outcome(self) -> Outcome:
        """What the interval shows."""
        return self.difference.outcome

    @property
    def shown(self) -> str:
        """The difference with its interval."""
        return _WORDS[self.metric].show(self.difference)

    @property
    def noun(self) -> str:
        """The metric."""
        return _WORDS[self.metric].noun


@dataclass(frozen=True)
class Arm:
    """One of the compared systems."""

    system: SystemResult
    bias: Overestimation | None


@dataclass(frozen=True)
class ClaimOnEnvironment:
    """A claim on one environment."""

    id: str
    arms: tuple[Arm, ...]
    effects: tuple[Effect, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class ClaimReport:
    """A claim, what came of it, and the sentence that says so."""

    claim: Claim
    verdicts: tuple[str, ...]
    """A sentence per metric, and one about the best of several systems with the part."""

    environments: tuple[ClaimOnEnvironment, ...]

    @property
    def pictures(self) -> list[Picture]:
        """All of them."""
        return [picture for each in self.environments for picture in each.pictures]

    @property
    def values(self) -> bool:
        """Whether estimated values were held against returns."""
        return "bias" in self.claim.metrics


@dataclass(frozen=True)
class ExampleReport:
    """Example 6.7 of Sutton & Barto (2018), learned with the TD targets of the agents."""

    toy: Toy
    oracle_runs: int
    picture: Picture
    rows: tuple[tuple[str, float, float, float], ...]
    """Variant; share of left at the worst, and at the end; share of the episodes in which it is
    within the 95 % band of its tabular oracle."""


def reports(
    claims: Sequence[Claim], environments: Sequence[EnvironmentReport]
) -> tuple[ClaimReport, ...]:
    """What the finished runs say of the claims.

    Args:
        claims: Of the suite.
        environments: With the systems of which runs are finished. A claim goes without an
            environment on which no two of its systems have a seed in common.
    """
    return tuple(_claim(number, each, environments) for number, each in enumerate(claims, 1))


def example(runs: int = 1000, oracle_runs: int = 400) -> ExampleReport:
    """Run Example 6.7 by our targets, and by tables in plain Python."""
    toy = Toy(runs=runs)
    lines, rows = [], []
    for variant in VARIANTS:
        ours, oracle = simulate(variant, toy), tabular(variant, toy, runs=oracle_runs)
        band = agreement(oracle, oracle_runs, toy.runs)
        lines.append(
            figures.ExampleLine(
                variant,
                ours.left,
                *band,
                figures.VARIANT_COLOURS[variant],
                figures.VARIANT_MARKERS[variant],
            )
        )
        within = float(np.mean((band[0] <= ours.left) & (ours.left <= band[1])))
        rows.append((variant, float(ours.left.max()), float(ours.left[-20:].mean()), within))
    return ExampleReport(
        toy,
        oracle_runs,
        Picture(
            "example-6-7",
            "Example 6.7",
            "Share of runs that go left from A, against episodes; the optimal share is dotted.",
            figures.example(lines, optimal=toy.optimal),
        ),
        tuple(rows),
    )


def _claim(number: int, claim: Claim, environments: Sequence[EnvironmentReport]) -> ClaimReport:
    found = []
    for environment in environments:
        by_name = {system.name: system for system in environment.systems}
        biases = {each.system.name: each for each in environment.overestimation}
        effects = [
            Effect(
                metric,
                one,
                other,
                mean_difference(differences),
                biases[other].bias if metric == "bias" else _scores(by_name[other], metric),
            )
            for metric in claim.metrics
            for one in claim.having
            for other in claim.lacking
            if one in by_name and other in by_name
            if (differences := _differences(by_name[one], by_name[other], metric))
        ]
        if not effects:
            continue
        named = [*claim.having, *claim.lacking]
        members = [by_name[name] for name in named if name in by_name]
        pictures = _pictures(f"claim-{number}-{environment.slug}", environment, members, effects)
        found.append(
            ClaimOnEnvironment(
                environment.id,
                tuple(Arm(each, biases.get(each.name)) for each in members),
                tuple(effects),
                tuple(pictures),
            )
        )
    return ClaimReport(claim, tuple(_verdicts(claim, found)), tuple(found))


def _scores(system: SystemResult, metric: Metric) -> Estimate:
    return system.area if metric == "area" else system.final


def _differences(one: SystemResult, other: SystemResult, metric: Metric) -> tuple[float, ...]:
    if metric == "bias":
        return bias_differences(one, other)
    ours, theirs = (each.by_seed(_scores(each, metric)) for each in (one, other))
    return paired_differences(ours, theirs)


def _verdicts(claim: Claim, environments: Sequence[ClaimOnEnvironment]) -> Iterable[str]:
    effects = [effect for each in environments for effect in each.effects]
    if not effects:
        yield "Not decided: no two of the systems have finished the same seed."
        return
    if all(effect.outcome == "too few" for effect in effects):
        yield f"Not decided: fewer than {MIN_SAMPLES} seeds have finished."
        return
    for metric in claim.metrics:
        parts = [
            f"on {each.id} {_on_environment(claim, found)}"
            for each in environments
            if (found := [effect for effect in each.effects if effect.metric == metric])
        ]
        if parts:
            yield f"{_capital('; '.join(parts))}."
    for each in environments:
        if text := _best(claim, each):
            yield text


def _on_environment(claim: Claim, effects: Sequence[Effect]) -> str:
    """`the target network helps the score with a and b, hurts the score with c`."""
    words = _WORDS[effects[0].metric]
    phrases: Mapping[Outcome, str] = {
        "more": words.more,
        "less": words.less,
        "not shown": words.not_shown,
        "too few": f"has too few seeds for a word on the {words.noun}",
    }
    texts = [
        f"{phrase}{_compared(claim, members, numbers=len(effects) <= 2)}"
        for outcome, phrase in phrases.items()
        if (members := [effect for effect in effects if effect.outcome == outcome])
    ]
    text = f"{claim.part} {join_and(texts)}"
    if effects[0].metric == "bias":
        text += f", where {join_and(list(dict.fromkeys(map(_off, effects))))}"
    return text


def _compared(claim: Claim, effects: Sequence[Effect], *, numbers: bool) -> str:
    """Of which comparisons it is true; without numbers these are left to the table."""
    one, other = len(claim.having) == 1, len(claim.lacking) == 1
    if one and other:
        return f" ({effects[0].shown})"
    if other:
        preposition, names = "with", [f"`{effect.having}`" for effect in effects]
    elif one:
        preposition, names = "against", [f"`{effect.lacking}`" for effect in effects]
    else:
        preposition = "in"
        names = [f"`{effect.having}` against `{effect.lacking}`" for effect in effects]
    if numbers:
        names = [f"{name} ({each.shown})" for name, each in zip(names, effects, strict=True)]
    return f" {preposition} {join_and(names)}"


def _off(effect: Effect) -> str:
    """Whether there is something to reduce."""
    bias = effect.without
    if bias.kind == "interval" and bias.low > 0:
        state = "too high"
    elif bias.kind == "interval" and bias.high < 0:
        state = "too low"
    else:
        state = "not shown to be off"
    return f"those of `{effect.lacking}` are {state} ({show_ratio(bias)})"


def _best(claim: Claim, environment: ClaimOnEnvironment) -> str:
    """Which of several systems with the part has the highest area, and what is not shown to be
    worse."""
    members = [arm.system for arm in environment.arms if arm.system.name in claim.having]
    if "area" not in claim.metrics or len(members) < 2:
        return ""
    best = max(members, key=lambda system: system.area.mean)
    close = []
    for other in members:
        differences = _differences(best, other, "area")
        if other is best:
            continue
        if not differences or mean_difference(differences).outcome != "more":
            close.append(f"`{other.name}`")
    text = f"On {environment.id} `{best.name}` has the highest mean area of these"
    if not close:
        return f"{text}, and every other is shown to be lower."
    return f"{text}; that it is higher than that of {join_and(close)} is not shown."


def _pictures(
    slug: str,
    environment: EnvironmentReport,
    members: Sequence[SystemResult],
    effects: Sequence[Effect],
) -> Iterable[Picture]:
    # Systems without settings of their own come first, so that they keep the colour of a variant.
    ordered = sorted(members, key=lambda system: system.own)
    styled = distinct(
        [dataclasses.replace(variant_line(each), label=each.name) for each in ordered]
    )
    lines = {each.name: line for each, line in zip(ordered, styled, strict=True)}
    shown = [lines[each.name] for each in members]
    yield Picture(
        f"{slug}-curves",
        f"{environment.id}: learning curves",
        "Greedy return against environment steps, mean over seeds.",
        figures.learning_curves(
            environment.id,
            shown,
            limits=score_limits(members),
            threshold=_visible(environment.threshold, score_limits(members)),
        ),
    )
    metrics = list(dict.fromkeys(effect.metric for effect in effects))
    bands = {each.name: found for each in members if (found := bias_band(each)) is not None}
    if "bias" in metrics and bands:
        yield Picture(
            f"{slug}-bias",
            f"{environment.id}: overestimation",
            "Mean over the visited states of the estimated value minus the discounted return.",
            figures.bias_curves(
                f"{environment.id}: overestimation",
                [dataclasses.replace(lines[name], band=band) for name, band in bands.items()],
                limits=bias_limits(bands.values()),
            ),
        )
    for metric in metrics:
        groups: dict[str, list[figures.Mark]] = {}
        for effect in effects:
            if effect.metric != metric:
                continue
            line = lines[effect.having]
            groups.setdefault(f"against {effect.lacking}", []).append(
                figures.Mark(effect.having, effect.difference, line.colour, line.marker)
            )
        yield Picture(
            f"{slug}-effect-{metric}",
            f"{environment.id}: effect on the {_WORDS[metric].noun}",
            "A row per comparison: the paired differences of the seeds, their mean, its interval.",
            figures.intervals(
                f"Effect on {_WORDS[metric].of}",
                groups,
                label=_WORDS[metric].label,
                from_zero=True,
            ),
        )


def _visible(threshold: float | None, limits: tuple[float, float]) -> float | None:
    if threshold is None or not limits[0] <= threshold <= limits[1]:
        return None
    return threshold


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
