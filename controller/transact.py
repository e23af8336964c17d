"""One guarded transaction at a time, and the truth about those that were not answered.

**Edge**: writes the store. Every transaction carries the guards of whoever writes (the leader's epoch) and a
commit record of its own. Without an answer the record tells what happened: putting it again either fails (it
happened) or makes it impossible. Several transactions may be under way at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import structlog

from controller.store import keys
from controller.store.protocol import (
    Compare,
    Delete,
    OutcomeUnknownError,
    Put,
    Store,
    StoreUnavailableError,
    Txn,
    absent,
)
from cumulet.clock import Clock
from cumulet.names import new_uid

HOUR_S: Final = 3600
SETTLE_RETRY_S: Final = 0.25

log = structlog.get_logger(__name__)


class Transactor:
    """Sends transactions for one purpose (the metric's label). `guards()` are compares that each carries."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        rng: random.Random,
        purpose: str,
        guards: Callable[[], Sequence[Compare]] = tuple,
    ) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng
        self._purpose = purpose
        self._guards = guards
        self.transactions = 0

    @property
    def reserve(self) -> int:
        """Compares that are taken already; writes are fewer."""
        return len(self._guards()) + 1

    async def transact(
        self, compares: Iterable[Compare], writes: Mapping[bytes, bytes | None]
    ) -> tuple[bool, int]:
        """Whether it was committed, and its revision (of the refusal otherwise). None deletes a key.

        Raises TxnTooLargeError, StoreFullError, StoreUnavailableError: nothing was changed.
        """
        record = keys.COMMITS.key(str(int(self._clock.now()) // HOUR_S), new_uid(self._rng))
        parts: list[Put | Delete] = [
            Delete(key) if value is None else Put(key, value) for key, value in writes.items()
        ]
        parts.append(Put(record, b""))
        self.transactions += 1
        try:
            result = await self._store.txn(
                Txn([*self._guards(), absent(record), *compares], parts, self._purpose)
            )
        except OutcomeUnknownError:
            return await self._settle(record)
        return result.committed, result.revision

    async def _settle(self, record: bytes) -> tuple[bool, int]:
        """Find out what became of a transaction, and make sure that nothing becomes of it later."""
        while True:
            try:
                found = await self._store.get(record)
                if found is not None:
                    return (found.value == b""), found.mod_revision
                result = await self._store.txn(Txn([absent(record)], [Put(record, b"void")], "settle"))
                if result.committed:
                    return False, result.revision
            except (OutcomeUnknownError, StoreUnavailableError) as error:
                log.warning("settling an unanswered transaction", error=str(error))
                await asyncio.sleep(SETTLE_RETRY_S * self._rng.uniform(0.5, 1.5))
