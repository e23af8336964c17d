"""A cloud on paper whose data plane is real: random topologies, and packets that show what they do.

**Edge**: two nodes in namespaces. The controller's part is its pure functions over a State (admission, node
plans, directories, reach); the agent's part is the real agent over the kernel's network and fake guests: a
guest is a namespace behind its tap, and answers with the uid of its port, so that a packet that arrives at
somebody else's is seen.
"""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final

from agent.drivers import Drivers
from agent.hypervisor.fake import FakeHost, FakeHypervisor
from agent.journal import MemoryJournal
from agent.net import names, netns
from agent.net.netlink_ip import Address as LinkAddress
from agent.net.rtnetlink import Netlink
from agent.reconcile import Agent
from agent.storage.fake import FakeStorage, FakeStore
from controller.admit.provider import find_provider
from controller.admit.subnet import Address, addresses_of, range_of
from controller.balancers import resolve_members
from controller.floating import find_way
from controller.reach import come_in, find_near, reach_outside, reach_port
from controller.reach_balancer import (
    find_balancer,
    find_routed_balancer,
    reach_balancer,
    unanswered_outside,
)
from controller.reach_floating import find_floating, reach_from_outside
from controller.reach_provider import reach_from_segment
from controller.reach_steps import BALANCER, Traffic
from controller.reach_steps import Path as Way
from controller.reconcile.directory import Directory, Told, changed_ports, take_changes, underlay_changed
from controller.reconcile.nodeplan import compile_plan
from controller.routed import find_routed
from controller.state import Changed, State
from controller.store import keys
from controller.tables import Stored
from cumulet.clock import SystemClock
from cumulet.protocols import protocol_number
from cumulet.v1 import node_pb2, port_pb2, store_pb2
from tests.support.echo import echoing, ping, responder
from tests.unit.agent_net.lab import join
from tests.unit.agent_net.span import WORLD, WORLD_GATEWAY, WORLD_GATEWAY6, open_cloud
from tests.unit.agent_net.span import Cloud as Span
from tests.unit.agent_net.span import Node as SpanNode
from tests.unit.controller.cloud import SHA, Paper

NONCE: Final = "session"
CONVERGE_S: Final = 60.0
PORTS: Final = (80, 8080)  # that guests answer at
# The kernel notices the carrier of a link that was just made up to a second later; until then it drops.
TRIES_MAX: Final = 4
WARM_UP_S: Final = 0.4


@dataclass(frozen=True, slots=True)
class Probe:
    """One question: does a packet to this address arrive, and at whom? Without `source` the outside asks."""

    source: port_pb2.Port | None
    address: Address
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """`expected`: uids of ports any of which may answer, none for nobody; `answered`: who did, or empty."""

    probe: Probe
    way: Way
    expected: frozenset[str]
    answered: str
    tries: int

    @property
    def right(self) -> bool:
        return self.answered in self.expected if self.expected else not self.answered

    def describe(self) -> str:
        probe, steps = self.probe, "\n  ".join(f"{step.passes} {step.message}" for step in self.way.steps)
        source = probe.source.spec.instance if probe.source is not None else "the outside"
        told = f"expected {' or '.join(self.expected) or 'nobody'}, answered {self.answered or 'nobody'}"
        return f"{probe.protocol} {probe.port} from {source} to {probe.address}: {told}\n  {steps}"


class NoImages:
    """The store has the image already: nothing is fetched."""

    async def read(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        raise AssertionError(f"image {sha256} was fetched")
        yield b""


@dataclass(slots=True)
class NodeSide:
    """One node: its agent, and the leader's memory of the agent's session."""

    name: str
    span: SpanNode
    agent: Agent
    directory: Directory = field(default_factory=Directory)


class ReachWorld:
    """The cloud, its nodes and its guests. Change `paper`, then `settle`, then `probe`."""

    def __init__(self, span: Span, seed: int) -> None:
        self._span = span
        self.paper = Paper(seed)
        self.paper.lead()
        self._told: Told[NodeSide] = Told()
        self.nodes: list[NodeSide] = []
        self._runs: list[asyncio.Task[None]] = []
        self._guests: dict[str, tuple[NodeSide, Path, ExitStack]] = {}  # by port uid
        self.paper.state.listen(self._note)
        for number, one in enumerate(span.nodes, start=1):
            self._add_node(f"n{number}", one)

    @property
    def state(self) -> State:
        return self.paper.state

    def _add_node(self, name: str, span: SpanNode) -> None:
        store = FakeStore(capacity_gib=1_000)
        store.images[SHA] = b""
        drivers = Drivers(
            FakeHypervisor(FakeHost(vcpu=512, memory_mib=2**20, boot_s=0.0, name=name)),
            span.net,
            FakeStorage(store),
            kvm=True,
        )
        clock = SystemClock()
        agent = Agent(name, drivers, MemoryJournal(), NoImages(), clock, random.Random(name))
        agent.begin_session(NONCE, lambda: True, clock.monotonic)
        self.nodes.append(NodeSide(name, span, agent))
        self.paper.add_node(name, vcpu=512, memory_mib=2**20, disk_gib=10_000)
        row = self.state.find(keys.NODE_STATUS, name)
        assert row is not None
        status = node_pb2.NodeStatus()
        status.CopyFrom(row.message)
        status.underlay_address, status.underlay_mtu = str(span.address), 1500
        status.uplinks.append(WORLD)
        self.paper.put(keys.NODE_STATUS, (name,), status)

    def _note(self, changed: Changed) -> None:
        for port in changed_ports(self.state, changed):
            for side in self._told.about(port):
                side.directory.note(port)
        if underlay_changed(changed):
            for side in self.nodes:
                self._told.drop(side.name, side.directory)
                side.directory.forget()

    async def settle(self) -> None:
        """Guests are plugged and every node is as it was planned. Raises RuntimeError when one cannot."""
        for row in list(self.state.rows(keys.PORTS).values()):
            await self._plug(row.message)
        await self._converge()
        if self._announce():
            await self._converge()
        await self._unplug_gone()

    async def _converge(self) -> None:
        for side in self.nodes:
            self._tell(side)
        for side in self.nodes:
            await self._wait(side)

    def _announce(self) -> bool:
        """As the leader's announcer, after nodes let go of what is to be elsewhere. True for any change."""
        writes: dict[bytes, bytes | None] = {}
        rows = {row.message.meta.uid: row.message for row in self.state.rows(keys.FLOATING_IPS).values()}
        for uid in rows.keys() | {parts[0] for parts in self.state.rows(keys.ANNOUNCEMENTS)}:
            node = find_way(self.state, rows[uid]).node if uid in rows else ""
            record = self.state.find(keys.ANNOUNCEMENTS, uid)
            if node == (record.message.node if record is not None else ""):
                continue
            made = store_pb2.AnnouncementRecord(node=node)
            if node:
                made.project, made.name = rows[uid].meta.project, rows[uid].meta.name
            writes[keys.ANNOUNCEMENTS.key(uid)] = made.SerializeToString() if node else None
        if writes:
            self.paper.write(writes)
        return bool(writes)

    def _tell(self, side: NodeSide) -> None:
        plan = compile_plan(self.state, side.name, NONCE)
        self._told.drop(side.name, side.directory)
        for change in take_changes(self.state, side.name, plan, side.directory):
            side.agent.take_directory(change)
        self._told.add(side.name, side.directory, side)
        side.agent.offer(plan)

    async def _wait(self, side: NodeSide) -> None:
        wanted, seen = self.state.revision, -1
        try:
            async with asyncio.timeout(CONVERGE_S):
                while True:
                    snapshot = await side.agent.round_after(seen)
                    seen = snapshot.round
                    if snapshot.acted_on.revision >= wanted and not side.agent.failures():
                        return
        except TimeoutError:
            failures = [f"{key}: {failure.message}" for key, failure in side.agent.failures().items()]
            raise RuntimeError(f"node {side.name} is not as planned: {failures}") from None

    # -- guests -------------------------------------------------------------------------------------------

    async def _plug(self, port: port_pb2.Port) -> None:
        where = self.state.places.node_of(port)
        if port.meta.uid in self._guests or where is None:
            return
        (side,) = [one for one in self.nodes if one.name == where]
        lab = side.span.lab
        guest = lab.netns_dir / f"guest-{port.meta.uid}"
        await asyncio.to_thread(netns.create, guest)
        tap = names.tap_name(port.meta.uid)
        await asyncio.to_thread(join, lab.host, tap, guest, "eth0", port.spec.mac)
        await lab.inside(guest, lambda: self._configure(port))
        stack = ExitStack()
        await lab.inside(guest, lambda: stack.enter_context(echoing(PORTS, port.meta.uid)))
        self._guests[port.meta.uid] = (side, guest, stack)

    def _configure(self, port: port_pb2.Port) -> None:
        """As DHCP and router advertisements would, at once. Runs inside the guest."""
        for setting in ("accept_ra", "accept_dad"):
            Path(f"/proc/sys/net/ipv6/conf/eth0/{setting}").write_text("0")
        rows = self.state.subnets_of(port.meta.project, port.spec.network)
        ranges = [range_of(row.message.spec) for row in rows]
        with Netlink() as netlink:
            link = netlink.find_link("eth0")
            assert link is not None
            for address in map(ip_address, addresses_of(self.state, port)):
                (one,) = [found for found in ranges if address in found.cidr]
                length = one.cidr.prefixlen
                netlink.ensure_address(LinkAddress(link.index, address, length))
                subprocess.run(
                    ["ip", f"-{address.version}", "route", "replace", "default", "via", str(one.gateway)],
                    check=True,
                )

    async def _unplug_gone(self) -> None:
        there = {row.message.meta.uid for row in self.state.rows(keys.PORTS).values()}
        for uid in list(self._guests.keys() - there):
            await self._close_guest(uid)

    async def _close_guest(self, uid: str) -> None:
        _, guest, stack = self._guests.pop(uid)
        await asyncio.to_thread(stack.close)
        await asyncio.to_thread(netns.remove, guest)

    async def stop_agents(self) -> None:
        """From now on nothing on the nodes is repaired."""
        for run in self._runs:
            run.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)
        self._runs.clear()

    def start_agents(self) -> None:
        self._runs += [asyncio.create_task(side.agent.run()) for side in self.nodes]

    async def close(self) -> None:
        await self.stop_agents()
        for uid in list(self._guests):
            await self._close_guest(uid)

    # -- packets ------------------------------------------------------------------------------------------

    async def probe(self, probe: Probe) -> Outcome:
        """Predict, then send. Members of a load balancer that do not let it in take turns as well, and other
        probes take turns meanwhile: the more members, the more tries."""
        number = protocol_number(probe.protocol, probe.address.version)
        assert number is not None
        way, ends = self._foretell(probe, Traffic(probe.address.version, number, probe.port))
        meant = next(iter(ends), "somebody")
        tries, answered = 1, await self._send(probe, meant)
        while ends and not answered and tries < TRIES_MAX * len(ends):
            await asyncio.sleep(WARM_UP_S)
            tries, answered = tries + 1, await self._send(probe, meant)
        return Outcome(probe, way, ends if way.reachable else frozenset(), answered, tries)

    def _foretell(self, probe: Probe, traffic: Traffic) -> tuple[Way, frozenset[str]]:
        """The way, and at whom it may end."""
        state, source, address = self.state, probe.source, probe.address
        routed = find_routed(state, address) if isinstance(address, IPv6Address) else None
        served = find_routed_balancer(state, address)
        if source is None and served is not None:
            step = unanswered_outside(served)
            return Way(traffic.ip_version, str(WORLD_GATEWAY6), str(address), (step,)), frozenset()
        if source is None and isinstance(address, IPv6Address):
            assert routed is not None
            way = come_in(state, routed, WORLD_GATEWAY6, address, traffic)
            return way, frozenset({routed.meta.uid} if way.reachable else ())
        if source is None and (desk := self._find_desk(address)) is not None:
            way = reach_from_segment(state, WORLD_GATEWAY, desk, address, traffic)
            return way, frozenset({desk.meta.uid} if way.reachable else ())
        if source is None:
            floating = find_floating(state, address)
            assert floating is not None
            way = reach_from_outside(state, WORLD_GATEWAY, floating, traffic)
            return way, self._ends(way)
        balancer = find_balancer(state, source, address)
        if balancer is not None:
            way = reach_balancer(state, source, balancer, traffic)
            return way, self._ends(way)
        near = find_near(state, source, address)
        if near is None:  # outside of these nodes nobody answers, whatever leads there
            way = reach_outside(state, source, address, traffic)
            there = routed is not None and way.reachable
            return way, frozenset({routed.meta.uid} if there and routed is not None else ())
        way = reach_port(state, source, near, traffic, address)
        return way, frozenset({near.meta.uid} if way.reachable else ())

    def _find_desk(self, address: Address) -> port_pb2.Port | None:
        """The port that has the address on the outside's wire, untagged."""
        for row in self._ports():
            port: port_pb2.Port = row.message
            segment = find_provider(self.state, port.meta.project, port.spec.network)
            if segment is not None and not segment.vlan and str(address) in addresses_of(self.state, port):
                return port
        return None

    def _ends(self, way: Way) -> frozenset[str]:
        """Of a way that is reached: the port at its end, or whoever else its load balancer may choose, or the
        load balancer itself, which answers echo requests: then its address."""
        if not way.reachable:
            return frozenset()
        if way.steps[-1].kind == BALANCER:
            return frozenset({way.target})
        (end,) = (row.message for row in self._ports() if row.message.meta.name == way.steps[-1].name)
        for step in way.steps:
            if step.kind == BALANCER:
                (balancer,) = (
                    row.message
                    for row in self.state.rows(keys.LOAD_BALANCERS, end.meta.project).values()
                    if row.message.meta.name == step.name
                )
                members = {member.address for member in resolve_members(self.state, balancer)}
                ports = (row.message for row in self._ports() if row.message.meta.project == end.meta.project)
                return frozenset(
                    port.meta.uid for port in ports if members.intersection(addresses_of(self.state, port))
                )
        return frozenset({end.meta.uid})

    def _ports(self) -> list[Stored]:
        return list(self.state.rows(keys.PORTS).values())

    async def _send(self, probe: Probe, meant: str) -> str:
        """Who answered. A ping's answer does not say: it counts as that of whom the source means."""
        if probe.source is None:
            lab, namespace = self.nodes[0].span.lab, self._span.world
        else:
            side, namespace, _ = self._guests[probe.source.meta.uid]
            lab = side.span.lab
        target = str(probe.address)
        if probe.protocol == "icmp":
            return meant if await lab.inside(namespace, lambda: ping(target)) else ""
        kind = socket.SOCK_STREAM if probe.protocol == "tcp" else socket.SOCK_DGRAM
        return await lab.inside(namespace, lambda: responder(kind, target, probe.port))


@asynccontextmanager
async def open_reach_world(seed: int) -> AsyncIterator[ReachWorld]:
    async with open_cloud(2) as span:
        world = ReachWorld(span, seed)
        world.start_agents()
        try:
            yield world
        finally:
            await world.close()
