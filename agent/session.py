"""The agent's session with the leader: dial, hello, heartbeats, plans in, reports out.

**Edge**: speaks through a Dialer (gRPC, or memory in simulations). Every break is answered by a new
session with a new nonce; whatever was in flight is forgotten by both ends.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final

import structlog

from agent.backoff import Backoff
from agent.leader import Leader
from agent.reconcile import Agent, PlanRefusedError
from agent.report import Reporter
from agent.requests import Requests
from cumulet.clock import Clock
from cumulet.link import AgentEnd, Dialer, LinkClosedError
from cumulet.names import new_uid
from cumulet.v1 import agent_pb2 as pb
from cumulet.v1 import meta_pb2, node_pb2, placement_pb2

# Heartbeats without an answer until the session is taken for dead. correctness.md I20: a time to live of
# at least 5 heartbeats on the leader's side; the agent, which only reconnects, may be quicker.
ACK_MISSES_MAX: Final = 4
HEARTBEAT_S_MIN: Final = 1  # a leader's mistake must not make the agent spin,
HEARTBEAT_S_MAX: Final = 60  # nor make it blind for minutes
HEARTBEAT_S_DEFAULT: Final = 5
# Dialing and the answer to hello. A leader that takes longer is too busy to lead this node.
OPEN_TIMEOUT_S: Final = 10.0
HEARTBEATS_IN_FLIGHT_MAX: Final = 16  # more than ACK_MISSES_MAX, to recognise late answers

_log = structlog.get_logger("agent.session")


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What the agent says of its node in every hello."""

    node: str
    agent_version: str
    boot_id: str
    capacity: meta_pb2.Resources
    virt_type: node_pb2.VirtType.ValueType
    labels: tuple[tuple[str, str], ...]
    address: str
    capabilities: tuple[str, ...] = ()
    cells: tuple[placement_pb2.NumaCell, ...] = ()
    devices: tuple[placement_pb2.Device, ...] = ()
    underlay_address: str = ""
    underlay_mtu: int = 0
    uplinks: tuple[str, ...] = ()

    def hello(self, nonce: str, accepted: pb.PlanVersion) -> pb.AgentMessage:
        return pb.AgentMessage(
            hello=pb.AgentHello(
                node=self.node,
                session_nonce=nonce,
                boot_id=self.boot_id,
                agent_version=self.agent_version,
                capacity=self.capacity,
                virt_type=self.virt_type,
                labels=dict(self.labels),
                address=self.address,
                accepted=accepted,
                capabilities=self.capabilities,
                numa_cells=self.cells,
                devices=self.devices,
                underlay_address=self.underlay_address,
                underlay_mtu=self.underlay_mtu,
                uplinks=self.uplinks,
            )
        )


class Uplink:
    """Keeps a session with whoever leads. `welcomed` is True while there is one."""

    def __init__(
        self,
        addresses: tuple[str, ...],
        identity: NodeIdentity,
        agent: Agent,
        dialer: Dialer,
        leader: Leader,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        if not addresses:
            raise ValueError("an agent needs the address of at least one controller")
        self._addresses = addresses
        self._identity = identity
        self._agent = agent
        self._dialer = dialer
        self._leader = leader
        self._clock = clock
        self._rng = rng
        self._backoff = Backoff(rng)
        self._redirected: str | None = None
        self._tries = 0
        self.welcomed = False
        self.sessions = 0  # for metrics

    async def run(self) -> None:
        """Hold a session for as long as possible, again and again, until cancelled."""
        while True:
            address = self._next_address()
            try:
                await self._hold(address)
            except LinkClosedError as err:
                _log.info("no session", controller=address, why=str(err))
            await asyncio.sleep(self._backoff.next_s())

    def _next_address(self) -> str:
        """Where a redirect pointed, once; else the addresses in turn."""
        redirected, self._redirected = self._redirected, None
        if redirected is not None:
            return redirected
        self._tries += 1
        return self._addresses[(self._tries - 1) % len(self._addresses)]

    async def _hold(self, address: str) -> None:
        """One session from dialing to its end. Raises LinkClosedError."""
        nonce = new_uid(self._rng)
        async with self._open(address) as end:
            welcome = await self._greet(end, nonce)
            if welcome is None:
                return
            self._backoff.reset()
            self._redirected = address  # it leads: after a break it is asked first
            interval_s = _clamp(welcome.heartbeat_interval_s)
            session = _Session(end, address, interval_s, self._agent, self._dialer, self._clock, self._rng)
            self._agent.begin_session(nonce, session.is_alive, session.heard_at)
            self._leader.address, self.welcomed = address, True
            self.sessions += 1
            _log.info("session", controller=address, nonce=nonce)
            try:
                await session.run()
            finally:
                self.welcomed, self._leader.address = False, None
                self._agent.end_session()

    @asynccontextmanager
    async def _open(self, address: str) -> AsyncIterator[AgentEnd]:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                end = await self._dialer.open_session(address)
        except TimeoutError as err:
            raise LinkClosedError(f"{address} was not reached within {OPEN_TIMEOUT_S:.0f} s") from err
        try:
            yield end
        finally:
            await end.close()

    async def _greet(self, end: AgentEnd, nonce: str) -> pb.Welcome | None:
        """The leader's welcome; None after a redirect, which is remembered."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await end.send(self._identity.hello(nonce, self._agent.accepted_version()))
                answer = await end.receive()
        except TimeoutError as err:
            raise LinkClosedError(f"no answer to hello within {OPEN_TIMEOUT_S:.0f} s") from err
        if answer.WhichOneof("kind") == "redirect":
            self._redirected = answer.redirect.leader_address or None
            _log.info("redirected", leader=self._redirected or "(none yet)")
            return None
        if answer.WhichOneof("kind") != "welcome":
            raise LinkClosedError(f"hello was answered by {answer.WhichOneof('kind')}, not by a welcome")
        return answer.welcome


def _clamp(interval_s: int) -> int:
    return min(max(interval_s or HEARTBEAT_S_DEFAULT, HEARTBEAT_S_MIN), HEARTBEAT_S_MAX)


class _Session:
    """One welcomed session: its tasks end together."""

    def __init__(
        self,
        end: AgentEnd,
        address: str,
        interval_s: int,
        agent: Agent,
        dialer: Dialer,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._end = end
        self._interval_s = interval_s
        self._agent = agent
        self._clock = clock
        self._rng = rng
        self._requests = Requests(agent, dialer, address, self._send)
        self._sent_at: OrderedDict[int, float] = OrderedDict()
        self._proof_at = clock.monotonic()  # when what the leader last answered to was sent

    def is_alive(self) -> bool:
        """The leader has answered to something that was sent not long ago."""
        return self._clock.monotonic() - self._proof_at < self._patience_s

    def heard_at(self) -> float:
        """When what the leader last answered to was sent."""
        return self._proof_at

    @property
    def _patience_s(self) -> float:
        return self._interval_s * ACK_MISSES_MAX

    async def run(self) -> None:
        """Until the link breaks. Raises LinkClosedError."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(group))
                group.create_task(self._beat())
                group.create_task(self._watch())
                group.create_task(self._report())
                group.create_task(self._tell_health())
        except* LinkClosedError as broken:
            raise LinkClosedError(str(broken.exceptions[0])) from broken

    async def _send(self, message: pb.AgentMessage) -> None:
        await self._end.send(message)

    async def _beat(self) -> None:
        for sequence in count(1):
            self._sent_at[sequence] = self._clock.monotonic()
            if len(self._sent_at) > HEARTBEATS_IN_FLIGHT_MAX:
                self._sent_at.popitem(last=False)
            await self._send(pb.AgentMessage(heartbeat=pb.Heartbeat(sequence=sequence)))
            await asyncio.sleep(self._interval_s * self._rng.uniform(0.9, 1.0))

    async def _watch(self) -> None:
        """End the session when the leader has gone silent; beating may itself be stuck in a full stream."""
        while self.is_alive():
            left = self._patience_s - (self._clock.monotonic() - self._proof_at)
            await asyncio.sleep(max(left, 0.05))
        raise LinkClosedError(f"no answer to heartbeats for {self._patience_s:.0f} s")

    async def _receive(self, group: asyncio.TaskGroup) -> None:
        while True:
            message = await self._end.receive()
            match message.WhichOneof("kind"):
                case "plan":
                    self._take_plan(message.plan)
                case "directory":
                    self._agent.take_directory(message.directory)
                case "heartbeat_ack":
                    sent_at = self._sent_at.pop(message.heartbeat_ack.sequence, self._proof_at)
                    self._proof_at = max(self._proof_at, sent_at)
                case "request":
                    await self._requests.take(message.request, group)
                case "redirect":
                    raise LinkClosedError("the controller does not lead any more")
                case other:
                    _log.warning("message ignored", kind=other)

    def _take_plan(self, plan: pb.NodePlan) -> None:
        try:
            self._agent.offer(plan)
        except PlanRefusedError as err:
            _log.warning("plan refused", why=str(err))

    async def _report(self) -> None:
        """Always the newest state, never a queue."""
        reporter = Reporter(self._rng)
        snapshot = await self._agent.round_after(self._agent.rounds)
        while True:
            report = reporter.next_report(snapshot, self._clock.monotonic())
            if report is not None:
                await self._send(pb.AgentMessage(report=report))
            snapshot = await self._agent.round_after(snapshot.round)

    async def _tell_health(self) -> None:
        """Who of load balancers' members is unhealthy; nothing while nobody ever was."""
        board, told = self._agent.health, 0
        while True:
            told = await board.after(told)
            health = pb.BalancerHealth()
            for uid, down in sorted(board.unhealthy.items()):
                for one in sorted(down):
                    health.unhealthy.add(balancer_uid=uid, address=str(one.address), port=one.port)
            await self._send(pb.AgentMessage(balancer_health=health))
