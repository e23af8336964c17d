"""Keep the State fed: list at a revision, watch from the next one, list again when in doubt.

**Edge**: reads the store. A watch event is a hint that may be lost (correctness.md I17): the complete
listing is repeated now and then, and whatever it shows that the watch did not is taken as a change.
"""

from __future__ import annotations

import asyncio
import random

import structlog

from controller.state import State
from controller.store import keys
from controller.store.protocol import CompactedError, Store, StoreUnavailableError

RELIST_S = 300.0  # the longest that a lost watch event can go unnoticed; 100,000 keys cost 0.4 s
RETRY_S = 0.5

log = structlog.get_logger(__name__)


class Feed:
    """`run` it under a TaskGroup; `ready` is set after the first listing."""

    def __init__(self, store: Store, state: State, rng: random.Random) -> None:
        self._store = store
        self._state = state
        self._rng = rng
        self.ready = asyncio.Event()
        self.relists = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._relist_periodically())

    async def relist(self) -> None:
        """Take a complete listing. Raises StoreUnavailableError."""
        listing = await self._store.list(keys.PREFIX)
        self._state.load(listing.revision, listing.items)
        self.relists += 1
        self.ready.set()

    async def _follow(self) -> None:
        while True:
            try:
                await self.relist()
                async for batch in self._store.watch(keys.PREFIX, self._state.revision + 1):
                    if self._state.misses(batch.revision, batch.changes):
                        log.warning("the watch has lost a change, listing again", upto=batch.revision)
                        await self.relist()
                    self._state.apply(batch.revision, batch.changes)
            except CompactedError as error:
                log.info("watch fell behind compaction, listing again", compacted=error.compact_revision)
            except StoreUnavailableError as error:
                log.warning("the store does not answer, trying again", error=str(error))
                await asyncio.sleep(RETRY_S * self._rng.uniform(0.5, 1.5))

    async def _relist_periodically(self) -> None:
        while True:
            await self._doubt()
            try:
                await self.relist()
            except StoreUnavailableError as error:
                log.warning("periodic listing failed", error=str(error))
                await asyncio.sleep(RETRY_S * self._rng.uniform(0.5, 1.5))

    async def _doubt(self) -> None:
        """Until it is time for a listing, or somebody misses a change."""
        try:
            async with asyncio.timeout(RELIST_S * self._rng.uniform(0.9, 1.1)):
                await self._state.doubt.wait()
            log.warning("a change is missing, listing again", revision=self._state.revision)
        except TimeoutError:
            pass
        self._state.doubt.clear()
