"""A placer on a real memory store, in virtual time: nodes and pending instances in, placements out.

**Edge** in a loop on virtual time only.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from controller.feed import Feed
from controller.metrics import Metrics
from controller.reconcile.placer import Placer
from controller.reconcile.status import Refusal
from controller.state import State
from controller.store import keys
from controller.store.memory import Faults, MemoryStore
from controller.store.protocol import Delete, Put, Txn
from controller.transact import Transactor
from cumulet.v1 import instance_pb2, meta_pb2, node_pb2, placement_pb2
from scheduler.policy import PACK
from tests.sim.loop import LoopClock

PATIENCE_S = 3_600.0  # of virtual time


def pending(name: str, project: str = "p1", vcpu: int = 1, **spec: object) -> instance_pb2.Instance:
    resources = meta_pb2.Resources(vcpu=vcpu, memory_mib=512 * vcpu, disk_gib=1)
    made = instance_pb2.InstanceSpec(resources=resources, power=instance_pb2.POWER_STATE_ON)
    made.MergeFrom(instance_pb2.InstanceSpec(**spec))  # type: ignore[arg-type]
    return instance_pb2.Instance(meta=meta_pb2.Meta(uid=f"uid-{name}", name=name, project=project), spec=made)


def node(name: str, vcpu: int = 8, **spec: object) -> dict[bytes, bytes]:
    """Its keys: vcpu are not promised more than once."""
    made = node_pb2.Node(meta=meta_pb2.Meta(uid=f"uid-{name}", name=name), spec=node_pb2.NodeSpec(**spec))  # type: ignore[arg-type]
    made.spec.allocation_ratio["vcpu"] = 1.0
    capacity = meta_pb2.Resources(vcpu=vcpu, memory_mib=512 * vcpu, disk_gib=100)
    status = node_pb2.NodeStatus(capacity=capacity)
    status.conditions.add(type="Ready", status=meta_pb2.CONDITION_STATUS_TRUE)
    return {
        keys.NODES.key(name): made.SerializeToString(),
        keys.NODE_STATUS.key(name): status.SerializeToString(),
    }


def rows_of(instances: Iterable[instance_pb2.Instance]) -> dict[bytes, bytes]:
    return {keys.INSTANCES.key(one.meta.project, one.meta.name): one.SerializeToString() for one in instances}


def gang(name: str, size: int) -> placement_pb2.Gang:
    return placement_pb2.Gang(name=name, size=size)


@dataclass(slots=True)
class Placing:
    """A placer at work."""

    store: MemoryStore
    state: State
    placer: Placer
    metrics: Metrics
    refusals: dict[str, Refusal] = field(default_factory=dict)
    moved: asyncio.Event = field(default_factory=asyncio.Event)  # the State, or what is told of refusals

    async def write(self, writes: dict[bytes, bytes | None]) -> int:
        """Somebody else's write; its revision."""
        parts = [Delete(key) if value is None else Put(key, value) for key, value in writes.items()]
        return (await self.store.txn(Txn((), parts, "test"))).revision

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self.moved.clear()
                await self.moved.wait()

    async def decided(self, count: int) -> None:
        """Until so many are placed or refused, and what is placed has been seen."""
        await self.until(lambda: len(self.placed) + len(self.refusals) >= count)

    @property
    def placed(self) -> dict[str, str]:
        """Node by name of instance."""
        rows = self.state.rows(keys.PLACEMENTS).values()
        return {row.message.name: row.message.node for row in rows}

    def note_refusal(self, uid: str, refusal: Refusal | None) -> None:
        self.moved.set()
        if refusal is None:
            self.refusals.pop(uid, None)
        else:
            self.refusals[uid] = refusal


@asynccontextmanager
async def placing(
    nodes: dict[bytes, bytes], instances: Iterable[instance_pb2.Instance] = (), faults: Faults | None = None
) -> AsyncIterator[Placing]:
    """A placer that has just started on what is in the store. The faults are its own calls' alone."""
    store, rng, state = MemoryStore(), random.Random(1), State()
    for key, value in (nodes | rows_of(instances)).items():
        await store.txn(Txn((), [Put(key, value)], "test"))
    feed = Feed(store, state, rng)
    own = store.connect(faults=faults)
    transactor = Transactor(own, LoopClock(), rng, "place")
    metrics = Metrics()
    made: Placing
    placer = Placer(
        state,
        transactor,
        LoopClock(),
        rng,
        lambda uid, refusal: made.note_refusal(uid, refusal),
        metrics,
        PACK,
    )
    made = Placing(store, state, placer, metrics)
    state.listen(placer.note_change)
    state.listen(lambda changed: made.moved.set())
    following = asyncio.create_task(feed.run())
    await feed.ready.wait()
    running = asyncio.create_task(placer.run())
    try:
        yield made
        assert not running.done(), "the placer has ended"
    finally:
        for task in (running, following):
            task.cancel()
        await asyncio.gather(running, following, return_exceptions=True)
