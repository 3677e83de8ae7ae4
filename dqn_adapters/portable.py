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

from dqn_adapters import checkpoint, stored
from dqn_adapters.agent import resolve_device
from dqn_adapters.config import DQNConfig
from dqn_adapters.environments import ObservationView, as_masks, check_action_space
from dqn_adapters.exploration import check_action_masks
from dqn_adapters.finite import NonFiniteError, check_finite
from dqn_adapters.networks import DuelingHead, QNetwork, seeded_initialization
from dqn_adapters.spaces import from_state, in_saved_order, to_state
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
            space, so its Q-values would not be the same elsewhere; the message says what to do. Or
            a file cannot hold the space.
        OSError: the file cannot be written.
    """
    parts = _parts(source)
    q_net = _as_core(parts)
    space, actions = parts.observation_space, parts.action_space
    state: dict[str, Any] = {
        "observation_space": to_state(space),
        "action_space": to_state(actions),
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
    return _Saved(path).policy(resolve_device(device))


def load_config(path: str | Path) -> DQNConfig:
    """The hyper-parameters that a saved policy was trained with, its network's layers among them;
    the defaults where its library told none. Raises as `load_policy`."""
    return _Saved(path).config


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
        CheckpointError: the file is not a policy of ours, is damaged, is newer, or its content does
            not fit together.
        ValueError: spaces, network or optimiser do not fit. In every case the target is unchanged.
    """
    saved = _Saved(path)
    parts = _parts(target)
    try:
        for name in ("observation_space", "action_space"):
            in_saved_order(getattr(saved, name), getattr(parts, name), name)
    except ValueError as error:
        raise ValueError(f"{path} does not fit the target: {error}") from error
    space = in_saved_order(parts.observation_space, saved.observation_space, "")
    q_net, target_net = (net.to(parts.device) for net in saved.networks(space))
    shapes = [tuple(p.shape) for p in parts.q_net.parameters()]
    wanted = [tuple(p.shape) for p in q_net.parameters()]
    if shapes != wanted:
        raise ValueError(
            f"{path} has a network of hidden_sizes={saved.config.hidden_sizes}, "
            f"dueling={saved.config.dueling}; the target's has other layers: {shapes}, not {wanted}"
        )
    _check_same(q_net, _filled(copy.deepcopy(parts.q_net), q_net), parts)
    if optimizer and saved.optimizer is not None and parts.optimizer is not None:
        parts.optimizer.load_state_dict(saved.optimizer_state(parts.optimizer, space))
    _filled(parts.q_net, q_net)
    if parts.target_net is not None and parts.target_net is not parts.q_net:
        _filled(parts.target_net, target_net)
    if parts.counts is not None and saved.counts is not None:
        parts.counts.update(saved.counts)
        if hasattr(target, "num_timesteps"):
            target.num_timesteps = saved.counts["steps"]
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
        known = (
            getattr(model, "observation_space", None),
            getattr(policy, "seen_space", None),
            policy.observation_space,
        )
        space = next((space for space in known if isinstance(space, spaces.Space)), None)
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
        config = DQNConfig(hidden_sizes=tuple(sizes), dueling=dueling)
        core = _make(parts.observation_space, parts.action_space, config)
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
    config: DQNConfig,
) -> QNetwork:
    with seeded_initialization(0):
        return QNetwork(
            observation_space,
            int(action_space.n),
            config.hidden_sizes,
            dueling=config.dueling,
        )


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


class _Saved:
    """What a file of `save_policy` holds, checked.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is not a policy of ours, is damaged, is newer, or its content does not
            fit together.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        state = checkpoint.load(path, KIND)
        with checkpoint.reading(path):
            stored.check_mapping("", state, _STATE)
            self.observation_space = from_state(state["observation_space"])
            self.action_space = check_action_space(from_state(state["action_space"]))
            ObservationView(self.observation_space, int(self.action_space.n))
            known = {} if state["config"] is None else state["config"]
            self.config = dataclasses.replace(
                DQNConfig.from_dict(stored.check_mapping("config", known)),
                hidden_sizes=state["hidden_sizes"],
                dueling=stored.check_bool("dueling", state["dueling"]),
            )
            self._weights = [state["q_net"], state["target_net"]]
            if state["target_net"] is None:
                self._weights[1] = state["q_net"]
            num_actions = int(self.action_space.n)
            for name, weights in zip(("q_net", "target_net"), self._weights, strict=True):
                stored.check_q_net(name, weights, self.observation_space, num_actions, self.config)
            self.counts = state["counts"]
            if self.counts is not None:
                units = ("steps", "episodes", "updates")
                counts = stored.check_mapping("counts", self.counts, units)
                self.counts = {u: stored.check_count(f"counts.{u}", counts[u]) for u in units}
            self.optimizer = state["optimizer"]
            if self.optimizer is not None:
                stored.check_mapping("optimizer", self.optimizer, ("class", "state"))

    def networks(self, space: spaces.Space[Any]) -> list[QNetwork]:
        """The network and the target network, over the saved space with its keys in any order."""
        networks = []
        for weights in self._weights:
            net = _make(self.observation_space, self.action_space, self.config)
            net.load_state_dict(weights)
            moves, values = stored.moves(net, self.observation_space, space), list(net.parameters())
            if moves is not None:
                net = _make(space, self.action_space, self.config)
                with torch.no_grad():
                    for mine, (number, columns) in zip(net.parameters(), moves, strict=True):
                        mine.copy_(stored.picked(values[number], columns))
            networks.append(net)
        return networks

    def policy(self, device: torch.device) -> Policy:
        """The policy on a device, or `ValueError` if there is no such device."""
        net = self.networks(self.observation_space)[0]
        try:
            return Policy(net.to(device), self.observation_space, self.action_space)
        except (AssertionError, RuntimeError) as error:  # a torch or a machine without it
            raise ValueError(f"device={str(device)!r} is not accepted: {error}") from error

    def optimizer_state(
        self, optimizer: torch.optim.Optimizer, space: spaces.Space[Any]
    ) -> dict[str, Any]:
        """What the saved optimizer learned of the gradients, for one over the parameters of
        `networks(space)`; its options (learning rate, ...) stay its own.

        Raises:
            ValueError: it is another kind of optimizer, or the state does not fit.
        """
        kind = type(optimizer).__name__
        if self.optimizer["class"] != kind:
            raise ValueError(
                f"{self.path} has the state of {self.optimizer['class']}, and the target's "
                f"optimiser is {kind}: pass optimizer=False to begin it anew"
            )
        net = _make(self.observation_space, self.action_space, self.config)
        moves = stored.moves(net, self.observation_space, space)
        try:
            saved = stored.check_mapping("optimizer", self.optimizer["state"], ("state",))
            if moves is not None:
                entries = stored.check_mapping("optimizer.state", saved["state"])
                saved = {**saved, "state": stored.reordered(entries, moves)}
            return stored.optimizer_state("optimizer", saved, optimizer, options=False)
        except ValueError as error:
            raise ValueError(
                f"{self.path} does not fit: {error}; pass optimizer=False to begin it anew"
            ) from error


_STATE = (
    *("observation_space", "action_space", "hidden_sizes", "dueling"),
    *("q_net", "target_net", "optimizer", "config", "counts"),
)
