"""What Stable-Baselines3 gets wrong, run beside ours: the names are those of `docs/sb3.md`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import Chain, Count

from dqn_adapters.config import VARIANTS
from dqn_adapters.finite import NonFiniteError
from dqn_adapters.sb3 import DQN

HOST = stable_baselines3.DQN


def stored_steps(model: Any) -> list[tuple[float, float]]:
    """(t of s, t of s') of every stored transition of a `Count`."""
    buffer, size = model.replay_buffer, model.replay_buffer.size()
    t = (buffer.observations[:size, 0, 1], buffer.next_observations[:size, 0, 1])
    return [*zip(*(part.tolist() for part in t), strict=True)]


def stopped_at(step: int) -> Any:
    return lambda names, _: names["self"].num_timesteps != step


@pytest.mark.parametrize("variant", VARIANTS)
def test_s2_a_callback_that_ends_the_training_loses_and_falsifies_nothing(
    make: Any, variant: str
) -> None:
    def run(cls: Any, **settings: Any) -> Any:
        model = make(Count(lengths=(50,)), cls=cls, train_freq=4, **settings)
        model.learn(100, callback=stopped_at(5))
        return model.learn(5, reset_num_timesteps=False)

    ours, host = run(DQN, variant=variant), run(HOST)
    assert stored_steps(ours)[:6] == [(t, t + 1) for t in range(6)]
    assert stored_steps(host)[3:6] == [(3, 4), (4, 6), (6, 7)]  # 4 -> 5 lost, 4 -> 6 false


def test_s2_the_phase_of_training_goes_on_where_it_was(make: Any) -> None:
    model = make(learning_starts=0, train_freq=4, gradient_steps=1)
    model.learn(100, callback=stopped_at(6))
    assert (model.num_timesteps, model._n_updates, model._n_calls) == (6, 1, 6)
    model.learn(1, reset_num_timesteps=False)
    assert (model.num_timesteps, model._n_updates) == (8, 2)
    stopped = make(learning_starts=0, train_freq=4)
    stopped.learn(100, callback=stopped_at(8))
    assert stopped._n_updates == 1
    stopped.learn(1, reset_num_timesteps=False)  # the update that was due comes first
    assert (stopped.num_timesteps, stopped._n_updates) == (12, 3)


def test_s3_loading_does_not_begin_the_random_streams_again(make: Any, tmp_path: Path) -> None:
    def warm_up_actions(cls: Any) -> list[np.ndarray]:
        model = make(cls=cls, learning_starts=1000, seed=4)
        parts = []
        for _ in range(3):
            model.replay_buffer.reset()
            model.learn(60)
            parts.append(np.array(model.replay_buffer.actions[:60]).ravel())
            model.save(tmp_path / "model")
            model = cls.load(tmp_path / "model", env=Chain(), device="cpu")
        return parts

    host, ours = warm_up_actions(HOST), warm_up_actions(DQN)
    assert (host[0] == host[1]).all()
    assert (host[0] == host[2]).all()
    agreement = [(ours[i] == ours[j]).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert max(agreement) < 0.8
    np.testing.assert_array_equal(ours, warm_up_actions(DQN))  # and are the same in every run


def test_s3_another_seed_and_a_file_of_the_host(make: Any, tmp_path: Path) -> None:
    model = make(seed=4).learn(40)
    model.save(tmp_path / "model")
    fresh = make(seed=7)._generator.random()
    assert DQN.load(tmp_path / "model", env=Chain(), seed=7)._generator.random() == fresh
    make(cls=HOST, seed=4).learn(40).save(tmp_path / "host")
    draws = {DQN.load(tmp_path / "host", env=Chain())._generator.random() for _ in range(2)}
    assert len(draws) == 1
    assert draws != {make(seed=4)._generator.random()}


class Far(gym.Env[Any, int]):
    """Small observations, but 1000 at the time limit."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action: int) -> Any:
        self.t += 1
        obs = self.np_random.normal(size=2) if self.t < 20 else np.full(2, 1000.0)
        return obs.astype(np.float32), 1.0, False, self.t == 20, {}


class FarDict(Far):
    observation_space = spaces.Dict({"x": Far.observation_space})

    def reset(self, **kwargs: Any) -> Any:
        return {"x": super().reset(**kwargs)[0]}, {}

    def step(self, action: int) -> Any:
        obs, *rest = super().step(action)
        return {"x": obs}, *rest


def test_s5_the_state_at_a_time_limit_is_stored_as_it_was(make: Any) -> None:
    def largest(cls: Any, env: Any = Far, **settings: Any) -> float:
        model = make(
            VecNormalize(DummyVecEnv([env]), clip_obs=5.0), cls=cls, learning_starts=50, **settings
        )
        next_observations = model.learn(45).replay_buffer.next_observations
        part = next_observations["x"] if isinstance(next_observations, dict) else next_observations
        return float(part.max())

    assert largest(DQN) == 1000.0
    assert largest(DQN, FarDict, policy="MultiInputPolicy") == 1000.0
    assert largest(HOST) < 100.0


def test_s5_the_environment_is_left_as_it_was(make: Any) -> None:
    inner = DummyVecEnv([Far])
    env = VecNormalize(inner)
    make(env).learn(45)
    assert env.venv is inner


class Broken(Chain):
    """Gives NaN where it is told to, at the 30th step."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.total = where, 0

    def step(self, action: int) -> Any:
        obs, reward, terminated, truncated, info = super().step(action)
        self.total += 1
        if self.total == 30:
            if self.where == "reward":
                reward = float("nan")
            elif self.where == "observation":
                obs = obs * np.nan
                terminated = truncated = False
            else:
                obs, truncated = obs * np.nan, True
        return obs, reward, terminated, truncated, info


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("where", ["reward", "observation", "final observation"])
def test_s11_what_is_not_finite_is_named_before_it_is_learned(
    make: Any, weights: Any, tmp_path: Path, where: str, normalised: bool
) -> None:
    def env() -> Any:
        inner = DummyVecEnv([Chain, lambda: Broken(where)])
        return VecNormalize(inner) if normalised else inner

    model = make(env())
    with pytest.raises(NonFiniteError, match=f"^the {where} at step 59 of environment 1 is nan"):
        model.learn(400)
    assert model.num_timesteps == 58
    assert torch.isfinite(weights(model.policy)).all()
    if normalised:
        assert np.isfinite(model.get_vec_normalize_env().ret_rms.var)
        assert np.isfinite(model.get_vec_normalize_env().obs_rms.var).all()
    model.save(tmp_path / "last")
    DQN.load(tmp_path / "last", env=DummyVecEnv([Chain, Chain]), device="cpu").learn(40)


def test_s11_the_host_goes_on_with_a_destroyed_network(make: Any, weights: Any) -> None:
    host = make(Broken("reward"), cls=HOST, batch_size=64).learn(300)
    assert torch.isnan(weights(host.q_net)).any()
    assert {*host.predict(np.eye(5, dtype=np.float32), deterministic=True)[0]} == {0}


@pytest.mark.parametrize("variant", VARIANTS)
def test_s11_a_loss_that_diverged_is_named_before_the_step(
    make: Any, weights: Any, variant: str
) -> None:
    model = make(variant=variant, loss="mse", max_grad_norm=None).learn(40)
    with torch.no_grad():
        model.q_net.q_net[-1].weight.mul_(1e30)
    before = weights(model.q_net)
    with pytest.raises(NonFiniteError, match="the loss of gradient update"):
        model.learn(40, reset_num_timesteps=False)
    assert torch.equal(before, weights(model.q_net))


def test_epsilon_never_jumps_back(make: Any, tmp_path: Path) -> None:
    """S4, S12 of the schedule: the host stretches it over the new total."""

    def epsilons(cls: Any) -> list[float]:
        seen: list[float] = []

        def look(names: Any, _: Any) -> bool:
            seen.append(names["self"].exploration_rate)
            return True

        model = make(cls=cls, exploration_fraction=0.2).learn(100, callback=look)
        model.save(tmp_path / "model")
        model = cls.load(tmp_path / "model", env=Chain(), device="cpu")
        model.learn(900, callback=look, reset_num_timesteps=False)
        return seen[1:]

    host, ours = epsilons(HOST), epsilons(DQN)
    assert ours[:99] == host[:99]
    assert (np.diff(host) > 0.3).any()
    assert (np.diff(ours) <= 0).all()


def test_a_checkpoint_holds_the_step_that_it_counts(make: Any, tmp_path: Path) -> None:
    """S4: within a callback the host has counted a step that it has not stored."""

    class Save(stable_baselines3.common.callbacks.BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 30:
                self.model.save(tmp_path / "model")
                self.model.save_replay_buffer(tmp_path / "replay")
            return True

    for cls, size in ((DQN, 30), (HOST, 29)):
        make(cls=cls).learn(40, callback=Save())
        data, *_ = load_from_zip_file(tmp_path / "model")
        assert data["num_timesteps"] == 30
        model = make(cls=cls)
        model.load_replay_buffer(tmp_path / "replay")
        assert model.replay_buffer.size() == size


def test_several_environments_need_a_frequency_in_steps(make: Any) -> None:
    with pytest.raises(ValueError, match="train_freq must count steps"):
        make(make_vec_env(Chain, 2), train_freq=(1, "episode")).learn(10)
