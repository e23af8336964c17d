"""`instance start`, `stop` and `reboot`.

**Edge**: all are asked for first, then waited for.
"""

from __future__ import annotations

from typing import Any

import click

from cli.bulk import each
from cli.completion import complete_names
from cli.refs import Ref, by_word
from cli.session import Session, connection_options
from cli.waiting import Goal, Wait, WaitCommand, phase_word, wait_for, wait_options
from cumulet.kinds import INSTANCE


def _names(command: Any) -> Any:
    return click.argument(
        "names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_names(INSTANCE)
    )(command)


def _dry_run(command: Any) -> Any:
    return click.option("--dry-run", is_flag=True, help="Ask the cloud whether it would do it.")(command)


@click.command("start", cls=WaitCommand, epilog="Example: cumulet instance start web")
@_names
@_dry_run
@wait_options(Goal.RUNNING, Goal.PLACED, Goal.IP)
@connection_options
def start(session: Session, names: tuple[str, ...], wait: Wait, dry_run: bool) -> int:
    """Boot stopped instances."""
    return _power(session, "Start", names, wait, dry_run)


@click.command("stop", cls=WaitCommand, epilog="Example: cumulet instance stop web")
@_names
@click.option("--force", is_flag=True, help="Cut the power instead of asking the guest.")
@_dry_run
@wait_options(Goal.STOPPED)
@connection_options
def stop(session: Session, names: tuple[str, ...], wait: Wait, dry_run: bool, force: bool) -> int:
    """Shut instances down: the guest is asked, and after its stop timeout forced."""
    return _power(session, "Stop", names, wait, dry_run, force=force)


@click.command("reboot", cls=WaitCommand, epilog="Example: cumulet instance reboot web")
@_names
@click.option("--force", is_flag=True, help="Cut the power instead of asking the guest.")
@_dry_run
@wait_options(Goal.RUNNING, Goal.IP)
@connection_options
def reboot(session: Session, names: tuple[str, ...], wait: Wait, dry_run: bool, force: bool) -> int:
    """Shut instances down and boot them again."""
    return _power(session, "Reboot", names, wait, dry_run, force=force)


def _power(
    session: Session, verb: str, names: tuple[str, ...], wait: Wait, dry_run: bool, **more: Any
) -> int:
    client = session.client

    def ask(word: str) -> tuple[Ref, Any]:
        def act(ref: Ref) -> tuple[Ref, Any]:
            reply = client.act(INSTANCE, verb, ref.name, project=ref.project, validate_only=dry_run, **more)
            return ref, reply

        return by_word(client, INSTANCE, word, act)

    def finish(asked: tuple[Ref, Any]) -> None:
        ref, operation = asked
        if dry_run:
            click.echo(f"Dry run: {verb.lower()} of instance/{ref.name} would be accepted.", err=True)
        elif wait.goal is None:
            click.echo(f"{ref.name}: cumulet operation wait {operation.meta.name}", err=True)
        else:
            boots = operation.goal_boots if verb != "Stop" else 0
            state = wait_for(client, ref, operation.target.uid, wait, boots, operation.meta.name)
            click.echo(f"instance/{ref.name} is {phase_word(state).lower()}.", err=True)

    done, refused = each(names, ask)
    _, failed = each(done, finish)
    return refused or failed
