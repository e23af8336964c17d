"""Placing instances: plan on the kept fleet, commit through the gate, keep refusals as reasons.

**Edge**: commits. One transaction is under way. A batch that would fill another is planned meanwhile, as if
it had succeeded: what it places is assumed. If it fails, its placements are planned again, in halves, so that
one that cannot hold takes no others with it; what was planned meanwhile only counted on less room.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final

import structlog

from controller.admit.common import Context
from controller.commit import journal_entry
from controller.metrics import Metrics
from controller.reconcile.fleetview import FleetView
from controller.reconcile.gate import Bundle, Gate
from controller.reconcile.shapes import Shapes
from controller.reconcile.status import NO_CAPACITY, PLANNER_FAULT, Refusal
from controller.reconcile.waiting import FairQueue, RefusedBook
from controller.state import Changed, State
from controller.store import keys
from controller.store.protocol import StoreError
from controller.tables import Stored
from controller.transact import Transactor
from cumulet.clock import Clock
from cumulet.v1 import instance_pb2
from scheduler.answer import Placement, Plan
from scheduler.check import Violation, check_plan
from scheduler.group import Occupancy
from scheduler.model import ModelError, Request
from scheduler.plan import plan_on
from scheduler.policy import Policy

FULL: Final = 120  # placements that fill a transaction (128 writes, less what it has of its own)
BATCH: Final = 2 * FULL  # requests planned at once: some 15 ms in which nothing else is done
PAUSE_S: Final = 1.0  # after a commit that failed: etcd is away
GATHER_S: Final = 0.002  # a burst is planned together

log = structlog.get_logger(__name__)


class Placer:
    """Places what is unplaced; run it while leading. `on_refusal` hears of every refusal and its end."""

    def __init__(
        self,
        state: State,
        transactor: Transactor,
        clock: Clock,
        rng: random.Random,
        on_refusal: Callable[[str, Refusal | None], None],
        metrics: Metrics,
        policy: Policy,
    ) -> None:
        self._state = state
        self._transactor = transactor
        self._clock = clock
        self._rng = rng
        self._on_refusal = on_refusal
        self._metrics = metrics
        self._fleet = FleetView(state, policy, clock)
        self._shapes = Shapes()
        self._queue = FairQueue()
        self._refused = RefusedBook(rng)
        self._suspects = RefusedBook(rng)  # set apart: time alone brings them back, each by itself
        self._since: dict[str, float] = {}  # when it began to wait, until its placement is committed
        self._busy: set[str] = set()  # planned, and neither in the State nor given up
        self._gained: set[str] = set()  # nodes that may have room now
        self._committed: dict[str, int] = {}  # revision of our last commit by node
        self._apart: deque[list[str]] = deque()  # uids of parts of batches that could not be planned whole
        self._turn_of_parts = False
        self._limit = BATCH
        self._pausing = False
        self._wake = asyncio.Event()

    def note_change(self, changed: Changed) -> None:
        """Keep the list of what is unplaced; wake when there is more of it, or more room."""
        self._fleet.note_change(changed)
        if changed.table is keys.INSTANCES:
            self._note_instance(changed.after, changed.before)
        elif changed.table is keys.PLACEMENTS:
            node, uid = changed.parts
            self._busy.discard(uid)
            if changed.after is not None:
                self._forget(uid)
            else:
                self._add(uid)
                self._gain(node)
        elif changed.table in (keys.NODES, keys.NODE_STATUS):
            self._gain(changed.parts[0])
        elif changed.table is keys.PLACEMENT_GROUPS:
            self._requeue(self._refused.wake_all())

    async def run(self) -> None:
        for row in self._state.rows(keys.INSTANCES).values():
            self._note_instance(row, None)
        async with asyncio.TaskGroup() as group:
            flight: asyncio.Task[None] | None = None
            while True:
                await self._something()
                if flight is not None and len(self._queue) < FULL:
                    await flight  # a small batch would only wait for it: whoever comes meanwhile joins
                for bundle in self._decide():
                    if flight is not None:
                        await flight
                    flight = group.create_task(self._send(bundle, group))

    async def _something(self) -> None:
        """Until somebody is to be placed."""
        if self._pausing:
            self._pausing = False
            await asyncio.sleep(PAUSE_S)
        await asyncio.sleep(GATHER_S)
        while True:
            self._wake_refused()
            if self._queue or self._apart:
                return
            self._wake.clear()
            due = [at for book in (self._refused, self._suspects) if (at := book.next_due()) is not None]
            left_s = max(min(due) - self._clock.monotonic(), GATHER_S) if due else None
            try:
                async with asyncio.timeout(left_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    # --- who waits -------------------------------------------------------------------------------

    def _note_instance(self, after: Stored | None, before: Stored | None) -> None:
        if before is not None and (after is None or after.message.meta.uid != before.message.meta.uid):
            self._forget(before.message.meta.uid)
        if after is None:
            return
        meta = after.message.meta
        if meta.HasField("deleted_at") or self._state.placement_of(meta.uid) is not None:
            self._forget(meta.uid)
        elif meta.uid not in self._busy:
            self._refused.forget(meta.uid)  # it asks for something else now, perhaps
            self._suspects.forget(meta.uid)
            self._enqueue(meta.uid, meta.project)

    def _find_placeable(self, uid: str) -> instance_pb2.Instance | None:
        """The instance, unless it is placed, gone or going: the gate would refuse it, again and again."""
        found = self._state.find_instance(uid)
        if found is None or found[1].message.meta.HasField("deleted_at") or self._state.placement_of(uid):
            return None
        instance: instance_pb2.Instance = found[1].message
        return instance

    def _add(self, uid: str, *, first: bool = False) -> None:
        instance = self._find_placeable(uid)
        if instance is not None and uid not in self._busy:
            self._enqueue(uid, instance.meta.project, first=first)

    def _enqueue(self, uid: str, project: str, *, first: bool = False) -> None:
        self._since.setdefault(uid, self._clock.monotonic())
        (self._queue.add_first if first else self._queue.add)(uid, project)
        self._wake.set()

    def _forget(self, uid: str) -> None:
        self._queue.discard(uid)
        self._refused.forget(uid)
        self._suspects.forget(uid)
        self._since.pop(uid, None)

    def _gain(self, node: str) -> None:
        if self._refused:
            self._gained.add(node)
            self._wake.set()

    def _wake_refused(self) -> None:
        now = self._clock.monotonic()
        self._apart.extend([uid] for uid in self._suspects.wake_due(now))
        self._requeue(self._refused.wake_due(now))
        if self._gained:
            nodes = [node for name in sorted(self._gained) if (node := self._fleet.look(name)) is not None]
            self._gained.clear()
            self._requeue(self._refused.wake_fitting(nodes, self._fleet.fleet().occupancy))

    def _requeue(self, uids: Iterable[str]) -> None:
        for uid in uids:
            self._add(uid)

    # --- deciding --------------------------------------------------------------------------------

    def _decide(self) -> list[Bundle]:
        """Plan who is next; what is to be committed, assumed already."""
        requests = self._take()
        if not requests:
            return []
        started = time.perf_counter()
        fleet = self._fleet.fleet()
        try:
            decided = plan_on(fleet, requests, self._rng, self._state.revision)
        except (ModelError, AssertionError) as error:
            self._set_apart(requests, "unplannable", f"it cannot be planned: {error}")
            return []
        faults = check_plan(self._fleet.witness(fleet, requests, decided), requests, decided)
        if faults:
            self._set_apart(requests, "contradiction", _contradiction(faults))
            return []
        took_s = time.perf_counter() - started
        self._metrics.note_decisions(len(decided.placements), len(decided.rejections), took_s)
        by_uid = {request.uid: request for request in requests}
        for rejection in decided.rejections:
            self._refuse(by_uid[rejection.uid], Refusal(NO_CAPACITY, rejection.advice()))
        return self._bind(_units(decided, by_uid), grouped=any(request.groups for request in requests))

    def _bind(self, units: Iterable[list[tuple[Request, Placement]]], *, grouped: bool) -> list[Bundle]:
        """What passes the gate, assumed to be where it goes."""
        occupancy = self._fleet.fleet().occupancy.copy() if grouped else Occupancy(())
        gate = Gate(self._state, self._fleet, Context(self._clock.now(), self._rng, "scheduler"), occupancy)
        bundles, failed = gate.bundles(units, self._transactor.reserve)
        self._metrics.note_conflicts("gate", len(failed))
        for bundle in bundles:
            for bound in bundle.members:
                self._busy.add(bound.request.uid)
                self._fleet.assume(bound.request.uid, bound.node, bound.row)
        for request in failed:
            self._refuse(request, None)
        return bundles

    def _take(self) -> list[Request]:
        """The next ones in turn; a gang's members come together."""
        requests: dict[str, Request] = {}
        for uid in self._next():
            for instance in self._together(uid):
                one = instance.meta.uid
                if one not in requests and one not in self._busy:
                    self._queue.discard(one)
                    self._refused.take(one)
                    self._suspects.take(one)
                    request = self._build(instance)
                    if request is not None:
                        requests[one] = request
        return list(requests.values())

    def _next(self) -> list[str]:
        """Parts of halved batches and the queue have turns, so that neither holds up the other."""
        self._turn_of_parts = not self._turn_of_parts
        if self._apart and (self._turn_of_parts or not self._queue):
            return self._apart.popleft()
        return self._queue.take(self._limit)

    def _build(self, instance: instance_pb2.Instance) -> Request | None:
        """The instance's request; None for one that admission would refuse, which then waits for a change."""
        try:
            request = self._shapes.request(instance)
        except ValueError as error:  # quantities, topology, groups: the store holds what cannot be
            uid = instance.meta.uid
            log.error("an instance cannot be read", instance=uid, error=str(error))
            self._on_refusal(uid, Refusal(NO_CAPACITY, f"its spec cannot be placed: {error}; delete it"))
            return None
        if request.gang is not None and self._has_placed_member(instance):
            return replace(request, gang=None)  # the gang has been placed: this one joins it
        return request

    def _has_placed_member(self, instance: instance_pb2.Instance) -> bool:
        return any(self._state.placement_of(one.meta.uid) is not None for one in self._gang(instance))

    def _together(self, uid: str) -> list[instance_pb2.Instance]:
        instance = self._find_placeable(uid)
        if instance is None:
            return []
        if not instance.spec.HasField("gang"):
            return [instance]
        return [one for one in self._gang(instance) if self._find_placeable(one.meta.uid) is not None]

    def _gang(self, instance: instance_pb2.Instance) -> list[instance_pb2.Instance]:
        """All members of the instance's gang."""
        rows = self._state.rows(keys.INSTANCES, instance.meta.project).values()
        return [row.message for row in rows if row.message.spec.gang.name == instance.spec.gang.name]

    def _refuse(self, request: Request, refusal: Refusal | None) -> None:
        self._refused.add(request, self._clock.monotonic())
        if refusal is not None:
            self._on_refusal(request.uid, refusal)

    def _set_apart(self, requests: list[Request], why: str, text: str) -> None:
        """Nothing of the batch is committed. Its halves are planned each by itself, on another fleet.

        So whoever is the cause is soon alone, told of and tried again with growing pauses, and others go on.
        """
        units = [[request.uid for request in unit] for unit in _together(requests)]
        if len(units) > 1:
            log.error("a batch is planned again in halves", why=why, requests=len(requests), error=text)
            if not self._apart:
                self._fleet.renew()
            middle = len(units) // 2
            self._apart.extendleft([list(chain(*units[middle:])), list(chain(*units[:middle]))])
            return
        log.error("requests are set apart", why=why, instances=units[0], error=text)
        self._metrics.note_quarantined(why, len(requests))
        for request in requests:
            self._suspects.add(request, self._clock.monotonic())
            self._on_refusal(request.uid, Refusal(PLANNER_FAULT, text))

    def _give_up(self, requests: list[Request]) -> None:
        """A guard did not hold, not told whose: fewer at once, and a lone one is refused for a while."""
        if len(requests) == 1:
            self._refuse(requests[0], None)
        for request in reversed(requests):
            if request.uid not in self._refused:
                self._add(request.uid, first=True)
        self._limit = max(1, len(requests) // 2)

    # --- committing ------------------------------------------------------------------------------

    async def _send(self, bundle: Bundle, group: asyncio.TaskGroup) -> None:
        writes = bundle.writes | journal_entry(bundle.events, self._rng)
        try:
            answer = await self._transactor.transact(bundle.guards(self._committed), writes)
            committed, revision = answer
        except StoreError as error:
            log.warning("placements were not committed", count=len(bundle.members), error=str(error))
            self._take_back(bundle)
            self._pausing = True
            return
        if committed:
            self._note_committed(bundle, revision)
            group.create_task(self._confirm(bundle, revision))
            return
        self._metrics.note_conflicts("commit", len(bundle.members))
        await self._state.catch_up(revision)
        self._take_back(bundle)
        if len(bundle.members) == 1:
            self._state.doubt.set()  # alone, and still: the State may be wrong

    def _note_committed(self, bundle: Bundle, revision: int) -> None:
        self._limit = BATCH
        self._committed.update(dict.fromkeys(bundle.nodes, revision))
        now = self._clock.monotonic()
        for bound in bundle.members:
            uid = bound.request.uid
            self._metrics.note_placed(now - self._since.pop(uid, now))
            self._refused.forget(uid)
            self._suspects.forget(uid)
            self._on_refusal(uid, None)

    def _take_back(self, bundle: Bundle) -> None:
        for bound in bundle.members:
            self._busy.discard(bound.request.uid)
            node = self._fleet.drop(bound.request.uid)
            if node is not None:
                self._gain(node)
        self._give_up([bound.request for bound in bundle.members])

    async def _confirm(self, bundle: Bundle, revision: int) -> None:
        """When the State is there, nothing of it is assumed any more, also what has gone again meanwhile."""
        await self._state.catch_up(revision)
        for bound in bundle.members:
            if self._fleet.drop(bound.request.uid) is not None:
                self._busy.discard(bound.request.uid)
                self._gain(bound.node)
                self._add(bound.request.uid)


def _units(decided: Plan, requests: dict[str, Request]) -> Iterator[list[tuple[Request, Placement]]]:
    """Placements that stand or fall together."""
    gangs: dict[tuple[str, str], list[tuple[Request, Placement]]] = {}
    for placed in decided.placements:
        request = requests[placed.uid]
        if request.gang is None:
            yield [(request, placed)]
        else:
            gangs.setdefault((request.project, request.gang.name), []).append((request, placed))
    yield from gangs.values()


def _together(requests: Iterable[Request]) -> list[list[Request]]:
    """Gangs whole, everyone else alone, in order."""
    units: dict[object, list[Request]] = {}
    for request in requests:
        key = request.uid if request.gang is None else (request.project, request.gang.name)
        units.setdefault(key, []).append(request)
    return list(units.values())


def _contradiction(faults: Sequence[Violation]) -> str:
    """The first fault in words. The planner's checker was written apart from it, so one of them is wrong."""
    fault = faults[0]
    where = f" on node {fault.node}" if fault.node else ""
    what = f"{fault.kind}{where}: {fault.detail}"
    return f"a fault of ours: the planner's choice is refused by its checker ({what})"
