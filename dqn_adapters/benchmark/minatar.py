"""MinAtar's games (Young & Tian 2019) as environments of Gymnasium that a seed decides.

    env = gym.make("dqn_adapters.benchmark.minatar:dqn_adapters/MinAtar-v0", game="breakout")

Observations are `(10, 10, channels)` bool; rewards are those of the game. A suite says when an
episode is cut, for the games have no time limit. Needs the extra `minatar`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from dqn_adapters._extras import require

MINATAR_ID = "dqn_adapters/MinAtar-v0"


class FreshStart(gym.Wrapper[Any, Any, Any, Any]):
    """Actions are sticky, and MinAtar takes the last one of an episode for the one before the
    first of the next: the environment would depend on what was done before the reset."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        found = super().reset(seed=seed, options=options)
        self.unwrapped.game.last_action = 0  # type: ignore[attr-defined]
        return found


def make_minatar(
    game: str,
    *,
    sticky_action_prob: float = 0.1,
    difficulty_ramping: bool = True,
    use_minimal_action_set: bool = False,
) -> gym.Env[Any, Any]:
    """A game of MinAtar.

    Args:
        game: `"asterix"`, `"breakout"`, `"freeway"`, `"seaquest"` or `"space_invaders"`.
        sticky_action_prob: That the last action is taken in place of the chosen one.
        difficulty_ramping: The game gets harder on the way, where it has that.
        use_minimal_action_set: Only the actions that do something in this game. False is the
            protocol of the paper: six actions in every game.

    Raises:
        ImportError: the extra `minatar` is not installed.
        ValueError: there is no such game.
    """
    require("minatar", extra="minatar")
    from minatar.gym import BaseEnv

    try:
        env = BaseEnv(
            game,
            sticky_action_prob=sticky_action_prob,
            difficulty_ramping=difficulty_ramping,
            use_minimal_action_set=use_minimal_action_set,
        )
    except ModuleNotFoundError as error:
        raise ValueError(f"game={game!r} is not accepted; MinAtar has no such game") from error
    return FreshStart(env)


gym.register(MINATAR_ID, entry_point="dqn_adapters.benchmark.minatar:make_minatar")
