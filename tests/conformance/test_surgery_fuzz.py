"""Random sequences of edits never end the process, and do what they do in torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from conformance.fuzz import LENGTH, sequence


@pytest.mark.parametrize(
    ("first", "count"), [(0, 24), pytest.param(24, 400, marks=pytest.mark.slow)]
)
def test_sequences_of_edits_do_what_they_do_in_torch(first: int, count: int) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", *IGNORED, "-m", "conformance.fuzz", str(first), str(count)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    begun = [line["begins"] for line in lines if "begins" in line]
    assert result.returncode == 0, (
        f"the process ended with {result.returncode} in {begun[-1:]}: {result.stderr[-2000:]}"
    )
    assert len(begun) == lines[-1]["done"] == count
    failed = [f"{line['failed']}\n{line['why']}" for line in lines if "failed" in line]
    assert not failed, "\n\n".join(failed)


IGNORED = ("-W", "ignore::DeprecationWarning:torch")
"""Warnings of torch's own imports."""


def test_sequences_are_drawn_anew() -> None:
    drawn = [sequence(seed) for seed in range(24)]
    assert drawn == [sequence(seed) for seed in range(24)]
    assert len({one.names for one in drawn}) == 24
    assert {one.adapter for one in drawn} == {"native", "sb3", "tianshou", "pettingzoo"}
    assert all(len(set(one.names)) == LENGTH for one in drawn)
