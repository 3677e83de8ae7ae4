"""One policy, any library: a trained Q-network in one file that every adapter opens.

    save_policy(model, "policy.safetensors")  # a DQNAgent, an SB3 model, a Tianshou algorithm
    act = load_policy("policy.safetensors")  # without any of them
    action = act(observation)
    restore_policy("policy.safetensors", other)  # into one of another library; it trains on

The file is a checkpoint (see `checkpoint`): safetensors and JSON, nothing in it is executed. It
holds the network as the core's `QNetwork` for an observation space, the target network, and if it
is wanted the optimiser. A network that computes anything else than a `QNetwork` is refused when it
is saved: the Q-values must be the same to the last bit.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from torch import nn

from dqn_adapters import checkpoint
from dqn_adapters.agent import resolve_device
from dqn_adapters.checkpoint import CheckpointError
from dqn_adapters.config import DQNConfig
from dqn_adapters.environments import ObservationView, as_masks
from dqn_adapters.exploration import check_action_masks
from dqn_adapters.finite import NonFiniteError, check_finite
from dqn_adapters.networks import DuelingHead, QNetwork, seeded_initialization
from dqn_adapters.targets import greedy_actions
from dqn_adapters.transition import map_arrays, to_tensor, to_tensors

KIND = "policy"


class Policy:
    """A greedy policy over a Q-network, without an environment, an agent or a library.

    Made by `load_policy`. Calling it gives the actions.
    """

    def __init__(
        self,
        q_net: QNetwork,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
    ) -> None:
        self.q_net = q_net.requires_grad_(False).eval()
        self.observation_space = observation_space
        """Of one observation, without a mask of actions."""
        self.action_space = action_space
        self._view = ObservationView(observation_space, int(action_space.n))

    def q_values(self, observations: Any) -> NDArray[np.float32]:
        """Observations `(B, ...)`, or a dictionary of such, to action values `(B, A)`.

        Raises:
            NonFiniteError: an observation is NaN or infinite.
        """
        device = next(self.q_net.parameters()).device
        arrays = self._view.arrays(observations)
        check_finite("observations", arrays, where="row")
        values: NDArray[np.float32] = self.q_net(to_tensors(arrays, device)).cpu().numpy()
        return values

    def __call__(
        self, observation: Any, *, action_masks: ArrayLike | None = None
    ) -> int | NDArray[np.int64]:
        """The best legal action of an observation, or those of a batch of them.

        Args:
            observation: One, of `observation_space`, or a batch `(B, ...)`.
            action_masks: `(A,)` or `(B, A)`, 1 or True where an action is legal.

        Returns:
            An action of `action_space`, or `(B,)` of them.

        Raises:
            ValueError: the observation or the mask has another shape, or no action is legal.
            NonFiniteError: an observation is NaN or infinite.
        """
        arrays = self._view.arrays(observation)
        batched = self._is_batch(arrays)
        if not batched:
            arrays = map_arrays(lambda array: array[None], arrays)
        q_values = torch.from_numpy(self.q_values(arrays))
        masks = None
        if action_masks is not None:
            rows = np.asarray(action_masks)
            legal = as_masks(rows if batched else rows[None], tuple(q_values.shape))
            check_action_masks(legal, *legal.shape)
            masks = to_tensor(legal)
        actions: NDArray[np.int64] = greedy_actions(q_values, masks).numpy()
        actions = actions + self.action_space.start
        return actions if batched else int(actions[0])

    def _is_batch(self, arrays: Any) -> bool:
        space = self.observation_space
        parts = dict(space.items()) if isinstance(space, spaces.Dict) else {"observation": space}
        leaves = arrays if isinstance(arrays, dict) else {"observation": arrays}
        batched = {name: leaves[name].ndim > len(part.shape or ()) for name, part in parts.items()}
        for name, part in parts.items():
            shape = part.shape or ()
            if leaves[name].shape[batched[name] :] != shape or len({*batched.values()}) > 1:
                raise ValueError(
                    f"{name} must have shape {shape}, or (B, ...) for B of them, "
                    f"got {leaves[name].shape}"
                )
        return any(batched.values())


def save_policy(source: Any, path: str | Path, *, optimizer: bool = True) -> Path:
    """Save the policy of a trained agent to one file that every library opens.

    Args:
        source: A `DQNAgent`, a DQN model of Stable-Baselines3 (its own, or this package's), or an
            algorithm or policy of Tianshou (likewise).
        path: The file.
        optimizer: Save the optimiser's state, with which training goes on. A policy alone has none.

    Returns:
        The path.

    Raises:
        TypeError: `source` is none of these.
        ValueError: its network computes something else than a `QNetwork` over its observation
            space, so its Q-values would not be the same elsewhere; the message says what to do.
    """
    parts = _parts(source)
    q_net = _as_core(parts)
    space, actions = parts.observation_space, parts.action_space
    state: dict[str, Any] = {
        "observation_space": _space_to_dict(space),
        "action_space": _space_to_dict(actions),
        "hidden_sizes": _hidden_sizes(q_net),
        "dueling": any(isinstance(module, DuelingHead) for module in q_net.modules()),
        "q_net": q_net.state_dict(),
        "target_net": None,
        "optimizer": None,
        "config": None if parts.config is None else parts.config.to_dict(),
        "counts": parts.counts,
    }
    if parts.target_net is not None and parts.target_net is not parts.q_net:
        state["target_net"] = _filled(copy.deepcopy(q_net), parts.target_net).state_dict()
    if optimizer and parts.optimizer is not None:
        state["optimizer"] = {
            "class": type(parts.optimizer).__name__,
            "state": parts.optimizer.state_dict(),
        }
    return checkpoint.save(path, KIND, state)


def load_policy(path: str | Path, *, device: torch.device | str = "cpu") -> Policy:
    """Open what `save_policy` wrote, as a plain callable: observation to action.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a policy of ours, is damaged, or is newer.
        ValueError: there is no such device.
    """
    return _policy(_load(path), path, resolve_device(device))


def load_config(path: str | Path) -> DQNConfig:
    """The hyper-parameters that a saved policy was trained with, its network's layers among them;
    the defaults where its library told none. Raises as `load_policy`."""
    state = _load(path)
    config = DQNConfig() if state["config"] is None else DQNConfig.from_dict(state["config"])
    sizes = tuple(state["hidden_sizes"])
    return dataclasses.replace(config, hidden_sizes=sizes, dueling=state["dueling"])


def restore_policy(path: str | Path, target: Any, *, optimizer: bool = True) -> Any:
    """Put a saved policy into an agent of any library, whose training then goes on from it.

    Restored are the network, the target network (the network itself, where none was saved), the
    optimiser's state if the file has it, and the counts of environment steps, episodes and updates.
    Hyper-parameters, replay buffer and environment are the target's own.

    Args:
        path: A file of `save_policy`.
        target: As `save_policy`'s source. Its network must be of the saved architecture.
        optimizer: Restore the optimiser's state; False leaves it as it is.

    Returns:
        The target.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a policy of ours, is damaged, or is newer.
        ValueError: spaces, network or optimiser do not fit. In every case the target is unchanged.
    """
    state = _load(path)
    parts = _parts(target)
    saved = _policy(state, path, parts.device)
    for name in ("observation_space", "action_space"):
        mine, theirs = getattr(saved, name), getattr(parts, name)
        if mine != theirs:
            raise ValueError(f"{path} has the {name} {mine}, and the target {theirs}")
    shapes = [tuple(p.shape) for p in parts.q_net.parameters()]
    wanted = [tuple(p.shape) for p in saved.q_net.parameters()]
    if shapes != wanted:
        raise ValueError(
            f"{path} has a network of hidden_sizes={tuple(state['hidden_sizes'])}, "
            f"dueling={state['dueling']}; the target's has other layers: {shapes}, not {wanted}"
        )
    _check_same(saved.q_net, _filled(copy.deepcopy(parts.q_net), saved.q_net), parts)
    optimizing = optimizer and state["optimizer"] is not None and parts.optimizer is not None
    if optimizing:
        kind = type(parts.optimizer).__name__
        if state["optimizer"]["class"] != kind:
            raise ValueError(
                f"{path} has the state of {state['optimizer']['class']}, and the target's "
                f"optimiser is {kind}: pass optimizer=False to begin it anew"
            )
        _load_optimizer(parts.optimizer, state["optimizer"]["state"], path)
    _filled(parts.q_net, saved.q_net)
    if parts.target_net is not None and parts.target_net is not parts.q_net:
        lagged = copy.deepcopy(saved.q_net)
        if state["target_net"] is not None:
            lagged.load_state_dict(state["target_net"])
        _filled(parts.target_net, lagged)
    if parts.counts is not None and state["counts"] is not None:
        parts.counts.update(state["counts"])
        if hasattr(target, "num_timesteps"):
            target.num_timesteps = state["counts"]["steps"]
    return target


@dataclasses.dataclass
class _Parts:
    """What the libraries have in common."""

    q_net: nn.Module
    call: Any
    """Observations as numpy arrays to Q-values."""

    observation_space: spaces.Space[Any]
    action_space: spaces.Discrete
    target_net: nn.Module | None = None
    optimizer: Any = None
    config: DQNConfig | None = None
    counts: dict[Any, int] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.q_net.parameters()).device


def _parts(source: Any) -> _Parts:
    """By what an object has: no library is imported to look."""
    learner = getattr(source, "learner", None)
    policy = getattr(source, "policy", source)
    if hasattr(policy, "obs_to_tensor") and hasattr(policy, "q_net"):  # Stable-Baselines3
        parts = _Parts(
            policy.q_net,
            lambda net, obs: net(policy.obs_to_tensor(obs)[0]),
            policy.observation_space,
            policy.action_space,
            policy.q_net_target,
            policy.optimizer,
        )
    elif hasattr(policy, "model") and hasattr(policy, "set_eps_training"):  # Tianshou
        model = policy.model
        space = getattr(policy, "seen_space", None) or policy.observation_space
        space = getattr(model, "observation_space", None) or space
        if space is None:
            raise ValueError(
                "the policy does not know its observations: pass observation_space= to DQNPolicy"
            )
        lagged = getattr(source, "model_old", None)
        parts = _Parts(
            model,
            lambda net, obs: net(obs, state=None, info=None)[0],
            space,
            policy.action_space,
            None if lagged is None else lagged.module,
            getattr(getattr(source, "optim", None), "_optim", None),
        )
    elif learner is not None and hasattr(source, "replay"):  # DQNAgent
        parts = _Parts(
            source.q_net,
            lambda net, obs: net(to_tensors(obs, parts.device)),
            source.observation_space,
            source.action_space,
        )
    else:
        raise TypeError(
            f"{type(source).__name__} has no policy that could be saved or restored; it must be a "
            "DQNAgent, a DQN of Stable-Baselines3, or a DQN algorithm or policy of Tianshou"
        )
    if learner is not None:
        parts.target_net, parts.optimizer = learner.target_net, learner.optimizer
        parts.config, parts.counts = learner.config, learner.counts
    return parts


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], path: Any) -> None:
    """Load what it has learned of the gradients; its options (learning rate, ...) stay its own."""
    own = optimizer.state_dict()["param_groups"]
    for mine, theirs in zip(own, state["param_groups"], strict=True):
        for name in ("amsgrad", "centered", "momentum"):  # these decide what there is to learn
            if bool(mine.get(name)) != bool(theirs.get(name)):
                raise ValueError(
                    f"{path} has the state of an optimiser with {name}={theirs.get(name)!r}, and "
                    f"the target's has {mine.get(name)!r}: pass optimizer=False to begin it anew"
                )
    # A copy: torch's optimisers go on working in the very tensors that they are given.
    optimizer.load_state_dict({"state": copy.deepcopy(state["state"]), "param_groups": own})


def _as_core(parts: _Parts) -> QNetwork:
    """The network as a `QNetwork` that computes the same, bit for bit."""
    net = parts.q_net
    if not all(torch.isfinite(p).all() for p in net.parameters()):
        raise NonFiniteError(f"the network {type(net).__name__} has weights that are not finite")
    weights = [p for p in net.parameters() if p.ndim == 2]
    dueling = any(isinstance(module, DuelingHead) for module in net.modules())
    sizes = [len(weight) for weight in weights[: -3 if dueling and len(weights) > 2 else -1]]
    if dueling and len(weights) == 2:
        sizes = []
    try:
        core = _make(parts.observation_space, parts.action_space, sizes, dueling)
        _filled(core.to(parts.device), net)
        _check_same(core, net, parts)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"the network {type(net).__name__} cannot be saved for other libraries: it is not the "
            "QNetwork of dqn_adapters (ReLU layers, images through the Nature CNN, optionally "
            f"dueling) over {parts.observation_space}: {error}"
        ) from error
    return core


def _make(
    observation_space: spaces.Space[Any],
    action_space: spaces.Discrete,
    hidden_sizes: Any,
    dueling: bool,
) -> QNetwork:
    with seeded_initialization(0):
        return QNetwork(observation_space, int(action_space.n), hidden_sizes, dueling=dueling)


def _hidden_sizes(net: QNetwork) -> list[int]:
    weights = [p for p in net.head.parameters() if p.ndim == 2]
    dueling = any(isinstance(module, DuelingHead) for module in net.modules())
    if not dueling:
        return [len(weight) for weight in weights[:-1]]
    return [len(weight) for weight in weights[:-3]] if len(weights) > 2 else []


def _filled(net: nn.Module, source: nn.Module) -> Any:
    """Copy the parameters of one network into another of the same layers."""
    pairs = [list(module.parameters()) for module in (net, source)]
    shapes = [[tuple(p.shape) for p in parameters] for parameters in pairs]
    if shapes[0] != shapes[1]:
        raise ValueError(f"its parameters have the shapes {shapes[1]}, not {shapes[0]}")
    with torch.no_grad():
        for mine, theirs in zip(*pairs, strict=True):
            mine.copy_(theirs)
    return net


def _check_same(core: QNetwork, net: nn.Module, parts: _Parts) -> None:
    """Same layers do not make the same function: another activation, other scaling. So look."""
    space = copy.deepcopy(parts.observation_space)
    space.seed(0)
    rows = [space.sample() for _ in range(8)]
    training = net.training
    try:
        net.eval()
        with torch.no_grad():
            for row in rows:
                batch = (
                    {key: np.asarray(value)[None] for key, value in row.items()}
                    if isinstance(row, Mapping)
                    else np.asarray(row)[None]
                )
                expected = core(to_tensors(batch, parts.device))
                if not torch.equal(parts.call(net, batch), expected):
                    raise ValueError("with the same weights it gives other Q-values")
    finally:
        net.train(training)


def _load(path: str | Path) -> dict[str, Any]:
    return checkpoint.load(path, KIND)


def _policy(
    state: Mapping[str, Any], path: str | Path, device: torch.device | str = "cpu"
) -> Policy:
    try:
        space = _space_from_dict(state["observation_space"])
        actions = _space_from_dict(state["action_space"])
        if not isinstance(actions, spaces.Discrete):
            raise ValueError(f"the action space is {actions}")
        q_net = _make(space, actions, state["hidden_sizes"], state["dueling"])
        q_net.load_state_dict(state["q_net"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold a whole policy: {error}") from error
    try:
        return Policy(q_net.to(device), space, actions)
    except (AssertionError, RuntimeError) as error:  # a torch without it, a machine without it
        raise ValueError(f"device={str(device)!r} is not accepted: {error}") from error


def _space_to_dict(space: spaces.Space[Any]) -> dict[str, Any]:
    name = type(space).__name__
    if isinstance(space, spaces.Dict):
        return {"type": name, "spaces": {k: _space_to_dict(v) for k, v in space.items()}}
    if isinstance(space, spaces.Box):
        return {"type": name, "low": space.low, "high": space.high, "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        return {"type": name, "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": name, "nvec": space.nvec, "start": space.start, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": name, "n": space.n}
    raise ValueError(f"the space {space} cannot be saved")


def _space_from_dict(state: Mapping[str, Any]) -> spaces.Space[Any]:
    match state["type"]:
        case "Dict":
            return spaces.Dict({k: _space_from_dict(v) for k, v in state["spaces"].items()})
        case "Box":
            return spaces.Box(state["low"], state["high"], dtype=np.dtype(state["dtype"]).type)
        case "Discrete":
            return spaces.Discrete(state["n"], start=state["start"])
        case "MultiDiscrete":
            dtype = np.dtype(state["dtype"]).type
            return spaces.MultiDiscrete(state["nvec"], dtype=dtype, start=state["start"])
        case "MultiBinary":
            return spaces.MultiBinary(state["n"])
    raise ValueError(f"the space {state['type']!r} is unknown")
