"""Networks of Tianshou as they are: MLPs, Atari's, recurrent ones; and networks that do not fit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from support import Chain
from tianshou.algorithm import DQN as HostDQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector
from tianshou.data import VectorReplayBuffer as HostVectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.env.atari.atari_network import DQNet, ScaledObsInputActionReprNet
from tianshou.utils.net.common import Net, Recurrent
from tianshou.utils.torch_utils import policy_within_training_step

from dqn_adapters import DQNConfig
from dqn_adapters.tianshou import DQN, DQNPolicy, QNet, VectorReplayBuffer, trainer_params

OPTIM = AdamOptimizerFactory(lr=1e-3)
FRAMES = spaces.Box(0, 255, (2, 36, 36), np.uint8)


def atari() -> Any:
    net: Any = DQNet(c=2, h=36, w=36, action_shape=2)
    return ScaledObsInputActionReprNet(net)


def recurrent() -> Any:
    return Recurrent(layer_num=1, state_shape=5, action_shape=2, hidden_layer_size=8)


def mlp() -> Any:
    return Net(state_shape=5, action_shape=2, hidden_sizes=(8,), norm_layer=torch.nn.LayerNorm)


NETWORKS = {
    "mlp": (mlp, spaces.Box(-1.0, 1.0, (5,), np.float32), {}),
    "atari": (atari, FRAMES, {}),
    "recurrent": (recurrent, spaces.Box(-1.0, 1.0, (5,), np.float32), {"stack_num": 3}),
}


@pytest.mark.parametrize("is_double", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_trained_as_tianshou_trains_it(name: str, is_double: bool) -> None:
    make, space, stored = NETWORKS[name]
    space = copy.deepcopy(space)
    space.seed(0)
    buffer = HostVectorReplayBuffer(20, 2, **stored)
    generator = np.random.default_rng(0)
    for _ in range(10):
        obs, obs_next = (np.array([space.sample() for _ in range(2)]) for _ in range(2))
        buffer.add(
            Batch(
                obs=obs,
                act=generator.integers(2, size=2),
                rew=generator.normal(size=2),
                terminated=generator.random(2) < 0.2,
                truncated=np.zeros(2, bool),
                obs_next=obs_next,
                info=np.array([{}] * 2),
            )
        )
    results = []
    for kind, policy_kind in ((HostDQN, DiscreteQLearningPolicy), (DQN, DQNPolicy)):
        torch.manual_seed(0)
        policy: Any = policy_kind(model=make(), action_space=spaces.Discrete(2))
        algorithm: Any = kind(
            policy=policy, optim=OPTIM, target_update_freq=2, is_double=is_double, gamma=0.9
        )
        before = [p.detach().clone() for p in policy.model.parameters()]
        with policy_within_training_step(policy):
            for _ in range(4):
                algorithm.update(buffer=copy.deepcopy(buffer), sample_size=8)
        results.append(list(policy.model.parameters()))
    assert any(not torch.equal(*pair) for pair in zip(before, results[0], strict=True))
    for theirs, mine in zip(*results, strict=True):
        assert (mine - theirs).norm() < 1e-5 * theirs.norm()


def test_a_recurrent_network_keeps_its_state() -> None:
    """It acts on what it has seen, not on the last observation alone; a run collects with it."""
    torch.manual_seed(0)
    policy = DQNPolicy(model=recurrent(), action_space=spaces.Discrete(2), seed=0)
    rows = np.eye(5, dtype=np.float32)[:4, None]
    state, steps = None, []
    for row in rows:
        result = policy(Batch(obs=row, info={}), state=state)
        state, logits = result.state, result.logits
        steps.append(logits)
    whole = policy.model(rows.transpose(1, 0, 2))[0]  # the same observations at once
    torch.testing.assert_close(steps[-1], whole)
    assert not torch.allclose(policy(Batch(obs=rows[-1], info={})).logits, whole)

    config = DQNConfig(learning_starts=8, batch_size=8, train_freq=2)
    algorithm: DQN[DQNPolicy] = DQN(policy=policy, config=config)
    assert algorithm.learner.execution == "eager"
    buffer = VectorReplayBuffer(100, 2, stack_num=3, seed=0)
    collector = Collector(policy, DummyVectorEnv([Chain] * 2), buffer, exploration_noise=True)
    seen = []
    forward = policy.forward

    def spy(batch: Any, state: Any = None, **kwargs: Any) -> Any:
        seen.append(state)
        return forward(batch, state, **kwargs)

    policy.forward = spy  # type: ignore[method-assign]
    algorithm.run_training(
        trainer_params(config, 40, training_collector=collector, verbose=False, show_progress=False)
    )
    assert algorithm.learner.num_updates == 16
    assert seen[0] is None
    assert all(set(state.keys()) == {"hidden", "cell"} for state in seen[1:])
    assert collector.buffer.policy.hidden_state.hidden.shape == (100, 1, 8)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (3,)),
        spaces.Box(0, 255, (3,), np.uint8),
        spaces.Discrete(4, start=2),
        spaces.Dict(a=spaces.MultiDiscrete([2, 3]), b=spaces.MultiBinary(2)),
    ],
    ids=str,
)
def test_an_algorithm_can_be_pickled_and_copied(space: Any) -> None:
    """Tianshou's `save_best_fn` may pickle it."""
    torch.manual_seed(0)
    policy = DQNPolicy(model=QNet(space, 2, (8,)), action_space=spaces.Discrete(2), seed=0)
    algorithm: DQN[DQNPolicy] = DQN(policy=policy, config=DQNConfig(variant="double"))
    space.seed(0)
    rows = [space.sample() for _ in range(5)]
    obs = Batch(rows) if isinstance(space, spaces.Dict) else np.array(rows)
    for copied in (pickle.loads(pickle.dumps(algorithm)), copy.deepcopy(algorithm)):
        assert copied.learner.q_net is copied.policy.model
        assert copied.model_old.module is copied.learner.target_net
        assert torch.equal(copied.policy.model(obs)[0], policy.model(obs)[0])
        parameter = copied.learner.optimizer.param_groups[0]["params"][0]
        assert parameter is next(copied.policy.model.parameters())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net(state_shape=5, action_shape=3), r"shape \(1, 3\); it must be \(B, A\) with A=2"),
        (Net(state_shape=5, action_shape=1), r"shape \(1, 1\)"),
        (QNet(spaces.Box(-1.0, 1.0, (4,)), 2), r"obs must have shape \(1, 4\), got \(1, 5\)"),
    ],
)
def test_a_network_that_does_not_fit_is_named(model: Any, message: str) -> None:
    policy = DQNPolicy(model=model, action_space=spaces.Discrete(2))
    collector = Collector(policy, DummyVectorEnv([Chain]), VectorReplayBuffer(9, 1))
    with pytest.raises(ValueError, match=message):
        collector.collect(n_step=1, reset_before_collect=True)
