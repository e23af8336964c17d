"""The leader's sessions with agents: plans out, reports in, liveness.

**Edge**: talks over links and commits. An agent is alive while it is heard within `SILENCE_S` on this
replica's own clock; what it reports is kept in memory only. A new leader knows nothing until agents have
come to it, so it judges nobody silent before `SILENCE_S` of leading.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from controller.admit import common
from controller.admit import node as admit_node
from controller.admit.common import Context
from controller.admit.offers import check_hello
from controller.commit import Change, Committer
from controller.fleet import READY
from controller.reconcile.concern import nodes_concerned
from controller.reconcile.directory import Directory, Told, changed_ports, take_changes, underlay_changed
from controller.reconcile.node_status import VIRTUALIZATION, ready_status, with_conditions
from controller.reconcile.nodeplan import compile_plan, tombstones_on
from controller.reconcile.status import Facts
from controller.state import Changed, State
from controller.store import keys
from controller.store.protocol import unchanged
from controller.tables import Stored
from cumulet.clock import Clock
from cumulet.convert import find_condition, set_condition, timestamp
from cumulet.errors import CumuletError, UnavailableError
from cumulet.link import ControllerEnd, LinkClosedError
from cumulet.names import new_uid
from cumulet.v1 import agent_pb2, meta_pb2, node_pb2, store_pb2

HEARTBEAT_S: Final = 5
SILENCE_S: Final = 30.0  # six heartbeats: a lost packet or a busy node is not a death
# An agent ends its session when nothing was answered for four heartbeats, counted from when it asked.
TAKEOVER_S: Final = 4 * HEARTBEAT_S + 2.0
HELLO_S: Final = 10.0
JUDGE_S: Final = 1.0
REQUEST_S: Final = 20.0  # an agent's answer to a question, such as its inventory
OUTBOX_MAX: Final = 1_000  # messages that an agent has not taken: answers to an hour of heartbeats
PAUSE_S: Final = 0.02  # plans of one burst of changes are sent once

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Session:
    """One agent's open session and what it has reported in it."""

    node: str
    nonce: str
    end: ControllerEnd
    heard_at: float
    reports: dict[str, agent_pb2.ObservedInstance] = field(default_factory=dict)
    strays: dict[str, agent_pb2.ObservedInstance] = field(default_factory=dict)
    acted_on: agent_pb2.PlanVersion = field(default_factory=agent_pb2.PlanVersion)
    conditions: tuple[meta_pb2.Condition, ...] = ()  # of the node, as it says
    announced: frozenset[tuple[str, str]] | None = None  # (uplink, address); None: it did not say
    outbox: list[agent_pb2.ControllerMessage] = field(default_factory=list)
    plan_due: bool = True
    directory: Directory = field(default_factory=Directory)
    directory_due: bool = False
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    answers: dict[str, asyncio.Future[agent_pb2.AgentReply]] = field(default_factory=dict)

    def post(self, message: agent_pb2.ControllerMessage) -> None:
        self.outbox.append(message)
        self.wake.set()

    def want_plan(self) -> None:
        self.plan_due = True
        self.wake.set()

    def want_directory(self) -> None:
        self.directory_due = True
        self.wake.set()


class Sessions:
    """All sessions of this replica while it leads; `serve` runs one, `run` judges liveness."""

    def __init__(
        self,
        state: State,
        committer: Committer,
        clock: Clock,
        rng: random.Random,
        on_facts: Callable[[str], None],
        on_report: Callable[[str], None] = lambda node: None,
    ) -> None:
        self._state = state
        self._committer = committer
        self._clock = clock
        self._rng = rng
        self._on_facts = on_facts  # called with the uid of every instance with news
        self._on_report = on_report  # called with every node that reported, and with silent ones
        self._sessions: dict[str, Session] = {}
        self._told: Told[Session] = Told()
        self._last_heard: dict[str, float] = {}
        self._leading_since = clock.monotonic()

    # --- asked by others -------------------------------------------------------------------------

    def facts(self, node: str, uid: str) -> Facts:
        session = self._sessions.get(node)
        alive = session is not None or self._silence(node) < SILENCE_S
        if session is None:
            return Facts(alive, 0, None)
        current = session.acted_on.leader_epoch == self._state.epoch
        return Facts(alive, session.acted_on.revision if current else 0, session.reports.get(uid))

    def is_silent(self, node: str) -> bool:
        """Its agent has no session any more, whatever it believes: it hears nobody, or is gone."""
        return self._silence(node) >= TAKEOVER_S or self._state.find(keys.NODES, node) is None

    def has_let_go(self, node: str, uplink: str, address: str, told: int) -> bool:
        """The node acted on a plan of this revision or later and does not answer for the address any more.

        Or it is silent: its agent lets go when another node announces the address, or with its next plan.
        """
        if self.is_silent(node):
            return True
        facts = self.facts(node, "")
        session = self._sessions.get(node)
        announced = session.announced if session is not None else None
        return facts.acted_revision >= told and announced is not None and (uplink, address) not in announced

    def want_plan(self, node: str) -> None:
        """Have a node's plan sent again, of the present revision."""
        session = self._sessions.get(node)
        if session is not None:
            session.want_plan()

    def live_nodes(self) -> list[str]:
        return sorted(self._sessions)

    async def ask(self, node: str, request: agent_pb2.AgentRequest) -> agent_pb2.AgentReply:
        """An agent's answer. Raises UnavailableError when it is silent or refuses."""
        session = self._sessions.get(node)
        if session is None:
            raise UnavailableError(
                f"node {node} has no session with this controller", hints=[f"cumulet node show {node}"]
            )
        request.request_id = new_uid(self._rng)
        answer: asyncio.Future[agent_pb2.AgentReply] = asyncio.get_running_loop().create_future()
        session.answers[request.request_id] = answer
        session.post(agent_pb2.ControllerMessage(request=request))
        try:
            async with asyncio.timeout(REQUEST_S):
                reply = await answer
        except TimeoutError:
            raise UnavailableError(f"node {node} did not answer within {REQUEST_S:.0f} s") from None
        finally:
            session.answers.pop(request.request_id, None)
        if reply.error:
            raise UnavailableError(f"node {node}: {reply.error}")
        return reply

    # --- serving ---------------------------------------------------------------------------------

    async def serve(self, end: ControllerEnd, hello: agent_pb2.AgentHello) -> None:
        """One session from its hello to its end. Raises CumuletError when the agent is refused."""
        node = hello.node
        self._last_heard[node] = self._now()  # before the commit: a judgement of silence may be under way
        await self._committer.commit(lambda state: self._opening(state, hello))
        now = self._now()
        session = Session(node, hello.session_nonce, end, now)
        replaced = self._sessions.get(node)
        self._sessions[node] = session
        self._last_heard[node] = now
        if replaced is not None:
            await replaced.end.close()
        session.post(agent_pb2.ControllerMessage(welcome=agent_pb2.Welcome(heartbeat_interval_s=HEARTBEAT_S)))
        log.info("agent connected", node=node, nonce=session.nonce)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send(session))
                group.create_task(self._receive(session))
        except* LinkClosedError as group_error:
            log.info("agent disconnected", node=node, why=str(group_error.exceptions[0]))
        finally:
            self._close(session)

    async def close(self) -> None:
        """End all sessions: this replica leads no more."""
        for session in list(self._sessions.values()):
            await session.end.close()

    def _close(self, session: Session) -> None:
        for answer in session.answers.values():
            if not answer.done():
                answer.set_exception(UnavailableError(f"node {session.node} went away before it answered"))
        self._told.drop(session.nonce, session.directory)
        if self._sessions.get(session.node) is session:
            del self._sessions[session.node]
            self._state.unhealthy.pop(session.node, None)

    def _opening(self, state: State, hello: agent_pb2.AgentHello) -> Change | None:
        """Register the node if it is new, record the session, and say that the node is ready."""
        check_hello(state, hello)
        context = Context(self._clock.now(), self._rng, f"agent/{hello.node}")
        change = admit_node.register(state, context, hello) or Change()
        known = state.find(keys.NODES, hello.node)
        if known is not None:
            common.get_live_row(state, keys.NODES, hello.node)
            # Not only that it exists: a node that was declared off meanwhile gets no session, no plan.
            change.compares.append(unchanged(keys.NODES.key(hello.node), known.mod_revision))
        record = store_pb2.SessionRecord(
            nonce=hello.session_nonce, leader_epoch=state.epoch, opened_at=timestamp(context.now)
        )
        change.writes[keys.SESSIONS.key(hello.node)] = common.encode(record)
        self._write_node_status(change, state, context, hello.node, ready_status(state, hello, context.now))
        return change

    async def _send(self, session: Session) -> None:
        while True:
            await session.wake.wait()
            session.wake.clear()
            due = session.plan_due or session.directory_due
            await asyncio.sleep(PAUSE_S if due and not session.outbox else 0)
            while session.outbox:
                await session.end.send(session.outbox.pop(0))
            if session.plan_due or session.directory_due:
                for message in self._take_plan(session):
                    await session.end.send(message)

    def _take_plan(self, session: Session) -> list[agent_pb2.ControllerMessage]:
        """The directory first, since the plan may need it. No await, so both are of one State."""
        plan = None
        if session.plan_due:
            plan = compile_plan(self._state, session.node, session.nonce, session.strays.values())
        session.plan_due = session.directory_due = False
        self._told.drop(session.nonce, session.directory)
        changes = list(take_changes(self._state, session.node, plan, session.directory))
        self._told.add(session.nonce, session.directory, session)
        messages = [agent_pb2.ControllerMessage(directory=change) for change in changes]
        return messages if plan is None else [*messages, agent_pb2.ControllerMessage(plan=plan)]

    async def _receive(self, session: Session) -> None:
        while True:
            message = await session.end.receive()
            session.heard_at = self._now()
            self._last_heard[session.node] = session.heard_at
            kind = message.WhichOneof("kind")
            if len(session.outbox) > OUTBOX_MAX:
                raise LinkClosedError(f"the agent of {session.node} talks, but does not listen")
            if kind == "heartbeat":
                ack = agent_pb2.HeartbeatAck(sequence=message.heartbeat.sequence)
                session.post(agent_pb2.ControllerMessage(heartbeat_ack=ack))
            elif kind == "report":
                self._take_report(session, message.report)
            elif kind == "balancer_health":
                self._state.unhealthy[session.node] = frozenset(
                    (one.balancer_uid, one.address) for one in message.balancer_health.unhealthy
                )
            elif kind == "reply":
                answer = session.answers.get(message.reply.request_id)
                if answer is not None and not answer.done():
                    answer.set_result(message.reply)

    def _take_report(self, session: Session, report: agent_pb2.AgentReport) -> None:
        news: set[str] = set()
        if report.full:
            news |= session.reports.keys()
            session.reports.clear()
            session.strays.clear()
        for observed in report.instances:
            session.reports[observed.uid] = observed
            news.add(observed.uid)
        for stray in report.unknown:
            if session.strays.get(stray.uid) != stray:
                session.strays[stray.uid] = stray
                session.want_plan()
        if report.acted_on != session.acted_on:
            session.acted_on.CopyFrom(report.acted_on)
            news |= self._awaiting_removal(session.node)
        session.announced = _announced(report)
        session.conditions = tuple(report.node_conditions) or session.conditions
        self._on_report(session.node)
        for uid in sorted(news):  # not in a set's order, so that a simulation repeats
            self._on_facts(uid)

    def _awaiting_removal(self, node: str) -> set[str]:
        """Deleted instances of a node: only what becomes of them rests on which plan was acted on."""
        found = {uid: self._state.find_instance(uid) for uid in self._state.placements_on(node)}
        return {uid for uid, row in found.items() if row and row[1].message.meta.HasField("deleted_at")}

    # --- following the state ---------------------------------------------------------------------

    def note_change(self, changed: Changed) -> None:
        """Have the plans compiled anew that a change concerns."""
        for node in sorted(nodes_concerned(self._state, changed)):
            self.want_plan(node)
        for port in changed_ports(self._state, changed):
            for session in sorted(self._told.about(port), key=lambda session: session.node):
                session.directory.note(port)
                session.want_directory()
        if underlay_changed(changed):
            for session in self._sessions.values():
                self._told.drop(session.nonce, session.directory)
                session.directory.forget()
                session.want_plan()

    # --- liveness --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Declare nodes silent, and clear away those that were declared off; forever."""
        while True:
            await self._end_silent_sessions()
            self._note_silent()
            for row in list(self._state.rows(keys.NODES).values()):
                name = row.message.meta.name
                try:
                    if row.message.meta.HasField("deleted_at"):
                        await self._remove_node(name)
                    elif name not in self._sessions and self._silence(name) >= SILENCE_S:
                        await self._committer.commit(partial(self._silencing, node=name))
                    else:
                        await self._bury(name)
                        await self._tell_conditions(name)
                except CumuletError as error:
                    log.warning("a node's status was not written", node=name, error=str(error))
            await asyncio.sleep(JUDGE_S)

    def _note_silent(self) -> None:
        """What they answer for is to be answered for by others."""
        for node in list(self._last_heard):
            if self._state.announced_by(node) and self.is_silent(node):
                self._on_report(node)

    async def _end_silent_sessions(self) -> None:
        """A machine that lost power ends no stream: its session would stay open, and the node Ready."""
        for session in list(self._sessions.values()):
            if self._now() - session.heard_at >= SILENCE_S:
                log.warning("agent is silent, its session ends", node=session.node)
                await session.end.close()
                self._close(session)

    def _silence(self, node: str) -> float:
        return self._now() - max(self._last_heard.get(node, 0.0), self._leading_since)

    def _now(self) -> float:
        return self._clock.monotonic()

    def _silencing(self, state: State, node: str) -> Change | None:
        row = state.find(keys.NODE_STATUS, node)
        if row is None or node in self._sessions or self._silence(node) < SILENCE_S:
            return None
        context = Context(self._clock.now(), self._rng, "controller")
        status = node_pb2.NodeStatus()
        status.CopyFrom(row.message)
        text = f"its agent was not heard for {SILENCE_S:.0f} s"
        set_condition(
            status.conditions, READY, meta_pb2.CONDITION_STATUS_UNKNOWN, "AgentSilent", text, context.now
        )
        change = Change()
        self._write_node_status(change, state, context, node, status)
        return change

    async def _tell_conditions(self, node: str) -> None:
        """What its agent says of the node, once it has said anything."""
        session, row = self._sessions.get(node), self._state.find(keys.NODE_STATUS, node)
        if session is None or row is None or not session.conditions:
            return
        if with_conditions(row.message, session.conditions, self._clock.now()) is not None:
            await self._committer.commit(partial(self._telling, node=node, told=session.conditions))

    def _telling(self, state: State, node: str, told: tuple[meta_pb2.Condition, ...]) -> Change | None:
        row = state.find(keys.NODE_STATUS, node)
        context = Context(self._clock.now(), self._rng, "controller")
        status = with_conditions(row.message, told, context.now) if row is not None else None
        if status is None:
            return None
        change = Change()
        self._write_node_status(change, state, context, node, status)
        return change

    async def _bury(self, node: str) -> None:
        """Forget tombstones whose copies the node has looked for and does not have any more."""
        for uid, row in tombstones_on(self._state, node):
            facts = self.facts(node, uid)
            if facts.acted_revision < row.mod_revision or not _is_buried(row, facts):
                continue
            await self._committer.commit(partial(_burying, node=node, uid=uid))

    async def _remove_node(self, name: str) -> None:
        """A node that was declared off for good: forget its placements, then the node."""
        session = self._sessions.get(name)
        if session is not None:
            await session.end.close()
        context = Context(self._clock.now(), self._rng, "controller")
        forgets = [
            self._committer.commit(partial(_forgetting, context=context, node=name, uid=uid))
            for uid in list(self._state.placements_on(name))
        ]
        await asyncio.gather(*forgets)
        await self._committer.commit(
            lambda state: (
                admit_node.delete(state, context, (name,), "") if state.find(keys.NODES, name) else None
            )
        )

    def _write_node_status(
        self, change: Change, state: State, context: Context, node: str, status: node_pb2.NodeStatus
    ) -> None:
        row = state.find(keys.NODE_STATUS, node)
        if row is not None and row.message == status:
            return
        key = keys.NODE_STATUS.key(node)
        change.compares.append(unchanged(key, row.mod_revision if row else 0))
        change.writes[key] = common.encode(status)
        found = state.find(keys.NODES, node)
        meta = meta_pb2.Meta(name=node, uid=found.message.meta.uid if found else "")
        for condition in status.conditions:
            known = find_condition(row.message.conditions, condition.type) if row else None
            is_news = known.status != condition.status if known else condition.type != VIRTUALIZATION
            if is_news:
                warning = condition.status != meta_pb2.CONDITION_STATUS_TRUE
                text = f"node {node}: {condition.message or condition.type}"
                change.events.append(
                    common.event(context, "node", meta, condition.reason, text, warning=warning)
                )


def _announced(report: agent_pb2.AgentReport) -> frozenset[tuple[str, str]] | None:
    if not report.HasField("announced"):
        return None
    return frozenset((one.uplink, one.address) for one in report.announced.addresses)


def _is_buried(tombstone: Stored, facts: Facts) -> bool:
    seen = facts.observed
    return seen is None or seen.state == agent_pb2.DOMAIN_STATE_ABSENT or seen.epoch > tombstone.message.epoch


def _burying(state: State, node: str, uid: str) -> Change | None:
    row = state.find(keys.TOMBSTONES, node, uid)
    return common.remove(keys.TOMBSTONES, (node, uid), row) if row else None


def _forgetting(state: State, context: Context, node: str, uid: str) -> Change | None:
    if uid not in state.placements_on(node):
        return None
    return admit_node.forget_placement(state, context, node, uid)
