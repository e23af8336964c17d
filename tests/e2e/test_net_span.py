"""Networks that span nodes: what crosses, and what must not.

Real kernel, real tunnels; nodes, guests and the underlay between them are network namespaces.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from agent.net import addressing, names, netlink_neighbour, nft
from agent.net.directory import Spot, digest_of_directory, entries_of
from agent.net.driver import IPAddress, NetworkIntent, PortIntent, RemotePort
from agent.net.netlink_link import VXLAN_PORT, BridgePort, Link
from agent.net.netlink_neighbour import Neighbour, PortEntry
from agent.net.rtnetlink import EntryChange, Netlink
from tests.unit.agent_net import frames, probes
from tests.unit.agent_net.lab import network_intent, new_uid, with_port
from tests.unit.agent_net.span import Cloud, Node, open_cloud, remotes_of

TRIALS = 200
CIDR6 = "2001:db8:7::/64"
PORT = 7777
UNKNOWN_MAC = "52:54:00:ee:ee:ee"
NOBODY = "00:00:00:00:00:00"  # of a tunnel's entry for everybody


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with open_cloud(3) as made:
        yield made


@dataclass(frozen=True, slots=True)
class Pair:
    """A dual-stack network with one guest on the first node and one on the second."""

    network: NetworkIntent
    a: PortIntent
    b: PortIntent
    guest_a: Path
    guest_b: Path

    @property
    def gateway_mac(self) -> str:
        return addressing.fixed_mac("gateway", self.network.uid)


async def _pair(cloud: Cloud, network: NetworkIntent | None = None) -> Pair:
    network, a = with_port(network or network_intent(cidr6=CIDR6), 5, "a")
    network, b = with_port(network, 6, "b")
    first, second = cloud.nodes[:2]
    await cloud.spread(network, (first, a), (second, b))
    pair = Pair(network, a, b, await first.boot(a), await second.boot(b))
    await _configure(first, a, pair.guest_a)
    await _configure(second, b, pair.guest_b)
    return pair


async def _configure(node: Node, port: PortIntent, guest: Path) -> None:
    """The guest has taken its addresses, and others hear of them."""
    assert await node.lab.dhcp(guest) is not None
    for address in port.addresses[1:]:
        assert await node.lab.has_ipv6(guest, address)


@asynccontextmanager
async def _listening(node: Node, guest: Path, port: int = PORT) -> AsyncIterator[probes.Ear]:
    ear = await node.lab.inside(guest, partial(probes.Ear, port))
    try:
        yield ear
    finally:
        ear.close()


async def test_guests_of_two_nodes_reach_each_other(cloud: Cloud) -> None:
    pair, (first, second, _) = await _pair(cloud), cloud.nodes
    for node, guest, other in ((first, pair.guest_a, pair.b), (second, pair.guest_b, pair.a)):
        for target in other.addresses:
            assert await node.lab.ping(guest, target, tries=3), target
        for port in (pair.a, pair.b):  # also of the one on the other node
            found = await node.lab.inside(guest, partial(probes.ask_name, "10.7.0.1", port.hostname))
            assert found == [str(port.addresses[0])]


async def test_what_is_between_nodes_is_not_tracked(cloud: Cloud) -> None:
    """Guests' flows are, each in the zone of its network."""
    pair, first = await _pair(cloud), cloud.nodes[0]
    assert await first.lab.ping(pair.guest_a, pair.b.addresses[0], tries=3)
    tracked = await first.lab.inside(first.lab.host, Path("/proc/thread-self/net/nf_conntrack").read_text)
    assert f"dst={pair.b.addresses[0]}" in tracked
    assert "dport=4789" not in tracked


async def test_an_ipv6_underlay_carries_as_well() -> None:
    async with open_cloud(2, subnet="2001:db8:ffff::") as cloud:
        pair = await _pair(cloud, replace(network_intent(cidr6=CIDR6), mtu=1430))
        for target in pair.b.addresses:
            assert await cloud.nodes[0].lab.ping(pair.guest_a, target, tries=3), target


async def test_a_packet_of_just_the_guests_mtu_passes_whole(cloud: Cloud) -> None:
    pair, (first, second, _) = await _pair(cloud), cloud.nodes
    mtu = pair.network.mtu
    for target, headers in zip(pair.b.addresses, (28, 48), strict=True):
        largest, larger = bytes(mtu - headers), bytes(mtu - headers + 1)
        send = partial(probes.send_datagrams, str(target), PORT, whole=True)
        async with _listening(second, pair.guest_b) as ear:
            async with cloud.watched() as seen:
                await first.lab.inside(pair.guest_a, partial(send, [largest] * 20))
            assert await asyncio.to_thread(ear.heard) == [largest] * 20
        with pytest.raises(OSError, match="too long"):  # the guest was told its MTU, by DHCP and by RA
            await first.lab.inside(pair.guest_a, partial(send, [larger]))
        assert max(one.outer_length for one in seen) == 1500
        assert not any(one.is_fragment for one in seen)


def _flood(pair: Pair, count: int) -> dict[str, list[bytes]]:
    """Frames that a bridge would send to everybody; and questions that have an answer at home."""
    a, (own, own6) = pair.a.mac, pair.a.addresses
    known, known6 = pair.b.addresses
    assert isinstance(own, IPv4Address)
    assert isinstance(known, IPv4Address)
    assert isinstance(own6, IPv6Address)
    assert isinstance(known6, IPv6Address)
    unknown, unknown6 = IPv4Address("10.7.0.77"), IPv6Address("2001:db8:7::77")
    group = IPv4Address("224.0.0.251")
    solicit = partial(frames.neighbour_solicit, a)
    return {
        "ARP for nobody": [frames.arp_request(a, own, unknown)] * count,
        "ARP for a remote port": [frames.arp_request(a, own, known)] * count,
        "ARP announcement": [frames.arp_request(a, own, own)] * count,
        "ND for nobody": [solicit(own6, unknown6)] * count,
        "ND for a remote port": [solicit(own6, known6)] * count,
        "ND claim": [solicit(IPv6Address("::"), own6)] * count,
        "unknown unicast": [frames.udp(UNKNOWN_MAC, a, own, unknown, PORT, b"x")] * count,
        "broadcast": [frames.udp(frames.EVERYBODY, a, own, IPv4Address("10.7.0.255"), PORT, b"x")] * count,
        "multicast": [frames.udp("01:00:5e:00:00:fb", a, own, group, PORT, b"x")] * count,
    }


@pytest.mark.parametrize("flooding", [False, True], ids=["ours", "control"])
async def test_nothing_floods(cloud: Cloud, flooding: bool) -> None:
    """The control is a tunnel as the kernel makes it, with an entry for everybody."""
    pair, first = await _pair(cloud), cloud.nodes[0]
    if flooding:
        await first.lab.inside(first.lab.host, partial(_open_tunnel, pair.network, cloud.nodes[1]))
    for name, sent in _flood(pair, TRIALS).items():
        async with cloud.watched() as seen:
            await first.lab.inside(pair.guest_a, partial(probes.send_frames, sent))
        crossed = sum(one.inner in sent for one in seen)
        assert crossed >= TRIALS if flooding else (crossed, seen) == (0, []), name
    if flooding:
        observed = await first.net.observe_net()
        assert not observed.networks[pair.network.uid].complete
        await _heal(cloud, first, pair)
        async with cloud.watched() as seen:
            await first.lab.inside(pair.guest_a, partial(probes.send_frames, sent))
        assert seen == []


def _open_tunnel(network: NetworkIntent, towards: Node) -> None:
    with Netlink() as netlink:
        tunnel = _tunnel(netlink, network)
        netlink.change_link(tunnel.index, bridge_port=BridgePort())
    _lead_everybody(network, towards.address)


def _lead_everybody(network: NetworkIntent, vtep: object) -> None:
    """Frames that the tunnel has no entry for go there."""
    way = ("dev", names.tunnel_name(network.uid), "dst", str(vtep), "self", "permanent")
    subprocess.run(("bridge", "fdb", "append", NOBODY, *way), check=True)


def _tunnel(netlink: Netlink, network: NetworkIntent) -> Link:
    tunnel = netlink.find_link(names.tunnel_name(network.uid))
    assert tunnel is not None
    return tunnel


async def _heal(cloud: Cloud, node: Node, pair: Pair) -> None:
    """One round of an agent."""
    here, there = ((pair.a, pair.b), (pair.b, pair.a))[cloud.nodes.index(node)]
    other = cloud.nodes[1 - cloud.nodes.index(node)]
    remotes = remotes_of([(other.address, there)])
    await node.net.ensure_network(replace(pair.network, ports=(here,)))
    await node.net.ensure_directory(pair.network.uid, remotes)
    observed = await node.net.observe_net()
    assert observed.networks[pair.network.uid].complete
    assert observed.directories[pair.network.uid] == digest_of_directory(remotes)


async def test_two_networks_with_the_same_addresses_do_not_meet(cloud: Cloud) -> None:
    """Both span the same two nodes; only the second has a guest with the address that is asked for."""
    first, second, _ = cloud.nodes
    here = await _pair(cloud, network_intent(vni=1, cidr6=CIDR6))
    there = await _pair(cloud, network_intent(vni=2, cidr6=CIDR6))
    assert here.a.addresses[0] == there.a.addresses[0]
    there_only = with_port(there.network, 9, "c")[1]
    await cloud.spread(there.network, (first, there.a), (second, there.b), (second, there_only))
    await _configure(second, there_only, await second.boot(there_only))
    for target in there_only.addresses:
        assert await first.lab.ping(there.guest_a, target, tries=3), target
        assert not await first.lab.ping(here.guest_a, target), target
    sent = [b"here %d" % number for number in range(TRIALS)]
    async with _listening(second, here.guest_b) as own, _listening(second, there.guest_b) as other:
        send = partial(probes.send_datagrams, str(here.b.addresses[0]), PORT, sent)
        await first.lab.inside(here.guest_a, send)
        assert await asyncio.to_thread(own.heard) == sent
        assert await asyncio.to_thread(other.heard) == []


@pytest.mark.parametrize("subnet", ["192.0.2.0", "2001:db8:ffff::"], ids=["IPv4", "IPv6"])
async def test_only_nodes_with_ports_of_the_network_may_send(subnet: str) -> None:
    """A stranger, a stranger in fragments, and a node that is a peer of another network only."""
    async with open_cloud(2, subnet=subnet) as cloud:
        await _try_strangers(cloud)


async def _try_strangers(cloud: Cloud) -> None:
    pair, second = await _pair(cloud, replace(network_intent(cidr6=CIDR6), mtu=1430)), cloud.nodes[1]
    other = replace(network_intent(vni=99, cidr="10.9.0.0/24"))
    other, port = with_port(other, 5)
    await cloud.spread(other, (second, port))
    elsewhere = RemotePort(new_uid(), "52:54:00:99:00:99", (IPv4Address("10.9.0.99"),), cloud.stranger)
    await second.net.ensure_directory(other.uid, frozenset({elsewhere}))
    known = remotes_of([(cloud.nodes[0].address, pair.a)])
    forged = RemotePort(new_uid(), "52:54:00:99:00:98", (IPv4Address("10.7.0.98"),), cloud.stranger)
    for length in (10, 1300):
        if length > 600:
            await second.lab.run(cloud.underlay, "ip", "link", "set", "under0", "mtu", "1280")
        for directory, wanted in ((known, 0), (known | {forged}, TRIALS), (known, 0)):
            await second.net.ensure_directory(pair.network.uid, directory)
            assert await _inject(cloud, pair, forged.mac, bytes(length)) == wanted, (length, wanted)


async def _inject(cloud: Cloud, pair: Pair, source_mac: str, payload: bytes) -> int:
    """Datagrams of the stranger that reach the guest on the second node."""
    second = cloud.nodes[1]
    sender, receiver = IPv4Address("10.7.0.98"), pair.b.addresses[0]
    assert isinstance(receiver, IPv4Address)
    inner = frames.udp(pair.b.mac, source_mac, sender, receiver, PORT, payload)
    outer = [frames.vxlan(pair.network.vni, inner)] * TRIALS
    async with _listening(second, pair.guest_b) as ear:
        send = partial(probes.send_datagrams, str(second.address), VXLAN_PORT, outer)
        await second.lab.inside(cloud.underlay, send)
        return (await asyncio.to_thread(ear.heard)).count(payload)


async def test_a_gateway_stays_on_its_node(cloud: Cloud) -> None:
    """Every node's guests have a gateway of the same addresses, and neither meets the other."""
    pair, (first, second, _) = await _pair(cloud), cloud.nodes
    async with cloud.watched() as seen:
        for node, guest in ((first, pair.guest_a), (second, pair.guest_b)):
            for gateway in ("10.7.0.1", "2001:db8:7::1"):
                assert await node.lab.ping(guest, gateway, tries=2)
            neighbours = await node.lab.run(guest, "ip", "neigh", "show", "10.7.0.1")
            assert pair.gateway_mac in neighbours.stdout
    assert seen == []
    trusted = remotes_of(
        [(first.address, pair.a), (cloud.stranger, replace(pair.a, uid="s", mac=UNKNOWN_MAC, addresses=()))]
    )
    await second.net.ensure_directory(pair.network.uid, trusted)
    assert await _inject(cloud, pair, UNKNOWN_MAC, b"a peer's guest") == TRIALS
    assert await _inject(cloud, pair, pair.gateway_mac, b"a false gateway") == 0
    await second.lab.inside(second.lab.host, partial(_flush_set, "bridge", "gateways"))
    assert await _inject(cloud, pair, pair.gateway_mac, b"the control") == TRIALS
    await _heal(cloud, second, pair)


def _flush_set(family: str, name: str) -> None:
    nft.commit([{"flush": {"set": {"family": family, "table": "cumulet-guard", "name": name}}}])


async def test_a_deleted_or_edited_entry_is_back_after_one_round(cloud: Cloud) -> None:
    pair, first = await _pair(cloud), cloud.nodes[0]
    remotes = remotes_of([(cloud.nodes[1].address, pair.b)])
    wanted = digest_of_directory(remotes)
    for name, damage in _damages(pair, remotes, cloud.stranger):
        await first.lab.inside(first.lab.host, damage)
        assert (await first.net.observe_net()).directories[pair.network.uid] != wanted, name
        await first.net.ensure_directory(pair.network.uid, remotes)
        assert (await first.net.observe_net()).directories[pair.network.uid] == wanted, name
        for target in pair.b.addresses:
            assert await first.lab.ping(pair.guest_a, target), name


def _damages(
    pair: Pair, remotes: frozenset[RemotePort], stranger: IPAddress
) -> list[tuple[str, Callable[[], None]]]:
    def spot() -> Spot:
        with Netlink() as netlink:
            bridge = netlink.find_link(names.bridge_name(pair.network.uid))
            assert bridge is not None
            return Spot(bridge.index, _tunnel(netlink, pair.network).index)

    def apply(present: bool, *payloads: bytes) -> None:
        with Netlink() as netlink:
            netlink.change_entries([EntryChange(present, payload) for payload in payloads])

    def delete(kind: type[object]) -> None:
        gone = [entry for entry in entries_of(remotes, spot()) if isinstance(entry, kind)]
        assert gone
        apply(False, *(netlink_neighbour.payload_of(entry) for entry in gone))

    mac = pair.b.mac
    return [
        ("bridge's entry gone", lambda: delete(PortEntry)),
        ("tunnel's entry gone", lambda: delete(netlink_neighbour.TunnelEntry)),
        ("neighbours gone", lambda: delete(Neighbour)),
        (
            "another node",
            lambda: apply(True, netlink_neighbour.tunnel_entry(spot().tunnel, mac, stranger)),
        ),
        (
            "for everybody",
            lambda: _lead_everybody(pair.network, stranger),
        ),
        (
            "another MAC",
            lambda: apply(True, netlink_neighbour.neighbour(spot().bridge, pair.b.addresses[0], UNKNOWN_MAC)),
        ),
        ("peers flushed", partial(_flush_set, "inet", "peers")),
    ]


async def test_a_port_moves_to_another_node(cloud: Cloud) -> None:
    pair, (first, second, third) = await _pair(cloud), cloud.nodes
    await cloud.spread(pair.network, (first, pair.a), (third, pair.b))
    await second.net.ensure_port_absent(pair.b.uid)
    guest = await third.boot(pair.b)
    await _configure(third, pair.b, guest)
    for target in pair.b.addresses:
        assert await first.lab.ping(pair.guest_a, target, tries=3), target
    # And to where its peer is: what is local needs no tunnel.
    await first.net.ensure_directory(pair.network.uid, frozenset())
    await third.net.ensure_port_absent(pair.b.uid)
    await first.net.ensure_network(pair.network)
    home = await first.boot(pair.b)
    await _configure(first, pair.b, home)
    async with cloud.watched() as seen:
        for target in pair.b.addresses:
            assert await first.lab.ping(pair.guest_a, target, tries=3), target
    assert seen == []
