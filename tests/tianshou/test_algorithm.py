"""The algorithm in Tianshou's own loop, and beside Tianshou's DQN where that one falls short."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from support import Chain, Count
from tianshou.algorithm import DQN as HostDQN
from tianshou.algorithm.algorithm_base import RandomActionPolicy
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactoryLinear
from tianshou.data import Batch, Collector
from tianshou.data import PrioritizedReplayBuffer as HostPrioritizedReplayBuffer
from tianshou.data import ReplayBuffer as HostReplayBuffer
from tianshou.data import VectorReplayBuffer as HostVectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net
from tianshou.utils.torch_utils import policy_within_training_step

from dqn_adapters import DQNConfig
from dqn_adapters.config import VARIANTS, Variant
from dqn_adapters.tianshou import DQN, DQNPolicy, VectorReplayBuffer, trainer_params

OPTIM = AdamOptimizerFactory(lr=1e-3)
CONFIG = DQNConfig(
    variant="double",
    batch_size=8,
    buffer_size=200,
    learning_starts=10,
    train_freq=2,
    gradient_steps=1,
    target_update_interval=10,
    exploration_fraction=0.5,
)


def make(
    config: DQNConfig = CONFIG,
    *,
    seed: int = 0,
    buffer_seed: int | None = None,
    num_envs: int = 1,
    env: Any = Chain,
) -> tuple[DQN[DQNPolicy], Collector[Any]]:
    envs = DummyVectorEnv([env] * num_envs)
    envs.seed(seed)
    torch.manual_seed(seed)
    shape, action_space = env().observation_space.shape, env().action_space
    model = Net(state_shape=shape, action_shape=int(action_space.n), hidden_sizes=(16,))
    policy = DQNPolicy(model=model, action_space=action_space, seed=seed)
    algorithm = DQN(policy=policy, config=config)
    buffer_seed = seed if buffer_seed is None else buffer_seed
    buffer = VectorReplayBuffer(config.buffer_size, num_envs, seed=buffer_seed)
    return algorithm, Collector(policy, envs, buffer, exploration_noise=True)


def run(algorithm: DQN[Any], collector: Collector[Any], steps: int, **params: Any) -> Any:
    return algorithm.run_training(
        trainer_params(
            algorithm.config,
            steps,
            training_collector=collector,
            verbose=False,
            show_progress=False,
            **params,
        )
    )


def parameters(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


class Table(torch.nn.Module):
    """Q-values looked up by state number, called as a model of Tianshou is."""

    def __init__(self, *rows: list[float]) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(rows))

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> Any:
        return self.values[torch.as_tensor(obs).long()], state


def transition(**fields: Any) -> Batch:
    values = {"act": 0, "rew": 1.0, "terminated": False, "truncated": False, "info": {}}
    return Batch({"obs": np.array(0), "obs_next": np.array(1), **values, **fields})


def update(algorithm: Any, *batches: Batch, buffer: Any = None) -> Any:
    """One update on all the given transitions."""
    buffer = HostReplayBuffer(len(batches)) if buffer is None else buffer
    for batch in batches:
        buffer.add(batch)
    with policy_within_training_step(algorithm.policy):
        return algorithm.update(buffer=buffer, sample_size=0)


def ours(model: torch.nn.Module, num_actions: int = 2, **options: Any) -> DQN[DQNPolicy]:
    policy = DQNPolicy(model=model, action_space=spaces.Discrete(num_actions))
    return DQN(policy=policy, optim=OPTIM, **options)


def host(model: torch.nn.Module, num_actions: int = 2, **options: Any) -> HostDQN[Any]:
    policy = DiscreteQLearningPolicy(model=model, action_space=spaces.Discrete(num_actions))
    return HostDQN(policy=policy, optim=OPTIM, **options)


# Training


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(variant: Variant, num_envs: int) -> None:
    algorithm, collector = make(DQNConfig(variant=variant, learning_starts=9), num_envs=num_envs)
    before = parameters(algorithm.policy.model)
    info = algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=collector,
            test_collector=Collector(algorithm.policy, DummyVectorEnv([Chain])),
            max_epochs=2,
            epoch_num_steps=30,
            collection_step_num_env_steps=3,
            update_step_num_gradient_steps_per_sample=1 / 3,
            batch_size=8,
            verbose=False,
            show_progress=False,
        )
    )
    assert info.train_step == algorithm.learner.counts["steps"] == 60
    assert algorithm.learner.counts["episodes"] == info.train_episode
    assert algorithm.learner.num_updates == (60 - 9) / 3  # a warm-up of 9 steps is not learned in
    assert not torch.equal(parameters(algorithm.policy.model), before)


def test_the_same_seed_is_the_same_run_and_another_is_another() -> None:
    def train(seed: int, buffer_seed: int | None = None) -> torch.Tensor:
        algorithm, collector = make(seed=seed, buffer_seed=buffer_seed, num_envs=2)
        run(algorithm, collector, 60)
        return parameters(algorithm.policy.model)

    first = train(0)
    assert torch.equal(train(0), first)
    assert not torch.equal(train(1), first)
    assert not torch.equal(train(0, buffer_seed=1), first)  # the replay follows its seed too


def test_evaluation_does_not_change_the_training() -> None:
    results = []
    for epochs in (1, 3):
        algorithm, collector = make()
        algorithm.policy.set_eps_inference(0.5)
        test = {"test_collector": Collector(algorithm.policy, DummyVectorEnv([Chain]), None, True)}
        run(algorithm, collector, 60, max_epochs=epochs, **(test if epochs > 1 else {}))
        results.append(parameters(algorithm.policy.model))
    assert torch.equal(*results)


@pytest.mark.parametrize(("num_envs", "synced"), [(1, [10, 20, 30, 40]), (3, [12, 21, 30, 42])])
def test_the_period_is_in_environment_steps(
    num_envs: int, synced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synced on reaching or passing each multiple of 10; frozen in between, equal after."""
    config = DQNConfig(variant="target", target_update_interval=10, train_freq=1, learning_rate=0.1)
    algorithm, collector = make(config, num_envs=num_envs)
    learner, seen = algorithm.learner, []
    target = parameters(learner.target_net)
    count = learner.count

    def spy(**counts: int) -> bool:
        nonlocal target
        assert torch.equal(parameters(learner.target_net), target)  # frozen
        due = count(**counts)
        if due:
            seen.append(learner.counts["steps"])
            target = parameters(learner.target_net)
            assert torch.equal(target, parameters(learner.q_net))
        return due

    monkeypatch.setattr(learner, "count", spy)
    monkeypatch.setattr(type(algorithm), "warming_up", False)
    run(algorithm, collector, 42, collection_step_num_env_steps=num_envs)
    assert seen == synced
    assert learner.num_updates == 42


def test_epsilon_follows_the_schedule_and_goes_on_in_a_second_training() -> None:
    algorithm, collector = make()
    policy, seen = algorithm.policy, {}

    def note(epoch: int, env_step: int) -> None:
        seen[algorithm.learner.counts["steps"]] = policy.eps_training

    run(algorithm, collector, 40, training_fn=note)
    assert seen[0] == seen[8] == 1.0  # warm-up: 10 steps, and the schedule is 20 long
    assert seen[10] == pytest.approx(1.0 - 0.95 / 2)
    assert seen[20] == seen[38] == 0.05
    seen.clear()
    run(algorithm, collector, 4, training_fn=note)
    assert seen == {40: 0.05, 42: 0.05}


def test_without_a_schedule_epsilon_is_the_users() -> None:
    algorithm, collector = make()
    plain = DQN(policy=algorithm.policy, optim=OPTIM, variant="vanilla")
    plain.policy.set_eps_training(0.3)
    seen = []
    run(plain, collector, 10, training_fn=lambda *_: seen.append(plain.policy.eps_training))
    assert set(seen) == {0.3}
    run(algorithm, collector, 10, training_fn=lambda *_: algorithm.policy.set_eps_training(0.7))
    assert algorithm.policy.eps_training != 0.7  # with one, it holds until the next count


def test_fewer_gradient_steps_than_collection_steps() -> None:
    """T17: 29 updates for 100 steps, a step at a time; Tianshou's trainer gives up."""
    config = DQNConfig(variant="vanilla", learning_starts=0)
    few = {"collection_step_num_env_steps": 1, "update_step_num_gradient_steps_per_sample": 0.29}
    algorithm, collector = make(config)
    run(algorithm, collector, 100, **few)
    assert algorithm.learner.num_updates == 29

    theirs = host(Net(state_shape=5, action_shape=2))
    params = trainer_params(config, 40, training_collector=collector, **few, show_progress=False)
    with pytest.raises(ValueError, match="n_gradient_steps is 0"):
        theirs.run_training(params)


# What is learned


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_time_limit_bootstraps_and_a_terminal_state_does_not(variant: Variant) -> None:
    algorithm = ours(Table([0.0, 0.0], [5.0, 8.0]), variant=variant, gamma=0.5)
    algorithm.count(steps=1)
    assert update(algorithm, transition(truncated=True)).td_target == 1.0 + 0.5 * 8.0
    algorithm = ours(Table([0.0, 0.0], [5.0, 8.0]), variant=variant, gamma=0.5)
    algorithm.count(steps=1)
    assert update(algorithm, transition(terminated=True)).td_target == 1.0


def test_the_variants_select_and_evaluate_with_their_networks() -> None:
    targets = {}
    for variant in VARIANTS:
        algorithm = ours(Table([0.0, 0.0], [5.0, 3.0]), variant=variant, gamma=1.0)
        algorithm.count(steps=1)
        with torch.no_grad():
            algorithm.policy.model.values[1] = torch.tensor([2.0, 7.0])  # the online network alone
        targets[variant] = update(algorithm, transition()).td_target
    assert targets == {"vanilla": 8.0, "target": 6.0, "double": 4.0}


def test_masks_hold_in_the_target_of_every_variant() -> None:
    """T2: of the next actions only the one worth 2 is legal; Tianshou uses the other's 8."""
    mask = np.array([True, False])
    masked = transition(
        obs=Batch(obs=np.array(0), mask=mask), obs_next=Batch(obs=np.array(1), mask=mask), rew=0.0
    )
    table = Table([0.0, 0.0], [2.0, 8.0])
    for variant in VARIANTS:
        algorithm = ours(copy.deepcopy(table), variant=variant, gamma=1.0)
        algorithm.count(steps=1)
        assert update(algorithm, masked).td_target == 2.0

    theirs = host(table, is_double=False, gamma=1.0)
    assert update(theirs, masked).loss == 8.0**2  # (target - prediction)^2, the prediction being 0


class Masked(Chain):
    """The chain in which going left is legal in the odd states only; illegal actions fail."""

    def _observe(self) -> Any:
        self.legal = np.array([self.state % 2 == 1, True])
        return {"obs": super()._observe(), "mask": self.legal.copy()}

    def step(self, action: int) -> Any:
        assert self.legal[action]
        return super().step(action)


def test_masked_environments_train() -> None:
    algorithm, collector = make(env=Masked)
    run(algorithm, collector, 60)
    assert algorithm.learner.num_updates == 25
    buffer = collector.buffer
    left = buffer.act[:60] == 0
    assert left.any()
    assert buffer.obs.mask[:60][left, 0].all()


def test_a_terminal_state_may_allow_nothing() -> None:
    mask = {"obs": np.array(1), "mask": np.array([False, False])}
    algorithm = ours(Table([0.0, 0.0], [2.0, 8.0]), variant="vanilla")
    assert update(algorithm, transition(terminated=True, obs_next=Batch(mask))).td_target == 1.0
    with pytest.raises(ValueError, match="allows no action"):
        update(algorithm, transition(obs_next=Batch(mask)))


@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_importance_weights_hold_under_every_loss(loss: Any) -> None:
    """T3: Tianshou drops them as soon as it uses the Huber loss."""

    def buffer() -> HostPrioritizedReplayBuffer:
        buffer = HostPrioritizedReplayBuffer(2, alpha=1.0, beta=1.0)
        buffer.add(transition(rew=1.0, terminated=True))
        buffer.add(transition(rew=3.0, terminated=True))
        buffer.update_weight(np.array([0, 1]), np.array([1.0, 2.0]))
        return buffer

    def loss_of(algorithm: Any, batches: HostPrioritizedReplayBuffer) -> float:
        return float(update(algorithm, buffer=batches).loss)

    table = Table([0.0, 0.0], [99.0, 99.0])
    mine = ours(copy.deepcopy(table), variant="vanilla", loss=loss)
    used = buffer()
    element = (1.0, 9.0) if loss == "mse" else (0.5, 2.5)
    expected = (element[0] + 0.5 * element[1]) / 2  # the weights are 1 and 1/2
    assert loss_of(mine, used) == pytest.approx(expected)
    assert used.get_weight(np.array([0, 1])) == pytest.approx([1.0, 1 / 3])  # |td| is 1 and 3

    theirs = host(table, huber_loss_delta=1.0 if loss == "huber" else None)
    unweighted = sum(element) / 2
    assert loss_of(theirs, buffer()) == pytest.approx(expected if loss == "mse" else unweighted)


def test_the_targets_batch_statistics_are_synced() -> None:
    """T14: Tianshou's copy keeps the statistics of the first moment."""
    model = Net(state_shape=4, action_shape=2, hidden_sizes=(8,), norm_layer=torch.nn.BatchNorm1d)
    observations = np.random.default_rng(0).normal(3.0, size=(8, 4))
    batches = [transition(obs=row, obs_next=row) for row in observations]
    mine = ours(copy.deepcopy(model), variant="target", target_update_interval=5)
    theirs = host(copy.deepcopy(model), target_update_freq=1)
    mine.count(steps=4)
    for _ in range(2):
        update(mine, *batches)
        update(theirs, *batches)
    mine.count(steps=1)

    def mean(module: Any) -> torch.Tensor:
        return module.model.model[1].running_mean

    assert torch.equal(mean(mine.model_old.module), mean(mine.policy.model))
    assert mean(mine.policy.model).abs().max() > 0.01
    assert torch.equal(mean(theirs.model_old.module), torch.zeros(8))


def test_statistics_of_an_update() -> None:
    algorithm = ours(Table([1.0, 0.0], [5.0, 3.0]), variant="vanilla", gamma=1.0, max_grad_norm=0.1)
    stats = update(algorithm, transition(rew=-10.0), transition(rew=2.0, terminated=True))
    assert stats.loss == pytest.approx((36.0 + 1.0) / 2)
    assert stats.q_value == 1.0
    assert stats.td_target == pytest.approx((-5.0 + 2.0) / 2)
    assert stats.td_error == pytest.approx((6.0 + 1.0) / 2)
    assert stats.grad_norm == pytest.approx(abs(2 * (6.0 - 1.0)) / 2)
    assert set(stats.get_loss_stats_dict()) == {
        "loss",
        "q_value",
        "td_target",
        "td_error",
        "grad_norm",
        "epsilon",
    }


# Saving


def states(algorithm: DQN[Any]) -> dict[str, Any]:
    """Through a file, and by torch's safe loader."""
    file = io.BytesIO()
    torch.save(algorithm.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loaded_algorithm_goes_on_exactly(variant: Variant) -> None:
    config = DQNConfig(**{**CONFIG.to_dict(), "variant": variant})
    first, collector = make(config)
    run(first, collector, 40)
    state = states(first)
    assert not any("q_net" in name for name in state)
    assert any(name.startswith("model_old") for name in state) == (variant != "vanilla")

    def go_on(algorithm: DQN[DQNPolicy]) -> tuple[torch.Tensor, np.ndarray]:
        buffer = copy.deepcopy(collector.buffer)
        algorithm.count(steps=2)
        with policy_within_training_step(algorithm.policy):
            for _ in range(5):
                algorithm.update(buffer=buffer, sample_size=8)
            algorithm.policy.set_eps_training(0.5)
            batch = Batch(obs=np.eye(5, dtype=np.float32), info={})
            return parameters(algorithm), algorithm.policy.add_exploration_noise(
                algorithm.policy(batch).act, batch
            )

    second, _ = make(config, seed=7)
    second.load_state_dict(state)
    assert second.learner.counts == first.learner.counts
    assert second.policy.eps_training == first.policy.eps_training
    expected = go_on(first)
    for algorithm in (second, make(config, seed=8)[0]):
        algorithm.load_state_dict(state)  # `second` for the second time, from the same dictionary
        weights, actions = go_on(algorithm)
        assert torch.equal(weights, expected[0])
        assert np.array_equal(actions, expected[1])


def test_the_host_cannot_load_twice() -> None:
    """T13: it pops the optimiser out of the caller's dictionary."""
    theirs = host(Table([0.0, 0.0]))
    state = theirs.state_dict()
    theirs.load_state_dict(state)
    with pytest.raises(KeyError):
        theirs.load_state_dict(state)


def test_learning_rate_schedules_are_saved() -> None:
    def scheduled() -> DQN[DQNPolicy]:
        optim = AdamOptimizerFactory(lr=1e-2).with_lr_scheduler_factory(
            LRSchedulerFactoryLinear(1, 10, 1)
        )
        policy = DQNPolicy(model=Table([0.0, 0.0], [1.0, 2.0]), action_space=spaces.Discrete(2))
        return DQN(policy=policy, optim=optim, variant="vanilla")

    first, second = scheduled(), scheduled()
    for _ in range(3):
        update(first, transition())
    second.load_state_dict(first.state_dict())
    for algorithm in (first, second):
        update(algorithm, transition())
        assert algorithm.lr_schedulers[0].get_last_lr() == pytest.approx([1e-2 * 0.6])


def test_a_state_that_does_not_fit_is_refused_untouched() -> None:
    double, vanilla = (make(DQNConfig(variant=variant))[0] for variant in ("double", "vanilla"))
    before = copy.deepcopy(vanilla.state_dict())
    with pytest.raises(ValueError, match=r"variant='vanilla': model_old\.module"):
        vanilla.load_state_dict(double.state_dict())
    after = vanilla.state_dict()
    assert all(
        torch.equal(after[name], before[name]) for name in after if name.startswith("policy")
    )


def test_a_checkpoint_of_the_host_loads() -> None:
    theirs = host(Net(state_shape=5, action_shape=2), target_update_freq=2)
    batch = transition(obs=np.ones(5), obs_next=np.ones(5))
    for _ in range(3):
        update(theirs, batch)
    mine = ours(Net(state_shape=5, action_shape=2), target_update_freq=2)
    mine.load_state_dict(theirs.state_dict())
    assert torch.equal(parameters(mine.policy.model), parameters(theirs.policy.model))
    assert torch.equal(parameters(mine.model_old), parameters(theirs.model_old))


# Errors


def test_an_update_without_counted_steps_is_an_error_where_the_period_needs_them() -> None:
    algorithm = ours(Table([0.0, 0.0], [1.0, 2.0]), variant="double", target_update_interval=5)
    with pytest.raises(RuntimeError, match=r"none were counted.*algorithm\.count"):
        update(algorithm, transition())
    update(ours(Table([0.0, 0.0], [1.0, 2.0]), target_update_freq=5), transition())


def test_a_buffer_of_the_host_without_next_observations_is_refused() -> None:
    """T9: of a truncated step Tianshou's buffer gives s itself as s'."""
    buffer = HostReplayBuffer(4, ignore_obs_next=True)
    buffer.add(transition(truncated=True))
    assert buffer[np.array([0])].obs_next == 0  # and not 1
    algorithm, collector = make()
    message = r"ignore_obs_next must be False, or the buffer dqn_adapters\.tianshou\.ReplayBuffer"
    with pytest.raises(ValueError, match=message):
        update(ours(Table([0.0, 0.0], [1.0, 2.0]), variant="vanilla"), buffer=buffer)
    collector.buffer = HostVectorReplayBuffer(10, 1, ignore_obs_next=True)
    with pytest.raises(ValueError, match="ignore_obs_next must be False"):
        run(algorithm, collector, 10)


def test_an_empty_buffer_is_named() -> None:
    algorithm = ours(Table([0.0, 0.0], [1.0, 2.0]), variant="vanilla")
    with pytest.raises(ValueError, match="the buffer is empty: collect"):
        update(algorithm, buffer=HostVectorReplayBuffer(4, 2))


def test_a_state_of_another_network_is_refused_untouched() -> None:
    first, second = (
        ours(Table(*rows), variant="vanilla") for rows in ([[0.0, 0.0]], [[0.0, 0.0]] * 2)
    )
    update(first, transition(obs_next=np.array(0)))
    with pytest.raises(ValueError, match=r"policy\.model\.values must have shape \(2, 2\), got"):
        second.load_state_dict(first.state_dict())
    assert not second.learner.optimizer.state
    assert second.learner.num_updates == 0


def test_a_policy_without_q_values_is_refused() -> None:
    with pytest.raises(ValueError, match="policy=.*must be a DQNPolicy"):
        DQN(policy=RandomActionPolicy(spaces.Discrete(2)), optim=OPTIM)


def test_a_schedule_needs_a_collector_that_explores() -> None:
    algorithm, collector = make()
    collector.exploration_noise = False
    with pytest.raises(ValueError, match="exploration_noise=False.*must be True"):
        run(algorithm, collector, 10)


def test_actions_of_a_discrete_space_that_starts_elsewhere() -> None:
    """T17: the environment gets 5 and 6, the buffer 0 and 1; Tianshou sends 0 and 1."""

    def env() -> Count:
        return Count(start=5)

    algorithm, collector = make(env=env)
    collector.reset()
    collector.collect(n_step=10, random=True)
    run(algorithm, collector, 20)
    assert set(collector.buffer.act[:30]) == {0, 1}
    assert algorithm.policy.compute_action(np.zeros(3)) in (5, 6)

    theirs = DiscreteQLearningPolicy(model=algorithm.policy.model, action_space=env().action_space)
    with pytest.raises(AssertionError):
        Collector(theirs, DummyVectorEnv([env])).collect(n_step=1, reset_before_collect=True)
