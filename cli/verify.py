"""`verify`: is what exists on the nodes what is intended, and nothing else?

**Edge.** Exit code 1 on any difference, and when a node did not answer: what was not seen is not proved.
"""

from __future__ import annotations

import click

from cli import cells
from cli.output import Layout, to_dict, write_json, write_rows
from cli.session import Session, connection_options
from cumulet.errors import ExitCode


@click.command("verify", epilog="Example: cumulet verify --node n1")
@click.option("--node", default="", metavar="NAME", help="Only this node.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Format.")
@connection_options
def verify(session: Session, node: str, output: str) -> int:
    """Compare what is intended with what is really on every node."""
    found = session.client.verify(node)
    if output == "json":
        write_json(to_dict(found))
    else:
        if found.differences:
            paths = ("type", "node", "kind", "name", "message")
            rows = [tuple(cells.human(one, path, 0.0) for path in paths) for one in found.differences]
            write_rows(("DIFFERENCE", "NODE", "KIND", "NAME", "MESSAGE"), rows, Layout())
        orphans = sum(cells.plain(one, "type") == "Orphan" for one in found.differences)
        click.echo(
            f"{len(found.differences)} differences, {orphans} orphans "
            f"({found.items_compared} items on {len(found.nodes)} nodes at revision {found.revision})"
        )
    if found.silent_nodes:
        click.echo(f"No answer from {', '.join(found.silent_nodes)}: nothing is proved of them.", err=True)
    return ExitCode.FAILED if found.differences or found.silent_nodes else ExitCode.OK
