"""MinAtar's games as environments of a suite."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from dqn_adapters.benchmark import SuiteError, load_suite, systems
from dqn_adapters.benchmark.spec import EvaluationSpec

pytest.importorskip("minatar", reason="needs the extra minatar")

ID = "dqn_adapters.benchmark.minatar:dqn_adapters/MinAtar-v0"


def play(env: gym.Env, seed: int, steps: int) -> list[tuple[bytes, float, bool]]:
    generator = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    seen = [(observation.tobytes(), 0.0, False)]
    for _ in range(steps):
        observation, reward, terminated, _, _ = env.step(int(generator.integers(6)))
        seen.append((observation.tobytes(), float(reward), terminated))
        if terminated:
            break
    return seen


@pytest.mark.parametrize("game", ["asterix", "breakout", "freeway", "space_invaders"])
def test_a_seed_decides_an_episode_whatever_was_played_before(game: str) -> None:
    env, fresh = (gym.make(ID, game=game, sticky_action_prob=0.9) for _ in range(2))
    assert env.observation_space.shape is not None
    assert env.observation_space.shape[:2] == (10, 10)
    assert env.observation_space.dtype == np.bool_
    assert env.action_space == gym.spaces.Discrete(6)
    play(env, 1, 40)
    env.step(3)  # which the next episode would begin with
    assert play(env, 2, 60) == play(fresh, 2, 60)
    assert len({tuple(play(env, seed, 60)) for seed in range(6)}) > 1


def test_fewer_actions_and_unknown_games() -> None:
    env = gym.make(ID, game="breakout", use_minimal_action_set=True)
    assert env.action_space == gym.spaces.Discrete(3)
    with pytest.raises(ValueError, match="game='pong' is not accepted"):
        gym.make(ID, game="pong")


def test_the_suite_is_the_papers_and_trains() -> None:
    suite = load_suite("minatar")
    suite.check_runnable()
    games = [each.spec.kwargs["game"] for each in suite.environments]
    assert games == ["breakout", "space_invaders", "freeway", "asterix"]
    assert suite.total_timesteps == 1_000_000
    run = next(each for each in suite.runs() if each.system == "native-double")
    short = dataclasses.replace(
        run,
        config=dataclasses.replace(run.config, learning_starts=100, buffer_size=1000),
        total_timesteps=160,
        evaluation=EvaluationSpec((0, 160), 2),
    )
    first, second = systems.train(short), systems.train(short)
    assert first.timing.updates == 60
    assert first.evaluations == second.evaluations
    assert first.episodes == second.episodes


def test_images_are_for_systems_that_have_the_network(write_suite: Callable[..., Path]) -> None:
    values = {"environment": ID, "environment_extra": EXTRA}
    load_suite(str(write_suite(["native-double"], **values))).check_runnable()
    with pytest.raises(SuiteError, match="has images, for which system 'sb3-double' cannot be lev"):
        load_suite(str(write_suite(["sb3-double"], **values))).check_runnable()


EXTRA = """kwargs = { game = "breakout" }
max_episode_steps = 100"""
