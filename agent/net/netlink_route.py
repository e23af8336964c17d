"""A router's routes on the wire, of both IP versions.

**Pure.** Plain tuples, because a router has one for each port of its networks on other nodes. Source:
linux/rtnetlink.h. A route of IPv4 may have an IPv6 next hop (RTA_VIA, RFC 8950): then one neighbour is enough
for a node, whatever goes there.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from agent.net.driver import IPAddress, IPNetwork
from agent.net.netlink_wire import attribute, attributes, pack_u32, parse_u32

RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
GROUP_LINKS: Final = 1 << 0  # RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE and RTNLGRP_IPV6_ROUTE as bits
GROUP_ROUTES: Final = (1 << 6) | (1 << 10)

# Ours (see netlink_ip.py): what follows from the router itself, and what follows from ports elsewhere.
OF_ROUTER: Final = 199
OF_DIRECTORY: Final = 200
_BY_KERNEL: Final = 2

_AF_INET: Final = 2
_AF_INET6: Final = 10
_TABLE_MAIN: Final = 254
_TABLE_COMPAT: Final = 252  # what the kernel puts where a larger number does not fit
_TABLE_BYTE_MAX: Final = 255  # tables above are named by an attribute alone
_UNICAST: Final = 1
_UNREACHABLE: Final = 7
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_ON_LINK: Final = 4  # RTNH_F_ONLINK: the next hop is there, whatever addresses the link has
_METRIC_IPV6: Final = 1024  # what the kernel takes for 0
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5
_RTA_PRIORITY: Final = 6
_RTA_TABLE: Final = 15
_RTA_VIA: Final = 18

_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags


class RouterRoute(NamedTuple):
    """Packets to `destination`/`prefix_length` go to `next_hop` by `link`; without one they are refused."""

    destination: IPAddress
    prefix_length: int
    link: int = 0
    next_hop: IPAddress | None = None
    metric: int = 0
    protocol: int = OF_DIRECTORY


def route_of(
    cidr: IPNetwork, link: int = 0, next_hop: IPAddress | None = None, *, protocol: int = OF_DIRECTORY
) -> RouterRoute:
    return RouterRoute(cidr.network_address, cidr.prefixlen, link, next_hop, protocol=protocol)


def routes_dump(ip_version: int, table: int = _TABLE_MAIN) -> bytes:
    """Of everybody: a route that is not ours has no place in a router."""
    family = _AF_INET if ip_version == 4 else _AF_INET6
    head = _ROUTE.pack(family, 0, 0, 0, _table_byte(table), 0, 0, 0, 0)
    return head + attribute(_RTA_TABLE, pack_u32(table))


def router_route(value: RouterRoute, table: int = _TABLE_MAIN) -> bytes:
    family = _AF_INET if value.destination.version == 4 else _AF_INET6
    kind = _UNICAST if value.link else _UNREACHABLE
    scope = _SCOPE_UNIVERSE if value.next_hop is not None or not value.link else _SCOPE_LINK
    flags = _ON_LINK if value.next_hop is not None and family == _AF_INET else 0
    payload = _ROUTE.pack(
        family, value.prefix_length, 0, 0, _table_byte(table), value.protocol, scope, kind, flags
    ) + attribute(_RTA_DST, value.destination.packed)
    if table != _TABLE_MAIN:
        payload += attribute(_RTA_TABLE, pack_u32(table))
    if value.next_hop is not None and value.next_hop.version != value.destination.version:
        payload += attribute(_RTA_VIA, struct.pack("=H", _AF_INET6) + value.next_hop.packed)
    elif value.next_hop is not None:
        payload += attribute(_RTA_GATEWAY, value.next_hop.packed)
    if value.link:
        payload += attribute(_RTA_OIF, pack_u32(value.link))
    return payload + (attribute(_RTA_PRIORITY, pack_u32(value.metric)) if value.metric else b"")


def parse_router_route(payload: bytes, table: int = _TABLE_MAIN) -> RouterRoute | None:
    """None for what the kernel made of an address, or of another table."""
    family, length, _, _, its_table, protocol, _, kind, _ = _ROUTE.unpack_from(payload)
    if its_table != _table_byte(table) or protocol == _BY_KERNEL or family not in (_AF_INET, _AF_INET6):
        return None
    found = attributes(payload, _ROUTE.size)
    if table > _TABLE_BYTE_MAX and parse_u32(found.get(_RTA_TABLE)) != table:
        return None
    parse = IPv4Address if family == _AF_INET else IPv6Address
    packed = found.get(_RTA_DST)
    metric = parse_u32(found.get(_RTA_PRIORITY))
    return RouterRoute(
        parse(packed) if packed else parse(0),
        length,
        0 if kind == _UNREACHABLE else parse_u32(found.get(_RTA_OIF)),
        _parse_next_hop(found),
        0 if family == _AF_INET6 and metric == _METRIC_IPV6 else metric,
        protocol,
    )


def _table_byte(table: int) -> int:
    return table if table <= _TABLE_BYTE_MAX else _TABLE_COMPAT


def _parse_next_hop(found: dict[int, bytes]) -> IPAddress | None:
    packed = found.get(_RTA_GATEWAY) or found.get(_RTA_VIA, b"")[2:]
    if not packed:
        return None
    return IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)
