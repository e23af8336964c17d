"""Who of load balancers' members is unhealthy on this node, for whoever tells of it.

**Pure** in effect: a value that changes in the event loop, and a condition to wait on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from agent.net.balancer import Probed


@dataclass(slots=True)
class Board:
    """`unhealthy` by balancer, without those whose members are all well. `version` counts the changes."""

    unhealthy: dict[str, frozenset[Probed]] = field(default_factory=dict)
    version: int = 0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def put(self, balancer_uid: str, down: frozenset[Probed]) -> None:
        if self.unhealthy.get(balancer_uid, frozenset()) == down:
            return
        self.unhealthy[balancer_uid] = down
        if not down:
            del self.unhealthy[balancer_uid]
        self.version += 1
        async with self._changed:
            self._changed.notify_all()

    async def after(self, seen: int) -> int:
        """The version, once it is another one than `seen`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.version != seen)
        return self.version
