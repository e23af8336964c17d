"""What every store guarantees about watches, leases and its end, on memory and a real etcd."""

from __future__ import annotations

import asyncio

import pytest

from controller.store.protocol import (
    Change,
    CompactedError,
    Delete,
    LeaseLostError,
    Put,
    Store,
    StoreUnavailableError,
    Txn,
    prefix_end,
    unchanged,
)
from tests.support.stores import WAIT_S, Subject, take, write

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


async def test_a_broken_idle_watch_asks_for_all_since_its_last_change(subject: Subject) -> None:
    """What concerned other prefixes went by unseen, so its compaction must be told: list again."""
    first = await write(subject.store, Put(subject.prefix + b"mine/a", b"1"))
    watch = subject.store.watch(subject.prefix + b"mine/", first)
    await take(watch, 1)
    waiting = asyncio.create_task(take(watch, 1))
    for _ in range(2):
        last = await write(subject.other, Put(subject.prefix + b"other", b""))
        await asyncio.wait([waiting], timeout=0.05)
    await subject.other.compact(last)
    await subject.break_watches()
    with pytest.raises(CompactedError):
        await waiting


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
    await store.revoke_lease(kept)


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
