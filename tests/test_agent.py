from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from support import Chain, Count

from dqn_adapters import DQNAgent, DQNConfig, TrainingStep
from dqn_adapters.checkpoint import CheckpointError

SMALL = DQNConfig(
    learning_starts=4,
    batch_size=4,
    train_freq=2,
    target_update_interval=3,
    buffer_size=100,
    hidden_sizes=(8,),
    learning_rate=1e-2,
)


def parameters(agent: DQNAgent) -> list[torch.Tensor]:
    return [p.detach().clone() for p in agent.q_net.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def replace(config: DQNConfig, **changes: Any) -> DQNConfig:
    return DQNConfig.from_dict({**config.to_dict(), **changes})


def test_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact sequence of events: act, store, sync, then learn; no learning in the warm-up."""
    env = Count((2, 3))
    agent = DQNAgent(env, SMALL, seed=0)
    events = env.events
    spied = (agent.replay, "add"), (agent.learner, "sync_target"), (agent.learner, "update")
    for owner, name in spied:
        original = getattr(owner, name)

        def spy(*args: Any, original: Any = original, name: str = name) -> Any:
            events.append((name,))
            return original(*args)

        monkeypatch.setattr(owner, name, spy)
    agent.learn(6, callback=lambda step: events.append(("callback", step.num_timesteps)))
    assert events == [
        ("reset", 0),
        ("step", 0, 1), ("add",), ("callback", 1),
        ("step", 0, 2), ("reset", 1), ("add",), ("callback", 2),
        ("step", 1, 1), ("add",), ("sync_target",), ("callback", 3),
        ("step", 1, 2), ("add",), ("callback", 4),
        ("step", 1, 3), ("reset", 2), ("add",), ("callback", 5),
        ("step", 2, 1), ("add",), ("sync_target",), ("update",), ("callback", 6),
    ]  # fmt: skip


def test_training_steps() -> None:
    """Returns and lengths of Count's episodes: 1 + 2, then 1 + 2 + 3."""
    steps = list(DQNAgent(Count((2, 3)), SMALL, seed=0).train(6))
    assert [s.num_timesteps for s in steps] == [1, 2, 3, 4, 5, 6]
    assert [s.episode_returns for s in steps] == [(), (3.0,), (), (), (6.0,), ()]
    assert [s.episode_lengths for s in steps] == [(), (2,), (), (), (3,), ()]
    assert [s.metrics is not None for s in steps] == [False] * 5 + [True]
    assert [s.epsilon for s in steps] == [1.0] * 4 + [0.05] * 2  # the schedule is one step long


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_buffer_holds_the_true_transitions(mode: AutoresetMode) -> None:
    """Truncated rows bootstrap from the final observation, terminated ones do not bootstrap."""
    env = SyncVectorEnv([lambda: Count((2, 3)), lambda: Count((3, 1))], autoreset_mode=mode)
    agent = DQNAgent(env, replace(SMALL, learning_starts=100), seed=0)
    agent.learn(14)
    batch = agent.replay.gather(np.arange(len(agent.replay)))
    assert len(agent.replay) == agent.num_timesteps >= 14
    s, s2 = batch.observations, batch.next_observations
    assert torch.equal(s[:, 0], s2[:, 0])  # never from one episode into the next
    assert torch.equal(s[:, 1] + 1, s2[:, 1])
    assert torch.equal(batch.rewards, s2[:, 1])
    assert torch.equal(batch.actions.float(), s2[:, 2])
    terminal = batch.discounts == 0
    assert terminal.any()
    assert not terminal.all()
    assert (batch.discounts[~terminal] == np.float32(0.99)).all()
    assert (s[terminal, 0] % 2 == 0).all()  # Count truncates its odd episodes


def test_updates_per_environment_step_do_not_depend_on_the_number_of_environments() -> None:
    config = replace(SMALL, learning_starts=0, train_freq=6, gradient_steps=3)
    counts = []
    for n in (1, 4):
        agent = DQNAgent(SyncVectorEnv([Chain] * n, autoreset_mode="SameStep"), config, seed=0)
        counts.append(agent.learn(120).num_updates)
    assert counts == [60, 60]


def test_same_seed_same_run_and_another_seed_another_run() -> None:
    runs = []
    for seed in (3, 3, 4):
        np.random.seed(len(runs))  # noqa: NPY002 (global streams must not matter)
        torch.manual_seed(len(runs))
        rewards: list[float] = []
        agent = DQNAgent("CartPole-v1", SMALL, seed=seed)
        agent.learn(300, callback=lambda s, r=rewards: r.extend(s.episode_returns))
        runs.append((parameters(agent), rewards))
    assert equal(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not equal(runs[0][0], runs[2][0])
    assert runs[0][1] != runs[2][1]


def test_the_global_random_streams_are_left_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    DQNAgent(Chain(), SMALL, seed=0).learn(50)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


def test_stopping_loses_nothing_and_learning_goes_on() -> None:
    env = Count((2, 3))
    agent = DQNAgent(env, SMALL, seed=0)
    agent.learn(100, callback=lambda step: step.num_timesteps < 4)
    assert agent.num_timesteps == len(agent.replay) == 4
    agent.learn(3)
    assert agent.num_timesteps == len(agent.replay) == 7
    s = agent.replay.gather(np.arange(7)).observations[:, :2].tolist()
    assert s == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1]]


def test_learning_in_pieces_is_learning_in_one_go() -> None:
    config = replace(SMALL, exploration_steps=60)
    whole, pieces = (DQNAgent(Chain(), config, seed=0) for _ in range(2))
    whole.learn(100)
    for n in (1, 39, 60):
        pieces.learn(n)
    assert equal(parameters(whole), parameters(pieces))


def test_epsilon_does_not_jump_back() -> None:
    agent = DQNAgent(Chain(), replace(SMALL, exploration_fraction=0.5), seed=0)
    assert agent.epsilon == 1.0
    agent.learn(100)
    assert agent.epsilon == 0.05
    agent.learn(1000)
    assert agent.epsilon == 0.05


def test_predict() -> None:
    agent = DQNAgent(Count(start=3), SMALL, seed=0)
    observations = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * 10
    greedy = agent.q_net(torch.from_numpy(observations)).argmax(1).numpy() + 3
    batch = agent.predict(observations)
    assert isinstance(batch, np.ndarray)
    np.testing.assert_array_equal(batch, greedy)
    one = agent.predict(observations[0])
    assert isinstance(one, int)
    assert one == greedy[0]
    assert agent.predict(observations[0].tolist()) == one
    random = np.concatenate([agent.predict(observations, deterministic=False) for _ in range(40)])
    assert set(random) == {3, 4}
    assert 0.4 < (random == 3).mean() < 0.6
    assert agent.predict(np.zeros((0, 3))).shape == (0,)
    for shape in ((4,), (2, 4), (1, 1, 3), ()):
        with pytest.raises(ValueError, match=r"observation must have shape \(3,\), or \(N, ...\)"):
            agent.predict(np.zeros(shape))


@pytest.mark.parametrize("variant", ["vanilla", "target", "double"])
def test_save_and_load(tmp_path: Path, variant: str) -> None:
    agent = DQNAgent(Chain(), replace(SMALL, variant=variant, exploration_fraction=0.3), seed=0)
    agent.learn(60)
    path = agent.save(tmp_path / "agent.safetensors", replay=True)
    loaded = DQNAgent.load(path, Chain())
    assert loaded.config == agent.config
    assert loaded.num_timesteps == agent.num_timesteps
    assert loaded.epsilon == agent.epsilon
    assert equal(parameters(loaded), parameters(agent))
    # The two go on identically from a new episode.
    agent._started = False
    for one in (agent, loaded):
        one._stepper.env = Chain()
        one.learn(60)
    assert equal(parameters(loaded), parameters(agent))
    assert loaded.learner.counts["steps"] == agent.learner.counts["steps"] == 120


class Walk(Chain):
    """Episodes of 4 steps that all begin in state 0."""

    def __init__(self) -> None:
        super().__init__(n=9, limit=4)

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        self.state = 0
        return self._observe(), {}


@pytest.mark.parametrize("mode", AutoresetMode)
def test_at_an_episodes_end_a_loaded_agent_goes_on_bit_for_bit(
    mode: AutoresetMode, tmp_path: Path
) -> None:
    """In the mode NEXT_STEP the agent has a step before it that only resets."""

    def env() -> SyncVectorEnv:
        return SyncVectorEnv([Walk, Walk], autoreset_mode=mode)

    agent = DQNAgent(env(), SMALL, seed=0).learn(80)
    loaded = DQNAgent.load(agent.save(tmp_path / "agent", replay=True), env())
    for one in (agent, loaded):
        one.learn(80)
    assert equal(parameters(loaded), parameters(agent))
    stored = [a.replay.gather(np.arange(100))[:5] for a in (agent, loaded)]
    assert equal(*stored)


def test_without_replay_the_file_is_small_and_the_loaded_buffer_empty(tmp_path: Path) -> None:
    agent = DQNAgent(Chain(), SMALL, seed=0).learn(60)
    loaded = DQNAgent.load(agent.save(tmp_path / "agent"), Chain())
    assert len(loaded.replay) == 0
    loaded.learn(10)
    assert len(loaded.replay) == 10


def test_a_loaded_agent_does_not_repeat_its_random_streams(tmp_path: Path) -> None:
    """SB3's load re-seeds from the beginning; here the streams go on."""
    agent = DQNAgent("CartPole-v1", replace(SMALL, learning_starts=1000), seed=0)
    agent.learn(200)
    loaded = DQNAgent.load(agent.save(tmp_path / "agent"), "CartPole-v1").learn(200)
    first, second = (a.replay.gather(np.arange(100)) for a in (agent, loaded))
    assert not torch.equal(first.actions, second.actions)
    assert not torch.equal(first.observations[0], second.observations[0])


def test_load_refuses_what_does_not_fit(tmp_path: Path) -> None:
    path = DQNAgent(Chain(), SMALL, seed=0).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"observation_space had shape \(5,\), and has \(4,\)"):
        DQNAgent.load(path, "CartPole-v1")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        DQNAgent.load(path, Chain())


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    DQNAgent(Chain(), SMALL, seed=0).learn(30, progress_bar=True)
    out = capsys.readouterr().out
    assert "30/30 steps" in out
    assert "mean return" in out


@pytest.mark.parametrize("total", [0, -1, 1.5, "10", None, True])
def test_bad_total_timesteps(total: Any) -> None:
    env = Count()
    with pytest.raises(ValueError, match="total_timesteps=.* must be an integer >= 1"):
        DQNAgent(env, SMALL).learn(total)
    assert env.events == []


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="config={'gamma': 1} is not accepted"):
        DQNAgent(Chain(), {"gamma": 1})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed=-1 is not accepted; seed must be an integer >= 0"):
        DQNAgent(Chain(), SMALL, seed=-1)
    with pytest.raises(ValueError, match="device='gpu' is not accepted"):
        DQNAgent(Chain(), SMALL, device="gpu")
    with pytest.raises(gym.error.NameNotFound):
        DQNAgent("NoSuch-v0")


def test_callback_sees_the_agent() -> None:
    seen: list[TrainingStep] = []
    agent = DQNAgent(Chain(), SMALL, seed=0).learn(12, callback=seen.append)
    assert all(step.agent is agent for step in seen)
    assert seen[-1].metrics is not None
    assert seen[-1].metrics.td_error.shape == (4,)


class Tanh(torch.nn.Sequential):
    def __init__(self, space: Any, num_actions: int, config: DQNConfig) -> None:
        (width,) = config.hidden_sizes
        super().__init__(
            torch.nn.Linear(space.shape[0], width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, num_actions),
        )


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    agent = DQNAgent(Chain(), SMALL, network=Tanh, seed=0)
    before = parameters(agent)
    assert [tuple(p.shape) for p in before][-2:] == [(2, 8), (2,)]
    assert equal(parameters(DQNAgent(Chain(), SMALL, network=Tanh, seed=0)), before)
    agent.learn(60)
    assert not equal(parameters(agent), before)
    path = agent.save(tmp_path / "agent")
    loaded = DQNAgent.load(path, Chain(), network=Tanh)
    assert equal(parameters(loaded), parameters(agent))
    with pytest.raises(ValueError, match="network must be the function that made the networks"):
        DQNAgent.load(path, Chain())
    shipped = DQNAgent(Chain(), SMALL, seed=0).save(tmp_path / "shipped")
    with pytest.raises(ValueError, match="network must be None: the networks that were saved"):
        DQNAgent.load(shipped, Chain(), network=Tanh)


def test_a_network_that_does_not_fit() -> None:
    with pytest.raises(TypeError, match=r"network=Linear.* must be a function of an observation"):
        DQNAgent(Chain(), SMALL, network=torch.nn.Linear(1, 2))
    with pytest.raises(TypeError, match=r"network must make a torch.nn.Module; it made None"):
        DQNAgent(Chain(), SMALL, network=lambda *_: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"\(B, A\), here \(2, 2\); it gave \(2, 3\)"):
        DQNAgent(Chain(), SMALL, network=lambda space, n, _: torch.nn.Linear(space.shape[0], n + 1))
