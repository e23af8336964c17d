"""What shares of a device are worth by how often each is asked for: the specification of `cext.gpu_prices`.

**Pure**. The prices are close to the dual of packing all shares into the fewest devices: no set of shares
that fits into one device is worth more than a device, and all of them are worth as much as possible. So a
share that packs badly (0.81, which leaves 0.19) is worth a whole device, and one that fits beside it nothing.

Found by multiplicative weights: pack the dearest device, let the prices of what it holds fall, again.
Source: Plotkin, Shmoys, Tardos, Fast Approximation Algorithms for Fractional Packing and Covering Problems,
1995. All in whole numbers, so that every machine finds the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scheduler.gpu_reference import UNIT, WHOLE

ROUNDS: Final = 300  # the bound is then within 1 % of the exact dual's on the traces that were tried
STEP: Final = 10  # the price that is least in short supply falls by 1/STEP in a round
TOP: Final = 1 << 24  # the dearest share while prices are sought


def find_prices(sizes: Sequence[int], counts: Sequence[int], rounds: int = ROUNDS) -> tuple[int, ...]:
    """The worth of 0 to WHOLE thousandths. `sizes`: different, 1 to WHOLE; `counts` above 0."""
    if not sizes:
        return (0,) * WHOLE + (UNIT * WHOLE,)
    prices = [TOP * size // WHOLE for size in sizes]
    best_total, best = -1, [1] * (WHOLE + 1)
    for _ in range(rounds):
        values = _values(sizes, prices)
        total = sum(price * count for price, count in zip(prices, counts, strict=True))
        if total * best[WHOLE] > best_total * values[WHOLE]:
            best_total, best = total, values
        prices = _lowered(prices, _held(sizes, prices, values), counts)
    return tuple(value * (UNIT * WHOLE) // best[WHOLE] for value in best)


def _values(sizes: Sequence[int], prices: Sequence[int]) -> list[int]:
    """The most that shares within 0 to WHOLE thousandths are worth."""
    values = [0] * (WHOLE + 1)
    for room in range(1, WHOLE + 1):
        values[room] = values[room - 1]
        for size, price in zip(sizes, prices, strict=True):
            if size <= room:
                values[room] = max(values[room], values[room - size] + price)
    return values


def _held(sizes: Sequence[int], prices: Sequence[int], values: Sequence[int]) -> list[int]:
    """How many of each share the dearest device holds."""
    held, room = [0] * len(sizes), WHOLE
    while room:
        for index, (size, price) in enumerate(zip(sizes, prices, strict=True)):
            if size <= room and values[room] == values[room - size] + price:
                held[index] += 1
                room -= size
                break
        else:
            room -= 1
    return held


def _lowered(prices: Sequence[int], held: Sequence[int], counts: Sequence[int]) -> list[int]:
    """Prices fall by how much of what is asked for the device holds; the dearest is TOP again."""
    shares = [TOP * held_count // count for held_count, count in zip(held, counts, strict=True)]
    most = max(shares) or 1
    fallen = [price - price * share // (STEP * most) for price, share in zip(prices, shares, strict=True)]
    return [price * TOP // max(fallen) for price in fallen]
