"""Packings are valid whatever is packed, the same for a seed, and never worse with more steps. **Pure**."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.binpack import (
    STEPS_MAX,
    ItemTooLargeError,
    NoPackingFoundError,
    PackingError,
    lower_bound,
    pack,
    place_all,
)
from scheduler.binpack_problem import Bins, Ints, Mask
from tests.unit.scheduler_binpack.problems import (
    INT64_MAX,
    items_and_bins,
    items_and_capacity,
    many,
    matrix,
    overfull,
)

STEPS = st.integers(0, 20_000)
SEEDS = st.integers(-(2**70), 2**70)
ITEMS = matrix([[2, 1], [1, 2], [1, 1]], 2)
CAPACITY = np.array([3, 3], dtype=np.int64)


def counts(chosen: Bins) -> int:
    return len(np.unique(chosen))


@given(items_and_capacity(), STEPS, SEEDS)
def test_a_packing_is_valid_and_numbered_without_a_gap(
    case: tuple[Ints, Ints], steps: int, seed: int
) -> None:
    items, capacity = case
    chosen = pack(items, capacity, steps=steps, seed=seed)
    used = counts(chosen)
    assert sorted(set(chosen.tolist())) == list(range(used))
    assert overfull(items, many(capacity, used), chosen) == []
    assert lower_bound(items, capacity) <= used


@given(items_and_bins(), STEPS, SEEDS)
def test_given_bins_are_never_overfull(case: tuple[Ints, Ints, Mask], steps: int, seed: int) -> None:
    items, bins, _ = case
    try:
        chosen = pack(items, bins, steps=steps, seed=seed)
    except NoPackingFoundError:
        return
    assert len(chosen) == len(items)
    assert overfull(items, bins, chosen) == []


@given(items_and_bins(), STEPS, SEEDS)
def test_a_gang_is_placed_where_it_may_go_or_not_at_all(
    case: tuple[Ints, Ints, Mask], steps: int, seed: int
) -> None:
    items, bins, eligible = case
    chosen = place_all(items, bins, steps=steps, seed=seed, eligible=eligible)
    if chosen is not None:
        assert overfull(items, bins, chosen) == []
        assert all(eligible[item, bin] for item, bin in enumerate(chosen))


@settings(deadline=None)
@given(items_and_bins(most=6))
def test_a_small_gang_that_fits_is_placed(case: tuple[Ints, Ints, Mask]) -> None:
    """Against trying every placement."""
    items, bins, eligible = case
    chosen = place_all(items, bins, steps=300_000, eligible=eligible)
    assert (chosen is not None) == _exists(items.tolist(), np.maximum(bins, 0).tolist(), eligible.tolist())


def _exists(items: list[list[int]], free: list[list[int]], eligible: list[list[int]]) -> bool:
    if not items:
        return True
    item, rest = items[0], items[1:]
    for bin, have in enumerate(free):
        if eligible[0][bin] and all(want <= amount for want, amount in zip(item, have, strict=True)):
            left = [amount - want for want, amount in zip(item, have, strict=True)]
            if _exists(rest, [*free[:bin], left, *free[bin + 1 :]], eligible[1:]):
                return True
    return False


@settings(deadline=None)
@given(items_and_capacity(most=7))
def test_a_small_batch_takes_the_fewest_bins(case: tuple[Ints, Ints]) -> None:
    items, capacity = case
    used = counts(pack(items, capacity, steps=300_000))
    fewer = many(capacity, max(used - 1, 0)).tolist()
    assert not items.size or not _exists(items.tolist(), fewer, [[1] * len(fewer)] * len(items))


@settings(deadline=None)
@given(items_and_capacity(most=40), STEPS, STEPS, SEEDS)
def test_more_steps_are_never_worse(case: tuple[Ints, Ints], one: int, other: int, seed: int) -> None:
    items, capacity = case
    few, more = (counts(pack(items, capacity, steps=steps, seed=seed)) for steps in sorted((one, other)))
    assert more <= few


@settings(deadline=None)
@given(items_and_bins(), STEPS, STEPS, SEEDS)
def test_more_steps_are_never_worse_in_given_bins(
    case: tuple[Ints, Ints, Mask], one: int, other: int, seed: int
) -> None:
    items, bins, _ = case
    few, more = (_used(items, bins, steps, seed) for steps in sorted((one, other)))
    assert more <= few


def _used(items: Ints, bins: Ints, steps: int, seed: int) -> int:
    try:
        return counts(pack(items, bins, steps=steps, seed=seed))
    except NoPackingFoundError:
        return len(bins) + 1


@given(items_and_capacity(), STEPS, SEEDS)
def test_the_same_input_gives_the_same_packing(case: tuple[Ints, Ints], steps: int, seed: int) -> None:
    items, capacity = case
    before = items.copy()
    assert np.array_equal(
        pack(items, capacity, steps=steps, seed=seed), pack(items, capacity, steps=steps, seed=seed)
    )
    assert np.array_equal(items, before)


def test_the_search_beats_the_greedy_packings() -> None:
    """Perfect bins of three, cut at random."""
    random = np.random.default_rng(5)
    cuts = np.sort(random.integers(200, 800, (40, 4, 2)), axis=2)
    parts = np.stack([cuts[:, :, 0], cuts[:, :, 1] - cuts[:, :, 0], 1000 - cuts[:, :, 1]], axis=1)
    items, capacity = parts.reshape(-1, 4).astype(np.int64), np.full(4, 1000, dtype=np.int64)
    assert counts(pack(items, capacity, steps=0)) > 44
    assert counts(pack(items, capacity, steps=20_000_000)) <= 43


def test_few_of_different_bins_are_used() -> None:
    """The two large ones do, which first fit does not see."""
    bins = matrix([[4, 4], [4, 4], [9, 9], [4, 4], [9, 9]], 2)
    items = matrix([[3, 3]] * 6, 2)
    chosen = pack(items, bins, steps=1_000_000)
    assert sorted(set(chosen.tolist())) == [2, 4]


@pytest.mark.parametrize("bins", [CAPACITY, many(CAPACITY, 2), np.empty((0, 2), dtype=np.int64)])
def test_nothing_to_pack(bins: Ints) -> None:
    assert pack(matrix([], 2), bins, steps=10).tolist() == []


def test_items_without_resources_share_a_bin() -> None:
    assert pack(np.empty((3, 0), np.int64), np.empty(0, np.int64), steps=10).tolist() == [0, 0, 0]


def test_items_of_nothing_fit_into_bins_of_nothing() -> None:
    assert pack(matrix([[0], [0]], 1), np.array([0]), steps=10).tolist() == [0, 0]


def test_an_overcommitted_bin_takes_what_asks_for_none_of_it() -> None:
    assert place_all(matrix([[0, 2]], 2), matrix([[-5, 2]], 2), steps=10) is not None


def test_the_ends_of_int64() -> None:
    half = INT64_MAX // 2
    items = matrix([[INT64_MAX, 0], [half, INT64_MAX], [half + 1, 0], [0, INT64_MAX]], 2)
    capacity = np.array([INT64_MAX, INT64_MAX], dtype=np.int64)
    chosen = pack(items, capacity, steps=1000)
    assert counts(chosen) == lower_bound(items, capacity) == 2
    assert overfull(items, many(capacity, 2), chosen) == []


def test_an_item_larger_than_any_bin_is_named() -> None:
    items = matrix([[1, 1], [1, 4]], 2)
    with pytest.raises(ItemTooLargeError, match=r"items\[1\] asks for 4 of resource 1.*has 3") as refused:
        pack(items, CAPACITY, steps=10)
    assert refused.value.item == 1
    with pytest.raises(ItemTooLargeError, match=r"items\[0\].*none of the bins"):
        pack(matrix([[2, 2]], 2), matrix([[1, 3], [3, 1]], 2), steps=10)
    with pytest.raises(ItemTooLargeError, match=r"items\[0\].*may go to"):
        place_all(ITEMS, many(CAPACITY, 2), steps=10, eligible=np.zeros((3, 2), dtype=np.uint8))
    with pytest.raises(ItemTooLargeError, match="no bin"):
        place_all(ITEMS, np.empty((0, 2), dtype=np.int64), steps=10)


def test_too_few_bins_are_an_error_of_pack_and_an_answer_of_place_all() -> None:
    bins = matrix([[2, 2]], 2)
    items = matrix([[1, 1]] * 3, 2)
    assert place_all(items, bins, steps=1000) is None
    with pytest.raises(NoPackingFoundError, match="3 items into the 1 bins"):
        pack(items, bins, steps=1000)


@pytest.mark.parametrize(
    ("items", "bins", "steps", "message"),
    [
        (matrix([[-1, 0]], 2), CAPACITY, 1, r"items\[0, 0\] is -1"),
        (np.array([[0.5, 1.0]]), CAPACITY, 1, "items are of type float64"),
        (np.array([[1, 2]], dtype=np.uint64), CAPACITY, 1, "items are of type uint64"),
        (np.array([1, 2]), CAPACITY, 1, "items have 1 dimensions"),
        (ITEMS, np.array([3]), 1, "items have 2 resources, bins 1"),
        (ITEMS, CAPACITY, -1, "steps is -1"),
        (ITEMS, CAPACITY, STEPS_MAX + 1, "steps is"),
        (np.zeros((1, 1025), np.int64), np.zeros(1025, np.int64), 1, "at most 1024"),
    ],
)
def test_what_cannot_be_is_refused(items: Ints, bins: Ints, steps: int, message: str) -> None:
    with pytest.raises(PackingError, match=message):
        pack(items, bins, steps=steps)


def test_an_eligibility_of_another_shape_is_refused() -> None:
    with pytest.raises(PackingError, match="eligible has the shape"):
        place_all(ITEMS, many(CAPACITY, 2), steps=1, eligible=np.ones((2, 2), dtype=np.uint8))
