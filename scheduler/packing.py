"""The `slots` score: place where the fewest typical requests lose their room.

**Pure**: integer arithmetic on immutable tables; only `Mix` counts, and says so.

A node's potential is the weighted number of requests of each typical shape that would fit into what it has
free, each shape taken alone. A placement costs what it takes of that potential: it goes where the rest still
divides well into what is asked for, so a hole of 8 vcpu is not broken for 1 while a hole of 1 is there, and
vcpu is not left without the memory that goes with it. Best fit decides by size alone and cannot tell these
apart. Source: the fragmentation gradient of Weng et al., ATC'23, for counts of whole requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Final

AMOUNT_MAX: Final = 1 << 40  # of a resource; products of amounts and scales stay within 64 bits
TYPICAL_MAX: Final = 32  # shapes in a table; a score costs two divisions a shape and resource
POTENTIAL: Final = 1 << 24  # of an empty node, about
LEAN: Final = POTENTIAL // 32  # weight of the largest share left: decides between equal losses
# While the nodes in use have room to spare, fuller nodes are preferred more, so that others drain.
LEAN_IDLE: Final = POTENTIAL // 4
IDLE: Final = 983  # of 1024: below this share of the nodes in use, in every resource, there is room to spare
EMPTY_LAST: Final = POTENTIAL * 4  # above any other difference: a node is opened when no open one fits
REFRESH: Final = 4096  # requests after which the mix is read anew; at powers of two before


class PackingError(ValueError):
    """A capacity or demand that a table cannot be made of. The message names the entry and the limit."""


@dataclass(frozen=True, slots=True)
class TypicalShape:
    """A demand that is often asked for, and what room for one of it is worth."""

    demand: tuple[int, ...]
    weight: int


@dataclass(frozen=True, slots=True)
class PackingTable:
    """Scores of placements on nodes that are at most `capacity` large."""

    capacity: tuple[int, ...]
    typical: tuple[TypicalShape, ...]

    def potential(self, free: Sequence[int]) -> int:
        """What the room in `free` is worth; grows with every amount."""
        return sum(shape.weight * slots(free, shape.demand) for shape in self.typical)

    def score(self, free: Sequence[int], demand: Sequence[int], *, empty: bool, idle: bool = False) -> int:
        """The cost of placing `demand`, which fits, into `free`: smallest is best. Below 2**27.

        `empty`: nothing is on the node. `idle`: the fleet `is_idle`.

        Equal scores are for the caller: by the sum of the shares left, then by the free amounts.
        """
        after = [have - want for have, want in zip(free, demand, strict=True)]
        lean = LEAN_IDLE if idle else LEAN
        left = max(amount * lean // most for amount, most in zip(after, self.capacity, strict=True))
        return self.potential(free) - self.potential(after) + left + (EMPTY_LAST if empty else 0)


def slots(free: Sequence[int], demand: Sequence[int]) -> int:
    """How many of `demand` fit into `free`, alone."""
    return min(have // want for have, want in zip(free, demand, strict=True) if want > 0)


def build_table(capacity: Sequence[int], counts: Counter[tuple[int, ...]]) -> PackingTable:
    """The table for a mix of demands, by how often each was seen.

    A shape weighs the fourth root of its count (rare large shapes need their room kept, too) times the share
    of a node that it takes, so an empty node's room is worth as much for a large as for a small shape.
    Shapes that do not fit into `capacity` have no weight. Raises PackingError.
    """
    _check_amounts("capacity", capacity, least=1)
    rated = []
    for demand, count in counts.items():
        _check_amounts("demand", demand, least=0)
        fit = slots(capacity, demand) if any(demand) else 0
        if fit and count > 0:
            rated.append((isqrt(isqrt(count << 80)) * POTENTIAL // fit, fit, demand))
    rated.sort(key=lambda entry: (-entry[0] * entry[1], entry[2]))
    rated = rated[:TYPICAL_MAX]
    total = sum(rate * fit for rate, fit, _ in rated)
    typical = (TypicalShape(demand, rate * POTENTIAL // total) for rate, _, demand in rated)
    return PackingTable(tuple(capacity), tuple(typical))


def is_idle(allocated: Sequence[int], capacity: Sequence[int], nodes_in_use: int) -> bool:
    """Whether the nodes in use have room to spare."""
    return all(
        amount < nodes_in_use * (most * IDLE // 1024)
        for amount, most in zip(allocated, capacity, strict=True)
    )


class Mix:
    """What has been asked for so far. `learn` changes it in place."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[int, ...]] = Counter()
        self.seen = 0

    def learn(self, demand: Sequence[int]) -> bool:
        """Count a request; True when the table should be built anew (`is_refresh`)."""
        self.counts[tuple(demand)] += 1
        self.seen += 1
        return is_refresh(self.seen)


def is_refresh(seen: int) -> bool:
    """After 1, 2, 4, ... requests, and after every `REFRESH`: a function of the count alone."""
    return seen > 0 and (seen & (seen - 1) == 0 or seen % REFRESH == 0)


def _check_amounts(name: str, amounts: Sequence[int], least: int) -> None:
    for index, amount in enumerate(amounts):
        if not least <= amount <= AMOUNT_MAX:
            raise PackingError(f"{name}[{index}] is {amount}, must be {least} to {AMOUNT_MAX}")
