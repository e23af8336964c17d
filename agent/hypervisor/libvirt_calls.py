"""Runs blocking libvirt calls in one bounded pool, each key's calls one after the other, with deadlines.

**Edge**: owns connections and threads. A call that is overdue cannot be cancelled, so its key is
quarantined until the call returns; other keys go on.

A connection carries one call at a time, because a call that hangs takes others on its connection along:
libvirt's client before 10.0 can lose the wake-up of a second caller (seen on Debian 12's 9.0), and libvirtd
takes five requests of one connection. Events and consoles have a connection of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NoReturn, TypeVar
from weakref import WeakValueDictionary

import libvirt

from agent.errors import DriverError, DriverUnavailableError
from agent.hypervisor.libvirt_events import start_event_loop

POOL_THREADS_MAX: Final = 16  # calls wait for QEMU, not for the CPU; libvirtd has 20 workers
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_COUNT: Final = 5  # a libvirtd that is silent for 30 s is given up, and its calls return

Result = TypeVar("Result")
Opened = Callable[[libvirt.virConnect], None]
Closed = Callable[[], None]


class LibvirtCalls:
    """`run` is the one way to libvirt. `opened` gets each new events connection; `closed` tells its end."""

    def __init__(self, uri: str, opened: Opened, closed: Closed) -> None:
        self._uri = uri
        self._opened, self._closed = opened, closed
        self._pool = ThreadPoolExecutor(POOL_THREADS_MAX, thread_name_prefix="libvirt")
        # Weak: a lock lives as long as somebody holds or awaits it, so forgotten instances leave nothing.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._overdue: dict[str, Future[Any]] = {}
        self._connecting = threading.Lock()  # guards the two that follow
        self._idle: list[libvirt.virConnect] = []
        self._events: libvirt.virConnect | None = None
        start_event_loop()

    async def run(
        self, key: str, what: str, call: Callable[[libvirt.virConnect], Result], deadline_s: float
    ) -> Result:
        """Run `call` in the pool once no other call of `key` is in flight. `what` is for messages.

        DriverError(LibvirtOverdue) after `deadline_s`, and at once while an overdue call has not returned;
        DriverUnavailableError if libvirtd does not answer. libvirtError is the caller's to translate.
        """
        async with self._locks.setdefault(key, asyncio.Lock()):
            self._refuse_if_overdue(key, what)
            future = self._pool.submit(self._connected, call, deadline_s)
            answer = asyncio.wrap_future(future)
            answer.add_done_callback(_take_note)
            try:
                async with asyncio.timeout(deadline_s):
                    return await asyncio.shield(answer)
            except TimeoutError as err:
                raise self._quarantine(key, what, deadline_s, future) from err
            except asyncio.CancelledError:
                self._overdue[key] = future  # the thread goes on; nothing may overtake it
                raise

    def first_free(self, keys: tuple[str, ...]) -> str:
        """The first key without an overdue call; the last one if all are stuck."""
        return next((key for key in keys if not self.is_overdue(key)), keys[-1])

    def is_overdue(self, key: str) -> bool:
        future = self._overdue.get(key)
        if future is not None and future.done():
            del self._overdue[key]
            return False
        return future is not None

    def events_connection(self) -> libvirt.virConnect:
        """The connection that lives on between calls, for streams. Inside a call only."""
        assert self._events is not None
        return self._events

    async def close(self) -> None:
        """Close the connections. Threads in overdue calls are left to end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        connections = [*self._idle, *([self._events] if self._events is not None else ())]
        self._idle, self._events = [], None
        if all(future.done() for future in self._overdue.values()):
            await asyncio.to_thread(_close_quietly, connections)

    def _refuse_if_overdue(self, key: str, what: str) -> None:
        if self.is_overdue(key):
            message = f"{what}: an earlier call has not returned; see whether libvirtd or QEMU hangs."
            raise DriverError("LibvirtOverdue", message)

    def _quarantine(self, key: str, what: str, deadline_s: float, future: Future[Any]) -> DriverError:
        self._overdue[key] = future
        message = f"{what}: libvirt has not answered in {deadline_s:g} s; see whether libvirtd or QEMU hangs."
        return DriverError("LibvirtOverdue", message)

    def _connected(self, call: Callable[[libvirt.virConnect], Result], deadline_s: float) -> Result:
        connection = self._take(deadline_s)
        try:
            result = call(connection)
        except (libvirt.libvirtError, DriverError) as err:
            if not _is_alive(connection):
                self._raise_unavailable(err)  # it says more of the line than of the instance
            self._idle.append(connection)
            raise
        self._idle.append(connection)
        return result

    def _take(self, deadline_s: float) -> libvirt.virConnect:
        if not self._connecting.acquire(timeout=deadline_s):
            self._raise_unavailable(None)
        try:
            if self._events is None or not _is_alive(self._events):
                self._events = self._open_events()
            while self._idle:
                connection = self._idle.pop()
                if _is_alive(connection):
                    return connection
            return self._open()
        except libvirt.libvirtError as err:
            self._raise_unavailable(err)
        finally:
            self._connecting.release()

    def _open(self) -> libvirt.virConnect:
        connection = libvirt.open(self._uri)
        _keep_alive(connection)
        return connection

    def _open_events(self) -> libvirt.virConnect:
        connection = self._open()
        connection.registerCloseCallback(self._on_close, None)
        self._opened(connection)
        return connection

    def _on_close(self, _connection: libvirt.virConnect, _reason: int, _opaque: object) -> None:
        self._closed()

    def _raise_unavailable(self, cause: Exception | None) -> NoReturn:
        detail = cause or "it is busy with a call that hangs"
        message = f"libvirtd at {self._uri} does not answer ({detail}); see `systemctl status libvirtd`."
        raise DriverUnavailableError("LibvirtUnavailable", message) from cause


def _take_note(answer: asyncio.Future[Any]) -> None:
    """Look at an error that nobody awaits any more, so that asyncio does not report it as lost."""
    if not answer.cancelled():
        answer.exception()


def _keep_alive(connection: libvirt.virConnect) -> None:
    try:
        connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
    except libvirt.libvirtError as err:
        # A hypervisor inside the client (test:///default) has no line that could die.
        if err.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            raise


def _is_alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def _close_quietly(connections: list[libvirt.virConnect]) -> None:
    for connection in connections:
        with contextlib.suppress(libvirt.libvirtError):  # it was broken already
            connection.close()
