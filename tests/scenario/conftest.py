"""Clouds for API stories: every one over memory, those marked `both_stores` also over a real etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from controller.store import keys
from controller.store.etcd import EtcdStore
from controller.store.lease import LeaseKeeper, LeaseTask
from controller.store.memory import MemoryStore
from controller.store.protocol import Delete, Put, Txn, prefix_end
from cumulet.clock import SystemClock
from tests.scenario.serving import Cloud, serving
from tests.support.etcd import EtcdServer


@pytest.fixture(scope="session")
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short: a Unix socket's path has at most 107 characters."""
    with TemporaryDirectory(prefix="scenario-") as name:
        yield Path(name)


@pytest.fixture
async def cloud(request: pytest.FixtureRequest, directory: Path) -> AsyncIterator[Cloud]:
    """Parametrize indirectly with "etcd" for a real one."""
    if getattr(request, "param", "memory") == "etcd":
        server: EtcdServer = request.getfixturevalue("etcd")
        store = EtcdStore([server.endpoint])
        await store.txn(Txn([], [Delete(keys.PREFIX, prefix_end(keys.PREFIX))], "empty"))
        clock = SystemClock().monotonic
        async with serving(
            store, lambda lease, at: LeaseKeeper([server.endpoint], lease, at, clock=clock), directory
        ) as made:
            yield made
        await store.close()
        return
    memory = MemoryStore(SystemClock().monotonic)
    await memory.txn(Txn([], [Put(b"/of-another-program", b"")], "before"))
    clock = SystemClock().monotonic
    async with serving(
        memory, lambda lease, at: LeaseTask(memory, lease, at, clock=clock), directory
    ) as made:
        yield made
