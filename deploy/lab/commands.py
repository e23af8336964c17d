"""The command line of a lab: `cumulet lab COMMAND`; joins it by an entry point.

**Edge**: the process. What the commands do is imported when they run.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deploy.lab.layout import DEFAULT_NAME, LABS_DIR, Settings

if TYPE_CHECKING:
    from deploy.lab.lab import Lab

Place = tuple[Path, str]  # where labs are, and the name of this one
_DEFAULTS = Settings()
_peer = click.option("--peer", default="", help="Only between the machine and this one. [default: everybody]")
_direction = click.option(
    "--way",
    "direction",
    type=click.Choice(["both", "in", "out"]),
    default="both",
    show_default=True,
    help="As the machine sees it.",
)
_machine = click.argument("machine")


@click.group()
@click.option("--name", envvar="CUMULET_LAB_NAME", default=DEFAULT_NAME, show_default=True, help="Which lab.")
@click.option(
    "--labs-dir",
    envvar="CUMULET_LABS",
    default=LABS_DIR,
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where labs keep their state.",
)
@click.pass_context
def lab(ctx: click.Context, name: str, labs_dir: Path) -> None:
    """A cloud of several nodes on this machine, and faults in it at will.

    Each node has namespaces of its own with libvirt and an agent. `control` has etcd and the controller,
    `fabric` is the switch of the underlay, `outside` plays the external world.
    """
    ctx.obj = (labs_dir, name)


@lab.command()
@click.option("--nodes", type=int, default=_DEFAULTS.nodes, show_default=True, help="How many.")
@click.option("--underlay", default=_DEFAULTS.underlay, show_default=True, help="Range between the nodes.")
@click.option("--outside", default=_DEFAULTS.outside, show_default=True, help="Range of the external world.")
@click.option("--mtu", type=int, default=_DEFAULTS.mtu, show_default=True, help="Of the underlay, in bytes.")
@click.option(
    "--guest-image/--no-guest-image", default=True, help="Build and register the small guest image."
)
@click.pass_obj
def up(place: Place, nodes: int, underlay: str, outside: str, mtu: int, guest_image: bool) -> None:
    """Start the lab, or make sure that it is healthy.

    Again with more nodes, it adds those."""
    from deploy.local.progress import Progress

    with _opened(place) as found:
        settings = Settings(nodes, underlay, outside, mtu)
        found.up(settings, Progress(), guest_image=guest_image, context=place[1])


@lab.command()
@click.pass_obj
def down(place: Place) -> None:
    """End the lab and remove every trace of it."""
    with _opened(place) as found:
        found.down()
        with contextlib.suppress(OSError):
            place[0].rmdir()  # stays while there are other labs
        click.echo(f"{found.state_dir} is gone", err=True)


@lab.command()
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Format.")
@click.pass_obj
def status(place: Place, output: str) -> None:
    """Show machines and faults.

    The exit code is 1 when a machine is not healthy or a fault is set."""
    from deploy.lab.status import observe_status, render_status

    with _opened(place) as found:
        rows = observe_status(found)
    click.echo(json.dumps([row.to_json() for row in rows]) if output == "json" else render_status(rows))
    sys.exit(0 if all(row.healthy and not row.faults for row in rows) else 1)


@lab.command()
@_machine
@_peer
@_direction
@click.pass_obj
def cut(place: Place, machine: str, peer: str, direction: str) -> None:
    """Drop every frame from and to a machine; its link stays up."""
    with _opened(place) as found:
        found.cut(machine, peer, direction)


@lab.command()
@_machine
@click.argument("ratio", type=float)
@_peer
@_direction
@click.pass_obj
def loss(place: Place, machine: str, ratio: float, peer: str, direction: str) -> None:
    """Drop a part of the frames at random, such as 0.05 of them. 0 mends."""
    with _opened(place) as found:
        found.lose(machine, ratio, peer, direction)


@lab.command()
@click.argument("machine", default="")
@click.pass_obj
def heal(place: Place, machine: str) -> None:
    """Mend cuts and losses of a machine, or all of them."""
    with _opened(place) as found:
        found.heal(machine)


@lab.command()
@_machine
@click.argument("service", default="")
@click.pass_obj
def kill(place: Place, machine: str, service: str) -> None:
    """Cut a machine's power, or kill -9 one service.

    Services of a node: virtlogd, libvirtd, agent; of control: etcd, controller. They are started again.
    """
    with _opened(place) as found:
        if service:
            found.kill_service(machine, service)
        else:
            found.kill(machine)


@lab.command()
@_machine
@click.pass_obj
def start(place: Place, machine: str) -> None:
    """Start a machine that was killed."""
    with _opened(place) as found:
        found.start(machine)


@lab.command("exec", context_settings={"ignore_unknown_options": True})
@_machine
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def execute(place: Place, machine: str, words: tuple[str, ...]) -> None:
    """Run a command in a machine's namespaces.

    For example: cumulet lab exec n1 virsh list --all"""
    from deploy.local.environment import with_sbin

    with _opened(place) as found:
        argv = found.enter_argv(machine, words)
    os.execvpe(argv[0], argv, with_sbin(os.environ))


@contextlib.contextmanager
def _opened(place: Place) -> Iterator[Lab]:
    """The lab; an error of ours is told and ends the process."""
    from deploy.lab.lab import Lab
    from deploy.lab.layout import lab_dir
    from deploy.local.errors import SetupError
    from deploy.local.progress import Progress

    try:
        yield Lab(lab_dir(*place))
    except SetupError as err:
        Progress().failure(err)
        sys.exit(1)
