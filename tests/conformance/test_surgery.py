"""What happens to a network after its agent was made happens to the agent: torch defines it."""

from __future__ import annotations

import copy
import functools
import pickle
from collections import Counter
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conformance.drivers import ADAPTERS
from conformance.edits import (
    AFTER,
    EDITS,
    OBSERVATIONS,
    Outcome,
    Surgery,
    cases,
    check_same,
    differs,
    level,
    linears,
    operate,
    other_cases,
    pair,
    put,
    start,
)

CASES = [
    *cases(),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in other_cases()),
]


@functools.cache
def without_edits(adapter: str, variant: str, config: tuple[tuple[str, Any], ...]) -> Outcome:
    return operate(start(adapter, variant, "eager", dict(config)), ["nothing"])


@pytest.mark.parametrize(("adapter", "variant", "name"), CASES)
def test_an_edit_does_what_it_does_in_torch(adapter: str, variant: str, name: str) -> None:
    """Calls, errors, actions, weights and the optimizer's state are those of `"eager"`."""
    edit = EDITS[name]
    eager, auto = pair(adapter, variant, [name])
    raised = {stage: error for stage, error in eager.errors.items() if stage.startswith("learn")}
    if edit.raises is None:
        # One observation alone has no batch statistics: there `predict` may fail.
        failed = [stage for stage in eager.errors if not stage.startswith("predict")]
        assert not failed, eager.messages
        assert eager.moved
    else:
        assert raised == dict.fromkeys(["learn", "learn again"], edit.raises.__name__)
    # Else a path that overlooks the edit would pass.
    bare = without_edits(adapter, variant, tuple(edit.config.items()))
    assert differs(eager, bare) == (adapter not in edit.invisible)
    check_same(eager, auto, settled=edit.settled)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_eager_alone_is_the_same_to_the_last_bit(adapter: str) -> None:
    """So no difference in the test above comes of the data."""
    first, second = pair(adapter, "double", ["forward hook"], ("eager", "eager"))
    for a, b in zip(first.online + first.target, second.online + second.target, strict=True):
        assert torch.equal(a, b)
    check_same(first, second)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_kernel_comes_back_when_the_network_qualifies_again(adapter: str) -> None:
    pytest.importorskip("numba")
    trained = start(adapter, "double", "auto", {})
    assert trained.learner.execution == "kernel"
    hook = linears(trained.q_net)[0].register_forward_hook(lambda module, x, y: None)
    trained.learn(AFTER[0])
    assert trained.learner.execution == "eager"
    hook.remove()
    trained.learn(AFTER[0])
    assert trained.learner.execution == "kernel"
    first, second = linears(trained.q_net)[:2]
    for net in trained.q_net, trained.target_net:
        put(net, linears(net)[0], nn.Linear(first.in_features, 24))
        put(net, linears(net)[1], nn.Linear(24, second.out_features))
    trained.target_net.requires_grad_(False)
    trained.optimizer = torch.optim.Adam(trained.q_net.parameters(), lr=1e-3)
    trained.learn(AFTER[0])
    assert trained.learner.execution == "kernel"


@pytest.mark.parametrize("execution", ["auto", "eager"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_copy_trains_for_itself(adapter: str, how: str, execution: str) -> None:
    """The copy goes on as the original would, and neither changes the other."""
    trained = start(adapter, "double", execution, {})
    copied = copy.deepcopy(trained) if how == "deepcopy" else pickle.loads(pickle.dumps(trained))
    before = trained.parameters
    level(copied, trained)
    copied.learn(AFTER[0])
    assert all(map(torch.equal, trained.parameters, before))
    assert not all(map(torch.equal, copied.parameters, before))
    after = copied.parameters
    trained.learn(AFTER[0])
    assert all(map(torch.equal, copied.parameters, after))
    for a, b in zip(trained.parameters, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(trained.greedy(OBSERVATIONS), copied.greedy(OBSERVATIONS))


@pytest.mark.parametrize("name", ["gradient hook that zeroes", "Tanh in place of ReLU"])
@pytest.mark.parametrize("adapter", [name for name in ADAPTERS if name != "tianshou"])
def test_an_edit_in_a_callback_is_that_of_torch(adapter: str, name: str) -> None:
    """Within a call of `learn`. (Tianshou's trainer calls nobody back between two steps.)"""
    outcomes = [start(adapter, "double", execution, {}) for execution in ("eager", "auto")]
    level(*reversed(outcomes))
    seen = []
    for trained in outcomes:
        with ExitStack() as undo:
            surgery, steps = Surgery(trained, undo), Counter[str]()

            def callback(*_: Any, surgery: Surgery = surgery, steps: Counter[str] = steps) -> bool:
                steps["seen"] += 1
                if steps["seen"] == 10:
                    EDITS[name].apply(surgery)
                return True

            extra = {"reset_num_timesteps": False} if adapter == "sb3" else {}
            trained.host.learn(sum(AFTER), callback, **extra)
        seen.append(dict(surgery.calls))
        assert steps["seen"] == sum(AFTER)
    assert seen[0] == seen[1]
    for a, b in zip(*(trained.parameters for trained in outcomes), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_edit_is_acted_upon_at_once(adapter: str) -> None:
    """Greedy actions are those of the edited network before anything more is learned, and a hook on
    it is called while acting in training."""
    trained = start(adapter, "double", "auto", {})
    chosen = trained.greedy(OBSERVATIONS)
    last = linears(trained.q_net)[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor([1.0, 0.0]))
    np.testing.assert_array_equal(trained.greedy(OBSERVATIONS), 0)
    put(trained.q_net, last, nn.Sequential(last, _Negative()))
    np.testing.assert_array_equal(trained.greedy(OBSERVATIONS), 1)
    np.testing.assert_array_equal(trained.predict(OBSERVATIONS), 1)
    calls: list[int] = []
    last.register_forward_hook(lambda module, x, y: calls.append(1))
    trained.greedy(OBSERVATIONS)
    assert calls == [1]
    assert chosen.shape == (len(OBSERVATIONS),)


class _Negative(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x
