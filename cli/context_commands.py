"""`context`: which cloud and project commands speak to.

**Edge**: reads and writes the configuration file; asks no cloud.
"""

from __future__ import annotations

import click

from cli.context import (
    Choice,
    Context,
    config_path,
    environment_choice,
    load_config,
    remove_context,
    resolve,
    use_context,
    write_context,
)
from cli.output import Layout, output_options, write_json, write_rows, write_yaml
from cumulet.errors import NotFoundError
from cumulet.names import DEFAULT_PROJECT


@click.group("context")
def context() -> None:
    """Choose the cloud and the project to speak to."""


@context.command("list", epilog="Example: cumulet context list")
@output_options
def list_contexts(layout: Layout) -> None:
    """List the contexts."""
    config = load_config()
    if layout.format == "name":
        click.echo("\n".join(config.contexts))
    elif layout.format in ("json", "yaml"):
        entries = [_entry(name, one, name == config.current) for name, one in config.contexts.items()]
        (write_json if layout.format == "json" else write_yaml)(entries)
    else:
        rows = [
            (name, "yes" if name == config.current else "no", one.project, ",".join(one.endpoints))
            for name, one in config.contexts.items()
        ]
        write_rows(("NAME", "CURRENT", "PROJECT", "ENDPOINTS"), rows, layout)


@context.command("use", epilog="Example: cumulet context use local")
@click.argument("name")
def use(name: str) -> None:
    """Make a context the current one."""
    use_context(name)
    click.echo(f"Commands speak to {name} now.", err=True)


@context.command("show", epilog="Example: cumulet context show")
@click.pass_context
def show(ctx: click.Context) -> None:
    """Show what commands speak to now, and where that is said."""
    flags = ctx.find_object(Choice) or Choice()
    config, environment = load_config(), environment_choice()
    found = resolve(flags, environment, config)
    name = flags.context or environment.context or config.current
    write_yaml({**_entry(name or "-", found, True), "file": config_path()})


@context.command(
    "set", epilog="Example: cumulet context set lab --endpoint 10.0.0.1:7443 --project team --use"
)
@click.argument("name")
@click.option(
    "--endpoint", "endpoints", multiple=True, metavar="HOST:PORT", help="Or unix:/PATH. Repeatable."
)
@click.option(
    "-p", "--project", default="", metavar="NAME", help=f"Default for a new one: {DEFAULT_PROJECT}."
)
@click.option("--use", is_flag=True, help="Make it the current one.")
def set_context(name: str, endpoints: tuple[str, ...], project: str, use: bool) -> None:
    """Add a context, or change one."""
    before = load_config().contexts.get(name)
    if before is None and not endpoints:
        raise click.UsageError("a new context needs at least one --endpoint")
    known = before or Context((), DEFAULT_PROJECT)
    path = write_context(name, endpoints or known.endpoints, project or known.project, use=use)
    click.echo(f"Wrote {name} to {path}.", err=True)


@context.command("delete", epilog="Example: cumulet context delete lab")
@click.argument("name")
def delete(name: str) -> None:
    """Forget a context. Its cloud is not touched."""
    if name not in load_config().contexts:
        raise NotFoundError(f"there is no context {name!r}", hints=("cumulet context list",))
    remove_context(name)
    click.echo(f"Forgot {name}.", err=True)


def _entry(name: str, found: Context, current: bool) -> dict[str, object]:
    return {
        "name": name,
        "current": current,
        "project": found.project,
        "endpoints": list(found.endpoints),
    }
