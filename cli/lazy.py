"""Click groups whose commands are imported when they are run, not when they are listed.

**Pure** until a command is asked for. The help of a group comes from its table alone, so that
`cumulet --help` needs neither gRPC nor protobuf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import NamedTuple

import click


class Entry(NamedTuple):
    """One command of a group: its line in the help, its section, and how to get it."""

    help: str
    load: Callable[[], click.Command]
    section: str = "Commands"


def imported(target: str) -> Callable[[], click.Command]:
    """A loader of `module:attribute`."""

    def load() -> click.Command:
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    return load


class LazyGroup(click.Group):
    """A group over a table of entries, listed in the table's order under its sections."""

    def __init__(self, *, entries: Mapping[str, Entry], **attributes: object) -> None:
        super().__init__(**attributes)  # type: ignore[arg-type]  # click's own keyword arguments
        self.entries = dict(entries)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries.get(cmd_name)
        return entry.load() if entry is not None else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.entries and not args[0].startswith("-"):
            raise click.UsageError(self._unknown(args[0], ctx.command_path), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.entries))
        for section in dict.fromkeys(entry.section for entry in self.entries.values()):
            with formatter.section(section):
                formatter.write_dl(
                    [
                        (name.ljust(width), entry.help)
                        for name, entry in self.entries.items()
                        if entry.section == section
                    ]
                )

    def _unknown(self, word: str, path: str) -> str:
        from difflib import get_close_matches

        close = get_close_matches(word, self.entries, n=1)
        meant = f" Did you mean `{path} {close[0]}`?" if close else ""
        return f"{path} has no command {word!r}.{meant}"
