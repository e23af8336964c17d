"""`delete`, of every kind: named objects, or all that a selector finds; asks first on a terminal.

**Edge.** Without a terminal one named object is deleted as told; several, or a selector, need --yes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from cli.bulk import each
from cli.completion import complete_names
from cli.refs import Ref, by_word
from cli.session import Session, connection_options
from cli.waiting import Goal, Wait, WaitCommand, wait_for, wait_options
from cumulet.errors import ExitCode
from cumulet.kinds import INSTANCE, NODE, Kind

Function = TypeVar("Function", bound=Callable[..., Any])
_LISTED_MAX: Final = 20  # names in the question


def build_delete(kind: Kind) -> click.Command:
    """`delete`."""

    @click.command(
        "delete",
        cls=WaitCommand,
        help=f"Delete {kind.noun}s, by name or by selector.",
        epilog=f"Example: cumulet {kind.noun} delete NAME --yes",
    )
    @click.argument("names", nargs=-1, metavar="NAME...", shell_complete=complete_names(kind))
    @click.option("-l", "--selector", default="", metavar="K=V", help="All with these labels.")
    @click.option("-y", "--yes", is_flag=True, help="Do not ask.")
    @click.option("--etag", default="", help="Only if nobody changed it since this version.")
    @click.option("--dry-run", is_flag=True, help="Ask the cloud whether it would do it.")
    @_force(kind)
    @_waiting(kind)
    @connection_options
    def command(session: Session, names: tuple[str, ...], selector: str, yes: bool, **how: Any) -> int:
        if bool(names) == bool(selector):
            raise click.UsageError("name what to delete, or give a selector with -l")
        chosen = list(names) or [one.meta.name for one in session.client.list(kind, selector=selector)]
        if not chosen:
            click.echo(f"No {kind.noun} has these labels.", err=True)
            return ExitCode.OK
        if not how["dry_run"]:
            confirm(kind.noun, chosen, yes=yes, broad=bool(selector) or len(chosen) > 1)
        return delete_objects(session, kind, chosen, **how)

    return command


def confirm(noun: str, names: list[str], *, yes: bool, broad: bool) -> None:
    """Ask on a terminal. Raises click.UsageError naming the flag, or click.Abort."""
    if yes:
        return
    listed = ", ".join(names[:_LISTED_MAX]) + (" …" if len(names) > _LISTED_MAX else "")
    if sys.stdin.isatty() and sys.stderr.isatty():
        what = f"{noun} {listed}" if len(names) == 1 else f"{len(names)} {noun}s ({listed})"
        click.confirm(f"Delete {what}?", abort=True, err=True)
    elif broad:
        raise click.UsageError(f"this would delete {len(names)} {noun}s ({listed}): add --yes")


def delete_objects(
    session: Session,
    kind: Kind,
    words: list[str],
    *,
    dry_run: bool,
    etag: str,
    wait: Wait | None = None,
    **more: Any,
) -> int:
    """Ask for all deletions first, then wait for each."""
    client = session.client

    def ask(word: str) -> tuple[Ref, Any]:
        def act(ref: Ref) -> tuple[Ref, Any]:
            reply = client.delete(
                kind, ref.name, project=ref.project, validate_only=dry_run, etag=etag, **more
            )
            return ref, reply

        return by_word(client, kind, word, act)

    def finish(asked: tuple[Ref, Any]) -> None:
        ref, operation = asked
        if dry_run:
            click.echo(f"Dry run: {kind.noun}/{ref.name} would be deleted.", err=True)
        elif wait is not None and wait.goal is not None:
            wait_for(client, ref, operation.target.uid, wait, operation=operation.meta.name)
            click.echo(f"{kind.noun}/{ref.name} is gone.", err=True)
        elif kind is INSTANCE:
            name = operation.meta.name
            click.echo(f"{kind.noun}/{ref.name} is being deleted: cumulet operation wait {name}", err=True)
        else:
            click.echo(f"{kind.noun}/{ref.name} is deleted.", err=True)

    asked, refused = each(words, ask)
    _, failed = each(asked, finish)
    return refused or failed


def _waiting(kind: Kind) -> Callable[[Function], Function]:
    return wait_options(Goal.GONE) if kind is INSTANCE else lambda command: command


def _force(kind: Kind) -> Callable[[Function], Function]:
    if kind is not NODE:
        return lambda command: command
    text = "The machine is off for good: forget its instances without its word."
    return click.option("--force", is_flag=True, help=text)
