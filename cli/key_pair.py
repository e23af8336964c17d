"""`key-pair import`: a public key from a file.

**Edge**: reads the file; a private key is refused here, before it leaves the machine.
"""

from __future__ import annotations

from typing import Any, BinaryIO, Final

import click

from cli.forms import label_option
from cli.output import Layout, output_options
from cli.session import Session, connection_options
from cli.verbs import create_object
from cumulet.kinds import KEY_PAIR

KEY_BYTES_MAX: Final = 16 * 1024  # the longest RSA keys have 3 KiB


def read_public_key(data: bytes, name: str) -> str:
    """**Pure.** The one line of a public key file. Raises click.UsageError."""
    if b"PRIVATE KEY" in data:
        raise click.UsageError(f"{name} is a private key: give the .pub file beside it")
    if len(data) > KEY_BYTES_MAX:
        raise click.UsageError(f"{name} has more than {KEY_BYTES_MAX} bytes: it is no public key")
    lines = [line for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    if len(lines) != 1:
        raise click.UsageError(f"{name} has {len(lines)} lines, a public key has one")
    return lines[0].strip()


@click.command("import", epilog="Example: cumulet key-pair import laptop ~/.ssh/id_ed25519.pub")
@click.argument("name")
@click.argument("file", type=click.File("rb"))
@click.option("--dry-run", is_flag=True, help="Ask the cloud whether it would do it.")
@output_options
@connection_options
def import_key_pair(session: Session, name: str, file: BinaryIO, layout: Layout, **asked: Any) -> None:
    """Read a new key pair's public key from FILE, - for stdin."""
    key = read_public_key(file.read(KEY_BYTES_MAX + 1), getattr(file, "name", "the file"))
    create_object(session, KEY_PAIR, name, layout, flag_public_key=key, **asked)


import_key_pair.params[2:2] = [label_option(creating=True)]
