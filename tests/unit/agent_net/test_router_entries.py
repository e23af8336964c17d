"""Routes to other nodes: as entries, as digests, and by difference; and routes on the wire."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from hypothesis import given
from hypothesis import strategies as st

from agent.net import external
from agent.net.directory import render_digest
from agent.net.driver import IPAddress, IPNetwork, RemotePort, RouteIntent, RouterDirectory
from agent.net.netlink_neighbour import Neighbour, TunnelEntry
from agent.net.netlink_route import OF_ROUTER, RouterRoute, parse_router_route, route_of, router_route
from agent.net.router_entries import (
    RouterSpot,
    change_of,
    digest_of_router_directory,
    entries_of,
    hash_of,
    key_of,
    peer_address,
    peer_mac,
)
from cumulet.addresses import part_address, part_address6
from tests.unit.agent_net.cases import FEWER, any_addresses, directories

HERE = RouterSpot(3, {"n1": 5, "n2": 6})
THERE = RouterSpot(30, {"n1": 50, "n2": 60})
VTEP = IPv4Address("192.0.2.9")
RANGES: tuple[IPNetwork, ...] = (
    IPv4Network("192.168.0.0/16"),
    IPv4Network("0.0.0.0/0"),
    IPv6Network("2001:db8:ffff::/48"),
)


@st.composite
def router_directories(draw: st.DrawFn) -> RouterDirectory:
    """Of two networks, whose addresses differ, with static routes."""
    first, second = draw(directories()), draw(directories())
    taken = {address for remote in first for address in remote.addresses}
    apart = frozenset(remote for remote in second if taken.isdisjoint(remote.addresses))
    ways = (
        RouteIntent(RANGES[0]),
        RouteIntent(RANGES[0], vtep=VTEP),
        RouteIntent(RANGES[0], None, IPv4Address("10.7.0.9"), "n1"),
    )
    way = draw(st.sampled_from(ways))
    cidrs = draw(st.lists(st.sampled_from(RANGES), unique=True))
    return RouterDirectory((first, apart), tuple(replace(way, cidr=cidr) for cidr in cidrs))


@FEWER
@given(router_directories())
def test_the_digest_is_that_of_what_the_kernel_is_to_hold(directory: RouterDirectory) -> None:
    for spot in (HERE, THERE):
        assert digest_of_router_directory(directory) == render_digest(
            hash_of(entries_of(directory, spot), spot.tunnel)
        )


@FEWER
@given(router_directories(), router_directories())
def test_another_directory_has_another_digest(one: RouterDirectory, other: RouterDirectory) -> None:
    same = entries_of(one, HERE) == entries_of(other, HERE)
    assert (digest_of_router_directory(one) == digest_of_router_directory(other)) == same


@FEWER
@given(router_directories(), router_directories())
def test_the_change_leads_from_one_to_the_other(before: RouterDirectory, after: RouterDirectory) -> None:
    stale, missing = change_of(before, HERE, after, HERE)
    assert entries_of(before, HERE) - stale | missing == entries_of(after, HERE)
    assert not stale & missing


@FEWER
@given(router_directories())
def test_the_kernel_can_hold_all_of_it(directory: RouterDirectory) -> None:
    entries = entries_of(directory, HERE)
    assert len({key_of(entry) for entry in entries}) == len(entries)


def test_one_port_is_a_route_for_each_address_and_a_node_two_entries_and_two_routes() -> None:
    remote = RemotePort("p", "52:54:00:00:00:01", (IPv4Address("10.8.0.5"), IPv6Address("2001:db8::5")), VTEP)
    found = entries_of(RouterDirectory((frozenset({remote}),)), HERE)
    hop = peer_address(VTEP)
    assert found == {
        RouterRoute(IPv4Address("10.8.0.5"), 32, 3, hop),
        RouterRoute(IPv6Address("2001:db8::5"), 128, 3, hop),
        RouterRoute(part_address(VTEP), 32, 3, hop),
        RouterRoute(part_address6(VTEP), 128, 3, hop),
        Neighbour(3, hop, peer_mac(VTEP), True),
        TunnelEntry(3, peer_mac(VTEP), VTEP),
    }


@FEWER
@given(any_addresses, any_addresses, st.integers(1, 1 << 20), st.sampled_from([0, 1000]))
def test_a_route_survives_the_wire(
    destination: IPv4Address | IPv6Address, hop: IPv4Address | IPv6Address, link: int, metric: int
) -> None:
    by_node = peer_address(VTEP) if hop.version != destination.version else hop
    for route in (
        RouterRoute(destination, destination.max_prefixlen, link, by_node, metric),
        RouterRoute(destination, destination.max_prefixlen, 0, None, metric, OF_ROUTER),
        RouterRoute(destination, destination.max_prefixlen, link),
    ):
        assert parse_router_route(router_route(route)) == route


def test_what_the_kernel_made_is_not_a_routers() -> None:
    route = route_of(RANGES[0], 3, protocol=2)
    assert parse_router_route(router_route(route)) is None


@given(st.ip_addresses().filter(lambda vtep: vtep.version == 6 or vtep >= IPv4Address("1.0.0.0")))
def test_the_table_that_leads_back_to_a_node_is_none_of_the_kernels(vtep: IPAddress) -> None:
    """A node fd00::fe made the main table its own: its number was the address's last 32 bits, 254."""
    assert external.mark_of_node(vtep) not in {0, 253, 254, 255}


def test_tables_of_nodes_that_are_accepted_together_differ() -> None:
    first = ip_address("fd00::fe")
    assert external.mark_of_node(first) != external.mark_of_node(first + 1)
    assert external.mark_of_node(first) not in {0, 253, 254, 255}
