"""The store in memory, for tests and the simulation: deterministic, with faults on demand.

**Edge**: waits and timers of the running asyncio loop, so that a loop on virtual time drives it.
Nothing is random; leases get the numbers 1, 2, 3.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from controller.store.mvcc import Mvcc
from controller.store.protocol import (
    Batch,
    Delete,
    KeyValue,
    LeaseLostError,
    Listing,
    OnTxn,
    OutcomeUnknownError,
    Put,
    StoreError,
    StoreUnavailableError,
    Txn,
    TxnResult,
    check_start_revision,
    check_txn_size,
)

BATCH_REVISIONS_MAX: Final = 1_000  # as etcd's watchBatchMaxRevs, for a watch that catches up


class Faults(Protocol):
    """What a simulation may do to one client's calls. Every method may also sleep."""

    async def before_call(self, what: str) -> None:
        """Before a read, lease call or compaction; `what` is the method's name.

        May raise StoreUnavailableError.
        """

    async def before_commit(self, txn: Txn) -> float:
        """Before a transaction is judged. May raise OutcomeUnknownError: then it never happens.

        A result above 0 is how many seconds late it happens, while its caller is told at once that
        the outcome is unknown.
        """

    async def after_commit(self, txn: Txn, result: TxnResult) -> None:
        """After a transaction. May raise OutcomeUnknownError: it has happened, unacknowledged."""

    async def before_delivery(self, prefix: bytes, batch: Batch) -> bool:
        """Before a watch hands a batch on. False swallows it."""


class NoFaults:
    """A store that always answers, and at once."""

    async def before_call(self, what: str) -> None:
        return

    async def before_commit(self, txn: Txn) -> float:
        return 0.0

    async def after_commit(self, txn: Txn, result: TxnResult) -> None:
        return

    async def before_delivery(self, prefix: bytes, batch: Batch) -> bool:
        return True


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    expires_at: float
    keys: set[bytes] = field(default_factory=set)


class _Server:
    """The one copy of the data that all clients share. All methods are synchronous: atomic."""

    def __init__(self, clock: Callable[[], float] | None) -> None:
        self.mvcc = Mvcc()
        self.changed = asyncio.Event()
        self._clock = clock
        self._leases: dict[int, _Lease] = {}
        self._leases_granted = 0
        self._timer: asyncio.TimerHandle | None = None

    def now(self) -> float:
        return self._clock() if self._clock else asyncio.get_running_loop().time()

    def wake(self) -> None:
        """Let every watch look again."""
        self.changed.set()
        self.changed = asyncio.Event()

    def commit(self, txn: Txn) -> TxnResult:
        self.expire_leases()
        if not all(map(self.mvcc.holds, txn.compares)):
            return TxnResult(False, self.mvcc.revision)
        for write in txn.writes:
            if isinstance(write, Put) and write.lease_id and write.lease_id not in self._leases:
                raise LeaseLostError(f"{txn.purpose}: lease {write.lease_id:x} of {write.key!r} is gone")
        self._apply(txn.writes)
        return TxnResult(True, self.mvcc.revision)

    def commit_late(self, txn: Txn) -> None:
        try:
            self.commit(txn)
        except StoreError:
            return  # refused; its caller has long been told that the outcome is unknown

    def grant_lease(self, ttl_s: int) -> int:
        self._leases_granted += 1
        self._leases[self._leases_granted] = _Lease(ttl_s, self.now() + ttl_s)
        self._arm_timer()
        return self._leases_granted

    def renew_lease(self, lease_id: int) -> int:
        self.expire_leases()
        lease = self._leases.get(lease_id)
        if lease is None:
            raise LeaseLostError(f"renew lease {lease_id:x}: it has expired or was revoked")
        lease.expires_at = self.now() + lease.ttl_s
        self._arm_timer()
        return lease.ttl_s

    def end_lease(self, lease_id: int) -> None:
        lease = self._leases.pop(lease_id, None)
        if lease and lease.keys:
            self._apply([Delete(key) for key in sorted(lease.keys)])

    def expire_leases(self) -> None:
        now = self.now()
        for lease_id in [i for i, lease in self._leases.items() if lease.expires_at <= now]:
            self.end_lease(lease_id)

    def _apply(self, writes: Sequence[Put | Delete]) -> None:
        before = self.mvcc.revision
        self.mvcc.apply(writes)
        if self.mvcc.revision == before:
            return
        _, changes = self.mvcc.changes_since(b"", self.mvcc.revision, 1)
        for change in changes:
            for lease in self._leases.values():
                lease.keys.discard(change.key)
        for write in writes:
            if isinstance(write, Put) and write.lease_id:
                self._leases[write.lease_id].keys.add(write.key)
        self.wake()

    def _arm_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._leases:
            first = min(lease.expires_at for lease in self._leases.values())
            delay_s = max(0.0, first - self.now())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self.expire_leases()
        self._arm_timer()


class MemoryStore:
    """`Store` in this process. `connect` gives further clients of the same data.

    `clock` decides about leases; without one it is the running loop's time. A call gives way to
    the other tasks once before it takes effect, as a network would.
    """

    def __init__(
        self,
        clock: Callable[[], float] | None = None,
        *,
        faults: Faults | None = None,
        on_txn: OnTxn | None = None,
        server: _Server | None = None,
    ) -> None:
        self._server = server or _Server(clock)
        self._faults = faults or NoFaults()
        self._on_txn = on_txn
        self._closed = False
        self._cuts = 0
        self._blind_until = float("-inf")

    def connect(self, *, faults: Faults | None = None, on_txn: OnTxn | None = None) -> MemoryStore:
        """Another client: its own faults, watches and close, the same keys and leases."""
        return MemoryStore(faults=faults, on_txn=on_txn, server=self._server)

    @property
    def revision(self) -> int:
        """The store's revision now."""
        return self._server.mvcc.revision

    def cut_watches(self, for_s: float) -> None:
        """Lose this client's watches; they resume by themselves after `for_s` seconds."""
        self._cuts += 1
        self._blind_until = self._server.now() + for_s
        self._server.wake()

    async def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        await self._begin("get")
        return self._server.mvcc.get(key, revision)

    async def list(
        self, prefix: bytes, *, revision: int = 0, start_after: bytes = b"", limit: int = 0
    ) -> Listing:
        await self._begin("list")
        return self._server.mvcc.list_prefix(prefix, revision, start_after, limit)

    async def txn(self, txn: Txn) -> TxnResult:
        check_txn_size(txn)
        started = self._server.now()
        await self._give_way(f"txn {txn.purpose}")
        late_s = await self._faults.before_commit(txn)
        if late_s > 0:
            asyncio.get_running_loop().call_later(late_s, self._server.commit_late, txn)
            raise OutcomeUnknownError(f"txn {txn.purpose}: no answer")
        result = self._server.commit(txn)
        await self._faults.after_commit(txn, result)
        if self._on_txn:
            self._on_txn(txn.purpose, self._server.now() - started, result.committed)
        return result

    async def grant_lease(self, ttl_s: int) -> int:
        await self._begin("grant_lease")
        return self._server.grant_lease(ttl_s)

    async def keep_alive(self, lease_id: int) -> int:
        await self._begin("keep_alive")
        return self._server.renew_lease(lease_id)

    async def revoke_lease(self, lease_id: int) -> None:
        await self._begin("revoke_lease")
        self._server.end_lease(lease_id)

    async def compact(self, revision: int) -> None:
        await self._begin("compact")
        self._server.mvcc.compact(revision)

    async def close(self) -> None:
        self._closed = True
        self._server.wake()

    async def watch(self, prefix: bytes, start_revision: int) -> AsyncIterator[Batch]:
        check_start_revision(prefix, start_revision)
        undelivered, position, cuts = start_revision, start_revision, self._cuts
        while not self._closed:
            changed = self._server.changed
            if await self._wait_out_cut():
                continue
            if cuts != self._cuts:
                # As with etcd: what passed by without a change for us is asked for again.
                position, cuts = undelivered, self._cuts
            last, changes = self._server.mvcc.changes_since(prefix, position, BATCH_REVISIONS_MAX)
            if changes:
                batch = Batch(changes[-1].mod_revision, tuple(changes))
                if await self._faults.before_delivery(prefix, batch) and not self._closed:
                    yield batch
                undelivered = batch.revision + 1
            if last < position:
                await changed.wait()
            position = last + 1

    async def _wait_out_cut(self) -> bool:
        """Whether this client's watches were cut off, and may be still."""
        left_s = self._blind_until - self._server.now()
        if left_s <= 0:
            return False
        await asyncio.sleep(left_s)
        return True

    async def _begin(self, what: str) -> None:
        await self._give_way(what)
        await self._faults.before_call(what)
        self._server.expire_leases()

    async def _give_way(self, what: str) -> None:
        if self._closed:
            raise StoreUnavailableError(f"{what}: the store is closed")
        await asyncio.sleep(0)
