"""`operation wait`.

**Edge.**
"""

from __future__ import annotations

import click

from cli.bulk import each
from cli.completion import complete_names
from cli.forms import Parsed
from cli.refs import by_word
from cli.session import Session, connection_options
from cli.waiting import TIMEOUT_S, parse_duration
from cumulet.errors import ExitCode
from cumulet.kinds import OPERATION


@click.command("wait", epilog="Example: cumulet operation wait op-1234 --timeout 5m")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_names(OPERATION))
@click.option(
    "--timeout",
    "timeout_s",
    type=Parsed("duration", parse_duration),
    default=f"{TIMEOUT_S:.0f}s",
    show_default=True,
    metavar="TIME",
    help="How long to wait, for each.",
)
@connection_options
def wait(session: Session, names: tuple[str, ...], timeout_s: float) -> int:
    """Wait until operations are done; fails as they fail."""
    client = session.client

    def act(word: str) -> None:
        done = by_word(
            client,
            OPERATION,
            word,
            lambda ref: client.wait_operation(ref.name, project=ref.project, timeout_s=timeout_s),
        )
        click.echo(f"{done.verb} of {done.target.name} is done.", err=True)

    try:
        return each(names, act)[1]
    except KeyboardInterrupt:
        again = f"cumulet operation wait {' '.join(names)}"
        click.echo(f"\nDetached: the work goes on without you. Look again: {again}", err=True)
        return ExitCode.DETACHED
