"""Errors as a person sees them: what was attempted, the cause, a command to try, the trace id.

**Edge**: writes to stderr. `render` is pure.
"""

from __future__ import annotations

import re
from typing import Final

import click

from cumulet.errors import CumuletError, ExitCode

# What a terminal would obey: messages carry guests' and other users' words.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def render(error: CumuletError, trace_id: str) -> str:
    """The lines of an error; no escape sequence of its message reaches the terminal."""
    fields = [f"{violation.field}: {violation.description}" for violation in error.violations]
    # A message for programs carries the fields, too; people get each on a line of its own instead.
    lines = [f"Error[{error.reason}]: {error.message.removesuffix(': ' + '; '.join(fields))}"]
    lines += [f"  {field}" for field in fields]
    lines += [f"try: {hint}" for hint in error.hints or (f"cumulet explain {error.reason}",)]
    lines += [f"trace: {trace_id}"] if trace_id else []
    return "\n".join(_CONTROL.sub("?", line) for line in lines)


def report(error: CumuletError) -> int:
    """Print an error and return its exit code."""
    trace_id = ""
    if error.__cause__ is not None:
        from cumulet.wire_errors import trace_id_of

        trace_id = trace_id_of(error)
    click.echo(render(error, trace_id), err=True)
    return error.exit_code


def report_usage(error: click.UsageError) -> int:
    """Print a usage error with the command's usage line."""
    path = error.ctx.command_path if error.ctx is not None else "cumulet"
    if error.ctx is not None:
        click.echo(error.ctx.get_usage(), err=True)
    click.echo(f"Error[USAGE]: {_CONTROL.sub('?', error.format_message())}", err=True)
    click.echo(f"try: {path} --help", err=True)
    return ExitCode.USAGE
