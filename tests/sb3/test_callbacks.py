"""The estimate against the realised return; the progress bar; formats of the logger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from support import Chain
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dqn_adapters.config import VARIANTS
from dqn_adapters.evaluation import discounted_returns, settled
from dqn_adapters.sb3 import OverestimationCallback


def test_discounted_returns() -> None:
    np.testing.assert_array_equal(discounted_returns(np.array([1, 2, 4]), 0.5), [3.0, 4.0, 4.0])
    assert settled(20, 0.5, 0.01) == 14  # 0.5 ** 7 is the first power below
    assert settled(5, 1.0, 0.01) == 0
    assert settled(5, 0.0, 0.01) == 5


class FromTheStart(Chain):
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.state = 0
        return self._observe(), {}


def always(model: Any, action: int, value: float) -> None:
    for net in (model.q_net, model.q_net_target):
        with torch.no_grad():
            net.q_net[0].weight.zero_()
            net.q_net[0].bias.fill_(value - 1.0)[action] = value


@pytest.mark.parametrize(
    ("action", "earned"),
    [(1, (0.125 + 0.25 + 0.5 + 1.0) / 4), (0, 0.0)],  # ends at the goal; is cut after 20 steps
)
def test_the_overestimation_is_logged_for_tensorboard(
    make: Any, tmp_path: Path, action: int, earned: float
) -> None:
    model = make(gamma=0.5, policy_kwargs={"net_arch": []}, learning_starts=1000)
    always(model, action, 2.0)
    model.set_logger(configure(str(tmp_path), ["tensorboard", "csv", "json"]))
    model.learn(30, callback=OverestimationCallback(FromTheStart(), 25, n_eval_episodes=2))
    model.logger.close()
    last = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    (values,) = [row for row in last if "value/return" in row]
    assert values["value/estimate"] == 2.0
    assert values["value/return"] == pytest.approx(earned)
    assert values["value/overestimation"] == pytest.approx(2.0 - earned)
    events = EventAccumulator(str(tmp_path)).Reload()
    (scalar,) = events.Scalars("value/overestimation")
    assert (scalar.step, scalar.value) == (25, pytest.approx(2.0 - earned))
    assert "value/overestimation" in (tmp_path / "progress.csv").read_text()


def test_the_overestimation_under_a_normaliser(make: Any) -> None:
    def env() -> Any:
        return VecNormalize(DummyVecEnv([Chain]))

    callback = OverestimationCallback(env(), 50)
    model = make(env()).learn(60, callback=callback)
    np.testing.assert_array_equal(callback.eval_env.obs_rms.mean.shape, (5,))
    assert callback.eval_env.obs_rms.count > 50
    assert model.num_timesteps == 60
    with pytest.raises(ValueError, match="eval_freq=0"):
        OverestimationCallback(Chain(), 0)


# The host's choice of bar, which calls itself experimental.
@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_progress_bar(make: Any, variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    make(variant=variant).learn(40, progress_bar=True)
    assert "40/40" in capsys.readouterr().out


def test_the_hosts_callbacks_that_end_a_training(make: Any) -> None:
    model = make().learn(1000, callback=StopTrainingOnMaxEpisodes(3))
    assert model._episode_num == 3
    assert model.num_timesteps < 1000
    enough = StopTrainingOnRewardThreshold(-1.0)
    evaluate = EvalCallback(Monitor(Chain()), callback_on_new_best=enough, eval_freq=30, verbose=0)
    assert make().learn(200, callback=evaluate).num_timesteps == 30
    stuck = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2, min_evals=0)
    evaluate = EvalCallback(
        Monitor(Chain()), callback_after_eval=stuck, eval_freq=10, n_eval_episodes=1, verbose=0
    )
    model = make(learning_starts=500).learn(500, callback=evaluate)  # its policy stays as it was
    assert model.num_timesteps < 200


def test_the_hosts_callback_of_every_so_many_steps(make: Any) -> None:
    seen = []

    class Note(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.num_timesteps)
            return True

    make().learn(100, callback=EveryNTimesteps(30, Note()))
    assert seen == [30, 60, 90]


def test_successes_are_logged_and_the_environment_may_be_exchanged(
    make: Any, tmp_path: Path
) -> None:
    class Success(Chain):
        def step(self, action: int) -> Any:
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, reward, terminated, truncated, {**info, "is_success": terminated}

    model = make(Success())
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(200, log_interval=1)
    last = json.loads((tmp_path / "progress.json").read_text().splitlines()[-1])
    assert 0.0 < last["rollout/success_rate"] <= 1.0
    other = Success(limit=7)
    model.set_env(other)
    model.learn(40, reset_num_timesteps=False)
    model.logger.close()
    assert model.num_timesteps == 240
    assert model.get_env().envs[0].unwrapped is other
    assert other.steps <= 7
