"""Plan a batch: each request placed or rejected, each placement seen by the next.

**Pure**: the same view, requests, policy and seed give the same plan; the order of the view's nodes
does not matter. A plan promises nothing until the commit gate has checked it again and written it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from scheduler.fleet import Fleet
from scheduler.group import Occupancy
from scheduler.model import (
    DuplicateRequestError,
    Explanation,
    Placement,
    Plan,
    PlanMismatchError,
    Rejection,
    Request,
    View,
)
from scheduler.policy import PACK, Policy
from scheduler.preference import group_penalty, node_penalty
from scheduler.refusal import build_rejection, build_rejections
from scheduler.score import explain_ranked, rank
from scheduler.situation import Situation


def plan(view: View, requests: Sequence[Request], policy: Policy, rng: random.Random) -> Plan:
    """Decide every request in the given order. Raises DuplicateRequestError.

    A refusal's reasons describe the fleet after the whole plan: what is free then is what counts for
    whoever waits.
    """
    _check_unique(requests)
    if view.groups or not all(map(_is_plain, requests)):
        return _plan_one_by_one(view, requests, policy)
    fleet = Fleet.of(view, requests, policy)
    tie_start = _draw_start(view, rng)
    chosen = fleet.place(requests, tie_start)
    decided = list(zip(requests, chosen, strict=True))
    return Plan(
        revision=view.revision,
        policy=policy.name,
        tie_start=tie_start,
        placements=tuple(Placement(r.uid, view.nodes[node].name) for r, node in decided if node >= 0),
        rejections=tuple(
            build_rejections(fleet.rooms(), Occupancy(()), [r for r, node in decided if node < 0])
        ),
    )


def _is_plain(request: Request) -> bool:
    """Whether amounts and static constraints are all that it asks for."""
    return not (request.groups or request.preferences or request.numa_cells or request.devices)


def _plan_one_by_one(view: View, requests: Sequence[Request], policy: Policy) -> Plan:
    situation = Situation.of(view)
    placements: list[Placement] = []
    rejected: list[Request] = []
    for request in requests:
        node = _choose(situation, request, policy)
        if node is None:
            rejected.append(request)
        else:
            placements.append(situation.enter(request, node))
    return Plan(
        revision=view.revision,
        policy=policy.name,
        tie_start=0,
        placements=tuple(placements),
        rejections=tuple(build_rejections(situation.rooms.values(), situation.occupancy, rejected)),
    )


def _choose(situation: Situation, request: Request, policy: Policy) -> str | None:
    """The node with the smallest penalty, then the best fit, then the first by name."""
    largest: dict[str, int] = {}
    for room in situation.rooms.values():
        for name, amount in room.node.allocatable.as_dict().items():
            largest[name] = max(largest.get(name, 0), amount)
    demand = request.resources.as_dict()

    def key(name: str) -> tuple[int, float, str]:
        room = situation.rooms[name]
        shares = (
            (left - demand.get(resource, 0)) * policy.weight(resource) / largest[resource]
            for resource, left in room.free.items()
            if largest.get(resource)
        )
        penalty = node_penalty(room.node, request) + group_penalty(room.node, request, situation.occupancy)
        return penalty, max(0.0, *shares), name

    return min(
        (name for name in situation.rooms if not situation.reasons(name, request)), key=key, default=None
    )


def explain(
    view: View, request: Request, policy: Policy = PACK, rng: random.Random | None = None
) -> Explanation | Rejection:
    """What `plan` would decide for this request alone and why: for dry runs and `cumulet explain`.

    Without an rng equal scores go to the first node by name.
    """
    fleet = Fleet.of(view, (request,), policy)
    ranked = rank(fleet, request, _draw_start(view, rng) if rng else 0)
    if not ranked:
        return build_rejection(fleet.rooms(), Occupancy.of(view), request)
    return explain_ranked(fleet, request, ranked, policy.name)


def explain_plan(view: View, requests: Sequence[Request], decided: Plan, policy: Policy) -> Plan:
    """The plan with an explanation for every placement, each as things stood at its turn.

    The arguments are those of `plan`, else PlanMismatchError. Costs a ranking for each placement.
    """
    fleet = Fleet.of(view, requests, policy)
    node_of = {placement.uid: placement.node for placement in decided.placements}
    explanations = []
    for request in requests:
        if request.uid in node_of:
            ranked = rank(fleet, request, decided.tie_start)
            if not ranked or view.nodes[ranked[0]].name != node_of[request.uid]:
                raise PlanMismatchError(f"instance {request.uid}: the plan is not of this view and policy")
            explanations.append(explain_ranked(fleet, request, ranked, policy.name))
            fleet.free[:, ranked[0]] -= fleet.demand(request)
    return replace(decided, explanations=tuple(explanations))


def _draw_start(view: View, rng: random.Random) -> int:
    """Where ties are resolved from: another seed prefers another of equal nodes."""
    return rng.randrange(len(view.nodes)) if view.nodes else 0


def _check_unique(requests: Sequence[Request]) -> None:
    seen: set[str] = set()
    for request in requests:
        if request.uid in seen:
            raise DuplicateRequestError(f"instance {request.uid} ({request.name}) is twice in one batch")
        seen.add(request.uid)
