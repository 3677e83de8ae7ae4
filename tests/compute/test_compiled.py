"""`torch.compile` against eager torch."""

from __future__ import annotations

import copy
import logging
import pickle
import shutil
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from support import random_batch

from dqn_adapters import DQNAgent, DQNConfig, DQNLearner, Transition
from dqn_adapters.config import VARIANTS
from dqn_adapters.finite import NonFiniteError
from dqn_adapters.learner import METRICS
from dqn_adapters.networks import QNetwork, seeded_initialization

FEATURES, ACTIONS, SIZE = 4, 3, 16
SPACE = spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32)

compiles = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")


def learners(**config: Any) -> list[DQNLearner]:
    """Two that are equal but for how they compute: eager, compiled."""
    with seeded_initialization(0):
        net = QNetwork(SPACE, ACTIONS, (24, 16), dueling=True)
    settings = DQNConfig(learning_rate=1e-3, target_update_interval=20, **config)
    made = [
        DQNLearner(copy.deepcopy(net), settings, execution=how) for how in ("eager", "compiled")
    ]
    assert [learner.execution for learner in made] == ["eager", "compiled"]
    return made


def batches(count: int) -> list[Transition]:
    rng = np.random.default_rng(0)
    weights = torch.from_numpy(rng.uniform(0.1, 1, (count, SIZE)).astype(np.float32))
    return [random_batch(rng, SIZE, FEATURES, ACTIONS)._replace(weights=row) for row in weights]


@compiles
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own guards look
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_hundred_updates_are_those_of_torch(variant: Any) -> None:
    eager, compiled = pair = learners(variant=variant)
    kept = []
    for batch in batches(200):
        seen = [learner.update(batch) for learner in pair]
        kept.append(seen)
        for learner in pair:
            learner.count(steps=1)
    if compiled.execution == "eager":  # a compiler without Python's headers
        pytest.skip("torch.compile does not work on this machine")
    for theirs, ours in kept:  # after all updates: what was given out stays as it was
        for name in METRICS:
            torch.testing.assert_close(
                getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=2e-5
            )
    assert compiled.counts == eager.counts
    for ours, theirs in zip(compiled.q_net.parameters(), eager.q_net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    twins = copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))
    (batch,) = batches(1)
    before = [parameter.clone() for parameter in compiled.q_net.parameters()]
    for twin in twins:
        assert twin.execution == "compiled"
        twin.update(batch)
    assert all(map(torch.equal, before, compiled.q_net.parameters()))

    batch.rewards[3] = torch.nan
    with pytest.raises(NonFiniteError, match="the loss of gradient update 201 is nan"):
        compiled.update(batch)
    with pytest.raises(ValueError, match="weights must have shape"):
        compiled.update(batch._replace(weights=torch.ones(SIZE - 1)))


@compiles
def test_what_cannot_be_compiled_is_computed_eagerly_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing compiled before
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "fx_graph_cache", False)
    eager, compiled = pair = learners()
    with caplog.at_level(logging.INFO, "dqn_adapters"):
        for batch in batches(5):
            for learner in pair:
                learner.update(batch)
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("dqn_adapters")]
    assert messages[:2] == ["DQN computes in eager torch", "DQN computes in torch.compile"]
    (fallback,) = messages[2:]
    assert fallback.startswith("DQN computes in eager torch: torch could not compile it: ")
    assert compiled.execution == "eager"
    assert str(compiled.execution_reason).startswith("torch could not compile it")
    for ours, theirs in zip(compiled.q_net.parameters(), eager.q_net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_an_agent_can_be_told_how_to_compute(tmp_path: Any) -> None:
    config = DQNConfig(learning_starts=8, train_freq=1, batch_size=8, buffer_size=100)

    def trained(execution: Any) -> DQNAgent:
        agent = DQNAgent(gym.make("CartPole-v1"), config, seed=0, execution=execution)
        return agent.learn(30)

    kernel, eager = trained("kernel"), trained("eager")
    assert (kernel.learner.execution, eager.learner.execution) == ("kernel", "eager")
    for ours, theirs in zip(kernel.q_net.parameters(), eager.q_net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    path = eager.save(tmp_path / "agent")
    loaded = DQNAgent.load(path, gym.make("CartPole-v1"), execution="eager")
    assert loaded.learner.execution == "eager"
    with pytest.raises(ValueError, match="execution='fast' is not accepted"):
        trained("fast")
