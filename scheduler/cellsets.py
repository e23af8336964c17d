"""NUMA cells as bins: the best node on which k cells have room for their part, from the index.

**Pure** in its answers; follows the rooms of the nodes in place.

A bin is a node with one set of k of its cells. Its rows are the node's, and two more that must fit: the
least vcpu and memory that a cell of the set has free. So a node fits exactly if one of its bins does, it is
scored as any other, and of equal nodes the one with the fuller cells wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from cext.index import FleetIndex
from cumulet.resources import Resources
from scheduler.topology import Cell, part

BINS_MAX: Final = 16_384  # of one node: 16 cells, 8 at once are 12,870


@dataclass(frozen=True, slots=True)
class Node:
    """A node with cells as it is now: amounts in the order of the index, the cells' room."""

    free: Sequence[int]
    size: Sequence[int]
    cells: Sequence[Cell]
    attribute: int
    rank: int


class CellSets:
    """An index of bins for each number of cells that was asked for; `look` says what a slot's node is now."""

    def __init__(self, new_index: Callable[[], FleetIndex], look: Callable[[int], Node | None]) -> None:
        self._new_index = new_index
        self._look = look
        self._bins: dict[int, Bins] = {}

    def touch(self, slot: int) -> None:
        """The node's room has changed, or the node itself."""
        for bins in self._bins.values():
            bins.dirty.add(slot)

    def bins(self, count: int, slots: Iterable[int], allowed: Iterable[tuple[int, int]]) -> Bins:
        """The bins for that many cells, up to date. `slots`: the nodes with cells; `allowed`: all pairs."""
        found = self._bins.get(count)
        if found is None:
            found = self._bins[count] = Bins(self._new_index(), count)
            found.dirty.update(slots)
            for constraint, attribute in allowed:
                found.index.set_eligible(constraint, attribute, True)
        for slot in found.dirty:
            found.put(slot, self._look(slot))
        found.dirty.clear()
        return found

    def allow(self, constraint: int, attribute: int) -> None:
        """The pair has become eligible."""
        for bins in self._bins.values():
            bins.index.set_eligible(constraint, attribute, True)


class Bins:
    """Bins of `count` cells."""

    def __init__(self, index: FleetIndex, count: int) -> None:
        self.index = index
        self.count = count
        self.dirty: set[int] = set()
        self._of_slot: dict[int, list[int]] = {}
        self._vacant: list[int] = []
        self._slot_of: list[int] = []
        self._shapes: dict[tuple[Resources, int], int] = {}

    def put(self, slot: int, node: Node | None) -> None:
        """Set the bins of a node anew."""
        if node is None:
            for bin_ in self._of_slot.pop(slot, ()):
                self.index.remove_node(bin_)
                self._vacant.append(bin_)
            return
        sets = list(combinations(node.cells, self.count))
        bins = self._of_slot.setdefault(slot, [])
        while len(bins) < len(sets):
            bins.append(self._new_bin(slot))
        for number, (bin_, chosen) in enumerate(zip(bins, sets, strict=True)):
            least = [min(cell.vcpu for cell in chosen), min(cell.memory_mib for cell in chosen)]
            rank = node.rank & ~(BINS_MAX - 1) | number
            self.index.set_node(bin_, [*node.free, *least], node.attribute, rank, [*node.size, *least])

    def _new_bin(self, slot: int) -> int:
        if self._vacant:
            bin_ = self._vacant.pop()
            self._slot_of[bin_] = slot
            return bin_
        self._slot_of.append(slot)
        return len(self._slot_of) - 1

    def shape(self, resources: Resources, amounts: Sequence[int], constraint: int) -> int:
        """The index's id for a request over the cells. `amounts`: its resources as the fleet has its rows."""
        key = (resources, constraint)
        if key not in self._shapes:
            least = [part(resources.vcpu, self.count), part(resources.memory_mib, self.count)]
            self._shapes[key] = self.index.add_shape([*amounts, *least], constraint)
        return self._shapes[key]

    def best(self, shape: int, excluded: Iterable[int], among: Iterable[int] | None) -> int:
        """The slot of the node with the best bin, -1 if none fits."""
        if among is not None:
            bins = [bin_ for slot in among for bin_ in self._of_slot.get(slot, ())]
            found = self.index.best_among(shape, bins)
        else:
            bins = [bin_ for slot in excluded for bin_ in self._of_slot.get(slot, ())]
            found = self.index.best_excluding(shape, bins) if bins else self.index.best(shape)
        return -1 if found < 0 else self._slot_of[found]
