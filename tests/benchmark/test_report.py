import dataclasses
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from benchmark.conftest import suite_text
from scipy import stats

from dqn_adapters.benchmark import Evaluation, RunSpec, Suite, figures, load_suite
from dqn_adapters.benchmark.recorder import Episode, ValueCheck
from dqn_adapters.benchmark.report import (
    NotRun,
    ReportError,
    _slugs,
    collect,
    score_limits,
    show_equivalence,
    show_estimate,
    write_report,
)
from dqn_adapters.benchmark.statistics import Estimate
from dqn_adapters.benchmark.store import Failure, RunResult, Store, Timing
from dqn_adapters.benchmark.suite import SuiteError
from dqn_adapters.benchmark.systems import SYSTEMS, find
from dqn_adapters.config import DQNConfig

Make = Callable[..., Suite]


def result(
    run: RunSpec,
    score: Callable[[RunSpec, int], float],
    seconds: float = 2.0,
    cpu_share: float = 0.99,
) -> RunResult:
    timesteps = run.evaluation.timesteps
    return RunResult(
        run=run,
        evaluations=tuple(
            Evaluation(step, (score(run, step), score(run, step) + 2.0), (5, 7))
            for step in timesteps
        ),
        episodes=(Episode(9, 9.0, 9),),
        timing=Timing(
            seconds,
            tuple(np.linspace(0, seconds, len(timesteps))),
            24,
            cpu_share * seconds,
            3 << 20,
        ),
        versions={"python": "3.11", "torch": "2.13.0"},
        machine={
            "system": "Linux x86_64",
            "processor": "A & B <fast>",
            "cores": 2,
            "threads": 2,
            "memory_gib": 8.0,
        },
        workers=2,
    )


def rising(run: RunSpec, step: int) -> float:
    return 9.0 + step + 10 * run.seed_index


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results", "small")


def fill(suite: Suite, store: Store, score: Callable[[RunSpec, int], float] = rising) -> None:
    for run in suite.runs():
        store.save(result(run, score))


class Page(HTMLParser):
    """What is on a page, and what it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href", "data", "action"):
                self.references.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with every built-in system."""
    folder: Path = tmp_path_factory.mktemp("full")
    path = folder / "small.toml"
    path.write_text(suite_text([system.name for system in SYSTEMS]))
    suite, store = load_suite(str(path)), Store(folder, "small")
    fill(suite, store)
    return write_report(suite, store, folder / "out", asked_as="small.toml")


def test_the_page_has_every_system_and_opens_offline(full: Path) -> None:
    page = Page(full)
    for system in SYSTEMS:
        assert system.name in page.text
    for implementation in ("native", "SB3 adapter", "Tianshou's own DQN"):
        assert implementation in page.text
    assert "dqn-bench run small.toml" in page.text
    assert "torch 2.13.0" in page.text
    assert "A & B <fast>" in page.text  # escaped

    # Nothing is fetched, nothing is executed, every reference is in the page.
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", page.source)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    assert page.references
    assert all(reference[0] == "#" and reference[1:] in page.ids for reference in page.references)
    clips = re.findall(r"url\(#([^)]+)\)", page.source)
    assert clips
    assert set(clips) <= set(page.ids)
    # Three panels by family, three by variant, two of scores, one of throughput.
    assert page.tags.count("svg") == 9
    assert page.source.count('role="img"') == 9


def test_memory_is_told_of_systems_whose_runs_all_measured_it(
    make_suite: Make, store: Store, tmp_path: Path
) -> None:
    suite = make_suite(["native-double", "native-target"], seeds=2)
    for run in suite.runs():
        found = result(run, rising)
        if run.seed_index == 1 and run.config.variant == "target":
            old = dataclasses.replace(found.timing, peak_memory=None)
            found = dataclasses.replace(found, timing=old)
        store.save(found)
    text = write_report(suite, store, tmp_path / "out", asked_as="small").with_suffix(".md")
    rows = [line.split("|") for line in text.read_text().splitlines()]
    told = {row[1].strip(): row[5].strip() for row in rows if len(row) == 7 and "native" in row[1]}
    assert set(told) == {"native-double", "native-target"}
    assert told["native-double"].startswith("3")
    assert told["native-target"] == ""


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def shown_by_a_browser(page: Path, folder: Path, width: int) -> tuple[int, int, int]:
    """Pixels that a page needs in width, and has; how many pictures are drawn."""
    # The page itself has no script, so a copy is asked.
    script = """<script>addEventListener("load", () => {
      const root = document.documentElement;
      const drawn = [...document.querySelectorAll("svg")].filter(
        (each) => each.getBoundingClientRect().height > 50);
      document.title = `${root.scrollWidth} ${root.clientWidth} ${drawn.length}`;
    })</script></head>"""
    copy = folder / "copy.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</head>", script, 1))
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    shown = subprocess.run(
        [CHROMIUM, *flags, f"--window-size={width},3000", "--dump-dom", copy.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    (title,) = re.findall(r"<title>(.*?)</title>", shown)
    needed, given, pictures = map(int, title.split())
    return needed, given, pictures


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [500, 1200])
def test_a_browser_shows_it_without_scrolling_sideways(
    full: Path, tmp_path: Path, width: int
) -> None:
    """On a phone and on a desk."""
    needed, given, pictures = shown_by_a_browser(full, tmp_path, width)
    assert needed <= given
    assert pictures == Page(full).tags.count("svg")


def test_the_markdown_says_the_same_and_has_its_pictures(full: Path) -> None:
    text = full.with_suffix(".md").read_text()
    for system in SYSTEMS:
        assert f"| {system.name} | 2 |" in text
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert len(pictures) == 9
    for name in pictures:
        assert (full.parent / name).read_text().startswith("<svg")
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_the_numbers_are_those_of_the_runs(make_suite: Make, store: Store) -> None:
    suite = make_suite(["sb3-target", "sb3-reference"])  # steps 0, 32, 64
    for run in suite.runs():
        factor = 2.0 if run.system == "sb3-target" else 1.0
        store.save(
            result(run, lambda run, step, f=factor: f * rising(run, step), seconds=4.0 / factor)
        )
    report = collect(suite, store, asked_as="small.toml")
    adapter, reference = report.environments[0].systems
    # Seed 0: returns s and s + 2 at 9, 41, 73: scores 10, 42, 74, whose area is 42.
    assert reference.area.samples == (42.0, 52.0)
    assert reference.final.samples == (74.0, 84.0)
    assert reference.final.mean == 79.0
    assert adapter.area.samples == (83.0, 103.0)
    assert reference.steps_per_second.mean == 16.0
    assert adapter.updates_per_second.mean == 12.0
    (difference,) = report.environments[0].differences
    assert (difference.system, difference.reference) == ("sb3-target", "sb3-reference")
    assert difference.area.samples == (41.0, 51.0)
    assert difference.speed == 2.0
    summary = " ".join(report.summary)
    assert "highest for sb3-target, 93.0 (83.0 to 103.0)" in summary
    assert "lowest for sb3-reference, 47.0 (42.0 to 52.0)" in summary
    assert "sb3-target is 2.00 times as fast" in summary


def test_variants_are_compared_seed_by_seed(make_suite: Make, store: Store) -> None:
    suite = make_suite(["native-vanilla", "native-target", "sb3-double"], seeds=2)
    for run in suite.runs():  # rising with the seed; the variants differ by 4 and 6
        extra = 4.0 + 2 * run.seed_index if run.config.variant == "vanilla" else 0.0
        store.save(result(run, lambda run, step, e=extra: rising(run, step) + e))
    (environment,) = collect(suite, store, asked_as="small").environments
    (difference,) = environment.comparisons  # sb3-double has no target variant to compare with
    assert (difference.system, difference.reference) == ("native-vanilla", "native-target")
    assert difference.area.samples == (4.0, 6.0)
    assert difference.equivalence is None  # no margin, and too few seeds


def test_the_summary_says_what_the_paired_differences_decide(
    make_suite: Make, store: Store
) -> None:
    suite = make_suite(
        ["native-vanilla", "native-target", "native-double", "sb3-target", "sb3-reference"],
        seeds=5,
        environment_extra="margin = 30",
    )
    extra = {
        "native-double": (4.0, 5.0, 6.0, 7.0, 8.0),
        "native-vanilla": (-2.0, 2.0, -1.0, 1.0, 0.0),
        "sb3-reference": (20.0, 20.0, 21.0, 19.0, 20.0),
    }

    def score(run: RunSpec, step: int) -> float:
        return rising(run, step) + extra.get(run.system, (0.0,) * 5)[run.seed_index]

    fill(suite, store, score)
    double = next(
        line
        for line in collect(suite, store, asked_as="small").summary
        if line.startswith("The double variant against the target variant")
    )
    assert "1 comparison: more in 1 (native-double on CartPole-v1 +6.0 [" in double
    assert double.endswith("less in none, no difference shown in none.")
    summary = "\n".join(collect(suite, store, asked_as="small").summary)
    assert "1 comparison: more in none, less in none, no difference shown in 1." in summary
    hosts = (
        "less in 1 (sb3-target on CartPole-v1 \N{MINUS SIGN}20.0 [\N{MINUS SIGN}20.9, "
        "\N{MINUS SIGN}19.1]), no difference shown in none. Equivalence within the margin of the "
        "suite is shown in 1 of 1."
    )
    assert hosts in summary

    few = suite.replace_seeds(4)  # decide nothing
    other = Store(store.path.parent / "few", "small")
    fill(few, other, score)
    assert "comparison" not in "\n".join(collect(few, other, asked_as="small").summary)


def test_equivalence_is_tested_with_the_margin_of_the_suite(
    make_suite: Make, store: Store, tmp_path: Path
) -> None:
    suite = make_suite(["sb3-target", "sb3-reference"], seeds=5, environment_extra="margin = 3")
    for run in suite.runs():
        extra = 0.1 * run.seed_index if run.system == "sb3-target" else 0.0
        store.save(result(run, lambda run, step, e=extra: rising(run, step) + e))
    page = write_report(suite, store, tmp_path / "out", asked_as="small")
    assert "with the margin 3, which the suite states" in Page(page).text
    assert "yes, p < 0.001, [0.0, 0.4]" in Page(page).text
    assert "yes, p < 0.001, [0.0, 0.4]" in page.with_suffix(".md").read_text()


def test_runs_that_solve_it_and_those_that_never_do_are_counted(
    make_suite: Make, store: Store, tmp_path: Path
) -> None:
    suite = make_suite(["native-double"], seeds=3, environment_extra="threshold = 60")
    fill(suite, store)  # 10, 42, 74 and 10, 20 more: 60 is reached at step 64, 64, 32
    page = write_report(suite, store, tmp_path / "out", asked_as="small")
    assert "| native-double | 3 |" in page.with_suffix(".md").read_text()
    assert "| 3 (64) |" in page.with_suffix(".md").read_text()
    (system,) = collect(suite, store, asked_as="small").environments[0].systems
    assert system.solved_at == (64, 64, 32)

    harder = make_suite(["native-double"], seeds=3, environment_extra="threshold = 90")
    (system,) = collect(harder, store, asked_as="small").environments[0].systems
    assert system.solved_at == (None, None, 64)  # 94 of seed 2 alone
    assert (system.solved, system.median_steps) == (1, None)
    page = write_report(harder, store, tmp_path / "out", asked_as="small")
    assert "| 1 (\N{EN DASH}) |" in page.with_suffix(".md").read_text()


TWO = """score_range = [0, 100]
[[environments]]
id = "Acrobot-v1"
score_range = [-50, 150]
"""


def test_environments_are_taken_together_on_a_common_scale(
    make_suite: Make, store: Store, tmp_path: Path
) -> None:
    suite = make_suite(["native-target", "native-double"], seeds=5, environment_extra=TWO)
    for run in suite.runs():
        extra = 50.0 if run.config.variant == "double" else 0.0
        store.save(result(run, lambda run, step, e=extra: rising(run, step) + e))
    page = write_report(suite, store, tmp_path / "out", asked_as="small")
    across = collect(suite, store, asked_as="small").across
    assert across is not None
    target, double = across.rows
    # Areas 42, 52 .. 82: 0.42 .. 0.82 on CartPole and 0.46 .. 0.66 on Acrobot.
    scores = [0.42, 0.52, 0.62, 0.72, 0.82, 0.46, 0.51, 0.56, 0.61, 0.66]
    assert target.mean.value == pytest.approx(np.mean(scores))
    assert target.iqm.value == pytest.approx(np.mean(sorted(scores)[2:-2]))
    assert double.mean.value == pytest.approx(np.mean(scores) + (0.5 + 0.25) / 2)
    # At the end 74, 84 .. 114 and 124, 134 .. 164 of the returns on both.
    (curves,) = across.curves
    last = [0.74, 0.84, 0.94, 1.04, 1.14, 0.62, 0.67, 0.72, 0.77, 0.82]
    end = f"{np.mean(sorted(last)[2:-2]):.2f}"
    assert f"At the end: native-target {end}; native-double " in curves.description
    assert "environment steps" in curves.svg
    (improvement,) = across.improvements
    assert (improvement.system, improvement.reference) == ("native-double", "native-target")
    # 92 .. 132 against 42 .. 82 on both: every pair.
    assert improvement.probability.value == 1.0
    text = Page(page).text
    assert "on CartPole-v1 0 is 0 and 100 is 1, on Acrobot-v1 -50 is 0 and 150 is 1" in text
    assert f"{target.iqm.value:.2f} [" in text
    assert "across-profile-1.svg" in page.with_suffix(".md").read_text()
    assert "across-curves-1.svg" in page.with_suffix(".md").read_text()
    assert (page.parent / "across-profile-1.svg").is_file()
    ids = Page(page).ids
    assert len(ids) == len(set(ids))


def test_trainings_of_other_lengths_are_taken_together_by_their_share(
    make_suite: Make, store: Store
) -> None:
    longer = make_suite(
        ["native-double"], seeds=5, environment_extra=f"{TWO}total_timesteps = 128\n"
    )
    fill(longer, store)
    across = collect(longer, store, asked_as="small").across
    assert across is not None
    assert "share of the training" in across.curves[0].svg


def test_environments_are_not_taken_together_with_few_seeds_or_without_a_scale(
    make_suite: Make, store: Store
) -> None:
    suite = make_suite(["native-double"], seeds=4, environment_extra=TWO)
    fill(suite, store)
    assert collect(suite, store, asked_as="small").across is None
    one_range = TWO.partition("score_range = [-")[0]
    one = make_suite(["native-double"], seeds=5, environment_extra=one_range)
    fill(one, store)
    assert collect(one, store, asked_as="small").across is None


def test_overestimation_is_told_if_the_suite_asks_for_it(
    write_suite: Callable[..., Path], store: Store, tmp_path: Path
) -> None:
    path = write_suite(
        ["native-target", "native-double"],
        environment_extra="reward_noise = 0.5",
        seeds=2,
        points=4,
    )
    path.write_text(path.read_text().replace("points = 4", "points = 4\nvalues = true"))
    suite = load_suite(str(path))
    for run in suite.runs():
        bias = 3.0 + run.seed_index if run.config.variant == "target" else -1.0
        largest = 1e6 if run.config.variant == "target" and run.seed_index else 20.0
        plain = result(run, rising)
        # Until half of the training, far off: not counted. Then 10 + bias against 10, and of double
        # nothing at last.
        checks = [
            ValueCheck(4, 99.0, 10.0, 1.0, 1e9, 100.0),
            *(2 * [ValueCheck(4, 99.0, 10.0, 1.0, 99.0, 100.0)]),
            ValueCheck(4, 10.0 + bias, 10.0, 0.75, largest, 100.0),
            None
            if run.config.variant == "double"
            else ValueCheck(4, 30.0, 30.0, 0.25, 30.0, 100.0),
        ]
        evaluations = tuple(
            dataclasses.replace(each, values=check)
            for each, check in zip(plain.evaluations, checks, strict=True)
        )
        store.save(dataclasses.replace(plain, evaluations=evaluations))
    report = collect(suite, store, asked_as="small")
    target, double = report.environments[0].overestimation
    assert target.bias.samples == (1.5, 2.0)  # of 3 and 0, and of 4 and 0
    assert target.normalised.samples == (1.5 / 20, 2.0 / 20)
    assert target.positive.mean == 0.5
    assert (target.diverged, target.left_out) == (1, 0)
    assert double.bias.samples == (-1.0, -1.0)
    assert (double.diverged, double.left_out) == (0, 2)  # the last one, of two seeds
    (difference,) = report.environments[0].bias_differences
    assert (difference.system, difference.reference) == ("native-double", "native-target")
    assert difference.bias.samples == (-4.0, -5.0)  # of the one evaluation that both have
    (told,) = (line for line in report.summary if "minus what was then earned" in line)
    told = told.replace("\N{MINUS SIGN}", "-")
    assert "native-double -1.00 (-1.00 to -1.00)" in told
    assert "seed by seed native-double minus native-target is -4.50 (-5.00 to -4.00)" in told
    page = write_report(suite, store, tmp_path / "out", asked_as="small")
    for text in (Page(page).text, page.with_suffix(".md").read_text()):
        assert "training has normal noise of standard deviation 0.5" in text
        assert "at most 5 %" in text
        assert "Bias is the mean over the evaluations in the second half of the training" in text
        assert "Differences of the bias seed by seed" in text
    markdown = page.with_suffix(".md").read_text()
    assert "| native-target | 1.75 (1.50 to 2.00) | 0.09 (0.07 to 0.10) | 0.50" in markdown
    assert "cartpole-v1-bias-1.svg" in markdown
    # What is stored is what was measured.
    assert store.load(suite.runs()[0].name).evaluations[1].values is not None
    assert store.load(suite.runs()[0].name).evaluations[4].values is None


def test_few_seeds_get_ranges_and_many_get_intervals(make_suite: Make, store: Store) -> None:
    suite = make_suite(["native-double"])
    fill(suite, store)
    report = collect(suite, store, asked_as="small")
    assert "no honest confidence interval" in " ".join(report.summary)

    more = suite.replace_seeds(6)
    fill(more, store)
    report = collect(suite, store, asked_as="small")  # seeds beyond the suite's count too
    assert "95% confidence intervals" in " ".join(report.summary)
    assert report.commands == ("dqn-bench run small --seeds 6", "dqn-bench report small")
    assert report.seeds == {"native-double": "0 to 5"}

    # Of two systems one has more.
    report = collect(make_suite(["native-double", "native-target"]), store, asked_as="small")
    assert report.commands == (
        "dqn-bench run small",
        "dqn-bench run small --systems native-double --seeds 6",
        "dqn-bench report small",
    )


def test_what_is_missing_and_why_is_listed(make_suite: Make, store: Store, tmp_path: Path) -> None:
    suite = make_suite(["native-double", "native-target"])
    runs = suite.runs()
    store.save(result(runs[0], rising))
    store.save_failure(Failure(runs[1], "ValueError: <cheese> | more\nlines", "Traceback"))
    page = write_report(suite, store, tmp_path / "out", asked_as="small")
    text = Page(page).text
    assert "3 runs of the suite are missing" in text
    assert f"{runs[1].system}, seed 0: failed, ValueError: <cheese> | more lines" in text
    assert "not run" in text
    markdown = page.with_suffix(".md").read_text()
    assert "failed, ValueError: <cheese> \\| more lines" in markdown
    assert "1 run finished, 3 missing." in markdown


def test_runs_that_did_not_learn_are_named(make_suite: Make, store: Store) -> None:
    suite = make_suite(["native-double", "native-vanilla"])
    fill(suite, store, lambda run, step: 9.0 if run.config.variant == "vanilla" else 9.0 + step)
    summary = " ".join(collect(suite, store, asked_as="small").summary)
    assert "2 of 4 runs learned nothing: native-vanilla (2" in summary


def test_a_twentieth_of_the_range_is_nothing_learned(make_suite: Make, store: Store) -> None:
    suite = make_suite(
        ["native-double", "native-vanilla"], seeds=2, environment_extra="score_range = [10, 210]"
    )
    gain = {"native-vanilla": 10.0, "native-double": 10.5}  # of 200
    fill(suite, store, lambda run, step: 10 + gain[run.system] * (step > 0))
    vanilla, double = collect(suite, store, asked_as="small").environments[0].systems
    assert (vanilla.name, vanilla.failed) == ("native-vanilla", 2)
    assert double.failed == 0


def test_that_two_score_the_same_says_nothing_where_neither_learns(
    make_suite: Make, store: Store
) -> None:
    suite = make_suite(["sb3-target", "sb3-reference"], seeds=5, environment_extra="margin = 3")
    fill(suite, store, lambda run, step: 9.0)
    report = collect(suite, store, asked_as="small")
    (difference,) = report.environments[0].differences
    assert difference.idle
    assert show_equivalence(difference) == "yes, p < 0.001, [0.0, 0.0]; neither learned"
    told = "is shown in 0 of 0; in 1 more neither learned anything."
    assert told in "\n".join(report.summary)


def test_one_label_is_one_configuration(make_suite: Make, store: Store) -> None:
    """A system of the suite that was trained under its label with other settings is left out."""
    suite = make_suite(["native-double"], seeds=5)
    fill(suite, store)

    def tuned(rate: float) -> Suite:
        system = dataclasses.replace(
            suite.systems[0], name="tuned", base="native-double", settings={"learning_rate": rate}
        )
        return dataclasses.replace(suite, systems=(suite.systems[0], system))

    fill(tuned(1e-3), store, lambda run, step: 100.0)
    fill(tuned(5e-4), store, lambda run, step: 20.0)
    report = collect(tuned(5e-4), store, asked_as="small")
    assert report.foreign == 5
    (system,) = (each for each in report.environments[0].systems if each.name == "tuned")
    assert system.final.samples == (21.0,) * 5
    with pytest.raises(ReportError, match="label 'tuned', .* stands for two configurations"):
        collect(suite, store, asked_as="small")


def test_shipped_systems_are_not_taken_among_levelled_ones(make_suite: Make, store: Store) -> None:
    levelled = make_suite(["sb3-target"], seeds=1)
    levelled = dataclasses.replace(
        levelled,
        config=DQNConfig(),
        environments=tuple(
            dataclasses.replace(each, config=DQNConfig()) for each in levelled.environments
        ),
    )
    shipped = dataclasses.replace(levelled, systems=tuple(find("sb3-reference-shipped")))
    fill(levelled, store)
    fill(shipped, store)
    for suite in (levelled, shipped):
        report = collect(suite, store, asked_as="small")
        assert [each.name for each in report.environments[0].systems] == [suite.systems[0].name]
        assert report.foreign == 1
    with pytest.raises(SuiteError, match="levelled, and these are as their libraries ship them"):
        levelled.replace_systems(["shipped"])


def test_names_of_pictures_differ_where_labels_hardly_do() -> None:
    assert _slugs(["Noise +1", "Noise -1", "\u5012\u7acb", "Acrobot-v1"]) == {
        "Noise +1": "noise-1-1",
        "Noise -1": "noise-1-2",
        "\u5012\u7acb": "environment-3",
        "Acrobot-v1": "acrobot-v1",
    }


def test_a_dollar_in_a_label_is_a_dollar(make_suite: Make, store: Store, tmp_path: Path) -> None:
    suite = make_suite(["native-double"])
    system = dataclasses.replace(suite.systems[0], name="cost $_$ x", base="native-double")
    suite = dataclasses.replace(suite, systems=(system,))
    fill(suite, store)
    assert "cost $_$ x" in Page(write_report(suite, store, tmp_path, asked_as="small")).text


def test_small_scores_have_decimals() -> None:
    assert show_estimate(Estimate(0.037, 0.021, 0.053, (0.0,) * 5, "interval")) == (
        "0.037 [0.021, 0.053]"
    )
    assert show_estimate(Estimate(0.42, 0.3, 0.5, (0.0,) * 5, "interval")) == "0.42 [0.30, 0.50]"
    assert show_estimate(Estimate(9.42, 9.3, 9.5, (0.0,) * 5, "interval")) == "9.4 [9.3, 9.5]"


def test_what_counts_twice_on_one_environment_is_left_out_of_all(
    make_suite: Make, store: Store
) -> None:
    suite = make_suite(["native-double"], seeds=8, environment_extra=TWO)
    for run in suite.runs():
        if run.environment.id == "CartPole-v1" or run.seed_index < 5:
            store.save(result(run, rising))
    across = collect(suite, store, asked_as="small").across
    assert across is not None
    # The areas of 5 seeds: 42 .. 82 on both, the first of [0, 100], the second of [-50, 150].
    first, second = np.arange(42, 83, 10) / 100, (np.arange(42, 83, 10) + 50) / 200
    iqm = stats.trim_mean(np.concatenate([first, second]), 0.25)
    assert across.rows[0].iqm.value == pytest.approx(iqm)


def test_an_estimate_that_is_no_number_is_a_divergence_and_in_no_mean(
    make_suite: Make, store: Store
) -> None:
    suite = make_suite(["native-target", "native-double"], seeds=1, points=4)
    for run in suite.runs():
        plain = result(run, rising)
        *early, second, third = plain.evaluations
        good = ValueCheck(4, 3.0, 1.0, 0.5, 3.0, 100.0)
        bad = ValueCheck(4, math.inf, 1.0, 0.5, math.inf, 100.0)
        later = bad if run.config.variant == "target" else dataclasses.replace(good, estimate=9.0)
        evaluations = (
            *early,
            dataclasses.replace(second, values=good),
            dataclasses.replace(third, values=later),
        )
        store.save(dataclasses.replace(plain, evaluations=evaluations))
        assert store.load(run.name).evaluations == evaluations
    environment = collect(suite, store, asked_as="small").environments[0]
    target, double = environment.overestimation
    assert (target.bias.mean, target.diverged, target.left_out) == (2.0, 1, 1)
    assert (double.bias.mean, double.diverged, double.left_out) == (5.0, 0, 0)
    # Of the evaluation that both have.
    assert environment.bias_differences[0].bias.samples == (0.0,)


def test_what_was_not_run_is_said_in_as_few_lines_as_say_it(
    make_suite: Make, store: Store, tmp_path: Path
) -> None:
    another = '\n[[environments]]\nid = "Acrobot-v1"'
    suite = make_suite(
        ["native-double", "native-target", "sb3-target"], seeds=3, environment_extra=another
    )
    for run in suite.runs():
        if run.system == "native-double" and run.seed_index == 0:
            store.save(result(run, rising))
    report = collect(suite, store, asked_as="small")
    both = ("CartPole-v1", "Acrobot-v1")
    assert report.not_run == [
        NotRun(("sb3-target", "native-target"), both, (0, 1, 2)),
        NotRun(("native-double",), both, (1, 2)),
    ]
    line = "sb3-target, native-target on CartPole-v1, Acrobot-v1, seeds 0 to 2: not run"
    page = write_report(suite, store, tmp_path / "out", asked_as="small")
    assert line in Page(page).text
    assert line in page.with_suffix(".md").read_text()


def test_a_busy_machine_is_told(make_suite: Make, store: Store, tmp_path: Path) -> None:
    suite = make_suite(["native-double"])
    runs = suite.runs()
    store.save(result(runs[0], rising))
    text = Page(write_report(suite, store, tmp_path / "out", asked_as="small")).text
    assert "of a core" not in text
    store.save(result(runs[1], rising, cpu_share=0.25))
    text = Page(write_report(suite, store, tmp_path / "out", asked_as="small")).text
    assert "The trainings got 62 % of a core" in text


def test_another_configuration_in_the_folder_is_left_out_and_said(
    make_suite: Make, store: Store, tmp_path: Path
) -> None:
    suite = make_suite(["native-double"])
    fill(suite, store)
    (environment,) = suite.environments
    config = dataclasses.replace(suite.config, gamma=0.5)
    changed = dataclasses.replace(
        suite, environments=(dataclasses.replace(environment, config=config),)
    )
    fill(changed, store, lambda run, step: 1e6)
    page = write_report(suite, store, tmp_path / "out", asked_as="small")
    report = collect(suite, store, asked_as="small")
    assert (report.finished, report.foreign) == (2, 2)
    assert report.environments[0].systems[0].final.mean == 79.0
    text = Page(page).text
    assert "2 runs in the folder belong to another configuration and are left out" in text


def test_nothing_to_report_is_an_error(make_suite: Make, store: Store, tmp_path: Path) -> None:
    suite = make_suite(["native-double"])
    with pytest.raises(ReportError, match="no run of suite 'small' is finished.*dqn-bench run"):
        write_report(suite, store, tmp_path / "out", asked_as="small.toml")
    other = dataclasses.replace(suite, root_seed=1)
    fill(other, store)
    with pytest.raises(ReportError, match="the 2 finished runs there belong to another config"):
        write_report(suite, store, tmp_path / "out", asked_as="small.toml")
    assert not (tmp_path / "out").exists()


def test_systems_of_users_get_a_panel_of_their_own(
    make_suite: Make, store: Store, tmp_path: Path
) -> None:
    suite = make_suite(["learns", "native-double"])
    fill(suite, store)
    text = Page(write_report(suite, store, tmp_path / "out", asked_as="small")).text
    assert "benchmark.fake_systems:learns" in text
    assert "Your systems" in text


def test_a_system_with_settings_of_its_own_is_not_taken_for_a_levelled_one(
    write_suite: Callable[..., Path], store: Store, tmp_path: Path
) -> None:
    path = write_suite(["sb3-reference", "sb3-target"])
    own = '{ system = "sb3-target", label = "slow", config = { learning_rate = 0.25 } }'
    text = path.read_text()
    assert 'systems = ["sb3-reference", ' in text
    path.write_text(text.replace('"sb3-reference", ', f'"sb3-reference", {own}, '))
    suite = load_suite(str(path))
    fill(suite, store)
    report = collect(suite, store, asked_as="small")
    systems = {system.name: system for system in report.environments[0].systems}
    assert list(systems) == ["sb3-target", "slow", "sb3-reference"]
    assert systems["slow"].own
    assert not systems["sb3-target"].own
    (difference,) = report.environments[0].differences
    assert difference.system == "sb3-target"
    row = next(row for row in report.levelling if row.setting == "Only slow")
    assert row.cells == {"sb3": "learning_rate=0.25"}
    page = write_report(suite, store, tmp_path / "out", asked_as="small")
    assert "learning_rate=0.25" in Page(page).text
    markdown = page.with_suffix(".md").read_text()
    assert "| slow | 2 |" in markdown
    picture = (page.parent / "cartpole-v1-family-1.svg").read_text()
    assert {figures.VARIANT_COLOURS["target"].lower(), figures.SPARE[0][0].lower()} <= set(
        re.findall(r"#[0-9a-f]{6}", picture)
    )


def test_a_report_of_what_is_shipped_says_so(
    write_suite: Callable[..., Path], store: Store, tmp_path: Path
) -> None:
    path = write_suite(["sb3-shipped", "sb3-reference-shipped", "contrib-qrdqn-shipped"])
    path.write_text(path.read_text().partition("[config]")[0])
    suite = load_suite(str(path))
    fill(suite, store)
    page = write_report(suite, store, tmp_path / "out", asked_as="small")
    for text in (Page(page).text, " ".join(page.with_suffix(".md").read_text().split())):
        assert "Nothing was set but the number of environments, and nothing is levelled" in text
        assert "environment steps as its library ships it" in text
        assert "evelled configuration" not in text
        assert "Other algorithms" in text or "| contrib-qrdqn-shipped |" in text
        assert "exploration_fraction" in text or "exploration_ fraction" in text
    (difference,) = collect(suite, store, asked_as="small").environments[0].differences
    assert (difference.system, difference.reference) == ("sb3-shipped", "sb3-reference-shipped")


def test_a_flat_curve_has_an_axis_that_can_be_read(make_suite: Make, store: Store) -> None:
    suite = make_suite(["native-double"])
    fill(suite, store, lambda run, step: -201.0)  # and -199
    assert score_limits(collect(suite, store, asked_as="small").environments[0].systems) == (
        -201.0,
        -199.0,
    )
    (picture,) = collect(suite, store, asked_as="small").environments[0].curves_by_family
    assert ">\N{MINUS SIGN}200.0" in picture.svg  # a tick, and no offset from it
    assert "e2<" not in picture.svg


def test_the_same_results_give_the_same_pictures(make_suite: Make, store: Store) -> None:
    suite = make_suite(["native-double", "sb3-reference"])
    fill(suite, store)
    first, second = (collect(suite, store, asked_as="small") for _ in range(2))
    assert [picture.svg for picture in first.pictures] == [
        picture.svg for picture in second.pictures
    ]


PUBLISHED = """
[[environments.published]]
source = "A <paper>"
url = "https://example.org/a"
score = 12.5
plus_minus = 0.25
seeds = 3
steps = 1000
measure = "training"
note = "one of them"
[[environments.published]]
source = "A zoo"
url = "https://example.org/b"
score = 90
steps = 2000
measure = "final"
"""


def test_published_scores_stand_beside_ours(make_suite: Make, store: Store, tmp_path: Path) -> None:
    suite = make_suite(["native-target"], environment_extra=PUBLISHED)
    for run in suite.runs():
        # The last hundred training episodes return 1 .. 100, or that and 2; those before count not.
        returns = [1e6, *(float(number + 2 * run.seed_index) for number in range(1, 101))]
        episodes = tuple(Episode(9, value, 9) for value in returns)
        store.save(dataclasses.replace(result(run, rising), episodes=episodes))
    (environment,) = collect(suite, store, asked_as="small").environments
    training, final = environment.published
    ((name, ours),) = training.ours
    assert (name, ours.samples) == ("native-target", (50.5, 52.5))
    assert final.ours[0][1].samples == (74.0, 84.0)
    page = write_report(suite, store, tmp_path / "out", asked_as="small")
    markdown = page.with_suffix(".md").read_text()
    assert (
        "| [A <paper>](https://example.org/a): one of them | last training episodes | "
        "12.5 ± 0.25 | 1,000 | 3 |\n"
        "| native-target, here | last training episodes | 51.5 (50.5 to 52.5) | 64 | 2 |\n"
        "| [A zoo](https://example.org/b) | final policy | 90 | 2,000 |  |\n"
        "| native-target, here | final policy | 79.0 (74.0 to 84.0) | 64 | 2 |\n"
    ) in markdown
    shown = Page(page)
    assert "A <paper> one of them12.5 ± 0.251,0003" in shown.text  # cells
    assert {"https://example.org/a", "https://example.org/b"} <= set(shown.references)


def test_a_published_training_score_stands_alone_where_no_episode_ended(
    make_suite: Make, store: Store
) -> None:
    suite = make_suite(["native-target"], environment_extra=PUBLISHED)
    for run in suite.runs():
        store.save(dataclasses.replace(result(run, rising), episodes=()))
    training, final = collect(suite, store, asked_as="small").environments[0].published
    assert (training.ours, len(final.ours)) == ((), 1)


def test_environments_with_settings_of_their_own_are_levelled_one_by_one(
    make_suite: Make, store: Store, tmp_path: Path
) -> None:
    extra = """[[environments]]
id = "Acrobot-v1"
total_timesteps = 96
config = { gamma = 0.5 }
"""
    suite = make_suite(["native-target"], environment_extra=extra)
    fill(suite, store)
    report = collect(suite, store, asked_as="small")
    rows = {row.setting: row.cells["native"] for row in report.levelling}
    assert rows["Discount, CartPole-v1"] == "gamma=0.99"
    assert rows["Discount, Acrobot-v1"] == "gamma=0.5"
    assert "Discount" not in rows
    assert rows["Target period"] == "target_update_interval=8 steps"
    assert [each.total_timesteps for each in report.environments] == [64, 96]
    text = Page(write_report(suite, store, tmp_path / "out", asked_as="small")).text
    assert "for 64 to 96 environment steps under one levelled configuration per environment" in text
    assert "One configuration per environment, brought to every implementation" in text
    assert "evenly spaced points up to step 96" in text


def test_the_example_is_part_of_a_report_that_asks_for_it(
    write_suite: Callable[..., Path], store: Store, tmp_path: Path
) -> None:
    path = write_suite(["native-target"])
    path.write_text("example = true\n" + path.read_text())
    suite = load_suite(str(path))
    fill(suite, store)
    page = write_report(suite, store, tmp_path / "out", asked_as="small")
    assert "Example 6.7 of Sutton and Barto" in Page(page).text
    assert "example-6-7.svg" in page.with_suffix(".md").read_text()
    assert (page.parent / "example-6-7.svg").is_file()
