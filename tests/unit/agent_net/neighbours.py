"""Guests with fixed addresses on one node, and groups for them.

**Edge**: namespaces and links through a lab.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path

from agent.net.driver import GroupIntent, NetworkIntent, PortIntent, RuleIntent
from agent.net.kernel_driver import KernelNet
from agent.net.netlink_ip import Address
from agent.net.rtnetlink import Netlink
from tests.support import echo
from tests.unit.agent_net import talk
from tests.unit.agent_net.lab import Lab, new_uid

_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
PROTOCOLS = {"any": 0, "tcp": _TCP, "udp": _UDP, "icmp": _ICMP, "icmpv6": _ICMPV6}


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest behind its port."""

    lab: Lab
    port: PortIntent
    namespace: Path

    def address(self, version: int = 4) -> str:
        return next(str(one) for one in self.port.addresses if one.version == version)

    async def reaches(self, other: Guest, kind: str, port: int, version: int = 4, own_port: int = 0) -> bool:
        """Whether the other guest's echo answers; `kind` is tcp or udp."""
        work = partial(talk.talks, kind, other.address(version), port, own_port)
        return await self.lab.inside(self.namespace, work)

    async def pings(self, other: Guest | str, version: int = 4) -> bool:
        target = other if isinstance(other, str) else other.address(version)
        return await self.lab.ping(self.namespace, target)

    async def begin(self, other: Guest, kind: str, port: int, version: int = 4) -> talk.Talk:
        work = partial(talk.Talk, kind, other.address(version), port)
        return await self.lab.inside(self.namespace, work)

    @asynccontextmanager
    async def echoing(self, *ports: int) -> AsyncIterator[None]:
        stack = contextlib.ExitStack()

        def enter() -> None:
            stack.enter_context(echo.echoing(ports))

        await self.lab.inside(self.namespace, enter)
        try:
            yield
        finally:
            await asyncio.to_thread(stack.close)


def group(*rules: RuleIntent, members: Iterable[str] = (), uid: str = "") -> GroupIntent:
    return GroupIntent(uid or new_uid(), rules, frozenset(map(ip_address, members)))


def rule(
    way: str,
    protocol: str = "any",
    ports: tuple[int, int] = (0, 0),
    *,
    version: int = 4,
    cidr: str = "",
    remote: str = "",
    icmp: tuple[int | None, int | None] = (None, None),
) -> RuleIntent:
    """One rule; `way` is in or out."""
    return RuleIntent(
        uid=new_uid(),
        egress=way == "out",
        ip_version=version,
        protocol=PROTOCOLS[protocol],
        port_min=ports[0],
        port_max=ports[1],
        icmp_type=icmp[0],
        icmp_code=icmp[1],
        remote_cidr=ip_network(cidr) if cidr else None,
        remote_group=remote,
    )


def all_out() -> tuple[RuleIntent, RuleIntent]:
    """What a default group lets out."""
    return rule("out"), rule("out", version=6)


def in_groups(port: PortIntent, *groups: str) -> PortIntent:
    return replace(port, security_groups=groups)


def with_ports(network: NetworkIntent, *ports: PortIntent) -> NetworkIntent:
    return replace(network, ports=tuple(sorted(ports, key=lambda one: one.uid)))


async def boot(lab: Lab, net: KernelNet, network: NetworkIntent, port: PortIntent) -> Guest:
    """A guest with the port's addresses, and the gateways as its routers. The network must be there."""
    namespace = await lab.plug_guest(port)
    await lab.inside(namespace, partial(_configure, network, port))
    await net.ensure_port(port)
    for subnet in network.subnets:
        family = f"-{subnet.gateway.version}"
        await lab.run(namespace, "ip", family, "route", "replace", "default", "via", str(subnet.gateway))
    return Guest(lab, port, namespace)


def _configure(network: NetworkIntent, port: PortIntent) -> None:
    """Without duplicate address detection, which would take a second."""
    Path("/proc/sys/net/ipv6/conf/eth0/accept_dad").write_text("0")
    lengths = {
        address: subnet.cidr.prefixlen
        for subnet in network.subnets
        for address in port.addresses
        if address in subnet.cidr
    }
    with Netlink() as netlink:
        link = netlink.find_link("eth0")
        assert link is not None
        for address, length in lengths.items():
            netlink.ensure_address(Address(link.index, address, length))
