import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dqn_adapters.benchmark import Suite, SuiteError, load_suite, systems
from dqn_adapters.benchmark.suite import Published, find_suites
from dqn_adapters.benchmark.systems import SYSTEMS
from dqn_adapters.config import DQNConfig

Write = Callable[..., Path]
Make = Callable[..., Suite]


def test_quick_is_what_it_is_for() -> None:
    suite = load_suite("quick")
    assert [environment.spec.id for environment in suite.environments] == ["CartPole-v1"]
    assert [system.name for system in suite.systems] == [system.name for system in SYSTEMS]
    assert {system.name for system in SYSTEMS} == {
        *(f"{name}-{variant}" for name in ("native", "sb3", "tianshou", "tianshou-reference")
          for variant in ("vanilla", "target", "double")),
        "sb3-reference",
    }  # fmt: skip
    assert len(suite.seeds) >= 2
    suite.check_runnable()


def test_runs_go_seed_by_seed(make_suite: Make) -> None:
    suite = make_suite(["native-double", "sb3-double"], seeds="[4, 0]")
    assert [(run.seed_index, run.system) for run in suite.runs()] == [
        (4, "sb3-double"),
        (4, "native-double"),
        (0, "sb3-double"),
        (0, "native-double"),
    ]


def test_the_levelled_configuration_gets_the_variant_of_the_system(make_suite: Make) -> None:
    names = ["native-vanilla", "native-double", "sb3-reference", "learns"]
    suite = make_suite(names, config="learning_rate = 0.002")
    variants = {run.system: run.config.variant for run in suite.runs()}
    assert variants == {
        "native-vanilla": "vanilla",
        "native-double": "double",
        "sb3-reference": "target",
        "benchmark.fake_systems:learns": DQNConfig.variant,
    }
    configs = {dataclasses.replace(run.config, variant="target") for run in suite.runs()}
    assert len(configs) == 1
    assert configs.pop().learning_rate == 0.002


OWN = """systems = [
    "native-double",
    { system = "native-double", label = "duel", config = { dueling = true, hidden_sizes = [8] } },
]
"""


def with_own(path: Path, text: str = OWN) -> str:
    path.write_text(path.read_text().replace('systems = ["native-double"]\n', text))
    return str(path)


def test_a_system_may_have_settings_of_its_own(write_suite: Write) -> None:
    suite = load_suite(with_own(write_suite(["native-double"], seeds=1)))
    duel, plain = suite.runs()
    assert (plain.title, duel.title) == ("native-double", "duel")
    assert plain.config == dataclasses.replace(suite.config, variant="double")
    assert duel.config == dataclasses.replace(plain.config, dueling=True, hidden_sizes=(8,))
    assert duel.protocol == plain.protocol  # they are compared
    assert duel.identity != plain.identity
    assert [each.name for each in suite.replace_systems(["duel"]).systems] == ["duel"]
    assert suite.replace_systems(["duel", "native-target"]).runs()[1].config.dueling

    text = """
    [[systems]]
    system = "native-double"
    [[systems]]
    system = "native-double"
    label = "duel"
    [systems.config]
    dueling = true
    hidden_sizes = [8]
    """
    path = write_suite(["native-double"], seeds=1)
    path.write_text(path.read_text().replace('systems = ["native-double"]', "") + text)
    assert load_suite(str(path)).runs() == [duel, plain]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('label = "duel", ', "", r"\[systems.2\] label is missing; a system with settings"),
        ('"duel"', '"native-target"', "label = 'native-target' is not accepted.*no other system"),
        ('"duel"', '"sb3"', "label = 'sb3' is not accepted"),
        ('"duel"', '"a,b"', "label = 'a,b' is not accepted.*without a comma"),
        ('system = "native-double"', 'system = "native"', "one of native-vanilla, native-target"),
        ('system = "native-double"', 'system = "natve"', r"\[systems.2\] system: unknown system"),
        ("dueling = true", "duelling = true", r"\[systems.2.config\] duelling is not known"),
        ("dueling = true", "gamma = 2", r"\[systems.2.config\]: gamma=2"),
        ("dueling = true", 'variant = "target"', "variant is not accepted.*part of a system"),
        ("dueling = true", "train_freq = 3", "'duel' has train_freq = 3; the steps of the eval"),
        ('label = "duel"', 'label = "duel", seeds = 3', r"\[systems.2\] seeds is not known"),
        ("[8] } },", "[8] } }, 3,", 'systems = .* is not accepted; it must be "all", a list'),
        (
            "native-double",
            "sb3-double",
            r"system 'duel' cannot be levelled: dueling=True",
        ),
    ],
)
def test_malformed_settings_of_a_system_are_refused(
    write_suite: Write, old: str, new: str, message: str
) -> None:
    assert old in OWN
    with pytest.raises(SuiteError, match=message) as caught:
        load_suite(with_own(write_suite(["native-double"]), OWN.replace(old, new)))
    assert "small.toml" in str(caught.value)


def test_settings_of_a_system_that_an_environment_forbids_are_refused(write_suite: Write) -> None:
    one = OWN.replace("dueling = true", "n_steps = 50")
    path = write_suite(["native-double"], environment_extra="config = { buffer_size = 10 }")
    with pytest.raises(
        SuiteError, match=r"\[environments.1.config\]: n_steps=50 .*settings of system 'duel'"
    ):
        load_suite(with_own(path, one))


def test_systems_that_would_share_their_runs_are_refused(write_suite: Write) -> None:
    text = """systems = [
    { system = "native-double", label = "a b", config = { dueling = true } },
    { system = "native-double", label = "a-b", config = { dueling = true } },
]
"""
    with pytest.raises(SuiteError, match="systems has 'a b' and 'a-b' with the same settings"):
        load_suite(with_own(write_suite(["native-double"]), text))
    other = text.replace('"a-b", config = { dueling = true }', '"a-b", config = { n_steps = 2 }')
    first, second = load_suite(with_own(write_suite(["native-double"], seeds=1), other)).runs()
    assert first.name != second.name


def test_environments_have_labels_where_ids_repeat(write_suite: Write) -> None:
    path = write_suite(["native-double"], environment_extra='label = "long"')
    text = path.read_text()
    more = '[[environments]]\nid = "CartPole-v1"\nmax_episode_steps = 20\n[config]'
    path.write_text(text.replace("[config]", more))
    suite = load_suite(str(path))
    assert [each.spec.title for each in suite.environments] == ["long", "CartPole-v1"]
    path.write_text(text.replace("[config]", more.replace("max", 'label = "long"\nmax')))
    with pytest.raises(SuiteError, match="'long' twice; give them labels"):
        load_suite(str(path))
    same = more.replace("max_episode_steps = 20", 'label = "Pole"')
    path.write_text(text.replace("[config]", same))
    with pytest.raises(SuiteError, match="has 'long' under another label .* the same runs"):
        load_suite(str(path))


def test_evaluations_are_even_and_between_training_phases(make_suite: Make) -> None:
    suite = make_suite(["native-double"], total_timesteps=64, points=3)
    assert suite.evaluation.timesteps == (0, 20, 44, 64)  # multiples of train_freq = 4
    assert make_suite(["native-double"], points=4).evaluation.timesteps == (0, 16, 32, 48, 64)


def test_none_and_lists_reach_the_configuration(make_suite: Make) -> None:
    suite = make_suite(["native-double"], config='max_grad_norm = "none"\nadam_eps = 1e-4')
    assert suite.config.max_grad_norm is None
    assert suite.config.adam_eps == 1e-4
    assert suite.config.hidden_sizes == (16,)


def test_seeds_can_be_added_and_taken_away(make_suite: Make) -> None:
    suite = make_suite(["native-double"], seeds="[7, 1]")
    assert suite.replace_seeds(1).seeds == (7,)
    assert suite.replace_seeds(4).seeds == (7, 1, 0, 2)
    assert make_suite(["native-double"], seeds=3).seeds == (0, 1, 2)
    with pytest.raises(SuiteError, match="--seeds 0"):
        suite.replace_seeds(0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[evaluation]", "[evalation]", r"evaluation is missing \(is it 'evalation'\?\)"),
        ("[config]", "[config", "not valid TOML.*line 14"),
        ("episodes = 2", "episode = 2", r"\[evaluation\] episodes is missing.*'episode'"),
        ("points = 2", "points = 2\nvalues = 1", r"values = 1 is not accepted; it must be true or"),
        ('-v1"', '-v1"\nreward_noise = 0', "reward_noise = 0 is not accepted.*deviation > 0"),
        ("points = 2", "points = 0", r"\[evaluation\] points = 0.*integer >= 1"),
        ("points = 2", "points = 17", r"points = 17 is not accepted; there are only 16"),
        ("points = 2", "points = true", "points = True is not accepted"),
        ("seeds = 2", "seeds = 0", "seeds = 0 is not accepted.*count >= 1"),
        ("seeds = 2", "seeds = []", "seeds = .* is not accepted"),
        ("seeds = 2", "seeds = [1, 1]", "distinct"),
        ("seeds = 2", "seeds = [-1]", "integers >= 0"),
        ("learning_starts = 16", "learning_starts = 64", "learning_starts = 64.*has 64 steps"),
        ("seeds = 2", 'seeds = "two"', "seeds = 'two' is not accepted"),
        ("seeds = 2", "seeds = 2\nworkers = 3", "workers is not known; the keys are"),
        ("seeds = 2", "seeds = 2\nrootseed = 3", "rootseed is not known, did you mean 'root_seed'"),
        ("= 64", "= 62", "total_timesteps = 62.*multiple of config.train_freq = 4"),
        ("= 64", '= "64"', "total_timesteps = '64' is not accepted"),
        ("batch_size = 8", "batchsize = 8", r"\[config\] batchsize is not known.*'batch_size'"),
        ("batch_size = 8", "batch_size = -8", r"\[config\]: batch_size=-8"),
        ("batch_size = 8", "gamma = 1.5", r"\[config\]: gamma=1.5"),
        ("batch_size = 8", 'variant = "double"', "variant is not accepted.*part of a system"),
        ('id = "CartPole-v1"', "", r"\[environments.1\] id is missing"),
        ('id = "CartPole-v1"', 'id = "CartPole-v1"\nkwarg = 3', "kwarg is not known.*'kwargs'"),
        ("[[environments]]", "[environments]", "one or more tables"),
        ("[config]", '[[environments]]\nid = "CartPole-v1"\n[config]', "'CartPole-v1' twice"),
        ('"native-double"', '"native-duoble"', "unknown system.*did you mean 'native-double'"),
        ('["native-double"]', "3", 'systems = 3 is not accepted; it must be "all", a list'),
        ("seeds = 2", "seeds = 2\ncheckpoint_every = 0", "checkpoint_every = 0 is not accepted"),
        ('["native-double"]', "[]", "systems = .* is not accepted"),
        ('-v1"', '-v1"\nscore_range = [5, 5]', r"score_range = \[5, 5\].*two numbers, \[low"),
        ('-v1"', '-v1"\nmargin = 0', "margin = 0 is not accepted; it must be a number > 0"),
        ('"native-double"', '"no_such_module:train"', "cannot be imported.*no_such_module"),
        ("seeds = 2", f"seeds = 2\nroot_seed = {10**400}.0", "root_seed = inf is not accepted"),
        ("batch_size = 8", f"gamma = {10**400}", r"\[config\]: gamma=1000"),
        ('-v1"', f'-v1"\nmargin = {10**400}', "margin = 1000.* is not accepted"),
        ('-v1"', '-v1"\nthreshold = nan', "threshold = nan is not accepted; it must be a number"),
        ('-v1"', '-v1"\nmargin = inf', "margin = inf is not accepted"),
        ('-v1"', '-v1"\nscore_range = [-inf, 0]', "score_range = .* is not accepted"),
        ('-v1"', '-v1"\nreward_noise = inf', "reward_noise = inf is not accepted"),
        ('-v1"', '-v1"\nkwargs = { a = nan }', "kwargs = .* is not accepted.*finite numbers"),
        ('-v1"', '-v1"\nkwargs = { a = 2020-01-01 }', "kwargs = .* is not accepted"),
        ('-v1"', '-v1"\nlabel = "a|b"', r"label = 'a\|b' is not accepted.*without \|"),
        ('-v1"', '-v1"\nlabel = "_a"', "label = '_a' is not accepted.*underscore"),
        ('-v1"', f'-v1"\nlabel = "{81 * "a"}"', "is not accepted.*at most 80"),
        ('"native-double"', '"benchmark.fake_systems:lerns"', "cannot be imported"),
        ('"native-double"', '"benchmark.fake_systems:NOT_A_FUNCTION"', "is not a function"),
    ],
)
def test_a_malformed_suite_is_refused(write_suite: Write, old: str, new: str, message: str) -> None:
    path = write_suite(["native-double"])
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(SuiteError, match=message) as caught:
        load_suite(str(path))
    assert "small.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("system", "config", "message"),
    [
        ("sb3-reference", 'loss = "mse"', "'sb3-reference' cannot be levelled.*Huber.*delta 1"),
        ("sb3-reference", "huber_delta = 2.0", "huber_delta=2.0"),
        ("sb3-reference", 'target_update_unit = "episodes"', "levelled in 'steps' only"),
        ("sb3-reference", "dueling = true", "sets dueling for the native agent only"),
        ("tianshou-reference-double", 'target_update_unit = "updates"', "'steps' only"),
        ("tianshou-reference-double", "tau = 0.01", "tau=0.01"),
        ("ablation-stream", "n_steps = 9", "n_steps=9; of a stream batch_size=8 transitions"),
        ("ablation-stream", "prioritized_replay = true", "prioritized_replay=True; a stream"),
    ],
)
def test_what_a_library_cannot_do_is_refused_and_not_passed_over(
    make_suite: Make, system: str, config: str, message: str
) -> None:
    with pytest.raises(SuiteError, match=message):
        make_suite([system], config=config)
    make_suite(["native-double"], config=config)


def test_a_system_that_cannot_tell_values_is_refused_where_they_are_asked_for(
    write_suite: Write,
) -> None:
    path = write_suite(["sb3-double", "tianshou-double"])
    path.write_text(path.read_text().replace("points = 2", "points = 2\nvalues = true"))
    with pytest.raises(SuiteError, match="'tianshou-double' cannot tell the values"):
        load_suite(str(path))


def test_a_target_period_must_be_whole_in_tianshous_updates(write_suite: Write) -> None:
    path = write_suite(["tianshou-reference-double"])
    text = path.read_text()
    assert "target_update_interval = 8" in text
    path.write_text(text.replace("target_update_interval = 8", "target_update_interval = 9"))
    with pytest.raises(SuiteError, match="target_update_interval=9 steps are not a whole number"):
        load_suite(str(path))


@pytest.mark.parametrize(
    ("environment", "extra", "message"),
    [
        ("CartPole-v7", "", "CartPole-v7"),
        ("NoSuchEnvironment-v0", "", "NoSuchEnvironment"),
        ("Pendulum-v1", "", "needs a Discrete one"),
        ("CartPole-v1", "kwargs = { colour = 3 }", "cannot be made.*colour"),
        ("FrozenLake-v1", 'kwargs = { map_name = "9x9" }', "cannot be made: KeyError: '9x9'"),
        ("a:b:C-v0", "", "cannot be made: ValueError"),
        ("benchmark.fake_environments:MaskedInInfo-v0", "", "in its info.*'action_mask' into a"),
        ("benchmark.fake_environments:MaskedByMethod-v0", "", "by action_masks().*'action_mask'"),
    ],
)
def test_an_environment_that_cannot_be_used_is_refused(
    make_suite: Make, environment: str, extra: str, message: str
) -> None:
    suite = make_suite(["native-double"], environment=environment, environment_extra=extra)
    with pytest.raises(SuiteError, match=message):
        suite.check_runnable()


def test_observations_without_a_network_in_the_harness_are_refused(make_suite: Make) -> None:
    for system in ("native-double", "sb3-double"):
        make_suite([system], environment="FrozenLake-v1").check_runnable()
    suite = make_suite(["tianshou-double"], environment="FrozenLake-v1")
    with pytest.raises(SuiteError, match=r"Discrete\(16\), for which system 'tianshou-double' has"):
        suite.check_runnable()


def test_actions_that_a_library_does_not_know_are_refused(make_suite: Make) -> None:
    values = {"environment": "benchmark.fake_environments:FromThree-v0", "seeds": 1}
    for system in ("native-target", "sb3-target", "tianshou-target"):
        suite = make_suite([system], **values)
        suite.check_runnable()
        systems.train(suite.runs()[0])
    for system in ("sb3-reference", "tianshou-reference-target", "contrib-qrdqn"):
        with pytest.raises(SuiteError, match=f"actions from 3 on, and system '{system}'"):
            make_suite([system], **values).check_runnable()


def test_an_environment_without_time_limit_is_refused(make_suite: Make) -> None:
    # Evaluating a policy that never ends its episode would take for ever.
    import gymnasium as gym
    from gymnasium.envs.classic_control import CartPoleEnv

    gym.register("Endless-v0", CartPoleEnv)
    try:
        with pytest.raises(SuiteError, match="no time limit.*max_episode_steps"):
            make_suite(["native-double"], environment="Endless-v0").check_runnable()
        make_suite(
            ["native-double"], environment="Endless-v0", environment_extra="max_episode_steps = 9"
        ).check_runnable()
    finally:
        del gym.registry["Endless-v0"]


def test_a_missing_host_names_the_extra(make_suite: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tianshou", None)
    suite = make_suite(["native-double", "tianshou-double"])
    with pytest.raises(SuiteError, match=r"tianshou-double.*dqn-adapters\[tianshou\]"):
        suite.check_runnable()
    suite.replace_systems(["native-double"]).check_runnable()


def test_unknown_suites_are_refused() -> None:
    with pytest.raises(SuiteError, match="unknown suite 'quik', did you mean 'quick'"):
        load_suite("quik")
    with pytest.raises(SuiteError, match=r"there is no file nowhere/quick\.toml"):
        load_suite("nowhere/quick.toml")


def test_suites_of_the_working_directory_are_found_by_name(
    write_suite: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "benchmarks" / "suites"
    folder.mkdir(parents=True)
    write_suite(["native-double"]).rename(folder / "mine.toml")
    monkeypatch.chdir(tmp_path)
    assert {"mine", "quick"} <= find_suites().keys()
    assert load_suite("mine").name == "mine"


def test_what_is_shipped_is_never_mixed_with_what_is_levelled(write_suite: Write) -> None:
    path = write_suite(["native-shipped", "sb3-reference-shipped"])
    text = path.read_text()
    with pytest.raises(SuiteError, match="'native-shipped' runs as it is shipped.*must be empty"):
        load_suite(str(path))
    empty = text.partition("[config]")[0]
    path.write_text(empty)
    suite = load_suite(str(path))
    assert suite.shipped
    assert suite.config == DQNConfig()
    with pytest.raises(SuiteError, match="never compared in one table, so make two suites"):
        suite.replace_systems(["native-shipped", "native-target"])
    path.write_text(text.replace('"native-shipped"', '"native-target"'))
    with pytest.raises(SuiteError, match=r"'sb3-reference-shipped' runs.*'native-target' levelled"):
        load_suite(str(path))
    # Tianshou collects 2048 steps before it learns; evaluations fall between its phases.
    path.write_text(empty.replace('"native-shipped"', '"tianshou-reference-shipped"'))
    with pytest.raises(SuiteError, match="total_timesteps = 64.*multiple of 2048, after which all"):
        load_suite(str(path))


# Box2D's SWIG module warns while it is imported, and crashes where that is made an error.
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")
@pytest.mark.parametrize("name", ["classic", "defaults"])
def test_the_classic_tasks(name: str) -> None:
    suite = load_suite(name)
    assert [each.spec.id for each in suite.environments] == [
        "CartPole-v1",
        "Acrobot-v1",
        "MountainCar-v0",
        "LunarLander-v3",
    ]
    assert suite.shipped == (name == "defaults")
    assert len(suite.evaluation.timesteps) > 20
    assert suite.evaluation.episodes == 20
    assert all(each.score_range and each.margin for each in suite.environments)
    suite.check_runnable()


def test_systems_can_be_replaced(make_suite: Make) -> None:
    suite = make_suite(["native-double"]).replace_systems(["sb3-double", "sb3"])
    assert [system.name for system in suite.systems] == ["sb3-double", "sb3-vanilla", "sb3-target"]
    with pytest.raises(SuiteError, match="--systems: unknown system 'sb4'"):
        suite.replace_systems(["sb4"])
    mse = make_suite(["native-double"], config='loss = "mse"')
    with pytest.raises(SuiteError, match="--systems: system 'sb3-reference' cannot be levelled"):
        mse.replace_systems(["sb3-reference"])


def test_bias_measures_values_with_and_without_noise() -> None:
    suite = load_suite("bias")
    assert suite.evaluation.values
    noise = {each.spec.title: each.spec.reward_noise for each in suite.environments}
    assert noise == {
        "CartPole-v1": 0.0,
        "CartPole, noise": 1.0,
        "Acrobot-v1": 0.0,
        "Acrobot, noise": 1.0,
    }
    assert {system.variant for system in suite.systems} == {"vanilla", "target", "double"}
    suite.check_runnable()


def test_an_environment_may_have_steps_and_settings_of_its_own(write_suite: Write) -> None:
    path = write_suite(["native-double"], seeds=1, total_timesteps=64, points=2)
    more = """[[environments]]
id = "CartPole-v1"
label = "longer"
total_timesteps = 96
config = { train_freq = 8, gamma = 0.5 }
[config]"""
    path.write_text(path.read_text().replace("[config]", more))
    plain, longer = load_suite(str(path)).runs()
    assert (plain.total_timesteps, plain.evaluation.timesteps) == (64, (0, 32, 64))
    assert (longer.total_timesteps, longer.evaluation.timesteps) == (96, (0, 48, 96))
    assert longer.config == dataclasses.replace(plain.config, train_freq=8, gamma=0.5)
    assert longer.protocol != plain.protocol
    assert load_suite(str(path)).config == dataclasses.replace(plain.config, variant="target")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("total_timesteps = 62", r"\[environments.1\] total_timesteps = 62.*train_freq = 4"),
        ("total_timesteps = 4", r"points = 2 is not accepted; there are only 1 training phases"),
        ("config = { gamma = 2 }", r"\[environments.1.config\]: gamma=2"),
        ("config = { gama = 1 }", r"\[environments.1.config\] gama is not known, did you mean"),
        ('config = { variant = "double" }', "variant is not accepted; the variant is part of a"),
        ("config = { train_freq = 3 }", "total_timesteps = 64 .* config.train_freq = 3"),
    ],
)
def test_malformed_settings_of_an_environment_are_refused(
    make_suite: Make, settings: str, message: str
) -> None:
    with pytest.raises(SuiteError, match=message):
        make_suite(["native-double"], environment_extra=settings)


def test_what_an_environment_sets_must_be_levelled_too(make_suite: Make) -> None:
    extra = "config = { dueling = true }"
    with pytest.raises(SuiteError, match="'sb3-double' cannot be levelled: dueling=True"):
        make_suite(["sb3-double"], environment_extra=extra)


PUBLISHED = """
[[environments.published]]
source = "A paper"
url = "https://example.org"
score = -3.5
plus_minus = 0.5
seeds = 3
steps = 1000
measure = "training"
note = "one of them"
"""


def test_published_scores(make_suite: Make) -> None:
    (environment,) = make_suite(["native-double"], environment_extra=PUBLISHED).environments
    (published,) = environment.published
    assert published == Published(
        "A paper", "https://example.org", -3.5, 1000, "training", 0.5, 3, "one of them"
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("score", "skore", r"\[environments.1.published.1\] score is missing \(is it 'skore'"),
        ('"training"', '"best"', "measure = 'best' is not accepted.*'training', 'final'"),
        ("= 0.5", "= -0.5", "plus_minus = -0.5 is not accepted; it must be a number >= 0"),
        ("https", "ftp", "url = 'ftp://example.org' is not accepted"),
        ("seeds = 3", "seed = 3", "published.1] seed is not known, did you mean 'seeds'"),
    ],
)
def test_malformed_published_scores_are_refused(
    make_suite: Make, old: str, new: str, message: str
) -> None:
    assert old in PUBLISHED
    with pytest.raises(SuiteError, match=message):
        make_suite(["native-double"], environment_extra=PUBLISHED.replace(old, new))


VARIANT_SYSTEMS = ["native-vanilla", "native-target", "native-double"]

CLAIM = """
[[claims]]
question = "Does it help?"
part = "double"
experiment = "One against the other."
having = ["native-double"]
lacking = ["native-target", "native-vanilla"]
metrics = ["area"]
"""


def test_claims_name_systems_of_the_suite(make_suite: Make) -> None:
    (claim,) = make_suite(VARIANT_SYSTEMS, config=CLAIM).claims
    assert claim.having == ("native-double",)
    assert claim.lacking == ("native-target", "native-vanilla")
    assert claim.metrics == ("area",)
    assert make_suite(VARIANT_SYSTEMS).claims == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"native-vanilla"', '"native-vanila"', r"\[claims.1\] lacking: 'native-vanila' is not a "),
        ('"native-vanilla"', '"native-double"', "lacking: 'native-double' is also in having"),
        ('["native-double"]', "[]", r"having = \[\] is not accepted"),
        ('"area"', '"speed"', r"metrics = \['speed'\].*'area', 'final', 'bias'"),
        ('"area"', '"bias"', r"'bias' needs \[evaluation\] values = true"),
        ("question", "answer", r"\[claims.1\] question is missing"),
    ],
)
def test_malformed_claims_are_refused(make_suite: Make, old: str, new: str, message: str) -> None:
    assert old in CLAIM
    with pytest.raises(SuiteError, match=message):
        make_suite(VARIANT_SYSTEMS, config=CLAIM.replace(old, new))


def test_the_claims_suite_compares_what_it_says() -> None:
    suite = load_suite("claims")
    assert len(suite.seeds) == 20
    assert suite.evaluation.values
    by_name = {system.name: system for system in suite.systems}
    configs = {name: system.configure(suite.config) for name, system in by_name.items()}
    assert suite.config == load_suite("bias").config  # not tuned for the claims
    replay, target, double, residual = suite.claims
    # As many updates per step everywhere.
    assert {each.gradient_steps / each.train_freq for each in configs.values()} == {0.5}
    base = configs["native-target"]
    assert configs["newest-64"] == base
    assert {by_name[name].origin for name in replay.lacking} == {"ablation-stream"}
    periods = [configs[name].target_update_interval for name in target.having]
    assert periods == sorted(periods) == [16, 64, 256, 1024, 4096]
    for name, period in zip(target.having, periods, strict=True):
        assert configs[name] == dataclasses.replace(base, target_update_interval=period)
    assert configs["native-vanilla"] == dataclasses.replace(base, variant="vanilla")
    assert configs["residual"] == configs["native-vanilla"]
    assert configs["native-double"] == dataclasses.replace(base, variant="double")
    assert double.metrics == ("bias", "area")
    assert (residual.having, residual.lacking) == (("native-vanilla",), ("residual",))


def test_the_zoo_suite_has_the_hyper_parameters_that_the_zoo_ships() -> None:
    yaml = pytest.importorskip("yaml")
    zoo = pytest.importorskip("rl_zoo3")
    shipped = yaml.safe_load((Path(zoo.__file__).parent / "hyperparams" / "dqn.yml").read_text())
    for environment in load_suite("zoo").environments:
        theirs, ours = shipped[environment.spec.id], environment.config.to_dict()
        for name, value in theirs.items():
            if name in ("policy", "n_timesteps"):
                continue
            if name == "policy_kwargs":
                assert value == f"dict(net_arch={ours['hidden_sizes']})"
            elif name == "gradient_steps" and value == -1:
                assert ours[name] == ours["train_freq"]
            else:
                assert ours[name] == float(value), (environment.spec.id, name)
        excess = environment.total_timesteps - float(theirs["n_timesteps"])
        assert 0 <= excess < environment.config.train_freq
        (published,) = environment.published
        assert published.steps == float(theirs["n_timesteps"])


def test_published_figures_are_held_beside_the_settings_they_were_made_with() -> None:
    scores = {
        (name, environment.spec.id): [(each.score, each.steps) for each in environment.published]
        for name in ("cleanrl", "zoo")
        for environment in load_suite(name).environments
    }
    assert scores == {
        ("cleanrl", "CartPole-v1"): [(488.69, 500_000)],
        ("cleanrl", "Acrobot-v1"): [(-91.54, 500_000)],
        ("cleanrl", "MountainCar-v0"): [(-194.95, 500_000)],
        ("zoo", "CartPole-v1"): [(500.0, 50_000)],
        ("zoo", "Acrobot-v1"): [(-76.639, 100_000)],
        ("zoo", "MountainCar-v0"): [(-100.849, 120_000)],
    }
    suite = load_suite("cleanrl")
    assert all(each.config == suite.config for each in suite.environments)
    assert [each.total_timesteps for each in suite.environments] == [500_000] * 3
