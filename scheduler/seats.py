"""A fleet on which decisions are taken one after the other: instances come, go, and nodes close.

**Pure** in its results; `place`, `enter`, `leave`, `close` and `reopen` change the seats in place.

This is the one door through which what-ifs and simulations reach the planner. `ReplannedSeats` asks
`scheduler.plan.plan` anew each time and so is what the planner does, by construction. `KeptSeats` keeps the
arrays of a `Fleet` between decisions; it takes only what it decides alike, which its tests show.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from cext import bestfit
from scheduler.fleet import Flags, Fleet, Ints
from scheduler.model import NodeView, Placement, Request, Resident, View
from scheduler.plan import plan
from scheduler.policy import PACK, Policy

CLOSED = "closed in this scenario"


class Seats(Protocol):
    """What a simulation needs of a fleet."""

    def place(self, requests: Sequence[Request], rng: random.Random) -> list[Placement | None]:
        """Decide and enter them, each seen by the next."""

    def enter(self, request: Request, placement: Placement) -> None:
        """Put an instance where it is known to be."""

    def leave(self, request: Request, placement: Placement) -> None:
        """Take an instance away from where it is."""

    def close(self, nodes: Iterable[str]) -> None:
        """From now on these nodes take nothing."""

    def reopen(self, nodes: Iterable[str]) -> None:
        """The inverse of `close`."""


def open_seats(view: View, policy: Policy, shapes: Sequence[Request]) -> Seats:
    """The fastest seats that decide as the planner does. `shapes`: every kind of request that will come."""
    plain = not view.groups and all(map(is_plain, shapes))
    if plain and policy.name == PACK.name:
        return KeptSeats(view, policy, shapes)
    return ReplannedSeats(view, policy)


def is_plain(request: Request) -> bool:
    """Whether amounts and static constraints are all that it asks for."""
    return not (
        request.groups or request.preferences or request.numa_cells or request.devices or request.gang
    )


def resident_of(node: NodeView, request: Request, placement: Placement) -> NodeView:
    """The node with the instance on it."""
    return replace(
        node,
        allocated=node.allocated + request.resources,
        residents=(*node.residents, Resident(request, placement.choice)),
    )


def without(node: NodeView, request: Request) -> NodeView:
    """The node without the instance, which is known by its uid."""
    return replace(
        node,
        allocated=node.allocated - request.resources,
        residents=tuple(one for one in node.residents if one.request.uid != request.uid),
    )


class ReplannedSeats:
    """The specification: a view that is changed and planned on anew."""

    def __init__(self, view: View, policy: Policy) -> None:
        self._view = view
        self._policy = policy
        self._nodes = {node.name: node for node in view.nodes}
        self._opened: dict[str, NodeView] = {}

    def view(self) -> View:
        """The fleet as it is now."""
        return View(self._view.revision, tuple(self._nodes.values()), self._view.groups)

    def place(self, requests: Sequence[Request], rng: random.Random) -> list[Placement | None]:
        decided = plan(self.view(), requests, self._policy, rng)
        placed = {placement.uid: placement for placement in decided.placements}
        for request in requests:
            if request.uid in placed:
                self.enter(request, placed[request.uid])
        return [placed.get(request.uid) for request in requests]

    def enter(self, request: Request, placement: Placement) -> None:
        self._nodes[placement.node] = resident_of(self._nodes[placement.node], request, placement)

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
    """Best fit for plain requests on arrays that stay: a decision costs one pass over them."""

    def __init__(self, view: View, policy: Policy, shapes: Sequence[Request]) -> None:
        self._fleet = Fleet.of(view, shapes, policy)
        self._index = {node.name: index for index, node in enumerate(self._fleet.nodes)}
        self._demands: dict[Hashable, Ints] = {}
        self._opened: dict[Hashable, Flags] = {}  # what speaks for each node, whoever is closed
        self._flags: dict[Hashable, Flags] = {}  # int8[1, n_node], without the closed ones
        self._closed: set[int] = set()
        self._row = np.zeros(1, dtype=np.int64)
        self._chosen = np.zeros(1, dtype=np.int64)

    def place(self, requests: Sequence[Request], rng: random.Random) -> list[Placement | None]:
        nodes = self._fleet.nodes
        if not nodes:
            return [None] * len(requests)
        start = rng.randrange(len(nodes))
        found: list[Placement | None] = []
        for request in requests:
            index = self._decide(request, start)
            found.append(None if index < 0 else Placement(request.uid, nodes[index].name))
        return found

    def _decide(self, request: Request, start: int) -> int:
        self._chosen[0] = -1
        flags = self._eligible(request)
        demand, scale = self._demand(request)[None, :], self._fleet.scale
        bestfit.place_batch(self._fleet.free, demand, flags, self._row, scale, start, self._chosen)
        return int(self._chosen[0])

    def enter(self, request: Request, placement: Placement) -> None:
        self._fleet.free[:, self._index[placement.node]] -= self._demand(request)

    def leave(self, request: Request, placement: Placement) -> None:
        self._fleet.free[:, self._index[placement.node]] += self._demand(request)

    def close(self, nodes: Iterable[str]) -> None:
        for name in nodes:
            index = self._index[name]
            self._closed.add(index)
            for flags in self._flags.values():
                flags[0, index] = 0

    def reopen(self, nodes: Iterable[str]) -> None:
        for name in nodes:
            index = self._index[name]
            self._closed.discard(index)
            for key, flags in self._flags.items():
                flags[0, index] = self._opened[key][index]

    def _demand(self, request: Request) -> Ints:
        found = self._demands.get(request.resources)
        if found is None:
            found = self._demands[request.resources] = self._fleet.demand(request)
        return found

    def _eligible(self, request: Request) -> Flags:
        key = request.constraints()
        found = self._flags.get(key)
        if found is None:
            opened = self._opened[key] = self._fleet.eligible(request)
            found = self._flags[key] = opened[None, :].copy()
            found[0, list(self._closed)] = 0
        return found
