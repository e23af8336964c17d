"""A packing problem, checked and in the kernel's form: words, shares and sizes.

**Pure**: arrays in, new arrays out. Whole numbers only, so that equal input is equal on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cext import binpack as kernel

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.uint8]
Bins = npt.NDArray[np.int32]

SHARE_BITS: Final = 20  # a share of the largest capacity is a whole number of 2**-20
SIZE_MEAN: Final = (
    64  # the search adds 1 to a size for each failure; with much larger sizes it learns nothing
)
WORD_BITS: Final = 64
# The kernel adds up d products of 51 bits; far more than a node has.
RESOURCES_MAX: Final = 1024
EVERYWHERE: Final[Mask] = np.empty((0, 0), dtype=np.uint8)


class PackingError(ValueError):
    """Amounts, bins or a budget that cannot be. The message names the argument and what is allowed."""


class ItemTooLargeError(PackingError):
    """An item that fits into no bin that it may go to, even while that is empty: no packing exists."""

    def __init__(self, item: int, why: str) -> None:
        super().__init__(f"items[{item}] {why}: make it smaller or give a bin that takes it")
        self.item = item


@dataclass(frozen=True, slots=True)
class Problem:
    """n items and m bins over d resources; `free` and `room` are of bins without any of the items."""

    items: Words  # uint64[n, word], see cext/binpack.pxd
    guard: Words  # uint64[word]
    free: Words  # uint64[m, word]
    eligible: Mask  # uint8[n, m], or empty: every item may go to every bin
    shares: Ints  # int64[n, d], of the largest capacity in 2**-SHARE_BITS
    room: Ints  # int64[m, d], likewise
    size: Ints  # int64[n], at least 1, SIZE_MEAN on average
    alike: bool  # the bins are all the same

    @property
    def item_count(self) -> int:
        return len(self.items)

    @property
    def bin_count(self) -> int:
        return len(self.free)

    def nothing_chosen(self) -> Bins:
        return np.full(self.item_count, -1, dtype=np.int32)


def build_problem(items: Ints, free: Ints, eligible: Mask = EVERYWHERE, *, alike: bool = False) -> Problem:
    """items int64[n, d], free int64[m, d], eligible uint8[n, m] or empty.

    Raises PackingError, ItemTooLargeError.
    """
    items, free = _whole("items", items), np.maximum(_whole("bins", free), 0)
    _check(items, free, eligible)
    if len(items) and not len(free):
        raise ItemTooLargeError(0, "has no bin to go to")
    largest = free.max(axis=0, initial=0)
    _refuse_too_large(items, largest)
    fields = list(_fields(largest))
    guard = _guards(fields)
    shares = _shares(items, largest)
    problem = Problem(
        items=_encode(items, fields, len(guard)),
        guard=guard,
        free=_encode(free, fields, len(guard)) | guard,
        eligible=np.ascontiguousarray(eligible, dtype=np.uint8),
        shares=shares,
        room=_shares(free, largest),
        size=_sizes(shares),
        alike=alike,
    )
    _refuse_homeless(problem)
    return problem


def _whole(name: str, amounts: Ints) -> Ints:
    if not np.can_cast(amounts.dtype, np.int64, "safe") or amounts.dtype == np.bool_:
        raise PackingError(f"{name} are of type {amounts.dtype}: give whole numbers of up to 64 bits (int64)")
    if amounts.ndim != 2:
        raise PackingError(f"{name} have {amounts.ndim} dimensions: give one row each, one column a resource")
    return amounts.astype(np.int64)


def _check(items: Ints, free: Ints, eligible: Mask) -> None:
    if items.shape[1] != free.shape[1]:
        raise PackingError(f"items have {items.shape[1]} resources, bins {free.shape[1]}: give as many")
    if items.shape[1] > RESOURCES_MAX:
        raise PackingError(f"items have {items.shape[1]} resources: at most {RESOURCES_MAX}")
    negative = np.argwhere(items < 0)
    if len(negative):
        item, resource = negative[0]
        raise PackingError(f"items[{item}, {resource}] is {items[item, resource]}: must not be negative")
    if eligible is not EVERYWHERE and eligible.shape != (len(items), len(free)):
        raise PackingError(
            f"eligible has the shape {eligible.shape}: must be one row an item, one column a bin, "
            f"{(len(items), len(free))}"
        )


def _refuse_too_large(items: Ints, largest: Ints) -> None:
    found = np.argwhere(items > largest)
    if len(found):
        item, resource = found[0]
        raise ItemTooLargeError(
            int(item),
            f"asks for {items[item, resource]} of resource {resource}, "
            f"the largest bin has {largest[resource]}",
        )


def _refuse_homeless(problem: Problem) -> None:
    if problem.alike or problem.item_count == 0:
        return  # the largest bin is every bin
    item = kernel.find_homeless(
        problem.items, problem.guard, problem.free, problem.eligible, problem.nothing_chosen()
    )
    if item >= 0:
        raise ItemTooLargeError(
            item, "fits into none of the bins that it may go to, even when they are empty"
        )


@dataclass(frozen=True, slots=True)
class _Field:
    """Where a resource is in the words; its top bit is the guard."""

    word: int
    offset: int
    bits: int


def _fields(largest: Ints) -> Iterator[_Field]:
    word = offset = 0
    for amount in largest.tolist():
        bits = amount.bit_length() + 1
        if offset + bits > WORD_BITS:
            word, offset = word + 1, 0
        yield _Field(word, offset, bits)
        offset += bits


def _guards(fields: list[_Field]) -> Words:
    guard = np.zeros(fields[-1].word + 1 if fields else 0, dtype=np.uint64)
    for field in fields:
        guard[field.word] |= np.uint64(1 << (field.offset + field.bits - 1))
    return guard


def _encode(amounts: Ints, fields: list[_Field], word_count: int) -> Words:
    words = np.zeros((len(amounts), word_count), dtype=np.uint64)
    for field, column in zip(fields, amounts.T, strict=True):
        words[:, field.word] |= column.astype(np.uint64) << np.uint64(field.offset)
    return words


def _shares(amounts: Ints, largest: Ints) -> Ints:
    """Rounded down; one conversion and one division of IEEE doubles, the same everywhere."""
    return np.floor(amounts / np.maximum(largest, 1) * float(1 << SHARE_BITS)).astype(np.int64)


def _sizes(shares: Ints) -> Ints:
    total = shares.sum(axis=1)
    mean = max(int(total.sum()) // max(len(total), 1), 1)
    sizes: Ints = np.maximum(total * SIZE_MEAN // mean, 1)
    return sizes
