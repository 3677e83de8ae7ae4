"""Bytes per transition of replay buffers, measured on a stream of stacked frames."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dqn_adapters._extras import require

STACK, SIDE = 4, 84
EPISODE = 1000
"""Length of the episodes of the stream, in steps; every one is cut by a time limit."""


@dataclass(frozen=True)
class Buffer:
    """A replay buffer that can be measured."""

    name: str
    build: Callable[[int], Callable[..., None]]
    """Capacity to a function that adds (s, a, r, s', truncated)."""

    requires: tuple[str, str] | None = None
    note: str = ""


@dataclass(frozen=True)
class Measurement:
    """What one buffer took."""

    name: str
    bytes_per_transition: float
    """Growth of the process's resident memory while it was filled, over the transitions."""

    note: str


def frames(count: int) -> Any:
    """A stream of (s, s', truncated) with s' a shifted s, as a frame stack gives them."""
    rng = np.random.default_rng(0)

    def new() -> NDArray[np.uint8]:
        return rng.integers(0, 256, (1, SIDE, SIDE), np.uint8)

    state = np.repeat(new(), STACK, axis=0)
    for step in range(1, count + 1):
        after = np.concatenate([state[1:], new()])
        cut = step % EPISODE == 0
        yield state, after, cut
        state = np.repeat(new(), STACK, axis=0) if cut else after


def measure(name: str, transitions: int) -> Measurement:
    """Fill one buffer in a process of its own and see how that process grows.

    Raises:
        ValueError: there is no buffer of that name.
        ImportError: its library is not installed.
    """
    buffer = find(name)
    if buffer.requires is not None:
        require(buffer.requires[0], extra=buffer.requires[1])
    code = "import sys; from dqn_adapters.benchmark.memory import fill; fill(*sys.argv[1:])"
    out = subprocess.run(
        [sys.executable, "-c", code, name, str(transitions)],
        capture_output=True,
        text=True,
        check=False,
    )
    if out.returncode:
        raise RuntimeError(f"measuring {name!r} failed:\n{out.stderr}")
    return Measurement(name, json.loads(out.stdout.splitlines()[-1]), buffer.note)


def fill(name: str, transitions: str) -> None:
    """Fill a buffer here and print the bytes per transition; `measure` runs this."""
    import psutil

    count = int(transitions)
    process = psutil.Process()
    # One buffer of a hundredth first: what libraries take at their first use is not the buffer's.
    _fill(find(name), max(count // 100, STACK * 2))
    gc.collect()
    before = process.memory_info().rss
    keep = _fill(find(name), count)
    gc.collect()
    print(json.dumps((process.memory_info().rss - before) / count))
    del keep


def _fill(buffer: Buffer, count: int) -> Callable[..., None]:
    add = buffer.build(count)
    for state, after, cut in frames(count):
        add(state, 0, 0.0, after, cut)
    return add


def find(name: str) -> Buffer:
    """The buffer of that name; `ValueError` if there is none."""
    for buffer in BUFFERS:
        if buffer.name == name:
            return buffer
    raise ValueError(f"no buffer is called {name!r}; there are {[b.name for b in BUFFERS]}")


_SPACE = spaces.Box(0, 255, (STACK, SIDE, SIDE), np.uint8)
_ACTIONS = spaces.Discrete(6)


def _ours(frame_stack: int | None) -> Callable[[int], Callable[..., None]]:
    def build(capacity: int) -> Callable[..., None]:
        from dqn_adapters.replay import ReplayBuffer
        from dqn_adapters.transition import EnvStep

        buffer = ReplayBuffer(
            capacity,
            _SPACE,
            gamma=0.99,
            generator=np.random.default_rng(0),
            frame_stack=frame_stack,
        )

        def add(s: Any, a: int, r: float, s2: Any, cut: bool) -> None:
            one = np.ones(1, np.bool_)
            buffer.add(
                EnvStep(s[None], np.array([a]), np.array([r]), s2[None], ~one, np.array([cut]), one)
            )

        return add

    return build


def _sb3(optimize: bool) -> Callable[[int], Callable[..., None]]:
    def build(capacity: int) -> Callable[..., None]:
        from stable_baselines3.common.buffers import ReplayBuffer

        buffer = ReplayBuffer(
            capacity,
            _SPACE,
            _ACTIONS,
            device="cpu",
            optimize_memory_usage=optimize,
            handle_timeout_termination=not optimize,
        )

        def add(s: Any, a: int, r: float, s2: Any, cut: bool) -> None:
            info = [{"TimeLimit.truncated": cut}]
            buffer.add(s[None], s2[None], np.array([[a]]), np.array([r]), np.array([cut]), info)

        return add

    return build


def _tianshou(lean: bool) -> Callable[[int], Callable[..., None]]:
    def build(capacity: int) -> Callable[..., None]:
        from tianshou.data import Batch, ReplayBuffer

        options: dict[str, Any] = (
            {"stack_num": STACK, "ignore_obs_next": True, "save_only_last_obs": True}
            if lean
            else {}
        )
        buffer = ReplayBuffer(capacity, **options)

        def add(s: Any, a: int, r: float, s2: Any, cut: bool) -> None:
            buffer.add(
                Batch(obs=s, act=a, rew=r, terminated=False, truncated=cut, obs_next=s2, info={})
            )

        return add

    return build


_SB3 = ("stable_baselines3", "sb3")
_TIANSHOU = ("tianshou", "tianshou")

BUFFERS = (
    Buffer("ours, frames kept once", _ours(STACK), note="exact at truncations"),
    Buffer("ours, observations kept whole", _ours(None), note="exact at truncations"),
    Buffer("SB3", _sb3(False), _SB3, "exact at truncations"),
    Buffer("SB3, optimize_memory_usage", _sb3(True), _SB3, "refuses time limits"),
    Buffer("Tianshou", _tianshou(False), _TIANSHOU, "exact at truncations"),
    Buffer(
        "Tianshou, stack_num and ignore_obs_next",
        _tianshou(True),
        _TIANSHOU,
        "at a truncation s' is s",
    ),
)
"""What `dqn-bench memory` measures, in its order."""
