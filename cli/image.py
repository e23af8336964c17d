"""`image import`: upload a disk, and a kernel with its ram disk where it boots directly.

**Edge**: reads local files. The disk's format is a flag or the file name's ending, never a guess from its
bytes: a raw disk whose guest wrote a qcow2 header into it would be opened as something else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cli.forms import assign, flags_of, label_option, options_of
from cli.output import Layout, output_options
from cli.session import Session, connection_options
from cli.verbs import finish_create
from cumulet.errors import AlreadyExistsError, NotFoundError
from cumulet.kinds import IMAGE

if TYPE_CHECKING:
    from cumulet.client import Client, Progress

FORMATS: Final = {"qcow2": "FILE_FORMAT_QCOW2", "raw": "FILE_FORMAT_RAW"}
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def format_of(path: Path, given: str | None) -> str:
    """**Pure.** The disk's format by flag or ending. Raises click.UsageError."""
    ending = path.suffix.lower().removeprefix(".")
    found = given or (ending if ending in FORMATS else "")
    if not found:
        raise click.UsageError(
            f"the name of {path.name} does not tell its format: add --format {' or --format '.join(FORMATS)}"
        )
    return found


@click.command("import", epilog=f"Example: cumulet image import debian-12 {IMAGE.example}")
@click.argument("name")
@click.argument("file", type=_FILE)
@click.option(
    "--format", "disk_format", type=click.Choice(list(FORMATS)), help="Where the name does not say."
)
@click.option("--kernel", type=_FILE, metavar="FILE", help="Kernel, to boot without a boot loader.")
@click.option("--initrd", type=_FILE, metavar="FILE", help="Initial ram disk for that kernel.")
@output_options
@connection_options
def import_image(
    session: Session,
    name: str,
    file: Path,
    disk_format: str | None,
    kernel: Path | None,
    initrd: Path | None,
    layout: Layout,
    labels: tuple[tuple[str, str], ...],
    **values: Any,
) -> None:
    """Upload a disk FILE as a new image."""
    from cumulet.v1 import image_pb2 as pb

    if initrd is not None and kernel is None:
        raise click.UsageError("--initrd needs --kernel")
    found = format_of(file, disk_format)
    client = session.client
    _refuse_taken(client, name)
    wanted = pb.Image()
    wanted.meta.name = name
    wanted.meta.labels.update(dict(labels))
    assign(wanted, flags_of(IMAGE), values)
    for path, format_name, part in (
        (file, FORMATS[found], wanted.spec.disk),
        (kernel, "FILE_FORMAT_BLOB", wanted.spec.kernel),
        (initrd, "FILE_FORMAT_BLOB", wanted.spec.initrd),
    ):
        if path is not None:
            with _progress(path) as progress:
                part.CopyFrom(client.upload_file(path, pb.FileFormat.Value(format_name), progress))
    made = client.create(IMAGE, wanted)
    finish_create(session, IMAGE, name, made, layout, dry_run=False, wait=None)


def _refuse_taken(client: Client, name: str) -> None:
    """Before gigabytes are sent. The server decides again at the end."""
    try:
        client.get(IMAGE, name)
    except NotFoundError:
        return
    raise AlreadyExistsError(f"image {name} exists already", hints=("cumulet image list",))


@contextmanager
def _progress(path: Path) -> Iterator[Progress]:
    """A bar on a terminal, one line otherwise; on stderr."""
    if not sys.stderr.isatty():
        click.echo(f"Uploading {path.name}", err=True)
        yield lambda _sent, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(path.name, total=path.stat().st_size)
        yield lambda sent, total: bar.update(task, completed=sent, total=total)


import_image.params[2:2] = [*options_of(flags_of(IMAGE), creating=True), label_option(creating=True)]
