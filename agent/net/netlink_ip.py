"""Addresses of links and routes of ours on the wire.

**Pure.** Source: linux/if_addr.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from agent.net.driver import IPAddress
from agent.net.netlink_wire import attribute, attributes, pack_u32, parse_u32

RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_GETROUTE: Final = 26

ROUTE_PROTOCOL: Final = 199  # ours, so that a dump shows only our routes and nobody takes them for theirs
_AF_INET: Final = 2
_AF_INET6: Final = 10
_ROUTE_TABLE_MAIN: Final = 254
_ROUTE_UNICAST: Final = 1
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_NEXT_HOP_ON_LINK: Final = 4
# Nobody else can have a gateway's address: its anycast twins on other nodes are never heard here.
_IFA_F_NODAD: Final = 0x02

_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_CACHEINFO: Final = 6
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5

_ADDR: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_LIFETIMES: Final = struct.Struct("=IIII")  # preferred, valid, created, changed
_FOREVER: Final = 0xFFFFFFFF
_SINGLE6: Final = 128
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type, flags


@dataclass(frozen=True, slots=True)
class Address:
    link: int
    address: IPAddress
    prefix_length: int


@dataclass(frozen=True, slots=True)
class Route:
    """A route of ours in the main table; `destination` None is the default route."""

    destination: IPv4Address | None
    prefix_length: int
    link: int
    gateway: IPv4Address | None


def address_dump(link: int = 0) -> bytes:
    """Of both families; of one link (old kernels do not filter dumps), or of all."""
    return _ADDR.pack(0, 0, 0, 0, link)


def address(value: Address) -> bytes:
    packed = value.address.packed
    scope = _SCOPE_LINK if value.address.is_link_local else _SCOPE_UNIVERSE
    family, flags = (_AF_INET, 0) if value.address.version == 4 else (_AF_INET6, _IFA_F_NODAD)
    payload = (
        _ADDR.pack(family, value.prefix_length, flags, scope, value.link)
        + attribute(_IFA_LOCAL, packed)
        + attribute(_IFA_ADDRESS, packed)
    )
    if value.address.version == 6 and value.prefix_length == _SINGLE6:
        # A load balancer's, or a part's: deprecated (RFC 4862, section 5.5.4), so that the namespace never
        # chooses it as the source of what it says itself.
        payload += attribute(_IFA_CACHEINFO, _LIFETIMES.pack(0, _FOREVER, 0, 0))
    return payload


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
        payload += attribute(_RTA_DST, value.destination.packed)
    if value.gateway is not None:
        payload += attribute(_RTA_GATEWAY, value.gateway.packed)
    return payload + attribute(_RTA_OIF, pack_u32(value.link))


def parse_address(payload: bytes) -> Address | None:
    """None for an address of another family."""
    family, prefix_length, _, _, link = _ADDR.unpack_from(payload)
    found = attributes(payload, _ADDR.size)
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)  # IPv6 has the former for point-to-point only
    if packed is None or family not in (_AF_INET, _AF_INET6):
        return None
    return Address(link, IPv4Address(packed) if family == _AF_INET else IPv6Address(packed), prefix_length)


def parse_route(payload: bytes) -> Route | None:
    """None for a route that is not one of ours (old kernels do not filter dumps)."""
    _, prefix_length, _, _, table, protocol, _, _, _ = _ROUTE.unpack_from(payload)
    if protocol != ROUTE_PROTOCOL or table != _ROUTE_TABLE_MAIN:
        return None
    found = attributes(payload, _ROUTE.size)
    destination, gateway = found.get(_RTA_DST), found.get(_RTA_GATEWAY)
    return Route(
        destination=IPv4Address(destination) if destination else None,
        prefix_length=prefix_length,
        link=parse_u32(found.get(_RTA_OIF)),
        gateway=IPv4Address(gateway) if gateway else None,
    )
