"""Several nodes on one underlay, for tests whose packets cross from node to node.

**Edge**: each node is a lab of its own, joined by a pair of links to a bridge in an "underlay" namespace,
where everything between nodes can be watched and where strangers may speak up.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

from agent.net import names, netns
from agent.net.driver import IPAddress, NetworkIntent, PortIntent, RemotePort
from agent.net.kernel_driver import KernelNet
from agent.net.netlink_ip import Address as LinkAddress
from agent.net.netlink_link import VXLAN_PORT
from agent.net.rtnetlink import Netlink
from tests.unit.agent_net import probes
from tests.unit.agent_net.lab import Lab, configure, join

_STRANGER = 250  # number of the underlay's own namespace among its addresses
_UNDERLAY_BRIDGE = "under0"
WORLD = "world"  # the name that plans use of it
WORLD_LINK = "ext0"  # of each node
WORLD_CIDR = IPv4Network("198.51.100.0/24")
WORLD_GATEWAY = IPv4Address("198.51.100.1")
FAR_HOST = IPv4Address("192.88.99.7")  # behind the gateway
WORLD_CIDR6 = IPv6Network("2001:db8:100::/48")
WORLD_GATEWAY6 = IPv6Address("2001:db8:100::1")
FAR_HOST6 = IPv6Address("2001:db8:f::7")
WORLD_BRIDGE = "world0"


@dataclass(slots=True)
class Node:
    """One node with what was planned for it."""

    lab: Lab
    net: KernelNet
    address: IPAddress
    ports: list[PortIntent] = field(default_factory=list)

    async def boot(self, port: PortIntent) -> Path:
        """A guest behind its port; its network must be there."""
        guest = await self.lab.plug_guest(port)
        await self.net.ensure_port(port)
        return guest


@dataclass(slots=True)
class Cloud:
    """`stranger`: the address of the underlay's own namespace, which is no node.

    `world`: the outside that all nodes are attached to, by links without addresses.
    """

    nodes: list[Node]
    underlay: Path
    stranger: IPAddress
    world: Path

    async def spread(self, network: NetworkIntent, *placed: tuple[Node, PortIntent]) -> None:
        """The network with these ports on these nodes, as the controller would tell every node of it."""
        for node in self.nodes:
            own = tuple(port for on, port in placed if on is node)
            if not own:
                continue
            await node.net.ensure_network(replace(network, ports=own))
            remotes = remotes_of((on.address, port) for on, port in placed if on is not node)
            await node.net.ensure_directory(network.uid, remotes)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[list[Tunneled]]:
        """What went through tunnels while the block ran; the list is filled when it ends."""
        seen: list[Tunneled] = []
        ear = await self.nodes[0].lab.inside(self.underlay, lambda: probes.Ear(link=""))
        try:
            yield seen
            seen += tunneled(await asyncio.to_thread(ear.heard))
        finally:
            ear.close()


def remotes_of(places: Iterable[tuple[IPAddress, PortIntent]]) -> frozenset[RemotePort]:
    return frozenset(
        RemotePort(port.uid, port.mac, port.addresses, vtep, port.hostname) for vtep, port in places
    )


@dataclass(frozen=True, slots=True)
class Tunneled:
    """A guest's frame between nodes, and the outer packet around it."""

    vni: int
    inner: bytes
    outer_length: int
    is_fragment: bool


def tunneled(frames: Iterable[bytes]) -> Iterator[Tunneled]:
    """IPv4 underlays only."""
    for frame in frames:
        packet = frame[14:]
        if frame[12:14] != b"\x08\x00" or packet[9] != socket.IPPROTO_UDP:
            continue
        fragment: int = struct.unpack_from("!H", packet, 6)[0] & 0x3FFF
        header = (packet[0] & 15) * 4
        if fragment or struct.unpack_from("!H", packet, header + 2)[0] == VXLAN_PORT:
            vni = int.from_bytes(packet[header + 12 : header + 15], "big")
            length: int = struct.unpack_from("!H", packet, 2)[0]
            yield Tunneled(vni, packet[header + 16 :], length, bool(fragment))


@asynccontextmanager
async def open_cloud(count: int = 2, *, subnet: str = "192.0.2.0") -> AsyncIterator[Cloud]:
    directory = Path(tempfile.mkdtemp(prefix="agent-span-"))
    underlay, world = directory / "netns" / "underlay", directory / "netns" / "world"
    base = ip_address(subnet)
    nodes: list[Node] = []
    try:
        await asyncio.to_thread(_build_underlay, underlay, base + _STRANGER)
        await asyncio.to_thread(_build_world, world)
        for number in range(1, count + 1):
            address = base + number
            lab = Lab(directory / f"node{number}", underlay=address)
            lab.directory.mkdir()
            await asyncio.to_thread(lab.build)
            await asyncio.to_thread(_join_underlay, underlay, lab, number)
            await asyncio.to_thread(_join_world, world, lab, number)
            nodes.append(Node(lab, lab.driver(), address))
        yield Cloud(nodes, underlay, base + _STRANGER, world)
    finally:
        for node in nodes:
            await node.net.close()
            await asyncio.to_thread(node.lab.demolish)
        for namespace in (underlay, world):
            await asyncio.to_thread(netns.remove, namespace)
        await asyncio.to_thread(netns.remove_directory, underlay.parent)
        shutil.rmtree(directory)


def _build_underlay(underlay: Path, stranger: IPAddress) -> None:
    underlay.parent.parent.chmod(0o755)
    netns.create(underlay)
    with netns.inside(underlay), Netlink() as netlink:
        netlink.add_bridge(_UNDERLAY_BRIDGE, "02:00:00:00:ff:01")
    configure(underlay, _UNDERLAY_BRIDGE, stranger)


def _join_underlay(underlay: Path, lab: Lab, number: int) -> None:
    _plug(underlay, _UNDERLAY_BRIDGE, lab, f"node{number}", "eth1", f"02:00:00:00:fe:{number:02x}")
    configure(lab.host, "eth1", lab.underlay)


def _build_world(world: Path) -> None:
    netns.create(world)
    with netns.inside(world), Netlink() as netlink:
        netlink.add_bridge(WORLD_BRIDGE, "02:00:00:00:ff:02")
    configure(world, WORLD_BRIDGE, WORLD_GATEWAY)
    configure(world, "lo", FAR_HOST)
    with netns.inside(world), Netlink() as netlink:
        for name, address, length in ((WORLD_BRIDGE, WORLD_GATEWAY6, 48), ("lo", FAR_HOST6, 128)):
            link = netlink.find_link(name)
            assert link is not None
            netlink.ensure_address(LinkAddress(link.index, address, length))


def _join_world(world: Path, lab: Lab, number: int) -> None:
    _plug(world, WORLD_BRIDGE, lab, f"node{number}", WORLD_LINK, f"02:00:00:00:fd:{number:02x}")
    lab.uplinks[WORLD] = WORLD_LINK


def _plug(switch: Path, bridge_name: str, lab: Lab, name: str, link_name: str, mac: str) -> None:
    """A pair of links from the node to a bridge."""
    join(switch, name, lab.host, link_name, mac)
    with netns.inside(switch), Netlink() as netlink:
        bridge, port = netlink.find_link(bridge_name), netlink.find_link(name)
        assert bridge is not None
        assert port is not None
        netlink.change_link(bridge.index, up=True)
        netlink.change_link(port.index, master=bridge.index)


def tunnel_of(network: NetworkIntent) -> str:
    return names.tunnel_name(network.uid)
