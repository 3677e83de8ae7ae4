"""Files are replaced whole; what a killed process leaves, the next save removes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dqn_adapters.files import PARTIAL, replacing, replacing_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replacing(path) as written:
        written.write_text("old")
        assert not path.exists()
    with replacing_text(path) as file:
        file.write("new\n")
        assert path.read_text() == "old"
    assert path.read_text() == "new\n"
    assert names(path.parent) == ["file"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as written:
            written.write_text("new")
            raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    with replacing(tmp_path / "file") as written:
        written.unlink()
        os.close(os.open(written, os.O_CREAT, 0o600))  # as safetensors makes its files
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_an_error_names_the_file_and_others_pass(tmp_path: Path) -> None:
    def write(error: OSError) -> None:
        with replacing(tmp_path / "file"):
            raise error

    with pytest.raises(OSError, match=r"No space left on device: '.*file'") as caught:
        write(OSError(errno.ENOSPC, "No space left on device"))
    assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        write(FileNotFoundError(errno.ENOENT, "No such file", "elsewhere"))
    (tmp_path / "no-folder").touch()
    with (
        pytest.raises(OSError, match="no-folder"),
        replacing(tmp_path / "no-folder" / "file"),
    ):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="kills and limits of POSIX")
def test_a_killed_process_leaves_one_folder_that_the_next_save_removes(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from dqn_adapters.files import replacing
with replacing(sys.argv[1]) as written:
    written.write_bytes(bytes(1000))
    written.with_name("more").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "file"
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert names(tmp_path) == [f"{PARTIAL}file"]
    with replacing(path) as written:
        written.write_text("new")
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="kills and limits of POSIX")
def test_a_full_disk_is_an_error_with_the_path(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk."""
    script = """
import resource, sys
import numpy as np
from dqn_adapters import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoint.save(sys.argv[1], "test", {"a": np.zeros(10)})
try:
    checkpoint.save(sys.argv[1], "test", {"a": np.zeros(100_000)})
except OSError as error:
    print(type(error).__name__, error.filename)
"""
    path = tmp_path / "file"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == ["OSError", str(path)]
    assert names(tmp_path) == ["file"]


def test_writers_at_the_same_time_damage_nothing(tmp_path: Path) -> None:
    path, failed = tmp_path / "file", []

    def write(letter: bytes) -> None:
        for _ in range(50):
            try:
                with replacing(path) as written:
                    written.write_bytes(letter * 10_000)
            except OSError as error:
                failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(path.read_bytes()) in ({97}, {98})
    assert path.stat().st_size == 10_000
    assert all(str(path) in str(error) for error in failed)
    with replacing(path) as written:
        written.write_text("new")
    assert names(tmp_path) == ["file"]
