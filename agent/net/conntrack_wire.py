"""Tracked connections as ctnetlink tells them: requests to bytes, answers to values.

**Pure**: struct packing only. Source: linux/netfilter/nfnetlink_conntrack.h. The `conntrack` tool is in no
package that an installation needs, and a dump of it would be parsed as well.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from agent.net.driver import IPAddress
from agent.net.netlink_wire import attribute, attributes

_SUBSYSTEM: Final = 1 << 8
CT_GET: Final = _SUBSYSTEM | 1
CT_DELETE: Final = _SUBSYSTEM | 2
_GENERIC: Final = struct.Struct("!BBH")  # family, version, resource id
_NESTED: Final = 0x8000

_TUPLE_ORIGINAL: Final = 1
_TUPLE_REPLY: Final = 2
_MARK: Final = 8
_ID: Final = 12
_ZONE: Final = 18
_TUPLE_IP: Final = 1
_TUPLE_PROTOCOL: Final = 2
_V4_SOURCE, _V4_DESTINATION, _V6_SOURCE, _V6_DESTINATION = 1, 2, 3, 4
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_ICMP_TYPE, _ICMP_CODE, _ICMPV6_TYPE, _ICMPV6_CODE = 5, 6, 8, 9


@dataclass(frozen=True, slots=True)
class Connection:
    """Who began it, towards whom. `first`, `second`: ports, or type and code of ICMP; 0 where there is none.

    `key` is what the kernel finds it by. `answerer` and `answer_port`: who replies, which is somebody else
    than the destination where that is translated.
    """

    zone: int
    source: IPAddress
    destination: IPAddress
    protocol: int
    first: int
    second: int
    key: bytes
    reply: bytes = b""
    mark: int = 0

    @property
    def answerer(self) -> IPAddress | None:
        addresses = _addresses(attributes(attributes(self.reply, 0).get(_TUPLE_IP, b""), 0))
        return addresses[0] if addresses is not None else None

    @property
    def answer_port(self) -> int:
        return _details(attributes(attributes(self.reply, 0).get(_TUPLE_PROTOCOL, b""), 0))[0]


def dump_request(zone: int) -> bytes:
    """Of one zone; kernels before 6.8 answer with all, so look at `zone`."""
    return _GENERIC.pack(0, 0, 0) + attribute(_ZONE, struct.pack("!H", zone))


def delete_request(connection: Connection) -> bytes:
    family = 2 if connection.source.version == 4 else 10
    return _GENERIC.pack(family, 0, 0) + connection.key


def parse_connection(payload: bytes) -> Connection | None:
    """None for one whose addresses are of another kind."""
    found = attributes(payload, _GENERIC.size)
    original = found.get(_TUPLE_ORIGINAL, b"")
    parts = attributes(original, 0)
    ends, protocol = attributes(parts.get(_TUPLE_IP, b""), 0), attributes(parts.get(_TUPLE_PROTOCOL, b""), 0)
    addresses = _addresses(ends)
    if addresses is None:
        return None
    zone, number = found.get(_ZONE, b"\0\0"), found.get(_ID, b"")
    first, second = _details(protocol)
    key = attribute(_TUPLE_ORIGINAL | _NESTED, original) + attribute(_ZONE, zone) + attribute(_ID, number)
    reply, protocol_number = found.get(_TUPLE_REPLY, b""), protocol.get(_NUMBER, b"\0")[0]
    mark = int.from_bytes(found.get(_MARK, b""), "big")
    return Connection(_u16(zone), *addresses, protocol_number, first, second, key, reply, mark)


def _addresses(ends: dict[int, bytes]) -> tuple[IPAddress, IPAddress] | None:
    if _V4_SOURCE in ends and _V4_DESTINATION in ends:
        return IPv4Address(ends[_V4_SOURCE]), IPv4Address(ends[_V4_DESTINATION])
    if _V6_SOURCE in ends and _V6_DESTINATION in ends:
        return IPv6Address(ends[_V6_SOURCE]), IPv6Address(ends[_V6_DESTINATION])
    return None


def _details(protocol: dict[int, bytes]) -> tuple[int, int]:
    for kind, code in ((_ICMP_TYPE, _ICMP_CODE), (_ICMPV6_TYPE, _ICMPV6_CODE)):
        if kind in protocol:
            return protocol[kind][0], protocol.get(code, b"\0")[0]
    return _u16(protocol.get(_SOURCE_PORT, b"\0\0")), _u16(protocol.get(_DESTINATION_PORT, b"\0\0"))


def _u16(value: bytes) -> int:
    return int.from_bytes(value, "big")
