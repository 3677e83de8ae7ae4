"""The script for GPUs, at its smallest on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from speed import gpu
from speed.gpu import TOLERANCE, Case, cases, measure
from speed.parts import PARTS


def test_the_cases_are_the_product() -> None:
    listed = list(cases())
    assert len(set(listed)) == len(listed) == 2 * (1 + 2 * 2 * 2)
    assert {case.network for case in cases(("256-256",))} == {"256-256"}


@pytest.mark.parametrize("library", ["native", "dqn_adapters.sb3"])
def test_an_eager_case_is_eager(library: gpu.Library) -> None:
    outcome = measure(Case(library, "256-256", "eager", "device"), "cpu", steps=16, updates=3)
    assert outcome.difference == 0.0
    assert outcome.equal
    assert outcome.updates == 3
    assert outcome.device == "cpu"
    assert outcome.rate > 0
    assert set(outcome.parts) <= set(PARTS)


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    update, calls = gpu.Model.update, []

    def skipping(self: gpu.Model, indices: object, device: str) -> None:
        calls.append(self)
        if len(calls) % 2:  # the reference, and not the other
            update(self, indices, device)

    monkeypatch.setattr(gpu.Model, "update", skipping)
    case = Case("native", "256-256", "eager", "host")
    outcome = measure(case, "cpu", steps=16, updates=3)
    assert outcome.difference > TOLERANCE
    assert not outcome.equal


@pytest.mark.slow
def test_the_script(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--network", "256-256", "--steps", "16", "--updates", "4"]
    subprocess.run([sys.executable, gpu.__file__, *arguments, "--json", str(path)], check=True)
    outcomes = json.loads(path.read_text())
    assert len(outcomes) == 9
    assert all(outcome["equal"] for outcome in outcomes)
    assert {outcome["updates"] for outcome in outcomes} == {0, 4}


def test_wrong_input_is_named(tmp_path: Path) -> None:
    for wrong, message in (
        (["--network", "lstm", "--json", "gpu.json"], "--network lstm: it must be one of"),
        (["--json", str(tmp_path / "missing" / "gpu.json")], "there is no directory"),
    ):
        done = subprocess.run(
            [sys.executable, gpu.__file__, *wrong], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert message in " ".join(done.stderr.replace("│", " ").split())
