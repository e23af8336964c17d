"""What every store guarantees about keys, transactions and history, on memory and a real etcd."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from controller.store.protocol import (
    OPS_MAX,
    PAGE_KEYS,
    REQUEST_BYTES_MAX,
    CompactedError,
    Compare,
    Delete,
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
from tests.support.stores import WAIT_S, Subject, holds, take, write

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
    async with asyncio.timeout(WAIT_S):
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
