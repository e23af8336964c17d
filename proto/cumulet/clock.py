"""Time as an argument: wall time for records, monotonic time for decisions.

**Edge** in `SystemClock` only. Differences decide (correctness.md I19): never subtract wall times.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def now(self) -> float:
        """Wall time, seconds since 1970 UTC. For records that people read."""

    def monotonic(self) -> float:
        """Seconds that never jump. For every decision."""


class SystemClock:
    """The machine's clocks; monotonic time counts suspend, too."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
