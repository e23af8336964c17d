"""Bridges, tunnels and routers without any rule beside a cloud's nodes: what its data plane is compared with.

**Edge**: a namespace for each node on the same underlay; guests get a second link to it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from agent.net import netns
from tests.unit.agent_net.lab import join
from tests.unit.agent_net.span import Cloud, Node

LINK: Final = "bare0"  # a guest's second one
_END_OFFSET: Final = 100  # of a bare node's underlay address from its node's
_VNI: Final = 4_000


@dataclass(frozen=True, slots=True)
class BareNodes:
    """`cidrs`: a bridge on each node for each of them; they reach each other by the node they are on."""

    cloud: Cloud
    cidrs: tuple[IPv4Network, ...]
    mtu: int

    async def build(self) -> None:
        for number, node in enumerate(self.cloud.nodes, start=1):
            await self._build_node(number, node)
            for index in range(len(self.cidrs)):
                await self._build_bridge(number, node, index)

    async def _build_node(self, number: int, node: Node) -> None:
        place, name = _namespace(node), f"bare{number}"
        await asyncio.to_thread(netns.create, place)
        await asyncio.to_thread(
            join, self.cloud.underlay, name, place, "under", f"02:00:00:00:fd:{number:02x}"
        )
        await _ip(node, self.cloud.underlay, "link", "set", name, "master", "under0")
        await _ip(node, place, "address", "add", f"{node.address + _END_OFFSET}/24", "dev", "under")
        await node.lab.inside(place, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))

    async def _build_bridge(self, number: int, node: Node, index: int) -> None:
        place, bridge, tunnel = _namespace(node), f"bridge{index}", f"tunnel{index}"
        own = str(node.address + _END_OFFSET)
        ends = ("id", str(_VNI + index), "local", own, "dstport", "4789")
        await _ip(node, place, "link", "add", bridge, "type", "bridge")
        await _ip(node, place, "link", "add", tunnel, "type", "vxlan", *ends)
        await _ip(node, place, "link", "set", tunnel, "master", bridge)
        for link in (bridge, tunnel):
            await _ip(node, place, "link", "set", link, "mtu", str(self.mtu), "up")
        cidr = self.cidrs[index]
        await _ip(node, place, "address", "add", f"{cidr[number]}/{cidr.prefixlen}", "dev", bridge)
        for other in self.cloud.nodes:
            if other is not node:
                flood = ("fdb", "append", "00:00:00:00:00:00", "dev", tunnel)
                await _run(node, place, "bridge", *flood, "dst", str(other.address + _END_OFFSET))

    async def plug(self, node: Node, guest: Path, name: str, index: int, host: int) -> str:
        """A guest's second link, with its address, which is returned."""
        place, cidr = _namespace(node), self.cidrs[index]
        await asyncio.to_thread(join, place, name, guest, LINK, f"02:00:00:00:fc:{host:02x}")
        await _ip(node, place, "link", "set", name, "mtu", str(self.mtu), "master", f"bridge{index}")
        await _ip(node, guest, "link", "set", LINK, "mtu", str(self.mtu))
        await _ip(node, guest, "address", "add", f"{cidr[host]}/{cidr.prefixlen}", "dev", LINK)
        gateway = str(cidr[1 + self.cloud.nodes.index(node)])
        for other in self.cidrs:
            if other != cidr:
                await _ip(node, guest, "route", "add", str(other), "via", gateway)
        return str(cidr[host])


def _namespace(node: Node) -> Path:
    return node.lab.netns_dir / "bare"


async def _ip(node: Node, place: Path, *words: str) -> None:
    await _run(node, place, "ip", *words)


async def _run(node: Node, place: Path, *argv: str) -> None:
    done = await node.lab.run(place, *argv)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} failed: {done.stderr.strip()}")
