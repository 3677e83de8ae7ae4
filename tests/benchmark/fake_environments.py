"""Environments for suites of tests; a suite names one as `benchmark.fake_environments:<id>`."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

MASK = np.array([1, 0, 1], np.int8)


class Short(gym.Env[Any, Any]):
    """Episodes of four steps, a point for each; of three actions the second is illegal.

    Args:
        told: Where the mask is: in the observation, in `info`, or nowhere.
        start: The first action.
    """

    def __init__(self, told: str = "observation", start: int = 0) -> None:
        self.told = told
        seen = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.observation_space: spaces.Space[Any] = seen
        if told == "observation":
            mask = spaces.Box(0, 1, (3,), np.int8)
            self.observation_space = spaces.Dict({"seen": seen, "action_mask": mask})
        self.action_space = spaces.Discrete(3, start=start)

    def _observe(self) -> tuple[Any, dict[str, Any]]:
        seen = np.full(2, self.steps / 4, np.float32)
        if self.told == "observation":
            return {"seen": seen, "action_mask": MASK}, {}
        return seen, {"action_mask": MASK} if self.told == "info" else {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe()

    def step(self, action: int) -> Any:
        assert self.action_space.contains(int(action))
        assert self.told == "nowhere" or MASK[action], "illegal"
        self.steps += 1
        observation, info = self._observe()
        return observation, 1.0, self.steps == 4, False, info


class Method(Short):
    """The mask is told by a method, as for SB3-contrib."""

    def __init__(self) -> None:
        super().__init__("nowhere")

    def action_masks(self) -> np.ndarray:
        return MASK == 1


gym.register("Masked-v0", Short, max_episode_steps=9)
gym.register("MaskedInInfo-v0", Short, max_episode_steps=9, kwargs={"told": "info"})
gym.register("MaskedByMethod-v0", Method, max_episode_steps=9)
gym.register("FromThree-v0", Short, max_episode_steps=9, kwargs={"told": "nowhere", "start": 3})
