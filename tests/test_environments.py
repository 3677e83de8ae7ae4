"""The steps that training sees, over single and vector environments in every autoreset mode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from support import Count

from dqn_adapters.environments import Stepper, make_stepper

Row = tuple[Any, ...]


def transitions(stepper: Stepper, calls: int) -> list[list[Row]]:
    """For each environment its valid (s, a, r, s', terminated, truncated), s as (episode, t)."""
    rows: list[list[Row]] = [[] for _ in range(stepper.num_envs)]
    stepper.reset(seed=0)
    for call in range(calls):
        step = stepper.step(np.full(stepper.num_envs, call % 2), call + 1)
        for i in np.flatnonzero(step.valid):
            s, s2 = step.observations[i], step.next_observations[i]
            flags = bool(step.terminated[i]), bool(step.truncated[i])
            action, reward = int(step.actions[i]), step.rewards[i]
            rows[i].append((tuple(s[:2]), action, reward, tuple(s2[:2]), *flags))
    return rows


# Episodes of length 2 (terminated), 3 (truncated), 2, ...; the successor is the true one.
TAPE = [
    ((0, 0), 1.0, (0, 1), False, False),
    ((0, 1), 2.0, (0, 2), True, False),
    ((1, 0), 1.0, (1, 1), False, False),
    ((1, 1), 2.0, (1, 2), False, False),
    ((1, 2), 3.0, (1, 3), False, True),
    ((2, 0), 1.0, (2, 1), False, False),
]


def without_action(rows: list[Row]) -> list[Row]:
    return [(s, r, s2, *flags) for s, _, r, s2, *flags in rows]


def test_single_environment() -> None:
    rows = transitions(make_stepper(Count()), 6)
    assert without_action(rows[0]) == TAPE
    assert [a for _, a, *_ in rows[0]] == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("copy", [True, False])
def test_vector_environment(mode: AutoresetMode, copy: bool) -> None:
    env = SyncVectorEnv(
        [lambda: Count((2, 3)), lambda: Count((1, 4))], autoreset_mode=mode, copy=copy
    )
    rows = transitions(make_stepper(env), 9)
    assert without_action(rows[0])[:6] == TAPE
    assert without_action(rows[1])[:2] == [
        ((0, 0), 1.0, (0, 1), True, False),
        ((1, 0), 1.0, (1, 1), False, False),
    ]
    # NEXT_STEP spends a call on every reset, here the third and the seventh: no experience.
    resets = 2 if mode is AutoresetMode.NEXT_STEP else 0
    assert len(rows[0]) == 9 - resets


def test_processes() -> None:
    env = AsyncVectorEnv([Count, Count])
    try:
        assert without_action(transitions(make_stepper(env), 8)[1])[:6] == TAPE
    finally:
        env.close()


@pytest.mark.parametrize("vector", [False, True])
def test_discrete_actions_that_start_elsewhere(vector: bool) -> None:
    """Count asserts that it is given an action of its space, here {3, 4}."""
    env = SyncVectorEnv([lambda: Count(start=3)]) if vector else Count(start=3)
    stepper = make_stepper(env)
    stepper.reset()
    step = stepper.step(np.array([1]), 1)
    assert step.actions.tolist() == [1]
    assert step.next_observations[0, 2] == 4


def test_an_environment_that_reuses_its_array() -> None:
    class Reuses(Count):
        buffer = np.zeros(3, np.float32)

        def reset(self, **kwargs: Any) -> Any:
            observation, info = super().reset(**kwargs)
            self.buffer[:] = observation
            return self.buffer, info

        def step(self, action: int) -> Any:
            observation, *rest = super().step(action)
            self.buffer[:] = observation
            return self.buffer, *rest

    assert without_action(transitions(make_stepper(Reuses()), 6)[0]) == TAPE


def test_an_id() -> None:
    assert make_stepper("CartPole-v1").view.space.shape == (4,)


def with_spaces(**changed: spaces.Space) -> gym.Env:
    env = Count()
    for name, space in changed.items():
        setattr(env, name, space)
    return env


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            with_spaces(action_space=spaces.Box(-1, 1, (2,))),
            r"action space Box.* is not supported; DQN needs a gymnasium.spaces.Discrete",
        ),
        (
            with_spaces(action_space=spaces.MultiDiscrete([2, 2])),
            r"action space MultiDiscrete.* is not supported",
        ),
        (
            with_spaces(observation_space=spaces.Text(5)),
            r"observation space Text.* is not supported; it must be a Box, Discrete",
        ),
    ],
)
def test_unsupported_spaces(env: gym.Env, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_stepper(env)


def test_a_vector_environment_that_does_not_say_how_it_resets() -> None:
    env = SyncVectorEnv([Count])
    env.metadata = {}
    with pytest.raises(ValueError, match=r"env.metadata\['autoreset_mode'\] is None"):
        make_stepper(env)


def test_what_is_no_environment() -> None:
    with pytest.raises(TypeError, match=r"env=3 is not accepted; it must be a gymnasium.Env"):
        make_stepper(3)  # type: ignore[arg-type]
