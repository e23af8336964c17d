"""The standard verbs of every kind: list, show, create, update, watch (delete is in removal.py).

**Edge** when they run; building them is pure. All kinds have the same flags, made from the registry.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from cli.bulk import each
from cli.completion import complete_names
from cli.forms import assign, flags_of, label_option, options_of
from cli.output import (
    Layout,
    choose_columns,
    output_options,
    to_dict,
    write_json,
    write_object,
    write_objects,
)
from cli.refs import Ref, by_word
from cli.removal import build_delete
from cli.session import Session, connection_options
from cli.waiting import Goal, Wait, WaitCommand, wait_for, wait_options
from cumulet.kinds import INSTANCE, Column, Kind
from cumulet.names import ALL_PROJECTS

__all__ = ["build_create", "build_delete", "build_list", "build_show", "build_update", "build_watch"]

_PROJECT = Column("PROJECT", "meta.project")
_CHANGE_WIDTH = 12  # of a column in a stream, whose later rows are not known yet


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


def build_create(kind: Kind) -> click.Command:
    """`create`."""
    arguments = [
        *options_of(flags_of(kind), creating=True),
        label_option(creating=True),
    ]

    @click.command(
        "create",
        cls=WaitCommand,
        help=f"Create a new {kind.noun}.",
        epilog=f"Example: cumulet {kind.noun} create NAME {kind.example}",
    )
    @click.argument("name")
    @click.option("--dry-run", is_flag=True, help="Ask the cloud whether it would do it, and how.")
    @_waiting(kind)
    @output_options
    @connection_options
    def command(session: Session, name: str, layout: Layout, **asked: Any) -> None:
        create_object(session, kind, name, layout, **asked)

    command.params[1:1] = arguments
    return command


def create_object(
    session: Session,
    kind: Kind,
    name: str,
    layout: Layout,
    *,
    labels: tuple[tuple[str, str], ...],
    dry_run: bool,
    wait: Wait | None = None,
    **values: Any,
) -> None:
    """Create an object from its flags, wait if told so, and write it."""
    wanted = kind.message()()
    wanted.meta.name = name  # type: ignore[attr-defined]  # every kind has a meta
    wanted.meta.labels.update(dict(labels))  # type: ignore[attr-defined]
    assign(wanted, flags_of(kind), values)
    made = session.client.create(kind, wanted, validate_only=dry_run)
    finish_create(session, kind, name, made, layout, dry_run=dry_run, wait=wait)


def finish_create(
    session: Session, kind: Kind, name: str, made: Any, layout: Layout, *, dry_run: bool, wait: Wait | None
) -> None:
    """What follows a create's reply: an operation for instances, the object for the others."""
    if dry_run:
        _write_dry_run(kind, name, made, layout)
        return
    if kind is INSTANCE:
        operation, ref = made, Ref(name, session.client.project)
        if wait is not None and wait.goal is not None:
            made = wait_for(
                session.client, ref, operation.target.uid, wait, operation.goal_boots, operation.meta.name
            )
        else:
            click.echo(f"{name} is on its way: cumulet operation wait {operation.meta.name}", err=True)
            made = session.client.get(kind, name)
    write_objects(kind, [made], layout)


def build_update(kind: Kind) -> click.Command:
    """`update`."""
    flags = tuple(flag for flag in flags_of(kind) if not flag.fixed)
    arguments = [*options_of(flags, creating=False), label_option(creating=False)]

    @click.command(
        "update",
        help=f"Change a {kind.noun}. Flags that may be repeated replace the whole field, labels are merged.",
        epilog=f"Example: cumulet {kind.noun} update NAME --label tier=web --label old-",
    )
    @click.argument("name", shell_complete=complete_names(kind))
    @click.option("--dry-run", is_flag=True, help="Ask the cloud whether it would do it.")
    @output_options
    @connection_options
    def command(
        session: Session, name: str, layout: Layout, dry_run: bool, labels: Any, **values: Any
    ) -> None:
        changed = kind.message()()
        paths = assign(changed, flags, values)
        if not paths and not labels:
            raise click.UsageError("nothing to change: give at least one flag")

        def update(ref: Ref) -> Any:
            _merge_labels(session, kind, ref, changed, labels)
            changed.meta.name, changed.meta.project = ref.name, ref.project  # type: ignore[attr-defined]
            mask = [*paths, *(["meta.labels"] if labels else [])]
            return session.client.update(kind, changed, mask, validate_only=dry_run)

        write_objects(kind, [by_word(session.client, kind, name, update)], layout)
        if dry_run:
            click.echo("Dry run: nothing was changed.", err=True)

    command.params[1:1] = arguments
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


def _waiting(kind: Kind) -> Callable[[Any], Any]:
    if kind is INSTANCE:
        return wait_options(Goal.RUNNING, Goal.PLACED, Goal.IP)
    return lambda command: command


def _merge_labels(session: Session, kind: Kind, ref: Ref, changed: Any, labels: Any) -> None:
    """The object's labels with the changes, and its etag, so that nobody else's change is lost."""
    if not labels:
        return
    now = session.client.get(kind, ref.name, project=ref.project)
    merged = dict(now.meta.labels)
    for key, value in labels:
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    changed.meta.labels.clear()
    changed.meta.labels.update(merged)
    changed.meta.etag = now.meta.etag


def _write_dry_run(kind: Kind, name: str, made: Any, layout: Layout) -> None:
    click.echo(f"Dry run: {kind.noun} {name} would be created; nothing was.", err=True)
    if layout.format in ("json", "yaml"):
        write_object(kind, made, layout)
    elif kind is INSTANCE:
        for step in made.steps:
            click.echo(f"{step.name}: {step.message}")
    else:
        write_objects(kind, [made], layout)


def _change_writer(kind: Kind, layout: Layout) -> Callable[[Any], None]:
    """How one change is written: a JSON line, or a row below titles that are written once."""
    import time

    from cli import cells

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
