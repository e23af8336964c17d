"""The commands `cumulet up`, `down`, `status` and `doctor`; they join the command line by entry points.

**Edge**: the process. What the commands do is imported when they run, so that `cumulet --help` stays fast.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from deploy.local.layout import Layout

_DEFAULT_STATE_DIR: Final = "/var/lib/cumulet"  # layout.DEFAULT_STATE_DIR, here without its imports

_state_dir = click.option(
    "--state-dir",
    envvar="CUMULET_STATE",
    default=_DEFAULT_STATE_DIR,
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the cloud keeps its state.",
)
_output = click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Format."
)


@click.command()
@_state_dir
@click.option(
    "--runtime-dir",
    envvar="CUMULET_RUNTIME",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where its sockets are. [default: /run/cumulet, or STATE/run]",
)
@click.option("--node", help="Name of this machine in the cloud. [default: its host name]")
@click.option(
    "--guest-image/--no-guest-image", default=True, help="Build and register the small guest image."
)
def up(state_dir: Path, runtime_dir: Path | None, node: str | None, guest_image: bool) -> None:
    """Start a cloud on this machine, or make sure that it is healthy.

    Starts etcd, libvirt (unless the system runs it), a controller and an agent under a supervisor, then
    ensures a project, flavors, a network and a guest image. Can be repeated at any time.
    """
    from deploy.local.errors import SetupError
    from deploy.local.progress import Progress
    from deploy.local.up import UpOptions, bring_up

    progress = Progress()
    try:
        bring_up(UpOptions(state_dir, runtime_dir, node, guest_image), progress)
    except SetupError as err:
        progress.failure(err)
        sys.exit(1)


@click.command()
@_state_dir
@click.option("--yes", is_flag=True, help="Do not ask, though instances are lost.")
@click.option("--all", "everything", is_flag=True, help="Remove the cache of built guest images as well.")
def down(state_dir: Path, yes: bool, everything: bool) -> None:
    """Stop the cloud on this machine and remove every trace of it, instances and their disks included.

    Works on half a cloud and on none. The cache of built guest images stays, unless --all is given.
    """
    from deploy.local.down import remove_image_cache, take_down
    from deploy.local.errors import SetupError
    from deploy.local.progress import Progress

    progress = Progress()
    layout = _layout(state_dir)
    try:
        _confirm_loss(layout, yes)
        take_down(layout, progress)
        if everything:
            remove_image_cache(progress)
    except SetupError as err:
        progress.failure(err)
        sys.exit(1)


@click.command()
@_state_dir
@_output
def status(state_dir: Path, output: str) -> None:
    """Show the cloud's processes on this machine; exit code 1 when one is not healthy."""
    from deploy.local.status import observe_status, render_status

    layout = _layout(state_dir)
    rows = observe_status(layout)
    if output == "json":
        click.echo(json.dumps(_status_json(layout, [row.to_json() for row in rows]), indent=2))
    else:
        click.echo(render_status(rows, time.time()))
        click.echo(f"\nAPI  {layout.controller_target}  {layout.api_address}\nlogs {layout.log_dir}")
    sys.exit(0 if all(row.healthy for row in rows) else 1)


@click.command()
@_state_dir
@_output
def doctor(state_dir: Path, output: str) -> None:
    """Examine this machine; exit code 1 when something will not work."""
    from deploy.local.doctor import check_host, has_failure, render_findings, render_json
    from deploy.local.facts import observe_host
    from deploy.local.up import PROGRAMS

    findings = check_host(observe_host(_layout(state_dir), PROGRAMS))
    click.echo(render_json(findings) if output == "json" else render_findings(findings))
    sys.exit(1 if has_failure(findings) else 0)


def _layout(state_dir: Path) -> Layout:
    """The layout of the cloud there; where there is none, the one that it would have."""
    from deploy.local.errors import SetupError
    from deploy.local.layout import Layout, default_runtime_dir, load_layout

    absolute = state_dir.absolute()
    try:
        known = load_layout(absolute)
    except SetupError as err:
        raise click.ClickException(f"{err.what}\n  to fix it: {err.fix}") from err
    return known or Layout(absolute, default_runtime_dir(absolute), "this-node")


def _confirm_loss(layout: Layout, yes: bool) -> None:
    """Asks before instances are lost; without a terminal the flag has to be given."""
    from deploy.local.errors import SetupError
    from deploy.local.traces import count_instances

    count = count_instances(layout)
    if count == 0 or yes:
        return
    if not sys.stdin.isatty():
        raise SetupError(f"{count} instances would be lost with their disks", "add --yes")
    click.confirm(f"{count} instances will be lost with their disks. Go on?", abort=True, err=True)


def _status_json(layout: Layout, rows: list[dict[str, object]]) -> dict[str, Any]:
    return {
        "services": rows,
        "endpoints": [layout.controller_target, layout.api_address],
        "node": layout.node,
        "log_dir": str(layout.log_dir),
    }
