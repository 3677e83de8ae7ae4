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

FORMAT = 2
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

    label: str = field(default="", compare=False)
    """What it is called in tables; empty: its id. Decides nothing."""

    reward_noise: float = 0.0
    """Standard deviation of normal noise on the rewards of training; evaluation has none."""

    @property
    def title(self) -> str:
        """What it is called."""
        return self.label or self.id

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible; label and noise only if there are any."""
        values = {**asdict(self), "kwargs": dict(self.kwargs)}
        for name in ("label", "reward_noise"):
            if not values[name]:
                del values[name]
        return values


@dataclass(frozen=True)
class EvaluationSpec:
    """When and how long the greedy policy is evaluated."""

    timesteps: tuple[int, ...]
    """Environment steps after which to evaluate, ascending; begins with 0, ends with the last."""

    episodes: int
    """Episodes at each of them."""

    values: bool = False
    """Whether the estimated values are held against the returns."""


@dataclass(frozen=True)
class RunSeeds:
    """Independent seeds of one run, each in 0 .. 2**31 - 1."""

    agent: int
    """Initialisation, exploration and replay, as far as the library can seed them."""

    environment: int
    """The stream from which the training episodes are seeded."""

    evaluation: int
    """The stream from which the evaluation episodes are seeded."""


@dataclass(frozen=True)
class RunSpec:
    """One system on one environment with one seed. Everything in it decides the result, and
    nothing else does: two equal specs are the same run on every machine."""

    environment: EnvironmentSpec
    system: str
    config: DQNConfig
    """What the system trains with: the levelled configuration, the `variant` of the system, and the
    settings of its own, if it has any."""

    total_timesteps: int
    evaluation: EvaluationSpec
    root_seed: int
    seed_index: int
    label: str = ""
    """What the system is called, where a suite gives it settings of its own. Empty: by its name."""

    levelled: Mapping[str, Any] = field(default_factory=dict)
    """What the levelled configuration has in the fields that are settings of the system's own."""

    @property
    def title(self) -> str:
        """What the system is called."""
        return self.label or self.system

    @property
    def seeds(self) -> RunSeeds:
        """Derived from (root seed, seed index) alone, so they are paired across systems."""
        sequence = np.random.SeedSequence(self.root_seed, spawn_key=(self.seed_index,))
        return RunSeeds(*(int(word) >> 1 for word in sequence.generate_state(3)))

    def episode_seed(self, number: int) -> int:
        """Reset seed of training episode `number`. Each has its own, so that episodes are paired
        too, and a training can go on from the end of any of them."""
        sequence = np.random.SeedSequence(self.seeds.environment, spawn_key=(number,))
        return int(sequence.generate_state(1)[0]) >> 1

    def noise_generator(self, number: int) -> np.random.Generator:
        """Of the noise on the rewards of training episode `number`."""
        return np.random.default_rng(
            np.random.SeedSequence(self.seeds.environment, spawn_key=(number, 1))
        )

    def evaluation_seeds(self, point: int) -> list[int]:
        """Reset seeds of the episodes at evaluation point number `point`."""
        sequence = np.random.SeedSequence(self.seeds.evaluation, spawn_key=(point,))
        return [int(word) >> 1 for word in sequence.generate_state(self.evaluation.episodes)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-compatible; `from_dict` is the inverse."""
        values: dict[str, Any] = {
            "format": FORMAT,
            "environment": self.environment.to_dict(),
            "system": self.system,
            "config": self.config.to_dict(),
            "total_timesteps": self.total_timesteps,
            "evaluation": {
                "timesteps": list(self.evaluation.timesteps),
                "episodes": self.evaluation.episodes,
                **({"values": True} if self.evaluation.values else {}),
            },
            "root_seed": self.root_seed,
            "seed_index": self.seed_index,
        }
        if self.label:
            values["label"] = self.label
        if self.levelled:
            values["levelled"] = dict(self.levelled)
        return values

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
            evaluation=EvaluationSpec(
                tuple(evaluation["timesteps"]),
                evaluation["episodes"],
                evaluation.get("values", False),
            ),
            root_seed=values["root_seed"],
            seed_index=values["seed_index"],
            label=values.get("label", ""),
            levelled=values.get("levelled", {}),
        )

    @property
    def identity(self) -> str:
        """Hash of all that decides the result: 12 hexadecimal digits."""
        return _digest(self._values(self.config.to_dict()))

    @property
    def protocol(self) -> str:
        """Hash of what runs must share to be compared: all but the system, its variant and
        settings, and the seed index."""
        values = self._values({**self.config.to_dict(), **self.levelled})
        values["config"].pop("variant", None)
        del values["system"], values["seed_index"]
        return _digest(values)

    def _values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """All that decides the result, with this configuration."""
        defaults = DQNConfig().to_dict()
        changed = {name: value for name, value in config.items() if value != defaults[name]}
        values = {**self.to_dict(), "config": changed}
        for name in ("label", "levelled"):
            values.pop(name, None)
        values["environment"].pop("label", None)
        return values

    @property
    def name(self) -> str:
        """Readable and unique; the name of the run's directory."""
        # Not the label of the environment: with another one the run is still the same.
        environment = self.environment.id.rpartition(":")[2]
        label = f"{environment}_{self.title}_s{self.seed_index:03d}"
        return f"{in_a_path(label)}_{self.identity}"


def in_a_path(text: str) -> str:
    """The text with a dash for what names of files had better not have."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
