"""`train` and `enjoy` of the RL Zoo, with the variants registered."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from dqn_adapters.sb3.zoo.algorithms import ALGORITHMS, register

_HYPERPARAMS = "dqn_adapters.sb3.zoo.hyperparams"
_USAGE = "usage: python -m dqn_adapters.sb3.zoo {train,enjoy} --algo {%s} --env ID ..."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `train` or `enjoy` of the RL Zoo; all of its options are taken.

    Args:
        arguments: The command and its options. None: those of the process.

    Raises:
        SystemExit: the command is neither of them.
    """
    command, *options = [*(sys.argv[1:] if arguments is None else arguments)] or [""]
    if command not in ("train", "enjoy"):
        raise SystemExit(_USAGE % ",".join(ALGORITHMS))
    register()
    if command == "train" and not {"-conf", "--conf-file"}.intersection(options):
        options += ["--conf-file", _HYPERPARAMS]
    import rl_zoo3.enjoy
    import rl_zoo3.train

    given, sys.argv = sys.argv, [f"{sys.argv[0]} {command}", *options]
    try:
        rl_zoo3.train.train() if command == "train" else rl_zoo3.enjoy.enjoy()
    finally:
        sys.argv = given
