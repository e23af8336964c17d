"""A node and guests out of network namespaces, for tests that send packets.

**Edge**: everything is in namespaces and one directory of its own; the machine's own state is not touched. A
guest is a namespace whose link bears the tap's name: the driver takes a link with a port's name as the tap.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from typing import TypeVar

from agent.net import dnsmasq, names, netns
from agent.net.driver import IPAddress, NetworkIntent, PortIntent, SubnetIntent
from agent.net.kernel_driver import KernelNet
from agent.net.netlink_ip import Address, Route
from agent.net.rtnetlink import Netlink
from agent.net.state import State
from cumulet.addresses import SLAAC_PREFIX_LENGTH, slaac_address

T = TypeVar("T")
UPLINK_CIDR = 24
HOST_ADDRESS = IPv4Address("203.0.113.2")
OUTSIDE_ADDRESS = IPv4Address("203.0.113.1")
_SLAAC_TRIES = 200  # two seconds are usual (a router is asked, an address tried); a busy machine is slower
_SLAAC_AGAIN_S = 0.1
_BUSYBOX = "/bin/busybox"
_DHCP_SCRIPT = """#!/bin/busybox sh
[ "$1" = bound ] || exit 0
[ -z "$mtu" ] || busybox ip link set "$interface" mtu "$mtu"
busybox ip addr add "$ip/$mask" dev "$interface"
busybox ip route add default via "$router"
echo "$ip $router $dns $domain $hostname" > "$ANSWER"
"""


def new_uid() -> str:
    return str(uuid.uuid4())


def network_intent(
    vni: int = 7, cidr: str = "10.7.0.0/24", cidr6: str = "", *, outbound_nat: bool = True, uid: str = ""
) -> NetworkIntent:
    """Dual stack with `cidr6`."""
    ranges = [ip_network(text) for text in (cidr, cidr6) if text]
    subnets = tuple(SubnetIntent(new_uid(), one, one[1], ()) for one in ranges)
    return NetworkIntent(uid or new_uid(), vni, subnets, outbound_nat, ())


def with_port(network: NetworkIntent, number: int, hostname: str = "") -> tuple[NetworkIntent, PortIntent]:
    """The network with one more port: the IPv4 subnet's `number`th address, and its MAC's in the IPv6 one.

    No group judges it, unless a test says which.
    """
    mac = f"52:54:00:{network.vni & 0xFF:02x}:{number >> 8:02x}:{number & 0xFF:02x}"
    addresses = tuple(
        cidr[number] if isinstance(cidr, IPv4Network) else slaac_address(cidr, mac)
        for cidr in (subnet.cidr for subnet in network.subnets)
    )
    port = PortIntent(new_uid(), network.uid, mac, addresses, hostname or f"vm{number}", None)
    ports = tuple(sorted((*network.ports, port), key=lambda one: one.uid))
    return replace(network, ports=ports), port


@dataclass(frozen=True, slots=True)
class DhcpAnswer:
    address: str
    router: str
    dns: str
    domain: str
    hostname: str


class Lab:
    """One node with an uplink to an "outside" namespace."""

    def __init__(self, directory: Path, underlay: IPAddress = HOST_ADDRESS) -> None:
        self.directory = directory
        self.underlay = underlay
        self.netns_dir = directory / "netns"
        self.state_dir = directory / "state"
        self.host = self.netns_dir / "host"
        self.outside = self.netns_dir / "outside"
        self.uplinks: dict[str, str] = {}  # links to external networks, by the name that plans use
        self._script = directory / "dhcp-script"

    def driver(self, underlay: IPAddress | None = None, *, spans: bool = True) -> KernelNet:
        """Its tunnels end at the node's address, or at another one; or there are none."""
        end = (underlay or self.underlay) if spans else None
        return KernelNet(
            self.state_dir,
            netns_dir=self.netns_dir,
            host_netns=self.host,
            underlay=end,
            uplinks=self.uplinks,
        )

    async def inside(self, namespace: Path, work: Callable[[], T]) -> T:
        """Run a function in a thread that is in this namespace."""

        def entered() -> T:
            with netns.inside(namespace):
                return work()

        return await asyncio.to_thread(entered)

    async def run(self, namespace: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return await self.inside(
            namespace,
            lambda: subprocess.run(
                argv,
                capture_output=True,
                text=True,
                check=False,
                timeout=30,
                env={**os.environ, **environment},
            ),
        )

    def namespace_of(self, network: NetworkIntent) -> Path:
        return self.netns_dir / names.namespace_name(network.uid)

    async def plug_guest(self, port: PortIntent, mac: str = "") -> Path:
        """A guest behind the port's tap. Call before `ensure_port`."""
        guest = self.netns_dir / f"guest-{port.uid}"
        await asyncio.to_thread(netns.create, guest)
        await asyncio.to_thread(join, self.host, names.tap_name(port.uid), guest, "eth0", mac or port.mac)
        return guest

    async def dhcp(self, guest: Path) -> DhcpAnswer | None:
        """What DHCP answered and the guest took; None when nobody did."""
        answer = self.directory / f"answer-{guest.name}"
        client = (_BUSYBOX, "udhcpc", "-O", "mtu", "-i", "eth0", "-f", "-q", "-n", "-t", "4", "-T", "1")
        await self.run(guest, *client, "-s", str(self._script), ANSWER=str(answer))
        return DhcpAnswer(*answer.read_text().split()) if answer.exists() else None

    async def ping(self, guest: Path, target: object, tries: int = 1) -> bool:
        """A new link may drop packets until the kernel has noticed its carrier, up to a second: try again."""
        for _ in range(tries):
            verb = "ping6" if ":" in str(target) else "ping"
            done = await self.run(guest, _BUSYBOX, verb, "-c", "1", "-W", "1", str(target))
            if done.returncode == 0:
                return True
        return False

    async def has_ipv6(self, guest: Path, address: object) -> bool:
        """The guest made itself this address, and found nobody else with it."""
        for _ in range(_SLAAC_TRIES):
            shown = await self.run(guest, "ip", "-6", "address", "show", "dev", "eth0", "-tentative")
            if f" {address}/" in shown.stdout:
                return True
            await asyncio.sleep(_SLAAC_AGAIN_S)
        return False

    async def host_links(self) -> set[str]:
        """All of them, also those that bear no mark yet."""

        def gather() -> set[str]:
            with Netlink() as netlink:
                return {link.name for link in netlink.links()}

        return await self.inside(self.host, gather)

    def server_pid(self, network: NetworkIntent) -> int | None:
        home = self.netns_dir / names.namespace_name(network.router_uid or network.uid)
        return dnsmasq.find_pid(State(self.state_dir).files(network.uid), home)

    def build(self) -> None:
        self.directory.chmod(0o755)
        self._script.write_text(_DHCP_SCRIPT)
        self._script.chmod(0o755)
        netns.create(self.host)
        netns.create(self.outside)
        join(self.host, "eth0", self.outside, "eth0", "02:00:00:00:00:01")
        configure(self.host, "eth0", HOST_ADDRESS)
        configure(self.outside, "eth0", OUTSIDE_ADDRESS)
        with netns.inside(self.host), Netlink() as netlink:
            link = netlink.find_link("eth0")
            assert link is not None
            netlink.ensure_route(Route(None, 0, link.index, OUTSIDE_ADDRESS))

    def demolish(self) -> None:
        """Also what a failed test left behind."""
        state = State(self.state_dir)
        for uid in state.network_uids():
            dnsmasq.stop(state.files(uid))
        for entry in list(self.netns_dir.iterdir()):
            netns.remove(entry)
        netns.remove_directory(self.netns_dir)
        shutil.rmtree(self.directory)


@asynccontextmanager
async def open_lab() -> AsyncIterator[Lab]:
    lab = Lab(Path(tempfile.mkdtemp(prefix="agent-net-")))
    try:
        await asyncio.to_thread(lab.build)
        yield lab
    finally:
        await asyncio.to_thread(lab.demolish)


def join(outer: Path, name: str, inner: Path, inner_name: str, inner_mac: str) -> None:
    """A pair of links, both up."""
    inner_fd = netns.open_namespace(inner)
    try:
        with netns.inside(outer), Netlink() as netlink:
            netlink.add_veth(name, inner_name, inner_mac, inner_fd)
            _up(netlink, name)
        with netns.inside(inner), Netlink() as netlink:
            _up(netlink, "lo")
            _up(netlink, inner_name)
    finally:
        os.close(inner_fd)


def configure(namespace: Path, link_name: str, address: IPAddress) -> None:
    with netns.inside(namespace), Netlink() as netlink:
        _up(netlink, "lo")
        link = netlink.find_link(link_name)
        assert link is not None
        length = UPLINK_CIDR if address.version == 4 else SLAAC_PREFIX_LENGTH
        netlink.ensure_address(Address(link.index, address, length))


def _up(netlink: Netlink, name: str) -> None:
    link = netlink.find_link(name)
    assert link is not None
    netlink.change_link(link.index, up=True)
