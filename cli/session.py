"""The connection of one command: its flags, and the client that they lead to.

**Edge**: opens the client on first use, so that a usage error costs no import of gRPC.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.context import Choice, Context, environment_choice, load_config, resolve

if TYPE_CHECKING:
    from cumulet.client import Client

Function = TypeVar("Function", bound=Callable[..., Any])


class Session:
    """What a command that speaks to a cloud gets as its first argument."""

    def __init__(self, flags: Choice) -> None:
        self.flags = flags

    @cached_property
    def context(self) -> Context:
        """Raises NotFoundError or InvalidArgumentError when no cloud is chosen."""
        return resolve(self.flags, environment_choice(), load_config())

    @cached_property
    def client(self) -> Client:
        # gRPC's core logs every lost connection to stderr, where our own error says it better.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        from cumulet.client import Client

        return Client(self.context.endpoints, self.context.project)

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()


def connection_options(command: Function) -> Function:
    """The flags of every command that speaks to a cloud; the command's first argument is a Session."""

    @wraps(command)
    def run(*args: Any, context: str, endpoints: tuple[str, ...], project: str, **more: Any) -> Any:
        outer = click.get_current_context().find_object(Choice) or Choice()
        flags = Choice(context or outer.context, endpoints or outer.endpoints, project or outer.project)
        session = Session(flags)
        try:
            return command(session, *args, **more)
        finally:
            session.close()

    return flag_options(run)  # type: ignore[return-value]


def flag_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--context, --endpoint and --project; also of `cumulet` itself, before the noun."""
    for option in (
        click.option("-p", "--project", default="", metavar="NAME", help="Project; CUMULET_PROJECT."),
        click.option(
            "--endpoint",
            "endpoints",
            multiple=True,
            metavar="HOST:PORT",
            help="Controller, or unix:/PATH; may be repeated; CUMULET_ENDPOINTS.",
        ),
        click.option("--context", default="", metavar="NAME", help="Context; CUMULET_CONTEXT."),
    ):
        command = option(command)
    return command
