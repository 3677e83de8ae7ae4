"""DQN without one of its parts, for the claims that the part helps; see `claims`.

The core has no switch for what is here: each agent is the native one with a single part replaced.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from dqn_adapters.agent import DQNAgent
from dqn_adapters.config import DQNConfig
from dqn_adapters.learner import DQNLearner, TDLoss
from dqn_adapters.replay import ReplayBuffer
from dqn_adapters.targets import q_learning_target
from dqn_adapters.transition import Transition


class Newest(ReplayBuffer):
    """No replay: it keeps one minibatch, and a draw is all that it keeps, each once."""

    def draw(self, batch_size: int) -> NDArray[np.int64]:
        """The slots of the newest transitions, at most `batch_size` of them.

        Raises:
            ValueError: there are none, or the buffer keeps more than a minibatch.
        """
        if not 0 < len(self) <= batch_size:
            raise ValueError(
                f"a minibatch of {batch_size} must be all that is kept, and {len(self)} are"
            )
        return np.arange(len(self))


class StreamAgent(DQNAgent):
    """Learns from the stream as it comes: every minibatch is the newest `batch_size` transitions.

    With `batch_size=k` and one update every k steps it learns from every transition once. Arguments
    are those of `DQNAgent`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.replay = Newest.from_config(
            dataclasses.replace(self.config, buffer_size=self.config.batch_size),
            self.observation_space,
            num_envs=self.replay.num_envs,
            generator=self.replay.generator,
            device=self.device,
        )


class ResidualLearner(DQNLearner):
    """Follows the gradient of the whole TD error, that of the target y included: the residual
    gradient (Baird 1995), which is the true gradient of the mean squared Bellman error where
    transitions are deterministic.

    Raises:
        ValueError: the variant is another than `"vanilla"`, whose target y alone is made of the
            parameters that are learned.
    """

    def __init__(self, q_net: torch.nn.Module, config: DQNConfig) -> None:
        if config.variant != "vanilla":
            raise ValueError(
                f"variant={config.variant!r} is not accepted; the residual gradient is one through "
                "y, and needs variant='vanilla'"
            )
        # The compiled kernel knows the usual gradient alone.
        super().__init__(q_net, config, execution="eager")

    def td_loss(self, batch: Transition) -> TDLoss:
        """The loss of `learner.td_loss`, without the stop of the gradient."""
        q_values = self.q_net(batch.observations)
        q_value = q_values.gather(1, batch.actions.unsqueeze(1)).squeeze(1)
        y = q_learning_target(
            batch.rewards,
            batch.discounts,
            self.q_net(batch.next_observations),
            next_action_masks=batch.next_action_masks,
        )
        if self.config.loss == "huber":
            losses = F.huber_loss(q_value, y, reduction="none", delta=self.config.huber_delta)
        else:
            losses = F.mse_loss(q_value, y, reduction="none")
        if batch.weights is not None:
            losses = losses * batch.weights
        prediction, target = q_value.detach(), y.detach()
        return TDLoss(losses.mean(), target - prediction, prediction, target)


class ResidualAgent(DQNAgent):
    """Vanilla DQN that does not stop the gradient through y. Arguments are those of `DQNAgent`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.learner = ResidualLearner(self.q_net, self.config)
