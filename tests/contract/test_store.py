"""What every store guarantees, shown on the memory store and on a real etcd."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest

from controller.store.etcd import EtcdStore
from controller.store.memory import MemoryStore
from controller.store.protocol import (
    OPS_MAX,
    PAGE_KEYS,
    REQUEST_BYTES_MAX,
    Batch,
    Change,
    CompactedError,
    Compare,
    Delete,
    LeaseLostError,
    Put,
    Store,
    StoreError,
    StoreUnavailableError,
    Txn,
    TxnTooLargeError,
    absent,
    created_at,
    prefix_end,
    range_absent,
    range_unchanged_since,
    unchanged,
)
from tests.support.etcd import EtcdServer

WAIT_S = 20.0  # for what happens within milliseconds on an idle machine


@dataclass(frozen=True)
class Subject:
    """A store, a second client of the same data, and a way to break every watch of the first."""

    store: Store
    other: Store
    break_watches: Callable[[], Awaitable[None]]
    prefix: bytes


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


_prefixes = (b"/t%d/" % number for number in itertools.count())


@pytest.fixture(params=["memory", "etcd"])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    store: Store
    other: Store
    if request.param == "memory":
        store = memory = MemoryStore()
        other = memory.connect()

        async def break_watches() -> None:
            memory.cut_watches(0.05)
    else:
        server: EtcdServer = request.getfixturevalue("etcd")
        store, other = EtcdStore([server.endpoint]), EtcdStore([server.endpoint])

        async def break_watches() -> None:
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)

    yield Subject(store, other, break_watches, next(_prefixes))
    await store.close()
    await other.close()


@pytest.fixture
def store(subject: Subject) -> Store:
    return subject.store


@pytest.fixture
def prefix(subject: Subject) -> bytes:
    return subject.prefix


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


# --- keys, revisions, transactions


async def test_a_key_carries_its_creation_and_its_last_write(store: Store, prefix: bytes) -> None:
    key = prefix + b"a"
    assert await store.get(key) is None
    first = await write(store, Put(key, b"1"))
    second = await write(store, Put(key, b""))
    item = await store.get(key)
    assert item is not None
    assert (item.value, item.create_revision, item.mod_revision, item.lease_id) == (b"", first, second, 0)
    old = await store.get(key, revision=first)
    assert old is not None
    assert old.value == b"1"
    await write(store, Delete(key))
    third = await write(store, Put(key, b"3"))
    item = await store.get(key)
    assert item is not None
    assert item.create_revision == item.mod_revision == third


async def test_a_transaction_moves_the_revision_by_one_if_it_changes_something(
    store: Store, prefix: bytes
) -> None:
    first = await write(store, Put(prefix + b"a", b""), Put(prefix + b"b", b""), Put(prefix + b"c", b""))
    assert await write(store) == first
    assert await write(store, Delete(prefix + b"no such key")) == first
    assert await write(store, Put(prefix + b"a", b"")) == first + 1  # the same value is a write too
    assert await write(store, Delete(prefix + b"b", prefix_end(prefix)), Put(prefix + b"a", b"")) == first + 2
    assert [item.key for item in (await store.list(prefix)).items] == [prefix + b"a"]


async def test_a_refused_transaction_writes_nothing(store: Store, prefix: bytes) -> None:
    revision = await write(store, Put(prefix + b"a", b"1"))
    guards = (unchanged(prefix + b"a", revision), absent(prefix + b"a"))
    refused = await store.txn(Txn(guards, (Put(prefix + b"a", b"2"), Put(prefix + b"b", b"2")), "test"))
    assert not refused.committed
    assert refused.revision == revision
    assert [item.value for item in (await store.list(prefix)).items] == [b"1"]


async def test_compares_over_one_key(store: Store, prefix: bytes) -> None:
    key, gone = prefix + b"a", prefix + b"gone"
    created = await write(store, Put(key, b"1"), Put(gone, b""))
    written = await write(store, Put(key, b"2"), Delete(gone))
    expected = {
        absent(key): False,
        absent(gone): True,
        created_at(key, created): True,
        created_at(key, written): False,
        created_at(gone, created): False,
        unchanged(key, written): True,
        unchanged(key, created): False,
        unchanged(gone, 0): True,
        Compare(key, mod_below=written + 1): True,
        Compare(key, mod_below=written): False,
        Compare(gone, mod_below=1): True,
        Compare(key, value_equals=b"2"): True,
        Compare(key, value_equals=b"1"): False,
        Compare(gone, value_equals=b""): False,
    }
    assert {compare: await holds(store, compare) for compare in expected} == expected
    assert await holds(store, *(compare for compare, true in expected.items() if true))


async def test_compares_over_a_range(store: Store, prefix: bytes) -> None:
    full, empty = prefix + b"full/", prefix + b"empty/"
    first = await write(store, *(Put(full + bytes([letter]), b"v") for letter in b"abc"))
    assert await holds(store, range_absent(empty))
    assert not await holds(store, range_absent(full))
    assert await holds(store, range_unchanged_since(empty, 0))
    assert not await holds(store, created_at(empty, 5), Compare(empty, prefix_end(empty), create_equals=5))
    assert await holds(store, Compare(full, prefix_end(full), value_equals=b"v"))
    assert not await holds(store, Compare(empty, prefix_end(empty), value_equals=b""))
    assert await holds(store, range_unchanged_since(full, first))
    assert not await holds(store, range_unchanged_since(full, first - 1))
    await write(store, Delete(full + b"b"))
    assert await holds(store, range_unchanged_since(full, first)), "deletions pass"
    await write(store, Put(full + b"d", b"w"))
    assert not await holds(store, range_unchanged_since(full, first))
    assert not await holds(store, Compare(full, prefix_end(full), value_equals=b"v")), "one of three differs"


async def test_the_last_prefix_has_no_end(store: Store, prefix: bytes) -> None:
    last = b"\xff\xff" + prefix[1:-1]
    revision = await write(store, Put(last, b""))
    assert [item.key for item in (await store.list(b"\xff\xff")).items][-1] == last
    assert not await holds(store, range_absent(b"\xff"))
    assert last in [item.key for item in (await store.list(b"", revision=revision)).items]
    await write(store, Delete(b"\xff", prefix_end(b"\xff")))
    assert await holds(store, range_absent(b"\xff"))


async def test_of_many_creators_one_wins(subject: Subject) -> None:
    key = subject.prefix + b"a"
    create = [Txn((absent(key),), (Put(key, b"%d" % number),), "test") for number in range(40)]
    stores = itertools.cycle((subject.store, subject.other))
    results = await asyncio.gather(*(store.txn(txn) for store, txn in zip(stores, create, strict=False)))
    assert [result.committed for result in results].count(True) == 1
    winner = next(number for number, result in enumerate(results) if result.committed)
    item = await subject.store.get(key)
    assert item is not None
    assert item.value == b"%d" % winner


async def test_a_range_guard_holds_a_quota(subject: Subject) -> None:
    """Read-check-write by 30 clients at a quota of 10, guarded by the range alone."""

    async def create(store: Store, number: int) -> bool:
        while True:
            seen = await store.list(subject.prefix)
            if len(seen.items) >= 10:
                return False
            guard = range_unchanged_since(subject.prefix, seen.revision)
            put = Put(subject.prefix + b"%d" % number, b"")
            if (await store.txn(Txn((guard,), (put,), "test"))).committed:
                return True

    stores = [subject.store, subject.other] * 15
    created = await asyncio.gather(*(create(store, number) for number, store in enumerate(stores)))
    assert created.count(True) == 10
    assert len((await subject.store.list(subject.prefix)).items) == 10


# --- limits


async def test_limits_are_typed_and_what_is_within_them_passes(store: Store, prefix: bytes) -> None:
    keys = [prefix + b"%03d" % number for number in range(OPS_MAX + 1)]
    most = Txn([absent(key) for key in keys[:-1]], [Put(key, b"") for key in keys[:-1]], "test")
    assert (await store.txn(most)).committed
    room = REQUEST_BYTES_MAX - 16 - len(keys[0])
    assert await write(store, Put(keys[0], b"x" * room))
    too_large = {
        "writes": Txn((), [Put(key, b"") for key in keys], "test"),
        "compares": Txn([absent(key) for key in keys], (), "test"),
        "bytes": Txn((), [Put(keys[0], b"x" * (room + 1))], "test"),
        "put twice": Txn((), [Put(keys[0], b""), Put(keys[0], b"")], "test"),
        "put and deleted": Txn((), [Put(keys[0], b""), Delete(keys[0])], "test"),
        "put in a deleted range": Txn((), [Put(keys[0], b""), Delete(prefix, prefix_end(prefix))], "test"),
    }
    for what, txn in too_large.items():
        with pytest.raises(TxnTooLargeError):
            pytest.fail(f"{what}: {await store.txn(txn)}")


async def test_an_empty_key_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match=r"empty|not provided"):
        await write(store, Put(b"", b""))
    with pytest.raises(StoreError, match=r"empty|not provided"):
        await store.get(b"")


# --- listing


async def test_pages_show_one_revision_while_writes_go_on(store: Store, prefix: bytes) -> None:
    keys = [prefix + b"%03d" % number for number in range(100)]
    await write(store, *(Put(key, b"old") for key in keys))
    page = await store.list(prefix, limit=30)
    assert page.more
    revision, found = page.revision, list(page.items)
    while page.more:
        await write(
            store, Delete(keys[50]), *(Put(key, b"new") for key in (*keys[60:], found[-1].key + b"+"))
        )
        page = await store.list(prefix, revision=revision, start_after=found[-1].key, limit=30)
        assert page.revision == revision
        found.extend(page.items)
    assert [item.key for item in found] == keys
    assert {item.value for item in found} == {b"old"}


async def test_limits_of_a_listing(store: Store, prefix: bytes) -> None:
    keys = [prefix + bytes([letter]) for letter in b"abc"]
    await write(store, *(Put(key, b"") for key in keys), Put(prefix[:-1] + b"0", b"beside the prefix"))
    cases = [
        (await store.list(prefix, limit=2), keys[:2], True),
        (await store.list(prefix, limit=3), keys, False),
        (await store.list(prefix, limit=4), keys, False),
        (await store.list(prefix, start_after=keys[0]), keys[1:], False),
        (await store.list(prefix, start_after=keys[2]), [], False),
        (await store.list(prefix, start_after=b"\0"), keys, False),
        (await store.list(prefix + b"none"), [], False),
    ]
    for listing, expected, more in cases:
        assert ([item.key for item in listing.items], listing.more) == (expected, more)


async def test_a_listing_longer_than_a_page_is_complete(store: Store, prefix: bytes) -> None:
    keys = [prefix + b"%05d" % number for number in range(PAGE_KEYS + 700)]
    await asyncio.gather(
        *(
            write(store, *(Put(key, b"") for key in keys[at : at + OPS_MAX]))
            for at in range(0, len(keys), OPS_MAX)
        )
    )
    assert [item.key for item in (await store.list(prefix)).items] == keys
    cut = await store.list(prefix, limit=PAGE_KEYS + 1)
    assert (len(cut.items), cut.more) == (PAGE_KEYS + 1, True)


# --- history


async def test_history_ends_at_the_compaction(store: Store, prefix: bytes) -> None:
    key = prefix + b"a"
    first, second, third = [await write(store, Put(key, value)) for value in (b"1", b"2", b"3")]
    await store.compact(second)
    await store.compact(second)
    await store.compact(first)
    old = await store.get(key, revision=second)
    assert old is not None
    assert old.value == b"2"
    assert (await store.list(prefix, revision=second)).items == (old,)
    with pytest.raises(CompactedError):
        await store.get(key, revision=first)
    with pytest.raises(CompactedError):
        await store.list(prefix, revision=first)
    for start in (first, second):
        with pytest.raises(CompactedError) as refusal:
            await take(store.watch(prefix, start), 1)
        assert refusal.value.compact_revision == second
    assert [change.value for change in await take(store.watch(prefix, third), 1)] == [b"3"]


async def test_a_deletion_at_the_compacted_revision_is_not_lost_silently(store: Store, prefix: bytes) -> None:
    await write(store, Put(prefix + b"a", b""))
    deleted = await write(store, Delete(prefix + b"a"))
    await write(store, Put(prefix + b"b", b""))
    await store.compact(deleted)
    with pytest.raises(CompactedError):
        await take(store.watch(prefix, deleted), 1)


async def test_the_future_cannot_be_read_or_forgotten(store: Store, prefix: bytes) -> None:
    now = (await store.list(prefix)).revision
    for attempt in (
        store.get(prefix, revision=now + 10),
        store.list(prefix, revision=now + 10),
        store.compact(now + 10),
    ):
        with pytest.raises(StoreError, match="revision") as refusal:
            await attempt
        assert not isinstance(refusal.value, StoreUnavailableError | CompactedError)


# --- watches


async def test_a_watch_tells_history_and_then_what_comes(store: Store, prefix: bytes) -> None:
    a, b = prefix + b"a", prefix + b"b"
    first = await write(store, Put(a, b"1"), Put(b, b"1"))
    await write(store, Put(prefix[:-1], b"beside the prefix"))
    watch = store.watch(prefix, first)
    assert await take(watch, 2) == [
        Change(a, b"1", first, first, False),
        Change(b, b"1", first, first, False),
    ]
    second = await write(store, Put(b, b"2"))
    third = await write(store, Delete(prefix, prefix_end(prefix)))
    assert await take(watch, 3) == [
        Change(b, b"2", first, second, False),
        Change(a, b"", 0, third, True),
        Change(b, b"", 0, third, True),
    ]


async def test_a_watch_may_start_in_the_middle_or_in_the_future(store: Store, prefix: bytes) -> None:
    first = await write(store, Put(prefix + b"a", b"1"))
    for start, expected in ((first + 1, b"2"), (first + 2, b"3")):
        watch = store.watch(prefix, start)
        waiting = asyncio.create_task(take(watch, 1))
        await write(store, Put(prefix + b"a", expected))
        assert [change.value for change in await waiting] == [expected]
    with pytest.raises(ValueError, match="start_revision"):
        await anext(store.watch(prefix, 0))


async def test_a_broken_watch_loses_nothing_and_tells_nothing_twice(subject: Subject) -> None:
    """Thousands of events, several keys a revision, and breaks in the middle of them."""
    store, prefix = subject.store, subject.prefix
    rounds, width = 200, 10
    start = (await store.list(prefix)).revision + 1

    async def write_rounds(first: int) -> None:
        for number in range(first, first + rounds):
            await write(subject.other, *(Put(prefix + b"%d" % key, b"%d" % number) for key in range(width)))

    await write_rounds(0)
    watch = store.watch(prefix, start)
    seen = await take(watch, 1)
    for part in (1, 2):
        breaking = asyncio.ensure_future(subject.break_watches())
        seen += await take(watch, part * rounds * width - len(seen))
        await breaking
        await write_rounds(part * rounds)
        seen += await take(watch, (part + 1) * rounds * width - len(seen))
    assert [(change.key, change.value) for change in seen] == [
        (prefix + b"%d" % key, b"%d" % number) for number in range(3 * rounds) for key in range(width)
    ]


async def test_big_revisions_arrive_whole(store: Store, prefix: bytes) -> None:
    """etcd cuts what is over its request limit into fragments, in the middle of a revision."""
    width, value = 100, b"x" * 13_000
    for _ in range(4):
        last = await write(store, *(Put(prefix + b"%03d" % key, value) for key in range(width)))
    changes = await take(store.watch(prefix, last - 3), 4 * width)
    assert [(change.key, change.mod_revision) for change in changes] == [
        (prefix + b"%03d" % key, revision) for revision in range(last - 3, last + 1) for key in range(width)
    ]


async def test_an_idle_watch_survives_a_break(subject: Subject) -> None:
    start = await write(subject.store, Put(subject.prefix + b"a", b"1"))
    watch = subject.store.watch(subject.prefix, start)
    await take(watch, 1)
    waiting = asyncio.create_task(take(watch, 1))
    await asyncio.sleep(0)
    await subject.break_watches()
    await write(subject.other, Put(subject.prefix + b"a", b"2"))
    assert [change.value for change in await waiting] == [b"2"]


async def test_a_watch_whose_history_went_while_it_was_broken_says_so(subject: Subject) -> None:
    first = await write(subject.store, Put(subject.prefix + b"a", b"1"))
    watch = subject.store.watch(subject.prefix, first)
    await take(watch, 1)
    await subject.break_watches()
    await write(subject.other, Put(subject.prefix + b"a", b"2"))
    last = await write(subject.other, Put(subject.prefix + b"a", b"3"))
    await subject.other.compact(last)
    with pytest.raises(CompactedError):
        await take(watch, 3)


# --- leases


async def test_an_expired_lease_takes_its_keys_along(store: Store, prefix: bytes) -> None:
    dying, kept = await store.grant_lease(2), await store.grant_lease(2)
    start = await write(
        store,
        Put(prefix + b"dying", b"", dying),
        Put(prefix + b"kept", b"", kept),
        Put(prefix + b"freed", b"", dying),
    )
    await write(store, Put(prefix + b"freed", b"now without a lease"))
    item = await store.get(prefix + b"dying")
    assert item is not None
    assert item.lease_id == dying
    waiting = asyncio.create_task(take(store.watch(prefix, start + 2), 1))
    while not waiting.done():
        assert await store.keep_alive(kept) >= 2
        await asyncio.wait([waiting], timeout=0.3)
    assert [(change.key, change.deleted) for change in await waiting] == [(prefix + b"dying", True)]
    assert [item.key for item in (await store.list(prefix)).items] == [prefix + b"freed", prefix + b"kept"]
    with pytest.raises(LeaseLostError):
        await store.keep_alive(dying)


async def test_a_revoked_lease_deletes_its_keys_in_one_revision(store: Store, prefix: bytes) -> None:
    lease = await store.grant_lease(60)
    keys = [prefix + bytes([letter]) for letter in b"cab"]
    start = await write(store, *(Put(key, b"", lease) for key in keys))
    await store.revoke_lease(lease)
    await store.revoke_lease(lease)
    changes = await take(store.watch(prefix, start + 1), 3)
    assert [(change.key, change.mod_revision) for change in changes] == [(k, start + 1) for k in sorted(keys)]
    with pytest.raises(LeaseLostError):
        await store.keep_alive(lease)


async def test_a_put_under_a_lost_lease_writes_nothing(store: Store, prefix: bytes) -> None:
    lease = await store.grant_lease(60)
    await store.revoke_lease(lease)
    puts = (Put(prefix + b"a", b""), Put(prefix + b"b", b"", lease))
    with pytest.raises(LeaseLostError):
        await store.txn(Txn((), puts, "test"))
    assert not (await store.txn(Txn((unchanged(prefix, 1),), puts, "test"))).committed
    assert (await store.list(prefix)).items == ()


# --- the end


async def test_close_ends_watches_and_refuses_calls(subject: Subject) -> None:
    watch = subject.other.watch(subject.prefix, 1_000_000)
    waiting = asyncio.ensure_future(anext(watch, None))
    await asyncio.wait([waiting], timeout=0.1)
    assert not waiting.done()
    await subject.other.close()
    async with asyncio.timeout(WAIT_S):
        assert await waiting is None
    with pytest.raises(StoreUnavailableError, match="closed"):
        await subject.other.get(subject.prefix)
    with pytest.raises(StoreUnavailableError, match="closed"):
        await write(subject.other, Put(subject.prefix, b""))
    assert await subject.store.get(subject.prefix) is None
