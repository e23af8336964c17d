"""Refusals: counts by constraint, and the nodes that are nearest to fitting.

**Pure**: reads what is left, changes nothing. Runs only when nothing fits, so success never pays for it.
`build_rejection` looks at node by node and is the specification; `reject` says the same from columns.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np

from scheduler.answer import NearNode, Rejection
from scheduler.filters import reasons_against
from scheduler.group import Occupancy
from scheduler.model import Request, Room
from scheduler.reasons import NotEnough, Reason
from scheduler.verdict import Verdict

NEAREST_MAX: Final = 3  # what a person acts on; the counts say the rest


def build_rejection(rooms: Iterable[Room], occupancy: Occupancy, request: Request) -> Rejection:
    """Why no node, as it is now, takes the request."""
    refusals = [NearNode(room.node.name, reasons_against(room, request, occupancy)) for room in rooms]
    return Rejection(
        uid=request.uid,
        node_count=len(refusals),
        by_first=_ranked(Counter(refusal.reasons[0].kind for refusal in refusals)),
        by_any=_ranked(Counter(reason.kind for refusal in refusals for reason in refusal.reasons)),
        nearest=tuple(heapq.nsmallest(NEAREST_MAX, refusals, key=_distance)),
    )


def reject(verdict: Verdict) -> Rejection:
    """The rejection of the verdict's request; reasons in words only for the nearest nodes."""
    columns, request = verdict.columns, verdict.request
    first, every = verdict.counts()
    others, worst = verdict.shortage()
    worst = np.where(others > 0, 1.0, worst)
    nearest = np.lexsort((worst, verdict.total))[:NEAREST_MAX].tolist()  # stable: nodes are in order of name
    nodes = columns.view.nodes
    return Rejection(
        uid=request.uid,
        node_count=columns.count,
        by_first=_ranked(first),
        by_any=_ranked(every),
        nearest=tuple(
            NearNode(nodes[node].name, reasons_against(Room(nodes[node]), request, columns.occupancy))
            for node in nearest
        ),
    )


def _ranked(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _distance(refusal: NearNode) -> tuple[int, float, str]:
    """Fewer constraints failed is nearer; of equals, the one whose worst shortage is smaller."""
    return len(refusal.reasons), max(map(_shortage, refusal.reasons)), refusal.node


def _shortage(reason: Reason) -> float:
    """The missing part of what is wanted; a constraint that no amount satisfies counts as all of it."""
    if isinstance(reason, NotEnough):
        return min((reason.want - reason.have) / reason.want, 1.0)
    return 1.0
