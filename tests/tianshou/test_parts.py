"""The policy and the buffers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tianshou.data as host
import torch
from gymnasium import spaces
from scipy import stats
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.data import Batch
from tianshou.utils.torch_utils import policy_within_training_step

from dqn_adapters.finite import NonFiniteError
from dqn_adapters.tianshou import (
    DQNPolicy,
    PrioritizedReplayBuffer,
    PrioritizedVectorReplayBuffer,
    ReplayBuffer,
    VectorReplayBuffer,
)
from dqn_adapters.tianshou.batches import TransitionMemory


class Echo(torch.nn.Module):
    """Q(s, .) = s."""

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> Any:
        return torch.as_tensor(obs), state


def policy(num_actions: int = 3, **options: Any) -> DQNPolicy:
    return DQNPolicy(model=Echo(), action_space=spaces.Discrete(num_actions), **options)


def observed(q_values: Any, mask: Any = None) -> Batch:
    obs = np.array(q_values, np.float32)
    return Batch(obs=obs if mask is None else Batch(obs=obs, mask=np.array(mask)), info={})


def test_greedy_actions_are_legal() -> None:
    batch = observed([[1.0, 9.0, 2.0], [3.0, 9.0, 2.0]], [[1, 0, 1], [1, 0, 0]])
    assert policy()(batch).act.tolist() == [2, 0]
    assert policy()(observed([[1.0, 9.0, 2.0]])).act.tolist() == [1]


def test_a_row_of_nan_or_without_action_stays_its_own() -> None:
    """T15: Tianshou's mask arithmetic takes the minimum and maximum over the whole batch."""
    batch = observed([[np.nan] * 3, [1.0, 2.0, 9.0]], [[1, 1, 1], [1, 1, 0]])
    assert policy()(batch).act[1] == 1
    theirs = DiscreteQLearningPolicy(model=Echo(), action_space=spaces.Discrete(3))
    assert theirs(batch).act[1] == 0

    stuck = observed([[1.0, 2.0, 9.0]], [[0, 0, 0]])
    with pytest.raises(ValueError, match="allows no action in rows"):
        policy()(stuck)
    assert theirs(stuck).act[0] == 2  # illegal, as all are


@pytest.mark.parametrize("training", [True, False])
def test_epsilon_one_is_uniform_over_legal_actions_and_every_environment_draws(
    training: bool,
) -> None:
    chooser = policy(4, eps_training=float(training), eps_inference=float(not training), seed=0)
    batch = observed(np.zeros((6000, 4)), np.tile([1, 0, 1, 1], (6000, 1)))
    with policy_within_training_step(chooser, training):
        actions = chooser.add_exploration_noise(chooser(batch).act, batch)
    share = np.bincount(actions, minlength=4) / 6000
    assert share[1] == 0.0
    assert share[[0, 2, 3]] == pytest.approx([1 / 3] * 3, abs=0.03)

    half = policy(4, eps_training=0.5, eps_inference=0.5, seed=0)
    batch = observed(np.tile([0.0, 0.0, 0.0, 1.0], (6000, 1)))
    actions = half.add_exploration_noise(half(batch).act, batch)
    assert np.mean(actions != 3) == pytest.approx(0.5 * 3 / 4, abs=0.03)


def test_epsilon_zero_is_greedy_and_draws_nothing() -> None:
    chooser = policy(seed=0)
    before = chooser.random_state
    batch = observed([[1.0, 9.0, 2.0]])
    assert chooser.add_exploration_noise(chooser(batch).act, batch).tolist() == [1]
    assert chooser.random_state == before


def test_the_seed_decides_the_exploration() -> None:
    def draw(seed: int | None) -> list[int]:
        chooser = policy(eps_inference=1.0, seed=seed)
        return chooser.add_exploration_noise(
            np.zeros(50, np.int64), observed(np.zeros((50, 3)))
        ).tolist()

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(None) != draw(None)


def test_a_mask_that_the_info_does_not_have_says_nothing() -> None:
    """Tianshou makes one batch of infos with a mask and infos without: zeros, where there is
    none."""
    q_values = np.array([[1.0, 9.0, 2.0], [1.0, 9.0, 2.0]], np.float32)
    mask = np.array([1, 0, 1], np.int8)
    batch = Batch(obs=q_values, info=[{"env_id": 0, "action_mask": mask}, {"env_id": 1}])
    assert batch.info.action_mask.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert policy()(batch).act.tolist() == [2, 1]
    explorer = policy(eps_inference=1.0, seed=0)
    actions = [explorer.add_exploration_noise(np.zeros(2, int), batch) for _ in range(50)]
    assert [set(row) for row in np.transpose(actions).tolist()] == [{0, 2}, {0, 1, 2}]


def test_what_a_policy_refuses() -> None:
    for epsilon in (1.5, -0.1, np.nan, "half"):
        for name in ("eps_training", "eps_inference"):
            with pytest.raises(ValueError, match=rf"{name}=.*a number in \[0, 1\]"):
                policy(**{name: epsilon})
            with pytest.raises(ValueError, match=rf"{name}=.*a number in \[0, 1\]"):
                getattr(policy(), f"set_{name}")(epsilon)
    with pytest.raises(TypeError, match="model must be a torch.nn.Module"):
        DQNPolicy(model=lambda obs: obs, action_space=spaces.Discrete(2))


def test_only_a_discrete_action_space_is_accepted() -> None:
    with pytest.raises(ValueError, match=r"action_space=Box.*must be a Discrete"):
        DQNPolicy(model=Echo(), action_space=spaces.Box(0.0, 1.0))


def step(n: int, value: float = 0.0) -> Batch:
    return Batch(
        obs=np.full((n, 2), value),
        act=np.zeros(n, int),
        rew=np.zeros(n),
        terminated=np.zeros(n, bool),
        truncated=np.zeros(n, bool),
        obs_next=np.zeros((n, 2)),
        info=np.array([{}] * n),
    )


PRIORITIZED = {"alpha": 0.6, "beta": 0.4}
BUFFERS = [
    lambda **k: ReplayBuffer(40, **k),
    lambda **k: VectorReplayBuffer(40, 2, **k),
    lambda **k: PrioritizedReplayBuffer(40, **PRIORITIZED, **k),
    lambda **k: PrioritizedVectorReplayBuffer(40, 2, **PRIORITIZED, **k),
]


def fill(buffer: Any, steps: int = 20) -> Any:
    n = getattr(buffer, "buffer_num", 1)
    for _ in range(steps):
        buffer.add(step(n), buffer_ids=list(range(n)))
    return buffer


@pytest.mark.parametrize("make", BUFFERS)
def test_sampling_follows_the_seed(make: Any) -> None:
    def indices(seed: int | None) -> list[int]:
        buffer = fill(make(seed=seed))
        return np.concatenate([buffer.sample(16)[1] for _ in range(3)]).tolist()

    assert indices(1) == indices(1)
    assert indices(1) != indices(2)
    assert indices(None) != indices(None)
    np.random.seed(0)  # noqa: NPY002 - Tianshou's prioritised buffers draw from the global state
    first = indices(1)
    np.random.seed(1)  # noqa: NPY002
    assert indices(1) == first


def test_the_hosts_buffers_draw_every_experiment_alike() -> None:
    """T12."""
    first, second = (fill(host.VectorReplayBuffer(40, 2)).sample(16)[1] for _ in range(2))
    assert np.array_equal(first, second)


def test_parts_of_a_vector_buffer_draw_apart() -> None:
    """All parts of Tianshou's draw from equal streams: the same places in each."""
    buffer = fill(VectorReplayBuffer(40, 2, seed=0))
    draws = [part.sample_indices(16) for part in buffer.buffers]
    assert not np.array_equal(*draws)


@pytest.mark.parametrize("steps", [2, 7, 33])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_every_row_is_drawn_as_often_as_any_other(num_envs: int, steps: int) -> None:
    """Of parts of unlike lengths too, and past the wrap of their rings."""
    buffer = VectorReplayBuffer(20 * num_envs, num_envs, seed=0)
    for part in range(num_envs):
        for _ in range(steps + 3 * part):
            buffer.add(step(1), buffer_ids=[part])
    rows = buffer.sample_indices(0)
    drawn = np.bincount(buffer.sample_indices(len(rows) * 1000), minlength=buffer.maxsize)
    assert set(np.flatnonzero(drawn)) == set(rows)
    expected = np.full(len(rows), 1000.0)
    assert stats.chisquare(drawn[rows], expected).pvalue > 1e-3


@pytest.mark.parametrize("make", BUFFERS)
def test_drawn_rows_are_what_the_host_gives(make: Any) -> None:
    buffer = make(seed=0)
    n = getattr(buffer, "buffer_num", 1)
    for value in range(30):
        batch = step(n, value)
        batch.act, batch.rew = np.full(n, value), np.full(n, value / 2)
        batch.truncated = np.full(n, value % 4 == 3)
        batch.info = Batch(lives=np.full(n, value), more=Batch(x=np.full((n, 3), value)))
        batch.policy = Batch(hidden_state=torch.full((n, 2), float(value)))
        buffer.add(batch, buffer_ids=list(range(n)))
    if hasattr(buffer, "update_weight"):
        buffer.update_weight(np.arange(10), np.linspace(0.1, 3.0, 10))
    rows = np.array([3, 0, 3, 29, 17])
    others = rows.astype(np.int32)  # which go Tianshou's way
    ours, theirs = buffer[rows], buffer[others]
    assert ours.get_keys() == theirs.get_keys()
    assert ours == theirs
    assert ("weight" in ours) == hasattr(buffer, "update_weight")
    ours.rew[:] = ours.info.lives[:] = 99  # a copy
    assert buffer[others] == theirs


def test_drawn_rows_have_an_info_and_a_policy_also_where_nothing_is_stored() -> None:
    buffer = VectorReplayBuffer(40, 2)
    batch = step(2)
    del batch.info
    buffer.add(batch, buffer_ids=[0, 1])
    drawn = buffer.sample(4)[0]
    assert drawn.info == drawn.policy == Batch()
    assert drawn.info is not drawn.policy


@pytest.mark.parametrize("make", BUFFERS)
def test_a_nan_is_found_wherever_it_comes_in(make: Any) -> None:
    buffer = fill(make(), steps=3)
    n = getattr(buffer, "buffer_num", 1)
    assert not buffer.hasnull()
    broken = step(n)
    broken.info = np.array([{"speed": np.nan}] * n)
    buffer.add(broken, buffer_ids=list(range(n)))
    assert buffer.hasnull()
    assert buffer.hasnull()  # as long as it is there
    buffer.reset()
    fill(buffer, steps=3)
    assert not buffer.hasnull()
    buffer.set_array_at_key(np.full(40, np.nan), "rew")
    assert buffer.hasnull()


@pytest.mark.parametrize("make", BUFFERS)
def test_a_reward_or_observation_that_is_not_finite_is_named_and_not_stored(make: Any) -> None:
    buffer = fill(make(), steps=3)
    n, size = getattr(buffer, "buffer_num", 1), len(buffer)
    broken = step(n)
    broken.rew = np.full(n, np.inf)
    for batch, message in (
        (step(n, np.nan), r"obs of environment 0 is nan, at index \(0,\)"),
        (broken, "rew of environment 0 is inf; it must be finite"),
    ):
        with pytest.raises(NonFiniteError, match=message):
            buffer.add(batch, buffer_ids=list(range(n)))
    assert len(buffer) == size
    assert not buffer.hasnull()


def test_only_new_rows_are_looked_at() -> None:
    """T8: Tianshou's trainer looks through the whole buffer after every collection step."""
    buffer = fill(VectorReplayBuffer(40, 2))
    assert not buffer.hasnull()
    buffer.obs[5] = np.nan  # behind the buffer's back, in a row that it has seen
    fill(buffer, steps=2)
    assert not buffer.hasnull()
    assert buffer[np.arange(40)].hasnull()
    for name, row in (("obs", 2), ("rew", 24), ("obs_next", 27)):
        fill(buffer, steps=2)
        values = getattr(buffer, name)
        values[row] = np.nan
        assert buffer.hasnull()
        assert buffer.hasnull()  # until it is mended
        values[row] = 0.0
        assert not buffer.hasnull()


def test_a_buffer_goes_through_a_file(tmp_path: Path) -> None:
    buffer = fill(VectorReplayBuffer(40, 2, seed=0))
    buffer.hasnull()
    buffer.save_hdf5(str(tmp_path / "buffer.hdf5"))
    loaded = VectorReplayBuffer.load_hdf5(str(tmp_path / "buffer.hdf5"))
    assert len(loaded) == 40
    assert not loaded.hasnull()
    assert np.array_equal(loaded.sample(16)[1], buffer.sample(16)[1])


def fields(rows: int, value: float, masks: bool = False) -> dict[str, Any]:
    return {
        "observations": np.full((rows, 2), value),
        "actions": np.full(rows, int(value)),
        "rewards": np.full(rows, value),
        "discounts": np.full(rows, value),
        "next_observations": np.full((rows, 2), value, np.float32),
        "next_action_masks": np.full((rows, 3), value > 1) if masks else None,
        "weights": None,
    }


def test_a_batch_is_copied_into_the_memory_of_the_last() -> None:
    memory = TransitionMemory()
    first = memory.put(fields(4, 1.0))
    assert memory.put(fields(4, 2.0)) is first
    for values in first[:5]:
        assert values is not None
        assert (values == 2).all()
    assert first.observations.dtype == first.rewards.dtype == torch.float32
    assert first.actions.dtype == torch.int64
    assert first.next_action_masks is first.weights is None


def test_a_batch_of_other_shapes_has_memory_of_its_own() -> None:
    memory = TransitionMemory()
    first = memory.put(fields(4, 1.0))
    one = memory.put(fields(1, 2.0))  # numpy would spread it over all four rows
    assert one.rewards.shape == (1,)
    masked = memory.put(fields(1, 3.0, masks=True))
    assert masked.next_action_masks is not None
    assert masked.next_action_masks.dtype == torch.bool
    assert masked.next_action_masks.all()
    assert (first.rewards == 1).all()


def test_a_copy_has_memory_of_its_own() -> None:
    memory = TransitionMemory()
    first = memory.put(fields(4, 1.0))
    other = copy.deepcopy(memory)
    assert (other.put(fields(4, 2.0)).rewards == 2).all()
    assert (first.rewards == 1).all()
