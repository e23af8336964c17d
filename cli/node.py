"""`node cordon` and `node uncordon`.

**Edge.**
"""

from __future__ import annotations

from typing import Any

import click

from cli.bulk import each
from cli.completion import complete_names
from cli.refs import by_word
from cli.session import Session, connection_options
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
