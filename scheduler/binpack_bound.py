"""Lower bounds: how many bins a packing takes at least.

**Pure**: counts in Python's whole numbers, so that no sum overflows.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from cext.pairbound import pair_bound
from scheduler.binpack_problem import Ints, Problem

# The bound by pairs takes n**3 looks at worst: 0.1 s for so many items. Also the depth of its recursion.
PAIRED_ITEMS_MAX: Final = 600


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


def fewest_by_pairs(problem: Problem) -> int:
    """Of bins that are all the same, by which items fit beside which; 0 where there are too many items."""
    if not 0 < problem.item_count <= PAIRED_ITEMS_MAX:
        return 0
    keys = (problem.shares.sum(axis=1), problem.shares.max(axis=1, initial=0))
    orders = (np.argsort(-key, kind="stable").astype(np.int32) for key in keys)
    return max(pair_bound(problem.items, problem.guard, problem.free[0], order) for order in orders)


def fewest_of(items: Ints, free: Ints) -> int:
    """Of given bins, int64[m, d] free, for items int64[n, d]; m where even all are too few."""
    if len(items) == 0:
        return 0
    columns = np.sort(np.maximum(free, 0), axis=0)[::-1].T.tolist()
    totals = [sum(column) for column in items.T.tolist()]
    return max([1, *(_fewest(total, column) for total, column in zip(totals, columns, strict=True))])


def _fewest(total: int, falling: list[int]) -> int:
    for count, amount in enumerate(falling):
        if total <= 0:
            return count
        total -= amount
    return len(falling)
