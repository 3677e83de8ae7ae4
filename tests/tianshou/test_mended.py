"""What Tianshou does wrong, and this package does not: both are run. (T2, T3, T9, T12, T14, T15 and
T17 are in the files about the part that they belong to.)"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
import tianshou.data as host
import torch
from gymnasium import spaces
from tianshou.algorithm import DQN as HostDQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import (
    AdamOptimizerFactory,
    LRSchedulerFactoryLinear,
    TorchOptimizerFactory,
)
from tianshou.data import Batch
from tianshou.utils.torch_utils import policy_within_training_step

from dqn_adapters.tianshou import DQN, DQNPolicy, VectorReplayBuffer

ADAM = AdamOptimizerFactory(lr=1e-2)


class Table(torch.nn.Module):
    """Q-values by the number of the state; counts which network looks at which states."""

    seen: Counter[Any] = Counter()  # noqa: RUF012 - of the copies, too
    online: Any = None

    def __init__(self, *rows: list[float]) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(rows))

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> Any:
        states = torch.as_tensor(obs).long()
        self.seen["online" if self is self.online else "target", int(states[0])] += 1
        return self.values[states], state


def ours(*rows: list[float], optim: Any = ADAM, **options: Any) -> DQN[DQNPolicy]:
    policy = DQNPolicy(model=Table(*rows), action_space=spaces.Discrete(2))
    return DQN(policy=policy, optim=optim, **options)


def theirs(*rows: list[float], optim: Any = ADAM, **options: Any) -> HostDQN[Any]:
    policy = DiscreteQLearningPolicy(model=Table(*rows), action_space=spaces.Discrete(2))
    return HostDQN(policy=policy, optim=optim, **options)


def filled(buffer: Any, steps: int = 4, reward: float = 1.0) -> Any:
    """Steps from state 0 to state 1."""
    n = getattr(buffer, "buffer_num", 1)
    for _ in range(steps):
        buffer.add(
            Batch(
                obs=np.zeros(n),
                act=np.zeros(n, int),
                rew=np.full(n, reward),
                terminated=np.zeros(n, bool),
                truncated=np.zeros(n, bool),
                obs_next=np.ones(n),
                info=np.array([{}] * n),
            ),
            buffer_ids=list(range(n)),
        )
    return buffer


def update(algorithm: Any, buffer: Any = None) -> Any:
    buffer = filled(host.VectorReplayBuffer(4, 1)) if buffer is None else buffer
    with policy_within_training_step(algorithm.policy):
        return algorithm.update(buffer=buffer, sample_size=0)


def test_t8_the_whole_buffer_is_searched_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = {"host": host.VectorReplayBuffer(40, 2), "ours": VectorReplayBuffer(40, 2)}
    rows: list[int] = []
    get = host.ReplayBuffer.__getitem__

    def spy(self: Any, index: Any) -> Any:
        batch = get(self, index)
        rows.append(len(batch))
        return batch

    monkeypatch.setattr(host.ReplayBuffer, "__getitem__", spy)
    looked = {}
    for name, buffer in buffers.items():
        filled(buffer, 15)
        assert not buffer.hasnull()
        rows.clear()
        filled(buffer, 1)
        assert not buffer.hasnull()
        looked[name] = list(rows)
    assert looked["host"] == [32]
    assert sum(looked["ours"]) <= 2


def test_t10_double_without_a_target_network_is_plain_max() -> None:
    """Both are Tianshou's defaults. It says nothing; here it is an error."""
    rows = [0.0, 0.0], [3.0, 7.0]
    losses = [
        update(theirs(*rows, gamma=1.0, **options)).loss for options in ({}, {"is_double": False})
    ]
    assert losses == [8.0**2, 8.0**2]
    with pytest.raises(ValueError, match="is_double=True needs a target network"):
        ours(*rows, is_double=True, target_update_freq=0)


def test_t11_what_is_looked_at_in_an_update() -> None:
    """Without double Tianshou evaluates s' in the online network too, and drops what it gives; and
    it copies the flags of the whole buffer."""
    copies: list[int] = []

    class Flags(np.ndarray):
        def copy(self, *args: Any) -> Any:
            copies.append(len(self))
            return super().copy(*args)

    def seen(algorithm: Any) -> Counter[Any]:
        buffer = filled(host.VectorReplayBuffer(4, 1))
        buffer._meta.__dict__["done"] = buffer.done.view(Flags)
        Table.online = algorithm.policy.model
        Table.seen.clear()
        copies.clear()
        update(algorithm, buffer)
        return Counter(Table.seen)

    rows = [0.0, 0.0], [3.0, 7.0]
    options = {"target_update_freq": 5, "is_double": False}
    needed = Counter({("online", 0): 1, ("target", 1): 1})
    assert seen(theirs(*rows, **options)) == needed + Counter({("online", 1): 1})
    assert copies == [4]
    assert seen(ours(*rows, **options)) == needed
    assert copies == []
    assert seen(ours(*rows, target_update_freq=5)) == needed + Counter({("online", 1): 1})
    assert seen(ours(*rows, variant="vanilla")) == Counter({("online", 0): 1, ("online", 1): 1})


def test_t13_what_a_state_holds() -> None:
    """A loaded algorithm of Tianshou's begins period, epsilon and learning rate anew."""
    optim = AdamOptimizerFactory(lr=1e-2).with_lr_scheduler_factory(
        LRSchedulerFactoryLinear(1, 10, 1)
    )
    options = {"optim": optim, "target_update_freq": 3}
    rows = [0.0, 0.0], [3.0, 7.0]

    def state(algorithm: Any) -> tuple[Any, ...]:
        (scheduler,) = algorithm.lr_schedulers
        policy = algorithm.policy
        return policy.eps_training, policy.eps_inference, scheduler.get_last_lr()[0]

    def saved_and_loaded(make: Any) -> tuple[Any, Any]:
        first, second = make(*rows, **options), make(*rows, **options)
        first.policy.set_eps_training(0.3)
        first.policy.set_eps_inference(0.1)
        for _ in range(4):
            update(first)
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        return first, second

    first, second = saved_and_loaded(theirs)
    assert state(first) == pytest.approx((0.3, 0.1, 1e-2 * 0.6))
    assert state(second) == (0.0, 0.0, 1e-2)
    assert (first._iter, second._iter) == (4, 0)
    first, second = saved_and_loaded(ours)
    assert state(second) == state(first) == pytest.approx((0.3, 0.1, 1e-2 * 0.6))
    assert second.learner.num_updates == 4
    for _ in range(3):  # a period of 3 ends at the seventh update
        assert torch.equal(second.model_old.module.values, first.model_old.module.values)
        update(first), update(second)
    assert torch.equal(second.model_old.module.values, first.model_old.module.values)


def test_t16_gradient_clip_soft_target_and_schedule() -> None:
    for option in ({"max_grad_norm": 0.5}, {"tau": 0.25}, {"exploration_fraction": 0.5}):
        with pytest.raises(TypeError, match="unexpected keyword"):
            theirs([0.0, 0.0], [3.0, 7.0], **option)

    sgd = TorchOptimizerFactory(torch.optim.SGD, lr=1.0)
    rows = [0.0, 0.0], [3.0, 7.0]
    moved = []
    for max_grad_norm in (None, 0.5):
        algorithm = ours(
            *rows,
            optim=sgd,
            variant="target",
            target_update_interval=5,
            tau=0.25,
            gamma=1.0,
            max_grad_norm=max_grad_norm,
        )
        algorithm.count(steps=1)
        assert update(algorithm).grad_norm == 16.0  # of the square of 0 - (1 + 7)
        moved.append(algorithm.policy.model.values[0, 0].item())
        assert algorithm.model_old.module.values[0, 0] == 0.0
        algorithm.count(steps=4)
        assert algorithm.model_old.module.values[0, 0] == 0.25 * moved[-1]
    assert moved == pytest.approx([16.0, 0.5])

    algorithm = ours(*rows, variant="vanilla", exploration_fraction=0.5, exploration_final_eps=0.2)
    algorithm.start_schedule(100)
    epsilons = []
    for _ in range(3):
        epsilons.append(algorithm.policy.eps_training)
        algorithm.count(steps=25)
    assert epsilons == pytest.approx([1.0, 0.6, 0.2])
