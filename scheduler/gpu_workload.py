"""What is typically asked of devices, read off what runs: the target of the policies that look at fragments.

**Pure** but for `Usage`, which counts and says so.

The workload is a function of the state, as every decision is: how often each shape runs now. Counts enter
rounded down to a power of two, so it changes seldom, and a count that goes up and down hardly matters.
Instances without devices are left out: their part in an expected fragment is the same everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cext.gpu_prices import find_prices
from cumulet.resources import Resources
from scheduler.gpu_reference import RATE_BITS, UNIT, WHOLE, Shape, Workload
from scheduler.model import Request
from scheduler.topology import Choice, DeviceRequest

TYPICAL_MAX: Final = 64  # the most frequent; on the traces that were tried 53 to 57 make 95 % of all
SHARES_MAX: Final = 32  # different ones that get a price, the most frequent
COUNT_MAX: Final = 1 << 24  # of a shape; beyond it, it is as typical as anything can be
RATE_MAX: Final = (1 << 62) - 1  # 64 bits hold it; an amount as scarce as that serves every device


@dataclass(frozen=True, slots=True)
class Typical:
    """What an instance with devices is counted as: its amounts and the largest of its wants."""

    resources: Resources
    want: DeviceRequest

    @property
    def milli(self) -> int:
        """Thousandths of devices."""
        return self.want.count * self.want.share_milli

    def order(self) -> tuple[object, ...]:
        """Canonical, for equal counts."""
        want = self.want
        return sorted(self.resources.as_dict().items()), want.count, want.share_milli, sorted(want.models)


def typical_of(request: Request, choice: Choice) -> Typical | None:
    """None for an instance without devices. What it asked for, or where that is not known what it holds."""
    wants = request.devices
    if not wants and choice.devices:
        count = len(choice.devices)
        share = choice.devices[0].share_milli if count == 1 else WHOLE
        wants = (DeviceRequest(frozenset(), count, share),)
    if not wants:
        return None
    largest = max(wants, key=lambda want: (want.count * want.share_milli, sorted(want.models)))
    return Typical(request.resources, largest)


def rounded(count: int) -> int:
    """The power of two below."""
    return 1 << min(count, COUNT_MAX).bit_length() - 1 if count > 0 else 0


class Usage:
    """How many of each run. `change` counts in place; `version` rises where that changes the workload."""

    def __init__(self) -> None:
        self._counts: Counter[Typical] = Counter()
        self._orders: dict[Typical, tuple[object, ...]] = {}  # of those that run
        self.version = 0

    def change(self, request: Request, choice: Choice, by: int) -> None:
        """So many more run, or fewer."""
        typical = typical_of(request, choice)
        if typical is None:
            return
        before = self._counts[typical]
        self._counts[typical] = before + by
        if before + by == 0:
            del self._counts[typical]
            self._orders.pop(typical, None)
        elif typical not in self._orders:
            self._orders[typical] = typical.order()
        if rounded(before) != rounded(before + by):
            self.version += 1

    def frequent(self) -> tuple[tuple[Typical, int], ...]:
        """The most frequent with their rounded counts, in canonical order."""
        counted = [(typical, rounded(count)) for typical, count in self._counts.items() if count > 0]
        counted.sort(key=lambda pair: (-pair[1], self._orders[pair[0]]))
        return tuple(counted[:TYPICAL_MAX])


def build_workload(
    frequent: Sequence[tuple[Typical, int]],
    row: Callable[[Resources], Sequence[int]],
    models: Callable[[DeviceRequest], int],
) -> Workload:
    """The workload of so many of each. `row`: amounts as the fleet orders them; `models`: a set of bits."""
    if not frequent:
        return Workload(rates=(0,) * len(row(Resources())))
    total = sum(count for _, count in frequent)
    shapes = []
    shares: Counter[int] = Counter()
    devices, amounts = 0, [0] * len(row(Resources()))
    for typical, count in frequent:
        want, taken = typical.want, tuple(row(typical.resources))
        shapes.append(
            (Shape(taken, want.count, want.share_milli, models(want)), max(count * UNIT // total, 1))
        )
        devices += count * want.count * want.share_milli
        amounts = [have + count * each for have, each in zip(amounts, taken, strict=True)]
        if want.share_milli < WHOLE:
            shares[want.share_milli] += count
    rates = tuple(min((devices << RATE_BITS) // amount, RATE_MAX) if amount else 0 for amount in amounts)
    return Workload(tuple(shapes), _prices(tuple(sorted(shares.items()))), rates)


@lru_cache(maxsize=64)  # a workload changes more often than the shares that are in it
def _prices(shares: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    frequent = sorted(shares, key=lambda pair: (-pair[1], pair[0]))[:SHARES_MAX]
    frequent.sort(reverse=True)
    return tuple(find_prices([size for size, _ in frequent], [count for _, count in frequent]))
