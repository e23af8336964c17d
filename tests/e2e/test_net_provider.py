"""Provider networks: guests are neighbours of what is on the operator's network, and the node stays on it.

Real kernel; nodes, guests and the operator's network are network namespaces. The first node has an address of
its own on its link to it, as operators' nodes do.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from agent.errors import DriverError
from agent.net import names
from agent.net.addressing import fixed_mac
from agent.net.directory import digest_of_directory
from agent.net.driver import NetworkIntent, PortIntent, Segment, SubnetIntent, digest_of
from agent.net.rtnetlink import Netlink
from cumulet.addresses import PART_RANGE
from tests.support import echo
from tests.unit.agent_net import frames, probes
from tests.unit.agent_net.lab import (
    HOST_ADDRESS,
    OUTSIDE_ADDRESS,
    configure,
    network_intent,
    new_uid,
    with_port,
)
from tests.unit.agent_net.neighbours import all_out, group, rule
from tests.unit.agent_net.span import (
    FAR_HOST,
    WORLD,
    WORLD_CIDR,
    WORLD_GATEWAY,
    WORLD_LINK,
    Cloud,
    Node,
    open_cloud,
    remotes_of,
)

NODE = IPv4Address("198.51.100.11")  # of the first node, its own
CIDR6 = IPv6Network("2001:db8:7::/64")
ROUTER6 = IPv6Address("fe80::ff:fe00:ff02")  # the world's bridge makes it of its MAC
OPERATORS = "02:00:00:00:ff:02"
VLAN, OTHER_VLAN = 20, 21
PORT = 7000
TRIALS = 200
LLDP = 0x88CC
IPV4 = b"\x08\x00"
VLAN_TYPE = 0x8100


@dataclass(slots=True)
class Stage:
    """A provider network with `one` and `two` on the first node and `far` on the second."""

    cloud: Cloud
    network: NetworkIntent
    ports: dict[str, PortIntent] = field(default_factory=dict)
    guests: dict[str, Path] = field(default_factory=dict)

    def node(self, name: str) -> Node:
        return self.cloud.nodes[1 if name == "far" else 0]

    def address(self, name: str) -> IPv4Address:
        found = self.ports[name].addresses[0]
        assert isinstance(found, IPv4Address)
        return found

    def intent(self, node: Node) -> NetworkIntent:
        ports = (port for name, port in self.ports.items() if self.node(name) is node)
        return replace(self.network, ports=tuple(sorted(ports, key=lambda one: one.uid)))

    async def apply(self) -> None:
        in_order = sorted(self.ports.items(), key=lambda one: one[1].uid)
        placed = [(self.node(name), port) for name, port in in_order]
        await self.cloud.spread(self.network, *placed)

    async def boot(self, *configured: str) -> None:
        """Guests; of `configured` ones the addresses are set as DHCP would."""
        for name, port in self.ports.items():
            self.guests[name] = await self.node(name).boot(port)
            if name in configured:
                configure(self.guests[name], "eth0", port.addresses[0])

    async def ping(self, name: str, target: object, tries: int = 2) -> bool:
        return await self.node(name).lab.ping(self.guests[name], target, tries)

    async def from_outside(self, target: object, tries: int = 2) -> bool:
        return await self.cloud.nodes[0].lab.ping(self.cloud.world, target, tries)

    async def from_node(self, target: object, tries: int = 2) -> bool:
        first = self.cloud.nodes[0]
        return await first.lab.ping(first.lab.host, target, tries)

    async def problem(self, node: Node) -> str:
        """Empty when the node has just what was asked for."""
        seen, wanted = await node.net.observe_net(), self.intent(node)
        found = seen.networks.get(self.network.uid)
        if found is None or not found.complete or found.digest != digest_of(wanted):
            return f"network is {found}"
        off = [port.hostname for port in wanted.ports if not seen.taps.get(port.uid)]
        elsewhere = [(self.node(name), port) for name, port in self.ports.items()]
        remotes = remotes_of((other.address, port) for other, port in elsewhere if other is not node)
        directory = seen.directories.get(self.network.uid)
        return f"taps {off}" if off else "" if directory == digest_of_directory(remotes) else "directory"


def provider_network(vlan: int = 0, vni: int = 9) -> NetworkIntent:
    made = network_intent(vni, str(WORLD_CIDR), outbound_nat=False)
    subnets = (
        replace(made.subnets[0], gateway=WORLD_GATEWAY),
        SubnetIntent(new_uid(), CIDR6, CIDR6[1], ()),
    )
    return replace(made, subnets=subnets, mtu=1500, segment=Segment(WORLD, vlan))


@asynccontextmanager
async def open_stage(vlan: int = 0, nodes: int = 2) -> AsyncIterator[Stage]:
    async with open_cloud(nodes) as cloud:
        configure(cloud.nodes[0].lab.host, WORLD_LINK, NODE)
        made = Stage(cloud, provider_network(vlan))
        for name, number in (("one", 21), ("two", 22), ("far", 23)):
            made.ports[name] = with_port(made.network, number, name)[1]
        await made.apply()
        await made.boot("one", "two", "far")
        yield made


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with open_stage() as made:
        yield made


@asynccontextmanager
async def heard(node: Node, namespace: Path, link: str = "") -> AsyncIterator[list[bytes]]:
    """Frames that came in while the block ran; filled when it ends."""
    seen: list[bytes] = []
    ear = await node.lab.inside(namespace, lambda: probes.Ear(link=link))
    try:
        yield seen
        seen += await asyncio.to_thread(ear.heard)
    finally:
        ear.close()


async def send_outside(stage: Stage, sent: Iterable[bytes]) -> None:
    """From the operator's router, to all that are on its network."""
    send = partial(probes.send_frames, list(sent), "world0")
    await stage.cloud.nodes[0].lab.inside(stage.cloud.world, send)


async def test_guests_are_neighbours_of_everybody_on_the_network(stage: Stage) -> None:
    everybody = {name: stage.address(name) for name in stage.ports}
    for name in stage.ports:
        for target in (*everybody.values(), WORLD_GATEWAY, NODE):
            assert await stage.ping(name, target), (name, target)
        assert await stage.from_outside(everybody[name]), name
        assert await stage.from_node(everybody[name]), name
    assert [await stage.problem(node) for node in stage.cloud.nodes] == ["", ""]


async def test_the_nodes_own_services_answer_and_the_operators_router_leads_out() -> None:
    async with open_cloud(2) as cloud:
        stage = Stage(cloud, provider_network())
        for name, number in (("one", 21), ("far", 23)):
            stage.ports[name] = with_port(stage.network, number, name)[1]
        await stage.apply()
        await stage.boot()
        first, second = cloud.nodes
        async with heard(first, cloud.world) as outside:
            answers = [
                await first.lab.dhcp(stage.guests["one"]),
                await second.lab.dhcp(stage.guests["far"]),
            ]
        assert [(one.address, one.router, one.dns) for one in answers if one] == [
            ("198.51.100.21", str(WORLD_GATEWAY), "169.254.169.254"),
            ("198.51.100.23", str(WORLD_GATEWAY), "169.254.169.254"),
        ]
        assert not [frame for frame in outside if frame[12:14] == IPV4]  # DHCP never leaves its node
        assert await stage.ping("one", FAR_HOST)
        way = ("ip", "route", "add", "169.254.169.254/32", "dev", "eth0")  # as the answer's option 121 says
        assert (await first.lab.run(stage.guests["one"], *way)).returncode == 0
        for asker, name in (("one", "far"), ("one", "one")):
            ask = partial(probes.ask_name, "169.254.169.254", f"{name}.cumulet.internal")
            found = await first.lab.inside(stage.guests[asker], ask)
            assert found == [str(stage.address(name))], name


async def test_the_operators_advertisements_give_guests_their_ipv6_addresses(stage: Stage) -> None:
    await send_outside(stage, [frames.router_advert(OPERATORS, ROUTER6, CIDR6)])
    for name in ("one", "far"):
        assert await stage.node(name).lab.has_ipv6(stage.guests[name], stage.ports[name].addresses[1]), name
    assert await stage.ping("one", stage.ports["far"].addresses[1], 4)


async def test_groups_judge_who_comes_from_the_operators_network(stage: Stage) -> None:
    web = group(*all_out(), rule("in", "tcp", (PORT, PORT), cidr=f"{WORLD_GATEWAY}/32"))
    stage.ports = {name: replace(port, security_groups=(web.uid,)) for name, port in stage.ports.items()}
    for node in stage.cloud.nodes:
        await node.net.ensure_group(web)
    await stage.apply()
    for name, port in stage.ports.items():
        await stage.node(name).net.ensure_port(port)
    enter = echo.echoing([PORT, PORT + 1], "one")
    first = stage.cloud.nodes[0]
    await first.lab.inside(stage.guests["one"], enter.__enter__)
    try:
        for asker, number, answers in (
            (stage.cloud.world, PORT, True),
            (stage.cloud.world, PORT + 1, False),
            (first.lab.host, PORT, False),
            (stage.guests["two"], PORT, False),
        ):
            ask = partial(echo.responder, socket.SOCK_STREAM, str(stage.address("one")), number)
            assert bool(await first.lab.inside(asker, ask)) == answers, (asker, number)
    finally:
        await asyncio.to_thread(enter.__exit__, None, None, None)
    assert await stage.ping("one", WORLD_GATEWAY)  # what it begins is answered
    assert not await stage.from_outside(stage.address("one"), 1)


async def test_nobody_outside_gives_the_nodes_own_answers(stage: Stage) -> None:
    """DHCP, the metadata address, other kinds of frames: `TRIALS` each, and a control that arrives."""
    mac, one = stage.ports["one"].mac, stage.address("one")
    first, metadata = stage.cloud.nodes[0], IPv4Address("169.254.169.254")
    gateway = fixed_mac("gateway", stage.network.uid)
    ipv4 = partial(frames.udp, mac, OPERATORS)
    kinds = {
        "control": ipv4(WORLD_GATEWAY, one, PORT, b"control"),
        "DHCP server": ipv4(WORLD_GATEWAY, one, 67, b"forged"),
        "metadata": ipv4(metadata, one, PORT, b"forged"),
        "metadata by ARP": frames.arp_request(OPERATORS, metadata, one),
        "gateway's MAC": frames.udp(mac, gateway, WORLD_GATEWAY, one, PORT, b"forged"),
        "router's part": ipv4(PART_RANGE[1], one, PORT, b"forged"),
        "another kind": frames.ethernet(mac, OPERATORS, LLDP, b"forged" + bytes(40)),
        "VLAN": frames.tagged(ipv4(WORLD_GATEWAY, one, PORT, b"forged"), VLAN),
    }
    for kind, frame in kinds.items():
        async with heard(first, stage.guests["one"], "eth0") as seen:
            await send_outside(stage, [frame] * TRIALS)
        arrived = sum(found[:14] == frame[:14] for found in seen)
        assert arrived == (TRIALS if kind == "control" else 0), kind


async def test_what_guests_forge_does_not_reach_the_operators_network(stage: Stage) -> None:
    one = stage.ports["one"]
    sent = partial(frames.udp, OPERATORS)
    honest = sent(one.mac, stage.address("one"), WORLD_GATEWAY, PORT, b"honest")
    forged = {
        "MAC": sent("52:54:00:66:66:66", stage.address("one"), WORLD_GATEWAY, PORT, b"forged"),
        "address": sent(one.mac, IPv4Address("198.51.100.99"), WORLD_GATEWAY, PORT, b"forged"),
        "router's": sent(one.mac, WORLD_GATEWAY, FAR_HOST, PORT, b"forged"),
        "ARP": frames.arp_request(one.mac, WORLD_GATEWAY, NODE),
        "VLAN": frames.tagged(honest, VLAN),
        "spanning tree": frames.ethernet("01:80:c2:00:00:00", one.mac, 0x0026, b"forged" + bytes(40)),
    }
    first = stage.cloud.nodes[0]
    for kind, frame in {"control": honest, **forged}.items():
        async with heard(first, stage.cloud.world, "node1") as seen:
            await first.lab.inside(stage.guests["one"], partial(probes.send_frames, [frame] * TRIALS))
        arrived = sum(found[:14] == frame[:14] for found in seen)
        assert arrived == (TRIALS if kind == "control" else 0), kind


async def test_a_vlan_is_tagged_on_the_link_only_and_apart_from_others() -> None:
    async with open_stage(VLAN) as stage:
        assert await stage.ping("one", stage.address("far"))
        second = stage.cloud.nodes[1]
        async with heard(second, stage.guests["far"], "eth0") as inside:
            tags = await tags_while(stage, "one", stage.ping("one", stage.address("far"), 1))
        assert tags == {VLAN}
        assert inside
        assert all(frame[12:14] != struct.pack("!H", VLAN_TYPE) for frame in inside)
        assert not await stage.from_outside(stage.address("one"), 1)  # who is not on it
        # the same addresses on another VLAN of the same link, and untagged
        for vlan, vni in ((OTHER_VLAN, 10), (0, 11)):
            other = Stage(stage.cloud, replace(provider_network(vlan, vni), uid=new_uid()))
            made = with_port(other.network, 30 + vlan, "two")[1]  # switches of the test know no VLANs
            other.ports["two"] = replace(made, addresses=stage.ports["far"].addresses)
            await other.apply()
            await other.boot("two")
            assert not await other.ping("two", stage.address("one"), 1)
            assert await other.from_outside(stage.address("far"), 2) == (vlan == 0)
        assert await stage.ping("one", stage.address("far"))
        assert [await stage.problem(node) for node in stage.cloud.nodes] == ["", ""]


async def test_the_nodes_own_connection_does_not_notice(stage: Stage) -> None:
    """Pings of the node's own address while networks come and go, and the usual way as the control."""
    assert await lost_while(stage, come_and_go(stage)) == 0
    async with moving_its_address(stage.cloud.nodes[0]):
        assert not await stage.from_outside(NODE, 3)
    assert await stage.from_outside(NODE, 3)


@pytest.mark.parametrize(
    "damage",
    [
        ("nft", "delete", "table", "netdev", "cumulet"),
        ("nft", "flush", "chain", "netdev", "cumulet", "to-{uplink_end}"),
        ("nft", "flush", "set", "netdev", "cumulet", "macs-{uplink_end}"),
        ("nft", "add", "element", "netdev", "cumulet", "macs-{uplink_end}", "{{ 02:00:00:00:00:99 }}"),
        ("tc", "qdisc", "del", "dev", "{uplink_end}", "ingress"),
        ("bridge", "fdb", "del", "{mac}", "dev", "{link}", "self"),
        ("ip", "link", "del", "{uplink_end}"),
        ("ip", "link", "set", "{bridge_end}", "nomaster"),
        ("ip", "link", "set", "{bridge_end}", "type", "bridge_slave", "learning", "on"),
        ("ip", "link", "set", "{uplink_end}", "down"),
        ("ip", "link", "set", "{link}", "address", "02:00:00:00:fd:77"),
        ("nft", "delete", "element", "bridge", "cumulet", "receivers", "{{ {bridge_end} }}"),
        ("nft", "delete", "element", "bridge", "cumulet-guard", "tunnels", "{{ {bridge_end} }}"),
    ],
    ids=lambda words: " ".join(words)[:40],
)
async def test_every_damage_is_noticed_and_put_back(stage: Stage, damage: tuple[str, ...]) -> None:
    first, uid = stage.cloud.nodes[0], stage.network.uid
    words = {
        "uplink_end": names.patch_uplink_name(uid),
        "bridge_end": names.patch_bridge_name(uid),
        "mac": stage.ports["one"].mac,
        "link": WORLD_LINK,
    }
    done = await first.lab.run(first.lab.host, *(word.format(**words) for word in damage))
    assert done.returncode == 0, done.stderr
    assert await stage.problem(first)
    await stage.apply()
    for name in ("one", "two"):
        await first.net.ensure_port(stage.ports[name])
    assert await stage.problem(first) == ""
    for target in (WORLD_GATEWAY, stage.address("far"), NODE):
        assert await stage.ping("one", target, 3), target


@pytest.mark.parametrize("was_router", [False, True], ids=["host", "router"])
async def test_a_node_that_was_no_router_is_none_for_the_operators_network(was_router: bool) -> None:
    """Forwarding is turned on for guests' sake; the control is a node that forwarded before."""
    async with open_cloud(1) as cloud:
        node = cloud.nodes[0]
        configure(node.lab.host, WORLD_LINK, NODE)
        ways = (
            (cloud.world, f"{OUTSIDE_ADDRESS}/32", NODE),
            (node.lab.outside, str(WORLD_CIDR), HOST_ADDRESS),
        )
        for where, cidr, gateway in ways:
            added = await node.lab.run(where, "ip", "route", "add", cidr, "via", str(gateway))
            assert added.returncode == 0, added.stderr
        setting = "/proc/sys/net/ipv4/ip_forward"
        done = await node.lab.run(node.lab.host, "sh", "-c", f"echo {int(was_router)} > {setting}")
        assert done.returncode == 0
        network, port = with_port(provider_network(), 21)
        await node.net.ensure_network(network)
        guest = await node.boot(port)
        configure(guest, "eth0", port.addresses[0])
        assert await node.lab.ping(guest, WORLD_GATEWAY, 3)
        assert (await node.lab.run(node.lab.host, "cat", setting)).stdout.strip() == "1"
        for asker, source in ((cloud.world, WORLD_GATEWAY), (guest, port.addresses[0])):
            await node.lab.run(asker, "ip", "route", "replace", f"{OUTSIDE_ADDRESS}/32", "via", str(NODE))
            assert await node.lab.ping(asker, OUTSIDE_ADDRESS, 2) == was_router, source


@pytest.mark.parametrize("vlan", [0, VLAN])
async def test_neighbours_learn_at_once_whose_an_address_is_now(vlan: int) -> None:
    """Another guest on the other node gets the address of one that is gone: a thousand topologies had two
    probes that found nobody, since their asker still sent to the old MAC."""
    async with open_stage(vlan) as stage:
        for name in ("one", "two"):
            assert await stage.ping(name, stage.address("far"))
        second, old = stage.cloud.nodes[1], stage.ports["far"]
        heir = replace(with_port(stage.network, 99, "far")[1], addresses=old.addresses)
        await second.net.ensure_port_absent(old.uid)
        stage.ports["far"] = heir
        await stage.apply()
        stage.guests["far"] = await second.boot(heir)
        configure(stage.guests["far"], "eth0", heir.addresses[0])
        for name in ("one", "two"):
            assert await stage.ping(name, heir.addresses[0], 3), name


async def test_a_link_that_is_gone_does_not_hold_up_the_others(stage: Stage) -> None:
    """Its network waits for it; other guests come and go. Kernels before 6.16 refuse a table with such a
    link, so none has it."""
    first = stage.cloud.nodes[0]
    first.lab.uplinks["other"] = "eth0"  # the driver has this very mapping
    other, port = with_port(replace(provider_network(vni=10), segment=Segment("other")), 21)
    await first.net.ensure_network(replace(other, ports=()))
    gone = await first.lab.run(first.lab.host, "ip", "link", "del", WORLD_LINK)
    assert gone.returncode == 0
    await first.net.ensure_network(other)
    await first.boot(port)
    seen = await first.net.observe_net()
    assert (seen.networks[other.uid].complete, seen.taps[port.uid]) == (True, True)
    assert not seen.networks[stage.network.uid].complete
    table = await first.lab.run(first.lab.host, "nft", "list", "table", "netdev", "cumulet")
    assert '"eth0"' in table.stdout
    assert WORLD_LINK not in table.stdout
    with pytest.raises(DriverError) as refused:
        await first.net.ensure_network(stage.intent(first))
    assert refused.value.reason == "UplinkMissing"
    await first.net.ensure_network_absent(other.uid)


async def test_another_agent_takes_over_what_it_finds(stage: Stage) -> None:
    first = stage.cloud.nodes[0]
    await first.net.close()
    first.net = first.lab.driver()
    assert "network" in await stage.problem(first)  # the rules of another process are not believed
    await stage.apply()
    assert await stage.problem(first) == ""
    assert await stage.ping("one", stage.address("far"))


async def test_nothing_is_left_of_it(stage: Stage) -> None:
    first = stage.cloud.nodes[0]
    for name in ("one", "two"):
        await first.net.ensure_port_absent(stage.ports[name].uid)
    await first.net.ensure_network_absent(stage.network.uid)
    assert not [name for name in await first.lab.host_links() if name.startswith(("cp", "cbr", "cgw"))]
    tables = await first.lab.run(first.lab.host, "nft", "list", "tables")
    assert "cumulet" not in tables.stdout

    def stations() -> frozenset[str]:
        with Netlink() as host:
            link = host.find_link(WORLD_LINK)
            assert link is not None
            return host.stations(link.index)

    left = await first.lab.inside(first.lab.host, stations)
    assert not left & {port.mac for port in stage.ports.values()}
    assert not (first.lab.state_dir / "stations.json").exists()


async def test_a_node_without_the_link_or_with_a_narrow_one_says_so() -> None:
    async with open_cloud(1) as cloud:
        node = cloud.nodes[0]
        missing, wide = (
            replace(provider_network(), segment=Segment("elsewhere")),
            replace(provider_network(), mtu=9000),
        )
        for network, reason in ((missing, "UplinkMissing"), (wide, "UplinkTooNarrow")):
            with pytest.raises(DriverError) as refused:
                await node.net.ensure_network(network)
            assert refused.value.reason == reason
            assert not (await node.net.observe_net()).networks[network.uid].complete
        assert "cpu" not in " ".join(await node.lab.host_links())


async def tags_while(stage: Stage, name: str, work: Awaitable[object]) -> set[int]:
    """VLANs of a guest's frames that reach the operator's network meanwhile; 0 is none."""
    first = stage.cloud.nodes[0]
    ear = await first.lab.inside(stage.cloud.world, lambda: probes.TagEar("node1"))
    try:
        await work
        return await asyncio.to_thread(ear.heard, stage.ports[name].mac)
    finally:
        ear.close()


async def lost_while(stage: Stage, work: Awaitable[object]) -> int:
    """Of pings of the first node's own address, in a row, while the work is done; at least `TRIALS`."""
    is_done = asyncio.Event()

    async def ask() -> int:
        lost = tried = 0
        while tried < TRIALS or not is_done.is_set():
            lost += not await stage.from_outside(NODE, 1)
            tried += 1
        return lost

    asking = asyncio.create_task(ask())
    try:
        await work
    finally:
        is_done.set()
    return await asking


async def come_and_go(stage: Stage) -> None:
    """Networks on the link, untagged and not, with guests and without."""
    first = stage.cloud.nodes[0]
    for vlan in (VLAN, OTHER_VLAN):
        other = Stage(stage.cloud, replace(provider_network(vlan, 10 + vlan), uid=new_uid()))
        other.ports["two"] = replace(stage.ports["two"], uid=new_uid(), network_uid=other.network.uid)
        await other.apply()
        await other.boot("two")
        await first.net.ensure_port_absent(other.ports["two"].uid)
        await first.net.ensure_network_absent(other.network.uid)
    for name in ("one", "two"):
        await first.net.ensure_port_absent(stage.ports[name].uid)
    await first.net.ensure_network_absent(stage.network.uid)
    await stage.apply()


@asynccontextmanager
async def moving_its_address(node: Node) -> AsyncIterator[None]:
    """To a bridge that the link is put on, as provider networks are made elsewhere; the block is half-way."""
    address = f"{NODE}/{WORLD_CIDR.prefixlen}"

    async def ip(*words: str) -> None:
        assert (await node.lab.run(node.lab.host, "ip", *words)).returncode == 0

    await ip("link", "add", "usual0", "type", "bridge")
    await ip("link", "set", "usual0", "up")
    await ip("link", "set", WORLD_LINK, "master", "usual0")
    await ip("addr", "del", address, "dev", WORLD_LINK)
    yield
    await ip("addr", "add", address, "dev", "usual0")
