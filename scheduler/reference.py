"""Which node is best for a shape, in plain Python: the specification of `cext.index`.

**Pure** but for `ReferenceIndex`, which is changed in place as the kernel is. It judges every node anew for
every question, so its answers depend on the state alone; `cext.index` must give the same ones on every state.

Source: best fit by norms of the remainder, Panigrahy, Talwar, Uyeda, Wieder: Heuristics for Vector Bin
Packing, 2011. A rise of a potential as score: Weng et al., USENIX ATC 2023, for GPU fragments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Final

from scheduler.packing import (
    LEAN_SHIFT,
    LEAN_SHIFT_IDLE,
    LEVEL_LAST,
    POTENTIAL,
    SCORE_BITS,
    STEP,
    PackingTable,
    build_table,
    end_s,
    has_nodes_to_spare,
    is_idle,
    later,
    level_of,
)

UNIT_TOP: Final = 1 << 28
SUM_BITS: Final = 35  # a sum of the unit forms of 56 resources
SUM_TOP: Final = (1 << SUM_BITS) - 1
SHIFT_MAX: Final = 63
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
NORMS: Final = ("linf", "l1", "l2", "worst", "dot", "potential", "slots")

Order = tuple[int, tuple[int, ...], int]


@dataclass(frozen=True, slots=True)
class Scale:
    """The unit form of an amount: min(max(amount, 0) * multiplier >> shift, UNIT_TOP)."""

    multiplier: int
    shift: int

    @classmethod
    def of(cls, largest: int, share: float = 1.0) -> Scale:
        """`largest` becomes share * UNIT_TOP, exactly if share is 1; 0 < share <= 1, 0 < largest < 2**63."""
        exact = Fraction(share) * UNIT_TOP / largest
        shift = min(SHIFT_MAX, max(0, 62 - (exact.numerator // exact.denominator).bit_length()))
        multiplier = -(-(exact.numerator << shift) // exact.denominator)
        return cls(min(max(multiplier, 1), INT64_MAX), shift)

    def unit(self, amount: int) -> int:
        return min(max(amount, 0) * self.multiplier >> self.shift, UNIT_TOP)


@dataclass(frozen=True, slots=True)
class Potential:
    """The value of what is free: values[x0 // steps[0]][x1 // steps[1]].., the last value beyond the end."""

    resources: tuple[int, ...]
    steps: tuple[int, ...]
    values: object  # nested sequences of int, |value| < 2**30

    def at(self, free: Sequence[int]) -> int:
        value = self.values
        for resource, step in zip(self.resources, self.steps, strict=True):
            assert isinstance(value, Sequence)
            value = value[min(max(free[resource], 0) // step, len(value) - 1)]
        assert isinstance(value, int)
        return value


@dataclass(frozen=True, slots=True)
class Crowd:
    """What all nodes say together, for the norm `slots`: what is typical, and if there is room to spare.

    `patient`: lifetimes count.
    """

    table: PackingTable
    idle: bool
    patient: bool = False


@dataclass(frozen=True, slots=True)
class Scoring:
    """How nodes are compared; `scored` resources have terms, the others must only fit.

    `largest`: the most that a node has of each resource, for the norm `slots`.
    """

    scales: tuple[Scale, ...]
    scored: tuple[bool, ...]
    norm: str = "linf"
    potential: Potential | None = None
    largest: tuple[int, ...] = ()

    def key(
        self,
        free: Sequence[int],
        demand: Sequence[int],
        crowd: Crowd | None = None,
        empty: bool = False,
        steps: int = 0,
    ) -> int:
        """The smaller the better. The demand fits, so that no term is negative.

        The norm `slots` wants the crowd, whether nothing runs on the node, and by how many levels of time the
        demand would outlive what runs there.
        """
        terms, product = [], 0
        for have, want, scale, scored in zip(free, demand, self.scales, self.scored, strict=True):
            if scored:
                terms.append(scale.unit(have) - scale.unit(want))
                product += scale.unit(have) * scale.unit(want)
        most, total = max(terms, default=0), sum(terms)
        match self.norm:
            case "linf":
                return most << SUM_BITS | total
            case "l1":
                return total
            case "l2":
                return sum(term * term for term in terms)
            case "worst":
                return (UNIT_TOP - most) << SUM_BITS | (SUM_TOP - total)
            case "dot":
                return (1 << 63) - product
            case "slots":
                assert crowd is not None
                lean = POTENTIAL >> (LEAN_SHIFT_IDLE if crowd.idle else LEAN_SHIFT)
                late = steps * STEP if crowd.patient else 0
                score = crowd.table.loss(free, demand) + most * lean // UNIT_TOP + late
                return (empty << SCORE_BITS | score) << SUM_BITS | total
        assert self.potential is not None
        after = [have - want for have, want in zip(free, demand, strict=True)]
        rise = self.potential.at(after) - self.potential.at(free)
        return (rise + 2**31) << 32 | total >> (SUM_BITS - 32)

    def ordered(self, amounts: Sequence[int]) -> tuple[int, ...]:
        """Amounts as ties are compared: those of scored resources first."""
        rows = sorted(range(len(amounts)), key=lambda row: not self.scored[row])
        return tuple(amounts[row] for row in rows)


@dataclass(frozen=True, slots=True)
class Node:
    """`attr`: what it is but for its amounts, -1 = takes nothing; `rank`: canonical order of equals.

    `size`: what it has when nothing runs on it; `until_s`: when what runs there will have gone, None: nobody
    knows.
    """

    free: tuple[int, ...]
    attr: int
    rank: int
    size: tuple[int, ...] = ()
    until_s: int | None = None

    @property
    def empty(self) -> bool:
        return self.free == self.size


@dataclass(slots=True)
class ReferenceIndex:
    """The same questions and changes as `cext.index.FleetIndex`, without its speed."""

    scoring: Scoring
    nodes: dict[int, Node] = field(default_factory=dict)
    lifetimes: bool = False
    now_s: int = 0
    shapes: list[tuple[tuple[int, ...], int, int]] = field(default_factory=list)  # demand, cset, level
    eligible: set[tuple[int, int]] = field(default_factory=set)
    counts: Counter[tuple[int, ...]] = field(default_factory=Counter)  # of what runs, by demand

    # ---- state

    def set_node(
        self,
        slot: int,
        free: Sequence[int],
        attr: int,
        rank: int,
        size: Sequence[int] = (),
        until_s: int | None = None,
    ) -> None:
        self.nodes[slot] = Node(tuple(free), attr, rank, tuple(size), until_s)

    def remove_node(self, slot: int) -> None:
        self._node(slot)
        del self.nodes[slot]

    def set_attr(self, slot: int, attr: int) -> None:
        self.nodes[slot] = replace(self._node(slot), attr=attr)

    def set_eligible(self, cset: int, attr: int, eligible: bool) -> None:
        if eligible:
            self.eligible.add((cset, attr))
        else:
            self.eligible.discard((cset, attr))

    def set_time(self, at_s: int) -> None:
        self.now_s = at_s

    def add_shape(self, demand: Sequence[int], cset: int = 0, level: int = LEVEL_LAST) -> int:
        shape = (tuple(demand), cset, level)
        if min(demand) < 0:
            raise ValueError(f"demand {demand} is negative")
        if shape not in self.shapes:
            self.shapes.append(shape)
        return self.shapes.index(shape)

    def take(self, slot: int, amounts: Sequence[int]) -> None:
        self._change(slot, [-amount for amount in amounts])

    def give(self, slot: int, amounts: Sequence[int]) -> None:
        self._change(slot, amounts)

    def count(self, demand: Sequence[int], change: int) -> None:
        self.counts[tuple(demand)] += change

    def release(self, slot: int, shape: int) -> None:
        demand = self.shapes[shape][0]
        self.give(slot, demand)
        self.count(demand, -1)

    def place(self, shape: int) -> int:
        slot = self.best(shape)
        if slot >= 0:
            demand, _, level = self.shapes[shape]
            node, end = self.nodes[slot], end_s(self.now_s, level)
            self.take(slot, demand)
            until_s = end if node.empty else later(node.until_s, end)
            self.nodes[slot] = replace(self.nodes[slot], until_s=until_s)
            self.count(demand, 1)
        return slot

    def _node(self, slot: int) -> Node:
        if slot not in self.nodes:
            raise ValueError(f"slot {slot} has no node")
        return self.nodes[slot]

    def _change(self, slot: int, amounts: Sequence[int]) -> None:
        node = self._node(slot)
        free = tuple(have + amount for have, amount in zip(node.free, amounts, strict=True))
        if not all(INT64_MIN <= amount <= INT64_MAX for amount in free):
            raise ValueError(f"slot {slot}: what is free would leave 64 bits")
        self.nodes[slot] = replace(node, free=free)

    # ---- questions

    def crowd(self) -> Crowd:
        """As it is now."""
        taking = [node for node in self.nodes.values() if node.attr >= 0]
        used = [(node.free, node.size) for node in taking if not node.empty]
        patient = self.lifetimes and has_nodes_to_spare(used, [node.size for node in taking])
        return Crowd(build_table(self.scoring.largest, self.counts), is_idle(used), patient)

    def _steps(self, node: Node, level: int) -> int:
        if node.empty:
            return 0
        left_s = None if node.until_s is None else node.until_s - self.now_s
        return max(level - level_of(left_s), 0)

    def fits(self, shape: int, slot: int) -> bool:
        """A resource that is not asked for does not matter, even where it is overcommitted."""
        demand, cset, _ = self.shapes[shape]
        node = self.nodes[slot]
        return (cset, node.attr) in self.eligible and all(
            want == 0 or have >= want for have, want in zip(node.free, demand, strict=True)
        )

    def key(self, shape: int, slot: int) -> Order | None:
        """What nodes are compared by: the score, what is free, the rank."""
        node = self._node(slot)
        if not self.fits(shape, slot):
            return None
        demand, _, level = self.shapes[shape]
        crowd = self.crowd() if self.scoring.norm == "slots" else None
        score = self.scoring.key(node.free, demand, crowd, node.empty, self._steps(node, level))
        return score, self.scoring.ordered(node.free), node.rank

    def rank(self, shape: int, count: int) -> list[tuple[int, int]]:
        """(slot, score) of the best nodes in order."""
        orders = ((self.key(shape, slot), slot) for slot in self.nodes)
        found = sorted((order, slot) for order, slot in orders if order is not None)
        return [(slot, order[0]) for order, slot in found[:count]]

    def best(self, shape: int) -> int:
        return self.best_among(shape, self.nodes)

    def best_excluding(self, shape: int, slots: Iterable[int]) -> int:
        return self.best_among(shape, self.nodes.keys() - set(slots))

    def best_among(self, shape: int, slots: Iterable[int]) -> int:
        orders = ((self.key(shape, slot), slot) for slot in slots if slot in self.nodes)
        return min(((order, slot) for order, slot in orders if order is not None), default=(None, -1))[1]

    def fitting_count(self, shape: int) -> int:
        return sum(self.fits(shape, slot) for slot in self.nodes)
