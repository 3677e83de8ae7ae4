"""TorchRL's DQN: its collector, replay buffer, loss and target update, put together as its own
example `sota-implementations/dqn` does. (Its `DQNTrainer` cannot be stopped and continued.)

The example can compile the update, and does so here: it is faster. That needs a C++ compiler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speed.peers import Peer
from speed.side import Local, Work, adam_steps

if TYPE_CHECKING:
    from speed.rows import Row

PEER = Peer("TorchRL", "torchrl", requirements=Path(__file__).with_suffix(".txt"))


def rows() -> tuple[Row, ...]:
    """The rows against this peer."""
    from speed.configurations import CONSTANT
    from speed.rows import in_its_process

    return in_its_process(PEER, CONSTANT)


def train(settings: Mapping[str, Any]) -> Local:
    """A loop over its parts; a batch of the collector is a training phase's steps."""
    import torch
    from tensordict.nn import TensorDictSequential
    from torchrl.collectors import Collector
    from torchrl.data import Composite, LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.envs import GymEnv
    from torchrl.modules import MLP, EGreedyModule, QValueActor
    from torchrl.objectives import DQNLoss, HardUpdate

    expected = {"loss": "huber", "huber_delta": 1.0, "variant": "target", "tau": 1.0}
    assert {name: settings[name] for name in expected} == expected
    assert settings["exploration_initial_eps"] == settings["exploration_final_eps"]
    every, updates = settings["train_freq"], settings["gradient_steps"]
    env = GymEnv(settings["environment"], categorical_action_encoding=True)
    actions = env.action_spec
    network = MLP(
        in_features=env.observation_spec["observation"].shape[-1],
        out_features=actions.space.n,
        num_cells=list(settings["hidden_sizes"]),
        activation_class=torch.nn.ReLU,
    )
    actor = QValueActor(
        network, spec=Composite(action=actions), in_keys=["observation"], action_space="categorical"
    )
    epsilon = settings["exploration_final_eps"]
    explore = EGreedyModule(spec=actor.spec, eps_init=epsilon, eps_end=epsilon)
    collector = Collector(
        env,
        TensorDictSequential(actor, explore),
        frames_per_batch=every,
        total_frames=-1,
        init_random_frames=settings["learning_starts"] // every * every,
        auto_register_policy_transforms=False,
    )
    replay = TensorDictReplayBuffer(
        storage=LazyTensorStorage(settings["buffer_size"]), batch_size=settings["batch_size"]
    )
    loss_module = DQNLoss(
        actor, loss_function="smooth_l1", delay_value=True, action_space="categorical"
    )
    loss_module.make_value_estimator(gamma=settings["gamma"])
    sync = HardUpdate(
        loss_module,
        value_network_update_interval=settings["target_update_interval"] * updates // every,
    )
    optimizer = torch.optim.Adam(
        loss_module.parameters(), lr=settings["learning_rate"], eps=settings["adam_eps"]
    )
    batches = iter(collector)
    steps, last = 0, torch.tensor(math.nan)

    @torch.compile
    def learn(batch: Any) -> Any:
        loss = loss_module(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(loss_module.parameters(), settings["max_grad_norm"])
        optimizer.step()
        return loss.detach()

    def update(batch: Any) -> None:
        nonlocal last
        last = learn(batch)
        sync.step()

    def run(more: int) -> None:
        nonlocal steps
        end = steps + more
        while steps < end:
            replay.extend(next(batches).reshape(-1))
            steps += every
            if steps > settings["learning_starts"]:
                for _ in range(updates):
                    update(replay.sample())

    return Local(
        run,
        lambda: Work(
            steps, adam_steps(optimizer), len(replay), settings["buffer_size"], float(last)
        ),
        (
            ("environment", env.step),
            ("store", replay.extend),
            ("sample", replay.sample),
            ("update", update),
        ),
    )
