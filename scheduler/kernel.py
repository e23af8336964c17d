"""Best fit over a fleet, in plain Python: the specification of `cext.bestfit`.

**Pure** but for `place_batch_reference`, which changes `free` in place as the kernel does.

Source: best fit by the largest remaining share (norm greedy with the L-infinity norm), Panigrahy,
Talwar, Uyeda, Wieder: Heuristics for Vector Bin Packing, 2011. Both versions compute scores with the
same two IEEE operations (int64 to double, one multiplication), so they agree bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def best_fit_reference(
    free: Sequence[Sequence[int]],
    demand: Sequence[int],
    eligible: Sequence[int],
    scale: Sequence[float],
    start: int,
) -> int:
    """The eligible node that fits and keeps the least, -1 if none.

    free[n_resource][n_node], demand[n_resource], eligible[n_node] (0 or 1), scale[n_resource]
    (weight over the fleet's largest amount). Equal scores: the first from `start` on, cyclically.
    """
    best, best_score = -1, math.inf
    node_count = len(eligible)
    for offset in range(node_count):
        node = (start + offset) % node_count
        row = [amounts[node] for amounts in free]
        if eligible[node] and fits(row, demand):
            score = remaining_share(row, demand, scale)
            if score < best_score:
                best, best_score = node, score
    return best


def fits(free: Sequence[int], demand: Sequence[int]) -> bool:
    """A resource that is not asked for does not matter, even where it is overcommitted."""
    return all(want == 0 or have >= want for have, want in zip(free, demand, strict=True))


def remaining_share(free: Sequence[int], demand: Sequence[int], scale: Sequence[float]) -> float:
    """The largest scaled amount that stays free, at least 0."""
    return max(
        0.0,
        *(float(have - want) * factor for have, want, factor in zip(free, demand, scale, strict=True)),
    )


def place_batch_reference(
    free: Sequence[list[int]],
    demands: Sequence[Sequence[int]],
    eligible: Sequence[Sequence[int]],
    eligible_row: Sequence[int],
    scale: Sequence[float],
    start: int,
) -> list[int]:
    """Place requests one after the other, each seen by the next; `free` is reduced in place.

    Request i may go where eligible[eligible_row[i]] is 1. Returns a node or -1 per request.
    """
    chosen: list[int] = []
    for demand, row in zip(demands, eligible_row, strict=True):
        node = best_fit_reference(free, demand, eligible[row], scale, start)
        if node >= 0:
            for amounts, want in zip(free, demand, strict=True):
                amounts[node] -= want
        chosen.append(node)
    return chosen
