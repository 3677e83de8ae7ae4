"""The trainer: Tianshou's, telling the algorithm how many environment steps were taken."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tianshou.data import CollectStats
from tianshou.data.collector import BaseCollector
from tianshou.trainer import OffPolicyTrainer, OffPolicyTrainerParams
from tianshou.utils import LazyLogger, MovAvg

from dqn_adapters.config import DQNConfig, checked_int
from dqn_adapters.finite import NonFiniteError
from dqn_adapters.tianshou.buffers import break_off
from dqn_adapters.tianshou.collector import copying

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from dqn_adapters.tianshou.algorithm import DQN
    from dqn_adapters.tianshou.multi_agent import MultiAgentOffPolicyAlgorithm


def trainer_params(
    config: DQNConfig,
    total_timesteps: int,
    *,
    training_collector: BaseCollector[Any],
    max_epochs: int = 1,
    **params: Any,
) -> OffPolicyTrainerParams:
    """Trainer parameters that follow a config: `train_freq`, `gradient_steps`, `batch_size`.

    Args:
        config: Hyper-parameters.
        total_timesteps: Environment steps of the training, warm-up included.
        training_collector: Collects with `exploration_noise=True`.
        max_epochs: Epochs into which the steps are divided; Tianshou evaluates after each.
        **params: Any other parameter of `OffPolicyTrainerParams`.
    """
    checked_int("total_timesteps", total_timesteps, low=1)
    checked_int("max_epochs", max_epochs, low=1)
    values: dict[str, Any] = {
        "max_epochs": max_epochs,
        "epoch_num_steps": math.ceil(total_timesteps / max_epochs),
        "collection_step_num_env_steps": config.train_freq,
        "update_step_num_gradient_steps_per_sample": config.gradient_steps / config.train_freq,
        "batch_size": config.batch_size,
        **params,
    }
    return OffPolicyTrainerParams(training_collector=training_collector, **values)


class _MovingAverage(MovAvg):
    """Tianshou's; numpy's mean of a list takes many times as long, six times in every update."""

    def add(self, data_array: Any) -> float:
        if type(data_array) is not float:
            return super().add(data_array)
        if math.isfinite(data_array):
            self.cache.append(data_array)  # type: ignore[arg-type]
            del self.cache[: -self.size]
        return self.get()

    def get(self) -> float:
        return float(sum(self.cache)) / len(self.cache) if self.cache else 0.0


class DQNTrainer(OffPolicyTrainer):
    """Collects, counts (which syncs the target network and sets epsilon), then updates.

    Environment steps are known once per collection step. So epsilon is constant within one, and
    the warm-up ends with one.

    The gradient steps owed are carried over from one collection step to the next: less than one
    per collection step is possible, and the ratio that was asked for holds in the long run.
    """

    algorithm: DQN[Any] | MultiAgentOffPolicyAlgorithm

    def reset(self, reset_collectors: bool = True, reset_collector_buffers: bool = False) -> None:
        """Begin the training; see Tianshou's `Trainer.reset`."""
        self._samples = self._updates = 0
        self._stat = defaultdict(_MovingAverage)
        self.algorithm.start_schedule(self.params.max_epochs * self.params.epoch_num_steps)
        buffer, updates = self.params.training_collector.buffer, self.algorithm.counts["updates"]
        if updates and not len(buffer):
            log.warning(
                "the replay buffer is empty, and the algorithm has made %d updates: "
                "Collector.reset empties a loaded buffer, unless reset_buffer=False",
                updates,
            )
        if reset_collectors:
            break_off(buffer)
        super().reset(reset_collectors, reset_collector_buffers)

    def _collect_training_data(self) -> CollectStats:
        steps = self.algorithm.counts["steps"]
        try:
            with copying(self.params.training_collector):  # one of Tianshou's does not copy
                stats = super()._collect_training_data()
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} (while collecting after step {steps})") from error
        self.algorithm.count(steps=stats.n_collected_steps, episodes=stats.n_collected_episodes)
        return stats

    def _update_moving_avg_stats_and_log_update_data(self, update_stat: Any) -> None:
        if type(self._logger) is not LazyLogger:  # which logs nothing
            return super()._update_moving_avg_stats_and_log_update_data(update_stat)
        losses = update_stat.get_loss_stats_dict()
        update_stat.smoothed_loss = self._update_moving_avg_stats_and_get_averaged_data(losses)
        return None

    def _update_moving_avg_stats_and_get_averaged_data(
        self, data: dict[str, float]
    ) -> dict[str, float]:
        return {name: self._stat[name].add(value) for name, value in data.items()}

    def _update_step(self, collect_stats: Any) -> Any:
        if self.algorithm.warming_up:
            return None
        self._samples += collect_stats.n_collected_steps
        due = round(self.params.update_step_num_gradient_steps_per_sample * self._samples)
        stats = None
        while self._updates < due:
            self._updates += 1
            stats = self._sample_and_update(self.params.training_collector.buffer)
            self._policy_update_time += stats.train_time
        return stats
