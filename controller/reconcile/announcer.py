"""Which node announces each floating IP: one at a time, and the next one when the last has let go.

**Edge**: commits. A node is told of an address while the record names it; it is not told any more as soon as
the address is to be elsewhere. The record changes hands when the node has acted on a plan without it and says
that it does not answer for it; or is silent, so that its agent has no session and lets go of an address as
soon as another node announces it.
"""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import Final, Protocol

import structlog

from controller.admit import common
from controller.admit.common import Context
from controller.commit import Change, Committer
from controller.floating import find_way
from controller.reconcile.concern import all_floating, floating_concerned
from controller.reconcile.queue import Queue
from controller.state import Changed, State
from controller.store import keys
from controller.store.protocol import absent, unchanged
from controller.tables import Stored
from cumulet.clock import Clock
from cumulet.errors import CumuletError
from cumulet.v1 import floatingip_pb2, store_pb2

BATCH: Final = 200
RETRY_S: Final = 1.0
SWEEP_S: Final = 30.0  # hints get lost

log = structlog.get_logger(__name__)


class Sessions(Protocol):
    """What this module asks of the sessions (sessions.py)."""

    def is_silent(self, node: str) -> bool:
        """Its agent has no session any more."""

    def has_let_go(self, node: str, uplink: str, address: str, told: int) -> bool:
        """The node does not answer for an address any more, after a plan of revision `told`."""

    def want_plan(self, node: str) -> None:
        """Have its plan sent again."""


class Announcer:
    """Queue uids of floating IPs here; run it while leading."""

    def __init__(
        self, state: State, committer: Committer, sessions: Sessions, clock: Clock, rng: random.Random
    ) -> None:
        self._state = state
        self._committer = committer
        self._sessions = sessions
        self._clock = clock
        self._rng = rng
        self._leaving: dict[str, int] = {}  # by uid: the revision from which its node was told to let it go
        self._waiting: dict[str, set[str]] = {}  # uids by the node whose word they wait for
        self.queue: Queue[str] = Queue()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._sweep())
            while True:
                uids = await self.queue.take(BATCH)
                await asyncio.gather(*(self._settle(uid) for uid in uids))

    def note_change(self, changed: Changed) -> None:
        """Queue what a change concerns."""
        for uid in floating_concerned(self._state, changed):
            self.queue.add(uid)

    def note_report(self, node: str) -> None:
        """A node has said what it answers for, or has been silent."""
        waiting = self._waiting.pop(node, set())
        if self._sessions.is_silent(node):
            waiting |= self._state.announced_by(node).keys()
        for uid in sorted(waiting):
            self.queue.add(uid)

    async def _settle(self, uid: str) -> None:
        if self.decide(self._state, uid) is None:
            return
        try:
            await self._committer.commit(partial(self.decide, uid=uid))
        except CumuletError as error:
            log.warning("a floating IP's node was not recorded, trying again", uid=uid, error=str(error))
            self.queue.add_later(uid, RETRY_S)

    def decide(self, state: State, uid: str) -> Change | None:
        """The record as it is to be; None when it is, or when its node has not let go yet."""
        record = state.find(keys.ANNOUNCEMENTS, uid)
        floating = _find(state, uid)
        wanted = self._find_node(state, floating, record) if floating is not None else ""
        if record is None:
            self._leaving.pop(uid, None)
            return (
                self._claim(state, uid, floating, wanted, None) if floating is not None and wanted else None
            )
        if record.message.node == wanted:
            self._leaving.pop(uid, None)
            return None
        if not self._has_left(state, uid, record.message):
            return None
        if floating is None or not wanted:
            return _drop(uid, record)
        return self._claim(state, uid, floating, wanted, record)

    def _find_node(self, state: State, floating: floatingip_pb2.FloatingIP, record: Stored | None) -> str:
        present = record.message.node if record is not None else ""
        silent = present if present and self._sessions.is_silent(present) else ""
        return find_way(state, floating, silent).node

    def _has_left(self, state: State, uid: str, record: store_pb2.AnnouncementRecord) -> bool:
        node = record.node
        if uid not in self._leaving:
            self._leaving[uid] = state.revision
            self._sessions.want_plan(node)  # of this revision: it may have acted on one that says the same
        uplink = _uplink_of(state, record)
        if self._sessions.has_let_go(node, uplink, record.address, self._leaving[uid]):
            return True
        self._waiting.setdefault(node, set()).add(uid)
        return False

    def _claim(
        self,
        state: State,
        uid: str,
        floating: floatingip_pb2.FloatingIP,
        node: str,
        record: Stored | None,
    ) -> Change | None:
        """Unless another one, that is being deleted, still is announced with this address."""
        network = state.find(keys.EXTERNAL_NETWORKS, floating.spec.external_network)
        if network is None:
            return None
        network_uid, address = network.message.meta.uid, floating.spec.address
        others = set(state.announced_as(network_uid, address)) - {uid}
        if others:
            for other in others:
                self.queue.add(other)
            self.queue.add_later(uid, RETRY_S)
            return None
        meta = floating.meta
        made = store_pb2.AnnouncementRecord(
            node=node,
            external_network_uid=network_uid,
            address=address,
            project=meta.project,
            name=meta.name,
        )
        key = keys.ANNOUNCEMENTS.key(uid)
        change = Change(compares=[unchanged(key, record.mod_revision) if record is not None else absent(key)])
        row = common.get_row(state, keys.FLOATING_IPS, meta.project, meta.name)
        common.rest_on(change, keys.FLOATING_IPS, row, meta.project, meta.name)
        change.writes[key] = common.encode(made)
        context = Context(self._clock.now(), self._rng, "controller")
        text = f"{address} is announced by {node}"
        change.events.append(common.event(context, "floating-ip", meta, "Announced", text))
        return change

    async def _sweep(self) -> None:
        while True:
            for uid in all_floating(self._state):
                self.queue.add(uid)
            await asyncio.sleep(SWEEP_S)


def _find(state: State, uid: str) -> floatingip_pb2.FloatingIP | None:
    found = state.find_uid(uid)
    if found is None or found[0] is not keys.FLOATING_IPS:
        return None
    floating: floatingip_pb2.FloatingIP = found[2].message
    return floating


def _uplink_of(state: State, record: store_pb2.AnnouncementRecord) -> str:
    """Empty when the external network is gone: then nobody has addresses of it."""
    found = state.find_uid(record.external_network_uid)
    return found[2].message.spec.uplink if found is not None else ""


def _drop(uid: str, record: Stored) -> Change:
    key = keys.ANNOUNCEMENTS.key(uid)
    return Change(compares=[unchanged(key, record.mod_revision)], writes={key: None})
