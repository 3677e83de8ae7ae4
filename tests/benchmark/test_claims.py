"""Claims: what was compared, and what the page says of it, whichever way it falls."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from benchmark.test_report import CHROMIUM, Page, result, shown_by_a_browser

from dqn_adapters.benchmark import RunSpec, Suite, load_suite
from dqn_adapters.benchmark.claims import ClaimReport
from dqn_adapters.benchmark.recorder import ValueCheck
from dqn_adapters.benchmark.report import collect, write_report
from dqn_adapters.benchmark.store import Store

SUITE = """
systems = [
    "native-vanilla",
    "native-target",
    "native-double",
    { system = "native-target", label = "often", config = { target_update_interval = 4 } },
]
seeds = 6
total_timesteps = 64
[evaluation]
points = 2
episodes = 2
values = true
[[environments]]
id = "CartPole-v1"
[[environments]]
id = "Acrobot-v1"
total_timesteps = 96
[[claims]]
question = "Does a target network help?"
part = "the target network"
experiment = "Two periods, `often` and the other."
having = ["native-target", "often"]
lacking = ["native-vanilla"]
metrics = ["area"]
[[claims]]
question = "Does double reduce it?"
part = "double"
experiment = "One against the other."
having = ["native-double"]
lacking = ["native-target"]
metrics = ["bias", "final"]
[config]
train_freq = 4
learning_starts = 16
gradient_steps = 2
target_update_interval = 8
"""
Score = Callable[[RunSpec], float]


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    path = tmp_path / "small.toml"
    path.write_text(SUITE)
    return load_suite(str(path))


def score(run: RunSpec) -> float:
    """Seeds differ by 10 and more, systems by 2 to 8 on CartPole and by chance on Acrobot."""
    extra = {"native-vanilla": 0, "native-target": 5, "often": -5, "native-double": 5}[run.title]
    if run.environment.id == "Acrobot-v1":
        extra = 4 if (run.seed_index + len(run.title)) % 2 else -4
    return 100.0 + 20 * run.seed_index + extra + 0.5 * (run.seed_index % 2)


def bias(run: RunSpec) -> float:
    """Too high on CartPole, by less for double; too low on Acrobot, by more for double."""
    lower = 2.0 + 0.25 * (run.seed_index % 3) if run.title == "native-double" else 0.0
    return (3.0 if run.environment.id == "CartPole-v1" else -3.0) + run.seed_index / 8 - lower


def fill(suite: Suite, folder: Path, seeds: int = 6, score: Score = score) -> Store:
    store = Store(folder, "small")
    for run in suite.runs():
        if run.seed_index >= seeds:
            continue
        plain = result(run, lambda run, step: score(run) if step else 9.0)
        off = bias(run)
        checks = [
            ValueCheck(4, 99.0, 10.0, 1.0, 20.0, 100.0),
            *(ValueCheck(4, 10.0 + off, 10.0, 0.5, 20.0, 100.0) for _ in plain.evaluations[1:]),
        ]
        evaluations = tuple(
            dataclasses.replace(each, values=check)
            for each, check in zip(plain.evaluations, checks, strict=True)
        )
        store.save(dataclasses.replace(plain, evaluations=evaluations))
    return store


def claims(suite: Suite, store: Store) -> tuple[ClaimReport, ...]:
    found: tuple[ClaimReport, ...] = collect(suite, store, asked_as="small").claims
    return found


def plain(text: str) -> str:
    """With the minus sign that is on the keyboard."""
    return text.replace("\N{MINUS SIGN}", "-")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClaimReport, ...]:
    folder: Path = tmp_path_factory.mktemp("found")
    (folder / "small.toml").write_text(SUITE)
    suite = load_suite(str(folder / "small.toml"))
    return claims(suite, fill(suite, folder))


def test_effects_are_paired_differences(found: tuple[ClaimReport, ...]) -> None:
    target, double = found
    pole, swing = target.environments
    assert (pole.id, swing.id) == ("CartPole-v1", "Acrobot-v1")
    first, second = pole.effects
    # Scores 10, s + 1, s + 1 at steps 0, 32, 64: areas (10 + 3 (s + 1)) / 4, differences 3/4 of 5.
    assert (first.having, first.lacking, first.metric) == (
        "native-target",
        "native-vanilla",
        "area",
    )
    assert first.difference.samples == pytest.approx([3.75] * 6)
    assert second.difference.samples == pytest.approx([-3.75] * 6)
    assert (first.outcome, second.outcome) == ("more", "less")
    assert (first.shown, plain(second.shown)) == ("+3.8 [3.8, 3.8]", "-3.8 [-3.8, -3.8]")
    # -4 against 4 and 4 against -4 in turns: the interval of the differences holds 0.
    assert swing.effects[0].outcome == "not shown"
    on_bias, on_final = double.environments[0].effects
    assert on_bias.difference.samples == pytest.approx([-2.0, -2.25, -2.5] * 2)
    assert on_bias.without.mean == pytest.approx(3.0 + 2.5 / 8)
    assert (on_final.metric, on_final.outcome) == ("final", "not shown")
    assert on_final.difference.samples == (0.0,) * 6


def test_the_verdicts_are_made_from_the_numbers(found: tuple[ClaimReport, ...]) -> None:
    target, double = found
    verdict, best, *_ = map(plain, target.verdicts)
    assert verdict.startswith(
        "On CartPole-v1 the target network helps the score with `native-target` "
        "(+3.8 [3.8, 3.8]) and hurts the score with `often` (-3.8 [-3.8, -3.8]); "
        "on Acrobot-v1 the target network is not shown to change the score with "
    )
    assert best == (
        "On CartPole-v1 `native-target` has the highest mean area of these, and every other is "
        "shown to be lower."
    )
    on_bias, on_final = map(plain, double.verdicts)
    assert re.fullmatch(
        r"On CartPole-v1 double lowers the estimates \(-2.25 \[.*\]\), where those of "
        r"`native-target` are too high \(3.31 \[.*\]\); on Acrobot-v1 double lowers the estimates "
        r"\(-2.25 \[.*\]\), where those of `native-target` are too low \(-2.69 \[.*\]\)\.",
        on_bias,
    )
    assert "on Acrobot-v1 double is not shown to change the score" in on_final


def test_other_numbers_give_other_verdicts(suite: Suite, tmp_path: Path) -> None:
    def turned(run: RunSpec) -> float:
        return 400.0 - score(run)

    target, _ = claims(suite, fill(suite, tmp_path, score=turned))
    verdict, best, *_ = map(plain, target.verdicts)
    assert "helps the score with `often` (+3.8 [3.8, 3.8])" in verdict
    assert "hurts the score with `native-target` (-3.8 [-3.8, -3.8])" in verdict
    assert "`often` has the highest mean area" in best


def test_few_seeds_decide_nothing(suite: Suite, tmp_path: Path) -> None:
    page = Page(write_report(suite, fill(suite, tmp_path, seeds=3), tmp_path, asked_as="x"))
    # In the summary, and where the claim is.
    assert page.text.count("Not decided: fewer than 5 seeds have finished.") == 2 * 2
    assert "nothing is decided" in page.text


def test_claims_go_without_what_is_not_there(suite: Suite, tmp_path: Path) -> None:
    part = dataclasses.replace(suite, systems=suite.systems[1:3])
    target, double = claims(suite, fill(part, tmp_path))
    assert target.verdicts == ("Not decided: no two of the systems have finished the same seed.",)
    assert target.environments == ()
    assert "lowers the estimates" in double.verdicts[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("claims")
    path = folder / "small.toml"
    path.write_text("example = true\n" + SUITE)
    suite = load_suite(str(path))
    return write_report(suite, fill(suite, folder), folder / "out", asked_as="small.toml")


def test_the_page_and_its_markdown(page: Path) -> None:
    seen, markdown = Page(page), plain(page.with_suffix(".md").read_text())
    for text in (seen.text, markdown.replace("`", "").replace("**", "")):
        assert "Does a target network help?" in text
        assert "On CartPole-v1 the target network helps the score with native-target" in text
        assert "Two periods, often and the other." in text
        assert "There are 8 intervals on this page" in text
        assert "64 to 96 environment steps" in text
        assert "dqn-bench report small.toml" in text
        assert "Only often" in text
        assert "epsilon 1 to 0.05 over 6 steps" in text  # a tenth of 64, and of 96 steps
        assert "epsilon 1 to 0.05 over 9 steps" in text or "over 10 steps" in text
        assert "Example 6.7" in text
    assert "| often - native-vanilla | area under the curve | 6 | -3.8 [-3.8, -3.8] |" in markdown
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", seen.source)
    assert not {"script", "link", "img", "iframe", "object"} & set(seen.tags)
    assert len(seen.ids) == len(set(seen.ids))
    # Per environment curves and an effect; then curves, overestimation and two effects; the toy.
    assert seen.tags.count("svg") == 2 * 2 + 2 * 4 + 1
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", markdown)
    assert len(pictures) == len(set(pictures)) == 13
    assert {path.name for path in page.parent.glob("*.svg")} == set(pictures)
    for table in [block for block in markdown.split("\n\n") if block.startswith("|")]:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [500, 1200])
def test_a_browser_shows_it_without_scrolling_sideways(
    page: Path, tmp_path: Path, width: int
) -> None:
    needed, given, pictures = shown_by_a_browser(page, tmp_path, width)
    assert needed <= given
    assert pictures == Page(page).tags.count("svg")


def test_the_example_is_drawn_on_its_oracle(page: Path) -> None:
    markdown = page.with_suffix(".md").read_text()
    rows = re.findall(r"^\| (vanilla|target|double) \| (\d+) % \| (\d+) % \| (\d+) % \|$",
                      markdown, re.MULTILINE)  # fmt: skip
    assert [row[0] for row in rows] == ["vanilla", "target", "double"]
    within = np.array([int(row[3]) for row in rows])
    assert (within > 80).all()
    assert int(rows[0][1]) > 90  # Q-learning at its worst, as in the book
