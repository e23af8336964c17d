"""Election: one leader at a time, a lost lease ends a term, a deposed leader writes nothing.

**Edge**: MemoryStore and leases on virtual time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from controller.commit import Change, Committer
from controller.feed import Feed
from controller.reconcile.election import Election, LeadershipLostError, Term, epoch_guards
from controller.reconcile.export import ensure_cloud
from controller.state import State
from controller.store import keys
from controller.store.lease import STOP_S, TTL_S, Keeper, LeaseTask
from controller.store.memory import MemoryStore, NoFaults
from controller.store.protocol import Delete, StoreUnavailableError, Txn, TxnResult
from cumulet.errors import CumuletError
from cumulet.v1 import flavor_pb2
from tests.sim.loop import run_virtual
from tests.unit.controller.cloud import SetClock


class Cut(NoFaults):
    """A client that can be cut off from the store."""

    def __init__(self) -> None:
        self.off = False

    async def before_call(self, what: str) -> None:
        if self.off:
            raise StoreUnavailableError(f"{what}: cut off")

    async def after_commit(self, txn: Txn, result: TxnResult) -> None:
        return


class Replica:
    """State, feed and election of one controller; what it leads is a list of its terms."""

    def __init__(self, store: MemoryStore, name: str, seed: int) -> None:
        self.cut = Cut()
        self.store = store.connect(faults=self.cut)
        self.state = State()
        self.name = name
        self.terms: list[Term] = []
        self.leading = False
        rng = random.Random(seed)
        self.feed = Feed(self.store, self.state, rng)
        now = asyncio.get_running_loop().time
        self.election = Election(self.store, self.state, name, self._keeper, now, rng)
        self.task: asyncio.Task[None] | None = None
        self.following = asyncio.create_task(self.feed.run())

    def _keeper(self, lease_id: int, granted_at: float) -> Keeper:
        return LeaseTask(self.store, lease_id, granted_at)

    def start(self) -> None:
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await self.feed.ready.wait()
        await self.election.run(self._lead)

    async def _lead(self, term: Term) -> None:
        self.terms.append(term)
        self.leading = True
        try:
            await asyncio.Event().wait()
        finally:
            self.leading = False

    async def end(self) -> None:
        for task in (self.task, self.following):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError, LeadershipLostError):
                    await task


async def _until(condition: Callable[[], bool], within_s: float) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 (time is virtual)
            await asyncio.sleep(0.05)


async def _pair() -> tuple[MemoryStore, Replica, Replica]:
    store = MemoryStore()
    await ensure_cloud(store, "cloud")
    one, two = Replica(store, "unix:/one", 1), Replica(store, "unix:/two", 2)
    one.start()
    await _until(lambda: one.leading, 2.0)
    two.start()
    return store, one, two


def test_one_leads_until_it_goes_and_the_other_follows_with_a_higher_epoch() -> None:
    async def story() -> None:
        _, one, two = await _pair()
        await asyncio.sleep(60.0)
        assert one.leading
        assert not two.terms
        await one.end()  # it gives its lease back: no need to wait for the TTL
        await _until(lambda: two.leading, 2.0)
        assert two.terms[0].epoch > one.terms[0].epoch
        assert two.state.epoch == two.terms[0].epoch
        await two.end()

    run_virtual(story())


def test_a_lost_lease_ends_the_term_before_another_begins() -> None:
    async def story() -> None:
        _, one, two = await _pair()
        one.cut.off = True
        assert one.task is not None
        started = asyncio.get_running_loop().time()
        with pytest.raises(LeadershipLostError):
            await one.task
        assert not one.leading
        assert not two.leading
        assert asyncio.get_running_loop().time() - started <= STOP_S + 1.0
        await _until(lambda: two.leading, TTL_S + 2.0)
        await two.end()
        await one.end()

    run_virtual(story())


def test_a_leader_whose_key_is_gone_stops_even_if_its_lease_is_renewed() -> None:
    """etcd 3.4 may acknowledge a renewal of a lease that was revoked."""

    async def story() -> None:
        store, one, two = await _pair()
        await store.txn(Txn([], [Delete(keys.LEADER_KEY.key())], "gone"))
        assert one.task is not None
        async with asyncio.timeout(5.0):
            with pytest.raises(LeadershipLostError):
                await one.task
        await _until(lambda: two.leading, 5.0)
        await one.end()
        await two.end()

    run_virtual(story())


def test_a_deposed_leaders_late_write_is_refused_and_the_control_is_not() -> None:
    async def story() -> None:
        store, one, two = await _pair()
        term = one.terms[0]
        await one.end()
        await _until(lambda: two.leading, 5.0)
        assert await _write_as(two, two.terms[0], store, "new")
        assert not await _write_as(two, term, store, "late")
        assert await _write_as(two, None, store, "control")
        rows = {parts[0] for parts in two.state.rows(keys.FLAVORS)}
        assert rows == {"new", "control"}
        await two.end()

    run_virtual(story())


async def _write_as(replica: Replica, term: Term | None, store: MemoryStore, name: str) -> bool:
    guards = (lambda: epoch_guards(replica.state, term)) if term else tuple
    committer = Committer(store.connect(), replica.state, SetClock(), random.Random(1), "late", guards)
    running = asyncio.create_task(committer.run())
    value = flavor_pb2.Flavor().SerializeToString()
    try:
        await committer.commit(lambda state: Change(writes={keys.FLAVORS.key(name): value}))
    except CumuletError:
        return False
    finally:
        running.cancel()
    return True


def test_of_many_candidates_one_wins() -> None:
    async def story() -> None:
        store = MemoryStore()
        await ensure_cloud(store, "cloud")
        replicas = [Replica(store, f"unix:/{number}", number) for number in range(5)]
        for replica in replicas:
            replica.start()
        for _ in range(4):
            await _until(lambda: any(replica.leading for replica in replicas), 15.0)
            (leader,) = [replica for replica in replicas if replica.leading]
            await leader.end()
            replicas.remove(leader)
        await replicas[0].end()

    run_virtual(story())


def test_the_clouds_identity_is_written_once() -> None:
    async def story() -> None:
        store = MemoryStore()
        await ensure_cloud(store, "first")
        await ensure_cloud(store, "second")
        found = await store.get(keys.CLOUD.key())
        assert found is not None
        assert b"first" in found.value

    run_virtual(story())
