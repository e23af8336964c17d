"""Scores, term by term: why the winner won and by how much.

**Pure**: reads a fleet, changes nothing. Order is the index's own; the terms say in shares what it compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from typing import Final

import numpy as np

from cumulet.resources import BASE_NAMES
from scheduler.answer import Candidate, Explanation, ScoreTerm
from scheduler.columns import Columns
from scheduler.fleet import Fleet, Seat
from scheduler.gpu import Found, in_devices
from scheduler.model import Request
from scheduler.packing import POTENTIAL, SCORE_BITS, STEP
from scheduler.policy import Norm
from scheduler.preference import group_penalty, node_penalty
from scheduler.reference import SUM_BITS
from scheduler.verdict import fits

EMPTY_SHOWN: Final = (1 << SCORE_BITS) / POTENTIAL  # an empty node's part of a score: more than any other
RUNNERS_UP_MAX: Final = 3  # more is noise for a person; the count of fitting nodes says the rest


def explain_seat(fleet: Fleet, columns: Columns, request: Request, seat: Seat) -> Explanation:
    """Why the request gets that seat. `columns` are those of the fleet's view."""
    names = [columns.view.nodes[index].name for index in np.flatnonzero(fits(columns, request)).tolist()]
    slots = [slot for slot in map(fleet.slot, names) if slot is not None]
    slots.sort(key=lambda slot: (slot != seat.slot, _order(fleet, request, slot)))
    best = [candidate(fleet, request, slot) for slot in slots[: 1 + RUNNERS_UP_MAX]]
    return Explanation(
        uid=request.uid,
        policy=fleet.policy.name,
        winner=best[0],
        runners_up=tuple(best[1:]),
        fitting_count=len(slots),
        node_count=len(fleet),
    )


def _order(fleet: Fleet, request: Request, slot: int) -> tuple[int, int, tuple[object, ...]]:
    """What nodes are compared by: penalty, tier, the key of devices or index."""
    node = fleet.node(slot)
    tier, shape = next(_shapes(fleet, request, slot))
    if fleet.devices.decides():
        return penalty(fleet, request, slot), tier, fleet.devices.key(request, _found(fleet, request, slot))
    key = fleet.index.key(shape, slot)
    if key is None:
        raise AssertionError(f"node {node.name} fits and does not")
    return penalty(fleet, request, slot), tier, key


def _shapes(fleet: Fleet, request: Request, slot: int) -> Iterator[tuple[int, int]]:
    """The levels (tier, shape) under which the index lets the request on the node: one."""
    for level in fleet.levels(request):
        shape = fleet.shape(request, level.constraint)
        if fleet.index.best_among(shape, (slot,)) == slot:
            yield level.tier, shape


def penalty(fleet: Fleet, request: Request, slot: int) -> int:
    """What soft constraints say against the node."""
    node = fleet.node(slot)
    return node_penalty(node, request) + group_penalty(node, request, fleet.occupancy)


def candidate(fleet: Fleet, request: Request, slot: int) -> Candidate:
    """A node's score and its terms, the largest first."""
    free = dict(zip(fleet.names, fleet.index.free_at(slot), strict=True))
    demand = request.resources.as_dict()
    terms = []
    for name in fleet.names:
        left, most = free[name] - demand.get(name, 0), fleet.largest(name)
        if not (left or most or demand.get(name)) and name not in BASE_NAMES:
            continue  # a name that only other requests have brought up
        share = max(left, 0) * fleet.policy.weight(name) / most if most else 0.0
        terms.append(ScoreTerm(name, left, share))
    terms.sort(key=lambda term: -term.share)
    node, against = fleet.node(slot).name, penalty(fleet, request, slot)
    if fleet.devices.decides():
        parts = _device_parts(fleet, request, slot)
        return Candidate(node, sum(value for _, value in parts), tuple(terms), against, parts)
    if fleet.policy.norm is Norm.SLOTS:
        parts = _slots_parts(fleet, request, slot)
        return Candidate(node, sum(value for _, value in parts), tuple(terms), against, parts)
    score = _score(fleet.policy.norm, terms, [demand.get(term.resource, 0) for term in terms], fleet)
    return Candidate(node, score, tuple(terms), against)


def _found(fleet: Fleet, request: Request, slot: int) -> Found:
    found = fleet.devices.at(request, slot)
    if found is None:
        raise AssertionError(f"node {fleet.node(slot).name} fits and does not")
    return found


def _device_parts(fleet: Fleet, request: Request, slot: int) -> tuple[tuple[str, float], ...]:
    """What a placement costs the node's devices, in devices, as the policy weighs it."""
    loss, weights = fleet.devices.loss(request, _found(fleet, request, slot)), fleet.devices.weights
    parts = (
        ("devices_fragmented", weights.fragments * loss.fragments),
        ("devices_stranded", weights.stranded * loss.stranded),
        ("shares_worth_lost", weights.worth * loss.worth),
    )
    return tuple((name, in_devices(value)) for name, value in parts if value)


def _slots_parts(fleet: Fleet, request: Request, slot: int) -> tuple[tuple[str, float], ...]:
    """What the norm `slots` adds up, as the index has it, in parts of an empty node's room."""
    shape = next(shape for _, shape in _shapes(fleet, request, slot))
    key, lost = fleet.index.key(shape, slot), fleet.index.room_lost(shape, slot)
    if key is None or lost is None:
        raise AssertionError(f"node {fleet.node(slot).name} fits and does not")
    empty, score = divmod(key[0] >> SUM_BITS, 1 << SCORE_BITS)
    late = fleet.index.levels_late(shape, slot) * STEP
    parts = [
        ("room_lost", lost / POTENTIAL),
        ("largest_share_left", (score - lost - late) / POTENTIAL),
        ("outlives_the_others", late / POTENTIAL),
        ("opens_empty_node", EMPTY_SHOWN * empty),
    ]
    return tuple(part for part in parts if part[1] or part in parts[:2])


def _score(norm: Norm, terms: list[ScoreTerm], wants: list[int], fleet: Fleet) -> float:
    """The score in shares, as the norm reads it; smaller is better but for `worst` and `dot`."""
    shares = [term.share for term in terms]
    if norm is Norm.L1:
        return sum(shares)
    if norm is Norm.L2:
        return sqrt(sum(share * share for share in shares))
    if norm is Norm.DOT:
        parts = [want / (fleet.largest(term.resource) or 1) for term, want in zip(terms, wants, strict=True)]
        return sum((share + part) * part for share, part in zip(shares, parts, strict=True))
    return max(shares, default=0.0)
