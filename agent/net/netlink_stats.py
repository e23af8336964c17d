"""Links with their counters on the wire.

**Pure.** Source: linux/if_link.h (struct rtnl_link_stats64).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from agent.net.netlink_wire import attributes, parse_text, parse_u32
from agent.net.stats import Traffic

_LINK: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFNAME: Final = 3
_QDISC: Final = 6
_MASTER: Final = 10
_IFALIAS: Final = 20
_STATS64: Final = 23
# rx and tx: packets, bytes, errors, dropped
_COUNTERS: Final = struct.Struct("=8Q")
_NO_COUNTERS: Final = bytes(_COUNTERS.size)


class CountedLink(NamedTuple):
    """`traffic` as the namespace sees it that the link is in."""

    number: int  # its index
    name: str
    alias: str
    master: int  # index of the bridge, 0 for none
    queue: str  # kind of its queue of what leaves
    traffic: Traffic


def counted_link_dump() -> bytes:
    return _LINK.pack(0, 0, 0, 0, 0)


def parse_counted_link(payload: bytes) -> CountedLink:
    _, _, index, _, _ = _LINK.unpack_from(payload)
    found = attributes(payload, _LINK.size)
    counters = _COUNTERS.unpack_from(found.get(_STATS64, _NO_COUNTERS))
    packets_in, packets_out, bytes_in, bytes_out, _, _, dropped_in, dropped_out = counters
    return CountedLink(
        index,
        parse_text(found.get(_IFNAME, b"")),
        parse_text(found.get(_IFALIAS, b"")),
        parse_u32(found.get(_MASTER)),
        parse_text(found.get(_QDISC, b"")),
        Traffic(bytes_in, packets_in, dropped_in, bytes_out, packets_out, dropped_out),
    )
