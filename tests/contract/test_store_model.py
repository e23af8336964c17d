"""Random transactions: the memory store against a plain model, and against a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.store.etcd import EtcdStore
from controller.store.memory import MemoryStore
from controller.store.protocol import (
    Change,
    Compare,
    Delete,
    KeyValue,
    Put,
    Store,
    Txn,
    TxnResult,
    TxnTooLargeError,
    check_txn_size,
    in_range,
)
from tests.support.etcd import EtcdServer

WAIT_S = 20.0

keys = st.sampled_from([b"/m/a", b"/m/b", b"/m/c", b"/m/c/d", b"/m/\xff"])
ends = st.sampled_from([b"", b"", b"/m/b", b"/m/c0", b"/n", b"\0"])
values = st.sampled_from([b"", b"1", b"2"])
# Revisions are counted from the store's at the start of a case; 0 stays "absent".
revisions = st.integers(0, 12)


def compares() -> st.SearchStrategy[Compare]:
    bounds: list[st.SearchStrategy[Compare]] = [
        st.builds(Compare, keys, ends, create_equals=revisions),
        st.builds(Compare, keys, ends, mod_equals=revisions),
        st.builds(Compare, keys, ends, mod_below=revisions),
        st.builds(Compare, keys, ends, value_equals=values),
    ]
    return st.one_of(bounds)


def fits(txn: Txn) -> bool:
    try:
        check_txn_size(txn)
    except TxnTooLargeError:
        return False
    return True


writes = st.one_of(st.builds(Put, keys, values), st.builds(Put, keys, values), st.builds(Delete, keys, ends))
txns = st.builds(
    Txn, st.lists(compares(), max_size=2), st.lists(writes, max_size=4), purpose=st.just("model")
).filter(fits)
histories = st.lists(txns, min_size=1, max_size=14)


@dataclass
class Model:
    """The specification in a dict: no history, every step a copy."""

    revision: int = 0
    items: dict[bytes, KeyValue] = field(default_factory=dict)
    past: list[dict[bytes, KeyValue]] = field(default_factory=lambda: [{}])
    changes: list[Change] = field(default_factory=list)

    def txn(self, txn: Txn) -> TxnResult:
        if not all(map(self.holds, txn.compares)):
            return TxnResult(False, self.revision)
        mark = len(self.changes)
        for write in txn.writes:
            if isinstance(write, Put):
                self.put(write)
            else:
                self.delete(write)
        if len(self.changes) > mark:
            self.revision += 1
            self.past.append(dict(self.items))
        return TxnResult(True, self.revision)

    def put(self, write: Put) -> None:
        now = self.revision + 1
        created = self.items[write.key].create_revision if write.key in self.items else now
        self.items[write.key] = KeyValue(write.key, write.value, created, now)
        self.changes.append(Change(write.key, write.value, created, now, False))

    def delete(self, write: Delete) -> None:
        for key in [key for key in sorted(self.items) if covers(write, key)]:
            del self.items[key]
            self.changes.append(Change(key, b"", 0, self.revision + 1, True))

    def holds(self, compare: Compare) -> bool:
        found = [item for key, item in self.items.items() if covers(compare, key)]
        if not found and compare.value_equals is not None:
            return False
        return all(
            (compare.create_equals in (None, item.create_revision))
            and (compare.mod_equals in (None, item.mod_revision))
            and (compare.mod_below is None or item.mod_revision < compare.mod_below)
            and (compare.value_equals in (None, item.value))
            for item in found or [KeyValue(b"", b"", 0, 0)]
        )


def covers(part: Compare | Delete, key: bytes) -> bool:
    return in_range(key, part.key, part.range_end) if part.range_end else key == part.key


@dataclass(frozen=True)
class Outcome:
    """All that a store can tell about a case, with revisions counted from its start."""

    results: list[TxnResult]
    past: list[list[KeyValue]]
    changes: list[Change]


def expected(history: list[Txn]) -> Outcome:
    model = Model()
    results = [model.txn(txn) for txn in history]
    past = [sorted(items.values(), key=lambda item: item.key) for items in model.past]
    return Outcome(results, past, model.changes)


async def observed(store: Store, history: list[Txn]) -> Outcome:
    base = (await store.list(b"/")).revision

    def absolute(revision: int | None) -> int | None:
        return revision + base if revision else revision

    def relative(revision: int) -> int:
        return revision - base if revision else 0

    def moved(compare: Compare) -> Compare:
        return replace(
            compare,
            create_equals=absolute(compare.create_equals),
            mod_equals=absolute(compare.mod_equals),
            mod_below=absolute(compare.mod_below),
        )

    results = []
    for txn in history:
        result = await store.txn(replace(txn, compares=[moved(compare) for compare in txn.compares]))
        results.append(TxnResult(result.committed, relative(result.revision)))
    last = base + results[-1].revision
    listings = [await store.list(b"/m/", revision=revision) for revision in range(base, last + 1)]
    past = [
        [
            KeyValue(i.key, i.value, relative(i.create_revision), relative(i.mod_revision))
            for i in listing.items
        ]
        for listing in listings
    ]
    changes = [
        c._replace(create_revision=relative(c.create_revision), mod_revision=relative(c.mod_revision))
        for c in await watched(store, base + 1, last)
    ]
    return Outcome(results, past, changes)


async def watched(store: Store, first: int, last: int) -> list[Change]:
    changes: list[Change] = []
    async with asyncio.timeout(WAIT_S):
        watch = store.watch(b"/m/", first)
        while first <= last:
            batch = await anext(watch)
            changes.extend(batch.changes)
            first = batch.revision + 1
    return changes


@settings(max_examples=60)
@given(history=histories)
def test_the_memory_store_equals_the_model(history: list[Txn]) -> None:
    assert asyncio.run(observed(MemoryStore(), history)) == expected(history)


@settings(max_examples=60)
@given(history=histories, at=st.integers(0, 14))
def test_compaction_changes_no_answer_from_its_revision_on(history: list[Txn], at: int) -> None:
    async def compacted() -> tuple[int, list[list[KeyValue]], list[Change]]:
        store = MemoryStore()
        base = store.revision
        for txn in history:
            await store.txn(replace(txn, compares=()))
        cut = min(base + at, store.revision)
        await store.compact(cut)
        listings = [await store.list(b"/m/", revision=at) for at in range(cut, store.revision + 1)]
        changes = await watched(store, cut + 1, store.revision)
        return (
            cut - base,
            [
                [
                    KeyValue(i.key, i.value, i.create_revision - base, i.mod_revision - base)
                    for i in listing.items
                ]
                for listing in listings
            ],
            changes,
        )

    cut, past, changes = asyncio.run(compacted())
    model = expected([replace(txn, compares=()) for txn in history])
    assert past == model.past[cut:]
    assert [change.key for change in changes] == [c.key for c in model.changes if c.mod_revision > cut]


@pytest.fixture(scope="module")
def lone_etcd() -> Iterator[EtcdServer]:
    """Nobody else writes to it, not even an expiring lease: revisions are compared exactly."""
    with EtcdServer() as server:
        yield server


@settings(max_examples=20)
@given(cases=st.lists(histories, min_size=2, max_size=4))
def test_etcd_equals_the_memory_store(lone_etcd: EtcdServer, cases: list[list[Txn]]) -> None:
    async def both() -> None:
        store = EtcdStore([lone_etcd.endpoint])
        for history in cases:
            await store.txn(Txn((), (Delete(b"/m/", b"/n"),), "reset"))
            assert await observed(store, history) == await observed(MemoryStore(), history)
        await store.close()

    asyncio.run(both())
