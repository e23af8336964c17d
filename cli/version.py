"""`version`.

**Edge**: asks the cloud only when told to, so that it answers without one.
"""

from __future__ import annotations

import click

from cli.session import Session, connection_options


@click.command("version", epilog="Example: cumulet version --cloud")
@click.option("--cloud", is_flag=True, help="Ask the cloud for its version, too.")
@connection_options
def version(session: Session, cloud: bool) -> None:
    """Show the versions of this command and of the cloud."""
    from importlib.metadata import version as installed

    click.echo(f"cumulet {installed('cumulet')}")
    if cloud:
        found = session.client.cloud()
        leading = "leads" if found.leading else f"leader {found.leader_address or 'unknown'}"
        click.echo(f"cloud {found.version} ({leading}, revision {found.revision})")
        click.echo(
            f"{found.nodes_ready} of {found.nodes} nodes ready, "
            f"{found.instances_running} of {found.instances} instances running"
        )
