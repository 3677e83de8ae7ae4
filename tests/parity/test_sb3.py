"""Our algorithm under Stable-Baselines3 makes the same updates as Stable-Baselines3's own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import Chain, random_batch

from dqn_adapters import DQNLearner
from dqn_adapters.sb3 import DQN
from dqn_adapters.sb3.buffers import to_transition

UPDATES = 200

SETTINGS: dict[str, dict[str, Any]] = {
    "hard": {"target_update_interval": 30},
    "polyak": {"target_update_interval": 1, "tau": 0.05},
    "schedule": {"target_update_interval": 30, "learning_rate": lambda left: 3e-3 * left},
    "clipped": {"target_update_interval": 30, "max_grad_norm": 0.05},
    "batch norm": {
        "target_update_interval": 30,
        "policy_kwargs": {"activation_fn": lambda: torch.nn.BatchNorm1d(16), "net_arch": [16]},
    },
}


class Tape:
    """A replay buffer that gives prepared batches, one after the other."""

    def __init__(self, batches: list[ReplayBufferSamples]) -> None:
        self._batches = iter(batches)

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        batch = next(self._batches)
        assert len(batch.rewards) == batch_size
        return batch


def host_samples(seed: int) -> list[ReplayBufferSamples]:
    generator = np.random.default_rng(seed)
    batches = []
    for _ in range(UPDATES):
        batch = random_batch(generator, size=32, features=4, actions=2)
        batches.append(
            ReplayBufferSamples(
                observations=batch.observations,
                actions=batch.actions[:, None],
                next_observations=batch.next_observations,
                dones=(batch.discounts == 0).float()[:, None],
                rewards=3.0 * batch.rewards[:, None],
            )
        )
    return batches


def train(cls: type[stable_baselines3.DQN], batches: list[Any], **settings: Any) -> Any:
    """200 times: one step of the environment is counted, one update is made."""
    model = cls("MlpPolicy", Chain(4), **{"learning_rate": 3e-3, **settings}, seed=5, device="cpu")
    model.set_logger(Logger(None, []))
    model.replay_buffer = Tape(batches)
    before = copy.deepcopy([*model.policy.parameters()])
    for step in range(UPDATES):
        model._update_current_progress_remaining(step, UPDATES)
        model._on_step()
        model.train(gradient_steps=1, batch_size=32)
    after = model.policy.parameters()
    unmoved = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert not any(unmoved), "a parameter that did not move proves nothing"
    return model


def assert_same(
    ours: dict[str, torch.Tensor], host: dict[str, torch.Tensor], execution: str = "eager"
) -> None:
    """The kernel sums in another order than torch; Adam makes much of the last digit of a gradient
    that is all but 0."""
    atol = {"eager": 1e-7, "kernel": 1e-5}[execution]
    assert ours.keys() == host.keys()
    for name, value in host.items():
        if name.endswith(
            "num_batches_tracked"
        ):  # the host does not copy this one; nothing reads it
            continue
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=atol, msg=name)


@pytest.mark.parametrize("execution", ["eager", "auto"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_parameters_after_200_updates_are_those_of_stable_baselines3(
    setting: str, execution: str
) -> None:
    batches = host_samples(seed=1)
    host = train(stable_baselines3.DQN, batches, **SETTINGS[setting])
    ours = train(DQN, batches, **SETTINGS[setting], execution=execution)
    assert_same(ours.policy.state_dict(), host.policy.state_dict(), ours.learner.execution)
    if setting != "batch norm":
        assert ours.learner.execution == {"eager": "eager", "auto": "kernel"}[execution]


def test_the_native_learner_equals_both() -> None:
    batches = host_samples(seed=2)
    settings = SETTINGS["hard"]
    host, ours = (train(cls, batches, **settings) for cls in (stable_baselines3.DQN, DQN))
    start = DQN("MlpPolicy", Chain(4), seed=5, device="cpu", learning_rate=3e-3, **settings)
    native = DQNLearner(copy.deepcopy(start.q_net), start.learner.config)
    for batch in batches:
        native.count(steps=1)
        native.update(to_transition(batch, start.gamma))
    for model in (host, ours):
        assert_same(native.q_net.state_dict(), model.q_net.state_dict(), "kernel")
        assert_same(native.target_net.state_dict(), model.q_net_target.state_dict(), "kernel")


@pytest.mark.parametrize("variant", ["vanilla", "double"])
def test_the_other_variants_end_elsewhere(variant: str) -> None:
    batches = host_samples(seed=1)
    host = train(stable_baselines3.DQN, batches, **SETTINGS["hard"])
    ours = train(DQN, batches, variant=variant, **SETTINGS["hard"])
    with pytest.raises(AssertionError):
        assert_same(ours.q_net.state_dict(), host.q_net.state_dict())


class SeededReplayBuffer(ReplayBuffer):
    """The host's buffer, sampled by a generator of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.generator = np.random.default_rng(0)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        return self._get_samples(self.generator.integers(self.size(), size=batch_size), env)


@pytest.mark.parametrize("execution", ["eager", "auto"])
@pytest.mark.parametrize("normalized", [False, True])
def test_a_whole_greedy_run_is_that_of_stable_baselines3(normalized: bool, execution: str) -> None:
    """Without random actions both runs are determined: learn(), from the first step to the last."""

    def run(cls: type[stable_baselines3.DQN], **settings: Any) -> Any:
        env: Any = DummyVecEnv([lambda: Chain(4, limit=7)])
        env = VecNormalize(env) if normalized else env
        model = cls(
            "MlpPolicy",
            env,
            learning_rate=1e-2,
            learning_starts=0,
            train_freq=2,
            gradient_steps=3,
            target_update_interval=20,
            exploration_initial_eps=0.0,
            exploration_final_eps=0.0,
            replay_buffer_class=SeededReplayBuffer,
            seed=3,
            device="cpu",
            **settings,
        )
        return model.learn(150)

    host, ours = run(stable_baselines3.DQN), run(DQN, execution=execution)
    assert ours._episode_num == host._episode_num > 10
    assert ours._n_updates == host._n_updates == 225
    np.testing.assert_array_equal(ours.replay_buffer.actions, host.replay_buffer.actions)
    if execution == "eager":
        assert_same(ours.policy.state_dict(), host.policy.state_dict())
    else:  # a whole run feeds the last digits of its own sums back into itself
        states = torch.eye(4)
        torch.testing.assert_close(ours.q_net(states), host.q_net(states), rtol=0, atol=1e-3)
