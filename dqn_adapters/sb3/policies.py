"""What the core adds to the host's policies: a dueling head, masked greedy actions."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from dqn_adapters.compute import Stack
from dqn_adapters.compute.signature import has_global_hooks, is_stock, torch_is_plain
from dqn_adapters.environments import Masks
from dqn_adapters.networks import q_head, scaled_images
from dqn_adapters.overrides import Methods
from dqn_adapters.targets import greedy_actions
from dqn_adapters.transition import to_tensor


class _Dueling(DQNPolicy):
    """Put before a policy class: its networks get the core's dueling head."""

    def make_q_net(self) -> QNetwork:
        network = super().make_q_net()
        if type(network).forward is not QNetwork.forward:
            raise ValueError(
                f"dueling=True replaces the head of Stable-Baselines3's QNetwork; "
                f"{type(network).__name__} has a forward of its own: build the dueling head in it"
            )
        # A Sequential of one, whose type the host's annotations promise.
        network.q_net = torch.nn.Sequential(
            q_head(
                network.features_dim,
                int(network.action_space.n),
                network.net_arch,
                dueling=True,
                activation=network.activation_fn,
            )
        )
        return network.to(self.device)


@functools.cache
def dueling(policy_class: type[DQNPolicy]) -> type[DQNPolicy]:
    """The policy class with a dueling head behind its features extractor (Wang et al. 2016).

    It keeps the extractor, `net_arch`, `activation_fn` and optimiser of the class. `save` and
    `load` of the policy work.

    Raises:
        ValueError: (when it is made) the class has a network of its own kind.
    """
    return type(f"Dueling{policy_class.__name__}", (_Dueling, policy_class), {})


def as_stack(network: torch.nn.Module) -> Stack | None:
    """The layers in the host's `QNetwork` over numbers; see `compute.AsStack`."""
    if type(network) is not QNetwork or type(network.features_extractor) is not FlattenExtractor:
        return None
    space = network.observation_space
    scaled = network.normalize_images and is_image_space(space)
    numbers = isinstance(space, spaces.MultiBinary) or (
        isinstance(space, spaces.Box) and not scaled
    )
    return Stack([network.q_net], converts=True, flattens=True) if numbers else None


_POLICY = Methods(
    DQNPolicy,
    *("predict", "_predict", "forward", "obs_to_tensor", "set_training_mode"),
    *("is_vectorized_observation", "__call__"),
)


def has_stock_methods(policy: DQNPolicy) -> bool:
    """Whether the policy chooses actions by the host's own code."""
    return _POLICY.are_those_of(policy)


def sees_images(network: torch.nn.Module) -> bool:
    """Whether this is the host's `QNetwork` with its `NatureCNN`, on images that it scales, and
    nothing looks at or changes what `q_values` goes around."""
    if type(network) is not QNetwork or type(network.features_extractor) is not NatureCNN:
        return False
    cnn = network.features_extractor.cnn
    rectifiers = (part for part in cnn if type(part) is torch.nn.ReLU)
    around = network, network.features_extractor, cnn, *rectifiers
    plain = torch_is_plain() and not has_global_hooks() and all(map(is_stock, around))
    scaled = network.normalize_images and is_image_space(network.observation_space)
    return scaled and plain


def q_values(network: Any, observations: Any) -> torch.Tensor:
    """The host's Q-network, `(B, ...)` to `(B, A)`.

    Of images its own `NatureCNN` scales and rectifies into new memory, for which the learner has
    no use; here the same modules do it in place.
    """
    values: torch.Tensor
    if sees_images(network):
        features = scaled_images(observations)
        for part in network.features_extractor.cnn:
            rectifies = type(part) is torch.nn.ReLU
            features = torch.relu_(features) if rectifies else part(features)
        values = network.q_net(network.features_extractor.linear(features))
    else:
        values = network(observations)
    return values


def masked_greedy(policy: DQNPolicy, observation: Any, action_masks: Masks) -> NDArray[np.int64]:
    """The greedy actions among the legal ones, `(N,)`, counted from 0.

    Args:
        policy: Whose online network is asked.
        observation: One observation or a batch of them, as `policy.predict` takes it.
        action_masks: `(N, A)`, True is legal.
    """
    policy.set_training_mode(False)
    observations, _ = policy.obs_to_tensor(observation)
    with torch.no_grad():
        chosen = greedy_actions(policy.q_net(observations), to_tensor(action_masks, policy.device))
    actions: NDArray[np.int64] = chosen.cpu().numpy()
    return actions


def action_values(
    policy: DQNPolicy, observations: Any, actions: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Q(s, a) of the online network, `(N,)`, for a batch of observations and the actions taken."""
    tensors, _ = policy.obs_to_tensor(observations)
    with torch.no_grad():
        chosen = to_tensor(np.asarray(actions, np.int64), policy.device)[:, None]
        values: NDArray[np.float32] = policy.q_net(tensors).gather(1, chosen)[:, 0].cpu().numpy()
    return values
