"""Who is looked at for a status, and what is written of it.

**Edge** in virtual time: the memory store, which passes etcd's contract.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from controller.commit import Committer
from controller.feed import Feed
from controller.reconcile.status import PLANNER_FAULT, SILENT, Facts, Refusal
from controller.reconcile.statuses import SWEEP_S, Statuses
from controller.state import State
from controller.store import keys
from controller.store.memory import MemoryStore
from controller.store.protocol import Put, Txn
from cumulet.convert import find_condition, timestamp
from cumulet.v1 import operation_pb2, store_pb2
from tests.sim.loop import LoopClock, run_virtual
from tests.unit.controller.placing import pending, rows_of


class Nobody:
    """No node has said anything."""

    def facts(self, node: str, uid: str) -> Facts:
        return SILENT


@dataclass(slots=True)
class Desk:
    store: MemoryStore
    state: State
    committer: Committer
    statuses: Statuses

    async def put(self, rows: dict[bytes, bytes]) -> None:
        result = await self.store.txn(Txn((), [Put(key, value) for key, value in rows.items()], "test"))
        await self.state.reach(result.revision)

    async def events(self) -> list[str]:
        """Reasons of all events that were written, with the names that they are about."""
        items = (await self.store.list(keys.JOURNAL.prefix())).items
        batches = [store_pb2.EventBatch.FromString(item.value) for item in items]
        return [f"{event.target.name} {event.reason}" for batch in batches for event in batch.events]


@asynccontextmanager
async def looking(rows: dict[bytes, bytes]) -> AsyncIterator[Desk]:
    """Statuses kept of what is in the store; a sweep comes at once."""
    store, state, rng = MemoryStore(), State(), random.Random(1)
    await store.txn(Txn((), [Put(key, value) for key, value in rows.items()], "test"))
    feed = Feed(store, state, rng)
    committer = Committer(store, state, LoopClock(), rng, "leader")
    statuses = Statuses(state, committer, Nobody(), LoopClock(), rng)
    tasks = [asyncio.create_task(one) for one in (feed.run(), committer.run())]
    await feed.ready.wait()
    tasks.append(asyncio.create_task(statuses.run()))
    try:
        yield Desk(store, state, committer, statuses)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_of_those_that_only_wait_nothing_is_written() -> None:
    async def scenario() -> None:
        async with looking(rows_of(pending(f"i{n}") for n in range(100))) as desk:
            for n in range(100):
                desk.statuses.queue.add(f"uid-i{n}")
            await asyncio.sleep(2 * SWEEP_S)
            assert desk.committer.transactions == 0
            assert len(desk.statuses.queue) == 0

    run_virtual(scenario())


def test_a_planners_fault_is_a_condition_and_one_event() -> None:
    async def scenario() -> None:
        async with looking(rows_of([pending("odd")])) as desk:
            for text in ("overcommit on node n1", "overcommit on node n2"):
                desk.statuses.refusals["uid-odd"] = Refusal(PLANNER_FAULT, text)
                desk.statuses.queue.add("uid-odd")
                await asyncio.sleep(1.0)
            status = desk.state.status_of("uid-odd")
            assert status is not None
            placed = find_condition(status.conditions, "Placed")
            assert placed is not None
            assert (placed.reason, placed.message) == (PLANNER_FAULT, "overcommit on node n1")
            assert await desk.events() == ["odd PlannerFault"]

    run_virtual(scenario())


def test_a_sweep_finds_what_no_event_has_told() -> None:
    """A deletion of what never had a node, and a deadline that passes."""

    async def scenario() -> None:
        gone, late = pending("gone"), pending("late")
        gone.meta.deleted_at.GetCurrentTime()
        deadline = timestamp(LoopClock().now() + 3 * SWEEP_S)
        operation = operation_pb2.Operation(verb="instance.create", deadline_at=deadline)
        operation.meta.name, operation.target.uid = "op-1", "uid-late"
        rows = rows_of([gone, late]) | {keys.OPERATIONS.key("p1", "op-1"): operation.SerializeToString()}
        async with looking(rows) as desk:
            await asyncio.sleep(1.0)
            assert set(desk.state.rows(keys.INSTANCES)) == {("p1", "late")}
            found = desk.state.find(keys.OPERATIONS, "p1", "op-1")
            assert found is not None
            assert not found.message.done
            await asyncio.sleep(5 * SWEEP_S)
            found = desk.state.find(keys.OPERATIONS, "p1", "op-1")
            assert found is not None
            assert found.message.error.reason == "TIMED_OUT"
            assert await desk.events() == ["gone Deleted"]

    run_virtual(scenario())


def test_what_is_told_of_those_that_are_gone_is_forgotten() -> None:
    async def scenario() -> None:
        async with looking({}) as desk:
            desk.statuses.refusals["uid-gone"] = Refusal(PLANNER_FAULT, "text")
            desk.statuses.queue.add("uid-gone")
            await asyncio.sleep(1.0)
            assert not desk.statuses.refusals

    run_virtual(scenario())
