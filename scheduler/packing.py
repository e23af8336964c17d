"""The `slots` score: place where the fewest typical requests lose their room.

**Pure**: integer arithmetic on immutable tables.

A node's potential is the weighted number of requests of each typical shape that would fit into what it has
free, each shape taken alone. A placement costs what it takes of that potential: it goes where the rest still
divides well into what is asked for, so a hole of 8 vcpu is not broken for 1 while a hole of 1 is there, and
vcpu is not left without the memory that goes with it. Best fit decides by size alone and cannot tell these
apart. Source: the fragmentation gradient of Weng et al., ATC'23, for counts of whole requests.

What is typical is read off what runs: a function of the state like everything that decides. Counts enter by
powers of 16 only, so that over 500,000 arrivals and departures the table changes a few hundred times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

AMOUNT_MAX: Final = 1 << 40  # of a resource of the largest node; above it, quotients of doubles are not exact
TYPICAL_MAX: Final = 32  # shapes in a table; a score costs as many divisions a resource
POTENTIAL: Final = 1 << 24  # of a node of the largest amounts, about
LEAN_SHIFT: Final = 5  # the largest share left weighs POTENTIAL / 32: it decides between equal losses
# While the nodes in use have room to spare, fuller nodes are preferred more, so that others drain.
LEAN_SHIFT_IDLE: Final = 2
IDLE: Final = 983  # of 1024: below this share of the nodes in use, in every resource, there is room to spare
PATIENT: Final = 952  # of 1024: with more of all nodes allocated, lifetimes do not count
EDGES_S: Final = (0, 3_600, 36_000, 360_000)  # of the levels of time that is left, but the last
LEVEL_LAST: Final = len(EDGES_S)
TICK_S: Final = 600  # a sixth of the shortest level; every node is looked at once in a tick
STEP: Final = POTENTIAL // 16  # of a score, for each level by which an instance outlives its node
SCORE_BITS: Final = 27  # of a score; beyond them counts that nothing runs on the node
RATE_BITS: Final = 4  # counts are told apart by powers of 16; each doubles a shape's weight

Amounts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TypicalShape:
    """A demand that is often met, and what room for one of it is worth."""

    demand: Amounts
    weight: int


@dataclass(frozen=True, slots=True)
class PackingTable:
    """What room is worth on nodes of at most `largest`; more than that counts for no more."""

    largest: Amounts
    typical: tuple[TypicalShape, ...]

    def potential(self, free: Sequence[int]) -> int:
        """What the room in `free` is worth; grows with every amount, at most POTENTIAL."""
        within = [min(max(have, 0), most) for have, most in zip(free, self.largest, strict=True)]
        return sum(shape.weight * slots(within, shape.demand) for shape in self.typical)

    def loss(self, free: Sequence[int], demand: Sequence[int]) -> int:
        """What placing `demand` takes of the room in `free`."""
        after = [have - want for have, want in zip(free, demand, strict=True)]
        return self.potential(free) - self.potential(after)


def slots(free: Sequence[int], demand: Sequence[int]) -> int:
    """How many of `demand`, which wants something, fit into `free`, alone."""
    return min(have // want for have, want in zip(free, demand, strict=True) if want > 0)


def rate(count: int) -> int:
    """What a shape weighs for how often it is there: the fourth root of the power of 16 below; 0 for none.

    Rare large shapes need their room kept, too; and a count that goes up and down seldom changes its rate.
    """
    return 1 << (count.bit_length() - 1) // RATE_BITS if count > 0 else 0


def build_table(largest: Sequence[int], counts: Mapping[Amounts, int]) -> PackingTable:
    """The table for a mix of demands, by how often each is there.

    A shape weighs its rate times the share of a node that it takes, so an empty node's room is worth as much
    for a large as for a small shape. Shapes that do not fit into the largest amounts have no weight. Of more
    shapes than the table has room for, those of the highest rate stay, of these the largest.
    """
    within = tuple(min(most, AMOUNT_MAX) for most in largest)
    rated = []
    for demand, count in counts.items():
        fit = slots(within, demand) if any(demand) else 0
        if fit and rate(count):
            rated.append((-rate(count), fit, demand))
    rated = sorted(rated)[:TYPICAL_MAX]
    total = -sum(negative for negative, _, _ in rated)
    typical = (
        TypicalShape(demand, -negative * POTENTIAL // (total * fit)) for negative, fit, demand in rated
    )
    return PackingTable(within, tuple(typical))


def is_idle(nodes: Iterable[tuple[Sequence[int], Sequence[int]]]) -> bool:
    """Whether nodes have room to spare in every resource. `nodes`: (free, size) of those in use."""
    by_resource = zip(*(zip(free, size, strict=True) for free, size in nodes), strict=True)
    sums = [tuple(map(sum, zip(*pairs, strict=True))) for pairs in by_resource]
    return all((size - free) * 1024 < size * IDLE for free, size in sums if size > 0)


def has_nodes_to_spare(
    used: Iterable[tuple[Sequence[int], Sequence[int]]], sizes: Iterable[Sequence[int]]
) -> bool:
    """Whether lifetimes count: when nearly all is allocated, only packing does.

    `used`: (free, size) of the nodes in use; `sizes`: of all that take instances.
    """
    taken = [tuple(a - b for a, b in zip(size, free, strict=True)) for free, size in used]
    whole = [sum(column) for column in zip(*sizes, strict=True)]
    allocated = [sum(column) for column in zip(*taken, strict=True)] or [0] * len(whole)
    return all(part * 1024 <= most * PATIENT for part, most in zip(allocated, whole, strict=True) if most > 0)


def coarse(at_s: int) -> int:
    """The time as it counts: replicas whose clocks differ by little decide alike."""
    return at_s // TICK_S * TICK_S


def level_of(left_s: int | None) -> int:
    """The level of a time that is left; None: unknown, and so the highest. Buckets as in LAVA, MLSys'25."""
    if left_s is None:
        return LEVEL_LAST
    return next((level for level, edge in enumerate(EDGES_S) if left_s <= edge), LEVEL_LAST)


def lasts_level(lifetime_s: int | None) -> int:
    """The level of what comes now and is said to last so long: an hour at least."""
    return max(level_of(lifetime_s), 1)


def end_s(now_s: int, level: int) -> int | None:
    """When what comes now will have gone; None: unknown."""
    return None if level == LEVEL_LAST else now_s + EDGES_S[level]


def later(one: int | None, other: int | None) -> int | None:
    """The later of two times; an unknown one is the latest."""
    return None if one is None or other is None else max(one, other)
