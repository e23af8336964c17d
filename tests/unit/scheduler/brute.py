"""Every change of every kind that there could be, tried one by one: what `scheduler.suggest` must equal.

**Pure.** For small views only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

from cumulet.resources import Resources
from scheduler.apply import apply_change, leave
from scheduler.change import (
    AddLabel,
    AddNodes,
    AdmitProject,
    AllowNode,
    Change,
    DropCapability,
    DropCells,
    DropGroup,
    DropSelector,
    LowerSecurity,
    MakeReady,
    Migrate,
    Reduce,
    ReduceAll,
    RelaxDevice,
    Tolerate,
    Uncordon,
    Untaint,
    least_amount,
)
from scheduler.model import Request, Room, View
from scheduler.situation import Situation
from scheduler.topology import SHARE_WHOLE


def fits(view: View, request: Request) -> bool:
    """Some node takes the request, node by node."""
    situation = Situation.of(view)
    return any(not situation.reasons(node.name, request) for node in view.nodes)


def helps(view: View, request: Request, change: Change) -> bool:
    after, wanted = apply_change(view, request, change)
    if isinstance(change, Migrate):  # a move is to make room where the instance was
        return not Situation.of(after).reasons(change.source, wanted)
    return fits(after, wanted)


def every_change(view: View, request: Request) -> Iterator[Change]:
    """All changes but flavors and joint reductions, sensible or not."""
    yield from _of_request(request)
    yield from _reductions(request)
    for node in view.nodes:
        if not node.schedulable:
            yield Uncordon(node.name)
        if not node.ready:
            yield MakeReady(node.name, node.not_ready_reason)
        for taint in node.taints:
            yield Untaint(node.name, taint)
            yield Tolerate(taint)
        if node.dedicated_to:
            yield AdmitProject(node.name, request.project)
        for key, value in request.node_selector.items():
            if node.labels.get(key) != value:
                yield AddLabel(node.name, key, value, node.labels.get(key))
        yield AddNodes(node.name, 1)
    yield from _moves(view)


def _of_request(request: Request) -> Iterator[Change]:
    for name in request.excluded_nodes:
        yield AllowNode(name)
    for key, value in request.node_selector.items():
        yield DropSelector(key, value)
    for name in request.capabilities:
        yield DropCapability(name)
    for name in request.groups:
        yield DropGroup(name)
    if request.numa_cells:
        yield DropCells(request.numa_cells)
    for level in range(request.security_level):
        yield LowerSecurity(request.security_level, level)
    for want in set(request.devices):
        yield RelaxDevice(want, None)
        if want.models:
            yield RelaxDevice(want, replace(want, models=frozenset()))
        for count in range(1, want.count):
            yield RelaxDevice(want, replace(want, count=count))
        if want.count == 1:
            # Residents hold wholes and 400/1000, so what is left is one of these; and their neighbours.
            for share in {1, 199, 200, 201, 599, 600, 601, SHARE_WHOLE} - {want.share_milli}:
                if share < want.share_milli:
                    yield RelaxDevice(want, replace(want, share_milli=share))


def _reductions(request: Request) -> Iterator[Change]:
    for name, want in request.resources.as_dict().items():
        for to in range(least_amount(name), want):
            yield Reduce(name, want, to)


def joint_reductions(request: Request) -> Iterator[ReduceAll]:
    """Every vector that is less than the wanted one."""
    wanted = request.resources.as_dict()
    spans = [range(min(least_amount(name), want), want + 1) for name, want in wanted.items()]
    for amounts in product(*spans):
        to = Resources.of(dict(zip(wanted, amounts, strict=True)))
        if to != request.resources:
            yield ReduceAll(request.resources, to)


def _moves(view: View) -> Iterator[Change]:
    for source in view.nodes:
        for resident in source.residents:
            if resident.choice.devices or not resident.request.resources.fits_in(source.allocated):
                continue
            rest = leave(source, resident)
            without = replace(view, nodes=tuple(rest if n is source else n for n in view.nodes))
            situation = Situation.of(without)
            for target in view.nodes:
                if target is not source and not situation.reasons(target.name, resident.request):
                    choice = Room(target).choose(resident.request)
                    assert choice is not None
                    yield Migrate(resident, source.name, target.name, choice)
