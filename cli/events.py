"""`events`: what happened, of all objects or of one, as it was and as it goes on.

**Edge.**
"""

from __future__ import annotations

import re
import time
from typing import Any, Final

import click

from cli import cells
from cli.output import Layout, choose_columns, output_options, to_dict, write_json, write_objects
from cli.refs import parse_target
from cli.session import Session, connection_options
from cumulet.kinds import INSTANCE, Column, Kind
from cumulet.names import ALL_PROJECTS

# Events are no kind of objects: nobody creates or deletes them. For columns and formats they are like one.
EVENT: Final[Kind] = INSTANCE._replace(
    name="Event",
    noun="event",
    field="event",
    module="event_pb2",
    columns=(
        Column("AGE", "at"),
        Column("KIND", "target.kind"),
        Column("NAME", "target.name"),
        Column("REASON", "reason"),
        Column("SOURCE", "source", wide_only=True),
        Column("REVISION", "revision", wide_only=True),
        Column("MESSAGE", "message"),
    ),
)
_UID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_WIDTHS: Final = (4, 8, 16, 16)  # of the first columns in a stream


@click.command("events", epilog="Example: cumulet events instance/web -w")
@click.argument("target", required=False, default="", metavar="[KIND/NAME|UID]")
@click.option("-w", "--watch", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.option("-A", "--all-projects", is_flag=True, help="Of all projects.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the last ones.")
@output_options
@connection_options
def events(
    session: Session, target: str, watch: bool, all_projects: bool, limit: int | None, layout: Layout
) -> None:
    """Show what happened, oldest first."""
    if layout.format == "name":
        raise click.UsageError("events have no names: use -o json or -o csv")
    choose_columns(EVENT, layout)
    project, wanted = ALL_PROJECTS if all_projects else "", ""
    if target:
        own, wanted = _resolve(target)
        project = own or project
    found = session.client.events(wanted, project=project)
    shown = found[-limit:] if limit else found
    if not watch:
        write_objects(EVENT, shown, layout)
        return
    last = shown[-1].revision if shown else 0
    for event in shown:
        _write_line(event, layout)
    for event in session.client.watch_events(wanted, project=project):
        if event.revision > last:  # the watch may begin before the end of the list
            _write_line(event, layout)


def _resolve(target: str) -> tuple[str, str]:
    """Project and KIND/NAME, or a uid as it is. Objects that are gone have events too: none is looked up."""
    if _UID.fullmatch(target):
        return "", target
    kind, ref = parse_target(target)
    return ref.project, f"{kind.noun}/{ref.name}"


def _write_line(event: Any, layout: Layout) -> None:
    if layout.format in ("json", "yaml"):
        write_json(to_dict(event), indent=None)
        return
    columns = choose_columns(EVENT, layout)
    words = [cells.human(event, column.path, time.time()) for column in columns]
    padded = [
        word.ljust(_WIDTHS[index]) if index < len(_WIDTHS) else word for index, word in enumerate(words)
    ]
    click.echo("   ".join(padded).rstrip())
