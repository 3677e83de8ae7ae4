"""Action masks from every source, in acting, exploring and the target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dqn_adapters import DQNAgent, DQNConfig
from dqn_adapters.config import VARIANTS
from dqn_adapters.environments import ActionMaskInfo, make_stepper


class Masked(gym.Env[Any, int]):
    """In step t of an episode only the actions != t % 3 are legal; every third is truncated.

    Observes (t,). The mask comes by `source`: "info", "obs", "method", or "wrapper" (the method,
    put into info). It fails on an illegal action. Episodes last 4 steps.
    """

    def __init__(self, source: str, start: int = 0) -> None:
        self.source = source
        self.action_space = spaces.Discrete(3, start=start)
        box = spaces.Box(0, 10, (1,), np.float32)
        mask = spaces.MultiBinary(3)
        self.observation_space = (
            spaces.Dict(observation=box, action_mask=mask) if source == "obs" else box
        )
        self.episode = -1
        if source == "method":
            self.action_masks = self._mask

    def _mask(self) -> np.ndarray:
        return (np.arange(3) != self.t % 3).astype(np.int8)

    def _arrive(self) -> tuple[Any, dict[str, Any]]:
        observation = np.array([self.t], np.float32)
        if self.source == "obs":
            return {"observation": observation, "action_mask": self._mask()}, {}
        return observation, {"action_mask": self._mask()} if self.source == "info" else {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._arrive()

    def step(self, action: int) -> Any:
        assert self._mask()[action - self.action_space.start], "an illegal action was played"
        self.t += 1
        observation, info = self._arrive()
        cut = self.episode % 3 == 2
        return observation, 1.0, self.t == 4 and not cut, self.t == 4 and cut, info


def make(source: str, **kwargs: Any) -> gym.Env:
    return ActionMaskInfo(Masked("method")) if source == "wrapper" else Masked(source, **kwargs)


def vector(source: str, mode: AutoresetMode) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: make(source) for _ in range(3)], autoreset_mode=mode)


ENVIRONMENTS: dict[str, Callable[[], Any]] = {
    **{source: (lambda s=source: make(s)) for source in ("info", "obs", "method", "wrapper")},
    "starts at 5": lambda: make("info", start=5),
    **{
        f"{source} x3 {mode.value}": (lambda s=source, m=mode: vector(s, m))
        for source in ("info", "obs", "wrapper")
        for mode in AutoresetMode
    },
}
CONFIG = DQNConfig(
    learning_starts=60,
    train_freq=4,
    batch_size=8,
    hidden_sizes=(8,),
    buffer_size=500,
    exploration_final_eps=0.5,
    target_update_interval=20,
)


@pytest.mark.parametrize("env", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_no_illegal_action_is_played_and_the_next_mask_is_that_of_the_next_state(env: Any) -> None:
    """Also at a truncation, where an environment that resets itself shows another episode's mask:
    the mask of s' is told by the step number that s' observes."""
    agent = DQNAgent(env(), CONFIG, seed=0)
    assert agent.observation_space == spaces.Box(0, 10, (1,), np.float32)
    agent.learn(240)
    batch = agent.replay.gather(np.arange(len(agent.replay)))
    assert batch.next_action_masks is not None
    t = batch.next_observations[:, 0].long()
    expected = torch.arange(3)[None] != (t % 3)[:, None]
    bootstrapped = batch.discounts > 0
    assert torch.equal(batch.next_action_masks[bootstrapped], expected[bootstrapped])
    assert ((t == 4) & bootstrapped).any()  # truncated rows among them
    assert (torch.arange(3)[None] != (batch.observations.long() % 3))[
        torch.arange(len(t)), batch.actions
    ].all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_target_uses_legal_actions_only(variant: Any) -> None:
    """Q is 8 for the illegal action and 2 for the best legal one; r = 1, gamma = 0.5."""
    agent = DQNAgent(
        make("info"), dataclasses.replace(CONFIG, variant=variant, gamma=0.5, hidden_sizes=())
    )
    agent.learn(50)  # within the warm-up
    for net in (agent.learner.q_net, agent.learner.target_net):
        (linear,) = (m for m in net.modules() if isinstance(m, torch.nn.Linear))
        with torch.no_grad():
            linear.weight.zero_()
            linear.bias.copy_(torch.tensor([8.0, 2.0, 1.0]))
    batch = agent.replay.gather(np.arange(50))
    seen = agent.learner.td_loss(batch).td_target
    t = batch.next_observations[:, 0]
    running = batch.discounts > 0
    best = torch.where(t % 3 == 0, 2.0, 8.0)  # action 0 is illegal where t % 3 == 0
    torch.testing.assert_close(seen, torch.where(running, 1 + 0.5 * best, 1.0))
    assert ((t % 3 == 0) & running).any()


def test_a_million_masked_draws() -> None:
    agent = DQNAgent(make("info"), CONFIG, seed=0)
    rng = np.random.default_rng(0)
    masks = rng.random((100_000, 3)) < 0.5
    masks[np.arange(len(masks)), rng.integers(3, size=len(masks))] = True
    observations = rng.random((len(masks), 1)).astype(np.float32)
    rows = np.arange(len(masks))
    for epsilon in np.linspace(0, 1, 10):
        assert masks[rows, agent._act(observations, float(epsilon), masks)].all()


def test_predict_heeds_masks() -> None:
    agent = DQNAgent(make("obs"), CONFIG, seed=0)
    observation = np.zeros(1, np.float32)
    for legal in range(3):
        mask = np.arange(3) == legal
        seen = {"observation": observation, "action_mask": mask.astype(np.int8)}
        assert agent.predict(seen) == legal
        assert agent.predict(seen, deterministic=False) == legal
        batch = {key: np.stack([value] * 4) for key, value in seen.items()}
        assert (np.asarray(agent.predict(batch)) == legal).all()
    seen["action_mask"] = np.ones(3, np.int8)
    assert agent.predict(seen, action_masks=[0, 1, 0]) == 1
    for bad, message in (
        (np.ones(2), r"must have shape \(1, 3\), one entry per action, got \(1, 2\)"),
        (np.array([1, 0, 2]), "must hold 0 and 1 only"),
        (np.zeros(3), r"action_masks allows no action in rows \[0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            agent.predict(seen, action_masks=bad)


def test_a_mask_of_another_length_is_refused() -> None:
    class Wrong(Masked):
        def _mask(self) -> np.ndarray:
            return np.ones(2, np.int8)

    with pytest.raises(ValueError, match=r"must have shape \(3,\), one entry per action, got \(2,"):
        make_stepper(Wrong("info")).reset()
    env = Masked("obs")
    env.observation_space["action_mask"] = spaces.MultiBinary(2)
    with pytest.raises(ValueError, match=r"must have shape \(3,\), one entry per action, got \(2,"):
        make_stepper(env)
