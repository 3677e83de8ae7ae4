"""The same runs on a Ray cluster of two nodes."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from benchmark import fake_systems
from benchmark.test_cli import invoke
from benchmark.test_executor import learning_numbers, run_all

from dqn_adapters.benchmark import Suite, cluster
from dqn_adapters.benchmark.cluster import RayCluster
from dqn_adapters.benchmark.executor import Event, Failed, Finished, Progressed, Started
from dqn_adapters.benchmark.provenance import versions
from dqn_adapters.benchmark.store import Store

ray = pytest.importorskip("ray", reason="needs the extra ray")

Make = Callable[..., Suite]
NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the fake systems look; the nodes know it from their start."""
    return tmp_path_factory.mktemp("systems")


@pytest.fixture(scope="module")
def nodes(folder: Path) -> Iterator[Any]:
    """Two nodes of one processor each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fake_systems.FOLDER, str(folder))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        nodes.add_node(**NODE)
        try:
            yield nodes
        finally:
            nodes.shutdown()


def run_there(nodes: Any, suite: Suite, store: Store, **options: Any) -> list[Event]:
    pending = [run for run in suite.runs() if not store.has(run)]
    with RayCluster(nodes.address) as there:
        return list(there.execute(pending, store, workers=2, **options))


def test_two_nodes_give_the_numbers_of_this_machine_and_a_dead_worker_fails_its_run_alone(
    nodes: Any, folder: Path, make_suite: Make, tmp_path: Path
) -> None:
    suite = make_suite(["native-double", "learns", "is_killed_once", "fails"])
    there = Store(tmp_path / "there", suite.name)
    with RayCluster(nodes.address) as connected:
        assert connected.cores == 2
    events = run_there(nodes, suite, there)
    finished = {event.run.name for event in events if isinstance(event, Finished)}
    failed = {
        (event.run.system.partition(":")[2], event.run.seed_index): event.failure
        for event in events
        if isinstance(event, Failed)
    }
    assert len(finished) == 6
    assert set(there.names()) == finished
    assert set(failed) == {("fails", 1), ("is_killed_once", 0)}
    assert failed["fails", 1].reason == "ValueError: the learning rate | is made of cheese"
    assert "fake_systems.py" in failed["fails", 1].details
    assert failed["is_killed_once", 0].reason.startswith("the worker on the cluster died: Worker")
    assert all(there.failure(failure.run) == failure for failure in failed.values())
    assert not list(there.path.rglob(".partial-*"))
    assert {event.worker for event in events} == {0, 1}
    assert all(there.load(name).workers == 1 for name in finished)  # one on each node

    here = Store(tmp_path / "here", suite.name)  # is_killed_once has been
    run_all(suite, here)
    assert set(here.names()) - finished == {failed["is_killed_once", 0].run.name}
    numbers = learning_numbers(here)
    assert learning_numbers(there) == {
        file: content for file, content in numbers.items() if file.partition("/")[0] in finished
    }


@pytest.mark.slow  # when Ray notices the death depends on what else the machine does
def test_a_node_that_dies_fails_its_run_and_the_same_again_goes_on_from_the_checkpoint(
    nodes: Any, folder: Path, make_suite: Make, tmp_path: Path
) -> None:
    suite = make_suite(["continues"], total_timesteps=2_000)
    store = Store(tmp_path, suite.name)
    hold = folder / "hold"
    hold.touch()

    events = []
    progressed = threading.Event()

    def take_a_node_away() -> None:
        while len(list(folder.glob("holding-*"))) < 2:
            time.sleep(0.05)
        progressed.wait()
        nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)

    thread = threading.Thread(target=take_a_node_away, daemon=True)
    thread.start()
    with RayCluster(nodes.address) as there:
        for event in there.execute(suite.runs(), store, workers=2, checkpoint_every=500):
            events.append(event)
            if isinstance(event, Progressed):
                progressed.set()
            if isinstance(event, Failed):
                hold.unlink()  # not before: the worker without its node may live on for a while
    thread.join()
    (finished,) = [event.run for event in events if isinstance(event, Finished)]
    (failure,) = [event.failure for event in events if isinstance(event, Failed)]
    assert "died" in failure.reason
    assert store.names() == [finished.name]
    (left,) = store.path.glob("checkpoints/*")
    assert left.name == failure.run.name
    step = json.loads((left / "progress.json").read_text())["timestep"]
    assert 500 <= step < 2_000

    nodes.add_node(**NODE)
    run_there(nodes, suite, store, checkpoint_every=500)
    resumed = folder / f"resumed-{failure.run.seed_index}"
    assert int(resumed.read_text()) == step
    assert len(store.names()) == 2
    assert not left.exists()


def test_left_early_it_ends_its_workers(
    nodes: Any, folder: Path, make_suite: Make, tmp_path: Path
) -> None:
    """As Ctrl-C does it."""
    (folder / "wait").touch()
    suite = make_suite(["waits_once"], seeds=[0, 1])
    store = Store(tmp_path, suite.name)
    waiting = folder / "waiting"
    with RayCluster(nodes.address) as there:
        events = there.execute(suite.runs(), store, workers=1)
        for event in events:
            if isinstance(event, Started) and event.run.seed_index == 1:
                break
        while not (waiting.exists() and waiting.read_text()):
            time.sleep(0.05)
        worker = psutil.Process(int(waiting.read_text()))
        events.close()
        assert psutil.wait_procs([worker], timeout=20)[1] == []
    assert store.names() == [suite.runs()[0].name]
    assert not list(store.path.rglob(".partial-*"))


def test_the_command(nodes: Any, write_suite: Callable[..., Path], tmp_path: Path) -> None:
    path = write_suite(["learns"])
    run = ("run", path, "--results", tmp_path, "--executor", "ray", "--ray-address", nodes.address)
    code, output = invoke(*run)
    assert code == 0
    told = " ".join(output.split())  # a long path wraps the lines elsewhere
    assert "Training with 2 workers" in told
    assert "All 2 runs are finished" in told


def test_a_node_with_other_libraries_is_refused(
    nodes: Any, write_suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "versions", lambda: {**versions(), "torch": "0.1"})
    path = write_suite(["learns"])
    run = ("run", path, "--results", tmp_path, "--executor", "ray", "--ray-address", nodes.address)
    code, output = invoke(*run)
    assert code == 2
    assert "would give other numbers" in output
    assert "(here 0.1)" in output
    assert "0 of 2 runs are finished" in output
    assert not list(Store(tmp_path, "small").path.rglob(".partial-*"))


def test_nobody_at_the_address(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    path = write_suite(["learns"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        for prefix in ("", "ray://"):
            run = ("run", path, "--results", tmp_path, "--executor", "ray")
            code, output = invoke(*run, "--ray-address", prefix + address)
            assert code == 2
            assert f"nothing answers at the Ray address {prefix}{address}" in output
    code, output = invoke("run", path, "--results", tmp_path, "--ray-address", address)
    assert code == 2
    assert "--ray-address is for --executor ray" in output
