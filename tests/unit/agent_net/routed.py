"""A router over two networks on two nodes, with a guest of each network on each node.

**Edge**: namespaces and links through labs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv6Address, ip_network
from pathlib import Path

from agent.net import names, nft
from agent.net.balancer import answered_in
from agent.net.driver import (
    FloatingIntent,
    IPAddress,
    NetworkIntent,
    PortIntent,
    RemotePort,
    RoutedIntent,
    RouteIntent,
    RouterDirectory,
    RouterIntent,
    digest_of,
)
from agent.net.router_entries import digest_of_router_directory
from tests.unit.agent_net import probes, talk
from tests.unit.agent_net.lab import OUTSIDE_ADDRESS, Lab, network_intent, new_uid, with_port
from tests.unit.agent_net.neighbours import Guest, boot
from tests.unit.agent_net.span import Cloud, Node, open_cloud, remotes_of

PORT = 7777
OUTSIDE_PORT = 8080
_ADVERTISEMENT_TRIES = 150  # a new server announces itself within five seconds, and again soon
_ADVERTISEMENT_AGAIN_S = 0.1
RED, BLUE = ("10.7.0.0/24", "2001:db8:7::/64"), ("10.8.0.0/24", "2001:db8:8::/64")


@dataclass(slots=True)
class Site:
    """`placed` says which port is where, `static` which routes each node has. `apply` makes it so.

    `floating` and `announcers`: what a node has to do with the outside; `routed`: subnets that are the
    outside's, too, of whose ports each node answers for its own. `dhcp`: guests ask
    for their addresses and hear of IPv6 routers, which takes seconds; else they have both at once.
    """

    cloud: Cloud
    router: RouterIntent
    red: NetworkIntent
    blue: NetworkIntent
    placed: list[tuple[Node, PortIntent]] = field(default_factory=list)
    static: dict[IPAddress, tuple[RouteIntent, ...]] = field(default_factory=dict)
    floating: dict[IPAddress, tuple[FloatingIntent, ...]] = field(default_factory=dict)
    announcers: dict[IPAddress, tuple[IPAddress, ...]] = field(default_factory=dict)
    routed: tuple[RoutedIntent, ...] = ()
    guests: dict[str, Guest] = field(default_factory=dict)  # by host name
    dhcp: bool = False

    def router_on(self, node: Node) -> RouterIntent:
        """The router's part on a node."""
        floating, announcers = self.floating.get(node.address, ()), self.announcers.get(node.address, ())
        here = {one.address for one in floating}
        ours = [address for on, port in self.placed if on is node for address in port.addresses]
        routed = tuple(
            replace(one, addresses=tuple(sorted(found)))
            for one in self.routed
            if (found := [own for own in ours if isinstance(own, IPv6Address) and own in one.subnet])
        )
        balancers = tuple(
            replace(one, outside=tuple(address for address in one.outside if address in here))
            for one in self.router.balancers
        )
        return replace(
            self.router, floating=floating, announcers=announcers, balancers=balancers, routed=routed
        )

    def at(self, hostname: str) -> tuple[Node, PortIntent]:
        return next((node, port) for node, port in self.placed if port.hostname == hostname)

    def namespace(self, node: Node) -> Path:
        """The router's part on a node."""
        return node.lab.netns_dir / names.namespace_name(self.router.uid)

    def networks_on(self, node: Node) -> list[NetworkIntent]:
        """With their ports there; those without any are not on the node."""
        found = []
        for network in (self.red, self.blue):
            here = [port for on, port in self.placed if on is node and port.network_uid == network.uid]
            if here:
                balancers = self.router.balancers if network.router_uid else ()
                answered = answered_in((subnet.cidr for subnet in network.subnets), balancers)
                found.append(replace(network, ports=tuple(here), answered=answered))
        return found

    def remotes(self, node: Node, network: NetworkIntent) -> frozenset[RemotePort]:
        places = ((on.address, port) for on, port in self.placed if port.network_uid == network.uid)
        return remotes_of((vtep, port) for vtep, port in places if vtep != node.address)

    def directory(self, node: Node) -> RouterDirectory:
        joined = [one for one in (self.red, self.blue) if one.router_uid]
        remotes = tuple(self.remotes(node, network) for network in joined)
        return RouterDirectory(remotes, self.static.get(node.address, ()))

    async def apply(self) -> None:
        """One round of every agent."""
        for node in self.cloud.nodes:
            await self.apply_on(node)

    async def apply_on(self, node: Node) -> None:
        networks = self.networks_on(node)
        joins = any(network.router_uid for network in networks)
        if joins:
            await node.net.ensure_router(self.router_on(node))
        for network in networks:
            await node.net.ensure_network(network)
            await node.net.ensure_directory(network.uid, self.remotes(node, network))
        for uid in (await node.net.observe_net()).networks.keys() - {one.uid for one in networks}:
            await node.net.ensure_network_absent(uid)
        if joins:
            await node.net.ensure_router_directory(self.router.uid, self.directory(node))
        else:
            await node.net.ensure_router_absent(self.router.uid)

    async def check(self) -> None:
        """Every node is as it was told to be."""
        for node in self.cloud.nodes:
            seen, networks = await node.net.observe_net(), self.networks_on(node)
            complete = {uid: one.complete for uid, one in seen.networks.items()}
            assert complete == {network.uid: True for network in networks}
            joins = any(network.router_uid for network in networks)
            assert seen.routers == ({self.router.uid: digest_of(self.router_on(node))} if joins else {})
            assert seen.announced == (set(self.router_on(node).answered) if joins else set())
            wanted = {self.router.uid: digest_of_router_directory(self.directory(node))} if joins else {}
            assert seen.router_directories == wanted

    async def boot(self, hostname: str) -> None:
        node, port = self.at(hostname)
        if not self.dhcp:
            network = self.red if port.network_uid == self.red.uid else self.blue
            self.guests[hostname] = await boot(node.lab, node.net, network, port)
            return
        self.guests[hostname] = guest = Guest(node.lab, port, await node.boot(port))
        assert await node.lab.dhcp(guest.namespace) is not None
        assert await node.lab.has_ipv6(guest.namespace, guest.address(6))

    async def ping(self, source: str, target: object, tries: int = 1) -> bool:
        guest = self.guests[source]
        return await guest.lab.ping(guest.namespace, target, tries)

    async def settles(self, *, routed: bool) -> None:
        """Red's guests have heard whether their gateway leads to other IPv6 networks."""
        for hostname in ("red1", "red2"):
            guest = self.guests[hostname]
            assert await hears_of_way(guest.lab, guest.namespace, routed=routed)

    async def connects(self, source: str, target: str, version: int, times: int = 1) -> int:
        """How many TCP connections to the other's echo were answered."""
        one, other = self.guests[source], self.guests[target]
        async with other.echoing(PORT):
            return sum([await one.reaches(other, "tcp", PORT, version) for _ in range(times)])

    async def deliver(self, source: str, target: str, version: int, payloads: list[bytes]) -> list[bytes]:
        """Datagrams, never in fragments, that arrive."""
        one, other = self.guests[source], self.guests[target]
        ear = await other.lab.inside(other.namespace, partial(probes.Ear, PORT))
        try:
            send = partial(probes.send_datagrams, other.address(version), PORT, payloads, whole=True)
            await one.lab.inside(one.namespace, send)
            return await asyncio.to_thread(ear.heard)
        finally:
            ear.close()

    async def outside_sees(self, source: str) -> str:
        """The address under which the outside sees a guest; empty when it does not."""
        guest = self.guests[source]
        enter = probes.listening([OUTSIDE_PORT])
        await guest.lab.inside(guest.lab.outside, enter.__enter__)
        try:
            ask = partial(probes.who_am_i, str(OUTSIDE_ADDRESS), OUTSIDE_PORT)
            return await guest.lab.inside(guest.namespace, ask)
        finally:
            await asyncio.to_thread(enter.__exit__, None, None, None)

    async def invalid(self, node: Node) -> int:
        """Packets that the router's part on a node took for part of no connection."""
        listing = await node.lab.inside(
            self.namespace(node), lambda: nft.list_tables((("inet", "cumulet"),))["nftables"]
        )
        rules = [item["rule"]["expr"] for item in listing if "rule" in item]
        found = [rule for rule in rules if rule[0].get("match", {}).get("right") == "invalid"]
        assert found
        return sum(part["counter"]["packets"] for rule in found for part in rule if "counter" in part)

    @asynccontextmanager
    async def leaving(self, node: Node) -> AsyncIterator[list[bytes]]:
        """What reached the outside of a node while the block ran; the list is filled when it ends."""
        seen: list[bytes] = []
        ear = await node.lab.inside(node.lab.outside, probes.Ear)
        try:
            yield seen
            seen += await asyncio.to_thread(ear.heard)
        finally:
            ear.close()

    @asynccontextmanager
    async def conversation(self, source: str, target: str, version: int) -> AsyncIterator[talk.Talk]:
        """One connection that was open before the block."""
        async with self.guests[target].echoing(PORT):
            made = await self.guests[source].begin(self.guests[target], "tcp", PORT, version)
            assert made.goes_on()
            try:
                yield made
            finally:
                made.close()


async def hears_of_way(lab: Lab, guest: Path, *, routed: bool) -> bool:
    """A router advertisement gave the guest an IPv6 default route, or took it away."""
    for _ in range(_ADVERTISEMENT_TRIES):
        shown = await lab.run(guest, "ip", "-6", "route", "show", "default")
        if bool(shown.stdout) == routed:
            return True
        await asyncio.sleep(_ADVERTISEMENT_AGAIN_S)
    return False


@asynccontextmanager
async def open_site(
    *, dhcp: bool = False, red_ranges: tuple[str, str] = RED, blue_ranges: tuple[str, str] = BLUE
) -> AsyncIterator[Site]:
    """red1 and blue1 are on the first node, red2 and blue2 on the second."""
    async with open_cloud(2) as cloud:
        router = RouterIntent(new_uid(), 99, tuple(map(ip_network, (*red_ranges, *blue_ranges))), True)
        red = replace(network_intent(7, *red_ranges), router_uid=router.uid)
        blue = replace(network_intent(8, *blue_ranges), router_uid=router.uid)
        site = Site(cloud, router, red, blue, dhcp=dhcp)
        for number, node in enumerate(cloud.nodes, start=1):
            site.placed.append((node, with_port(red, 10 + number, f"red{number}")[1]))
            site.placed.append((node, with_port(blue, 20 + number, f"blue{number}")[1]))
        await site.apply()
        for hostname in [port.hostname for _, port in site.placed]:
            await site.boot(hostname)
        yield site
