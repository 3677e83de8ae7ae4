"""Files that a person edited, with right checksums: refused or used, and no crash either way.

See `fuzzing.py`, which runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzzing
import pytest


def fuzz(name: str, count: int, seed: int) -> None:
    script = Path(fuzzing.__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(script.parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(script), name, str(count), str(seed)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-2000:]}"
    result = json.loads(done.stdout.splitlines()[-1])
    assert not result["wrong"]
    assert result["refused"] > count // 3


@pytest.mark.parametrize("name", fuzzing.FORMATS)
def test_edited_files(name: str) -> None:
    fuzz(name, 50, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", fuzzing.FORMATS)
def test_many_edited_files(name: str) -> None:
    fuzz(name, 2_000, seed=1)
