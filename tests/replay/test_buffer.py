from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from support import env_step

from dqn_adapters.checkpoint import CheckpointError
from dqn_adapters.replay import ReplayBuffer, buffer, sum_tree
from dqn_adapters.transition import EnvStep, Transition

BOX = spaces.Box(-1e6, 1e6, (2,), np.float32)


def make(
    capacity: int = 5, space: spaces.Space = BOX, seed: int = 0, num_envs: int = 3, **kwargs: Any
) -> ReplayBuffer:
    generator = np.random.default_rng(seed)
    return ReplayBuffer(
        capacity, space, gamma=0.9, generator=generator, num_envs=num_envs, **kwargs
    )


def rows(*numbers: int) -> np.ndarray:
    return np.array([[n, -n] for n in numbers], np.float32)


def stored(replay: ReplayBuffer) -> list[float]:
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
    replay = make(num_envs=1)
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
        (spaces.MultiBinary(3), torch.int8),
        (spaces.MultiDiscrete([2, 3]), torch.int64),
    ],
)
def test_the_dtype_of_the_observations_is_kept(space: spaces.Space, dtype: torch.dtype) -> None:
    replay = make(space=space, num_envs=2)
    assert replay.state_dict()["storage"]["observations"].dtype == space.dtype
    space.seed(0)
    step = env_step(np.stack([space.sample(), space.sample()]))
    replay.add(step._replace(next_observations=step.observations))
    batch = replay.gather(np.arange(2))
    assert batch.observations.dtype == dtype  # networks compute in float32, not float64
    np.testing.assert_allclose(batch.observations.numpy(), step.observations, rtol=1e-6)


def test_sampling_is_uniform_and_follows_the_generator() -> None:
    replay = make(capacity=10, num_envs=7)
    replay.add(env_step(rows(*range(7))))
    drawn = replay.sample(70_000).observations[:, 0].long().numpy()
    counts = np.bincount(drawn, minlength=10)
    assert (counts[7:] == 0).all()  # only what was stored
    assert stats.chisquare(counts[:7]).pvalue > 1e-3
    draws = []
    for seed in (1, 1, 2):
        replay = make(capacity=10, seed=seed, num_envs=7)
        replay.add(env_step(rows(*range(7))))
        draws.append(replay.sample(50).observations)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_batch_is_not_a_view_of_the_buffer() -> None:
    replay = make(num_envs=1)
    replay.add(env_step(rows(1)))
    replay.sample(4).observations.fill_(99)
    assert stored(replay) == [1]


def test_dictionaries() -> None:
    space = spaces.Dict(a=BOX, n=spaces.Discrete(9))
    replay = make(space=space, num_envs=2)
    step = env_step(rows(1, 2))
    for n in (3, 5, 7):
        seen = {"a": rows(n, n + 1), "n": np.array([n, n + 1])}
        following = {"a": rows(n + 10, n + 11), "n": np.array([0, 1])}
        replay.add(step._replace(observations=seen, next_observations=following))
    batch = replay.gather(np.array([4, 1]))  # the ring of 5 holds 8 at slot 0, then 4, 5, 6, 7
    assert batch.observations["a"].tolist() == [[7, -7], [4, -4]]
    assert batch.observations["n"].tolist() == [7, 4]
    assert batch.next_observations["a"].tolist() == [[17, -17], [14, -14]]
    assert batch.next_observations["n"].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"observations must be \['a', 'n'\], got \['a'\]"):
        replay.add(step._replace(observations={"a": rows(1, 2)}))
    with pytest.raises(ValueError, match=r"observations must be \['a', 'n'\], got one array"):
        replay.add(step)


def test_masks_come_back() -> None:
    replay = make(num_envs=2)
    masks = np.array([[True, False, True], [False, True, True]])
    replay.add(env_step(rows(1, 2))._replace(next_action_masks=masks))
    batch = replay.gather(np.array([1, 0]))
    assert batch.next_action_masks is not None
    assert batch.next_action_masks.tolist() == masks[[1, 0]].tolist()
    with pytest.raises(ValueError, match=r"next_action_masks must have shape \(2, 3\)"):
        replay.add(env_step(rows(1, 2))._replace(next_action_masks=masks[:, :2]))


def test_rows_without_masks_are_ones_where_all_actions_are_legal() -> None:
    replay = make(capacity=6, num_envs=2)
    indices, masks = np.arange(6), np.array([[True, False, True], [False, True, True]])
    replay.add(env_step(rows(1, 2)))
    assert replay.gather(np.arange(2), reuse=True).next_action_masks is None
    replay.add(env_step(rows(3, 4))._replace(next_action_masks=masks))
    replay.add(env_step(rows(5, 6)))
    expected = [[True] * 3] * 2 + masks.tolist() + [[True] * 3] * 2
    for reuse in False, True:
        batch = replay.gather(indices[:2] if reuse else indices, reuse=reuse)
        assert batch.next_action_masks is not None
        assert batch.next_action_masks.tolist() == expected[: len(batch.rewards)]


@pytest.mark.parametrize("kwargs", [{}, {"prioritized": True}, {"n_steps": 3}])
def test_state_round_trip(kwargs: dict[str, Any], tmp_path: Path) -> None:
    replay, other = make(**kwargs), make(seed=9, **kwargs)
    for first in (0, 3, 6):
        replay.add(env_step(rows(first, first + 1, first + 2)))
        replay.update_priorities(np.array([0, 1]), np.array([3.0, 0.1]))
    other.load(replay.save(tmp_path / "replay"))
    for _ in range(3):
        for a, b in zip(replay.sample(8), other.sample(8), strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
        for one in (replay, other):
            one.add(env_step(rows(100, 101, 102)))
    assert stored(replay) == stored(other)


def state_bytes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: state_bytes(item) for key, item in value.items()}
    return (value.dtype, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("space", [BOX, spaces.Dict(a=BOX, n=spaces.Discrete(9))])
def test_contents_survive_byte_for_byte(space: spaces.Space, tmp_path: Path) -> None:
    replay, other = make(space=space), make(space=space)
    step = env_step(rows(1, 2, 3))
    if isinstance(space, spaces.Dict):
        seen = {"a": rows(1, 2, 3), "n": np.array([1, 2, 3])}
        step = step._replace(observations=seen, next_observations=seen)
    masks = np.ones((3, 2), np.bool_)
    for _ in range(3):
        replay.add(step._replace(next_action_masks=masks))
    other.load(replay.save(tmp_path / "replay"))
    assert state_bytes(other.state_dict()) == state_bytes(replay.state_dict())


def test_a_damaged_file_leaves_the_buffer_unchanged(tmp_path: Path) -> None:
    replay = make()
    replay.add(env_step(rows(1, 2, 3)))
    path = replay.save(tmp_path / "replay")
    whole = path.read_bytes()
    replay.add(env_step(rows(4, 5, 6)))
    before = state_bytes(replay.state_dict())
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
            replay.load(path)
        assert state_bytes(replay.state_dict()) == before


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make(capacity=7), "has the capacity 5, this one 7"),
        (make(space=spaces.Box(-1, 1, (3,), np.float32)), "of the stored buffer must have shape"),
        (make(space=spaces.Box(-1, 1, (2,), np.float64)), "of the stored buffer must be float64"),
        (make(space=spaces.Dict(a=BOX)), "of the stored buffer are missing or of another kind"),
        (make(prioritized=True), "one of the buffers is prioritised"),
    ],
)
def test_a_state_that_does_not_fit_leaves_the_buffer_unchanged(
    other: ReplayBuffer, message: str
) -> None:
    replay = make()
    replay.add(env_step(rows(1, 2, 3)))
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(replay.state_dict())
    assert len(other) == 0


def test_errors() -> None:
    with pytest.raises(ValueError, match="capacity=0 is not accepted"):
        make(capacity=0)
    with pytest.raises(ValueError, match="n_steps=0 is not accepted"):
        make(n_steps=0)
    with pytest.raises(ValueError, match="alpha=2 is not accepted"):
        make(alpha=2)
    with pytest.raises(ValueError, match="cannot be stored in an array"):
        make(space=spaces.Text(3))
    with pytest.raises(ValueError, match=r"frame_stack=3 needs a Box whose first axis is a multip"):
        make(frame_stack=3)
    replay = make(capacity=2, num_envs=1)
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


# n-step returns and frames: the same random stream through the buffer and through a naive loop.


class Stream:
    """Random episodes of N environments, some rows invalid, kept as lists beside the buffer."""

    def __init__(self, seed: int, num_envs: int, observe: Any) -> None:
        self.rng = np.random.default_rng(seed)
        self.num_envs, self.observe = num_envs, observe
        self.episodes: list[list[dict[str, Any]]] = []  # rows of the same episode, in order
        self.rows: list[tuple[int, int]] = []  # in the order of adding: (episode, position)
        self.current = [self._begin() for _ in range(num_envs)]
        self.state = [self.observe(self.rng, None) for _ in range(num_envs)]

    def _begin(self) -> int:
        self.episodes.append([])
        return len(self.episodes) - 1

    def step(self) -> EnvStep:
        n = self.num_envs
        valid = self.rng.random(n) < 0.9
        rewards = self.rng.normal(size=n).astype(np.float32)
        end = self.rng.random(n)
        terminated, truncated = end < 0.1, (end > 0.05) & (end < 0.2)
        before = self.state
        after = [self.observe(self.rng, s) for s in before]
        self.state = list(before)
        for i in np.flatnonzero(valid):
            row = {"s": before[i], "r": rewards[i], "s2": after[i], "terminated": terminated[i]}
            self.episodes[self.current[i]].append(row)
            self.rows.append((self.current[i], len(self.episodes[self.current[i]]) - 1))
            over = terminated[i] or truncated[i]
            self.state[i] = self.observe(self.rng, None) if over else after[i]
            if over:
                self.current[i] = self._begin()
        return EnvStep(
            observations=np.stack(before),
            actions=np.zeros(n, np.int64),
            rewards=rewards,
            next_observations=np.stack(after),
            terminated=terminated,
            truncated=truncated,
            valid=valid,
        )

    def cut(self) -> None:
        """Every running episode is broken off."""
        self.current = [self._begin() for _ in range(self.num_envs)]
        self.state = [self.observe(self.rng, None) for _ in range(self.num_envs)]

    def naive(self, number: int, n_steps: int, gamma: float) -> tuple[Any, ...]:
        """(s, return, discount, s') of the row added as `number`, by the definition."""
        episode, position = self.rows[number]
        window = self.episodes[episode][position : position + n_steps]
        total = sum(gamma**k * float(row["r"]) for k, row in enumerate(window))
        discount = 0.0 if window[-1]["terminated"] else gamma ** len(window)
        return window[0]["s"], total, discount, window[-1]["s2"]


def vector(rng: np.random.Generator, previous: Any) -> np.ndarray:
    return rng.normal(size=2).astype(np.float32)


def frames(rng: np.random.Generator, previous: Any) -> np.ndarray:
    """A stack of 3 frames (2, 2): all alike at an episode's begin, else shifted by a new one."""
    new = rng.integers(0, 4, (1, 2, 2), np.uint8)  # few values: equal frames happen
    return np.repeat(new, 3, 0) if previous is None else np.concatenate([previous[1:], new])


FRAMES = spaces.Box(0, 255, (3, 2, 2), np.uint8)


@given(
    seed=st.integers(0, 2**32 - 1),
    num_envs=st.integers(1, 4),
    capacity=st.integers(4, 40),
    n_steps=st.integers(1, 5),
    steps=st.integers(1, 40),
    as_frames=st.booleans(),
    cut=st.booleans(),
)
def test_against_a_naive_loop(
    seed: int,
    num_envs: int,
    capacity: int,
    n_steps: int,
    steps: int,
    as_frames: bool,
    cut: bool,
) -> None:
    """Every stored row: episode ends, truncation, the newest row, other environments' rows in
    between, the wrap of the ring, dropped rows; observations kept whole or as single frames."""
    stream = Stream(seed, num_envs, frames if as_frames else vector)
    replay = make(
        capacity,
        FRAMES if as_frames else BOX,
        num_envs=num_envs,
        n_steps=n_steps,
        frame_stack=3 if as_frames else None,
    )
    for i in range(steps):
        replay.add(stream.step())
        if cut and i == steps // 2:
            replay.cut()
            stream.cut()
    added = len(stream.rows)
    assert len(replay) <= min(added, capacity)
    if not as_frames:
        assert len(replay) == min(added, capacity)
    numbers = np.arange(added - len(replay), added)
    batch = replay.gather(numbers % capacity)
    for row, number in enumerate(numbers):
        s, total, discount, s2 = stream.naive(number, n_steps, 0.9)
        np.testing.assert_array_equal(batch.observations[row], s)
        np.testing.assert_array_equal(batch.next_observations[row], s2)
        np.testing.assert_allclose(batch.rewards[row], total, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(batch.discounts[row], discount, rtol=1e-6)


def test_n_step_return_by_hand() -> None:
    """Rewards 1, 2, 4 with gamma 0.9 and n = 2; the last row terminates."""
    replay = make(num_envs=1, n_steps=2)
    for n, reward in ((0, 1.0), (1, 2.0), (2, 4.0)):
        step = env_step(rows(n), terminated=n == 2)
        replay.add(step._replace(rewards=np.array([reward])))
    batch = replay.gather(np.arange(3))
    torch.testing.assert_close(batch.rewards, torch.tensor([1 + 0.9 * 2, 2 + 0.9 * 4, 4.0]))
    torch.testing.assert_close(batch.discounts, torch.tensor([0.81, 0.0, 0.0]))
    assert batch.next_observations[:, 0].tolist() == [1.5, 2.5, 2.5]


def test_gamma_and_n_steps_may_be_changed() -> None:
    """SB3 keeps the old gamma in a loaded n-step buffer."""
    replay = make(num_envs=1, n_steps=2)
    for n in range(3):
        replay.add(env_step(rows(n))._replace(rewards=np.array([1.0])))
    replay.gamma = 0.5
    assert replay.gather(np.array([0])).rewards.item() == 1.5
    replay.n_steps = 3
    assert replay.gather(np.array([0])).rewards.item() == 1.75
    assert replay.gather(np.array([0])).discounts.item() == 0.125


def test_every_frame_is_kept_once() -> None:
    """One long episode of T steps has T + 1 frames, and an equal frame is not kept again."""
    replay = make(200, FRAMES, num_envs=1, frame_stack=3)
    rng, distinct = np.random.default_rng(0), 0
    state = np.repeat(np.arange(4, dtype=np.uint8).reshape(1, 2, 2), 3, 0)
    for t in range(1, 101):
        new = rng.integers(0, 255, (1, 2, 2), np.uint8)
        distinct += not np.array_equal(new[0], state[-1])
        after = np.concatenate([state[1:], new])
        replay.add(env_step(state[None])._replace(next_observations=after[None]))
        state = after
        assert len(replay.state_dict()["storage"]["frames"]) == 1 + distinct
        assert len(replay) == t


def test_what_is_no_frame_stack_is_still_stored_right() -> None:
    replay = make(10, FRAMES, num_envs=1, frame_stack=3)
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 255, (30, 2, 1, 3, 2, 2), np.uint8)
    for s, s2 in seen:
        replay.add(env_step(s)._replace(next_observations=s2))
    size = len(replay)
    assert size >= 1
    for number in range(30 - size, 30):
        batch = replay.gather(np.array([number % 10]))
        np.testing.assert_array_equal(batch.observations, seen[number, 0])
        np.testing.assert_array_equal(batch.next_observations, seen[number, 1])


def test_a_million_atari_transitions_fit_in_seven_and_a_half_gigabytes() -> None:
    """By the bytes of the arrays that the buffer holds, at a tenth of the size: 84x84, stack 4."""
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    replay = make(100_000, space, num_envs=1, frame_stack=4)
    assert replay.nbytes * 10 < 7.5e9


# Prioritised replay.


def test_sampling_frequencies_match_the_priorities() -> None:
    replay = make(8, num_envs=1, prioritized=True, alpha=0.5)
    for n in range(6):
        replay.add(env_step(rows(n)))
    errors = np.array([0.0, 1.0, 4.0, 9.0, 16.0, 0.25])
    replay.update_priorities(np.arange(6), errors)
    counts = sum(np.bincount(replay.draw(64), minlength=8) for _ in range(2000))
    assert (counts[6:] == 0).all()
    probabilities = (errors + 1e-6) ** 0.5
    probabilities /= probabilities.sum()
    np.testing.assert_allclose(counts[:6] / counts.sum(), probabilities, atol=2e-3)
    # Stratified draws vary less than independent ones, so the test is on the safe side.
    assert stats.chisquare(counts[:6], probabilities * counts.sum()).pvalue > 1e-3


def test_importance_weights_by_hand() -> None:
    """P = 1/4 and 3/4 of N = 2: (N P) ** -0.5, over the largest of the batch."""
    replay = make(4, num_envs=1, prioritized=True, alpha=1.0, beta=0.5)
    for n in range(2):
        replay.add(env_step(rows(n)))
    replay.update_priorities(np.arange(2), np.array([1.0 - 1e-6, 3.0 - 1e-6]))
    weights = replay.gather(np.array([0, 1, 1])).weights
    torch.testing.assert_close(weights, torch.tensor([1.0, 3**-0.5, 3**-0.5]))
    replay.beta = 0.0
    assert replay.gather(np.array([0, 1])).weights.tolist() == [1, 1]


def test_new_transitions_get_the_largest_priority() -> None:
    replay = make(4, num_envs=1, prioritized=True, alpha=1.0)
    replay.add(env_step(rows(0)))
    replay.update_priorities(np.array([0]), np.array([5.0]))
    replay.update_priorities(np.array([0]), np.array([1.0]))
    replay.add(env_step(rows(1)))
    counts = np.bincount(replay.draw(6000))
    np.testing.assert_allclose(counts / 6000, [1 / 6, 5 / 6], atol=0.01)


@pytest.mark.parametrize("error", [np.nan, np.inf, -np.inf])
def test_a_priority_that_is_not_finite_is_refused(error: float) -> None:
    replay = make(4, num_envs=1, prioritized=True)
    for n in range(3):
        replay.add(env_step(rows(n)))
    with pytest.raises(ValueError, match="the priority of transition 2 would be (nan|inf)"):
        replay.update_priorities(np.array([0, 2]), torch.tensor([1.0, error]))


def test_rows_that_frames_pushed_out_are_not_drawn() -> None:
    """Where rows need more frames than the ring has, the oldest go, also from the tree."""
    rng = np.random.default_rng(0)
    replay = make(50, FRAMES, num_envs=1, frame_stack=3, prioritized=True)
    seen = rng.integers(0, 255, (200, 2, 1, 3, 2, 2), np.uint8)  # six new frames a row
    for s, s2 in seen:
        replay.add(env_step(s)._replace(next_observations=s2))
    assert 0 < len(replay) < 50
    alive = {number % 50 for number in range(200 - len(replay), 200)}
    assert set(replay.draw(2000).tolist()) == alive
    uniform = make(50, FRAMES, num_envs=1, frame_stack=3)
    for s, s2 in seen:
        uniform.add(env_step(s)._replace(next_observations=s2))
    assert set(uniform.draw(2000).tolist()) == alive


@pytest.mark.parametrize("prioritized", [False, True])
def test_memory_that_is_used_again_holds_the_same_batch(prioritized: bool) -> None:
    space = spaces.Dict(a=spaces.Box(-9, 9, (2,), np.float64), b=spaces.Box(0, 9, (3,), np.uint8))
    replay = ReplayBuffer(
        20, space, gamma=0.9, n_steps=2, generator=np.random.default_rng(0), prioritized=prioritized
    )
    rng = np.random.default_rng(1)
    space.seed(0)
    for i in range(30):
        s, s_next = ({k: part.sample()[None] for k, part in space.items()} for _ in range(2))
        step = env_step(s["a"], terminated=i % 7 == 6)._replace(
            observations=s, next_observations=s_next, next_action_masks=rng.random((1, 3)) < 0.5
        )
        replay.add(step)
    seen = []
    for size in (8, 8, 5, 8):
        slots = replay.draw(size)
        kept = replay.gather(slots)
        again = replay.gather(slots, reuse=True)
        for ours, theirs in zip(again, kept, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        seen.append(again)
    assert seen[0] is seen[1]
    assert len({id(batch) for batch in seen}) == 3


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize(("n_steps", "num_envs"), [(1, 1), (3, 1), (4, 3)])
def test_compiled_loops_do_what_numpy_does(
    n_steps: int, num_envs: int, prioritized: bool, streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, links, draws, batches and priorities: while it fills, when it wraps, with rows that
    were not experienced, and when an episode ends or is cut."""
    pytest.importorskip("numba")
    compiled, rng = buffer.loops, np.random.default_rng(0)
    loops = {"numpy": lambda: None, "compiled": compiled}
    replays = {
        how: make(23, num_envs=num_envs, n_steps=n_steps, prioritized=prioritized) for how in loops
    }
    called = []
    for name in ("store", "gather"):
        spied = getattr(compiled(), name)
        spy = lambda *args, spied=spied, name=name: called.append(name) or spied(*args)  # noqa: E731
        monkeypatch.setattr(compiled(), name, spy)
    for k in range(60):
        count = 1 if streams else num_envs
        step = EnvStep(
            observations=rng.normal(size=(count, 2)).astype(np.float32),
            actions=rng.integers(5, size=count),
            rewards=rng.normal(size=count).astype([np.float32, np.float64][k % 2]),
            next_observations=rng.normal(size=(count, 2)).astype(np.float32),
            terminated=rng.random(count) < 0.1,
            truncated=rng.random(count) < 0.1,
            valid=rng.random(count) < 0.8,
        )
        where = rng.integers(num_envs, size=1) if streams else None
        errors = rng.normal(size=8)
        batches = {}
        for how, replay in replays.items():
            for module in (buffer, sum_tree):
                monkeypatch.setattr(module, "loops", loops[how])
            replay.add(step, where)
            if k == 30:
                replay.cut()
            if not len(replay):
                continue
            indices = replay.draw(8)
            batches[how] = indices, replay.gather(indices, reuse=True)
            replay.update_priorities(indices, errors if k % 2 else torch.from_numpy(errors))
        if batches:
            np.testing.assert_array_equal(batches["compiled"][0], batches["numpy"][0])
            ours, theirs = batches["compiled"][1], batches["numpy"][1]
            for name in Transition._fields[:5]:
                assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
            if prioritized:
                torch.testing.assert_close(ours.weights, theirs.weights, rtol=1e-6, atol=0)
            assert ours.weights is None or prioritized
    states = {how: replay.state_dict() for how, replay in replays.items()}
    tree, expected = (states[how].pop("tree") for how in loops)
    if prioritized:
        np.testing.assert_allclose(tree["values"], expected["values"], rtol=1e-14)
    largest, expected = (states[how].pop("largest_priority") for how in loops)
    assert largest == pytest.approx(expected, rel=1e-14)
    assert state_bytes(states["compiled"]) == state_bytes(states["numpy"])
    assert {name: called.count(name) > 30 for name in ("store", "gather")} == {
        "store": True,
        "gather": True,
    }


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_draws_are_those_of_numpys_integers(kind: str) -> None:
    """Bit for bit, and they leave the generator where those leave it."""
    pytest.importorskip("numba")
    ours, theirs = (np.random.Generator(getattr(np.random, kind)(3)) for _ in range(2))
    replay = make(1)
    for generator in (ours, theirs):
        generator.integers(5, dtype=np.int32)  # half of 64 bits is left
    for count in (1, 2, 3, 50_000, 2**31 + 5, 2**32 - 1, 2**32, 2**33):
        replay.capacity, replay._added = 2**33, count
        replay.generator = ours
        for size in (0, 1, 33, 1000):
            np.testing.assert_array_equal(replay.draw(size), theirs.integers(count, size=size))
    assert str(ours.bit_generator.state) == str(theirs.bit_generator.state)

    replay.generator = np.random.default_rng(7)
    twins = copy.deepcopy(replay), pickle.loads(pickle.dumps(replay))
    expected = replay.draw(5)
    for twin in twins:
        np.testing.assert_array_equal(twin.draw(5), expected)
    replay.capacity, replay._added = 10, 26  # the oldest row is number 16, in slot 6
    numbers = copy.deepcopy(replay.generator).integers(10, size=40)
    np.testing.assert_array_equal(replay.draw(40), (numbers + 6) % 10)
    with pytest.raises(ValueError, match="negative"):
        replay.draw(-1)


def test_what_the_compiled_loops_leave_to_numpy() -> None:
    """Layouts they have not seen, and mistakes, which get the same message."""
    replay = make(num_envs=2)
    step = env_step(rows(1, 2))
    replay.add(step._replace(actions=step.actions.astype(np.int32)))
    replay.add(step._replace(observations=rows(3, 4).astype(np.float64)))
    replay.add(step._replace(observations=rows(5, 6).tolist()))
    replay.add(step._replace(observations=np.asfortranarray(rows(7, 8)), valid=np.array([1, 1])))
    assert stored(replay) == [4, 5, 6, 7, 8]
    with pytest.raises(ValueError, match=r"observations must have shape \(2, 2\), got \(2, 3\)"):
        replay.add(step._replace(observations=np.zeros((2, 3), np.float32)))
    with pytest.raises(ValueError, match="streams must be different numbers"):
        replay.add(step, np.array([1, 1]))
    one = EnvStep(*(values[:1] for values in step[:7]))
    with pytest.raises(ValueError, match="streams must be different numbers"):
        replay.add(one, np.array([2]))
    replay.gather(np.array([0]), reuse=True)
    for wrong in (np.array([5]), np.array([-6])):
        with pytest.raises(IndexError):
            replay.gather(wrong, reuse=True)
    ranked = make(num_envs=2, prioritized=True)
    ranked.add(step)
    with pytest.raises(IndexError):
        ranked.update_priorities(np.array([70]), np.array([1.0]))
    with pytest.raises(ValueError, match="the priority of transition 1 would be nan"):
        ranked.update_priorities(np.array([0, 1]), np.array([9.0, np.nan]))
    assert ranked._tree is not None
    assert ranked._tree.get(np.arange(2)).tolist() == [1, 1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_does_not_go_on_with_the_batch_of_the_other(copied: Any) -> None:
    replay = make(capacity=6)
    replay.add(env_step(rows(1, 2, 3)))
    replay.add(env_step(rows(4, 5, 6)))
    first = replay.gather(np.arange(3), reuse=True)
    other = copied(replay)
    assert other.gather(np.arange(3, 6), reuse=True).observations[:, 0].tolist() == [4, 5, 6]
    assert other.gather(np.arange(3), reuse=True).observations[:, 0].tolist() == [1, 2, 3]
    assert first.observations[:, 0].tolist() == [1, 2, 3]
