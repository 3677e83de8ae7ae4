"""Where the time goes: whom an interruption is counted for, and what is measured alone."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from gymnasium import spaces
from speed.environments import Alone, Images
from speed.floor import floor, products
from speed.parts import Sampler, breakdown
from torch import nn

from dqn_adapters import DQNConfig


def test_time_goes_to_the_innermost_part() -> None:
    now = 0

    def wait(nanoseconds: int) -> None:
        nonlocal now
        now += nanoseconds
        sampler.sample(sys._getframe())

    class Loop:
        def outer(self) -> None:
            wait(5)
            self.inner()
            wait(2)

        def inner(self) -> None:
            self.helper()

        def helper(self) -> None:
            wait(1)

    loop = Loop()
    parts = [("a", loop.outer), ("b", loop.inner), ("c", None), ("d", [].append)]
    sampler = Sampler(parts, lambda: now)
    loop.outer()
    loop.inner()
    wait(10)
    assert sampler.spent == {"a": 7, "b": 2, "host": 10}


def test_a_breakdown_adds_up_and_replaces_nothing() -> None:
    class Loop:
        steps = 0

        def update(self) -> int:
            return sum(range(200))

        def run(self, steps: int) -> None:
            for _ in range(steps):
                self.update()
            self.steps += steps

    loop = Loop()
    parts = breakdown(loop.run, 5000, [("update", loop.update), ("sample", None)])
    assert set(parts) <= {"update", "host"}
    assert parts["update"] > 0
    assert vars(loop) == {"steps": 10_000}
    assert breakdown(loop.run, 1, []) == {}


def test_an_interval_timer_is_put_back_when_a_training_fails() -> None:
    import signal

    before = signal.getsignal(signal.SIGALRM)
    calls = []

    def fail(steps: int) -> None:
        calls.append(steps)
        if len(calls) == 2:
            raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged"):
        breakdown(fail, 3, [("update", fail)])
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_floor_is_that_of_the_network_and_the_buffer() -> None:
    space = spaces.Box(-1, 1, (4,), np.float32)
    assert products(nn.Linear(4, 2), space, 8) > 0
    config = DQNConfig(buffer_size=100, batch_size=8)
    none, one = (floor(nn.Linear(4, 2), space, config)(updates) for updates in (0.0, 1.0))
    assert none.products == 0.0
    assert none.memory > 0
    assert one.products > 0
    convolutions = nn.Sequential(nn.Conv2d(4, 2, 8, 4), nn.Flatten(), nn.Linear(800, 2))
    images = spaces.Box(0, 1, (4, 84, 84), np.float32)
    assert products(convolutions, images, 2) > 0


def test_an_environment_alone_is_reset_when_an_episode_ends() -> None:
    alone = Alone(Images)
    alone.run(0.0)
    alone.run(0.0)
    assert alone.steps == 2000
    assert len(alone.rates) == 2
    assert min(alone.rates) > 0
