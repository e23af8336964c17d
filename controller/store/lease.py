"""Keeping the leader's lease: when to renew, and how long its holder may go on.

**Edge**: a thread with a gRPC channel of its own, or a task on a `Store`. `_Term` has the rules.

A lease says when leadership may be lost, never that it is held: writes are compare-guarded all the
same. The holder stops 6 s after *sending* the last acknowledged renewal, 4 s before etcd, whose
count began later, gives the lease up. What is lost stays lost, even if an answer comes after all.
Source: docs of the design, correctness.md "Fencing".
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import grpc

from controller.store.etcd_channel import (
    HAS_LEADER,
    TlsFiles,
    channel_credentials,
    channel_options,
    channel_target,
)
from controller.store.etcdpb import rpc_pb2 as pb
from controller.store.etcdpb import rpc_pb2_grpc as stubs
from controller.store.protocol import LeaseLostError, Store, StoreError

RENEW_S: Final = 2.0
ATTEMPT_S: Final = 1.5  # then another member is tried: three tries fit between a renewal and STOP_S
TTL_S: Final = 10  # etcd's side
STOP_S: Final = 6.0  # ours; the rest of TTL_S is for what was begun before the stop
RETRY_S: Final = 0.2  # after a failed try, which may have failed at once


def boottime_s() -> float:
    """Seconds that also count while the machine sleeps, unlike time.monotonic()."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Keeper(Protocol):
    """A lease that is being renewed."""

    @property
    def held_until(self) -> float:
        """On the keeper's clock; it moves with each acknowledged renewal."""

    @property
    def lost(self) -> threading.Event:
        """Set once and for good; `held` may turn false a moment earlier."""

    def held(self) -> bool:
        """Whether the holder may go on. Decided by the clock, so a starved keeper cannot lie."""

    async def run(self) -> None:
        """Renew until the lease is lost, then return. Cancelling stops the renewals."""


class _Term:
    """The rules of renewal on one clock; `held_until` is changed in place."""

    def __init__(self, granted_at: float, clock: Callable[[], float]) -> None:
        self.held_until = granted_at + STOP_S
        self.now = clock

    def over(self) -> bool:
        return self.now() >= self.held_until

    def attempt_timeout_s(self) -> float:
        """Leaves time for another member when this one hangs."""
        return max(0.0, min(ATTEMPT_S, self.held_until - self.now()))

    def acknowledge(self, sent_at: float) -> None:
        """An answer in time moves the end; a late one does not bring the lease back."""
        if not self.over():
            self.held_until = sent_at + STOP_S

    def pause_s(self, sent_at: float, acknowledged: bool) -> float:
        """Until the next try."""
        now = self.now()
        pause_s = sent_at + RENEW_S - now if acknowledged else RETRY_S
        return max(0.0, min(pause_s, self.held_until - now))


class LeaseKeeper:
    """Renews on a thread of its own, which a busy event loop does not hold up.

    `granted_at` is the time on `clock` before the grant was sent. `on_lost` is called on the
    thread, so that it can end a process whose event loop hangs.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        lease_id: int,
        granted_at: float,
        *,
        tls: TlsFiles | None = None,
        clock: Callable[[], float] = boottime_s,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._channel = _open_channel(endpoints, tls)
        self._stub = stubs.LeaseStub(self._channel)
        self._lease_id = lease_id
        self._term = _Term(granted_at, clock)
        self._on_lost = on_lost
        self._lost = threading.Event()
        self._stop = threading.Event()

    @property
    def held_until(self) -> float:
        return self._term.held_until

    @property
    def lost(self) -> threading.Event:
        return self._lost

    def held(self) -> bool:
        return not self._lost.is_set() and not self._term.over()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def renew_then_tell() -> None:
            self._renew_until_lost()
            if not loop.is_closed():
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=renew_then_tell, name="lease-keeper", daemon=True).start()
        try:
            await ended.wait()
        finally:
            self._stop.set()
            self._channel.close()

    def _renew_until_lost(self) -> None:
        try:
            while not self._stop.is_set() and not self._term.over():
                sent_at = self._term.now()
                acknowledged = self._renew()
                if acknowledged:
                    self._term.acknowledge(sent_at)
                self._stop.wait(self._term.pause_s(sent_at, acknowledged))
        except LeaseLostError:
            pass
        if self._stop.is_set():
            return
        self._lost.set()
        if self._on_lost:
            self._on_lost()

    def _renew(self) -> bool:
        """Whether etcd acknowledged. Raises LeaseLostError when it does not know the lease."""
        request = pb.LeaseKeepAliveRequest(ID=self._lease_id)
        try:
            call = self._stub.LeaseKeepAlive(
                iter((request,)),
                timeout=self._term.attempt_timeout_s(),
                metadata=HAS_LEADER,
                wait_for_ready=True,
            )
            response = next(call, None)
            call.cancel()
        except (grpc.RpcError, ValueError):  # ValueError: the channel was closed by run()
            return False
        if response is not None and response.TTL <= 0:
            raise LeaseLostError(f"lease {self._lease_id:x} has expired or was revoked")
        return response is not None


class LeaseTask:
    """Renews through a `Store` on the event loop: for the memory store and the simulation.

    Without a `clock` it is the running loop's time, which may be virtual.
    """

    def __init__(
        self,
        store: Store,
        lease_id: int,
        granted_at: float,
        *,
        clock: Callable[[], float] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._store = store
        self._lease_id = lease_id
        self._term = _Term(granted_at, clock or asyncio.get_running_loop().time)
        self._on_lost = on_lost
        self._lost = threading.Event()

    @property
    def held_until(self) -> float:
        return self._term.held_until

    @property
    def lost(self) -> threading.Event:
        return self._lost

    def held(self) -> bool:
        return not self._lost.is_set() and not self._term.over()

    async def run(self) -> None:
        try:
            while not self._term.over():
                sent_at = self._term.now()
                acknowledged = await self._renew()
                if acknowledged:
                    self._term.acknowledge(sent_at)
                await asyncio.sleep(self._term.pause_s(sent_at, acknowledged))
        except LeaseLostError:
            pass
        self._lost.set()
        if self._on_lost:
            self._on_lost()

    async def _renew(self) -> bool:
        try:
            async with asyncio.timeout(self._term.attempt_timeout_s()):
                await self._store.keep_alive(self._lease_id)
        except LeaseLostError:
            raise
        except (StoreError, TimeoutError):
            return False
        return True


def _open_channel(endpoints: Sequence[str], tls: TlsFiles | None) -> grpc.Channel:
    target = channel_target(endpoints)
    options = channel_options(endpoints, tls)
    credentials = channel_credentials(tls)
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)
