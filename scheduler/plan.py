"""Plan a batch: each request placed or rejected, each placement seen by the next; gangs all or none.

**Pure**: the same nodes, requests, policy and seed give the same plan, whatever the nodes' order and history.
A plan promises nothing until the commit gate has checked it again and written it.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from scheduler.answer import Explanation, Placement, Plan, Rejection
from scheduler.columns import Columns
from scheduler.fleet import Fleet, Seat
from scheduler.gang import seat_gang
from scheduler.model import DuplicateRequestError, Request, View
from scheduler.policy import PACK, Policy
from scheduler.refusal import reject
from scheduler.relief import FlavorOption
from scheduler.resident import resident_of
from scheduler.score import explain_seat
from scheduler.search import find_seat
from scheduler.suggest import suggest
from scheduler.verdict import judge

SUGGESTED_MAX: Final = 2  # shapes of refused requests in a plan that are told what would help: ms each


def plan(view: View, requests: Sequence[Request], policy: Policy, rng: random.Random) -> Plan:
    """Decide every request in the given order; a gang at its first member's turn.

    A refusal's reasons describe the fleet after the whole plan: what is free then is what counts for whoever
    waits. Raises DuplicateRequestError, ModelError.
    """
    return plan_on(Fleet.of(view, policy), requests, rng, view.revision)


def plan_on(fleet: Fleet, requests: Sequence[Request], rng: random.Random, revision: int) -> Plan:
    """`plan` on a fleet that is kept, and that is the same afterwards."""
    _check_unique(requests)
    asked = fleet.prepare(requests)
    gangs = _gangs(requests)
    seats: dict[str, Seat] = {}
    notes: dict[str, str] = {}
    with fleet.trial():
        for request, wants in zip(requests, asked, strict=True):
            if request.gang is None:
                seat = find_seat(fleet, request, wants)
                if seat is not None:
                    fleet.enter(request, seat)
                    seats[request.uid] = seat
            elif gang := gangs.pop((request.project, request.gang.name), None):
                seats |= _seat_gang(fleet, gang, rng, notes)
    placements = tuple(
        Placement(request.uid, fleet.node(seat.slot).name, seat.choice)
        for request in requests
        if (seat := seats.get(request.uid)) is not None
    )
    refused = [request for request in requests if request.uid not in seats]
    rejections: tuple[Rejection, ...] = ()
    if refused:
        after = _with_placed(fleet.view(revision), requests, placements)
        rejections = tuple(_reject(fleet.columns(after), refused, notes))
    return Plan(revision, fleet.policy.name, placements, rejections)


def explain(
    view: View, request: Request, policy: Policy = PACK, options: Sequence[FlavorOption] = ()
) -> Explanation | Rejection:
    """What `plan` decides for this request alone and why: for dry runs and `cumulet explain`.

    A rejection says what would help; `options` are the flavors that it may name.
    """
    return explain_on(Fleet.of(view, policy), request, view.revision, options)


def explain_on(
    fleet: Fleet, request: Request, revision: int, options: Sequence[FlavorOption] = ()
) -> Explanation | Rejection:
    """`explain` on a fleet that is kept, and that is the same afterwards.

    For an instance that is placed already, `Fleet.instead` lends the fleet its node without it.
    """
    fleet.prepare((request,))
    columns = fleet.columns(fleet.view(revision))
    seat = find_seat(fleet, request)
    if seat is None:
        verdict = judge(columns, request)
        return replace(reject(verdict), changes=suggest(verdict, options))
    return explain_seat(fleet, columns, request, seat)


def _gangs(requests: Sequence[Request]) -> dict[Hashable, list[Request]]:
    """The members of each gang, which are decided together when the first of them is."""
    gangs: dict[Hashable, list[Request]] = {}
    for request in requests:
        if request.gang is not None:
            gangs.setdefault((request.project, request.gang.name), []).append(request)
    return gangs


def _seat_gang(
    fleet: Fleet, gang: list[Request], rng: random.Random, notes: dict[str, str]
) -> dict[str, Seat]:
    """Seats for all of a gang, which are entered, or none and a note for each."""
    name, size = (gang[0].gang.name, gang[0].gang.size) if gang[0].gang else ("", 0)
    if len(gang) == size:
        seats, most = seat_gang(fleet, gang, rng)
        if seats:
            return seats
        note = f"gang {name}: its {size} members do not all fit at once, {most} do"
    else:
        note = f"gang {name}: {len(gang)} of its {size} members are there; it is placed when all are"
    notes.update((request.uid, note) for request in gang)
    return {}


def _with_placed(view: View, requests: Iterable[Request], placements: Iterable[Placement]) -> View:
    """The view as the plan leaves it."""
    nodes = {node.name: node for node in view.nodes}
    by_uid = {request.uid: request for request in requests}
    for placed in placements:
        nodes[placed.node] = resident_of(nodes[placed.node], by_uid[placed.uid], placed, view.at_s)
    return View(view.revision, tuple(nodes.values()), view.groups, view.at_s)


def _reject(columns: Columns, refused: Sequence[Request], notes: dict[str, str]) -> Iterator[Rejection]:
    """A rejection each; equal requests share one look at the fleet, or a full cloud's queue would be slow."""
    known: dict[Hashable, Rejection] = {}
    for request in refused:
        shape = replace(request, uid="", name="", gang=None)
        key = (shape.resources, shape.constraints(), shape.groups, shape.numa_cells, shape.devices)
        if key not in known:
            verdict = judge(columns, request)
            helped = len(known) < SUGGESTED_MAX and request.gang is None
            changes = suggest(verdict) if helped else ()
            known[key] = replace(reject(verdict), changes=changes)
        note = notes.get(request.uid, "")
        yield replace(known[key], uid=request.uid, note=note, changes=() if note else known[key].changes)


def _check_unique(requests: Sequence[Request]) -> None:
    if len({request.uid for request in requests}) == len(requests):
        return
    seen: set[str] = set()
    for request in requests:
        if request.uid in seen:
            raise DuplicateRequestError(f"instance {request.uid} ({request.name}) is twice in one batch")
        seen.add(request.uid)
