"""Bridges a libvirt stream, which lives in libvirt's event thread, to asyncio.

**Edge**: `_on_event` runs in the event thread and never blocks; everything else runs in the event loop.
Both directions are bounded: a slow reader stops the guest's output, a slow guest stops the writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Final

import libvirt

from agent.errors import DriverError

READ_CHUNK_BYTES: Final = 16384
BUFFERED_CHUNKS_MAX: Final = 64  # then the line is not read until half of them are taken
NOTHING_YET: Final = -2  # what libvirt's Python binding returns from a non-blocking stream that would block

_READABLE: Final = libvirt.VIR_STREAM_EVENT_READABLE
_WRITABLE: Final = libvirt.VIR_STREAM_EVENT_WRITABLE
_ENDED: Final = libvirt.VIR_STREAM_EVENT_ERROR | libvirt.VIR_STREAM_EVENT_HANGUP


class LibvirtConsole:
    """One attachment to a serial console."""

    def __init__(self, uid: str, stream: libvirt.virStream, loop: asyncio.AbstractEventLoop) -> None:
        self._uid, self._stream, self._loop = uid, stream, loop
        self._output: asyncio.Queue[bytes] = asyncio.Queue()  # bounded by pausing, see _take
        self._state = threading.Lock()  # guards all that follows
        self._ended = False
        self._buffered = 0  # chunks given to the loop and not read yet
        self._pausing = False
        self._pending = b""
        self._written: asyncio.Future[None] | None = None
        self._writing = asyncio.Lock()

    def start(self) -> None:
        """Begin to listen. Called once, from a pool thread, after the console was opened on the stream."""
        self._stream.eventAddCallback(_READABLE | _ENDED, self._on_event, None)

    async def read(self) -> bytes:
        if self._ended and self._buffered == 0 and self._output.empty():
            return b""
        chunk = await self._output.get()
        if chunk:
            self._make_room()
        return chunk

    def _make_room(self) -> None:
        with self._state:
            self._buffered -= 1
            if self._pausing and self._buffered <= BUFFERED_CHUNKS_MAX // 2:
                self._pausing = False
                self._watch()

    async def write(self, data: bytes) -> None:
        """Returns when the stream took all of it. DriverError(ConsoleClosed) at the end of the line."""
        async with self._writing:
            with self._state:
                if self._ended:
                    raise self._closed_error()
                written = self._written = self._loop.create_future()
                self._pending = data
                self._watch()
            await written

    async def close(self) -> None:
        # In a thread, because libvirt waits for the daemon's answer.
        await asyncio.to_thread(self._abort)

    def _abort(self) -> None:
        with self._state:
            if self._ended:
                return
            self._finish()
        with contextlib.suppress(libvirt.libvirtError):  # the line is gone already
            self._stream.abort()

    def _on_event(self, _stream: libvirt.virStream, events: int, _opaque: object) -> None:
        with self._state:
            if self._ended:
                return
            try:
                if events & _READABLE:
                    self._take()
                if events & _WRITABLE:
                    self._give()
            except libvirt.libvirtError:
                events |= _ENDED  # taken over by another attachment, or the guest is off
            if events & _ENDED:
                self._finish()

    def _take(self) -> None:
        chunk = self._stream.recv(READ_CHUNK_BYTES)
        if chunk == NOTHING_YET:
            return
        if not chunk:
            self._finish()
            return
        self._buffered += 1
        self._hand_over(chunk)
        if self._buffered >= BUFFERED_CHUNKS_MAX:
            self._pausing = True
            self._watch()

    def _give(self) -> None:
        sent = self._stream.send(self._pending) if self._pending else 0
        if sent != NOTHING_YET:
            self._pending = self._pending[sent:]
        if not self._pending and not self._ended:
            self._watch()
            self._resolve_written()

    def _watch(self) -> None:
        events = _ENDED
        if not self._pausing:
            events |= _READABLE
        if self._pending:
            events |= _WRITABLE
        if not self._ended:
            self._stream.eventUpdateCallback(events)

    def _finish(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._pending = b""
        with contextlib.suppress(libvirt.libvirtError):  # the line is gone already
            self._stream.eventRemoveCallback()
        self._hand_over(b"")
        self._resolve_written()

    def _hand_over(self, chunk: bytes) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._output.put_nowait, chunk)

    def _resolve_written(self) -> None:
        written, self._written = self._written, None
        if written is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._settle, written)

    def _settle(self, written: asyncio.Future[None]) -> None:
        if written.done():
            return
        if self._ended:
            written.set_exception(self._closed_error())
        else:
            written.set_result(None)

    def _closed_error(self) -> DriverError:
        message = f"The console of instance {self._uid} was closed or taken over: attach again."
        return DriverError("ConsoleClosed", message)
