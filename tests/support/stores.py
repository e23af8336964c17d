"""A store under test with a second client and a way to break its watches; shared steps.

**Edge**: drives real stores.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from controller.store.protocol import Batch, Change, Compare, Delete, Put, Store, Txn

WAIT_S = 20.0  # for what happens within milliseconds on an idle machine


@dataclass(frozen=True)
class Subject:
    """A store, a second client of the same data, and a way to break every watch of the first."""

    store: Store
    other: Store
    break_watches: Callable[[], Awaitable[None]]
    prefix: bytes


async def write(store: Store, *writes: Put | Delete) -> int:
    """Writes without a guard; the revision."""
    result = await store.txn(Txn((), writes, "test"))
    assert result.committed
    return result.revision


async def holds(store: Store, *compares: Compare) -> bool:
    return (await store.txn(Txn(compares, (), "test"))).committed


async def take(watch: AsyncIterator[Batch], count: int) -> list[Change]:
    """At least so many changes, checking that batches are whole and in order."""
    changes: list[Change] = []
    async with asyncio.timeout(WAIT_S):
        while len(changes) < count:
            batch = await anext(watch)
            revisions = [change.mod_revision for change in batch.changes]
            assert revisions == sorted(revisions)
            assert not changes or revisions[0] > changes[-1].mod_revision
            assert batch.revision == revisions[-1]
            changes.extend(batch.changes)
    return changes
