"""An asyncio loop on virtual time: waiting costs nothing, and a seed decides the order of ready tasks.

**Pure**: no real clock, no sockets. A run with the same seed is the same run, in any process: ready
callbacks are permuted by the seed, and tasks hash by their number, since asyncio keeps them in sets.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import selectors
from collections.abc import Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")

IDLE_ROUNDS_MAX: Final = 20_000  # rounds of the loop at one instant; more is a livelock


class Owner(Protocol):
    """What tasks can belong to (process.py)."""

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Hear of a task that was made in this process."""


# Which simulated process a callback belongs to; tasks and timers inherit it from whoever made them.
PROCESS: ContextVar[Owner | None] = ContextVar("PROCESS", default=None)


class DeadlockError(Exception):
    """Every task waits for something that nothing will ever do."""


class LivelockError(Exception):
    """Tasks wake each other for ever without time passing."""


class SimTask(asyncio.Task[Any]):
    """A task whose hash is its number: sets of tasks are walked in the same order in every process."""

    def __init__(self, coro: Coroutine[Any, Any, Any], *, loop: VirtualLoop, **more: Any) -> None:
        loop.tasks_made += 1
        self._number = loop.tasks_made
        super().__init__(coro, loop=loop, **more)
        context: Context | None = more.get("context")
        process = context.get(PROCESS) if context is not None else PROCESS.get()
        if process is not None:
            process.adopt(self)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class _NoSelector(selectors.BaseSelector):
    """Never asked: the loop does not wait for files."""

    def __init__(self, inner: selectors.BaseSelector) -> None:
        self._inner = inner

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def get_map(self) -> Any:
        return self._inner.get_map()

    def close(self) -> None:
        self._inner.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """`rng` None keeps asyncio's own order; else ready callbacks run in a random one.

    `freeze` stops everything of one process as SIGSTOP would; `steps_left` counts a process's callbacks
    down and then calls back once, so that a crash can hit it at any await.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        super().__init__()
        self.tasks_made = 0
        self.steps = 0
        self._now = 0.0
        self._rng = rng
        self._idle_rounds = 0
        self._frozen: dict[object, list[asyncio.Handle]] = {}
        self._countdowns: dict[object, tuple[int, Any]] = {}
        self._selector: selectors.BaseSelector = _NoSelector(self._selector)
        self.set_task_factory(_make_task)

    def time(self) -> float:
        return self._now

    def freeze(self, process: object) -> None:
        self._frozen.setdefault(process, [])

    def thaw(self, process: object) -> None:
        self._ready.extend(self._frozen.pop(process, ()))

    def after_steps(self, process: object, steps: int, call: Any) -> None:
        """Call once the process has run that many callbacks more; a later wish replaces an earlier one."""
        self._countdowns[process] = (steps, call)

    def forget_countdown(self, process: object) -> None:
        self._countdowns.pop(process, None)

    def describe_ready(self) -> str:
        """What would run next, for a livelock."""
        return ", ".join(repr(handle)[:200] for handle in list(self._ready)[:3])

    def abandon(self) -> None:
        """Cancel what is left, with bounded patience, and close."""
        for process in list(self._frozen):
            self.thaw(process)
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        with suppress(DeadlockError, LivelockError):
            if not tasks:
                raise DeadlockError("nothing is left")
            self._idle_rounds = 0
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.close()

    def _run_once(self) -> None:
        self._collect_due()
        batch = list(self._ready)
        self._ready.clear()
        if self._rng is not None and len(batch) > 1:
            self._rng.shuffle(batch)
        for handle in batch:
            if not handle._cancelled:
                self._step(handle)

    def _collect_due(self) -> None:
        """Move due timers to the ready queue; jump to the next one when nothing is ready."""
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready and not self._stopping:
            if not scheduled:
                raise DeadlockError("nothing is scheduled")
            if scheduled[0]._when > self._now:
                self._now = scheduled[0]._when
                self._idle_rounds = 0
        self._idle_rounds += 1
        if self._idle_rounds > IDLE_ROUNDS_MAX:
            raise LivelockError(f"{IDLE_ROUNDS_MAX} rounds at {self._now:.3f} s")
        while scheduled and scheduled[0]._when <= self._now:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            if not handle._cancelled:
                ready.append(handle)

    def _step(self, handle: asyncio.Handle) -> None:
        if self._frozen or self._countdowns:
            context: Context = handle._context  # type: ignore[attr-defined]
            process = context.get(PROCESS)
            held = self._frozen.get(process)
            if held is not None:
                held.append(handle)
                return
            self._count_down(process)
        self.steps += 1
        handle._run()

    def _count_down(self, process: object) -> None:
        found = self._countdowns.get(process)
        if found is None:
            return
        left, call = found
        if left > 0:
            self._countdowns[process] = (left - 1, call)
        else:
            del self._countdowns[process]
            call()

    # What asyncio's own loops have and its stubs do not tell.
    _ready: Any
    _scheduled: Any
    _stopping: bool


def _make_task(loop: Any, coro: Any, **more: Any) -> SimTask:
    return SimTask(coro, loop=loop, **more)


class LoopClock:
    """cumulet.clock.Clock on the running loop's time. Wall time starts in 2026; `skew_s` makes it wrong."""

    EPOCH = 1_767_225_600.0

    def __init__(self, skew_s: float = 0.0) -> None:
        self.skew_s = skew_s

    def now(self) -> float:
        return self.EPOCH + self.skew_s + asyncio.get_running_loop().time()

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def run_virtual(main: Coroutine[Any, Any, T], seed: int | None = None) -> T:
    """Run to the end on virtual time. Raises DeadlockError, LivelockError."""
    rng = None if seed is None else random.Random(seed)
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(rng)) as runner:
        return runner.run(main)
