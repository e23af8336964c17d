"""Sums that follow changes are those of the same set made anew, after any history; and cost what changed."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from agent.net.summed import SummedSet, count_over, hash_over

ITEMS = st.sets(st.integers(0, 20), max_size=8)
CHANGES = st.lists(st.tuples(ITEMS, ITEMS, st.booleans()), max_size=12)


def hash_of(item: int) -> int:
    return item * 0x9E3779B97F4A7C15 & 0xFFFF


def key_of(item: int) -> int:
    return item % 3


@given(ITEMS, CHANGES)
def test_sums_after_any_history_are_those_of_the_set_made_anew(
    first: set[int], history: list[tuple[set[int], set[int], bool]]
) -> None:
    items, plain = SummedSet(first), frozenset(first)
    for gone, come, is_asked in history:
        if is_asked:  # sums are made when they are asked for first, and follow from then on
            hash_over(items, hash_of), count_over(items, key_of)
        before = items
        items, plain = before.changed(gone, come), (plain - gone) | come
        assert items == plain
        assert hash_over(items, hash_of) == hash_over(plain, hash_of) == hash_over(SummedSet(plain), hash_of)
        assert count_over(items, key_of) == Counter(map(key_of, plain))
        assert (items is before) == (items == before)


def test_a_change_asks_for_what_changed_only() -> None:
    asked: list[int] = []

    def note(item: int) -> int:
        asked.append(item)
        return hash_of(item)

    items = SummedSet(range(10_000))
    hash_over(items, note)
    asked.clear()
    changed = items.changed([5], [10_001])
    assert hash_over(changed, note) == hash_over(frozenset(changed), hash_of)
    assert sorted(asked) == [5, 10_001]
    assert hash_over(items, note) == hash_over(frozenset(items), hash_of)  # the one before stays as it was
