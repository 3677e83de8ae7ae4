"""Atari games with the preprocessing of Mnih et al. (2015), by Gymnasium's own wrappers.

    env = make_atari("Pong")                                      # or, where an id is wanted:
    env = gym.make("dqn_adapters.atari:dqn_adapters/Atari-v0", game="Pong")

Observations are `(4, 84, 84)` uint8: give `DQNConfig(frame_stack=4, hidden_sizes=(512,))`, and the
replay buffer keeps every frame once. Needs the extra `atari`; its wheel carries the games.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.wrappers import (
    AtariPreprocessing,
    ClipReward,
    FrameStackObservation,
    RecordEpisodeStatistics,
)

from dqn_adapters._extras import require

ATARI_ID = "dqn_adapters/Atari-v0"


def make_atari(
    game: str,
    *,
    stack: int = 4,
    frame_skip: int = 4,
    noop_max: int = 30,
    repeat_action_probability: float = 0.0,
    terminal_on_life_loss: bool = False,
    clip_rewards: bool = True,
    render_mode: str | None = None,
) -> gym.Env[Any, Any]:
    """An Atari game as DQN learns it.

    The score of the game itself, before rewards are clipped, is in `info["episode"]["r"]` at the
    end of an episode.

    Args:
        game: The name, such as `"Pong"`.
        stack: Frames in an observation.
        frame_skip: Frames of the game in a step; the last two are combined by their maximum.
        noop_max: At most so many idle frames begin an episode.
        repeat_action_probability: Of the emulator; 0.25 is the later "sticky actions" protocol
            (Machado et al. 2018).
        terminal_on_life_loss: A lost life terminates the episode.
        clip_rewards: Rewards are clipped to [-1, 1].
        render_mode: Passed on.

    Raises:
        ImportError: the extra `atari` is not installed.
        gymnasium.error.Error: there is no such game.
    """
    require("ale_py", extra="atari")
    require("cv2", extra="atari")
    import ale_py

    gym.register_envs(ale_py)
    env = gym.make(
        f"ALE/{game}-v5",
        frameskip=1,  # the wrapper skips
        repeat_action_probability=repeat_action_probability,
        render_mode=render_mode,
    )
    env = AtariPreprocessing(
        env,
        noop_max=noop_max,
        frame_skip=frame_skip,
        terminal_on_life_loss=terminal_on_life_loss,
    )
    env = RecordEpisodeStatistics(env)
    if clip_rewards:
        env = ClipReward(env, -1.0, 1.0)
    return FrameStackObservation(env, stack)


gym.register(
    ATARI_ID,
    entry_point="dqn_adapters.atari:make_atari",
    disable_env_checker=True,  # the game was made by gym.make and is wrapped already
    order_enforce=False,
)
