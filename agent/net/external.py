"""Addresses of the outside that this node answers for: what leads to their routers and back.

**Pure.** The node answers ARP for the address on the link to its external network and sends what comes to the
router's namespace, which translates (floating_rules.py). No link of the operator's is moved or gets an
address. What the router sends from the address leaves by the external network's own gateway: the table of
that gateway has the number that its address is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Final

from agent.net import addressing, names
from agent.net.driver import FloatingIntent, IPAddress, RouterIntent
from agent.net.elements import Element
from agent.net.netlink_neighbour import Proxy
from agent.net.netlink_route import OF_ROUTER, RouterRoute, route_of
from agent.net.netlink_rule import TABLE_MAIN, PolicyRule
from agent.net.router_entries import peer_address

SINGLE: Final = 32
# Before the main table is looked up as a whole (32766), after that of local addresses.
_NEAR_PRIORITY: Final = 17_000
_FAR_PRIORITY: Final = 17_001
_MARK_PRIORITY: Final = 17_000
_MARK_BITS: Final = (
    0x7FFFFFFF  # nodes differ in the last 17 bits of their addresses (controller/admit/offers.py)
)
_OF_IPV6: Final = 0x80000000


def floating_elements(router: RouterIntent) -> frozenset[Element]:
    """By which uplink the host lets packets to and from an address through."""
    uplink = names.uplink_name(router.uid)
    return frozenset(
        Element("inet", "floating", (uplink, str(one.address)), router.uid) for one in router.floating
    )


def wanted_proxies(router: RouterIntent, links: Mapping[str, int]) -> frozenset[Proxy]:
    """`links`: index by uplink; one that is not there is left out."""
    return frozenset(Proxy(links[one.uplink], one.address) for one in router.floating if one.uplink in links)


def wanted_routes(router: RouterIntent, uplink: int) -> frozenset[RouterRoute]:
    """To the router's namespace, whose uplink's outer end has this index."""
    inside = addressing.uplink_address(router.vni)
    return frozenset(
        RouterRoute(one.address, SINGLE, uplink, inside, protocol=OF_ROUTER) for one in router.floating
    )


def wanted_rules(router: RouterIntent) -> frozenset[PolicyRule]:
    """Where the node knows a way of its own it is taken, but for its default route."""
    uplink = names.uplink_name(router.uid)
    found = set()
    for one in router.floating:
        if one.gateway is not None:
            table = table_of(one.gateway)
            found.add(PolicyRule(_NEAR_PRIORITY, TABLE_MAIN, one.address, uplink, specific_only=True))
            found.add(PolicyRule(_FAR_PRIORITY, table, one.address, uplink))
    return frozenset(found)


def table_of(gateway: IPv4Address) -> int:
    return int(gateway)


def table_routes(one: FloatingIntent, link: int) -> frozenset[RouterRoute]:
    """Of the table of its gateway."""
    near = route_of(one.cidr, link, protocol=OF_ROUTER)
    far = RouterRoute(addressing.ANYWHERE, 0, link, one.gateway, protocol=OF_ROUTER)
    return frozenset((near, far))


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
