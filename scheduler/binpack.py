"""Offline vector bin packing: a batch into as few bins as a search finds, or a gang into what is free.

**Pure**: arrays in, new arrays out. The same input, steps and seed give the same packing on every machine;
more steps never give a worse one. Callers turn deadlines into steps (`STEPS_PER_S`).

Source: the greedy packings are the item-centric and bin-centric ones of Panigrahy, Talwar, Uyeda, Wieder:
Heuristics for Vector Bin Packing, 2011. The search then closes one bin after the other: its items go where
others can be thrown out for them (`cext.binpack.place_rest`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from cext import binpack as kernel
from scheduler.binpack_bound import fewest_bins, fewest_by_pairs, fewest_of
from scheduler.binpack_problem import (
    EVERYWHERE,
    Bins,
    Ints,
    ItemTooLargeError,
    Mask,
    PackingError,
    Problem,
    build_problem,
)

__all__ = [
    "STEPS_PER_S",
    "ItemTooLargeError",
    "NoPackingFoundError",
    "PackingError",
    "lower_bound",
    "pack",
    "place_all",
]

STEPS_PER_S: Final = 60_000_000  # what one core of a small virtual machine does at least
STEPS_MAX: Final = 2**62  # counted in 64 bits
WEIGHT_BITS: Final = 10  # weights of resources are whole numbers of up to 2**10
# Spent on one choice of bins before the next is tried, where bins differ; twice as much in each round.
PATIENCE_STEPS: Final = 2_000_000
_SEED_MASK: Final = 2**64 - 1


class NoPackingFoundError(PackingError):
    """The given bins did not take all items within the steps, which does not prove that they cannot."""

    def __init__(self, item_count: int, bin_count: int, steps: int) -> None:
        super().__init__(
            f"no packing of {item_count} items into the {bin_count} bins was found in {steps} steps: "
            "give more bins or steps"
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """A packing, perhaps not of all items, and the steps that are left."""

    chosen: Bins  # int32[n], -1 = in no bin
    steps: int

    @property
    def missing(self) -> int:
        return int(np.count_nonzero(self.chosen < 0))

    @property
    def bins(self) -> Bins:
        """The bins that are used, in order."""
        used = np.unique(self.chosen)
        return used[used >= 0]

    def rank(self) -> tuple[int, int]:
        """Less is better."""
        return self.missing, len(self.bins)


def pack(items: Ints, bins: Ints, *, steps: int, seed: int = 0) -> Bins:
    """The bin of each item, int32[n], so that few bins are used.

    items int64[n, d], not negative. bins int64[d]: as many bins of that capacity as it takes, numbered from
    0 without a gap. Or bins int64[m, d]: what is free in each of m given bins, few of which get an item
    (negative = overcommitted: takes what asks for none of it). Raises ItemTooLargeError, PackingError,
    NoPackingFoundError (for given bins only).
    """
    _check_steps(steps)
    if bins.ndim != 1:
        return _pack_given(build_problem(items, bins), items, bins, steps, seed)
    problem = build_problem(items, np.tile(bins, (max(len(items), 1), 1)), alike=True)
    enough = fewest_bins(items, bins)
    found = _greedy(problem, steps, enough)
    if found.steps > 0 and len(found.bins) > enough:
        enough = max(enough, fewest_by_pairs(problem))
        found = _close_bins(problem, found, enough, seed)
    return np.unique(found.chosen, return_inverse=True)[1].astype(np.int32)


def place_all(
    items: Ints, free: Ints, *, steps: int, seed: int = 0, eligible: Mask | None = None
) -> Bins | None:
    """The bin of each item, int32[n], within what is free; None if the search found no such placement.

    items int64[n, d] and free int64[m, d] as in `pack`; eligible uint8[n, m]: 1 = the item may go to the bin.
    None proves nothing. Raises ItemTooLargeError (which does prove it), PackingError.
    """
    _check_steps(steps)
    problem = build_problem(items, free, EVERYWHERE if eligible is None else eligible)
    found = _complete(problem, _greedy(problem, steps, problem.bin_count), seed)
    return None if found.missing else found.chosen


def lower_bound(items: Ints, capacity: Ints) -> int:
    """A number of bins of that capacity, int64[d], below which no packing of items int64[n, d] exists.

    Raises ItemTooLargeError, PackingError.
    """
    problem = build_problem(items, capacity[None], alike=True)
    return max(fewest_bins(items, capacity), fewest_by_pairs(problem))


def _check_steps(steps: int) -> None:
    if not 0 <= steps <= STEPS_MAX:
        raise PackingError(f"steps is {steps}: must be 0 to {STEPS_MAX}")


def _pack_given(problem: Problem, items: Ints, free: Ints, steps: int, seed: int) -> Bins:
    enough = fewest_of(items, free)
    found = _complete(problem, _greedy(problem, steps, enough), seed)
    if found.missing:
        raise NoPackingFoundError(problem.item_count, problem.bin_count, steps)
    return _close_bins(problem, found, enough, seed).chosen


# --- greedy ---------------------------------------------------------------------------------------


def _greedy(problem: Problem, steps: int, enough: int) -> _Found:
    """The best of several greedy packings; ends with the first that needs `enough` bins or fewer.

    The first is made whatever the steps are, so that there always is a packing.
    """
    best = _first_fit(problem, problem.shares.max(axis=1, initial=0), steps)
    for found in _more_greedy(problem, best):
        best = _Found(min(best, found, key=_Found.rank).chosen, found.steps)
        if best.rank() <= (0, enough) or best.steps <= 0:
            break
    return best


def _more_greedy(problem: Problem, first: _Found) -> Iterator[_Found]:
    yield first
    weight = _weight(problem)
    found = first
    for key in (problem.shares @ weight, (problem.shares**2).sum(axis=1)):
        yield (found := _first_fit(problem, key, found.steps))
    for nearest in (False, True):
        yield (found := _fill_bins(problem, weight, nearest, found.steps))


def _weight(problem: Problem) -> Ints:
    """Of each resource, by how much of it is asked for; at least 1."""
    total = problem.shares.sum(axis=0)
    weight: Ints = np.maximum((total << WEIGHT_BITS) // max(int(total.max(initial=0)), 1), 1)
    return weight


def _first_fit(problem: Problem, key: Ints, steps: int) -> _Found:
    """Items in falling order of the key, each into the first bin that takes it."""
    order, chosen = np.argsort(-key, kind="stable").astype(np.int32), problem.nothing_chosen()
    if len(order):
        steps -= kernel.first_fit(
            problem.items, problem.guard, problem.free.copy(), problem.eligible, order, chosen
        )
    return _Found(chosen, steps)


def _fill_bins(problem: Problem, weight: Ints, nearest: bool, steps: int) -> _Found:
    """Bin after bin, each with the items that suit best what it has left."""
    chosen = problem.nothing_chosen()
    steps -= kernel.fill_bins(
        problem.items,
        problem.guard,
        problem.free.copy(),
        problem.eligible,
        problem.shares,
        problem.room.copy(),
        weight,
        nearest,
        steps,
        chosen,
    )
    return _Found(chosen, steps)


# --- search ---------------------------------------------------------------------------------------


def _complete(problem: Problem, found: _Found, seed: int) -> _Found:
    """Find bins for what is missing, among all of them."""
    if found.missing == 0 or found.steps <= 0:
        return found
    return _search(problem, found, np.arange(problem.bin_count, dtype=np.int32), found.steps, seed)


def _close_bins(problem: Problem, found: _Found, enough: int, seed: int) -> _Found:
    """Do with one bin less, again and again, until `enough` are used or the steps are spent."""
    attempt = 0
    while found.steps > 0 and len(found.bins) > enough:
        choices = _choices(problem, found)
        patience = found.steps if problem.alike else PATIENCE_STEPS << attempt // len(choices)
        choice = choices[attempt % len(choices)]
        tried = _search(problem, found, choice, min(patience, found.steps), seed + attempt)
        if tried.missing:
            found, attempt = _Found(found.chosen, tried.steps), attempt + 1
        else:
            found, attempt = tried, 0
    return found


def _choices(problem: Problem, found: _Found) -> list[Bins]:
    """Which bins to make do with: without the emptiest; where they differ also others, and the largest."""
    load = np.zeros(problem.bin_count, dtype=np.int64)
    np.add.at(load, found.chosen, problem.size)
    used = found.bins
    closing = used[np.argsort(load[used], kind="stable")]
    if problem.alike:
        return [used[used != closing[0]]]
    largest = np.argsort(-problem.room.sum(axis=1), kind="stable")[: len(used) - 1]
    return [np.sort(largest).astype(np.int32), *(used[used != bin] for bin in closing)]


def _search(problem: Problem, found: _Found, bins: Bins, steps: int, seed: int) -> _Found:
    """Pack into those bins alone, from what `found` has in them."""
    place = np.full(problem.bin_count + 1, -1, dtype=np.int32)  # the last is where -1 leads
    place[bins] = np.arange(len(bins), dtype=np.int32)
    chosen = place[found.chosen]
    spent = kernel.place_rest(
        problem.items,
        problem.guard,
        np.ascontiguousarray(problem.free[bins]),
        problem.eligible if problem.eligible.size == 0 else np.ascontiguousarray(problem.eligible[:, bins]),
        problem.size,
        chosen,
        steps,
        _state(seed, len(bins)),
    )
    names = np.append(bins, np.int32(-1))
    return _Found(names[chosen].astype(np.int32), found.steps - spent)


def _state(seed: int, stream: int) -> int:
    """A kernel's random state; near seeds give far states. Source: Steele et al., SplitMix64, 2014."""
    mixed = (seed + stream * 0x9E3779B97F4A7C15) & _SEED_MASK
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & _SEED_MASK
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _SEED_MASK
    return mixed ^ mixed >> 31
