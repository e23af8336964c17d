"""Where a request goes: the question put to the fleet's seating, or to its devices where they decide.

**Pure**: reads a fleet, changes nothing but what it remembers.

The seating (`cext.seating`) asks the index for nodes in order of their penalty: static preferences are
levels, hard placement groups leave nodes out, a soft group is first obeyed and then given up; among equal
penalties the index decides. Devices are asked in the same order, by `questions`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations, groupby

from cext.seating import Asked
from scheduler.fleet import Fleet, Seat
from scheduler.gpu import Found
from scheduler.model import Request
from scheduler.preference import SOFT_GROUP_PENALTY


def find_seat(fleet: Fleet, request: Request, asked: Asked | None = None) -> Seat | None:
    """The seat that the request gets, None if no node takes it.

    `Fleet.prepare` has seen the request, or one like it; `asked` is what it said of this one.
    """
    if fleet.by_devices and fleet.devices.decides():
        return _by_devices(fleet, request)
    asked = asked or fleet.wants.ask(request)
    if request.devices:
        return _with_devices(fleet, request, asked)
    excluded = fleet.excluded(request) if request.excluded_nodes else ()
    return fleet.seating.find(asked, request.groups, excluded)


def _with_devices(fleet: Fleet, request: Request, asked: Asked) -> Seat | None:
    """Of the nodes whose devices (and cells) do, the index's best."""
    seat = fleet.seating.find(asked, request.groups, fleet.excluded(request), _able(fleet, request))
    if seat is None:
        return None
    choice = fleet.rooms[seat.slot].choose(request)
    if choice is None:
        raise AssertionError(f"node {fleet.node(seat.slot).name} has no devices for instance {request.name}")
    return fleet.seat(request, seat.slot, seat.shape, choice)


def _able(fleet: Fleet, request: Request) -> list[int]:
    """The slots whose devices and cells do."""
    found: list[int] = []
    for level in fleet.levels(request):
        able = fleet.devices.able(request, level.constraint)
        if able is None:  # each node must be asked for itself
            admitted = fleet.seating.admitted(request.groups, fleet.excluded(request), fleet.rooms)
            return [slot for slot in admitted if fleet.rooms[slot].choose(request) is not None]
        found += able
    return found


# ---- by devices


@dataclass(frozen=True, slots=True)
class Question:
    """One question to the devices; `order` is (penalty, tier), `among` the only slots unless it is None."""

    order: tuple[int, int]
    constraint: int
    excluded: Collection[int]
    among: Collection[int] | None


def _by_devices(fleet: Fleet, request: Request) -> Seat | None:
    for _, group in groupby(questions(fleet, request), key=lambda one: one.order):
        seats = [seat for one in group if (seat := _ask_devices(fleet, request, one)) is not None]
        if seats:
            if len(seats) == 1:
                return seats[0]
            return min(seats, key=lambda seat: fleet.devices.key(request, Found(seat.slot, seat.choice)))
    return None


def questions(fleet: Fleet, request: Request) -> list[Question]:
    """Everything to ask, in order. A node that several of them reach belongs to the first."""
    asked = [
        Question((level.penalty + broken * SOFT_GROUP_PENALTY, level.tier), level.constraint, *where)
        for broken, where in _places(fleet, request)
        for level in fleet.levels(request)
    ]
    return sorted(asked, key=lambda one: one.order)


def _places(
    fleet: Fleet, request: Request
) -> Iterator[tuple[int, tuple[Collection[int], Collection[int] | None]]]:
    """The places at which all but some of the soft groups are obeyed, and how many those are."""
    soft = [name for name in request.groups if fleet.is_soft(name)]
    for count in range(len(soft) + 1):
        for given_up in combinations(soft, count):
            where = fleet.seating.where(request.groups, given_up, fleet.excluded(request))
            if where is not None:
                yield count, where


def _ask_devices(fleet: Fleet, request: Request, one: Question) -> Seat | None:
    found = fleet.devices.find(request, one.constraint, one.excluded, one.among)
    if found is None:
        return None
    return fleet.seat(request, found.slot, fleet.shape(request, one.constraint), found.choice)
