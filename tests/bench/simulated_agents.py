"""Many agents in one process: the real agent code over fake drivers, over real gRPC.

**Edge**: dials a controller. Prints `ready` when every agent has a session.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys

import structlog
import uvloop

from agent.drivers import Drivers
from agent.hypervisor.fake import FakeHost, FakeHypervisor
from agent.journal import MemoryJournal
from agent.leader import Leader
from agent.link_grpc import GrpcDialer
from agent.net.fake import FakeHost as FakeKernel
from agent.net.fake import FakeNet
from agent.reconcile import Agent
from agent.session import NodeIdentity, Uplink
from agent.storage.fake import FakeStorage, FakeStore
from cumulet.clock import SystemClock
from cumulet.v1 import meta_pb2, node_pb2, placement_pb2

BOOT_S = 1.0  # as the issue asks: boots take a second
VCPU, MEMORY_MIB, DISK_GIB = 16, 65_536, 1_024
TICK_S = 0.1


def build_agent(
    name: str,
    controller: str,
    seed: int,
    devices: tuple[placement_pb2.Device, ...] = (),
    uplinks: tuple[str, ...] = (),
) -> tuple[Agent, Uplink]:
    rng = random.Random(seed)
    clock = SystemClock()
    dialer = GrpcDialer()
    leader = Leader(dialer)
    host = FakeHost(vcpu=VCPU, memory_mib=MEMORY_MIB, boot_s=BOOT_S, name=name)
    drivers = Drivers(
        FakeHypervisor(host),
        FakeNet(FakeKernel(uplinks=set(uplinks))),
        FakeStorage(FakeStore(capacity_gib=DISK_GIB)),
        kvm=True,
    )
    agent = Agent(name, drivers, MemoryJournal(), leader, clock, rng)
    capacity = meta_pb2.Resources(vcpu=VCPU, memory_mib=MEMORY_MIB, disk_gib=DISK_GIB)
    identity = NodeIdentity(
        name,
        "bench",
        f"{name}-boot",
        capacity,
        node_pb2.VIRT_TYPE_KVM,
        (),
        "127.0.0.1",
        devices=devices,
        uplinks=uplinks,
    )
    return agent, Uplink((controller,), identity, agent, dialer, leader, clock, rng)


async def run(controller: str, count: int) -> None:
    async with asyncio.TaskGroup() as group:
        uplinks = []
        for index in range(count):
            agent, uplink = build_agent(f"sim-{index:04d}", controller, index)
            uplinks.append(uplink)
            group.create_task(agent.run())
            group.create_task(uplink.run())
        while not all(uplink.welcomed for uplink in uplinks):  # noqa: ASYNC110 (polls many at once)
            await asyncio.sleep(TICK_S)
        print("ready", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Many simulated agents in one process")
    parser.add_argument("--controller", required=True)
    parser.add_argument("--agents", type=int, default=100)
    options = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    uvloop.run(run(options.controller, options.agents))


if __name__ == "__main__":
    main()
