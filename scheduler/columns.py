"""A view as columns: what is left on each node and what each node is, one array per attribute.

**Pure** in its results; `follow` brings the columns up to another view in place, row by row where only some
nodes changed. Questions about all nodes at once (why none fits, what would help) read it; the planner's
specification, `scheduler.filters`, says what the answers must be.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Final, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from cumulet.resources import BASE_NAMES, Resources
from scheduler.group import Occupancy, PlacementGroup
from scheduler.model import NodeView, Resident, Taint, View
from scheduler.sockets import Sockets, full_stock, stock_of

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
K = TypeVar("K", bound=Hashable)
STALE_SHARE: Final = 4  # of the nodes: when more than 1/4 changed, building anew is cheaper than following


class Distinct(Generic[K]):
    """A column of few distinct values: `values[ids[n]]` is node n's. `ids` int64[n_node]."""

    __slots__ = ("_id_of", "ids", "values")

    def __init__(self, values: Iterable[K], count: int) -> None:
        self.values: list[K] = []
        self._id_of: dict[K, int] = {}
        self.ids: Ints = np.fromiter(map(self._id, values), np.int64, count)

    def put(self, node: int, value: K) -> None:
        self.ids[node] = self._id(value)

    def _id(self, value: K) -> int:
        found = self._id_of.setdefault(value, len(self.values))
        if found == len(self.values):
            self.values.append(value)
        return found

    def where(self, told: Iterable[bool]) -> Bools:
        """bool[n_node] from an answer for each of `values`."""
        answers: Bools = np.fromiter(told, np.bool_, len(self.values))[self.ids]
        return answers


class Columns:
    """The columns of a view. `free`, `allocatable` int64[n_resource, n_node], row r is `names[r]`."""

    def __init__(self, view: View) -> None:
        self._build(view)

    def _build(self, view: View) -> None:
        self.view = view
        nodes = view.nodes
        count = len(nodes)
        self.index: dict[str, int] = {node.name: i for i, node in enumerate(nodes)}
        self.names = _names(nodes)
        self.allocatable = _amounts([node.allocatable for node in nodes], self.names)
        self.free = self.allocatable - _amounts([node.allocated for node in nodes], self.names)
        self.schedulable: Bools = np.fromiter((node.schedulable for node in nodes), np.bool_, count)
        self.ready: Bools = np.fromiter((node.ready for node in nodes), np.bool_, count)
        self.security: Ints = np.fromiter((node.security_level for node in nodes), np.int64, count)
        self.taints: Distinct[tuple[Taint, ...]] = Distinct((node.taints for node in nodes), count)
        self.dedicated: Distinct[frozenset[str]] = Distinct((node.dedicated_to for node in nodes), count)
        self.capabilities: Distinct[frozenset[str]] = Distinct((node.capabilities for node in nodes), count)
        self._labels: dict[str, Distinct[str | None]] = {}
        self._sockets: Sockets | None = None
        self._fresh: Sockets | None = None
        self._residents: list[Ints | None] = [None] * count
        self._resident_columns: ResidentColumns | None = None
        self.occupancy = Occupancy.of(view)

    @property
    def count(self) -> int:
        return len(self.view.nodes)

    def follow(self, view: View) -> None:
        """Become the columns of `view`; changes in place. Nodes that are the same object cost nothing."""
        before, after = self.view.nodes, view.nodes
        if len(before) != len(after) or dict(self.view.groups) != dict(view.groups):
            return self._build(view)
        changed = [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old is not new]
        same_names = all(before[i].name == after[i].name for i in changed)
        if not same_names or len(changed) * STALE_SHARE > len(after) or self._outgrown():
            return self._build(view)
        if not set(_names([after[i] for i in changed])) <= set(self.names):
            return self._build(view)
        self.view = view
        for node in changed:
            self._put(node, before[node], after[node])
        if changed:
            self._resident_columns = None

    def _outgrown(self) -> bool:
        """Values that no node has any more have piled up."""
        longest = max(len(self.taints.values), len(self.dedicated.values), len(self.capabilities.values))
        labels = max((len(column.values) for column in self._labels.values()), default=0)
        return max(longest, labels) > 2 * self.count + 64

    def _put(self, index: int, old: NodeView, new: NodeView) -> None:
        for row, name in enumerate(self.names):
            self.allocatable[row, index] = room = new.allocatable.get(name)
            self.free[row, index] = room - new.allocated.get(name)
        self.schedulable[index] = new.schedulable
        self.ready[index] = new.ready
        self.security[index] = new.security_level
        self.taints.put(index, new.taints)
        self.dedicated.put(index, new.dedicated_to)
        self.capabilities.put(index, new.capabilities)
        for key, column in self._labels.items():
            column.put(index, new.labels.get(key))
        if self._sockets is not None and not self._sockets.put(index, new, stock_of(new)):
            self._sockets = None
        if self._fresh is not None and not self._fresh.put(index, new, full_stock(new)):
            self._fresh = None
        for resident in old.residents:
            self.occupancy.leave(resident.request.groups, old)
        for resident in new.residents:
            self.occupancy.enter(resident.request.groups, new)
        self._residents[index] = None

    def label(self, key: str) -> Distinct[str | None]:
        """The label's value on each node; a column is made when it is first asked for, and kept."""
        if key not in self._labels:
            self._labels[key] = Distinct((node.labels.get(key) for node in self.view.nodes), self.count)
        return self._labels[key]

    def row(self, resource: str) -> Ints:
        """int64[n_node] of what is left."""
        if resource not in self.names:
            return np.zeros(self.count, np.int64)
        row: Ints = self.free[self.names.index(resource)]
        return row

    def allocatable_row(self, resource: str) -> Ints:
        """int64[n_node] of what an empty node has."""
        if resource not in self.names:
            return np.zeros(self.count, np.int64)
        row: Ints = self.allocatable[self.names.index(resource)]
        return row

    def sockets(self) -> Sockets:
        """Cells and devices as they are left; made when first asked for."""
        if self._sockets is None:
            self._sockets = Sockets(self.view.nodes, [stock_of(node) for node in self.view.nodes])
        return self._sockets

    def fresh_sockets(self) -> Sockets:
        """Cells and devices as they were if the nodes were empty; made when first asked for."""
        if self._fresh is None:
            self._fresh = Sockets(self.view.nodes, [full_stock(node) for node in self.view.nodes])
        return self._fresh

    def group(self, name: str) -> PlacementGroup | None:
        return self.occupancy.find(name)

    def residents(self) -> ResidentColumns:
        """Every resident of every node; rows of nodes that did not change are kept."""
        if self._resident_columns is None:
            nodes = self.view.nodes
            for index, rows in enumerate(self._residents):
                if rows is None:
                    held = [resident.request.resources for resident in nodes[index].residents]
                    self._residents[index] = _amounts(held, self.names)
            kept = [rows for rows in self._residents if rows is not None]
            self._resident_columns = ResidentColumns(nodes, kept)
        return self._resident_columns


class ResidentColumns:
    """`amounts` int64[n_resource, n_resident], `node` int64[n_resident]: on which node each is."""

    __slots__ = ("_nodes", "_start", "amounts", "node")

    def __init__(self, nodes: tuple[NodeView, ...], rows: list[Ints]) -> None:
        counts = np.fromiter((len(node.residents) for node in nodes), np.int64, len(nodes))
        self._nodes = nodes
        self._start = np.concatenate(([0], np.cumsum(counts)))
        self.amounts: Ints = np.concatenate(rows, axis=1) if rows else _amounts([], BASE_NAMES)
        self.node: Ints = np.repeat(np.arange(len(nodes)), counts)

    def find(self, resident: int) -> Resident:
        node = int(self.node[resident])
        return self._nodes[node].residents[resident - int(self._start[node])]


def _names(nodes: Sequence[NodeView]) -> tuple[str, ...]:
    extended = {
        name
        for node in nodes
        for vector in (node.allocatable, node.allocated)
        if vector.extended
        for name, _ in vector.extended
    }
    return (*BASE_NAMES, *sorted(extended))


def _amounts(vectors: list[Resources], names: tuple[str, ...]) -> Ints:
    """int64[len(names), len(vectors)]"""
    amounts = np.zeros((len(names), len(vectors)), dtype=np.int64)
    for row, name in enumerate(BASE_NAMES):
        amounts[row] = [getattr(vector, name) for vector in vectors]
    row_of: Mapping[str, int] = {name: row for row, name in enumerate(names)}
    for column, vector in enumerate(vectors):
        for name, amount in vector.extended:
            if name in row_of:  # a resident may hold what its node does not count
                amounts[row_of[name], column] = amount
    return amounts
