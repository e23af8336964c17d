"""The part of rtnetlink's wire format that this room uses: requests to bytes, answers to values.

**Pure**: struct packing only, no socket. Source: linux/netlink.h, linux/rtnetlink.h, linux/if_link.h and
rtnetlink(7). pyroute2 stays the tool for rarer objects, but not for this path: measured on a test machine,
its import costs 0.8 s, a request 1.6 ms and a link in a dump 2 ms of held interpreter lock; here a link costs
some 20 µs, which is what lets an agent observe hundreds of links every few seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26
NFT_MSG_GETGEN: Final = (10 << 8) | 16  # subsystem nftables, message "which generation of rules"

F_REQUEST: Final = 0x1
F_ACK: Final = 0x4
F_DUMP: Final = 0x300
F_REPLACE: Final = 0x100
F_EXCL: Final = 0x200
F_CREATE: Final = 0x400

IFF_UP: Final = 0x1
ROUTE_PROTOCOL: Final = 199  # ours, so that a dump shows only our routes and nobody takes them for theirs
_AF_INET: Final = 2
_ROUTE_TABLE_MAIN: Final = 254
_ROUTE_UNICAST: Final = 1
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_NEXT_HOP_ON_LINK: Final = 4
_EXT_MASK_SKIP_STATS: Final = 8

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_IFALIAS: Final = 20
_IFLA_NET_NS_FD: Final = 28
_IFLA_EXT_MASK: Final = 29
_INFO_KIND: Final = 1
_INFO_DATA: Final = 2
_VETH_INFO_PEER: Final = 1
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_NFTA_GEN_ID: Final = 1

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_LINK: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDR: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_TYPE_MASK: Final = 0x3FFF  # without the "nested" and "network byte order" flags


@dataclass(frozen=True, slots=True)
class Link:
    index: int
    name: str
    kind: str
    alias: str
    master: int  # index of the bridge, 0 for none
    mac: str
    up: bool


@dataclass(frozen=True, slots=True)
class Address:
    link: int
    address: IPv4Address | IPv6Address
    prefix_length: int


@dataclass(frozen=True, slots=True)
class Route:
    """A route of ours in the main table; `destination` None is the default route."""

    destination: IPv4Address | None
    prefix_length: int
    link: int
    gateway: IPv4Address | None


@dataclass(frozen=True, slots=True)
class Message:
    kind: int
    sequence: int
    payload: bytes


def message(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags | F_REQUEST, sequence, 0) + payload


def parse_messages(data: bytes) -> Iterator[Message]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield Message(kind, sequence, data[offset + _HEADER.size : offset + length])
        offset += _aligned(length)


def parse_error(payload: bytes) -> int:
    """The errno of an error message; 0 is an acknowledgement."""
    code: int = struct.unpack_from("=i", payload)[0]
    return -code


def link_dump() -> bytes:
    return _LINK.pack(0, 0, 0, 0, 0) + _attribute(_IFLA_EXT_MASK, _u32(_EXT_MASK_SKIP_STATS))


def link_by_name(name: str) -> bytes:
    return link_dump() + _attribute(_IFLA_IFNAME, _text(name))


def bridge(name: str, mac: str) -> bytes:
    return (
        _LINK.pack(0, 0, 0, 0, 0)
        + _attribute(_IFLA_IFNAME, _text(name))
        + _attribute(_IFLA_ADDRESS, _mac(mac))
        + _attribute(_IFLA_LINKINFO, _attribute(_INFO_KIND, b"bridge"))
    )


def veth(name: str, peer: str, peer_mac: str, peer_netns_fd: int) -> bytes:
    """A pair whose other end is born inside the namespace: it is never visible outside."""
    other = (
        _LINK.pack(0, 0, 0, 0, 0)
        + _attribute(_IFLA_IFNAME, _text(peer))
        + _attribute(_IFLA_ADDRESS, _mac(peer_mac))
        + _attribute(_IFLA_NET_NS_FD, _u32(peer_netns_fd))
    )
    info = _attribute(_INFO_KIND, b"veth") + _attribute(_INFO_DATA, _attribute(_VETH_INFO_PEER, other))
    return (
        _LINK.pack(0, 0, 0, 0, 0) + _attribute(_IFLA_IFNAME, _text(name)) + _attribute(_IFLA_LINKINFO, info)
    )


def link_change(
    index: int, *, up: bool | None = None, master: int | None = None, alias: str | None = None
) -> bytes:
    flags = IFF_UP if up else 0
    change = 0 if up is None else IFF_UP
    payload = _LINK.pack(0, 0, index, flags, change)
    if master is not None:
        payload += _attribute(_IFLA_MASTER, _u32(master))
    if alias is not None:
        payload += _attribute(_IFLA_IFALIAS, alias.encode())
    return payload


def link_delete(index: int) -> bytes:
    return _LINK.pack(0, 0, index, 0, 0)


def address_dump() -> bytes:
    return _ADDR.pack(_AF_INET, 0, 0, 0, 0)


def address(value: Address) -> bytes:
    packed = value.address.packed
    scope = _SCOPE_LINK if value.address.is_link_local else _SCOPE_UNIVERSE
    return (
        _ADDR.pack(_AF_INET, value.prefix_length, 0, scope, value.link)
        + _attribute(_IFA_LOCAL, packed)
        + _attribute(_IFA_ADDRESS, packed)
    )


def route_dump() -> bytes:
    """Asks for our routes only: a node may carry a full table of somebody else's."""
    return _ROUTE.pack(_AF_INET, 0, 0, 0, _ROUTE_TABLE_MAIN, ROUTE_PROTOCOL, 0, 0, 0)


def route(value: Route) -> bytes:
    scope = _SCOPE_UNIVERSE if value.gateway else _SCOPE_LINK
    flags = _NEXT_HOP_ON_LINK if value.gateway else 0
    payload = _ROUTE.pack(
        _AF_INET, value.prefix_length, 0, 0, _ROUTE_TABLE_MAIN, ROUTE_PROTOCOL, scope, _ROUTE_UNICAST, flags
    )
    if value.destination is not None:
        payload += _attribute(_RTA_DST, value.destination.packed)
    if value.gateway is not None:
        payload += _attribute(_RTA_GATEWAY, value.gateway.packed)
    return payload + _attribute(_RTA_OIF, _u32(value.link))


def rules_generation_request() -> bytes:
    return struct.pack("=BBH", 0, 0, 0)


def parse_link(payload: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(payload)
    found = _attributes(payload, _LINK.size)
    info = _attributes(found.get(_IFLA_LINKINFO, b""), 0)
    return Link(
        index=index,
        name=_parse_text(found.get(_IFLA_IFNAME, b"")),
        kind=_parse_text(info.get(_INFO_KIND, b"")),
        alias=_parse_text(found.get(_IFLA_IFALIAS, b"")),
        master=_parse_u32(found.get(_IFLA_MASTER)),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        up=bool(flags & IFF_UP),
    )


def parse_address(payload: bytes) -> Address | None:
    """None for an address without a local part."""
    _, prefix_length, _, _, link = _ADDR.unpack_from(payload)
    found = _attributes(payload, _ADDR.size)
    local = found.get(_IFA_LOCAL)
    return Address(link, IPv4Address(local), prefix_length) if local else None


def parse_route(payload: bytes) -> Route | None:
    """None for a route that is not one of ours (old kernels do not filter dumps)."""
    _, prefix_length, _, _, table, protocol, _, _, _ = _ROUTE.unpack_from(payload)
    if protocol != ROUTE_PROTOCOL or table != _ROUTE_TABLE_MAIN:
        return None
    found = _attributes(payload, _ROUTE.size)
    destination, gateway = found.get(_RTA_DST), found.get(_RTA_GATEWAY)
    return Route(
        destination=IPv4Address(destination) if destination else None,
        prefix_length=prefix_length,
        link=_parse_u32(found.get(_RTA_OIF)),
        gateway=IPv4Address(gateway) if gateway else None,
    )


def parse_rules_generation(payload: bytes) -> int:
    found = _attributes(payload, 4)
    return int.from_bytes(found.get(_NFTA_GEN_ID, b""), "big")


def _attributes(data: bytes, offset: int) -> dict[int, bytes]:
    """Written for speed: a link has some fifty attributes and a node some hundred links."""
    found: dict[int, bytes] = {}
    unpack, last = _ATTRIBUTE.unpack_from, len(data) - _ATTRIBUTE.size
    while offset <= last:
        length, kind = unpack(data, offset)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _parse_u32(value: bytes | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value else 0


def _text(value: str) -> bytes:
    return value.encode() + b"\0"


def _parse_text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _mac(value: str) -> bytes:
    return bytes.fromhex(value.replace(":", ""))
