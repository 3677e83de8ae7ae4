"""What the package promises as a package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dqn_adapters
from dqn_adapters._extras import require

HOSTS = ("stable_baselines3", "tianshou", "pettingzoo", "matplotlib", "scipy", "typer", "jinja2")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_the_core_imports_no_host() -> None:
    code = f"import sys, dqn_adapters; print([h for h in {HOSTS} if h in sys.modules])"
    assert run(code).stdout.strip() == "[]"


def test_public_names_exist_and_are_sorted() -> None:
    assert dqn_adapters.__all__ == sorted(dqn_adapters.__all__)
    for name in dqn_adapters.__all__:
        assert getattr(dqn_adapters, name).__doc__, name


@pytest.mark.parametrize(
    ("module", "host", "extra"),
    [
        ("dqn_adapters.sb3", "stable_baselines3", "sb3"),
        ("dqn_adapters.tianshou", "tianshou", "tianshou"),
    ],
)
def test_a_missing_host_names_the_extra(module: str, host: str, extra: str) -> None:
    hide = f"import sys; sys.modules[{host!r}] = None; import {module}"
    error = run(hide).stderr
    assert f"{host} is not installed" in error
    assert f"pip install 'dqn-adapters[{extra}]'" in error


def test_require_accepts_what_is_there() -> None:
    require("torch", extra="none")


def test_arrows_point_one_way() -> None:
    """The core names no adapter and no benchmark; no adapter names another."""
    package = Path(dqn_adapters.__file__).parent
    rooms = ("sb3", "tianshou", "pettingzoo", "benchmark")
    for file in package.rglob("*.py"):
        room = file.relative_to(package).parts[0]
        forbidden = [r for r in rooms if r != room] if room != "benchmark" else []
        text = file.read_text()
        for other in forbidden:
            assert f"import dqn_adapters.{other}" not in text, file
            assert f"from dqn_adapters.{other}" not in text, file


def test_adapters_do_not_compute() -> None:
    package = Path(dqn_adapters.__file__).parent
    for room in ("sb3", "tianshou"):
        for file in (package / room).rglob("*.py"):
            text = file.read_text()
            for arithmetic in (".argmax(", ".max(", "amax(", "gamma *"):
                assert arithmetic not in text, (file, arithmetic)
