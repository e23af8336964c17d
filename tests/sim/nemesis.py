"""What goes wrong, and when: seeded faults against replicas, agents, machines, links, watches and the store.

**Pure** but for the event loop. Every fault ends by itself, and at the latest when `over` is set; a machine
is declared off only while it is off, and comes back only after the API has said so.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from agent.errors import DriverError
from agent.net.fake import Method
from cumulet.errors import CumuletError, NotFoundError
from cumulet.v1 import agent_pb2, node_pb2
from tests.sim.clients import Api, NoAnswerError
from tests.sim.nodes import SimNode
from tests.sim.replicas import Replica
from tests.sim.store import WatchedServer
from tests.sim.trace import Trace

STEPS_MAX: Final = 400  # a crash hits one of so many next steps: some are in the midst of an action
PAUSE_S: Final = (0.5, 45.0)  # on both sides of every timeout: heartbeats 20 s, lease 10 s, silence 30 s
OFF_S: Final = (2.0, 60.0)
NET_METHODS: Final[tuple[Method, ...]] = (
    "ensure_network",
    "ensure_port",
    "ensure_port_absent",
    "observe_net",
)
BETWEEN_S: Final = (0.2, 7.0)


@dataclass
class Nemesis:
    replicas: list[Replica]
    nodes: list[SimNode]
    server: WatchedServer
    api: Api
    trace: Trace
    rng: random.Random
    group: asyncio.TaskGroup
    over: asyncio.Event
    busy: int = 0  # faults that have not ended yet

    async def run(self) -> None:
        kinds = list(FAULTS)
        weights = [FAULTS[kind][0] for kind in kinds]
        while not self.over.is_set():
            await self._lasting(self.rng.uniform(*BETWEEN_S))
            kind = self.rng.choices(kinds, weights=weights)[0]
            self.group.create_task(self._guarded(kind))

    async def _guarded(self, kind: str) -> None:
        self.busy += 1
        try:
            await FAULTS[kind][1](self)
        finally:
            self.busy -= 1

    async def _lasting(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            return

    def _node(self, wanted: Callable[[SimNode], bool]) -> SimNode | None:
        found = [node for node in self.nodes if wanted(node)]
        return self.rng.choice(found) if found else None

    def _replica(self) -> Replica:
        """Mostly the one that leads."""
        leading = [replica for replica in self.replicas if replica.leads]
        return self.rng.choice(leading if leading and self.rng.random() < 0.7 else self.replicas)

    # --- processes -------------------------------------------------------------------------------

    async def replica_crash(self) -> None:
        replica = self._replica()
        if replica.alive and replica.process is not None:
            self.trace.fault("controller_crash", replica.address)
            replica.process.kill_after(self.rng.randrange(STEPS_MAX))

    async def replica_pause(self) -> None:
        replica = self._replica()
        process = replica.process
        if process is None or process.dead:
            return
        self.trace.fault("controller_pause", replica.address)
        process.freeze()
        await self._lasting(self.rng.uniform(*PAUSE_S))
        process.thaw()
        self.trace.note(f"{replica.address}: goes on")

    async def agent_crash(self) -> None:
        node = self._node(lambda node: node.alive)
        if node is None or node.process is None:
            return
        self.trace.fault("agent_crash", node.name)
        process = node.process
        process.kill_after(self.rng.randrange(STEPS_MAX))
        await self._lasting(self.rng.uniform(1.0, 20.0))
        process.kill()
        if node.process is process and node.powered:
            node.kill_agent()
            node.start_agent()

    async def agent_pause(self) -> None:
        node = self._node(lambda node: node.alive)
        if node is None or node.process is None:
            return
        self.trace.fault("agent_pause", node.name)
        process = node.process
        process.freeze()
        await self._lasting(self.rng.uniform(*PAUSE_S))
        process.thaw()

    # --- machines --------------------------------------------------------------------------------

    async def power_loss(self) -> None:
        node = self._node(lambda node: node.powered)
        if node is None:
            return
        self.trace.fault("power_loss", node.name)
        node.lose_power()
        await self._lasting(self.rng.uniform(*OFF_S))
        if self.rng.random() < 0.6:
            await self._declare_off(node)
            await self._lasting(self.rng.uniform(0.0, self.rng.choice((0.2, 30.0))))
        node.restore_power()

    async def _declare_off(self, node: SimNode) -> None:
        """The operator's word, given until it was taken."""
        self.trace.fault("declared_off", node.name)
        request = node_pb2.DeleteNodeRequest(name=node.name, force=True, request_id=self.api.new_id())
        while True:
            try:
                await self.api.ask("NodeService.DeleteNode", request)
            except NotFoundError:
                return
            except (CumuletError, NoAnswerError):
                await asyncio.sleep(1.0)
            else:
                return

    async def guest_power_off(self) -> None:
        await self._on_guest("guest_power_off", lambda node, uid: node.machine.power_off_by_guest(uid))

    async def emulator_crash(self) -> None:
        def crash(node: SimNode, uid: str) -> None:
            self.api.oracle.crashes[uid] += 1
            node.machine.crash(uid)

        await self._on_guest("emulator_crash", crash)

    async def deaf_guest(self) -> None:
        await self._on_guest("deaf_guest", lambda node, uid: node.machine.deaf_guests.add(uid))

    async def _on_guest(self, kind: str, act: Callable[[SimNode, str], None]) -> None:
        guests = [(node, uid) for node in self.nodes for uid, _ in node.machine.running()]
        if guests:
            node, uid = self.rng.choice(guests)
            self.trace.fault(kind, f"{node.name} {uid[:8]}")
            act(node, uid)

    async def driver_failure(self) -> None:
        node = self.rng.choice(self.nodes)
        error = DriverError("Injected", "a driver call failed by the simulation's will")
        method = self.rng.choice(("ensure_running", "ensure_off", "ensure_absent", "observe_domains"))
        self.trace.fault("driver_failure", f"{node.name} {method}")
        if self.rng.random() < 0.5:
            node.machine.fail_next(method, error)
        else:
            net = self.rng.choice(NET_METHODS)
            node.kernel.fail_next(net, error, self.rng.choice(("before", "after")))

    async def libvirtd_down(self) -> None:
        node = self.rng.choice(self.nodes)
        self.trace.fault("libvirtd_down", node.name)
        node.machine.stop_libvirtd()
        await self._lasting(self.rng.uniform(1.0, 20.0))
        node.machine.start_libvirtd()

    async def network_tampering(self) -> None:
        node = self.rng.choice(self.nodes)
        self.trace.fault("network_tampering", node.name)
        for uid in list(node.kernel._taps):
            if self.rng.random() < 0.5:
                node.kernel.lose_tap(uid)
        for uid in list(node.kernel._networks):
            if self.rng.random() < 0.3:
                node.kernel.flush_network(uid)

    # --- links -----------------------------------------------------------------------------------

    async def link_cut(self) -> None:
        node = self.rng.choice(self.nodes)
        self.trace.fault("link_cut", node.name)
        for stream in node.link.streams:
            stream.cut()

    async def link_lingers(self) -> None:
        """The agent sees a break and comes back; the old stream delivers late what was under way."""
        node = self.rng.choice(self.nodes)
        self.trace.fault("link_lingers", node.name)
        until = asyncio.get_running_loop().time() + self.rng.uniform(0.5, 40.0)
        for stream in node.link.streams:
            stream.hold(until)
        await self._lasting(self.rng.uniform(0.0, 3.0))
        for stream in node.link.streams:
            stream.drop_agent()

    async def partition(self) -> None:
        node = self.rng.choice(self.nodes)
        self.trace.fault("partition", node.name)
        seconds = self.rng.uniform(*PAUSE_S)
        until = asyncio.get_running_loop().time() + seconds
        for stream in node.link.streams:
            if self.rng.random() < 0.5:
                stream.hold(until)
            else:
                self.rng.choice((stream.up, stream.down)).hold(until)
        cut = {replica.address for replica in self.replicas if self.rng.random() < 0.7}
        node.link.unreachable |= cut
        await self._lasting(seconds)
        node.link.unreachable -= cut

    async def stale_plan(self) -> None:
        """An older plan, as a proxy would replay it: as it was, or under the present session's nonce."""
        node = self._node(lambda node: bool(node.plans) and bool(node.link.streams))
        if node is None:
            return
        stream = self.rng.choice(node.link.streams)
        plan = agent_pb2.NodePlan.FromString(self.rng.choice(node.plans).SerializeToString())
        renamed = self.rng.random() < 0.6 and _is_older(plan, node)
        if renamed:
            plan.session_nonce = node.plans[-1].session_nonce
        self.trace.fault("stale_plan", f"{node.name} revision {plan.version.revision} renamed {renamed}")
        stream.down.insert(agent_pb2.ControllerMessage(plan=plan))

    # --- the store -------------------------------------------------------------------------------

    async def lose_watch_batch(self) -> None:
        faults = self._replica().faults
        if faults is not None:
            faults.swallow_next += self.rng.choice((1, 1, 3))

    async def cut_watch(self) -> None:
        replica = self._replica()
        if replica.store is not None:
            self.trace.fault("watch_cut", replica.address)
            replica.store.cut_watches(self.rng.uniform(0.1, 20.0))

    async def compaction(self) -> None:
        self.trace.fault("compaction")
        self.server.mvcc.compact(self.server.mvcc.revision)

    async def lease_expiry(self) -> None:
        self.trace.fault("lease_expiry")
        self.server.expire_one(self.rng)


def _is_older(plan: agent_pb2.NodePlan, node: SimNode) -> bool:
    """Than what the agent has acted on: else the nonce alone protects, and renaming would be cheating."""
    acted = node.journal.read_acted()
    return (plan.version.leader_epoch, plan.version.revision) < (acted.leader_epoch, acted.revision)


FAULTS: Final[dict[str, tuple[int, Callable[[Nemesis], Awaitable[None]]]]] = {
    "replica_crash": (8, Nemesis.replica_crash),
    "replica_pause": (5, Nemesis.replica_pause),
    "agent_crash": (10, Nemesis.agent_crash),
    "agent_pause": (4, Nemesis.agent_pause),
    "power_loss": (8, Nemesis.power_loss),
    "guest_power_off": (3, Nemesis.guest_power_off),
    "emulator_crash": (3, Nemesis.emulator_crash),
    "deaf_guest": (2, Nemesis.deaf_guest),
    "driver_failure": (5, Nemesis.driver_failure),
    "libvirtd_down": (2, Nemesis.libvirtd_down),
    "network_tampering": (3, Nemesis.network_tampering),
    "link_cut": (4, Nemesis.link_cut),
    "link_lingers": (4, Nemesis.link_lingers),
    "partition": (4, Nemesis.partition),
    "stale_plan": (14, Nemesis.stale_plan),
    "lose_watch_batch": (6, Nemesis.lose_watch_batch),
    "cut_watch": (3, Nemesis.cut_watch),
    "compaction": (2, Nemesis.compaction),
    "lease_expiry": (2, Nemesis.lease_expiry),
}
