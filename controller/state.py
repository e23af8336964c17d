"""The controller's view of the store at one revision: tables that follow a watch.

**Pure** in effect: fed by `feed.py`, read by everyone; it never does I/O. It is mutable for speed, so a
reader must not keep it across an `await` and expect the same revision. Nothing in it is needed after a
restart.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import structlog
from google.protobuf.message import DecodeError

from controller.store import keys
from controller.store.keys import Table
from controller.store.protocol import Change, KeyValue
from controller.tables import NOT_KEPT, Parts, Stored, Tables
from cumulet.convert import resources_from
from cumulet.resources import QuantityError
from cumulet.v1 import event_pb2, store_pb2

REACH_S: Final = (
    2.0  # a watch is some ms behind; one that brings nothing for so long has lost something (I17)
)
HISTORY_MAX: Final = 50_000  # changes a watcher may be behind: some minutes at the highest rate we plan for

_JOURNAL_PREFIX: Final = keys.JOURNAL.prefix()
log = structlog.get_logger(__name__)


class Changed(NamedTuple):
    """One applied change: the value before and after (None: not there)."""

    table: Table
    parts: Parts
    before: Stored | None
    after: Stored | None
    revision: int


Listener = Callable[[Changed], None]
EventListener = Callable[[event_pb2.Event], None]


class State(Tables):
    """Everything at `revision`: the tables, and how they follow the store."""

    def __init__(self) -> None:
        super().__init__()
        self.revision = 0
        self.history: deque[Changed] = deque(maxlen=HISTORY_MAX)
        self.history_start = 0  # `history` is complete after this revision
        self.doubt = asyncio.Event()  # somebody misses a change: the feed lists anew
        self._base_revision = 0  # changes up to here are in already
        self._listeners: list[Listener] = []
        self._event_listeners: list[EventListener] = []
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    # --- following -------------------------------------------------------------------------------

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call the listener with every applied change; the result ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def listen_events(self, listener: EventListener) -> None:
        """Call the listener with every event on its way to the journal; the same one may come again."""
        self._event_listeners.append(listener)

    async def reach(self, revision: int) -> None:
        """Wait until the state holds everything up to a revision."""
        if self.revision >= revision:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((revision, future))
        await future

    async def catch_up(self, revision: int) -> None:
        """`reach`, and have everything listed again when nothing comes any more.

        A State that is behind and moving has lost nothing (a gap is noticed, see `misses`): a listing would
        only hold it up further.
        """
        while self.revision < revision:
            before = self.revision
            try:
                async with asyncio.timeout(REACH_S):
                    await self.reach(revision)
            except TimeoutError:
                if self.revision == before:
                    self.doubt.set()

    # --- feeding ---------------------------------------------------------------------------------

    def load(self, revision: int, items: Iterable[KeyValue]) -> None:
        """Take a complete listing: what differs from it is changed, what is not in it is deleted.

        The listing may be older than the state, which has followed the watch meanwhile: what was deleted
        since stays deleted. What only the listing has told counts as a change of now, so that `history`
        stays in order and a watch that resumes does not miss it.
        """
        now = max(revision, self.revision)
        gone_since = self._deleted_after(revision)
        listed: set[tuple[str, Parts]] = set()
        for item in items:
            parsed = _kept_key(item.key)
            if parsed is None:
                self._pass_event(item.key, item.value, item.mod_revision)
                continue
            table, parts = parsed
            listed.add((table.path, parts))
            known = self._tables[table.path].get(parts)
            if (table.path, parts) in gone_since:
                continue
            if known is None or known.mod_revision < item.mod_revision:
                self._put(table, parts, item.value, item.create_revision, item.mod_revision, now)
        for table in keys.TABLES:
            rows = self._tables.get(table.path, {})
            gone = [p for p, row in rows.items() if (table.path, p) not in listed]
            for parts in gone:
                if rows[parts].mod_revision <= revision:
                    self._delete(table, parts, now)
        if not self._base_revision:
            self.history.clear()  # the first listing is no news
            self.history_start = revision
        self._base_revision = max(self._base_revision, revision)
        self.advance(revision)

    def apply(self, revision: int, changes: Iterable[Change]) -> None:
        """Take a watch batch that ends at `revision`. What is in already is passed over."""
        for change in changes:
            if change.mod_revision <= self._base_revision:
                continue
            parsed = _kept_key(change.key)
            if parsed is None:
                if not change.deleted:
                    self._pass_event(change.key, change.value, change.mod_revision)
            elif change.deleted:
                self._delete(*parsed, change.mod_revision)
            else:
                revisions = (change.create_revision, change.mod_revision, change.mod_revision)
                self._put(*parsed, change.value, *revisions)
        self.advance(revision)

    def misses(self, revision: int, changes: Iterable[Change]) -> bool:
        """Whether a revision before the end of this batch was never delivered.

        Every write of a store of our own is under our prefix, so revisions have no gaps. It matters: guards
        say "nothing changed since the State's revision" (correctness.md I17), which a lost change breaks.
        """
        expected = self.revision + 1
        for seen in sorted({change.mod_revision for change in changes}):
            if seen > expected:
                return True
            expected = max(expected, seen + 1)
        return revision >= expected

    def _deleted_after(self, revision: int) -> set[tuple[str, Parts]]:
        """What is not there now and was deleted after a revision."""
        gone: set[tuple[str, Parts]] = set()
        for changed in reversed(self.history):
            if changed.revision <= revision:
                break
            if changed.after is None and changed.parts not in self._tables[changed.table.path]:
                gone.add((changed.table.path, changed.parts))
        return gone

    def advance(self, revision: int) -> None:
        """Nothing up to `revision` is missing any more."""
        self.revision = max(self.revision, revision)
        if not self._waiters:
            return
        ready = [future for wanted, future in self._waiters if wanted <= self.revision]
        if ready:
            self._waiters = [w for w in self._waiters if w[0] > self.revision]
            for future in ready:
                if not future.done():
                    future.set_result(None)

    def speculate(self, writes: dict[bytes, bytes | None]) -> list[tuple[Table, Parts, Stored | None]]:
        """Show writes as if they had happened, silently. Give the result to `undo` before any await.

        Speculative rows have mod_revision -1: a guard on one means nothing (commit.py leaves it out).
        """
        undo: list[tuple[Table, Parts, Stored | None]] = []
        for key, value in writes.items():
            parsed = _kept_key(key)
            if parsed is None:
                continue
            table, parts = parsed
            before = self._tables[table.path].get(parts)
            undo.append((table, parts, before))
            created = before.create_revision if before else -1
            after = None if value is None else Stored(_parse(table, value), created, -1)
            self._replace(table, parts, before, after)
        return undo

    def undo(self, log: list[tuple[Table, Parts, Stored | None]]) -> None:
        """Take speculative writes back."""
        for table, parts, before in reversed(log):
            self._replace(table, parts, self._tables[table.path].get(parts), before)

    def _put(
        self, table: Table, parts: Parts, value: bytes, created: int, modified: int, told_at: int
    ) -> None:
        before = self._tables[table.path].get(parts)
        try:
            after = Stored(_parse(table, value), created, modified)
        except (DecodeError, UnicodeDecodeError, QuantityError) as error:
            # One damaged value must not hold up all others. It counts as absent, which deletes nothing.
            log.error("a value cannot be read", table=table.path, parts=parts, error=str(error))
            self._delete(table, parts, told_at)
            return
        self._replace(table, parts, before, after)
        if self._base_revision or self._listeners:  # the first listing is no news
            self._tell(Changed(table, parts, before, after, told_at))

    def _delete(self, table: Table, parts: Parts, revision: int) -> None:
        before = self._tables[table.path].get(parts)
        if before is None:
            return
        self._replace(table, parts, before, None)
        self._tell(Changed(table, parts, before, None, revision))

    def _pass_event(self, key: bytes, value: bytes, revision: int) -> None:
        if key.startswith(_JOURNAL_PREFIX):
            try:
                batch = store_pb2.EventBatch.FromString(value)
            except DecodeError as error:
                log.error("events cannot be read", key=key, error=str(error))
                return
            for event in batch.events:
                event.revision = revision
                for listener in self._event_listeners:
                    listener(event)

    def _tell(self, changed: Changed) -> None:
        if len(self.history) == HISTORY_MAX:
            self.history_start = self.history[0].revision
        self.history.append(changed)
        for listener in tuple(self._listeners):
            listener(changed)


def _kept_key(key: bytes) -> tuple[Table, Parts] | None:
    """Table and parts of a key that the State keeps."""
    try:
        parsed = keys.parse_key(key)
    except UnicodeDecodeError:
        return None
    return None if parsed is None or parsed[0].path in NOT_KEPT else parsed


def _parse(table: Table, value: bytes) -> Any:
    """Raises DecodeError, UnicodeDecodeError, QuantityError (for what the indexes sum up)."""
    if table.message is None:
        return value.decode()
    message: Any = table.message.FromString(value)
    if table is keys.PLACEMENTS:
        resources_from(message.resources)
    elif table is keys.INSTANCES:
        resources_from(message.spec.resources)
    return message
