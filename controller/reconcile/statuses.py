"""The statuses of instances, kept up to date: names queued, what there is to write committed.

**Edge**: commits. Several instances share a transaction (commit.py); what is written is status.py's decision.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

import structlog

from controller.admit.common import Context
from controller.commit import Change, Committer
from controller.reconcile.queue import Queue
from controller.reconcile.status import MORE, SILENT, Facts, Refusal, build_change
from controller.state import State
from controller.store import keys
from controller.store.keys import Table
from cumulet.clock import Clock
from cumulet.errors import CumuletError
from cumulet.v1 import instance_pb2, operation_pb2

BATCH: Final = 200  # names taken at once; the committer splits them into transactions
GATHER_S: Final = 0.005  # a burst of reports shares transactions
RETRY_S: Final = 1.0
SWEEP_S: Final = 30.0  # how late a passed deadline may be noticed
SLICE: Final = 1_000  # rows that a sweep looks at before others have a turn: a millisecond

log = structlog.get_logger(__name__)


class FactSource(Protocol):
    """Sessions (reconcile/sessions.py), as this module needs them."""

    def facts(self, node: str, uid: str) -> Facts: ...


class Statuses:
    """Keeps statuses up to date: queue names here, run it while leading."""

    def __init__(
        self,
        state: State,
        committer: Committer,
        facts: FactSource,
        clock: Clock,
        rng: random.Random,
        on_take: Callable[[int, float], None] = lambda depth, wait_s: None,
    ) -> None:
        self._state = state
        self._committer = committer
        self._facts = facts
        self._clock = clock
        self._rng = rng
        self.refusals: dict[str, Refusal] = {}
        self.queue: Queue[str] = Queue(on_take)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep())
            while True:
                await self.queue.wait()
                await asyncio.sleep(GATHER_S)
                uids = await self.queue.take(BATCH)
                await asyncio.gather(*(self._write(uid) for uid in uids if self._has_news(uid)))

    def _has_news(self, uid: str) -> bool:
        """Whether there is anything to write: mostly there is not, and a commit costs more than a look."""
        if self._state.find_instance(uid) is None:
            self.refusals.pop(uid, None)
            return False
        try:
            return self._compute(self._state, uid) is not None
        except Exception:
            return True  # `_write` meets it again, and says so

    def _compute(self, state: State, uid: str) -> Change | None:
        placement = state.placement_of(uid)
        facts = self._facts.facts(placement.message.node, uid) if placement else SILENT
        context = Context(self._clock.now(), self._rng, "controller")
        return build_change(state, context, uid, facts, self.refusals.get(uid))

    async def _write(self, uid: str) -> None:
        try:
            if await self._committer.commit(partial(self._compute, uid=uid)) == MORE:
                self.queue.add(uid)
            if self._state.find_instance(uid) is None:
                self.refusals.pop(uid, None)
        except CumuletError as error:
            log.warning("a status was not written, trying again", instance=uid, error=str(error))
            self.queue.add_later(uid, RETRY_S)
        except Exception:  # one damaged object must not stop the others' statuses
            log.exception("a status was not written: a fault of ours", instance=uid)

    async def _sweep(self) -> None:
        """Look at everything now and then: deadlines pass without any event, and hints get lost."""
        while True:
            await self._sweep_table(keys.INSTANCES, self._find_touched)
            await self._sweep_table(keys.OPERATIONS, self._find_overdue)
            await asyncio.sleep(SWEEP_S)

    async def _sweep_table(self, table: Table, find_uid: Callable[[Any], str | None]) -> None:
        names = list(self._state.rows(table))
        for start in range(0, len(names), SLICE):
            for parts in names[start : start + SLICE]:
                row = self._state.find(table, *parts)
                uid = find_uid(row.message) if row is not None else None
                if uid is not None:
                    self.queue.add(uid)
            await asyncio.sleep(0)

    def _find_touched(self, instance: instance_pb2.Instance) -> str | None:
        """Its uid, unless it only waits to be placed: of that there is nothing to write."""
        uid = instance.meta.uid
        known = self._state.status_of(uid) is not None or self._state.placement_of(uid) is not None
        return uid if known or uid in self.refusals or instance.meta.HasField("deleted_at") else None

    def _find_overdue(self, operation: operation_pb2.Operation) -> str | None:
        overdue = not operation.done and self._clock.now() > operation.deadline_at.seconds
        return operation.target.uid if overdue else None
