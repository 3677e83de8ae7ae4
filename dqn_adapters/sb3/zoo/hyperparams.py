"""The RL Zoo's tuned hyper-parameters of dqn, with ours over them.

The zoo reads `hyperparams` where this module is its `--conf-file`.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml  # type: ignore[import-untyped]


def _read(package: str, *path: str) -> dict[str, Any]:
    text = resources.files(package).joinpath(*path).read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text) or {}
    return values


hyperparams: dict[str, Any] = {
    **_read("rl_zoo3", "hyperparams", "dqn.yml"),
    **_read("dqn_adapters.sb3.zoo", "hyperparams.yml"),
}
"""Settings by environment id; `atari` and `default` are for those that have none of their own."""
