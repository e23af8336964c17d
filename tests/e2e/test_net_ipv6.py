"""IPv6 of one node's guests: addresses by themselves, names, the gateway; and what does not get out.

Real kernel, real dnsmasq; guests, the node and the outside are network namespaces.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from agent.net import addressing, names
from agent.net.driver import NetworkIntent, PortIntent
from agent.net.kernel_driver import KernelNet
from agent.net.rtnetlink import Netlink
from cumulet.addresses import link_local_address
from tests.unit.agent_net import probes
from tests.unit.agent_net.lab import Lab, network_intent, open_lab, with_port

CIDR6 = "2001:db8:7::/64"
GATEWAY = "2001:db8:7::1"
FAR = IPv6Address("2001:db8:ffff::1")
TRIALS = 50


@dataclass(frozen=True, slots=True)
class Node:
    lab: Lab
    net: KernelNet

    async def boot(self, port: PortIntent) -> Path:
        guest = await self.lab.plug_guest(port)
        await self.net.ensure_port(port)
        assert await self.lab.has_ipv6(guest, port.addresses[-1])
        return guest


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with open_lab() as lab:
        net = lab.driver()
        yield Node(lab, net)
        await net.close()


async def _two(node: Node, network: NetworkIntent) -> tuple[NetworkIntent, PortIntent, Path, Path]:
    network, web = with_port(network, 5, "web")
    network, db = with_port(network, 6, "db")
    await node.net.ensure_network(network)
    return network, db, await node.boot(web), await node.boot(db)


@pytest.mark.parametrize("cidr", ["10.7.0.0/24", ""], ids=["dual stack", "IPv6 only"])
async def test_a_guest_is_told_its_prefix_names_and_mtu(node: Node, cidr: str) -> None:
    network = replace(network_intent(cidr=cidr, cidr6=CIDR6), mtu=1430)
    network, db, guest, other = await _two(node, network)
    lab = node.lab
    assert (await node.net.observe_net()).networks[network.uid].complete
    assert await lab.ping(guest, db.addresses[-1], tries=2)
    assert await lab.ping(guest, GATEWAY, tries=2)
    assert await lab.inside(guest, partial(probes.ask_name, GATEWAY, "db")) == [str(db.addresses[-1])]
    assert await lab.inside(guest, probes.ask_dhcpv6) == [GATEWAY]
    mtu = await lab.inside(guest, Path("/proc/sys/net/ipv6/conf/eth0/mtu").read_text)
    assert int(mtu) == network.mtu
    assert await lab.ping(other, GATEWAY, tries=2)
    leased = (await node.net.observe_net()).leased  # of guests that never ask for a lease
    assert leased == (frozenset() if cidr else {str(port.addresses[-1]) for port in network.ports})
    ways_out = await lab.run(guest, "ip", "-6", "route", "show", "default")
    assert ways_out.stdout == ""  # its gateway says that it is none


async def test_ipv6_does_not_leave_the_node(node: Node) -> None:
    """Even where the guest makes itself a way; with the node's and the outside's IPv6 ready to carry it."""
    lab = node.lab
    network, _, guest, _ = await _two(node, network_intent(cidr6=CIDR6))
    for namespace, address in ((lab.host, "2001:db8:aaaa::2/64"), (lab.outside, "2001:db8:aaaa::1/64")):
        await lab.run(namespace, "ip", "-6", "address", "add", address, "dev", "eth0", "nodad")
    await lab.run(lab.outside, "ip", "-6", "address", "add", str(FAR), "dev", "lo")
    await lab.run(lab.host, "ip", "-6", "route", "add", "default", "via", "2001:db8:aaaa::1")
    await lab.run(lab.host, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    gateway = link_local_address(addressing.fixed_mac("gateway", network.uid))
    await lab.run(guest, "ip", "-6", "route", "add", "default", "via", str(gateway), "dev", "eth0")
    assert await lab.ping(lab.host, FAR, tries=2)  # the control: the node itself gets there
    ear = await lab.inside(lab.outside, partial(probes.Ear, 7777))
    try:
        send = partial(probes.send_datagrams, str(FAR), 7777, [b"out"] * TRIALS)
        await lab.inside(guest, send)
        assert await asyncio.to_thread(ear.heard) == []
        await lab.inside(lab.host, send)
        assert await asyncio.to_thread(ear.heard) == [b"out"] * TRIALS
    finally:
        ear.close()
    for address in ("2001:db8:aaaa::2", "2001:db8:aaaa::1"):
        assert not await lab.ping(guest, address)


async def test_the_bridge_is_no_way_to_the_node(node: Node) -> None:
    """It holds IPv6 neighbours, so it has IPv6; with a control without our rules."""
    lab = node.lab
    network, _, guest, _ = await _two(node, network_intent(cidr6=CIDR6))
    of_node, mac = "2001:db8:aaaa::2", addressing.fixed_mac("bridge", network.uid)
    await lab.run(lab.host, "ip", "-6", "address", "add", f"{of_node}/64", "dev", "eth0", "nodad")
    await lab.run(guest, "ip", "-6", "route", "add", of_node, "dev", "eth0")
    assert not await lab.ping(guest, of_node)  # nobody says where that is
    await lab.run(guest, "ip", "-6", "neigh", "replace", of_node, "lladdr", mac, "dev", "eth0")
    ear = await lab.inside(lab.host, partial(probes.Ear, 7777))
    try:
        send = partial(probes.send_datagrams, of_node, 7777, [b"in"] * TRIALS)
        await lab.inside(guest, send)
        assert await asyncio.to_thread(ear.heard) == []
        await lab.run(lab.host, "nft", "flush", "ruleset")
        await lab.inside(guest, send)
        assert await asyncio.to_thread(ear.heard) == [b"in"] * TRIALS
    finally:
        ear.close()


async def test_lost_gateway_addresses_are_noticed_and_put_back(node: Node) -> None:
    network, _, guest, _ = await _two(node, network_intent(cidr6=CIDR6))
    inner = node.lab.namespace_of(network)
    gateway = names.inner_gateway_name(network.uid)
    damages = (
        partial(_without_ipv6, gateway, None),
        partial(_without_ipv6, gateway, GATEWAY),
        partial(_bounce, gateway),
    )
    for damage in damages:
        await node.lab.inside(inner, damage)
        assert not (await node.net.observe_net()).networks[network.uid].complete
        await node.net.ensure_network(network)
        assert (await node.net.observe_net()).networks[network.uid].complete
        assert await node.lab.ping(guest, GATEWAY, tries=3)


def _without_ipv6(name: str, address: str | None) -> None:
    """One address, or all of them."""
    with Netlink() as netlink:
        link = netlink.find_link(name)
        assert link is not None
        for one in netlink.addresses():
            if one.link == link.index and one.address.version == 6 and address in (None, str(one.address)):
                netlink.delete_address(one)


def _bounce(name: str) -> None:
    """A link that was down for a moment has lost its IPv6 addresses."""
    with Netlink() as netlink:
        link = netlink.find_link(name)
        assert link is not None
        netlink.change_link(link.index, up=False)
        netlink.change_link(link.index, up=True)
