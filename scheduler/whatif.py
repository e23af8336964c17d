"""What if: instances come, nodes fail, are drained or join, the policy changes; step by step.

**Pure**: a world and steps in, a report out. The planner that runs the cloud (`scheduler.plan.plan`)
decides; nothing here places. The same world, steps and seed give the same report.

After every step whatever waits is planned together: first who waited before, then who is new. Evacuees
are placed largest first. A lost node stays in the view as one that is not ready, as it would in the cloud.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import count, islice
from typing import Final

from scheduler.answer import Placement, Rejection
from scheduler.apply import empty_like
from scheduler.model import NodeView, Request
from scheduler.plan import plan
from scheduler.resilience import Resilience, check_failures, go_on
from scheduler.steps import (
    AddInstances,
    AddNodes,
    AddNodesLike,
    ChangePolicy,
    CheckFailures,
    DrainNode,
    LoseDomain,
    LoseNodes,
    PlaceAnew,
    Step,
    StepError,
)
from scheduler.summary import Summary
from scheduler.world import World, emptied

STEPS_MAX: Final = 64  # a page of a report; a script is better served by the library
LOST: Final = "lost in this scenario"
DRAINED: Final = "drained in this scenario"


@dataclass(frozen=True, slots=True)
class Moved:
    """An instance that was on a node before the step and is placed on another."""

    uid: str
    name: str
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Unplaced:
    """An instance that waits after the step, and why."""

    request: Request
    rejection: Rejection


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step came to. `placed`: new ones and those that waited; `moved`: those that ran before."""

    step: Step
    placed: tuple[Placement, ...]
    moved: tuple[Moved, ...]
    unplaced: tuple[Unplaced, ...]
    after: Summary
    resilience: Resilience | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """Before, every step, and the world that they lead to."""

    before: Summary
    outcomes: tuple[Outcome, ...]
    start: World
    end: World

    @property
    def after(self) -> Summary:
        return self.outcomes[-1].after if self.outcomes else self.before

    @property
    def fits(self) -> bool:
        """Whether nobody waits in the end who did not wait before, and every loss that was asked is absorbed.

        A check that is made again later counts as it came out last: what was added between may mend it.
        """
        before = {request.uid for request in self.start.waiting}
        checks = {one.step: one.resilience for one in self.outcomes if one.resilience is not None}
        waits = any(request.uid not in before for request in self.end.waiting)
        return not waits and not any(found.failures for found in checks.values())


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A world after a step's event and before the decisions that it calls for."""

    world: World
    requests: tuple[Request, ...]


def what_if(start: World, steps: Sequence[Step], seed: int = 0, pulse: Callable[[], None] = go_on) -> Report:
    """Take the steps in order. Raises StepError for one that cannot be taken.

    `pulse` is called between parts of the work; what it raises ends the what-if.
    """
    if len(steps) > STEPS_MAX:
        raise StepError(f"{len(steps)} steps are given, at most {STEPS_MAX} are taken at once")
    shapes = start.shapes()  # the same for every summary, so that they compare
    world, outcomes = start, []
    for number, step in enumerate(steps):
        pulse()
        if isinstance(step, CheckFailures):
            found = check_failures(world, step, seed, pulse)
            outcomes.append(Outcome(step, (), (), (), world.summary(shapes), found))
            continue
        try:
            decided = _decide(world, step, number, random.Random(seed))
        except StepError as error:
            error.number = number
            raise
        world = decided.world
        outcomes.append(Outcome(step, decided.placed, decided.moved, decided.unplaced, world.summary(shapes)))
    return Report(start.summary(shapes), tuple(outcomes), start, world)


@dataclass(frozen=True, slots=True)
class _Decided:
    world: World
    placed: tuple[Placement, ...]
    moved: tuple[Moved, ...]
    unplaced: tuple[Unplaced, ...]


def _decide(world: World, step: Step, number: int, rng: random.Random) -> _Decided:
    prepared = _prepare(step, world, number)
    made = plan(prepared.world.view, prepared.requests, prepared.world.policy, rng)
    request_of = {request.uid: request for request in prepared.requests}
    source = {one.request.uid: node.name for node in world.view.nodes for one in node.residents}
    return _Decided(
        world=prepared.world.entered(made.placements, prepared.requests),
        placed=tuple(one for one in made.placements if one.uid not in source),
        moved=tuple(
            Moved(one.uid, request_of[one.uid].name, source[one.uid], one.node)
            for one in made.placements
            if source.get(one.uid, one.node) != one.node
        ),
        unplaced=tuple(Unplaced(request_of[one.uid], one) for one in made.rejections),
    )


@singledispatch
def _prepare(step: Step, world: World, number: int) -> _Prepared:
    """The event of a step. `number`: of the step, so that new names are unique."""
    raise StepError(f"step {step} is not one that places")


@_prepare.register
def _(step: AddInstances, world: World, number: int) -> _Prepared:
    template = world.flavor(step.flavor)
    taken = {one.request.uid for one in world.residents()} | {request.uid for request in world.waiting}
    free = (index for index in count() if f"whatif-{number}-{index:06}" not in taken)
    new = (
        replace(template, uid=f"whatif-{number}-{index:06}", name=f"{step.flavor}-{number}-{index}")
        for index in islice(free, step.count)
    )
    return _Prepared(world, (*world.waiting, *new))


@_prepare.register
def _(step: LoseNodes, world: World, number: int) -> _Prepared:
    return _lose(world, step.nodes)


@_prepare.register
def _(step: LoseDomain, world: World, number: int) -> _Prepared:
    return _lose(world, world.in_domain(step.scope, step.name))


@_prepare.register
def _(step: DrainNode, world: World, number: int) -> _Prepared:
    node = world.node(step.node)
    kept_reason = node.cordon_reason if not node.schedulable else DRAINED
    drained = replace(emptied(node), schedulable=False, cordon_reason=kept_reason or DRAINED)
    return _Prepared(world.with_nodes([drained]), (*world.waiting, *world.evacuees([node])))


@_prepare.register
def _(step: AddNodes, world: World, number: int) -> _Prepared:
    shape = step.shape
    model = replace(world.fresh, capacity=shape.capacity, labels=shape.labels)
    return _join(world, step, model, shape.count, number)


@_prepare.register
def _(step: AddNodesLike, world: World, number: int) -> _Prepared:
    like = world.node(step.node)
    model = replace(empty_like(like, like.name), labels={**like.labels, **step.labels})
    return _join(world, step, model, step.count, number)


@_prepare.register
def _(step: ChangePolicy, world: World, number: int) -> _Prepared:
    return _Prepared(replace(world, policy=step.policy), world.waiting)


@_prepare.register
def _(step: PlaceAnew, world: World, number: int) -> _Prepared:
    """Nodes that are not ready keep what they have: nobody can say what became of it."""
    served = [node for node in world.view.nodes if node.ready]
    there = (one.request for node in served for one in node.residents)
    everybody = sorted(
        (request for request in there if request.uid not in world.leaving), key=lambda request: request.uid
    )
    return _Prepared(world.with_nodes(map(emptied, served)), (*world.waiting, *everybody))


def _join(world: World, step: Step, model: NodeView, count: int, number: int) -> _Prepared:
    """So many nodes that are as the model."""
    taken = {node.name for node in world.view.nodes}
    names = [f"new-{number}-{index:05}" for index in range(count)]
    if not taken.isdisjoint(names):
        raise StepError(f"step {step}: the fleet has a node {min(taken & set(names))} already")
    return _Prepared(world.with_nodes(replace(model, name=name) for name in names), world.waiting)


def _lose(world: World, names: Sequence[str]) -> _Prepared:
    nodes = [world.node(name) for name in dict.fromkeys(names)]
    lost = [replace(emptied(node), ready=False, not_ready_reason=LOST) for node in nodes]
    return _Prepared(world.with_nodes(lost), (*world.waiting, *world.evacuees(nodes)))
