"""Where a request goes: the question put to the fleet's index in the order of what is preferred.

**Pure**: reads a fleet, changes nothing but what it remembers.

Static constraints and preferences are levels of the fleet's attributes; placement groups turn into nodes
that are left out, or that are the only ones; a soft group is first obeyed and then given up. So nodes are
asked for in order of their penalty, and among equal penalties the index decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, groupby

from scheduler.fleet import Fleet, Seat
from scheduler.gpu import Found
from scheduler.group import PlacementGroup, Rule
from scheduler.model import Request
from scheduler.preference import SOFT_GROUP_PENALTY
from scheduler.topology import NOTHING

_NOWHERE: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Where:
    """Slots that are left out, and the only ones that count (None: all)."""

    excluded: frozenset[int] = _NOWHERE
    among: frozenset[int] | None = None

    def and_in(self, slots: frozenset[int]) -> Where:
        return Where(self.excluded, slots if self.among is None else self.among & slots)

    def and_not_in(self, slots: frozenset[int]) -> Where:
        return Where(self.excluded | slots, self.among)

    def holds(self, slot: int) -> bool:
        return slot not in self.excluded and (self.among is None or slot in self.among)


EVERYWHERE = Where()


def find_seat(fleet: Fleet, request: Request) -> Seat | None:
    """The seat that the request gets, None if no node takes it. `Fleet.prepare` has seen the request."""
    if not request.groups and not request.excluded_nodes:
        for level in fleet.levels(request):
            seat = _ask(fleet, request, level.constraint, EVERYWHERE)
            if seat is not None:
                return seat
        return None
    for _, group in groupby(questions(fleet, request), key=lambda one: one.order):
        found = [_ask(fleet, request, one.constraint, one.where) for one in group]
        seats = [seat for seat in found if seat is not None]
        if seats:
            return seats[0] if len(seats) == 1 else min(seats, key=lambda seat: _key(fleet, request, seat))
    return None


def _key(fleet: Fleet, request: Request, seat: Seat) -> tuple[object, ...]:
    if fleet.devices.decides():
        return fleet.devices.key(request, Found(seat.slot, seat.choice))
    key = fleet.index.key(seat.shape, seat.slot)
    if key is None:
        raise AssertionError("a seat that was just found does not fit")
    return key


@dataclass(frozen=True, slots=True)
class Question:
    """One question to the index; `order` is (penalty, tier)."""

    order: tuple[int, int]
    constraint: int
    where: Where


def questions(fleet: Fleet, request: Request) -> list[Question]:
    """Everything to ask, in order. A node that several of them reach belongs to the first."""
    hard, soft = EVERYWHERE, []
    excluded = {fleet.slot(name) for name in request.excluded_nodes} - {None}
    if excluded:
        hard = hard.and_not_in(frozenset(slot for slot in excluded if slot is not None))
    for name in request.groups:
        group = fleet.occupancy.find(name)
        if group is None:
            return []
        if group.hard:
            hard = _within(fleet, hard, group)
        else:
            soft.append(group)
    asked = [
        Question((level.penalty + broken * SOFT_GROUP_PENALTY, level.tier), level.constraint, where)
        for broken, where in _soft(fleet, hard, soft)
        for level in fleet.levels(request)
    ]
    return sorted(asked, key=lambda one: one.order)


def _soft(fleet: Fleet, where: Where, groups: list[PlacementGroup]) -> Iterator[tuple[int, Where]]:
    """The places at which all but some of the groups are obeyed, and how many those are."""
    for count in range(len(groups) + 1):
        for broken in combinations(groups, count):
            narrowed = where
            for group in groups:
                if group not in broken:
                    narrowed = _within(fleet, narrowed, group)
            yield count, narrowed


def _within(fleet: Fleet, where: Where, group: PlacementGroup) -> Where:
    """The places where the group takes one more member."""
    members = fleet.occupancy.members(group.name)
    full = (domain for domain, count in members.items() if count >= group.limit)
    closed = frozenset(slot for domain in full for slot in fleet.slots_of(group.scope, domain))
    if group.rule is Rule.AFFINITY and members:
        home = (slot for domain in members for slot in fleet.slots_of(group.scope, domain))
        return where.and_in(frozenset(home)).and_not_in(closed)
    return where.and_not_in(closed | fleet.slots_without(group.scope))


def _ask(fleet: Fleet, request: Request, constraint: int, where: Where) -> Seat | None:
    shape = fleet.shape(request, constraint)
    if fleet.devices.decides():
        found = fleet.devices.find(request, constraint, where.excluded, where.among)
        return None if found is None else Seat(found.slot, shape, found.choice)
    if request.devices:
        return _with_devices(fleet, request, constraint, where)
    if request.numa_cells:
        slot = _with_cells(fleet, request, constraint, where)
        return None if slot < 0 else _named(fleet, request, slot, shape)
    if where.among is not None:
        slot = fleet.index.best_among(shape, where.among - where.excluded)
    elif where.excluded:
        slot = fleet.index.best_excluding(shape, where.excluded)
    else:
        slot = fleet.index.best(shape)
    return None if slot < 0 else Seat(slot, shape, NOTHING)


def _with_cells(fleet: Fleet, request: Request, constraint: int, where: Where) -> int:
    bins = fleet.bins(request.numa_cells)
    shape = bins.shape(request.resources, fleet.row(request.resources.as_dict()), constraint)
    among = None if where.among is None else where.among - where.excluded
    return bins.best(shape, where.excluded, among)


def _with_devices(fleet: Fleet, request: Request, constraint: int, where: Where) -> Seat | None:
    """Of the nodes whose devices (and cells) do, the index's best."""
    able = fleet.devices.able(request, constraint)
    if able is None:
        able = [
            slot for slot, room in fleet.rooms.items() if room.devices and room.choose(request) is not None
        ]
    able = [slot for slot in able if where.holds(slot)]
    shape = fleet.shape(request, constraint)
    slot = fleet.index.best_among(shape, able)
    return None if slot < 0 else _named(fleet, request, slot, shape)


def _named(fleet: Fleet, request: Request, slot: int, shape: int) -> Seat:
    choice = fleet.rooms[slot].choose(request)
    if choice is None:
        raise AssertionError(f"node {fleet.node(slot).name} has lost its cells for instance {request.name}")
    return Seat(slot, shape, choice)
