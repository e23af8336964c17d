"""One more port in a network of many: from the API call until every node concerned has programmed it.

**Edge**: etcd and a controller as processes of their own; the real agent code over fake drivers in this one.
A node has programmed a port when its driver holds the entry (its own node: the tap) and, since the default
group refers to itself, the member's address.

All agents share this process, and so one processor: what each of them needs is told apart from the time that
passes, since real nodes need it at once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import structlog
import uvloop

from agent.drivers import Drivers
from agent.hypervisor.fake import FakeHost as FakeMachine
from agent.hypervisor.fake import FakeHypervisor
from agent.journal import MemoryJournal
from agent.leader import Leader
from agent.link_grpc import GrpcDialer
from agent.net.driver import GroupIntent, PortIntent, RemotePort
from agent.net.fake import FakeNet
from agent.reconcile import Agent
from agent.session import NodeIdentity, Uplink
from agent.storage.fake import FakeStorage, FakeStore
from cumulet.clock import SystemClock
from cumulet.v1 import agent_pb2, meta_pb2, node_pb2
from tests.bench.fleet import cpu_s, create_all, free_port, process, seed, wait_serving
from tests.bench.report import Suite
from tests.support.etcd import EtcdServer

NODES = 100
PORTS = (10, 100, 1_000, 10_000)
CHANGES = 10
# Ports made at once. All agents share a processor: together they take some 80 ms for one port among 10,000,
# and lose their sessions in a backlog of 20 s.
FILL_STEP = 100
TIMEOUT_S = 600.0
_VCPU, _MEMORY_MIB, _DISK_GIB = 4_096, 16 * 2**20, 2**20  # of a node: ports are what is counted here


@dataclass(slots=True)
class Seen:
    """What one node's driver has programmed, and what its agent was sent."""

    taps: set[str] = field(default_factory=set)
    remotes: int = 0
    members: int = 0
    directory_bytes: int = 0
    plan_bytes: int = 0


class WatchedNet(FakeNet):
    """Tells of everything that is programmed."""

    def __init__(self, seen: Seen, tell: Callable[[], None]) -> None:
        super().__init__()
        self._seen = seen
        self._tell = tell

    async def ensure_port(self, port: PortIntent) -> None:
        await super().ensure_port(port)
        self._seen.taps.add(port.uid)
        self._tell()

    async def ensure_directory(self, network_uid: str, remotes: frozenset[RemotePort]) -> None:
        await super().ensure_directory(network_uid, remotes)
        self._seen.remotes = len(remotes)
        self._tell()

    async def ensure_group(self, group: GroupIntent) -> None:
        await super().ensure_group(group)
        self._seen.members = len(group.members)
        self._tell()


class CountedEnd:
    """An agent's end of a session that counts the bytes of plans and directories."""

    def __init__(self, end: Any, seen: Seen) -> None:
        self._end = end
        self._seen = seen

    async def send(self, message: agent_pb2.AgentMessage) -> None:
        await self._end.send(message)

    async def receive(self) -> agent_pb2.ControllerMessage:
        message: agent_pb2.ControllerMessage = await self._end.receive()
        kind = message.WhichOneof("kind")
        if kind == "plan":
            self._seen.plan_bytes += message.ByteSize()
        elif kind == "directory":
            self._seen.directory_bytes += message.ByteSize()
        return message

    async def close(self) -> None:
        await self._end.close()


class CountingDialer(GrpcDialer):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self._seen = seen

    async def open_session(self, address: str) -> Any:
        return CountedEnd(await super().open_session(address), self._seen)


class Fleet:
    """All nodes, and a condition that is told of every effect of any of them."""

    def __init__(self) -> None:
        self.seen = [Seen() for _ in range(NODES)]
        self.uplinks: list[Uplink] = []
        self._more = asyncio.Event()

    def tell(self) -> None:
        self._more.set()

    def build(self, index: int, controller: str) -> tuple[Agent, Uplink]:
        seen, name = self.seen[index], f"sim-{index:03d}"
        rng, clock, dialer = random.Random(index), SystemClock(), CountingDialer(self.seen[index])
        leader = Leader(dialer)
        machine = FakeMachine(vcpu=_VCPU, memory_mib=_MEMORY_MIB, boot_s=0.01, name=name)
        storage = FakeStorage(FakeStore(capacity_gib=_DISK_GIB))
        drivers = Drivers(FakeHypervisor(machine), WatchedNet(seen, self.tell), storage, kvm=True)
        agent = Agent(name, drivers, MemoryJournal(), leader, clock, rng)
        identity = NodeIdentity(
            name,
            "bench",
            f"{name}-boot",
            meta_pb2.Resources(vcpu=_VCPU, memory_mib=_MEMORY_MIB, disk_gib=_DISK_GIB),
            node_pb2.VIRT_TYPE_KVM,
            (),
            "127.0.0.1",
            underlay_address=f"192.0.2.{index + 1}",
        )
        return agent, Uplink((controller,), identity, agent, dialer, leader, clock, rng)

    async def wait(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not holds():
                self._more.clear()
                await self._more.wait()

    def has_all(self, count: int) -> bool:
        taps = sum(len(seen.taps) for seen in self.seen)
        return taps == count and all(
            len(seen.taps) + seen.remotes == count and seen.members == count
            for seen in self.seen
            if seen.taps
        )

    def sessions_lost(self) -> int:
        return sum(uplink.sessions for uplink in self.uplinks) - NODES

    def concerned(self) -> int:
        """Nodes with a port of the network."""
        return sum(bool(seen.taps) for seen in self.seen)


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds of the processes so far, and bytes that all agents were sent."""

    controller_s: float
    etcd_s: float
    agents_s: float
    directory_bytes: int
    plan_bytes: int

    def since(self, before: Spent) -> Spent:
        return Spent(
            self.controller_s - before.controller_s,
            self.etcd_s - before.etcd_s,
            self.agents_s - before.agents_s,
            self.directory_bytes - before.directory_bytes,
            self.plan_bytes - before.plan_bytes,
        )


@dataclass(frozen=True, slots=True)
class Processes:
    controller: int
    etcd: int

    def spent(self, fleet: Fleet) -> Spent:
        agents_s = time.process_time()
        directory_bytes = sum(seen.directory_bytes for seen in fleet.seen)
        plan_bytes = sum(seen.plan_bytes for seen in fleet.seen)
        return Spent(cpu_s(self.controller), cpu_s(self.etcd), agents_s, directory_bytes, plan_bytes)


@asynccontextmanager
async def running_fleet(controller: str) -> AsyncIterator[Fleet]:
    fleet = Fleet()
    tasks: list[asyncio.Task[None]] = []
    try:
        for index in range(NODES):
            agent, uplink = fleet.build(index, controller)
            fleet.uplinks.append(uplink)
            tasks += [asyncio.create_task(agent.run()), asyncio.create_task(uplink.run())]
        async with asyncio.timeout(TIMEOUT_S):
            while not all(uplink.welcomed for uplink in fleet.uplinks):  # noqa: ASYNC110 (polls many at once)
                await asyncio.sleep(0.05)
        yield fleet
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def measure(suite: Suite, sizes: tuple[int, ...] = PORTS) -> None:
    """`port_change_s`, `port_change_bytes` and what each side computes, for networks of these sizes."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-net-")))
        etcd = stack.enter_context(EtcdServer())
        address = f"unix:{directory}/api.sock"
        arguments = ("--etcd", etcd.endpoint, "--listen", address, "--data-dir", str(directory / "data"))
        metrics = ("--metrics-address", f"127.0.0.1:{free_port()}", "--placement-policy", "spread")
        log = directory / "controller.log"
        controller = stack.enter_context(process(log, "controller.main", *arguments, *metrics))
        wait_serving(address)
        uvloop.run(_measure(suite, address, Processes(controller.pid, etcd.pid), sizes))


async def _measure(suite: Suite, address: str, processes: Processes, sizes: tuple[int, ...]) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        await seed(channel, max(sizes) + len(sizes) * CHANGES + 10)
        async with running_fleet(address) as fleet:
            there = 0
            for size in sizes:
                started = time.perf_counter()
                added = size - there
                while there < size:
                    step = min(FILL_STEP, size - there)
                    await create_all(channel, step, f"fill-{there}")
                    there += step
                    await fleet.wait(partial(fleet.has_all, there))
                set_up_s = time.perf_counter() - started
                before, times = processes.spent(fleet), []
                for number in range(CHANGES):
                    there += 1
                    times.append(await _change(channel, fleet, f"one-{size}-{number}", there))
                context = {"ports": size, "nodes": NODES, "changes": CHANGES}
                suite.figure("port_change_s", statistics.median(times), "s", **context, max_s=max(times))
                _report(suite, context, fleet.concerned(), processes.spent(fleet).since(before))
                lost = fleet.sessions_lost()
                suite.figure("port_set_up_per_s", added / set_up_s, "1/s", **context, sessions_lost=lost)


def _report(suite: Suite, context: Mapping[str, object], concerned: int, spent: Spent) -> None:
    # Each node that is concerned is told of the port, and the port's own gets its plan: all of its instances.
    told = {"directory": spent.directory_bytes / CHANGES / concerned, "plan": spent.plan_bytes / CHANGES}
    sent = (spent.directory_bytes + spent.plan_bytes) / CHANGES / NODES
    rounded = {f"{name}_bytes": round(size, 1) for name, size in told.items()}
    suite.figure("port_change_bytes", sent, "B", **context, per="change and node", **rounded)
    per_change_ms = 1000 / CHANGES
    suite.figure("port_change_controller_cpu_ms", spent.controller_s * per_change_ms, "ms", **context)
    suite.figure("port_change_etcd_cpu_ms", spent.etcd_s * per_change_ms, "ms", **context)
    agent_ms = spent.agents_s * per_change_ms / concerned
    per = "change and node concerned"
    suite.figure("port_change_agent_cpu_ms", agent_ms, "ms", **context, concerned=concerned, per=per)


async def _change(channel: grpc.aio.Channel, fleet: Fleet, name: str, count: int) -> float:
    """Seconds from the call until every node that is concerned has programmed one port more: `count`."""
    started = time.perf_counter()
    await create_all(channel, 1, name)
    await fleet.wait(lambda: fleet.has_all(count))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ports", type=int, nargs="+", default=PORTS, help="sizes, ascending")
    measure(Suite("net-ports"), tuple(parser.parse_args().ports))


if __name__ == "__main__":
    main()
