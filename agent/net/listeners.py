"""The sockets at which the metadata service listens, one in each routing domain's namespace.

**Edge.** Called in the driver's thread. A socket belongs to the namespace that it was made in and keeps that
alive; whoever serves it closes it, on the event loop that watches it.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
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

    def ensure(self, namespaces: Mapping[str, Path]) -> dict[str, socket.socket]:
        """Of exactly these domains, as far as their namespaces are there: the same socket as long as its
        namespace is the same and nobody closed it."""
        self._listeners = {
            uid: listener
            for uid, path in namespaces.items()
            if (listener := self._listener(uid, path)) is not None
        }
        return {uid: listener.socket for uid, listener in self._listeners.items()}

    def _listener(self, uid: str, namespace: Path) -> _Listener | None:
        if not netns.exists(namespace):
            return None
        inode = namespace.stat().st_ino
        known = self._listeners.get(uid)
        if known is not None and known.namespace == inode and known.socket.fileno() >= 0:
            return known
        with netns.inside(namespace), Netlink() as inner:
            loopback = inner.find_link("lo")
            assert loopback is not None  # every namespace has one
            inner.ensure_address(Address(loopback.index, METADATA_ADDRESS, _SINGLE))
            return _Listener(inode, _listen())


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
