"""The fleet, kept: its nodes in the decision index, and beside it what an index of amounts does not know.

**Pure** in its answers; the fleet changes in place: nodes are set and removed as the world changes. What a
trial takes is given back at its end, so planning has no effect. A fleet that was kept and one that is made of
the same nodes decide alike.

Beside the index are the members of placement groups, the cells and devices of nodes that have them, and the
attributes (`scheduler.attributes`) that say who may use a node and who likes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Self, TypeAlias

import cext.groups
import cext.seating
from cext.cells import Cells
from cext.groups import Group
from cext.seating import Asked, Seating
from cumulet.resources import BASE_NAMES, Resources
from scheduler.attributes import CLOSED, Attributes, Level
from scheduler.axes import Axes
from scheduler.columns import Columns
from scheduler.gpu import Devices, Look
from scheduler.gpu_workload import Usage
from scheduler.group import Occupancy, PlacementGroup, Rule, Scope, domain_of
from scheduler.model import ModelError, NodeView, Request, Room, View
from scheduler.packing import coarse
from scheduler.policy import PACK, Order, Policy
from scheduler.preference import SOFT_GROUP_PENALTY
from scheduler.roster import Roster
from scheduler.sizes import Sizes
from scheduler.sockets import stock_of
from scheduler.topology import NOTHING, Choice, part
from scheduler.wants import Wants

NAMES_MAX: Final = 54  # resources of a fleet; the index has 56 rows, and two are for NUMA cells
MEMORY_MAX: Final = 16_384  # shapes, attributes and constraints that are remembered before starting anew


Seat: TypeAlias = cext.seating.Seat[Choice]


class Fleet:
    """Nodes by name under a policy; `scheduler.search` finds seats on it."""

    def __init__(self, policy: Policy = PACK, groups: Iterable[PlacementGroup] = ()) -> None:
        self.policy = policy
        self.by_devices = policy.devices is not None  # where there are some, they decide
        self.names: tuple[str, ...] = BASE_NAMES
        self.rooms: dict[int, Room] = {}  # of nodes with devices, by slot
        self._roster = Roster()
        self._marks: dict[int, int] = {}  # attributes of the nodes, by slot
        self._sizes = Sizes()
        self._scopes = {scope: cext.groups.Scope() for scope in Scope}
        self._columns: Columns | None = None
        self._named: set[str] = set()  # extended resources that requests have named
        self._usage = Usage()  # of devices
        self._taken: list[tuple[Request, Seat]] = []  # by the trial under way, where Python follows it
        self._trials = 0
        self._now_s = 0
        # Whether all that is entered matters to devices or use; else it does where there are devices.
        self._follows = self.by_devices or policy.order is Order.ENERGY
        self._stale = True  # the index lacks a resource, or its scale is another
        self._define(groups)
        self._rebuild(Attributes(policy.tier, lambda constraint, attribute: None))

    @classmethod
    def of(cls, view: View, policy: Policy = PACK) -> Self:
        """The nodes and groups of a view."""
        fleet = cls(policy, view.groups.values())
        fleet._stale = True  # build once, when all are there
        fleet._now_s = coarse(view.at_s)
        for node in view.nodes:
            fleet.update(node)
        return fleet

    # ---- nodes

    def __len__(self) -> int:
        return len(self._roster)

    def node(self, slot: int) -> NodeView:
        """The node of a slot that is in use."""
        return self._roster.node(slot)

    def nodes(self) -> Iterator[NodeView]:
        """All nodes, as they were set."""
        return self._roster.nodes()

    def view(self, revision: int) -> View:
        """The nodes as they were set, and the groups."""
        return View(revision, tuple(self.nodes()), self.occupancy.groups(), self._now_s)

    def largest(self, name: str) -> int:
        """The largest allocatable amount of a resource on one node."""
        return self._sizes.largest(name)

    def columns(self, view: View) -> Columns:
        """The columns of a view of this fleet; those of the last such view, brought up to it."""
        if self._columns is None:
            self._columns = Columns(view)
        else:
            self._columns.follow(view)
        return self._columns

    def largest_share(self, request: Request) -> float:
        """How large the request is: its largest share of the largest node."""
        wants = request.resources.as_dict().items()
        return max((want / self.largest(name) for name, want in wants if self.largest(name)), default=0.0)

    def slot(self, name: str) -> int | None:
        """Where the node of that name is; None if there is none."""
        return self._roster.slot(name)

    def update(self, node: NodeView) -> None:
        """Set a node, new or known. Not during a trial."""
        known = self._roster.slot(node.name)
        if known is not None:
            old = self._roster.node(known)
            if node.is_same_node(old):
                return self._reload(known, old, node)
            self._forget(known)
        slot = self._roster.put(node)
        self._learn(slot, node)
        if not self._stale:
            self._put(slot, node)
        return None

    def _reload(self, slot: int, old: NodeView, node: NodeView) -> None:
        """The node holds something else, and that is all that has changed: most updates are such."""
        if old.residents is not node.residents:
            self._seat_residents(slot, old, -1)
            self._seat_residents(slot, node, +1)
        self._count(old, -1)
        self._count(node, +1)
        self._roster.put(node)
        self._heed(node)
        if slot in self.rooms:
            self.rooms[slot] = Room(node)
        if self._stale:
            return
        if self.policy.order is Order.ENERGY:
            self._marks[slot] = self._attribute(node)
        self._load(slot, node)

    def set_time(self, at_s: int) -> None:
        """It is so late now, where the policy asks how long things last. Not during a trial."""
        now_s = coarse(at_s)
        if not self.policy.lifetimes or now_s == self._now_s:
            return
        self._now_s = now_s
        if not self._stale:
            self.index.set_time(now_s)
            for slot, node in self._roster.seated():
                if node.cells:
                    self.seating.cells.touch_slot(slot)

    def remove(self, name: str) -> None:
        """The node is gone, if it was there. Not during a trial."""
        slot = self._roster.slot(name)
        if slot is None:
            return
        self._forget(slot)
        self._roster.remove(slot)
        for known in self._scopes.values():
            known.set_domain(slot, "")
        if slot in self.index:
            self.index.remove_node(slot)
        self.seating.cells.set_cells(slot, ())

    @contextmanager
    def instead(self, node: NodeView) -> Iterator[None]:
        """A node that is there is another within, and itself again at the end. Not during a trial."""
        slot = self.slot(node.name)
        if slot is None:
            raise ModelError(f"node {node.name} is not in the fleet")
        before = self.node(slot)
        self.update(node)
        try:
            yield
        finally:
            self.update(before)

    def set_groups(self, groups: Iterable[PlacementGroup]) -> None:
        """Other groups: their members are counted anew. Not during a trial."""
        self._define(groups)
        self.seating.set_groups(self._groups)
        for slot, node in self._roster.seated():
            for resident in node.residents:
                self.seating.count(resident.request.groups, slot, +1)

    def _define(self, groups: Iterable[PlacementGroup]) -> None:
        """The groups, without members yet. Their counts are the occupancy's own, changed by the kernel."""
        self.occupancy = Occupancy(groups)
        self._groups = {
            group.name: Group(
                self._scopes[group.scope],
                group.rule is Rule.AFFINITY,
                group.hard,
                group.limit,
                self.occupancy.counter(group.name),
            )
            for group in self.occupancy.groups().values()
        }

    def _learn(self, slot: int, node: NodeView) -> None:
        for scope, known in self._scopes.items():
            known.set_domain(slot, domain_of(node, scope))
        self._seat_residents(slot, node, +1)
        self._count(node, +1)
        self._stale |= self._sizes.add(node.allocatable.as_dict())
        self._heed(node)
        if node.devices or (node.cells and self.by_devices):
            self.rooms[slot] = Room(node)

    def _seat_residents(self, slot: int, node: NodeView, by: int) -> None:
        for resident in node.residents:
            self.seating.count(resident.request.groups, slot, by)
            self._usage.change(resident.request, resident.choice, by)

    def _heed(self, node: NodeView) -> None:
        """An index without a row for what is held is out of date."""
        if node.allocated.extended and not set(node.allocated.names()) <= set(self.names):
            self._stale = True

    def _forget(self, slot: int) -> None:
        node = self.node(slot)
        self._seat_residents(slot, node, -1)
        self._count(node, -1)
        self._stale |= self._sizes.remove(node.allocatable.as_dict())
        self.rooms.pop(slot, None)
        self._touch(slot)

    # ---- the index

    def prepare(self, requests: Sequence[Request]) -> list[Asked]:
        """Make sure that the index knows what the requests name. Before a trial, not during one.

        What each asks for, as the seating wants it. Raises ModelError where more resources are named than an
        index has rows.
        """
        if not self._stale and len(self.wants) <= MEMORY_MAX:
            known = [self.wants.find(request) for request in requests]
            found = [asked for asked in known if asked is not None]
            if len(found) == len(known):
                return found
        self._meet(requests)
        return [self.wants.ask(request) for request in requests]

    def _meet(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if request.resources.extended:
                named = {name for name, _ in request.resources.extended}
                self._named |= named
                self._stale = self._stale or not named <= set(self.names)
            if self.wants.attributes.asks_for_more(request):
                self._stale = True
        if self._stale or len(self.wants) > MEMORY_MAX:
            self._rebuild(self.wants.attributes)

    def _rebuild(self, attributes: Attributes) -> None:
        """A new index, with a row for every resource that a node has or a request has asked for."""
        self.names = (*BASE_NAMES, *sorted(self._extended()))
        self._axes = Axes.of(self.names, {name: self.largest(name) for name in self.names}, self.policy)
        self.index = self._axes.index()
        self.devices = Devices(
            len(self.names), self.policy.devices, self._usage, self._look_at, self._axes.row
        )
        cells = Cells(self.index)
        self.wants = Wants(self._axes, self.index, cells, attributes, self.devices.allow)
        self.seating: Seating[Choice] = Seating(self.index, cells, Choice, NOTHING, SOFT_GROUP_PENALTY)
        self.seating.set_groups(self._groups)
        self._kinds: dict[Resources, int] = {}
        self._stale = False
        if self.policy.lifetimes:
            self.index.set_time(self._now_s)
        for slot, found in self._roster.seated():
            self._put(slot, found)
            self._count(found, +1)

    def _extended(self) -> set[str]:
        extended = (self._sizes.names() - set(BASE_NAMES)) | self._named
        for node in self.nodes():
            extended.update(name for name, _ in node.allocated.extended)
        if len(BASE_NAMES) + len(extended) > NAMES_MAX:
            self._named.clear()
            raise ModelError(f"{len(extended)} extended resources are named, at most {NAMES_MAX - 3} can be")
        return extended

    def _put(self, slot: int, node: NodeView) -> None:
        attributes = self.wants.attributes
        known, attribute = attributes.count, self._attribute(node)
        if attributes.count > known:
            self.wants.renew()
        self._marks[slot] = attribute
        self._load(slot, node)

    def _load(self, slot: int, node: NodeView) -> None:
        """What the node has left."""
        size = self._axes.row(node.allocatable) if self.policy.counts else None
        free = node.free()
        row = [free.get(name, 0) for name in self.names]
        self.index.set_node(slot, row, self._marks[slot], self._roster.ranks[slot], size, node.busy_until_s)
        if node.cells:
            cells, _ = stock_of(node)
            self.seating.cells.set_cells(slot, [(cell.vcpu, cell.memory_mib) for cell in cells])
        else:
            self.seating.cells.set_cells(slot, ())
        self.devices.touch(slot)

    def _count(self, node: NodeView, sign: int) -> None:
        """What runs on the node has come or gone, where the policy asks what is typical."""
        if not self.policy.counts or self._stale:
            return  # an index that is made anew counts them all
        for resources, count in node.kinds().items():
            kind = self._kinds.get(resources)
            if kind is None:
                kind = self._kinds[resources] = self.index.add_kind(self._axes.row(resources))
            self.index.count(kind, sign * count)

    def row(self, resources: Resources) -> list[int]:
        """Amounts in the order of `names`."""
        return self._axes.row(resources)

    def _attribute(self, node: NodeView) -> int:
        attributes = self.wants.attributes
        if self.policy.order is Order.ENERGY:
            both = [attributes.attribute(node, used) for used in (False, True)]  # a trial may change it
            return both[any(node.allocated.as_dict().values())]
        return attributes.attribute(node, used=False)

    def _look_at(self, slot: int) -> Look | None:
        """Any node, as the devices want it."""
        if self._roster.find(slot) is None:
            return None
        free, room = self.index.free_at(slot), self.rooms.get(slot)
        return Look(free, self._axes.units(free), room, self.index.attr_at(slot), self._roster.ranks[slot])

    def _touch(self, slot: int) -> None:
        """What is left on the node has changed: those who follow by themselves are told."""
        self.seating.cells.touch_slot(slot)
        self.devices.touch(slot)

    def levels(self, request: Request) -> Sequence[Level]:
        """Where the request may go, the most welcome first."""
        return self.wants.levels(request)

    def shape(self, request: Request, constraint: int) -> int:
        """The index's id for the request's amounts under a constraint."""
        return self.wants.shape(request, constraint)

    # ---- seats

    def is_soft(self, name: str) -> bool:
        """Whether the group is one that may be given up."""
        return name in self._groups and not self._groups[name].hard

    def excluded(self, request: Request) -> Sequence[int]:
        """The slots of the nodes that the request does not want."""
        return [slot for name in request.excluded_nodes if (slot := self.slot(name)) is not None]

    def seat(self, request: Request, slot: int, shape: int, choice: Choice = NOTHING) -> Seat:
        """A seat that was found elsewhere."""
        count = len(choice.cells)
        wants = request.resources
        vcpu, memory_mib = (part(wants.vcpu, count), part(wants.memory_mib, count)) if count else (0, 0)
        return self.seating.seat(slot, shape, request.groups, choice, choice.cells, vcpu, memory_mib)

    def enter(self, request: Request, seat: Seat) -> None:
        """Put the request on its seat, until the trial ends or it is vacated, or the node is set anew."""
        self.seating.enter(seat)
        if self._follows or self.rooms:
            self._beside(request, seat, enter=True)
            if self._trials:
                self._taken.append((request, seat))

    def vacate(self, request: Request, seat: Seat) -> None:
        """The inverse of `enter`. Not during a trial."""
        self.seating.leave(seat)
        if self._follows or self.rooms:
            self._beside(request, seat, enter=False)

    def _beside(self, request: Request, seat: Seat, *, enter: bool) -> None:
        """What the seating does not know: use, and devices."""
        slot = seat.slot
        if self.policy.order is Order.ENERGY:
            self._note_use(slot)
        self._devices_of(request, seat, enter=enter)

    def _devices_of(self, request: Request, seat: Seat, *, enter: bool) -> None:
        room = self.rooms.get(seat.slot)
        if room is not None:
            (room.take_named if enter else room.give_named)(request, seat.choice)
        self._usage.change(request, seat.choice, 1 if enter else -1)
        self.devices.touch(seat.slot)

    def close(self, slot: int) -> None:
        """The node takes nothing until `reopen`."""
        self.index.set_attr(slot, CLOSED)
        self._touch(slot)

    def reopen(self, slot: int) -> None:
        """The inverse of `close`."""
        self.index.set_attr(slot, self._attribute(self.node(slot)))
        self._note_use(slot)
        self._touch(slot)

    def _note_use(self, slot: int) -> None:
        """Whether anything runs on the node, where the policy cares."""
        if self.policy.order is Order.ENERGY and self.index.attr_at(slot) != CLOSED:
            node = self.node(slot)
            used = list(self.index.free_at(slot)) != self.row(node.allocatable)
            self.index.set_attr(slot, self.wants.attributes.attribute(node, used))

    # ---- trials

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Whatever is entered within is taken out again at the end."""
        attempt = self.attempt()
        try:
            yield
        finally:
            self.give_up(attempt)

    def attempt(self) -> tuple[int, int]:
        """The beginning of something that may be given up."""
        self._trials += 1
        return self.seating.mark(), len(self._taken)

    def give_up(self, attempt: tuple[int, int]) -> None:
        """Take out what was entered since."""
        mark, start = attempt
        self._trials -= 1
        self.seating.rollback(mark)
        for request, seat in reversed(self._taken[start:]):
            self._devices_of(request, seat, enter=False)  # use is the index's, and rolled back
        del self._taken[start:]

    def keep(self, attempt: tuple[int, int]) -> None:
        """What was entered since stays until the end of the trial."""
        self._trials -= 1
        self.seating.keep(attempt[0])
