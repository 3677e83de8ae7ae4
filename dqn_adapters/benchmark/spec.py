"""One run: everything that decides its learning numbers, and the hash of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from dqn_adapters.config import DQNConfig

FORMAT = 1
"""Version of what a run means and of how it is stored; part of the identity. It must be raised
when a default of `DQNConfig` changes, or what a value means: a field that has its default is left
out of the identity, so that a new field whose default changes nothing leaves results valid."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """An environment as `gymnasium.make` takes it."""

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    """Time limit in steps. None: the registered one."""


@dataclass(frozen=True)
class EvaluationSpec:
    """When and how long the greedy policy is evaluated."""

    timesteps: tuple[int, ...]
    """Environment steps after which to evaluate, ascending; begins with 0, ends with the last."""

    episodes: int
    """Episodes at each of them."""


@dataclass(frozen=True)
class RunSeeds:
    """Independent seeds of one run, each in 0 .. 2**31 - 1."""

    agent: int
    """Initialisation, exploration and replay, as far as the library can seed them."""

    environment: int
    """The first reset of the training environment."""

    evaluation: int
    """The stream from which the evaluation episodes are seeded."""


@dataclass(frozen=True)
class RunSpec:
    """One system on one environment with one seed. Everything in it decides the result, and
    nothing else does: two equal specs are the same run on every machine."""

    environment: EnvironmentSpec
    system: str
    config: DQNConfig
    """The levelled configuration; its `variant` is that of the system."""

    total_timesteps: int
    evaluation: EvaluationSpec
    root_seed: int
    seed_index: int

    @property
    def seeds(self) -> RunSeeds:
        """Derived from (root seed, seed index) alone, so they are paired across systems."""
        sequence = np.random.SeedSequence(self.root_seed, spawn_key=(self.seed_index,))
        return RunSeeds(*(int(word) >> 1 for word in sequence.generate_state(3)))

    def evaluation_seeds(self, point: int) -> list[int]:
        """Reset seeds of the episodes at evaluation point number `point`."""
        sequence = np.random.SeedSequence(self.seeds.evaluation, spawn_key=(point,))
        return [int(word) >> 1 for word in sequence.generate_state(self.evaluation.episodes)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible; `from_dict` is the inverse."""
        return {
            "format": FORMAT,
            "environment": {**asdict(self.environment), "kwargs": dict(self.environment.kwargs)},
            "system": self.system,
            "config": self.config.to_dict(),
            "total_timesteps": self.total_timesteps,
            "evaluation": {
                "timesteps": list(self.evaluation.timesteps),
                "episodes": self.evaluation.episodes,
            },
            "root_seed": self.root_seed,
            "seed_index": self.seed_index,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises `ValueError` for another format."""
        if values.get("format") != FORMAT:
            raise ValueError(
                f"format={values.get('format')!r} is not accepted; it must be {FORMAT}"
            )
        evaluation = values["evaluation"]
        return cls(
            environment=EnvironmentSpec(**values["environment"]),
            system=values["system"],
            config=DQNConfig.from_dict(values["config"]),
            total_timesteps=values["total_timesteps"],
            evaluation=EvaluationSpec(tuple(evaluation["timesteps"]), evaluation["episodes"]),
            root_seed=values["root_seed"],
            seed_index=values["seed_index"],
        )

    @property
    def identity(self) -> str:
        """Hash of all that decides the result: 12 hexadecimal digits."""
        return _digest({**self.to_dict(), "config": self._settings()})

    @property
    def protocol(self) -> str:
        """Hash of what runs must share to be compared: all but the system, its variant and the
        seed index."""
        values = {**self.to_dict(), "config": self._settings()}
        values["config"].pop("variant", None)
        del values["system"], values["seed_index"]
        return _digest(values)

    def _settings(self) -> dict[str, Any]:
        defaults = DQNConfig().to_dict()
        return {
            name: value for name, value in self.config.to_dict().items() if value != defaults[name]
        }

    @property
    def name(self) -> str:
        """Readable and unique; the name of the run's directory."""
        label = f"{self.environment.id}_{self.system}_s{self.seed_index:03d}"
        return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', label)}_{self.identity}"


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
