"""Judges what was gathered of routers from the kernel: is a router complete, what leads to other nodes.

**Pure**: views in, observations out; see kernel_judge.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.net import addressing, guard_rules, names, router_entries
from agent.net.addressing import ROUTER_TUNNEL_LINK, router_uplink_pair
from agent.net.directory import render_digest
from agent.net.driver import IPAddress, RouterIntent
from agent.net.kernel_external import external_fits
from agent.net.kernel_judge import HostView, Item, NamespaceView, uplink_fits
from agent.net.netlink_route import RouterRoute
from agent.net.router_program import own_routes, router_elements, wanted_tunnel
from agent.net.router_state import RouterRecord


@dataclass(frozen=True, slots=True)
class RouterView:
    """What there is of one router. `program` is the digest of what its record's intent compiles to.

    `routes` are its own and foreign ones; `hash` is that of what leads to other nodes, which are `vteps`.
    `returns` says that the ways back by those who answer for addresses of the outside are there,
    `passes_ipv6` that IPv6 gets to the node where it is to.
    """

    uid: str
    record: RouterRecord | None
    program: str
    namespace: NamespaceView | None
    joins: bool
    balances: bool
    routes: frozenset[RouterRoute]
    hash: int
    vteps: frozenset[IPAddress]
    returns: bool = True
    passes_ipv6: bool = True


def router_digests(host: HostView, routers: tuple[RouterView, ...]) -> dict[str, str]:
    """Of the intent that is programmed completely; else empty."""
    return {
        router.uid: router.record.digest if router.record is not None and _is_complete(host, router) else ""
        for router in routers
    }


def directory_digests(host: HostView, routers: tuple[RouterView, ...]) -> Iterator[tuple[str, str]]:
    """Of the routers that routes can be set in. The nodes that may send are part of it."""
    for router in routers:
        if router.record is None or router.namespace is None:
            continue
        wanted = guard_rules.peer_elements(router.uid, router.record.intent.vni, router.vteps)
        is_filtered = wanted == set(filter(guard_rules.is_peer, host.tables.of_network(router.uid)))
        digest = render_digest(router.hash)
        yield router.uid, digest if is_filtered else f"{digest}, but others may send or peers may not"


def router_items(routers: tuple[RouterView, ...]) -> Iterator[Item]:
    for router in routers:
        if router.namespace is not None:
            yield ("router-namespace", names.namespace_name(router.uid), router.uid)
            if ROUTER_TUNNEL_LINK in router.namespace.links.links:
                yield ("tunnel", ROUTER_TUNNEL_LINK, router.uid)


def _is_complete(host: HostView, router: RouterView) -> bool:
    record, namespace = router.record, router.namespace
    return (
        record is not None
        and namespace is not None
        and host.is_sound
        and record.program == router.program
        and router.joins
        and router.balances
        and namespace.rules == record.rules
        and router_elements(record.intent, host.underlay) <= host.tables.elements
        and _links_fit(host, namespace, record.intent)
        and _routes_fit(namespace, router)
        and router.returns
        and router.passes_ipv6
        and _external_fits(host, record.intent)
    )


def _external_fits(host: HostView, router: RouterIntent) -> bool:
    uplink = host.links.links[names.uplink_name(router.uid)]
    return external_fits(host.external, host.links.routes, router, uplink.index)


def _links_fit(host: HostView, namespace: NamespaceView, router: RouterIntent) -> bool:
    pair = router_uplink_pair(router.uid)
    inner = namespace.links.links.get(pair.inner)
    return (
        uplink_fits(host, pair, router.uid, router.vni)
        and inner is not None
        and (inner.up, inner.mac) == (True, pair.inner_mac)
        and namespace.links.addresses_of(inner.name) == {(addressing.uplink_address(router.vni), 32)}
        and _tunnel_fits(host, namespace, router)
    )


def _tunnel_fits(host: HostView, namespace: NamespaceView, router: RouterIntent) -> bool:
    wanted, tunnel = wanted_tunnel(router, host.underlay), namespace.links.links.get(ROUTER_TUNNEL_LINK)
    if wanted is None or tunnel is None:
        return wanted is None and tunnel is None
    mac = router_entries.peer_mac(wanted.local)
    return (tunnel.tunnel, tunnel.up, tunnel.mac, tunnel.mtu) == (wanted, True, mac, router.mtu)


def _routes_fit(namespace: NamespaceView, router: RouterView) -> bool:
    way_out = namespace.links.links.get(addressing.UPLINK_LINK)
    assert router.record is not None
    return way_out is not None and router.routes == own_routes(router.record.intent, way_out.index)
