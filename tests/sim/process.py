"""A simulated operating system process: what is spawned in it can be frozen, and killed at any await.

**Pure** but for the event loop. Killing cancels every task after the process's effects were cut off (its
store client closed, its sockets shut), so that its clean-up code reaches nobody: as with kill -9.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any

from tests.sim.loop import PROCESS, VirtualLoop


class Process:
    """`on_kill` cuts the process off from the world."""

    def __init__(self, name: str, on_kill: Callable[[], None]) -> None:
        self.name = name
        self.dead = False
        self._on_kill = on_kill
        self._context = copy_context()
        self._context.run(PROCESS.set, self)
        self._tasks: list[asyncio.Task[Any]] = []

    @property
    def _loop(self) -> VirtualLoop:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str | None = None) -> asyncio.Task[Any]:
        """Run in this process. What is asked of a dead one never happens."""
        task = self._loop.create_task(coro, name=name, context=self._context)
        if self.dead:
            task.cancel()
        self._tasks = [known for known in self._tasks if not known.done()]
        self._tasks.append(task)
        return task

    def freeze(self) -> None:
        self._loop.freeze(self)

    def thaw(self) -> None:
        self._loop.thaw(self)

    def kill(self) -> None:
        """Kill -9. Harmless to a dead one."""
        if self.dead:
            return
        self.dead = True
        self._on_kill()
        self._loop.forget_countdown(self)
        self._loop.thaw(self)
        for task in self._tasks:
            task.cancel()

    def kill_after(self, steps: int) -> None:
        """Kill -9 at one of the next awaits."""
        self._loop.after_steps(self, steps, self.kill)

    async def ended(self) -> list[BaseException]:
        """Wait for every task to end; what they raised."""
        done = await asyncio.gather(*self._tasks, return_exceptions=True)
        return [found for found in done if isinstance(found, BaseException)]
