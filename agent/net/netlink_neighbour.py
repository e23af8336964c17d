"""Forwarding entries of bridges and tunnels, and neighbours, on the wire.

**Pure.** The kernel speaks of all three with one message; here each is a value of its own, of plain tuples
because a node has tens of thousands. Source: linux/neighbour.h.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from agent.net.driver import IPAddress
from agent.net.netlink_wire import attribute, attributes, pack_mac, pack_u32, parse_u32

RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_GETNEIGH: Final = 30
GROUP_NEIGHBOURS: Final = 1 << 2  # RTNLGRP_NEIGH as a bit: every change of any of them

AF_INET: Final = 2
AF_INET6: Final = 10
AF_BRIDGE: Final = 7
FAMILIES: Final = (AF_BRIDGE, AF_INET, AF_INET6)
_NTF_SELF: Final = 0x02
_NTF_MASTER: Final = 0x04
_NTF_PROXY: Final = 0x08
_NTF_STICKY: Final = 0x40
_NUD_REACHABLE: Final = 0x02
_NUD_NOARP: Final = 0x40
_NUD_PERMANENT: Final = 0x80
# What iproute2 calls static. "Permanent" would mean, on a bridge, that the frame is for the bridge itself.
_STATIC: Final = _NUD_NOARP | _NUD_REACHABLE

_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NDA_IFINDEX: Final = 8
_NDA_MASTER: Final = 9
_NDA_PROTOCOL: Final = 12
_PROTOCOL: Final = 199  # ours (see netlink_ip.py)

_NEIGHBOUR: Final = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
_IP_PACKED_MAX: Final = 16


class PortEntry(NamedTuple):
    """A bridge's: frames to `mac` leave by the port `link`. `static`: set by somebody, not learned."""

    bridge: int
    mac: str
    link: int
    static: bool


class TunnelEntry(NamedTuple):
    """A tunnel's: frames to `mac` go to `vtep`."""

    link: int
    mac: str
    vtep: IPAddress


class Neighbour(NamedTuple):
    """`permanent`: set by somebody, not found by asking."""

    link: int
    address: IPAddress
    mac: str
    permanent: bool


class Proxy(NamedTuple):
    """The node answers ARP or ND for `address` on a link, while a route leads it elsewhere."""

    link: int
    address: IPAddress


Entry = PortEntry | TunnelEntry | Neighbour


def dump(family: int, link: int = 0) -> bytes:
    """Of one link only, by its index, or of all."""
    head = _NEIGHBOUR.pack(family, 0, 0, 0, 0)
    return head + attribute(_NDA_IFINDEX, pack_u32(link)) if link else head


def port_entry(link: int, mac: str) -> bytes:
    """Sticky: a frame with this source that comes in elsewhere does not move it."""
    head = _NEIGHBOUR.pack(AF_BRIDGE, link, _STATIC, _NTF_MASTER | _NTF_STICKY, 0)
    return head + attribute(_NDA_LLADDR, pack_mac(mac))


def remote_entry(link: int, mac: str, vtep: IPAddress) -> bytes:
    """Both at once: the bridge's entry towards the tunnel, and the tunnel's towards the other node."""
    head = _NEIGHBOUR.pack(AF_BRIDGE, link, _STATIC, _NTF_MASTER | _NTF_SELF | _NTF_STICKY, 0)
    return head + attribute(_NDA_LLADDR, pack_mac(mac)) + attribute(_NDA_DST, vtep.packed)


def tunnel_entry(link: int, mac: str, vtep: IPAddress) -> bytes:
    head = _NEIGHBOUR.pack(AF_BRIDGE, link, _STATIC, _NTF_SELF | _NTF_STICKY, 0)
    return head + attribute(_NDA_LLADDR, pack_mac(mac)) + attribute(_NDA_DST, vtep.packed)


def neighbour(link: int, address: IPAddress, mac: str) -> bytes:
    head = _NEIGHBOUR.pack(_family_of(address), link, _NUD_PERMANENT, 0, 0)
    return head + attribute(_NDA_DST, address.packed) + attribute(_NDA_LLADDR, pack_mac(mac))


def station_entry(link: int, mac: str) -> bytes:
    """The link itself takes frames to `mac`, besides those to its own."""
    head = _NEIGHBOUR.pack(AF_BRIDGE, link, _NUD_PERMANENT, _NTF_SELF, 0)
    return head + attribute(_NDA_LLADDR, pack_mac(mac))


def parse_station(payload: bytes) -> tuple[int, str] | None:
    """(link, MAC) of such an entry, whoever made it."""
    family, link, state, flags, _ = _NEIGHBOUR.unpack_from(payload)
    found = attributes(payload, _NEIGHBOUR.size)
    is_own = family == AF_BRIDGE and flags & _NTF_SELF and state & _NUD_PERMANENT
    if not is_own or _NDA_DST in found or _NDA_MASTER in found:
        return None
    return link, found.get(_NDA_LLADDR, b"").hex(":")


def proxy(value: Proxy) -> bytes:
    head = _NEIGHBOUR.pack(_family_of(value.address), value.link, 0, _NTF_PROXY, 0)
    return head + attribute(_NDA_DST, value.address.packed) + attribute(_NDA_PROTOCOL, bytes([_PROTOCOL]))


def proxy_dump(family: int) -> bytes:
    return _NEIGHBOUR.pack(family, 0, 0, _NTF_PROXY, 0)


def parse_proxy(payload: bytes) -> Proxy | None:
    """None for one that is not ours."""
    _, link, _, _, _ = _NEIGHBOUR.unpack_from(payload)
    found = attributes(payload, _NEIGHBOUR.size)
    if found.get(_NDA_PROTOCOL) != bytes([_PROTOCOL]):
        return None
    return Proxy(link, _parse_ip(found[_NDA_DST]))


def payload_of(entry: Entry) -> bytes:
    if isinstance(entry, PortEntry):
        return port_entry(entry.link, entry.mac)
    if isinstance(entry, TunnelEntry):
        return tunnel_entry(entry.link, entry.mac, entry.vtep)
    return neighbour(entry.link, entry.address, entry.mac)


def parse_entry(payload: bytes) -> Entry | None:
    """None for what is neither, such as a bridge's own addresses."""
    family, link, state, _, _ = _NEIGHBOUR.unpack_from(payload)
    found = attributes(payload, _NEIGHBOUR.size)
    mac, destination = found.get(_NDA_LLADDR, b"").hex(":"), found.get(_NDA_DST, b"")
    if family in (AF_INET, AF_INET6):
        return (
            Neighbour(link, _parse_ip(destination), mac, bool(state & _NUD_PERMANENT))
            if destination
            else None
        )
    if family != AF_BRIDGE:
        return None
    if _NDA_MASTER in found:
        if state & _NUD_PERMANENT:
            return None
        return PortEntry(parse_u32(found[_NDA_MASTER]), mac, link, bool(state & _NUD_NOARP))
    return TunnelEntry(link, mac, _parse_ip(destination)) if destination else None


def _family_of(address: IPAddress) -> int:
    return AF_INET if address.version == 4 else AF_INET6


def _parse_ip(packed: bytes) -> IPAddress:
    return IPv6Address(packed) if len(packed) == _IP_PACKED_MAX else IPv4Address(packed)
