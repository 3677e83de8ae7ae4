"""A parallel environment as a `VecEnv` of Stable-Baselines3, and our DQN in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv
from stable_baselines3 import DQN as HostDQN
from stable_baselines3.common.vec_env import VecMonitor
from support_pettingzoo import PARALLEL, ParallelScript, Script

from dqn_adapters.pettingzoo import ParallelVecEnv
from dqn_adapters.sb3 import DQN

SMALL: dict[str, Any] = {
    "learning_starts": 6,
    "batch_size": 4,
    "train_freq": 1,
    "target_update_interval": 10,
    "buffer_size": 200,
    "policy_kwargs": {"net_arch": [8]},
    "seed": 0,
    "device": "cpu",
}


class Declared(ParallelScript):
    """The known game, with its three agents declared."""

    possible_agents = ["a", "b", "c"]  # noqa: RUF012


class Masked(ParallelEnv[str, Any, int]):
    """Two agents; action t is the only legal one at their step t of 3, by Dict observations. Then
    x is terminated and y truncated."""

    metadata: dict[str, Any] = {"name": "masked"}  # noqa: RUF012
    possible_agents = ["x", "y"]  # noqa: RUF012

    def __init__(self, last: dict[str, int]) -> None:
        self.last = last

    def observation_space(self, agent: str) -> spaces.Dict:
        mask = spaces.Box(0, 1, (4,), np.int8)
        return spaces.Dict(observation=spaces.Box(0, 9, (1,), np.float32), action_mask=mask)

    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete(4)

    def _observe(self) -> dict[str, Any]:
        mask = np.eye(4, dtype=np.int8)[self.t]
        return {
            agent: {"observation": np.array([self.t], np.float32), "action_mask": mask}
            for agent in self.agents
        }

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.t, self.agents = 0, list(self.possible_agents)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        assert all(action == self.t for action in actions.values())
        self.t += 1
        seen, agents = self._observe(), self.agents
        done = {agent: self.t == self.last[agent] for agent in agents}
        self.agents = [agent for agent in agents if not done[agent]]
        return (
            seen,
            dict.fromkeys(agents, 1.0),
            {agent: done[agent] and agent == "x" for agent in agents},
            {agent: done[agent] and agent == "y" for agent in agents},
            {agent: {} for agent in agents},
        )


def test_tape() -> None:
    """Two episodes, in which agents appear, die, vanish and come back."""
    env = ParallelVecEnv(Declared([PARALLEL]))
    assert env.num_envs == 3
    assert env.reset().tolist() == [[0, 0], [0, 1], [0, 0]]
    told = []
    for _ in range(6):
        seen, rewards, dones, infos = env.step(np.zeros(3, np.int64))
        finals = [info.get("terminal_observation") for info in infos]
        told.append(
            (
                seen.tolist(),
                rewards.tolist(),
                dones.astype(int).tolist(),
                env.valid.astype(int).tolist(),
                [info["TimeLimit.truncated"] for info in infos],
                [None if final is None else final.tolist() for final in finals],
            )
        )
        assert [info.get("valid", True) for info in infos] == env.valid.tolist()
    no = False
    first = (
        # c appears: for others than our DQN its waiting ends.
        *([[1, 0], [1, 1], [1, 2]], [1, 2, 0], [0, 0, 1], [1, 1, 0]),
        *([no, no, no], [None, None, [0, 0]]),
    )
    assert told[0] == first
    assert told[1] == (  # b dies
        *([[2, 0], [2, 1], [2, 2]], [3, 4, 5], [0, 1, 0], [1, 1, 1]),
        *([no, no, no], [None, [2, 1], None]),
    )
    assert told[2] == (  # a vanishes without a word; b waits
        *([[2, 0], [2, 1], [3, 2]], [0, 0, 6], [1, 0, 0], [0, 0, 1]),
        *([True, no, no], [[2, 0], None, None]),
    )
    assert told[3] == (  # b comes back
        *([[2, 0], [4, 1], [4, 2]], [0, 0, 7], [0, 1, 0], [0, 0, 1]),
        *([no, no, no], [None, [2, 1], None]),
    )
    assert told[4] == (  # b is terminated, c truncated, and the next episode begins
        *([[0, 0], [0, 1], [5, 2]], [0, 8, 9], [1, 1, 1], [0, 1, 1]),
        *([no, no, True], [[2, 0], [5, 1], [5, 2]]),
    )
    assert told[5][1:] == ([1, 2, 0], [0, 0, 1], [1, 1, 0], [no, no, no], [None, None, [5, 2]])


def told_rows(model: DQN) -> list[tuple[Any, ...]]:
    replay = model.replay_buffer.replay
    batch = replay.gather(np.arange(len(replay)))
    return [
        ("abc"[int(s[1])], int(s[0]), float(r), float(d), int(s2[0]))
        for s, r, d, s2 in zip(
            batch.observations, batch.rewards, batch.discounts, batch.next_observations, strict=True
        )
    ]


def test_our_dqn_stores_what_was_experienced_and_nothing_else() -> None:
    model = DQN("MlpPolicy", ParallelVecEnv(Declared([PARALLEL])), gamma=0.5, **SMALL)
    model.learn(9)
    assert told_rows(model) == [
        ("a", 0, 1.0, 0.5, 1),
        ("b", 0, 2.0, 0.5, 1),
        ("a", 1, 3.0, 0.5, 2),
        ("b", 1, 4.0, 0.0, 2),
        ("c", 1, 5.0, 0.5, 2),
        ("c", 2, 6.0, 0.5, 3),
        ("c", 3, 7.0, 0.5, 4),
        ("b", 4, 8.0, 0.0, 5),
        ("c", 4, 9.0, 0.5, 5),
    ]
    assert model.num_timesteps == 9


def test_n_step_returns_end_with_an_agent_that_vanishes() -> None:
    model = DQN("MlpPolicy", ParallelVecEnv(Declared([PARALLEL])), gamma=0.5, n_steps=9, **SMALL)
    model.learn(18)
    of = {agent: [row for row in told_rows(model) if row[0] == agent] for agent in "abc"}
    # Nothing of a's second episode is in its first, which ended where nobody looked.
    assert of["a"] == [("a", 0, 2.5, 0.25, 2), ("a", 1, 3.0, 0.5, 2)] * 2
    assert of["b"] == [("b", 0, 4.0, 0.0, 2), ("b", 1, 4.0, 0.0, 2), ("b", 4, 8.0, 0.0, 5)] * 2
    assert of["c"][-1] == ("c", 4, 9.0, 0.5, 5)  # truncated: it bootstraps


@pytest.mark.parametrize("last", [{"x": 3, "y": 3}, {"x": 1, "y": 3}, {"x": 3, "y": 2}])
def test_masks_of_dict_observations(last: dict[str, int]) -> None:
    env = ParallelVecEnv(Masked(last))
    model = DQN("MultiInputPolicy", env, variant="double", **SMALL)
    model.learn(60)  # the environment refuses what is illegal
    replay = model.replay_buffer.replay
    batch = replay.gather(np.arange(len(replay)))
    step = batch.next_observations["observation"][:, 0].long()
    assert (batch.next_action_masks.int() == np.eye(4, dtype=np.int32)[step]).all()
    assert (batch.observations["action_mask"].int().argmax(dim=1) == step - 1).all()
    # x is terminated at its end, y truncated; neither is asked again in that episode.
    assert len(replay) == model.num_timesteps
    terminal = batch.discounts == 0
    assert int(terminal.sum()) == model.num_timesteps // sum(last.values())
    assert (step[terminal] == last["x"]).all()
    masks = env.env_method("action_masks")
    actions, _ = model.predict(env.reset(), action_masks=masks, deterministic=True)
    assert actions.tolist() == [0, 0]


def test_masks_of_infos() -> None:
    class InInfos(Masked):
        def observation_space(self, agent: str) -> Any:
            return super().observation_space(agent)["observation"]

        def _split(self, seen: dict[str, Any]) -> Any:
            masks = {agent: {"action_mask": one["action_mask"]} for agent, one in seen.items()}
            return {agent: one["observation"] for agent, one in seen.items()}, masks

        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            return self._split(super().reset()[0])

        def step(self, actions: dict[str, int]) -> Any:
            seen, *rest, _ = super().step(actions)
            observations, infos = self._split(seen)
            return observations, *rest, infos

    model = DQN("MlpPolicy", ParallelVecEnv(InInfos({"x": 3, "y": 2})), **SMALL)
    model.learn(60)
    assert model.replay_buffer.has_masks


def test_the_hosts_own_algorithm_and_monitor() -> None:
    """What waits is stored there, but ends with a termination, so that nothing leads from it."""
    model = HostDQN("MlpPolicy", VecMonitor(ParallelVecEnv(Declared([PARALLEL]))), **SMALL)
    model.learn(60)
    buffer = model.replay_buffer
    rows = buffer.pos
    into = buffer.next_observations[:rows, :, 0] < buffer.observations[:rows, :, 0]
    assert not into.any()
    assert (buffer.dones[:rows].sum(axis=0) >= 3).all()


def test_methods_of_a_vec_env() -> None:
    env = ParallelVecEnv(Masked({"x": 3, "y": 3}))
    env.seed(3)
    env.reset()
    assert env.get_attr("t") == [0, 0]
    env.set_attr("t", 2)
    assert env.get_attr("t", indices=1) == [2]
    assert env.env_is_wrapped(VecMonitor) == [False, False]
    assert env.get_attr("render_mode") == [None, None]
    assert [mask.tolist() for mask in env.env_method("action_masks")] == [[1, 0, 0, 0]] * 2
    env.close()


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="must be a pettingzoo.ParallelEnv"):
        ParallelVecEnv(Script([]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="declares no possible_agents"):
        ParallelVecEnv(ParallelScript([PARALLEL]))

    class Different(Declared):
        def action_space(self, agent: str) -> spaces.Discrete:
            return spaces.Discrete(3 if agent == "b" else 2)

    with pytest.raises(ValueError, match=r"equal spaces.*'a' has Discrete\(2\), 'b' has Discr"):
        ParallelVecEnv(Different([PARALLEL]))

    class Continuous(Declared):
        def action_space(self, agent: str) -> Any:
            return spaces.Box(0, 1, (2,))

    with pytest.raises(ValueError, match="action space Box.* is not supported"):
        ParallelVecEnv(Continuous([PARALLEL]))
