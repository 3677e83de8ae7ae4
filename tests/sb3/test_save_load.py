"""Files: ours, the host's, and each read by the other."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from support import Chain

from dqn_adapters.config import VARIANTS
from dqn_adapters.sb3 import DQN, CoreReplayBuffer

HOST = stable_baselines3.DQN
STATES = np.eye(5, dtype=np.float32)


def q_values(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.q_net(model.policy.obs_to_tensor(STATES)[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loaded_model_acts_the_same_and_goes_on(make: Any, variant: str, tmp_path: Path) -> None:
    model = make(variant=variant, tau=0.7, huber_delta=2.0, exploration_steps=60).learn(90)
    model.save(tmp_path / "model")
    loaded = DQN.load(tmp_path / "model", env=Chain(), device="cpu")
    assert torch.equal(q_values(loaded), q_values(model))
    np.testing.assert_array_equal(
        loaded.predict(STATES, deterministic=True)[0], model.predict(STATES, deterministic=True)[0]
    )
    assert loaded.learner.config == model.learner.config
    assert (
        loaded.learner.counts
        == model.learner.counts
        == {
            "steps": model.num_timesteps,
            "episodes": model._episode_num,
            "updates": model._n_updates,
        }
    )
    moments = [m.policy.optimizer.state_dict()["state"][0]["exp_avg"] for m in (model, loaded)]
    assert torch.equal(*moments)
    target = loaded.policy.state_dict()
    for name, value in model.policy.state_dict().items():
        assert torch.equal(value, target[name]), name
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps == model.num_timesteps + 40
    assert loaded._n_updates == model._n_updates + 10
    assert not torch.equal(q_values(loaded), q_values(model))


def test_the_target_period_goes_on_where_it_was(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(target_update_interval=50, train_freq=1).learn(45).save(tmp_path / "model")
    loaded = DQN.load(tmp_path / "model", env=Chain(), device="cpu")
    steps: list[int] = []
    monkeypatch.setattr(loaded.learner, "sync_target", lambda: steps.append(loaded.num_timesteps))
    loaded.learn(60, reset_num_timesteps=False)
    assert steps == [50, 100]


def test_the_file_holds_no_object_of_ours(make: Any, tmp_path: Path) -> None:
    """So it opens where only the host is installed, and does not age with our classes."""
    make().learn(40).save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        names, data = set(file.namelist()), json.loads(file.read("data"))
    assert {"policy.pth", "policy.optimizer.pth"} <= names
    assert not {"learner", "replay_buffer", "_generator", "_replay_generator"} & set(data)
    types = [value.get(":type:", "") for value in data.values() if isinstance(value, dict)]
    assert types
    assert not [name for name in types if "dqn_adapters" in name]
    assert data["_counts"] == {"steps": 40, "episodes": data["_episode_num"], "updates": 5}


def test_loading_again_changes_no_hyper_parameter(make: Any, tmp_path: Path) -> None:
    """The host's relatives once divided the target period anew at every load."""
    env = make_vec_env(Chain, n_envs=2)
    model = make(env, target_update_interval=50, replay_buffer_kwargs={}, n_steps=3)
    given = {name: value for name, value in vars(model).items() if not name.startswith("_")}
    kept = [
        name for name, value in given.items() if isinstance(value, int | float | str | dict | None)
    ]
    assert {"target_update_interval", "replay_buffer_class", "replay_buffer_kwargs"} <= {*kept}
    for _ in range(2):
        model.save(tmp_path / "model")
        model = DQN.load(tmp_path / "model", env=env, device="cpu")
        assert {name: getattr(model, name) for name in kept} == {name: given[name] for name in kept}


def test_the_n_step_buffer_follows_the_gamma_that_load_is_given(make: Any, tmp_path: Path) -> None:
    """S8, S9: the host warns of a custom buffer here, and leaves it on the old gamma."""
    model = make(n_steps=3, gamma=0.9)
    model.save(tmp_path / "model")
    loaded = DQN.load(tmp_path / "model", env=Chain(), device="cpu", gamma=0.5)
    assert loaded.gamma == loaded.learner.config.gamma == 0.5
    loaded.learn(60)
    discounts = loaded.replay_buffer.sample(500).discounts
    assert {*np.unique(discounts)} == {0.5, 0.25, 0.125}
    host = make(cls=HOST, n_steps=3, gamma=0.9)
    host.save(tmp_path / "host")
    with pytest.warns(UserWarning, match="`n_steps=3` is ignored"):
        loaded = HOST.load(tmp_path / "host", env=Chain(), device="cpu", gamma=0.5)
    assert loaded.replay_buffer.gamma == 0.9
    ours = DQN.load(tmp_path / "host", env=Chain(), device="cpu", gamma=0.5)  # of the host's file
    assert isinstance(ours.replay_buffer, CoreReplayBuffer)
    assert (ours.n_steps, ours.replay_buffer.replay.gamma) == (3, 0.5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_of_the_host_loads_into_ours_and_goes_on(
    make: Any, variant: str, tmp_path: Path
) -> None:
    host = make(cls=HOST).learn(90)
    host.save(tmp_path / "host")
    ours = DQN.load(tmp_path / "host", env=Chain(), device="cpu", variant=variant)
    assert torch.equal(q_values(ours), q_values(host))
    assert ours.learner.counts["steps"] == host.num_timesteps
    ours.learn(40, reset_num_timesteps=False)
    assert ours._n_updates == host._n_updates + 10
    assert not torch.equal(q_values(ours), q_values(host))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_of_ours_loads_into_the_host_and_goes_on(
    make: Any, variant: str, tmp_path: Path
) -> None:
    ours = make(variant=variant).learn(90)
    ours.save(tmp_path / "ours")
    host = HOST.load(tmp_path / "ours", env=Chain(), device="cpu")
    other = make(cls=HOST, seed=9)
    other.set_parameters(tmp_path / "ours", exact_match=True, device="cpu")
    again = make(variant=variant, seed=9)
    again.set_parameters(host.get_parameters(), exact_match=True, device="cpu")
    for model in (host, other, again):
        assert torch.equal(q_values(model), q_values(ours))
        for name, value in ours.policy.state_dict().items():
            assert torch.equal(value, model.policy.state_dict()[name]), name
    host.learn(40)


@pytest.mark.parametrize("saved", VARIANTS)
@pytest.mark.parametrize("wanted", VARIANTS)
def test_a_model_may_be_loaded_as_another_variant(
    make: Any, saved: str, wanted: str, tmp_path: Path
) -> None:
    """The online network is what is kept: a target network that differs is not loaded over it."""
    model = make(variant=saved, target_update_interval=1000).learn(90)
    model.save(tmp_path / "model")
    loaded = DQN.load(tmp_path / "model", env=Chain(), device="cpu", variant=wanted)
    assert torch.equal(q_values(loaded), q_values(model))
    assert (loaded.q_net_target is loaded.q_net) == (wanted == "vanilla")
    loaded.learn(30)


def test_the_hosts_idiom_for_loading_only_to_act(make: Any, tmp_path: Path) -> None:
    make().learn(30).save(tmp_path / "model")
    objects = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0}
    loaded = DQN.load(tmp_path / "model", device="cpu", custom_objects=objects)
    assert loaded.predict(STATES, deterministic=True)[0].shape == (5,)


def test_the_hosts_callbacks_save_and_evaluate(make: Any, tmp_path: Path) -> None:
    model = make()
    checkpoint = CheckpointCallback(40, str(tmp_path), "step", save_replay_buffer=True)
    evaluate = EvalCallback(
        Monitor(Chain()),
        eval_freq=50,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    model.learn(100, callback=CallbackList([checkpoint, evaluate]))
    assert len(np.load(tmp_path / "evaluations.npz")["results"]) == 2
    for name, steps in [("step_40_steps", 40), ("step_80_steps", 80), ("best_model", None)]:
        loaded = DQN.load(tmp_path / name, device="cpu")
        assert steps is None or loaded.num_timesteps == steps
    loaded = DQN.load(tmp_path / "step_80_steps", env=Chain(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "step_replay_buffer_80_steps")
    # The host leaves out the 80th transition, which it stores after its callbacks.
    assert isinstance(loaded.replay_buffer, CoreReplayBuffer)
    assert loaded.replay_buffer.size() == 80
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.replay_buffer.size() == 100


def test_a_replay_buffer_is_saved_with_its_random_stream(make: Any, tmp_path: Path) -> None:
    model = make().learn(60)
    model.save_replay_buffer(tmp_path / "replay")
    other = make(seed=9)
    other.load_replay_buffer(tmp_path / "replay", truncate_last_traj=True)
    assert other.replay_buffer.size() == 60
    for mine, his in zip(other.replay_buffer.sample(8), model.replay_buffer.sample(8), strict=True):
        assert mine is his is None or torch.equal(mine, his)


def test_replay_buffers_of_both_are_loaded_by_both(make: Any, tmp_path: Path) -> None:
    for source, sink in ((make, lambda: make(cls=HOST)), (lambda: make(cls=HOST), make)):
        model = source().learn(60)
        model.save_replay_buffer(tmp_path / "replay")
        other = sink()
        other.load_replay_buffer(tmp_path / "replay")
        other.learn(40)
        assert other.replay_buffer.size() == 100


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_policy_is_saved_alone(make: Any, variant: str, tmp_path: Path) -> None:
    model = make(variant=variant).learn(60)
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy", device="cpu")
    np.testing.assert_array_equal(
        policy.predict(STATES, deterministic=True)[0], model.predict(STATES, deterministic=True)[0]
    )
