"""What requests ask for, as an index knows it: levels, shapes and sets of cells, each made once.

**Pure** in its answers; remembers in place what was asked, and tells the index.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from cext.cells import Cells
from cext.index import FleetIndex
from cext.seating import Asked
from cumulet.resources import Resources
from scheduler.attributes import Attributes, Level
from scheduler.axes import Axes
from scheduler.model import Request
from scheduler.topology import part


class Wants:
    """Of one index. `allow` is told of every pair of constraint and attribute that becomes eligible, too."""

    def __init__(
        self,
        axes: Axes,
        index: FleetIndex,
        cells: Cells,
        attributes: Attributes,
        allow: Callable[[int, int], None],
    ) -> None:
        self.attributes = attributes.renewed(self._allow)
        self._axes, self._index, self._cells, self._allow_too = axes, index, cells, allow
        self._allowed: list[tuple[int, int]] = []
        self._bins: dict[int, FleetIndex] = {}  # by the number of cells
        self._shapes: dict[tuple[Resources, int, int], int] = {}
        self._asked: dict[Hashable, Asked] = {}

    def __len__(self) -> int:
        """All that is remembered: whoever keeps it for long bounds it."""
        return len(self._asked) + len(self._shapes) + len(self.attributes)

    def find(self, request: Request) -> Asked | None:
        """What the request asks for, if it or one that asks for the same has been asked."""
        return self._asked.get(self._question(request))

    def ask(self, request: Request) -> Asked:
        """What the request asks for. During a trial, only what is known can be asked."""
        question = self._question(request)
        asked = self._asked.get(question)
        if asked is None:
            asked = self._asked[question] = self._compile(request)
        return asked

    def renew(self) -> None:
        """There are new attributes, and so there may be levels that what was asked lacks."""
        self._asked.clear()

    def levels(self, request: Request) -> Sequence[Level]:
        """Where the request may go, the most welcome first."""
        return self.attributes.levels(request)

    def shape(self, request: Request, constraint: int) -> int:
        """The index's id for the request's amounts under a constraint."""
        key = (request.resources, constraint, self._axes.level(request))
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = self._index.add_shape(self._axes.row(request.resources), *key[1:])
        return shape

    def _question(self, request: Request) -> Hashable:
        """Equal for requests that ask for the same, but for groups and nodes by name."""
        wants = request.resources
        return (
            wants.vcpu,
            wants.memory_mib,
            wants.disk_gib,
            wants.extended,
            request.numa_cells,
            not request.devices,
            self._axes.level(request),
            self.attributes.static(request),
        )

    def _compile(self, request: Request) -> Asked:
        cells = 0 if request.devices else request.numa_cells  # with devices, nodes are matched one by one
        levels = self.levels(request)
        shapes = [self.shape(request, level.constraint) for level in levels]
        if not cells:
            plain = zip(levels, shapes, strict=True)
            return Asked([(level.penalty, level.tier, shape, 0) for level, shape in plain])
        vcpu, memory_mib = part(request.resources.vcpu, cells), part(request.resources.memory_mib, cells)
        demand = [*self._axes.row(request.resources), vcpu, memory_mib]
        bins, lasts = self._sets_of(cells), self._axes.level(request)
        both = [
            (level.penalty, level.tier, shape, bins.add_shape(demand, level.constraint, lasts))
            for level, shape in zip(levels, shapes, strict=True)
        ]
        return Asked(both, cells, vcpu, memory_mib)

    def _sets_of(self, cells: int) -> FleetIndex:
        """The index of the nodes' sets of so many cells, made when it is first asked for."""
        bins = self._bins.get(cells)
        if bins is None:
            bins = self._bins[cells] = self._axes.with_cells(self._index)
            for constraint, attribute in self._allowed:
                bins.set_eligible(constraint, attribute, True)
            self._cells.add_bins(bins, cells)
        return bins

    def _allow(self, constraint: int, attribute: int) -> None:
        self._allowed.append((constraint, attribute))
        self._index.set_eligible(constraint, attribute, True)
        for bins in self._bins.values():
            bins.set_eligible(constraint, attribute, True)
        self._allow_too(constraint, attribute)
