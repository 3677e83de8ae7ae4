"""Training throughput on a GPU: `python benchmarks/speed/gpu.py --json FILE`.

The native agent, the adapter of Stable-Baselines3 and Stable-Baselines3's own DQN train the Nature
CNN and a 256-256 MLP. Ours run eagerly and compiled, with the observations of the replay buffer on
the device and in the host's memory. Every case is held against eager torch with the observations in
the host's memory. The script also runs on a CPU; `--steps`, `--updates` and `--network` make it
small.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

if not __package__:  # run as a file: Python puts this directory on the path, not the one above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from speed.parts import Part, breakdown, part

Library = Literal["native", "dqn_adapters.sb3", "stable_baselines3"]
Execution = Literal["eager", "compiled"]

NETWORKS = ("nature-cnn", "256-256")
TOLERANCE = 1e-4
"""Largest difference of a parameter from eager torch's after the updates of the check."""


@dataclass(frozen=True)
class Case:
    """What is measured."""

    library: Library
    network: str
    execution: Execution
    replay: Literal["device", "host"]
    """Where the observations of the replay buffer are gathered."""


@dataclass(frozen=True)
class Outcome:
    """What a case gave."""

    library: str
    network: str
    execution: str
    replay: str
    device: str
    """The card's name, or `"cpu"`."""

    rate: float
    """Environment steps per second."""

    parts: dict[str, float]
    """Microseconds of processor time per step; waiting for the device is part of it."""

    updates: int
    """Updates of the check; 0 if there is nothing to check."""

    difference: float
    """Largest absolute difference of a parameter after them."""

    equal: bool
    """Whether it is within the tolerance."""


class Model:
    """A model of one of the libraries, past its warm-up."""

    train: Callable[[int], object]
    parts: Sequence[Part]
    learner: Any
    replay: Any

    def __init__(self, case: Case, device: str) -> None:
        from speed.configurations import IMAGES, LARGE
        from speed.environments import Images, one

        images = case.network == "nature-cnn"
        self.config = replace(IMAGES if images else LARGE, exploration_steps=0)
        env = Images() if images else one()
        if case.library == "native":
            self._make_native(case, env, device)
        else:
            self._make_sb3(case, env, device)
        self.train(self.config.learning_starts)
        if case.library == "stable_baselines3":
            return
        from dqn_adapters.replay.device import DeviceStorage

        place, copies = next(self.learner.q_net.parameters()).device, self.replay._copies
        copies[place] = (
            DeviceStorage(self.replay._storage, place) if case.replay == "device" else None
        )

    def _make_native(self, case: Case, env: Any, device: str) -> None:
        from dqn_adapters import DQNAgent

        agent = DQNAgent(env, self.config, seed=0, device=device, execution=case.execution)
        self.learner, self.replay = agent.learner, agent.replay
        self.train = lambda steps: agent.learn(steps)
        self.parts = (
            ("environment", agent._stepper.step),
            ("act", agent._act),
            ("store", agent.replay.add),
            part("sample", agent.replay, "draw"),
            part("sample", agent.replay, "gather"),
            part("update", agent.learner, "update"),
            part("phase", agent.learner, "train"),
        )

    def _make_sb3(self, case: Case, env: Any, device: str) -> None:
        import importlib

        from dqn_adapters.benchmark.levelling import sb3_adapter_arguments, sb3_arguments
        from speed.configurations import HORIZON

        ours = case.library != "stable_baselines3"
        arguments = (sb3_adapter_arguments if ours else sb3_arguments)(self.config, HORIZON)
        if ours:
            arguments["execution"] = case.execution
        policy = "MlpPolicy"
        if case.network == "nature-cnn":
            policy = "CnnPolicy"
            features = {"features_dim": self.config.hidden_sizes[0]}
            arguments["policy_kwargs"] = {"net_arch": [], "features_extractor_kwargs": features}
        module = importlib.import_module(case.library)
        model = module.DQN(policy, env, seed=0, device=device, **arguments)
        self.train = lambda steps: model.learn(steps, reset_num_timesteps=False)
        self.parts = (
            ("environment", model.env.step),
            ("act", model._sample_action),
            ("store", model.replay_buffer.add),
            part("sample", model.replay_buffer, "draw" if ours else "sample"),
            ("update", model.learner.update if ours else model.train),
        )
        if ours:
            self.learner, self.replay = model.learner, model.replay_buffer.replay
            self.parts = (*self.parts, part("phase", model.learner, "train"))

    def update(self, indices: Any, device: str) -> None:
        """One update from the transitions at these slots of the replay buffer."""
        self.learner.update(self.replay.gather(indices, device=device))


def cases(networks: tuple[str, ...] = NETWORKS) -> Iterator[Case]:
    """All cases, network by network."""
    ours: tuple[Library, ...] = ("native", "dqn_adapters.sb3")
    executions: tuple[Execution, ...] = ("eager", "compiled")
    for network in networks:
        yield Case("stable_baselines3", network, "eager", "host")
        for library, execution, place in product(ours, executions, ("host", "device")):
            yield Case(library, network, execution, "host" if place == "host" else "device")


def measure(case: Case, device: str, steps: int, updates: int) -> Outcome:
    """Check and measure one case."""
    import torch

    checked = 0 if case.library == "stable_baselines3" else updates
    difference = _difference(case, device, checked) if checked else 0.0
    model = Model(case, device)
    model.train(steps)  # compiles, and settles
    _wait(device)
    start = time.perf_counter()
    model.train(steps)
    _wait(device)
    rate = steps / (time.perf_counter() - start)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    parts = breakdown(model.train, steps, model.parts)
    return Outcome(
        **asdict(case),
        device=name,
        rate=rate,
        parts=parts,
        updates=checked,
        difference=difference,
        equal=difference <= TOLERANCE,
    )


def _difference(case: Case, device: str, updates: int) -> float:
    """Largest difference of a parameter from eager torch's, after updates on the same batches."""
    reference = Model(replace(case, execution="eager", replay="host"), device)
    model = Model(case, device)
    with _exact():
        for _ in range(updates):
            indices = reference.replay.draw(reference.config.batch_size)
            for one in (reference, model):
                one.update(indices, device)
    pairs = zip(reference.learner.q_net.parameters(), model.learner.q_net.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


@contextmanager
def _exact() -> Iterator[None]:
    """Without TensorFloat-32, which rounds products to 10 bits and hides what is compared."""
    import torch

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _wait(device: str) -> None:
    """Until the device has done what it was given."""
    import torch

    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def main(
    json_: Annotated[Path, typer.Option("--json", metavar="FILE", help="Write the cases here.")],
    device: Annotated[
        str | None, typer.Option(help="Where to train; CUDA if there is one, else the CPU.")
    ] = None,
    steps: Annotated[int, typer.Option(min=16, help="Steps that are measured.")] = 4000,
    updates: Annotated[int, typer.Option(min=0, help="Updates of the check.")] = 200,
    network: Annotated[str | None, typer.Option(help="Only this network.")] = None,
) -> None:
    """Measure ours and Stable-Baselines3's DQN on a GPU, or small on a CPU."""
    import torch

    from dqn_adapters.files import replacing_text

    if network not in (None, *NETWORKS):
        raise typer.BadParameter(f"--network {network}: it must be one of {', '.join(NETWORKS)}")
    if not json_.absolute().parent.is_dir():
        raise typer.BadParameter(f"--json {json_}: there is no directory {json_.parent}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    outcomes = []
    for case in cases(NETWORKS if network is None else (network,)):
        outcome = measure(case, device, steps, updates)
        outcomes.append(asdict(outcome))
        print(
            f"{case.network} {case.library} {case.execution}, replay on the {case.replay}: "
            f"{outcome.rate:,.0f} steps/s, difference {outcome.difference:.1e}",
            flush=True,
        )
        with replacing_text(json_) as file:
            file.write(json.dumps(outcomes, indent=2) + "\n")
    if not all(outcome["equal"] for outcome in outcomes):
        print(f"error: parameters differ by more than {TOLERANCE:g}", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
