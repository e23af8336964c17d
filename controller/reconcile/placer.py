"""Placing instances: plan on the State's view, commit through the gate, keep refusals as reasons.

**Edge**: commits. The planner is pure (scheduler.plan); the gate is a Change that looks at the fit again on
the State it is committed on, guarded by the node's placements, the node and the instance.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from typing import Final

import structlog

from controller.admit import common
from controller.admit.common import Context
from controller.commit import Change, Committer
from controller.fleet import FleetView, build_request, node_view
from controller.scheduling import occupancy_of
from controller.state import Changed, State
from controller.store import keys
from controller.store.protocol import Compare, absent, range_unchanged_since, unchanged
from cumulet.clock import Clock
from cumulet.convert import resources_to, timestamp
from cumulet.errors import CumuletError
from cumulet.v1 import instance_pb2, placement_pb2, store_pb2
from scheduler.check import check_plan
from scheduler.filters import reasons_against
from scheduler.model import Plan, Request, Room
from scheduler.plan import plan
from scheduler.policy import PACK

BATCH: Final = 200  # requests planned at once; a batch of the gate holds about 40
PAUSE_S: Final = 1.0  # after a commit that failed: etcd is away, or others change the same
GATHER_S: Final = 0.005  # a burst is planned together; a boot takes a hundred times as long
RETRY_S: Final = 15.0  # refused instances are looked at again, should a hint have been lost

log = structlog.get_logger(__name__)


class Placer:
    """Places what is unplaced; run it while leading. `on_refusal` hears of every refusal and its end."""

    def __init__(
        self,
        state: State,
        committer: Committer,
        clock: Clock,
        rng: random.Random,
        on_refusal: Callable[[str, str | None], None],
        on_decisions: Callable[[int, int, float], None] = lambda placed, refused, seconds: None,
    ) -> None:
        self._state = state
        self._committer = committer
        self._clock = clock
        self._rng = rng
        self._on_refusal = on_refusal
        self._on_decisions = on_decisions
        self._fleet = FleetView(state)
        self._unplaced: dict[str, None] = {}  # in order of arrival
        self._refused: set[str] = set()
        self._wake = asyncio.Event()

    def note_change(self, changed: Changed) -> None:
        """Keep the list of what is unplaced; wake when there is more of it, or more room."""
        self._fleet.note_change(changed)
        if changed.table is keys.INSTANCES:
            self._note_instance(changed)
        elif changed.table is keys.PLACEMENTS:
            uid = changed.parts[1]
            if changed.after is not None:
                self._unplaced.pop(uid, None)
            else:
                if self._find_placeable(uid) is not None:
                    self._unplaced[uid] = None
                self._look_again()
        elif changed.table in (keys.NODES, keys.NODE_STATUS, keys.PLACEMENT_GROUPS):
            self._look_again()

    def load(self) -> None:
        """Take everything from the State, at the start of leading."""
        for row in self._state.rows(keys.INSTANCES).values():
            self._note_instance(Changed(keys.INSTANCES, (), None, row, 0))
        self._wake.set()

    async def run(self) -> None:
        self.load()
        while True:
            await asyncio.sleep(GATHER_S)
            waiting = [uid for uid in self._unplaced if uid not in self._refused][:BATCH]
            if not waiting:
                await self._idle()
                continue
            await self._place(waiting)

    async def _idle(self) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(RETRY_S if self._refused else None):
                await self._wake.wait()
        except TimeoutError:
            self._look_again()

    def _note_instance(self, changed: Changed) -> None:
        row = changed.after or changed.before
        if row is None:
            return
        uid = row.message.meta.uid
        gone = changed.after is None or row.message.meta.HasField("deleted_at")
        if gone or self._state.placement_of(uid) is not None:
            self._unplaced.pop(uid, None)
            self._refused.discard(uid)
        else:
            self._unplaced[uid] = None
            self._refused.discard(uid)
            self._wake.set()

    def _find_placeable(self, uid: str) -> instance_pb2.Instance | None:
        """The instance, unless it is gone or going: the gate would refuse it, again and again."""
        found = self._state.find_instance(uid)
        if found is None or found[1].message.meta.HasField("deleted_at"):
            return None
        instance: instance_pb2.Instance = found[1].message
        return instance

    def _look_again(self) -> None:
        self._refused.clear()
        self._wake.set()

    async def _place(self, uids: list[str]) -> None:
        requests = []
        for uid in uids:
            instance = self._find_placeable(uid)
            if instance is None:
                self._unplaced.pop(uid, None)
            else:
                requests.append(build_request(instance))
        started = time.perf_counter()
        view = self._fleet.view()
        decided = plan(view, requests, PACK, self._rng)
        violations = check_plan(view, requests, decided)
        if violations:
            raise AssertionError(f"the planner contradicts its checker: {violations[0]}")
        self._on_decisions(len(decided.placements), len(decided.rejections), time.perf_counter() - started)
        self._note_refusals(decided)
        by_uid = {request.uid: request for request in requests}
        answered = await asyncio.gather(
            *(self._commit(by_uid[placed.uid], placed.node) for placed in decided.placements)
        )
        if not all(answered):
            await asyncio.sleep(PAUSE_S)

    def _note_refusals(self, decided: Plan) -> None:
        for rejection in decided.rejections:
            self._refused.add(rejection.uid)
            self._on_refusal(rejection.uid, str(rejection))

    async def _commit(self, request: Request, node: str) -> bool:
        """Whether the gate has answered, with a placement or without."""
        context = Context(self._clock.now(), self._rng, "scheduler")
        try:
            placed = await self._committer.commit(lambda state: gate(state, context, request, node))
        except CumuletError as error:
            log.warning("a placement was not committed", instance=request.uid, node=node, error=str(error))
            return False
        if placed:
            self._unplaced.pop(request.uid, None)
            self._on_refusal(request.uid, None)
        return True


def gate(state: State, context: Context, request: Request, node: str) -> Change | None:
    """The placement, if it still holds on this State; None to have it planned again."""
    found = state.find_instance(request.uid)
    node_row = state.find(keys.NODES, node)
    if found is None or node_row is None or state.placement_of(request.uid) is not None:
        return None
    parts, row = found
    instance: instance_pb2.Instance = row.message
    room = Room(node_view(state, node_row))
    if instance.meta.HasField("deleted_at") or reasons_against(room, request, occupancy_of(state, request)):
        return None
    choice = room.choose(request)  # on this State: the planner's may be taken since
    if choice is None:
        return None
    status = state.status_of(request.uid)
    record = store_pb2.PlacementRecord(
        instance_uid=request.uid,
        project=parts[0],
        name=parts[1],
        node=node,
        epoch=(status.epoch if status else 0) + 1,
        resources=resources_to(request.resources),
        placed_at=timestamp(context.now),
        numa_cells=choice.cells,
        devices=[
            placement_pb2.DeviceShare(address=share.address, share_milli=share.share_milli)
            for share in choice.devices
        ],
        groups=instance.spec.placement_groups,
    )
    key = keys.PLACEMENTS.key(node, request.uid)
    return Change(
        compares=[
            absent(key),
            unchanged(keys.INSTANCES.key(*parts), row.mod_revision),
            unchanged(keys.NODES.key(node), node_row.mod_revision),
            range_unchanged_since(keys.PLACEMENTS.prefix(node), state.revision),
            *_groups_unchanged(state, instance),
        ],
        writes={key: record.SerializeToString()},
        events=[common.event(context, "instance", instance.meta, "Placed", f"placed on node {node}")],
        result=True,
    )


def _groups_unchanged(state: State, instance: instance_pb2.Instance) -> Iterator[Compare]:
    """Guards on the groups' rules. Members come and go through this gate alone: the epoch guards them."""
    for name in instance.spec.placement_groups:
        row = state.find(keys.PLACEMENT_GROUPS, instance.meta.project, name)
        if row is not None:
            yield unchanged(keys.PLACEMENT_GROUPS.key(instance.meta.project, name), row.mod_revision)
