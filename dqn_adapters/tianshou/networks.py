"""A network for Tianshou users: the core's, called as a model of Tianshou is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tianshou.utils.net.common import MLP, Net

from dqn_adapters import compute
from dqn_adapters.networks import DuelingHead, QNetwork
from dqn_adapters.replay.storage import check_shape
from dqn_adapters.tianshou.policy import split_mask, without_mask
from dqn_adapters.transition import to_tensors


class QNet(torch.nn.Module):
    """The core's `QNetwork` as `model(obs, state=, info=) -> (Q-values, state)`.

    Any observation space of the core, Dict included: images of uint8 go through the Nature CNN,
    Discrete is one-hot, and so on; see `networks.Encoder`.

    Args:
        observation_space: Of one environment. Where it carries the mask of legal actions (`mask`
            beside `obs`, or `action_mask`), the network is over the rest.
        num_actions: A.
        hidden_sizes: Units of the hidden layers behind the encoder.
        dueling: Split the head into V and A (Wang et al. 2016).

    Raises:
        ValueError: the observation space is not supported.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        num_actions: int,
        hidden_sizes: Sequence[int] = (64, 64),
        *,
        dueling: bool = False,
    ) -> None:
        super().__init__()
        self.observation_space = without_mask(observation_space)
        self.network = QNetwork(self.observation_space, num_actions, hidden_sizes, dueling=dueling)

    def read_in_order(self, observation_space: spaces.Space[Any]) -> None:
        """Read the parts of a Dict in the order of the keys of an equal space."""
        if isinstance(observation_space, spaces.Dict):
            self.network.encoder.read_in_order(list(observation_space.spaces))
        self.observation_space = observation_space

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[torch.Tensor, Any]:
        """Observations `(B, ...)`, arrays or a `Batch` of them, to Q-values `(B, A)`.

        Raises:
            ValueError: the observations have another shape than those of the space.
        """
        device = next(self.parameters()).device
        return self.network(to_tensors(self._arrays(obs), device)), state

    def _arrays(self, obs: Any) -> Any:
        seen, _ = split_mask(obs)  # a policy of Tianshou's passes them all
        if isinstance(self.observation_space, spaces.Dict):
            parts = self.observation_space.items()
            return {key: _checked(key, np.asarray(seen[key]), part) for key, part in parts}
        return _checked("obs", np.asarray(seen), self.observation_space)


def _checked(name: str, array: NDArray[Any], space: spaces.Space[Any]) -> NDArray[Any]:
    check_shape(name, array, (len(array), *(space.shape or ())))
    return array


def as_stack(model: torch.nn.Module) -> compute.Stack | None:
    """The layers in a `QNet` or in Tianshou's `Net`; see `compute.AsStack`."""
    if type(model) is QNet:
        return compute.as_stack(model.network)
    if type(model) is not Net or model.softmax or model.num_atoms > 1:
        return None
    parts = [model.model, *((model.V, model.Q) if model.use_dueling else ())]
    if any(type(part) is not MLP or not part.flatten_input for part in parts):
        return None
    trunk, *heads = (part.model for part in parts)
    modules = [trunk, DuelingHead(*heads)] if heads else [trunk]
    return compute.Stack(modules, converts=True, flattens=True)
