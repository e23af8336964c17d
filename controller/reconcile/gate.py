"""The commit gate: planned placements looked at again and made into guarded transactions.

**Pure.** What is placed but not in the State yet (under way, or committed and not seen) counts as there. A
node is guarded by a range over its placements, once for all that a transaction puts there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from controller.admit import common
from controller.admit.common import Context
from controller.reconcile.fleetview import FleetView
from controller.state import State
from controller.store import keys
from controller.store.protocol import OPS_MAX, Compare, range_unchanged_since, unchanged
from controller.tables import Stored
from cumulet.convert import resources_to, timestamp
from cumulet.v1 import event_pb2, instance_pb2, meta_pb2, placement_pb2, store_pb2
from scheduler.answer import Placement
from scheduler.filters import reasons_against
from scheduler.group import Occupancy
from scheduler.model import Request, Room
from scheduler.topology import NOTHING, Choice

NODE_GUARDS: Final = 2  # the node itself and the range over its placements
EXTRA_WRITES: Final = 2  # the events and the commit record

# By vector, only to be copied into records: making one costs five times what copying it does.
_amounts: Final = lru_cache(maxsize=4_096)(resources_to)


class Bound(NamedTuple):
    """One placement about to be committed; `row` as the State will have it, `instance` as it was read."""

    request: Request
    node: str
    row: Stored
    instance: Stored


@dataclass(slots=True)
class Bundle:
    """What one transaction commits. `as_of`: what is known of its nodes' placements, by revision.

    `guarded`: mod_revisions of the instances and groups that it rests on, by key; `nodes`: of the nodes.
    """

    as_of: int
    members: list[Bound] = field(default_factory=list)
    guarded: dict[bytes, int] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    writes: dict[bytes, bytes | None] = field(default_factory=dict)
    events: list[event_pb2.Event] = field(default_factory=list)

    def guards(self, committed: Mapping[str, int]) -> Iterator[Compare]:
        """All compares; `committed`: revisions of our own last commits by node, which are known too."""
        for key, mod_revision in self.guarded.items():
            yield unchanged(key, mod_revision)
        for node, mod_revision in self.nodes.items():
            yield unchanged(keys.NODES.key(node), mod_revision)
            as_of = max(self.as_of, committed.get(node, 0))
            yield range_unchanged_since(keys.PLACEMENTS.prefix(node), as_of)

    def fits(self, unit: Sequence[Bound], guarded: Mapping[bytes, int], reserve: int) -> bool:
        """Whether the unit can be added within what a transaction may have."""
        objects = sum(key not in self.guarded for key in guarded)
        nodes = len({bound.node for bound in unit}.difference(self.nodes))
        guards = len(self.guarded) + objects + NODE_GUARDS * (len(self.nodes) + nodes) + reserve
        return max(guards, len(self.members) + len(unit) + EXTRA_WRITES) <= OPS_MAX


class Gate:
    """Looks at the placements of one plan, in turn, on one State."""

    def __init__(self, state: State, fleet: FleetView, context: Context, occupancy: Occupancy) -> None:
        self._state = state
        self._fleet = fleet
        self._occupancy = occupancy
        self._rooms: dict[str, Room | None] = {}
        self._at = timestamp(context.now)
        self._event = common.event(context, "instance", meta_pb2.Meta(), "Placed", "")

    def bundles(
        self, units: Iterable[list[tuple[Request, Placement]]], reserve: int
    ) -> tuple[list[Bundle], list[Request]]:
        """Transactions for what holds, and the requests that do not. A unit is in one transaction whole."""
        bundles = [Bundle(self._state.revision)]
        failed: list[Request] = []
        for unit in sorted(units, key=lambda unit: unit[0][1].node):  # few nodes in each transaction
            bound = [self._bind(request, placed) for request, placed in unit]
            members = [one for one in bound if one is not None]
            if len(members) < len(unit):
                failed += [request for request, _ in unit]
                continue
            guarded = {key: revision for one in members for key, revision in self._rests_on(one)}
            if not bundles[-1].fits(members, guarded, reserve):
                bundles.append(Bundle(self._state.revision))
            self._add(bundles[-1], members, guarded)
        return [bundle for bundle in bundles if bundle.members], failed

    def _bind(self, request: Request, placed: Placement) -> Bound | None:
        found = self._state.find_instance(request.uid)
        room = self._room(placed.node)
        if found is None or room is None or self._state.placement_of(request.uid) is not None:
            return None
        row = found[1]
        if row.message.meta.HasField("deleted_at") or reasons_against(room, request, self._occupancy):
            return None
        choice = room.choose(request)
        if choice is None:
            return None
        room.enter(request, choice)
        self._occupancy.enter(request.groups, room.node)
        record = self._record(request, placed.node, choice, row.message)
        return Bound(request, placed.node, Stored(record, -1, -1), row)

    def _room(self, node: str) -> Room | None:
        """From the State itself, whatever the planner's fleet says."""
        if node not in self._rooms:
            view = self._fleet.look(node)
            self._rooms[node] = Room(view) if view else None
        return self._rooms[node]

    def _record(
        self, request: Request, node: str, choice: Choice, instance: instance_pb2.Instance
    ) -> store_pb2.PlacementRecord:
        """Filled in place: keywords cost three times as much, and there is one for each placement."""
        status = self._state.status_of(request.uid)
        record = store_pb2.PlacementRecord()
        record.instance_uid = request.uid
        record.project = instance.meta.project
        record.name = instance.meta.name
        record.node = node
        record.epoch = (status.epoch if status else 0) + 1
        record.resources.CopyFrom(_amounts(request.resources))
        record.placed_at.CopyFrom(self._at)
        if request.groups:
            record.groups.extend(instance.spec.placement_groups)
        if choice is not NOTHING:
            record.numa_cells.extend(choice.cells)
            record.devices.extend(
                placement_pb2.DeviceShare(address=share.address, share_milli=share.share_milli)
                for share in choice.devices
            )
            record.wanted_devices.extend(instance.spec.devices)
        return record

    def _rests_on(self, bound: Bound) -> Iterator[tuple[bytes, int]]:
        """The instance as it was read, and the groups' rules. Members come through this gate alone."""
        meta, groups = bound.instance.message.meta, bound.request.groups
        yield keys.INSTANCES.key(meta.project, meta.name), bound.instance.mod_revision
        for name in bound.row.message.groups if groups else ():
            group = self._state.find(keys.PLACEMENT_GROUPS, meta.project, name)
            if group is not None:
                yield keys.PLACEMENT_GROUPS.key(meta.project, name), group.mod_revision

    def _add(self, bundle: Bundle, members: list[Bound], guarded: Mapping[bytes, int]) -> None:
        bundle.members += members
        bundle.guarded.update(guarded)
        for bound in members:
            node_row = self._state.find(keys.NODES, bound.node)
            if node_row is None:
                raise AssertionError(f"node {bound.node} was there when {bound.request.uid} was bound")
            bundle.nodes[bound.node] = node_row.mod_revision
            key = keys.PLACEMENTS.key(bound.node, bound.request.uid)
            bundle.writes[key] = bound.row.message.SerializeToString()
            bundle.events.append(self._placed(bound))

    def _placed(self, bound: Bound) -> event_pb2.Event:
        event = event_pb2.Event()
        event.CopyFrom(self._event)
        event.message = f"placed on node {bound.node}"
        record, target = bound.row.message, event.target
        target.project, target.name, target.uid = record.project, record.name, bound.request.uid
        return event
