"""A fleet on which decisions are taken one after the other: instances come, go, and nodes close.

**Pure** in its results; `place`, `enter`, `leave`, `close` and `reopen` change the seats in place.

This is the one door through which what-ifs and simulations reach the planner. `ReplannedSeats` asks
`scheduler.plan.plan` anew each time and so is what the planner does, by construction. `KeptSeats` keeps a
`Fleet` between decisions and decides alike, which its tests show.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from scheduler.answer import Placement
from scheduler.fleet import Fleet, Seat
from scheduler.model import ModelError, NodeView, Request, View
from scheduler.plan import plan
from scheduler.policy import Policy
from scheduler.resident import resident_of, without
from scheduler.search import find_seat

CLOSED = "closed in this scenario"


class Seats(Protocol):
    """What a simulation needs of a fleet."""

    def place(self, requests: Sequence[Request], rng: random.Random) -> list[Placement | None]:
        """Decide and enter them, each seen by the next."""

    def enter(self, request: Request, placement: Placement) -> None:
        """Put an instance where it is known to be."""

    def leave(self, request: Request, placement: Placement) -> None:
        """Take an instance away from where it is."""

    def advance(self, at_s: int) -> None:
        """It is so late now."""

    def close(self, nodes: Iterable[str]) -> None:
        """From now on these nodes take nothing."""

    def reopen(self, nodes: Iterable[str]) -> None:
        """The inverse of `close`."""


def open_seats(view: View, policy: Policy, shapes: Sequence[Request]) -> Seats:
    """The fastest seats that decide as the planner does. `shapes`: every kind of request that will come."""
    if any(shape.gang for shape in shapes):
        return ReplannedSeats(view, policy)
    return KeptSeats(view, policy, shapes)


class ReplannedSeats:
    """The specification: a view that is changed and planned on anew."""

    def __init__(self, view: View, policy: Policy) -> None:
        self._view = view
        self._policy = policy
        self._nodes = {node.name: node for node in view.nodes}
        self._opened: dict[str, NodeView] = {}
        self._now_s = view.at_s

    def advance(self, at_s: int) -> None:
        self._now_s = at_s

    def view(self) -> View:
        """The fleet as it is now."""
        return View(self._view.revision, tuple(self._nodes.values()), self._view.groups, self._now_s)

    def place(self, requests: Sequence[Request], rng: random.Random) -> list[Placement | None]:
        decided = plan(self.view(), requests, self._policy, rng)
        placed = {placement.uid: placement for placement in decided.placements}
        for request in requests:
            if request.uid in placed:
                self.enter(request, placed[request.uid])
        return [placed.get(request.uid) for request in requests]

    def enter(self, request: Request, placement: Placement) -> None:
        node = self._nodes[placement.node]
        self._nodes[placement.node] = resident_of(node, request, placement, self._now_s)

    def leave(self, request: Request, placement: Placement) -> None:
        self._nodes[placement.node] = without(self._nodes[placement.node], request)

    def close(self, nodes: Iterable[str]) -> None:
        for name in nodes:
            self._opened[name] = self._nodes[name]
            self._nodes[name] = replace(self._nodes[name], ready=False, not_ready_reason=CLOSED)

    def reopen(self, nodes: Iterable[str]) -> None:
        for name in nodes:
            before = self._opened.pop(name)
            self._nodes[name] = replace(
                self._nodes[name], ready=before.ready, not_ready_reason=before.not_ready_reason
            )


class KeptSeats:
    """A fleet that is kept between decisions: each costs what one question to the index costs."""

    def __init__(self, view: View, policy: Policy, shapes: Sequence[Request]) -> None:
        self._fleet = Fleet.of(view, policy)
        self._fleet.prepare(shapes)

    def advance(self, at_s: int) -> None:
        self._fleet.set_time(at_s)

    def place(self, requests: Sequence[Request], rng: random.Random) -> list[Placement | None]:
        found: list[Placement | None] = []
        for request in requests:
            seat = find_seat(self._fleet, request)
            if seat is None:
                found.append(None)
            else:
                self._fleet.enter(request, seat)
                found.append(Placement(request.uid, self._fleet.node(seat.slot).name, seat.choice))
        return found

    def enter(self, request: Request, placement: Placement) -> None:
        self._fleet.enter(request, self._seat(request, placement))

    def leave(self, request: Request, placement: Placement) -> None:
        self._fleet.vacate(request, self._seat(request, placement))

    def _seat(self, request: Request, placement: Placement) -> Seat:
        slot = self._slot(placement.node)
        return self._fleet.seat(request, slot, self._fleet.shape(request, 0), placement.choice)

    def close(self, nodes: Iterable[str]) -> None:
        for name in nodes:
            self._fleet.close(self._slot(name))

    def reopen(self, nodes: Iterable[str]) -> None:
        for name in nodes:
            self._fleet.reopen(self._slot(name))

    def _slot(self, name: str) -> int:
        slot = self._fleet.slot(name)
        if slot is None:
            raise ModelError(f"node {name} is not in the fleet")
        return slot
