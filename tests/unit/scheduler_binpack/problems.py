"""Random packing problems and an independent judge of packings. **Pure**."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from scheduler.binpack_problem import Bins, Ints, Mask

INT64_MAX = 2**63 - 1
LARGEST = st.sampled_from((1, 4, 100, 2**31, INT64_MAX))


def matrix(rows: Sequence[Sequence[int]], width: int) -> Ints:
    return np.array(rows, dtype=np.int64).reshape(len(rows), width)


@st.composite
def items_and_capacity(draw: st.DrawFn, most: int = 24) -> tuple[Ints, Ints]:
    """Items that each fit into one bin of the capacity; amounts from 0/1 to the ends of int64."""
    width = draw(st.integers(1, 5))
    capacity = [draw(st.integers(0, draw(LARGEST))) for _ in range(width)]
    row = st.tuples(*(st.integers(0, amount) for amount in capacity))
    rows = draw(st.lists(row, max_size=most))
    return matrix(rows, width), np.array(capacity, dtype=np.int64)


@st.composite
def items_and_bins(draw: st.DrawFn, most: int = 12) -> tuple[Ints, Ints, Mask]:
    """Different bins, some overcommitted, of which each item may go to and fits into at least one."""
    width, largest = draw(st.integers(1, 4)), draw(LARGEST)
    bin_row = st.lists(st.integers(-2, largest), min_size=width, max_size=width)
    bins = matrix(draw(st.lists(bin_row, min_size=1, max_size=6)), width)
    homes = draw(st.lists(st.integers(0, len(bins) - 1), max_size=most))
    rows = [[draw(st.integers(0, max(amount, 0))) for amount in bins[home].tolist()] for home in homes]
    eligible = np.array(
        [[home == bin or draw(st.booleans()) for bin in range(len(bins))] for home in homes], dtype=np.uint8
    ).reshape(len(homes), len(bins))
    return matrix(rows, width), bins, eligible


def overfull(items: Ints, bins: Ints, chosen: Bins) -> list[tuple[int, int]]:
    """(bin, resource) that are asked for more than they have; whole numbers of any length."""
    wants: dict[tuple[int, int], int] = {}
    for item, bin in zip(items.tolist(), chosen.tolist(), strict=True):
        for resource, want in enumerate(item):
            if want:
                wants[bin, resource] = wants.get((bin, resource), 0) + want
    free = bins.tolist()
    return [place for place, want in wants.items() if want > free[place[0]][place[1]]]


def many(capacity: Ints, count: int) -> Ints:
    """That number of bins of the capacity."""
    return np.tile(capacity, (count, 1))
