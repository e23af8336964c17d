"""The standard methods of every kind: get, list, create, update, delete, watch.

**Edge**: reads the State, commits through `requests.py`. Source: Google AIP-131 to 135, 151, 154, 158, 163.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from controller.admit import common
from controller.admit.common import Context
from controller.api.requests import write_once
from controller.assemble import assemble
from controller.commit import Change
from controller.controller import Controller
from controller.selector import Matches, parse_selector
from controller.state import Changed, State
from controller.store import keys
from controller.store.keys import Table
from controller.store.protocol import CompactedError
from controller.tables import Parts, Stored
from cumulet.errors import (
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    RevisionGoneError,
)
from cumulet.kinds import Kind
from cumulet.names import ALL_PROJECTS, DEFAULT_PROJECT, name_error
from cumulet.v1 import meta_pb2, operation_pb2, store_pb2

PAGE_DEFAULT: Final = 500
PAGE_MAX: Final = 5_000
WATCH_QUEUE_MAX: Final = 10_000  # a watcher that is further behind is told to list again
SNAPSHOTS_KEPT: Final = 4  # old revisions that somebody pages through at the same time


@dataclass(frozen=True, slots=True)
class Rules:
    """What is particular to a kind. `create(state, context, project, message)` and so on give Changes."""

    kind: Kind
    table: Table
    create: Callable[[State, Context, str, Any], Change] | None = None
    update: Callable[[State, Context, Parts, Any, Any], Change] | None = None
    delete: Callable[[State, Context, Parts, Any], Change] | None = None
    # Create and delete answer with an operation instead of the object.
    long_running: bool = False
    # What a create would lead to: the reply to a long-running create with validate_only.
    foretell: Callable[[State, Any], Any] | None = None


class Snapshots:
    """States at old revisions, for the later pages of a list; read from the store, kept for a while."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._kept: OrderedDict[int, State] = OrderedDict()

    async def at(self, revision: int) -> State:
        """Raises RevisionGoneError."""
        if revision == self._controller.state.revision:
            return self._controller.state
        if revision > self._controller.state.revision:
            raise RevisionGoneError(
                f"this controller has not come to revision {revision} of the page token: list again"
            )
        if revision not in self._kept:
            try:
                listing = await self._controller.store.list(keys.PREFIX, revision=revision)
            except CompactedError:
                raise RevisionGoneError("the page token is too old: list from the beginning again") from None
            snapshot = State()
            snapshot.load(revision, listing.items)
            self._kept[revision] = snapshot
            while len(self._kept) > SNAPSHOTS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(revision)
        return self._kept[revision]


class StandardMethods:
    """The standard methods of one kind."""

    def __init__(self, controller: Controller, snapshots: Snapshots, rules: Rules) -> None:
        self._controller = controller
        self._snapshots = snapshots
        self._rules = rules

    # --- reading ---------------------------------------------------------------------------------

    async def get(self, request: Any) -> Any:
        parts = self._parts(request)
        state = self._controller.state
        return self._show(state, parts, common.get_row(state, self._rules.table, *parts))

    async def list_page(self, request: Any) -> Any:
        kind = self._rules.kind
        size = min(request.page_size or PAGE_DEFAULT, PAGE_MAX)
        if size < 0:
            raise _bad("page_size", "must not be negative")
        query = _query_digest(request)
        state, start_after = self._controller.state, None
        if request.page_token:
            revision, start_after = _parse_token(request.page_token, query)
            state = await self._snapshots.at(revision)
        revision = state.revision
        rows = self._select(state, request)
        if start_after is not None:
            rows = [(parts, row) for parts, row in rows if parts > start_after]
        page = rows[:size]
        response: Any = kind.message(f"List{kind.plural}Response")()
        getattr(response, kind.fields).extend(self._show(state, parts, row) for parts, row in page)
        response.revision = revision
        if len(rows) > size:
            response.next_page_token = _token(revision, page[-1][0], query)
        return response

    async def watch(self, request: Any) -> AsyncIterator[Any]:
        """Present objects (unless a revision is given), a bookmark, then changes for as long as wanted.

        Raises RevisionGoneError when the history does not reach back far enough, or the reader is too slow.
        """
        state = self._controller.state
        matches = parse_selector(request.selector)
        project = self._project(request)
        queue: asyncio.Queue[Changed | None] = asyncio.Queue()

        def listen(changed: Changed) -> None:
            if queue.qsize() < WATCH_QUEUE_MAX:
                queue.put_nowait(changed)

        stop = state.listen(listen)
        revision = state.revision  # of what is caught up with; later changes are in the queue
        try:
            for change in self._catch_up(state, request, project, matches):
                yield change
            yield self._change(meta_pb2.CHANGE_TYPE_BOOKMARK, revision, None)
            while True:
                changed = await queue.get()
                if queue.qsize() >= WATCH_QUEUE_MAX - 1:
                    raise RevisionGoneError("this watch reads too slowly: list again and watch from there")
                message = self._translate(state, changed, project, matches) if changed else None
                if message is not None:
                    yield message
        finally:
            stop()

    def _catch_up(self, state: State, request: Any, project: str, matches: Matches) -> Iterable[Any]:
        if not request.from_revision:
            rows = self._select(state, request)
            return [
                self._change(meta_pb2.CHANGE_TYPE_PUT, state.revision, self._show(state, parts, row))
                for parts, row in rows
            ]
        if request.from_revision < state.history_start:
            raise RevisionGoneError(
                f"changes after revision {request.from_revision} are not all kept: list and watch from there"
            )
        missed = [changed for changed in state.history if changed.revision > request.from_revision]
        found = [self._translate(state, changed, project, matches) for changed in missed]
        return [message for message in found if message is not None]

    def _select(self, state: State, request: Any) -> list[tuple[Parts, Stored]]:
        project = self._project(request)
        rows = state.rows(self._rules.table, None if project == ALL_PROJECTS else project)
        matches = parse_selector(request.selector)
        return [(parts, rows[parts]) for parts in sorted(rows) if matches(rows[parts].message.meta.labels)]

    def _project(self, request: Any) -> str:
        return (request.project or DEFAULT_PROJECT) if self._rules.kind.scoped else ALL_PROJECTS

    def _translate(self, state: State, changed: Changed, project: str, matches: Matches) -> Any | None:
        """A change of a table as a change of an object of this kind, or None.

        An object that the selector matches no more is gone for whoever watches by it.
        """
        parts = _object_parts(state, self._rules.table, changed)
        if parts is None or (self._rules.kind.scoped and project not in (ALL_PROJECTS, parts[0])):
            return None
        row = state.find(self._rules.table, *parts)
        if row is not None and matches(row.message.meta.labels):
            return self._change(meta_pb2.CHANGE_TYPE_PUT, changed.revision, self._show(state, parts, row))
        before = changed.before if changed.table is self._rules.table else None
        if before is None or not matches(before.message.meta.labels):
            return None
        return self._change(meta_pb2.CHANGE_TYPE_DELETE, changed.revision, self._show(state, parts, before))

    def _show(self, state: State, parts: Parts, row: Stored) -> Any:
        return assemble(state, self._rules.table, parts, row)

    def _change(self, change_type: int, revision: int, message: Any | None) -> Any:
        change = self._rules.kind.message("{}Change")(type=change_type, revision=revision)
        if message is not None:
            getattr(change, self._rules.kind.field).CopyFrom(message)
        return change

    # --- writing ---------------------------------------------------------------------------------

    async def create(self, request: Any) -> Any:
        rules = self._rules
        assert rules.create is not None
        create = rules.create
        given = getattr(request, rules.kind.field)
        project = (given.meta.project or DEFAULT_PROJECT) if rules.kind.scoped else ""
        parts = (project, given.meta.name) if rules.kind.scoped else (given.meta.name,)

        def admit(state: State, context: Context) -> Change:
            return create(state, context, project, given)

        return await self._write("Create", request, project, parts, admit)

    async def update(self, request: Any) -> Any:
        rules = self._rules
        assert rules.update is not None
        update = rules.update
        given = getattr(request, rules.kind.field)
        parts = self._parts(given.meta)

        def admit(state: State, context: Context) -> Change:
            return update(state, context, parts, given, request.update_mask)

        return await self._write("Update", request, parts[0] if rules.kind.scoped else "", parts, admit)

    async def delete(self, request: Any) -> Any:
        rules = self._rules
        assert rules.delete is not None
        delete = rules.delete
        parts = self._parts(request)

        def admit(state: State, context: Context) -> Change:
            return delete(state, context, parts, request)

        reply = await self._write("Delete", request, parts[0] if rules.kind.scoped else "", parts, admit)
        return reply if rules.long_running else rules.kind.message("Delete{}Response")()

    async def _write(self, verb: str, request: Any, project: str, parts: Parts, admit: Any) -> Any:
        """The object as it is then, or the operation."""
        table, controller = self._rules.table, self._controller
        key = table.key(*parts)
        if request.validate_only:
            change = admit(controller.state, Context(controller.clock.now(), controller.rng))
            return self._foretell(controller.state, verb, change, parts)

        def uid_of(change: Change) -> str:
            value = change.writes.get(key)
            if value and table.message:
                written: Any = table.message.FromString(value)
                return str(written.meta.uid)
            row = controller.state.find(table, *parts)
            return row.message.meta.uid if row else ""

        method = f"{self._rules.kind.name}.{verb}"
        record = await write_once(controller, method, project, request, admit, uid_of)
        if verb == "Delete" and not self._rules.long_running:
            return None
        if self._rules.long_running and verb != "Update":
            return find_operation(controller, project, record)
        found = controller.state.find_uid(record.uid)
        if found is None:
            raise NotFoundError(f"{common.describe(table, parts)} was written, but is deleted again since")
        return self._show(controller.state, found[1], found[2])

    def _foretell(self, state: State, verb: str, change: Change, parts: Parts) -> Any:
        """What a write would give, without writing."""
        rules = self._rules
        if verb == "Delete":
            return operation_pb2.Operation(verb=f"{rules.kind.noun}.delete") if rules.long_running else None
        value = change.writes.get(rules.table.key(*parts))
        written: Any = rules.table.message.FromString(value) if value and rules.table.message else None
        if verb == "Create" and rules.foretell is not None:
            return rules.foretell(state, written)
        shown = self._show(state, parts, Stored(written, 0, 0))
        shown.meta.ClearField("etag")  # there is no such version
        return shown

    def _parts(self, request: Any) -> Parts:
        name = request.name
        if name_error(name):
            raise _bad("name", name_error(name) or "")
        if not self._rules.kind.scoped:
            return (name,)
        project = request.project or DEFAULT_PROJECT
        if name_error(project):
            raise _bad("project", name_error(project) or "")
        return (project, name)


def find_operation(controller: Controller, project: str, record: store_pb2.RequestRecord) -> Any:
    """The operation that a request has written. Raises NotFoundError when it has been forgotten since."""
    row = common.get_row(controller.state, keys.OPERATIONS, project, record.operation)
    return assemble(controller.state, keys.OPERATIONS, (project, record.operation), row)


def _object_parts(state: State, table: Table, changed: Changed) -> Parts | None:
    """Parts of the object of `table` that a change concerns, or None."""
    if changed.table is table:
        return changed.parts
    if table is keys.INSTANCES and changed.table in (keys.INSTANCE_STATUS, keys.PLACEMENTS):
        found = state.find_instance(changed.parts[-1])
        return found[0] if found else None
    if table is keys.NODES and changed.table is keys.NODE_STATUS:
        return changed.parts
    return None


def _query_digest(request: Any) -> str:
    text = json.dumps([getattr(request, "project", ""), request.selector])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _token(revision: int, last: Parts, query: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([revision, list(last), query]).encode()).decode()


def _parse_token(token: str, query: str) -> tuple[int, Parts]:
    try:
        revision, last, digest = json.loads(base64.urlsafe_b64decode(token))
        parsed = int(revision), tuple(str(part) for part in last)
    except (ValueError, TypeError):
        raise _bad("page_token", "is not one that a list has given") from None
    if parsed[0] < 1:
        raise _bad("page_token", "is not one that a list has given")
    if digest != query:
        raise _bad("page_token", "is of another query: keep project and selector the same for all pages")
    return parsed


def _bad(field: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError.of("the request was refused", [FieldViolation(field, description)])
