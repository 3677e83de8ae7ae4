from __future__ import annotations

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from dqn_adapters.networks import (
    BinaryCNN,
    DuelingHead,
    Encoder,
    NatureCNN,
    QNetwork,
    seeded_initialization,
)
from dqn_adapters.transition import to_tensors

IMAGE = spaces.Box(0, 255, (4, 84, 84), np.uint8)


def linears(net: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]


def test_shapes_and_layers() -> None:
    net = QNetwork(spaces.Box(-1, 1, (2, 3)), 5, (7, 4))
    assert net(torch.zeros(9, 2, 3)).shape == (9, 5)
    assert linears(net) == [(6, 7), (7, 4), (4, 5)]
    assert linears(QNetwork(spaces.Box(-1, 1, (2,)), 3, ())) == [(2, 3)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool, torch.int32])
def test_observations_of_any_dtype(dtype: torch.dtype) -> None:
    net = QNetwork(spaces.Box(-1, 1, (2,)), 3)
    x = torch.tensor([[1, 0]])
    torch.testing.assert_close(net(x.to(dtype)), net(x.float()))


@pytest.mark.parametrize(
    ("space", "observation", "features"),
    [
        (spaces.Discrete(3, start=5), 6, [0, 1, 0]),
        (spaces.MultiDiscrete([2, 3], start=[0, 4]), [1, 4], [0, 1, 1, 0, 0]),
        (spaces.MultiBinary(3), [1, 0, 1], [1, 0, 1]),
        (spaces.MultiBinary((2, 2)), [[1, 0], [0, 1]], [1, 0, 0, 1]),
        (spaces.Box(-9, 9, (2, 2)), [[1, 2], [3, 4]], [1, 2, 3, 4]),
        (spaces.Box(0, 255, (2,), np.uint8), [51, 255], [0.2, 1]),
        (spaces.Box(-9, 9, ()), 2.5, [2.5]),
    ],
)
def test_encodings_by_hand(space: spaces.Space, observation: object, features: list[float]) -> None:
    encoder = Encoder(space)
    array = np.array(observation, space.dtype)
    assert not space.shape or space.contains(array)
    assert encoder.size == len(features)
    out = encoder(to_tensors(np.stack([array, array])))
    torch.testing.assert_close(out, torch.tensor([features, features], dtype=torch.float32))
    assert encoder(to_tensors(array[None][:0])).shape == (0, len(features))


def test_a_dict_is_concatenated_in_the_order_of_its_space() -> None:
    space = spaces.Dict(b=spaces.Discrete(2), a=spaces.Box(-9, 9, (2,)), image=IMAGE)
    encoder = Encoder(space)
    cnn = NatureCNN(IMAGE)
    assert encoder.size == 2 + 2 + cnn.size
    batch = {
        "image": torch.zeros(1, 4, 84, 84, dtype=torch.uint8),
        "a": torch.tensor([[3.0, 4.0]]),
        "b": torch.tensor([1]),
    }
    out = encoder(batch)
    assert out.shape == (1, encoder.size)
    torch.testing.assert_close(out[0, :4], torch.tensor([0.0, 1.0, 3.0, 4.0]))
    assert len(list(encoder.parameters())) == 6  # three convolutions, weights and biases


def test_nature_cnn_leaves_its_images_as_they_are() -> None:
    cnn = NatureCNN(IMAGE)
    for count in (1, 2):
        images = torch.randint(0, 256, (count, 4, 84, 84), dtype=torch.uint8)
        numbers = images.float().contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(cnn(numbers), cnn(images))
        assert torch.equal(numbers, images.float())


def test_nature_cnn() -> None:
    """The sizes of Mnih et al. (2015): 20x20x32, 9x9x64, 7x7x64, 512, actions."""
    net = QNetwork(IMAGE, 6, (512,))
    sizes = []
    hooks = [
        m.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
        for m in net.modules()
        if isinstance(m, nn.Conv2d)
    ]
    x = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    assert net(x).shape == (2, 6)
    assert sizes == [(32, 20, 20), (64, 9, 9), (64, 7, 7)]
    assert linears(net) == [(3136, 512), (512, 6)]
    assert sum(p.numel() for p in net.parameters()) == 1_687_206
    for hook in hooks:
        hook.remove()
    # Pixels are scaled to [0, 1], and stacks with the channels last are the same images.
    with seeded_initialization(0):
        last = QNetwork(spaces.Box(0, 255, (84, 84, 4), np.uint8), 6, (512,))
    with seeded_initialization(0):
        first = QNetwork(IMAGE, 6, (512,))
    torch.testing.assert_close(last(x.permute(0, 2, 3, 1)), first(x))
    torch.testing.assert_close(first.encoder(x), first.encoder.convolutions[0].layers(x / 255.0))


def test_initialization_is_that_of_the_nature_network() -> None:
    """Uniform within +-1 / sqrt(fan_in), weights and biases."""
    net = QNetwork(IMAGE, 6, (512,))
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            w = layer.weight.detach()
            assert w.abs().max() <= bound
            assert layer.bias.detach().abs().max() <= bound
            assert w.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)  # of the uniform


@pytest.mark.parametrize(
    ("space", "fits"),
    [
        (IMAGE, True),
        (spaces.Box(0, 255, (84, 84, 1), np.uint8), True),
        (spaces.Box(0, 255, (210, 160, 3), np.uint8), True),
        (spaces.Box(0, 255, (36, 36, 3), np.uint8), True),
        (spaces.Box(0, 255, (35, 36, 3), np.uint8), False),
        (spaces.Box(0, 1, (4, 84, 84), np.float32), False),
        (spaces.Box(0, 255, (84, 84), np.uint8), False),
        (spaces.Box(0, 255, (128,), np.uint8), False),
    ],
)
def test_which_observations_are_images(space: spaces.Space, fits: bool) -> None:
    assert NatureCNN.fits(space) == fits
    assert len(Encoder(space).convolutions) == fits


def test_binary_cnn() -> None:
    """The sizes of Young & Tian (2019): 8x8x16, 128, actions."""
    space = spaces.Box(0, 1, (10, 10, 4), np.bool_)
    with seeded_initialization(0):
        net = QNetwork(space, 3, (128,))
    assert linears(net) == [(1024, 128), (128, 3)]
    assert [m.weight.shape for m in net.modules() if isinstance(m, nn.Conv2d)] == [(16, 4, 3, 3)]
    x = torch.rand(5, 10, 10, 4) < 0.5
    assert net(x).shape == (5, 3)
    # A pixel of the second channel in the corner reaches one place alone, by one weight.
    dot = torch.zeros(1, 10, 10, 4, dtype=torch.bool)
    dot[0, 0, 0, 1] = True
    (cnn,) = net.encoder.convolutions
    difference = cnn.layers[0](dot.permute(0, 3, 1, 2).float()) - cnn.layers[0].bias[:, None, None]
    torch.testing.assert_close(difference[0, :, 0, 0], cnn.layers[0].weight[:, 1, 0, 0])
    assert difference[0, :, 1:].abs().max() < 1e-6
    torch.testing.assert_close(cnn(dot), cnn.layers(dot.permute(0, 3, 1, 2).float()))
    # The channels may be first, and the network is not taken for one that flattens.
    with seeded_initialization(0):
        first = QNetwork(spaces.Box(0, 1, (4, 10, 10), np.bool_), 3, (128,))
    torch.testing.assert_close(first(x.permute(0, 3, 1, 2)), net(x))
    assert not net.encoder.only_flattens


@pytest.mark.parametrize(
    ("shape", "dtype", "fits"),
    [
        ((10, 10, 4), np.bool_, True),
        ((7, 10, 10), np.bool_, True),
        ((19, 19, 17), np.bool_, True),  # Go
        ((8, 8, 111), np.bool_, False),  # chess: planes of moves, which are no picture
        ((9, 9, 17), np.bool_, False),
        ((2, 2, 1), np.bool_, False),
        ((10, 10), np.bool_, False),
        ((10, 10, 4), np.uint8, False),
        ((6, 7, 2), np.int8, False),  # connect four
    ],
)
def test_which_observations_are_binary_images(
    shape: tuple[int, ...], dtype: type, fits: bool
) -> None:
    space = spaces.Box(0, 1, shape, dtype)
    assert BinaryCNN.fits(space) == fits
    encoder = Encoder(space)
    assert len(encoder.convolutions) == fits
    assert encoder(torch.zeros(2, *shape)).shape == (2, encoder.size)


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (5,)), IMAGE])
def test_dueling(space: spaces.Space) -> None:
    net = QNetwork(space, 4, (16, 8), dueling=True)
    x = torch.from_numpy(np.stack([space.sample() for _ in range(3)]))
    q = net(x)
    head = next(m for m in net.modules() if isinstance(m, DuelingHead))
    features = net.head[:-1](net.encoder(x))
    value, advantage = head.value(features), head.advantage(features)
    assert value.shape == (3, 1)
    torch.testing.assert_close(q, value + advantage - advantage.mean(1, keepdim=True))
    # The identity: the mean over the actions of Q is V, whatever the advantages.
    torch.testing.assert_close(q.mean(1), value.squeeze(1))
    assert linears(net.head)[0] == (net.encoder.size, 16)
    assert linears(head) == [(16, 8), (8, 1), (16, 8), (8, 4)]
    assert linears(QNetwork(spaces.Box(-1, 1, (5,)), 4, (), dueling=True)) == [(5, 1), (5, 4)]


def test_dueling_by_hand() -> None:
    """V = 2, A = (1, 3, 5): the mean of A is 3, so Q = (0, 2, 4)."""
    value, advantage = nn.Linear(1, 1), nn.Linear(1, 3)
    with torch.no_grad():
        for layer, bias in ((value, [2.0]), (advantage, [1.0, 3.0, 5.0])):
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor(bias))
    q = DuelingHead(value, advantage)(torch.zeros(1, 1))
    torch.testing.assert_close(q, torch.tensor([[0.0, 2.0, 4.0]]))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Dict(a=spaces.Dict(b=spaces.Discrete(2))),
        spaces.Sequence(spaces.Discrete(2)),
    ],
)
def test_other_spaces_are_refused(space: gym.Space) -> None:
    with pytest.raises(ValueError, match="must be a Box, Discrete, MultiBinary, MultiDiscrete, or"):
        QNetwork(space, 2)


def test_a_copy_is_independent() -> None:
    net = QNetwork(spaces.Dict(image=IMAGE, n=spaces.Discrete(2)), 3, (4,))
    twin = copy.deepcopy(net)
    assert twin.encoder.convolutions[0] is not net.encoder.convolutions[0]
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    x = {"image": torch.zeros(1, 4, 84, 84, dtype=torch.uint8), "n": torch.tensor([1])}
    assert (twin(x) == 0).all()
    assert (net(x) != 0).any()


def test_seeded_initialization_leaves_the_callers_stream_alone() -> None:
    def build(seed: int) -> torch.Tensor:
        with seeded_initialization(seed):
            return next(QNetwork(spaces.Box(-1, 1, (4,)), 2).parameters()).detach()

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = build(1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(build(1), first)
    assert not torch.equal(build(2), first)
