"""Environments of peers whose requirements are not ours, made when they are first asked for."""

from __future__ import annotations

import shutil
import subprocess
import venv
from pathlib import Path

from speed.peers import Peer

DIRECTORY = Path(__file__).resolve().parent / ".venvs"


def python_of(peer: Peer) -> Path:
    """The interpreter of the peer's environment, which is made if it is absent or was made for
    other requirements.

    Raises:
        ImportError: pip cannot install the requirements; the message is its last line.
    """
    assert peer.requirements is not None
    place = DIRECTORY / peer.requirements.stem
    python, stamp = place / "bin" / "python", place / "installed.txt"
    wanted = peer.requirements.read_text()
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(place, ignore_errors=True)
    venv.create(place, with_pip=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--requirement", peer.requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ImportError(f"{peer.name} cannot be installed: {last}", name=peer.module)
    stamp.write_text(wanted)
    return python
