"""The process's one libvirt event loop: a daemon thread that delivers callbacks and keepalives.

**Edge**: libvirt's event implementation is global to the process and must be registered before the first
connection is opened. Callbacks run in this thread: they must not block and hand over by call_soon_threadsafe.
"""

from __future__ import annotations

import threading
from typing import Final

import libvirt

_START: Final = threading.Lock()
_threads: list[threading.Thread] = []


def start_event_loop() -> None:
    """Start the thread unless it runs already."""
    with _START:
        if _threads:
            return
        libvirt.registerErrorHandler(_ignore_error, None)  # errors are raised too; keep stderr clean
        libvirt.virEventRegisterDefaultImpl()
        thread = threading.Thread(target=_run, name="libvirt-events", daemon=True)
        _threads.append(thread)
        thread.start()


def _run() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _ignore_error(_context: object, _error: object) -> None:
    """libvirt's handler prints by default."""
