from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dqn_adapters import checkpoint
from dqn_adapters.checkpoint import CheckpointError

STATE: dict[str, Any] = {
    "tensor": torch.arange(6, dtype=torch.int64).reshape(2, 3).T,  # a view, not contiguous
    "array": np.array([1.5, np.nan], np.float64),
    "bytes": np.zeros((2, 0), np.uint8),
    "nested": {0: {"step": torch.tensor(3.0)}, 1: [1, 2.5, None, True, "text"]},
    "tuple": (1, (2,)),
    "__tensor__": {"a key": "that looks like a marker"},
    "large": 2**127,
    "rng": np.random.default_rng(0).bit_generator.state,
}


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def test_round_trip(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "new" / "file", "test", STATE)
    assert_same(STATE, checkpoint.load(path, "test"))
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_what_cannot_be_saved_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "file", "test", {"a": 1})
    with pytest.raises(TypeError, match=r"state\.a\.1: a set cannot be saved"):
        checkpoint.save(path, "test", {"a": [0, {1}]})
    with pytest.raises(TypeError, match="state: a dict cannot be saved"):
        checkpoint.save(path, "test", {(1, 2): 3})  # type: ignore[dict-item]
    assert checkpoint.load(path, "test") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failure_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint.save(tmp_path / "file", "test", {"a": 1})

    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: Full (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=re.escape(str(path))) as caught:
        checkpoint.save(path, "test", {"a": 2})
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert checkpoint.load(path, "test") == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "none", "test")


def write(path: Path, **header: str) -> Path:
    save_file({"a": torch.zeros(1)}, path, header)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({}, "is not a checkpoint of dqn_adapters"),
        ({"format": "pt"}, "is not a checkpoint of dqn_adapters"),
        ({"version": "99"}, "has the format version 99; this dqn_adapters reads up to 1"),
        ({"kind": "other"}, "holds a 'other', not a 'test'"),
        ({"version": "x"}, "is not a readable checkpoint"),
        ({"state": "{"}, "is not a readable checkpoint"),
        ({"state": json.dumps({"a": {"__tensor__": "gone"}})}, "is not a readable checkpoint"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, header: dict[str, str], message: str) -> None:
    ours = {"format": "dqn_adapters", "version": "1", "kind": "test", "state": "{}"}
    header = {**ours, **header} if header else {}
    if header:
        checksums = checkpoint._checksums(header["state"], {"a": torch.zeros(1)})
        header["checksums"] = json.dumps(checksums)
    path = write(tmp_path / "file", **header)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path, "test")


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """In the tensors, in the state, in the header: 200 places all over the file."""
    path = checkpoint.save(tmp_path / "file", "test", STATE)
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 200).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        try:
            state = checkpoint.load(path, "test")
        except CheckpointError:
            continue
        assert_same(STATE, state)  # it was padding


def test_truncated_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "file", "test", STATE)
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
            checkpoint.load(path, "test")
    path.write_bytes(b"\x80\x04cos\nsystem\n(S'exit 1'\ntR." * 10)  # a pickle is not executed
    with pytest.raises(CheckpointError):
        checkpoint.load(path, "test")
