"""A simulated node: a machine that outlives its agent, and the agent process on it.

**Pure** but for the event loop: the real agent over the fakes of hypervisor, kernel and disk.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from agent.drivers import Drivers
from agent.hypervisor import fake as hypervisor_fake
from agent.hypervisor.driver import DomainSpec
from agent.journal import MemoryJournal
from agent.leader import Leader
from agent.net import fake as net_fake
from agent.reconcile import Agent
from agent.session import NodeIdentity, Uplink
from agent.storage import fake as storage_fake
from cumulet.v1 import agent_pb2, meta_pb2, node_pb2
from tests.sim.link import Faults, MemoryLink
from tests.sim.loop import LoopClock
from tests.sim.oracle import Capacity, Oracle
from tests.sim.process import Process
from tests.sim.trace import Trace

PLANS_KEPT: Final = 200  # of each node, for replaying old ones
LINK_DELAY_S: Final = (0.0, 0.05)
BOOT_S: Final = 1.0
SHUTDOWN_S: Final = 2.0


class Machine(hypervisor_fake.FakeHost):
    """A host that tells the oracle what happens to its domains."""

    def __init__(self, name: str, capacity: Capacity, oracle: Oracle) -> None:
        super().__init__(
            vcpu=capacity.vcpu,
            memory_mib=capacity.memory_mib,
            boot_s=BOOT_S,
            shutdown_s=SHUTDOWN_S,
            name=name,
        )
        self._oracle = oracle

    def start(self, spec: DomainSpec, now_s: float) -> hypervisor_fake._Domain:
        self._oracle.on_start(self.name, spec.uid, spec.epoch, spec.memory_mib)
        return super().start(spec, now_s)

    def undefine(self, uid: str) -> None:
        domain = self.domains.get(uid)
        super().undefine(uid)
        if domain is not None:
            self._oracle.on_destroy(self.name, uid, domain.spec.epoch, "domain")

    def _stop(
        self, domain: hypervisor_fake._Domain, state: agent_pb2.DomainState.ValueType, reason: str
    ) -> None:
        super()._stop(domain, state, reason)
        self._oracle.on_end(self.name, domain.spec.uid, reason)


class Disk(storage_fake.FakeStorage):
    """A storage driver that tells the oracle which files go."""

    def __init__(self, store: storage_fake.FakeStore, machine: Machine, oracle: Oracle) -> None:
        super().__init__(store)
        self._machine = machine
        self._oracle = oracle

    async def ensure_absent(self, uid: str) -> None:
        held = uid in self.store.disks
        domain = self._machine.domains.get(uid)
        await super().ensure_absent(uid)
        if held:
            epoch = domain.spec.epoch if domain else None
            self._oracle.on_destroy(self._machine.name, uid, epoch, "disk")


class SimNode:
    """One machine with power, and its agent."""

    def __init__(
        self,
        name: str,
        capacity: Capacity,
        oracle: Oracle,
        trace: Trace,
        seed: str,
        addresses: tuple[str, ...],
    ) -> None:
        self.name = name
        self.machine = Machine(name, capacity, oracle)
        self.kernel = net_fake.FakeHost(auto_lease=True)
        self.disk = storage_fake.FakeStore(capacity_gib=capacity.disk_gib)
        self.journal = MemoryJournal()
        self.rng = random.Random(f"{seed}/{name}")
        self.link = MemoryLink(None, Faults(rng=random.Random(f"{seed}/{name}/link"), delay_s=LINK_DELAY_S))
        self.link.on_down = self._keep_plan
        self.plans: list[agent_pb2.NodePlan] = []
        self.powered = True
        self.process: Process | None = None
        self.agent: Agent | None = None
        self._capacity = capacity
        self._oracle = oracle
        self._trace = trace
        self._addresses = addresses
        self._starts = 0

    @property
    def alive(self) -> bool:
        return self.process is not None and not self.process.dead

    def start_agent(self) -> None:
        """A new agent on what is there."""
        assert self.powered
        assert not self.alive
        self._starts += 1
        self._trace.note(f"{self.name}: agent starts")
        self.process = Process(f"agent {self.name}", self._shut_sockets)
        self.process.spawn(self._run(random.Random(self.rng.random())))

    def kill_agent(self) -> None:
        if self.alive:
            assert self.process is not None
            self._trace.note(f"{self.name}: agent killed")
            self.process.kill()
        self._detach()

    def lose_power(self) -> None:
        """Everything on the machine ends at once; its peers hear nothing of it."""
        self._trace.note(f"{self.name}: power lost")
        self.powered = False
        for stream in self.link.streams:
            stream.lose_agent()
        self.kill_agent()
        self.machine.reboot_host()
        self.kernel.reboot()

    def restore_power(self) -> None:
        self._trace.note(f"{self.name}: power is back")
        self.powered = True
        self.start_agent()

    def drivers(self) -> Drivers:
        return Drivers(
            hypervisor_fake.FakeHypervisor(self.machine),
            net_fake.FakeNet(self.kernel),
            Disk(self.disk, self.machine, self._oracle),
            kvm=True,
        )

    async def _run(self, rng: random.Random) -> None:
        leader = Leader(self.link)
        clock = LoopClock()
        self.agent = Agent(self.name, self.drivers(), self.journal, leader, clock, rng)
        uplink = Uplink(self._addresses, self._identity(), self.agent, self.link, leader, clock, rng)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.agent.run())
                group.create_task(uplink.run())
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._trace.violate("crash", f"the agent of {self.name} died of {error!r}: {_leaves(error)}")

    def _identity(self) -> NodeIdentity:
        room = self._capacity
        return NodeIdentity(
            node=self.name,
            agent_version="sim",
            boot_id=f"{self.name}-boot-{self.machine.host_boots}",
            capacity=meta_pb2.Resources(
                vcpu=self.machine.vcpu, memory_mib=room.memory_mib, disk_gib=room.disk_gib
            ),
            virt_type=node_pb2.VIRT_TYPE_KVM,
            labels=(),
            address=self.name,
        )

    def _shut_sockets(self) -> None:
        for stream in self.link.streams:
            stream.up.end("closed by the other end")
            stream.down.abandon("closed by this end")

    def _detach(self) -> None:
        self.machine._wakes.clear()

    def _keep_plan(self, message: agent_pb2.ControllerMessage) -> None:
        if message.WhichOneof("kind") == "plan":
            self.plans.append(agent_pb2.NodePlan.FromString(message.plan.SerializeToString()))
            del self.plans[:-PLANS_KEPT]


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
