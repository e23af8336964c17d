"""Frozen sets that know sums over all that they hold: of ten thousand members one changes at a time.

**Pure.** A plain frozenset is summed up each time; a `SummedSet` once, and what `changed` makes of it costs
what differs and a copy in C.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class SummedSet(frozenset[T], Generic[T]):
    """A frozen set, and the sums that were asked of it or of those that it comes from."""

    __slots__ = ("_counts", "_hashes")

    _hashes: dict[Callable[[Any], int], int]
    _counts: dict[Callable[[Any], Any], Counter[Any]]

    def __new__(cls, items: Iterable[T] = ()) -> Self:
        made = super().__new__(cls, items)
        made._hashes, made._counts = {}, {}
        return made

    def changed(self, gone: Iterable[T], come: Iterable[T]) -> SummedSet[T]:
        """Without `gone`, with `come`; of what is in both, it is there."""
        gone, come = set(gone), set(come)
        left, new = (gone - come) & self, come - self
        if not left and not new:
            return self
        items: set[T] = set(self)
        items -= left
        items |= new
        made = SummedSet(items)
        for hash_of, total in self._hashes.items():
            made._hashes[hash_of] = total ^ _xor(hash_of, left) ^ _xor(hash_of, new)
        for key_of, counts in self._counts.items():
            made._counts[key_of] = _recounted(counts, map(key_of, left), map(key_of, new))
        return made


def hash_over(items: frozenset[T], hash_of: Callable[[T], int]) -> int:
    """Exclusive or of the members' hashes: independent of their order."""
    if not isinstance(items, SummedSet):
        return _xor(hash_of, items)
    found = items._hashes.get(hash_of)
    if found is None:
        found = items._hashes[hash_of] = _xor(hash_of, items)
    return found


def count_over(items: frozenset[T], key_of: Callable[[T], K]) -> Mapping[K, int]:
    """How many members have each key; none has 0."""
    if not isinstance(items, SummedSet):
        return Counter(map(key_of, items))
    found = items._counts.get(key_of)
    if found is None:
        found = items._counts[key_of] = Counter(map(key_of, items))
    return found


def _xor(hash_of: Callable[[T], int], items: Iterable[T]) -> int:
    total = 0
    for item in items:
        total ^= hash_of(item)
    return total


def _recounted(counts: Counter[K], gone: Iterable[K], come: Iterable[K]) -> Counter[K]:
    made = counts.copy()
    made.update(come)
    for key in gone:
        made[key] -= 1
        if not made[key]:
            del made[key]
    return made
