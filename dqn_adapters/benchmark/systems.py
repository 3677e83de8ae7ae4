"""Systems: an implementation and a variant, trained by the implementation's own loop.

A system of yours is a function `train(run: RunSpec, recorder: Recorder) -> int` that trains on
`recorder.environment()` and returns the number of gradient updates; a suite names it as
`"package.module:function"`. See `Recorder` for what it calls.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqn_adapters import DQNAgent
from dqn_adapters._extras import require
from dqn_adapters.benchmark import levelling
from dqn_adapters.benchmark.checkpoints import Checkpoints
from dqn_adapters.benchmark.provenance import machine, versions
from dqn_adapters.benchmark.recorder import Greedy, Recorder
from dqn_adapters.benchmark.spec import EvaluationSpec, RunSpec
from dqn_adapters.benchmark.store import RunResult, Timing
from dqn_adapters.config import VARIANTS, DQNConfig, Variant

Train = Callable[[RunSpec, Recorder], int]


LABELS = {
    "native": "native",
    "sb3": "SB3 adapter",
    "sb3-reference": "SB3's own DQN",
    "tianshou": "Tianshou adapter",
    "tianshou-reference": "Tianshou's own DQN",
    "contrib": "SB3-contrib's QR-DQN",
    "sbx": "SBX's DQN",
    "ablation": "native, one part replaced",
    "pettingzoo": "PettingZoo adapter",
}
"""What implementations are called in tables."""


class UnknownSystemError(ValueError):
    """No system has that name."""


class EntryPointError(ValueError):
    """A user's system cannot be imported."""


@dataclass(frozen=True)
class System:
    """Something that can be trained."""

    name: str
    implementation: str
    variant: Variant
    train: Train
    requires: tuple[str, str] | None = None
    """Module and extra of the host."""

    limits: Callable[[DQNConfig], Sequence[str]] = field(default=lambda config: ())
    """Reasons why it cannot run a configuration."""

    base: str = ""
    """The system whose settings were changed; empty: none were."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `DQNConfig` that it sets by itself. They are not levelled."""

    many_agents: bool = False
    """It trains in PettingZoo's environments, not in Gymnasium's; see `games`."""

    shipped: bool = False
    """It runs as its library ships it, whatever the configuration: nothing is set. Such systems are
    never mixed with levelled ones."""

    peer: bool = False
    """It is another algorithm than DQN, or DQN without one of its parts, for comparison; `"all"`
    leaves it out."""

    values: bool = False
    """Whether it tells the recorder what it estimates actions to be worth."""

    label: str = ""
    """What it is called among the systems of its family; empty: by its variant."""

    optional: bool = False
    """Its library is so large that nothing here installs it; only its own name selects it."""

    period: int | None = None
    """Environment steps between two training phases; None: the configuration's `train_freq`."""

    @property
    def origin(self) -> str:
        """The name by which `find` knows it."""
        return self.base or self.name

    def configure(self, config: DQNConfig) -> DQNConfig:
        """The levelled configuration with its own variant and settings."""
        return dataclasses.replace(config, variant=self.variant, **self.settings)

    def cannot(self, config: DQNConfig) -> Sequence[str]:
        """Reasons why it cannot run a levelled configuration; empty if it can."""
        return self.limits(self.configure(config))

    def missing(self) -> str | None:
        """What to install before it can run; None if nothing."""
        if self.requires is None:
            return None
        try:
            require(self.requires[0], extra=self.requires[1])
        except ImportError as error:
            return f"system {self.name!r}: {error}"
        return None


def find(name: str) -> list[System]:
    """The systems that a name selects: one system, all of an implementation, `"all"` variants of
    DQN in Gymnasium's environments, all as they are `"shipped"`, or a function as
    `"package.module:function"`.

    Raises:
        UnknownSystemError: nothing has that name.
        EntryPointError: the function cannot be imported.
    """
    if ":" in name:
        return [System(name, name, DQNConfig().variant, _entry_point(name), values=True)]
    found = [system for system in ALL_SYSTEMS if name == system.name]
    if name == "shipped":
        found = [system for system in ALL_SYSTEMS if system.shipped and not system.optional]
    elif name == "all":
        found = list(SYSTEMS)
    elif not found:
        found = [each for each in ALL_SYSTEMS if name == each.implementation and not each.shipped]
    if not found:
        raise UnknownSystemError(name)
    return found


def selectors() -> list[str]:
    """Names that `find` knows, apart from functions."""
    implementations = [system.implementation for system in ALL_SYSTEMS]
    names = [*implementations, "shipped", *(system.name for system in ALL_SYSTEMS)]
    return ["all", *dict.fromkeys(names)]


def train(
    run: RunSpec,
    *,
    progress: Callable[[int], None] | None = None,
    workers: int = 1,
    checkpoints: Checkpoints | None = None,
) -> RunResult:
    """Train one run here and now.

    Args:
        run: What to train.
        progress: Called with the environment steps done, now and then.
        workers: How many processes share the machine; recorded.
        checkpoints: Where a system that can be continued keeps what it needs for that.
    """
    (system,) = find(run.system)
    recorder = _recorder(system)(run, progress, checkpoints)
    try:
        updates = system.train(run, recorder)
        seconds = recorder.finish()
    finally:
        recorder.close()
    return RunResult(
        run=run,
        evaluations=tuple(recorder.evaluations),
        episodes=tuple(recorder.episodes),
        timing=Timing(
            seconds, tuple(recorder.evaluation_seconds), int(updates), recorder.cpu_seconds
        ),
        versions=versions(),
        machine=machine(),
        workers=workers,
        notes=recorder.notes,
        attachments=recorder.attachments,
    )


def _recorder(system: System) -> type[Recorder]:
    if not system.many_agents:
        return Recorder
    from dqn_adapters.benchmark.games import GameRecorder

    return GameRecorder


def warm_up(run: RunSpec) -> None:
    """Train for a moment what is about to be timed: libraries compile and load at first use.

    The numbers of a run do not depend on it, for every run seeds everything anew. A user's system
    is left alone.
    """
    if run.system not in {system.name for system in ALL_SYSTEMS}:
        return
    (system,) = find(run.system)
    freq = system.period or run.config.train_freq
    # As it is shipped, a library begins to learn when it likes; all do within 128 steps, or after
    # their first phase.
    steps = max(128, freq) if system.shipped else 3 * freq
    moment = dataclasses.replace(
        run,
        config=dataclasses.replace(run.config, learning_starts=freq),
        total_timesteps=steps,
        evaluation=EvaluationSpec((0, steps), 1),
    )
    train(moment)


def _train_native(run: RunSpec, recorder: Recorder, agent_type: type[DQNAgent] = DQNAgent) -> int:
    import torch

    from dqn_adapters.environments import ObservationView
    from dqn_adapters.networks import seeded_initialization
    from dqn_adapters.targets import greedy_actions
    from dqn_adapters.transition import to_tensors

    environment = recorder.environment()
    if (path := recorder.resume()) is not None:
        agent = agent_type.load(path, environment, device="cpu")
    else:
        agent = agent_type(environment, run.config, seed=run.seeds.agent, device="cpu")
        # The hosts initialise from torch's global stream: the same draws here pair the networks.
        with seeded_initialization(run.seeds.agent):
            for module in agent.q_net.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
        agent.learner.target_net.load_state_dict(agent.q_net.state_dict())

    def greedy(observations: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(agent.predict(observations))

    view = ObservationView(environment.observation_space, int(agent.action_space.n))

    def values(observations: Any) -> NDArray[Any]:
        seen, masks = view.split(observations)
        with torch.no_grad():
            q_values = agent.q_net(to_tensors(view.arrays(seen)))
            legal = None if masks is None else torch.as_tensor(masks) != 0
            best = greedy_actions(q_values, legal).unsqueeze(1)
            return np.asarray(q_values.gather(1, best).squeeze(1))

    recorder.start(greedy, values)
    for _ in agent.train(run.total_timesteps - agent.num_timesteps):
        recorder.observe()
        recorder.checkpoint(partial(agent.save, replay=True))
    return agent.num_updates


def _train_ablation(run: RunSpec, recorder: Recorder, *, agent: str) -> int:
    from dqn_adapters.benchmark import ablations

    return _train_native(run, recorder, getattr(ablations, agent))


def _train_sb3(run: RunSpec, recorder: Recorder, *, reference: bool) -> int:
    library = importlib.import_module("stable_baselines3" if reference else "dqn_adapters.sb3")
    make_arguments = levelling.sb3_arguments if reference else levelling.sb3_adapter_arguments
    return _learn_sb3(library.DQN, run, recorder, **make_arguments(run.config, run.total_timesteps))


def _train_qrdqn(run: RunSpec, recorder: Recorder) -> int:
    from sb3_contrib import QRDQN

    arguments = levelling.qrdqn_arguments(run.config, run.total_timesteps)
    return _learn_sb3(QRDQN, run, recorder, **arguments)


def _train_sbx(run: RunSpec, recorder: Recorder) -> int:
    import sbx

    def make(*arguments: Any, **settings: Any) -> Any:
        model = sbx.DQN(*arguments, **settings)
        _begin_as_torch(model, run)
        return model

    return _learn_sb3(
        make, run, recorder, **levelling.sbx_arguments(run.config, run.total_timesteps)
    )


def _begin_as_torch(model: Any, run: RunSpec) -> None:
    """Give SBX's networks the weights that torch draws for the others from the run's seed."""
    import jax.numpy as jnp
    import torch

    torch.manual_seed(run.seeds.agent)
    inputs = int(np.prod(model.observation_space.shape))
    sizes = [inputs, *run.config.hidden_sizes, int(model.action_space.n)]
    params = {}
    for i, (rows, columns) in enumerate(pairwise(sizes)):
        layer = torch.nn.Linear(rows, columns)
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        params[f"Dense_{i}"] = {"kernel": jnp.array(weight.T), "bias": jnp.array(bias)}
    state = model.policy.qf_state
    model.policy.qf_state = state.replace(
        params={"params": params}, target_params={"params": params}
    )


def _train_sb3_shipped(run: RunSpec, recorder: Recorder, *, library: str, algorithm: str) -> int:
    return _learn_sb3(getattr(importlib.import_module(library), algorithm), run, recorder)


def _learn_sb3(algorithm: Any, run: RunSpec, recorder: Recorder, **arguments: Any) -> int:
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    class Observe(BaseCallback):
        """Between two training phases: the last one is over, the next rollout begins."""

        def _on_rollout_start(self) -> None:
            recorder.observe()

        def _on_step(self) -> bool:
            return True

    model = algorithm(
        "MlpPolicy", recorder.environment(), **arguments, seed=run.seeds.agent, device="cpu"
    )

    def greedy(observations: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(model.predict(observations, deterministic=True)[0])

    def values(observations: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            q_values = model.q_net(model.policy.obs_to_tensor(observations)[0])
            return np.asarray(q_values.amax(dim=1))

    # QR-DQN has quantiles in its place.
    recorder.start(greedy, values if hasattr(model, "q_net") else None)
    model.learn(run.total_timesteps, callback=Observe())
    return int(model._n_updates)


def _train_tianshou(run: RunSpec, recorder: Recorder) -> int:
    import torch
    from tianshou.env import DummyVectorEnv

    from dqn_adapters.tianshou import DQN, Collector, DQNPolicy, ReplayBuffer, trainer_params

    config, seed = run.config, run.seeds.agent
    torch.manual_seed(seed)
    environment = recorder.environment()
    policy = DQNPolicy(
        model=_tianshou_network(run, environment),
        action_space=environment.action_space,
        observation_space=environment.observation_space,
        seed=seed,
    )
    algorithm = DQN(policy=policy, config=config)
    collector: Collector[Any] = Collector(
        algorithm,
        DummyVectorEnv([lambda: environment]),
        ReplayBuffer(config.buffer_size, seed=seed),
        exploration_noise=True,
    )
    params = trainer_params(
        config,
        run.total_timesteps,
        training_collector=collector,
        training_fn=lambda epoch, timestep: recorder.observe(),
        verbose=False,
        show_progress=False,
    )
    recorder.start(_tianshou_greedy(policy))
    algorithm.run_training(params)
    return algorithm.learner.num_updates


def _train_tianshou_reference(run: RunSpec, recorder: Recorder) -> int:
    settings = levelling.tianshou_settings(run.config, run.total_timesteps)
    return _learn_tianshou(settings, run, recorder)


def _train_tianshou_shipped(run: RunSpec, recorder: Recorder, *, scan: bool = True) -> int:
    settings = levelling.tianshou_shipped(run.total_timesteps)
    return _learn_tianshou(settings, run, recorder, scan=scan)


def _learn_tianshou(
    settings: levelling.TianshouSettings, run: RunSpec, recorder: Recorder, *, scan: bool = True
) -> int:
    import torch
    from tianshou.algorithm.algorithm_base import Algorithm
    from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory, OptimizerFactory
    from tianshou.data import Collector, ReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OffPolicyTrainerParams

    seed = run.seeds.agent

    class ClippedDQN(DQN[Any]):
        """Tianshou's DQN hands no clip to its own optimiser wrapper, which has one."""

        def _create_policy_optimizer(self, optim: OptimizerFactory) -> Algorithm.Optimizer:
            return self._create_optimizer(self.policy, optim, max_grad_norm=settings.max_grad_norm)

    class Buffer(ReplayBuffer):
        """The trainer has the whole buffer searched for NaN after every collection step."""

        def hasnull(self) -> bool:
            return scan and super().hasnull()

    # Tianshou draws exploration from NumPy's global stream and initialises from torch's. Only a
    # process that trains comes here, and each run seeds both anew.
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    environment = recorder.environment()
    environment.action_space.seed(seed)
    policy = DiscreteQLearningPolicy(
        model=_tianshou_network(run, environment),
        action_space=environment.action_space,
        observation_space=environment.observation_space,
    )
    algorithm = ClippedDQN(
        policy=policy, optim=AdamOptimizerFactory(**settings.optimizer), **settings.algorithm
    )
    collector: Collector[Any] = Collector(
        algorithm,
        DummyVectorEnv([lambda: environment]),
        Buffer(
            settings.buffer_size,
            random_seed=seed if settings.replay_seed is None else settings.replay_seed,
        ),
        exploration_noise=True,
    )

    def before_collection(epoch: int, timestep: int) -> None:
        recorder.observe()
        policy.set_eps_training(settings.epsilon(settings.warm_up + timestep))

    collector.reset()
    recorder.start(_tianshou_greedy(policy))
    # An evaluation may fall into the warm-up.
    stops = [each for each in run.evaluation.timesteps if each < settings.warm_up]
    for begin, end in pairwise([*stops, settings.warm_up]):
        collector.collect(n_step=end - begin, random=True)
        recorder.observe()
    trainer = algorithm.create_trainer(
        OffPolicyTrainerParams(
            training_collector=collector,
            training_fn=before_collection,
            verbose=False,
            show_progress=False,
            **settings.trainer,
        )
    )
    info = trainer.run(reset_collectors=False)  # on in the episode of the warm-up
    collected: int = settings.trainer["collection_step_num_env_steps"]
    per_step: float = settings.trainer["update_step_num_gradient_steps_per_sample"]
    return int(info.update_step) * round(per_step * collected)


def _train_pettingzoo(run: RunSpec, recorder: Recorder) -> int:
    from dqn_adapters.benchmark import games

    return games.train(run, recorder)


def _tianshou_network(run: RunSpec, environment: Any) -> Any:
    from tianshou.utils.net.common import Net

    return Net(
        state_shape=environment.observation_space.shape,
        action_shape=environment.action_space.n,
        hidden_sizes=run.config.hidden_sizes,
    )


def _tianshou_greedy(policy: Any) -> Greedy:
    import torch
    from tianshou.data import Batch

    def greedy(observations: NDArray[Any]) -> NDArray[Any]:
        with torch.no_grad():
            actions = policy(Batch(obs=observations, info=Batch())).act
        return np.asarray(policy.map_action(actions))

    return greedy


def _entry_point(name: str) -> Train:
    module_name, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise EntryPointError(f"system {name!r} cannot be imported: {error}") from error
    if not callable(function):
        raise EntryPointError(f"system {name!r} is not a function: {function!r}")
    trained: Train = function
    return trained


def _host_limits(config: DQNConfig) -> list[str]:
    return [
        f"{name}={getattr(config, name)!r}; the harness sets {name} for the native agent only"
        for name in levelling.unlevelled(config)
    ]


def _reference_limits(config: DQNConfig) -> list[str]:
    problems = _host_limits(config)
    if config.target_update_unit != "steps":
        problems.append(
            f"target_update_unit={config.target_update_unit!r}; "
            "against the hosts' own DQN the period is levelled in 'steps' only"
        )
    return problems


def _sb3_reference_limits(config: DQNConfig, name: str = "SB3's own DQN") -> list[str]:
    problems = _reference_limits(config)
    if config.loss != "huber" or config.huber_delta != 1.0:
        problems.append(
            f"loss={config.loss!r} with huber_delta={config.huber_delta}; "
            f"{name} has the Huber loss with delta 1 only"
        )
    return problems


def _stream_limits(config: DQNConfig) -> list[str]:
    problems = []
    if config.prioritized_replay:
        problems.append("prioritized_replay=True; a stream is not drawn from by priority")
    if config.n_steps > config.batch_size:
        problems.append(
            f"n_steps={config.n_steps}; of a stream batch_size={config.batch_size} transitions are "
            "kept"
        )
    return problems


def _sbx_limits(config: DQNConfig) -> list[str]:
    problems = _sb3_reference_limits(config, LABELS["sbx"])
    if len(config.hidden_sizes) != 2 or len(set(config.hidden_sizes)) != 1:
        problems.append(
            f"hidden_sizes={list(config.hidden_sizes)}; SBX's DQN has two hidden layers of one size"
        )
    return problems


def _tianshou_reference_limits(config: DQNConfig) -> list[str]:
    problems = _reference_limits(config)
    if config.target_update_interval * config.gradient_steps % config.train_freq:
        problems.append(
            f"target_update_interval={config.target_update_interval} steps are not a whole number "
            f"of gradient updates, in which Tianshou counts, at gradient_steps="
            f"{config.gradient_steps} per train_freq={config.train_freq}"
        )
    if config.tau != 1.0:
        problems.append(f"tau={config.tau}; Tianshou's own DQN copies the network, tau=1, only")
    return problems


_SBX = ("sbx", "sbx")

SYSTEMS: tuple[System, ...] = (
    *(
        System(f"native-{variant}", "native", variant, _train_native, values=True)
        for variant in VARIANTS
    ),
    *(
        System(
            f"sb3-{variant}",
            "sb3",
            variant,
            partial(_train_sb3, reference=False),
            ("stable_baselines3", "sb3"),
            _host_limits,
            values=True,
        )
        for variant in VARIANTS
    ),
    System(
        "sb3-reference",
        "sb3-reference",
        "target",
        partial(_train_sb3, reference=True),
        ("stable_baselines3", "sb3"),
        _sb3_reference_limits,
        values=True,
    ),
    *(
        System(
            f"tianshou-{variant}",
            "tianshou",
            variant,
            _train_tianshou,
            ("tianshou", "tianshou"),
            _host_limits,
        )
        for variant in VARIANTS
    ),
    *(
        System(
            f"tianshou-reference-{variant}",
            "tianshou-reference",
            variant,
            _train_tianshou_reference,
            ("tianshou", "tianshou"),
            _tianshou_reference_limits,
        )
        for variant in VARIANTS
    ),
)
"""The built-in systems for Gymnasium's environments, in the order of reports."""

ALL_SYSTEMS: tuple[System, ...] = (
    *SYSTEMS,
    *(
        System(
            f"pettingzoo-{variant}",
            "pettingzoo",
            variant,
            _train_pettingzoo,
            ("pettingzoo", "pettingzoo"),
            many_agents=True,
        )
        for variant in VARIANTS
    ),
    System(
        "contrib-qrdqn",
        "contrib",
        "target",
        _train_qrdqn,
        ("sb3_contrib", "contrib"),
        _reference_limits,
        peer=True,
    ),
    System(
        "sbx-reference",
        "sbx",
        "target",
        _train_sbx,
        _SBX,
        _sbx_limits,
        peer=True,
        optional=True,
    ),
    System(
        "ablation-stream",
        "ablation",
        "target",
        partial(_train_ablation, agent="StreamAgent"),
        limits=_stream_limits,
        peer=True,
        values=True,
    ),
    System(
        "ablation-residual",
        "ablation",
        "vanilla",
        partial(_train_ablation, agent="ResidualAgent"),
        peer=True,
        values=True,
    ),
    System("native-shipped", "native", DQNConfig().variant, _train_native, shipped=True),
    System(
        "sb3-shipped",
        "sb3",
        DQNConfig().variant,
        partial(_train_sb3_shipped, library="dqn_adapters.sb3", algorithm="DQN"),
        ("stable_baselines3", "sb3"),
        shipped=True,
    ),
    System(
        "sb3-reference-shipped",
        "sb3-reference",
        "target",
        partial(_train_sb3_shipped, library="stable_baselines3", algorithm="DQN"),
        ("stable_baselines3", "sb3"),
        shipped=True,
    ),
    System(
        "tianshou-reference-shipped",
        "tianshou-reference",
        # It asks for double DQN and has no target network, so the online network does both.
        "vanilla",
        _train_tianshou_shipped,
        ("tianshou", "tianshou"),
        shipped=True,
        period=levelling.TIANSHOU_PERIOD,
    ),
    System(
        "tianshou-reference-shipped-no-scan",
        "tianshou-reference",
        "vanilla",
        partial(_train_tianshou_shipped, scan=False),
        ("tianshou", "tianshou"),
        shipped=True,
        period=levelling.TIANSHOU_PERIOD,
        label="vanilla, no NaN scan",
    ),
    System(
        "contrib-qrdqn-shipped",
        "contrib",
        "target",
        partial(_train_sb3_shipped, library="sb3_contrib", algorithm="QRDQN"),
        ("sb3_contrib", "contrib"),
        shipped=True,
        peer=True,
    ),
    System(
        "sbx-shipped",
        "sbx",
        "target",
        partial(_train_sb3_shipped, library="sbx", algorithm="DQN"),
        _SBX,
        shipped=True,
        peer=True,
        optional=True,
    ),
)
"""Those, the built-in systems for PettingZoo's, other algorithms, DQN without one of its parts, and
all as they are shipped."""
