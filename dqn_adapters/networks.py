"""Q-networks, with torch's own initialisation: uniform in +-1 / sqrt(fan_in), weights and biases,
which is also that of the network of Mnih et al. (2015)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from dqn_adapters.config import DQNConfig
from dqn_adapters.transition import Observations, map_arrays, to_tensors

Network: TypeAlias = Callable[[spaces.Space[Any], int, DQNConfig], nn.Module]
"""Makes a Q-network of a space of observations, a number of actions A and a configuration: a module
that maps observations `(B, ...)` of the space's dtype (float32 for float64), a dictionary of them
for a Dict, to action values `(B, A)`."""

_SUPPORTED = "a Box, Discrete, MultiBinary, MultiDiscrete, or a Dict of these"


class NatureCNN(nn.Module):
    """The convolutions of Mnih et al. (2015): 32 of 8x8 stride 4, 64 of 4x4 stride 2, 64 of 3x3.

    Args:
        space: A uint8 Box `(channels, height, width)` or `(height, width, channels)`; which of
            them, the smaller of the two outer axes tells. Its values are scaled to [0, 1].
    """

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        self._channels_last = space.shape[2] < space.shape[0]
        channels = min(space.shape[0], space.shape[2])
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 8, 4),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, 1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
        )
        with torch.no_grad():
            self.size: int = self(torch.zeros(1, *space.shape)).shape[1]

    @staticmethod
    def fits(space: spaces.Space[Any]) -> bool:
        """Whether a space is of images that the convolutions can take: uint8, of three axes, at
        least 36 pixels high and wide."""
        return (
            isinstance(space, spaces.Box)
            and space.dtype == np.uint8
            and len(space.shape) == 3
            and sorted(space.shape)[1] >= 36
            and min(space.shape[0], space.shape[2]) == min(space.shape)
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Map images `(B, ...)` to features `(B, size)`."""
        if self._channels_last:
            observations = observations.permute(0, 3, 1, 2)
        features: torch.Tensor = self.layers(scaled_images(observations))
        return features


def scaled_images(images: torch.Tensor) -> torch.Tensor:
    """Images `(B, C, H, W)` with values to 255 as float32 in [0, 1], in the layout and with the
    copies that convolutions on a CPU are fastest with. The result is never the caller's memory."""
    # oneDNN's gradients are fastest in this layout; a single image would only be copied.
    if len(images) > 1:
        images = images.contiguous(memory_format=torch.channels_last)
    return images.to(torch.float32, copy=True).div_(255.0)


class BinaryCNN(nn.Module):
    """The convolution of Young & Tian (2019) for MinAtar's binary images: 16 of 3x3.

    Args:
        space: A bool Box `(height, width, channels)` or `(channels, height, width)`; the channels
            are the shorter of the two outer axes.
    """

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        self.channels_last = space.shape[2] < space.shape[0]
        """Whether images are `(height, width, channels)`."""
        height, width, channels = np.roll(space.shape, 0 if self.channels_last else -1).tolist()
        self.image = channels, height, width
        self.layers = nn.Sequential(nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten())
        with torch.no_grad():
            self.size: int = self(torch.zeros(1, *space.shape)).shape[1]

    @staticmethod
    def fits(space: spaces.Space[Any]) -> bool:
        """Whether a space is of binary images: bool, of three axes, fewer channels than pixels
        either way, at least 3 pixels high and wide."""
        return (
            isinstance(space, spaces.Box)
            and space.dtype == np.bool_
            and len(space.shape) == 3
            and min(space.shape[0], space.shape[2]) < sorted(space.shape)[1]
            and sorted(space.shape)[1] >= 3
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Map images `(B, ...)` to features `(B, size)`."""
        if self.channels_last:
            observations = observations.permute(0, 3, 1, 2)
        features: torch.Tensor = self.layers(observations.float())
        return features


def image_network(space: spaces.Space[Any]) -> type[NatureCNN] | type[BinaryCNN] | None:
    """The convolutions for the observations of a space; None: they are not images."""
    return next((kind for kind in (NatureCNN, BinaryCNN) if kind.fits(space)), None)


class Encoder(nn.Module):
    """Observations of a space as one vector.

    Images (see `NatureCNN.fits`) go through the Nature CNN and binary ones (see `BinaryCNN.fits`)
    through the convolution for MinAtar, other Boxes and MultiBinary are flattened (a uint8 Box
    scaled to [0, 1]), Discrete and MultiDiscrete are one-hot, and the parts of a Dict are
    concatenated.

    Args:
        space: The space of one observation.

    Raises:
        ValueError: the space is of another kind.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        super().__init__()
        check_observation_space(space)
        parts = dict(space.items()) if isinstance(space, spaces.Dict) else {"": space}
        self._functions: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        self.convolutions = nn.ModuleList()
        self.size = 0
        for key, part in parts.items():
            kind = image_network(part)
            if kind is not None:
                assert isinstance(part, spaces.Box)
                cnn = kind(part)
                self.convolutions.append(cnn)  # registers its parameters
                size, self._functions[key] = cnn.size, cnn
            else:
                size, self._functions[key] = _flattener(part)
            self.size += size
        self.only_flattens = (
            len(parts) == 1 and not self.convolutions and _is_numbers(*parts.values())
        )
        """Whether the vector is the observation itself, as float32 and flattened."""

    @property
    def only_convolution(self) -> nn.Module | None:
        """The convolutions, if observations are images and go through nothing else."""
        return self.convolutions[0] if len(self._functions) == len(self.convolutions) == 1 else None

    def read_in_order(self, keys: Sequence[str]) -> None:
        """Concatenate the parts of a Dict in another order of its keys; parameters, too, are then
        in the order of an `Encoder` that was made so."""
        self._functions = {key: self._functions[key] for key in keys}
        functions = list(self._functions.values())
        self.convolutions = nn.ModuleList(
            function for function in functions if isinstance(function, nn.Module)
        )

    def forward(self, observations: Observations) -> torch.Tensor:
        """Map observations `(B, ...)` to features `(B, size)`."""
        parts = observations if isinstance(observations, dict) else {"": observations}
        features = [function(parts[key]) for key, function in self._functions.items()]
        return features[0] if len(features) == 1 else torch.cat(features, dim=1)


class DuelingHead(nn.Module):
    """Q(s, a) = V(s) + A(s, a) - mean over a' of A(s, a') (Wang et al. 2016, eq. 9).

    Args:
        value: Maps features `(B, F)` to V, `(B, 1)`.
        advantage: Maps features `(B, F)` to A, `(B, A)`.
    """

    def __init__(self, value: nn.Module, advantage: nn.Module) -> None:
        super().__init__()
        self.value = value
        self.advantage = advantage

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features `(B, F)` to action values `(B, A)`."""
        advantage = self.advantage(features)
        q_values: torch.Tensor = (
            self.value(features) + advantage - advantage.mean(dim=1, keepdim=True)
        )
        return q_values


def mlp(
    size: int,
    num_outputs: int,
    hidden_sizes: Sequence[int],
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers with an activation between them."""
    layers: list[nn.Module] = []
    for width in hidden_sizes:
        layers += [nn.Linear(size, width), activation()]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, num_outputs))


def q_head(
    size: int,
    num_actions: int,
    hidden_sizes: Sequence[int],
    *,
    dueling: bool,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Module:
    """Features `(B, size)` to action values `(B, A)`.

    Dueling: the last hidden layer and the output stand twice, for V and for A; the layers before
    are shared.
    """
    if not dueling:
        return mlp(size, num_actions, hidden_sizes, activation)
    shared: list[nn.Module] = []
    for width in hidden_sizes[:-1]:
        shared += [nn.Linear(size, width), activation()]
        size = width
    last = hidden_sizes[-1:]
    head = DuelingHead(mlp(size, 1, last, activation), mlp(size, num_actions, last, activation))
    return nn.Sequential(*shared, head)


class QNetwork(nn.Module):
    """A Q-network for any supported observation space: an encoder and a head.

    Args:
        observation_space: The space of one observation; see `Encoder`.
        num_actions: Number of outputs, A.
        hidden_sizes: Units of the hidden layers behind the encoder; `()` is a linear map.
        dueling: Split the head into V and A; see `DuelingHead`.

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
        self.encoder = Encoder(observation_space)
        self.head = q_head(self.encoder.size, num_actions, hidden_sizes, dueling=dueling)

    def forward(self, observations: Observations) -> torch.Tensor:
        """Map observations `(B, ...)` to action values `(B, A)`."""
        q_values: torch.Tensor = self.head(self.encoder(observations))
        return q_values


def make_q_net(
    network: Network | None,
    observation_space: spaces.Space[Any],
    num_actions: int,
    config: DQNConfig,
    seeds: np.random.SeedSequence,
) -> nn.Module:
    """The network that an agent begins with: the `QNetwork` of its configuration, or the user's.

    Args:
        network: The user's function; None: a `QNetwork`.
        observation_space: The space of one observation.
        num_actions: A.
        config: Hyper-parameters.
        seeds: Decides its weights.

    Raises:
        ValueError: the observation space is not supported, or what the user's function makes does
            not map observations to action values.
        TypeError: `network` is no function, or makes no module.
    """
    with seeded_initialization(int(seeds.generate_state(1)[0])):
        if network is None:
            return QNetwork(
                observation_space, num_actions, config.hidden_sizes, dueling=config.dueling
            )
        if isinstance(network, nn.Module) or not callable(network):
            raise TypeError(
                f"network={network!r} is not accepted; it must be a function of an observation "
                "space, a number of actions and a DQNConfig that makes a torch.nn.Module"
            )
        q_net = network(observation_space, num_actions, config)
        if not isinstance(q_net, nn.Module):
            raise TypeError(f"network must make a torch.nn.Module; it made {q_net!r}")
        _check_shape(q_net, observation_space, num_actions)
        return q_net


def check_network_was_given(was_given: bool, network: Network | None) -> None:
    """Raise `ValueError` unless an agent is opened with a function for its network if, and only if,
    it was made with one."""
    if was_given and network is None:
        raise ValueError("network must be the function that made the networks")
    if network is not None and not was_given:
        raise ValueError(
            "network must be None: the networks that were saved are this package's own"
        )


def _check_shape(q_net: nn.Module, observation_space: spaces.Space[Any], num_actions: int) -> None:
    space = copy.deepcopy(observation_space)
    space.seed(0)
    observation = map_arrays(lambda x: np.stack([x, x]), space.sample())
    training = q_net.training
    with torch.no_grad():
        q_values = q_net.eval()(to_tensors(observation))
    q_net.train(training)
    shape = tuple(getattr(q_values, "shape", ()))
    if shape != (2, num_actions):
        raise ValueError(
            f"network must map observations to action values (B, A), here (2, {num_actions}); it "
            f"gave {shape or repr(q_values)}"
        )


def check_observation_space(space: spaces.Space[Any]) -> None:
    """Raise `ValueError` unless the space is one that an `Encoder` takes."""
    parts = list(space.values()) if isinstance(space, spaces.Dict) else [space]
    for part in parts:
        if not isinstance(
            part, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete
        ):
            raise ValueError(f"observation space {space} is not supported; it must be {_SUPPORTED}")


@contextlib.contextmanager
def seeded_initialization(seed: int) -> Iterator[None]:
    """Inside the block torch initialises from `seed`; the caller's random stream goes on
    afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _flattener(
    space: spaces.Space[Any],
) -> tuple[int, Callable[[torch.Tensor], torch.Tensor]]:
    """Length of the vector that an observation becomes, and the function for a batch of them."""
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        start = torch.as_tensor(space.start).flatten()
        counts = [
            int(n) for n in np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
        ]
        return sum(counts), partial(_one_hot, counts=counts, start=start)
    size = int(np.prod(space.shape or (1,)))
    return size, partial(_flat if _is_numbers(space) else _flat_bytes, size=size)


# Functions of the module, so that a network can be pickled.


def _one_hot(x: torch.Tensor, *, counts: list[int], start: torch.Tensor) -> torch.Tensor:
    columns = x.reshape(len(x), len(counts)).long() - start.to(x.device)
    return torch.cat([F.one_hot(columns[:, i], n) for i, n in enumerate(counts)], dim=1).float()


def _flat(x: torch.Tensor, *, size: int) -> torch.Tensor:
    return x.reshape(len(x), size).float()


def _flat_bytes(x: torch.Tensor, *, size: int) -> torch.Tensor:
    return _flat(x, size=size) / 255.0


def _is_numbers(space: spaces.Space[Any]) -> bool:
    """Whether observations are used as they are: of a Box that is not of bytes, or MultiBinary."""
    return isinstance(space, spaces.MultiBinary) or (
        isinstance(space, spaces.Box) and space.dtype != np.uint8
    )
