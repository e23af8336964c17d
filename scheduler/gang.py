"""Gangs: seats for all of some requests, or for none.

**Pure** but for the fleet, on which seats that are kept are entered; within a trial.

A gang is tried largest first, as single requests would be placed. If that fails and its members ask for
amounts and nodes only, packing is searched (`scheduler.binpack`); else other orders are tried, at random.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np

from scheduler.binpack import STEPS_PER_S, ItemTooLargeError, place_all
from scheduler.fleet import Fleet, Seat
from scheduler.model import Request
from scheduler.search import find_seat

ORDERS_MAX: Final = 16  # tried of a gang with groups, cells or devices; each costs what its members cost
NODES_MAX: Final = 1024  # of one member that are looked into for a packing, the best first
STEPS: Final = STEPS_PER_S // 50  # of a packing: 20 ms, while the leader does nothing else


def seat_gang(fleet: Fleet, gang: Sequence[Request], rng: random.Random) -> tuple[dict[str, Seat], int]:
    """Seats by uid, which are entered, and how many members fitted at most; no seats if not all fit."""
    largest_first = sorted(gang, key=lambda request: (-fleet.largest_share(request), request.uid))
    seats, most = _seat_in_order(fleet, largest_first)
    if seats or len(gang) == 1:
        return seats, most
    if all(map(_is_plain, gang)):
        return _seat_packed(fleet, gang), most
    for order in _other_orders(gang, rng):
        seats, fitted = _seat_in_order(fleet, order)
        most = max(most, fitted)
        if seats:
            break
    return seats, most


def _is_plain(request: Request) -> bool:
    return not (request.groups or request.excluded_nodes or request.numa_cells or request.devices)


def _other_orders(gang: Sequence[Request], rng: random.Random) -> Iterator[list[Request]]:
    for _ in range(ORDERS_MAX - 1):
        order = sorted(gang, key=lambda request: request.uid)
        rng.shuffle(order)
        yield order


def _seat_in_order(fleet: Fleet, order: Iterable[Request]) -> tuple[dict[str, Seat], int]:
    attempt = fleet.attempt()
    seats: dict[str, Seat] = {}
    for request in order:
        seat = find_seat(fleet, request)
        if seat is None:
            fleet.give_up(attempt)
            return {}, len(seats)
        fleet.enter(request, seat)
        seats[request.uid] = seat
    fleet.keep(attempt)
    return seats, len(seats)


def _seat_packed(fleet: Fleet, gang: Sequence[Request]) -> dict[str, Seat]:
    """Seats by a search over the nodes that take some member by itself."""
    able = [_able(fleet, request) for request in gang]
    slots = sorted({slot for shapes in able for slot in shapes})
    if not slots:
        return {}
    eligible = np.array([[slot in shapes for slot in slots] for shapes in able], dtype=np.uint8)
    # What is overcommitted is full for who asks for it, and does not matter to others.
    free = np.array([fleet.index.free_at(slot) for slot in slots], dtype=np.int64).clip(min=0)
    items = np.array([fleet.row(request.resources) for request in gang], dtype=np.int64)
    try:
        chosen = place_all(items, free, steps=STEPS, eligible=eligible)
    except ItemTooLargeError:
        return {}
    if chosen is None:
        return {}
    seats = {}
    for request, shapes, bin_ in zip(gang, able, chosen.tolist(), strict=True):
        seat = fleet.seat(request, slots[bin_], shapes[slots[bin_]])
        fleet.enter(request, seat)
        seats[request.uid] = seat
    return seats


def _able(fleet: Fleet, request: Request) -> dict[int, int]:
    """The nodes that take the request, and the shape under which they do."""
    shapes: dict[int, int] = {}
    for level in fleet.levels(request):
        shape = fleet.shape(request, level.constraint)
        shapes.update((slot, shape) for slot, _ in fleet.index.rank(shape, NODES_MAX))
    return shapes
