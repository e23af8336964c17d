"""The committer: what shares a transaction, what never takes others along, what an unknown outcome was.

**Edge**: MemoryStore on the running loop, with its faults.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from controller.commit import ATTEMPTS_MAX, Change
from controller.state import State
from controller.store import keys
from controller.store.memory import MemoryStore, NoFaults
from controller.store.protocol import (
    Batch,
    OutcomeUnknownError,
    Put,
    StoreFullError,
    Txn,
    TxnResult,
    absent,
    range_unchanged_since,
    unchanged,
)
from cumulet.errors import AlreadyExistsError, ConflictError, QuotaExceededError, UnavailableError
from cumulet.v1 import event_pb2, flavor_pb2
from tests.unit.controller.cloud import running

VALUE = flavor_pb2.Flavor().SerializeToString()
WAIT_S = 10.0


def key_of(name: str) -> bytes:
    return keys.FLAVORS.key(name)


def adding(name: str, *, size: int = 0) -> Callable[[State], Change]:
    """Create a flavor; AlreadyExistsError when it is there."""

    def compute(state: State) -> Change:
        if state.find(keys.FLAVORS, name) is not None:
            raise AlreadyExistsError(f"flavor {name} exists already")
        value = flavor_pb2.Flavor(spec=flavor_pb2.FlavorSpec(description="x" * size)).SerializeToString()
        return Change(compares=[absent(key_of(name))], writes={key_of(name): value}, result=name)

    return compute


def up_to(limit: int, name: str) -> Callable[[State], Change]:
    """Create a flavor unless there are `limit`: a quota."""

    def compute(state: State) -> Change:
        if len(state.rows(keys.FLAVORS)) >= limit:
            raise QuotaExceededError("full")
        guard = range_unchanged_since(keys.FLAVORS.prefix(), state.revision)
        return Change(compares=[guard], writes={key_of(name): VALUE}, result=name)

    return compute


def hopeless(state: State) -> Change:
    """Its guard holds on no state."""
    return Change(compares=[unchanged(key_of("never"), 10**9)], writes={key_of("never"): VALUE})


@dataclass
class Trouble(NoFaults):
    """Faults by script: `before` and `after` are taken from, one for each transaction."""

    before: list[float] = field(default_factory=list)  # -1: it never happens; above 0: that late
    after: list[bool] = field(default_factory=list)
    full: int = 0
    swallow: int = 0
    txns: list[Txn] = field(default_factory=list)

    async def before_commit(self, txn: Txn) -> float:
        self.txns.append(txn)
        if self.full:
            self.full -= 1
            raise StoreFullError("no space")
        late_s = self.before.pop(0) if self.before else 0.0
        if late_s < 0:
            raise OutcomeUnknownError("lost on the way there")
        return late_s

    async def after_commit(self, txn: Txn, result: TxnResult) -> None:
        if self.after and self.after.pop(0):
            raise OutcomeUnknownError("lost on the way back")

    async def before_delivery(self, prefix: bytes, batch: Batch) -> bool:
        self.swallow -= 1
        return self.swallow < 0


async def test_what_waits_together_shares_a_transaction() -> None:
    async with running(MemoryStore()) as cloud:
        names = [f"f{number}" for number in range(40)]
        results = await asyncio.gather(*(cloud.committer.commit(adding(name)) for name in names))
        assert results == names
        assert cloud.committer.transactions == 1
        assert set(cloud.state.rows(keys.FLAVORS)) == {(name,) for name in names}


async def test_a_full_transaction_leaves_the_rest_to_the_next() -> None:
    async with running(MemoryStore()) as cloud:
        await asyncio.gather(*(cloud.committer.commit(adding(f"f{number}")) for number in range(300)))
        assert cloud.committer.transactions == 3
        big = [cloud.committer.commit(adding(f"b{number}", size=400_000)) for number in range(5)]
        await asyncio.gather(*big)
        assert cloud.committer.transactions == 5


async def test_a_result_comes_after_the_state_holds_it() -> None:
    async with running(MemoryStore()) as cloud:
        await cloud.committer.commit(adding("one"))
        assert cloud.state.find(keys.FLAVORS, "one") is not None


async def test_one_that_cannot_hold_takes_nobody_along() -> None:
    async with running(MemoryStore()) as cloud:
        wanted = [cloud.committer.commit(adding(f"f{number}")) for number in range(30)]
        wanted.insert(13, cloud.committer.commit(hopeless))
        results = await asyncio.gather(*wanted, return_exceptions=True)
        assert isinstance(results.pop(13), ConflictError)
        assert results == [f"f{number}" for number in range(30)]
        assert cloud.committer.transactions <= ATTEMPTS_MAX + 20


async def test_one_that_raises_takes_nobody_along() -> None:
    def broken(state: State) -> Change:
        raise KeyError("a fault of ours")

    async with running(MemoryStore()) as cloud:
        results = await asyncio.gather(
            *(cloud.committer.commit(what) for what in (adding("a"), broken, adding("b"))),
            return_exceptions=True,
        )
        assert results[0::2] == ["a", "b"]
        assert isinstance(results[1], KeyError)


async def test_a_quota_is_met_exactly_and_each_refusal_rests_on_what_has_happened() -> None:
    store = MemoryStore()
    async with running(store) as cloud:
        results = await asyncio.gather(
            *(cloud.committer.commit(up_to(10, f"f{number}")) for number in range(200)),
            return_exceptions=True,
        )
        assert sum(isinstance(result, str) for result in results) == 10
        assert sum(isinstance(result, QuotaExceededError) for result in results) == 190


async def test_a_refusal_is_not_based_on_a_write_that_never_happened() -> None:
    """The first one's transaction fails for good: the second, refused because of it, gets its name."""
    trouble = Trouble(full=1)
    async with running(MemoryStore(faults=trouble)) as cloud:
        results = await asyncio.gather(
            cloud.committer.commit(adding("same")),
            cloud.committer.commit(adding("same")),
            return_exceptions=True,
        )
        assert isinstance(results[0], UnavailableError)
        assert results[1] == "same"


async def test_two_committers_meet_a_quota_exactly() -> None:
    store = MemoryStore()
    async with running(store) as one, running(store.connect(), seed=2) as two:
        wanted = [
            cloud.committer.commit(up_to(10, f"f{number}")) for number, cloud in enumerate([one, two] * 30)
        ]
        results = await asyncio.gather(*wanted, return_exceptions=True)
        assert sum(isinstance(result, str) for result in results) == 10
        assert len(two.state.rows(keys.FLAVORS)) == 10


async def test_an_unanswered_transaction_that_happened_is_known_to_have() -> None:
    trouble = Trouble(after=[True])
    async with running(MemoryStore(faults=trouble)) as cloud:
        assert await cloud.committer.commit(adding("one")) == "one"
        assert [txn.purpose for txn in trouble.txns] == ["test"]


async def test_an_unanswered_transaction_that_did_not_happen_is_made_impossible_and_repeated() -> None:
    trouble = Trouble(before=[-1.0])
    async with running(MemoryStore(faults=trouble)) as cloud:
        assert await cloud.committer.commit(adding("one")) == "one"
        assert [txn.purpose for txn in trouble.txns] == ["test", "settle", "test"]


async def test_one_that_arrives_after_it_was_settled_does_nothing() -> None:
    """It is a second late; by then its commit record says void, so the name is free for another."""
    trouble = Trouble(before=[0.05])
    store = MemoryStore(faults=trouble)
    async with running(store) as cloud:
        first = asyncio.create_task(cloud.committer.commit(adding("one")))
        assert await first == "one"
        row = cloud.state.find(keys.FLAVORS, "one")
        await asyncio.sleep(0.1)  # the late one has been judged
        assert cloud.state.find(keys.FLAVORS, "one") == row
        assert row is not None
        assert row.mod_revision == row.create_revision


async def test_settling_goes_on_while_nobody_answers() -> None:
    trouble = Trouble(before=[-1.0, -1.0], after=[False, True])
    async with running(MemoryStore(faults=trouble)) as cloud:
        async with asyncio.timeout(WAIT_S):
            assert await cloud.committer.commit(adding("one")) == "one"
        assert len(cloud.state.rows(keys.FLAVORS)) == 1


async def test_a_full_store_is_said_and_nothing_else_is_lost() -> None:
    trouble = Trouble(full=1)
    async with running(MemoryStore(faults=trouble)) as cloud:
        with pytest.raises(UnavailableError, match="no space"):
            await cloud.committer.commit(adding("one"))
        assert await cloud.committer.commit(adding("one")) == "one"


async def test_a_starved_change_gives_up_after_its_attempts() -> None:
    async with running(MemoryStore()) as cloud:
        with pytest.raises(ConflictError, match="try again"):
            await cloud.committer.commit(hopeless)
        assert cloud.committer.transactions == ATTEMPTS_MAX


async def test_a_lost_watch_event_is_made_up_for_by_a_listing() -> None:
    trouble = Trouble(swallow=1)
    async with running(MemoryStore(faults=trouble)) as cloud:
        async with asyncio.timeout(WAIT_S):
            assert await cloud.committer.commit(adding("one")) == "one"
        assert cloud.state.find(keys.FLAVORS, "one") is not None
        assert cloud.feed.relists == 2


async def test_a_change_of_nothing_needs_no_transaction() -> None:
    async with running(MemoryStore()) as cloud:
        assert await cloud.committer.commit(lambda state: None) is None
        assert await cloud.committer.commit(lambda state: Change(result="as it is")) == "as it is"
        assert cloud.committer.transactions == 0


async def test_events_get_a_uid_and_ride_along() -> None:
    heard: list[event_pb2.Event] = []

    def compute(state: State) -> Change:
        return Change(writes={key_of("one"): VALUE}, events=[event_pb2.Event(reason="Created")])

    async with running(MemoryStore()) as cloud:
        cloud.state.listen_events(heard.append)
        await cloud.committer.commit(compute)
        row = cloud.state.find(keys.FLAVORS, "one")
        assert row is not None
        assert [(event.reason, event.revision) for event in heard] == [("Created", row.mod_revision)]
        assert heard[0].uid


async def test_the_end_answers_whoever_waits() -> None:
    trouble = Trouble(before=[-1.0])
    async with running(MemoryStore(faults=trouble)) as cloud:
        hangs = asyncio.create_task(cloud.committer.commit(adding("one")))
        waits = asyncio.create_task(cloud.committer.commit(adding("two")))
        await asyncio.sleep(0)
        cloud.task.cancel()
        for task in (hangs, waits):
            with pytest.raises(UnavailableError):
                await task
        with pytest.raises(UnavailableError):
            await cloud.committer.commit(adding("three"))


async def test_a_caller_that_has_gone_does_not_matter() -> None:
    async with running(MemoryStore()) as cloud:
        gone = asyncio.create_task(cloud.committer.commit(adding("gone")))
        await asyncio.sleep(0)
        gone.cancel()
        assert await cloud.committer.commit(adding("one")) == "one"


async def test_a_guard_of_the_committer_is_in_every_transaction() -> None:
    """Planted: another leader's key. Not one write of the deposed one gets through."""
    store = MemoryStore()
    await store.txn(Txn([], [Put(keys.LEADER_KEY.key(), b"")], "elect"))
    epoch = store.revision
    async with running(store, lambda: [unchanged(keys.LEADER_KEY.key(), epoch)]) as cloud:
        assert await cloud.committer.commit(adding("mine")) == "mine"
        await store.txn(Txn([], [Put(keys.LEADER_KEY.key(), b"")], "elect"))
        results = await asyncio.gather(
            *(cloud.committer.commit(adding(f"late{number}")) for number in range(5)),
            return_exceptions=True,
        )
        assert all(isinstance(result, ConflictError) for result in results)
        assert set(cloud.state.rows(keys.FLAVORS)) == {("mine",)}
