"""Our collector does what Tianshou's does, only sooner."""

from __future__ import annotations

import copy
import pickle
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import tianshou.data as host
import torch
from gymnasium import spaces
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, CollectStats
from tianshou.env import DummyVectorEnv, SubprocVectorEnv
from tianshou.utils.determinism import TraceLoggerContext
from tianshou.utils.net.common import Net
from tianshou.utils.torch_utils import policy_within_training_step

from dqn_adapters import DQNConfig
from dqn_adapters.finite import NonFiniteError
from dqn_adapters.tianshou import (
    DQN,
    Collector,
    DQNPolicy,
    PrioritizedVectorReplayBuffer,
    QNet,
    ReplayBuffer,
    VectorReplayBuffer,
    trainer_params,
)

pytest.importorskip("numba")


class Walk(gym.Env[Any, int]):
    """A random walk of unlike lengths, told in numbers, with infos of many kinds."""

    action_space = spaces.Discrete(3)

    def __init__(self, kind: str = "plain", start: int = 0, nan_at: int = -1) -> None:
        self.kind, self.nan_at, self.steps = kind, nan_at, 0
        self.action_space = spaces.Discrete(3, start=start)
        box = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = box
        if kind == "dict":
            mask = spaces.MultiBinary(3)
            self.observation_space = spaces.Dict({"obs": box, "mask": mask})

    def _seen(self) -> Any:
        seen = np.array([self.place, self.age], np.float32)
        mask = np.array([True, self.age % 2 == 0, self.age % 3 == 0])
        return {"obs": seen, "mask": mask} if self.kind == "dict" else seen

    def _info(self) -> dict[str, Any]:
        if self.kind == "masks":
            return {"action_mask": np.array([self.age % 2 == 0, True, False])}
        if self.kind == "now and then" and self.age % 3:
            return {"lives": self.age, "nested": {"x": 0.5}}
        if self.kind == "numbers":
            return {"lives": self.age, "speed": np.float32(0.5), "lost": bool(self.age % 2)}
        return {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.place, self.age = float(self.np_random.normal()), 0
        self.end = int(self.np_random.integers(2, 9))
        return self._seen(), self._info()

    def step(self, action: int) -> tuple[Any, float, bool, bool, Any]:
        assert self.action_space.contains(int(action))
        self.age, self.steps = self.age + 1, self.steps + 1
        self.place += (int(action) - 1) * 0.1 + float(self.np_random.normal())
        reward = float("nan") if self.steps == self.nan_at else self.place
        over = self.age == self.end
        return (
            self._seen(),
            reward,
            over and self.end % 2 == 0,
            over and self.end % 2 == 1,
            (self._info()),
        )


def parts(
    collector: Any,
    *,
    num_envs: int = 3,
    make_buffer: Any = lambda n: VectorReplayBuffer(60, n, seed=3),
    execution: Any = "kernel",
    policy_class: Any = DQNPolicy,
    venv: Any = DummyVectorEnv,
    collector_options: Any = None,
    **env_options: Any,
) -> Any:
    """A collector over walks, with all that it needs, always of the same seeds."""
    torch.manual_seed(0)
    envs = venv([lambda: Walk(**env_options)] * num_envs)
    envs.seed(7)
    for i, space in enumerate(envs.action_space):
        space.seed(i)
    space = envs.action_space[0]
    model = Net(state_shape=2, action_shape=3, hidden_sizes=(16, 16))
    policy = policy_class(model=model, action_space=space, eps_training=0.5, seed=1)
    algorithm = DQN(
        policy=policy,
        optim=AdamOptimizerFactory(lr=1e-3),
        variant="vanilla",
        execution=execution,
    )
    options = {"exploration_noise": True, **(collector_options or {})}
    collector = collector(policy, envs, make_buffer(num_envs), **options)
    collector.algorithm = algorithm
    collector.reset()
    return collector


def collected(collector: Any, **how: Any) -> tuple[Any, Any]:
    """What it collects in five calls, as one list of statistics, and the buffer."""
    with policy_within_training_step(collector.policy):
        stats = [vars(collector.collect(**how)).copy() for _ in range(5)]
    for each in stats:
        for name in ("collect_time", "collect_speed"):
            assert each.pop(name) > 0
    return stats, collector.buffer


def flat(batch: Any, prefix: str = "") -> dict[str, Any]:
    """The arrays of a batch by their paths."""
    arrays = {}
    for key, values in batch.items():
        nested = flat(values, f"{prefix}{key}.") if isinstance(values, Batch) else {}
        arrays.update(nested if isinstance(values, Batch) else {prefix + key: values})
    return arrays


def assert_same(ours: Any, theirs: Any, **how: Any) -> None:
    stats, buffer = collected(ours, **how)
    host_stats, host_buffer = collected(theirs, **how)
    np.testing.assert_equal(stats, host_stats)
    arrays, host_arrays = flat(buffer._meta), flat(host_buffer._meta)
    assert arrays.keys() == host_arrays.keys()
    assert buffer._meta.get_keys() == host_buffer._meta.get_keys()
    for name, array in host_arrays.items():
        assert arrays[name].dtype == array.dtype, name
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    for name in ("last_index", "_lengths"):
        np.testing.assert_array_equal(getattr(buffer, name, None), getattr(host_buffer, name, None))
    for name in ("collect_step", "collect_episode"):
        assert getattr(ours, name) == getattr(theirs, name) > 0
    np.testing.assert_equal(ours.policy.random_state, theirs.policy.random_state)
    for name in ("_pre_collect_obs_RO", "_pre_collect_info_R"):
        np.testing.assert_equal(list(getattr(ours, name)), list(getattr(theirs, name)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_envs": 1},
        {"num_envs": 1, "make_buffer": lambda n: ReplayBuffer(40, seed=3)},
        {"make_buffer": lambda n: host.VectorReplayBuffer(60, n)},
        {
            "make_buffer": lambda n: PrioritizedVectorReplayBuffer(
                60, n, alpha=0.6, beta=0.4, seed=3
            )
        },
        {"kind": "numbers"},
        {"kind": "now and then"},
        {"kind": "masks"},
        {"kind": "dict"},
        {"start": 4},
        {"execution": "eager"},
        {"venv": SubprocVectorEnv},
        {"collector_options": {"exploration_noise": False}},
    ],
)
def test_it_collects_what_tianshous_collects(options: Any) -> None:
    assert_same(parts(Collector, **options), parts(host.Collector, **options), n_step=30)


@pytest.mark.parametrize("how", [{"n_step": 3}, {"n_step": 9, "random": True}, {"n_episode": 4}])
def test_however_it_is_asked_to(how: Any) -> None:
    assert_same(parts(Collector), parts(host.Collector), **how)


def test_options_of_reset_reach_the_environment() -> None:
    seen = []
    collector = parts(Collector)
    reset = Walk.reset

    def noted(env: Any, **kwargs: Any) -> Any:
        seen.append(kwargs.get("options"))
        return reset(env, **kwargs)

    with mock.patch.object(Walk, "reset", noted):
        collector.collect(n_step=60, gym_reset_kwargs={"options": {"far": 1}})
    assert seen
    assert all(options == {"far": 1} for options in seen)


def looked_at(collector: Any, **how: Any) -> bool:
    """Whether Tianshou's own code collected."""
    with mock.patch.object(host.Collector, "_collect", autospec=True, side_effect=StopIteration):
        try:
            collector.collect(**how)
        except StopIteration:
            return True
    return False


class OtherPolicy(DQNPolicy):
    def forward(self, batch: Any, state: Any = None, model: Any = None) -> Any:
        return Batch(act=np.full(len(batch.obs), 2), state=None)


class OtherStats(CollectStats):
    pass


class OtherCollector(Collector[Any]):
    def run_on_step_hook(self, action_batch: Any, rollout_batch: Any) -> None:
        rollout_batch.rew = rollout_batch.rew + 100


def test_the_short_way_is_taken() -> None:
    assert not looked_at(parts(Collector), n_step=6)
    assert not looked_at(parts(Collector[CollectStats]), n_step=6)


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, {"n_episode": 3}),
        ({}, {"n_step": 6, "render": 0.01}),
        ({"execution": "eager"}, {"n_step": 6}),
        ({"policy_class": OtherPolicy}, {"n_step": 6}),
        ({"collector_options": {"on_step_hook": lambda *_: None}}, {"n_step": 6}),
        ({"collector_options": {"on_episode_done_hook": lambda _: None}}, {"n_step": 6}),
        ({"collector_options": {"collect_stats_class": OtherStats}}, {"n_step": 6}),
    ],
)
def test_who_looks_at_the_steps_is_left_to_tianshou(options: Any, how: Any) -> None:
    assert looked_at(parts(Collector, **options), **how)


def test_traces_are_tianshous() -> None:
    collector = parts(Collector)
    with TraceLoggerContext():
        assert looked_at(collector, n_step=6)


def test_a_subclass_is_not_looked_into() -> None:
    collector = parts(OtherCollector)
    collector.collect(n_step=30)
    assert (collector.buffer.rew[collector.buffer.sample_indices(0)] > 50).all()


def test_hooks_see_what_they_see_in_tianshou() -> None:
    seen: list[Any] = []
    options = {"on_step_hook": lambda action, step: seen.append((action.act, step.rew.copy()))}
    collector = parts(Collector, collector_options=options)
    collector.collect(n_step=9)
    assert len(seen) == 3
    assert_same(
        parts(Collector, collector_options=options),
        parts(host.Collector, collector_options=options),
        n_step=30,
    )


def test_a_hook_that_is_set_later_is_called() -> None:
    collector, calls = parts(Collector), []
    collector.collect(n_step=3)
    collector.set_on_step_hook(lambda *batches: calls.append(batches))
    collector.collect(n_step=3)
    assert len(calls) == 1


def test_asynchronous_environments_are_refused_as_by_tianshou() -> None:
    collector = parts(Collector)
    collector.env.is_async = True
    with pytest.raises(ValueError, match="AsyncCollector"):
        collector.collect(n_step=3)


def test_it_must_be_reset_first() -> None:
    policy = parts(Collector).policy
    envs = DummyVectorEnv([Walk])
    with pytest.raises(ValueError, match="reset"):
        Collector(policy, envs, VectorReplayBuffer(9, 1)).collect(n_step=1)


def test_a_nan_is_named_and_not_stored() -> None:
    collector = parts(Collector, num_envs=1, nan_at=5)
    with pytest.raises(NonFiniteError, match=r"rew of environment 0 is nan"):
        collector.collect(n_step=20)
    assert len(collector.buffer) == 4


def test_actions_are_those_of_the_network_as_it_is_now() -> None:
    collector = parts(Collector, collector_options={"exploration_noise": False})
    for action in range(3):
        with torch.no_grad():
            for parameter in collector.policy.model.parameters():
                parameter.zero_()
            list(collector.policy.model.parameters())[-1][action] = 1.0
        collector.collect(n_step=3)
        rows = collector.buffer.last_index
        assert (collector.buffer.act[rows] == action).all()


def test_a_replaced_model_is_the_one_that_acts() -> None:
    collector = parts(Collector, collector_options={"exploration_noise": False})
    other = QNet(spaces.Box(-9, 9, (2,), np.float32), 3)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        list(other.parameters())[-1][2] = 1.0
    collector.policy.model = other
    collector.collect(n_step=3)
    assert (collector.buffer.act[collector.buffer.last_index] == 2).all()


def test_a_copied_algorithm_acts_by_its_own_copy() -> None:
    algorithm = parts(Collector).algorithm
    other = copy.deepcopy(algorithm)
    assert other.policy.learner is other.learner is not algorithm.learner
    assert other.policy.computes_in_kernel


def test_a_pickled_policy_holds_no_learner() -> None:
    policy = parts(Collector).policy
    loaded = pickle.loads(pickle.dumps(policy))
    assert loaded.learner is None
    assert not loaded.computes_in_kernel
    batch = Batch(obs=np.zeros((2, 2), np.float32), info=Batch())
    np.testing.assert_array_equal(loaded(batch).act, policy(batch).act)


def test_a_training_is_the_same_with_either() -> None:
    def trained(collector_class: Any) -> Any:
        config = DQNConfig(
            train_freq=3, batch_size=8, learning_starts=12, exploration_steps=60, buffer_size=100
        )
        torch.manual_seed(0)
        envs = DummyVectorEnv([Walk] * 3)
        envs.seed(0)
        policy = DQNPolicy(
            model=Net(state_shape=2, action_shape=3, hidden_sizes=(16,)),
            action_space=envs.action_space[0],
            seed=0,
        )
        algorithm = DQN(policy=policy, config=config)
        buffer = VectorReplayBuffer(100, 3, seed=0)
        collector = collector_class(policy, envs, buffer, exploration_noise=True)
        collector.reset()
        result = algorithm.run_training(
            trainer_params(config, 150, training_collector=collector, show_progress=False)
        )
        return result, algorithm.state_dict()

    (result, ours), (host_result, theirs) = trained(Collector), trained(host.Collector)
    assert result.train_step == host_result.train_step == 150
    assert result.train_episode == host_result.train_episode > 0
    for name, tensor in theirs.items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)
