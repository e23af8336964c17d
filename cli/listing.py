"""The verbs that read: list, show, watch, and `ls`.

**Edge** when they run; building them is pure. All kinds have the same flags. Apart from the verbs that write,
whose imports would slow every `ls` down.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Final

import click

from cli import cells
from cli.bulk import each
from cli.completion import complete_names
from cli.output import (
    Layout,
    choose_columns,
    output_options,
    to_dict,
    write_json,
    write_object,
    write_objects,
)
from cli.refs import by_word
from cli.session import Session, connection_options
from cumulet.kinds import INSTANCE, Column, Kind
from cumulet.names import ALL_PROJECTS

_PROJECT: Final = Column("PROJECT", "meta.project")
_CHANGE_WIDTH: Final = 12  # of a column in a stream, whose later rows are not known yet


def selection_options(kind: Kind) -> Callable[[Any], Any]:
    """-l and, for kinds in a project, -A; the command gets `selector` and `all_projects`."""

    def decorate(command: Any) -> Any:
        if kind.scoped:
            command = click.option("-A", "--all-projects", is_flag=True, help="Of all projects.")(command)
        return click.option("-l", "--selector", default="", metavar="K=V", help="Only with these labels.")(
            command
        )

    return decorate


def build_list(kind: Kind) -> click.Command:
    """`list`."""

    @click.command(
        "list", help=f"List {kind.noun}s.", epilog=f"Example: cumulet {kind.noun} list -o wide --sort-by AGE"
    )
    @selection_options(kind)
    @click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many.")
    @output_options
    @connection_options
    def command(session: Session, layout: Layout, **asked: Any) -> None:
        list_objects(session, kind, layout, **asked)

    return command


def list_objects(
    session: Session,
    kind: Kind,
    layout: Layout,
    *,
    selector: str,
    limit: int | None,
    all_projects: bool = False,
) -> None:
    """Fetch and write the objects of a kind."""
    shown = _with_project(kind) if all_projects else kind
    choose_columns(shown, layout)  # refuse a wrong column before asking
    scope = ALL_PROJECTS if all_projects else ""
    found = session.client.list(kind, project=scope, selector=selector, limit=limit or 0)
    write_objects(shown, found, layout)
    if not found and layout.format in ("table", "wide") and sys.stderr.isatty():
        click.echo(f"There are no {kind.noun}s.", err=True)


def build_show(kind: Kind) -> click.Command:
    """`show`."""

    @click.command(
        "show",
        help=f"Show one or several {kind.noun}s.",
        epilog=f"Example: cumulet {kind.noun} show NAME -o yaml",
    )
    @click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_names(kind))
    @output_options
    @connection_options
    def command(session: Session, names: tuple[str, ...], layout: Layout) -> int:
        client = session.client

        def show(word: str) -> Any:
            return by_word(client, kind, word, lambda ref: client.get(kind, ref.name, project=ref.project))

        found, code = each(names, show)
        if len(names) == 1 and found:
            write_object(kind, found[0], layout)
        elif found:
            write_objects(kind, found, layout)
        return code

    return command


def build_watch(kind: Kind) -> click.Command:
    """`watch`."""

    @click.command(
        "watch",
        help=f"Show the {kind.noun}s and then every change, until Ctrl-C. JSON is one object a line.",
        epilog=f"Example: cumulet {kind.noun} watch -o json",
    )
    @selection_options(kind)
    @output_options
    @connection_options
    def command(session: Session, selector: str, layout: Layout, all_projects: bool = False) -> None:
        scope = ALL_PROJECTS if all_projects else ""
        shown = _with_project(kind) if all_projects else kind
        write = _change_writer(shown, layout)
        for change in session.client.watch(kind, project=scope, selector=selector):
            write(change)

    return command


def _with_project(kind: Kind) -> Kind:
    return kind._replace(columns=(_PROJECT, *kind.columns))


@click.command("ls", epilog="Example: cumulet ls -o wide -l app=web")
@selection_options(INSTANCE)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many.")
@output_options
@connection_options
def ls(session: Session, layout: Layout, **asked: Any) -> None:
    """List instances: `cumulet instance list` in two letters."""
    list_objects(session, INSTANCE, layout, **asked)


def _change_writer(kind: Kind, layout: Layout) -> Callable[[Any], None]:
    """How one change is written: a JSON line, or a row below titles that are written once."""
    columns = choose_columns(kind, layout)
    titles = ["CHANGE", *(column.title for column in columns)]
    widths = [max(_CHANGE_WIDTH, len(title)) for title in titles]

    def row(values: list[str]) -> None:
        click.echo(
            "   ".join(value.ljust(width) for value, width in zip(values, widths, strict=True)).rstrip()
        )

    def write(change: Any) -> None:
        if layout.format in ("json", "yaml"):
            write_json(to_dict(change), indent=None)
        elif change.HasField(kind.field):
            one = getattr(change, kind.field)
            row(
                [
                    cells.plain(change, "type"),
                    *(cells.human(one, column.path, time.time()) for column in columns),
                ]
            )

    if layout.headers and layout.format not in ("json", "yaml"):
        row(titles)
    return write
