"""What the commands say to results that they cannot use, and where they cannot write."""

from collections.abc import Callable
from pathlib import Path

from benchmark.test_cli import invoke
from benchmark.test_export import store_runs

Write = Callable[..., Path]


def test_what_cannot_be_written_is_told_without_a_traceback(
    write_suite: Write, tmp_path: Path
) -> None:
    path = write_suite(["native-target", "native-double"], seeds=1)
    file = tmp_path / "file"
    file.touch()
    code, output = invoke("run", path, "--results", file)
    assert code == 2
    assert f"results cannot be kept in {file}/small: " in output
    store_runs(path, tmp_path)
    for command, message in [
        (("report",), f"the report cannot be written to {file}: "),
        (("export",), f"curves cannot be written to {file}: "),
        (("export", "--tensorboard"), f"curves cannot be written to {file}: "),
    ]:
        arguments = (*command[:1], path, *command[1:], "--results", tmp_path, "--output", file)
        code, output = invoke(*arguments)
        assert code == 2
        assert message in output


def test_a_damaged_run_is_named_by_every_command(write_suite: Write, tmp_path: Path) -> None:
    path = write_suite(["native-target", "native-double"], seeds=1)
    _, store = store_runs(path, tmp_path)
    directory = store.path / store.names()[0]
    (directory / "spec.json").write_text("{")
    for command in (
        ("report", path),
        ("export", path),
        ("compare", path, "native-target", "native-double"),
    ):
        code, output = invoke(*command, "--results", tmp_path)
        assert code == 2
        assert f"{directory} is damaged" in output
        assert "delete it" in output


def test_runs_of_another_configuration_are_left_out_and_told(
    write_suite: Write, tmp_path: Path
) -> None:
    systems = ["native-target", "native-double"]
    store_runs(write_suite(systems, seeds=2), tmp_path)
    path = write_suite(systems, seeds=2, config="learning_rate = 0.5")
    commands = (
        ("report", path),
        ("export", path),
        ("compare", path, "native-target", "native-double"),
    )
    for command in commands:  # nothing is left
        code, output = invoke(*command, "--results", tmp_path)
        assert code == 2
        assert "no run of suite 'small' is finished" in output
    store_runs(path, tmp_path)
    for command in commands:
        code, output = invoke(*command, "--results", tmp_path)
        assert code == 0
        assert "4 finished runs in" in output
        assert "are of another configuration or version than suite 'small' has now" in output
    evaluations = (tmp_path / "small" / "export" / "evaluations.csv").read_text().splitlines()
    assert len(evaluations) == 1 + 4 * 3 * 2  # runs, evaluations, episodes
