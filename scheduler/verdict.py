"""What speaks against each node, for all nodes at once: `scheduler.filters` over columns.

**Pure.** A finding is one constraint with the nodes that fail it; together they count, node by node, exactly
the reasons that `reasons_against` would list, in its order (tested).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from scheduler.columns import Bools, Columns, Ints
from scheduler.group import PlacementGroup, Rule, Scope
from scheduler.model import Effect, Request, Taint
from scheduler.reasons import capability_kind
from scheduler.topology import part


@dataclass(frozen=True, slots=True)
class Finding:
    """One constraint, of that kind, failed where `failed` bool[n_node] says so."""

    kind: str
    failed: Bools


@dataclass(frozen=True, slots=True)
class Verdict:
    """Where each constraint of the request fails; a constraint that fails nowhere is not there.

    `static`, `topology`, `total` int64[n_node]: reasons against the node that neither amounts nor groups
    nor topology give, those of cells and devices, and all of them.
    `taints`: of each distinct tuple of taints (by its id in the columns) those that are not tolerated.
    """

    columns: Columns
    request: Request
    total: Ints
    static: Ints
    cordoned: Bools | None
    not_ready: Bools | None
    excluded: Bools | None
    security: Bools | None
    labels: dict[str, Bools]
    taints: tuple[tuple[Taint, ...], ...]
    tainted: Ints
    dedicated: Bools | None
    capabilities: dict[str, Bools]
    groups: dict[str, Bools]
    missing_groups: tuple[str, ...]
    short: dict[str, Bools]
    topology: Ints
    _topology_findings: tuple[Finding, ...] = field(repr=False)

    def counts(self) -> tuple[Counter[str], Counter[str]]:
        """Nodes by the first constraint they fail, and by every one."""
        first: Counter[str] = Counter()
        every: Counter[str] = Counter()
        open_nodes = np.ones(self.columns.count, np.bool_)

        def note(findings: Iterator[Finding]) -> None:
            nonlocal open_nodes
            for finding in findings:
                every[finding.kind] += int(np.count_nonzero(finding.failed))
                first[finding.kind] += int(np.count_nonzero(finding.failed & open_nodes))
                open_nodes &= ~finding.failed

        note(self._before_taints())
        self._count_taints(first, every, open_nodes)
        open_nodes &= self.tainted == 0
        note(self._after_taints())
        return +first, +every

    def _before_taints(self) -> Iterator[Finding]:
        named = (
            ("cordoned", self.cordoned),
            ("not-ready", self.not_ready),
            ("excluded", self.excluded),
            ("security-level", self.security),
        )
        for kind, failed in named:
            if failed is not None:
                yield Finding(kind, failed)
        for key in sorted(self.labels):
            yield Finding(f"label:{key}", self.labels[key])

    def _count_taints(self, first: Counter[str], every: Counter[str], open_nodes: Bools) -> None:
        """A table by distinct tuples of taints: a fleet may have a taint of its own on every node."""
        if not any(self.taints):
            return
        ids, count = self.columns.taints.ids, len(self.taints)
        all_of, open_of = np.bincount(ids, minlength=count), np.bincount(ids[open_nodes], minlength=count)
        for taints, nodes, still_open in zip(self.taints, all_of.tolist(), open_of.tolist(), strict=True):
            for taint in taints:
                every[f"taint:{taint}"] += nodes
            if taints:
                first[f"taint:{taints[0]}"] += still_open

    def _after_taints(self) -> Iterator[Finding]:
        if self.dedicated is not None:
            yield Finding("dedicated", self.dedicated)
        for name in sorted(self.capabilities):
            yield Finding(capability_kind(name), self.capabilities[name])
        for name in self.request.groups:
            if name in self.missing_groups:
                yield Finding(f"group-missing:{name}", np.ones(self.columns.count, np.bool_))
            elif name in self.groups:
                yield Finding(f"group:{name}", self.groups[name])
        for resource, failed in self.short.items():
            yield Finding(f"resource:{resource}", failed)
        yield from self._topology_findings

    def shortage(self) -> tuple[Ints, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        """Reasons other than missing amounts, and the worst missing share of an amount, of each node."""
        amounts = np.zeros(self.columns.count, np.int64)
        worst = np.zeros(self.columns.count, np.float64)
        wanted = self.request.resources.as_dict()
        for resource, failed in self.short.items():
            amounts += failed
            want = wanted[resource]
            missing = (want - self.columns.row(resource).astype(np.float64)) / want  # int64 could wrap
            np.maximum(worst, np.where(failed, np.minimum(missing, 1.0), 0.0), out=worst)
        return self.total - amounts, worst


def judge(columns: Columns, request: Request) -> Verdict:
    """Everything that speaks against every node."""
    count = columns.count
    static = np.zeros(count, np.int64)

    def failing(failed: Bools) -> Bools | None:
        if not failed.any():
            return None
        np.add(static, failed, out=static)
        return failed

    cordoned, not_ready = failing(~columns.schedulable), failing(~columns.ready)
    excluded = failing(_named(columns, request.excluded_nodes))
    security = failing(columns.security < request.security_level)
    labels: dict[str, Bools] = {}
    for key, want in request.node_selector.items():
        column = columns.label(key)
        failed = failing(column.where(value != want for value in column.values))
        if failed is not None:
            labels[key] = failed
    taints = tuple(untolerated(taints, request) for taints in columns.taints.values)
    tainted = np.array([len(each) for each in taints] or [0], np.int64)[columns.taints.ids]
    static += tainted
    told = (bool(who) and request.project not in who for who in columns.dedicated.values)
    dedicated = failing(columns.dedicated.where(told))
    capabilities: dict[str, Bools] = {}
    for name in sorted(request.capabilities):
        failed = failing(columns.capabilities.where(name not in has for has in columns.capabilities.values))
        if failed is not None:
            capabilities[name] = failed
    groups, missing = _judge_groups(columns, request)
    short = _judge_amounts(columns, request)
    found = _judge_topology(columns, request)
    topology = sum((finding.failed.astype(np.int64) for finding in found), np.zeros(count, np.int64))
    total = static + topology + len(missing)
    for failed in (*groups.values(), *short.values()):
        total += failed
    return Verdict(
        columns, request, total, static, cordoned, not_ready, excluded, security, labels, taints, tainted,
        dedicated, capabilities, groups, missing, short, topology, found,
    )  # fmt: skip


def untolerated(taints: Sequence[Taint], request: Request) -> tuple[Taint, ...]:
    """The taints that keep the request off."""
    return tuple(
        taint
        for taint in taints
        if taint.effect is Effect.NO_SCHEDULE and not any(one.covers(taint) for one in request.tolerations)
    )


def _named(columns: Columns, names: frozenset[str]) -> Bools:
    found = np.zeros(columns.count, np.bool_)
    found[[columns.index[name] for name in names if name in columns.index]] = True
    return found


def _judge_groups(columns: Columns, request: Request) -> tuple[dict[str, Bools], tuple[str, ...]]:
    failed: dict[str, Bools] = {}
    missing: list[str] = []
    for name in request.groups:
        group = columns.group(name)
        if group is None:
            missing.append(name)
        elif group.hard:
            outside = outside_group(columns, group)
            if outside.any():
                failed[name] = outside
    return failed, tuple(missing)


def outside_group(columns: Columns, group: PlacementGroup) -> Bools:
    """bool[n_node]: the hard group does not take one more member there."""
    members = columns.occupancy.members(group.name)

    def refuses(domain: str | None) -> bool:
        if not domain or members.get(domain, 0) >= group.limit:
            return True
        return group.rule is Rule.AFFINITY and bool(members) and domain not in members

    if group.scope is not Scope.NODE:
        column = columns.label(group.scope.value)
        return column.where(map(refuses, column.values))
    away = group.rule is Rule.AFFINITY and bool(members)
    outside = np.full(columns.count, away, np.bool_)
    for name in members:  # every other node has none of the group
        if name in columns.index:
            outside[columns.index[name]] = refuses(name)
    return outside


def _judge_amounts(columns: Columns, request: Request) -> dict[str, Bools]:
    short: dict[str, Bools] = {}
    for resource, want in request.resources.as_dict().items():
        if want > 0:
            failed = columns.row(resource) < want
            if failed.any():
                short[resource] = failed
    return short


def _judge_topology(columns: Columns, request: Request) -> tuple[Finding, ...]:
    """Each want by itself where that fails, else all together: as `not_enough_topology` tells them."""
    if not request.numa_cells and not request.devices:
        return ()
    sockets = columns.sockets()
    vcpu, memory_mib = request.resources.vcpu, request.resources.memory_mib
    fails = ~sockets.takes(vcpu, memory_mib, request.numa_cells, request.devices)
    found: list[Finding] = []
    together = fails.copy()
    if request.numa_cells:
        roomy = sockets.roomy(part(vcpu, request.numa_cells), part(memory_mib, request.numa_cells))
        found.append(Finding("numa", fails & (roomy.sum(axis=1) < request.numa_cells)))
    for want in request.devices:
        few = sockets.count_devices(sockets.usable(want)) < want.count
        found.append(Finding("devices", fails & few))
    for finding in found:
        together &= ~finding.failed
    return tuple(each for each in (*found, Finding("devices", together)) if each.failed.any())


def fits(columns: Columns, request: Request) -> Bools:
    """bool[n_node]: nothing speaks against the node."""
    answer: Bools = judge(columns, request).total == 0
    return answer
