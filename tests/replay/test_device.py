"""The copy of the observations on a device, here one on the CPU, which every machine has."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from support import env_step

from dqn_adapters.replay import ReplayBuffer, device
from dqn_adapters.replay.device import DeviceStorage

CPU, META = torch.device("cpu"), torch.device("meta")
VECTORS = spaces.Box(-1, 1, (2,), np.float32)
SPACES = {
    "vectors": VECTORS,
    "doubles": spaces.Box(-1, 1, (2, 2), np.float64),
    "images": spaces.Box(0, 255, (3, 4, 4), np.uint8),
    "dictionaries": spaces.Dict(a=VECTORS, b=spaces.Discrete(5)),
}


def make(space: spaces.Space[Any], **kwargs: Any) -> ReplayBuffer:
    generator = np.random.default_rng(0)
    return ReplayBuffer(20, space, gamma=0.9, generator=generator, n_steps=3, **kwargs)


def with_copy(replay: ReplayBuffer) -> ReplayBuffer:
    """One that is alike and gathers from a copy."""
    twin = copy.deepcopy(replay)
    twin._copies[CPU] = DeviceStorage(twin._storage, CPU)
    return twin


def assert_same_batch(twin: ReplayBuffer, replay: ReplayBuffer) -> None:
    size = min(replay._added, replay.capacity)
    slots = np.flatnonzero(np.isin(np.arange(size), replay.draw(200)))
    torch.testing.assert_close(
        twin.gather(slots)._asdict(), replay.gather(slots)._asdict(), rtol=0, atol=0
    )


@given(
    kind=st.sampled_from([*SPACES, "stacks"]),
    seed=st.integers(0, 2**32 - 1),
    num_envs=st.integers(1, 3),
    phases=st.lists(st.integers(1, 30), min_size=1, max_size=4),
)
def test_a_batch_is_that_of_the_host(
    kind: str, seed: int, num_envs: int, phases: list[int]
) -> None:
    """However many rows came since the last batch, also more than the ring has."""
    space = SPACES["images" if kind == "stacks" else kind]
    space.seed(seed)
    rng = np.random.default_rng(seed)
    replay = make(space, num_envs=num_envs, frame_stack=3 if kind == "stacks" else None)
    twin = with_copy(replay)

    def observations() -> Any:
        samples = [space.sample() for _ in range(num_envs)]
        if isinstance(space, spaces.Dict):
            return {key: np.stack([sample[key] for sample in samples]) for key in space}
        return np.stack(samples)

    s = observations()
    for steps in phases:
        for _ in range(steps):
            s_next = observations()
            if kind == "stacks":  # shifted by one frame
                s_next = np.concatenate([s[:, 1:], s_next[:, -1:]], axis=1)
            step = env_step(np.zeros((num_envs, 1)), terminated=rng.random(num_envs) < 0.1)
            for one in (replay, twin):
                one.add(step._replace(observations=s, next_observations=s_next))
            s = s_next
        assert_same_batch(twin, replay)


def filled(replay: ReplayBuffer, first: int, count: int) -> ReplayBuffer:
    for i in range(first, first + count):
        replay.add(env_step(np.array([[i, -i]], np.float32) / 100))
    return replay


def test_what_was_loaded_is_gathered_and_copies_are_on_their_own() -> None:
    replay, other = filled(make(VECTORS), 0, 25), filled(make(VECTORS), 50, 30)
    twin = with_copy(replay)
    assert_same_batch(twin, replay)
    twin.load_state_dict(other.state_dict())
    assert not twin._copies
    twin._copies[CPU] = DeviceStorage(twin._storage, CPU)
    assert_same_batch(twin, other)
    for third in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert not third._copies
        assert_same_batch(third, other)
    assert_same_batch(filled(twin, 90, 3), filled(other, 90, 3))


def test_it_is_made_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replay = filled(make(VECTORS), 0, 5)
    needed = 2 * 20 * 2 * 4  # s and s' of 20 rows, two numbers each
    for free, fits in ((2 * needed, True), (2 * needed - 1, False)):
        monkeypatch.setattr(device, "free_memory", lambda device, free=free: free)
        caplog.clear()
        with caplog.at_level(logging.INFO, "dqn_adapters"):
            twin = copy.deepcopy(replay)
            for _ in range(2):
                batch = twin.gather(np.arange(4), device=META, reuse=True)
        assert (twin._copies[META] is not None) == fits
        assert {tensor.device for tensor in batch if tensor is not None} == {META}
        (record,) = caplog.records
        assert ("are copied to meta" if fits else "not on meta") in record.getMessage()
    assert not replay._copies
    replay.gather(np.arange(4))
    assert not replay._copies  # on the CPU the buffer itself is there
