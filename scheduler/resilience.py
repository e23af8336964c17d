"""N+k: which failures of k nodes, racks or zones at once the fleet cannot absorb.

**Pure**. Every set of k is tried: its nodes take nothing more, what ran there is placed again on the rest
by the planner, and everything is put back. Nothing is estimated: what is said to stay unplaced is what
`lose-node` of the same nodes leaves unplaced.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb
from typing import Final

from scheduler.answer import Placement
from scheduler.model import NodeView, Request
from scheduler.seats import Seats, open_seats
from scheduler.steps import CheckFailures
from scheduler.world import World, domains_of

SETS_MAX: Final = 50_000  # every pair of 300 nodes; some seconds. Beyond it the fullest nodes are paired


@dataclass(frozen=True, slots=True)
class Failure:
    """A loss that is not absorbed. `lost`: names of nodes, racks or zones; `unplaced`: who waits then."""

    lost: tuple[str, ...]
    evacuees: int
    unplaced: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Resilience:
    """`checked` of `possible` sets were tried; failures are sorted by falling number of unplaced."""

    step: CheckFailures
    checked: int
    possible: int
    failures: tuple[Failure, ...]

    @property
    def complete(self) -> bool:
        """Whether every possible set was tried."""
        return self.checked == self.possible


def go_on() -> None:
    """The pulse of whoever has all the time that it takes."""


def check_failures(
    world: World, step: CheckFailures, seed: int = 0, pulse: Callable[[], None] = go_on
) -> Resilience:
    """Try every set of `step.count` failures among the nodes that are in service.

    `pulse` is called before every set; what it raises ends the search.

    When there are more than SETS_MAX sets, only those among the fullest nodes (racks, zones) are tried,
    as many as keep below it, and `complete` is false.
    """
    units = _units(world, step)
    chosen = _fullest(units, step.count)
    shapes = [one.request for one in world.residents()]
    seats = open_seats(world.view, world.policy, shapes)
    failures: list[Failure] = []
    sets = list(islice(combinations(sorted(chosen), step.count), SETS_MAX))
    for lost in sets:
        pulse()
        nodes = [node for name in lost for node in units[name]]
        requests = world.evacuees(nodes)
        unplaced = _unplaced(seats, nodes, requests, seed)
        if unplaced:
            failures.append(Failure(lost, len(requests), unplaced))
    failures.sort(key=lambda failure: (-len(failure.unplaced), failure.lost))
    return Resilience(step, len(sets), comb(len(units), step.count), tuple(failures))


def _units(world: World, step: CheckFailures) -> Mapping[str, tuple[NodeView, ...]]:
    """What can fail: nodes in service by node, rack or zone."""
    serving = {node.name: node for node in world.view.nodes if node.ready}
    return {
        domain: nodes
        for domain, names in domains_of(world.view, step.scope).items()
        if (nodes := tuple(serving[name] for name in names if name in serving))
    }


def _fullest(units: Mapping[str, tuple[NodeView, ...]], count: int) -> list[str]:
    """The names of the units whose sets are tried: all, or those with the largest loads."""
    if comb(len(units), count) <= SETS_MAX:
        return list(units)
    kept = count
    while comb(kept + 1, count) <= SETS_MAX:
        kept += 1
    return sorted(units, key=lambda name: (-_load(units[name]), name))[:kept]


def _load(nodes: Sequence[NodeView]) -> float:
    """The largest share of any resource, of the node where it is largest."""
    return max(_shares(nodes), default=0.0)


def _shares(nodes: Sequence[NodeView]) -> Iterator[float]:
    for node in nodes:
        room = node.allocatable.as_dict()
        for name, amount in node.allocated.as_dict().items():
            if room.get(name):
                yield amount / room[name]


def _unplaced(
    seats: Seats, nodes: Sequence[NodeView], requests: Sequence[Request], seed: int
) -> tuple[Request, ...]:
    """Of the requests from nodes that fail, those that find no place; the seats are afterwards as before."""
    if not requests:
        return ()
    names = [node.name for node in nodes]
    before = [
        (one.request, Placement(one.request.uid, node.name, one.choice))
        for node in nodes
        for one in node.residents
    ]
    for request, placement in before:
        seats.leave(request, placement)
    seats.close(names)
    placed = seats.place(requests, random.Random(seed))
    for request, found in zip(requests, placed, strict=True):
        if found is not None:
            seats.leave(request, found)
    seats.reopen(names)
    for request, placement in before:
        seats.enter(request, placement)
    return tuple(request for request, found in zip(requests, placed, strict=True) if found is None)
