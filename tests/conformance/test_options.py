"""Every option x variant x adapter: a toy learned right, and what else must hold of the option.

A row of `OPTIONS` says what the option is: its configuration, the environment, and what the answer
is. `SUPPORTED` says which adapter has it; an adapter takes part by one entry there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from support import Chain, chain_q_star

from conformance.drivers import ADAPTERS, Trained
from dqn_adapters import DQNConfig
from dqn_adapters.config import VARIANTS
from dqn_adapters.networks import DuelingHead

GAMMA = 0.8
CONFIG = DQNConfig(
    learning_rate=1e-2,
    buffer_size=2000,
    learning_starts=75,
    batch_size=32,
    gamma=GAMMA,
    train_freq=25,
    gradient_steps=25,
    target_update_interval=25,
    exploration_initial_eps=1.0,
    exploration_final_eps=1.0,
    hidden_sizes=(24,),
)


class Seen(Chain):
    """The chain as another space: `observe` makes an observation of the number of the state."""

    def __init__(self, space: spaces.Space[Any], observe: Callable[[int], Any]) -> None:
        super().__init__(limit=6)
        self.observation_space, self.observe = space, observe

    def _observe(self) -> Any:
        return self.observe(self.state)


class Masked(Chain):
    """The chain in which going right is illegal in state 1, and so in the target of what leads
    there; told by `info["action_mask"]`. An illegal action fails."""

    def __init__(self) -> None:
        super().__init__(limit=3)

    def _info(self) -> dict[str, Any]:
        self.legal = np.array([1, self.state != 1], np.int8)
        return {"action_mask": self.legal.copy()}

    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0], self._info()

    def step(self, action: int) -> Any:
        assert self.legal[action]
        *rest, _ = super().step(action)
        return *rest, self._info()


class Film(Chain):
    """The chain as 2 frames of 5 uint8 pixels, now and before; the first frame stands for the one
    before it."""

    def __init__(self) -> None:
        super().__init__(limit=6)
        self.observation_space = spaces.Box(0, 255, (2, 5), np.uint8)

    def _observe(self) -> np.ndarray:
        frame = np.uint8(255) * super()._observe().astype(np.uint8)
        self.frames = [frame, frame] if self.steps == 0 else [self.frames[1], frame]
        return np.array(self.frames)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return super().reset(seed=seed, options=options)


PAIR = spaces.Dict(here=spaces.Discrete(5), there=spaces.Box(0.0, 1.0, (2,), np.float32))
PIXELS = np.repeat(np.eye(5, dtype=np.uint8)[:, None] * 255, 2, axis=1)
ONE_HOT = np.eye(5, dtype=np.float32)
Q_STAR = chain_q_star(GAMMA)


def pair(state: Any) -> dict[str, Any]:
    there = np.stack([np.asarray(state) / 4, 1 - np.asarray(state) / 4], axis=-1)
    return {"here": state, "there": there.astype(np.float32)}


def masked_q_star() -> np.ndarray:
    """From states 0 and 1 the goal cannot be reached, and nothing is worth anything there."""
    left = [0.0, 0.0, 0.0, GAMMA * GAMMA]
    return np.array([left, [0.0, 0.0, GAMMA, 1.0]]).T


@dataclass(frozen=True)
class Option:
    env: Callable[[], gym.Env[Any, Any]] = lambda: Chain(limit=6)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    states: Any = dataclasses.field(default_factory=lambda: ONE_HOT[:4])
    """Observations of the states 0 .. 3."""
    q_star: np.ndarray = dataclasses.field(default_factory=lambda: Q_STAR)
    known: np.ndarray = dataclasses.field(default_factory=lambda: np.ones((4, 2), bool))
    """Which of these values are learned; an illegal action has none."""
    greedy: bool = False
    """With n steps of another policy the values are those of the best after n steps of it: it is
    the ordering of the actions that must be right."""


OPTIONS = {
    "dueling": Option(config={"dueling": True}),
    "n_steps": Option(config={"n_steps": 3, "exploration_final_eps": 0.2}, greedy=True),
    "prioritized": Option(config={"prioritized_replay": True}),
    "masks": Option(
        env=Masked, q_star=masked_q_star(), known=np.array([[1, 1], [1, 0], [1, 1], [1, 1]], bool)
    ),
    "dict": Option(env=lambda: Seen(PAIR, pair), states=pair(np.arange(4))),
    "discrete": Option(
        env=lambda: Seen(spaces.Discrete(5, start=3), lambda state: np.int64(state + 3)),
        states=np.arange(3, 7),
    ),
    "frame_stack": Option(env=Film, config={"frame_stack": 2}, states=PIXELS[:4]),
    "everything": Option(
        env=Film,
        config={
            "frame_stack": 2,
            "prioritized_replay": True,
            "n_steps": 3,
            "dueling": True,
            "exploration_final_eps": 0.2,
        },
        states=PIXELS[:4],
        greedy=True,
    ),
}

SUPPORTED: dict[str, tuple[str, ...]] = {
    "native": tuple(OPTIONS),
    "tianshou": tuple(OPTIONS),
    "pettingzoo": tuple(OPTIONS),
    # Stable-Baselines3's one-hot code counts from 0: a Discrete that does not is refused.
    "sb3": tuple(name for name in OPTIONS if name != "discrete"),
}

ROWS = [(adapter, option) for adapter, options in SUPPORTED.items() for option in options]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("adapter", "option"), ROWS)
def test_an_option_learns_right(adapter: str, option: str, variant: Any) -> None:
    row = OPTIONS[option]
    config = dataclasses.replace(CONFIG, variant=variant, exploration_steps=200, **row.config)
    result = ADAPTERS[adapter](row.env, config, 0)
    result.learn(550)
    q_values = result.q_values(row.states)
    if row.greedy:
        np.testing.assert_array_equal(q_values.argmax(1), 1)
        assert (q_values.max(1) < 1.05).all()
    else:
        error = np.abs(q_values - row.q_star)[row.known]
        assert error.max() < 0.1, q_values
    check = CHECKS.get(option)
    if check is not None:
        check(result)


def _is_dueling(result: Trained) -> None:
    heads = [m for m in result.learner.q_net.modules() if isinstance(m, DuelingHead)]
    assert len(heads) == 1
    features = torch.randn(8, heads[0].advantage[0].in_features)
    torch.testing.assert_close(heads[0](features).mean(1, keepdim=True), heads[0].value(features))


def _weighs(result: Trained) -> None:
    """The batches of a prioritised replay have weights, of which the largest is 1, and by the end
    of beta's schedule they tell frequent transitions from rare ones."""
    seen: list[Any] = []
    update = result.learner.update
    result.learner.update = lambda batch: seen.append(batch) or update(batch)  # type: ignore
    result.learn(25)
    assert seen
    for batch in seen:
        assert batch.weights.max() == 1.0
        assert batch.weights.min() < 0.9


CHECKS: dict[str, Callable[[Trained], None]] = {"dueling": _is_dueling, "prioritized": _weighs}
