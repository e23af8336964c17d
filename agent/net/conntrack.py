"""Tracked connections of the namespace that the calling thread is in.

**Edge**: ctnetlink. A dump is walked while it arrives; a node may track hundreds of thousands.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Final

from agent.net import conntrack_wire as wire
from agent.net import netlink_wire
from agent.net.conntrack_wire import Connection
from agent.net.rtnetlink import NETLINK_NETFILTER, converse, open_conversation

IsOver = Callable[[Connection], bool]

NO_ZONE: Final = 0  # of connections in a routing domain's namespace: nothing there sets another
# Ended between the dump and the deletion, or already replaced by another.
_GONE: Final = (errno.ENOENT,)


def end_connections(zone: int, is_over: IsOver) -> int:
    """Forget the connections of a zone that `is_over` picks; how many. Their next packet is judged anew."""
    with contextlib.closing(open_conversation(NETLINK_NETFILTER)) as conversation:
        doomed = [one for one in _connections(conversation, zone) if is_over(one)]
        for number, connection in enumerate(doomed, start=2):
            _delete(conversation, number, connection)
    return len(doomed)


def flush_zone(zone: int) -> None:
    """A zone that another network had is empty before the next one gets it."""
    end_connections(zone, lambda _: True)


def _connections(conversation: socket.socket, zone: int) -> Iterator[Connection]:
    request = wire.dump_request(zone)
    for payload in converse(conversation, 1, wire.CT_GET, netlink_wire.F_DUMP, request):
        connection = wire.parse_connection(payload)
        if connection is not None and connection.zone == zone:
            yield connection


def _delete(conversation: socket.socket, number: int, connection: Connection) -> None:
    try:
        request = wire.delete_request(connection)
        for _ in converse(conversation, number, wire.CT_DELETE, netlink_wire.F_ACK, request):
            pass
    except OSError as err:
        if err.errno not in _GONE:
            raise
