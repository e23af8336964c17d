"""Addresses of the outside that this node answers for: what leads to their routers and back.

**Pure.** The node answers ARP or ND for the address on the link to its external network and sends what comes
to the router's namespace, which translates IPv4 (floating_rules.py); an IPv6 address is a port's own. No link
of the operator's is moved or gets an address. What the router sends from the address leaves by the external
network's own gateway, which has a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network
from typing import Final

from agent.net import addressing, names
from agent.net.driver import FloatingIntent, IPAddress, IPNetwork, RoutedIntent, RouterIntent
from agent.net.elements import Element
from agent.net.netlink_neighbour import Neighbour, Proxy
from agent.net.netlink_route import OF_ROUTER, RouterRoute, route_of
from agent.net.netlink_rule import TABLE_MAIN, PolicyRule
from agent.net.router_entries import peer_address

Outside = FloatingIntent | RoutedIntent
# Before the main table is looked up as a whole (32766), after that of local addresses.
_NEAR_PRIORITY: Final = 17_000
_FAR_PRIORITY: Final = 17_001
_MARK_PRIORITY: Final = 17_000
# IPv6 of the host: guests are found before anything else; and what came in by a link and is neither for nor
# from them is not forwarded by a node that was no router. A rule of nftables would meet bridged frames, too.
_GUESTS: Final = 199
TO_GUESTS: Final = PolicyRule(16_999, _GUESTS, ip_version=6)
NO_ROUTER: Final = PolicyRule(17_002, 0, ip_version=6)
_MARK_BITS: Final = (
    0x7FFFFFFF  # nodes differ in the last 17 bits of their addresses (controller/admit/offers.py)
)
_OF_IPV6: Final = 0x80000000


def floating_elements(router: RouterIntent) -> frozenset[Element]:
    """By which uplink the host lets packets to and from an address through."""
    uplink = names.uplink_name(router.uid)
    floating = {
        Element("inet", "floating", (uplink, str(one.address)), router.uid) for one in router.floating
    }
    routed = (address for one in router.routed for address in (one.router_address, *one.addresses))
    return frozenset(floating).union(
        Element("inet", "routed", (uplink, str(address)), router.uid) for address in routed
    )


def wanted_proxies(router: RouterIntent, links: Mapping[str, int]) -> frozenset[Proxy]:
    """`links`: index by uplink; one that is not there is left out."""
    return frozenset(Proxy(links[uplink], address) for uplink, address in router.answered if uplink in links)


def way_to(address: IPAddress, uplink: int, inside: IPAddress) -> RouterRoute:
    """To the router's namespace: its uplink's outer end has this index, its inner end this address."""
    return RouterRoute(address, address.max_prefixlen, uplink, inside, protocol=OF_ROUTER)


def hop_to(router: RouterIntent, address: IPAddress) -> IPAddress:
    """The next hop to the router's namespace, of the address's IP version."""
    return addressing.uplink_address(router.vni) if address.version == 4 else addressing.ROUTER_HOP


def wanted_routes(router: RouterIntent, uplink: int) -> frozenset[RouterRoute]:
    """To the router's namespace, whose uplink's outer end has this index."""
    return frozenset(way_to(address, uplink, hop_to(router, address)) for _, address in router.answered)


def wanted_rules(router: RouterIntent) -> frozenset[PolicyRule]:
    """Where the node knows a way of its own it is taken, but for its default route."""
    uplink = names.uplink_name(router.uid)
    found = set()
    for one in outsides(router):
        source, version = source_of(one), one.cidr.version
        if one.gateway is not None:
            near = PolicyRule(_NEAR_PRIORITY, TABLE_MAIN, source, uplink, 0, True, version)
            found |= {near, PolicyRule(_FAR_PRIORITY, table_of(one), source, uplink, ip_version=version)}
        elif version == 6:
            found.add(PolicyRule(_FAR_PRIORITY, TABLE_MAIN, source, uplink, ip_version=version))
    return frozenset(found)


def way_table(address: IPAddress) -> int:
    """Of the host: where the way to a router is."""
    return TABLE_MAIN if address.version == 4 else _GUESTS


def outsides(router: RouterIntent) -> Iterator[Outside]:
    yield from router.floating
    yield from router.routed


def source_of(one: Outside) -> IPNetwork:
    """Where packets that leave by its gateway come from."""
    return ip_network(one.address) if isinstance(one, FloatingIntent) else one.subnet


def table_of(one: Outside) -> int:
    """Of its gateway: the number that an IPv4 address is, or a digest, since one link-local address is a
    gateway on many links. Never one of the kernel's own; the two IP versions' tables are apart."""
    assert one.gateway is not None  # without one there is none
    if one.gateway.version == 4:
        return int(one.gateway)
    digest = hashlib.sha256(f"{one.uplink} {one.gateway} {one.cidr}".encode()).digest()
    return int.from_bytes(digest[:4], "big") | _OF_IPV6


def table_routes(one: Outside, link: int) -> frozenset[RouterRoute]:
    """Of the table of its gateway."""
    near = route_of(one.cidr, link, protocol=OF_ROUTER)
    far_end = addressing.ANYWHERE if one.cidr.version == 4 else addressing.ANYWHERE6
    return frozenset((near, RouterRoute(far_end, 0, link, one.gateway, protocol=OF_ROUTER)))


def hop_inside(uplink: int, router_uid: str) -> Neighbour:
    """On the outer end of a router's uplink: its inner end."""
    pair = addressing.router_uplink_pair(router_uid)
    return Neighbour(uplink, addressing.ROUTER_HOP, pair.inner_mac, True)


def hop_outside(uplink: int, mac: str) -> Neighbour:
    """On the inner end: its outer end, which has this MAC."""
    return Neighbour(uplink, addressing.HOST_HOP, mac, True)


def mark_of_node(vtep: IPAddress) -> int:
    """Of connections that came by a node's part of the router; also the table that leads back there.

    Never one of the kernel's own tables, 0 and 253 to 255: an IPv4 address is larger, the end of an IPv6 one
    is made so.
    """
    return int(vtep) if vtep.version == 4 else int(vtep) & _MARK_BITS | _OF_IPV6


def return_rules(vteps: Iterable[IPAddress]) -> frozenset[PolicyRule]:
    """In a router's namespace."""
    marks = map(mark_of_node, vteps)
    return frozenset(PolicyRule(_MARK_PRIORITY, mark, mark=mark) for mark in marks)


def return_route(vtep: IPAddress, tunnel: int) -> RouterRoute:
    """Of the node's table there."""
    return RouterRoute(addressing.ANYWHERE, 0, tunnel, peer_address(vtep), protocol=OF_ROUTER)
