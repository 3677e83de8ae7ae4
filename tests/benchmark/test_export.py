"""`dqn-bench export` and `dqn-bench compare`."""

import csv
import dataclasses
import importlib.machinery
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmark.test_cli import invoke
from benchmark.test_report import result, rising

from dqn_adapters.benchmark import RunSpec, Suite, load_suite
from dqn_adapters.benchmark.export import curves, write_csv
from dqn_adapters.benchmark.recorder import ValueCheck
from dqn_adapters.benchmark.report import collect
from dqn_adapters.benchmark.store import Store

Write = Callable[..., Path]


def store_runs(path: Path, results: Path, skip: int = 0) -> tuple[Suite, Store]:
    """All runs but the first `skip`: double scores 30 more than target, and the seeds 10."""
    suite = load_suite(str(path))
    store = Store(results, suite.name)
    for run in suite.runs()[skip:]:
        extra = 30.0 + 0.5 * run.seed_index if run.config.variant == "double" else 0.0
        store.save(result(run, lambda run, step, e=extra: rising(run, step) + e))
    return suite, store


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_curves_as_csv(write_suite: Write, tmp_path: Path) -> None:
    path = write_suite(["native-target", "native-double"], seeds=2)
    suite, store = store_runs(path, tmp_path, skip=1)
    unfinished = suite.runs()[0]
    checkpoints = store.checkpoints(unfinished, 10)
    assert checkpoints is not None
    known = result(unfinished, rising)
    progress: dict[str, Any] = {
        "evaluations": [dataclasses.asdict(known.evaluations[0])],
        "episodes": [dataclasses.asdict(known.episodes[0])],
    }
    checkpoints.save(20, progress, lambda file: file.write_text("agent"))

    code, output = invoke("export", path, "--results", tmp_path)
    assert code == 0
    assert "4 runs, 1 of them not finished" in output
    folder = store.path / "export"
    evaluations = rows(folder / "evaluations.csv")
    assert len(evaluations) == 3 * 3 * 2 + 2  # 3 runs of 3 evaluations of 2 episodes, and 1 of 2
    assert evaluations[0] == {
        "environment": "CartPole-v1",
        "system": "native-double",
        "variant": "double",
        "seed": "0",
        "finished": "0",
        "timestep": "0",
        "episode": "0",
        "return": "9.0",
        "length": "5",
    }
    assert evaluations[1]["return"] == "11.0"
    last = evaluations[-1]
    assert (last["system"], last["seed"], last["finished"]) == ("native-target", "1", "1")
    assert (last["timestep"], last["return"], last["length"]) == ("64", "85.0", "7")
    episodes = rows(folder / "episodes.csv")
    assert [(row["timestep"], row["return"]) for row in episodes] == [("9", "9.0")] * 4
    assert not list(folder.glob(".*"))
    assert not (folder / "values.csv").exists()
    finished = rows(folder / "runs.csv")
    assert [row["run"] for row in finished] == [run.name for run in suite.runs()[1:]]
    first = finished[0]
    assert (first["training_seconds"], first["updates"], first["peak_memory"]) == (
        "2.0",
        "24",
        str(3 << 20),
    )
    assert json.loads(first["versions"])["torch"] == "2.13.0"
    assert RunSpec.from_dict(json.loads(first["spec"])) == suite.runs()[1]


def test_another_label_is_another_word_and_not_another_run(
    write_suite: Write, tmp_path: Path
) -> None:
    path = write_suite(["native-target"], seeds=1)
    store_runs(path, tmp_path)
    path.write_text(path.read_text().replace('id = "CartPole', 'label = "Pole"\nid = "CartPole'))
    code, output = invoke("run", path, "--results", tmp_path)
    assert (code, "1 finished before" in output) == (0, True)
    suite = load_suite(str(path))
    store = Store(tmp_path, suite.name)
    report = collect(suite, store, asked_as="small")
    assert not report.missing
    assert [each.id for each in report.environments] == ["Pole"]
    write_csv(curves(suite, store), tmp_path)
    assert {row["environment"] for row in rows(tmp_path / "evaluations.csv")} == {"Pole"}


def test_estimates_as_csv(write_suite: Write, tmp_path: Path) -> None:
    suite = load_suite(str(write_suite(["native-target"], seeds=1)))
    store = Store(tmp_path, suite.name)
    known = result(suite.runs()[0], rising)
    check = ValueCheck(300, 12.5, 10.25, 0.75, 20.0, 100.0)
    first, *others = known.evaluations
    first = dataclasses.replace(first, values=check)
    store.save(dataclasses.replace(known, evaluations=(first, *others)))
    write_csv(curves(suite, store), tmp_path)
    assert rows(tmp_path / "values.csv") == [
        {
            "environment": "CartPole-v1",
            "system": "native-target",
            "variant": "target",
            "seed": "0",
            "finished": "1",
            "timestep": "0",
            "states": "300",
            "estimate": "12.5",
            "realised": "10.25",
            "positive": "0.75",
            "largest": "20.0",
            "possible": "100.0",
        }
    ]


def test_seeds_and_systems_beside_the_suites_are_exported_too(
    write_suite: Write, tmp_path: Path
) -> None:
    store_runs(write_suite(["native-target", "native-double"], seeds=3), tmp_path)
    code, output = invoke("export", write_suite(["native-target"], seeds=2), "--results", tmp_path)
    assert code == 0
    assert "6 runs: " in output
    seen = [(row["system"], row["seed"]) for row in rows(tmp_path / "small/export/episodes.csv")]
    assert seen[:2] == [("native-target", "0"), ("native-target", "1")]
    others = [("native-double", "0"), ("native-double", "1"), ("native-double", "2")]
    assert sorted(seen[2:]) == [*others, ("native-target", "2")]


def test_curves_for_tensorboard(write_suite: Write, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path = write_suite(["native-double"], seeds=1)
    suite = load_suite(str(path))
    store = Store(tmp_path, suite.name)
    found = result(suite.runs()[0], rising)
    checked = dataclasses.replace(
        found.evaluations[1], values=ValueCheck(3, 5.0, 3.5, 1.0, 5.0, 9.0)
    )
    evaluations = (found.evaluations[0], checked, found.evaluations[2])
    store.save(dataclasses.replace(found, evaluations=evaluations))
    code, _ = invoke("export", path, "--results", tmp_path, "--tensorboard")
    assert code == 0
    place = store.path / "export" / "CartPole-v1" / "native-double" / "seed-0"
    events = accumulator.EventAccumulator(str(place))
    events.Reload()
    found = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    assert found == {
        "evaluation/return": [(0, 10.0), (32, 42.0), (64, 74.0)],
        "evaluation/overestimation": [(32, 1.5)],
        "training/return": [(9, 9.0)],
    }
    code, output = invoke("export", path, "--results", tmp_path, "--tensorboard")
    assert code == 2  # two curves in one would be drawn as one
    assert "is there already" in output


def test_labels_that_folders_do_not_have_do_not_meet_or_leave(
    write_suite: Write, tmp_path: Path
) -> None:
    path = write_suite(["native-double"], seeds=1, environment_extra='label = ".."')
    systems = """systems = [
    { system = "native-double", label = "ä", config = { dueling = true } },
    { system = "native-double", label = "ö", config = { n_steps = 2 } },
]"""
    path.write_text(path.read_text().replace('systems = ["native-double"]', systems))
    suite = load_suite(str(path))
    store = Store(tmp_path, suite.name)
    for run in suite.runs():
        store.save(result(run, rising))
    code, _ = invoke("export", path, "--results", tmp_path, "--tensorboard")
    assert code == 0
    export = store.path / "export"
    folders = {each.parent.relative_to(export) for each in tmp_path.rglob("events.out.*")}
    identities = [run.identity for run in suite.runs()]
    assert folders == {Path("-/-") / f"seed-0-{identity}" for identity in identities}


def test_nothing_to_export_or_to_compare(write_suite: Write, tmp_path: Path) -> None:
    path = write_suite(["native-double", "native-target"])
    code, output = invoke("export", path, "--results", tmp_path)
    assert code == 2
    assert "no run of suite 'small' is finished or begun" in output
    code, output = invoke("compare", path, "native-double", "native-target", "--results", tmp_path)
    assert code == 2
    assert "no run of suite 'small' is finished" in output
    store_runs(path, tmp_path)
    code, output = invoke("compare", path, "native-double", "native-taget", "--results", tmp_path)
    assert code == 2
    assert "finished runs are there of native-double, native-target" in output


def test_two_systems_are_compared_seed_by_seed(write_suite: Write, tmp_path: Path) -> None:
    path = write_suite(["native-target", "native-double"], seeds=2)
    store_runs(path, tmp_path)
    compare = ("compare", path, "native-double", "native-target", "--results", tmp_path)
    code, output = invoke(*compare)
    assert code == 0
    assert "CartPole-v1 2 30.2 (30.0 to 30.5)" in output

    path = write_suite(["native-target", "native-double"], seeds=6, environment_extra="margin = 40")
    store_runs(path, tmp_path)
    code, output = invoke(*compare)
    assert code == 0
    assert "CartPole-v1 6 31.2 [30." in output
    # Of 36 pairs of seeds A loses three (seed 0 against 4 and 5, 1 against 5), for a seed is worth
    # 10, and ties one (0 against 3): 32.5 / 36.
    assert "0.90 [" in output
    assert "yes, p < 0.001" in output


class FakeWandb(types.ModuleType):
    """Keeps what it is told."""

    class Error(Exception):
        pass

    class Session:
        def __init__(self, **about: Any) -> None:
            self.about, self.logged, self.metrics = about, [], {}

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def define_metric(self, name: str, **how: Any) -> None:
            self.metrics[name] = how

        def log(self, values: dict[str, Any]) -> None:
            self.logged.append(values)

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.sessions: list[Any] = []

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def init(self, **about: Any) -> Any:
        if about["id"] in [session.about["id"] for session in self.sessions]:
            raise self.Error("the run is there")
        self.sessions.append(self.Session(**about))
        return self.sessions[-1]


def test_curves_for_weights_and_biases(
    write_suite: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_suite(["native-double"], seeds=2)
    suite = load_suite(str(path))
    store = Store(tmp_path, suite.name)
    for run in suite.runs():
        store.save(result(run, rising))
    arguments = "export", path, "--results", tmp_path, "--wandb", "ours"
    monkeypatch.setitem(sys.modules, "wandb", fake := FakeWandb())
    assert invoke(*arguments)[0] == 0
    assert [session.about["id"] for session in fake.sessions] == [run.name for run in suite.runs()]
    first = fake.sessions[0]
    assert (first.about["project"], first.about["resume"]) == ("ours", "never")
    assert first.about["config"]["learning_rate"] == suite.config.learning_rate
    assert first.metrics["*"] == {"step_metric": "timestep"}
    assert first.logged == [
        {"timestep": 0, "evaluation/return": 10.0},
        {"timestep": 9, "training/return": 9.0},
        {"timestep": 32, "evaluation/return": 42.0},
        {"timestep": 64, "evaluation/return": 74.0},
    ]
    code, output = invoke(*arguments)
    assert code == 2
    assert "Weights & Biases does not take CartPole-v1_native-double_s000" in output
    code, output = invoke(*arguments, "--tensorboard")
    assert code == 2
    assert "--tensorboard and --wandb exclude each other" in output
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, output = invoke(*arguments)
    assert code == 2
    assert "pip install 'dqn-adapters[wandb]'" in output


def test_weights_and_biases_itself_takes_the_curves(
    write_suite: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    path = write_suite(["native-double"], seeds=1)
    suite = load_suite(str(path))
    store = Store(tmp_path, suite.name)
    store.save(result(suite.runs()[0], rising))
    assert invoke("export", path, "--results", tmp_path, "--wandb", "ours")[0] == 0
    written = [*(store.path / "export").rglob("*.wandb")]
    assert len(written) == 1
    assert written[0].stat().st_size > 0
