"""The fleet as a structure of arrays: what the kernel reads, made from a view and a batch.

**Pure** in its results; `Fleet.place` reduces the fleet's own `free` in place and says so.

Row r of `free` is resource `names[r]`, column n is node n of the view. Scores are scaled by the
fleet's largest allocatable amount of a resource, so that a remainder weighs the same on every node.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cext import bestfit
from cumulet.resources import BASE_NAMES, Resources
from scheduler.filters import is_eligible
from scheduler.model import NodeView, Request, Room, View
from scheduler.policy import Policy

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Fleet:
    """A view's nodes in arrays. `free` int64[n_resource, n_node]; `scale` float64[n_resource]."""

    nodes: tuple[NodeView, ...]
    names: tuple[str, ...]
    free: Ints
    scale: Floats

    @classmethod
    def of(cls, view: View, requests: Sequence[Request], policy: Policy) -> Self:
        """The arrays of a view, with a row for every resource that a node has or a request wants."""
        rooms = [node.allocatable for node in view.nodes]
        taken = [node.allocated for node in view.nodes]
        names = _names([*rooms, *taken, *(request.resources for request in requests)])
        room = _columns(rooms, names)
        largest = room.max(axis=1, initial=0)
        weights = np.array([policy.weight(name) for name in names])
        scale = np.divide(weights, largest, out=np.zeros(len(names)), where=largest > 0)
        return cls(view.nodes, names, room - _columns(taken, names), scale)

    def place(self, requests: Sequence[Request], tie_start: int) -> list[int]:
        """The node's index or -1 for each request, each seen by the next; reduces `free` in place."""
        chosen = np.full(len(requests), -1, dtype=np.int64)
        if requests and self.nodes:
            demands = np.ascontiguousarray(_columns([r.resources for r in requests], self.names).T)
            eligible, rows = self._eligibility(requests)
            bestfit.place_batch(self.free, demands, eligible, rows, self.scale, tie_start, chosen)
        return chosen.tolist()

    def demand(self, request: Request) -> Ints:
        """int64[n_resource] of one request."""
        return np.array([request.resources.get(name) for name in self.names], dtype=np.int64)

    def eligible(self, request: Request) -> Flags:
        """uint8[n_node]: 1 where nothing but resources can speak against the node."""
        return np.fromiter((is_eligible(node, request) for node in self.nodes), np.uint8, len(self.nodes))

    def rooms(self) -> Iterable[Room]:
        """Each node with what is left on it now."""
        for node, amounts in zip(self.nodes, self.free.T.tolist(), strict=True):
            room = Room(node)
            room.free = dict(zip(self.names, amounts, strict=True))
            yield room

    def _eligibility(self, requests: Sequence[Request]) -> tuple[Flags, Ints]:
        """One row for each distinct set of constraints, and each request's row."""
        row_of: dict[Hashable, int] = {}
        flags: list[Flags] = []
        rows: list[int] = []
        for request in requests:
            row = row_of.setdefault(request.constraints(), len(flags))
            if row == len(flags):
                flags.append(self.eligible(request))
            rows.append(row)
        return np.stack(flags), np.array(rows, dtype=np.int64)


def _names(vectors: Iterable[Resources]) -> tuple[str, ...]:
    extended = {name for vector in vectors if vector.extended for name, _ in vector.extended}
    return (*BASE_NAMES, *sorted(extended))


def _columns(vectors: Sequence[Resources], names: Sequence[str]) -> Ints:
    """int64[len(names), len(vectors)]"""
    columns = np.empty((len(names), len(vectors)), dtype=np.int64)
    for row, name in enumerate(names):
        columns[row] = np.fromiter((vector.get(name) for vector in vectors), np.int64, len(vectors))
    return columns
