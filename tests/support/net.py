"""The nodes that the network driver's contract runs on.

**Edge**: a fake, or the kernel in namespaces.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agent.net.driver import Net
from agent.net.fake import FakeHost, FakeNet
from tests.unit.agent_net.lab import open_lab

UPLINK = "outside"  # a link to an external network, as plans call it


@dataclass(frozen=True, slots=True)
class World:
    """`restart` gives a new driver over the same node, as a restarted agent has it."""

    net: Net
    restart: Callable[[], Net]


@asynccontextmanager
async def fake_world() -> AsyncIterator[World]:
    host = FakeHost(uplinks={UPLINK})
    yield World(FakeNet(host), lambda: FakeNet(host))


@asynccontextmanager
async def kernel_world() -> AsyncIterator[World]:
    async with open_lab() as lab:
        lab.uplinks[UPLINK] = "eth0"
        drivers: list[Net] = []

        def restart() -> Net:
            drivers.append(lab.driver())
            return drivers[-1]

        yield World(restart(), restart)
        for driver in drivers:
            await driver.close()
