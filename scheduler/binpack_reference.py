"""Vector bin packing in plain Python: the specification of `cext.binpack`.

**Pure** but for `free`, `room` and `chosen`, which are changed in place as the kernel does. Vectors are lists
of amounts here; the kernel's words hold the same amounts. Counts of steps are equal too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Final

Amounts = Sequence[int]

SHAKES: Final = 600
ODD: Final = 20
_WORD: Final = 2**64 - 1


def fits(free: Amounts, item: Amounts) -> bool:
    return all(want <= have for have, want in zip(free, item, strict=True))


def find_homeless_reference(
    items: Sequence[Amounts], free: Sequence[Amounts], eligible: Sequence[Amounts]
) -> int:
    """The first item that fits into no bin as it is, -1 if there is none."""
    for item, amounts in enumerate(items):
        if not any(eligible[item][bin] and fits(have, amounts) for bin, have in enumerate(free)):
            return item
    return -1


def pair_bound_reference(items: Sequence[Amounts], capacity: Amounts, order: Sequence[int]) -> int:
    """Bins of that capacity without which no packing exists: of items that never share a bin in threes."""
    kept: list[int] = []
    for item in order:
        if not any(share(items, capacity, (item, *pair)) for pair in itertools.combinations(kept, 2)):
            kept.append(item)
    partner: dict[int, int] = {}
    matched = sum(_augment(items, capacity, kept, item, partner, set()) for item in kept)
    return len(kept) - matched // 2


def share(items: Sequence[Amounts], capacity: Amounts, together: Sequence[int]) -> bool:
    """Whether one bin takes them all."""
    return fits(capacity, [sum(amounts) for amounts in zip(*(items[item] for item in together), strict=True)])


def _augment(
    items: Sequence[Amounts],
    capacity: Amounts,
    kept: Sequence[int],
    item: int,
    partner: dict[int, int],
    seen: set[int],
) -> bool:
    """Give the item a partner, moving others (Kuhn's bipartite matching)."""
    for other in kept:
        if other != item and other not in seen and share(items, capacity, (item, other)):
            seen.add(other)
            if other not in partner or _augment(items, capacity, kept, partner[other], partner, seen):
                partner[other] = item
                return True
    return False


def first_fit_reference(
    items: Sequence[Amounts],
    free: Sequence[list[int]],
    eligible: Sequence[Amounts],
    order: Sequence[int],
    chosen: list[int],
) -> int:
    """Put the items of `order` into the first bin that takes them, -1 if none does; the steps it took."""
    steps = 0
    for item in order:
        chosen[item] = -1
        for bin, have in enumerate(free):
            steps += 1
            if eligible[item][bin] and fits(have, items[item]):
                _add(have, items[item], -1)
                chosen[item] = bin
                break
    return steps


def fill_bins_reference(
    items: Sequence[Amounts],
    free: Sequence[list[int]],
    eligible: Sequence[Amounts],
    shares: Sequence[Amounts],
    room: Sequence[list[int]],
    weight: Amounts,
    nearest: bool,
    steps: int,
    chosen: list[int],
) -> int:
    """Fill one bin after the other, each time with the item that suits best; the steps it took."""
    chosen[:] = [-1] * len(items)
    spent = 0
    for bin, have in enumerate(free):
        while -1 in chosen and spent < steps:
            spent += len(items)
            able = [
                item
                for item, amounts in enumerate(items)
                if chosen[item] < 0 and eligible[item][bin] and fits(have, amounts)
            ]
            if not able:
                break
            scores = [_suit(shares[item], room[bin], weight, nearest) for item in able]
            best = able[scores.index(max(scores))]
            chosen[best] = bin
            _add(have, items[best], -1)
            _add(room[bin], shares[best], -1)
    return spent


def _suit(share: Amounts, room: Amounts, weight: Amounts, nearest: bool) -> int:
    if nearest:
        return -sum(w * (have - want) ** 2 for want, have, w in zip(share, room, weight, strict=True))
    return sum(w * want * have for want, have, w in zip(share, room, weight, strict=True))


def _add(amounts: list[int], other: Amounts, sign: int) -> None:
    for resource, amount in enumerate(other):
        amounts[resource] += sign * amount


class SearchReference:
    """`place_rest` of the kernel: throw out what costs least until all items have a bin.

    A bin's list begins with what was put there last, as the kernel's linked lists do.
    """

    def __init__(
        self,
        items: Sequence[Amounts],
        free: Sequence[list[int]],
        eligible: Sequence[Amounts],
        size: Amounts,
        chosen: list[int],
        seed: int,
    ) -> None:
        self.items, self.free, self.eligible, self.size = items, free, eligible, size
        self.chosen, self.cost, self.random = chosen, list(size), seed | 1
        self.held: list[list[int]] = [[] for _ in free]
        self.pool = [item for item, bin in enumerate(chosen) if bin < 0]
        for item, bin in enumerate(chosen):
            if bin >= 0:
                self._put(item, bin)
        self.spent = 0

    def run(self, steps: int) -> int:
        """Until the pool is empty or the steps are spent; the steps it took."""
        while self.pool and self.spent < steps:
            item = self.pool.pop()
            if not self._insert(item):
                self.cost[item] += 1
                self._throw_out(item)
                self._shake()
        return self.spent

    def _insert(self, item: int) -> bool:
        for bin in self._around():
            self.spent += 1
            if self._fits(item, bin):
                self._put(item, bin)
                return True
        return False

    def _throw_out(self, item: int) -> None:
        self.spent += len(self.items)
        cheapest = _Cheapest(self)
        for first, bin in enumerate(self.chosen):
            if bin >= 0 and self.cost[first] <= cheapest.cost and self._fits(item, bin, first):
                cheapest.offer(first)
        for first, bin in enumerate(self.chosen):
            if bin >= 0 and self.cost[first] < cheapest.cost and self.eligible[item][bin]:
                for second in self.held[bin][self.held[bin].index(first) + 1 :]:
                    self.spent += 1
                    if self._fits(item, bin, first, second):
                        cheapest.offer(first, second)
        if not cheapest.items:
            self._clear_room(item)
            return
        bin = self.chosen[cheapest.items[0]]
        for victim in cheapest.items:
            self._expel(victim)
        self._put(item, bin)

    def _clear_room(self, item: int) -> None:
        for bin in self._around():
            if self._fits(item, bin, *self.held[bin]):
                while not self._fits(item, bin):
                    self._expel(self.held[bin][0])
                self._put(item, bin)
                return
        self.pool.append(item)

    def _shake(self) -> None:
        self.spent += SHAKES
        for _ in range(SHAKES):
            one, other = self.below(len(self.items)), self.below(len(self.items))
            here, there = self.chosen[one], self.chosen[other]
            if min(here, there) >= 0 and here != there and self._widens(one, other):
                self._exchange(one, other)

    def _widens(self, one: int, other: int) -> bool:
        here, there = self.chosen[one], self.chosen[other]
        gain = self.size[other] - self.size[one]
        return gain * (self._load(here) - self._load(there) + gain) >= 0 or self.below(ODD) == 0

    def _exchange(self, one: int, other: int) -> None:
        here, there = self.chosen[one], self.chosen[other]
        if self._fits(other, here, one) and self._fits(one, there, other):
            self._take(one)
            self._take(other)
            self._put(one, there)
            self._put(other, here)
        elif self._fits(one, there):
            self._take(one)
            self._put(one, there)

    def _load(self, bin: int) -> int:
        return sum(self.size[item] for item in self.held[bin])

    def _fits(self, item: int, bin: int, *without: int) -> bool:
        free = list(self.free[bin])
        for other in without:
            _add(free, self.items[other], 1)
        return bool(self.eligible[item][bin]) and fits(free, self.items[item])

    def _put(self, item: int, bin: int) -> None:
        self.chosen[item] = bin
        self.held[bin].insert(0, item)
        _add(self.free[bin], self.items[item], -1)

    def _take(self, item: int) -> None:
        bin, self.chosen[item] = self.chosen[item], -1
        self.held[bin].remove(item)
        _add(self.free[bin], self.items[item], 1)

    def _expel(self, item: int) -> None:
        self._take(item)
        self.pool.append(item)

    def _around(self) -> list[int]:
        """All bins, from a random one around."""
        start = self.below(len(self.free))
        return [*range(start, len(self.free)), *range(start)]

    def below(self, limit: int) -> int:
        """A random number of 0..limit-1: xorshift64*, its upper half scaled."""
        self.random ^= self.random >> 12
        self.random = (self.random ^ self.random << 25) & _WORD
        self.random ^= self.random >> 27
        return ((self.random * 0x2545F4914F6CDD1D & _WORD) >> 32) * limit >> 32


class _Cheapest:
    """The offer of the smallest cost; of equal ones each is as likely."""

    def __init__(self, search: SearchReference) -> None:
        self._search, self._equals = search, 0
        self.cost: float = math.inf
        self.items: tuple[int, ...] = ()

    def offer(self, *items: int) -> None:
        cost = sum(self._search.cost[item] for item in items)
        if cost > self.cost:
            return
        self._equals = 1 if cost < self.cost else self._equals + 1
        self.cost = cost
        if self._equals == 1 or self._search.below(self._equals) == 0:
            self.items = items
