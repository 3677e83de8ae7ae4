"""DQN without one of its parts, with numbers worked out by hand."""

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from dqn_adapters import DQNAgent, DQNConfig
from dqn_adapters.benchmark import systems
from dqn_adapters.benchmark.ablations import Newest, ResidualAgent, ResidualLearner, StreamAgent
from dqn_adapters.benchmark.spec import EnvironmentSpec, EvaluationSpec, RunSpec
from dqn_adapters.learner import DQNLearner
from dqn_adapters.transition import Transition


def linear(weight: list[list[float]]) -> nn.Linear:
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor(weight))
    return net


# Q(s, .) = W s. The first row bootstraps from action 1 of s', whose value is 2 * 3 = 6; the second
# is terminal, and what lies behind it is poisoned.
WEIGHT = [[1.0, 0.0], [0.0, 2.0]]
BATCH = Transition(
    observations=torch.tensor([[4.0, 0.0], [0.0, 1.0]]),
    actions=torch.tensor([0, 1]),
    rewards=torch.tensor([3.0, 5.0]),
    discounts=torch.tensor([0.5, 0.0]),
    next_observations=torch.tensor([[1.0, 3.0], [99.0, 99.0]]),
)


def gradient(learner: DQNLearner) -> list[list[float]]:
    loss = learner.td_loss(BATCH)
    assert loss.q_value.tolist() == [4.0, 2.0]
    assert loss.td_target.tolist() == [6.0, 5.0]
    assert loss.td_error.tolist() == [2.0, 3.0]
    assert loss.loss.item() == pytest.approx((4.0 + 9.0) / 2)
    assert not loss.td_target.requires_grad
    assert not loss.td_error.requires_grad
    loss.loss.backward()  # type: ignore[no-untyped-call]
    (weight,) = learner.q_net.parameters()
    assert weight.grad is not None
    return weight.grad.tolist()


CONFIG = DQNConfig(variant="vanilla", loss="mse", gamma=0.5)


def test_the_gradient_of_the_prediction_alone_is_that_of_dqn() -> None:
    # d/dW of the mean of (y - Q)^2 with y constant: -error * s in the row of the action.
    assert gradient(DQNLearner(linear(WEIGHT), CONFIG)) == [[-8.0, 0.0], [0.0, -3.0]]


def test_the_residual_gradient_has_that_of_the_target_too() -> None:
    # And + error * d * s' in the row of the action that is best in s', of row 0 alone:
    # 2 * 0.5 * (1, 3) in the row of action 1.
    assert gradient(ResidualLearner(linear(WEIGHT), CONFIG)) == [[-8.0, 0.0], [1.0, 0.0]]


def test_the_residual_gradient_of_the_huber_loss_and_of_weights() -> None:
    net = linear(WEIGHT)
    learner = ResidualLearner(net, dataclasses.replace(CONFIG, loss="huber", huber_delta=1.0))
    loss = learner.td_loss(BATCH._replace(weights=torch.tensor([0.0, 2.0])))
    assert loss.loss.item() == pytest.approx(2 * (3.0 - 0.5) / 2)
    loss.loss.backward()  # type: ignore[no-untyped-call]
    assert net.weight.grad is not None
    assert net.weight.grad.tolist() == [[0.0, 0.0], [0.0, -1.0]]


def test_the_residual_gradient_respects_masks() -> None:
    net = linear(WEIGHT)
    masks = torch.tensor([[True, False], [True, True]])
    ResidualLearner(net, CONFIG).td_loss(BATCH._replace(next_action_masks=masks)).loss.backward()  # type: ignore[no-untyped-call]
    # y = 3 + 0.5 * 1: the error is -0.5, and the gradient of y is in the row of action 0.
    assert net.weight.grad is not None
    assert net.weight.grad.tolist() == [[2.0 - 0.25, -0.75], [0.0, -3.0]]


@pytest.mark.parametrize("variant", ["target", "double"])
def test_the_residual_gradient_is_of_the_vanilla_variant(variant: str) -> None:
    with pytest.raises(ValueError, match=f"variant='{variant}' is not accepted.*vanilla"):
        ResidualLearner(linear(WEIGHT), DQNConfig(variant=variant))  # type: ignore[arg-type]


class Counting(gym.Env[np.ndarray, int]):
    """Observes the number of the step; never ends."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):  # type: ignore[no-untyped-def]
        self.count += 1
        return np.array([self.count], np.float32), 0.0, False, False, {}


@pytest.mark.parametrize(("batch", "train_freq"), [(2, 2), (5, 2)])
def test_the_stream_is_the_newest_transitions(
    batch: int, train_freq: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DQNConfig(
        batch_size=batch, train_freq=train_freq, learning_starts=6, hidden_sizes=(4,)
    )
    agent = StreamAgent(Counting(), config, seed=0, device="cpu")
    learned: list[tuple[int, list[int]]] = []
    update = agent.learner.update

    def watch(transitions: Transition):  # type: ignore[no-untyped-def]
        seen = sorted(int(x) for x in transitions.observations.flatten().tolist())  # type: ignore[union-attr]
        learned.append((agent.num_timesteps, seen))
        return update(transitions)

    monkeypatch.setattr(agent.learner, "update", watch)
    agent.learn(14)
    assert learned == [(step, list(range(step - batch, step))) for step in (8, 10, 12, 14)]


def test_a_draw_is_all_that_there_is() -> None:
    space = spaces.Box(-1, 1, (1,), np.float32)
    buffer = Newest(8, space, gamma=0.9, generator=np.random.default_rng(0))
    with pytest.raises(ValueError, match="minibatch of 4 must be all that is kept, and 0 are"):
        buffer.draw(4)


@pytest.mark.parametrize("agent", [StreamAgent, ResidualAgent])
def test_the_agents_are_the_native_one_but_for_the_part(agent: type[DQNAgent]) -> None:
    variant = "vanilla" if agent is ResidualAgent else "target"
    config = DQNConfig(variant=variant, hidden_sizes=(8,), learning_starts=16, batch_size=4)
    plain = DQNAgent("CartPole-v1", config, seed=1, device="cpu")
    ours = agent("CartPole-v1", config, seed=1, device="cpu")
    for one, other in zip(plain.q_net.parameters(), ours.q_net.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    before = [parameter.clone() for parameter in ours.q_net.parameters()]
    ours.learn(40)
    assert ours.num_updates == plain.learn(40).num_updates == 6
    assert not torch.equal(before[0], next(ours.q_net.parameters()))


@pytest.mark.parametrize(
    ("name", "variant"), [("ablation-stream", "target"), ("ablation-residual", "vanilla")]
)
def test_they_are_systems(name: str, variant: str) -> None:
    (system,) = systems.find(name)
    assert system.variant == variant
    assert system not in systems.find("all")
    assert system not in systems.find("native")
    config = system.configure(DQNConfig(learning_starts=16, hidden_sizes=(8,), batch_size=4))
    evaluation = EvaluationSpec((0, 64), 1, True)
    run = RunSpec(EnvironmentSpec("CartPole-v1"), name, config, 64, evaluation, 0, 0)
    systems.warm_up(run)
    first, second = systems.train(run), systems.train(run)
    assert first.timing.updates == 12
    assert first.evaluations == second.evaluations
    assert first.evaluations[1].values is not None
    (native,) = systems.find(f"native-{variant}")
    theirs = systems.train(dataclasses.replace(run, system=native.name))
    assert theirs.evaluations[0] == first.evaluations[0]  # paired: the same untrained network
    assert theirs.evaluations[1] != first.evaluations[1]
