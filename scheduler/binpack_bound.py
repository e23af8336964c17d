"""Lower bounds: how many bins a packing takes at least.

**Pure**: counts in Python's whole numbers, so that no sum overflows.
"""

from __future__ import annotations

import numpy as np

from scheduler.binpack_problem import Ints


def fewest_bins(items: Ints, capacity: Ints) -> int:
    """Of bins of one capacity, int64[d], for items int64[n, d] that each fit into one."""
    if len(items) == 0:
        return 0
    return max(1, _by_sums(items, capacity))


def _by_sums(items: Ints, capacity: Ints) -> int:
    wanted: list[int] = [sum(column) for column in items.T.tolist()]
    return max(
        (-(-total // have) for total, have in zip(wanted, capacity.tolist(), strict=True) if total), default=0
    )


def fewest_of(items: Ints, free: Ints) -> int:
    """Of given bins, int64[m, d] free, for items int64[n, d]; m where even all are too few."""
    if len(items) == 0:
        return 0
    columns = np.sort(np.maximum(free, 0), axis=0)[::-1].T.tolist()
    return max([1, *(_fewest(total, column) for total, column in zip(_totals(items), columns, strict=True))])


def _totals(items: Ints) -> list[int]:
    return [sum(column) for column in items.T.tolist()]


def _fewest(total: int, falling: list[int]) -> int:
    for count, amount in enumerate(falling):
        if total <= 0:
            return count
        total -= amount
    return len(falling)
