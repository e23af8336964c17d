"""`launch`: an instance in one short line.

**Edge**: the same as `instance create`, with the defaults that `cumulet up` provides.
"""

from __future__ import annotations

from typing import Any, Final

import click

from cli.forms import label_option, option_key, options_of
from cli.output import Layout, output_options
from cli.session import Session, connection_options
from cli.several import count_options
from cli.verbs import create_object
from cli.waiting import Goal, WaitCommand, wait_options
from cumulet.kinds import INSTANCE

FLAVOR: Final = "small"
IMAGE: Final = "cumulet-guest"
NETWORK: Final = "default"
_DEFAULTS: Final = {"flavor": FLAVOR, "image": IMAGE, "network": ({"network": NETWORK, "address": ""},)}
_SHOWN: Final = {"flavor": FLAVOR, "image": IMAGE, "network": NETWORK}


@click.command("launch", cls=WaitCommand, epilog="Example: cumulet launch web --flavor small --label app=web")
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Ask the scheduler where it would go; create nothing.")
@count_options
@wait_options(Goal.RUNNING, Goal.PLACED, Goal.IP)
@output_options
@connection_options
def launch(session: Session, name: str, layout: Layout, **asked: Any) -> int:
    """Create an instance from the defaults that `cumulet up` provides, and wait until it runs."""
    for flag, value in _DEFAULTS.items():
        asked[f"flag_{flag}"] = asked[f"flag_{flag}"] or value
    return create_object(session, INSTANCE, name, layout, **asked)


def _launch_options() -> list[click.Parameter]:
    flags = [
        flag._replace(help=f"{flag.help} Default: {_SHOWN[flag.name]}.") if flag.name in _SHOWN else flag
        for flag in INSTANCE.flags
    ]
    known = {option_key(flag) for flag in flags}
    if not {f"flag_{name}" for name in _DEFAULTS} <= known:
        raise RuntimeError("a default of launch is no flag of instances")
    return [*options_of(flags, creating=True, required=False), label_option(creating=True)]


launch.params[1:1] = _launch_options()
