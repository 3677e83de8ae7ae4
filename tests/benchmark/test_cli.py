import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from benchmark import fake_systems
from benchmark.conftest import FAKE
from typer.testing import CliRunner

from dqn_adapters.benchmark import load_suite
from dqn_adapters.benchmark.cli import app
from dqn_adapters.benchmark.store import Store
from dqn_adapters.benchmark.systems import SYSTEMS

Write = Callable[..., Path]


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def test_help_and_list_need_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("tianshou", "stable_baselines3"):
        monkeypatch.setitem(sys.modules, host, None)
    assert invoke("--help")[0] == 0
    code, output = invoke("list")
    assert code == 0
    assert "quick" in output
    assert all(system.name in output for system in SYSTEMS)
    assert "dqn-adapters[sb3]" in output


def test_a_run_and_its_report(write_suite: Write, tmp_path: Path) -> None:
    path = write_suite(["learns"], seeds=1)
    code, output = invoke(
        "run", path, "--results", tmp_path / "results", "--seeds", 2, "--workers", 1
    )
    assert code == 0
    assert "2 runs, 0 finished before, 2 to do" in output
    assert "All 2 runs are finished" in output

    code, output = invoke("run", path, "--results", tmp_path / "results", "--workers", 1)
    assert code == 0
    assert "1 finished before, 0 to do" in output

    code, output = invoke("report", path, "--results", tmp_path / "results")
    assert code == 0
    page = tmp_path / "results" / "small" / "report" / "index.html"
    assert page.is_file()
    assert "report/index.html" in output.replace(" ", "")
    code, _ = invoke(
        "report", path, "--results", tmp_path / "results", "--output", tmp_path / "elsewhere"
    )
    assert (tmp_path / "elsewhere" / "index.md").is_file()


def test_failed_runs_are_listed_and_set_the_exit_code(write_suite: Write, tmp_path: Path) -> None:
    path = write_suite(["fails"])
    code, output = invoke("run", path, "--results", tmp_path, "--workers", 1)
    assert code == 1
    assert "1 run failed" in output
    assert "made of cheese" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quik"], "did you mean 'quick'"),
        (["run", "quick", "--systems", "native-duoble"], "did you mean 'native-double'"),
        (["run", "quick", "--systems", "nowhere:train"], "cannot be imported"),
        (["run", "quick", "--seeds", "0"], "--seeds 0 is not accepted"),
        (["run", "nowhere.toml"], "there is no file nowhere.toml"),
        (["run", "quick", "--workers", "0"], "--workers"),
        (["report", "quik"], "did you mean 'quick'"),
        (["report", "quick"], "no run of suite 'quick' is finished"),
        (["run", "quick", "--executor", "threads"], "'processes', 'ray'"),
        (["export", "quick"], "no run of suite 'quick' is finished or begun"),
        (
            ["compare", "quick", "native-double", "sb3-double"],
            "no run of suite 'quick' is finished",
        ),
        (["compare", "quick", "sb3-double", "sb3-double"], "A and B are both 'sb3-double'"),
        (["compare", "quick", "sb3-double"], "Missing argument 'B'"),
        (["merge", "quick", "nowhere"], "no run is finished in nowhere/quick"),
    ],
)
def test_wrong_input_ends_with_code_2_and_nothing_trained(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    code, output = invoke(*arguments, "--results", tmp_path / "results")
    assert code == 2
    assert message in output
    assert not (tmp_path / "results").exists()


def test_an_unknown_environment_ends_with_code_2(write_suite: Write, tmp_path: Path) -> None:
    path = write_suite(["learns"], environment="CartPool-v1")
    code, output = invoke("run", path, "--results", tmp_path / "results")
    assert code == 2
    assert "CartPool" in output
    assert not (tmp_path / "results").exists()


@pytest.fixture
def started(
    write_suite: Write, tmp_path: Path
) -> Iterator[tuple[Path, "subprocess.Popen[str]", Callable[[], "subprocess.Popen[str]"]]]:
    """`dqn-bench run` in a process group of its own, one run finished and the next one waiting."""
    path = write_suite(["waits_once"], seeds=3)
    (tmp_path / "wait").touch()
    tests = str(Path(__file__).parents[1])
    processes: list[subprocess.Popen[str]] = []

    def start() -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "dqn_adapters.benchmark", "run", str(path)]
        processes.append(
            subprocess.Popen(
                [*command, "--results", str(tmp_path / "results"), "--workers", "1"],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": tests, fake_systems.FOLDER: str(tmp_path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                # Who runs the tests in the background may have them ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        )
        return processes[-1]

    process = start()
    waiting = tmp_path / "waiting"
    while not (waiting.exists() and waiting.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    yield path, process, start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_ctrl_c_keeps_what_is_finished_and_the_same_again_does_the_rest(
    started: tuple[Path, "subprocess.Popen[str]", Callable[[], "subprocess.Popen[str]"]],
    tmp_path: Path,
) -> None:
    path, process, start = started
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to the whole group
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "1 of 3 runs are finished and kept" in " ".join(err.split())
    assert "Traceback" not in out + err
    with pytest.raises(ProcessLookupError):  # no worker is left behind
        os.kill(int((tmp_path / "waiting").read_text()), 0)
    runs = load_suite(str(path)).runs()
    store = Store(tmp_path / "results", "small")
    assert [store.has(run) for run in runs] == [True, False, False]
    kept = (store.path / runs[0].name / "result.json").stat().st_mtime_ns

    (tmp_path / "wait").unlink()
    out, err = start().communicate(timeout=60)
    assert "1 finished before, 2 to do" in " ".join(out.split())
    assert all(store.has(run) for run in runs)
    assert (store.path / runs[0].name / "result.json").stat().st_mtime_ns == kept


def test_a_worker_killed_from_outside_fails_its_run_alone(
    started: tuple[Path, "subprocess.Popen[str]", Callable[[], "subprocess.Popen[str]"]],
    tmp_path: Path,
) -> None:
    path, process, _ = started
    (tmp_path / "wait").unlink()
    os.kill(int((tmp_path / "waiting").read_text()), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "killed by SIGKILL" in out
    assert "1 run failed" in err
    store = Store(tmp_path / "results", "small")
    runs = load_suite(str(path)).runs()
    assert [store.has(run) for run in runs] == [True, False, True]
    assert runs[1].system == FAKE.format("waits_once")
    failure = store.failure(runs[1])
    assert failure is not None
    assert "killed by SIGKILL" in failure.reason


def test_a_killed_command_leaves_no_worker_behind(
    started: tuple[Path, "subprocess.Popen[str]", Callable[[], "subprocess.Popen[str]"]],
    tmp_path: Path,
) -> None:
    """Also one that trains for long without a word."""
    _, process, _ = started
    worker = psutil.Process(int((tmp_path / "waiting").read_text()))
    process.kill()  # it alone, not the group
    assert psutil.wait_procs([worker], timeout=30)[1] == []
    assert len(Store(tmp_path / "results", "small").names()) == 1
