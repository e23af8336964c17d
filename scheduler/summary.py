"""What a fleet is like in a few numbers: utilisation, fragmentation, empty nodes, headroom.

**Pure**: reads a view.

*Fragmentation* of a resource is the share of what is free that the next instance cannot use: for each
common shape, the part of the free amount that lies on nodes on which the shape does not fit (by any
resource, or because the node takes nothing), weighted by how common the shape is. 0: whatever comes, all
that is free can be used. Source: the fragmentation measure of Weng et al., Beware of Fragmentation, USENIX
ATC 2023, section 3, here for every resource.

*Headroom* of a flavor is how many more of it the fleet takes if nothing else comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cumulet.resources import BASE_NAMES, Resources
from scheduler.filters import is_eligible, outside_groups
from scheduler.group import Occupancy
from scheduler.model import NodeView, Request, Room, View

SHAPES_MAX: Final = 32  # the most common ones; on Azure's trace 16 are all of them
PER_NODE_MAX: Final = 4_096  # of a flavor on one node, more than a host can run


@dataclass(frozen=True, slots=True)
class Usage:
    """One resource over the nodes in service. `fragmentation` 0..1 of what is free."""

    resource: str
    capacity: int
    allocated: int
    fragmentation: float

    @property
    def share(self) -> float:
        """Allocated of capacity; 0 without capacity."""
        return self.allocated / self.capacity if self.capacity else 0.0


@dataclass(frozen=True, slots=True)
class Headroom:
    """How many more instances of the flavor fit."""

    flavor: str
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """`open_nodes` are ready and not cordoned; of them `empty_nodes` hold nothing."""

    nodes: int
    open_nodes: int
    empty_nodes: int
    instances: int
    waiting: int
    usages: tuple[Usage, ...]
    headroom: tuple[Headroom, ...]


@dataclass(frozen=True, slots=True)
class CommonShape:
    """A shape that instances have, and its share of them (0..1)."""

    resources: Resources
    share: float


def is_open(node: NodeView) -> bool:
    """Whether new instances may come."""
    return node.ready and node.schedulable


def common_shapes(vectors: Iterable[Resources]) -> tuple[CommonShape, ...]:
    """The most common shapes with their shares, which add up to 1."""
    return weighed_shapes(Counter(vectors))


def weighed_shapes(weights: Mapping[Resources, int]) -> tuple[CommonShape, ...]:
    """The same of shapes that are counted already."""
    counts = [(vector, weight) for vector, weight in weights.items() if weight and not vector.is_zero()]
    counts.sort(key=lambda pair: (-pair[1], str(pair[0])))  # of equals always the same ones
    kept = counts[:SHAPES_MAX]
    total = sum(count for _, count in kept)
    return tuple(CommonShape(vector, count / total) for vector, count in kept)


def summarize(
    view: View, waiting: int, flavors: Mapping[str, Request], shapes: Sequence[CommonShape]
) -> Summary:
    """The numbers of a view. `flavors`: a request of each; `shapes`: what is common, for fragmentation."""
    opened = [node for node in view.nodes if is_open(node)]
    return Summary(
        nodes=len(view.nodes),
        open_nodes=len(opened),
        empty_nodes=sum(node.allocated.is_zero() for node in opened),
        instances=sum(len(node.residents) for node in view.nodes),
        waiting=waiting,
        usages=_usages(view, opened, shapes),
        headroom=tuple(
            Headroom(name, count_more(view, request)) for name, request in sorted(flavors.items())
        ),
    )


def _usages(view: View, opened: Sequence[NodeView], shapes: Sequence[CommonShape]) -> tuple[Usage, ...]:
    serving = [node for node in view.nodes if node.ready]
    capacity = Resources.total(node.allocatable for node in serving)
    allocated = Resources.total(node.allocated for node in serving)
    names = list(dict.fromkeys((*BASE_NAMES, *capacity.names(), *allocated.names())))
    free = np.array([[node.free().get(name, 0) for node in opened] for name in names], dtype=np.int64)
    demands = demand_rows(shapes, names)
    lost = fragmentation(free.reshape(len(names), len(opened)), demands, shares_of(shapes))
    return tuple(
        Usage(name, capacity.get(name), allocated.get(name), float(part))
        for name, part in zip(names, lost, strict=True)
        if capacity.get(name) or allocated.get(name)
    )


def demand_rows(shapes: Sequence[CommonShape], names: Sequence[str]) -> npt.NDArray[np.int64]:
    """int64[n_shape, n_resource]"""
    rows = [[shape.resources.get(name) for name in names] for shape in shapes]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(names))


def shares_of(shapes: Sequence[CommonShape]) -> npt.NDArray[np.float64]:
    return np.array([shape.share for shape in shapes], dtype=np.float64)


def fragmentation(
    free: npt.NDArray[np.int64], demands: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """float64[n_resource]: the unusable share of free int64[n_resource, n_node], 0 where none is free."""
    left = np.maximum(free, 0).astype(np.float64)
    total = left.sum(axis=1)
    lost = np.zeros(len(free))
    for demand, share in zip(demands, shares, strict=True):
        asked = demand > 0
        fits = (free[asked] >= demand[asked, None]).all(axis=0)
        lost += share * left[:, ~fits].sum(axis=1)
    found: npt.NDArray[np.float64] = np.divide(lost, total, out=np.zeros(len(free)), where=total > 0)
    return found


def count_more(view: View, request: Request) -> int:
    """How many more of a request the fleet takes, each seen by the next.

    Of equal requests the order does not matter: each node is filled on its own. Groups are looked at as
    they are now, so for a request with groups this says how many nodes' room there is, not more.
    """
    occupancy = Occupancy.of(view) if request.groups else Occupancy(())
    return sum(
        _more_on(node, request)
        for node in view.nodes
        if is_open(node) and is_eligible(node, request) and not outside_groups(node, request, occupancy)
    )


def _more_on(node: NodeView, request: Request) -> int:
    left = node.free()
    asked = {name: want for name, want in request.resources.as_dict().items() if want}
    room = min((max(left.get(name, 0), 0) // want for name, want in asked.items()), default=PER_NODE_MAX)
    if not request.numa_cells and not request.devices:
        return min(room, PER_NODE_MAX)
    own, count = Room(node), 0
    while count < min(room, PER_NODE_MAX) and (choice := own.choose(request)) is not None:
        own.enter(request, choice)
        count += 1
    return count
