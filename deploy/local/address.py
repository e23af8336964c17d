"""Does anybody answer at an address?

**Edge**: connects to loopback and Unix sockets.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

from deploy.local.layout import LOOPBACK

UNIX_PREFIX: Final = "unix:"
# On the loopback a connect is refused or done at once; a full backlog is the only wait.
_CONNECT_TIMEOUT_S: Final = 1.0


def answers(address: str) -> bool:
    """True when a connection to `unix:PATH` or `HOST:PORT` is accepted. Says nothing about health."""
    if address.startswith(UNIX_PREFIX):
        family, target = socket.AF_UNIX, address.removeprefix(UNIX_PREFIX)
        return _connects(family, target)
    host, _, port = address.rpartition(":")
    return _connects(socket.AF_INET, (host, int(port)))


def _connects(family: socket.AddressFamily, target: str | tuple[str, int]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as stream:
        stream.settimeout(_CONNECT_TIMEOUT_S)
        try:
            stream.connect(target)
        except OSError:
            return False
    return True


def taken_ports(ports: Iterable[int]) -> frozenset[int]:
    """Those that cannot be listened on at the loopback address."""
    return frozenset(port for port in ports if not _can_bind(port))


def free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody uses now. Another process may still take one: then `up` fails and says so."""
    holders = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for holder in holders:
            holder.bind((LOOPBACK, 0))
        return tuple(int(holder.getsockname()[1]) for holder in holders)
    finally:
        for holder in holders:
            holder.close()


def _can_bind(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        # As servers do: an old connection in TIME_WAIT does not count.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            stream.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
