"""Exporting events from the store to the journal, and forgetting what has served its time.

**Edge**: writes the journal's file, deletes keys. etcd holds what is on its way only: after an export the
keys go, in one transaction with the journal's new head; request and commit records go by the hour.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Final

import structlog

from controller.commit import Change, Committer
from controller.journal import Journal, JournalBrokenError
from controller.state import State
from controller.store import keys
from controller.store.protocol import (
    CompactedError,
    Delete,
    KeyValue,
    Put,
    Store,
    StoreError,
    Txn,
    created_at,
    prefix_end,
    unchanged,
)
from controller.transact import HOUR_S
from cumulet.clock import Clock
from cumulet.errors import CumuletError
from cumulet.v1 import event_pb2, store_pb2

EXPORT_S: Final = 15.0  # events leave etcd in batches: one deletion for many changes
EXPORT_BATCH: Final = 100  # keys; with the head and the guards below etcd's 128 operations
EXPORT_EVENTS: Final = 250  # written down in some 5 ms: placements wait that long
CLEAN_S: Final = 60.0
RECORD_HOURS: Final = 2  # request ids are remembered for one hour at least
OPERATION_KEEP_S: Final = 24 * 3600.0  # ended operations
COMPACT_KEEP_S: Final = 300.0  # history that watchers and page tokens may need

log = structlog.get_logger(__name__)


class Exporter:
    """Run it while leading."""

    def __init__(
        self, store: Store, state: State, committer: Committer, journal: Journal, clock: Clock
    ) -> None:
        self._store = store
        self._state = state
        self._committer = committer
        self._journal = journal
        self._clock = clock

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._every(EXPORT_S, self.export))
            group.create_task(self._every(CLEAN_S, self.clean))
            group.create_task(self._compact())

    async def _every(self, period_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(period_s)
            try:
                await work()
            except (StoreError, CumuletError, JournalBrokenError, OSError) as error:
                log.warning(
                    "housekeeping failed, trying again later",
                    work=getattr(work, "__name__", ""),
                    error=str(error),
                )

    async def export(self) -> None:
        """Move all events to the journal. Raises StoreError, CumuletError, OSError, JournalBrokenError."""
        listing = await self._store.list(keys.JOURNAL.prefix())  # all: a part of them has no order
        items = sorted(listing.items, key=lambda item: (item.mod_revision, item.key))
        for batch in _batches(items):
            await self._export_batch(batch)

    async def _export_batch(self, batch: Sequence[tuple[KeyValue, list[event_pb2.Event]]]) -> None:
        row = self._state.find(keys.JOURNAL_HEAD)
        head = await self._journal.append(
            row.message if row else store_pb2.JournalHead(),
            [event for _, events in batch for event in events],
        )

        def forget(state: State) -> Change:
            known = state.find(keys.JOURNAL_HEAD)
            key = keys.JOURNAL_HEAD.key()
            writes: dict[bytes, bytes | None] = {item.key: None for item, _ in batch}
            writes[key] = head.SerializeToString()
            return Change(compares=[unchanged(key, known.mod_revision if known else 0)], writes=writes)

        await self._committer.commit(forget)

    async def clean(self) -> None:
        """Drop old request and commit records and ended operations. Raises StoreError, CumuletError."""
        hour = int(self._clock.now()) // HOUR_S
        for table in (keys.REQUESTS, keys.COMMITS):
            oldest = table.prefix()
            newest = table.prefix(str(hour - RECORD_HOURS))
            guard = created_at(keys.LEADER_KEY.key(), self._state.epoch)
            await self._store.txn(Txn([guard], [Delete(oldest, prefix_end(newest))], "clean"))
        old = [
            (parts, row)
            for parts, row in self._state.rows(keys.OPERATIONS).items()
            if row.message.done and self._clock.now() - row.message.done_at.seconds > OPERATION_KEEP_S
        ]
        for start in range(0, len(old), EXPORT_BATCH):
            batch = [keys.OPERATIONS.key(*parts) for parts, _ in old[start : start + EXPORT_BATCH]]
            await self._committer.commit(partial(_forgetting, names=batch))

    async def _compact(self) -> None:
        """Forget history that is older than anybody's page token or resumed watch."""
        while True:
            revision = self._state.revision
            await asyncio.sleep(COMPACT_KEEP_S)
            try:
                await self._store.compact(revision)
            except CompactedError:
                pass  # somebody else did it
            except StoreError as error:
                log.warning("compaction failed, trying again later", error=str(error))


def _forgetting(state: State, names: list[bytes]) -> Change:
    return Change(writes=dict.fromkeys(names))


def _batches(items: Iterable[KeyValue]) -> Iterator[list[tuple[KeyValue, list[event_pb2.Event]]]]:
    """Transactions with their events, as many as are exported at once."""
    batch: list[tuple[KeyValue, list[event_pb2.Event]]] = []
    size = 0
    for item in items:
        events = _events_of(item)
        if batch and (len(batch) == EXPORT_BATCH or size + len(events) > EXPORT_EVENTS):
            yield batch
            batch, size = [], 0
        batch.append((item, events))
        size += len(events)
    if batch:
        yield batch


def _events_of(item: KeyValue) -> list[event_pb2.Event]:
    events = list(store_pb2.EventBatch.FromString(item.value).events)
    for event in events:
        event.revision = item.mod_revision
    return events


async def ensure_cloud(store: Store, uid: str) -> None:
    """Write the cloud's identity once, before anybody leads."""
    key = keys.CLOUD.key()
    record = store_pb2.CloudRecord(uid=uid, restore_generation=1).SerializeToString()
    await store.txn(Txn([unchanged(key, 0)], [Put(key, record)], "init"))
