"""The smallest change of each kind in the cluster: one node opened, one instance moved, nodes added.

**Pure** but for the columns' occupancy, which is changed while a move is tried and put back.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from scheduler.apply import leave
from scheduler.change import AddLabel, AddNodes, AdmitProject, Change, MakeReady, Migrate, Uncordon, Untaint
from scheduler.columns import Bools, Columns, Ints
from scheduler.filters import outside_groups, reasons_against
from scheduler.group import PlacementGroup, Rule, Scope
from scheduler.model import NodeView, Request, Resident, Room
from scheduler.relief import alone
from scheduler.verdict import Verdict, fits

MOVES_TRIED_MAX: Final = 64  # residents whose move is looked into, the smallest first: a few ms
RELABELLED_MAX: Final = 256  # nodes whose other domain is looked into


def node_changes(verdict: Verdict) -> Iterator[Change]:
    """What would open one node, the first by name, of each kind."""
    nodes = verdict.columns.view.nodes
    for node in _first(alone(verdict, verdict.cordoned)):
        yield Uncordon(nodes[node].name)
    for node in _first(alone(verdict, verdict.not_ready)):
        yield MakeReady(nodes[node].name, nodes[node].not_ready_reason)
    for node in _first(_one_taint(verdict)):
        yield Untaint(nodes[node].name, verdict.taints[verdict.columns.taints.ids[node]][0])
    for node in _first(alone(verdict, verdict.dedicated)):
        yield AdmitProject(nodes[node].name, verdict.request.project)
    labels = [label for key in verdict.labels if (label := _relabel(verdict, key)) is not None]
    yield from sorted(labels, key=lambda label: label.size)


def _first(found: Bools) -> list[int]:
    first: list[int] = np.flatnonzero(found)[:1].tolist()
    return first


def _one_taint(verdict: Verdict) -> Bools:
    """bool[n_node]: one taint, however often it is there, is all that speaks against the node."""
    one: Bools = verdict.columns.taints.where(len(set(taints)) == 1 for taints in verdict.taints)
    lone: Bools = one & (verdict.total == verdict.tainted)
    return lone


def _relabel(verdict: Verdict, key: str) -> AddLabel | None:
    """A node that the label makes fit, rather one that has no such label yet."""
    columns, failed = verdict.columns, verdict.labels[key]
    moved = [group for group in _hard_groups(verdict) if group.scope.value == key]
    if moved:
        return _into_domain(verdict, key, moved)
    here = np.flatnonzero(alone(verdict, failed))
    if not here.size:
        return None
    labels = columns.label(key)
    absent = [node for node in here.tolist() if labels.values[labels.ids[node]] is None]
    return _label(verdict, key, absent[0] if absent else int(here[0]))


def _label(verdict: Verdict, key: str, node: int) -> AddLabel:
    found = verdict.columns.view.nodes[node]
    return AddLabel(found.name, key, verdict.request.node_selector[key], found.labels.get(key))


def _hard_groups(verdict: Verdict) -> list[PlacementGroup]:
    groups = map(verdict.columns.group, verdict.request.groups)
    return [group for group in groups if group is not None and group.hard]


def _into_domain(verdict: Verdict, key: str, moved: list[PlacementGroup]) -> AddLabel | None:
    """The label is a group's domain too: the node and its residents come into another one with it."""
    columns, request = verdict.columns, verdict.request
    others = verdict.total - verdict.labels[key]
    for group in moved:
        others = others - verdict.groups.get(group.name, np.zeros(columns.count, np.bool_))
    best: AddLabel | None = None
    for node in np.flatnonzero(verdict.labels[key] & (others == 0))[:RELABELLED_MAX].tolist():
        found = _label(verdict, key, node)
        if (best is None or found.size < best.size) and _takes_as(columns, node, found, request):
            best = found
    return best


def _takes_as(columns: Columns, node: int, label: AddLabel, request: Request) -> bool:
    """Whether the groups take the request on the node once it is labelled."""
    before = columns.view.nodes[node]
    after = replace(before, labels={**before.labels, label.key: label.value})
    _swap(columns, before, after)
    refused = outside_groups(after, request, columns.occupancy)
    _swap(columns, after, before)
    return not refused


def _swap(columns: Columns, before: NodeView, after: NodeView) -> None:
    for resident in before.residents:
        columns.occupancy.leave(resident.request.groups, before)
        columns.occupancy.enter(resident.request.groups, after)


def migration(verdict: Verdict) -> Migrate | None:
    """The move of the smallest instance that makes room for the request, None if no move does."""
    columns, request = verdict.columns, verdict.request
    if verdict.missing_groups:
        return None
    residents = columns.residents()
    open_nodes = verdict.static == 0
    likely: Bools = open_nodes[residents.node]
    for name, want in request.resources.as_dict().items():
        if want and name in columns.names:
            row = columns.names.index(name)
            likely &= columns.free[row][residents.node] + residents.amounts[row] >= want
        elif want:
            return None
    found = np.flatnonzero(likely)
    sizes = residents.amounts[columns.names.index("memory_mib")][found]
    moves = _Moves(columns, request)
    tried = 0
    for index in found[np.argsort(sizes, kind="stable")].tolist():
        resident = residents.find(index)
        if not _movable(columns.view.nodes[int(residents.node[index])], resident):
            continue
        move = moves.find(int(residents.node[index]), resident)
        if move is not None:
            return move
        tried += 1
        if tried >= MOVES_TRIED_MAX:
            break
    return None


def _movable(node: NodeView, resident: Resident) -> bool:
    return not resident.choice.devices and resident.request.resources.fits_in(node.allocated)


class _Moves:
    """Where residents could go; those that ask for the same are looked up once."""

    def __init__(self, columns: Columns, request: Request) -> None:
        self._columns = columns
        self._request = request
        self._targets: dict[Hashable, Bools] = {}

    def find(self, source: int, resident: Resident) -> Migrate | None:
        columns, request, moved = self._columns, self._request, resident.request
        node = columns.view.nodes[source]
        rest = Room(leave(node, resident))
        columns.occupancy.leave(moved.groups, node)
        try:
            shared = set(moved.groups) & set(request.groups)
            if not shared and reasons_against(rest, request, columns.occupancy):
                return None
            targets = self._targets_of(moved)
            for target in np.flatnonzero(targets).tolist():
                if target != source and (not shared or self._takes_then(rest, target, moved)):
                    there = columns.view.nodes[target]
                    choice = Room(there).choose(moved)
                    if choice is not None:
                        return Migrate(resident, node.name, there.name, choice)
            return None
        finally:
            columns.occupancy.enter(moved.groups, node)

    def _takes_then(self, rest: Room, target: int, moved: Request) -> bool:
        """Whether the source takes the request once the resident, of one of its groups, is over there."""
        columns = self._columns
        there = columns.view.nodes[target]
        columns.occupancy.enter(moved.groups, there)
        refused = reasons_against(rest, self._request, columns.occupancy)
        columns.occupancy.leave(moved.groups, there)
        return not refused

    def _targets_of(self, moved: Request) -> Bools:
        if moved.groups:  # what its groups say depends on where it is now
            return fits(self._columns, moved)
        shape = (moved.resources, moved.constraints(), moved.numa_cells, moved.devices)
        if shape not in self._targets:
            self._targets[shape] = fits(self._columns, moved)
        return self._targets[shape]


def more_nodes(verdict: Verdict, count: int = 1) -> AddNodes | None:
    """The cheapest and then smallest shape of a node that is there of which an empty one would do."""
    shapes = shapes_that_do(verdict)
    return AddNodes(verdict.columns.view.nodes[shapes[0]].name, count) if shapes else None


def shapes_that_do(verdict: Verdict) -> list[int]:
    """Nodes of which an empty copy takes the request: the cheapest first, then the smallest."""
    columns, request = verdict.columns, verdict.request
    if verdict.missing_groups:
        return []
    lasting = _lasting(verdict)
    for group in _hard_groups(verdict):
        lasting &= _group_takes_new(verdict, group)
    for name, want in request.resources.as_dict().items():
        if want:
            lasting &= columns.allocatable_row(name) >= want
    if request.numa_cells or request.devices:
        amounts = request.resources
        lasting &= columns.fresh_sockets().takes(
            amounts.vcpu, amounts.memory_mib, request.numa_cells, request.devices
        )
    nodes = np.flatnonzero(lasting)
    prices = np.fromiter(
        (columns.view.nodes[node].cost_milli for node in nodes.tolist()), np.int64, nodes.size
    )
    vcpu, memory_mib = columns.allocatable_row("vcpu")[nodes], columns.allocatable_row("memory_mib")[nodes]
    ordered: list[int] = nodes[np.lexsort((memory_mib, vcpu, prices))].tolist()
    return ordered


def _lasting(verdict: Verdict) -> Bools:
    """bool[n_node]: what would stand against a new node of that shape too does not stand against this one."""
    passing: Ints = verdict.static.copy()
    for failed in (verdict.cordoned, verdict.not_ready, verdict.excluded):
        if failed is not None:
            passing -= failed
    lasting: Bools = passing == 0
    return lasting


def _group_takes_new(verdict: Verdict, group: PlacementGroup) -> Bools:
    """bool[n_node]: the group takes a member on a new node with this one's labels."""
    count = verdict.columns.count
    if group.scope is not Scope.NODE:
        return ~verdict.groups.get(group.name, np.zeros(count, np.bool_))
    away = group.rule is Rule.AFFINITY and bool(verdict.columns.occupancy.members(group.name))
    return np.full(count, not away, np.bool_)
