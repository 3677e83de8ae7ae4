"""Stopping and going on as if nothing had happened."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tianshou.data import Batch

from dqn_adapters import checkpoint, stored
from dqn_adapters.config import checked_float, rejected
from dqn_adapters.tianshou.algorithm import DQN, seen_space
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
        "collector": {name: int(getattr(collector, name)) for name in _COLLECTED},
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
        CheckpointError: the file is not such a checkpoint, is damaged, is newer, or its content
            does not fit; nothing is changed then.
        ValueError: algorithm, its hyper-parameters, buffer or environments do not fit; nothing is
            changed then. (`algorithm.load_state_dict` goes on with other hyper-parameters.)
    """
    state = checkpoint.load(path, KIND)
    buffer = collector.buffer
    generators = _generators(collector.env)
    with checkpoint.reading(path):
        stored.check_mapping("", state, _STATE)
        saved = stored.check_mapping("buffer", state["buffer"], ("kind", "rows", "aside", "parts"))
        kind = stored.check_mapping("buffer.kind", saved["kind"])
        _check_lists(state)
    for name, value in _buffer_kind(buffer).items():
        if kind.get(name) != value:
            raise ValueError(
                f"{path} has a buffer of {name}={kind.get(name)!r}, this one has {value!r}"
            )
    if len(generators) != len(state["environments"]):
        raise ValueError(
            f"{path} has {len(state['environments'])} environments, the collector {len(generators)}"
        )
    learners = list(algorithm.learners())
    _check_configs(path, learners, state["configs"])
    with checkpoint.reading(path):
        algorithm.fitted_state(stored.check_mapping("algorithm", state["algorithm"]))
        num_actions = max(int(learner.policy.action_space.n) for learner in learners)
        live = check_buffer_state(buffer, saved, num_actions)
        for learner in learners:
            _check_seen(saved["rows"], live, seen_space(learner.policy))
        for generator, stream in zip(generators, state["environments"], strict=True):
            if generator is not None and stream is not None:
                stored.check_generator("environments", stream, generator)
        for space, stream in zip(collector._action_space, state["action_spaces"], strict=True):
            stored.check_generator("action_spaces", stream, space.np_random)
        stored.check_torch_state("torch", state["torch"])
    algorithm.load_state_dict(state["algorithm"])
    _load_buffer(buffer, saved)
    collector.reset(reset_buffer=False)
    for name in _COLLECTED:
        setattr(collector, name, state["collector"][name])
    for i, (generator, stream) in enumerate(zip(generators, state["environments"], strict=True)):
        if generator is not None and stream is not None:
            generator.bit_generator.state = stream
            collector.env.set_env_attr("np_random", generator, id=i)
    for space, stream in zip(collector._action_space, state["action_spaces"], strict=True):
        space.np_random.bit_generator.state = stream
    torch.set_rng_state(state["torch"])


_COLLECTED = ("collect_step", "collect_episode")

_STATE = (
    *("configs", "algorithm", "buffer", "collector", "environments", "action_spaces", "torch"),
)


def _check_lists(state: dict[str, Any]) -> None:
    for name in ("configs", "environments", "action_spaces"):
        if not isinstance(state[name], list):
            raise rejected(name, state[name], "a list")
    for config in state["configs"]:
        stored.check_mapping("configs", config)
    counts = stored.check_mapping("collector", state["collector"], _COLLECTED)
    for name in _COLLECTED:
        stored.check_count(f"collector.{name}", counts[name])


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
_FLAGS = ("terminated", "truncated", "done")
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


def check_buffer_state(buffer: Any, state: dict[str, Any], num_actions: int) -> NDArray[np.bool_]:
    """Raise `ValueError` unless the saved state of a buffer can be restored into a buffer of the
    same kind, whose actions are in 0 .. `num_actions` - 1.

    Returns:
        `(maxsize,)`, the rows in which something is stored.
    """
    maxsize = buffer.maxsize
    rows = stored.check_mapping("buffer.rows", state["rows"])
    if rows:
        _check_rows(rows, maxsize, num_actions, plain(buffer._meta))
    for row, value in stored.check_mapping("buffer.aside", state["aside"]).items():
        stored.check_count("buffer.aside, row", int(row), high=maxsize - 1)
        if not isinstance(value, dict | np.ndarray):
            raise rejected("buffer.aside", value, "an observation")
    parts = _parts(buffer)
    if not isinstance(state["parts"], list) or len(state["parts"]) != len(parts):
        raise ValueError(f"buffer.parts must be {len(parts)}")
    for i, (part, saved) in enumerate(zip(parts, state["parts"], strict=True)):
        _check_part(f"buffer.parts[{i}]", saved, part, maxsize)
    holders = parts[1:] or parts
    sizes = [saved["_size"] for saved in state["parts"]]
    sizes = sizes[1:] or sizes
    if any(sizes) and not rows:
        raise ValueError("buffer.rows is empty, and buffer.parts count rows")
    if hasattr(buffer, "_lengths"):
        own = np.asarray(buffer._lengths)
        lengths = stored.check_array("buffer.lengths", state.get("lengths"), own.shape, own.dtype)
        if lengths.tolist() != sizes:
            raise ValueError(f"buffer.lengths must be {sizes}, got {lengths.tolist()}")
    pairs = zip(holders, sizes, strict=True)
    live: NDArray[np.bool_] = np.concatenate([np.arange(p.maxsize) < size for p, size in pairs])
    if hasattr(buffer, "weight"):
        stored.check_mapping("buffer", state, ("priorities", "tree"))
        priorities = stored.check_mapping("buffer.priorities", state["priorities"], _PRIORITIES)
        for name in _PRIORITIES:
            checked_float(f"buffer.priorities.{name}", priorities[name], open_low=name != "_beta")
        _check_tree(state["tree"], buffer.weight, live)
    return live


def _check_seen(rows: dict[str, Any], live: NDArray[np.bool_], space: Any) -> None:
    """Raise `ValueError` unless what a network sees of the stored observations is in its space."""
    for name in ("obs", "obs_next"):
        values = rows.get(name)
        if isinstance(values, dict) and "obs" in values and "mask" in values:
            values = values["obs"]
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        for key, part in parts.items():
            seen = values.get(key) if isinstance(values, dict) and key else values
            if isinstance(part, spaces.Space) and isinstance(seen, np.ndarray):
                stored.check_values(f"buffer.rows.{name} {key}".rstrip(), seen[live], part)


def _check_rows(rows: dict[str, Any], maxsize: int, num_actions: int, own: Any) -> None:
    stored.check_mapping("buffer.rows", rows, ("obs", "act", "rew", "info", *_FLAGS))
    _check_lengths("buffer.rows", rows, maxsize)
    for name in _FLAGS:
        stored.check_array(f"buffer.rows.{name}", rows[name], (maxsize,), np.bool_)
    for name, kinds in (("act", "iu"), ("rew", "fiu")):
        if not isinstance(rows[name], np.ndarray) or rows[name].dtype.kind not in kinds:
            raise ValueError(f"buffer.rows.{name} must be numbers")
    actions = stored.check_array("buffer.rows.act", rows["act"], (maxsize,), rows["act"].dtype)
    stored.check_range("buffer.rows.act", actions, 0, num_actions - 1)
    stored.check_finite_values("buffer.rows.rew", rows["rew"])
    for name in ("obs", "obs_next"):
        if name in rows:
            _check_alike(f"buffer.rows.{name}", rows[name], (own or {}).get(name, rows["obs"]))


def _check_part(name: str, saved: Any, part: Any, maxsize: int) -> None:
    stored.check_mapping(name, saved, (*_PART, "ep_return", "last_index", "random"))
    highest = {"_insertion_idx": maxsize - 1, "_size": part.maxsize, "_ep_start_idx": maxsize - 1}
    for counter in _PART:
        value = saved[counter]
        if counter in highest:
            stored.check_count(f"{name}.{counter}", value, high=highest[counter])
        else:
            stored.check_count(f"{name}.{counter}", value)
    checked_float(f"{name}.ep_return", saved["ep_return"], low=-math.inf)
    own = np.asarray(part.last_index)
    index = stored.check_array(f"{name}.last_index", saved["last_index"], own.shape, own.dtype)
    stored.check_range(f"{name}.last_index", index, 0, maxsize - 1)
    stored.check_random_state(f"{name}.random", saved["random"])


def _check_lengths(name: str, value: Any, count: int) -> None:
    """Raise `ValueError` unless all arrays in a nested value have so many rows."""
    objects = isinstance(value, dict) and value.keys() == {_OBJECTS}
    if isinstance(value, dict) and not objects:
        for key, item in value.items():
            if not isinstance(key, str):
                raise rejected(f"{name}, a key,", key, "a string")
            _check_lengths(f"{name}.{key}", item, count)
        return
    rows = value[_OBJECTS] if objects else value
    if not isinstance(rows, list if objects else np.ndarray) or np.shape(rows)[:1] != (count,):
        raise ValueError(f"{name} must have {count} rows")


def _check_alike(name: str, value: Any, own: Any) -> None:
    """Raise `ValueError` unless observations have the keys, shapes and dtypes of others."""
    if isinstance(own, dict):
        if stored.check_mapping(name, value).keys() != own.keys():
            raise ValueError(f"{name} has the keys {sorted(value)}, and must have {sorted(own)}")
        for key in own:
            _check_alike(f"{name}.{key}", value[key], own[key])
    elif isinstance(own, np.ndarray) and own.dtype != object:
        stored.check_array(name, value, own.shape, own.dtype)


def _check_tree(values: Any, tree: Any, live: NDArray[np.bool_]) -> None:
    """Raise `ValueError` unless the values are those of a tree of sums over the rows."""
    name = "buffer.tree"
    stored.check_array(name, values, tree._value.shape, tree._value.dtype)
    stored.check_finite_values(name, values)
    if (values < 0).any():
        raise ValueError(f"{name} must be >= 0")
    bound = len(values) // 2
    leaves, sums = values[bound:], values[2:].reshape(-1, 2).sum(axis=1)
    if not np.allclose(values[1:bound], sums, rtol=1e-6):
        raise ValueError(f"{name} must hold the sums of its values")
    if leaves[: len(live)][~live].any() or leaves[len(live) :].any():
        raise ValueError(f"{name} must be 0 where no transition is stored")
    if live.any() and not leaves.sum() > 0:
        raise ValueError(f"{name} must be more than 0 where transitions are stored")


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
