"""The page about PettingZoo: its script as it stands but shorter, and its pieces."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pettingzoo
import pytest
from support_pettingzoo import PARALLEL, ParallelScript

from dqn_adapters import DQNConfig
from dqn_adapters.benchmark import load_suite
from dqn_adapters.pettingzoo import MultiAgentDQN, SelfPlay

PAGE = (Path(__file__).parents[2] / "docs" / "pettingzoo.md").read_text()
EXAMPLE, GROUPS, NETWORK, ANNEAL, HOST = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
(SUITE,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


def run(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, "docs/pettingzoo.md", "exec"), names)
    return names


def test_the_script_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shorter = EXAMPLE.replace("60_000", "1_200").replace("games=200", "games=4")
    assert shorter != EXAMPLE
    names = run(shorter)
    assert "MatchResult(wins=" in capsys.readouterr().out
    env = pettingzoo.make("aec", "classic/tictactoe-v3")
    loaded = MultiAgentDQN.load("players.safetensors", env)
    assert loaded.num_timesteps == 1_200
    assert len(loaded.policies["both"].replay) == len(names["agent"].policies["both"].replay) > 0
    # The step size of the page's callback.
    run(ANNEAL, agent=loaded, config=names["config"], total=200)
    (group,) = loaded.policies["both"].learner.optimizer.param_groups
    assert group["lr"] == pytest.approx(names["config"].learning_rate * 0.01)


def test_the_network_of_the_page() -> None:
    env = pettingzoo.make("aec", "classic/connect_four-v3")
    config = DQNConfig(hidden_sizes=(16,), learning_starts=20, batch_size=8)
    names = run(NETWORK + "agent = MultiAgentDQN(env, config, network=FourInARow)", env=env,
                config=config, MultiAgentDQN=MultiAgentDQN)  # fmt: skip
    names["agent"].learn(60)
    assert names["agent"].policy("player_0").q_net.convolution.weight.shape == (32, 2, 4, 4)


def test_groups_of_the_page() -> None:
    config = DQNConfig(buffer_size=10)
    lines = re.split(r"\n(?=MultiAgentDQN)", GROUPS.strip())
    assert len(lines) == 4
    made = []
    for number, line in enumerate(lines):
        kind = ParallelScript([PARALLEL])
        kind.possible_agents = (
            ["red_0", "red_1", "blue_0"] if number >= 2 else ["player_1", "player_2"]
        )
        names = {"env": kind, "config": config, "other_config": DQNConfig(buffer_size=20)}
        made.append(list(eval(line.strip(), {**globals(), **names}).policies))
    assert made == [["player_1", "player_2"], ["both"], ["red", "blue"], ["red", "blue"]]


def test_the_host_of_the_page() -> None:
    env = ParallelScript([PARALLEL])
    env.possible_agents = ["a", "b", "c"]
    names = run(HOST.replace("10_000", "60"), parallel_env=env)
    assert names["model"].num_timesteps >= 60


def test_the_suite_of_the_page(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(
        "total_timesteps = 8\nseeds = 1\nevaluation = { points = 1, episodes = 1 }\n"
        + SUITE
        + "\n[config]\ntrain_freq = 4\nlearning_starts = 4\n"
    )
    suite = load_suite(str(path))
    suite.check_runnable()
    assert [system.name for system in suite.systems] == [
        *("pettingzoo-vanilla", "pettingzoo-target", "pettingzoo-double"),
    ]


def test_every_parameter_is_on_the_page() -> None:
    parameters = list(inspect.signature(MultiAgentDQN).parameters)
    assert len(parameters) == 9
    for name in (*parameters, *(field.name for field in fields(SelfPlay))):
        assert f"`{name}`" in PAGE
