"""Peers that have an environment and a process of their own."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from speed import child, peers, venvs
from speed.child import Remote
from speed.measuring import compare
from speed.peers import Peer
from speed.rows import find
from speed.side import Work

HERE = Path(__file__).parent
REMOTE = [module for module in peers.modules() if module.PEER.requirements is not None]


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Remote:
    """A side whose module is `fake_peer`, found among the peers."""
    code = (
        "import sys, speed.peers; "
        f"speed.peers.__path__.append({str(HERE)!r}); "
        "from speed.child import serve; serve()"
    )
    monkeypatch.setattr(child, "CODE", code)
    return Remote(sys.executable, "fake_peer", {"buffer_size": 10, "fatal": 13})


def test_a_child_takes_its_turns(remote: Remote) -> None:
    remote.set_threads(1)
    remote.run(5)
    remote.run(2)
    work = remote.work()
    assert math.isnan(work.loss)
    assert dataclasses.replace(work, loss=0.0) == Work(7, 7, 7, 10, 0.0)
    remote.breakdown(3)
    assert remote.work().steps == 13
    remote.close()


def test_a_child_that_dies_is_named(remote: Remote) -> None:
    with pytest.raises(RuntimeError, match="the process of fake_peer ended with exit code 3"):
        remote.run(13)
    remote.close()


def test_what_a_child_imports_is_not_ours() -> None:
    """It has only its own requirements, so nothing of ours is on its path."""
    code = (
        "import sys\n"
        "for name in ('dqn_adapters', 'torch', 'numpy', 'gymnasium', 'rich', 'typer'):\n"
        "    sys.modules[name] = None\n"
        "import speed.child\n"
        f"for name in {[module.__name__ for module in REMOTE]}:\n"
        "    __import__(name)\n"
    )
    package = str(Path(child.__file__).parent.parent)
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": package})


@pytest.mark.parametrize("module", REMOTE, ids=lambda module: module.PEER.name)
def test_the_requirements_are_pinned(module: object) -> None:
    peer: Peer = module.PEER  # type: ignore[attr-defined]
    assert peer.requirements is not None
    lines = peer.requirements.read_text().split()
    assert lines
    assert all("==" in line for line in lines), lines


def test_an_environment_is_made_once_and_again_for_other_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = []

    def run(command: list[Path | str], **_: object) -> subprocess.CompletedProcess[str]:
        installed.append(command[-1])
        return subprocess.CompletedProcess(command, int(failing), "", "no\nit is not there")

    failing = False
    monkeypatch.setattr(venvs, "DIRECTORY", tmp_path / "venvs")
    monkeypatch.setattr(venvs.venv, "create", lambda place, **_: place.mkdir(parents=True))
    monkeypatch.setattr(venvs.subprocess, "run", run)
    requirements = tmp_path / "fake.txt"
    requirements.write_text("fake==1")
    peer = Peer("Fake", "fake", requirements=requirements)
    python = venvs.python_of(peer)
    assert python == tmp_path / "venvs" / "fake" / "bin" / "python"
    assert venvs.python_of(peer) == python
    assert installed == [requirements]
    requirements.write_text("fake==2")
    failing = True
    for _ in range(2):
        with pytest.raises(ImportError, match="Fake cannot be installed: it is not there"):
            venvs.python_of(peer)
    assert len(installed) == 3


@pytest.mark.slow
@pytest.mark.parametrize("module", REMOTE, ids=lambda module: module.PEER.name)
def test_a_peer_in_its_environment_does_the_same_work(module: object) -> None:
    """Installs it, which takes minutes when it is the first time."""
    name = f"native-{module.PEER.module}"  # type: ignore[attr-defined]
    result = compare(dataclasses.replace(find(name), turns=2), seconds=0.5)
    assert json.loads(json.dumps(dataclasses.asdict(result)))["name"] == name
    assert result.peer > 0
    assert sum(result.peer_parts.values()) > 0
