"""The smallest change of each kind in a refused request: one wish less, or less of something.

**Pure**: reads a verdict, changes nothing. Each answer is exact: with it a node takes the request, and with
a smaller one of its kind none does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final

import numpy as np

from cumulet.resources import Resources
from scheduler.apply import relaxed
from scheduler.change import (
    AllowNode,
    Change,
    DropCapability,
    DropCells,
    DropGroup,
    DropSelector,
    LowerSecurity,
    OtherFlavor,
    Reduce,
    ReduceAll,
    RelaxDevice,
    Tolerate,
    least_amount,
    shortfall,
)
from scheduler.columns import Bools, Ints
from scheduler.model import Request, Room
from scheduler.topology import DeviceRequest, choose
from scheduler.verdict import Verdict, fits

NEAR_TIE: Final = 1e-9  # shares this close are compared exactly: doubles cannot tell them apart
JOINT_TRIES_MAX: Final = 64  # nodes with cells that are looked into for a joint reduction, the best first
_ON_CELLS: Final = ("vcpu", "memory_mib")


@dataclass(frozen=True, slots=True)
class FlavorOption:
    """A flavor, and the request as it would be with it."""

    name: str
    request: Request


def request_changes(verdict: Verdict, options: Sequence[FlavorOption]) -> Iterator[Change]:
    """Everything in the request that would help, the smallest of each kind."""
    yield from _wishes(verdict)
    yield from _devices(verdict)
    yield from _amounts(verdict)
    yield from _flavor(verdict, options)


def alone(verdict: Verdict, failed: Bools | None) -> Bools:
    """bool[n_node]: this is the only reason against the node."""
    if failed is None:
        return np.zeros(verdict.columns.count, np.bool_)
    lone: Bools = failed & (verdict.total == 1)
    return lone


def alike_taints(verdict: Verdict) -> Bools:
    """bool[n_node]: taints of one key and value are all that speaks against the node."""
    alike = (len({(taint.key, taint.value) for taint in taints}) == 1 for taints in verdict.taints)
    lone: Bools = verdict.columns.taints.where(alike) & (verdict.total == verdict.tainted)
    return lone


def _wishes(verdict: Verdict) -> Iterator[Change]:
    columns, request = verdict.columns, verdict.request
    nodes = columns.view.nodes
    for node in np.flatnonzero(alone(verdict, verdict.excluded))[:1].tolist():
        yield AllowNode(nodes[node].name)
    for node in np.flatnonzero(alike_taints(verdict))[:1].tolist():
        yield Tolerate(verdict.taints[columns.taints.ids[node]][0])
    for key, failed in verdict.labels.items():
        if alone(verdict, failed).any():
            yield DropSelector(key, request.node_selector[key])
    for name, failed in verdict.capabilities.items():
        if alone(verdict, failed).any():
            yield DropCapability(name)
    for name in request.groups:
        everywhere = np.ones(columns.count, np.bool_)
        outside = everywhere if name in verdict.missing_groups else verdict.groups.get(name)
        if alone(verdict, outside).any():
            yield DropGroup(name)
    lower = alone(verdict, verdict.security)
    if lower.any():
        yield LowerSecurity(request.security_level, int(columns.security[lower].max()))


def _devices(verdict: Verdict) -> Iterator[Change]:
    """Cells given up, and each want for devices relaxed in each way."""
    request = verdict.request
    rest = (verdict.topology > 0) & (verdict.total == verdict.topology)
    if not rest.any():
        return
    if request.numa_cells and _topology_fits(verdict, replace(request, numa_cells=0), rest):
        yield DropCells(request.numa_cells)
    for want in dict.fromkeys(request.devices):
        for ways in _relaxations(verdict, want):
            helps = next((each for each in ways if _relaxed_fits(verdict, each, rest)), None)
            if helps is not None:
                yield helps


def _relaxations(verdict: Verdict, want: DeviceRequest) -> Iterator[list[RelaxDevice]]:
    """For each way the relaxations, the smallest first."""
    yield [RelaxDevice(want, replace(want, models=frozenset()))] if want.models else []
    fewer = range(want.count - 1, 0, -1)
    yield [RelaxDevice(want, replace(want, count=count)) for count in fewer]
    if want.count == 1:
        left: Ints = np.unique(verdict.columns.sockets().device_left)
        shares = left[(left > 0) & (left < want.share_milli)][::-1].tolist()
        yield [RelaxDevice(want, replace(want, share_milli=share)) for share in shares]
    yield [RelaxDevice(want, None)]


def _relaxed_fits(verdict: Verdict, change: RelaxDevice, among: Bools) -> bool:
    devices = relaxed(verdict.request.devices, change)
    return _topology_fits(verdict, replace(verdict.request, devices=devices), among)


def _topology_fits(verdict: Verdict, request: Request, among: Bools) -> bool:
    return bool((topology_of(verdict, request) & among).any())


def topology_of(verdict: Verdict, request: Request) -> Bools:
    """bool[n_node]: cells and devices do for a request that may differ from the verdict's."""
    amounts = request.resources
    if not request.numa_cells and not request.devices:
        return np.ones(verdict.columns.count, np.bool_)
    sockets = verdict.columns.sockets()
    return sockets.takes(amounts.vcpu, amounts.memory_mib, request.numa_cells, request.devices)


def _amounts(verdict: Verdict) -> Iterator[Change]:
    """Each resource by itself; if none helps by itself, all together."""
    found = False
    for resource, want in verdict.request.resources.as_dict().items():
        to = _reduced_alone(verdict, resource, want)
        if to is not None:
            found = True
            yield Reduce(resource, want, to)
    if not found:
        yield from _reduced_together(verdict)


def _reduced_alone(verdict: Verdict, resource: str, want: int) -> int | None:
    least = least_amount(resource)
    if want <= least:
        return None
    on_cells = verdict.request.numa_cells > 0 and resource in _ON_CELLS
    others = verdict.total - verdict.topology if on_cells else verdict.total
    short = verdict.short.get(resource)
    among = others == (0 if short is None else short)
    if on_cells:
        return _reduced_on_cells(verdict, resource, want, among)
    if short is None or not among.any():
        return None
    most = max(int(verdict.columns.row(resource)[among].max()), 0)  # none of it always fits
    return most if most >= least else None


def _reduced_on_cells(verdict: Verdict, resource: str, want: int, among: Bools) -> int | None:
    """The largest amount that node and cells have: it is what one of them has, so those are tried."""
    request, sockets = verdict.request, verdict.columns.sockets()
    row = verdict.columns.row(resource)
    parts = sockets.vcpu if resource == "vcpu" else sockets.memory_mib
    limits = np.concatenate((row[among], (parts[among] * request.numa_cells).ravel(), [want - 1]))
    amounts = np.unique(limits[(limits >= least_amount(resource)) & (limits < want)]).tolist()

    def fits_somewhere(amount: int) -> bool:
        resources = Resources.of({**request.resources.as_dict(), resource: amount})
        return bool(
            (topology_of(verdict, replace(request, resources=resources)) & among & (row >= amount)).any()
        )

    low, high = 0, len(amounts)  # amounts[:low] fit, amounts[high:] do not: less always fits where more does
    while low < high:
        middle = (low + high) // 2
        if fits_somewhere(amounts[middle]):
            low = middle + 1
        else:
            high = middle
    return amounts[low - 1] if low else None


def _reduced_together(verdict: Verdict) -> Iterator[Change]:
    """The least sum of shares given up, of all nodes where nothing but amounts speaks against it."""
    request = verdict.request
    wanted = {name: want for name, want in request.resources.as_dict().items() if want}
    on_cells = verdict.topology if request.numa_cells else np.zeros(verdict.columns.count, np.int64)
    among = verdict.total == on_cells + sum((failed.astype(np.int64) for failed in verdict.short.values()), 0)
    bound = np.zeros(verdict.columns.count, np.float64)
    for name, want in wanted.items():
        row = verdict.columns.row(name)
        if least_amount(name):  # of the others none at all is an answer, even where they are overcommitted
            among &= row >= least_amount(name)
        bound += np.maximum(want - row.astype(np.float64), 0.0) / want
    order = np.flatnonzero(among)
    order = order[np.argsort(bound[order], kind="stable")]
    best: tuple[Fraction, Resources] | None = None
    for node in order[:JOINT_TRIES_MAX].tolist():
        if best is not None and bound[node] > float(best[0]) + NEAR_TIE:
            break
        amounts = _most_of(verdict, node, wanted)
        if amounts is not None:
            given_up = shortfall(request.resources, amounts)
            if best is None or given_up < best[0]:
                best = (given_up, amounts)
    if best is not None and best[1] != request.resources:
        yield ReduceAll(request.resources, best[1])


def _most_of(verdict: Verdict, node: int, wanted: dict[str, int]) -> Resources | None:
    """The amounts that give up the least on one node, None if no amounts do there."""
    request, columns = verdict.request, verdict.columns
    most = {name: min(want, max(int(columns.row(name)[node]), 0)) for name, want in wanted.items()}
    if not request.numa_cells:
        return Resources.of(most)
    room = Room(columns.view.nodes[node])
    count = request.numa_cells
    best: tuple[Fraction, Resources] | None = None
    for vcpu in {min(most.get("vcpu", 0), cell.vcpu * count) for cell in room.cells}:
        for memory_mib in {min(most.get("memory_mib", 0), cell.memory_mib * count) for cell in room.cells}:
            tried = Resources.of({**most, "vcpu": max(vcpu, 0), "memory_mib": max(memory_mib, 0)})
            if any(tried.get(name) < least_amount(name) for name in wanted):
                continue
            given_up = shortfall(request.resources, tried)
            if (best is None or given_up < best[0]) and _chosen(room, replace(request, resources=tried)):
                best = (given_up, tried)
    return best[1] if best else None


def _chosen(room: Room, request: Request) -> bool:
    amounts = request.resources
    left, cells = room.devices, request.numa_cells
    devices = room.node.devices
    found = choose(room.cells, devices, left, amounts.vcpu, amounts.memory_mib, cells, request.devices)
    return found is not None


def _flavor(verdict: Verdict, options: Sequence[FlavorOption]) -> Iterator[Change]:
    """Of the flavors that fit the one that gives up the least, then adds the least."""
    want = verdict.request.resources

    def distance(option: FlavorOption) -> tuple[Fraction, Fraction, str]:
        got = option.request.resources
        return shortfall(want, got), shortfall(got, want), option.name

    for option in sorted(options, key=distance):
        if option.request != verdict.request and _option_fits(verdict, option.request):
            yield OtherFlavor(option.name, want, option.request)
            return


def _option_fits(verdict: Verdict, request: Request) -> bool:
    """Looks at amounts and topology only, if nothing else differs."""
    mine, columns = verdict.request, verdict.columns
    if request.constraints() != mine.constraints() or request.groups != mine.groups:
        return bool(fits(columns, request).any())
    short = sum((failed.astype(np.int64) for failed in verdict.short.values()), 0)
    among = (verdict.total - verdict.topology - short) == 0
    for name, want in request.resources.as_dict().items():
        if want:
            among = among & (columns.row(name) >= want)
    return bool(among.any()) and _topology_fits(verdict, request, among)
