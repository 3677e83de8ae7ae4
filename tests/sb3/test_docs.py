"""The page about Stable-Baselines3: its script before and after, as it stands but shorter."""

from __future__ import annotations

import difflib
import inspect
import re
from pathlib import Path

import pytest

from dqn_adapters.sb3 import DQN

PAGE = (Path(__file__).parents[2] / "docs" / "sb3.md").read_text()
BEFORE, AFTER, RESUME = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_difference_is_three_lines() -> None:
    changed = [*difflib.ndiff(BEFORE.splitlines(), AFTER.splitlines())]
    assert len([line for line in changed if line.startswith("- ")]) == 3
    assert len([line for line in changed if line.startswith("+ ")]) == 3


@pytest.mark.parametrize("code", [BEFORE, AFTER], ids=["before", "after"])
def test_the_script_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code.replace("50_000", "1_100"), "docs/sb3.md", "exec"), names)
    if code is AFTER:
        model = DQN.load("cartpole", env=names["env"], device="cpu")
        exec(RESUME, {"model": model, "remaining": 256})
        assert model.num_timesteps == 1280 + 256


def test_every_parameter_of_ours_is_on_the_page() -> None:
    keywords = [p for p in inspect.signature(DQN).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert len(keywords) == 14
    for parameter in keywords:
        assert f"`{parameter.name}`" in PAGE
