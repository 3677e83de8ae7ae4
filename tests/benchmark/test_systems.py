import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark.conftest import suite_text

from dqn_adapters import DQNConfig, DQNLearner, Transition
from dqn_adapters.benchmark import Recorder, RunSpec, Suite, SuiteError, load_suite, systems
from dqn_adapters.benchmark.levelling import (
    LEVELLED,
    TIANSHOU_PERIOD,
    levelling_table,
    qrdqn_arguments,
    sb3_adapter_arguments,
    sb3_arguments,
    shipped_table,
    tianshou_settings,
)
from dqn_adapters.benchmark.recorder import Greedy, Values
from dqn_adapters.benchmark.store import RunResult
from dqn_adapters.benchmark.systems import SYSTEMS
from dqn_adapters.config import VARIANTS

NAMES = [system.name for system in SYSTEMS]
SBX = find_spec("sbx") is not None
Make = Callable[..., Suite]


def runs_of(suite: Suite) -> dict[str, RunSpec]:
    return {run.system: run for run in suite.runs() if run.seed_index == 0}


PROBE = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)


@dataclass
class Trained:
    """A result, and the greedy actions at `PROBE` before and after the training."""

    result: RunResult
    before: list[int]
    after: list[int]


def train(run: RunSpec) -> Trained:
    actions: list[list[int]] = []
    start, finish = Recorder.start, Recorder.finish

    def spying_start(self: Recorder, greedy: Greedy, values: Values | None = None) -> None:
        actions.append(greedy(PROBE).tolist())
        start(self, greedy, values)

    def spying_finish(self: Recorder) -> float:
        assert self._greedy is not None
        actions.append(self._greedy(PROBE).tolist())
        return finish(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "start", spying_start)
        patch.setattr(Recorder, "finish", spying_finish)
        return Trained(systems.train(run), *actions)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunSpec]:
    path: Path = tmp_path_factory.mktemp("suite") / "small.toml"
    values = "learning_rate = 0.0005\nexploration_fraction = 0.5"
    path.write_text(suite_text(NAMES, seeds=1, total_timesteps=160, points=5, config=values))
    return runs_of(load_suite(str(path)))


@pytest.fixture(scope="module")
def trained(runs: dict[str, RunSpec]) -> dict[str, Trained]:
    """Every system, a moment of training."""
    return {name: train(run) for name, run in runs.items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_system_trains_as_it_is_told(name: str, trained: dict[str, Trained]) -> None:
    result = trained[name].result
    assert result.timesteps == (0, 32, 64, 96, 128, 160)
    # Phases of 4 steps with 2 updates; those up to step 16 are warm-up: (160 - 16) / 4 * 2.
    assert result.timing.updates == 72
    assert result.timing.training_seconds > 0
    lengths = [episode.length for episode in result.episodes]
    assert np.cumsum(lengths).tolist() == [episode.timestep for episode in result.episodes]
    assert 100 < sum(lengths) <= 160
    assert trained[name].before != trained[name].after


@pytest.mark.parametrize("name", [system.name for system in SYSTEMS if system.values])
def test_the_values_are_those_of_the_online_network(
    name: str, write_suite: Callable[..., Path]
) -> None:
    path = write_suite([name], seeds=1)
    path.write_text(path.read_text().replace("points = 2", "points = 2\nvalues = true"))
    (run,) = load_suite(str(path)).runs()
    result = systems.train(run)
    checks = [each.values for each in result.evaluations]
    assert all(check is not None and check.states > 0 for check in checks)
    first, last = checks[0], checks[-1]
    assert first is not None
    assert last is not None
    # Untrained networks are small, the same in all of them, and far below the returns of CartPole.
    assert abs(first.estimate) < 1.0 < first.realised
    assert first.positive == 0.0
    assert last.estimate != first.estimate
    again = systems.train(run)
    assert again.evaluations == result.evaluations


@pytest.mark.parametrize("name", NAMES)
def test_an_evaluation_may_fall_into_the_warm_up(name: str, make_suite: Make) -> None:
    values = {"seeds": 1, "config": "adam_eps = 1e-7"}
    (often,) = make_suite([name], points=16, **values).runs()
    (seldom,) = make_suite([name], points=1, **values).runs()
    result = systems.train(often)
    assert result.timesteps[:5] == (0, 4, 8, 12, 16)
    other = systems.train(seldom)  # as if nobody had looked
    assert result.episodes == other.episodes
    assert result.timing.updates == other.timing.updates == 24


@pytest.mark.parametrize("name", NAMES)
def test_exploration_may_be_longer_than_the_training(name: str, make_suite: Make) -> None:
    (run,) = make_suite([name], seeds=1, config="exploration_steps = 1000").runs()
    systems.warm_up(run)
    assert systems.train(run).timing.updates == 24


def test_values_of_dict_observations_are_those_of_legal_actions(
    write_suite: Callable[..., Path],
) -> None:
    path = write_suite(
        ["native-target"], seeds=1, environment="benchmark.fake_environments:Masked-v0"
    )
    path.write_text(path.read_text().replace("points = 2", "points = 2\nvalues = true"))
    suite = load_suite(str(path))
    suite.check_runnable()
    shown: list[Any] = []
    start = Recorder.start

    def spying_start(self: Recorder, greedy: Greedy, values: Values | None = None) -> None:
        assert values is not None
        for legal in ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]):
            observation = {"seen": np.ones((1, 2), np.float32), "action_mask": np.array([legal])}
            shown.append(values(observation).item())
        start(self, greedy, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "start", spying_start)
        result = systems.train(suite.runs()[0])
    assert len({*shown}) == 3
    assert max(shown) == shown[3]
    assert all(each.values is not None for each in result.evaluations)


def test_the_untrained_networks_are_the_same_in_all_systems(trained: dict[str, Trained]) -> None:
    """Initialisation, environment and evaluation are paired: the curves begin at one point."""
    expected = trained["sb3-reference"]
    assert 0 < sum(expected.before) < 500
    for each in trained.values():
        assert each.before == expected.before
        assert each.result.evaluations[0] == expected.result.evaluations[0]


@pytest.mark.parametrize(
    "name", ["native-double", "sb3-double", "sb3-reference", "tianshou-double",
             "tianshou-reference-double"]
)  # fmt: skip
def test_the_same_run_twice_gives_the_same_numbers(name: str, trained: dict[str, Trained]) -> None:
    first = trained[name]
    torch.manual_seed(99)  # what the process did before does not matter
    again = train(first.result.run)
    assert again.after == first.after
    assert again.result.evaluations == first.result.evaluations
    assert again.result.episodes == first.result.episodes
    other = train(dataclasses.replace(first.result.run, seed_index=1))
    assert other.before != first.before
    assert other.result.episodes != first.result.episodes


@pytest.mark.parametrize("name", ["native-double", "sb3-reference", "tianshou-reference-double"])
def test_warming_up_changes_no_number(name: str, trained: dict[str, Trained]) -> None:
    run = trained[name].result.run
    systems.warm_up(run)
    again = train(run)
    assert again.after == trained[name].after
    assert again.result.evaluations == trained[name].result.evaluations


def test_systems_of_users_are_not_warmed_up(make_suite: Make) -> None:
    systems.warm_up(make_suite(["exits"], seeds="[1]").runs()[0])  # it would end this process


@pytest.mark.parametrize("implementation", ["native", "sb3", "tianshou"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_core_gets_the_levelled_configuration_through_every_adapter(
    implementation: str, variant: str, make_suite: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    learners: list[DQNLearner] = []
    batches: list[int] = []
    update = DQNLearner.update

    def spy(self: DQNLearner, batch: Transition) -> Any:
        learners.append(self)
        batches.append(len(batch.rewards))
        return update(self, batch)

    monkeypatch.setattr(DQNLearner, "update", spy)
    name = f"{implementation}-{variant}"
    values = {
        "learning_rate": 0.003,
        "adam_eps": 0.004,
        "gamma": 0.75,
        "tau": 0.5,
        "loss": "mse",
        "max_grad_norm": 0.125,
    }
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
    run = runs_of(make_suite([name], config=text))[name]
    systems.train(run)

    learner = learners[-1]
    for field in ("variant", "gamma", "tau", "loss", "max_grad_norm", "target_update_interval"):
        assert getattr(learner.config, field) == getattr(run.config, field), field
    assert learner.config.variant == variant
    assert learner.config.target_update_unit == "steps"
    (group,) = learner.optimizer.param_groups
    assert (group["lr"], group["eps"]) == (0.003, 0.004)
    shapes = [tuple(parameter.shape) for parameter in learner.q_net.parameters()]
    assert shapes == [(16, 4), (16,), (2, 16), (2,)]
    assert set(batches) == {8}
    assert len(batches) == 24  # (64 - 16) / 4 * 2 updates


@pytest.mark.parametrize("name", ["sb3-reference", "tianshou-reference-target"])
def test_the_gradient_of_the_hosts_is_clipped_as_the_configuration_says(
    name: str, make_suite: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters: Any, max_norm: float, *arguments: Any, **values: Any) -> Any:
        norms.append(float(max_norm))
        return clip(parameters, max_norm, *arguments, **values)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spy)
    systems.train(runs_of(make_suite([name], config="max_grad_norm = 0.125"))[name])
    assert norms == [0.125] * 24  # (64 - 16) / 4 * 2 updates


CONFIG = DQNConfig(
    learning_rate=0.002,
    train_freq=16,
    gradient_steps=8,
    learning_starts=520,
    target_update_interval=256,
    exploration_fraction=0.25,
    exploration_final_eps=0.1,
    max_grad_norm=None,
    adam_eps=1e-5,
    hidden_sizes=(32, 16),
)


def test_units_of_tianshou() -> None:
    settings = tianshou_settings(dataclasses.replace(CONFIG, variant="double"), 8000)
    assert settings.algorithm == {
        "gamma": 0.99,
        "target_update_freq": 128,  # 256 steps, of which 16 make 8 updates
        "is_double": True,
        "huber_loss_delta": 1.0,
    }
    assert settings.warm_up == 512  # whole phases of 16
    assert settings.trainer["epoch_num_steps"] == 8000 - 512
    assert settings.trainer["update_step_num_gradient_steps_per_sample"] == 0.5
    assert settings.epsilon(0) == 1.0
    assert settings.epsilon(1000) == pytest.approx(0.55)
    assert settings.epsilon(2000) == 0.1
    assert settings.optimizer == {"lr": 0.002, "eps": 1e-5}

    vanilla = tianshou_settings(dataclasses.replace(CONFIG, variant="vanilla"), 8000)
    assert vanilla.algorithm["target_update_freq"] == 0
    assert vanilla.algorithm["is_double"] is False
    mse = tianshou_settings(dataclasses.replace(CONFIG, variant="target", loss="mse"), 8000)
    assert mse.algorithm["huber_loss_delta"] is None
    assert mse.algorithm["is_double"] is False


def test_units_of_sb3() -> None:
    arguments = sb3_arguments(dataclasses.replace(CONFIG, exploration_steps=1000), 8000)
    assert arguments["exploration_fraction"] == 0.125
    assert arguments["max_grad_norm"] == float("inf")
    assert arguments["policy_kwargs"] == {
        "net_arch": [32, 16],
        "optimizer_kwargs": {"eps": 1e-5},
    }
    adapter = sb3_adapter_arguments(dataclasses.replace(CONFIG, exploration_steps=9000), 8000)
    assert adapter["exploration_steps"] == 9000  # longer than the training
    assert "exploration_fraction" not in adapter
    constant = sb3_arguments(dataclasses.replace(CONFIG, exploration_steps=0), 8000)
    assert constant["exploration_initial_eps"] == constant["exploration_final_eps"] == 0.1


def test_sb3_follows_the_epsilon_schedule_of_the_core(make_suite: Make) -> None:
    """SB3's own schedule, built from our fraction, is the one of the other systems."""
    import stable_baselines3

    from dqn_adapters.exploration import epsilon_schedule

    arguments = sb3_arguments(CONFIG, 8000)
    model = stable_baselines3.DQN("MlpPolicy", "CartPole-v1", **arguments, device="cpu")
    ours = epsilon_schedule(CONFIG, 8000)
    for step in (0, 1, 500, 1999, 2000, 2001, 8000):
        assert model.exploration_schedule(1 - step / 8000) == pytest.approx(ours(step), abs=1e-9)


SHIPPED = [
    system.name for system in systems.ALL_SYSTEMS if system.shipped and (SBX or not system.optional)
]


def train_shipped(name: str, steps: int, write_suite: Callable[..., Path]) -> RunResult:
    path = write_suite([name], seeds=1, total_timesteps=steps, points=1)
    path.write_text(path.read_text().partition("[config]")[0])
    (run,) = load_suite(str(path)).runs()
    return systems.train(run)


@pytest.mark.parametrize("name", [name for name in SHIPPED if "tianshou" not in name])
def test_libraries_run_as_they_are_shipped(name: str, write_suite: Callable[..., Path]) -> None:
    result = train_shipped(name, 160, write_suite)
    assert result.timing.updates == (160 - 100) // 4  # one per 4 steps, after 100
    assert result.timesteps == (0, 160)


@pytest.mark.slow
def test_tianshou_runs_as_it_is_shipped(write_suite: Callable[..., Path]) -> None:
    result = train_shipped("tianshou-reference-shipped", 2 * TIANSHOU_PERIOD, write_suite)
    assert result.timing.updates == 2 * TIANSHOU_PERIOD
    assert result.timesteps == (0, 2 * TIANSHOU_PERIOD)


@pytest.mark.slow
def test_tianshou_without_its_nan_scan_learns_the_same(write_suite: Callable[..., Path]) -> None:
    name = "tianshou-reference-shipped"
    with_scan, without = (
        train_shipped(each, TIANSHOU_PERIOD, write_suite) for each in (name, f"{name}-no-scan")
    )
    assert with_scan.evaluations == without.evaluations
    assert with_scan.episodes == without.episodes


@pytest.mark.parametrize("scan", [True, False])
def test_the_nan_scan_is_tianshous_own_or_off(
    make_suite: Make, monkeypatch: pytest.MonkeyPatch, scan: bool
) -> None:
    from tianshou.data import ReplayBuffer

    scans = []
    own = ReplayBuffer.hasnull

    def counted(buffer: ReplayBuffer) -> bool:
        scans.append(len(buffer))
        return own(buffer)

    monkeypatch.setattr(ReplayBuffer, "hasnull", counted)
    (run,) = make_suite(["tianshou-reference-target"], seeds=1).runs()
    recorder = Recorder(run)
    settings = tianshou_settings(run.config, run.total_timesteps)
    systems._learn_tianshou(settings, run, recorder, scan=scan)
    recorder.finish()
    assert recorder.timestep == 64
    assert bool(scans) == scan


def test_what_libraries_are_shipped_with_is_read_from_them() -> None:
    import sb3_contrib
    import stable_baselines3
    from tianshou.highlevel.config import OffPolicyTrainingConfig
    from tianshou.highlevel.module.actor import ActorFactoryDefault, ContinuousActorType

    names = {
        each.implementation
        for each in systems.ALL_SYSTEMS
        if each.shipped and (SBX or not each.optional)
    }
    rows = {row.setting: row for row in shipped_table(2048, names)}
    assert all(set(row.cells) == names for row in rows.values())
    assert all(cell for row in rows.values() for cell in row.cells.values())
    model = stable_baselines3.DQN("MlpPolicy", "CartPole-v1", device="cpu")
    peer = sb3_contrib.QRDQN("MlpPolicy", "CartPole-v1", device="cpu")
    if SBX:
        import sbx

        in_jax = sbx.DQN("MlpPolicy", "CartPole-v1")
        assert rows["hidden_sizes"].cells["sbx"] == str([in_jax.policy.n_units] * 2)
    for name, row in rows.items():
        if name in ("loss", "train_freq", "hidden_sizes", "adam_eps", "environments"):
            continue
        assert row.cells["sb3-reference"] == row.cells["sb3"] == str(getattr(model, name))
        assert row.cells["contrib"] == str(getattr(peer, name))
        if SBX and name != "max_grad_norm":
            assert row.cells["sbx"] == str(getattr(in_jax, name))
        assert float(row.cells["native"]) == getattr(model, name)
    for key, trained in {"sb3-reference": model, "sb3": model, "contrib": peer}.items():
        (group,) = trained.policy.optimizer.param_groups
        assert rows["adam_eps"].cells[key] == str(group["eps"])
    assert set(rows["environments"].cells.values()) == {"1"}
    assert rows["train_freq"].cells["sb3"] == str(model.train_freq.frequency)
    assert rows["hidden_sizes"].cells["sb3"] == str(model.policy.net_arch)
    assert rows["hidden_sizes"].cells["contrib"] == str(peer.policy.net_arch)
    default = ActorFactoryDefault(ContinuousActorType.UNSUPPORTED, discrete_softmax=False)
    assert rows["hidden_sizes"].cells["tianshou-reference"] == str([*default.hidden_sizes])
    assert OffPolicyTrainingConfig().collection_step_num_env_steps == TIANSHOU_PERIOD
    assert rows["target_update_interval"].cells["tianshou-reference"] == "0"


def test_the_peer_is_levelled_as_far_as_it_goes(make_suite: Make) -> None:
    import sb3_contrib

    suite = make_suite(["contrib-qrdqn", "sb3-reference"], config="loss = 'huber'")
    run = runs_of(suite)["contrib-qrdqn"]
    result = systems.train(run)
    assert result.timing.updates == 24  # (64 - 16) / 4 * 2
    arguments = qrdqn_arguments(run.config, run.total_timesteps)
    (group,) = sb3_contrib.QRDQN(
        "MlpPolicy", "CartPole-v1", **arguments, device="cpu"
    ).policy.optimizer.param_groups
    assert group["eps"] == run.config.adam_eps  # not its own, 0.01 / batch_size
    with pytest.raises(SuiteError, match="'contrib-qrdqn' cannot be levelled: dueling=True"):
        make_suite(["contrib-qrdqn"], config="dueling = true")


@pytest.mark.skipif(not SBX, reason="SBX brings JAX, which no extra of the tests does")
def test_sbx_is_levelled_and_begins_with_the_networks_of_the_others(
    write_suite: Callable[..., Path],
) -> None:
    path = write_suite(["sbx-reference", "sb3-reference"], config="max_grad_norm = 0.01")
    path.write_text(path.read_text().replace("[16]", "[16, 16]"))
    runs = runs_of(load_suite(str(path)))
    sbx, sb3 = train(runs["sbx-reference"]), train(runs["sb3-reference"])
    assert sbx.before == sb3.before
    assert sbx.result.evaluations[0] == sb3.result.evaluations[0]
    assert sbx.result.timing.updates == sb3.result.timing.updates == 24
    assert sbx.after != sbx.before
    again = train(runs["sbx-reference"])
    assert again.result.evaluations == sbx.result.evaluations


@pytest.mark.skipif(not SBX, reason="SBX brings JAX, which no extra of the tests does")
def test_a_step_of_sbx_is_that_of_the_core() -> None:
    """The same batch, clipped, and the same parameters after it."""
    import jax.numpy as jnp
    import optax

    from dqn_adapters.benchmark.levelling import sbx_arguments

    config = dataclasses.replace(CONFIG, loss="huber", max_grad_norm=0.5)
    kwargs = sbx_arguments(config, 8000)["policy_kwargs"]
    transform = kwargs["optimizer_class"](config.learning_rate, **kwargs["optimizer_kwargs"])
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(3, 4)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.tensor(weights))
    optimizer = torch.optim.Adam([parameter], lr=config.learning_rate, eps=config.adam_eps)
    theirs, state = jnp.array(weights), transform.init(jnp.array(weights))
    for scale in (0.01, 10.0, 1.0):
        gradient = scale * generator.normal(size=(3, 4)).astype(np.float32)
        parameter.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([parameter], 0.5)
        optimizer.step()
        updates, state = transform.update(jnp.array(gradient), state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        np.testing.assert_allclose(theirs, parameter.detach(), rtol=0, atol=1e-6)


def test_sbx_is_asked_for_by_its_name() -> None:
    for name in ("all", "shipped"):
        assert not [each for each in systems.find(name) if each.implementation == "sbx"]
    assert [each.name for each in systems.find("sbx")] == ["sbx-reference"]
    assert systems.find("sbx-shipped")[0].shipped
    if not SBX:
        message = systems.find("sbx-reference")[0].missing()
        assert message is not None
        assert "pip install 'dqn-adapters[sbx]'" in message


def test_sbx_has_two_layers_of_one_size() -> None:
    (system,) = systems.find("sbx-reference")
    config = dataclasses.replace(CONFIG, loss="huber", huber_delta=1.0)
    assert not system.cannot(dataclasses.replace(config, hidden_sizes=(32, 32)))
    for sizes in [(32, 64), (32,), (32, 32, 32)]:
        (problem,) = system.cannot(dataclasses.replace(config, hidden_sizes=sizes))
        assert "two hidden layers of one size" in problem
    (problem,) = system.cannot(dataclasses.replace(config, loss="mse", hidden_sizes=(32, 32)))
    assert "SBX's DQN has the Huber loss" in problem


def test_the_levelling_table_has_every_implementation_and_every_setting() -> None:
    rows = levelling_table(CONFIG, 8000)
    assert {system.implementation for system in systems.ALL_SYSTEMS} == set(systems.LABELS)
    levelled = {each.implementation for each in systems.ALL_SYSTEMS if not each.many_agents}
    for row in rows:
        assert set(row.cells) >= levelled
        assert all(row.cells.values()), row.setting
    shown = " ".join(cell for row in rows for cell in row.cells.values())
    for name in LEVELLED:
        if not name.startswith("exploration") and name != "target_update_unit":
            assert name in shown, f"{name} is not in the levelling table"
    assert "1 to 0.1 over 2000 steps" in shown
    assert "target_update_freq=128 gradient updates" in shown
    warm_up = next(row for row in rows if row.setting == "Warm-up")
    assert "8 steps earlier" in warm_up.note


def test_a_setting_of_the_native_agent_alone_is_in_the_table() -> None:
    rows = levelling_table(dataclasses.replace(CONFIG, dueling=True), 8000)
    row = next(row for row in rows if row.setting == "dueling")
    assert row.cells == {"native": "dueling=True"}
    assert row.note
