"""What the contract suites run on: one etcd for all stores, with a key prefix for each test; nodes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from controller.store.etcd import EtcdStore
from controller.store.memory import MemoryStore
from controller.store.protocol import Store
from tests.support.etcd import EtcdServer
from tests.support.net import World, fake_world, kernel_world
from tests.support.stores import Subject


@pytest.fixture(scope="session")
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


@pytest.fixture(params=["fake", "kernel"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A node for the network driver."""
    async with fake_world() if request.param == "fake" else kernel_world() as made:
        yield made
