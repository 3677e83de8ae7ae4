"""Random sequences of edits, run one after the other in a process of their own.

`python -m conformance.fuzz FIRST COUNT` writes to its standard output a line for every sequence
before it begins, and one for every sequence that failed. A process that died tells by its last line
in which.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any, NamedTuple

import numpy as np
import torch

from conformance.drivers import ADAPTERS
from conformance.edits import DEEP, EDITS, check_same, pair

LENGTH = 3


class Sequence(NamedTuple):
    """Edits to be made one after the other."""

    seed: int
    adapter: str
    variant: str
    names: tuple[str, ...]


def sequence(seed: int) -> Sequence:
    """The sequence of a seed. Only the last edit may be one after which torch raises, so that most
    sequences train."""
    rng = np.random.default_rng(seed)
    adapter = [*ADAPTERS][seed % len(ADAPTERS)]
    variant = str(rng.choice(["vanilla", "target", "double"]))
    every = [name for name, row in EDITS.items() if variant in row.variants and name != "nothing"]
    trains = [name for name in every if EDITS[name].raises is None]
    first = rng.choice(trains, LENGTH - 1, replace=False)
    last = rng.choice([name for name in every if name not in first])
    return Sequence(seed, adapter, variant, (*map(str, first), str(last)))


def run(one: Sequence) -> None:
    """Raise `AssertionError` unless a sequence does what it does with `execution="eager"`."""
    eager, auto = pair(one.adapter, one.variant, one.names, config=DEEP)
    check_same(eager, auto, settled=all(EDITS[name].settled for name in one.names))


def main(first: int, count: int) -> None:
    torch.set_num_threads(1)
    for seed in range(first, first + count):
        one = sequence(seed)
        _write(begins=one)
        try:
            run(one)
        except Exception:
            _write(failed=one, why=traceback.format_exc(limit=-3))
    _write(done=count)


def _write(**values: Any) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
