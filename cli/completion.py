"""Shell completion: the scripts, and names of objects for it.

**Edge**: asks the cloud for names, within 300 ms and at most every 5 s; whatever fails completes nothing,
since an error in the middle of a half-typed line helps nobody.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from cli.context import Choice, Context, environment_choice, load_config, resolve
from cumulet.errors import CumuletError
from cumulet.kinds import Kind

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

ASK_TIMEOUT_S: Final = 0.3
FRESH_S: Final = 5.0
NAMES_MAX: Final = 500  # more help nobody to choose

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]


@click.command("completion", epilog="Example: cumulet completion bash > /etc/bash_completion.d/cumulet")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(ctx.find_root().command, {}, "cumulet", "_CUMULET_COMPLETE").source())


def complete_names(kind: Kind) -> Complete:
    """A completer of the names of a kind's objects."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        try:
            context = _context(ctx)
            names = _cached(kind, context) or _ask(kind, context)
        except (CumuletError, OSError, ValueError):
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]

    return complete


def _context(ctx: click.Context) -> Context:
    given: dict[str, Any] = ctx.params
    flags = Choice(
        given.get("context") or "", tuple(given.get("endpoints") or ()), given.get("project") or ""
    )
    return resolve(flags, environment_choice(), load_config())


def _ask(kind: Kind, context: Context) -> list[str]:
    from cumulet.client import Client

    endpoint = context.endpoints[:1]
    with Client(endpoint, context.project, ASK_TIMEOUT_S, pause=lambda _s: None) as client:
        names = [one.meta.name for one in client.list(kind, limit=NAMES_MAX)]
    path = _cache_path(kind, context)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as sink:
        sink.write("\n".join(names))
    os.replace(temporary, path)
    return names


def _cached(kind: Kind, context: Context) -> list[str]:
    path = _cache_path(kind, context)
    try:
        if not 0 <= time.time() - os.stat(path).st_mtime < FRESH_S:
            return []
        with open(path, encoding="utf-8") as source:
            return source.read().split()
    except FileNotFoundError:
        return []


def _cache_path(kind: Kind, context: Context) -> str:
    from hashlib import sha256

    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME") or "/root", ".cache")
    key = sha256("\n".join((*context.endpoints, context.project)).encode()).hexdigest()[:16]
    return os.path.join(home, "cumulet", f"names-{kind.noun}-{key}")
