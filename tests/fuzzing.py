"""Edits of files whose checksums are right afterwards: what a person may do, and no accident does.

Run as a program, in a process of its own: a crash of it is a failure.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from dqn_adapters import DQNAgent, DQNConfig, checkpoint, load_policy, restore_policy, save_policy
from dqn_adapters.checkpoint import CheckpointError
from dqn_adapters.finite import NonFiniteError

NUMBERS: list[Any] = [
    *(-(2**63), -(2**40), -2, -1, 0, 1, 2, 7, 10**6, 2**31 - 1, 2**31, 2**40, 2**63, 2**70),
    *(0.5, -1.5, 1e300, float("nan"), float("inf"), float("-inf")),
]
OTHERS: list[Any] = [None, True, False, "", "text", "__x", [], {}, [1], {"a": 1}, {0: {}}]


def leaves(state: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a nested state, the inner nodes too."""
    found = [path] if path else []
    if isinstance(state, dict):
        items: Any = state.items()
    else:
        items = enumerate(state) if isinstance(state, list | tuple) else ()
    for key, value in items:
        found += leaves(value, (*path, key))
    return found


def edited_array(value: Any, generator: np.random.Generator) -> Any:
    """An array or a tensor with other elements, another shape or another dtype."""
    array = np.array(value.numpy() if isinstance(value, torch.Tensor) else value)
    kind = generator.integers(5)
    if kind <= 1 and array.size:
        flat = array.reshape(-1)
        number = NUMBERS[generator.integers(len(NUMBERS))]
        places = generator.integers(flat.size, size=1 if kind else max(flat.size // 3, 1))
        with np.errstate(all="ignore"):
            try:
                flat[places] = np.asarray(number).astype(array.dtype)
            except (OverflowError, ValueError, TypeError):
                flat[places] = 1
    elif kind == 2:
        array = array[:-1] if array.ndim and len(array) else array[None]
    elif kind == 3:
        array = array[None] if generator.integers(2) else np.concatenate([array.reshape(-1)] * 2)
    else:
        types = [np.float32, np.float64, np.int64, np.int32, np.uint8, np.bool_]
        with np.errstate(all="ignore"):
            array = array.astype(types[generator.integers(len(types))])
    return torch.from_numpy(array.copy()) if isinstance(value, torch.Tensor) else array


def edited(state: dict[str, Any], generator: np.random.Generator) -> tuple[Any, dict[str, Any]]:
    """The path of an edit, and a copy of the state with it."""
    state = copy.deepcopy(state)
    # Any number of updates for a step is one that may be asked for, and takes its time.
    paths = [path for path in leaves(state) if path[-1] != "gradient_steps"]
    path = paths[generator.integers(len(paths))]
    owner: Any = state
    for key in path[:-1]:
        owner = owner[key]
    if isinstance(owner, tuple):
        return path, state
    value = owner[path[-1]]
    if generator.random() < 0.1 and isinstance(owner, dict):
        del owner[path[-1]]
    elif isinstance(value, np.ndarray | torch.Tensor) and generator.random() < 0.9:
        owner[path[-1]] = edited_array(value, generator)
    elif generator.random() < 0.7:
        owner[path[-1]] = NUMBERS[generator.integers(len(NUMBERS))]
    else:
        owner[path[-1]] = OTHERS[generator.integers(len(OTHERS))]
    return path, state


class Small(gym.Env[Any, int]):
    """Masks, a Dict, episodes of three steps."""

    observation_space = spaces.Dict(
        z=spaces.Box(-1.0, 1.0, (2,), np.float32), phase=spaces.Discrete(3)
    )
    action_space = spaces.Discrete(3)

    def _look(self) -> Any:
        return {"z": np.array([0.1, self.t / 3], np.float32), "phase": np.int64(self.t % 3)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self._look(), {}

    def step(self, action: int) -> Any:
        self.t += 1
        return self._look(), 1.0, self.t == 3 and action == 1, self.t == 3, {}


class Vector(Small):
    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def _look(self) -> Any:
        return np.eye(4, dtype=np.float32)[self.t]


CONFIG = DQNConfig(
    hidden_sizes=(8,),
    buffer_size=30,
    batch_size=8,
    learning_starts=5,
    train_freq=1,
    target_update_interval=7,
    variant="double",
    prioritized_replay=True,
    n_steps=2,
    exploration_steps=20,
)
FRAMES = DQNConfig(**{**CONFIG.to_dict(), "frame_stack": 2})

Format = tuple[str, Callable[[Path], Any], Callable[[Path], Any]]
"""The kind of the file, what writes it, and what opens it and uses what it has opened."""


def native(config: DQNConfig, env: type[Small]) -> Format:
    def write(path: Path) -> None:
        DQNAgent(env(), config, seed=0, device="cpu").learn(50).save(path, replay=True)

    return "agent", write, lambda path: DQNAgent.load(path, env(), device="cpu").learn(10)


def replay_buffer() -> Format:
    def write(path: Path) -> None:
        DQNAgent(Vector(), CONFIG, seed=0, device="cpu").learn(50).replay.save(path)

    agent = DQNAgent(Vector(), CONFIG, seed=1, device="cpu").learn(20)

    def open_it(path: Path) -> None:
        unchanged(
            lambda: agent.replay.state_dict(),
            lambda: agent.replay.load(path, num_actions=3),
        )
        agent.learn(3)

    return "replay", write, open_it


def portable() -> Format:
    def write(path: Path) -> None:
        save_policy(DQNAgent(Small(), CONFIG, seed=0, device="cpu").learn(30), path)

    agent = DQNAgent(Small(), CONFIG, seed=1, device="cpu")

    def open_it(path: Path) -> None:
        load_policy(path)
        unchanged(
            lambda: (agent.learner.state_dict(), agent.num_timesteps),
            lambda: restore_policy(path, agent),
        )
        agent.num_timesteps = 0
        agent.learn(10)

    return "policy", write, open_it


def pettingzoo() -> Format:
    from support_pettingzoo import PARALLEL, ParallelScript

    from dqn_adapters.pettingzoo import MultiAgentDQN, SelfPlay

    config = DQNConfig(**{**CONFIG.to_dict(), "exploration_steps": None})
    play = SelfPlay(past_probability=0.5, snapshot_interval=5)

    def write(path: Path) -> None:
        agent = MultiAgentDQN(ParallelScript([PARALLEL]), config, self_play=play, seed=0)
        agent.learn(60).save(path, replay=True)

    def open_it(path: Path) -> None:
        MultiAgentDQN.load(path, ParallelScript([PARALLEL])).learn(10)

    return "pettingzoo", write, open_it


def tianshou() -> Format:
    from tianshou.data import Collector
    from tianshou.env import DummyVectorEnv
    from tianshou.utils.torch_utils import policy_within_training_step

    from dqn_adapters.networks import seeded_initialization
    from dqn_adapters.tianshou import (
        DQN,
        DQNPolicy,
        QNet,
        load_checkpoint,
        make_buffer,
        save_checkpoint,
        trainer_params,
    )

    def make(seed: int) -> Any:
        with seeded_initialization(seed):
            model = QNet(Small.observation_space, 3, (8,))
        policy = DQNPolicy(
            model=model,
            action_space=Small.action_space,
            observation_space=Small.observation_space,
            seed=seed,
        )
        algorithm = DQN(policy=policy, config=CONFIG)
        envs = DummyVectorEnv([Small] * 2)
        buffer = make_buffer(CONFIG, 2, seed=seed)
        return algorithm, Collector(algorithm, envs, buffer, exploration_noise=True)

    def train(algorithm: Any, collector: Any) -> None:
        params = trainer_params(
            CONFIG, 20, training_collector=collector, verbose=False, show_progress=False
        )
        algorithm.run_training(params)

    def write(path: Path) -> None:
        algorithm, collector = make(0)
        train(algorithm, collector)
        save_checkpoint(path, algorithm, collector)

    def open_it(path: Path) -> None:
        from dqn_adapters.tianshou.resume import _buffer_state

        algorithm, collector = make(1)
        unchanged(
            lambda: (dict(algorithm.state_dict()), _buffer_state(collector.buffer)),
            lambda: load_checkpoint(path, algorithm, collector),
        )
        with policy_within_training_step(algorithm.policy):
            for _ in range(3):
                algorithm.update(collector.buffer, 8)
        collector.collect(n_step=4)

    return "tianshou", write, open_it


FORMATS: dict[str, Callable[[], Format]] = {
    "native": lambda: native(CONFIG, Small),
    "vectors": lambda: native(CONFIG, Vector),
    "frames": lambda: native(FRAMES, Vector),
    "replay": replay_buffer,
    "portable": portable,
    "pettingzoo": pettingzoo,
    "tianshou": tianshou,
    "sb3": lambda: sb3(),
}


def sb3() -> Format:
    """The replay buffer within a full zip."""
    from dqn_adapters.sb3 import DQN
    from dqn_adapters.sb3.resume import _REPLAY

    model = DQN("MlpPolicy", Vector(), **sb3_settings())
    model.learn(50)
    folder = Path(tempfile.mkdtemp())
    model.save(folder / "model.zip", full=True)
    with zipfile.ZipFile(folder / "model.zip") as file:
        parts = {name: file.read(name) for name in file.namelist()}

    def write(path: Path) -> None:
        path.write_bytes(parts[_REPLAY])

    def open_it(path: Path) -> None:
        with zipfile.ZipFile(folder / "edited.zip", "w") as file:
            for name, content in {**parts, _REPLAY: path.read_bytes()}.items():
                file.writestr(name, content)
        try:
            loaded = DQN.load(folder / "edited.zip", env=Vector(), device="cpu")
        except CheckpointError as error:
            if "edited.zip" not in str(error):
                raise  # it is of the file within the zip
            raise CheckpointError(
                str(error).replace(str(folder / "edited.zip"), str(path))
            ) from None
        loaded.learn(10, reset_num_timesteps=False)

    return "replay", write, open_it


def sb3_settings() -> dict[str, Any]:
    return {
        "learning_starts": 5,
        "buffer_size": 30,
        "batch_size": 8,
        "train_freq": 1,
        "prioritized_replay": True,
        "policy_kwargs": {"net_arch": [8]},
        "device": "cpu",
        "seed": 0,
    }


def unchanged(look: Callable[[], Any], change: Callable[[], Any]) -> None:
    """Call `change`; after a refusal what `look` gives must be what it was."""
    before = copy.deepcopy(look())
    try:
        change()
    except ValueError:
        if not same(before, look()):
            raise AssertionError("the target was changed by a file that was refused") from None
        raise


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return bool(a == b)


def run(name: str, count: int, seed: int) -> dict[str, Any]:
    """Edit and open a file `count` times; what went wrong."""
    generator = np.random.default_rng(seed)
    kind, write, open_it = FORMATS[name]()
    wrong: list[str] = []
    refused = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        write(path)
        open_it(path)
        whole = checkpoint.load(path, kind)
        for _ in range(count):
            where, state = edited(whole, generator)
            try:
                checkpoint.save(path, kind, state)
            except TypeError:
                continue
            print(f"{name} {where}", file=sys.stderr, flush=True)  # the last one, after a crash
            try:
                open_it(path)
            except NonFiniteError:
                pass  # weights and moments may be such that the learning diverges, and it says so
            except ValueError as error:
                refused += 1
                if str(path) not in str(error):
                    wrong.append(f"{where}: the file is not named: {error}")
            except BaseException as error:
                wrong.append(f"{where}: {type(error).__name__}: {str(error)[:300]}")
    return {"wrong": wrong, "refused": refused}


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
