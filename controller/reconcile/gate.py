"""The commit gate: planned placements looked at again and made into guarded transactions.

**Pure.** What is placed but not in the State yet (under way, or committed and not seen) counts as there. A
node is guarded by a range over its placements, once for all that a transaction puts there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from controller.admit import common
from controller.admit.common import Context
from controller.fleet import FleetView
from controller.state import State, Stored
from controller.store import keys
from controller.store.protocol import OPS_MAX, Compare, range_unchanged_since, unchanged
from cumulet.convert import resources_to, timestamp
from cumulet.v1 import event_pb2, instance_pb2, placement_pb2, store_pb2
from scheduler.filters import reasons_against
from scheduler.group import Occupancy
from scheduler.model import Placement, Request, Room
from scheduler.topology import Choice

NODE_GUARDS: Final = 2  # the node itself and the range over its placements
EXTRA_WRITES: Final = 2  # the events and the commit record


@dataclass(frozen=True, slots=True)
class Bound:
    """One placement about to be committed; `row` as the State will have it."""

    request: Request
    node: str
    row: Stored


@dataclass(slots=True)
class Bundle:
    """What one transaction commits. `as_of`: what is known of its nodes' placements, by revision."""

    as_of: int
    members: list[Bound] = field(default_factory=list)
    compares: dict[Compare, None] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)  # mod_revision of the node
    writes: dict[bytes, bytes | None] = field(default_factory=dict)
    events: list[event_pb2.Event] = field(default_factory=list)

    def guards(self, committed: Mapping[str, int]) -> Iterator[Compare]:
        """All compares; `committed`: revisions of our own last commits by node, which are known too."""
        yield from self.compares
        for node, mod_revision in self.nodes.items():
            yield unchanged(keys.NODES.key(node), mod_revision)
            as_of = max(self.as_of, committed.get(node, 0))
            yield range_unchanged_since(keys.PLACEMENTS.prefix(node), as_of)

    def fits(self, unit: Iterable[Bound], compares: Mapping[Compare, None], reserve: int) -> bool:
        members = list(unit)
        nodes = self.nodes.keys() | {bound.node for bound in members}
        guards = len(self.compares.keys() | compares.keys()) + NODE_GUARDS * len(nodes) + reserve
        return max(guards, len(self.members) + len(members) + EXTRA_WRITES) <= OPS_MAX


class Gate:
    """Looks at the placements of one plan, in turn, on one State."""

    def __init__(self, state: State, fleet: FleetView, context: Context, occupancy: Occupancy) -> None:
        self._state = state
        self._fleet = fleet
        self._context = context
        self._occupancy = occupancy
        self._rooms: dict[str, Room | None] = {}
        self._at = timestamp(context.now)

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
            compares = dict.fromkeys(compare for one in members for compare in self._compares(one))
            if not bundles[-1].fits(members, compares, reserve):
                bundles.append(Bundle(self._state.revision))
            self._add(bundles[-1], members, compares)
        return [bundle for bundle in bundles if bundle.members], failed

    def _bind(self, request: Request, placed: Placement) -> Bound | None:
        found = self._state.find_instance(request.uid)
        room = self._room(placed.node)
        if found is None or room is None or self._state.placement_of(request.uid) is not None:
            return None
        if found[1].message.meta.HasField("deleted_at") or reasons_against(room, request, self._occupancy):
            return None
        choice = room.choose(request)
        if choice is None:
            return None
        room.enter(request, choice)
        self._occupancy.enter(request.groups, room.node)
        return Bound(
            request, placed.node, Stored(self._record(request, placed.node, choice, found[1]), -1, -1)
        )

    def _room(self, node: str) -> Room | None:
        """From the State itself, whatever the planner's fleet says."""
        if node not in self._rooms:
            view = self._fleet.look(node)
            self._rooms[node] = Room(view) if view else None
        return self._rooms[node]

    def _record(self, request: Request, node: str, choice: Choice, row: Stored) -> store_pb2.PlacementRecord:
        status = self._state.status_of(request.uid)
        instance: instance_pb2.Instance = row.message
        return store_pb2.PlacementRecord(
            instance_uid=request.uid,
            project=instance.meta.project,
            name=instance.meta.name,
            node=node,
            epoch=(status.epoch if status else 0) + 1,
            resources=resources_to(request.resources),
            placed_at=self._at,
            numa_cells=choice.cells,
            devices=[
                placement_pb2.DeviceShare(address=share.address, share_milli=share.share_milli)
                for share in choice.devices
            ],
            groups=instance.spec.placement_groups,
        )

    def _compares(self, bound: Bound) -> Iterator[Compare]:
        """The instance as it was read, and the groups' rules. Members come through this gate alone."""
        record = bound.row.message
        row = self._state.find(keys.INSTANCES, record.project, record.name)
        if row is not None:
            yield unchanged(keys.INSTANCES.key(record.project, record.name), row.mod_revision)
        for name in record.groups:
            group = self._state.find(keys.PLACEMENT_GROUPS, record.project, name)
            if group is not None:
                yield unchanged(keys.PLACEMENT_GROUPS.key(record.project, name), group.mod_revision)

    def _add(self, bundle: Bundle, members: list[Bound], compares: Mapping[Compare, None]) -> None:
        bundle.members += members
        bundle.compares |= compares
        for bound in members:
            record = bound.row.message
            node_row = self._state.find(keys.NODES, bound.node)
            instance = self._state.find(keys.INSTANCES, record.project, record.name)
            if node_row is None or instance is None:
                raise AssertionError("both were there when it was bound")
            bundle.nodes[bound.node] = node_row.mod_revision
            bundle.writes[keys.PLACEMENTS.key(bound.node, record.instance_uid)] = record.SerializeToString()
            text = f"placed on node {bound.node}"
            meta = instance.message.meta
            bundle.events.append(common.event(self._context, "instance", meta, "Placed", text))
