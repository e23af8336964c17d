"""Distributed routers: what their parts on the nodes carry, and what leaves by none of them.

Real kernel, real tunnels; nodes, guests and the underlay between them are network namespaces.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from agent.net.driver import (
    IPAddress,
    NetworkIntent,
    PortIntent,
    RemotePort,
    RouterDirectory,
    RouterIntent,
    digest_of,
)
from agent.net.router_entries import digest_of_router_directory
from tests.unit.agent_net.lab import network_intent, new_uid, with_port
from tests.unit.agent_net.span import Cloud, Node, open_cloud, remotes_of

PORT = 7777
RED, BLUE = ("10.7.0.0/24", "2001:db8:7::/64"), ("10.8.0.0/24", "2001:db8:8::/64")


@dataclass(slots=True)
class Site:
    """A router over two networks, with a guest of each on each of two nodes: all placements there are."""

    cloud: Cloud
    router: RouterIntent
    red: NetworkIntent
    blue: NetworkIntent
    placed: list[tuple[Node, PortIntent]] = field(default_factory=list)
    guests: dict[str, Path] = field(default_factory=dict)

    def port(self, hostname: str) -> tuple[Node, PortIntent]:
        return next((node, port) for node, port in self.placed if port.hostname == hostname)

    def networks_on(self, node: Node) -> list[NetworkIntent]:
        """With their ports there; those without any are not on the node."""
        found = []
        for network in (self.red, self.blue):
            own = tuple(port for on, port in self.placed if on is node and port.network_uid == network.uid)
            if own:
                found.append(replace(network, ports=own))
        return found

    def directory(self, node: Node) -> RouterDirectory:
        joined = [one for one in (self.red, self.blue) if one.router_uid]
        return RouterDirectory(tuple(self.remotes(node, network) for network in joined))

    def remotes(self, node: Node, network: NetworkIntent) -> frozenset[RemotePort]:
        return remotes_of(
            (on.address, port)
            for on, port in self.placed
            if on is not node and port.network_uid == network.uid
        )

    async def apply(self) -> None:
        """One round of every agent."""
        for node in self.cloud.nodes:
            await self.apply_on(node)

    async def apply_on(self, node: Node) -> None:
        networks = self.networks_on(node)
        is_routed = any(network.router_uid for network in networks)
        if is_routed:
            await node.net.ensure_router(self.router)
        for network in networks:
            await node.net.ensure_network(network)
            await node.net.ensure_directory(network.uid, self.remotes(node, network))
        if is_routed:
            await node.net.ensure_router_directory(self.router.uid, self.directory(node))
        else:
            await node.net.ensure_router_absent(self.router.uid)

    async def check(self) -> None:
        """Every node is as it was told to be."""
        for node in self.cloud.nodes:
            seen = await node.net.observe_net()
            networks = self.networks_on(node)
            assert {uid: one.complete for uid, one in seen.networks.items()} == {
                network.uid: True for network in networks
            }
            routed = any(network.router_uid for network in networks)
            assert seen.routers == ({self.router.uid: digest_of(self.router)} if routed else {})
            wanted = {self.router.uid: digest_of_router_directory(self.directory(node))} if routed else {}
            assert seen.router_directories == wanted

    async def ping(self, source: str, target: IPAddress | str, tries: int = 1) -> bool:
        node, port = self.port(source)
        return await node.lab.ping(self.guests[port.uid], target, tries)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with open_cloud(2) as cloud:
        yield await _site(cloud)


async def _site(cloud: Cloud) -> Site:
    cidrs = (*RED, *BLUE)
    router = RouterIntent(new_uid(), 99, tuple(map(ip_network, cidrs)), True)
    red = replace(network_intent(7, *RED), router_uid=router.uid)
    blue = replace(network_intent(8, *BLUE), router_uid=router.uid)
    site = Site(cloud, router, red, blue)
    first, second = cloud.nodes
    for number, (node, network, name) in enumerate(
        ((first, red, "red1"), (second, red, "red2"), (first, blue, "blue1"), (second, blue, "blue2")),
        start=5,
    ):
        site.placed.append((node, with_port(network, number, name)[1]))
    await site.apply()
    for node, port in site.placed:
        site.guests[port.uid] = await node.boot(port)
    for node, port in site.placed:
        guest = site.guests[port.uid]
        assert await node.lab.dhcp(guest) is not None
        assert await node.lab.has_ipv6(guest, port.addresses[1])
    return site


PLACEMENTS = {
    "same node": ("red1", "blue1"),
    "other node": ("red1", "blue2"),
    "and back": ("blue2", "red1"),
    "other network's node": ("red2", "blue1"),
    "same network, other node": ("red1", "red2"),
}


async def test_all_placements(site: Site) -> None:
    await site.check()
    for name, (source, target) in PLACEMENTS.items():
        for address in site.port(target)[1].addresses:
            assert await site.ping(source, address, tries=3), (name, address)
