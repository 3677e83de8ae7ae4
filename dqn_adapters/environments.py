"""One way to step environments: a single one, or a vector of them in any autoreset mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from dqn_adapters.finite import as_reward, as_rewards, check_observations, moment
from dqn_adapters.networks import check_observation_space
from dqn_adapters.transition import Arrays, EnvStep, map_arrays

MASK = "action_mask"
"""Key of the mask of legal actions, in a Dict observation or in `info`."""

METHOD = "action_masks"
"""Method of an environment that returns the mask of legal actions."""

Masks = NDArray[np.bool_]

_NO, _YES = np.zeros(1, np.bool_), np.ones(1, np.bool_)  # flags of a single environment
for _flag in _NO, _YES:
    _flag.flags.writeable = False


class ObservationView:
    """Splits an environment's observations into what the network sees and the action mask.

    A Dict observation with the key `"action_mask"` carries the mask of legal actions; the network
    sees the rest, and if one key is left, its value alone.

    Args:
        space: The environment's space of one observation.
        num_actions: A, the length that a mask must have.

    Raises:
        ValueError: the space is not supported.
    """

    def __init__(self, space: spaces.Space[Any], num_actions: int) -> None:
        self.has_mask = isinstance(space, spaces.Dict) and MASK in space.spaces
        self._only: str | None = None
        if isinstance(space, spaces.Dict) and self.has_mask:
            check_mask_shape(space[MASK].shape, (num_actions,), f"observation space {space}")
            rest = {key: part for key, part in space.spaces.items() if key != MASK}
            if len(rest) == 1:
                (self._only,) = rest
            space = spaces.Dict(rest) if self._only is None else rest[self._only]
        check_observation_space(space)
        self.space = space
        self._shape = space.shape or ()
        self._has_floats = space.dtype is not None and np.dtype(space.dtype).kind == "f"

    def split(self, observation: Any) -> tuple[Any, Any]:
        """What the network sees, and the mask or None; of one observation or of a batch."""
        if not self.has_mask:
            return observation, None
        rest = {key: value for key, value in observation.items() if key != MASK}
        return rest if self._only is None else rest[self._only], observation[MASK]

    def arrays(self, observation: Any) -> Arrays:
        """What the network sees, copied to arrays of the space's dtype: an environment may write
        its next observation into the same memory."""
        if isinstance(self.space, spaces.Dict):
            return {key: np.array(observation[key], part.dtype) for key, part in self.space.items()}
        return np.array(observation, self.space.dtype)

    def receive(
        self, observations: Any, step: int | None, num_envs: int | None = None, *, finite: bool
    ) -> Arrays:
        """What an environment gave, checked, as a batch of copies; see `arrays`.

        Args:
            observations: `(N, ...)`, or one observation where `num_envs` is None.
            step: The environment step; None: the reset.
            num_envs: N.
            finite: Whether the observations must be finite.

        Raises:
            ValueError: they are not of the space.
            NonFiniteError: one is NaN or infinite.
        """
        try:
            arrays = self.arrays(observations)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(
                f"the observation {moment(step)} is not one of {self.space}: {error!r}"
            ) from error
        if num_envs is None:
            arrays = map_arrays(_as_row, arrays)
        count = num_envs or 1
        if (
            isinstance(arrays, dict)
            or arrays.shape != (count, *self._shape)
            or (finite and self._has_floats and not _are_finite(arrays))
        ):
            name = f"the observation {moment(step)}"
            check_observations(arrays, self.space, range(count), name=name, finite=finite)
        return arrays


class Stepper(Protocol):
    """N environments that are stepped together and start the next episode by themselves."""

    num_envs: int
    view: ObservationView
    action_space: spaces.Discrete
    observations: Arrays
    """What the next actions act on: `(N, ...)`."""

    action_masks: Masks | None
    """Which actions are legal there: `(N, A)`, True is legal. None: all are."""

    @property
    def only_resets(self) -> bool:
        """Whether the next step only resets all environments, whatever the actions."""

    def reset(self, seed: int | None = None) -> None:
        """Start an episode in every environment."""

    def step(self, actions: NDArray[np.int64], number: int) -> EnvStep:
        """Act with `(N,)` actions in 0 .. A - 1. What comes is checked before anything here is
        changed; but the environments have then moved, and must be reset.

        Args:
            actions: One for each environment.
            number: Of the environment step, for messages.

        Raises:
            ValueError: a reward, an observation or a mask does not have the shape that it must.
            NonFiniteError: a reward or an observation is not finite.
        """


def make_stepper(
    env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any] | str, *, check_observations: bool = True
) -> Stepper:
    """The stepper for an environment, a vector environment or the id of an environment; with or
    without a check that observations are finite.

    Raises:
        TypeError: `env` is none of these.
        ValueError: its spaces are not supported, or a vector environment does not say how it
            resets.
    """
    if isinstance(env, str):
        env = gym.make(env)
    if isinstance(env, VectorEnv):
        return VectorStepper(env, check_observations=check_observations)
    if isinstance(env, gym.Env):
        return SingleStepper(env, check_observations=check_observations)
    raise TypeError(
        f"env={env!r} is not accepted; it must be a gymnasium.Env, a gymnasium.vector.VectorEnv "
        "or the id of a registered environment"
    )


class SingleStepper:
    """A single environment, as N = 1."""

    num_envs = 1
    only_resets = False

    def __init__(self, env: gym.Env[Any, Any], *, check_observations: bool = True) -> None:
        self.env = env
        self._finite = check_observations
        self.action_space = check_action_space(env.action_space)
        self.view = ObservationView(env.observation_space, int(self.action_space.n))
        self._method = env.get_wrapper_attr(METHOD) if env.has_wrapper_attr(METHOD) else None
        self.action_masks: Masks | None = None

    def reset(self, seed: int | None = None) -> None:
        self.observations, self.action_masks = self._receive(*self.env.reset(seed=seed), None)

    def step(self, actions: NDArray[np.int64], number: int) -> EnvStep:
        action = actions[0] + self.action_space.start
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = as_reward(reward, number)
        next_observations, next_masks = self._receive(observation, info, number)
        acted_on, self.observations = self.observations, next_observations
        self.action_masks = next_masks
        if terminated or truncated:
            self.reset()
        return EnvStep(
            observations=acted_on,
            actions=actions,
            rewards=np.array([reward], np.float64),
            next_observations=next_observations,
            terminated=_YES if terminated else _NO,
            truncated=_YES if truncated else _NO,
            valid=_YES,
            next_action_masks=next_masks,
        )

    def _receive(
        self, observation: Any, info: Mapping[str, Any], step: int | None
    ) -> tuple[Arrays, Masks | None]:
        seen, mask = self.view.split(observation)
        observations = self.view.receive(seen, step, finite=self._finite)
        if mask is None:
            mask = info.get(MASK)
        if mask is None and self._method is not None:
            mask = self._method()
        if mask is not None:
            source = f"environment 0 {moment(step)}"
            return observations, as_masks(mask, (int(self.action_space.n),), source)[None]
        if self.action_masks is not None:  # it says nothing of this state: all are legal
            return observations, np.ones_like(self.action_masks)
        return observations, None


class VectorStepper:
    """A vector environment, in any of Gymnasium's autoreset modes."""

    def __init__(self, env: VectorEnv[Any, Any, Any], *, check_observations: bool = True) -> None:
        self.env = env
        self._finite = check_observations
        self.num_envs = env.num_envs
        self.action_space = check_action_space(env.single_action_space)
        self.view = ObservationView(env.single_observation_space, int(self.action_space.n))
        self.action_masks: Masks | None = None
        mode = env.metadata.get("autoreset_mode")
        try:
            self._mode = AutoresetMode(mode)
        except ValueError:
            raise ValueError(
                f"env.metadata['autoreset_mode'] is {mode!r}; a vector environment must say with "
                f"one of {', '.join(map(str, AutoresetMode))} how it resets"
            ) from None

    @property
    def only_resets(self) -> bool:
        """Whether the next step only resets all environments, whatever the actions."""
        return bool(self._resetting.all())

    def reset(self, seed: int | None = None) -> None:
        given = self._receive(*self.env.reset(seed=seed), None)
        self.observations, self.action_masks = given
        self._resetting = np.zeros(self.num_envs, np.bool_)

    def step(self, actions: NDArray[np.int64], number: int) -> EnvStep:
        given, rewards, terminated, truncated, info = self.env.step(
            actions + self.action_space.start
        )
        rewards = np.array(as_rewards(rewards, self.num_envs, number), np.float64)
        terminated, truncated = np.array(terminated, np.bool_), np.array(truncated, np.bool_)
        observations, masks = self._receive(given, info, number)
        next_observations, next_masks = observations, masks
        done, valid = terminated | truncated, ~self._resetting
        resetting = self._resetting
        if self._mode is AutoresetMode.NEXT_STEP:
            # The step after an episode's end ignores the action and returns the first observation.
            resetting = done
        elif done.any():
            if self._mode is AutoresetMode.SAME_STEP:
                next_observations, next_masks = self._final(
                    np.flatnonzero(done), info, observations, masks, number
                )
            else:
                observations, fresh = self._receive(
                    *self.env.reset(options={"reset_mask": done}), None, expected=masks is not None
                )
                if masks is not None and fresh is not None:
                    fresh = np.where(done[:, None], fresh, masks)
                masks = fresh
        acted_on, self.observations = self.observations, observations
        self.action_masks, self._resetting = masks, resetting
        return EnvStep(
            observations=acted_on,
            actions=actions,
            rewards=rewards,
            next_observations=next_observations,
            terminated=terminated,
            truncated=truncated,
            valid=valid,
            next_action_masks=next_masks,
        )

    def _receive(
        self,
        observations: Any,
        info: Mapping[str, Any],
        step: int | None,
        expected: bool = False,
    ) -> tuple[Arrays, Masks | None]:
        """What came, checked; without masks only if there never were any and none is expected."""
        seen, masks = self.view.split(observations)
        arrays = self.view.receive(seen, step, self.num_envs, finite=self._finite)
        if masks is None:
            masks = info.get(MASK)
            if masks is None and self.action_masks is None and not expected:
                return arrays, None
            given = np.asarray(info.get(f"_{MASK}", np.zeros(self.num_envs, np.bool_)))[:, None]
            # An environment that says nothing of its state: all actions are legal there.
            masks = np.where(given, True if masks is None else masks, True)
        shape = self.num_envs, int(self.action_space.n)
        return arrays, as_masks(masks, shape, f"{self.num_envs} environments {moment(step)}")

    def _final(
        self,
        rows: NDArray[np.int64],
        info: Mapping[str, Any],
        observations: Arrays,
        masks: Masks | None,
        step: int,
    ) -> tuple[Arrays, Masks | None]:
        """The true successors, where those at `rows` are already of the next episode."""
        observations = map_arrays(np.copy, observations)
        masks = None if masks is None else masks.copy()
        for i in rows.tolist():
            seen, mask = self.view.split(_row(info["final_obs"], i))
            final = self.view.receive(seen, step, finite=self._finite)
            map_arrays(lambda array, row, i=i: array.__setitem__(i, row[0]), observations, final)
            if mask is None:
                mask = _row(info.get("final_info", {}), i).get(MASK)
            if masks is not None:
                source = f"environment {i} {moment(step)}"
                masks[i] = True if mask is None else as_masks(mask, masks[i].shape, source)
        return observations, masks


class ActionMaskInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Puts what the environment's method `action_masks()` returns into `info["action_mask"]`.

    A vector environment passes infos on, also of an episode's last step, but no methods; so the
    environments in it need this wrapper where they have only the method.
    """

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return observation, self._with_mask(info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated, truncated, self._with_mask(info)

    def _with_mask(self, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, MASK: np.array(self.env.get_wrapper_attr(METHOD)(), np.int8)}


def as_masks(masks: Any, shape: tuple[int, ...], source: str = "the environment") -> Masks:
    """Masks as booleans; `ValueError` unless they have this shape and are 0 or 1."""
    array = np.asarray(masks)
    check_mask_shape(array.shape, shape, source)
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"the action mask of {source} must hold 0 and 1 only, got {array.tolist()}"
        )
    return np.array(array, np.bool_)


def check_mask_shape(got: Any, shape: tuple[int, ...], source: str) -> None:
    """Raise `ValueError` unless a mask has this shape."""
    if got != shape:
        raise ValueError(
            f"the action mask of {source} must have shape {shape}, one entry per action, got {got}"
        )


def check_action_space(space: spaces.Space[Any]) -> spaces.Discrete:
    """Return the space, or raise `ValueError` unless it is `Discrete`."""
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"action space {space} is not supported; DQN needs a gymnasium.spaces.Discrete"
        )
    return space


def _are_finite(array: NDArray[Any]) -> bool:
    return bool(np.count_nonzero(np.isfinite(array)) == array.size)  # half the time of `all`


def _as_row(array: NDArray[Any]) -> NDArray[Any]:
    return array[None]


def _row(batched: Any, i: int) -> Any:
    """Row i of what Gymnasium batched: an array of anything, or a dictionary of such arrays."""
    if isinstance(batched, dict):
        return {key: _row(value, i) for key, value in batched.items() if not key.startswith("_")}
    return batched[i]
