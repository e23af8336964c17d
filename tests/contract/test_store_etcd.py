"""What only a real etcd can show: crashes, silence, a cluster that loses its leader, TLS, a full disk."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme

from controller.store.etcd import EtcdStore
from controller.store.etcd_channel import TlsFiles
from controller.store.protocol import (
    Batch,
    OutcomeUnknownError,
    Put,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    Txn,
    absent,
)
from tests.support.etcd import EtcdCluster, EtcdServer, ServerTls, etcd_cluster

WAIT_S = 30.0  # for what happens within a few seconds on an idle machine


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    with etcd_cluster(3) as members:
        yield members


@pytest.fixture
async def store(etcd: EtcdServer) -> AsyncIterator[EtcdStore]:
    store = EtcdStore([etcd.endpoint])
    yield store
    await store.close()


def create(key: bytes, value: bytes = b"") -> Txn:
    return Txn((absent(key),), (Put(key, value),), "create")


class Tally:
    """Keys in the order they were done, and a way to wait for so many."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self._grown = asyncio.Event()

    def add(self, key: bytes) -> None:
        self.keys.append(key)
        self._grown.set()

    async def reached(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.keys) < count:
                self._grown.clear()
                await self._grown.wait()


async def create_for_sure(store: EtcdStore, key: bytes) -> None:
    """As a caller must: read back when the outcome is unknown. Ends when the key exists once."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                await store.txn(create(key))
                return
            except OutcomeUnknownError:
                await read_back(store, key)


async def read_back(store: EtcdStore, key: bytes) -> bool:
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                return await store.get(key) is not None
            except StoreUnavailableError:
                continue  # bounded by the timeout; each read waits by itself


async def collect(watch: AsyncIterator[Batch], count: int) -> list[bytes]:
    keys: list[bytes] = []
    async with asyncio.timeout(WAIT_S):
        while len(keys) < count:
            keys += [change.key for change in (await anext(watch)).changes]
    return keys


@pytest.fixture
async def impatient(etcd: EtcdServer) -> AsyncIterator[EtcdStore]:
    store = EtcdStore([etcd.endpoint], timeout_s=0.5)
    yield store
    await store.close()


async def test_what_was_acknowledged_survives_kill_9(etcd: EtcdServer, store: EtcdStore) -> None:
    acknowledged, attempted = Tally(), Tally()
    killed: list[bool] = []

    async def writer(number: int) -> None:
        for count in itertools.takewhile(lambda _: not killed, itertools.count()):
            key = b"/kill/%d/%d" % (number, count)
            attempted.add(key)
            await store.txn(create(key))
            acknowledged.add(key)

    writers = [asyncio.create_task(writer(number)) for number in range(8)]
    await acknowledged.reached(300)
    etcd.kill()
    killed.append(True)
    etcd.start()
    async with asyncio.timeout(WAIT_S):
        ends = await asyncio.gather(*writers, return_exceptions=True)
    # gRPC itself repeats what had not left this process, so not every writer need see the crash.
    assert {type(end) for end in ends if end} <= {OutcomeUnknownError}
    await read_back(store, b"/kill/0/0")
    kept = {item.key for item in (await store.list(b"/kill/")).items}
    assert set(acknowledged.keys) <= kept <= set(attempted.keys)


async def test_silence_leaves_a_write_unknown_and_a_read_unavailable(
    etcd: EtcdServer, impatient: EtcdStore
) -> None:
    await create_for_sure(impatient, b"/silence/before")
    etcd.pause()
    try:
        started = time.monotonic()
        with pytest.raises(OutcomeUnknownError, match="txn create"):
            await impatient.txn(create(b"/silence/during"))
        with pytest.raises(StoreUnavailableError, match="get"):
            await impatient.get(b"/silence/before")
        with pytest.raises(StoreUnavailableError, match="renew lease"):
            await impatient.keep_alive(1)
        with pytest.raises(OutcomeUnknownError, match="grant a lease"):
            await impatient.grant_lease(10)
        assert time.monotonic() - started < 4, "each call is bounded by the store's half second"
    finally:
        etcd.resume()
    # It had been sent: here it takes effect after its caller was told "unknown".
    await create_for_sure(impatient, b"/silence/during")
    assert await read_back(impatient, b"/silence/during")


async def test_a_close_in_mid_call_is_an_error_not_a_cancellation(etcd: EtcdServer) -> None:
    store = EtcdStore([etcd.endpoint])
    await store.get(b"/close")
    etcd.pause()
    try:
        write, read = (
            asyncio.create_task(store.txn(create(b"/close"))),
            asyncio.create_task(store.get(b"/close")),
        )
        await asyncio.wait([write, read], timeout=0.2)
        await store.close()
        ends = await asyncio.gather(write, read, return_exceptions=True)
    finally:
        etcd.resume()
    assert [type(end) for end in ends] == [OutcomeUnknownError, StoreUnavailableError]


async def test_a_cancelled_caller_is_cancelled(store: EtcdStore) -> None:
    watching = asyncio.create_task(collect(store.watch(b"/cancel", 1_000_000), 1))
    await asyncio.wait([watching], timeout=0.2)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_nobody_there(store: EtcdStore) -> None:
    lonely = EtcdStore(["127.0.0.1:1"], timeout_s=0.3)
    with pytest.raises(StoreUnavailableError):
        await lonely.get(b"/a")
    with pytest.raises(OutcomeUnknownError):
        await lonely.txn(create(b"/a"))
    await lonely.close()


async def test_transactions_are_counted_by_purpose(etcd: EtcdServer) -> None:
    seen: list[tuple[str, float, bool]] = []
    store = EtcdStore([etcd.endpoint], on_txn=lambda *call: seen.append(call))
    await store.txn(create(b"/counted"))
    await store.txn(create(b"/counted"))
    await store.close()
    assert [(purpose, committed) for purpose, _, committed in seen] == [("create", True), ("create", False)]
    assert all(0 < seconds < WAIT_S for _, seconds, _ in seen)


async def test_writes_and_watches_outlive_the_leader(cluster: EtcdCluster) -> None:
    """kill -9 of the leader, then SIGSTOP of its successor, under 4 writers and a watch."""
    store = EtcdStore(cluster.endpoints, timeout_s=2.0)
    keys = [b"/cluster/%d/%03d" % (writer, number) for number in range(150) for writer in range(4)]
    done = Tally()

    async def writer(mine: list[bytes]) -> None:
        for key in mine:
            await create_for_sure(store, key)
            done.add(key)

    start = (await store.list(b"/cluster/")).revision + 1
    watching = asyncio.create_task(collect(store.watch(b"/cluster/", start), len(keys)))
    async with asyncio.TaskGroup() as writers:
        for number in range(4):
            writers.create_task(writer(keys[number::4]))
        await done.reached(100)
        leader = await asyncio.to_thread(cluster.leader)
        await asyncio.to_thread(leader.kill)
        await done.reached(250)
        await asyncio.to_thread(leader.start)
        second = await asyncio.to_thread(cluster.leader)
        second.pause()
        try:
            await done.reached(400)
        finally:
            second.resume()
    assert sorted(await watching) == sorted(keys)
    assert sorted(item.key for item in (await store.list(b"/cluster/")).items) == sorted(keys)
    await store.close()


async def test_tls_with_client_certificates(tmp_path: Path) -> None:
    ours, foreign = trustme.CA(), trustme.CA()
    server = ours.issue_cert("etcd.internal", "127.0.0.1")
    client = ours.issue_cert("controller")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "foreign", "cert", "key", "own", "own-key")}
    ours.cert_pem.write_to_path(files["ca"])
    foreign.cert_pem.write_to_path(files["foreign"])
    server.cert_chain_pems[0].write_to_path(files["cert"])
    server.private_key_pem.write_to_path(files["key"])
    client.cert_chain_pems[0].write_to_path(files["own"])
    client.private_key_pem.write_to_path(files["own-key"])
    good = TlsFiles(files["ca"], files["own"], files["own-key"])
    bad = {
        "no certificate": TlsFiles(files["ca"]),
        "foreign CA": TlsFiles(files["foreign"], files["own"], files["own-key"]),
        "other name": TlsFiles(files["ca"], files["own"], files["own-key"], server_name="else.internal"),
        "no TLS": None,
    }
    with EtcdServer(tls=ServerTls(files["cert"], files["key"], client_ca=files["ca"])) as etcd:
        by_address = EtcdStore([f"https://{etcd.endpoint}"], tls=good)
        named = TlsFiles(files["ca"], files["own"], files["own-key"], server_name="etcd.internal")
        by_name = EtcdStore([etcd.endpoint, "127.0.0.1:1"], tls=named)
        assert (await by_address.txn(create(b"/tls"))).committed
        assert await by_name.get(b"/tls") is not None
        assert await collect(by_name.watch(b"/tls", 2), 1) == [b"/tls"]
        stores = [EtcdStore([etcd.endpoint], tls=tls, timeout_s=0.7) for tls in bad.values()]
        ends = await asyncio.gather(*(store.get(b"/tls") for store in stores), return_exceptions=True)
        for store in (by_address, by_name, *stores):
            await store.close()
    assert {what: type(end) for what, end in zip(bad, ends, strict=True)} == dict.fromkeys(
        bad, StoreUnavailableError
    )


async def test_a_full_store_says_so_and_still_reads() -> None:
    async def fill(store: EtcdStore) -> None:
        for number in range(20):
            await store.txn(create(b"/full/%d" % number, b"x" * 1_000_000))

    with EtcdServer(extra_args=["--quota-backend-bytes=2000000"]) as etcd:
        store = EtcdStore([etcd.endpoint])
        with pytest.raises(StoreFullError, match="space"):
            await fill(store)
        assert (await store.list(b"/full/")).items
        await store.close()


async def test_a_foreign_error_is_a_store_error(store: EtcdStore) -> None:
    with pytest.raises(StoreError) as refusal:
        await store.list(b"/a", revision=1 << 60)
    assert "future" in str(refusal.value)
