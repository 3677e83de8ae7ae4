"""Example 6.7 of Sutton & Barto (2018), maximisation bias, as an exact toy for the TD targets.

From A, `left` leads to B and `right` ends the episode, both without a reward. From B, each of ten
actions ends it with a reward drawn from N(-0.1, 1). So `left` is worth -0.1 and `right` 0, but the
maximum over ten noisy estimates is positive: who takes it for the value of B goes left.

There is a table in place of a network, and nothing else differs: the targets are those of
`dqn_adapters.targets`, with which the agents learn. All runs advance together. `tabular` is the
oracle: the same written out in plain Python, run by run, without a tensor and without those
targets.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from dqn_adapters.benchmark.statistics import CONFIDENCE
from dqn_adapters.config import Variant, checked_float, checked_int, rejected
from dqn_adapters.targets import double_q_learning_target, q_learning_target

ACTIONS = 10
"""In B; A has two."""

LEFT, RIGHT = 0, 1
_A, _B, _END = 0, 1, 2


@dataclass(frozen=True)
class Toy:
    """The settings of the example."""

    runs: int = 1000
    episodes: int = 300
    reward_mean: float = -0.1
    reward_std: float = 1.0
    epsilon: float = 0.1
    alpha: float = 0.1
    """Step size."""

    target_update_interval: int = 25
    """Episodes between two copies into the target table; unused by `"vanilla"`."""

    def __post_init__(self) -> None:
        for name in ("runs", "episodes", "target_update_interval"):
            checked_int(name, getattr(self, name), low=1)
        for name, high in (("epsilon", 1.0), ("alpha", 1.0), ("reward_std", float("inf"))):
            checked_float(name, getattr(self, name), high=high)
        if not np.isfinite(self.reward_mean):
            raise rejected("reward_mean", self.reward_mean, "a finite number")

    @property
    def optimal(self) -> float:
        """Share of `left` of an epsilon-greedy policy that knows the values."""
        return self.epsilon / 2


@dataclass(frozen=True)
class Outcome:
    """What became of the runs; arrays `(episodes,)`."""

    left: NDArray[np.float64]
    """Share of the runs that went left."""

    bias: NDArray[np.float64]
    """Mean over runs of max_a Q(B, a) after the episode, minus the true value of B."""


def simulate(variant: Variant, toy: Toy | None = None, *, seed: int = 0) -> Outcome:
    """Learn the example by one of the variants.

    Args:
        variant: As in `DQNConfig`.
        toy: Settings; None: the defaults, of which the rewards, epsilon and alpha are the book's.
        seed: Decides all that is random. Variants of one seed share exploration and rewards.
    """
    toy = Toy() if toy is None else toy
    generator = np.random.default_rng(seed)
    rows = torch.arange(toy.runs)
    legal = torch.zeros(3, ACTIONS, dtype=torch.bool)
    legal[_A, :2] = legal[_B] = legal[_END] = True
    q = torch.zeros(toy.runs, 3, ACTIONS, dtype=torch.float64)
    target = q if variant == "vanilla" else q.clone()
    left, bias = np.zeros(toy.episodes), np.zeros(toy.episodes)

    def act(state: int) -> torch.Tensor:
        """Epsilon-greedy, equally good actions at random."""
        count = int(legal[state].sum())
        explore = torch.from_numpy(generator.random(toy.runs) < toy.epsilon)
        anywhere = torch.from_numpy(generator.integers(count, size=toy.runs))
        values = q[:, state, :count]
        best = values == values.max(dim=1, keepdim=True).values
        tie_break = torch.from_numpy(generator.random((toy.runs, count)))
        return torch.where(explore, anywhere, (best * (1 + tie_break)).argmax(dim=1))

    def learn(
        state: int, actions: torch.Tensor, rewards: torch.Tensor, successors: torch.Tensor
    ) -> torch.Tensor:
        """The new value of (state, action), `(runs,)`."""
        discounts = (successors != _END).double()
        value, masks = target[rows, successors], legal[successors]
        if variant == "double":
            selector = q[rows, successors]
            y = double_q_learning_target(
                rewards, discounts, value, selector, next_action_masks=masks
            )
        else:
            y = q_learning_target(rewards, discounts, value, next_action_masks=masks)
        old = q[rows, state, actions]
        return old + toy.alpha * (y - old)

    nothing = torch.zeros(toy.runs, dtype=torch.float64)
    for episode in range(toy.episodes):
        first = act(_A)
        to_b = first == LEFT
        q[rows, _A, first] = learn(_A, first, nothing, torch.where(to_b, _B, _END))
        second = act(_B)
        draws = generator.normal(toy.reward_mean, toy.reward_std, toy.runs)
        ended = torch.full((toy.runs,), _END)
        learned = learn(_B, second, torch.from_numpy(draws), ended)
        q[rows, _B, second] = torch.where(to_b, learned, q[rows, _B, second])
        if (episode + 1) % toy.target_update_interval == 0 and target is not q:
            target.copy_(q)
        left[episode] = to_b.double().mean()
        bias[episode] = q[:, _B].max(dim=1).values.mean() - toy.reward_mean
    return Outcome(left, bias)


def tabular(
    variant: Variant, toy: Toy | None = None, *, runs: int = 400, seed: int = 0
) -> NDArray[np.float64]:
    """Learn the example as a textbook's box would have it, one run after the other.

    Q-learning, `"vanilla"`, takes its own maximum, as in the book; with a second table, which is
    copied now and then, that one gives the value, at its own maximum or at that of the first table.
    (The book's Double Q-learning has no copy: two tables learn in turn.)

    Args:
        variant: As in `DQNConfig`.
        toy: Settings, of which `runs` is not used; None: as `simulate`.
        runs: How many.
        seed: Decides all that is random; nothing is shared with `simulate`.

    Returns:
        Share of the runs that went left, `(episodes,)`.
    """
    toy = Toy() if toy is None else toy
    generator = random.Random(seed)
    left = np.zeros(toy.episodes)
    for _ in range(runs):
        q = {"A": [0.0, 0.0], "B": [0.0] * ACTIONS}
        lagged = q if variant == "vanilla" else {"A": [0.0, 0.0], "B": [0.0] * ACTIONS}
        for episode in range(toy.episodes):
            state = "A"
            while state:
                values = q[state]
                best = max(values)
                action = generator.choice([a for a, value in enumerate(values) if value == best])
                if generator.random() < toy.epsilon:
                    action = generator.randrange(len(values))
                y, successor = 0.0, ""
                if state == "B":
                    y = generator.gauss(toy.reward_mean, toy.reward_std)
                elif action == LEFT:
                    successor = "B"
                    left[episode] += 1
                    selector = q["B"] if variant == "double" else lagged["B"]
                    y = lagged["B"][selector.index(max(selector))]
                values[action] += toy.alpha * (y - values[action])
                state = successor
            if (episode + 1) % toy.target_update_interval == 0 and lagged is not q:
                lagged = {name: list(values) for name, values in q.items()}
    return left / runs


def agreement(
    share: NDArray[np.float64], runs: int, others: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the shares of `others` runs are, 95 times in 100, if they do as `runs` runs of which
    these are the shares.

    Args:
        share: `(episodes,)`.

    Returns:
        The lower and the upper ends, by the normal approximation to two binomials.
    """
    # Laplace's estimate: a share of 0 or 1 has a variance too.
    smoothed = (share * runs + 1) / (runs + 2)
    spread = np.sqrt(smoothed * (1 - smoothed) * (1 / runs + 1 / others))
    reach = stats.norm.ppf((1 + CONFIDENCE) / 2) * spread
    return share - reach, share + reach
