"""Parity with Tianshou's own DQN: the same weights and batches lead to the same parameters."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tianshou.algorithm import DQN as HostDQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, ReplayBuffer
from tianshou.utils.net.common import Net
from tianshou.utils.torch_utils import policy_within_training_step

from dqn_adapters import DQNConfig, DQNLearner, Transition
from dqn_adapters.tianshou import DQN, DQNPolicy, PrioritizedReplayBuffer, QNet

ACTIONS, FEATURES, SIZE, BATCH, UPDATES, PERIOD, LR = 3, 4, 500, 32, 200, 16, 1e-3

HOST = {
    "vanilla": {"target_update_freq": 0, "is_double": False},
    "target": {"target_update_freq": PERIOD, "is_double": False},
    "double": {"target_update_freq": PERIOD, "is_double": True},
}


def filled_buffer(buffer: ReplayBuffer | None = None) -> ReplayBuffer:
    """Noise in which episodes end both ways. Tianshou samples every such buffer alike."""
    generator = np.random.default_rng(0)
    buffer = ReplayBuffer(SIZE) if buffer is None else buffer
    for _ in range(SIZE):
        ends, kind = generator.random() < 0.2, generator.random() < 0.5
        buffer.add(
            Batch(
                obs=generator.normal(size=FEATURES).astype(np.float32),
                act=int(generator.integers(ACTIONS)),
                rew=float(generator.normal(scale=3.0)),
                terminated=bool(ends and kind),
                truncated=bool(ends and not kind),
                obs_next=generator.normal(size=FEATURES).astype(np.float32),
                info={},
            )
        )
    return buffer


def make_model() -> Net:
    torch.manual_seed(1)
    return Net(state_shape=FEATURES, action_shape=ACTIONS, hidden_sizes=(32, 32))


def train(algorithm: Any, buffer: ReplayBuffer | None = None) -> dict[str, torch.Tensor]:
    buffer = filled_buffer(buffer)
    with policy_within_training_step(algorithm.policy):
        for _ in range(UPDATES):
            algorithm.update(buffer=buffer, sample_size=BATCH)
    return algorithm.policy.model.state_dict()


def host(
    buffer: ReplayBuffer | None = None, model: Any = make_model, **options: Any
) -> dict[str, torch.Tensor]:
    policy = DiscreteQLearningPolicy(model=model(), action_space=spaces.Discrete(ACTIONS))
    return train(HostDQN(policy=policy, optim=AdamOptimizerFactory(lr=LR), **options), buffer)


def ours(
    buffer: ReplayBuffer | None = None, model: Any = make_model, **options: Any
) -> dict[str, torch.Tensor]:
    policy = DQNPolicy(model=model(), action_space=spaces.Discrete(ACTIONS))
    return train(DQN(policy=policy, optim=AdamOptimizerFactory(lr=LR), **options), buffer)


def native(config: DQNConfig) -> dict[str, torch.Tensor]:
    """The learner of the core over the same indices, reading the buffer without the adapter."""
    buffer = filled_buffer()
    learner = DQNLearner(make_model(), config, q_values=lambda net, obs: net(obs)[0])
    for _ in range(UPDATES):
        i = buffer.sample_indices(BATCH)
        discounts = np.where(buffer.terminated[i], 0.0, config.gamma)
        learner.update(
            Transition(
                observations=torch.from_numpy(buffer.obs[i]),
                actions=torch.from_numpy(buffer.act[i]),
                rewards=torch.from_numpy(buffer.rew[i].astype(np.float32)),
                discounts=torch.from_numpy(discounts.astype(np.float32)),
                next_observations=torch.from_numpy(buffer.obs_next[i]),
            )
        )
    return learner.q_net.state_dict()


def assert_equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        error = (actual[name] - value).norm() / value.norm()
        assert error < 1e-5, f"{name}: relative error {error:.2g}"


@pytest.mark.parametrize("delta", [None, 1.0])
@pytest.mark.parametrize("variant", HOST)
def test_parameters_equal_those_of_the_host_and_of_the_core(
    variant: str, delta: float | None
) -> None:
    expected = host(**HOST[variant], huber_loss_delta=delta)
    period = {} if variant == "vanilla" else {"target_update_interval": PERIOD}
    unit = {} if variant == "vanilla" else {"target_update_unit": "updates"}
    loss = {"loss": "mse"} if delta is None else {"loss": "huber", "huber_delta": delta}
    options = {"variant": variant, **loss, **period, **unit}

    assert_equal(ours(**options), expected)
    config = DQNConfig(**options, max_grad_norm=None, learning_rate=LR)
    assert_equal(native(config), expected)
    initial = make_model().state_dict()
    assert any((expected[name] - initial[name]).norm() > 0.1 for name in initial)


@pytest.mark.parametrize(
    "options",
    [
        {},
        *HOST.values(),
        {"target_update_freq": PERIOD},
        {"target_update_freq": PERIOD, "huber_loss_delta": 0.5, "gamma": 0.9},
    ],
)
def test_an_import_is_all_that_a_script_changes(options: dict[str, Any]) -> None:
    assert_equal(ours(**options), host(**options))


@pytest.mark.parametrize("n_steps", [1, 3])
def test_prioritized_replay_gives_the_same_weights_and_priorities(n_steps: int) -> None:
    buffers = [PrioritizedReplayBuffer(SIZE, alpha=0.6, beta=0.4, seed=0) for _ in range(2)]
    options = {"target_update_freq": PERIOD, "n_step_return_horizon": n_steps}
    assert_equal(ours(buffers[0], **options), host(buffers[1], **options))
    priorities = [buffer.weight[np.arange(SIZE)] for buffer in buffers]
    np.testing.assert_allclose(*priorities, rtol=1e-4)
    assert priorities[0].std() > 0.1


@pytest.mark.parametrize("variant", HOST)
def test_n_step_returns_give_the_same(variant: str) -> None:
    results = [run(**HOST[variant], n_step_return_horizon=3) for run in (ours, host)]
    assert_equal(*results)
    one_step = host(**HOST[variant])
    assert any((one_step[name] - results[1][name]).norm() > 0.1 for name in one_step)


def dueling_net() -> Net:
    torch.manual_seed(1)
    streams = {"hidden_sizes": (16,)}
    return Net(
        state_shape=FEATURES,
        action_shape=ACTIONS,
        hidden_sizes=(32,),
        dueling_param=(streams, streams),
    )


def core_net() -> QNet:
    torch.manual_seed(1)
    space = spaces.Box(-np.inf, np.inf, (FEATURES,), np.float32)
    return QNet(space, ACTIONS, (32, 16), dueling=True)


@pytest.mark.parametrize("model", [dueling_net, core_net])
@pytest.mark.parametrize("variant", HOST)
def test_dueling_networks_give_the_same(variant: str, model: Any) -> None:
    assert_equal(*(run(model=model, **HOST[variant]) for run in (ours, host)))


def test_the_variants_differ_on_these_batches() -> None:
    results = [host(**options)["model.model.0.weight"] for options in HOST.values()]
    for i, first in enumerate(results):
        for second in results[i + 1 :]:
            assert (first - second).norm() / first.norm() > 1e-3


def test_the_target_network_is_synced_at_the_same_updates() -> None:
    """Tianshou syncs after the targets and before the gradient step of every N-th update."""
    policy = DiscreteQLearningPolicy(model=make_model(), action_space=spaces.Discrete(ACTIONS))
    theirs = HostDQN(policy=policy, optim=AdamOptimizerFactory(lr=LR), target_update_freq=3)
    policy = DQNPolicy(model=make_model(), action_space=spaces.Discrete(ACTIONS))
    mine = DQN(policy=policy, optim=AdamOptimizerFactory(lr=LR), target_update_freq=3)
    their_buffer, my_buffer = filled_buffer(), filled_buffer()
    synced_at = []
    for i in range(10):
        before = copy.deepcopy(mine.model_old.state_dict())
        with policy_within_training_step(theirs.policy), policy_within_training_step(mine.policy):
            theirs.update(buffer=their_buffer, sample_size=BATCH)
            mine.update(buffer=my_buffer, sample_size=BATCH)
        after = mine.model_old.state_dict()
        assert_equal(after, theirs.model_old.state_dict())
        if any(not torch.equal(before[name], after[name]) for name in after):
            synced_at.append(i)
    assert synced_at == [3, 6, 9]
