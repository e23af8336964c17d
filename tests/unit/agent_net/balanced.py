"""A router on three nodes with a load balancer in red, and guests that are its clients and members.

**Edge**: namespaces and links through labs. Members answer with their own names.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from agent.net.balancer import BalancerIntent, HealthIntent, ListenerIntent, MemberIntent
from agent.net.driver import IPAddress, RouterIntent
from tests.support import echo
from tests.unit.agent_net.lab import network_intent, new_uid, with_port
from tests.unit.agent_net.neighbours import boot
from tests.unit.agent_net.routed import BLUE, PORT, RED, Site
from tests.unit.agent_net.span import open_cloud

VIPS: Final[Mapping[int, IPAddress]] = {4: IPv4Address("10.7.0.200"), 6: IPv6Address("2001:db8:7::c8")}
VIP_PORT: Final = 80
TCP, UDP = 6, 17
_KINDS: Final = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}


def balancer(
    *members: MemberIntent, by_source: bool = False, health: HealthIntent | None = None, version: int = 4
) -> BalancerIntent:
    """Of the members' IP version; without any, of this one."""
    version = members[0].address.version if members else version
    listeners = (ListenerIntent(TCP, VIP_PORT), ListenerIntent(UDP, VIP_PORT))
    return BalancerIntent(new_uid(), "lb", VIPS[version], listeners, by_source, members, health)


def member(site: Site, hostname: str, version: int = 4, *, drain: bool = False) -> MemberIntent:
    found = site.at(hostname)[1].addresses
    address = next(one for one in found if one.version == version)
    return MemberIntent(address, PORT, drain, PORT)


def members(site: Site, *hostnames: str, version: int = 4) -> tuple[MemberIntent, ...]:
    return tuple(member(site, hostname, version) for hostname in hostnames)


async def balance(site: Site, *wanted: BalancerIntent) -> None:
    site.router = replace(site.router, balancers=wanted)
    await site.apply()
    await site.check()


async def asks(
    site: Site,
    source: str,
    times: int = 1,
    protocol: int = TCP,
    port: int = VIP_PORT,
    vip: IPAddress | None = None,
) -> Counter[str]:
    """Who answered so many new connections of a guest to an address, by default the only balancer's; "" for
    nobody."""
    guest, target = site.guests[source], str(vip or site.router.balancers[0].address)

    def ask() -> Counter[str]:
        return Counter(echo.responders(_KINDS[protocol], target, port, times))

    return await guest.lab.inside(guest.namespace, ask)


@asynccontextmanager
async def answering(site: Site, *hostnames: str) -> AsyncIterator[None]:
    """These guests answer with their names."""
    with contextlib.ExitStack() as stack:
        for hostname in hostnames:
            guest = site.guests[hostname]
            enter = partial(stack.enter_context, echo.echoing([PORT], hostname))
            await guest.lab.inside(guest.namespace, enter)
        try:
            yield
        finally:
            await asyncio.to_thread(stack.close)


@asynccontextmanager
async def open_balanced(count: int = 3) -> AsyncIterator[Site]:
    """On node N are redN and blueN; on the first one also red11. The balancer is in red."""
    async with open_cloud(count) as cloud:
        router = RouterIntent(new_uid(), 99, tuple(map(ip_network, (*RED, *BLUE))), True)
        red = replace(network_intent(7, *RED), router_uid=router.uid)
        blue = replace(network_intent(8, *BLUE), router_uid=router.uid)
        site = Site(cloud, router, red, blue)
        for number, node in enumerate(cloud.nodes, start=1):
            site.placed.append((node, with_port(red, 10 + number, f"red{number}")[1]))
            site.placed.append((node, with_port(blue, 20 + number, f"blue{number}")[1]))
        site.placed.append((cloud.nodes[0], with_port(red, 31, "red11")[1]))
        await site.apply()
        for node, port in site.placed:
            network = red if port.network_uid == red.uid else blue
            site.guests[port.hostname] = await boot(node.lab, node.net, network, port)
        yield site
