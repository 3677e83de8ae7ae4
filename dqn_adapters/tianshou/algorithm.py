"""The algorithm: Tianshou's hooks around the learner of the core."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar, Unpack

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tianshou.algorithm.algorithm_base import OffPolicyAlgorithm
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.modelfree.reinforce import SimpleLossTrainingStats
from tianshou.algorithm.optim import AdamOptimizerFactory, OptimizerFactory
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.lagged_network import EvalModeModuleWrapper
from tianshou.utils.torch_utils import torch_device

from dqn_adapters import stored
from dqn_adapters.compute import Execution
from dqn_adapters.config import DQNConfig, checked_float, rejected
from dqn_adapters.exploration import (
    beta_schedule,
    current_epsilon,
    epsilon_schedule,
)
from dqn_adapters.learner import DQNLearner, mean_metrics
from dqn_adapters.networks import DuelingHead
from dqn_adapters.replay import n_step_returns
from dqn_adapters.spaces import from_state, in_saved_order, to_state
from dqn_adapters.tianshou.batches import TransitionMemory, fields_of, to_transition
from dqn_adapters.tianshou.buffers import (
    _Buffer,
    check_transitions,
    is_prioritized,
    next_of,
    set_beta,
)
from dqn_adapters.tianshou.networks import QNet, as_stack
from dqn_adapters.tianshou.options import SCHEDULE, Options, config_from_options
from dqn_adapters.tianshou.policy import DQNPolicy
from dqn_adapters.tianshou.trainer import DQNTrainer
from dqn_adapters.transition import Observations, Transition

_LENGTHS = "exploration_steps", "priority_beta_steps"
"""Of the schedules of epsilon and beta; where the config has None, the training fixes them."""

TPolicy = TypeVar("TPolicy", bound=DiscreteQLearningPolicy[Any])


@dataclass(kw_only=True)
class DQNTrainingStats(SimpleLossTrainingStats):
    """What one gradient update saw, as means over the batch."""

    q_value: float
    """The prediction Q(s, a)."""

    td_target: float
    td_error: float
    """Target - prediction, in absolute value."""

    grad_norm: float
    """The global L2 norm of the gradient before clipping."""

    epsilon: float
    """Probability with which training data is collected at random."""


class DQN(OffPolicyAlgorithm[TPolicy]):
    """DQN in three variants, as an algorithm of Tianshou.

    Tianshou's own names (`gamma`, `n_step_return_horizon`, `target_update_freq`, `is_double`,
    `huber_loss_delta`) and defaults work as they do there. The documented way are the fields of
    `DQNConfig`: `variant`, `target_update_interval` (environment steps), `tau`, `loss`,
    `huber_delta`, `max_grad_norm`, `exploration_*`. Their defaults are those of `DQNConfig`,
    except where Tianshou has others: `loss="mse"`, no clipping, no warm-up, no epsilon schedule
    unless an option of it is given, and no target network unless one is asked for.

    Replay is prioritised if the buffer is, with the alpha and beta that it was made with. With
    `prioritized_replay=True` such a buffer is asked for, of the config's `priority_alpha`, and beta
    follows the config's schedule.

    Args:
        policy: The policy that acts; its model is what is learned. A `DQNPolicy`, or Tianshou's
            own. Of a network of the core, `QNet` is one.
        optim: Makes the optimiser of the model. None: Adam as in `config`.
        config: All hyper-parameters at once, in place of any keyword. Batch size and update ratio
            are the trainer's, `trainer_params` gives them; size and kind of the replay are the
            buffer's, `make_buffer` makes it; hidden layers are the model's.
        execution: How the learner computes; see `DQNLearner`.
        **options: See `Options`.

    Raises:
        ValueError: a value is not accepted, or two contradict each other.
        TypeError: there is no such option, or an argument is of another type.
    """

    def __init__(
        self,
        *,
        policy: TPolicy,
        optim: OptimizerFactory | None = None,
        config: DQNConfig | None = None,
        execution: Execution = "auto",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(policy=policy)
        if not isinstance(policy, DiscreteQLearningPolicy):
            raise rejected("policy", type(policy).__name__, "a DQNPolicy")
        if not isinstance(config, DQNConfig | None):
            raise TypeError(f"config={config!r} is not accepted; config must be a DQNConfig")
        if not isinstance(optim, OptimizerFactory | None):
            raise TypeError(
                f"optim={optim!r} is not accepted; optim must be an OptimizerFactory, such as "
                "AdamOptimizerFactory(lr=...)"
            )
        if config is None and optim is None:
            raise ValueError("optim is missing: write optim=AdamOptimizerFactory(lr=...)")
        if config is not None and options:
            raise ValueError(
                f"config and {', '.join(options)} are given: write dataclasses.replace(config, ...)"
            )
        self.config = config_from_options(options) if config is None else config
        if self.config.dueling and not _is_dueling(policy.model):
            raise ValueError(
                "config.dueling=True, and the policy's model has no dueling head: write "
                "QNet(..., dueling=True), or leave dueling to the model you pass"
            )
        optim = optim or AdamOptimizerFactory(self.config.learning_rate, eps=self.config.adam_eps)
        self.optim = self._create_optimizer(policy.model, optim)
        self.learner = DQNLearner(
            policy.model,
            self.config,
            optimizer=self.optim._optim,
            q_values=_q_values,
            execution=execution,
            as_stack=as_stack,
        )
        self._link_policy()
        self._memory = TransitionMemory()
        target_net = self.learner.target_net
        self.model_old = None if target_net is policy.model else EvalModeModuleWrapper(target_net)
        self._explores = config is not None or any(name in options for name in SCHEDULE)
        self._fixed = self.config  # with the lengths of the schedules, when they are fixed
        self._set_epsilon()

    def _link_policy(self) -> None:
        if isinstance(self.policy, DQNPolicy):
            self.policy.learner = self.learner

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._link_policy()  # of a copy

    def learners(self) -> Iterator[DQN[Any]]:
        """The algorithms that learn: this one alone, where a manager of many agents has several."""
        yield self

    @property
    def counts(self) -> Mapping[Any, int]:
        """Environment steps and finished episodes that it was told of, and updates made."""
        return self.learner.counts

    @property
    def warming_up(self) -> bool:
        """Whether actions are still uniformly random and nothing is learned."""
        return self.learner.counts["steps"] <= self.config.learning_starts > 0

    def count(self, *, steps: int = 0, episodes: int = 0) -> bool:
        """Tell of new environment steps and finished episodes, after collecting them.

        `run_training` does so. Whoever calls `update` in a loop of their own calls this before:
        the period of the target network and the epsilon schedule are counted in these. (The
        length of the schedule is `exploration_steps`, or see `start_schedule`.)

        Returns:
            Whether the target network was synced.
        """
        synced = self.learner.count(steps=steps, episodes=episodes)
        self._set_epsilon()
        return synced

    def start_schedule(self, total_timesteps: int) -> None:
        """Fix the lengths of the schedules of epsilon and of prioritised replay's beta, unless
        they are fixed; `run_training` does so."""
        self._fixed = dataclasses.replace(
            self._fixed,
            exploration_steps=epsilon_schedule(self._fixed, total_timesteps).steps,
            priority_beta_steps=beta_schedule(self._fixed, total_timesteps).steps,
        )
        self._set_epsilon()

    def _set_epsilon(self) -> None:
        if not self._explores:
            return
        fixed = self._fixed
        schedule = None if fixed.exploration_steps is None else epsilon_schedule(fixed, 0)
        epsilon = current_epsilon(fixed, schedule, self.learner.counts["steps"])
        self.policy.set_eps_training(epsilon)

    def update(self, buffer: Any, sample_size: int | None) -> Any:
        """One gradient step on transitions drawn from the buffer; see Tianshou's `update`.

        Raises:
            ValueError: the buffer cannot give what the algorithm needs.
            NonFiniteError: a reward, an observation or the loss is NaN or infinite; the network is
                as it was before.
        """
        self.prepare(buffer)
        return super().update(buffer, sample_size)

    def prepare(self, buffer: Any) -> None:
        """Look at the buffer, and set its beta; `update` does so before it draws.

        Raises:
            ValueError: the buffer cannot give what the algorithm needs.
        """
        self.check_buffer(buffer)
        if not len(buffer):
            raise ValueError("the buffer is empty: collect transitions before update")
        if self.config.prioritized_replay and self._fixed.priority_beta_steps is not None:
            set_beta(buffer, beta_schedule(self._fixed, 0)(self.learner.counts["steps"]))

    def create_trainer(self, params: OffPolicyTrainerParams) -> DQNTrainer:
        """The trainer of `run_training`.

        Raises:
            ValueError: the buffer or the collector cannot give what the algorithm needs.
        """
        self.check_collector(params.training_collector)
        return DQNTrainer(self, params)

    def check_collector(self, collector: Any) -> None:
        """Raise `ValueError` if the training collector, or its buffer, cannot give what the
        algorithm needs."""
        self.check_buffer(collector.buffer)
        if self._explores and not getattr(collector, "exploration_noise", True):
            raise rejected(
                "exploration_noise",
                False,
                "True in the training collector: the epsilon schedule acts through it",
            )

    def check_buffer(self, buffer: Any) -> None:
        """Raise `ValueError` if the buffer cannot give what the algorithm needs."""
        config, ours = self.config, isinstance(buffer, _Buffer)
        if buffer.options.get("ignore_obs_next") and not ours:
            raise ValueError(
                "ignore_obs_next=True is not accepted: such a buffer of Tianshou's gives s itself "
                "for the s' of a truncated or a newest step; ignore_obs_next must be False, or the "
                f"buffer dqn_adapters.tianshou.{type(buffer).__name__}"
            )
        if config.frame_stack not in (None, buffer.stack_num):
            raise rejected("stack_num", buffer.stack_num, f"frame_stack={config.frame_stack}")
        if not config.prioritized_replay:
            return
        if not is_prioritized(buffer):
            raise ValueError(
                f"prioritized_replay=True, and {type(buffer).__name__} samples uniformly: the "
                "buffer must be a prioritised one, such as PrioritizedVectorReplayBuffer"
            )
        if buffer.options["alpha"] != config.priority_alpha:
            accepted = f"the priority_alpha={config.priority_alpha} of the algorithm"
            raise rejected("alpha", buffer.options["alpha"], accepted)

    def _preprocess_batch(self, batch: Any, buffer: Any, indices: NDArray[Any]) -> Any:
        config, counts = self.config, self.learner.counts
        if self.model_old and config.target_update_unit != "updates" and not counts["steps"]:
            raise RuntimeError(
                f"the target network is synced every {config.target_update_interval} "
                f"{config.target_update_unit}, and none were counted: train by run_training or "
                "call algorithm.count(steps=..., episodes=...) after collecting"
            )
        if not isinstance(buffer, _Buffer):  # ours have looked at what they store
            check_transitions(batch, indices, where="row")
        rewards = buffer.rew
        if isinstance(rewards, np.ndarray) and rewards.shape[1:] == (1,):
            rewards = rewards[:, 0]
        batch.returns, batch.discounts, last = n_step_returns(
            indices,
            n_steps=config.n_steps,
            gamma=config.gamma,
            rewards=rewards,
            terminated=buffer.terminated,
            successor=buffer.next,
        )
        if config.n_steps > 1:
            batch.obs_next = next_of(buffer, last)
        if config.n_steps > 1 or buffer.stack_num > 1:
            batch.info = buffer.get(last, "info", stack_num=1)  # it came with s'
        return batch

    def _follow_host(self) -> None:
        """Learn the networks with the optimiser that Tianshou's algorithm would use."""
        learner = self.learner
        learner.q_net, learner.optimizer = self.policy.model, self.optim._optim
        if self.model_old is not None:
            learner.target_net = self.model_old.module

    def _update_with_batch(self, batch: Any) -> DQNTrainingStats:
        self._follow_host()
        metrics = self.learner.update(self._transition(batch))
        batch.weight = metrics.td_error  # the new priorities, if the buffer has any
        means = mean_metrics([metrics])
        return DQNTrainingStats(
            loss=means["loss"],
            q_value=means["q_value"],
            td_target=means["td_target"],
            td_error=means["td_error"],
            grad_norm=means["grad_norm"],
            epsilon=self.policy.eps_training,
        )

    def train(self, mode: bool = True) -> Self:
        """See `torch.nn.Module.train`. The trainer calls it in every step; a plain MLP does the
        same in both modes, so its modules are not walked through."""
        if self.learner.execution != "kernel":
            return super().train(mode)
        for module in self, self.policy:
            if module.training != mode:  # torch's modules look long at what they are set
                module.training = mode
        return self

    def _transition(self, batch: Any) -> Transition:
        fields = fields_of(batch)
        if self.learner.execution == "kernel":
            return self._memory.put(fields)
        return to_transition(fields, torch_device(self.policy.model))

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds beside networks and optimiser."""
        policy = self.policy
        return {
            "counts": dict(self.learner.counts),
            **{name: getattr(self._fixed, name) for name in _LENGTHS},
            "eps_training": policy.eps_training,
            "eps_inference": policy.eps_inference,
            "lr_schedulers": [scheduler.state_dict() for scheduler in self.lr_schedulers],
            "random_state": policy.random_state if isinstance(policy, DQNPolicy) else None,
            **self._spaces(),
        }

    def _spaces(self) -> dict[str, Any]:
        """Descriptions of the spaces; None where the policy does not know its observations, or
        they are of a kind that only a model of the user's own knows."""
        space = seen_space(self.policy)
        try:
            seen = None if space is None else to_state(space)
        except ValueError:
            seen = None
        return {"observation_space": seen, "action_space": to_state(self.policy.action_space)}

    def set_extra_state(self, state: Any) -> None:
        """Restore what `get_extra_state` gave."""
        self.learner.counts.update(state["counts"])
        lengths = {name: state[name] for name in _LENGTHS}
        self._fixed = dataclasses.replace(self.config, **lengths)
        self.policy.set_eps_training(state["eps_training"])
        self.policy.set_eps_inference(state["eps_inference"])
        for scheduler, saved in zip(self.lr_schedulers, state["lr_schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        if isinstance(self.policy, DQNPolicy) and state["random_state"] is not None:
            self.policy.random_state = state["random_state"]

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Restore what `state_dict` gave; the mapping is not changed.

        A checkpoint of Tianshou's own DQN loads too; it has no counters, so these stay as they
        are.

        Raises:
            ValueError: entries are missing or too many, a tensor has another shape, or the spaces
                are others; nothing is changed then.
        """
        state = self.fitted_state(state_dict, strict)
        self._read_in_order(self._saved_order(state["_extra_state"]))
        return super().load_state_dict(state, strict=strict, assign=assign)

    def fitted_state(self, state_dict: Mapping[str, Any], strict: bool = True) -> dict[str, Any]:
        """A copy of a state that is checked, and that `load_state_dict` loads.

        Raises:
            ValueError: it cannot be loaded.
        """
        state: dict[str, Any] = copy.deepcopy(dict(state_dict))
        state.setdefault("_extra_state", self.get_extra_state())
        self._check_extra_state(state["_extra_state"])
        before = seen_space(self.policy)
        self._read_in_order(self._saved_order(state["_extra_state"]))
        try:
            self._check_tensors(state, strict)
        finally:
            self._read_in_order(before)
        return state

    def _check_tensors(self, state: dict[str, Any], strict: bool) -> None:
        own = self.state_dict()  # type: ignore[no-untyped-call]
        odd = set(own) ^ set(state)
        if strict and odd:
            raise ValueError(
                f"the state does not fit a DQN with variant={self.config.variant!r}: "
                f"{', '.join(sorted(odd))} are in one and not in the other"
            )
        optimizers = state.get(self._STATE_DICT_KEY_OPTIMIZERS, [])
        for name, value in own.items():
            if isinstance(value, torch.Tensor) and name in state:
                stored.check_tensors("the state", {name: state[name]}, {name: value})
        if len(optimizers) == len(self._optimizers):
            for i, optimizer in enumerate(self._optimizers):
                optimizers[i] = stored.optimizer_state(
                    f"_optimizers[{i}]", optimizers[i], optimizer._optim
                )
        elif strict:
            raise ValueError(f"_optimizers of the state must be {len(self._optimizers)}")

    def _check_extra_state(self, state: Any) -> None:
        """Raise `ValueError` unless `set_extra_state` can restore the state."""
        own = self.get_extra_state()
        spaces = "observation_space", "action_space"  # states of earlier versions have none
        stored.check_mapping("_extra_state", state, own.keys() - set(spaces))
        counts = stored.check_mapping("counts", state["counts"], self.learner.counts)
        for unit in self.learner.counts:
            stored.check_count(f"counts.{unit}", counts[unit])
        for name in _LENGTHS:
            if state[name] is not None:
                stored.check_count(name, state[name])
        for name in ("eps_training", "eps_inference"):
            checked_float(name, state[name], high=1.0)
        schedulers = own["lr_schedulers"]
        stored.check_like("lr_schedulers", state["lr_schedulers"], schedulers)
        streams = state["random_state"]
        if isinstance(self.policy, DQNPolicy) and streams is not None:
            generators = self.policy._generators
            if not isinstance(streams, list) or len(streams) != len(generators):
                raise rejected("random_state", streams, f"{len(generators)} states")
            for stream, generator in zip(streams, generators, strict=True):
                stored.check_generator("random_state", stream, generator)

    def _saved_order(self, state: Mapping[str, Any]) -> spaces.Space[Any] | None:
        """What the network sees, with its keys in the order in which the saved one read them; None
        if that is not known.

        Raises:
            ValueError: the spaces are others, or the model cannot read them in another order.
        """
        space, model = seen_space(self.policy), self.policy.model
        if "action_space" in state:
            in_saved_order(
                from_state(state["action_space"]), self.policy.action_space, "action_space"
            )
        if space is None or state.get("observation_space") is None:
            return space
        ordered = in_saved_order(from_state(state["observation_space"]), space, "observation_space")
        if ordered is not space and not isinstance(model, QNet):
            raise ValueError(
                f"observation_space was {ordered}, and is {space}: only a QNet can read its keys "
                "in another order"
            )
        return ordered

    def _read_in_order(self, space: spaces.Space[Any] | None) -> None:
        """Let the networks read the keys of a Dict in the order of the space."""
        model = self.policy.model
        if not isinstance(model, QNet) or space is None or space is model.observation_space:
            return
        for network in dict.fromkeys((self.learner.q_net, self.learner.target_net)):
            assert isinstance(network, QNet)
            network.read_in_order(space)
        places = {parameter: i for i, parameter in enumerate(model.parameters())}
        for group in self.learner.optimizer.param_groups:  # a file knows them by their places
            group["params"].sort(key=lambda parameter: places.get(parameter, len(places)))


def seen_space(policy: Any) -> spaces.Space[Any] | None:
    """What the network of a policy sees of the observations; None if it is not known."""
    known = (
        getattr(policy.model, "observation_space", None),
        getattr(policy, "seen_space", None),
        policy.observation_space,
    )
    return next((space for space in known if isinstance(space, spaces.Space)), None)


def _q_values(model: torch.nn.Module, observations: Observations) -> torch.Tensor:
    q_values: torch.Tensor = model(observations, state=None, info=None)[0]
    return q_values


def _is_dueling(model: torch.nn.Module) -> bool:
    heads = any(isinstance(module, DuelingHead) for module in model.modules())
    return heads or bool(getattr(model, "use_dueling", False))  # of Tianshou's Net
