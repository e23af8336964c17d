"""One controller replica without its sockets: state, election, what the leader runs.

**Edge** through what it is given: store, keeper, journal, clock. `main.py` gives it etcd and files, the
simulation (tests/sim) memory and virtual time.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from controller.commit import Committer
from controller.explain import says_the_same
from controller.feed import Feed
from controller.journal import EventLog, Journal
from controller.metrics import Metrics
from controller.reconcile.announcer import Announcer
from controller.reconcile.election import Election, KeeperFactory, Term, epoch_guards
from controller.reconcile.export import Exporter, ensure_cloud
from controller.reconcile.fleetview import FleetView
from controller.reconcile.placer import Placer
from controller.reconcile.sessions import Sessions
from controller.reconcile.status import Refusal, concerns_status
from controller.reconcile.statuses import Statuses
from controller.state import Changed, State
from controller.store import keys
from controller.store.protocol import Store
from controller.transact import Transactor
from cumulet.clock import Clock
from cumulet.errors import UnavailableError
from cumulet.link import ControllerEnd, LinkClosedError
from cumulet.names import new_uid
from cumulet.v1 import agent_pb2
from scheduler.policy import PACK, Policy

HELLO_S = 10.0  # a dialer that says nothing is not an agent


@dataclass(slots=True)
class Leading:
    """What exists only while this replica leads."""

    term: Term
    committer: Committer
    sessions: Sessions
    statuses: Statuses
    placer: Placer
    announcer: Announcer


class Controller:
    """`run` it; `ready` is set when it can answer. `leading` is None on a replica that does not lead."""

    def __init__(
        self,
        store: Store,
        keeper: KeeperFactory,
        journal: Journal,
        clock: Clock,
        rng: random.Random,
        address: str,
        metrics: Metrics | None = None,
        policy: Policy = PACK,
    ) -> None:
        self.store = store
        self.policy = policy  # by which instances are placed, and explained
        self.clock = clock
        self.rng = rng
        self.metrics = metrics or Metrics()
        self.state = State()
        self.fleet = FleetView(self.state, policy, clock)  # that explanations are asked of, on each replica
        self.state.listen(self.fleet.note_change)
        self.events = EventLog()
        self.state.listen_events(self.events.add)
        self.feed = Feed(store, self.state, rng)
        self.api_committer = Committer(store, self.state, clock, rng, "api")
        self.leading: Leading | None = None
        self.ready = asyncio.Event()
        self._journal = journal
        self._election = Election(store, self.state, address, keeper, clock.monotonic, rng)

    async def run(self) -> None:
        """Raises LeadershipLostError (in a group) at the end of a term."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.feed.run())
            group.create_task(self.api_committer.run())
            await self.feed.ready.wait()
            if self.state.find(keys.CLOUD) is None:
                await ensure_cloud(self.store, new_uid(self.rng))
            self.ready.set()
            await self._election.run(self._lead)

    @property
    def leader_address(self) -> str:
        """Where the leader listens; empty while there is none."""
        row = self.state.find(keys.LEADER_KEY)
        return row.message.address if row else ""

    def require_leading(self) -> Leading:
        """Raises UnavailableError naming the leader on a replica that does not lead."""
        if self.leading is None:
            where = self.leader_address
            raise UnavailableError(
                f"this controller does not lead; {f'{where} does' if where else 'nobody does at the moment'}",
                hints=[f"CUMULET_ENDPOINTS={where} cumulet ..."] if where else [],
            )
        return self.leading

    async def _lead(self, term: Term) -> None:
        leading = self._assemble(term)
        stop = self.state.listen(lambda changed: self._pass_on(leading, changed))
        self.leading = leading
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(leading.committer.run())
                group.create_task(leading.statuses.run())
                group.create_task(leading.sessions.run())
                group.create_task(leading.placer.run())
                group.create_task(leading.announcer.run())
                exporter = Exporter(self.store, self.state, leading.committer, self._journal, self.clock)
                group.create_task(exporter.run())
        finally:
            self.leading = None
            stop()
            leading.statuses.queue.close()
            leading.announcer.queue.close()
            await leading.sessions.close()

    def _assemble(self, term: Term) -> Leading:
        committer = Committer(
            self.store, self.state, self.clock, self.rng, "leader", lambda: epoch_guards(self.state, term)
        )
        statuses: Statuses
        announcer: Announcer
        sessions = Sessions(
            self.state,
            committer,
            self.clock,
            self.rng,
            lambda uid: statuses.queue.add(uid),
            lambda node: announcer.note_report(node),
        )
        announcer = Announcer(self.state, committer, sessions, self.clock, self.rng)
        note_queue = self.metrics.note_status_queue
        statuses = Statuses(self.state, committer, sessions, self.clock, self.rng, note_queue)

        def on_refusal(uid: str, refusal: Refusal | None) -> None:
            told = statuses.refusals.get(uid)
            if refusal is None:
                statuses.refusals.pop(uid, None)
            elif told is None or told.reason != refusal.reason or not says_the_same(told.text, refusal.text):
                statuses.refusals[uid] = refusal
                statuses.queue.add(uid)

        transactor = Transactor(
            self.store, self.clock, self.rng, "place", lambda: epoch_guards(self.state, term)
        )
        placer = Placer(self.state, transactor, self.clock, self.rng, on_refusal, self.metrics, self.policy)
        return Leading(term, committer, sessions, statuses, placer, announcer)

    def _pass_on(self, leading: Leading, changed: Changed) -> None:
        leading.placer.note_change(changed)
        leading.sessions.note_change(changed)
        leading.announcer.note_change(changed)
        if changed.table is keys.INSTANCES:
            if changed.after is not None and concerns_status(changed):
                leading.statuses.queue.add(changed.after.message.meta.uid)
        elif changed.table is keys.NODE_STATUS:
            for uid in self.state.placements_on(changed.parts[0]):
                leading.statuses.queue.add(uid)

    async def accept_agent(self, end: ControllerEnd) -> None:
        """Serve one agent's stream, or send it to the leader."""
        try:
            async with asyncio.timeout(HELLO_S):
                first = await end.receive()
            leading = self.leading
            if first.WhichOneof("kind") != "hello":
                return
            if leading is None:
                redirect = agent_pb2.Redirect(leader_address=self.leader_address)
                await end.send(agent_pb2.ControllerMessage(redirect=redirect))
                return
            await leading.sessions.serve(end, first.hello)
        except (LinkClosedError, TimeoutError):
            return
        finally:
            await end.close()
