"""The controller's view of the store at one revision: tables of parsed values and what is derived from them.

**Pure** in effect: fed by `feed.py`, read by everyone; it never does I/O. It is mutable for speed, so a
reader must not keep it across an `await` and expect the same revision. Nothing in it is needed after a
restart.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import structlog
from google.protobuf.message import DecodeError

from controller.places import Places
from controller.store import keys
from controller.store.keys import Table
from controller.store.protocol import Change, KeyValue
from cumulet.convert import resources_from
from cumulet.resources import ZERO, QuantityError, Resources
from cumulet.v1 import event_pb2, instance_pb2, store_pb2

REACH_S: Final = (
    2.0  # a watch is some ms behind; one that brings nothing for so long has lost something (I17)
)
HISTORY_MAX: Final = 50_000  # changes a watcher may be behind: some minutes at the highest rate we plan for

# Values that only transactions and readbacks need; keeping them would cost memory for nothing.
_NOT_KEPT: Final = frozenset({keys.REQUESTS.path, keys.COMMITS.path, keys.JOURNAL.path})

_JOURNAL_PREFIX: Final = keys.JOURNAL.prefix()
_WITH_UID: Final = frozenset(
    table.path for table in keys.TABLES if table.message and "meta" in table.message.DESCRIPTOR.fields_by_name
)

UNDERLAY_MTU_DEFAULT: Final = 1500  # Ethernet; an agent of an older version does not say

log = structlog.get_logger(__name__)

Parts = tuple[str, ...]


class Stored(NamedTuple):
    """A parsed value with its revisions. The message is shared: never change it."""

    message: Any
    create_revision: int
    mod_revision: int


class Changed(NamedTuple):
    """One applied change: the value before and after (None: not there)."""

    table: Table
    parts: Parts
    before: Stored | None
    after: Stored | None
    revision: int


@dataclass(frozen=True, slots=True)
class Underlay:
    """Where the tunnels to a node end, and the largest packet that comes there."""

    address: str
    mtu: int


Listener = Callable[[Changed], None]
EventListener = Callable[[event_pb2.Event], None]
_EMPTY: Final[dict[Any, Any]] = {}


class State:
    """Everything at `revision`. Tables by path; see the `find_*` and index methods for what is derived."""

    def __init__(self) -> None:
        self.revision = 0
        self.history: deque[Changed] = deque(maxlen=HISTORY_MAX)
        self.history_start = 0  # `history` is complete after this revision
        self.doubt = asyncio.Event()  # somebody misses a change: the feed lists anew
        self._base_revision = 0  # changes up to here are in already
        self._tables: dict[str, dict[Parts, Stored]] = {
            table.path: {} for table in keys.TABLES if table.path not in _NOT_KEPT
        }
        self._by_uid: dict[str, tuple[Table, Parts]] = {}
        self._placements_by_node: dict[str, dict[str, Stored]] = {}
        self._node_of: dict[str, str] = {}
        self._allocated: dict[str, Resources] = {}
        self._used: dict[str, Resources] = {}
        self._used_devices: Counter[str] = Counter()
        self._members: dict[Parts, Counter[str]] = {}
        self._scoped: dict[tuple[str, str], dict[Parts, Stored]] = {}
        self._ports_of: dict[tuple[str, str], dict[Parts, Stored]] = {}
        self._ports_in: dict[tuple[str, str], dict[Parts, Stored]] = {}
        self._ports_with: dict[tuple[str, str], dict[Parts, Stored]] = {}
        self._router_of: dict[tuple[str, str], Parts] = {}
        self._subnets_of: dict[tuple[str, str], dict[Parts, Stored]] = {}
        self._addresses: dict[str, dict[str, str]] = {}
        self._operations_of: dict[str, set[Parts]] = {}
        self.places = Places(lambda *name: (row.message for row in self._ports_of.get(name, _EMPTY).values()))
        self._underlays: dict[str, Underlay] = {}
        self._listeners: list[Listener] = []
        self._event_listeners: list[EventListener] = []
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    # --- reading ---------------------------------------------------------------------------------

    def find(self, table: Table, *parts: str) -> Stored | None:
        """The value of a key, or None."""
        return self._tables[table.path].get(parts)

    def rows(self, table: Table, project: str | None = None) -> dict[Parts, Stored]:
        """All rows of a table, or of one project. A live view: do not keep it across an await."""
        if project is None:
            return self._tables[table.path]
        return self._scoped.get((table.path, project), _EMPTY)

    def find_uid(self, uid: str) -> tuple[Table, Parts, Stored] | None:
        """The object with a uid, whatever its kind."""
        where = self._by_uid.get(uid)
        if where is None:
            return None
        table, parts = where
        return table, parts, self._tables[table.path][parts]

    def find_instance(self, uid: str) -> tuple[Parts, Stored] | None:
        where = self._by_uid.get(uid)
        if where is None or where[0] is not keys.INSTANCES:
            return None
        parts = where[1]
        return parts, self._tables[keys.INSTANCES.path][parts]

    def placement_of(self, uid: str) -> Stored | None:
        """The instance's PlacementRecord, or None."""
        node = self._node_of.get(uid)
        return self.placements_on(node).get(uid) if node is not None else None

    def placements_on(self, node: str) -> dict[str, Stored]:
        """PlacementRecords of a node by instance uid."""
        return self._placements_by_node.get(node, _EMPTY)

    def allocated_on(self, node: str) -> Resources:
        """Sum over the node's placements."""
        return self._allocated.get(node, ZERO)

    def used_by(self, project: str) -> Resources:
        """Sum over the project's instances, placed or not."""
        return self._used.get(project, ZERO)

    def devices_used_by(self, project: str) -> int:
        """Thousandths of devices, summed over the project's instances, placed or not."""
        return self._used_devices[project]

    def members_of(self, project: str, group: str) -> Mapping[str, int]:
        """Placed members of a placement group by node; only nodes with some."""
        return self._members.get((project, group), _EMPTY)

    def status_of(self, uid: str) -> instance_pb2.InstanceStatus | None:
        row = self._tables[keys.INSTANCE_STATUS.path].get((uid,))
        return row.message if row else None

    def ports_of(self, project: str, instance: str) -> list[Stored]:
        """Ports of an instance, by port name."""
        rows = self._ports_of.get((project, instance), _EMPTY)
        return [rows[parts] for parts in sorted(rows)]

    def ports_in(self, project: str, network: str) -> list[Stored]:
        """Ports of a network, in no order."""
        return list(self._ports_in.get((project, network), _EMPTY).values())

    def ports_with(self, project: str, security_group: str) -> list[Stored]:
        """Ports in a security group, in no order."""
        return list(self._ports_with.get((project, security_group), _EMPTY).values())

    def router_of(self, project: str, network: str) -> Stored | None:
        """The router that holds a network's gateways, or None."""
        parts = self._router_of.get((project, network))
        return self._tables[keys.ROUTERS.path].get(parts) if parts else None

    @property
    def underlays(self) -> Mapping[str, Underlay]:
        """By node; nodes without one are left out. A live view."""
        return self._underlays

    def subnets_of(self, project: str, network: str) -> list[Stored]:
        """Subnets of a network, by name."""
        rows = self._subnets_of.get((project, network), _EMPTY)
        return [rows[parts] for parts in sorted(rows)]

    def addresses_in(self, network_uid: str) -> dict[str, str]:
        """Port uid by address."""
        return self._addresses.get(network_uid, _EMPTY)

    def operations_of(self, uid: str) -> Iterator[tuple[Parts, Stored]]:
        """Operations on an object, done or not."""
        table = self._tables[keys.OPERATIONS.path]
        for parts in sorted(self._operations_of.get(uid, ())):
            yield parts, table[parts]

    @property
    def epoch(self) -> int:
        """The present leader's epoch, 0 without one."""
        row = self.find(keys.LEADER_KEY)
        return row.create_revision if row else 0

    @property
    def restore_generation(self) -> int:
        row = self.find(keys.CLOUD)
        return row.message.restore_generation if row else 0

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
            rows = self._tables.get(table.path, _EMPTY)
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

    def _replace(self, table: Table, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        rows = self._tables[table.path]
        if after is None:
            rows.pop(parts, None)
        else:
            rows[parts] = after
        if table.parts[:1] == ("project",):
            _replace_in(self._scoped, (table.path, parts[0]), parts, after)
        if table.path in _WITH_UID:
            self._index_uid(table, parts, before, after)
        index = _INDEXES.get(table.path)
        if index is not None:
            index(self, parts, before, after)

    def _index_uid(self, table: Table, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        if before is not None:
            self._by_uid.pop(before.message.meta.uid, None)
        if after is not None:
            self._by_uid[after.message.meta.uid] = (table, parts)

    def _index_placement(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        node, uid = parts
        total = self._allocated.get(node, ZERO)
        if before is not None:
            total = total - resources_from(before.message.resources)
            self._count_member(node, before, -1)
            if self._node_of.get(uid) == node:
                del self._node_of[uid]
        if after is not None:
            total = total + resources_from(after.message.resources)
            self._count_member(node, after, +1)
            self._node_of[uid] = node
        self._allocated[node] = total
        _replace_in(self._placements_by_node, node, uid, after)
        self._place(node, before, after)

    def _place(self, node: str, before: Stored | None, after: Stored | None) -> None:
        if after is not None:
            self.places.note_placed(after.message.project, after.message.name, node)
        elif before is not None:
            self.places.note_gone(before.message.project, before.message.name, node)

    def _index_node_status(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        self._underlays.pop(parts[0], None)
        if after is not None and after.message.underlay_address:
            mtu = after.message.underlay_mtu or UNDERLAY_MTU_DEFAULT
            self._underlays[parts[0]] = Underlay(after.message.underlay_address, mtu)

    def _count_member(self, node: str, placement: Stored, by: int) -> None:
        project = placement.message.project
        for group in placement.message.groups:
            nodes = self._members.setdefault((project, group), Counter())
            nodes[node] += by
            if not nodes[node]:
                del nodes[node]
            if not nodes:
                del self._members[project, group]

    def _index_instance(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        total = self._used.get(parts[0], ZERO)
        if before is not None:
            total = total - resources_from(before.message.spec.resources)
            self._used_devices[parts[0]] -= devices_milli(before.message.spec)
        if after is not None:
            total = total + resources_from(after.message.spec.resources)
            self._used_devices[parts[0]] += devices_milli(after.message.spec)
        self._used[parts[0]] = total

    def _index_port(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        for row, value in ((before, None), (after, after)):
            if row is not None:
                _replace_in(self._ports_of, (parts[0], row.message.spec.instance), parts, value)
                _replace_in(self._ports_in, (parts[0], row.message.spec.network), parts, value)
                for group in row.message.spec.security_groups:
                    _replace_in(self._ports_with, (parts[0], group), parts, value)
                self.places.note_port(row.message, -1 if value is None else 1)

    def _index_router(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        for network in before.message.spec.networks if before is not None else ():
            if self._router_of.get((parts[0], network)) == parts:
                del self._router_of[parts[0], network]
        for network in after.message.spec.networks if after is not None else ():
            self._router_of[parts[0], network] = parts

    def _index_subnet(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        for row, value in ((before, None), (after, after)):
            if row is not None:
                _replace_in(self._subnets_of, (parts[0], row.message.spec.network), parts, value)

    def _index_address(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        _replace_in(self._addresses, parts[0], parts[1], after.message if after else None)

    def _index_operation(self, parts: Parts, before: Stored | None, after: Stored | None) -> None:
        row = after or before
        if row is None:
            return
        owned = self._operations_of.setdefault(row.message.target.uid, set())
        if after is not None:
            owned.add(parts)
        else:
            owned.discard(parts)
            if not owned:
                del self._operations_of[row.message.target.uid]


def devices_milli(spec: instance_pb2.InstanceSpec) -> int:
    """Thousandths of devices that an instance asks for."""
    return sum(want.count * want.share_milli for want in spec.devices)


def _kept_key(key: bytes) -> tuple[Table, Parts] | None:
    """Table and parts of a key that the State keeps."""
    try:
        parsed = keys.parse_key(key)
    except UnicodeDecodeError:
        return None
    return None if parsed is None or parsed[0].path in _NOT_KEPT else parsed


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


def _replace_in(index: dict[Any, dict[Any, Any]], key: Any, item: Any, value: Any | None) -> None:
    """Set or remove one item of an index's bucket; an empty bucket goes."""
    if value is not None:
        index.setdefault(key, {})[item] = value
        return
    bucket = index.get(key)
    if bucket is not None:
        bucket.pop(item, None)
        if not bucket:
            del index[key]


_INDEXES: Final[dict[str, Callable[[State, Parts, Stored | None, Stored | None], None]]] = {
    keys.PLACEMENTS.path: State._index_placement,
    keys.INSTANCES.path: State._index_instance,
    keys.NODE_STATUS.path: State._index_node_status,
    keys.PORTS.path: State._index_port,
    keys.SUBNETS.path: State._index_subnet,
    keys.ROUTERS.path: State._index_router,
    keys.ADDRESSES.path: State._index_address,
    keys.OPERATIONS.path: State._index_operation,
}
