"""The sockets at which the metadata service listens, one in each routing domain's namespace.

**Edge.** Called in the driver's thread. A socket belongs to the namespace that it was made in, and keeps that
alive: it is closed before its namespace is removed, and made anew when there is a new one of the same name.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.net import netns
from agent.net.addressing import METADATA_ADDRESS, METADATA_PORT
from agent.net.netlink_ip import Address
from agent.net.rtnetlink import Netlink

_SINGLE: Final = 32


@dataclass(frozen=True, slots=True)
class _Listener:
    namespace: int  # inode of the namespace
    socket: socket.socket


class Listeners:
    """Sockets by routing domain."""

    def __init__(self) -> None:
        self._listeners: dict[str, _Listener] = {}

    def ensure(self, uid: str, namespace: Path) -> socket.socket | None:
        """The domain's socket; None while it has no namespace."""
        if not netns.exists(namespace):
            self.close(uid)
            return None
        inode = namespace.stat().st_ino
        known = self._listeners.get(uid)
        if known is not None and known.namespace == inode and known.socket.fileno() >= 0:
            return known.socket
        self.close(uid)
        with netns.inside(namespace), Netlink() as inner:
            loopback = inner.find_link("lo")
            assert loopback is not None  # every namespace has one
            inner.ensure_address(Address(loopback.index, METADATA_ADDRESS, _SINGLE))
            made = _listen()
        self._listeners[uid] = _Listener(inode, made)
        return made

    def close(self, uid: str) -> None:
        known = self._listeners.pop(uid, None)
        if known is not None:
            known.socket.close()

    def close_all(self) -> None:
        for uid in list(self._listeners):
            self.close(uid)


def _listen() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setblocking(False)
        made.bind((str(METADATA_ADDRESS), METADATA_PORT))
        made.listen()
    except OSError:
        made.close()
        raise
    return made
