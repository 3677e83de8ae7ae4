from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from scipy import stats
from support import env_step

from dqn_adapters.replay import UniformReplay

BOX = spaces.Box(-1e6, 1e6, (2,), np.float32)


def make(capacity: int = 5, space: spaces.Space = BOX, seed: int = 0) -> UniformReplay:
    return UniformReplay(capacity, space, gamma=0.9, generator=np.random.default_rng(seed))


def rows(*numbers: int) -> np.ndarray:
    return np.array([[n, -n] for n in numbers], np.float32)


def stored(replay: UniformReplay) -> list[float]:
    return sorted(replay.gather(np.arange(len(replay))).observations[:, 0].tolist())


def test_a_transition_comes_back_as_it_was_added() -> None:
    replay = make()
    replay.add(env_step(rows(1, 2, 3), terminated=[False, True, False]))
    batch = replay.gather(np.array([2, 1]))
    assert batch.observations.tolist() == [[3, -3], [2, -2]]
    assert batch.next_observations.tolist() == [[3.5, -2.5], [2.5, -1.5]]
    assert batch.actions.tolist() == [0, 1]
    assert batch.rewards.tolist() == [2, 1]
    torch.testing.assert_close(batch.discounts, torch.tensor([0.9, 0.0]))
    assert (batch.actions.dtype, batch.rewards.dtype) == (torch.int64, torch.float32)


def test_truncation_bootstraps() -> None:
    replay = make()
    step = env_step(rows(1))
    replay.add(step._replace(truncated=np.array([True])))
    assert replay.sample(1).discounts.item() == pytest.approx(0.9)


def test_the_oldest_are_overwritten() -> None:
    replay = make(capacity=5)
    for first in (0, 3, 6):  # wraps in the middle of a step
        replay.add(env_step(rows(first, first + 1, first + 2)))
    assert len(replay) == 5
    assert stored(replay) == [4, 5, 6, 7, 8]


def test_invalid_rows_are_dropped() -> None:
    replay = make()
    replay.add(env_step(rows(1, 2, 3), valid=[True, False, True]))
    replay.add(env_step(rows(4, 5, 6), valid=False))
    assert stored(replay) == [1, 3]


@pytest.mark.parametrize(
    ("space", "dtype"),
    [
        (spaces.Box(0, 255, (4, 4), np.uint8), torch.uint8),
        (spaces.Box(0, 1, (2,), np.float64), torch.float32),
        (spaces.Box(0, 1, (2,), np.bool_), torch.bool),
        (spaces.Discrete(7), torch.int64),
    ],
)
def test_the_dtype_of_the_observations_is_kept(space: spaces.Space, dtype: torch.dtype) -> None:
    replay = make(space=space)
    assert replay.state_dict()["arrays"]["observations"].dtype == space.dtype
    space.seed(0)
    step = env_step(np.stack([space.sample(), space.sample()]))
    replay.add(step._replace(next_observations=step.observations))
    batch = replay.gather(np.arange(2))
    assert batch.observations.dtype == dtype  # networks compute in float32, not float64
    np.testing.assert_allclose(batch.observations.numpy(), step.observations, rtol=1e-6)


def test_sampling_is_uniform_and_follows_the_generator() -> None:
    replay = make(capacity=10)
    replay.add(env_step(rows(*range(7))))
    drawn = replay.sample(70_000).observations[:, 0].long().numpy()
    counts = np.bincount(drawn, minlength=10)
    assert (counts[7:] == 0).all()  # only what was stored
    assert stats.chisquare(counts[:7]).pvalue > 1e-3
    draws = []
    for seed in (1, 1, 2):
        replay = make(capacity=10, seed=seed)
        replay.add(env_step(rows(*range(7))))
        draws.append(replay.sample(50).observations)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_batch_is_not_a_view_of_the_buffer() -> None:
    replay = make()
    replay.add(env_step(rows(1)))
    replay.sample(4).observations.fill_(99)
    assert stored(replay) == [1]


def test_state_round_trip() -> None:
    replay = make()
    for first in (0, 3, 6):
        replay.add(env_step(rows(first, first + 1, first + 2)))
    other = make(seed=9)
    other.load_state_dict(replay.state_dict())
    for _ in range(3):
        assert torch.equal(replay.sample(8).observations, other.sample(8).observations)
        for buffer in (replay, other):
            buffer.add(env_step(rows(100, 101)))
    assert stored(replay) == stored(other)


@pytest.mark.parametrize(
    "other",
    [
        make(capacity=3),
        make(space=spaces.Box(-1, 1, (3,), np.float32)),
        make(space=spaces.Box(-1, 1, (2,), np.float64)),
    ],
)
def test_a_state_that_does_not_fit_leaves_the_buffer_unchanged(other: UniformReplay) -> None:
    replay = make()
    replay.add(env_step(rows(1, 2, 3, 4)))
    with pytest.raises(ValueError, match="of the stored buffer must"):
        other.load_state_dict(replay.state_dict())
    assert len(other) == 0


def test_errors() -> None:
    with pytest.raises(ValueError, match="capacity=0 is not accepted"):
        make(capacity=0)
    with pytest.raises(ValueError, match="cannot be stored in one array"):
        make(space=spaces.Dict(a=BOX))
    replay = make(capacity=2)
    with pytest.raises(ValueError, match="the replay buffer is empty"):
        replay.sample(1)
    with pytest.raises(ValueError, match="3 environments does not fit a buffer of capacity 2"):
        replay.add(env_step(rows(1, 2, 3)))
    with pytest.raises(ValueError, match=r"observations must have shape \(1, 2\), got \(1, 3\)"):
        replay.add(env_step(np.zeros((1, 3), np.float32)))
    step = env_step(rows(1))
    with pytest.raises(ValueError, match=r"rewards must have shape \(1,\), got \(1, 1\)"):
        replay.add(step._replace(rewards=np.zeros((1, 1))))
    assert len(replay) == 0
