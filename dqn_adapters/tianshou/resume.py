"""Stopping and going on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from tianshou.data import Batch

from dqn_adapters import checkpoint
from dqn_adapters.tianshou.algorithm import DQN
from dqn_adapters.tianshou.buffers import plain

if TYPE_CHECKING:
    from dqn_adapters.tianshou.multi_agent import MultiAgentOffPolicyAlgorithm

    AnyAlgorithm: TypeAlias = DQN[Any] | MultiAgentOffPolicyAlgorithm

KIND = "tianshou"


def save_checkpoint(path: str | Path, algorithm: AnyAlgorithm, collector: Any) -> Path:
    """Save a training between two calls of `run_training`, so that it can go on exactly.

    Saved are the algorithm (networks, optimiser, learning-rate schedulers, counters, epsilon and
    its schedule), the collector's replay buffer with its priorities, and every random stream: of
    the policy, the buffer, torch (dropout draws from it), the environments and their action spaces
    (`collect(random=True)` draws from these). One file, written atomically and without pickle.

    Not saved is where in an episode the environments are: Tianshou resets them at the start of
    every `run_training`, whether it was interrupted or not. State that an environment or its
    wrappers carry from one episode to the next (a running mean of observations) is the user's, and
    so is numpy's global stream, from which Tianshou's own policy and prioritised buffers draw.

    Args:
        path: The file.
        algorithm: What is trained: a `DQN`, or a manager of many agents.
        collector: The training collector.

    Returns:
        The path.

    Raises:
        TypeError: the buffer holds objects that are not numbers, strings, or lists of them.
    """
    state = {
        "configs": [each.config.to_dict() for each in algorithm.learners()],
        "algorithm": dict(algorithm.state_dict()),  # type: ignore[no-untyped-call]
        "buffer": _buffer_state(collector.buffer),
        "collector": {
            name: int(getattr(collector, name)) for name in ("collect_step", "collect_episode")
        },
        "environments": [
            None if generator is None else generator.bit_generator.state
            for generator in _generators(collector.env)
        ],
        "action_spaces": [space.np_random.bit_generator.state for space in collector._action_space],
        "torch": torch.get_rng_state(),
    }
    return checkpoint.save(path, KIND, state)


def load_checkpoint(path: str | Path, algorithm: AnyAlgorithm, collector: Any) -> None:
    """Restore what `save_checkpoint` wrote, into an algorithm and a collector made alike.

    The next `run_training` goes on bit for bit as it would have gone on. Torch's global random
    stream is set, too. Do not call `collector.reset()` behind this: it empties the buffer
    (`reset_buffer=False` does not).

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not such a checkpoint, is damaged, or is newer.
        ValueError: algorithm, its hyper-parameters, buffer or environments do not fit; nothing is
            changed then. (`algorithm.load_state_dict` goes on with other hyper-parameters.)
    """
    state = checkpoint.load(path, KIND)
    buffer, saved = collector.buffer, state["buffer"]
    for name, value in _buffer_kind(buffer).items():
        if saved["kind"][name] != value:
            raise ValueError(
                f"{path} has a buffer of {name}={saved['kind'][name]!r}, this one has {value!r}"
            )
    generators = _generators(collector.env)
    if len(generators) != len(state["environments"]):
        raise ValueError(
            f"{path} has {len(state['environments'])} environments, the collector {len(generators)}"
        )
    _check_configs(path, list(algorithm.learners()), state["configs"])
    algorithm.load_state_dict(state["algorithm"])
    _load_buffer(buffer, saved)
    collector.reset(reset_buffer=False)
    for name, value in state["collector"].items():
        setattr(collector, name, value)
    for i, (generator, stream) in enumerate(zip(generators, state["environments"], strict=True)):
        if generator is not None and stream is not None:
            generator.bit_generator.state = stream
            collector.env.set_env_attr("np_random", generator, id=i)
    for space, stream in zip(collector._action_space, state["action_spaces"], strict=True):
        space.np_random.bit_generator.state = stream
    torch.set_rng_state(state["torch"])


def _check_configs(
    path: str | Path, algorithms: list[DQN[Any]], saved: list[dict[str, Any]]
) -> None:
    if len(saved) != len(algorithms):
        raise ValueError(f"{path} has {len(saved)} algorithms that learn, not {len(algorithms)}")
    for algorithm, config in zip(algorithms, saved, strict=True):
        for name, value in algorithm.config.to_dict().items():
            if config.get(name, value) != value:
                raise ValueError(
                    f"{path} was trained with {name}={config[name]!r}, this algorithm has {value!r}"
                )


def _generators(envs: Any) -> list[np.random.Generator | None]:
    """The random generators of the environments; of an environment in another process, a copy."""
    try:
        found = envs.get_env_attr("np_random")
    except AttributeError:
        found = [None] * len(envs)
    return [g if isinstance(g, np.random.Generator) else None for g in found]


_PART = ("_insertion_idx", "_size", "_ep_len", "_ep_start_idx")
_PRIORITIES = ("_max_prio", "_min_prio", "_beta")


def _buffer_kind(buffer: Any) -> dict[str, Any]:
    parts = len(getattr(buffer, "buffers", [buffer]))
    names = ("stack_num", "ignore_obs_next", "save_only_last_obs", "sample_avail", "alpha")
    options = {name: buffer.options.get(name) for name in names}
    return {"class": type(buffer).__name__, "maxsize": buffer.maxsize, "parts": parts, **options}


def _parts(buffer: Any) -> list[Any]:
    """A vector buffer and its parts, or the buffer alone: each has counters and a stream."""
    return [buffer, *getattr(buffer, "buffers", ())]


def _buffer_state(buffer: Any) -> dict[str, Any]:
    state: dict[str, Any] = {
        "kind": _buffer_kind(buffer),
        "rows": _storable(plain(buffer._meta)),
        "aside": {row: plain(value) for row, value in getattr(buffer, "_aside", {}).items()},
        "parts": [
            {
                **{name: int(getattr(part, name)) for name in _PART},
                "ep_return": float(np.sum(part._ep_return)),
                "last_index": np.array(part.last_index),
                "random": part._random_state.get_state(legacy=False),
            }
            for part in _parts(buffer)
        ],
    }
    if hasattr(buffer, "_lengths"):
        state["lengths"] = np.array(buffer._lengths)
    if hasattr(buffer, "weight"):
        state["priorities"] = {name: float(getattr(buffer, name)) for name in _PRIORITIES}
        state["tree"] = np.array(buffer.weight._value)
    return state


def _load_buffer(buffer: Any, state: dict[str, Any]) -> None:
    buffer.reset()
    buffer._meta = Batch(_restored(state["rows"]))
    if hasattr(buffer, "buffers") and state["rows"]:
        buffer._set_batch_for_children()
    if hasattr(buffer, "_aside"):
        aside = state["aside"].items()
        buffer._aside = {int(k): Batch(v) if isinstance(v, dict) else v for k, v in aside}
    for part, saved in zip(_parts(buffer), state["parts"], strict=True):
        for name in _PART:
            setattr(part, name, saved[name])
        part._ep_return = saved["ep_return"]
        part.last_index = np.array(saved["last_index"])
        part._random_state.set_state(saved["random"])
    if "lengths" in state:
        buffer._lengths = np.array(state["lengths"])
    if "tree" in state:
        buffer.weight._value[:] = state["tree"]
        for name, value in state["priorities"].items():
            setattr(buffer, name, value)


_OBJECTS = "objects"


def _storable(value: Any) -> Any:
    """Arrays of objects or strings, such as names in the infos, as lists."""
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return {_OBJECTS: value.tolist()}
    return value


def _restored(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if value.keys() == {_OBJECTS}:
        array = np.empty(len(value[_OBJECTS]), object)
        array[:] = value[_OBJECTS]
        return array
    return {key: _restored(item) for key, item in value.items()}
