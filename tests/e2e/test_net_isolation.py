"""Guests' packets on one node: what arrives, and what must not.

Real kernel, real dnsmasq, real nft; guests, the node and the outside are network namespaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from agent.net import addressing, names, netns, nft, ruleset, sysctl
from agent.net.driver import NetworkIntent, PortIntent
from agent.net.elements import TABLE
from agent.net.kernel_driver import KernelNet
from agent.net.kernel_host import node_resolvers
from agent.net.netlink_ip import Address
from agent.net.netlink_link import BridgePort
from agent.net.netlink_neighbour import PortEntry, payload_of
from agent.net.rtnetlink import EntryChange, Netlink
from tests.unit.agent_net import probes
from tests.unit.agent_net.lab import (
    HOST_ADDRESS,
    OUTSIDE_ADDRESS,
    Lab,
    network_intent,
    new_uid,
    open_lab,
    with_port,
)

ECHO_PORT = 7777
SCANNED = (*range(1, 1025), 2379, 5000, 7777, 8080, 9090, 16509)
HOST_LISTENS = (22, 80, 443, 2379, 5000, 16509)
HOST_UDP = (123, 161, 5353)
HOST_OTHER_ADDRESS = IPv4Address("198.51.100.7")


@dataclass(frozen=True, slots=True)
class Node:
    lab: Lab
    net: KernelNet

    async def boot(self, network: NetworkIntent, port: PortIntent) -> Path:
        """A guest on its port that has taken its address from DHCP."""
        guest = await self.lab.plug_guest(port)
        await self.net.ensure_port(port)
        answer = await self.lab.dhcp(guest)
        assert answer is not None, f"no DHCP answer for {port.addresses} in {network.subnets[0].cidr}"
        assert answer.address == str(port.addresses[0])
        return guest


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with open_lab() as lab:
        net = lab.driver()
        try:
            yield Node(lab, net)
        finally:
            await net.close()


@asynccontextmanager
async def serving(
    lab: Lab, namespace: Path, service: Callable[[], AbstractContextManager[None]]
) -> AsyncIterator[None]:
    """Run a service of `probes` in a namespace while the block runs."""
    stack = contextlib.ExitStack()

    def enter() -> None:
        stack.enter_context(service())

    await lab.inside(namespace, enter)
    try:
        yield
    finally:
        await lab.inside(namespace, stack.close)


async def test_dhcp_gateway_names_and_the_way_out(node: Node) -> None:
    lab, (resolver, *_) = node.lab, node_resolvers()
    network, first = with_port(network_intent(), 5, "web")
    network, second = with_port(network, 6, "db")
    await node.net.ensure_network(network)
    web = await node.boot(network, first)
    db = await lab.plug_guest(second)
    await node.net.ensure_port(second)
    answer = await lab.dhcp(db)
    assert answer is not None
    assert (answer.address, answer.router, answer.dns) == ("10.7.0.6", "10.7.0.1", "10.7.0.1")
    assert (answer.hostname, answer.domain) == ("db", "cumulet.internal")
    assert (await node.net.observe_net()).leased == {"10.7.0.5", "10.7.0.6"}
    assert await lab.ping(web, "10.7.0.1")
    assert await lab.ping(web, "10.7.0.6")
    assert await lab.ping(lab.namespace_of(network), "10.7.0.5")  # the operator's way to a guest
    await lab.inside(lab.outside, lambda: _add_address("eth0", resolver))
    with_names = partial(probes.answering_names, str(resolver), {"outside.example": "192.0.2.99"})
    echo = partial(probes.listening, [ECHO_PORT], [])
    async with serving(lab, lab.outside, with_names), serving(lab, lab.outside, echo):
        for name, wanted in (
            ("db", ["10.7.0.6"]),
            ("db.cumulet.internal", ["10.7.0.6"]),
            ("outside.example", ["192.0.2.99"]),
            ("nobody.cumulet.internal", []),
        ):
            assert await lab.inside(web, partial(probes.ask_name, "10.7.0.1", name)) == wanted
        seen_as = await lab.inside(web, partial(probes.who_am_i, str(OUTSIDE_ADDRESS), ECHO_PORT))
    assert seen_as == str(HOST_ADDRESS)  # source-NATed twice, the tenant's address never leaves


async def test_without_outbound_nat_nothing_leaves(node: Node) -> None:
    lab, (resolver, *_) = node.lab, node_resolvers()
    network, port = with_port(network_intent(outbound_nat=False), 5, "web")
    await node.net.ensure_network(network)
    guest = await node.boot(network, port)
    await lab.inside(lab.outside, lambda: _add_address("eth0", resolver))
    dns = partial(probes.answering_names, str(resolver), {"outside.example": "192.0.2.99"})
    echo = partial(probes.listening, [ECHO_PORT], [ECHO_PORT], [str(OUTSIDE_ADDRESS)])
    async with serving(lab, lab.outside, dns), serving(lab, lab.outside, echo):
        out = partial(probes.who_am_i, str(OUTSIDE_ADDRESS), ECHO_PORT)
        ask = partial(probes.ask_name, "10.7.0.1", "outside.example")
        assert await lab.inside(guest, out) == ""
        assert await lab.inside(guest, ask) == []
        await node.net.ensure_network(replace(network, outbound_nat=True))
        assert await lab.inside(guest, out) == str(HOST_ADDRESS)  # the control
        assert await lab.inside(guest, ask) == ["192.0.2.99"]
        flow = await lab.inside(guest, partial(probes.udp_conversation, str(OUTSIDE_ADDRESS), ECHO_PORT))
        with flow:
            assert await asyncio.to_thread(probes.is_echoed, flow)
            await node.net.ensure_network(network)  # what runs ends as well
            assert not await asyncio.to_thread(probes.is_echoed, flow)


async def test_two_networks_with_one_range_do_not_meet(node: Node) -> None:
    lab = node.lab
    here, a = with_port(network_intent(vni=1, cidr="10.0.0.0/24"), 5, "a")
    here, b = with_port(here, 6, "b")
    there, c = with_port(network_intent(vni=2, cidr="10.0.0.0/24"), 5, "c")
    there, d = with_port(there, 7, "d")
    for network in (here, there):
        await node.net.ensure_network(network)
    guests = {
        port.uid: await node.boot(network, port)
        for network, port in ((here, a), (here, b), (there, c), (there, d))
    }
    reached = await asyncio.gather(
        *(
            lab.ping(guests[sender.uid], target)
            for sender, target in (
                (a, "10.0.0.6"),
                (a, "10.0.0.7"),
                (c, "10.0.0.7"),
                (c, "10.0.0.6"),
                (a, addressing.uplink_address(2)),
            )
        )
    )
    assert reached == [True, False, True, False, False]
    assert await lab.inside(guests[a.uid], partial(probes.ask_name, "10.0.0.1", "d")) == []
    assert await lab.inside(guests[c.uid], partial(probes.ask_name, "10.0.0.1", "d")) == ["10.0.0.7"]
    echo = partial(probes.listening, [ECHO_PORT], [])
    out = partial(probes.who_am_i, str(OUTSIDE_ADDRESS), ECHO_PORT)
    async with serving(lab, lab.outside, echo):
        seen = await asyncio.gather(*(lab.inside(guest, out) for guest in guests.values()))
    assert seen == [str(HOST_ADDRESS)] * 4


async def test_a_guest_reaches_dhcp_dns_and_icmp_and_nothing_else(node: Node) -> None:
    """With a control: without our rules the very same probes reach the node's listeners."""
    lab = node.lab
    network, port = with_port(network_intent(), 5)
    await node.net.ensure_network(network)
    guest = await node.boot(network, port)
    await lab.inside(lab.host, lambda: _add_address("lo", HOST_OTHER_ADDRESS))
    of_node = (HOST_ADDRESS, HOST_OTHER_ADDRESS, addressing.HOST_END, addressing.uplink_address(7))
    on_host = list(map(str, of_node[:3]))
    service = partial(probes.listening, HOST_LISTENS, HOST_UDP, on_host)
    async with serving(lab, lab.host, service):
        gateway = "10.7.0.1"
        assert await _heard(lab, guest, gateway, SCANNED, SCANNED) == ({53: "open"}, {})
        assert await lab.inside(guest, partial(probes.ask_name, gateway, port.hostname)) == ["10.7.0.5"]
        for address in map(str, of_node):
            assert await _heard(lab, guest, address, SCANNED, (*SCANNED, *HOST_UDP)) == ({}, {}), address
        await lab.inside(lab.host, lambda: nft.commit(ruleset.host_rules_absent()))
        tcp, udp = await _heard(lab, guest, str(HOST_ADDRESS), HOST_LISTENS, HOST_UDP)
        assert tcp == dict.fromkeys(HOST_LISTENS, "open")
        assert udp == dict.fromkeys(HOST_UDP, "answer")


async def _heard(
    lab: Lab, guest: Path, address: str, tcp_ports: Iterable[int], udp_ports: Iterable[int]
) -> tuple[dict[int, str], dict[int, str]]:
    """What a guest hears from an address: TCP, UDP."""
    tcp, udp = await asyncio.gather(
        lab.inside(guest, partial(probes.scan_tcp, address, tcp_ports)),
        lab.inside(guest, partial(probes.probe_udp, address, udp_ports)),
    )
    return tcp, udp


async def test_the_bridge_itself_is_no_way_to_the_node(node: Node) -> None:
    """A guest that sends to the bridge's MAC, and asks ARP for the node's addresses, hears nothing."""
    lab = node.lab
    network, port = with_port(network_intent(), 5)
    await node.net.ensure_network(network)
    guest = await node.boot(network, port)
    bridge_mac = addressing.fixed_mac("bridge", network.uid)
    await lab.run(guest, "ip", "route", "add", str(HOST_ADDRESS), "dev", "eth0")
    arping = await lab.run(
        guest, "/bin/busybox", "arping", "-c", "1", "-w", "1", "-I", "eth0", str(HOST_ADDRESS)
    )
    assert "Received 0 response" in arping.stdout
    await lab.run(guest, "ip", "neigh", "replace", str(HOST_ADDRESS), "lladdr", bridge_mac, "dev", "eth0")
    async with serving(lab, lab.host, partial(probes.listening, HOST_LISTENS, [])):
        assert await lab.inside(guest, partial(probes.scan_tcp, str(HOST_ADDRESS), HOST_LISTENS)) == {}
    await lab.run(guest, "ip", "neigh", "replace", "10.7.0.1", "lladdr", bridge_mac, "dev", "eth0")
    await lab.run(guest, "ip", "route", "del", str(HOST_ADDRESS))
    async with serving(lab, lab.outside, partial(probes.listening, [ECHO_PORT], [])):
        assert await lab.inside(guest, partial(probes.who_am_i, str(OUTSIDE_ADDRESS), ECHO_PORT)) == ""


async def test_a_real_tap_carries_its_guests_frames(node: Node) -> None:
    """Opened as libvirt opens it: by name, with offload headers."""
    network, port = with_port(network_intent(), 5)
    await node.net.ensure_network(network)
    await node.net.ensure_port(port)
    asker = port.addresses[0].packed
    forger = IPv4Address("10.7.0.66").packed
    ask = partial(probes.arp_over_tap, names.tap_name(port.uid), port.mac)
    gateway = IPv4Address("10.7.0.1").packed
    assert await node.lab.inside(node.lab.host, partial(ask, asker, gateway)) == addressing.fixed_mac(
        "gateway", network.uid
    )
    assert await node.lab.inside(node.lab.host, partial(ask, forger, gateway)) == ""
    assert await node.lab.inside(node.lab.host, partial(ask, asker, HOST_ADDRESS.packed)) == ""


async def test_spoofed_frames_are_stopped(node: Node) -> None:
    lab = node.lab
    network, honest = with_port(network_intent(), 5)
    network, other = with_port(network, 6)
    await node.net.ensure_network(network)
    guest, victim = await node.boot(network, honest), await node.boot(network, other)
    assert await lab.ping(guest, "10.7.0.6")
    await lab.run(guest, "ip", "addr", "add", "10.7.0.99/24", "dev", "eth0")
    spoof = ("/bin/busybox", "ping", "-c", "1", "-W", "1", "-I", "10.7.0.99", "10.7.0.6")
    assert (await lab.run(guest, *spoof)).returncode != 0
    await lab.run(guest, "ip", "addr", "add", "10.7.0.1/24", "dev", "eth0")
    claim = ("/bin/busybox", "arping", "-U", "-c", "1", "-I", "eth0", "-s", "10.7.0.1", "10.7.0.1")
    await lab.run(guest, *claim)
    neighbours = (await lab.run(victim, "ip", "neigh", "show", "10.7.0.1")).stdout
    assert honest.mac not in neighbours
    await lab.run(guest, "ip", "link", "set", "eth0", "address", "52:54:00:ff:ff:01")
    assert not await lab.ping(guest, "10.7.0.6")
    await lab.run(guest, "ip", "link", "set", "eth0", "address", honest.mac)
    assert await lab.ping(guest, "10.7.0.6")
    await node.net.ensure_network(replace(network, ports=(other,)))  # the port goes before its tap
    assert (await node.net.observe_net()).taps == {honest.uid: False, other.uid: True}
    assert not await lab.ping(guest, "10.7.0.6")
    await node.net.ensure_port_absent(honest.uid)
    observed = await node.net.observe_net()
    assert observed.taps == {other.uid: True}
    assert observed.networks[network.uid].complete


async def test_an_address_moves_to_another_port_while_its_lease_runs(node: Node) -> None:
    network, old = with_port(network_intent(), 5, "old")
    await node.net.ensure_network(network)
    await node.boot(network, old)
    await node.net.ensure_port_absent(old.uid)
    new = replace(old, uid=new_uid(), mac="52:54:00:aa:bb:cc", hostname="new")
    moved = replace(network, ports=(new,))
    await node.net.ensure_network(moved)
    assert (await node.net.observe_net()).leased == frozenset()
    await node.boot(moved, new)
    assert (await node.net.observe_net()).leased == {"10.7.0.5"}


async def test_a_new_port_is_served_without_a_restart_of_dhcp(node: Node) -> None:
    network = network_intent()
    await node.net.ensure_network(network)
    pid = node.lab.server_pid(network)
    for number in (5, 6):
        network, port = with_port(network, number)
        await node.net.ensure_network(network)
        await node.boot(network, port)
    assert node.lab.server_pid(network) == pid
    assert (await node.net.observe_net()).leased == {"10.7.0.5", "10.7.0.6"}


async def test_an_agent_restart_and_a_dead_dhcp_server(node: Node) -> None:
    lab = node.lab
    network, port = with_port(network_intent(), 5)
    await node.net.ensure_network(network)
    await node.boot(network, port)
    pid = lab.server_pid(network)
    assert pid is not None
    again = lab.driver()
    await again.ensure_network(network)
    assert lab.server_pid(network) == pid
    dying = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    await asyncio.get_running_loop().run_in_executor(None, _wait_for_end, dying)
    seen = (await again.observe_net()).networks[network.uid]
    assert not seen.complete
    await again.ensure_network(network)
    assert (await again.observe_net()).networks[network.uid].complete
    assert lab.server_pid(network) not in (None, pid)
    assert (await again.observe_net()).leased == {"10.7.0.5"}
    await again.close()


def _nft_flush_all() -> None:
    nft.commit([{"flush": {"ruleset": None}}])


def _nft_extra_rule() -> None:
    rule = {"family": "inet", "table": TABLE, "chain": "input", "expr": [{"accept": None}]}
    nft.commit([{"insert": {"rule": rule}}])


def _nft_flush_chain() -> None:
    nft.commit([{"flush": {"chain": {"family": "inet", "table": TABLE, "name": "input"}}}])


def _nft_flush_set() -> None:
    nft.commit([{"flush": {"set": {"family": "inet", "table": TABLE, "name": "uplinks"}}}])


def _link_gone(name: str) -> Callable[[], None]:
    def act() -> None:
        with Netlink() as netlink:
            link = netlink.find_link(name)
            assert link is not None
            netlink.delete_link(link.index)

    return act


def _address_gone(name: str) -> Callable[[], None]:
    def act() -> None:
        with Netlink() as netlink:
            link = netlink.find_link(name)
            assert link is not None
            for address in netlink.addresses():
                if address.link == link.index:
                    netlink.delete_address(address)

    return act


def _link_edited(name: str, **change: Any) -> Callable[[], None]:
    def act() -> None:
        with Netlink() as netlink:
            link = netlink.find_link(name)
            assert link is not None
            netlink.change_link(link.index, **change)

    return act


def _entries_gone() -> None:
    with Netlink() as netlink:
        for entry in list(netlink.entries()):
            if isinstance(entry, PortEntry):
                netlink.change_entries([EntryChange(False, payload_of(entry))])


def _link_down(name: str) -> Callable[[], None]:
    def act() -> None:
        with Netlink() as netlink:
            link = netlink.find_link(name)
            assert link is not None
            netlink.change_link(link.index, up=False)

    return act


NETWORK_UID = "5f0c7d2e-91ab-4c3d-8e4f-0a1b2c3d4e5f"
DAMAGE: dict[str, tuple[str, Callable[[], None]]] = {
    "host rules flushed": ("host", _nft_flush_all),
    "host rule added": ("host", _nft_extra_rule),
    "host chain flushed": ("host", _nft_flush_chain),
    "host set flushed": ("host", _nft_flush_set),
    "host forwarding off": ("host", lambda: sysctl.set_forwarding(False)),
    "bridge gone": ("host", _link_gone(names.bridge_name(NETWORK_UID))),
    "bridge down": ("host", _link_down(names.bridge_name(NETWORK_UID))),
    "gateway link gone": ("host", _link_gone(names.gateway_link_name(NETWORK_UID))),
    "uplink gone": ("host", _link_gone(names.uplink_name(NETWORK_UID))),
    "uplink down": ("host", _link_down(names.uplink_name(NETWORK_UID))),
    "tunnel gone": ("host", _link_gone(names.tunnel_name(NETWORK_UID))),
    "tunnel down": ("host", _link_down(names.tunnel_name(NETWORK_UID))),
    "tunnel floods": ("host", _link_edited(names.tunnel_name(NETWORK_UID), bridge_port=BridgePort())),
    "gateway learned": ("host", _link_edited(names.gateway_link_name(NETWORK_UID), bridge_port=BridgePort())),
    "bridge too wide": ("host", _link_edited(names.bridge_name(NETWORK_UID), mtu=1500)),
    "bridge's entries gone": ("host", _entries_gone),
    "host end's address gone": ("host", _address_gone(names.uplink_name(NETWORK_UID))),
    "namespace rules flushed": ("network", _nft_flush_all),
    "namespace rule added": ("network", _nft_extra_rule),
    "gateway address gone": ("network", _address_gone(names.inner_gateway_name(NETWORK_UID))),
    "way out down": ("network", _link_down("up0")),
    "namespace forwarding off": ("network", lambda: sysctl.set_forwarding(False)),
}


async def test_every_damage_is_noticed_and_repaired(node: Node) -> None:
    lab = node.lab
    network, port = with_port(network_intent(uid=NETWORK_UID), 5)
    await node.net.ensure_network(network)
    guest = await node.boot(network, port)
    for name, (where, act) in DAMAGE.items():
        await lab.inside(lab.host if where == "host" else lab.namespace_of(network), act)
        assert not (await node.net.observe_net()).networks[network.uid].complete, name
        await _repair(node, network, port, name)
        assert await lab.ping(guest, OUTSIDE_ADDRESS, tries=4), name
    await asyncio.to_thread(netns.remove, lab.namespace_of(network))  # dnsmasq keeps the old one alive
    assert not (await node.net.observe_net()).networks[network.uid].complete
    await _repair(node, network, port, "namespace removed")
    assert await lab.dhcp(guest) is not None


async def _repair(node: Node, network: NetworkIntent, port: PortIntent, after: str) -> None:
    await node.net.ensure_network(network)
    await node.net.ensure_port(port)
    observed = await node.net.observe_net()
    assert observed.networks[network.uid].complete, after
    assert observed.taps == {port.uid: True}, after


async def test_lost_detached_and_unguarded_taps_are_noticed(node: Node) -> None:
    network, port = with_port(network_intent(), 5)
    await node.net.ensure_network(network)
    await node.net.ensure_port(port)
    tap = names.tap_name(port.uid)
    guards = [{"flush": {"set": {"family": "bridge", "table": TABLE, "name": "taps"}}}]
    for act in (_link_down(tap), _link_gone(tap), lambda: nft.commit(guards)):
        await node.lab.inside(node.lab.host, act)
        assert (await node.net.observe_net()).taps == {port.uid: False}
        await _repair(node, network, port, "tap")


async def test_the_last_network_takes_everything_along(node: Node) -> None:
    lab = node.lab
    before = await _inventory(lab)
    network, port = with_port(network_intent(), 5)
    await node.net.ensure_network(network)
    await node.net.ensure_port(port)
    pid = lab.server_pid(network)
    assert await _inventory(lab) != before
    await node.net.ensure_port_absent(port.uid)
    await node.net.ensure_network_absent(network.uid)
    assert await _inventory(lab) == before
    assert pid is not None
    assert _command_line(pid) == b""  # gone, or a zombie that this machine's init has not reaped yet
    assert [path for path in lab.state_dir.rglob("*") if path.is_file()] == []


async def test_rounds_leak_no_descriptor_and_no_thread(node: Node) -> None:
    network, port = with_port(network_intent(), 5)
    await node.net.ensure_network(network)
    before = _open_descriptors()
    for _ in range(6):
        await node.net.ensure_port(port)
        await node.net.observe_net()
        await node.net.ensure_port_absent(port.uid)
        await node.net.ensure_network_absent(network.uid)
        await node.net.ensure_network(network)
    assert _open_descriptors() == before


async def test_foreign_things_are_left_alone(node: Node) -> None:
    """Links, tables and namespaces that look like ours and are not."""
    lab, network = node.lab, network_intent()
    name = names.bridge_name(network.uid)

    def foreign() -> None:
        with Netlink() as netlink:
            netlink.add_bridge("cbr0", "02:00:00:00:00:09")
            netlink.add_bridge(name, "02:00:00:00:00:0a")
            link = netlink.find_link(name)
            assert link is not None
            netlink.change_link(link.index, alias="somebody else's")
        nft.commit([{"add": {"table": {"family": "ip", "name": "theirs"}}}])

    await lab.inside(lab.host, foreign)
    with pytest.raises(Exception, match="somebody else's"):
        await node.net.ensure_network(network)
    await node.net.ensure_network_absent(network.uid)
    links, rules = await _inventory(lab)
    assert {"cbr0", name} <= set(links)
    assert "theirs" in rules
    assert "cumulet" not in rules


async def _inventory(lab: Lab) -> tuple[list[str], str]:
    """Links, addresses, routes, forwarding and namespaces of the host; and its rules."""

    def gather() -> list[str]:
        with Netlink() as netlink:
            found = [link.name for link in netlink.links()]
            found += map(str, [*netlink.addresses(), *netlink.routes()])
        return [*found, f"forwarding {sysctl.forwarding_is_on()}"]

    found = await lab.inside(lab.host, gather)
    rules = await lab.run(lab.host, "nft", "list", "ruleset")
    return sorted([*found, *(entry.name for entry in lab.netns_dir.iterdir())]), rules.stdout


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def _add_address(link_name: str, address: IPv4Address) -> None:
    with Netlink() as netlink:
        link = netlink.find_link(link_name)
        assert link is not None
        netlink.ensure_address(Address(link.index, address, 32))


def _wait_for_end(process: int) -> None:
    assert select.select([process], [], [], 10)[0], "the process does not end"
    os.close(process)
