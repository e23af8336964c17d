"""Keeping a lease: a thread on a real etcd, a task on the memory store with virtual time."""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from controller.store.etcd import EtcdStore
from controller.store.lease import RENEW_S, STOP_S, TTL_S, LeaseKeeper, LeaseTask, boottime_s
from controller.store.memory import MemoryStore, NoFaults
from controller.store.protocol import Batch, OutcomeUnknownError, Put, StoreUnavailableError, Txn, TxnResult
from tests.support.etcd import EtcdServer

WAIT_S = 20.0
_Result = TypeVar("_Result")


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting, moves the loop's clock on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("deadlock: nothing is scheduled")
        self.now += max(timeout, 0.0)
        return []


def run_virtual(main: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
    """Run on a loop whose time is virtual and starts at 0."""
    selector = _JumpingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main())


class Silence(NoFaults):
    """A client whose renewals take a second, and hang from a time on."""

    def __init__(self, since: float, until: float = float("inf")) -> None:
        self.since, self.until = since, until
        self.answered: list[float] = []  # when each answered renewal was sent

    async def before_call(self, what: str) -> None:
        if what != "keep_alive":
            return
        sent_at = asyncio.get_running_loop().time()
        await asyncio.sleep(1.0)
        if self.since <= sent_at < self.until:
            await asyncio.sleep(3600)
        self.answered.append(sent_at)


# --- the task, on virtual time


def test_a_task_keeps_its_lease_for_hours_and_stops_in_time() -> None:
    faults = Silence(7200.0)

    async def main() -> tuple[float, float, bool, float]:
        loop = asyncio.get_running_loop()
        store = MemoryStore(faults=faults)
        granted_at = loop.time()
        lease = await store.grant_lease(TTL_S)
        await store.txn(Txn((), (Put(b"/leader", b"", lease),), "elect"))
        keeper = LeaseTask(store, lease, granted_at)
        await keeper.run()
        stopped_at = loop.time()
        assert await store.get(b"/leader") is not None
        async for batch in store.watch(b"/leader", store.revision + 1):
            assert batch.changes[0].deleted
            break
        return stopped_at, keeper.held_until, keeper.held() or not keeper.lost.is_set(), loop.time()

    stopped_at, held_until, wrong, expired_at = run_virtual(main)
    assert not wrong
    assert stopped_at == held_until == faults.answered[-1] + STOP_S, "counted from the sending"
    assert faults.answered[-1] >= 7200.0 - RENEW_S
    assert expired_at == pytest.approx(faults.answered[-1] + 1.0 + TTL_S), "etcd counts from the receipt"


def test_a_task_outlives_a_short_silence_and_typed_failures() -> None:
    class Flaky(Silence):
        async def before_call(self, what: str) -> None:
            await super().before_call(what)
            if what == "keep_alive" and asyncio.get_running_loop().time() % 20 < 1.5:
                raise StoreUnavailableError("renew: no answer")

    async def main() -> bool:
        store = MemoryStore(faults=Flaky(30.0, 31.0))
        keeper = LeaseTask(store, await store.grant_lease(TTL_S), 0.0)
        task = asyncio.create_task(keeper.run())
        await asyncio.sleep(1000)
        held = keeper.held()
        task.cancel()
        return held

    assert run_virtual(main)


def test_a_late_answer_does_not_bring_a_lease_back() -> None:
    """The process was stopped while it renewed; etcd still has the lease, but we let go of it."""

    async def main() -> tuple[float, bool, bool]:
        clock = [104.5]

        class Stopped(NoFaults):
            async def before_call(self, what: str) -> None:
                clock[0] += 2.5 if what == "keep_alive" else 0.0

        store = MemoryStore(faults=Stopped())
        keeper = LeaseTask(store, await store.grant_lease(TTL_S), 100.0, clock=lambda: clock[0])
        assert keeper.held()
        async with asyncio.timeout(60):
            await keeper.run()
        return clock[0], keeper.held(), keeper.lost.is_set()

    assert run_virtual(main) == (107.0, False, True)


# --- the thread, on etcd


async def test_a_thread_renews_beside_a_blocked_loop_and_stops_when_etcd_is_silent(etcd: EtcdServer) -> None:
    lost_at: list[float] = []
    store = EtcdStore([etcd.endpoint])
    granted_at = boottime_s()
    keeper = LeaseKeeper(
        [etcd.endpoint],
        await store.grant_lease(TTL_S),
        granted_at,
        on_lost=lambda: lost_at.append(boottime_s()),
    )
    running = asyncio.create_task(keeper.run())
    await asyncio.sleep(0)
    while keeper.held_until == granted_at + STOP_S and keeper.held():
        time.sleep(0.01)  # noqa: ASYNC251  the event loop is blocked on purpose
    assert keeper.held()
    etcd.pause()
    try:
        paused_at, held_until = boottime_s(), keeper.held_until
        keeper.lost.wait(WAIT_S)  # blocks the loop again
        assert lost_at
        assert held_until <= lost_at[0] < paused_at + STOP_S + 0.5
        assert not keeper.held()
    finally:
        etcd.resume()
    async with asyncio.timeout(WAIT_S):
        await running
    await store.close()


async def test_a_thread_counts_from_the_sending(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.endpoint])
    granted_at = boottime_s()
    keeper = LeaseKeeper([etcd.endpoint], await store.grant_lease(TTL_S), granted_at)
    running = asyncio.create_task(keeper.run())
    async with asyncio.timeout(WAIT_S):
        while keeper.held_until == granted_at + STOP_S:
            await asyncio.wait([running], timeout=0.01)
        first = keeper.held_until
        etcd.pause()
        await asyncio.wait([running], timeout=first - STOP_S + RENEW_S + 0.8 - boottime_s())
        etcd.resume()
        answered_after = boottime_s()
        while keeper.held_until == first:
            await asyncio.wait([running], timeout=0.01)
    assert keeper.held_until < answered_after + STOP_S - 0.5
    running.cancel()
    await store.close()


async def test_a_thread_notices_a_revoked_lease_at_its_next_renewal(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.endpoint])
    lease = await store.grant_lease(TTL_S)
    keeper = LeaseKeeper([etcd.endpoint], lease, boottime_s())
    await store.revoke_lease(lease)
    async with asyncio.timeout(RENEW_S + 1):
        await keeper.run()
    assert keeper.lost.is_set()
    await store.close()


async def test_cancelling_ends_the_thread_without_a_loss(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.endpoint])
    keeper = LeaseKeeper([etcd.endpoint], await store.grant_lease(TTL_S), boottime_s())
    running = asyncio.create_task(keeper.run())
    await asyncio.wait([running], timeout=0.2)
    threads = [thread for thread in threading.enumerate() if thread.name == "lease-keeper"]
    running.cancel()
    await asyncio.wait([running])
    for thread in threads:
        await asyncio.to_thread(thread.join, WAIT_S)
    assert threads
    assert not any(thread.is_alive() for thread in threads)
    assert not keeper.lost.is_set()
    await store.close()


# --- the memory store's faults


def test_faults_before_after_and_late() -> None:
    class Scripted(NoFaults):
        script = ("before", "after", "late", "")

        def __init__(self) -> None:
            self.steps = iter(self.script)
            self.step = ""

        async def before_commit(self, txn: Txn) -> float:
            self.step = next(self.steps)
            if self.step == "before":
                raise OutcomeUnknownError("never sent")
            return 5.0 if self.step == "late" else 0.0

        async def after_commit(self, txn: Txn, result: TxnResult) -> None:
            if self.step == "after":
                raise OutcomeUnknownError("no answer")

    async def main() -> list[bool]:
        store = MemoryStore(faults=Scripted())
        found = []
        for key in (b"/before", b"/after", b"/late"):
            with pytest.raises(OutcomeUnknownError):
                await store.txn(Txn((), (Put(key, b""),), "fault"))
            found.append(await store.get(key) is not None)
        await asyncio.sleep(5.0)
        assert (await store.txn(Txn((), (Put(b"/calm", b""),), "fault"))).committed
        return [*found, await store.get(b"/late") is not None]

    assert run_virtual(main) == [False, True, False, True]


def test_a_swallowed_batch_is_gone_and_the_next_one_comes() -> None:
    class Swallow(NoFaults):
        async def before_delivery(self, prefix: bytes, batch: Batch) -> bool:
            return batch.changes[0].value != b"2"

    async def main() -> list[bytes]:
        store = MemoryStore(faults=Swallow())
        seen: list[bytes] = []

        async def look() -> None:
            async for batch in store.watch(b"/", 1):
                seen.extend(change.value for change in batch.changes)

        task = asyncio.create_task(look())
        for value in (b"1", b"2", b"3"):
            await store.txn(Txn((), (Put(b"/a", value),), "fault"))
            await asyncio.sleep(1)
        task.cancel()
        return seen

    assert run_virtual(main) == [b"1", b"3"]
