from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dqn_adapters.benchmark import Suite, load_suite

FAKE = "benchmark.fake_systems:{}"

SUITE = """
systems = [{systems}]
seeds = {seeds}
total_timesteps = {total_timesteps}

[evaluation]
points = {points}
episodes = {episodes}

[[environments]]
id = "{environment}"
{environment_extra}

[config]
train_freq = 4
gradient_steps = 2
learning_starts = 16
batch_size = 8
buffer_size = 100
target_update_interval = 8
hidden_sizes = [16]
{config}
"""


def suite_text(
    systems: list[str],
    *,
    seeds: Any = 2,
    total_timesteps: int = 64,
    points: int = 2,
    episodes: int = 2,
    environment: str = "CartPole-v1",
    environment_extra: str = "",
    config: str = "",
) -> str:
    """A small suite; a system without a dash is one of `fake_systems`."""
    names = [name if "-" in name or ":" in name else FAKE.format(name) for name in systems]
    return SUITE.format(
        systems=", ".join(f'"{name}"' for name in names),
        seeds=seeds,
        total_timesteps=total_timesteps,
        points=points,
        episodes=episodes,
        environment=environment,
        environment_extra=environment_extra,
        config=config,
    )


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[..., Path]:
    def write(systems: list[str], **values: Any) -> Path:
        path = tmp_path / "small.toml"
        path.write_text(suite_text(systems, **values))
        return path

    return write


@pytest.fixture
def make_suite(write_suite: Callable[..., Path]) -> Callable[..., Suite]:
    def make(systems: list[str], **values: Any) -> Suite:
        return load_suite(str(write_suite(systems, **values)))

    return make
