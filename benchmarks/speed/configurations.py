"""What the rows train, and with which settings."""

from __future__ import annotations

from dataclasses import replace

from dqn_adapters.config import DQNConfig

ENVIRONMENT = "CartPole-v1"
NUM_ENVS = 16
HORIZON = 1_000_000
"""Environment steps of the schedules; longer than any row trains."""

LOT = 16
"""Turns are of a multiple of so many steps, which ends all training phases."""

SMALL = DQNConfig(
    learning_rate=1e-3,
    buffer_size=50_000,
    batch_size=64,
    train_freq=1,
    target_update_interval=500,
    exploration_steps=1000,
)
CONSTANT = replace(SMALL, exploration_initial_eps=SMALL.exploration_final_eps)
"""For peers whose schedule begins anew in every turn."""

LARGE = replace(SMALL, batch_size=128, hidden_sizes=(256, 256))
IMAGES = replace(SMALL, batch_size=32, train_freq=4, buffer_size=2000, hidden_sizes=(512,))
MANY = replace(SMALL, train_freq=NUM_ENVS, gradient_steps=NUM_ENVS)
SWEEP = replace(SMALL, learning_starts=0)
SWEEP_SEEDS = 8

STORED = 10_000
"""Transitions in Tianshou's buffer when its rows begin: it looks through all of them at every step,
so what is stored decides. CartPole is learned with about as many."""

PRIORITIZED = 1_000_000
"""Transitions in the buffers of the row of prioritised replay."""
