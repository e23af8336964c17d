"""`--count` and `--all-or-nothing`: several instances of one kind from one command line.

**Edge**: creates. Members are named NAME-1 to NAME-N; with all or nothing they are one gang, and when one of
them is refused, those before it are taken back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, TypeVar

import click

from cli.bulk import each
from cli.output import Layout, write_objects
from cli.refs import Ref
from cli.session import Session
from cli.waiting import Wait, wait_for
from cumulet.errors import CumuletError, ExitCode
from cumulet.kinds import INSTANCE

Function = TypeVar("Function", bound=Callable[..., Any])
COUNT_MAX: Final = 1_000  # beyond it a typing error is likelier than a wish
LISTED_MAX: Final = 20  # commands to wait with


@dataclass(frozen=True, slots=True)
class Several:
    """How many are asked for; no count is one instance of the very name."""

    count: int | None = None
    all_or_nothing: bool = False


ONE: Final = Several()


def count_options(command: Function) -> Function:
    """--count and --all-or-nothing; the command gets `several`."""

    @wraps(command)
    def run(*args: Any, count: int | None, all_or_nothing: bool, **more: Any) -> Any:
        if all_or_nothing and count is None:
            raise click.UsageError("--all-or-nothing is about several instances: add --count")
        return command(*args, several=Several(count, all_or_nothing), **more)

    decorated: Any = run
    decorated = click.option(
        "--all-or-nothing", is_flag=True, help="With --count: place all of them, or none."
    )(decorated)
    decorated = click.option(
        "--count",
        type=click.IntRange(1, COUNT_MAX),
        metavar="N",
        help="So many, named NAME-1 to NAME-N.",
    )(decorated)
    return decorated  # type: ignore[no-any-return]


def create_several(
    session: Session,
    name: str,
    wanted: Any,
    layout: Layout,
    several: Several,
    *,
    dry_run: bool,
    wait: Wait | None,
) -> int:
    """Ask for all of them, then wait for each."""
    names = [f"{name}-{number}" for number in range(1, (several.count or 1) + 1)]
    if several.all_or_nothing:
        wanted.spec.gang.name, wanted.spec.gang.size = name, len(names)
    operations = _create_each(session, names, wanted, several, dry_run=dry_run)
    if dry_run:
        click.echo(f"Dry run: {len(names)} instances would be created; none was.", err=True)
        for operation in operations:
            for step in operation.steps:
                click.echo(f"{step.name}: {step.message}")
        return ExitCode.OK
    if wait is None or wait.goal is None:
        for operation in operations[:LISTED_MAX]:
            where = f"cumulet operation wait {operation.meta.name}"
            click.echo(f"{operation.target.name} is on its way: {where}", err=True)
        write_objects(INSTANCE, [session.client.get(INSTANCE, one) for one in names], layout)
        return ExitCode.OK

    def finish(operation: Any) -> Any:
        target, client = operation.target, session.client
        ref = Ref(target.name, client.project)
        return wait_for(client, ref, target.uid, wait, operation.goal_boots, operation.meta.name)

    made, code = each(operations, finish)
    write_objects(INSTANCE, [one for one in made if one is not None], layout)
    return code


def _create_each(
    session: Session, names: list[str], wanted: Any, several: Several, *, dry_run: bool
) -> list[Any]:
    operations: list[Any] = []
    for name in names:
        wanted.meta.name = name
        try:
            operations.append(session.client.create(INSTANCE, wanted, validate_only=dry_run))
        except CumuletError:
            if several.all_or_nothing and not dry_run:
                _take_back(session, [operation.target.name for operation in operations])
            raise
    return operations


def _take_back(session: Session, names: list[str]) -> None:
    """Delete what cannot become complete any more. What cannot be deleted is told, and stays."""
    each(names, lambda name: session.client.delete(INSTANCE, name))
    if names:
        click.echo(f"Taken back: {', '.join(names)}.", err=True)
