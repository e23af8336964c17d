"""The verbs that write, of every kind: create and update (delete is in removal.py, reading in listing.py).

**Edge** when they run; building them is pure. All kinds have the same flags, made from the registry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cli.completion import complete_names
from cli.forms import assign, flags_of, label_option, options_of
from cli.output import Layout, output_options, write_object, write_objects
from cli.refs import Ref, by_word
from cli.session import Session, connection_options
from cli.several import ONE, Several, count_options, create_several
from cli.waiting import Goal, Wait, WaitCommand, wait_for, wait_options
from cumulet.errors import ExitCode
from cumulet.kinds import INSTANCE, Kind


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
    @_counted(kind)
    @_waiting(kind)
    @output_options
    @connection_options
    def command(session: Session, name: str, layout: Layout, **asked: Any) -> int:
        return create_object(session, kind, name, layout, **asked)

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
    several: Several = ONE,
    **values: Any,
) -> int:
    """Create an object from its flags, wait if told so, and write it. The exit code."""
    wanted = kind.message()()
    wanted.meta.name = name  # type: ignore[attr-defined]  # every kind has a meta
    wanted.meta.labels.update(dict(labels))  # type: ignore[attr-defined]
    assign(wanted, flags_of(kind), values)
    if several.count is not None:
        return create_several(session, name, wanted, layout, several, dry_run=dry_run, wait=wait)
    made = session.client.create(kind, wanted, validate_only=dry_run)
    finish_create(session, kind, name, made, layout, dry_run=dry_run, wait=wait)
    return ExitCode.OK


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


def _waiting(kind: Kind) -> Callable[[Any], Any]:
    if kind is INSTANCE:
        return wait_options(Goal.RUNNING, Goal.PLACED, Goal.IP)
    return lambda command: command


def _counted(kind: Kind) -> Callable[[Any], Any]:
    return count_options if kind is INSTANCE else lambda command: command


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
