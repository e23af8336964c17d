"""The store on etcd v3 through grpc.aio.

**Edge**: network I/O. Two channels, one of them for watches only. Reads are repeated on other
members within their time; writes are sent once, since a write without an answer may have happened.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final, Protocol, TypeVar

import grpc
import grpc.aio

from controller.store import etcd_wire as wire
from controller.store.etcd_channel import (
    HAS_LEADER,
    TlsFiles,
    channel_credentials,
    channel_options,
    channel_target,
    store_error,
)
from controller.store.etcdpb import rpc_pb2 as pb
from controller.store.etcdpb import rpc_pb2_grpc as stubs
from controller.store.protocol import (
    PAGE_KEYS,
    Batch,
    CompactedError,
    KeyValue,
    LeaseLostError,
    Listing,
    OnTxn,
    StoreError,
    StoreUnavailableError,
    Txn,
    TxnResult,
    check_start_revision,
    check_txn_size,
)

READ_ATTEMPTS: Final = 3  # each gets half of the time that is left, the last one all of it
WATCH_BACKOFF_FIRST_S: Final = 0.05  # a restarted member answers at once
WATCH_BACKOFF_MAX_S: Final = 2.0  # every controller holds a watch per kind: no herd on a dead etcd

_Request = TypeVar("_Request", contravariant=True)
_Response = TypeVar("_Response", covariant=True)
_WatchCall = grpc.aio.StreamStreamCall[pb.WatchRequest, pb.WatchResponse]


class _Unary(Protocol[_Request, _Response]):
    """grpc.aio's unary multicallable, as far as it is used here."""

    def __call__(
        self, request: _Request, /, *, timeout: float, wait_for_ready: bool
    ) -> grpc.aio.UnaryUnaryCall[Any, Any]: ...


class EtcdStore:
    """`Store` on an etcd cluster. Make it inside a running event loop.

    `timeout_s` bounds every call but a watch. `on_txn` gets purpose, seconds and whether the
    transaction committed, for each transaction that was answered.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        tls: TlsFiles | None = None,
        timeout_s: float = 5.0,
        on_txn: OnTxn | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._on_txn = on_txn
        self._channel = _open_channel(endpoints, tls)
        self._watch_channel = _open_channel(endpoints, tls)
        self._kv = stubs.KVStub(self._channel)
        self._lease = stubs.LeaseStub(self._channel)
        self._watch = stubs.WatchStub(self._watch_channel)
        self._watch_calls: set[_WatchCall] = set()
        self._closed = asyncio.Event()

    async def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        request = pb.RangeRequest(key=key, revision=revision)
        response: pb.RangeResponse = await self._read(self._kv.Range, request, f"get {key!r}")
        return wire.key_value(response.kvs[0]) if response.kvs else None

    async def list(
        self, prefix: bytes, *, revision: int = 0, start_after: bytes = b"", limit: int = 0
    ) -> Listing:
        items: list[KeyValue] = []
        more = True
        while more and (not limit or len(items) < limit):
            request = wire.range_request(
                prefix,
                start_after=items[-1].key if items else start_after,
                limit=min(limit - len(items), PAGE_KEYS) if limit else PAGE_KEYS,
                revision=revision,
            )
            page: pb.RangeResponse = await self._read(self._kv.Range, request, f"list {prefix!r}")
            revision = revision or page.header.revision
            items.extend(map(wire.key_value, page.kvs))
            more = page.more
        return Listing(revision, tuple(items), more)

    async def txn(self, txn: Txn) -> TxnResult:
        check_txn_size(txn)
        request = wire.txn_request(txn)
        started = time.perf_counter()
        response: pb.TxnResponse = await self._write(self._kv.Txn, request, f"txn {txn.purpose}")
        if self._on_txn:
            self._on_txn(txn.purpose, time.perf_counter() - started, response.succeeded)
        return TxnResult(response.succeeded, response.header.revision)

    async def grant_lease(self, ttl_s: int) -> int:
        request = pb.LeaseGrantRequest(TTL=ttl_s)
        response: pb.LeaseGrantResponse = await self._write(
            self._lease.LeaseGrant, request, f"grant a lease of {ttl_s} s"
        )
        return response.ID

    async def keep_alive(self, lease_id: int) -> int:
        what = f"renew lease {lease_id:x}"
        call = self._lease.LeaseKeepAlive(timeout=self._timeout_s, metadata=HAS_LEADER, wait_for_ready=True)
        try:
            await call.write(pb.LeaseKeepAliveRequest(ID=lease_id))
            response = await call.read()
        except grpc.aio.AioRpcError as err:
            raise _translate(err, what, is_write=False) from err
        finally:
            call.cancel()
        if not isinstance(response, pb.LeaseKeepAliveResponse):
            raise StoreUnavailableError(f"{what}: the stream ended without an answer")
        if response.TTL <= 0:
            raise LeaseLostError(f"{what}: it has expired or was revoked")
        return response.TTL

    async def revoke_lease(self, lease_id: int) -> None:
        request = pb.LeaseRevokeRequest(ID=lease_id)
        try:
            await self._write(self._lease.LeaseRevoke, request, f"revoke lease {lease_id:x}")
        except LeaseLostError:
            return

    async def compact(self, revision: int) -> None:
        request = pb.CompactionRequest(revision=revision)
        try:
            await self._write(self._kv.Compact, request, f"compact at revision {revision}")
        except CompactedError:
            return

    async def close(self) -> None:
        self._closed.set()
        for call in tuple(self._watch_calls):
            call.cancel()
        await self._watch_channel.close()
        await self._channel.close()

    async def watch(self, prefix: bytes, start_revision: int) -> AsyncIterator[Batch]:
        check_start_revision(prefix, start_revision)
        next_revision = start_revision
        failures = 0
        while not self._closed.is_set():
            try:
                async with aclosing(self._watch_once(prefix, next_revision)) as batches:
                    async for batch in batches:
                        failures = 0
                        next_revision = batch.revision + 1
                        yield batch
            except StoreUnavailableError:
                failures += 1
                await self._back_off(failures)

    async def _watch_once(self, prefix: bytes, start_revision: int) -> AsyncGenerator[Batch, None]:
        """Batches over one stream. Ends on close; raises StoreUnavailableError when it is lost."""
        call = self._watch.Watch(metadata=HAS_LEADER)
        self._watch_calls.add(call)
        try:
            # One revision early: etcd 3.4 starts a watch at the compacted revision itself although
            # that revision's deletions are gone. Asking for the one before makes it say so.
            await call.write(wire.watch_request(prefix, max(1, start_revision - 1)))
            async for events in _whole_revisions(call, prefix):
                found = wire.changes(events, start_revision)
                if found:
                    yield Batch(found[-1].mod_revision, found)
        except grpc.aio.AioRpcError as err:
            raise _translate(err, f"watch {prefix!r}", is_write=False) from err
        except asyncio.InvalidStateError as err:  # grpc's word for writing to a call that has failed
            raise StoreUnavailableError(f"watch {prefix!r}: the stream broke") from err
        except asyncio.CancelledError:
            if not self._ended_by_close():
                raise
        finally:
            self._watch_calls.discard(call)
            call.cancel()

    def _ended_by_close(self) -> bool:
        """close() cancels the calls; grpc reports that as if the reading task had been cancelled."""
        task = asyncio.current_task()
        return self._closed.is_set() and not (task and task.cancelling())

    async def _back_off(self, failures: int) -> None:
        bound = min(WATCH_BACKOFF_MAX_S, WATCH_BACKOFF_FIRST_S * 2 ** min(failures - 1, 10))
        with suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0.5, 1.0) * bound):
                await self._closed.wait()

    async def _read(self, method: _Unary[_Request, _Response], request: _Request, what: str) -> Any:
        deadline = time.monotonic() + self._timeout_s
        for attempt in range(1, READ_ATTEMPTS + 1):
            left_s = deadline - time.monotonic()
            timeout_s = left_s if attempt == READ_ATTEMPTS else left_s / 2
            try:
                return await self._call(method, request, timeout_s, what, is_write=False)
            except StoreUnavailableError:
                if attempt == READ_ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _write(self, method: _Unary[_Request, _Response], request: _Request, what: str) -> Any:
        return await self._call(method, request, self._timeout_s, what, is_write=True)

    async def _call(
        self,
        method: _Unary[_Request, _Response],
        request: _Request,
        timeout_s: float,
        what: str,
        *,
        is_write: bool,
    ) -> Any:
        if self._closed.is_set():
            raise StoreUnavailableError(f"{what}: the store is closed")
        try:
            return await method(request, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError as err:
            raise _translate(err, what, is_write=is_write) from err
        except asyncio.CancelledError as err:
            if not self._ended_by_close():
                raise
            closed = "the store was closed"
            raise store_error(grpc.StatusCode.CANCELLED, closed, what, is_write=is_write) from err


async def _whole_revisions(call: _WatchCall, prefix: bytes) -> AsyncIterator[list[pb.Event]]:
    """The events of each answer with its fragments joined; etcd never splits a revision otherwise."""
    events: list[pb.Event] = []
    while isinstance(response := await call.read(), pb.WatchResponse):
        if response.compact_revision:
            raise CompactedError(response.compact_revision)
        if response.canceled:
            raise StoreUnavailableError(f"watch {prefix!r}: {response.cancel_reason}")
        events.extend(response.events)
        if not response.fragment and events:
            yield events
            events = []
    raise StoreUnavailableError(f"watch {prefix!r}: the server ended the stream")


def _translate(err: grpc.aio.AioRpcError, what: str, *, is_write: bool) -> StoreError:
    return store_error(err.code(), err.details() or "", what, is_write=is_write)


def _open_channel(endpoints: Sequence[str], tls: TlsFiles | None) -> grpc.aio.Channel:
    target = channel_target(endpoints)
    options = channel_options(endpoints, tls)
    credentials = channel_credentials(tls)
    if credentials is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, credentials, options)
