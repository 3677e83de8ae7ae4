"""The core's replay behind the host's interface, beside the host's own buffer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import Chain

from dqn_adapters.sb3 import CoreReplayBuffer

SPACES: dict[str, spaces.Space[Any]] = {
    "vector": spaces.Box(-1.0, 1.0, (3,), np.float32),
    "double": spaces.Box(-1.0, 1.0, (3,), np.float64),
    "image": spaces.Box(0, 255, (2, 4, 4), np.uint8),
    "bool": spaces.Box(0, 1, (4, 4), np.bool_),
    "discrete": spaces.Discrete(6),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "multi-binary": spaces.MultiBinary(4),
}


def fill(buffer: ReplayBuffer, steps: int, **flags: Any) -> None:
    """Random steps of the buffer's environments; about one in three ends, half of these by time."""
    generator, space = np.random.default_rng(0), buffer.observation_space
    space.seed(0)
    for _ in range(steps):
        done = generator.random(buffer.n_envs) < 0.3
        cut = done & (generator.random(buffer.n_envs) < 0.5)
        buffer.add(
            np.array([space.sample() for _ in range(buffer.n_envs)]),
            np.array([space.sample() for _ in range(buffer.n_envs)]),
            generator.integers(4, size=buffer.n_envs),
            generator.normal(size=buffer.n_envs),
            done,
            [{"TimeLimit.truncated": bool(c)} if d else {} for c, d in zip(cut, done, strict=True)],
        )


def both(space: spaces.Space[Any], size: int, steps: int, **kwargs: Any) -> Any:
    buffers = [
        cls(size, space, spaces.Discrete(4), device="cpu", **kwargs)
        for cls in (CoreReplayBuffer, ReplayBuffer)
    ]
    for buffer in buffers:
        fill(buffer, steps)
    return buffers


@pytest.mark.parametrize("steps", [3, 10, 14])
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("kind", SPACES)
def test_it_holds_what_the_hosts_buffer_holds(kind: str, n_envs: int, steps: int) -> None:
    ours, host = both(SPACES[kind], size=20, steps=steps * 3 - n_envs, n_envs=n_envs)
    assert (ours.pos, ours.full, ours.size()) == (host.pos, host.full, host.size())
    assert ours.buffer_size == host.buffer_size == 20 // n_envs
    size = host.size()
    for name in ("observations", "next_observations", "actions", "rewards"):
        np.testing.assert_array_equal(
            getattr(ours, name), getattr(host, name)[:size].astype(getattr(ours, name).dtype)
        )
    np.testing.assert_array_equal(ours.dones, (host.dones * (1 - host.timeouts))[:size])
    assert 0 < ours.dones.mean() < host.dones[:size].mean() or steps == 3


@pytest.mark.parametrize("kind", SPACES)
def test_samples_have_the_hosts_shapes(kind: str) -> None:
    ours, host = both(SPACES[kind], size=20, steps=15)
    for mine, his in zip(ours.sample(6), host.sample(6), strict=True):
        if his is None:
            assert mine is None
        else:
            assert mine.shape == his.shape
            assert mine.dtype == his.dtype or his.dtype == torch.float64


@pytest.mark.parametrize("normalized", [False, True])
def test_the_same_rows_give_the_hosts_samples(normalized: bool) -> None:
    env = None
    if normalized:
        env = VecNormalize(DummyVecEnv([lambda: Chain(3)]))
        env.reset()
        for _ in range(30):
            env.step(np.array([1]))
    ours, host = both(SPACES["vector"], size=20, steps=25)
    rows = np.random.default_rng(1).integers(20, size=50)
    mine, his = ours._get_samples(rows, env), host._get_samples(rows, env)
    for name in ("observations", "next_observations", "actions", "dones", "rewards"):
        torch.testing.assert_close(getattr(mine, name), getattr(his, name))
    plain = ours._get_samples(rows)
    assert torch.equal(plain.rewards, mine.rewards) != normalized


def test_sampling_reaches_every_row_and_follows_its_own_generator() -> None:
    def sampled(seed: int) -> np.ndarray:
        np.random.seed(len(str(seed)))  # noqa: NPY002 - must make no difference
        buffer = CoreReplayBuffer(
            12,
            SPACES["vector"],
            spaces.Discrete(4),
            device="cpu",
            n_envs=2,
            generator=np.random.default_rng(seed),
        )
        fill(buffer, 9)
        return buffer.sample(2000).rewards.numpy()

    first, again, other = sampled(1), sampled(1), sampled(2)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    _, counts = np.unique(first, return_counts=True)
    assert len(counts) == 12
    assert counts.min() > 2000 / 12 * 0.6


def test_a_time_limit_may_count_as_the_end() -> None:
    ours, host = both(SPACES["vector"], size=20, steps=20, handle_timeout_termination=False)
    np.testing.assert_array_equal(ours.dones, host.dones)
    assert not host.timeouts.any()


def test_reset_empties_it_and_leaves_the_random_stream() -> None:
    buffer, _ = both(SPACES["vector"], size=20, steps=25)
    stream = copy.deepcopy(buffer.generator)
    buffer.reset()
    assert (buffer.pos, buffer.full, buffer.size()) == (0, False, 0)
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(1)
    fill(buffer, 3)
    assert buffer.size() == 3
    assert buffer.generator.random() == stream.random()


def test_it_is_pickled_with_its_random_stream() -> None:
    buffer, _ = both(SPACES["image"], size=20, steps=8)
    twin = pickle.loads(pickle.dumps(buffer))
    np.testing.assert_array_equal(twin.observations, buffer.observations)
    assert torch.equal(twin.sample(5).actions, buffer.sample(5).actions)


def test_it_says_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="optimize_memory_usage=True is for a Box"):
        CoreReplayBuffer(9, spaces.Discrete(3), spaces.Discrete(2), optimize_memory_usage=True)
    with pytest.raises(ValueError, match="frame_stack=2 exclude each other"):
        CoreReplayBuffer(
            9, SPACES["image"], spaces.Discrete(2), optimize_memory_usage=True, frame_stack=2
        )
    with pytest.raises(ValueError, match="frame_stack=2 needs a Box"):
        CoreReplayBuffer(9, SPACES["vector"], spaces.Discrete(2), frame_stack=2)
    with pytest.raises(AttributeError, match="no attribute 'log_probs'"):
        CoreReplayBuffer(9, SPACES["vector"], spaces.Discrete(2)).log_probs  # noqa: B018
