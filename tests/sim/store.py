"""The memory store with seeded faults, and with an oracle that hears of every revision as it happens.

**Pure** but for the event loop.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from controller.store.memory import MemoryStore, _Server
from controller.store.protocol import (
    Batch,
    Change,
    Delete,
    OutcomeUnknownError,
    Put,
    StoreUnavailableError,
    Txn,
    TxnResult,
)
from tests.sim.trace import Trace

LATENCY_S: Final = 0.004  # etcd's p50 of an fdatasync (machine.md)
GIVE_UP_S: Final = 2.0  # a call without an answer is given up after this
LATE_S: Final = 20.0  # an unanswered transaction may still happen for so long


class WatchedServer(_Server):
    """The store's one copy; tells `on_change` of every revision at the moment it is made."""

    def __init__(self, on_change: Callable[[int, Sequence[Change]], None]) -> None:
        super().__init__(None)
        self._on_change = on_change

    def _apply(self, writes: Sequence[Put | Delete]) -> None:
        before = self.mvcc.revision
        super()._apply(writes)
        revision = self.mvcc.revision
        if revision != before:
            self._on_change(revision, self.mvcc.changes_since(b"", revision, 1)[1])

    def expire_one(self, rng: random.Random) -> bool:
        """End some lease now, as etcd does after a long pause of its own."""
        ids = sorted(self._leases)
        if ids:
            self.end_lease(rng.choice(ids))
        return bool(ids)


@dataclass
class StoreRates:
    """Probabilities per call; all zero when the world is calm."""

    unavailable: float = 0.0
    unknown_before: float = 0.0
    unknown_after: float = 0.0
    late: float = 0.0
    swallow: float = 0.0


class StoreFaults:
    """One client's faults. `swallow_next`: lose the next watch batch."""

    def __init__(self, rng: random.Random, rates: StoreRates, trace: Trace) -> None:
        self._rng = rng
        self._rates = rates
        self._trace = trace
        self.swallow_next = 0

    async def before_call(self, what: str) -> None:
        await self._wait()
        if self._hit(self._rates.unavailable):
            self._trace.fault("store_unavailable", what)
            await asyncio.sleep(self._rng.uniform(0, GIVE_UP_S))
            raise StoreUnavailableError(f"{what}: no endpoint answers")

    async def before_commit(self, txn: Txn) -> float:
        await self._wait()
        if self._hit(self._rates.unknown_before):
            self._trace.fault("store_timeout_before_commit", txn.purpose)
            await asyncio.sleep(self._rng.uniform(0, GIVE_UP_S))
            raise OutcomeUnknownError(f"txn {txn.purpose}: no answer")
        if self._hit(self._rates.late):
            self._trace.fault("store_late_commit", txn.purpose)
            return self._rng.uniform(0.01, LATE_S)
        return 0.0

    async def after_commit(self, txn: Txn, result: TxnResult) -> None:
        if self._hit(self._rates.unknown_after):
            self._trace.fault("store_timeout_after_commit", txn.purpose)
            await asyncio.sleep(self._rng.uniform(0, GIVE_UP_S))
            raise OutcomeUnknownError(f"txn {txn.purpose}: no answer")
        await self._wait()

    async def before_delivery(self, prefix: bytes, batch: Batch) -> bool:
        await self._wait()
        if self.swallow_next or self._hit(self._rates.swallow):
            self.swallow_next = max(0, self.swallow_next - 1)
            self._trace.fault("watch_batch_lost", f"up to {batch.revision}")
            return False
        return True

    def _hit(self, rate: float) -> bool:
        return bool(rate) and self._rng.random() < rate

    async def _wait(self) -> None:
        await asyncio.sleep(self._rng.uniform(0, 2 * LATENCY_S))


def connect(server: WatchedServer, faults: StoreFaults) -> MemoryStore:
    """A client of the one store."""
    return MemoryStore(server=server, faults=faults)
