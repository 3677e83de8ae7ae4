"""Q-networks, with torch's own initialisation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Multi-layer perceptron with ReLU between its layers.

    Args:
        observation_space: A `Box` of any shape, which is flattened, or a `Discrete`, which is
            encoded one-hot.
        num_actions: Number of outputs, A.
        hidden_sizes: Units of the hidden layers; `()` is a linear map.

    Raises:
        ValueError: the observation space is of another kind.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        num_actions: int,
        hidden_sizes: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        self._one_hot: tuple[int, int] | None = None
        if isinstance(observation_space, spaces.Discrete):
            self._one_hot = int(observation_space.start), int(observation_space.n)
            size = int(observation_space.n)
        elif isinstance(observation_space, spaces.Box):
            size = int(torch.Size(observation_space.shape).numel())
        else:
            raise ValueError(
                f"observation space {observation_space} is not supported; "
                "it must be a Box or a Discrete"
            )
        layers: list[nn.Module] = []
        for width in hidden_sizes:
            layers += [nn.Linear(size, width), nn.ReLU()]
            size = width
        self.layers = nn.Sequential(*layers, nn.Linear(size, num_actions))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Map observations `(B, ...)` to action values `(B, A)`."""
        if self._one_hot is not None:
            start, n = self._one_hot
            features = F.one_hot(observations.long() - start, n).float()
        else:
            features = observations.flatten(1).float()
        q_values: torch.Tensor = self.layers(features)
        return q_values


@contextlib.contextmanager
def seeded_initialization(seed: int) -> Iterator[None]:
    """Inside the block torch initialises from `seed`; the caller's random stream goes on
    afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
