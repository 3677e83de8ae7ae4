"""The random streams of a model: derived from its seed, saved with it, and never begun again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dqn_adapters.sb3.dqn import DQN

_NAMES = ("_generator", "_replay_generator", "_resets_generator")


def set_streams(model: DQN, seed: np.random.SeedSequence) -> None:
    """Derive the generators of a model: for acting, for sampling from the replay buffer, and for
    what seeds the host and the environments each time that the model is loaded."""
    for name, child in zip(_NAMES, seed.spawn(len(_NAMES)), strict=True):
        setattr(model, name, np.random.default_rng(child))


def get_streams(model: DQN) -> dict[str, Any]:
    """The state of the generators, as JSON, and the seed that they come from."""
    states = {name: getattr(model, name).bit_generator.state for name in _NAMES}
    return {"seed": model.seed, "states": states}


def continue_streams(model: DQN) -> bool:
    """Give a model that is being loaded the generators that it was saved with.

    A file of the host has none: they are then derived from the seed and the steps that were made,
    so that they do not begin again either.

    Returns:
        False if the model is given another seed, or was saved untrained by the host: it is then to
        be seeded like a new one.
    """
    saved = model._streams
    if saved is None:
        if model.seed is None or not model.num_timesteps:
            return False
        set_streams(model, np.random.SeedSequence([model.seed, model.num_timesteps]))
        return True
    if saved["seed"] != model.seed:
        return False
    set_streams(model, np.random.SeedSequence())
    for name in _NAMES:
        getattr(model, name).bit_generator.state = saved["states"][name]
    return True
