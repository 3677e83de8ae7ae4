"""Exact continuation: what `save(path, full=True)` writes into the host's zip beside the model."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from dqn_adapters import checkpoint, stored
from dqn_adapters.files import replacing
from dqn_adapters.sb3.buffers import CoreReplayBuffer
from dqn_adapters.sb3.vector_env import VectorEnvAdapter

if TYPE_CHECKING:
    from dqn_adapters.sb3.dqn import DQN

_REPLAY, _REST = "dqn_adapters/replay.safetensors", "dqn_adapters/rest.pkl"

_NOT_STATE = frozenset(
    # Windows, files and tables of methods: they belong to the process, not to the episode.
    [
        *("screen", "clock", "surf", "window", "viewer", "renderer"),
        *("results_writer", "class_attributes"),
    ]
)


def save_full(model: DQN, path: Any, save_model: Callable[[Any], None]) -> None:
    """Write the model with everything that exact continuation needs.

    Args:
        model: Not changed.
        path: As `save` of the host takes it; a file is written beside and renamed.
        save_model: Writes the host's zip to a file object.
    """
    archive = io.BytesIO()
    save_model(archive)
    if isinstance(path, str | Path):
        target = Path(path)
        target = target if target.suffix else target.with_suffix(".zip")
        with replacing(target) as written:
            written.write_bytes(archive.getvalue())
            _append(model, written, written.with_name("replay"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            _append(model, archive, Path(folder, "replay"))
        path.write(archive.getvalue())


def _append(model: DQN, archive: Any, replay: Path) -> None:
    """Add to a zip what it lacks; the replay buffer goes through the file `replay`."""
    buffer = model.replay_buffer
    rest = {"random": _random_states(model), **_episode(model)}
    if not isinstance(buffer, CoreReplayBuffer):
        rest["replay_buffer"] = buffer
    with zipfile.ZipFile(archive, "a") as file:
        if isinstance(buffer, CoreReplayBuffer):
            state = {"pos": buffer.pos, "full": buffer.full, "core": buffer.replay.state_dict()}
            file.write(checkpoint.save(replay, "replay", state), _REPLAY)
            replay.unlink()
        file.writestr(_REST, _dumps(rest, []))


def load_full(model: DQN, path: Any, *, required: bool) -> None:
    """Put a loaded model into the state in which `save_full` saved it.

    Raises:
        ValueError: the file says that it is full, or `required`, and a part is missing or
            damaged; or what it has does not fit.
    """
    says_full, model._full = model._full, False
    if not isinstance(path, str | Path):
        path.seek(0)
    with (
        contextlib.ExitStack() as stack,
        tempfile.TemporaryDirectory() as folder,
    ):
        opened = open_path(path, "r", suffix="zip")
        if opened is not path:
            stack.enter_context(opened)
        file = stack.enter_context(zipfile.ZipFile(opened))
        names = file.namelist()
        if not (says_full or required):
            if _REST in names:
                warnings.warn(
                    f"{path} holds {_REST} and does not say that it was saved with full=True, as "
                    "files of version 0.1.0 do not; it is opened without it. Pass full=True if you "
                    "trust the file: its content is then executed",
                    stacklevel=3,
                )
            return
        if _REST not in names:
            if not says_full:
                raise ValueError(f"{path} was not saved with full=True")
            raise ValueError(
                f"{path} is damaged: it was saved with full=True, and {_REST} is missing; "
                "full=False opens the model alone"
            )
        try:
            rest = pickle.loads(file.read(_REST))
            if _REPLAY in names:
                file.extract(_REPLAY, folder)
        except (zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{path} is damaged: {error}; full=False opens the model alone"
            ) from error
        if _REPLAY in names:
            state = checkpoint.load(Path(folder, _REPLAY), "replay")
            with checkpoint.reading(path):
                _load_replay(model, state)
        elif "replay_buffer" not in rest:
            raise ValueError(
                f"{path} is damaged: {_REPLAY} is missing; full=False opens the model alone"
            )
        else:
            model.replay_buffer = rest["replay_buffer"]
            model.replay_buffer.device = model.device
    _set_episode(model, rest)
    buffer = model.replay_buffer
    if isinstance(buffer, HerReplayBuffer) and model.env is not None:
        buffer.set_env(model.env)
        if model._last_obs is None:
            buffer.truncate_last_trajectory()
    _set_random_states(model, rest["random"])


def _load_replay(model: DQN, state: dict[str, Any]) -> None:
    """Restore the replay buffer, or raise `ValueError` and leave it unchanged."""
    buffer = model.replay_buffer
    if not isinstance(buffer, CoreReplayBuffer):
        raise ValueError(
            f"it holds a CoreReplayBuffer, the model has a {type(buffer).__name__}; "
            "load it with full=False"
        )
    stored.check_mapping("replay", state, ("pos", "full", "core"))
    core = stored.check_mapping("replay.core", state["core"], ("last",))
    if np.shape(core["last"]) != (buffer.n_envs,):
        raise ValueError(
            f"its replay buffer is of {np.size(core['last'])} environments, and here are "
            f"{buffer.n_envs}; load it with full=False"
        )
    pos = stored.check_count("replay.pos", state["pos"], high=buffer.buffer_size - 1)
    full = stored.check_bool("replay.full", state["full"])
    buffer.replay.load_state_dict(core, int(model.action_space.n))
    buffer.pos, buffer.full = pos, full


def _random_states(model: DQN) -> dict[str, Any]:
    """The streams that are not the model's own: the host's, which networks with dropout, other
    replay buffers and environments may draw from."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - the host and its buffers draw from it
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if model.device.type == "cuda" else None,
        "actions": model.action_space.np_random.bit_generator.state,
        "resets": model._resets_generator.bit_generator.state,
    }


def _set_random_states(model: DQN, states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and model.device.type == "cuda":
        torch.cuda.set_rng_state_all(states["cuda"])
    model.action_space.np_random.bit_generator.state = states["actions"]
    model._resets_generator.bit_generator.state = states["resets"]


def _episode(model: DQN) -> dict[str, Any]:
    """Where the environments are, and what was last seen of them."""
    environments = None
    if model.env is not None and model._last_obs is not None:
        try:
            environments = environment_state(model.env)
        except _NotSaved as error:
            warnings.warn(
                f"{error}; a training that goes on from the file begins a new episode",
                stacklevel=5,
            )
    names = ("_last_obs", "_last_original_obs", "_last_episode_starts", "_action_masks")
    return {"environments": environments, "seen": {name: getattr(model, name) for name in names}}


def _set_episode(model: DQN, rest: dict[str, Any]) -> None:
    state = rest["environments"]
    if state is None or model.env is None:
        model._last_obs = None  # the next `learn` begins a new episode
        return
    given, saved = _names(model.env), state["names"]
    if given != saved:
        warnings.warn(
            f"the file was saved with environments of {saved}, and is loaded with {given}; a "
            "training that goes on begins a new episode",
            stacklevel=4,
        )
        model._last_obs = None
        return
    set_environment_state(model.env, state)
    for name, value in rest["seen"].items():
        setattr(model, name, value)


class _NotSaved(Exception):
    """The state of an environment cannot be saved; the message says why."""


def environment_state(env: VecEnv) -> dict[str, Any]:
    """All attributes of the environments and of the wrappers around them.

    Raises:
        _NotSaved: they live in other processes, or something in them cannot be pickled.
    """
    layers = _layers(env)
    states = [
        {name: value for name, value in vars(layer).items() if name not in _NOT_STATE}
        for layer in layers
    ]
    try:
        return {"names": _names(env), "layers": _dumps(states, layers)}
    except Exception as error:  # whatever an environment's own pickling raises
        raise _NotSaved(f"the state of {_names(env)[-1]} cannot be saved: {error}") from error


def set_environment_state(env: VecEnv, state: dict[str, Any]) -> None:
    """Restore what `environment_state` gave into environments that are built alike."""
    layers = _layers(env)
    unpickler = _Unpickler(io.BytesIO(state["layers"]))
    unpickler.layers = layers
    for layer, attributes in zip(layers, unpickler.load(), strict=True):
        vars(layer).update(attributes)


def _names(env: VecEnv) -> list[str]:
    return [type(layer).__qualname__ for layer in _layers(env)]


def _layers(env: Any) -> list[Any]:
    """The objects that an environment consists of, from the outermost inwards.

    Raises:
        _NotSaved: they live in other processes.
    """
    found = [env]
    while isinstance(env, VecEnvWrapper):
        env = env.venv
        found.append(env)
    if isinstance(env, VectorEnvAdapter):
        found.append(env.stepper)
        env = env.env
        found.append(env)
        while isinstance(env, gym.vector.VectorWrapper):
            env = env.env
            found.append(env)
    if not hasattr(env, "envs"):
        return found
    for one in env.envs:
        found.append(one)
        while isinstance(one, gym.Wrapper):
            one = one.env
            found.append(one)
    return found


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles attributes of layers; a layer itself is written as its number."""

    numbers: dict[int, int]

    def persistent_id(self, value: Any) -> Any:
        return self.numbers.get(id(value))


class _Unpickler(pickle.Unpickler):
    layers: list[Any]

    def persistent_load(self, number: int) -> Any:
        return self.layers[number]


def _dumps(value: Any, layers: list[Any]) -> bytes:
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.numbers = {id(layer): number for number, layer in enumerate(layers)}
    pickler.dump(value)
    return file.getvalue()
