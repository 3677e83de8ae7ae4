"""A subclass's own methods are called where the host calls them, and choose what is collected."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.dqn.policies import DQNPolicy as HostPolicy
from stable_baselines3.dqn.policies import QNetwork as HostNetwork
from support import Chain

import dqn_adapters.sb3
import dqn_adapters.tianshou
from conformance.drivers import PettingZoo, Tianshou, Trained
from conformance.edits import CONFIG, OBSERVATIONS
from dqn_adapters import DQNAgent

WARM_UP, STEPS = 20, 80
"""Environment steps at random, and in all; from then on actions are greedy."""
EXECUTIONS = "auto", "eager"


# Stable-Baselines3: the host beside the adapter

Made = tuple[Any, dict[str, Any]]
"""Class of the algorithm, and its class of policies and more arguments."""


def policy_predict(base: Any, calls: Counter[str]) -> Made:
    class Policy(HostPolicy):
        def _predict(self, observation: Any, deterministic: bool = True) -> Any:
            calls["_predict"] += 1
            return torch.ones_like(super()._predict(observation, deterministic))

    return base, {"policy": Policy}


def policy_public_predict(base: Any, calls: Counter[str]) -> Made:
    class Policy(HostPolicy):
        def predict(self, *args: Any, **kwargs: Any) -> Any:
            calls["predict"] += 1
            actions, state = super().predict(*args, **kwargs)
            return np.ones_like(actions), state

    return base, {"policy": Policy}


def policy_forward(base: Any, calls: Counter[str]) -> Made:
    """Which the host does not call to act."""

    class Policy(HostPolicy):
        def forward(self, obs: Any, deterministic: bool = True) -> Any:
            calls["forward"] += 1
            return torch.ones_like(super().forward(obs, deterministic))

    return base, {"policy": Policy}


def network_predict(base: Any, calls: Counter[str]) -> Made:
    class Network(HostNetwork):
        def _predict(self, observation: Any, deterministic: bool = True) -> Any:
            calls["_predict"] += 1
            return torch.ones_like(super()._predict(observation, deterministic))

    return base, {"policy": _with_network(Network)}


def network_forward(base: Any, calls: Counter[str]) -> Made:
    class Network(HostNetwork):
        def forward(self, obs: Any) -> Any:
            calls["forward"] += 1
            return super().forward(obs) + torch.tensor([0.0, 100.0])

    return base, {"policy": _with_network(Network)}


def _with_network(kind: type[HostNetwork]) -> type[HostPolicy]:
    class Policy(HostPolicy):
        def make_q_net(self) -> HostNetwork:
            arguments = self._update_features_extractor(self.net_args, features_extractor=None)
            return kind(**arguments).to(self.device)

    return Policy


def algorithm_predict(base: Any, calls: Counter[str]) -> Made:
    class Boltzmann(base):
        def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
            calls["predict"] += 1
            return np.ones(len(observation), np.int64), None

    return Boltzmann, {}


def algorithm_sample_action(base: Any, calls: Counter[str]) -> Made:
    class Sampling(base):
        def _sample_action(self, *args: Any, **kwargs: Any) -> Any:
            calls["_sample_action"] += 1
            actions, stored = super()._sample_action(*args, **kwargs)
            return np.ones_like(actions), np.ones_like(stored)

    return Sampling, {}


def algorithm_store_transition(base: Any, calls: Counter[str]) -> Made:
    class Scaled(base):
        def _store_transition(
            self,
            replay_buffer: Any,
            buffer_action: Any,
            new_obs: Any,
            reward: Any,
            dones: Any,
            infos: Any,
        ) -> None:
            calls["_store_transition"] += 1
            reward = reward * 0.5 + 7
            super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    return Scaled, {}


def algorithm_train(base: Any, calls: Counter[str]) -> Made:
    class Training(base):
        def train(self, gradient_steps: int, batch_size: int = 100) -> None:
            calls["train"] += 1
            calls["updates"] += gradient_steps
            super().train(gradient_steps, batch_size)

    return Training, {}


def algorithm_on_step(base: Any, calls: Counter[str]) -> Made:
    class Stepping(base):
        def _on_step(self) -> None:
            calls["_on_step"] += 1
            super()._on_step()

    return Stepping, {}


SB3 = (
    *(policy_predict, policy_public_predict, policy_forward, network_predict, network_forward),
    *(algorithm_predict, algorithm_sample_action, algorithm_store_transition),
    *(algorithm_train, algorithm_on_step),
)
ALL_ONES = (
    *(policy_predict, policy_public_predict, network_predict, network_forward),
    *(algorithm_predict, algorithm_sample_action),
)
COUNTED = {policy_predict, policy_public_predict, network_predict, *SB3[5:]}
"""Where the adapter calls as often as the host: all but what also learns."""


def sb3_model(override: Callable[..., Made], base: Any, **execution: Any) -> tuple[Any, Counter]:
    calls: Counter[str] = Counter()
    made, arguments = override(base, calls)
    model = made(
        arguments.get("policy", "MlpPolicy"),
        Chain(),
        learning_starts=WARM_UP,
        batch_size=8,
        train_freq=4,
        buffer_size=STEPS,
        target_update_interval=20,
        exploration_initial_eps=0.0,
        exploration_final_eps=0.0,
        policy_kwargs={"net_arch": [16, 16]},
        seed=0,
        device="cpu",
        **execution,
    )
    return model.learn(STEPS), calls


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("override", SB3)
def test_sb3_calls_what_the_host_calls(override: Callable[..., Made], execution: str) -> None:
    host, expected = sb3_model(override, stable_baselines3.DQN)
    model, calls = sb3_model(override, dqn_adapters.sb3.DQN, execution=execution)
    assert calls.keys() == expected.keys()
    if override in COUNTED:
        assert calls == expected
    for one in host, model:
        greedy = one.replay_buffer.actions[WARM_UP:STEPS]
        assert len(greedy) == STEPS - WARM_UP
        if override in ALL_ONES:
            np.testing.assert_array_equal(greedy, 1)
        elif override is algorithm_store_transition:
            rewards = one.replay_buffer.rewards[:STEPS]
            assert set(np.unique(rewards)) <= {7.0, 7.5}


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("owner", ["model", "policy", "q_net"])
def test_sb3_calls_functions_that_were_set_on_an_object(owner: str, execution: str) -> None:
    """`predict` of the model and of its policy, and the network's `_predict`."""
    for base, arguments in (
        (stable_baselines3.DQN, {}),
        (dqn_adapters.sb3.DQN, {"execution": execution}),
    ):
        model, _ = sb3_model(lambda base, calls: (base, {}), base, **arguments)
        calls: list[int] = []

        def ones(observation: Any, *args: Any, calls: list[int] = calls, **kwargs: Any) -> Any:
            calls.append(1)
            if isinstance(observation, torch.Tensor):
                return torch.ones(len(observation), dtype=torch.int64)
            return np.ones(len(observation), np.int64), None

        where = {"model": model, "policy": model.policy, "q_net": model.policy.q_net}[owner]
        setattr(where, "_predict" if owner == "q_net" else "predict", ones)
        model.learn(STEPS, reset_num_timesteps=False)
        assert len(calls) == STEPS, base
        np.testing.assert_array_equal(model.replay_buffer.actions[:STEPS], 1)


# The other adapters


def greedy_config() -> Any:
    return dataclasses.replace(CONFIG, exploration_initial_eps=0.0, exploration_final_eps=0.0)


class ActsOne(DQNAgent):
    calls = 0

    def _act(self, observations: Any, epsilon: float, action_masks: Any) -> Any:
        type(self).calls += 1
        return np.ones_like(super()._act(observations, epsilon, action_masks))


class GreedyOne(DQNAgent):
    calls = 0

    def _greedy(self, observations: Any, action_masks: Any) -> Any:
        type(self).calls += 1
        return np.ones_like(super()._greedy(observations, action_masks))


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    ("base", "asked"),
    [(ActsOne, STEPS), (GreedyOne, STEPS - WARM_UP)],  # nobody is greedy in the warm-up
)
def test_native_calls_the_subclass(base: type[Any], asked: int, execution: str) -> None:
    kind = type("Fresh", (base,), {"calls": 0})
    agent = kind(Chain(), greedy_config(), seed=0, execution=execution)
    agent.learn(STEPS)
    assert kind.calls == asked
    # The chain is walked to its end, 4 steps at most, and begins anew.
    assert agent.learner.counts["episodes"] >= asked // 4


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_pettingzoo_calls_functions_that_were_set_on_its_policy(execution: str) -> None:
    trained = PettingZoo(Chain, greedy_config(), 0, execution=execution)
    calls: list[int] = []

    def ones(observations: Any, *args: Any, **kwargs: Any) -> list[int]:
        calls.append(1)
        return [1] * len(observations)

    trained.policy.act = ones
    trained.learn(STEPS)
    assert len(calls) == STEPS
    assert trained.learner.counts["episodes"] >= STEPS // 4


def ones_from_forward(base: Any, calls: Counter[str]) -> Any:
    class Policy(base):
        def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Any:
            calls["forward"] += 1
            result = super().forward(batch, state, **kwargs)
            result.act = np.ones_like(result.act)
            return result

    return Policy


def ones_from_noise(base: Any, calls: Counter[str]) -> Any:
    class Policy(base):
        def add_exploration_noise(self, act: Any, batch: Any) -> Any:
            calls["add_exploration_noise"] += 1
            return np.ones_like(super().add_exploration_noise(act, batch))

    return Policy


def ones_from_values(base: Any, calls: Counter[str]) -> Any:
    class Policy(base):
        def compute_q_value(self, logits: Any, mask: Any) -> Any:
            calls["compute_q_value"] += 1
            return super().compute_q_value(logits, mask) + torch.tensor([0.0, 100.0])

    return Policy


TIANSHOU = ones_from_forward, ones_from_noise, ones_from_values


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("override", TIANSHOU)
def test_tianshou_calls_the_policys_subclass(
    override: Callable[..., Any], execution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    kind = override(dqn_adapters.tianshou.DQNPolicy, calls)
    monkeypatch.setattr(dqn_adapters.tianshou, "DQNPolicy", kind)
    trained: Any = Tianshou(Chain, greedy_config(), 0, execution=execution)
    trained.learn(STEPS)
    assert set(calls.values()) == {STEPS}
    np.testing.assert_array_equal(trained.collector.buffer.act[WARM_UP + 4 : STEPS], 1)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("name", ["_update_with_batch", "_preprocess_batch"])
def test_tianshou_calls_the_algorithms_subclass(
    name: str, execution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def method(self: Any, *args: Any) -> Any:
        calls[name] += 1
        return getattr(super(kind, self), name)(*args)

    kind: Any = type("Counting", (dqn_adapters.tianshou.DQN,), {name: method})
    monkeypatch.setattr(dqn_adapters.tianshou, "DQN", kind)
    trained = Tianshou(Chain, greedy_config(), 0, execution=execution)
    trained.learn(STEPS)
    assert calls[name] == trained.learner.num_updates > 0


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_tianshou_learns_the_model_that_its_policy_has(execution: str) -> None:
    """A model that is assigned to the policy acts and is trained, as with the host."""
    config = dataclasses.replace(CONFIG, variant="vanilla")
    trained: Trained = Tianshou(Chain, config, 0, execution=execution)
    trained.learn(STEPS)
    model = dqn_adapters.tianshou.QNet(Chain().observation_space, 2, (16, 16))
    trained.host.policy.model = model
    trained.optimizer.param_groups[0]["params"] = list(model.parameters())
    before = trained.parameters
    trained.learn(STEPS)
    assert not all(map(torch.equal, trained.parameters, before))
    values = trained.q_values(OBSERVATIONS)
    np.testing.assert_array_equal(trained.greedy(OBSERVATIONS), values.argmax(1))
