"""Training throughput, side by side: `dqn-bench speed`.

A row compares one of ours with a peer at the same network, batch, optimiser and replay ratio. It
has a process of its own, in which both train in turns, so that whatever else the machine does falls
on both; the ratio of a turn is one sample. Each computes with the number of torch threads with
which it is fastest. That both did the same work is asserted.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from rich.table import Column, Table
from scipy import stats

from dqn_adapters.benchmark.executor import ONE_THREAD, execute
from dqn_adapters.benchmark.levelling import (
    sb3_adapter_arguments,
    sb3_arguments,
    sbx_arguments,
    tianshou_settings,
)
from dqn_adapters.benchmark.provenance import usable_cores
from dqn_adapters.benchmark.spec import EnvironmentSpec, EvaluationSpec, RunSpec
from dqn_adapters.benchmark.store import Store
from dqn_adapters.config import DQNConfig
from dqn_adapters.files import replacing_text

SECONDS = 30.0
"""How long a row is measured, about, beside what it takes to start and to warm up."""

SWEEP_SEEDS = 8
PRIORITIZED = 1_000_000
NUM_ENVS = 16
LOT = 16
"""Turns are of a multiple of so many steps, which ends all training phases."""

PARTS = ("environment", "act", "store", "sample", "update", "host")
"""Of a step; the last is the loop around the others."""

ENVIRONMENT = "CartPole-v1"
HORIZON = 1_000_000
"""Environment steps of the schedules; longer than any row trains."""

SMALL = DQNConfig(
    learning_rate=1e-3,
    buffer_size=50_000,
    batch_size=64,
    train_freq=1,
    target_update_interval=500,
    exploration_steps=1000,
)
LARGE = replace(SMALL, batch_size=128, hidden_sizes=(256, 256))
IMAGES = replace(SMALL, batch_size=32, train_freq=4, buffer_size=2000, hidden_sizes=(512,))
MANY = replace(SMALL, train_freq=NUM_ENVS, gradient_steps=NUM_ENVS)
SWEEP = replace(SMALL, learning_starts=0)
STORED = 10_000
"""Transitions in Tianshou's buffer when its rows begin: it looks through all of them at every step,
so what is stored decides. CartPole is learned with about as many."""


@dataclass(frozen=True)
class Work:
    """What a side has done so far."""

    steps: int
    updates: int
    stored: int
    capacity: int
    """Of the replay buffer."""

    loss: float = math.nan
    """Of the last update."""


@dataclass
class Side:
    """One of the two that are compared."""

    run: Callable[[int], object]
    """Trains for so many more environment steps."""

    work: Callable[[], Work]
    parts: Sequence[tuple[str, Any, str]] = ()
    """Where a step's time goes: a name, an object and its method; several may share a name."""

    products: Callable[[], float] | None = None
    """Microseconds of the matrix products of one update, alone."""


@dataclass(frozen=True)
class Peer:
    """A library to compare with."""

    name: str
    module: str
    install: str
    """What `pip install` takes for it."""

    def check_installed(self) -> None:
        """Raise `ImportError` if it is not."""
        if importlib.util.find_spec(self.module) is None:
            raise ImportError(
                f"{self.name} is not installed; it comes with: pip install {self.install}",
                name=self.module,
            )


@dataclass(frozen=True)
class Row:
    """A comparison."""

    name: str
    peer: Peer
    mark: float
    """The ratio to be reached."""

    ours: Callable[[], Side]
    theirs: Callable[[], Side]
    note: str = ""
    unit: str = "environment steps"
    steps: tuple[int, int] | None = None
    """Of ours and of theirs in a turn, however long; None: as many as fit."""

    turns: int = 15


@dataclass
class Result:
    """What a row gave; `ours` and `peer` are medians, in units per second."""

    name: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    """Median over the turns, and the ends of its 95 % interval by the bootstrap."""

    ratio_low: float
    ratio_high: float
    mark: float
    met: bool
    unit: str
    turns: int
    threads: int
    peer_threads: int
    load: float
    """Load average of the machine in the minute before: above 0 others used it too."""

    parts: dict[str, float] = field(default_factory=dict)
    """Microseconds of processor time per unit of ours, on one thread."""

    peer_parts: dict[str, float] = field(default_factory=dict)
    products: float | None = None
    """Microseconds of an update of ours over those of its matrix products alone."""

    note: str = ""


class Images(gym.Env[np.ndarray, int]):
    """Stacked frames of noise, 4x84x84 bytes: an environment that costs next to nothing."""

    observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space: spaces.Space[Any] = spaces.Discrete(6)

    def __init__(self) -> None:
        self._frames = np.random.default_rng(0).integers(0, 256, (64, 4, 84, 84), np.uint8)
        self._step = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, Any]:
        super().reset(seed=seed)
        return self._frames[self._step % 64], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, Any]:
        self._step += 1
        return self._frames[self._step % 64], 1.0, self._step % 500 == 0, False, {}


def _one() -> gym.Env[Any, Any]:
    return gym.make(ENVIRONMENT)


def native(config: DQNConfig, make_env: Callable[[], Any] = _one) -> Side:
    """The host-free agent."""
    from dqn_adapters import DQNAgent

    agent = DQNAgent(make_env(), config, seed=0, device="cpu")
    loss = math.nan

    def run(steps: int) -> None:
        nonlocal loss
        for step in agent.train(steps):
            metrics = step.metrics
        loss = math.nan if metrics is None else float(metrics.loss)

    return Side(
        run,
        lambda: Work(
            agent.num_timesteps,
            agent.num_updates,
            len(agent.replay),
            config.buffer_size,
            loss,
        ),
        (
            ("environment", agent._stepper, "step"),
            ("act", agent, "_act"),
            ("store", agent.replay, "add"),
            ("sample", agent.replay, "draw"),
            ("sample", agent.replay, "gather"),
            ("update", agent.learner, "update"),
        ),
        lambda: products(agent.q_net, agent.observation_space, config.batch_size),
    )


def sb3(config: DQNConfig, make_env: Callable[[], Any] = _one, *, library: str) -> Side:
    """Stable-Baselines3's loop, with the DQN of a library: its own, ours, or SBX's."""
    module = importlib.import_module(library)
    ours = library == "dqn_adapters.sb3"
    levelled = {"dqn_adapters.sb3": sb3_adapter_arguments, "sbx": sbx_arguments}
    arguments = levelled.get(library, sb3_arguments)(config, HORIZON)
    env = make_env()
    policy = "MlpPolicy"
    if isinstance(env, Images):
        policy = "CnnPolicy"
        features = {"features_dim": config.hidden_sizes[0]}
        arguments["policy_kwargs"] = {"net_arch": [], "features_extractor_kwargs": features}
    # The host counts calls of step, each of which is one step of every environment.
    arguments["train_freq"] = config.train_freq // getattr(env, "num_envs", 1)
    model = module.DQN(policy, env, seed=0, device="cpu", **arguments)

    def run(steps: int) -> None:
        model.learn(steps, reset_num_timesteps=False, log_interval=100)

    def work() -> Work:
        loss = float(model.logger.name_to_value.get("train/loss", math.nan))
        stored = model.replay_buffer.size() * model.n_envs
        return Work(model.num_timesteps, model._n_updates, stored, config.buffer_size, loss)

    return Side(
        run,
        work,
        (
            ("environment", model.env, "step"),
            ("act", model, "_sample_action"),
            ("store", model.replay_buffer, "add"),
            ("sample", model.replay_buffer, "draw" if ours else "sample"),
            ("update", *((model.learner, "update") if ours else (model, "train"))),
        ),
    )


def tianshou(config: DQNConfig, *, ours: bool, scan: bool = True) -> Side:
    """Tianshou's trainer: with our algorithm, collector and buffer, or with its own."""
    from tianshou import data
    from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OffPolicyTrainerParams
    from tianshou.utils.net.common import Net

    import dqn_adapters.tianshou as adapter

    settings = tianshou_settings(config, HORIZON)
    envs = DummyVectorEnv([_one])
    (space,) = envs.get_env_attr("action_space")
    net = Net(state_shape=(4,), action_shape=2, hidden_sizes=list(config.hidden_sizes))
    policy_class: Any = adapter.DQNPolicy if ours else DiscreteQLearningPolicy
    algorithm_class: Any = adapter.DQN if ours else DQN
    parts: Any = adapter if ours else data
    policy = policy_class(model=net, action_space=space, eps_training=config.exploration_final_eps)
    optim = AdamOptimizerFactory(**settings.optimizer)
    algorithm = algorithm_class(policy=policy, optim=optim, **settings.algorithm)
    buffer = parts.VectorReplayBuffer(config.buffer_size, 1)
    if not scan:
        buffer.hasnull = lambda: False
    collector = parts.Collector(policy, envs, buffer, exploration_noise=True)
    collector.reset()
    collector.collect(n_step=STORED, random=True)
    steps, updates, loss = STORED, 0, math.nan
    update = algorithm._update_with_batch

    def counted(batch: Any) -> Any:
        nonlocal updates, loss
        result = update(batch)
        updates, loss = updates + 1, float(result.loss)
        return result

    algorithm._update_with_batch = counted

    def run(more: int) -> None:
        nonlocal steps
        values: dict[str, Any] = {**settings.trainer, "epoch_num_steps": more}
        algorithm.run_training(
            OffPolicyTrainerParams(training_collector=collector, show_progress=False, **values)
        )
        steps += more

    return Side(
        run,
        lambda: Work(steps, updates, len(buffer), config.buffer_size, loss),
        (
            ("environment", envs, "step"),
            ("act", collector, "_act") if ours else ("act", policy, "forward"),
            ("store", buffer, "add"),
            ("sample", buffer, "sample"),
            # Tianshou computes the targets in the one and the rest of the update in the other.
            ("update", algorithm, "_preprocess_batch"),
            ("update", algorithm, "_update_with_batch"),
        ),
    )


def prioritized(*, ours: bool) -> Side:
    """A full prioritised buffer: store a transition, sample a batch, set its priorities."""
    size, rng, rounds = SMALL.batch_size, np.random.default_rng(0), 0
    errors = rng.random((64, size)).astype(np.float32)
    space = spaces.Box(-1, 1, (4,), np.float32)

    if ours:
        from dqn_adapters.replay import ReplayBuffer
        from dqn_adapters.transition import EnvStep

        count = 1000
        replay = ReplayBuffer(
            PRIORITIZED, space, gamma=1.0, generator=rng, num_envs=count, prioritized=True
        )

        def step(n: int) -> EnvStep:
            s, no = np.zeros((n, 4), np.float32), np.zeros(n, np.bool_)
            return EnvStep(s, np.zeros(n, np.int64), np.zeros(n), s, no, no, ~no)

        for _ in range(PRIORITIZED // count):
            replay.add(step(count))
        one, streams = step(1), np.zeros(1, np.int64)

        def round_(td_errors: Any) -> None:
            replay.add(one, streams)
            indices = replay.draw(size)
            replay.gather(indices, reuse=True)
            replay.update_priorities(indices, td_errors)

        buffer: Any = replay
        parts = [("store", "add"), ("sample", "draw"), ("sample", "gather")]
        update = "update_priorities"
    else:
        from tianshou.data import Batch, PrioritizedReplayBuffer
        from tianshou.data import ReplayBuffer as Uniform

        zeros, no = np.zeros(PRIORITIZED), np.zeros(PRIORITIZED, np.bool_)
        s = np.zeros((PRIORITIZED, 4), np.float32)
        fields: Any = (s, zeros.astype(np.int64), zeros, no, no, no, s)
        buffer = PrioritizedReplayBuffer(
            PRIORITIZED, alpha=SMALL.priority_alpha, beta=SMALL.priority_beta
        )
        buffer.update(Uniform.from_data(*fields))
        row = Batch(
            obs=s[0], act=0, rew=0.0, terminated=False, truncated=False, obs_next=s[0], info={}
        )

        def round_(td_errors: Any) -> None:
            buffer.add(row)
            _, indices = buffer.sample(size)
            buffer.update_weight(indices, td_errors)

        parts, update = [("store", "add"), ("sample", "sample")], "update_weight"

    def run(more: int) -> None:
        nonlocal rounds
        for _ in range(more):
            round_(errors[rounds % len(errors)])
            rounds += 1

    return Side(
        run,
        lambda: Work(PRIORITIZED + rounds, rounds, len(buffer), PRIORITIZED),
        [(name, buffer, method) for name, method in [*parts, ("update", update)]],
    )


def sweep(system: str) -> Side:
    """Seeds through the harness: worker processes on all cores, one thread each. A step is one of
    any of them; the time includes the start of the processes and two evaluations a seed."""
    steps = updates = 0

    def run(more: int) -> None:
        nonlocal steps, updates
        each = more // SWEEP_SEEDS
        runs = [
            RunSpec(
                environment=EnvironmentSpec(ENVIRONMENT),
                system=system,
                config=SWEEP,
                total_timesteps=each,
                evaluation=EvaluationSpec((0, each), 1),
                root_seed=0,
                seed_index=index,
            )
            for index in range(SWEEP_SEEDS)
        ]
        with tempfile.TemporaryDirectory() as directory:
            store = Store(Path(directory), "speed")
            for _ in execute(runs, store, workers=usable_cores()):
                pass
            updates += sum(store.load(run.name).timing.updates for run in runs)
        steps += each * SWEEP_SEEDS

    return Side(run, lambda: Work(steps, updates, steps, steps))


def _many() -> gym.vector.VectorEnv[Any, Any, Any]:
    return gym.make_vec(ENVIRONMENT, NUM_ENVS, vectorization_mode="sync")


def _many_in_sb3() -> Any:
    from stable_baselines3.common.env_util import make_vec_env

    return make_vec_env(ENVIRONMENT, NUM_ENVS)


_SB3 = Peer("Stable-Baselines3", "stable_baselines3", "'dqn-adapters[sb3]'")
_TIANSHOU = Peer("Tianshou", "tianshou", "'dqn-adapters[tianshou]'")
_SBX = Peer("SBX", "sbx", "sbx-rl")

_theirs = partial(sb3, library="stable_baselines3")
_ours = partial(sb3, library="dqn_adapters.sb3")
_sbx = partial(sb3, SMALL, library="sbx")
_in_tianshou = partial(tianshou, SMALL, ours=True)
_stored = f"{STORED:,} transitions are stored when it begins"
_seeds = f"{SWEEP_SEEDS} short seeds in place of 30"

ROWS = (
    Row("sb3", _SB3, 6.0, partial(_ours, SMALL), partial(_theirs, SMALL)),
    Row("tianshou", _TIANSHOU, 5.0, _in_tianshou, partial(tianshou, SMALL, ours=False), _stored),
    Row(
        "tianshou-no-scan",
        _TIANSHOU,
        4.0,
        _in_tianshou,
        partial(tianshou, SMALL, ours=False, scan=False),
        "Tianshou's scan for NaN is off",
    ),
    Row("native", _SB3, 15.0, partial(native, SMALL), partial(_theirs, SMALL)),
    Row("native-sbx", _SBX, 1.0, partial(native, SMALL), _sbx),
    Row("sb3-sbx", _SBX, 1.0, partial(_ours, SMALL), _sbx),
    Row("tianshou-sbx", _SBX, 1.0, _in_tianshou, _sbx, _stored),
    Row(
        "sweep",
        _SB3,
        12.0,
        partial(sweep, "native-target"),
        partial(sweep, "sb3-reference"),
        _seeds,
        steps=(12_000 * SWEEP_SEEDS, 1000 * SWEEP_SEEDS),
        turns=3,
    ),
    Row("native-256", _SB3, 2.5, partial(native, LARGE), partial(_theirs, LARGE)),
    Row("sb3-256", _SB3, 2.0, partial(_ours, LARGE), partial(_theirs, LARGE)),
    Row("native-cnn", _SB3, 1.3, partial(native, IMAGES, Images), partial(_theirs, IMAGES, Images)),
    Row("sb3-cnn", _SB3, 1.3, partial(_ours, IMAGES, Images), partial(_theirs, IMAGES, Images)),
    Row(
        "prioritized",
        _TIANSHOU,
        3.0,
        partial(prioritized, ours=True),
        partial(prioritized, ours=False),
        f"one transition stored, {SMALL.batch_size} drawn of {PRIORITIZED:,}, their priorities set",
        unit="rounds",
    ),
    Row(
        "native-16",
        _SB3,
        3.0,
        partial(native, MANY, _many),
        partial(_theirs, MANY, _many_in_sb3),
        f"{NUM_ENVS} environments",
    ),
    Row(
        "sb3-16",
        _SB3,
        3.0,
        partial(_ours, MANY, _many_in_sb3),
        partial(_theirs, MANY, _many_in_sb3),
        f"{NUM_ENVS} environments",
    ),
)
"""The table."""


def find(name: str) -> Row:
    """The row of that name; `ValueError` if there is none."""
    for row in ROWS:
        if row.name == name:
            return row
    names = ", ".join(row.name for row in ROWS)
    raise ValueError(f"there is no row {name!r}; the rows are {names}")


def compare(row: Row, seconds: float = SECONDS) -> Result:
    """Run one row in this process.

    Raises:
        AssertionError: the two did not do the same work.
    """
    import torch

    load = os.getloadavg()[0]
    sides = row.ours(), row.theirs()
    each = seconds / row.turns / 2

    def rate(which: int, steps: int, threads: int) -> float:
        side = sides[which]
        torch.set_num_threads(threads)
        before, start = side.work().steps, time.perf_counter()
        side.run(steps)
        return (side.work().steps - before) / (time.perf_counter() - start)

    if row.steps is None:
        for side in sides:
            side.run(SMALL.learning_starts // LOT * LOT + 2 * LOT)  # compiles, fills, settles
        lots = tuple(_lot(rate(which, 2 * LOT, 1) * each) for which in (0, 1))
        lots = tuple(_lot(rate(which, lots[which], 1) * each) for which in (0, 1))
        choices = [
            {n: max(rate(which, 2 * LOT, n) for _ in range(3)) for n in _thread_counts()}
            for which in (0, 1)
        ]
        threads = tuple(max(rates, key=lambda n: rates[n]) for rates in choices)
    else:
        lots = tuple(map(_lot, row.steps))
        threads = (1, 1)
    before = [side.work() for side in sides]
    rates = np.array(
        [[rate(which, lots[which], threads[which]) for which in (0, 1)] for _ in range(row.turns)]
    )
    after = [side.work() for side in sides]
    _check_work(before, after)
    ratios = rates[:, 0] / rates[:, 1]
    low, high = _interval(ratios)
    result = Result(
        name=row.name,
        ours=float(np.median(rates[:, 0])),
        peer=float(np.median(rates[:, 1])),
        peer_name=row.peer.name,
        ratio=float(np.median(ratios)),
        ratio_low=low,
        ratio_high=high,
        mark=row.mark,
        met=bool(np.median(ratios) >= row.mark),
        unit=row.unit,
        turns=row.turns,
        threads=threads[0],
        peer_threads=threads[1],
        load=load,
        note=row.note,
    )
    torch.set_num_threads(1)
    for side, lot, parts in zip(sides, lots, (result.parts, result.peer_parts), strict=True):
        parts.update(breakdown(side, lot))
    if sides[0].products is not None:
        updates = (after[0].updates - before[0].updates) / (after[0].steps - before[0].steps)
        result.products = result.parts["update"] / updates / sides[0].products()
    return result


def _thread_counts() -> range:
    return range(1, usable_cores() + 1)


def _lot(steps: float) -> int:
    return max(1, round(steps / LOT)) * LOT


def _interval(samples: NDArray[np.float64]) -> tuple[float, float]:
    """95 % for the median, by the percentile bootstrap."""
    interval = stats.bootstrap(
        (samples,), np.median, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _check_work(before: Sequence[Work], after: Sequence[Work]) -> None:
    """Updates per step are equal, all steps are stored, and the losses are of one scale."""
    pairs = [
        (now.updates - then.updates, now.steps - then.steps)
        for then, now in zip(before, after, strict=True)
    ]
    done = [updates / steps for updates, steps in pairs]
    phase = LOT / min(steps for _, steps in pairs)  # one that has begun may be counted or not
    assert abs(done[0] - done[1]) <= 0.01 + phase, f"updates per step: {done}"
    for work in after:
        assert work.stored == min(work.steps, work.capacity), f"stored: {work}"
    losses = [work.loss for work in after]
    assert not max(losses) > 1000 * min(losses), f"losses: {losses}"


def breakdown(side: Side, steps: int) -> dict[str, float]:
    """Microseconds of processor time per step in the parts of a side, each without the parts
    within it; what is left is `"host"`, the loop around. (Other processes do not count in it.)"""
    spent: Counter[str] = Counter()
    inside = 0

    def timed(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            outer, inside = inside, 0
            start = time.thread_time_ns()
            try:
                return method(*args, **kwargs)
            finally:
                total = time.thread_time_ns() - start
                spent[name] += total - inside
                inside = outer + total

        return call

    if not side.parts:
        return {}
    with ExitStack() as stack:
        for name, owner, method in side.parts:
            call = timed(name, getattr(owner, method))
            stack.enter_context(mock.patch.object(owner, method, call))
        start = time.thread_time_ns()
        side.run(steps)
        spent["host"] = time.thread_time_ns() - start - inside
    return {name: nanoseconds / 1e3 / steps for name, nanoseconds in spent.items()}


def products(q_net: Any, space: spaces.Space[Any], batch_size: int) -> float:
    """Microseconds of processor time of the matrix products and convolutions of one update, on one
    thread: forward on s and s', then the gradients of weights and (but for the first layer) of
    inputs."""
    import torch
    from torch.nn import functional as F
    from torch.nn.grad import conv2d_input, conv2d_weight

    layers: list[tuple[Any, Any, Any]] = []
    with torch.no_grad(), ExitStack() as stack:
        for module in q_net.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                hook = module.register_forward_hook(
                    lambda module, x, out: layers.append((module, x[0], torch.rand_like(out)))
                )
                stack.callback(hook.remove)
        q_net(torch.as_tensor(np.stack([space.sample() for _ in range(batch_size)])))

    @torch.no_grad()
    def update() -> None:
        for k, (layer, x, d_out) in enumerate(layers):
            weight = layer.weight
            if isinstance(layer, torch.nn.Linear):
                _ = x @ weight.T, x @ weight.T, d_out.T @ x
                if k:
                    _ = d_out @ weight
                continue
            for _ in range(2):
                F.conv2d(x, weight, None, layer.stride)
            conv2d_weight(x, weight.shape, d_out, layer.stride)  # type: ignore[no-untyped-call]
            if k:
                conv2d_input(x.shape, weight, d_out, layer.stride)  # type: ignore[no-untyped-call]

    def seconds(times: int) -> float:
        start = time.thread_time()
        for _ in range(times):
            update()
        return time.thread_time() - start

    torch.set_num_threads(1)
    update()
    times = max(3, round(0.05 / seconds(3) * 3))
    return 1e6 * min(seconds(times) for _ in range(5)) / times


def measure(row: Row, seconds: float = SECONDS) -> Result:
    """Run one row in a process of its own.

    Raises:
        ImportError: the peer is not installed.
        RuntimeError: the process failed; the message is what it wrote last.
    """
    row.peer.check_installed()
    code = (
        "import sys; from dqn_adapters.benchmark.speed import compare_and_print as run; "
        "run(sys.argv[1], float(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, row.name, str(seconds)],
        capture_output=True,
        text=True,
        # One thread unless torch is told otherwise: `set_num_threads` is how a side gets more.
        env={**os.environ, **ONE_THREAD},
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeError(f"measuring {row.name!r} failed: {last}")
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def compare_and_print(name: str, seconds: float) -> None:
    """`compare` for a process that `measure` starts: the result as the last line."""
    result = compare(find(name), seconds)
    print(json.dumps(asdict(result)))


def compile_seconds() -> float:
    """Seconds that the kernel takes to compile, once on a machine: the first updates in a process
    with an empty cache, less those of one with a full cache."""
    code = (
        "import time; from dqn_adapters.benchmark.speed import SMALL, native; "
        "side = native(SMALL); start = time.perf_counter(); side.run(SMALL.learning_starts + 1); "
        "print(time.perf_counter() - start)"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, **ONE_THREAD, "NUMBA_CACHE_DIR": cache}
        first, second = (
            float(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))
            for _ in range(2)
        )
    return first - second


def write_json(path: Path, results: Sequence[Result]) -> None:
    """Write the results as a list of rows; the file is written beside and renamed."""
    with replacing_text(path) as file:
        file.write(json.dumps([asdict(result) for result in results], indent=2) + "\n")


def tables(results: Sequence[Result]) -> list[Table]:
    """For the terminal: the ratios, and where a step's time goes."""
    right = partial(Column, justify="right")
    ratios = Table(
        Column("row", no_wrap=True),
        *map(right, ("ours", "peer's", "ratio", "95 %", "mark")),
        "",
        "peer, and what else",
        box=None,
    )
    for result in results:
        threads = f"{result.peer_threads} threads" if result.peer_threads > 1 else "1 thread"
        what = (result.peer_name, threads, result.note, f"load {result.load:.1f}")
        ratios.add_row(
            result.name,
            f"{result.ours:,.0f}/s",
            f"{result.peer:,.0f}/s",
            f"[bold]{result.ratio:.1f}[/]",
            f"{result.ratio_low:.1f}-{result.ratio_high:.1f}",
            f"{result.mark:g}",
            "[green]met[/]" if result.met else "[red]missed[/]",
            ", ".join(filter(None, what)),
        )
    times = Table(
        Column("processor time, us a step", no_wrap=True),
        *map(right, PARTS),
        "update / its products",
        box=None,
    )
    for result in results:
        for label, parts in (result.name, result.parts), ("peer", result.peer_parts):
            if parts:
                cells = [f"{parts[name]:,.0f}" if name in parts else "" for name in PARTS]
                alone = result.products if label == result.name else None
                times.add_row(label, *cells, "" if alone is None else f"{alone:.1f}")
    return [ratios, times]
