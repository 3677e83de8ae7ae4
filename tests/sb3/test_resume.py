"""Exact continuation: training 2N steps is training N, saving, loading in a new process, N more."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch

from dqn_adapters.sb3 import DQN

SCRIPT = '''
import hashlib, json, pickle, random, sys
import gymnasium as gym, numpy as np, torch
sys.path.insert(0, {tests!r})
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from support import Chain
from dqn_adapters.sb3 import DQN

class Dropout(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.ReLU(), torch.nn.Dropout(0.2))

def vector():
    return gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)

CASES = {{
    "plain": (lambda: Chain(), {{}}),
    "cartpole": (lambda: gym.make("CartPole-v1"), dict(prioritized_replay=True, n_steps=3)),
    "vanilla": (lambda: Chain(), dict(variant="vanilla", dueling=True)),
    "dropout": (lambda: Chain(), dict(policy_kwargs=dict(activation_fn=Dropout, net_arch=[16]))),
    "normalised": (
        lambda: VecNormalize(VecFrameStack(make_vec_env("CartPole-v1", 2), 2)),
        dict(frame_stack=2, variant="double"),
    ),
    "vector": (vector, dict(variant="double")),
    "dict": (
        lambda: SimpleMultiObsEnv(random_start=True, discrete_actions=True),
        dict(policy="MultiInputPolicy", policy_kwargs=None, buffer_size=100),
    ),
    "hindsight": (
        lambda: BitFlippingEnv(n_bits=3, continuous=False),
        dict(policy="MultiInputPolicy", policy_kwargs=None, replay_buffer_class=HerReplayBuffer),
    ),
}}
SETTINGS = dict(policy="MlpPolicy", learning_rate=1e-2, learning_starts=20, batch_size=16,
    buffer_size=500, target_update_interval=30, tau=0.7, seed=3, device="cpu",
    policy_kwargs=dict(net_arch=[16]), exploration_fraction=0.9)

def digest(value):
    return hashlib.sha256(pickle.dumps(value)).hexdigest()

def look(model):
    """Everything that the next step depends on, as digests."""
    buffer = model.replay_buffer
    arrays = getattr(buffer, "replay", None)
    state = arrays.state_dict() if arrays is not None else {{
        "rewards": buffer.rewards[: buffer.pos], "actions": buffer.actions[: buffer.pos]}}
    def flat(value):
        if isinstance(value, dict):
            return {{k: flat(v) for k, v in value.items()}}
        return value.tobytes() if isinstance(value, np.ndarray) else value
    weights = {{k: v.numpy().tobytes() for k, v in model.policy.state_dict().items()}}
    optimizer = [
        {{k: torch.as_tensor(v).numpy().tobytes() for k, v in s.items()}}
        for s in model.policy.optimizer.state_dict()["state"].values()
    ]
    return {{
        "parameters": digest(weights),
        "optimizer": digest(optimizer),
        "replay": digest(flat(state)),
        "epsilon": model.exploration_rate,
        "counters": [model.num_timesteps, model._n_updates, model._episode_num, model._n_calls,
                     *model.learner.counts.values()],
        "streams": digest([model._generator.random(), model._replay_generator.random(),
                           torch.rand(1).item(), random.random(), np.random.rand()]),
        "observation": digest(flat(model._last_obs)),
    }}

class Stop(BaseCallback):
    def __init__(self, at, path):
        super().__init__()
        self.at, self.path = at, path
    def _on_step(self):
        if self.num_timesteps < self.at:
            return True
        if self.path:
            self.model.save(self.path, full=True)
        return False

def run(case, how, path):
    env, settings = CASES[case]
    np.random.seed(how == "load")  # one environment draws its pictures when it is made
    settings = {{**SETTINGS, **settings}}
    policy = settings.pop("policy")
    total, half = 160, 90  # half of it within an episode, and 90 is within a phase of train_freq
    if how == "load":
        model = DQN.load(path, env=env(), device="cpu")
        return look(model.learn(total - model.num_timesteps, reset_num_timesteps=False))
    model = DQN(policy, env(), **settings)
    if how == "straight":
        return look(model.learn(total))
    if how == "checkpoint":
        model.learn(total, callback=Stop(half, path))
    else:
        model.learn(total, callback=Stop(half, None))
        model.save(path, full=True)

result = {{case: run(case, sys.argv[1], f"{{sys.argv[2]}}/{{case}}") for case in CASES}}
print(json.dumps(result))
'''


def run(how: str, folder: Path) -> Any:
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, how, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run("straight", tmp_path_factory.mktemp("straight"))


@pytest.mark.parametrize("how", ["checkpoint", "save"])
def test_a_training_goes_on_bit_for_bit_in_a_new_process(
    straight: Any, tmp_path: Path, how: str
) -> None:
    """Saved within an episode: by a callback in the middle of `learn`, or after it was ended."""
    run(how, tmp_path)
    resumed = run("load", tmp_path)
    for case, parts in straight.items():
        for part, value in parts.items():
            assert resumed[case][part] == value, (case, part)


def test_the_host_opens_a_full_file_and_a_full_file_can_be_loaded_alone(
    make: Any, tmp_path: Path
) -> None:
    model = make().learn(60)
    model.save(tmp_path / "full", full=True)
    assert [*tmp_path.iterdir()] == [tmp_path / "full.zip"]
    host = stable_baselines3.DQN.load(tmp_path / "full", device="cpu")
    states = torch.eye(5)
    assert torch.equal(host.q_net(states), model.q_net(states))
    alone = DQN.load(tmp_path / "full", env=model.get_env(), device="cpu", full=False)
    assert alone.replay_buffer.size() == 0
    acting = DQN.load(tmp_path / "full", device="cpu")
    assert acting.replay_buffer.size() == 60
    model.save(tmp_path / "plain")
    with pytest.raises(ValueError, match="was not saved with full=True"):
        DQN.load(tmp_path / "plain", device="cpu", full=True)


def rewrite(path: Path, *, without: str = "", extra: dict[str, bytes] | None = None) -> None:
    """The zip without one of its files, and with others."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist() if name != without}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in {**parts, **(extra or {})}.items():
            file.writestr(name, content)


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("the file was executed",)


REST, REPLAY = "dqn_adapters/rest.pkl", "dqn_adapters/replay.safetensors"


@pytest.mark.parametrize("missing", [REST, REPLAY])
def test_a_full_file_that_lost_a_part_is_refused(make: Any, tmp_path: Path, missing: str) -> None:
    path, model = tmp_path / "model.zip", make().learn(60)
    model.save(path, full=True)
    rewrite(path, without=missing)
    with pytest.raises(ValueError, match=rf"is damaged: .*{missing} is missing; full=False"):
        DQN.load(path, device="cpu")
    alone = DQN.load(path, device="cpu", full=False)
    assert alone.num_timesteps == 60
    alone.save(path)
    assert DQN.load(path, device="cpu").num_timesteps == 60  # a plain one of a full one is plain


def test_what_is_planted_in_a_plain_file_is_not_executed(make: Any, tmp_path: Path) -> None:
    path, model = tmp_path / "model.zip", make().learn(60)
    model.save(path)
    rewrite(path, extra={REST: pickle.dumps(Bomb())})
    with pytest.warns(UserWarning, match="does not say that it was saved with full=True"):
        loaded = DQN.load(path, device="cpu")
    assert loaded.replay_buffer.size() == 0
    model.save(path, full=True)
    rewrite(path, without=REST, extra={REST: pickle.dumps(Bomb())})
    assert DQN.load(path, device="cpu", full=False).num_timesteps == 60


def test_a_replay_buffer_of_other_environments_is_refused(make: Any, tmp_path: Path) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv
    from support import Chain

    path, model = tmp_path / "model.zip", make(DummyVecEnv([Chain] * 3)).learn(60)
    model.save(path, full=True)
    with pytest.raises(ValueError, match=r"is of 3 environments, and here are 1; load.*full=False"):
        DQN.load(path, env=Chain(), device="cpu")
    assert DQN.load(path, env=Chain(), device="cpu", full=False).replay_buffer.size() == 0


def test_a_full_file_may_be_a_file_object(make: Any, tmp_path: Path) -> None:
    model = make().learn(60)
    with open(tmp_path / "model.zip", "w+b") as file:
        model.save(file, full=True)
        file.seek(0)
        loaded = DQN.load(file, device="cpu")
    assert loaded.replay_buffer.size() == 60


def test_other_environments_begin_a_new_episode_and_say_so(make: Any, tmp_path: Path) -> None:
    from gymnasium.wrappers import TimeLimit
    from support import Chain

    model = make().learn(60)
    model.save(tmp_path / "model", full=True)
    with pytest.warns(UserWarning, match="begins a new episode"):
        loaded = DQN.load(tmp_path / "model", env=TimeLimit(Chain(), 5), device="cpu")
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 80


def test_what_cannot_be_saved_of_an_environment_is_said(make: Any, tmp_path: Path) -> None:
    from support import Chain

    env = Chain()
    env.handle = (i for i in range(3))  # a generator cannot be pickled
    model = make(env).learn(60)
    with pytest.warns(UserWarning, match="cannot be saved: .*generator"):
        model.save(tmp_path / "model", full=True)
    loaded = DQN.load(tmp_path / "model", env=Chain(), device="cpu")
    assert loaded._last_obs is None
    assert np.array_equal(loaded.replay_buffer.actions, model.replay_buffer.actions)
    loaded.learn(20, reset_num_timesteps=False)
