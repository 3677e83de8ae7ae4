"""A Gymnasium vector environment where Stable-Baselines3 takes a `VecEnv`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from dqn_adapters.environments import MASK, VectorStepper
from dqn_adapters.transition import map_arrays


class VectorEnvAdapter(VecEnv):
    """A `gymnasium.vector.VectorEnv`, in any autoreset mode, as a `VecEnv`.

    Infos have `"terminal_observation"`, `"TimeLimit.truncated"`, the statistics of a finished
    `"episode"` as of a `Monitor`, and `"action_mask"`, the legal actions of the true next state.

    In the mode `NEXT_STEP` the step behind an episode's end only resets: `valid` is False for that
    environment, and an algorithm must not take the step for an experience.

    Args:
        env: The vector environment. A `"action_mask"` in its Dict observations is taken out of
            them.

    Raises:
        ValueError: a space is not supported, or the environment does not say how it resets.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self.env = env
        # Who trains checks the observations, or is told not to.
        self.stepper = VectorStepper(env, check_observations=False)
        self._num_steps = 0
        self.valid: NDArray[np.bool_] = np.ones(env.num_envs, np.bool_)
        """`(num_envs,)`, False where the last step only reset."""
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, np.int64)
        self._began = time.time()
        super().__init__(env.num_envs, self.stepper.view.space, self.stepper.action_space)

    @property
    def resets_in_next_step(self) -> bool:
        """Whether an episode's end is followed by a step that only resets."""
        return AutoresetMode(self.env.metadata["autoreset_mode"]) is AutoresetMode.NEXT_STEP

    def reset(self) -> Any:
        self.stepper.reset(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:], self.valid = 0.0, 0, np.ones(self.num_envs, np.bool_)
        self._arrived()
        return self._observations()

    def _arrived(self) -> None:
        masks = self.stepper.action_masks
        self.reset_infos = [
            {} if masks is None else {MASK: masks[i].copy()} for i in range(self.num_envs)
        ]

    def _observations(self) -> Any:
        return map_arrays(np.copy, self.stepper.observations)

    def step_async(self, actions: NDArray[Any]) -> None:
        assert isinstance(self.action_space, spaces.Discrete)
        self._actions = np.asarray(actions) - self.action_space.start

    def step_wait(self) -> Any:
        step = self.stepper.step(self._actions, self._num_steps + 1)
        self._num_steps += int(np.count_nonzero(step.valid))
        self._arrived()
        self.valid = step.valid
        dones = (step.terminated | step.truncated) & step.valid
        self._returns += np.where(step.valid, step.rewards, 0.0)
        self._lengths += step.valid
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i, info in enumerate(infos):
            info["TimeLimit.truncated"] = bool(step.truncated[i] and not step.terminated[i])
            if step.next_action_masks is not None:
                info[MASK] = step.next_action_masks[i]
            if dones[i]:
                info["terminal_observation"] = map_arrays(
                    lambda array, i=i: array[i], step.next_observations
                )
                info["episode"] = {
                    "r": float(self._returns[i]),
                    "l": int(self._lengths[i]),
                    "t": time.time() - self._began,
                }
        self._returns[dones], self._lengths[dones] = 0.0, 0
        return self._observations(), step.rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        if attr_name == "render_mode":
            return [self.env.render_mode] * len([*self._get_indices(indices)])
        call = getattr(self.env.unwrapped, "get_attr", None)
        if call is None:
            raise AttributeError(f"{self.env} has no attribute {attr_name!r} of its environments")
        values = call(attr_name)
        return [values[i] for i in self._get_indices(indices)]

    def has_attr(self, attr_name: str) -> bool:
        # Not by trying: an environment in another process would not survive the error.
        try:
            return all(self.env_method("has_wrapper_attr", attr_name))
        except AttributeError:
            return False

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        values = list(self.get_attr(attr_name))
        for i in self._get_indices(indices):
            values[i] = value
        self.env.unwrapped.set_attr(attr_name, values)  # type: ignore[attr-defined]

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls the method of all environments; Gymnasium knows no call of some of them."""
        if indices is not None and [*self._get_indices(indices)] != [*range(self.num_envs)]:
            raise ValueError(f"{self.env} calls {method_name!r} of all environments or of none")
        call = getattr(self.env.unwrapped, "call", None)
        if call is None:
            raise AttributeError(f"{self.env} has no method {method_name!r} of its environments")
        return [*call(method_name, *method_args, **method_kwargs)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """False: an episode's statistics come from here, not from a `Monitor`."""
        return [False] * len([*self._get_indices(indices)])

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        images: Any = self.env.render()
        return [None] * self.num_envs if images is None else [*images]
