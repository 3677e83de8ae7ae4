"""The line of a malformed suite is named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dqn_adapters.benchmark import SuiteError, load_suite
from dqn_adapters.benchmark.locating import Source

TEXT = '''\
title = """
seeds = 9
[config]
"""
seeds = [
  1,
  2,
]
evaluation.points = 3

[[systems]]  # the first
system = "a"
[[systems]]
system = "b"
config = { dueling = true }
[systems.own]
x = 1
[config]
seeds = 4
"a key" = 5
'''


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("title", 1),
        ("seeds", 5),  # not what stands in the text
        ("evaluation.points", 9),
        ("systems.1", 11),
        ("systems.2.system", 14),
        ("systems.2.config.dueling", 15),  # in a table that is written in one line
        ("systems.2.own.x", 17),
        ("config.seeds", 19),
        ("config.a key", 20),
        ("config.gone", 18),  # of the table that it should be in
    ],
)
def test_the_line_of_a_key(place: str, line: int) -> None:
    assert Source("small.toml", TEXT).at(place) == f"small.toml:{line}"


def test_names_in_quotes_may_have_dots() -> None:
    text = 'seeds = 1\n["a.b"]\nx = 1\n[c."d.e"]\n"f.g" = 2\n[[h."i.j"]]\nk.l = 3\n'
    source = Source("small.toml", text)
    assert source.at("a.b.x") == "small.toml:3"
    assert source.at("c.d.e.f.g") == "small.toml:5"
    assert source.at("h.i.j.1.k.l") == "small.toml:7"
    assert source.at("seeds") == "small.toml:1"


def test_what_is_nowhere_has_no_line() -> None:
    assert Source("small.toml", TEXT).at("gone") == "small.toml"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("batch_size = 8", "batchsize = 8", 18),
        ("batch_size = 8", "gamma = 1.5", 18),
        ("points = 2", "points = 0", 7),
        ("episodes = 2", "", 6),  # missing: the table
        ("seeds = 2", "seeds = 0", 3),
        ('id = "CartPole-v1"', 'id = "CartPole-v1"\nkwarg = 3', 12),
        ("= 64", "= 62", 4),
        ('"native-double"', '"native-duoble"', 2),
    ],
)
def test_a_suite_is_refused_with_the_line(
    write_suite: Callable[..., Path], old: str, new: str, line: int
) -> None:
    path = write_suite(["native-double"])
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(SuiteError) as caught:
        load_suite(str(path))
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert str(caught.value).count("small.toml") == 1
