"""Multi-agent DQN for PettingZoo: turn-based (AEC) and parallel environments.

    agent = MultiAgentDQN(pettingzoo.make("aec", "classic/tictactoe-v3"), config, seed=0,
                          policy_groups={"player": ["player_1", "player_2"]})
    agent.learn(60_000)

`ParallelVecEnv` shows a parallel environment to Stable-Baselines3; it is imported when it is asked
for, since it needs that library.
"""

from typing import Any

from dqn_adapters._extras import require

require("pettingzoo", extra="pettingzoo")

from dqn_adapters.pettingzoo.agent import MultiAgentDQN, MultiAgentStep  # noqa: E402
from dqn_adapters.pettingzoo.groups import GroupPolicy, SelfPlay  # noqa: E402
from dqn_adapters.pettingzoo.matches import MatchResult, RandomPlayer, match, play  # noqa: E402

__all__ = [
    "GroupPolicy",
    "MatchResult",
    "MultiAgentDQN",
    "MultiAgentStep",
    "RandomPlayer",
    "SelfPlay",
    "match",
    "play",
]


def __getattr__(name: str) -> Any:
    if name == "ParallelVecEnv":
        from dqn_adapters.pettingzoo.vec_env import ParallelVecEnv

        return ParallelVecEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
