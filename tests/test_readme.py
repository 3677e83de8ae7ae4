"""The README's examples run as they stand, only shorter."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
SHORTER = {
    "40_000": "1_200",
    "epoch_num_steps=10_000": "epoch_num_steps=1_200",
    "max_epochs=4": "max_epochs=1",
}


def test_there_is_an_example_per_host() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("code", EXAMPLES, ids=["sb3", "tianshou", "native", "pettingzoo"])
def test_example(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(long in code for long in SHORTER)
    for long, short in SHORTER.items():
        code = code.replace(long, short)
    exec(compile(code, str(README), "exec"), {})
