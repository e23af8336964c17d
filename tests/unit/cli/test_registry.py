"""A walk over the registry of kinds and over every command: nothing is missing, nothing is spelled twice."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from cli.cells import find
from cli.events import EVENT
from cli.main import cumulet
from cli.nouns import verb_entries
from cli.reasons import REASONS
from cli.reference import MEANINGS, own_commands
from cumulet.errors import BY_REASON, CumuletError, ExitCode
from cumulet.kinds import INSTANCE, KINDS, Kind

COMMANDS = dict(own_commands())
LEAVES = {path: command for path, command in COMMANDS.items() if not isinstance(command, click.Group)}
VERB_OF = {"list": "list", "get": "show", "update": "update", "delete": "delete", "watch": "watch"}

# Fields of a spec that no flag of create fills, and why.
NO_FLAG = {
    "Image": {"disk", "kernel", "initrd"},  # uploaded by import
    # By start and stop; counted by the cloud; copied by the cloud.
    "Instance": {
        "power",
        "boots",
        "power_forced",
        "resources",
        "image_files",
        "authorized_keys",
        "security_level",
        "gang",  # by --count with --all-or-nothing
    },
    "Node": {"cordoned", "cordon_reason"},  # by cordon and uncordon
    "Port": {"network", "instance", "mac", "addresses"},  # made with its instance
}


def flags(path: str) -> set[str]:
    return {option for param in COMMANDS[path].params for option in param.opts if option.startswith("-")}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.noun)
def test_every_kind_has_its_verbs_with_the_same_flags(kind: Kind) -> None:
    words = {VERB_OF.get(verb, kind.create_verb) for verb in kind.verbs}
    assert words <= set(verb_entries(kind))
    listing = {"-o", "--output", "--columns", "--sort-by", "--no-headers", "-l", "--selector", "--limit"}
    listing |= {"-A", "--all-projects"} if kind.scoped else set()
    connection = {"--context", "--endpoint", "-p", "--project"}
    assert flags(f"cumulet {kind.noun} list") == listing | connection
    if "delete" in kind.verbs:
        assert {"--yes", "--etag", "--dry-run", "-l"} <= flags(f"cumulet {kind.noun} delete")
    if "create" in kind.verbs:
        assert {"--label", "-o"} <= flags(f"cumulet {kind.noun} {kind.create_verb}")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.noun)
def test_the_service_has_the_methods_of_the_verbs(kind: Kind) -> None:
    file = kind.message().DESCRIPTOR.file
    methods = set(file.services_by_name[f"{kind.name}Service"].methods_by_name)
    named = {"list": f"List{kind.plural}", "watch": f"Watch{kind.plural}"}
    expected = {named.get(verb, f"{verb.capitalize()}{kind.name}") for verb in kind.verbs}
    assert expected <= methods
    assert not {f"{verb}{kind.name}" for verb in ("Create", "Update", "Delete")} - expected & methods


@pytest.mark.parametrize("kind", [*KINDS, EVENT], ids=lambda kind: kind.noun)
def test_columns_and_flags_name_fields_that_exist(kind: Kind) -> None:
    empty = kind.message()()
    for column in kind.columns:
        for path in column.path.split("/"):
            find(empty, path)
    if kind is not EVENT:
        for flag in kind.flags:
            find(empty, flag.path)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.noun)
def test_every_field_of_a_spec_can_be_set(kind: Kind) -> None:
    spec = kind.message().DESCRIPTOR.fields_by_name.get("spec")
    if spec is None or spec.message_type is None:
        return
    known = {tuple(flag.path.split("."))[1:] for flag in kind.flags}
    missing = {
        field.name
        for field in spec.message_type.fields
        if not any(path[0] == field.name for path in known) and field.name not in NO_FLAG.get(kind.name, ())
    }
    assert not missing


@pytest.mark.parametrize("path", LEAVES)
def test_every_command_has_an_example_that_parses(path: str) -> None:
    command = LEAVES[path]
    assert command.help
    assert command.epilog, path
    example = command.epilog.removeprefix("Example: ").partition(" > ")[0]
    assert example.startswith((path, path.replace("cumulet instance ", "cumulet ")))
    check_line(example)


def check_line(line: str) -> None:
    """Parse a command line as the command would; files need not exist. Raises what click raises."""
    program, *words = shlex.split(line)
    assert program == "cumulet", line
    command: click.Command = cumulet
    ctx = click.Context(cumulet, info_name="cumulet", resilient_parsing=False)
    while isinstance(command, click.Group):
        if words[0] in ("up", "down", "status", "doctor"):
            return  # of the other distribution
        name, inner, words = command.resolve_command(ctx, words)
        assert inner is not None, line
        command, ctx = inner, click.Context(inner, parent=ctx, info_name=name)
    parser = command.make_parser(ctx)
    given, rest, _ = parser.parse_args(words)
    assert not rest, line
    required = [param.name for param in command.params if param.required]
    assert not [name for name in required if given.get(name or "") in (None, ())], line


@pytest.mark.parametrize("reason", REASONS)
def test_every_meaning_helps_with_lines_that_parse(reason: str) -> None:
    assert REASONS[reason].text.endswith(".")
    for line in REASONS[reason].tries:
        check_line(line)


def _subclasses(of: type[CumuletError]) -> set[type[CumuletError]]:
    return {of}.union(*(_subclasses(one) for one in of.__subclasses__()))


def test_every_error_is_explained_and_known_on_the_wire() -> None:
    ours = {one for one in _subclasses(CumuletError) if one.__module__ == "cumulet.errors"}
    assert {one.reason for one in ours} <= set(REASONS)
    assert {one.reason for one in ours} == set(BY_REASON)
    assert set(MEANINGS) == set(ExitCode)


def test_hints_in_the_sources_parse() -> None:
    """Every constant hint in the rooms is a line that really runs; names in braces are stand-ins."""
    found = [
        (path, line)
        for room in ("cli", "proto/cumulet", "controller")
        for path in Path(room).rglob("*.py")
        for hints in re.findall(r"hints=[(\[](.*?)[)\]]", path.read_text(encoding="utf-8"), re.DOTALL)
        for line in re.findall(r'"(cumulet [^"]*)"', hints)
    ]
    assert len(found) > 10
    for path, line in found:
        stand_in = re.sub(r"\{[^{}]*\}", "x", line)
        if "{" not in line or not stand_in.startswith(("cumulet x", "cumulet explain x")):
            try:
                check_line(stand_in)
            except click.UsageError as error:
                raise AssertionError(f"{path}: {line!r}: {error.format_message()}") from error


def test_the_registry_is_consistent() -> None:
    assert len({kind.noun for kind in KINDS}) == len(KINDS)
    assert not {kind.noun for kind in KINDS} & {"launch", "ls", "console", "logs", "events", "explain"}
    for kind in KINDS:
        descriptor = kind.message(f"List{kind.plural}Response").DESCRIPTOR
        assert kind.fields in descriptor.fields_by_name
        assert kind.field in kind.message("{}Change").DESCRIPTOR.fields_by_name
        assert all(flag.help.endswith(".") for flag in kind.flags)
    assert INSTANCE.scoped
