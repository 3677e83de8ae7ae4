"""Action masks by sb3-contrib's protocol: the environment's method `action_masks()`.

After an episode's end a `VecEnv` has already begun the next one, so its method speaks of the new
state. The mask of the true next state comes through `info["action_mask"]`, where the environment
or our wrapper `ActionMaskInfo` puts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from dqn_adapters.environments import MASK, METHOD, ActionMaskInfo, Masks, as_masks


def with_mask_info(env: Any) -> Any:
    """Wrap environments that have the method, so that their infos carry the mask.

    A `DummyVecEnv` has its environments wrapped in place; those of a `VecEnv` in other processes
    cannot be reached.
    """
    if isinstance(env, VecEnv):
        base = env.unwrapped
        if isinstance(base, DummyVecEnv):
            base.envs = [with_mask_info(one) for one in base.envs]
        return env
    if (
        isinstance(env, gym.Env)
        and env.has_wrapper_attr(METHOD)
        and (not is_wrapped(env, ActionMaskInfo))
    ):
        return ActionMaskInfo(env)
    return env


def check_masking(env: VecEnv, masks: Masks | None, use_masking: bool | None) -> None:
    """Raise `ValueError` if masks are to be used and do not come with the infos of a reset."""
    if masks is not None or use_masking is False:
        return
    if env.has_attr(METHOD):
        raise ValueError(
            f"the environments have the method {METHOD}(), but this vector environment does not "
            "bring the mask of an episode's final state; wrap each environment in "
            "dqn_adapters.environments.ActionMaskInfo (with make_vec_env: "
            "wrapper_class=ActionMaskInfo), or call learn(use_masking=False)"
        )
    if use_masking:
        raise ValueError(
            f"use_masking=True needs environments with a method {METHOD}() or with "
            f"info[{MASK!r}]; consider sb3-contrib's ActionMasker"
        )


def masks_in(
    infos: Sequence[dict[str, Any]], num_actions: int, *, expected: bool = False
) -> Masks | None:
    """The masks in the infos of N environments: `(N, A)`, True is legal.

    An environment that says nothing of its state: all actions are legal there. None if nobody says
    anything and no mask is `expected`.
    """
    given = [info.get(MASK) for info in infos]
    if not expected and all(mask is None for mask in given):
        return None
    legal = np.ones(num_actions, np.bool_)
    return np.stack([legal if mask is None else as_masks(mask, (num_actions,)) for mask in given])
