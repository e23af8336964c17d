"""A FleetIndex and its specification side by side: every change goes to both, every answer is compared.

**Pure** but for the pair itself, changed in place. Choices are small integers, so that failures shrink.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from cext.index import FleetIndex
from scheduler.reference import INT64_MAX, INT64_MIN, Node, Potential, ReferenceIndex, Scale, Scoring

SLOTS: Final = 12
SHAPES: Final = 6
CSETS, ATTRS = 2, 3
TIMES: Final = (None, 0, 3_600, 3_601, 40_000, 400_000, 10_000_000)  # around the edges of levels
POTENTIAL: Final = (0, 3, -2, 5, 1, 1, -4, 7)

Amounts = tuple[int, ...]


@dataclass(frozen=True)
class Setting:
    """What an index is made with. `largest`: amounts are around it; few distinct ones make ties."""

    rows: int
    norm: str
    largest: int
    unscored: int  # bit r: resource r has no weight
    lanes_max: int
    filters: str

    @property
    def lifetimes(self) -> bool:
        return self.norm == "slots" and self.unscored != 1  # with and without

    def scoring(self) -> Scoring:
        scales = tuple(
            Scale.of(max(1, self.largest >> (r % 2)), (1.0, 1 / 16, 1 / 3)[r % 3]) for r in range(self.rows)
        )
        scored = tuple(not self.unscored >> r & 1 for r in range(self.rows))
        potential = (
            Potential((0,), (max(1, self.largest // 6),), POTENTIAL) if self.norm == "potential" else None
        )
        return Scoring(scales, scored, self.norm, potential, self.most() if self.norm == "slots" else ())

    def most(self) -> Amounts:
        return tuple(max(1, self.largest >> (r % 2)) for r in range(self.rows))

    def amounts(self, choice: int, lowest: int, highest: int) -> Amounts:
        """Decoded from one number, resource by resource."""
        span = [lowest, highest, *(lowest + (highest - lowest) * part // 4 for part in range(1, 4)), 0, 1]
        return tuple(span[choice // 7**r % 7] for r in range(self.rows))


def index_of(setting: Setting) -> FleetIndex:
    """An empty index."""
    scoring = setting.scoring()
    found = scoring.potential
    index = FleetIndex(
        [scale.multiplier for scale in scoring.scales],
        [scale.shift for scale in scoring.scales],
        scoring.scored,
        norm=scoring.norm,
        potential=(found.resources, found.steps, found.values) if found else None,
        lanes_max=setting.lanes_max,
        largest=scoring.largest or None,
        lifetimes=setting.lifetimes,
    )
    index.filters = setting.filters
    return index


def rank_of(slot: int) -> int:
    """Pairs of ranks share their high half, so that the whole rank must decide."""
    return (slot * 0x9E3779B9 >> 1 & 7) << 32 | slot * 7 % 13


@dataclass
class Pair:
    setting: Setting
    index: FleetIndex = field(init=False)
    reference: ReferenceIndex = field(init=False)
    placed: list[tuple[int, int]] = field(default_factory=list)
    marks: list[tuple[dict[int, Node], Counter[Amounts], list[tuple[int, int]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.index = index_of(self.setting)
        self.reference = ReferenceIndex(self.setting.scoring(), lifetimes=self.setting.lifetimes)
        for side in (self.index, self.reference):
            for pair in range(CSETS * ATTRS - 1):
                side.set_eligible(pair % CSETS, pair // CSETS, True)

    # ---- changes

    def both(self, call: Callable[[FleetIndex | ReferenceIndex], object]) -> object:
        """The common result, or None where both refuse."""
        results: list[object] = []
        for side in (self.index, self.reference):
            try:
                results.append(call(side))
            except ValueError:
                results.append("refused")
        assert results[0] == results[1]
        return None if results[0] == "refused" else results[0]

    def set_node(self, slot: int, choice: int) -> None:
        lowest = INT64_MIN if self.setting.largest == INT64_MAX else -1
        free = self.setting.amounts(choice, lowest, self.setting.largest)
        attr = choice % (ATTRS + 1) - 1
        size = free if choice % 3 == 0 else self.setting.amounts(choice // 5, 0, self.setting.largest)
        until_s = TIMES[choice % len(TIMES)]
        self.both(lambda side: side.set_node(slot, free, attr, rank_of(slot), size, until_s))

    def remove_node(self, slot: int, _: int) -> None:
        self.both(lambda side: side.remove_node(slot))

    def set_attr(self, slot: int, choice: int) -> None:
        self.both(lambda side: side.set_attr(slot, choice % (ATTRS + 1) - 1))

    def set_eligible(self, slot: int, choice: int) -> None:
        self.both(lambda side: side.set_eligible(slot % CSETS, choice % ATTRS, choice % 5 > 1))

    def set_time(self, slot: int, choice: int) -> None:
        if self.setting.lifetimes:
            at_s = TIMES[choice % len(TIMES)] or slot
            self.both(lambda side: side.set_time(at_s))

    def count(self, slot: int, choice: int) -> None:
        """Instances of a demand that no shape need have come or gone."""
        if self.setting.norm == "slots":
            demand = self.setting.amounts(choice, 0, max(1, self.setting.largest // 2))
            change = (1, -1, 15, 16, 300)[slot % 5]
            self.index.count(self.index.add_kind(demand), change)
            self.reference.count(demand, change)

    def add_shape(self, slot: int, choice: int) -> None:
        if len(self.reference.shapes) < SHAPES:
            demand = self.setting.amounts(choice, 0, max(1, self.setting.largest // 2))
            self.both(lambda side: side.add_shape(demand, slot % CSETS, 1 + choice % 4))

    def place(self, _: int, choice: int) -> None:
        if self.reference.shapes:
            shape = choice % len(self.reference.shapes)
            slot = self.both(lambda side: side.place(shape))
            if isinstance(slot, int) and slot >= 0:
                self.placed.append((slot, shape))

    def release(self, _: int, choice: int) -> None:
        if self.placed:
            slot, shape = self.placed.pop(choice % len(self.placed))
            self.both(lambda side: side.release(slot, shape))

    def take(self, slot: int, choice: int) -> None:
        amounts = self.setting.amounts(choice, 0, self.setting.largest)
        self.both(lambda side: side.take(slot, amounts))

    def give(self, slot: int, choice: int) -> None:
        amounts = self.setting.amounts(choice, 0, self.setting.largest)
        self.both(lambda side: side.give(slot, amounts))

    # ---- journal

    def mark(self, _: int, __: int) -> None:
        assert self.index.mark() == len(self.marks)
        reference = self.reference
        self.marks.append((dict(reference.nodes), reference.counts.copy(), list(self.placed)))

    def rollback(self, _: int, choice: int) -> None:
        if self.marks:
            which = choice % len(self.marks)
            self.index.rollback(which)
            self.reference.nodes, self.reference.counts, self.placed = self.marks[which]
            del self.marks[which:]

    def keep(self, _: int, choice: int) -> None:
        if self.marks:
            which = choice % len(self.marks)
            self.index.keep(which)
            del self.marks[which:]

    # ---- comparison

    def compare(self, slots: Sequence[int]) -> None:
        """Every question for every shape."""
        assert len(self.index) == len(self.reference.nodes)
        for shape in range(len(self.reference.shapes)):
            self.both(lambda side, shape=shape: side.best(shape))  # type: ignore[misc]
            self.both(lambda side, shape=shape: side.best_excluding(shape, slots))  # type: ignore[misc]
            self.both(lambda side, shape=shape: side.best_among(shape, slots))  # type: ignore[misc]
            self.both(lambda side, shape=shape: side.rank(shape, 1 + len(slots)))  # type: ignore[misc]
            self.both(lambda side, shape=shape: side.fitting_count(shape))  # type: ignore[misc]
            assert self.index.scan(shape) == self.reference.best(shape)
            for slot, node in self.reference.nodes.items():
                assert self.index.free_at(slot) == node.free
                assert self.index.attr_at(slot) == node.attr
                self._compare_keys(shape, slot)

    def _compare_keys(self, shape: int, slot: int) -> None:
        """The index pads what is free with zero rows, the same for every node."""
        found, expected = self.index.key(shape, slot), self.reference.key(shape, slot)
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert found[0] == expected[0]
            assert found[2] == expected[2]

    def rebuilt(self) -> FleetIndex:
        """A new index of the same state, made in another order."""
        index = index_of(self.setting)
        for shape in self.reference.shapes:
            index.add_shape(*shape)
        for slot, node in sorted(self.reference.nodes.items(), reverse=True):
            if node.empty or self.setting.norm != "slots":
                index.set_nodes(
                    np.array([node.free], np.int64),
                    np.array([node.attr], np.int32),
                    np.array([node.rank], np.uint64),
                    slot,
                )
            else:
                index.set_node(slot, node.free, node.attr, node.rank, node.size, node.until_s)
        for cset, attr in sorted(self.reference.eligible):
            index.set_eligible(cset, attr, True)
        if self.setting.lifetimes:
            index.set_time(self.reference.now_s)
        if self.setting.norm == "slots":
            for demand, count in self.reference.counts.items():
                index.count(index.add_kind(demand), count)
        return index


CHANGES: Final[tuple[Callable[[Pair, int, int], None], ...]] = (
    Pair.place,
    Pair.place,
    Pair.release,
    Pair.set_node,
    Pair.add_shape,
    Pair.count,
    Pair.set_time,
    Pair.remove_node,
    Pair.set_attr,
    Pair.set_eligible,
    Pair.take,
    Pair.give,
    Pair.mark,
    Pair.rollback,
    Pair.keep,
)
# While a mark is open these are refused by the index (RuntimeError), which has its own test.
NOT_UNDONE: Final = (Pair.count, Pair.set_time, Pair.set_node, Pair.remove_node, Pair.set_eligible)
