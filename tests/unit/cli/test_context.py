"""Contexts: what beats what, and a configuration file that is whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.context import (
    Choice,
    Config,
    Context,
    config_path,
    environment_choice,
    load_config,
    parse_config,
    remove_context,
    render_config,
    resolve,
    use_context,
    write_context,
)
from cumulet.errors import ExitCode, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Run

WORDS = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
CONTEXTS = st.builds(Context, st.lists(WORDS, max_size=3).map(tuple), WORDS)
CONFIGS = st.builds(
    lambda contexts, current: Config(current, MappingProxyType(contexts)),
    st.dictionaries(WORDS, CONTEXTS, max_size=4),
    st.one_of(st.just(""), WORDS),
)


@given(CONFIGS)
def test_a_configuration_reads_back_as_it_was_written(config: Config) -> None:
    assert parse_config(render_config(config), "x") == config


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_a_typed_error(text: str) -> None:
    with suppress(InvalidArgumentError):
        assert isinstance(parse_config(text, "config.yaml"), Config)


FILE = Config(
    "local",
    MappingProxyType(
        {"local": Context(("unix:/run/x",), "default"), "lab": Context(("lab:1", "lab:2"), "team")}
    ),
)


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        (Choice(), Choice(), Context(("unix:/run/x",), "default")),
        (Choice(), Choice("lab"), Context(("lab:1", "lab:2"), "team")),
        (Choice(), Choice("", ("env:1",), "p"), Context(("env:1",), "p")),
        (Choice("lab"), Choice("", ("env:1",), "p"), Context(("lab:1", "lab:2"), "team")),
        (Choice("lab", project="x"), Choice(), Context(("lab:1", "lab:2"), "x")),
        (Choice(endpoints=("flag:1",)), Choice("", ("env:1",), "p"), Context(("flag:1",), "p")),
    ],
)
def test_flags_beat_the_environment_which_beats_the_file(
    flags: Choice, environment: Choice, expected: Context
) -> None:
    assert resolve(flags, environment, FILE) == expected


def test_a_context_that_is_not_there_is_an_error() -> None:
    with pytest.raises(NotFoundError, match=r"'labb' \(known: local, lab\)"):
        resolve(Choice("labb"), Choice(), FILE)
    with pytest.raises(InvalidArgumentError, match="no cloud is configured"):
        resolve(Choice(), Choice(), Config())


def test_the_environment_and_the_path() -> None:
    environ = {"CUMULET_ENDPOINTS": "a:1, b:2,", "CUMULET_PROJECT": "p", "HOME": "/home/me"}
    assert environment_choice(environ) == Choice("", ("a:1", "b:2"), "p")
    assert config_path(environ) == "/home/me/.config/cumulet/config.yaml"
    assert config_path({"XDG_CONFIG_HOME": "/x"}) == "/x/cumulet/config.yaml"
    assert config_path({"CUMULET_CONFIG": "/y"}) == "/y"


def test_set_up_writes_and_removes_its_context(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "config.yaml")
    assert write_context("local", ["unix:/run/x"], path=path) == path
    write_context("lab", ["lab:1"], "team", use=False, path=path)
    assert load_config(path).current == "local"
    write_context("local", ["unix:/run/y"], path=path)
    assert load_config(path).contexts["local"].endpoints == ("unix:/run/y",)
    use_context("lab", path)
    remove_context("lab", path)
    remove_context("lab", path)
    assert load_config(path) == Config("local", {"local": Context(("unix:/run/y",), "default")})
    assert os.listdir(tmp_path / "new") == ["config.yaml"]
    with pytest.raises(InvalidArgumentError, match="context name"):
        write_context("No Name", ["x"], path=path)
    with pytest.raises(NotFoundError):
        use_context("gone", path)


def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for damage in ("contexts: [", "contexts: {a: {endpoints: x}}", "- 1", "\x00"):
        path.write_text(damage)
        with pytest.raises(InvalidArgumentError, match=str(path)):
            write_context("local", ["x"], path=str(path))
        assert path.read_text() == damage


def test_the_context_commands(offline: Run) -> None:
    assert offline("context", "set", "lab").code == ExitCode.USAGE
    assert offline("context", "set", "lab", "--endpoint", "lab:1", "--endpoint", "lab:2").code == 0
    assert offline("context", "set", "other", "--endpoint", "o:1", "-p", "team").code == 0
    assert offline("context", "list", "-o", "name").out == "lab\nother\n"
    assert "lab     yes       default   lab:1,lab:2" in offline("context", "list").out
    assert offline("context", "use", "other").code == 0
    assert "project: team" in offline("context", "show").out
    assert offline("context", "use", "gone").code == ExitCode.NOT_FOUND
    assert offline("context", "delete", "other").code == 0
    assert offline("context", "delete", "other").code == ExitCode.NOT_FOUND
    assert offline("ls", "--context", "gone").code == ExitCode.NOT_FOUND
