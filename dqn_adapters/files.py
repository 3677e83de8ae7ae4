"""Files that are whole or absent: each is written beside its place, and renamed when complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

PARTIAL = ".partial-"
"""Prefix of the folder in which the successor of a file is written."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write a file at, which takes the place of `path` when the block ends.

    `path` holds the old or the new file at every moment, also if the machine loses its power. The
    new one is written in the folder `.partial-NAME` beside it, where more files may be kept within
    the block. A killed process leaves that folder, and the next one that replaces the file
    removes it. Of two that replace one file at the same time, one gets an `OSError`.

    Args:
        path: The file; its folder is made.

    Raises:
        OSError: The file cannot be written. It names `path`, and what was there stays.
    """
    path = Path(path)
    folder = path.with_name(PARTIAL + path.name)
    # A name of its own for every writer: none ever renames what another is still writing.
    written = folder / uuid.uuid4().hex
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        try:
            written.touch()
            mode = written.stat().st_mode  # a writer may put a file of another mode in its place
            yield written
            os.chmod(written, mode)
            sync(written)
            os.replace(written, path)
            sync(path.parent)
        finally:
            written.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another process has begun to write in it
                folder.rmdir()
    except OSError as error:
        place = None if error.filename is None else Path(os.fsdecode(error.filename))
        if error.errno is None or not (place is None or folder in (place, place.parent)):
            raise  # it is of something else in the block
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextlib.contextmanager
def replacing_text(path: str | Path) -> Iterator[TextIO]:
    """`replacing`, of a text file that is open for writing: UTF-8, lines as they are written."""
    with replacing(path) as written, written.open("w", encoding="utf-8", newline="") as file:
        yield file


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk: a rename must
    not reach it before what is renamed."""
    if path.is_dir():
        with contextlib.suppress(OSError):  # not every system can do this for folders
            _sync(path, os.O_RDONLY)
    else:
        _sync(path, os.O_RDWR)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
