"""One class for every variant, and their registration with the RL Zoo."""

from __future__ import annotations

from functools import partialmethod

from dqn_adapters.sb3.dqn import DQN


class VanillaDQN(DQN):
    """`DQN` with `variant="vanilla"`."""

    __init__ = partialmethod(DQN.__init__, variant="vanilla")


class TargetDQN(DQN):
    """`DQN` with `variant="target"`."""

    __init__ = partialmethod(DQN.__init__, variant="target")


class DoubleDQN(DQN):
    """`DQN` with `variant="double"`."""

    __init__ = partialmethod(DQN.__init__, variant="double")


ALGORITHMS: dict[str, type[DQN]] = {
    "vanilla_dqn": VanillaDQN,
    "target_dqn": TargetDQN,
    "double_dqn": DoubleDQN,
}
"""The names under which the RL Zoo knows the variants."""


def register() -> None:
    """Make the RL Zoo know the variants, and search their hyper-parameters as those of its dqn."""
    import rl_zoo3
    import rl_zoo3.enjoy
    import rl_zoo3.exp_manager
    import rl_zoo3.train
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    for name, algorithm in ALGORITHMS.items():
        for module in (rl_zoo3, rl_zoo3.train, rl_zoo3.exp_manager, rl_zoo3.enjoy):
            module.ALGOS[name] = algorithm
        HYPERPARAMS_SAMPLER[name] = HYPERPARAMS_SAMPLER["dqn"]
        HYPERPARAMS_CONVERTER[name] = HYPERPARAMS_CONVERTER["dqn"]
