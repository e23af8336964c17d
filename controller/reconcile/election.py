"""Leader election: one key with a lease; its create_revision is the epoch.

**Edge**: writes `/cumulet/leader`. Winning says that nobody else may lead until the lease is lost; it never
says that one's own writes are still allowed: every one of them compares the epoch.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog

from controller.state import State
from controller.store import keys
from controller.store.lease import TTL_S, Keeper
from controller.store.protocol import (
    Compare,
    OutcomeUnknownError,
    Put,
    Store,
    StoreError,
    Txn,
    absent,
    created_at,
    unchanged,
)
from cumulet.names import new_uid
from cumulet.v1 import store_pb2

RETRY_S: Final = 0.5
HELD_CHECK_S: Final = 0.5  # how often the holder looks at its own deadline

log = structlog.get_logger(__name__)

KeeperFactory = Callable[[int, float], Keeper]  # lease id, when its grant was sent


class LeadershipLostError(Exception):
    """The term is over; whoever led must stop at once."""


@dataclass(frozen=True, slots=True)
class Term:
    """One leadership. `epoch` is the leader key's create_revision."""

    epoch: int
    address: str


class Election:
    """Campaigns forever; `lead(term)` runs for as long as a term lasts and is cancelled at its end."""

    def __init__(
        self,
        store: Store,
        state: State,
        address: str,
        keeper: KeeperFactory,
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._store = store
        self._state = state
        self._record = store_pb2.LeaderRecord(address=address, id=new_uid(rng)).SerializeToString()
        self._address = address
        self._keeper = keeper
        self._now = now
        self._rng = rng
        self.term: Term | None = None

    async def run(self, lead: Callable[[Term], Awaitable[None]]) -> None:
        """Raises LeadershipLostError at the end of a term: the process is to start afresh."""
        while True:
            await self._wait_for_vacancy()
            try:
                await self._campaign(lead)
            except StoreError as error:
                log.warning("the campaign failed, trying again", error=str(error))
            await asyncio.sleep(RETRY_S * self._rng.uniform(0.5, 1.5))

    async def _wait_for_vacancy(self) -> None:
        vacant = asyncio.Event()
        stop = self._state.listen(
            lambda changed: vacant.set() if changed.table is keys.LEADER_KEY and not changed.after else None
        )
        try:
            if self._state.find(keys.LEADER_KEY) is not None:
                await vacant.wait()
        finally:
            stop()

    async def _campaign(self, lead: Callable[[Term], Awaitable[None]]) -> None:
        granted_at = self._now()
        lease_id = await self._store.grant_lease(TTL_S)
        keeper = self._keeper(lease_id, granted_at)
        keeping = asyncio.create_task(keeper.run())
        try:
            epoch = await self._claim(lease_id)
            if epoch:
                await self._state.reach(epoch)
                await self._hold(keeper, keeping, Term(epoch, self._address), lead)
        finally:
            keeping.cancel()
            await self._revoke(lease_id)

    async def _claim(self, lease_id: int) -> int:
        """The epoch, or 0 if another one was faster."""
        key = keys.LEADER_KEY.key()
        claim = Txn([absent(key)], [Put(key, self._record, lease_id)], "elect")
        try:
            result = await self._store.txn(claim)
            return result.revision if result.committed else 0
        except OutcomeUnknownError:
            found = await self._store.get(key)
            return found.create_revision if found and found.lease_id == lease_id else 0

    async def _hold(
        self,
        keeper: Keeper,
        keeping: asyncio.Task[None],
        term: Term,
        lead: Callable[[Term], Awaitable[None]],
    ) -> None:
        log.info("leading", epoch=term.epoch, address=term.address)
        self.term = term
        leading = asyncio.ensure_future(lead(term))
        try:
            while keeper.held() and self._state.epoch == term.epoch:
                done, _ = await asyncio.wait(
                    {leading, keeping}, timeout=HELD_CHECK_S, return_when=asyncio.FIRST_COMPLETED
                )
                if leading in done:
                    leading.result()
                    return
                if keeping in done:
                    break
            raise LeadershipLostError(f"the lease of epoch {term.epoch} was lost")
        finally:
            self.term = None
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)

    async def _revoke(self, lease_id: int) -> None:
        """Make room at once instead of after the TTL; if it fails, the TTL does it."""
        try:
            await self._store.revoke_lease(lease_id)
        except StoreError as error:
            log.info("the lease was not revoked, it will expire", error=str(error))


def epoch_guards(state: State, term: Term) -> list[Compare]:
    """What every transaction of a leader carries: its epoch, and the restore generation that it knows."""
    cloud = state.find(keys.CLOUD)
    return [
        created_at(keys.LEADER_KEY.key(), term.epoch),
        unchanged(keys.CLOUD.key(), cloud.mod_revision if cloud else 0),
    ]
