"""In which line of a TOML file something is; `tomllib` tells only of what it cannot read."""

from __future__ import annotations

import re
import tomllib
from functools import cached_property
from typing import Any

_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]")
_KEY = re.compile(r"\s*([\w.\"' -]+?)\s*=")


class Source:
    """The text of a valid TOML file.

    Args:
        name: What the file is called in messages.
        text: Its content.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self._text = text

    def at(self, place: str) -> str:
        """The file and the line, `FILE:LINE`, of a key or a table; of what holds it, if it is not
        there or is written in one line with others; the file alone, if nothing does.

        Args:
            place: Names with dots between them; the entries of a list count from 1, as in
                `environments.2.id`.
        """
        parts = place.split(".")
        for length in range(len(parts), 0, -1):
            line = self._lines.get(".".join(parts[:length]))
            if line is not None:
                return f"{self.name}:{line}"
        return self.name

    @cached_property
    def _lines(self) -> dict[str, int]:
        lines = self._text.splitlines(keepends=True)
        found: dict[str, int] = {}
        table = ""
        for number, line in enumerate(lines, 1):
            if _parse(lines[: number - 1]) is None:  # it is inside of a value
                continue
            if header := _HEADER.match(line):
                table = _count(_names(header[1]), _parse(lines[:number]) or {})
                found.setdefault(table, number)
            elif key := _KEY.match(line):
                found[".".join([*filter(None, [table]), *_names(key[1])])] = number
        return found


def _parse(lines: list[str]) -> dict[str, Any] | None:
    try:
        return tomllib.loads("".join(lines))
    except tomllib.TOMLDecodeError:
        return None


def _names(dotted: str) -> list[str]:
    """The names in a dotted key, of which some may be quoted."""
    found = []
    values: Any = _parse([f"{dotted} = 0"])
    while isinstance(values, dict):
        ((name, values),) = values.items()
        found.append(name)
    return found


def _count(names: list[str], values: Any) -> str:
    """The name of a table, with the number of the last entry behind every list."""
    found = []
    for name in names:
        found.append(name)
        values = values[name]
        if isinstance(values, list):
            found.append(str(len(values)))
            values = values[-1]
    return ".".join(found)
