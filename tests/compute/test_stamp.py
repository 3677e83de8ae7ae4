"""What compiled code relies on in CPython, torch and numba, so that a new version fails here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

pytest.importorskip("numba")

from dqn_adapters.compute import extents, kernel, layout, phase, signature
from dqn_adapters.compute.stamp import Stamp, implementation_offset


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def stamp_of(net: nn.Module) -> Stamp:
    modules = list(net.modules())
    dictionaries = [
        named for m in modules for named in (vars(m), vars(m)["_modules"], vars(m)["_parameters"])
    ]
    return Stamp(dictionaries, modules, list(net.parameters()), {"training"})


def _swap(net: nn.Sequential) -> None:
    torch.utils.swap_tensors(net[0].bias, nn.Parameter(torch.zeros(8)))


def _delete(net: nn.Sequential) -> None:
    del net[2]


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "a module": lambda net: net.__setitem__(1, nn.Tanh()),
    "a module more": lambda net: net.append(nn.ReLU()),
    "a module less": _delete,
    "a parameter": lambda net: setattr(net[0], "weight", nn.Parameter(torch.zeros(8, 4))),
    "no bias": lambda net: setattr(net[0], "bias", None),
    "an attribute more": lambda net: setattr(net[0], "forward", lambda x: x),
    "an attribute": lambda net: setattr(net[0], "in_features", 5),
    "a class": lambda net: setattr(net[1], "__class__", nn.Tanh),
    "a swapped tensor": _swap,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_seen(name: str) -> None:
    net = network()
    stamp = stamp_of(net)
    assert stamp.holds()
    CHANGES[name](net)
    assert not stamp.holds()
    assert stamp_of(net).holds()


def test_what_may_change_is_not_a_change() -> None:
    net = network()
    stamp = stamp_of(net)
    net.eval()
    net[0].weight.data = torch.zeros(8, 4)
    assert stamp.holds()


def test_a_tensor_refers_to_its_implementation_where_it_is_looked_for() -> None:
    offset = implementation_offset()
    assert offset is not None
    for tensor in torch.zeros(3), nn.Parameter(torch.zeros(2, 2)), torch.zeros(1, dtype=torch.bool):
        stamp = Stamp([], [tensor], [tensor], set())
        assert stamp.holds()


def test_names_of_torch_that_are_relied_on() -> None:
    assert extents.torch_functions() is not None
    before = signature.HOOKS.next_id
    net = network()
    for register in (
        net.register_forward_hook,
        net.register_forward_pre_hook,
        net.register_full_backward_hook,
        net[0].weight.register_hook,
        net[0].weight.register_post_accumulate_grad_hook,
    ):
        handle = register(lambda *_: None)
        assert signature.HOOKS.next_id == before + 1
        before += 1
        handle.remove()
    assert signature.torch_is_plain()
    with torch.autocast("cpu"):
        assert not signature.torch_is_plain()


def test_machine_code_is_kept_only_as_long_as_all_its_sources_are_the_same() -> None:
    (own, *others) = phase.phase._cache._cache_file._source_stamp
    assert own != others
    names = {name for name, _, _ in others}
    assert names == {
        extents.__name__,
        kernel.__name__,
        layout.__name__,
        "dqn_adapters.replay.compiled",
    }
