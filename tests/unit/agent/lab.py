"""One fake node with its agent, and a leader of a few lines: for scenarios on virtual time.

**Edge**: mutable. The fakes' hosts outlive the agent, so an agent can be killed and started anew.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from agent.drivers import Drivers
from agent.hypervisor import fake as hypervisor_fake
from agent.journal import MemoryJournal
from agent.leader import Leader
from agent.net import fake as net_fake
from agent.reconcile import Agent
from agent.session import NodeIdentity, Uplink
from agent.storage import fake as storage_fake
from cumulet.link import ControllerEnd, LinkClosedError
from cumulet.v1 import agent_pb2 as pb
from cumulet.v1 import meta_pb2, node_pb2
from tests.sim.link import Faults, Listener, MemoryLink
from tests.sim.loop import LoopClock, run_virtual

from .build import FILES, NODE, plan

ADDRESS = "c1:7443"
PATIENCE_S = 900.0  # virtual: a scenario that takes longer is stuck
UPLINKS = {"office": "eth1"}


@dataclass
class TinyLeader:
    """Welcomes sessions, sends each the newest plan, acknowledges heartbeats, folds reports."""

    heartbeat_interval_s: int = 5
    silent: bool = False  # takes everything and answers nothing
    plan: pb.NodePlan = field(default_factory=plan)
    hellos: list[pb.AgentHello] = field(default_factory=list)
    reports: list[pb.AgentReport] = field(default_factory=list)
    replies: dict[str, pb.AgentReply] = field(default_factory=dict)
    instances: dict[str, pb.ObservedInstance] = field(default_factory=dict)
    unknown: dict[str, pb.ObservedInstance] = field(default_factory=dict)
    _sessions: dict[str, ControllerEnd] = field(default_factory=dict)

    async def accept(self, end: ControllerEnd) -> None:
        hello = (await end.receive()).hello
        self.hellos.append(hello)
        await end.send(
            pb.ControllerMessage(welcome=pb.Welcome(heartbeat_interval_s=self.heartbeat_interval_s))
        )
        self._sessions[hello.session_nonce] = end
        try:
            await self._send_plan(hello.session_nonce, end)
            while True:
                await self._take(await end.receive(), end)
        finally:
            del self._sessions[hello.session_nonce]

    async def set_plan(self, plan: pb.NodePlan) -> None:
        """The newest plan from now on, one revision higher."""
        plan.version.CopyFrom(self.plan.version)
        plan.version.revision += 1
        self.plan = plan
        for nonce, end in list(self._sessions.items()):
            with suppress(LinkClosedError):
                await self._send_plan(nonce, end)

    async def send(self, message: pb.ControllerMessage) -> None:
        for end in list(self._sessions.values()):
            await end.send(message)

    async def _send_plan(self, nonce: str, end: ControllerEnd) -> None:
        message = pb.ControllerMessage(plan=self.plan)
        message.plan.session_nonce = nonce
        await end.send(message)

    async def _take(self, message: pb.AgentMessage, end: ControllerEnd) -> None:
        match message.WhichOneof("kind"):
            case "heartbeat" if not self.silent:
                ack = pb.HeartbeatAck(sequence=message.heartbeat.sequence)
                await end.send(pb.ControllerMessage(heartbeat_ack=ack))
            case "report":
                self._fold(message.report)
            case "reply":
                self.replies[message.reply.request_id] = message.reply

    def _fold(self, report: pb.AgentReport) -> None:
        self.reports.append(report)
        if report.full:
            self.instances.clear()
            self.unknown.clear()
        self.instances.update({seen.uid: seen for seen in report.instances})
        self.unknown.update({seen.uid: seen for seen in report.unknown})


class Lab:
    """A node: its machine, its network, its disk, its journal, and whatever agent runs at the moment."""

    def __init__(self, group: asyncio.TaskGroup, faults: Faults | None = None) -> None:
        self.machine = hypervisor_fake.FakeHost()
        self.kernel = net_fake.FakeHost(uplinks=set(UPLINKS))
        self.disk = storage_fake.FakeStore()
        self.journal = MemoryJournal()
        self.leader = TinyLeader()
        self.link = MemoryLink(group, faults)
        self.link.serve(ADDRESS, Listener(self.leader.accept, files=FILES))
        self.wrap: Callable[[Drivers], Drivers] = lambda drivers: drivers
        self.addresses: tuple[str, ...] = (ADDRESS,)
        self.agent: Agent | None = None
        self.uplink: Uplink | None = None
        self._group = group
        self._task: asyncio.Task[None] | None = None
        self._agents = 0

    def start(self) -> None:
        """A new agent on what is there."""
        self._agents += 1
        self._task = self._group.create_task(self._run(random.Random(self._agents)))

    async def kill(self) -> None:
        """The agent dies where it stands."""
        assert self._task is not None
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._task = None

    async def until(self, holds: Callable[[], bool]) -> None:
        """Virtual time passes until something holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110  # no event tells when a test's wish has come true
                await asyncio.sleep(0.05)

    def conditions(self, kind: str) -> list[meta_pb2.Condition]:
        """Every word about this condition of the node, in order."""
        told = (condition for report in self.leader.reports for condition in report.node_conditions)
        return [condition for condition in told if condition.type == kind]

    def state(self, instance_uid: str) -> pb.DomainState.ValueType:
        seen = self.leader.instances.get(instance_uid)
        return pb.DOMAIN_STATE_UNSPECIFIED if seen is None else seen.state

    async def _run(self, rng: random.Random) -> None:
        drivers = self.wrap(
            Drivers(
                hypervisor_fake.FakeHypervisor(self.machine),
                net_fake.FakeNet(self.kernel),
                storage_fake.FakeStorage(self.disk),
                kvm=True,
            )
        )
        leader = Leader(self.link)
        clock = LoopClock()
        self.agent = Agent(NODE, drivers, self.journal, leader, clock, rng, UPLINKS)
        self.uplink = Uplink(self.addresses, IDENTITY, self.agent, self.link, leader, clock, rng)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.agent.run())
                group.create_task(self.uplink.run())
        finally:
            self.machine._wakes.clear()


IDENTITY = NodeIdentity(
    node=NODE,
    agent_version="0.1.0",
    boot_id="boot-1",
    capacity=meta_pb2.Resources(vcpu=8, memory_mib=8192, disk_gib=100),
    virt_type=node_pb2.VIRT_TYPE_KVM,
    labels=(("rack", "a"),),
    address="10.0.0.2",
)


def in_lab(
    scenario: Callable[[Lab], Coroutine[Any, Any, None]],
    faults: Faults | None = None,
    seed: int | None = None,
) -> None:
    """Run a scenario to its end; the agent is killed after it."""

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            lab = Lab(group, faults)
            await scenario(lab)
            if lab._task is not None:
                await lab.kill()
            await lab.link.stop(ADDRESS)

    run_virtual(main(), seed)
