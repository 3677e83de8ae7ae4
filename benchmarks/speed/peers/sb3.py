"""Stable-Baselines3's DQN, and what is compared with it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from speed.parts import part
from speed.peers import Peer
from speed.side import Local, Work

if TYPE_CHECKING:
    from dqn_adapters.config import DQNConfig
    from speed.rows import Row

PEER = Peer("Stable-Baselines3", "stable_baselines3", "'dqn-adapters[sb3]'")

OURS = "dqn_adapters.sb3"


def rows() -> tuple[Row, ...]:
    """The rows against this peer."""
    from speed import configurations
    from speed.configurations import IMAGES, LARGE, MANY, NUM_ENVS, SMALL
    from speed.environments import Images, many, many_in_sb3
    from speed.ours import native, sweep
    from speed.rows import Row

    ours, theirs = partial(train, library=OURS), partial(train, library="stable_baselines3")
    seeds = configurations.SWEEP_SEEDS
    environments = f"{NUM_ENVS} environments"
    return (
        Row("sb3", PEER, partial(ours, SMALL), partial(theirs, SMALL)),
        Row("native", PEER, partial(native, SMALL), partial(theirs, SMALL)),
        Row(
            "sweep",
            PEER,
            partial(sweep, "native-target"),
            partial(sweep, "sb3-reference"),
            f"{seeds} short seeds in place of 30",
            steps=(12_000 * seeds, 1000 * seeds),
            turns=3,
        ),
        Row("native-256", PEER, partial(native, LARGE), partial(theirs, LARGE)),
        Row("sb3-256", PEER, partial(ours, LARGE), partial(theirs, LARGE)),
        Row(
            "native-cnn",
            PEER,
            partial(native, IMAGES, Images),
            partial(theirs, IMAGES, Images),
            environment=Images,
        ),
        Row(
            "sb3-cnn",
            PEER,
            partial(ours, IMAGES, Images),
            partial(theirs, IMAGES, Images),
            environment=Images,
        ),
        Row(
            "native-16",
            PEER,
            partial(native, MANY, many),
            partial(theirs, MANY, many_in_sb3),
            environments,
        ),
        Row(
            "sb3-16",
            PEER,
            partial(ours, MANY, many_in_sb3),
            partial(theirs, MANY, many_in_sb3),
            environments,
        ),
    )


def train(config: DQNConfig, make_env: Callable[[], Any] | None = None, *, library: str) -> Local:
    """Stable-Baselines3's loop, with the DQN of a library: its own, ours, or SBX's."""
    from dqn_adapters.benchmark.levelling import (
        sb3_adapter_arguments,
        sb3_arguments,
        sbx_arguments,
    )
    from speed.configurations import HORIZON
    from speed.environments import Images, one
    from speed.floor import floor

    module = importlib.import_module(library)
    levelled = {OURS: sb3_adapter_arguments, "sbx": sbx_arguments}
    arguments = levelled.get(library, sb3_arguments)(config, HORIZON)
    env = one() if make_env is None else make_env()
    policy = "MlpPolicy"
    if isinstance(env, Images):
        policy = "CnnPolicy"
        features = {"features_dim": config.hidden_sizes[0]}
        arguments["policy_kwargs"] = {"net_arch": [], "features_extractor_kwargs": features}
    # The host counts calls of step, each of which is one step of every environment.
    arguments["train_freq"] = config.train_freq // getattr(env, "num_envs", 1)
    model = module.DQN(policy, env, seed=0, device="cpu", **arguments)
    replay = model.replay_buffer

    def run(steps: int) -> None:
        model.learn(steps, reset_num_timesteps=False, log_interval=100)

    def work() -> Work:
        loss = float(model.logger.name_to_value.get("train/loss", math.nan))
        stored = replay.size() * model.n_envs
        return Work(model.num_timesteps, model._n_updates, stored, config.buffer_size, loss)

    around = (
        ("environment", model.env.step),
        ("act", model._sample_action),
        ("store", replay.add),
    )
    if library != OURS:
        return Local(run, work, (*around, ("sample", replay.sample), ("update", model.train)))
    learner = model.learner
    return Local(
        run,
        work,
        (
            *around,
            part("sample", replay, "draw"),
            part("update", learner, "update"),
            part("phase", learner, "train"),
        ),
        floor(model.q_net, model.observation_space, config),
    )
