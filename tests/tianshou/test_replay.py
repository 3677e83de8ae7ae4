"""n-step returns, priorities and frames over Tianshou's buffers; beside Tianshou where it errs."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tianshou.data as host
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Chain, Count
from tianshou.algorithm import DQN as HostDQN
from tianshou.algorithm.algorithm_base import Algorithm
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector
from tianshou.env import DummyVectorEnv
from tianshou.utils.torch_utils import policy_within_training_step

from dqn_adapters import DQNConfig
from dqn_adapters.tianshou import (
    DQN,
    DQNPolicy,
    PrioritizedReplayBuffer,
    PrioritizedVectorReplayBuffer,
    QNet,
    ReplayBuffer,
    VectorReplayBuffer,
    make_buffer,
    trainer_params,
)

OPTIM = AdamOptimizerFactory(lr=1e-3)


class Rows(torch.nn.Module):
    """Q(s, a) = values[s, a], s being a number."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.as_tensor(values, dtype=torch.float32))

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> Any:
        return self.values[torch.as_tensor(np.asarray(obs)).long()], state


def algorithm(model: torch.nn.Module, num_actions: int = 2, **options: Any) -> DQN[DQNPolicy]:
    policy = DQNPolicy(model=model, action_space=spaces.Discrete(num_actions))
    return DQN(policy=policy, **{"optim": OPTIM, "variant": "vanilla", **options})


def fill(buffer: Any, num_envs: int, steps: int, seed: int, box: Any = None) -> list[list[Any]]:
    """Random episodes in each of the environments; returns what happened there, as tuples of
    (row of the buffer, s, reward, terminated, truncated, s')."""
    generator, told = np.random.default_rng(seed), [[] for _ in range(num_envs)]
    state = np.arange(num_envs) * 1000
    for _ in range(steps):
        terminated = generator.random(num_envs) < 0.15
        truncated = ~terminated & (generator.random(num_envs) < 0.15)
        reward = generator.integers(10, size=num_envs).astype(float)
        batch = Batch(
            obs=state if box is None else box(state),
            act=np.zeros(num_envs, int),
            rew=reward,
            terminated=terminated,
            truncated=truncated,
            obs_next=state + 1 if box is None else box(state + 1),
            info=np.array([{}] * num_envs),
        )
        rows = buffer.add(batch, buffer_ids=np.arange(num_envs))[0]
        for e in range(num_envs):
            told[e].append(
                (int(rows[e]), state[e], reward[e], terminated[e], truncated[e], state[e] + 1)
            )
        state = state + np.where(terminated | truncated, 10, 1)
    return told


def naive(history: list[Any], i: int, n: int, gamma: float) -> tuple[float, float, Any]:
    total, discount = 0.0, 1.0
    for k in range(i, min(i + n, len(history))):
        _, _, reward, terminated, truncated, following = history[k]
        total, discount = total + discount * reward, discount * gamma
        if terminated or truncated:
            break
    return total, 0.0 if terminated else discount, following


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3), st.integers(3, 40))
def test_n_step_returns_are_those_of_a_naive_loop(
    seed: int, n: int, num_envs: int, steps: int
) -> None:
    """In every environment's part of the buffer, past the wrap of its ring."""
    buffer = VectorReplayBuffer(10 * num_envs, num_envs)
    told = fill(buffer, num_envs, steps, seed)
    learner = algorithm(Rows(np.zeros((1, 2))), n_steps=n, gamma=0.9)
    for history in told:
        kept = range(max(0, steps - 10), steps)
        rows = np.array([history[i][0] for i in kept])
        batch = learner._preprocess_batch(buffer[rows], buffer, rows)
        expected = [naive(history, i, n, 0.9) for i in kept]
        returns, discounts, following = zip(*expected, strict=True)
        np.testing.assert_allclose(batch.returns, returns)
        np.testing.assert_allclose(batch.discounts, discounts)
        np.testing.assert_array_equal(batch.obs_next, following)


def test_n_steps_with_dict_observations() -> None:
    def box(states: np.ndarray) -> Batch:
        return Batch(a=states[:, None].astype(np.float32), b=states % 3)

    buffer = VectorReplayBuffer(60, 2)
    histories = fill(buffer, 2, 30, 0, box)
    space = spaces.Dict(a=spaces.Box(0, 1e4, (1,)), b=spaces.Discrete(3))
    learner = algorithm(QNet(space, 2, (8,)), n_steps=3, gamma=0.9)
    rows = np.array([entry[0] for entry in histories[1]])
    batch = learner._preprocess_batch(buffer[rows], buffer, rows)
    following = [naive(histories[1], i, 3, 0.9)[2] for i in range(30)]
    np.testing.assert_array_equal(batch.obs_next.a[:, 0], following)
    np.testing.assert_array_equal(batch.obs_next.b, np.array(following) % 3)
    with policy_within_training_step(learner.policy):
        assert np.isfinite(learner.update(buffer, 16).loss)


def test_masks_are_those_of_the_state_that_is_bootstrapped_from() -> None:
    """Three steps on, only the action worth 2 is legal; in between the one worth 8 is."""
    buffer = ReplayBuffer(3)
    for i in range(3):
        following = Batch(obs=np.array(i + 1), mask=np.array([i == 2, i != 2]))
        buffer.add(
            Batch(
                obs=Batch(obs=np.array(i), mask=np.array([True, True])),
                act=0,
                rew=1.0,
                terminated=False,
                truncated=False,
                obs_next=following,
                info={},
            )
        )
    values = np.array([[0.0, 0.0], [2.0, 8.0], [2.0, 8.0], [2.0, 8.0]])
    learner = algorithm(Rows(values), n_steps=3, gamma=0.5)
    rows = np.array([0])
    batch = learner._transition(learner._preprocess_batch(buffer[rows], buffer, rows))
    seen = learner.learner.td_loss(batch)
    assert seen.td_target.item() == 1.0 + 0.5 + 0.25 + 0.125 * 2.0


class InfoMask(Chain):
    """The chain with the mask in `info`: left is legal in odd states only."""

    def _info(self) -> dict[str, Any]:
        self.legal = np.array([self.state % 2 == 1, True])
        return {"action_mask": self.legal.astype(np.int8)}

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0], self._info()

    def step(self, action: int) -> Any:
        assert self.legal[action]
        *rest, _ = super().step(action)
        return *rest, self._info()


class DictMask(InfoMask):
    def __init__(self) -> None:
        super().__init__()
        mask = spaces.Box(0, 1, (2,), np.int8)
        self.observation_space = spaces.Dict(board=self.observation_space, action_mask=mask)

    def reset(self, **kwargs: Any) -> Any:
        board, info = super().reset(**kwargs)
        return {"board": board, **info}, {}

    def step(self, action: int) -> Any:
        board, *rest, info = super().step(action)
        return {"board": board, **info}, *rest, {}


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("env", [InfoMask, DictMask])
def test_masks_of_gymnasium_environments(env: Any, n_steps: int) -> None:
    """From the info or the observation; an illegal action fails in the environment. Tianshou, for
    which `obs["mask"]` alone is a mask, acts illegally."""
    config = DQNConfig(learning_starts=10, buffer_size=500, gamma=0.9, n_steps=n_steps)
    policy = DQNPolicy(
        model=QNet(env().observation_space, 2, (16,)), action_space=spaces.Discrete(2), seed=0
    )
    learner = DQN(policy=policy, config=config)
    buffer = make_buffer(config, 2, seed=0)
    collector = Collector(policy, DummyVectorEnv([env] * 2), buffer, exploration_noise=True)
    seen = []
    update = learner.learner.update
    learner.learner.update = lambda batch: seen.append(batch) or update(batch)  # type: ignore
    learner.run_training(
        trainer_params(config, 60, training_collector=collector, verbose=False, show_progress=False)
    )
    assert learner.learner.num_updates > 5
    for batch in seen:
        state = batch.next_observations
        state = torch.as_tensor(np.asarray(getattr(state, "obs", state))).argmax(1)
        assert torch.equal(batch.next_action_masks[:, 0], state % 2 == 1)

    theirs = DiscreteQLearningPolicy(
        model=policy.model, action_space=policy.action_space, eps_inference=1.0
    )
    envs = DummyVectorEnv([env] * 2)
    envs.seed(0)
    with pytest.raises(AssertionError):
        Collector(theirs, envs, exploration_noise=True).collect(
            n_step=60, reset_before_collect=True
        )


def test_an_episode_that_a_reset_broke_off_is_cut() -> None:
    """A second training begins new episodes: Tianshou's n-step returns run on into them."""

    def collected(learner: Any) -> Any:
        buffer = VectorReplayBuffer(20, 1)
        envs = DummyVectorEnv([lambda: Count((100,))])
        collector = Collector(learner.policy, envs, buffer, exploration_noise=True)
        for _ in range(2):
            params = trainer_params(
                DQNConfig(train_freq=5, gradient_steps=5),
                5,
                training_collector=collector,
                verbose=False,
                show_progress=False,
            )
            learner.run_training(params)
        return buffer

    def model() -> Any:
        return QNet(Count().observation_space, 2, ())

    row = np.array([4])  # the last of the first training; its reward is 5, the next episode's 1
    mine = algorithm(model(), n_steps=3, gamma=1.0)
    buffer = collected(mine)
    assert mine._preprocess_batch(buffer[row], buffer, row).returns == 5.0
    assert buffer[row].truncated
    assert buffer.buffers[0]._ep_len == 5  # of the second episode, not of both

    policy = DiscreteQLearningPolicy(model=model(), action_space=spaces.Discrete(2))
    theirs = HostDQN(policy=policy, optim=OPTIM, n_step_return_horizon=3, gamma=1.0)
    buffer = collected(theirs)
    batch = Algorithm.compute_nstep_return(
        buffer[row], buffer, row, lambda b, i: torch.zeros(1, 1), gamma=1.0, n_step=3
    )
    assert batch.returns.item() == 5.0 + 1.0 + 2.0


# Priorities


def prioritized(num_envs: int = 1, **changes: Any) -> tuple[DQN[DQNPolicy], Any, Any]:
    config = DQNConfig(
        **{
            "variant": "vanilla",
            "learning_starts": 10,
            "buffer_size": 100,
            "prioritized_replay": True,
            "priority_beta": 0.4,
            **changes,
        }
    )
    model = QNet(Chain().observation_space, 2, (8,))
    policy = DQNPolicy(model=model, action_space=spaces.Discrete(2), seed=0)
    learner = DQN(policy=policy, config=config)
    envs = DummyVectorEnv([Chain] * num_envs)
    buffer = make_buffer(config, num_envs, seed=0)
    return learner, Collector(policy, envs, buffer, exploration_noise=True), buffer


def run(learner: DQN[Any], collector: Any, steps: int, **params: Any) -> None:
    learner.run_training(
        trainer_params(
            learner.config,
            steps,
            training_collector=collector,
            verbose=False,
            show_progress=False,
            **params,
        )
    )


@pytest.mark.parametrize("num_envs", [1, 2])
def test_beta_follows_its_schedule(num_envs: int) -> None:
    learner, collector, buffer = prioritized(num_envs, train_freq=4)
    seen: dict[int, float] = {}
    update = learner.learner.update

    def note(batch: Any) -> Any:
        seen[learner.learner.counts["steps"]] = buffer._beta
        assert batch.weights.max() == 1.0
        return update(batch)

    learner.learner.update = note  # type: ignore[method-assign]
    run(learner, collector, 40)
    assert seen == pytest.approx({step: 0.4 + 0.6 * step / 40 for step in range(12, 41, 4)})
    assert type(buffer) is PrioritizedVectorReplayBuffer
    assert np.ptp(buffer.weight[np.arange(10)]) > 0


def test_a_vector_buffer_weighs_by_the_beta_that_was_set() -> None:
    """Tianshou's hands beta to its parts, which never weigh anything."""
    for kind in (PrioritizedVectorReplayBuffer, host.PrioritizedVectorReplayBuffer):
        buffer = kind(4, 2, alpha=1.0, beta=1.0)
        fill(buffer, 2, 2, 0)
        buffer.update_weight(np.arange(4), np.array([1.0, 2.0, 4.0, 8.0]))
        buffer.set_beta(0.0)
        weights = buffer[np.arange(4)].weight
        expected = np.ones(4) if kind is PrioritizedVectorReplayBuffer else 1 / 2.0 ** np.arange(4)
        np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_what_is_asked_of_the_buffer_must_be_there() -> None:
    learner, collector, _ = prioritized()
    collector.buffer = VectorReplayBuffer(100, 1)
    with pytest.raises(ValueError, match="VectorReplayBuffer samples uniformly.*must be a prior"):
        run(learner, collector, 20)
    collector.buffer = PrioritizedVectorReplayBuffer(100, 1, alpha=0.3, beta=0.4)
    with pytest.raises(ValueError, match=r"alpha=0\.3.*must be the priority_alpha=0\.6"):
        run(learner, collector, 20)
    with pytest.raises(ValueError, match="priority_alpha=0.0"):
        prioritized(priority_alpha=0.0)
    learner, collector, _ = prioritized(prioritized_replay=False, frame_stack=4)
    collector.buffer = VectorReplayBuffer(100, 1)
    with pytest.raises(ValueError, match="stack_num=1.*must be frame_stack=4"):
        run(learner, collector, 20)


def test_a_prioritized_buffer_decides_where_nothing_is_asked() -> None:
    learner = algorithm(Rows(np.zeros((2000, 2))))
    buffer = PrioritizedReplayBuffer(8, alpha=1.0, beta=0.5)
    fill(buffer, 1, 8, 0)
    with policy_within_training_step(learner.policy):
        learner.update(buffer, 4)
    assert buffer._beta == 0.5
    assert np.ptp(buffer.weight[np.arange(8)]) > 0


# Frames


class Film(gym.Env[np.ndarray, int]):
    """Frames numbered on, two pixels each, four stacked as a wrapper of frames does: the first
    frame of an episode stands for those before it. Every third episode terminates, the others are
    truncated."""

    def __init__(self, lengths: tuple[int, ...] = (3, 1, 7, 2)) -> None:
        self.lengths, self.episode, self.frame = lengths, -1, 0
        self.observation_space = spaces.Box(0, 255, (4, 2), np.uint8)
        self.action_space = spaces.Discrete(2)

    def _see(self) -> np.ndarray:
        self.frame = self.frame % 250 + 1
        self.stack = [*self.stack[1:], self.frame]
        return np.repeat(np.array(self.stack, np.uint8)[:, None], 2, axis=1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        self.stack = [self.frame % 250 + 1] * 4
        return self._see(), {}

    def step(self, action: int) -> Any:
        self.t += 1
        over = self.t == self.lengths[self.episode % len(self.lengths)]
        ends = over and self.episode % 3 == 0
        return self._see(), 1.0, ends, over and not ends, {}


FRAMES = {"stack_num": 4, "save_only_last_obs": True, "ignore_obs_next": True}


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("options", [FRAMES, {"ignore_obs_next": True}, {**FRAMES, "alpha": 0.6}])
def test_frames_give_what_a_plain_buffer_gives(
    options: dict[str, Any], num_envs: int, n_steps: int
) -> None:
    """T9: at truncations, past the wrap, at the newest row; Tianshou's buffer does not."""
    options = dict(options)
    size = 17 * num_envs
    plain = host.VectorReplayBuffer(size, num_envs)
    if "alpha" in options:
        lean: Any = PrioritizedVectorReplayBuffer(size, num_envs, seed=0, beta=0.4, **options)
        theirs: Any = host.PrioritizedVectorReplayBuffer(size, num_envs, beta=0.4, **options)
    else:
        lean = VectorReplayBuffer(size, num_envs, seed=0, **options)
        theirs = host.VectorReplayBuffer(size, num_envs, **options)
    learner = algorithm(QNet(Film().observation_space, 2, ()), n_steps=n_steps)
    wrong_of_host, drawn = 0, set()
    films = [Film((3 + i, 1, 7, 2)) for i in range(num_envs)]
    observations = np.array([film.reset()[0] for film in films])
    for _ in range(60):
        steps = [film.step(0) for film in films]
        following = np.array([step[0] for step in steps])
        batch = Batch(
            obs=observations,
            act=np.zeros(num_envs, int),
            rew=np.ones(num_envs),
            terminated=np.array([step[2] for step in steps]),
            truncated=np.array([step[3] for step in steps]),
            obs_next=following,
            info=np.array([{}] * num_envs),
        )
        for buffer in (plain, lean, theirs):
            buffer.add(batch)
        observations = following.copy()
        for i, step in enumerate(steps):
            if step[2] or step[3]:
                observations[i] = films[i].reset()[0]
        rows = lean.sample_indices(32)
        drawn.update(rows.tolist())
        mine, expected = (
            learner._preprocess_batch(buffer[rows], buffer, rows) for buffer in (lean, plain)
        )
        np.testing.assert_array_equal(mine.obs, expected.obs)
        np.testing.assert_array_equal(mine.obs_next, expected.obs_next)
        np.testing.assert_array_equal(mine.returns, expected.returns)
        wrong_of_host += (theirs[rows].obs_next != plain[rows].obs_next).any()
    assert wrong_of_host > 30
    assert len(drawn) == size
    for row in (int(rows[0]), slice(None), slice(0, 5)):
        assert lean[row].obs_next.shape == (*np.shape(lean[row].rew), 4, 2)
    assert (
        sum(array.nbytes for array in (lean.obs,)) < plain.obs.nbytes or "stack_num" not in options
    )
    assert len(lean._aside) <= size


def test_frames_of_a_dict() -> None:
    """`ignore_obs_next` alone, in a buffer of one environment."""
    lean, plain = ReplayBuffer(7, ignore_obs_next=True), host.ReplayBuffer(7)
    for i in range(20):
        batch = Batch(
            obs=Batch(a=np.array([i]), b=Batch(c=-i)),
            act=0,
            rew=0.0,
            terminated=False,
            truncated=i % 3 == 2,
            obs_next=Batch(a=np.array([i + 100 * (i % 3 == 2) + 1]), b=Batch(c=-i - 1)),
            info={},
        )
        lean.add(batch)
        plain.add(batch)
        rows = lean.sample_indices(0)
        mine, expected = lean[rows].obs_next, plain[rows].obs_next
        np.testing.assert_array_equal(mine.a, expected.a)
        np.testing.assert_array_equal(mine.b.c, expected.b.c)


def test_what_frames_cannot_do_is_said() -> None:
    with pytest.raises(ValueError, match="stack_num=4.*at most the rows of one environment"):
        VectorReplayBuffer(6, 2, stack_num=4)
    lean = ReplayBuffer(4, ignore_obs_next=True)
    with pytest.raises(ValueError, match="update knows no s'.*ignore_obs_next must be False"):
        lean.update(host.ReplayBuffer(4))


def test_frames_train() -> None:
    config = DQNConfig(learning_starts=8, buffer_size=60, frame_stack=4, n_steps=3, batch_size=8)
    policy = DQNPolicy(
        model=QNet(Film().observation_space, 2, (8,)), action_space=spaces.Discrete(2), seed=0
    )
    learner, buffer = DQN(policy=policy, config=config), make_buffer(config, 2, seed=0)
    collector = Collector(policy, DummyVectorEnv([Film] * 2), buffer, exploration_noise=True)
    run(learner, collector, 80)
    assert learner.learner.num_updates == 18
    assert buffer.obs.shape == (60, 2)
    assert buffer.obs.dtype == np.uint8
