"""The variants in the RL Zoo's commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support import Chain

pytest.importorskip("rl_zoo3", reason="the extra zoo is not installed")


def zoo(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "dqn_adapters.sb3.zoo", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_train_and_enjoy(tmp_path: Path) -> None:
    common = ("--algo", "double_dqn", "--env", "CartPole-v1", "--seed", "1", "-f", "logs")
    small = ("-n", "1100", "--eval-freq", "500", "--eval-episodes", "1", "--device", "cpu")
    out = zoo(tmp_path, "train", *common, *small, "-params", "dueling:True", "gradient_steps:2")
    assert "('train_freq', 256)" in out  # the zoo's tuned settings of dqn
    assert (tmp_path / "logs/double_dqn/CartPole-v1_1/best_model.zip").exists()
    # Here in the process: the file is ours, of the right variant.
    from dqn_adapters.sb3 import DQN

    model = DQN.load(tmp_path / "logs/double_dqn/CartPole-v1_1/CartPole-v1.zip", device="cpu")
    assert (model.variant, model.dueling, model.num_timesteps) == ("double", True, 1280)
    out = zoo(tmp_path, "enjoy", *common, "-n", "300", "--no-render")
    assert "Episode Reward" in out


def test_a_search_for_hyper_parameters(tmp_path: Path) -> None:
    search = ("-optimize", "--n-trials", "1", "--n-jobs", "1", "--n-evaluations", "1")
    small = ("-n", "400", "--eval-episodes", "1", "--device", "cpu", "-f", "logs")
    zoo(tmp_path, "train", "--algo", "target_dqn", "--env", "CartPole-v1", *search, *small)
    (report,) = (tmp_path / "logs/target_dqn").glob("report_CartPole-v1_*.csv")
    assert "COMPLETE" in report.read_text()


def test_the_algorithms_are_registered_with_their_variant() -> None:
    from dqn_adapters.sb3.zoo import ALGORITHMS

    for name, cls in ALGORITHMS.items():
        model = cls("MlpPolicy", Chain(), device="cpu", buffer_size=10)
        assert f"{model.variant}_dqn" == name


def test_our_settings_lie_over_the_zoos() -> None:
    from dqn_adapters.sb3.zoo.hyperparams import hyperparams

    assert hyperparams["CartPole-v1"]["policy_kwargs"] == "dict(net_arch=[256, 256])"
    assert hyperparams["atari"]["replay_buffer_kwargs"] == "dict(frame_stack=4)"


def test_another_command_is_refused(tmp_path: Path) -> None:
    from dqn_adapters.sb3.zoo import main

    with pytest.raises(SystemExit, match="usage: .*vanilla_dqn,target_dqn,double_dqn"):
        main(["fly"])
