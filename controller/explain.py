"""Why an instance is where it is, or nowhere: the scheduler's own words on the present State.

**Pure**: the kept fleet is the same afterwards. The very code that places is asked again
(scheduler.plan.explain_on), with the instance itself taken off its node, so that "why here" is answered by
what would happen now.
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from heapq import nsmallest
from typing import Final

from controller.fleet import build_request
from controller.reconcile.fleetview import FleetView
from controller.state import State
from controller.store import keys
from cumulet.convert import resources_from
from cumulet.errors import NoCapacityError
from cumulet.resources import ZERO, Resources
from cumulet.v1 import flavor_pb2, instance_pb2, operation_pb2
from scheduler.answer import Candidate, Explanation, Rejection
from scheduler.filters import reasons_against
from scheduler.fleet import Fleet
from scheduler.group import Occupancy
from scheduler.model import UPLINK, NodeView, Request, Room
from scheduler.plan import explain_on
from scheduler.policy import policy_named
from scheduler.relief import FlavorOption

# Refusals that the list of nodes, their marks and what they offer make plain.
_OF_NODES: Final = ("not-ready", "taint:", "dedicated", "capability:", UPLINK, "label:", "devices", "numa")
HINTS_MAX: Final = 3  # commands that help, the cheapest first; a page of them helps nobody
OPTIONS_MAX: Final = 64  # flavors that are tried instead; a cloud has about twenty
_NUMBER: Final = re.compile(r"(?<![\w.-])\d+(?![\w-])")  # not the one in a name
NODES_SHOWN: Final = 20  # the best, or the nearest; the counts tell of the others


@dataclass(frozen=True, slots=True)
class Explained:
    nodes: tuple[instance_pb2.NodeVerdict, ...]
    summary: str
    hints: tuple[str, ...]


def explain_placement(kept: FleetView, state: State, instance: instance_pb2.Instance) -> Explained:
    """The verdict on NODES_SHOWN nodes at most, one sentence, and what to try."""
    placement = state.placement_of(instance.meta.uid)
    current = placement.message.node if placement else ""
    fleet, request = kept.fleet(), build_request(instance)
    with _without(fleet, current, instance):
        answer = explain_on(fleet, request, state.revision, _options(state, instance, request))
        best = () if isinstance(answer, Rejection) else (answer.winner, *answer.runners_up)
        shown = _shown(fleet, current, best)
        verdicts = [_verdict(node, request, fleet.occupancy, current) for node in shown]
    _rank(verdicts, best)
    if isinstance(answer, Rejection):
        summary = f"instance {instance.meta.name} fits nowhere: {answer.advice()}"
        return Explained(tuple(verdicts), summary, tuple(_hints(answer)))
    return Explained(tuple(verdicts), _summary(instance.meta.name, current, answer), ())


def _shown(fleet: Fleet, current: str, best: tuple[Candidate, ...]) -> list[NodeView]:
    """Where it is, then the best in their order, then the others by name."""
    first = [current, *(candidate.node for candidate in best)]
    others = nsmallest(NODES_SHOWN + len(first), (node.name for node in fleet.nodes()))
    slots = map(fleet.slot, dict.fromkeys((*first, *others)))
    return [fleet.node(slot) for slot in slots if slot is not None][:NODES_SHOWN]


def foretell_placement(
    kept: FleetView, state: State, instance: instance_pb2.Instance
) -> operation_pb2.Operation:
    """What placing a new instance would give: an operation whose one step names the node.

    Raises NoCapacityError with the reasons: a dry run of what cannot be placed has failed.
    """
    request = build_request(instance)
    answer = explain_on(kept.fleet(), request, state.revision, _options(state, instance, request))
    if isinstance(answer, Rejection):
        refused = f"instance {instance.meta.name} fits nowhere: {answer.advice()}"
        raise NoCapacityError(refused, hints=_hints(answer))
    operation = operation_pb2.Operation(verb="instance.create")
    operation.target.kind, operation.target.project = "instance", instance.meta.project
    operation.target.name = instance.meta.name
    operation.steps.add(name="place", message=_summary(instance.meta.name, "", answer))
    return operation


def _summary(name: str, current: str, answer: Explanation) -> str:
    winner = answer.winner.node
    fits = f"{answer.fitting_count} of {answer.node_count} node(s) fit"
    if current and winner != current:
        return (
            f"instance {name} is on {current}, where it was placed; today {fits} and {winner} would be the "
            "first choice, but running instances are not moved without being asked"
        )
    verb = "is on" if current else "is about to be placed on"
    why = policy_named(answer.policy).summary
    return f"instance {name} {verb} {winner}: {fits}, and policy {answer.policy} prefers it ({why})"


def _without(fleet: Fleet, node: str, instance: instance_pb2.Instance) -> AbstractContextManager[None]:
    """Within, what the instance itself holds on its node is given back."""
    slot = fleet.slot(node)
    return nullcontext() if slot is None else fleet.instead(_given_back(fleet.node(slot), instance))


def _given_back(found: NodeView, instance: instance_pb2.Instance) -> NodeView:
    own = build_request(instance).resources
    left = found.allocated - own if own.fits_in(found.allocated) else ZERO
    residents = tuple(one for one in found.residents if one.request.uid != instance.meta.uid)
    others = found.others if len(residents) < len(found.residents) else _one_less(found.others, own)
    return found.holding(left, residents, others, found.busy_until_s)


def _one_less(kinds: tuple[tuple[Resources, int], ...], own: Resources) -> tuple[tuple[Resources, int], ...]:
    return tuple((held, count - (held == own)) for held, count in kinds)


def _verdict(
    node: NodeView, request: Request, occupancy: Occupancy, current: str
) -> instance_pb2.NodeVerdict:
    reasons = reasons_against(Room(node), request, occupancy)
    return instance_pb2.NodeVerdict(
        node=node.name,
        fits=not reasons,
        reasons=[str(reason) for reason in reasons],
        current=node.name == current,
    )


def _rank(verdicts: list[instance_pb2.NodeVerdict], candidates: tuple[Candidate, ...]) -> None:
    by_node = {verdict.node: verdict for verdict in verdicts}
    for rank, candidate in enumerate(candidates, 1):
        verdict = by_node[candidate.node]
        verdict.rank = rank
        verdict.score_terms.update({term.resource: term.share for term in candidate.terms})
        verdict.score_terms.update(dict(candidate.parts))


def says_the_same(told: str | None, text: str) -> bool:
    """Whether only numbers differ: a refusal is not written again at every try for a count that changed."""
    return told is not None and _NUMBER.sub("#", told) == _NUMBER.sub("#", text)


def _options(state: State, instance: instance_pb2.Instance, request: Request) -> list[FlavorOption]:
    """The request with each flavor that asks for the same beyond amounts, and that the image fits."""
    spec = instance.spec
    now = state.find(keys.FLAVORS, spec.flavor)
    if now is None:
        return []
    image = spec.image_files
    disk_gib = max(image.min_disk_gib, -(-image.disk.virtual_size_bytes // 2**30))
    options = []
    for row in list(state.rows(keys.FLAVORS).values())[:OPTIONS_MAX]:
        amounts = resources_from(row.message.spec.resources)
        roomy = amounts.memory_mib >= image.min_memory_mib and amounts.disk_gib >= disk_gib
        if roomy and _beyond_amounts(row.message.spec) == _beyond_amounts(now.message.spec):
            options.append(FlavorOption(row.message.meta.name, replace(request, resources=amounts)))
    return options


def _beyond_amounts(spec: flavor_pb2.FlavorSpec) -> flavor_pb2.FlavorSpec:
    rest = flavor_pb2.FlavorSpec()
    rest.CopyFrom(spec)
    rest.ClearField("resources")
    rest.ClearField("description")
    return rest


def _hints(rejection: Rejection) -> list[str]:
    """Commands that help, then those that show what most nodes fail by."""
    kinds = dict(rejection.by_any)
    hints = [change.command for change in rejection.changes if change.command][:HINTS_MAX]
    if any(kind.startswith("resource:") for kind in kinds):
        hints.append("cumulet flavor list")
    if any(kind.startswith(("group:", "group-missing:")) for kind in kinds):
        hints.append("cumulet placement-group list")
    if not kinds or any(kind.startswith(_OF_NODES) for kind in kinds):
        hints.append("cumulet node list")
    return hints
