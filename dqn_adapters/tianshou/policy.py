"""The policy: epsilon-greedy over the Q-values of the model."""

from __future__ import annotations

import warnings
from typing import Any, Self, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.data import Batch

from dqn_adapters.config import checked_float, rejected
from dqn_adapters.environments import MASK, as_masks
from dqn_adapters.exploration import check_action_masks, epsilon_greedy
from dqn_adapters.learner import DQNLearner
from dqn_adapters.targets import greedy_actions

HOSTS_MASK = "mask"
"""Key of the mask of legal actions beside `obs` in an observation, Tianshou's convention."""


def split_mask(obs: Any, info: Any = None) -> tuple[Any, NDArray[np.bool_] | None]:
    """Observations and the masks of their legal actions `(B, A)`, or None.

    Masks are `mask` beside `obs` in the observation (Tianshou's convention), `action_mask` in the
    observation, where the network sees the rest and if one key is left its value alone, or
    `action_mask` in the info that came with the observation. In the info a mask that allows nothing
    says nothing: Tianshou fills the infos that have none with zeros.
    """
    seen, mask = obs, getattr(obs, "mask", None)
    if mask is not None:
        seen = obs.obs
    elif (mask := getattr(obs, MASK, None)) is not None:
        keys = [key for key in obs.get_keys() if key != MASK]
        seen = obs[keys[0]] if len(keys) == 1 else Batch({key: obs[key] for key in keys})
    else:
        seen = getattr(obs, "obs", obs)
        mask = getattr(info, MASK, None)
        if mask is None and hasattr(info, HOSTS_MASK):
            warnings.warn(
                "info['mask'] is not read: in the info, legal actions are info['action_mask']",
                stacklevel=2,
            )
        if mask is not None:
            masks = as_masks(mask, np.shape(mask))
            return seen, masks | ~masks.any(axis=-1, keepdims=True)
    return seen, None if mask is None else as_masks(mask, np.shape(mask))


def without_mask(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """What the network sees of an observation space; see `split_mask`."""
    if not isinstance(space, spaces.Dict):
        return space
    if set(space.spaces) == {"obs", "mask"}:
        return space["obs"]
    if MASK not in space.spaces:
        return space
    rest = {key: part for key, part in space.spaces.items() if key != MASK}
    return next(iter(rest.values())) if len(rest) == 1 else spaces.Dict(rest)


class DQNPolicy(DiscreteQLearningPolicy[torch.nn.Module]):
    """Tianshou's `DiscreteQLearningPolicy` that explores and masks by the rules of the core.

    Every environment draws for itself, uniformly over its legal actions, from a generator of the
    policy. A `Discrete` that starts at k is acted in as k .. k + n - 1; the model and the buffer
    see 0 .. n - 1.

    Args:
        model: `model(obs, state=, info=)` gives Q-values `(B, A)` and the next hidden state.
        action_space: A `Discrete`.
        observation_space: Of one environment; not used by the policy itself, but by `save_policy`.
        eps_training: Probability of a random action while training data is collected, in [0, 1].
            An epsilon schedule of the algorithm replaces it.
        eps_inference: The same for every other use.
        seed: Decides the exploration; None draws fresh entropy.

    Raises:
        ValueError: the action space is not a `Discrete`, or an epsilon is not in [0, 1].
        TypeError: the model is not a module of torch.
    """

    action_space: spaces.Discrete
    learner: DQNLearner | None = None
    """Of the algorithm that learns the model, which sets it; no part of a pickled policy."""

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        action_space: spaces.Space[Any],
        observation_space: spaces.Space[Any] | None = None,
        eps_training: float = 0.0,
        eps_inference: float = 0.0,
        seed: int | np.random.SeedSequence | None = None,
    ) -> None:
        if not isinstance(action_space, spaces.Discrete):
            raise rejected("action_space", action_space, "a Discrete")
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model={model!r} is not accepted; model must be a torch.nn.Module")
        super().__init__(
            model=model,
            action_space=action_space,
            observation_space=observation_space,
            eps_training=eps_training,
            eps_inference=eps_inference,
        )
        self.seen_space = None if observation_space is None else without_mask(observation_space)
        """Of the observation space what the network sees; None if that is not known."""
        self.set_eps_training(eps_training)
        self.set_eps_inference(eps_inference)
        if not isinstance(seed, np.random.SeedSequence):
            seed = np.random.SeedSequence(seed)
        # Two streams: whether and how often one evaluates must not change the training.
        self._generators = [np.random.default_rng(child) for child in seed.spawn(2)]

    @property
    def computes_in_kernel(self) -> bool:
        """Whether the model is learned, and can be asked, in the compiled kernel."""
        learner = self.learner
        if learner is None or learner.q_net is not self.model:
            return False
        return learner.execution == "kernel"

    def train(self, mode: bool = True) -> Self:
        """See `torch.nn.Module.train`. Tianshou calls it twice in every collection; a plain MLP
        does the same in both modes, so its modules are not walked through."""
        if not self.computes_in_kernel:
            return super().train(mode)
        self.training = mode
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "learner"}

    def set_eps_training(self, eps: float) -> None:
        """Set the probability of a random action while training data is collected, in [0, 1]."""
        self.eps_training = cast(float, checked_float("eps_training", eps, high=1.0))

    def set_eps_inference(self, eps: float) -> None:
        """Set the same for every other use."""
        self.eps_inference = cast(float, checked_float("eps_inference", eps, high=1.0))

    def forward(
        self, batch: Any, state: Any | None = None, model: torch.nn.Module | None = None
    ) -> Any:
        """Greedy legal actions.

        Args:
            batch: `obs` and `info`, of B environments.
            state: Hidden state of a recurrent model.
            model: Called in place of the policy's own.

        Returns:
            A `Batch` of `act` `(B,)`, `logits` (the Q-values of the model) `(B, A)` and `state`.

        Raises:
            ValueError: a mask has another shape, a row allows no action, or the model does not
                give one value for every action.
        """
        obs, mask = split_mask(batch.obs, batch.get("info"))
        logits, hidden = (model or self.model)(obs, state=state, info=batch.get("info"))
        if logits.ndim != 2 or logits.shape[1] != self.action_space.n:
            raise ValueError(
                f"the model gives Q-values of shape {tuple(logits.shape)}; it must be (B, A) with "
                f"A={self.action_space.n}, one value for every action of {self.action_space}"
            )
        act = greedy_actions(self.compute_q_value(logits, mask)).cpu().numpy()
        return Batch(logits=logits, act=act, state=hidden)

    def compute_q_value(self, logits: torch.Tensor, mask: NDArray[Any] | None) -> torch.Tensor:
        """The Q-values `(B, A)`, -inf where an action is illegal.

        Raises:
            ValueError: the mask has another shape, or a row allows no action.
        """
        if mask is None:
            return logits
        legal = np.asarray(mask, np.bool_)
        check_action_masks(legal, len(logits), logits.shape[-1])
        return torch.where(torch.as_tensor(legal, device=logits.device), logits, -torch.inf)

    def add_exploration_noise(self, act: Any, batch: Any) -> Any:
        """The actions `(N,)`, each replaced by a random legal one with probability epsilon."""
        training = self.is_within_training_step
        epsilon = self.eps_training if training else self.eps_inference
        if epsilon == 0.0:
            return act
        return epsilon_greedy(
            lambda: act,
            epsilon,
            num_envs=len(act),
            num_actions=int(self.action_space.n),
            generator=self._generators[training],
            action_masks=split_mask(batch.obs, batch.get("info"))[1],
        )

    def map_action(self, act: Any) -> NDArray[Any]:
        """From 0 .. n - 1 to the actions of the environment."""
        actions: NDArray[Any] = self._action_to_numpy(act) + self.action_space.start
        return actions

    def map_action_inverse(self, act: Any) -> NDArray[Any]:
        """From the actions of the environment to 0 .. n - 1."""
        actions: NDArray[Any] = self._action_to_numpy(act) - self.action_space.start
        return actions

    @property
    def random_state(self) -> list[dict[str, Any]]:
        """The state of the exploration's generators; set it to go on from there."""
        return [dict(generator.bit_generator.state) for generator in self._generators]

    @random_state.setter
    def random_state(self, states: list[dict[str, Any]]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.bit_generator.state = state
