"""`console` and `logs`: a guest's serial console, live and as kept.

**Edge**: puts the terminal into raw mode and back. `Escape` and `SafeLog` are pure.
"""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Final

import click

from cli.completion import complete_names
from cli.refs import Ref, by_word
from cli.session import Session, connection_options
from cumulet.errors import CumuletError
from cumulet.kinds import INSTANCE

if TYPE_CHECKING:
    from cumulet.console_stream import ConsoleStream

READ_BYTES: Final = 4096
HELD_BYTES_MAX: Final = 256  # of a sequence whose end has not come yet
# What a terminal obeys: control sequences, strings such as titles, two-byte sequences (ECMA-48, section 5).
_SEQUENCE: Final = re.compile(
    rb"\x1b\[[0-?]*[ -/]*(?P<final>[@-~])|\x1b[\]P^_X][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-OQ-WYZ`-~\\]"
)
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # all but tab, line feed, carriage return


class Escape:
    """Typed bytes on their way: as in ssh `~.` at a line's beginning detaches, `~~` there is one tilde."""

    def __init__(self) -> None:
        self._line_start = True
        self._tilde = False

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What goes to the guest, and whether to detach."""
        out = bytearray()
        for byte in typed:
            if self._tilde:
                self._tilde = False
                if byte == ord("."):
                    return bytes(out), True
                if byte != ord("~"):
                    out.append(ord("~"))
            elif self._line_start and byte == ord("~"):
                self._tilde = True
                continue
            out.append(byte)
            self._line_start = byte in b"\r\n"
        return bytes(out), False


class SafeLog:
    """A guest's log, in pieces, without what could take over the terminal of who reads it; colours stay."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The safe part; the beginning of an unfinished sequence is held back for the next piece."""
        data = self._held + data
        start = data.rfind(b"\x1b")
        unfinished = start >= 0 and len(data) - start < HELD_BYTES_MAX and not _SEQUENCE.match(data, start)
        cut = start if unfinished else len(data)
        self._held = data[cut:]
        return b"".join(_safe_parts(data[:cut]))


def _safe_parts(data: bytes) -> Iterator[bytes]:
    position = 0
    for sequence in _SEQUENCE.finditer(data):
        yield _CONTROL.sub(b"", data[position : sequence.start()])
        if sequence["final"] == b"m":
            yield sequence[0]
        position = sequence.end()
    yield _CONTROL.sub(b"", data[position:])


@click.command("console", epilog="Example: cumulet console web")
@click.argument("name", shell_complete=complete_names(INSTANCE))
@connection_options
def console(session: Session, name: str) -> None:
    """Attach to an instance's serial console. `~.` at the beginning of a line leaves it."""
    ref = _ref(session, name)
    stream = session.client.console(ref.name, project=ref.project)
    click.echo(f"Connected to {ref.name}. To leave, type ~. at the beginning of a line.", err=True)
    try:
        with raw_terminal(sys.stdin.fileno()):
            _converse(stream, sys.stdin.fileno(), sys.stdout.fileno())
    finally:
        stream.close()
    click.echo(f"\nLeft the console of {ref.name}; it runs on.", err=True)


@click.command("logs", epilog="Example: cumulet logs web --tail 20")
@click.argument("name", shell_complete=complete_names(INSTANCE))
@click.option("--tail", type=click.IntRange(1), metavar="N", help="Only the last lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is printed from now on, until Ctrl-C.")
@connection_options
def logs(session: Session, name: str, tail: int | None, follow: bool) -> None:
    """Show what an instance's serial console printed."""
    client, ref = session.client, _ref(session, name)
    # Attached before the log is read: a few bytes may come twice, none is lost.
    stream = client.console(ref.name, project=ref.project) if follow else None
    try:
        safe = SafeLog() if sys.stdout.isatty() else None
        kept = client.console_log(ref.name, project=ref.project, tail_lines=tail or 0)
        for data in chain((kept,), stream or ()):
            sys.stdout.buffer.write(safe.feed(data) if safe else data)
            sys.stdout.buffer.flush()
    finally:
        if stream is not None:
            stream.close()


@contextmanager
def raw_terminal(handle: int) -> Iterator[None]:
    """Every key goes through, Ctrl-C too; the terminal is restored whatever happens."""
    if not os.isatty(handle):
        yield
        return
    before = termios.tcgetattr(handle)
    try:
        tty.setraw(handle)
        yield
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def _ref(session: Session, word: str) -> Ref:
    """The instance behind a word; also tells early that there is none."""
    client = session.client
    found = by_word(client, INSTANCE, word, lambda ref: client.get(INSTANCE, ref.name, project=ref.project))
    return Ref(found.meta.name, found.meta.project)


def _converse(stream: ConsoleStream, typed_from: int, shown_on: int) -> None:
    """Copy both ways until the person detaches or the stream ends. Raises what the stream ended with."""
    ended, wake = os.pipe()
    failure: list[CumuletError] = []

    def show() -> None:
        try:
            for data in stream:
                os.write(shown_on, data)
        except CumuletError as error:
            failure.append(error)
        finally:
            os.close(wake)

    reader = threading.Thread(target=show, name="console-output", daemon=True)
    reader.start()
    try:
        _type(stream, typed_from, ended)
    finally:
        stream.close()
        reader.join()
        os.close(ended)
    if failure:
        raise failure[0]


def _type(stream: ConsoleStream, typed_from: int, ended: int) -> None:
    escape, sources = Escape(), [typed_from, ended]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if ended in ready:
            return
        typed = os.read(typed_from, READ_BYTES)
        if not typed:
            sources.remove(typed_from)  # the input has ended, the output goes on
            continue
        out, detach = escape.feed(typed)
        if out:
            stream.send(out)
        if detach:
            return
