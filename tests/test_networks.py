from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from dqn_adapters.networks import MLP, seeded_initialization


def test_shapes_and_layers() -> None:
    net = MLP(spaces.Box(-1, 1, (2, 3)), 5, (7, 4))
    assert net(torch.zeros(9, 2, 3)).shape == (9, 5)
    widths = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]
    assert widths == [(6, 7), (7, 4), (4, 5)]
    linear = MLP(spaces.Box(-1, 1, (2,)), 3, ())
    assert [type(m) for m in linear.layers] == [nn.Linear]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.bool, torch.int32])
def test_observations_of_any_dtype(dtype: torch.dtype) -> None:
    net = MLP(spaces.Box(-1, 1, (2,)), 3)
    x = torch.tensor([[1, 0]])
    torch.testing.assert_close(net(x.to(dtype)), net(x.float()))


def test_discrete_observations_are_one_hot() -> None:
    net = MLP(spaces.Discrete(3, start=5), 2, ())
    linear = net.layers[0]
    torch.testing.assert_close(
        net(torch.tensor([5, 7])), (linear.weight[:, [0, 2]] + linear.bias[:, None]).T
    )


def test_other_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a Box or a Discrete"):
        MLP(spaces.Text(5), 2)


def test_seeded_initialization_leaves_the_callers_stream_alone() -> None:
    def build(seed: int) -> torch.Tensor:
        with seeded_initialization(seed):
            return MLP(spaces.Box(-1, 1, (4,)), 2).layers[0].weight.detach()

    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = build(1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(build(1), first)
    assert not torch.equal(build(2), first)
    assert np.isfinite(first.numpy()).all()
