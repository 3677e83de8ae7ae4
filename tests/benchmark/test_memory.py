from __future__ import annotations

import itertools

import pytest
from typer.testing import CliRunner

from dqn_adapters.benchmark.cli import app
from dqn_adapters.benchmark.memory import BUFFERS, EPISODE, SIDE, STACK, find, frames, measure

FRAME = SIDE * SIDE


def test_the_stream_is_one_of_frame_stacks() -> None:
    cut = [index for index, (_, _, cut) in enumerate(frames(2 * EPISODE)) if cut]
    assert cut == [EPISODE - 1, 2 * EPISODE - 1]
    rows = list(frames(3))
    for (s, after, _), (following, _, _) in itertools.pairwise(rows):
        assert s.shape == (STACK, SIDE, SIDE)
        assert (after[:-1] == s[1:]).all()
        assert (following == after).all()


def test_ours_needs_about_a_frame_a_transition_and_a_whole_buffer_eight() -> None:
    """One million in at most 7.5 GB; measured by the growth of a process, not computed."""
    lean = measure("ours, frames kept once", 4000).bytes_per_transition
    assert FRAME <= lean <= 7500
    whole = measure("ours, observations kept whole", 1500).bytes_per_transition
    assert whole == pytest.approx(2 * STACK * FRAME, rel=0.02)


def test_the_command() -> None:
    arguments = ["memory", "--transitions", "1000", "--only", "SB3, optimize_memory_usage"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "refuses time limits" in result.output
    result = CliRunner().invoke(app, ["memory", "--only", "nothing"])
    assert result.exit_code == 2
    assert "no buffer is called 'nothing'" in result.output


def test_names_are_unique() -> None:
    assert [find(buffer.name) for buffer in BUFFERS] == list(BUFFERS)
