"""Group commit: pure changes in, guarded transactions out, one in flight.

**Edge**: writes the store. A change is a function of the State; several are evaluated one after the other,
each seeing those before it, and go into one transaction. When a guard fails they are evaluated again on
a newer State, in halves, so that one that cannot hold never takes the others with it. A transaction
without an answer is settled before anything else happens (transact.py).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from controller.state import State
from controller.store import keys
from controller.store.protocol import (
    OPS_MAX,
    REQUEST_BYTES_MAX,
    Compare,
    Store,
    StoreError,
    TxnTooLargeError,
)
from controller.transact import Transactor
from cumulet.clock import Clock
from cumulet.errors import ConflictError, CumuletError, UnavailableError
from cumulet.names import new_uid
from cumulet.v1 import event_pb2, store_pb2

ATTEMPTS_MAX: Final = 12  # alone in its transaction, a change that fails this often is starved, not unlucky
QUEUE_MAX: Final = 10_000  # changes waiting; beyond it callers are refused and may try again
# While changes come together they are gathered for a moment: a lone one never waits, and a crowd shares
# transactions, which cost far more than this.
GATHER_S: Final = 0.004


@dataclass(slots=True)
class Change:
    """What one change needs and does. `writes`: None deletes the key."""

    compares: list[Compare] = field(default_factory=list)
    writes: dict[bytes, bytes | None] = field(default_factory=dict)
    events: list[event_pb2.Event] = field(default_factory=list)
    result: Any = None


Compute = Callable[[State], Change | None]
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Pending:
    compute: Compute
    done: asyncio.Future[Any]
    attempts: int = 0


@dataclass(slots=True)
class _Batch:
    members: list[tuple[_Pending, Change]] = field(default_factory=list)
    compares: dict[Compare, None] = field(default_factory=dict)
    writes: dict[bytes, bytes | None] = field(default_factory=dict)
    events: list[event_pb2.Event] = field(default_factory=list)
    size: int = 0

    def fits(self, compares: Sequence[Compare], change: Change, size: int, reserve: int) -> bool:
        n_compares = len(self.compares) + len(compares)
        n_writes = len(self.writes) + len(change.writes) + 1  # their events share a key
        return max(n_compares, n_writes) + reserve <= OPS_MAX and self.size + size <= REQUEST_BYTES_MAX * 0.9


class Committer:
    """One queue of changes with one transaction in flight.

    `guards(state)` are compares that every transaction carries (the leader's epoch). A guard that fails
    ends the committer's work with ConflictError for whoever waits.
    """

    def __init__(
        self,
        store: Store,
        state: State,
        clock: Clock,
        rng: random.Random,
        purpose: str,
        guards: Callable[[], Sequence[Compare]] = tuple,
    ) -> None:
        self._state = state
        self._rng = rng
        self._purpose = purpose
        self._transactor = Transactor(store, clock, rng, purpose, guards)
        self._queue: list[_Pending] = []
        self._wake = asyncio.Event()
        self._closed = False
        self._crowded = False  # the last transaction had company
        self.committed = 0

    @property
    def transactions(self) -> int:
        """Sent so far, without those that settle others."""
        return self._transactor.transactions

    async def commit(self, compute: Compute) -> Any:
        """Have a change committed; its `result`, after the State holds it.

        `compute` returning None means that there is nothing to do. It raises CumuletError to refuse.
        Raises ConflictError, UnavailableError.
        """
        if self._closed:
            raise UnavailableError("this controller does not take changes any more: ask again")
        if len(self._queue) >= QUEUE_MAX:
            raise UnavailableError(f"{QUEUE_MAX} changes are waiting for etcd: try again in a moment")
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append(_Pending(compute, done))
        self._wake.set()
        return await done

    async def run(self) -> None:
        """Commit what is queued, forever. On cancellation, waiting callers get UnavailableError."""
        limit = OPS_MAX
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    if self._crowded:
                        await asyncio.sleep(GATHER_S)
                    limit = await self._round(limit)
        finally:
            self._closed = True
            for pending in self._queue:
                if not pending.done.done():
                    pending.done.set_exception(UnavailableError("the controller is stopping: try again"))
            self._queue.clear()

    async def _round(self, limit: int) -> int:
        """One transaction of at most `limit` changes; the limit for the next one."""
        batch, taken = self._build(limit)
        if not batch.members:
            return OPS_MAX
        try:
            committed, revision = await self._transactor.transact(batch.compares, self._writes(batch))
            await self._state.catch_up(revision)
        except TxnTooLargeError as error:
            if len(batch.members) == 1:
                _fail(batch, UnavailableError(f"the change is too large for the store: {error}"))
                return OPS_MAX
            self._queue[:0] = [pending for pending, _ in batch.members]
            return max(1, len(batch.members) // 2)
        except StoreError as error:
            _fail(batch, UnavailableError(f"etcd cannot take the change: {error}"))
            return OPS_MAX
        except asyncio.CancelledError:
            _fail(batch, UnavailableError("the controller is stopping: ask again with the same request id"))
            raise
        if committed:
            self.committed += len(batch.members)
            self._crowded = len(batch.members) > 1
            for pending, change in batch.members:
                if not pending.done.done():
                    pending.done.set_result(change.result)
            return OPS_MAX
        self._requeue(batch)
        return max(1, taken // 2)

    def _build(self, limit: int) -> tuple[_Batch, int]:
        """Evaluate changes from the queue's head until the transaction is full.

        What comes to nothing because of members before it is looked at again in the next round: their
        writes have not happened yet, and may never.
        """
        batch = _Batch()
        reserve = self._transactor.reserve
        undo = []
        aside: list[_Pending] = []
        taken = 0
        try:
            while self._queue and taken < limit and len(aside) < OPS_MAX:
                pending = self._queue[0]
                change = self._evaluate(pending, final=not batch.members)
                if change is None:
                    self._queue.pop(0)
                    if not pending.done.done():
                        aside.append(pending)
                    continue
                compares = [c for c in change.compares if not self._is_own(batch, c)]
                size = _size(change)
                if batch.members and (
                    not batch.fits(compares, change, size, reserve) or _repeats(batch, change)
                ):
                    break
                self._queue.pop(0)
                taken += 1
                self._add(batch, pending, change, compares, size)
                undo += self._state.speculate(change.writes)
        finally:
            self._state.undo(undo)
            self._queue[:0] = aside
        return batch, taken

    def _evaluate(self, pending: _Pending, *, final: bool) -> Change | None:
        """The change; None when there is none to make, which is then answered if it is `final`."""
        if pending.done.done():
            return None
        try:
            change = pending.compute(self._state)
        except Exception as error:
            if final:
                if not isinstance(error, CumuletError):  # one bad object must not stop the others' changes
                    log.exception("a change failed to compute", purpose=self._purpose)
                pending.done.set_exception(error)
            return None
        if change is None or not (change.writes or change.events):
            if final:
                pending.done.set_result(change.result if change else None)
            return None
        return change

    def _is_own(self, batch: _Batch, compare: Compare) -> bool:
        """A guard on a key that this very batch writes: it was judged on the speculative state."""
        return not compare.range_end and compare.key in batch.writes

    def _add(
        self, batch: _Batch, pending: _Pending, change: Change, compares: Sequence[Compare], size: int
    ) -> None:
        batch.members.append((pending, change))
        batch.compares.update(dict.fromkeys(compares))
        batch.writes.update(change.writes)
        batch.events += change.events
        batch.size += size

    def _writes(self, batch: _Batch) -> dict[bytes, bytes | None]:
        return batch.writes | journal_entry(batch.events, self._rng)

    def _requeue(self, batch: _Batch) -> None:
        again = []
        for pending, _ in batch.members:
            pending.attempts += len(batch.members) == 1
            if pending.attempts < ATTEMPTS_MAX:
                again.append(pending)
            elif not pending.done.done():
                pending.done.set_exception(
                    ConflictError("others kept changing what this change rests on: try again")
                )
        self._queue[:0] = again


def journal_entry(events: Sequence[event_pb2.Event], rng: random.Random) -> dict[bytes, bytes | None]:
    """The write that takes a transaction's events along, each with a uid of its own; none for no events."""
    if not events:
        return {}
    for event in events:
        event.uid = new_uid(rng)
    return {keys.JOURNAL.key(new_uid(rng)): store_pb2.EventBatch(events=events).SerializeToString()}


def _repeats(batch: _Batch, change: Change) -> bool:
    """Both would write the same request record: the second must wait and find the first one's answer."""
    prefix = keys.REQUESTS.prefix()
    return any(key.startswith(prefix) and key in batch.writes for key in change.writes)


def _size(change: Change) -> int:
    size = sum(len(key) + len(value or b"") + 16 for key, value in change.writes.items())
    size += sum(event.ByteSize() + 64 for event in change.events)
    return size + sum(len(c.key) + len(c.range_end) + 24 for c in change.compares)


def _fail(batch: _Batch, error: CumuletError) -> None:
    for pending, _ in batch.members:
        if not pending.done.done():
            pending.done.set_exception(error)
