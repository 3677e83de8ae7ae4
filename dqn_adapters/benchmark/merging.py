"""Finished runs from several machines in one store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dqn_adapters.benchmark.spec import RunSpec
from dqn_adapters.benchmark.store import RunResult, Store, StoreError

_NAMED = 5


class MergeError(StoreError):
    """Stores cannot be merged; nothing was."""


@dataclass(frozen=True)
class Merged:
    """What came of it."""

    taken: tuple[RunSpec, ...]
    known: tuple[RunSpec, ...]
    """They were there already, with the same numbers."""


def merge(store: Store, others: Sequence[Store]) -> Merged:
    """Take the finished runs of other stores, each as a whole or not at all.

    All of them are read and compared before the first is taken. The same run has the same
    evaluations and episodes wherever it is trained with the same libraries; what it cost may
    differ, and stays that of the run that is there.

    Raises:
        MergeError: a store has no finished run, or is the very one to merge into, or a run has
            other numbers than the run of the same name.
        ForeignRunError: a run is of another version of this package.
        StoreError: a run is damaged.
    """
    sources: dict[str, tuple[Store, RunResult]] = {}
    taken: dict[str, RunSpec] = {}
    known: dict[str, RunSpec] = {}
    contradictions = []
    for other in others:
        if other.path.resolve() == store.path.resolve():
            raise MergeError(f"{other.path} is the directory to merge into")
        names = other.names()
        if not names:
            raise MergeError(f"no run is finished in {other.path}")
        for name in names:
            result = other.load(name)
            if name not in sources and store.has(result.run):
                sources[name] = store, store.load(name)
                known[name] = result.run
            if name not in sources:
                sources[name] = other, result
                taken[name] = result.run
            elif _numbers(result) != _numbers(sources[name][1]):
                contradictions.append(f"{other.path / name} and {sources[name][0].path / name}")
    if contradictions:
        raise MergeError(
            f"{len(contradictions)} {'run has' if len(contradictions) == 1 else 'runs have'} other "
            f"numbers under the same name: {'; '.join(contradictions[:_NAMED])}"
            f"{'; ...' if len(contradictions) > _NAMED else ''}. They were trained with other "
            "versions of the libraries or on another kind of processor: keep one of each"
        )
    for name, run in taken.items():
        store.take(run, sources[name][0])
    return Merged(tuple(taken.values()), tuple(known.values()))


def _numbers(result: RunResult) -> tuple[object, ...]:
    return result.run, result.evaluations, result.episodes
