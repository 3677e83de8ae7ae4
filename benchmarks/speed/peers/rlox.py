"""rlox's DQN: the replay buffer is in Rust, the rest in Python and torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speed.peers import Peer
from speed.side import Local, Work, adam_steps

if TYPE_CHECKING:
    from speed.rows import Row

PEER = Peer("rlox", "rlox", requirements=Path(__file__).with_suffix(".txt"))


def rows() -> tuple[Row, ...]:
    """The rows against this peer; its loss is the squared error."""
    from dataclasses import replace

    from speed.configurations import CONSTANT
    from speed.rows import in_its_process

    return in_its_process(PEER, replace(CONSTANT, loss="mse"), note="squared error")


def train(settings: Mapping[str, Any]) -> Local:
    """Its own `DQN.train`. Every call begins a new episode and counts its steps from 0, so the
    warm-up is over after the first."""
    from rlox.algorithms.dqn import DQN

    hidden, *others = settings["hidden_sizes"]
    assert others == [hidden], "its network has two hidden layers of one size"
    expected = {"loss": "mse", "variant": "target", "adam_eps": 1e-8, "tau": 1.0}
    assert {name: settings[name] for name in expected} == expected
    same = (
        *("buffer_size", "learning_rate", "batch_size", "gamma", "learning_starts", "train_freq"),
        *("gradient_steps", "max_grad_norm", "exploration_initial_eps", "exploration_final_eps"),
    )
    model = DQN(
        settings["environment"],
        hidden=hidden,
        double_dqn=False,
        target_update_freq=settings["target_update_interval"],
        **{name: settings[name] for name in same},
    )
    steps, loss = 0, math.nan

    def run(more: int) -> None:
        nonlocal steps, loss
        metrics = model.train(more)
        model.learning_starts = 0
        steps, loss = steps + more, metrics.get("loss", math.nan)

    return Local(
        run,
        lambda: Work(
            steps, adam_steps(model.optimizer), len(model.buffer), settings["buffer_size"], loss
        ),
        # It chooses actions within its loop, and its buffer is called from Rust.
        (
            ("environment", model.env.step),
            ("store", model._store_transition),
            ("update", model._update),
        ),
    )
