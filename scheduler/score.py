"""Scores, term by term: why the winner won and by how much.

**Pure**: reads a fleet, changes nothing. Terms are `scheduler.kernel`'s, so the first rank is its choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from scheduler.fleet import Fleet
from scheduler.kernel import remaining_share
from scheduler.model import Candidate, Explanation, Request, ScoreTerm

RUNNERS_UP_MAX: Final = 3  # more is noise for a person; the count of fitting nodes says the rest


def rank(fleet: Fleet, request: Request, tie_start: int) -> list[int]:
    """Every node that fits, best first; equal scores in order of index from `tie_start` on, cyclically."""
    demand = fleet.demand(request)[:, None]
    fits = ((demand == 0) | (fleet.free >= demand)).all(axis=0) & (fleet.eligible(request) == 1)
    nodes = np.flatnonzero(fits)
    shares = (fleet.free[:, nodes] - demand).astype(np.float64) * fleet.scale[:, None]
    scores = shares.max(axis=0, initial=0.0)
    turn = (nodes - tie_start) % max(len(fleet.nodes), 1)
    ranked: list[int] = nodes[np.lexsort((turn, scores))].tolist()
    return ranked


def candidate(fleet: Fleet, request: Request, node: int) -> Candidate:
    """A node's score and its terms, the largest first."""
    free: Sequence[int] = fleet.free[:, node].tolist()
    demand: Sequence[int] = fleet.demand(request).tolist()
    scale: Sequence[float] = fleet.scale.tolist()
    terms = [
        ScoreTerm(name, have - want, float(have - want) * factor)
        for name, have, want, factor in zip(fleet.names, free, demand, scale, strict=True)
    ]
    terms.sort(key=lambda term: -term.share)
    return Candidate(fleet.nodes[node].name, remaining_share(free, demand, scale), tuple(terms))


def explain_ranked(fleet: Fleet, request: Request, ranked: Sequence[int], policy: str) -> Explanation:
    """The explanation of a ranking that is not empty."""
    best = [candidate(fleet, request, node) for node in ranked[: 1 + RUNNERS_UP_MAX]]
    return Explanation(
        uid=request.uid,
        policy=policy,
        winner=best[0],
        runners_up=tuple(best[1:]),
        fitting_count=len(ranked),
        node_count=len(fleet.nodes),
    )
