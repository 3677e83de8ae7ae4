import dataclasses
import json
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from dqn_adapters import DQNConfig
from dqn_adapters.benchmark import EnvironmentSpec, Evaluation, EvaluationSpec, Recorder, RunSpec
from dqn_adapters.benchmark import recorder as module
from dqn_adapters.benchmark.recorder import ValueWatch, evaluate, make_environment

RUN = RunSpec(
    environment=EnvironmentSpec("CartPole-v1", max_episode_steps=50),
    system="a-system",
    config=DQNConfig(train_freq=4),
    total_timesteps=20,
    evaluation=EvaluationSpec((0, 12, 20), 3),
    root_seed=0,
    seed_index=0,
)


def follow_the_pole(observations: NDArray[Any]) -> NDArray[Any]:
    return (observations[:, 2] + observations[:, 3] > 0).astype(np.int64)


def one_episode(seed: int) -> tuple[float, int]:
    environment = gym.make("CartPole-v1", max_episode_steps=50)
    observation, _ = environment.reset(seed=seed)
    total, length = 0.0, 0
    while True:
        action = int(follow_the_pole(observation[None])[0])
        observation, reward, terminated, truncated, _ = environment.step(action)
        total += float(reward)
        length += 1
        if terminated or truncated:
            return total, length


def test_batched_evaluation_is_the_episodes_one_by_one() -> None:
    batches = []

    def greedy(observations: NDArray[Any]) -> NDArray[Any]:
        batches.append(len(observations))
        return follow_the_pole(observations)

    seeds = [11, 12, 13, 14, 15]
    environments = [make_environment(RUN.environment) for _ in seeds]
    returns, lengths = evaluate(greedy, environments, seeds)
    alone = [one_episode(seed) for seed in seeds]
    assert list(zip(returns, lengths, strict=True)) == alone
    # One call per step, with the episodes that still run.
    assert batches == [sum(length > step for _, length in alone) for step in range(max(lengths))]
    # The environments can be used again: the seeds decide.
    assert evaluate(greedy, environments, seeds) == (returns, lengths)


class Scripted(gym.Env[NDArray[np.float32], int]):
    """Episodes of three steps with the rewards 1, 2, 4; action 1 lets the time limit cut them."""

    observation_space = gym.spaces.Box(-1.0, 9.0, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, **_: Any) -> tuple[NDArray[np.float32], dict[str, Any]]:
        self.step_number = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        reward = 2.0**self.step_number
        self.step_number += 1
        end = self.step_number == 3
        observation = np.full(1, self.step_number, np.float32)
        return observation, reward, end and action == 0, end and action == 1, {}


def value_check(action: int, gamma: float, estimates: list[float]) -> Any:
    watch = ValueWatch(
        lambda observations: np.array([estimates[int(each[0])] for each in observations]), gamma, 2
    )
    result = evaluate(
        lambda observations: np.full(len(observations), action),
        [Scripted(), Scripted()],
        [0, 1],
        watch,
    )
    assert result == ((7.0, 7.0), (3, 3))
    return watch.check()


def test_estimates_are_held_against_the_discounted_returns() -> None:
    # Returns with gamma 0.5: 1 + 0.5 * 2 + 0.25 * 4 = 3, 2 + 0.5 * 4 = 4, 4.
    found = value_check(0, 0.5, [5.0, 3.0, -9.0])
    assert found.states == 6
    assert found.realised == pytest.approx((3 + 4 + 4) / 3)
    assert found.estimate == pytest.approx((5 + 3 - 9) / 3)
    assert found.bias == pytest.approx(-4.0)
    assert found.positive == pytest.approx(1 / 3)
    assert found.largest == 9.0
    assert found.possible == 4.0 / (1 - 0.5)
    assert found.diverged
    assert not value_check(0, 0.5, [5.0, 3.0, -7.9]).diverged
    assert not value_check(0, 1.0, [5.0, 3.0, 1e9]).diverged  # nothing is impossible


@pytest.mark.parametrize("estimate", [math.inf, -math.inf, math.nan])
def test_an_estimate_that_is_no_number_is_a_divergence(estimate: float) -> None:
    for gamma in (0.5, 1.0):
        found = value_check(0, gamma, [5.0, estimate, -9.0])
        assert found.diverged
        assert not found.finite
        evaluation = Evaluation(8, (7.0,), (3,), found)
        text = json.dumps(evaluation.to_dict(), allow_nan=False)
        assert Evaluation.from_dict(json.loads(text)) == evaluation


def test_what_is_possible_is_known_from_training_too() -> None:
    """Greedy play may earn nothing where exploration has; an estimate above 0 is right then."""
    noisy = EnvironmentSpec("CartPole-v1", max_episode_steps=50, reward_noise=9.0)
    run = dataclasses.replace(
        RUN, environment=noisy, evaluation=dataclasses.replace(RUN.evaluation, values=True)
    )
    recorder = Recorder(run)
    environment = recorder.environment()
    environment.reset()
    environment.unwrapped.step = lambda action: (np.zeros(4, np.float32), 3.0, False, False, {})
    recorder.start(
        lambda observations: np.zeros(len(observations), np.int64),  # falls before the time limit
        lambda observations: np.full(len(observations), 200.0),
    )
    for _ in range(12):
        environment.step(0)
        recorder.observe()
    untrained, trained = (each.values for each in recorder.evaluations)
    assert untrained is not None
    assert trained is not None
    assert (untrained.possible, untrained.diverged) == (pytest.approx(1 / 0.01), True)
    assert (trained.possible, trained.diverged) == (pytest.approx(3 / 0.01), False)


class Named(gym.Env[dict[str, Any], int]):
    """A Dict of observations; one step."""

    observation_space = gym.spaces.Dict(
        {"a": gym.spaces.Box(0.0, 9.0, (2,)), "b": gym.spaces.Discrete(3)}
    )
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"a": np.full(2, seed, np.float32), "b": np.int64(2)}, {}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        return self.reset(seed=0)[0], float(action), True, False, {}


def test_dicts_of_observations_are_evaluated_as_batches() -> None:
    def greedy(observations: Any) -> NDArray[Any]:
        assert observations["a"].tolist() == [[4.0, 4.0], [5.0, 5.0]]
        assert observations["b"].tolist() == [2, 2]
        return np.array([0, 1])

    assert evaluate(greedy, [Named(), Named()], [4, 5]) == ((0.0, 1.0), (1, 1))


def test_states_near_a_cut_are_left_out() -> None:
    # With gamma 0.2 a state counts if gamma ** steps-to-the-cut <= 0.05: 0.2 ** 2 = 0.04.
    found = value_check(1, 0.2, [5.0, 3.0, -9.0])
    assert found.states == 4  # the first two states of both episodes
    assert found.realised == pytest.approx(((1 + 0.2 * 2 + 0.04 * 4) + (2 + 0.2 * 4)) / 2)
    assert found.estimate == 4.0
    assert value_check(1, 0.99, [5.0, 3.0, -9.0]) is None  # all are too near


def test_values_are_measured_only_where_the_run_asks() -> None:
    asks = dataclasses.replace(RUN, evaluation=EvaluationSpec((0, 20), 2, values=True))
    recorder = Recorder(asks)
    recorder.environment().reset()
    with pytest.raises(RuntimeError, match="'a-system' does not tell start.. its values"):
        recorder.start(follow_the_pole)
    # A policy that falls over: of one that the time limit cuts no state is kept.
    recorder.start(
        lambda observations: np.ones(len(observations), np.int64),
        lambda observations: np.ones(len(observations)),
    )
    (first,) = recorder.evaluations
    assert first.values is not None
    assert first.values.estimate == 1.0
    silent = Recorder(RUN)
    silent.environment().reset()
    silent.start(follow_the_pole, lambda observations: np.ones(len(observations)))
    assert silent.evaluations[0].values is None


def test_noise_on_the_rewards_is_in_training_alone() -> None:
    noisy = dataclasses.replace(
        RUN, environment=dataclasses.replace(RUN.environment, reward_noise=2.0)
    )

    def rewards(run: RunSpec, steps: int = 400) -> tuple[list[float], Recorder]:
        recorder = Recorder(dataclasses.replace(run, total_timesteps=steps))
        environment = recorder.environment()
        environment.reset()
        seen = []
        for step in range(steps):
            _, reward, terminated, truncated, _ = environment.step(step % 2)
            seen.append(float(reward))
            if terminated or truncated:
                environment.reset()
        return seen, recorder

    seen, recorder = rewards(noisy)
    assert np.mean(seen) == pytest.approx(1.0, abs=0.4)
    assert np.std(seen) == pytest.approx(2.0, abs=0.3)
    assert seen == rewards(noisy)[0]
    assert len(set(seen)) == len(seen)
    assert set(rewards(RUN)[0]) == {1.0}
    # What is recorded is the task's own return, and the episodes are those without noise.
    assert recorder.episodes == rewards(RUN)[1].episodes


def train(recorder: Recorder, *, steps: int = 20, reset_seed: int | None = 5) -> list[Any]:
    environment = recorder.environment()
    seen = [environment.reset(seed=reset_seed)[0]]
    recorder.start(follow_the_pole)
    for step in range(steps):
        observation, _, terminated, truncated, _ = environment.step(step % 2)
        seen.append(observation)
        if terminated or truncated:
            seen.append(environment.reset(seed=reset_seed)[0])
        recorder.observe()
    return seen


def test_evaluations_happen_when_due_in_their_own_environments() -> None:
    recorder = Recorder(RUN)
    seen = train(recorder)
    recorder.finish()
    assert [each.timestep for each in recorder.evaluations] == [0, 12, 20]
    for point, each in enumerate(recorder.evaluations):
        expected = [one_episode(seed) for seed in RUN.evaluation_seeds(point)]
        assert list(zip(each.returns, each.lengths, strict=True)) == expected

    unevaluated = Recorder(dataclasses.replace(RUN, evaluation=EvaluationSpec((0, 20), 1)))
    np.testing.assert_array_equal(seen, train(unevaluated))  # training does not notice


def test_the_run_seeds_the_training_environment_whatever_the_library_does() -> None:
    first, second = train(Recorder(RUN), reset_seed=5), train(Recorder(RUN), reset_seed=None)
    np.testing.assert_array_equal(first, second)
    other = train(Recorder(dataclasses.replace(RUN, seed_index=1)))
    assert not np.array_equal(first[0], other[0])


def test_a_second_episode_starts_elsewhere() -> None:
    recorder = Recorder(RUN)
    environment = recorder.environment()
    before = environment.reset(seed=5)[0]
    environment.step(0)
    assert not np.array_equal(before, environment.reset(seed=5)[0])


def test_every_episode_has_its_own_seed_however_often_the_library_resets() -> None:
    recorder = Recorder(RUN)
    environment = recorder.environment()
    starts = []
    for _ in range(3):
        environment.reset(seed=1)
        starts.append(environment.reset()[0])  # twice, and no step between: the same episode
        environment.step(0)  # given up after a step: the next one is another
    reference = make_environment(RUN.environment)
    expected = [reference.reset(seed=RUN.episode_seed(number))[0] for number in range(3)]
    np.testing.assert_array_equal(starts, expected)


def test_training_episodes_are_recorded() -> None:
    recorder = Recorder(RUN)
    environment = recorder.environment()
    environment.reset()
    recorder.start(follow_the_pole)
    lengths, length = [], 0
    for _ in range(20):
        terminated = environment.step(1)[2]  # falls over in about ten steps
        recorder.observe()
        length += 1
        if terminated:
            lengths.append(length)
            length = 0
            environment.reset()
    assert lengths
    assert [each.length for each in recorder.episodes] == lengths
    assert [each.episode_return for each in recorder.episodes] == [float(n) for n in lengths]
    assert [each.timestep for each in recorder.episodes] == np.cumsum(lengths).tolist()


def test_evaluation_is_off_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    monkeypatch.setattr(module.time, "process_time", lambda: now / 2)

    def slow(observations: NDArray[Any]) -> NDArray[Any]:
        nonlocal now
        now += 1000.0
        return follow_the_pole(observations)

    recorder = Recorder(RUN)
    environment = recorder.environment()
    environment.reset()
    now += 500.0  # building an agent is not training
    recorder.start(slow)
    for step in range(20):
        now += 1.0
        if environment.step(step % 2)[2]:
            environment.reset()
        recorder.observe()
    now += 0.5
    assert recorder.finish() == 20.5
    assert recorder.cpu_seconds == 10.25
    assert recorder.evaluation_seconds == [0.0, 12.0, 20.0]


def test_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "perf_counter", lambda: now)
    told: list[int] = []
    run = dataclasses.replace(RUN, total_timesteps=1000, evaluation=EvaluationSpec((0, 1000), 1))
    recorder = Recorder(run, told.append)
    environment = recorder.environment()
    environment.reset()
    recorder.start(follow_the_pole)
    for _ in range(1000):
        now += 0.001
        if environment.step(0)[2]:
            environment.reset()
    assert told == [64, 320, 576, 832]


def test_a_system_that_does_not_observe_is_told() -> None:
    recorder = Recorder(RUN)
    environment = recorder.environment()
    environment.reset()
    recorder.start(follow_the_pole)
    for step in range(20):
        if environment.step(step % 2)[2]:
            environment.reset()
    with pytest.raises(RuntimeError, match="observe.. at environment step 20 and not at 12,"):
        recorder.observe()


def test_a_system_that_observes_beside_the_schedule_is_told() -> None:
    """Else its run would be stored and not be read again."""
    recorder = Recorder(RUN)
    environment = recorder.environment()
    environment.reset()
    recorder.start(follow_the_pole)
    for step in range(14):
        environment.step(step % 2)
    with pytest.raises(RuntimeError, match="observe.. at environment step 14 and not at 12,"):
        recorder.observe()


def test_a_system_that_trains_too_little_is_told() -> None:
    recorder = Recorder(RUN)
    train(recorder, steps=16)
    with pytest.raises(RuntimeError, match="trained for 16 environment steps instead of 20"):
        recorder.finish()


def test_a_system_that_never_starts_is_told() -> None:
    with pytest.raises(RuntimeError, match=r"never called start\(\)"):
        Recorder(RUN).finish()
