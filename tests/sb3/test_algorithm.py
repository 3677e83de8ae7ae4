"""The algorithm under Stable-Baselines3: what it takes over from the host, and what it adds."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from support import Chain, Count

from dqn_adapters import DQNConfig
from dqn_adapters.config import VARIANTS
from dqn_adapters.sb3 import DQN
from dqn_adapters.sb3.buffers import to_transition

HOST = stable_baselines3.DQN


class EveryStep(BaseCallback):
    """Keeps what `look(model)` gives after every step."""

    def __init__(self, look: Any) -> None:
        super().__init__()
        self.look, self.seen = look, []

    def _on_step(self) -> bool:
        self.seen.append(self.look(self.model))
        return True


# ------------------------------------------------------------------------------ arguments


def test_the_hosts_arguments_come_first_then_ours_with_the_defaults_of_the_config() -> None:
    host = [*inspect.signature(HOST).parameters.values()]
    ours = [*inspect.signature(DQN).parameters.values()]
    assert ours[: len(host)] == host
    added = {parameter.name: parameter.default for parameter in ours[len(host) :]}
    names = ["variant", "loss", "huber_delta", "target_update_unit", "exploration_steps"]
    names += ["dueling", "prioritized_replay", "priority_alpha", "priority_beta"]
    names += ["priority_beta_final", "priority_beta_steps", "frame_stack"]
    expected = {name: getattr(DQNConfig(), name) for name in names}
    assert added == {**expected, "execution": "auto", "check_observations": True}


def test_defaults_that_the_host_has_too_are_the_hosts() -> None:
    model, config = DQN("MlpPolicy", Chain(), device="cpu"), DQNConfig()
    assert model.learner.config == config
    assert isinstance(model, HOST)


def test_positional_arguments_are_the_hosts() -> None:
    model = DQN("MlpPolicy", Chain(), 1e-3, 500, 7, device="cpu")
    assert (model.learning_rate, model.buffer_size, model.learning_starts) == (1e-3, 500, 7)


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("variant", "dueling", "'vanilla', 'target', 'double'"),
        ("loss", "l1", "'huber', 'mse'"),
        ("learning_rate", -1e-3, "(0, inf)"),
        ("gamma", 1.5, "[0, 1]"),
        ("tau", 0.0, "(0, 1]"),
        ("batch_size", 0, "an integer >= 1"),
        ("train_freq", -2, "an integer >= 1"),
        ("gradient_steps", -2, "an integer >= -1"),
        ("n_steps", 0, "an integer >= 1"),
        ("target_update_interval", 0, "an integer >= 1"),
        ("target_update_unit", "epochs", "'steps', 'episodes', 'updates'"),
        ("max_grad_norm", 0, "(0, inf)"),
        ("exploration_fraction", 2, "[0, 1]"),
    ],
)
def test_a_value_that_is_not_accepted_is_named(
    make: Any, name: str, value: Any, accepted: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name}={value!r} is not accepted") as error:
        make(**{name: value})
    assert accepted in str(error.value)


def test_an_unknown_argument_is_refused(make: Any) -> None:
    with pytest.raises(TypeError, match="double_q"):
        make(double_q=True)


class Spaces(gym.Env[Any, Any]):
    """An environment that is only looked at."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space = observation_space, action_space


BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


def test_a_continuous_action_space_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"^action space Box.* must be a Discrete$"):
        make(Spaces(BOX, BOX))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Tuple([BOX, BOX]),
        spaces.Text(3),
        spaces.Sequence(BOX),
        spaces.Dict({"inner": spaces.Dict({"a": BOX})}),
        spaces.Discrete(3, start=1),  # the host's one-hot code counts from 0
        spaces.Dict({"a": BOX, "b": spaces.Discrete(3, start=-1)}),
    ],
    ids=str,
)
def test_an_observation_space_that_the_host_cannot_encode_is_refused(make: Any, space: Any) -> None:
    with pytest.raises(ValueError, match=r"^observation space .* is not supported; it must be"):
        make(Spaces(space, spaces.Discrete(2)))


def test_whole_floats_of_the_host_and_its_unlimited_norm_are_understood(make: Any) -> None:
    model = make(target_update_interval=1e2, learning_starts=2e1, max_grad_norm=np.inf)
    config = model.learner.config
    assert (config.target_update_interval, config.learning_starts) == (100, 20)
    assert config.max_grad_norm is None
    assert (model.target_update_interval, model.max_grad_norm) == (1e2, np.inf)  # not mutated
    model.learn(30)


# ------------------------------------------------------------------------------- training


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains(make: Any, weights: Any, variant: str) -> None:
    model = make(variant=variant)
    before = weights(model.q_net)
    model.learn(120)
    assert model.num_timesteps == 120
    assert model._n_updates == model.learner.num_updates == 25
    assert not torch.equal(before, weights(model.q_net))
    assert torch.isfinite(weights(model.q_net)).all()
    assert model.learner.config.variant == variant


def test_the_variants_start_from_the_hosts_weights_and_part(make: Any, weights: Any) -> None:
    models = [make(cls=HOST), *(make(variant=variant) for variant in VARIANTS)]
    start = weights(models[0].q_net)
    assert all(torch.equal(start, weights(model.q_net)) for model in models)
    ends = [weights(model.learn(200).q_net) for model in models[1:]]
    assert not any(torch.equal(ends[i], ends[i - 1]) for i in range(3))


def test_vanilla_has_the_online_network_as_its_target_network(make: Any, weights: Any) -> None:
    model = make(variant="vanilla", tau=0.5, target_update_interval=1)
    assert model.q_net_target is model.q_net is model.policy.q_net is model.policy.q_net_target
    seen = EveryStep(lambda m: weights(m.q_net))
    model.learn(60, callback=seen)
    # Before the first update (Polyak's in-place arithmetic would have shrunk them) nothing moves.
    assert torch.equal(seen.seen[0], seen.seen[20])
    assert not torch.equal(seen.seen[0], seen.seen[-1])
    model.policy.set_training_mode(True)
    assert model.q_net.training


@pytest.mark.parametrize("variant", ["target", "double"])
def test_the_target_network_is_frozen_between_syncs_and_equal_after(
    make: Any, weights: Any, variant: str
) -> None:
    model = make(variant=variant, target_update_interval=50, train_freq=1)
    start = weights(model.q_net)
    seen = EveryStep(lambda m: (weights(m.q_net_target), weights(m.q_net)))
    model.learn(151, callback=seen)
    # The callback sees step t before its sync: that of step 50 shows at 51, whose online network
    # is a later one only by the update made in between.
    targets = [target for target, _ in seen.seen]
    for step in range(151):
        expected = start if step < 50 else seen.seen[step // 50 * 50 - 1][1]
        assert torch.equal(targets[step], expected), step
    assert not torch.equal(targets[49], targets[50])


def sync_steps(model: Any, total: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The environment steps at which the target network is synced."""
    steps: list[int] = []
    if isinstance(model, DQN):
        monkeypatch.setattr(model.learner, "sync_target", lambda: steps.append(model.num_timesteps))
    else:
        monkeypatch.setattr(
            stable_baselines3.dqn.dqn,
            "polyak_update",
            lambda *args: steps.append(model.num_timesteps),
        )
    model.learn(total)
    return [*dict.fromkeys(steps)]


def test_the_target_period_is_not_floored_by_the_number_of_environments(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def env() -> Any:
        return make_vec_env(Chain, n_envs=4)

    ours = sync_steps(make(env(), target_update_interval=10), 64, monkeypatch)
    assert ours == [12, 20, 32, 40, 52, 60]  # the first step at or past every multiple of 10
    host = sync_steps(make(env(), cls=HOST, target_update_interval=10), 64, monkeypatch)
    assert host == [8, 16, 24, 32, 40, 48, 56, 64]


def test_more_environments_than_the_target_period_are_no_reason_to_warn(make: Any) -> None:
    make(make_vec_env(Chain, n_envs=4), target_update_interval=2).learn(8)
    with pytest.warns(UserWarning, match="greater than the target network"):
        make(make_vec_env(Chain, n_envs=4), cls=HOST, target_update_interval=2)


def test_the_target_period_in_episodes_is_complete_when_the_episode_ends(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(Count(lengths=(2, 3)), target_update_unit="episodes", target_update_interval=2)
    assert sync_steps(model, 20, monkeypatch) == [5, 10, 15, 20]


def test_the_target_period_in_updates(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(
        target_update_unit="updates",
        target_update_interval=3,
        train_freq=2,
        gradient_steps=1,
        learning_starts=0,
    )
    # Updates at 2, 4, 6: three are complete, and the next one syncs.
    assert sync_steps(model, 14, monkeypatch) == [8, 14]


def test_hyper_parameters_changed_on_the_model_are_honoured(make: Any) -> None:
    model = make().learn(40)
    learner = model.learner
    model.learn(20, reset_num_timesteps=False)
    assert model.learner is learner  # nothing changed, nothing is made anew
    model.tau, model.target_update_interval, model.loss = 0.5, 7, "mse"
    model.learn(20, reset_num_timesteps=False)
    config = model.learner.config
    assert (config.tau, config.target_update_interval, config.loss) == (0.5, 7, "mse")
    counts = {"steps": 80, "episodes": model._episode_num, "updates": model._n_updates}
    assert model.learner.counts == counts
    model.gamma = -1.0
    with pytest.raises(ValueError, match="gamma=-1.0"):
        model.learn(20, reset_num_timesteps=False)


def test_gamma_and_the_optimiser_are_read_when_they_are_needed(make: Any, weights: Any) -> None:
    class OneBatch:
        def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
            one = torch.ones(batch_size, 1)
            obs = torch.eye(5)[:1].repeat(batch_size, 1)
            return ReplayBufferSamples(obs, one.long(), obs, 0 * one, 0 * one)

    model = make()
    model.set_logger(Logger(None, []))
    model.replay_buffer = OneBatch()
    with torch.no_grad():
        best = model.q_net_target(torch.eye(5)[:1]).max().item()
    for gamma in (0.9, 0.5):
        model.gamma = gamma
        model.train(gradient_steps=1, batch_size=4)
        assert model.logger.name_to_value["train/td_target"] == pytest.approx(gamma * best)
    before = weights(model.q_net)
    model.policy.optimizer = torch.optim.SGD(model.q_net.parameters(), lr=1.0)
    model.lr_schedule = lambda _: 0.0
    model.train(gradient_steps=1, batch_size=4)
    assert torch.equal(before, weights(model.q_net))


@pytest.mark.parametrize("change", [("vanilla", "target"), ("double", "vanilla")])
def test_a_model_with_a_target_network_does_not_turn_into_one_without(
    make: Any, change: tuple[str, str]
) -> None:
    model = make(variant=change[0]).learn(40)
    model.variant = change[1]
    with pytest.raises(ValueError, match="target_net"):
        model.learn(20, reset_num_timesteps=False)


def test_a_learning_rate_schedule_reaches_the_optimiser(make: Any) -> None:
    model = make(learning_rate=lambda left: 1e-3 * left)
    rates = EveryStep(lambda m: m.policy.optimizer.param_groups[0]["lr"])
    model.learn(100, callback=rates)
    assert rates.seen[0] == 1e-3
    assert rates.seen[-1] == pytest.approx(1e-3 * (1 - 96 / 100))  # that of the update before


@pytest.mark.parametrize(
    "settings", [{"loss": "mse"}, {"huber_delta": 0.1}, {"max_grad_norm": None}]
)
def test_loss_and_clip_reach_the_learner(make: Any, weights: Any, settings: dict[str, Any]) -> None:
    plain, changed = make(max_grad_norm=0.1).learn(60), make(**{"max_grad_norm": 0.1, **settings})
    changed.learn(60)
    assert {name: getattr(changed.learner.config, name) for name in settings} == settings
    assert not torch.equal(weights(plain.q_net), weights(changed.q_net))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_seed_is_the_same_run_and_another_seed_is_another(
    make: Any, weights: Any, variant: str
) -> None:
    def run(seed: int) -> Any:
        model = make(make_vec_env(Chain, n_envs=2), variant=variant, seed=seed)
        np.random.seed(seed + 1000)  # noqa: NPY002 - nothing of ours draws from it
        return model.learn(150)

    first, again, other = run(1), run(1), run(2)
    assert torch.equal(weights(first.policy), weights(again.policy))
    np.testing.assert_array_equal(first.replay_buffer.actions, again.replay_buffer.actions)
    assert not torch.equal(weights(first.policy), weights(other.policy))
    np.random.seed(0)  # noqa: NPY002
    np.random.rand(10)  # noqa: NPY002
    assert first.replay_buffer.generator.random() == again.replay_buffer.generator.random()


def test_no_seed_is_another_run_every_time(make: Any) -> None:
    draws = {make(seed=None).replay_buffer.generator.random() for _ in range(2)}
    draws |= {make(seed=None)._generator.random() for _ in range(2)}
    assert len(draws) == 4


# ---------------------------------------------------------------------------- exploration


def test_epsilon_is_the_hosts_at_every_step(make: Any) -> None:
    def run(cls: type[HOST]) -> list[float]:
        model = make(cls=cls, exploration_fraction=0.5, exploration_final_eps=0.1)
        seen = EveryStep(lambda m: m.exploration_rate)
        model.learn(100, callback=seen)
        model.learn(100, callback=seen, reset_num_timesteps=False)
        return seen.seen

    assert run(DQN) == run(HOST)


def test_epsilon_over_a_number_of_steps_is_not_restarted(make: Any) -> None:
    model = make(exploration_steps=100, exploration_final_eps=0.0, train_freq=1)
    model.learn(50)
    assert model.exploration_rate == pytest.approx(0.5)
    model.learn(25, reset_num_timesteps=False)
    assert model.exploration_rate == pytest.approx(0.25)


def test_a_schedule_that_the_user_puts_in_place_is_followed(make: Any) -> None:
    model = make()
    model.exploration_schedule = lambda left: 0.123
    assert model.learn(10).exploration_rate == 0.123


def deviating(model: Any, epsilon: float, draws: int = 1500) -> np.ndarray:
    """How many of 8 environments do not act greedily, per draw."""
    observations = np.eye(8, 5, dtype=np.float32)
    model.exploration_rate = epsilon
    greedy, _ = model.predict(observations, deterministic=True)
    return np.array([(model.predict(observations)[0] != greedy).sum() for _ in range(draws)])


def test_every_environment_draws_for_itself_whether_it_explores(make: Any) -> None:
    """Half the random actions are the greedy one: each environment deviates with probability 1/4,
    so none of eight does in 0.75 ** 8 = 10 % of the steps. The host draws once for all eight."""
    ours, host = deviating(make(), 0.5), deviating(make(cls=HOST), 0.5)
    assert abs((ours == 0).mean() - 0.75**8) < 0.03
    assert abs(ours.var() - 8 * 0.25 * 0.75) < 0.2  # binomial
    assert (host == 0).mean() > 0.4
    assert host.var() > 3.0


def test_epsilon_one_is_uniform_and_zero_is_greedy(make: Any) -> None:
    model = make(Spaces(BOX, spaces.Discrete(3)))
    observations = np.zeros((5, 2), np.float32)
    greedy, _ = model.predict(observations, deterministic=True)
    model.exploration_rate = 0.0
    np.testing.assert_array_equal(model.predict(observations)[0], greedy)
    model.exploration_rate = 1.0
    actions = np.concatenate([model.predict(observations)[0] for _ in range(600)])
    np.testing.assert_allclose(np.bincount(actions, minlength=3) / 3000, 1 / 3, atol=0.03)


def test_warm_up_actions_are_uniform_and_nothing_is_learned(make: Any, weights: Any) -> None:
    model = make(learning_starts=1000)
    before = weights(model.q_net)
    model.learn(600)
    assert 0.4 < model.replay_buffer.actions.mean() < 0.6
    assert model._n_updates == 0
    assert torch.equal(before, weights(model.q_net))


@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_answers_in_the_hosts_shapes(make: Any, deterministic: bool) -> None:
    ours, host = make(), make(cls=HOST)
    for model in (ours, host):
        model.exploration_rate = 0.0
    for observation in (np.eye(5, dtype=np.float32)[0], np.eye(5, dtype=np.float32)):
        mine, state = ours.predict(observation, state=("kept",), deterministic=deterministic)
        his, _ = host.predict(observation, deterministic=deterministic)
        assert isinstance(mine, np.ndarray)
        assert (mine.shape, mine.dtype, state) == (his.shape, his.dtype, ("kept",))
        np.testing.assert_array_equal(mine, his)
    ours.exploration_rate = 1.0
    assert ours.predict(np.eye(5, dtype=np.float32)[0])[0].shape == ()
    with pytest.raises(ValueError, match="shape"):
        ours.predict(np.zeros(6, np.float32), deterministic=deterministic)


def test_the_greedy_action_is_the_argmax_of_the_online_network(make: Any) -> None:
    model = make().learn(60)
    observations = np.eye(5, dtype=np.float32)
    with torch.no_grad():
        q_values = model.q_net(model.policy.obs_to_tensor(observations)[0])
    np.testing.assert_array_equal(
        model.predict(observations, deterministic=True)[0], q_values.argmax(1).numpy()
    )


def test_actions_that_do_not_start_at_0_are_translated(make: Any) -> None:
    env = Count(start=3)  # it refuses any other action
    model = make(env).learn(100)
    assert set(np.unique(model.replay_buffer.actions)) == {0, 1}
    # The environment shows the action that it was given.
    stored = model.replay_buffer
    np.testing.assert_array_equal(stored.next_observations[..., 2] - 3, stored.actions[..., 0])
    for deterministic in (True, False):
        action, _ = model.predict(np.zeros(3, np.float32), deterministic=deterministic)
        assert env.action_space.contains(action)
    with pytest.raises((AssertionError, RuntimeError)):
        make(Count(start=3), cls=HOST).learn(100)


# ------------------------------------------------------------------ callbacks and logging


class Written(KVWriter):
    """Keeps every dump."""

    def __init__(self) -> None:
        self.dumps: list[dict[str, Any]] = []

    def write(self, key_values: Any, key_excluded: Any, step: int = 0) -> None:
        self.dumps.append(dict(key_values))

    def close(self) -> None:
        pass


def logged(model: Any) -> dict[str, Any]:
    """The last value of everything that was ever logged."""
    writer = Written()
    model.set_logger(Logger(None, [writer]))
    model.learn(300, log_interval=1)
    return {name: value for dump in writer.dumps for name, value in dump.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_hosts_keys_are_logged_and_ours_beside_them(make: Any, variant: str) -> None:
    ours, host = logged(make(variant=variant)), logged(make(cls=HOST))
    added = {"train/qf_mean_value", "train/td_error", "train/td_target", "train/grad_norm"}
    assert {*ours} == {*host} | added
    for name in ours:
        if name.startswith("train/"):
            assert isinstance(ours[name], int | float), name
            assert np.isfinite(ours[name]), name


def test_what_is_logged_is_the_mean_over_the_training_phase(make: Any) -> None:
    """Q(s, .) = 2, target = 3 (terminal, r = 3) or 1: errors 1 and -1, absolute mean 1."""

    class TwoBatches:
        def __init__(self) -> None:
            self.rewards = iter([3.0, 1.0])

        def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
            obs, one = torch.zeros(batch_size, 5), torch.ones(batch_size, 1)
            return ReplayBufferSamples(obs, one.long(), obs, one, next(self.rewards) * one)

    model = make(policy_kwargs={"net_arch": []}, learning_rate=lambda left: 0.0)
    with torch.no_grad():
        model.q_net.q_net[0].bias.fill_(2.0)
    model.set_logger(Logger(None, []))
    model.replay_buffer = TwoBatches()
    model.train(gradient_steps=2, batch_size=4)
    expected = {
        "train/loss": 0.5,
        "train/td_error": 1.0,
        "train/td_target": 2.0,
        "train/qf_mean_value": 2.0,
        "train/grad_norm": 1.0,
        "train/n_updates": 2,
    }
    assert {name: model.logger.name_to_value[name] for name in expected} == pytest.approx(expected)


def test_callbacks_see_the_hosts_locals(make: Any) -> None:
    class Look(BaseCallback):
        seen: frozenset[str] = frozenset()

        def _on_step(self) -> bool:
            self.seen = frozenset(self.locals)
            return True

    look = Look()
    make().learn(30, callback=look)
    assert {"new_obs", "rewards", "dones", "infos", "replay_buffer", "actions"} <= look.seen


def test_a_callback_that_returns_false_ends_the_training(make: Any) -> None:
    model = make().learn(100, callback=lambda names, _: names["self"].num_timesteps < 30)
    assert model.num_timesteps == 30


# -------------------------------------------------------------------------------- samples


def test_samples_become_a_transition() -> None:
    column = torch.tensor([[0.0], [1.0]])
    samples = ReplayBufferSamples(
        observations=torch.zeros(2, 3),
        actions=torch.tensor([[1], [0]], dtype=torch.int32),
        next_observations=torch.ones(2, 3),
        dones=column,
        rewards=torch.tensor([[5.0], [6.0]]),
    )
    batch = to_transition(samples, gamma=0.9)
    torch.testing.assert_close(batch.discounts, torch.tensor([0.9, 0.0]))
    assert batch.actions.dtype == torch.int64
    assert batch.actions.tolist() == [1, 0]
    assert batch.rewards.tolist() == [5.0, 6.0]
    n_step = samples._replace(discounts=torch.tensor([[0.5], [0.25]]))
    torch.testing.assert_close(to_transition(n_step, gamma=0.9).discounts, torch.tensor([0.5, 0.0]))


@pytest.mark.parametrize("cls", [None, ReplayBuffer])
@pytest.mark.parametrize("limit", [True, False])
def test_a_time_limit_bootstraps_and_a_terminal_state_does_not(
    make: Any, cls: Any, limit: bool
) -> None:
    """One action, reward 1, the episode ends after one step: cut, its value is 1 / (1 - gamma)."""

    class One(gym.Env[np.ndarray, int]):
        observation_space, action_space = BOX, spaces.Discrete(1)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed)
            return np.ones(2, np.float32), {}

        def step(self, action: int) -> Any:
            return np.ones(2, np.float32), 1.0, not limit, limit, {}

    model = make(
        One(),
        gamma=0.5,
        replay_buffer_class=cls,
        target_update_interval=5,
        train_freq=1,
        learning_rate=3e-2,
    ).learn(400)
    value = model.q_net(torch.ones(1, 2)).item()
    assert value == pytest.approx(2.0 if limit else 1.0, abs=0.05)
