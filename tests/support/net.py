"""The nodes that the network driver's contract runs on.

**Edge**: a fake, or the kernel in namespaces.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

from agent.net import names
from agent.net.driver import Net, PortIntent
from agent.net.fake import FakeHost, FakeNet
from tests.unit.agent_net import frames, probes
from tests.unit.agent_net.lab import Lab, open_lab

SIZE_BYTES = 64
_NOBODYS = IPv4Address("192.0.2.77")
_ECHO = 7
_NO_IPV6 = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")

UPLINK = "outside"  # a link to an external network, as plans call it


@dataclass(frozen=True, slots=True)
class World:
    """`restart` gives a new driver over the same node, as a restarted agent has it.

    `plug` puts a guest behind a port that is about to be ensured; it says nothing by itself. `send` has that
    guest send so many frames of SIZE_BYTES to another port: as itself, or with an address of somebody else.
    """

    net: Net
    restart: Callable[[], Net]
    plug: Callable[[PortIntent], Awaitable[None]]
    send: Callable[[PortIntent, PortIntent, int, bool], Awaitable[None]]


@asynccontextmanager
async def fake_world() -> AsyncIterator[World]:
    host = FakeHost(uplinks={UPLINK})

    async def plug(_: PortIntent) -> None:
        pass

    async def send(source: PortIntent, target: PortIntent, count: int, honest: bool) -> None:
        host.send(source.uid, target.uid, count, SIZE_BYTES, honest=honest)

    yield World(FakeNet(host), lambda: FakeNet(host), plug, send)


@asynccontextmanager
async def kernel_world() -> AsyncIterator[World]:
    async with open_lab() as lab:
        lab.uplinks[UPLINK] = "eth0"
        drivers: list[Net] = []

        def restart() -> Net:
            drivers.append(lab.driver())
            return drivers[-1]

        yield World(restart(), restart, partial(_plug, lab), partial(_send, lab))
        for driver in drivers:
            await driver.close()


async def _plug(lab: Lab, port: PortIntent) -> None:
    guest = await lab.plug_guest(port)
    await silence(lab, guest, lab.netns_dir / names.namespace_name(port.network_uid))


async def silence(lab: Lab, *namespaces: Path) -> None:
    """Without IPv6, of which a kernel sends what nobody asked it for; some would be among the counted."""
    for namespace in namespaces:
        await lab.inside(namespace, partial(_NO_IPV6.write_text, "1"))


async def _send(lab: Lab, source: PortIntent, target: PortIntent, count: int, honest: bool) -> None:
    own, other = source.addresses[0], target.addresses[0]
    assert isinstance(own, IPv4Address)
    assert isinstance(other, IPv4Address)
    empty = frames.udp(target.mac, source.mac, own if honest else _NOBODYS, other, _ECHO, b"")
    frame = frames.udp(
        target.mac, source.mac, own if honest else _NOBODYS, other, _ECHO, bytes(SIZE_BYTES - len(empty))
    )
    await lab.inside(lab.netns_dir / f"guest-{source.uid}", partial(probes.send_frames, [frame] * count))
