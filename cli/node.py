"""The verbs of nodes beyond the standard ones: cordon, taint, dedicate and their opposites.

**Edge.**
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from cli import cells
from cli.bulk import each
from cli.completion import complete_names
from cli.forms import EFFECTS, parse_taint
from cli.refs import Ref, by_word
from cli.session import Session, connection_options
from cumulet.errors import NotFoundError
from cumulet.kinds import NODE


@click.command("cordon", epilog='Example: cumulet node cordon n1 --reason "new memory on Friday"')
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_names(NODE))
@click.option("--reason", default="", help="Why, for whoever wonders later.")
@connection_options
def cordon(session: Session, names: tuple[str, ...], reason: str) -> int:
    """Place no new instances on nodes. Those that run stay."""
    return _each_node(session, "Cordon", names, "takes no new instances", reason=reason)


@click.command("uncordon", epilog="Example: cumulet node uncordon n1")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_names(NODE))
@connection_options
def uncordon(session: Session, names: tuple[str, ...]) -> int:
    """Place instances on nodes again."""
    return _each_node(session, "Uncordon", names, "takes instances again")


def _each_node(session: Session, verb: str, names: tuple[str, ...], outcome: str, **more: Any) -> int:
    client = session.client

    def act(word: str) -> None:
        node = by_word(client, NODE, word, lambda ref: client.act(NODE, verb, ref.name, **more))
        click.echo(f"node/{node.meta.name} {outcome}.", err=True)

    return each(names, act)[1]


@click.command("taint", epilog="Example: cumulet node taint n1 gpu=only --effect no-schedule")
@click.argument("name", metavar="NAME", shell_complete=complete_names(NODE))
@click.argument("marks", nargs=-1, required=True, metavar="KEY[=VALUE]...")
@click.option(
    "--effect", type=click.Choice(EFFECTS), default=EFFECTS[0], show_default=True, help="What it does."
)
@connection_options
def taint(session: Session, name: str, marks: tuple[str, ...], effect: str) -> None:
    """Keep off a node what does not tolerate it. What runs there stays."""
    wanted = [_parsed(mark, effect) for mark in marks]

    def change(node: Any) -> None:
        given = {(one["key"], one["value"]) for one in wanted}
        kept = [one for one in node.spec.taints if (one.key, one.value) not in given]
        _replace(node.spec.taints, kept)
        for one in wanted:
            node.spec.taints.add(**one)

    node = _change_spec(session, name, "spec.taints", change)
    click.echo(f"node/{node.meta.name} is tainted {cells.plain(node, 'spec.taints')}.", err=True)


@click.command("untaint", epilog="Example: cumulet node untaint n1 gpu")
@click.argument("name", metavar="NAME", shell_complete=complete_names(NODE))
@click.argument("marks", nargs=-1, required=True, metavar="KEY[=VALUE]...")
@connection_options
def untaint(session: Session, name: str, marks: tuple[str, ...]) -> None:
    """Take taints off a node: those with the key, or with key and value."""

    def change(node: Any) -> None:
        there = list(node.spec.taints)
        missing = [mark for mark in marks if not any(_is_named(one, mark) for one in there)]
        if missing:
            listed = cells.plain(node, "spec.taints") or "none"
            raise NotFoundError(f"node {node.meta.name} has no taint {', '.join(missing)}; it has {listed}")
        _replace(node.spec.taints, [one for one in there if not any(_is_named(one, mark) for mark in marks)])

    node = _change_spec(session, name, "spec.taints", change)
    click.echo(f"node/{node.meta.name} has taints {cells.plain(node, 'spec.taints') or 'no more'}.", err=True)


@click.command("dedicate", epilog="Example: cumulet node dedicate n1 research")
@click.argument("name", metavar="NAME", shell_complete=complete_names(NODE))
@click.argument("projects", nargs=-1, metavar="PROJECT...")
@click.option("--everyone", is_flag=True, help="Dedicate it to nobody any more.")
@connection_options
def dedicate(session: Session, name: str, projects: tuple[str, ...], everyone: bool) -> None:
    """Keep a node for the instances of some projects. What runs there stays."""
    if bool(projects) == everyone:
        raise click.UsageError("name the projects, or give --everyone")

    def change(node: Any) -> None:
        node.spec.dedicated_projects[:] = projects

    node = _change_spec(session, name, "spec.dedicated_projects", change)
    who = ", ".join(node.spec.dedicated_projects) or "everyone"
    click.echo(f"node/{node.meta.name} takes instances of {who}.", err=True)


def _change_spec(session: Session, word: str, path: str, change: Callable[[Any], None]) -> Any:
    """Read the node, change it, and write it back unless somebody else has changed it meanwhile."""
    client = session.client

    def act(ref: Ref) -> Any:
        node = client.get(NODE, ref.name)
        change(node)
        return client.update(NODE, node, [path])

    return by_word(client, NODE, word, act)


def _parsed(mark: str, effect: str) -> dict[str, Any]:
    try:
        return parse_taint(f"{mark}:{effect}")
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _is_named(taint: Any, mark: str) -> bool:
    key, equals, value = mark.partition("=")
    return bool(taint.key == key and (not equals or taint.value == value))


def _replace(field: Any, kept: Sequence[Any]) -> None:
    copies = [type(one).FromString(one.SerializeToString()) for one in kept]
    del field[:]
    field.extend(copies)
