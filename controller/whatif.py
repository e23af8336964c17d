"""What-ifs between the API's messages and the scheduler's values: steps in, the report out.

**Pure.** What can be seen without the fleet is refused here, all of it at once; what the fleet does not have
is refused where the step is taken (`refusal_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from controller.admit.common import Violations, check_labels
from cumulet.convert import resources_from
from cumulet.errors import CumuletError, FieldViolation, InvalidArgumentError, NotFoundError
from cumulet.resources import QuantityError, validate_resources
from cumulet.v1 import placementgroup_pb2, whatif_pb2
from scheduler.change import Change
from scheduler.group import Scope
from scheduler.model import Request
from scheduler.policy import PolicyError, policy_named
from scheduler.resilience import Resilience
from scheduler.steps import (
    FAILURES_AT_ONCE_MAX,
    AddInstances,
    AddNodes,
    AddNodesLike,
    ChangePolicy,
    CheckFailures,
    DrainNode,
    LoseDomain,
    LoseNodes,
    PlaceAnew,
    Shape,
    Step,
    StepError,
    UnknownNameError,
)
from scheduler.summary import Summary
from scheduler.whatif import Outcome, Report, Unplaced

STEPS_MAX: Final = 32  # of a live cloud, which has other work; a script is better served by the library
INSTANCES_MAX: Final = 10_000  # new ones of all steps: half a second of planning
NODES_MAX: Final = 10_000  # new ones of all steps; a larger purchase is more than one cloud
ENTRIES_MAX: Final = 10_000  # placements and moves in a reply: 1 MiB, where a plain gRPC client takes 4
REASONS_MAX: Final = 50  # of a step; who reads more of them reads the counts
NAMES_MAX: Final = 20  # of instances under one reason or failure
FAILURES_MAX: Final = 200  # of a check, the worst first
_SCOPES: Final[Mapping[int, Scope]] = {
    placementgroup_pb2.PLACEMENT_SCOPE_UNSPECIFIED: Scope.NODE,
    placementgroup_pb2.PLACEMENT_SCOPE_NODE: Scope.NODE,
    placementgroup_pb2.PLACEMENT_SCOPE_RACK: Scope.RACK,
    placementgroup_pb2.PLACEMENT_SCOPE_ZONE: Scope.ZONE,
}
_LISTS: Final = {"flavor": "cumulet flavor list"}  # of every other kind: nodes and their labels


def parse_steps(messages: Sequence[whatif_pb2.WhatIfStep]) -> tuple[Step, ...]:
    """The steps. Raises InvalidArgumentError with everything that is wrong with them."""
    violations = Violations()
    if len(messages) > STEPS_MAX:
        violations.add("steps", f"{len(messages)} are given, at most {STEPS_MAX} are taken at once")
    steps = [_parse_step(one, index, violations) for index, one in enumerate(messages[:STEPS_MAX])]
    instances = [one.add_instances.count for one in messages if one.HasField("add_instances")]
    nodes = [one.add_nodes.count for one in messages if one.HasField("add_nodes")]
    _check_total("instances", instances, INSTANCES_MAX, violations)
    _check_total("nodes", nodes, NODES_MAX, violations)
    violations.raise_any("the what-if was refused")
    return tuple(step for step in steps if step is not None)


def refusal_of(error: StepError, steps: Sequence[Step]) -> CumuletError:
    """A step that the fleet does not allow, as the API says it."""
    number = error.number or 0
    text = f"step {number + 1}, {steps[number]}: {error}" if steps else str(error)
    if isinstance(error, UnknownNameError):
        return NotFoundError(text, hints=[_LISTS.get(error.kind, "cumulet node list")])
    return InvalidArgumentError(text, violations=[FieldViolation(f"steps[{number}]", str(error))])


def build_response(report: Report, notes: Sequence[str]) -> whatif_pb2.WhatIfResponse:
    """The answer, without its picture."""
    return _Answer(report).build(notes)


# --- steps ---------------------------------------------------------------------------------------


def _parse_step(message: whatif_pb2.WhatIfStep, index: int, violations: Violations) -> Step | None:
    """None for one with violations."""
    kind = message.WhichOneof("step")
    field = f"steps[{index}]"
    if kind is None:
        violations.add(field, "says nothing: set one of its fields")
        return None
    return _PARSERS[kind](getattr(message, kind), f"{field}.{kind}", violations)


def _check_total(noun: str, counts: Sequence[int], largest: int, violations: Violations) -> None:
    total = sum(counts)
    if total > largest >= max(counts):  # one that is too large on its own is told already
        violations.add("steps", f"add {total} {noun} together, at most {largest}")


def _count(count: int, largest: int, field: str, violations: Violations) -> bool:
    if not 1 <= count <= largest:
        violations.add(f"{field}.count", f"is {count}, must be 1 to {largest}")
    return 1 <= count <= largest


def _named(name: str, field: str, violations: Violations) -> bool:
    if not name:
        violations.add(field, "must name one")
    return bool(name)


def _add_instances(
    given: whatif_pb2.WhatIfStep.AddInstances, field: str, violations: Violations
) -> Step | None:
    counted = _count(given.count, INSTANCES_MAX, field, violations)
    named = _named(given.flavor, f"{field}.flavor", violations)
    return AddInstances(given.count, given.flavor) if counted and named else None


def _lose_nodes(given: whatif_pb2.WhatIfStep.LoseNodes, field: str, violations: Violations) -> Step | None:
    if not given.nodes or not all(given.nodes):
        violations.add(f"{field}.nodes", "must name at least one node, and none by an empty name")
        return None
    return LoseNodes(tuple(dict.fromkeys(given.nodes)))


def _lose_domain(given: whatif_pb2.WhatIfStep.LoseDomain, field: str, violations: Violations) -> Step | None:
    scope = _SCOPES.get(given.scope)
    known = scope in (Scope.RACK, Scope.ZONE)
    if not known:
        violations.add(f"{field}.scope", "must be a rack or a zone; nodes are lost by lose_nodes")
    named = _named(given.name, f"{field}.name", violations)
    return LoseDomain(scope, given.name) if scope is not None and known and named else None


def _drain_node(given: whatif_pb2.WhatIfStep.DrainNode, field: str, violations: Violations) -> Step | None:
    return DrainNode(given.node) if _named(given.node, f"{field}.node", violations) else None


def _add_nodes(given: whatif_pb2.WhatIfStep.AddNodes, field: str, violations: Violations) -> Step | None:
    counted = _count(given.count, NODES_MAX, field, violations)
    labels = dict(given.labels)
    check_labels(labels, violations, f"{field}.labels")
    if bool(given.like) == given.HasField("capacity"):
        violations.add(field, "has a capacity or the name of a node that it is like, one of them")
        return None
    if given.like:
        return AddNodesLike(given.count, given.like, labels) if counted else None
    try:
        capacity = resources_from(given.capacity)
    except QuantityError as error:
        violations.add(f"{field}.capacity.{error.field}", error.description)
        return None
    wrong = validate_resources(capacity, f"{field}.capacity")
    for one in wrong:
        violations.add(one.field, one.description)
    if not capacity.vcpu or not capacity.memory_mib:
        violations.add(f"{field}.capacity", "has no vcpu or no memory: no instance would fit")
    return AddNodes(Shape(given.count, capacity, labels)) if counted and not wrong else None


def _change_policy(
    given: whatif_pb2.WhatIfStep.ChangePolicy, field: str, violations: Violations
) -> Step | None:
    try:
        return ChangePolicy(policy_named(given.policy))
    except PolicyError as error:
        violations.add(f"{field}.policy", str(error))
        return None


def _check_failures(
    given: whatif_pb2.WhatIfStep.CheckFailures, field: str, violations: Violations
) -> Step | None:
    scope = _SCOPES.get(given.scope)
    if scope is None:
        violations.add(f"{field}.scope", f"{given.scope} is no scope: node, rack or zone")
    counted = _count(given.count, FAILURES_AT_ONCE_MAX, field, violations)
    return CheckFailures(given.count, scope) if counted and scope is not None else None


_PARSERS: Final[Mapping[str, Callable[[Any, str, Violations], Step | None]]] = {
    "add_instances": _add_instances,
    "lose_nodes": _lose_nodes,
    "lose_domain": _lose_domain,
    "drain_node": _drain_node,
    "add_nodes": _add_nodes,
    "change_policy": _change_policy,
    "place_anew": lambda given, field, violations: PlaceAnew(),
    "check_failures": _check_failures,
}


# --- the answer ----------------------------------------------------------------------------------


class _Answer:
    """The messages of a report; counts how many entries the reply still takes."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._left = ENTRIES_MAX
        self._real = {request.uid: request for request in _everybody(report.start)}
        self._known = self._real | {request.uid: request for request in _everybody(report.end)}
        self._nodes = {node.name: node for node in report.start.view.nodes}

    def build(self, notes: Sequence[str]) -> whatif_pb2.WhatIfResponse:
        report = self._report
        response = whatif_pb2.WhatIfResponse(
            revision=report.start.view.revision,
            policy=report.start.policy.name,
            before=_summary(report.before),
            outcomes=[self._outcome(outcome) for outcome in report.outcomes],
            after=_summary(report.after),
            fits=report.fits,
            notes=notes,
        )
        if not self._left:
            response.notes.append(f"the lists end after {ENTRIES_MAX} entries; the counts are of all")
        return response

    def _outcome(self, outcome: Outcome) -> whatif_pb2.WhatIfOutcome:
        message = whatif_pb2.WhatIfOutcome(
            step=str(outcome.step),
            placed_count=len(outcome.placed),
            moved_count=len(outcome.moved),
            waiting_count=len(outcome.unplaced),
            waiting=islice(self._waiting(outcome.unplaced), REASONS_MAX),
            after=_summary(outcome.after),
        )
        for placed in self._take(outcome.placed):
            request = self._known[placed.uid]
            message.placed.add(
                instance=request.name, node=placed.node, uid=self._uid(placed.uid), project=request.project
            )
        for moved in self._take(outcome.moved):
            project = self._known[moved.uid].project
            message.moved.add(
                instance=moved.name,
                source=moved.source,
                target=moved.target,
                uid=self._uid(moved.uid),
                project=project,
            )
        if outcome.resilience is not None:
            message.resilience.CopyFrom(_resilience(outcome.resilience))
        return message

    def _take(self, entries: Sequence[Any]) -> Sequence[Any]:
        taken = entries[: self._left]
        self._left -= len(taken)
        return taken

    def _uid(self, uid: str) -> str:
        """Empty for one that is of this scenario only."""
        return uid if uid in self._real else ""

    def _waiting(self, unplaced: Sequence[Unplaced]) -> Iterator[whatif_pb2.WhatIfWaiting]:
        """Equal reasons once, the most frequent first."""
        grouped: dict[str, list[Unplaced]] = {}
        for one in unplaced:
            grouped.setdefault(str(one.rejection), []).append(one)
        for reason, members in sorted(grouped.items(), key=lambda pair: -len(pair[1])):
            changes = next((one.rejection.changes for one in members if one.rejection.changes), ())
            yield whatif_pb2.WhatIfWaiting(
                reason=reason,
                count=len(members),
                instances=[one.request.name for one in members[:NAMES_MAX]],
                changes=[self._change(change) for change in changes if not self._undoes_a_step(change)],
            )

    def _change(self, change: Change) -> whatif_pb2.WhatIfChange:
        node = getattr(change, "node", None)
        real = node is None or node in self._nodes
        return whatif_pb2.WhatIfChange(description=str(change), command=change.command if real else "")

    def _undoes_a_step(self, change: Change) -> bool:
        """Whether it takes back what the scenario has done to a node: no help, but another question."""
        node = self._nodes.get(getattr(change, "node", ""))
        return node is not None and (
            (change.kind == "uncordon" and node.schedulable) or (change.kind == "make-ready" and node.ready)
        )


def _everybody(world: Any) -> Iterator[Request]:
    for resident in world.residents():
        yield resident.request
    yield from world.waiting


def _summary(summary: Summary) -> whatif_pb2.FleetSummary:
    return whatif_pb2.FleetSummary(
        nodes=summary.nodes,
        open_nodes=summary.open_nodes,
        empty_nodes=summary.empty_nodes,
        instances=summary.instances,
        waiting=summary.waiting,
        usages=[
            whatif_pb2.ResourceUsage(
                resource=usage.resource,
                capacity=usage.capacity,
                allocated=usage.allocated,
                fragmentation=usage.fragmentation,
            )
            for usage in summary.usages
        ],
        headroom=[whatif_pb2.FlavorHeadroom(flavor=one.flavor, count=one.count) for one in summary.headroom],
    )


def _resilience(found: Resilience) -> whatif_pb2.WhatIfResilience:
    return whatif_pb2.WhatIfResilience(
        checked=found.checked,
        possible=found.possible,
        failures_count=len(found.failures),
        failures=[
            whatif_pb2.WhatIfFailure(
                lost=one.lost,
                evacuees=one.evacuees,
                unplaced_count=len(one.unplaced),
                unplaced=[request.name for request in one.unplaced[:NAMES_MAX]],
            )
            for one in found.failures[:FAILURES_MAX]
        ],
    )
