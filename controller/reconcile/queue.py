"""A keyed work queue: a name is enough, the world tells the rest.

**Edge** in time only. A key that is added while it waits is there once; one that is added while it is
worked on comes again afterwards. Delayed keys are for retries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Queue(Generic[K]):
    """Unbounded in code, bounded by the number of objects: a key is in it at most once."""

    def __init__(self, on_take: Callable[[int, float], None] = lambda depth, wait_s: None) -> None:
        """`on_take(depth, wait_s)`: keys that waited when some were taken, and how long the oldest did."""
        self._since: dict[K, float] = {}  # insertion order is the order of work
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._wake = asyncio.Event()
        self._on_take = on_take

    def __len__(self) -> int:
        return len(self._since)

    def add(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        self._since.setdefault(key, asyncio.get_running_loop().time())
        self._wake.set()

    def add_later(self, key: K, delay_s: float) -> None:
        """Add after a delay, unless it is added before; an earlier timer stays."""
        if key not in self._since and key not in self._timers:
            self._timers[key] = asyncio.get_running_loop().call_later(delay_s, self.add, key)

    async def wait(self) -> None:
        """Until there is a key."""
        while not self._since:
            self._wake.clear()
            await self._wake.wait()

    async def take(self, limit: int) -> list[K]:
        """At least one and at most `limit` keys, oldest first; waits for the first."""
        await self.wait()
        taken = list(self._since)[:limit]
        now = asyncio.get_running_loop().time()
        self._on_take(len(self._since), now - self._since[taken[0]])
        for key in taken:
            del self._since[key]
        return taken

    def close(self) -> None:
        """Cancel timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
