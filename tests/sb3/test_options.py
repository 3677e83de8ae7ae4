"""The core's options through Stable-Baselines3."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecNormalize,
)
from support import Chain, Count

from dqn_adapters.config import VARIANTS
from dqn_adapters.environments import ActionMaskInfo
from dqn_adapters.networks import DuelingHead
from dqn_adapters.sb3 import DQN, CoreReplayBuffer, MlpPolicy
from dqn_adapters.sb3.vector_env import VectorEnvAdapter

HOST = stable_baselines3.DQN


def dict_env() -> Any:
    return SimpleMultiObsEnv(random_start=False, discrete_actions=True)


# -------------------------------------------------------------------------------- dueling


def head_of(model: Any) -> DuelingHead:
    (head,) = (m for m in model.q_net.modules() if isinstance(m, DuelingHead))
    return head


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_dueling_head_learns_and_has_the_mean_advantage_taken_out(
    make: Any, weights: Any, variant: str
) -> None:
    kwargs = {"net_arch": [16, 8], "activation_fn": torch.nn.Tanh}
    model = make(variant=variant, dueling=True, policy_kwargs=kwargs)
    before = weights(model.q_net)
    head = head_of(model.learn(60))
    assert not torch.equal(before, weights(model.q_net))
    assert [type(layer) for layer in head.value] == [
        torch.nn.Linear,
        torch.nn.Tanh,
        torch.nn.Linear,
    ]
    features = torch.randn(7, 16)
    torch.testing.assert_close(head(features).mean(1, keepdim=True), head.value(features))
    assert (model.q_net_target is model.q_net) == (variant == "vanilla")


def test_dueling_with_images_and_dictionaries(make: Any) -> None:
    images = make(
        make_vec_env(FakeImageEnv, 1),
        policy="CnnPolicy",
        dueling=True,
        buffer_size=30,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 16}},
    )
    assert head_of(images).advantage[0].in_features == 16
    several = make(
        make_vec_env(dict_env), policy="MultiInputPolicy", dueling=True, policy_kwargs=None
    )
    head_of(several)
    several.learn(30)


def test_dueling_with_policy_classes_of_the_users_own(make: Any, tmp_path: Path) -> None:
    class Own(MlpPolicy):
        """A policy of the user's."""

    model = make(policy=Own, dueling=True).learn(60)
    assert isinstance(model.policy, Own)
    head_of(model)
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy", device="cpu")
    states = np.eye(5, dtype=np.float32)
    np.testing.assert_array_equal(
        policy.predict(states, deterministic=True)[0], model.predict(states, deterministic=True)[0]
    )
    model.save(tmp_path / "model")
    loaded = DQN.load(tmp_path / "model", env=Chain(), device="cpu")
    assert loaded.dueling
    assert loaded.policy_class.__name__ == "Own"
    assert torch.equal(loaded.q_net(torch.eye(5)), model.q_net(torch.eye(5)))

    class Net(stable_baselines3.dqn.policies.QNetwork):
        def forward(self, obs: Any) -> Any:
            return super().forward(obs)

    class Other(MlpPolicy):
        def make_q_net(self) -> Any:
            return Net(**self._update_features_extractor(self.net_args, None))

    with pytest.raises(ValueError, match="Net has a forward of its own"):
        make(policy=Other, dueling=True)


# --------------------------------------------------------------------- prioritised, n-step


@pytest.mark.parametrize("variant", VARIANTS)
def test_priorities_follow_the_td_errors_and_beta_its_schedule(make: Any, variant: str) -> None:
    model = make(variant=variant, prioritized_replay=True, priority_beta=0.5, train_freq=1)
    seen: list[Any] = []
    update = model.learner.update

    def spy(batch: Any) -> Any:
        metrics = update(batch)
        seen.append((batch, metrics.td_error.clone(), model.replay_buffer.replay.beta))
        return metrics

    model.learner.update = spy
    model.learn(100)
    betas = [beta for *_, beta in seen]
    # From 0.5 at step 0 to 1.0 at step 100; the first update is after step 21.
    np.testing.assert_allclose(betas, 0.5 + 0.5 * np.arange(21, 101) / 100)
    weights = seen[-1][0].weights
    assert weights.max() == 1.0
    assert len(weights.unique()) > 1
    priorities = model.replay_buffer.replay.state_dict()["tree"]["values"][:100]
    assert len(np.unique(priorities)) > 10
    model.learn(50, reset_num_timesteps=False)
    assert model.replay_buffer.replay.beta == 1.0


def test_n_steps_with_dictionaries_and_several_environments(make: Any) -> None:
    env = make_vec_env(dict_env, n_envs=3)
    model = make(
        env, policy="MultiInputPolicy", n_steps=3, gamma=0.5, policy_kwargs=None, buffer_size=300
    ).learn(120)
    samples = model.replay_buffer.sample(200)
    assert set(samples.observations) == {"img", "vec"}
    assert {0.5**3} < {*samples.discounts.flatten().tolist()} <= {0.5, 0.25, 0.125}
    with pytest.raises(AssertionError, match="not supported for Dict"):
        make(env, cls=HOST, policy="MultiInputPolicy", n_steps=3, policy_kwargs=None)


def test_n_step_returns_stay_within_episodes_that_a_reset_breaks_off(make: Any) -> None:
    """Count pays the step's number: so from (episode, t) the 3-step return is known."""
    model = make(Count(lengths=(4, 5)), n_steps=3, gamma=1.0)
    model.learn(6)  # ends within the second episode
    model.learn(20)  # resets
    batch = model.replay_buffer.replay.gather(np.arange(26))
    for s, r, s2 in zip(batch.observations, batch.rewards, batch.next_observations, strict=True):
        (episode, t, _), (last_episode, last_t, _) = s.tolist(), s2.tolist()
        assert episode == last_episode
        assert r == sum(range(int(t) + 1, int(last_t) + 1))


def test_rewards_are_normalised_one_by_one_in_an_n_step_return(make: Any) -> None:
    """Each is clipped, not their sum."""
    env = VecNormalize(DummyVecEnv([lambda: Count(lengths=(6,))]), norm_obs=False, clip_reward=0.5)
    model = make(env, n_steps=3, gamma=1.0, learning_starts=1000).learn(30)
    rewards = model.replay_buffer.sample(300, env=env).rewards
    assert rewards.max() > 0.5
    assert rewards.max() <= 1.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_steps": 3}, "n_steps=3 is not what replay_buffer_class=ReplayBuffer does"),
        ({"prioritized_replay": True}, "prioritized_replay=True is not what"),
        ({"frame_stack": 5}, "frame_stack=5 is not what"),
    ],
)
def test_a_buffer_that_cannot_do_what_is_asked_is_refused(
    make: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(replay_buffer_class=ReplayBuffer, **settings)


def test_the_host_leaves_out_an_n_step_return_that_was_asked_for(make: Any) -> None:
    with pytest.warns(UserWarning, match="is ignored"):
        host = make(cls=HOST, replay_buffer_class=ReplayBuffer, n_steps=3)
    assert not isinstance(host.replay_buffer, NStepReplayBuffer)


def test_options_that_exclude_each_other(make: Any) -> None:
    with pytest.raises(ValueError, match="frame_stack=5 exclude each other"):
        make(frame_stack=5, optimize_memory_usage=True)
    with pytest.raises(ValueError, match="frame_stack=2 needs a Box whose first axis"):
        make(frame_stack=2)
    with pytest.raises(ValueError, match="for a Box of observations"):
        make(
            make_vec_env(dict_env),
            policy="MultiInputPolicy",
            optimize_memory_usage=True,
            policy_kwargs=None,
        )


# ------------------------------------------------------------- memory-lean replay, frames


class Film(gym.Env[Any, int]):
    """Frames of 1 x 36 x 36 that show the number of the step; cut after 7 steps."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.t = getattr(self, "episode", 0) + 1, 0
        return self._frame(), {}

    def _frame(self) -> Any:
        return np.full((36, 36, 1), 10 * self.episode + self.t, np.uint8)

    def step(self, action: int) -> Any:
        self.t += 1
        return self._frame(), 1.0, False, self.t == 7, {}


def test_stacked_frames_are_kept_once(make: Any) -> None:
    def run(**settings: Any) -> Any:
        env = VecFrameStack(DummyVecEnv([Film, Film]), n_stack=4)
        kwargs = {"features_extractor_kwargs": {"features_dim": 8}}
        model = make(env, policy="CnnPolicy", policy_kwargs=kwargs, buffer_size=100, **settings)
        return model.learn(60)

    plain, lean = run(), run(frame_stack=4)
    for name in ("observations", "next_observations", "actions", "dones"):
        np.testing.assert_array_equal(
            getattr(lean.replay_buffer, name), getattr(plain.replay_buffer, name)
        )
    assert lean.replay_buffer.observations.shape == (32, 2, 4, 36, 36)
    # Episodes of 7 steps have 8 frames, and the buffer some room: not the 8 a row of the plain one.
    assert lean.replay_buffer.replay.nbytes < plain.replay_buffer.replay.nbytes / 5
    with pytest.raises(ValueError, match=r"frame_stack=2 does not fit VecFrameStack\(n_stack=4\)"):
        run(frame_stack=2)


def test_a_stack_along_another_axis_is_refused(make: Any) -> None:
    class Grid(Film):
        observation_space = spaces.Box(-1.0, 1.0, (4, 3), np.float32)

    env = VecFrameStack(DummyVecEnv([Grid]), n_stack=2)
    with pytest.raises(ValueError, match="stacked along the first axis"):
        make(env, frame_stack=2)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_memory_usage_is_optimised_rightly_at_time_limits(make: Any, n_steps: int) -> None:
    """S6: the host refuses it together with timeouts, and with n-step returns."""

    def run(**settings: Any) -> Any:
        env = make_vec_env(lambda: Count(lengths=(2, 3)), n_envs=2)
        return make(env, n_steps=n_steps, gamma=0.5, **settings).learn(50)

    lean, plain = run(optimize_memory_usage=True), run()
    rows = np.random.default_rng(0).integers(50, size=100)
    for mine, other in zip(
        lean.replay_buffer._get_samples(rows), plain.replay_buffer._get_samples(rows), strict=True
    ):
        assert mine is other is None or torch.equal(mine, other)
    assert 0 < lean.replay_buffer.dones.mean() < 1
    with pytest.raises((ValueError, NotImplementedError)):
        make(cls=HOST, optimize_memory_usage=True, n_steps=n_steps)
    lean.learn(20)  # the host warns here, and marks a false end


# ---------------------------------------------------------------------------------- masks


class Masked(Count):
    """In step t of its episodes only action t % 3 is legal, or all in every fifth."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"lengths": (3, 4), **kwargs})
        self.action_space = spaces.Discrete(3, start=kwargs.get("start", 0))

    def action_masks(self) -> np.ndarray:
        return np.arange(3) == self.t % 3

    def step(self, action: int) -> Any:
        assert self.action_masks()[action - self.action_space.start]
        return super().step(action)


class Unmasked(Masked):
    """The same without the method, for sb3-contrib's wrapper."""

    action_masks = None  # type: ignore[assignment]

    def legal(self) -> np.ndarray:
        return np.arange(3) == self.t % 3

    def step(self, action: int) -> Any:
        assert self.legal()[action]
        return Count.step(self, action)


MASKED: dict[str, Any] = {
    "method": Masked,
    "start": lambda: Masked(start=4),
    "dummy": lambda: DummyVecEnv([Masked, Masked]),
    "monitored": lambda: make_vec_env(Masked, n_envs=2),
    "subprocess": lambda: make_vec_env(
        Masked, n_envs=2, wrapper_class=ActionMaskInfo, vec_env_cls=SubprocVecEnv
    ),
    "normalised": lambda: VecNormalize(DummyVecEnv([Masked])),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", MASKED)
def test_masks_are_heeded_and_that_of_the_true_next_state_is_stored(
    make: Any, kind: str, variant: str
) -> None:
    """The environment refuses an illegal action; episodes are cut, so the autoreset is met."""
    if kind == "subprocess" and variant != "double":
        pytest.skip("processes are slow to start")
    model = make(MASKED[kind](), variant=variant)
    model.learn(70)
    assert model._n_updates > 0
    batch = model.replay_buffer.replay.gather(np.arange(60))
    expected = batch.next_observations[:, 1:2].long() % 3 == torch.arange(3)
    assert torch.equal(batch.next_action_masks, expected)
    model.env.close()


def test_masks_of_sb3_contrib(make: Any, tmp_path: Path) -> None:
    def env() -> Any:
        return Monitor(ActionMasker(Unmasked(), lambda env: env.legal()))

    evaluate = MaskableEvalCallback(
        env(), eval_freq=25, n_eval_episodes=2, best_model_save_path=str(tmp_path), verbose=0
    )
    model = make(env())
    model.learn(60, use_masking=True, callback=evaluate)
    assert evaluate.last_mean_reward == pytest.approx(8.0)  # 1 + 2 + 3 and 1 + 2 + 3 + 4
    loaded = DQN.load(tmp_path / "best_model", env=env(), device="cpu")
    loaded.learn(30, use_masking=True)
    with pytest.raises(ValueError, match="use_masking=True needs"):
        make().learn(10, use_masking=True)


@pytest.mark.parametrize("deterministic", [True, False])
def test_predict_heeds_masks(make: Any, deterministic: bool) -> None:
    model = make(Masked(start=4))
    model.exploration_rate = 0.5
    one = np.zeros(3, np.float32)
    for legal in range(3):
        mask = np.arange(3) == legal
        action, _ = model.predict(one, deterministic=deterministic, action_masks=mask)
        assert (action.shape, int(action)) == ((), legal + 4)
        batch, _ = model.predict(
            np.stack([one, one]), deterministic=deterministic, action_masks=np.stack([mask, mask])
        )
        assert batch.tolist() == [legal + 4] * 2
    with pytest.raises(ValueError, match="must have shape"):
        model.predict(one, action_masks=np.ones(4, bool))


def test_masks_may_be_left_out(make: Any) -> None:
    class Lenient(Masked):
        def step(self, action: int) -> Any:
            return Count.step(self, action)

    model = make(Lenient()).learn(60, use_masking=False)
    assert not model.replay_buffer.has_masks
    env = make_vec_env(Lenient, vec_env_cls=SubprocVecEnv)
    model = make(env)
    with pytest.raises(ValueError, match="wrap each environment in"):
        model.learn(10)
    model.learn(30, use_masking=False)
    env.close()
    with pytest.raises(ValueError, match="cannot store action masks"):
        make(Masked(), replay_buffer_class=ReplayBuffer).learn(10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_target_uses_the_only_legal_action(make: Any, variant: str) -> None:
    """The only legal next action is worth 2, another 8: the target is 0.5 * 2."""
    model = make(Masked(), variant=variant, gamma=0.5, policy_kwargs={"net_arch": []})
    model.learn(3, use_masking=None)
    for net in (model.q_net, model.q_net_target):
        with torch.no_grad():
            net.q_net[0].weight.zero_()
            net.q_net[0].bias.copy_(torch.tensor([2.0, 8.0, 8.0]))
    batch, _ = model.replay_buffer.draw(4, None)
    only = torch.tensor([[True, False, False]]).repeat(4, 1)
    batch = batch._replace(
        next_action_masks=only, rewards=torch.zeros(4), discounts=torch.full((4,), 0.5)
    )
    torch.testing.assert_close(model.learner.update(batch).td_target, torch.ones(4))


# --------------------------------------------------------------- Gymnasium's vector environments


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_vector_environment_of_gymnasium(make: Any, variant: str, mode: AutoresetMode) -> None:
    """S14. No false transition in any mode: within an episode t grows by one, and the last state
    is followed by nothing."""
    env = gym.vector.SyncVectorEnv(
        [lambda: ActionMaskInfo(Masked()) for _ in range(2)], autoreset_mode=mode
    )
    model = make(env, variant=variant).learn(80)
    assert isinstance(model.get_env(), VectorEnvAdapter)
    assert model.num_timesteps == 80 or mode is AutoresetMode.NEXT_STEP
    stored = model.replay_buffer
    batch = stored.replay.gather(np.arange(len(stored.replay)))
    (episode, t), (next_episode, next_t) = (
        part[:, :2].T for part in (batch.observations, batch.next_observations)
    )
    assert torch.equal(episode, next_episode)
    assert torch.equal(next_t, t + 1)
    assert torch.equal(batch.rewards, next_t)
    ended = (next_t == 3) & (episode % 2 == 0)
    assert torch.equal(batch.discounts == 0, ended)
    assert torch.equal(batch.next_action_masks, next_t[:, None].long() % 3 == torch.arange(3))
    lengths = [info["l"] for info in model.ep_info_buffer]
    assert {*lengths} == {3, 4}
    assert {info["r"] for info in model.ep_info_buffer} == {6.0, 10.0}


def test_a_vector_environment_in_other_processes_and_by_the_hosts_means(make: Any) -> None:
    env = gym.make_vec("CartPole-v1", 2, vectorization_mode="async")
    model = make(env, buffer_size=200).learn(80)
    assert model.get_env().get_attr("render_mode") == [None, None]
    assert model.get_env().get_attr("action_space", 1) == [spaces.Discrete(2)]
    with pytest.raises(ValueError, match="leave it out"):
        make(gym.make_vec("CartPole-v1", 2), replay_buffer_class=ReplayBuffer)
    env.close()
    same = gym.vector.SyncVectorEnv(
        [lambda: gym.make("CartPole-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    make(same, replay_buffer_class=ReplayBuffer).learn(60)
    with pytest.raises(ValueError, match="action space Box"):
        make(gym.make_vec("Pendulum-v1", 2))
    with pytest.raises((AttributeError, TypeError, ValueError, AssertionError)):
        make(copy.copy(same), cls=HOST).learn(10)


def test_frames_are_not_stacked_over_a_step_that_only_resets(make: Any) -> None:
    env = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    with pytest.raises(ValueError, match="VecFrameStack needs environments that reset in the same"):
        make(VecFrameStack(VectorEnvAdapter(env), 4))


def test_a_normaliser_below_a_frame_stack_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="VecNormalize must be the outermost wrapper"):
        make(VecFrameStack(VecNormalize(make_vec_env(Chain)), 2))


def test_hindsight_replay_is_the_hosts_business(make: Any) -> None:
    with pytest.raises(ValueError, match="replay_buffer_class=HerReplayBuffer"):
        make(replay_buffer_class=HerReplayBuffer, prioritized_replay=True)
    assert issubclass(CoreReplayBuffer, ReplayBuffer)
