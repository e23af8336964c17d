"""The fleet, kept: its nodes in the decision index, and beside it what an index of amounts does not know.

**Pure** in its answers; the fleet changes in place: nodes are set and removed as the world changes. What a
trial takes is given back at its end, so planning has no effect. A fleet that was kept and one that is made of
the same nodes decide alike.

Beside the index are the members of placement groups, the cells and devices of nodes that have them, and the
attributes (`scheduler.attributes`) that say who may use a node and who likes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Self

from cext.index import FleetIndex
from cumulet.resources import BASE_NAMES, Resources
from scheduler.attributes import CLOSED, Attributes, Level
from scheduler.cellsets import Bins, CellSets, Node
from scheduler.columns import Columns
from scheduler.gpu import Devices, Look
from scheduler.gpu_workload import Usage
from scheduler.group import Occupancy, PlacementGroup, Scope, domain_of
from scheduler.model import ModelError, NodeView, Request, Room, View
from scheduler.policy import PACK, Norm, Order, Policy
from scheduler.reference import Scale, Scoring
from scheduler.topology import NOTHING, Choice

NAMES_MAX: Final = 54  # resources of a fleet; the index has 56 rows, and two are for NUMA cells
MEMORY_MAX: Final = 16_384  # shapes, attributes and constraints that are remembered before starting anew


@dataclass(frozen=True, slots=True)
class Seat:
    """A node's slot, the shape that is taken there, and what is taken by name."""

    slot: int
    shape: int
    choice: Choice = NOTHING


class Fleet:
    """Nodes by name under a policy; `scheduler.search` finds seats on it."""

    def __init__(self, policy: Policy = PACK, groups: Iterable[PlacementGroup] = ()) -> None:
        self.policy = policy
        self.names: tuple[str, ...] = BASE_NAMES
        self.occupancy = Occupancy(groups)
        self.rooms: dict[int, Room] = {}  # cells and devices of nodes that have some; amounts are the index's
        self._slots: dict[str, int] = {}
        self._nodes: list[NodeView | None] = []
        self._ranks: list[int] = []  # of the nodes' names, by slot
        self._vacant: list[int] = []
        self._sizes: dict[str, Counter[int]] = {}  # allocatable amounts by resource, to know the largest
        self._largest: dict[str, int] = {}
        self._domains: dict[Scope, dict[str, set[int]]] = {Scope.RACK: {}, Scope.ZONE: {}}
        self._nowhere: dict[Scope, set[int]] = {scope: set() for scope in Scope}  # slots without a domain
        self._columns: Columns | None = None
        self._asked: set[str] = set()  # extended resources that requests have named
        self._attributes = Attributes(policy.tier, self._allow)
        self._usage = Usage()  # of devices
        self._taken: list[tuple[Request, Seat]] = []  # by the trial under way, in order
        self._stale = True  # the index lacks a resource, or its scale is another
        self._rebuild()

    @classmethod
    def of(cls, view: View, policy: Policy = PACK) -> Self:
        """The nodes and groups of a view."""
        fleet = cls(policy, view.groups.values())
        fleet._stale = True  # build once, when all are there
        for node in view.nodes:
            fleet.update(node)
        return fleet

    # ---- nodes

    def __len__(self) -> int:
        return len(self._slots)

    def node(self, slot: int) -> NodeView:
        """The node of a slot that is in use."""
        node = self._nodes[slot]
        if node is None:
            raise ModelError(f"slot {slot} has no node")
        return node

    def nodes(self) -> Iterator[NodeView]:
        """All nodes, as they were set."""
        return (node for node in self._nodes if node is not None)

    def view(self, revision: int) -> View:
        """The nodes as they were set, and the groups."""
        return View(revision, tuple(self.nodes()), self.occupancy.groups())

    def largest(self, name: str) -> int:
        """The largest allocatable amount of a resource on one node."""
        return self._largest.get(name, 0)

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
        return self._slots.get(name)

    def slots_of(self, scope: Scope, domain: str) -> Iterable[int]:
        """The nodes of a domain."""
        if scope is Scope.NODE:
            return (self._slots[domain],) if domain in self._slots else ()
        return self._domains[scope].get(domain, ())

    def slots_without(self, scope: Scope) -> Set[int]:
        """The nodes that have no domain of that scope."""
        return self._nowhere[scope]

    def update(self, node: NodeView) -> None:
        """Set a node, new or known. Not during a trial."""
        slot = self._slots.get(node.name)
        if slot is not None:
            self._forget(slot)
        else:
            slot = self._slots[node.name] = self._vacant.pop() if self._vacant else len(self._nodes)
            if slot == len(self._nodes):
                self._nodes.append(None)
                self._ranks.append(0)
            self._ranks[slot] = rank(node.name)
        self._nodes[slot] = node
        self._learn(slot, node)
        if not self._stale:
            self._put(slot, node)

    def remove(self, name: str) -> None:
        """The node is gone, if it was there. Not during a trial."""
        slot = self._slots.pop(name, None)
        if slot is None:
            return
        self._forget(slot)
        self._nodes[slot] = None
        self._vacant.append(slot)
        if slot in self.index:
            self.index.remove_node(slot)

    def set_groups(self, groups: Iterable[PlacementGroup]) -> None:
        """Other groups: their members are counted anew. Not during a trial."""
        self.occupancy = Occupancy(groups)
        for node in self.nodes():
            for resident in node.residents:
                self.occupancy.enter(resident.request.groups, node)

    def _learn(self, slot: int, node: NodeView) -> None:
        for resident in node.residents:
            self.occupancy.enter(resident.request.groups, node)
            self._usage.change(resident.request, resident.choice, +1)
        self._count(node, +1)
        for name, amount in node.allocatable.as_dict().items():
            sizes = self._sizes.setdefault(name, Counter())
            sizes[amount] += 1
            if amount > self.largest(name):
                self._largest[name] = amount
                self._stale = True
        if node.allocated.extended:
            self._stale = self._stale or not set(node.allocated.names()) <= set(self.names)
        if node.cells or node.devices:
            self.rooms[slot] = Room(node)
        for scope, domains in self._domains.items():
            domain = domain_of(node, scope)
            if domain:
                domains.setdefault(domain, set()).add(slot)
            else:
                self._nowhere[scope].add(slot)

    def _forget(self, slot: int) -> None:
        node = self.node(slot)
        for resident in node.residents:
            self.occupancy.leave(resident.request.groups, node)
            self._usage.change(resident.request, resident.choice, -1)
        self._count(node, -1)
        for name, amount in node.allocatable.as_dict().items():
            sizes = self._sizes[name]
            sizes[amount] -= 1
            if not sizes[amount]:
                del sizes[amount]
                if amount == self.largest(name):
                    self._largest[name] = max(sizes, default=0)
                    self._stale = True
        self.rooms.pop(slot, None)
        self._touch(slot)
        for scope, domains in self._domains.items():
            domain = domain_of(node, scope)
            if domain:
                domains[domain].discard(slot)
                if not domains[domain]:
                    del domains[domain]
            self._nowhere[scope].discard(slot)

    # ---- the index

    def prepare(self, requests: Iterable[Request]) -> None:
        """Make sure that the index knows what the requests name. Before a trial, not during one.

        Raises ModelError where more resources are named than an index has rows.
        """
        requests = list(requests)
        for request in requests:
            if request.resources.extended:
                asked = {name for name, _ in request.resources.extended}
                self._asked |= asked
                self._stale = self._stale or not asked <= set(self.names)
            if self._attributes.asks_for_more(request):
                self._stale = True
        if self._stale or len(self._shapes) + len(self._attributes) > MEMORY_MAX:
            self._rebuild()
        for request in requests:
            self._attributes.levels(request)

    def _rebuild(self) -> None:
        """A new index, with a row for every resource that a node has or a request has asked for."""
        extended = {name for name, sizes in self._sizes.items() if sizes and name not in BASE_NAMES}
        for node in self.nodes():
            extended.update(name for name, _ in node.allocated.extended)
        extended |= self._asked
        if len(BASE_NAMES) + len(extended) > NAMES_MAX:
            self._asked.clear()
            raise ModelError(f"{len(extended)} extended resources are named, at most {NAMES_MAX - 3} can be")
        self.names = (*BASE_NAMES, *sorted(extended))
        largest = {name: self.largest(name) for name in self.names}
        axes = Axes.of(self.names, largest, self.policy)
        self.index = axes.index()
        self.cellsets = CellSets(lambda: axes.with_cells(self.index), self._look)
        scales = zip(axes.scales, axes.scored, strict=True)
        self._scales = tuple(scale if scores else None for scale, scores in scales)
        self.devices = Devices(len(self.names), self.policy.devices, self._usage, self._look_at, self._vector)
        self._allowed: list[tuple[int, int]] = []  # pairs of constraint and attribute
        self._attributes = self._attributes.renewed(self._allow)
        self._shapes: dict[tuple[Resources, int], int] = {}
        self._kinds: dict[Resources, int] = {}
        self._stale = False
        for slot, found in enumerate(self._nodes):
            if found is not None:
                self._put(slot, found)
                self._count(found, +1)

    def _put(self, slot: int, node: NodeView) -> None:
        size = self.row(node.allocatable.as_dict()) if self.policy.counts else None
        self.index.set_node(slot, self.row(node.free()), self._attribute(node), self._ranks[slot], size)
        self.devices.touch(slot)

    def _count(self, node: NodeView, sign: int) -> None:
        """What runs on the node has come or gone, where the policy asks what is typical."""
        if not self.policy.counts or self._stale:
            return  # an index that is made anew counts them all
        for resources, count in node.kinds().items():
            kind = self._kinds.get(resources)
            if kind is None:
                kind = self._kinds[resources] = self.index.add_kind(self.row(resources.as_dict()))
            self.index.count(kind, sign * count)

    def row(self, amounts: dict[str, int]) -> list[int]:
        """Amounts in the order of `names`."""
        return [amounts.get(name, 0) for name in self.names]

    def _attribute(self, node: NodeView) -> int:
        if self.policy.order is Order.ENERGY:
            both = [self._attributes.attribute(node, used) for used in (False, True)]  # a trial may change it
            return both[any(node.allocated.as_dict().values())]
        return self._attributes.attribute(node, used=False)

    def _allow(self, constraint: int, attribute: int) -> None:
        self._allowed.append((constraint, attribute))
        self.index.set_eligible(constraint, attribute, True)
        self.cellsets.allow(constraint, attribute)
        self.devices.allow(constraint, attribute)

    def _look(self, slot: int) -> Node | None:
        """A node with cells, as the cell sets want it."""
        room = self.rooms.get(slot)
        if room is None or not room.cells:
            return None
        free, size = self.index.free_at(slot), self.row(room.node.allocatable.as_dict())
        return Node(free, size, room.cells, self.index.attr_at(slot), self._ranks[slot])

    def _look_at(self, slot: int) -> Look | None:
        """Any node, as the devices want it."""
        if self._nodes[slot] is None:
            return None
        free = self.index.free_at(slot)
        units = sum(scale.unit(have) for scale, have in zip(self._scales, free, strict=True) if scale)
        return Look(free, units, self.rooms.get(slot), self.index.attr_at(slot), self._ranks[slot])

    def _vector(self, resources: Resources) -> list[int]:
        return self.row(resources.as_dict())

    def _touch(self, slot: int) -> None:
        """What is left on the node has changed: those who follow by themselves are told."""
        self.cellsets.touch(slot)
        self.devices.touch(slot)

    def bins(self, count: int) -> Bins:
        """The nodes' sets of so many cells."""
        return self.cellsets.bins(count, self.rooms, self._allowed)

    def levels(self, request: Request) -> Sequence[Level]:
        """Where the request may go, the most welcome first."""
        return self._attributes.levels(request)

    def shape(self, request: Request, constraint: int) -> int:
        """The index's id for the request's amounts under a constraint."""
        key = (request.resources, constraint)
        shape = self._shapes.get(key)
        if shape is None:
            shape = self.index.add_shape(self.row(request.resources.as_dict()), constraint)
            self._shapes[key] = shape
        return shape

    # ---- trials

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Whatever is entered within is taken out again at the end."""
        mark, start = self.index.mark(), len(self._taken)
        try:
            yield
        finally:
            self.index.rollback(mark)
            self._unwind(start)

    def attempt(self) -> tuple[int, int]:
        """The beginning of something that may be given up, within a trial."""
        return self.index.mark(), len(self._taken)

    def give_up(self, attempt: tuple[int, int]) -> None:
        """Take out what was entered since."""
        mark, start = attempt
        self.index.rollback(mark)
        self._unwind(start)

    def keep(self, attempt: tuple[int, int]) -> None:
        """What was entered since stays until the end of the trial."""
        self.index.keep(attempt[0])

    def _unwind(self, start: int) -> None:
        for request, seat in reversed(self._taken[start:]):
            self._beside(request, seat, enter=False)
        del self._taken[start:]

    def enter(self, request: Request, seat: Seat) -> None:
        """Put the request on its seat. Within a trial."""
        self.settle(request, seat)
        self._taken.append((request, seat))

    def settle(self, request: Request, seat: Seat) -> None:
        """Put the request on its seat for good: until `vacate`, or until the node is set anew."""
        self.index.take_shape(seat.slot, seat.shape)
        if self.policy.order is Order.ENERGY:
            self._note_use(seat.slot)
        self._beside(request, seat, enter=True)

    def vacate(self, request: Request, seat: Seat) -> None:
        """The inverse of `settle`."""
        self.index.release(seat.slot, seat.shape)
        self._note_use(seat.slot)
        self._beside(request, seat, enter=False)

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
            used = list(self.index.free_at(slot)) != self.row(node.allocatable.as_dict())
            self.index.set_attr(slot, self._attributes.attribute(node, used))

    def _beside(self, request: Request, seat: Seat, *, enter: bool) -> None:
        """Everything but the index."""
        slot = seat.slot
        if request.groups:
            change = self.occupancy.enter if enter else self.occupancy.leave
            change(request.groups, self.node(slot))
        room = self.rooms.get(slot)
        if room is not None:
            (room.take_named if enter else room.give_named)(request, seat.choice)
        self._usage.change(request, seat.choice, 1 if enter else -1)
        self._touch(slot)


@dataclass(frozen=True, slots=True)
class Axes:
    """How the rows of an index are scaled and which of them score."""

    names: tuple[str, ...]
    scales: tuple[Scale, ...]
    scored: tuple[bool, ...]
    norm: str
    largest: tuple[int, ...]

    @classmethod
    def of(cls, names: Sequence[str], largest: dict[str, int], policy: Policy) -> Self:
        """A share of the fleet's largest node weighs as the policy says, relative to the heaviest."""
        weights = {name: policy.weight(name) for name in names}
        heaviest = max(weights.values()) or 1.0
        scored = tuple(largest[name] > 0 and weights[name] > 0 for name in names)
        scales = tuple(
            Scale.of(largest[name], weights[name] / heaviest) if scores else Scale(1, 0)
            for name, scores in zip(names, scored, strict=True)
        )
        return cls(tuple(names), scales, scored, policy.norm.value, tuple(largest[name] for name in names))

    @property
    def scoring(self) -> Scoring:
        """The specification of how an index with these rows compares nodes."""
        return Scoring(self.scales, self.scored, self.norm, largest=self.largest)

    def index(self) -> FleetIndex:
        """An empty index with these rows."""
        multipliers = [scale.multiplier for scale in self.scales]
        largest = self.largest if self.norm == Norm.SLOTS else None
        return FleetIndex(
            multipliers, [scale.shift for scale in self.scales], self.scored, self.norm, largest=largest
        )

    def with_cells(self, whole: FleetIndex) -> FleetIndex:
        """An empty index with two more rows that must fit and do not score: a cell's vcpu and memory.

        `whole` is that of the nodes: what is typical is asked of it, where the norm wants to know.
        """
        multipliers = [*(scale.multiplier for scale in self.scales), 1, 1]
        shifts = [*(scale.shift for scale in self.scales), 0, 0]
        crowd_of = whole if self.norm == Norm.SLOTS else None
        return FleetIndex(multipliers, shifts, (*self.scored, False, False), self.norm, crowd_of=crowd_of)


def rank(name: str) -> int:
    """The canonical order of nodes that are equal: by their name, but not alphabetically."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
