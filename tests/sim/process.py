"""A simulated operating system process: what is spawned in it can be frozen, and killed at any await.

**Pure** but for the event loop. Killing cancels every task after the process's effects were cut off (its
store client closed, its sockets shut), so that its clean-up code reaches nobody: as with kill -9.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Final

from tests.sim.loop import PROCESS, VirtualLoop

REAP_S: Final = 0.001  # between two attempts to end what has survived its cancellation
TASKS_KEPT: Final = 64  # done tasks are forgotten in batches


class Process:
    """`on_kill` cuts the process off from the world."""

    def __init__(self, name: str, on_kill: Callable[[], None]) -> None:
        self.name = name
        self.dead = False
        self._on_kill = on_kill
        self._context = copy_context()
        self._context.run(PROCESS.set, self)
        self._tasks: list[asyncio.Task[Any]] = []
        self._sweep_at = TASKS_KEPT

    @property
    def _loop(self) -> VirtualLoop:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        return loop

    def spawn(self, coro: Coroutine[Any, Any, Any], *, name: str | None = None) -> asyncio.Task[Any]:
        """Run in this process. What is asked of a dead one never happens."""
        return self._loop.create_task(coro, name=name, context=self._context)

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Called by the loop for every task that is made in this process."""
        if len(self._tasks) >= self._sweep_at:
            self._tasks = [known for known in self._tasks if not known.done()]
            self._sweep_at = 2 * len(self._tasks) + TASKS_KEPT
        self._tasks.append(task)
        if self.dead:
            self._loop.call_soon(task.cancel, context=Context())

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
        self._reap()

    def _reap(self) -> None:
        """A cancellation can be lost (a TaskGroup of Python 3.11 prefers its errors); death cannot."""
        alive = [task for task in self._tasks if not task.done()]
        for task in alive:
            task.cancel()
        if alive:
            self._loop.call_later(REAP_S, self._reap, context=Context())

    def kill_after(self, steps: int) -> None:
        """Kill -9 at one of the next awaits."""
        self._loop.after_steps(self, steps, self.kill)

    async def ended(self) -> None:
        """Wait for every task to end."""
        while alive := [task for task in self._tasks if not task.done()]:
            await asyncio.wait(alive)
