"""What a router's part knows of other nodes, as entries of its namespace, and compared by digest.

**Pure.** A port on another node is one route for each of its addresses, more specific than its subnet's, to
that node; a node is one neighbour and one entry of the tunnel. So what is routed between nodes goes there and
back by the same way, whichever of the two networks is on which node, and connection tracking sees both
directions. The digest is the exclusive or of the entries' hashes, as that of a directory (directory.py).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from agent.net.addressing import fixed_mac
from agent.net.directory import render_digest
from agent.net.driver import IPAddress, RemotePort, RouteIntent, RouterDirectory
from agent.net.netlink_neighbour import Neighbour, TunnelEntry
from agent.net.netlink_route import RouterRoute, route_of
from agent.net.summed import count_over, hash_over
from cumulet.addresses import link_local_address, part_address, part_address6

RouterEntry = RouterRoute | Neighbour | TunnelEntry
_NOWHERE: Final = 0
_TUNNEL: Final = 1  # in digests: indexes of links differ from boot to boot
_GATEWAY: Final = 2


@dataclass(frozen=True, slots=True)
class RouterSpot:
    """Indexes of the links in a router's namespace: its tunnel, 0 for none, and gateways by network."""

    tunnel: int
    gateways: Mapping[str, int]


@functools.lru_cache(maxsize=1 << 12)  # nodes
def peer_mac(vtep: IPAddress) -> str:
    """Of a node's end of every router's tunnel."""
    return fixed_mac("node", str(vtep))


@functools.lru_cache(maxsize=1 << 12)
def peer_address(vtep: IPAddress) -> IPv6Address:
    """The next hop that stands for a node, for both IP versions."""
    return link_local_address(peer_mac(vtep))


def entries_of(directory: RouterDirectory, spot: RouterSpot) -> set[RouterEntry]:
    """With the nodes' own entries."""
    routes = {route for remotes in directory.remotes for route in routes_to(remotes, spot.tunnel)}
    return routes | _few_entries(directory, spot)


def change_of(
    before: RouterDirectory, spot_before: RouterSpot, after: RouterDirectory, spot: RouterSpot
) -> tuple[set[RouterEntry], set[RouterEntry]]:
    """(too many, missing) entries. It costs what differs, not what there is."""
    old, new = set(before.remotes) - set(after.remotes), set(after.remotes) - set(before.remotes)
    gone = frozenset[RemotePort]().union(*old).difference(*new)
    come = frozenset[RemotePort]().union(*new).difference(*old)
    present = set(routes_to(gone, spot.tunnel)) | _few_entries(before, spot_before)
    wanted = set(routes_to(come, spot.tunnel)) | _few_entries(after, spot)
    return present - wanted, wanted - present


def _few_entries(directory: RouterDirectory, spot: RouterSpot) -> set[RouterEntry]:
    """Of nodes and static routes."""
    static = {_static_route(route, spot) for route in directory.routes}
    return {*static, *peer_entries(vteps_of(directory), spot.tunnel)}


def routes_to(remotes: Iterable[RemotePort], tunnel: int) -> Iterator[RouterRoute]:
    for remote in remotes:
        for address in remote.addresses:
            yield RouterRoute(address, address.max_prefixlen, tunnel, peer_address(remote.vtep))


def peer_entries(vteps: Iterable[IPAddress], tunnel: int) -> Iterator[RouterEntry]:
    """Of a node: how its part is reached, and the addresses that it asks members of load balancers from."""
    for vtep in vteps:
        for part in (part_address(vtep), part_address6(vtep)):
            yield RouterRoute(part, part.max_prefixlen, tunnel, peer_address(vtep))
        yield Neighbour(tunnel, peer_address(vtep), peer_mac(vtep), True)
        yield TunnelEntry(tunnel, peer_mac(vtep), vtep)


def vteps_of(directory: RouterDirectory) -> frozenset[IPAddress]:
    """Nodes that anything leads to."""
    by_routes = {route.vtep for route in directory.routes if route.vtep is not None}
    return frozenset(by_routes).union(*(count_over(remotes, _vtep_of) for remotes in directory.remotes))


def digest_of_router_directory(directory: RouterDirectory) -> str:
    """A look costs networks and nodes, not ports."""
    total = hash_of((_static_route(route, _NEUTRAL) for route in directory.routes), _TUNNEL)
    for remotes in directory.remotes:
        total ^= hash_over(remotes, _hash_of_port)
    for vtep in vteps_of(directory):
        total ^= _hash_of_peer(vtep)
    return render_digest(total)


def hash_of(entries: Iterable[RouterEntry], tunnel: int) -> int:
    total = 0
    for entry in entries:
        total ^= _hash(entry, tunnel)
    return total


def key_of(entry: RouterEntry) -> tuple[object, ...]:
    """What the kernel holds one of."""
    if isinstance(entry, RouterRoute):
        return ("route", entry.destination, entry.prefix_length, entry.metric)
    if isinstance(entry, TunnelEntry):
        return ("tunnel", entry.mac)
    return ("neighbour", entry.address)


class _AnyGateway(dict[str, int]):
    """For digests, every gateway's link is the same."""

    def __missing__(self, network_uid: str) -> int:
        return _GATEWAY


_NEUTRAL: Final = RouterSpot(_TUNNEL, _AnyGateway())


def _static_route(route: RouteIntent, spot: RouterSpot) -> RouterRoute:
    if route.vtep is not None:
        return route_of(route.cidr, spot.tunnel, peer_address(route.vtep))
    if route.next_hop is not None:
        return route_of(route.cidr, spot.gateways[route.network_uid], route.next_hop)
    return route_of(route.cidr)


def _vtep_of(remote: RemotePort) -> IPAddress:
    return remote.vtep


def _hash_of_port(remote: RemotePort) -> int:
    return hash_of(routes_to((remote,), _TUNNEL), _TUNNEL)


@functools.lru_cache(maxsize=1 << 12)
def _hash_of_peer(vtep: IPAddress) -> int:
    return hash_of(peer_entries((vtep,), _TUNNEL), _TUNNEL)


def _hash(entry: RouterEntry, tunnel: int) -> int:
    if isinstance(entry, RouterRoute):
        link = _TUNNEL if entry.link == tunnel and entry.link else _GATEWAY if entry.link else _NOWHERE
        where = f"{entry.destination}/{entry.prefix_length} {entry.metric} {entry.protocol}"
        text = f"route {where} {entry.next_hop} {link}"
    elif isinstance(entry, TunnelEntry):
        text = f"tunnel {entry.mac} {entry.vtep}"
    else:
        text = f"neighbour {entry.address} {entry.mac} {entry.permanent}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
