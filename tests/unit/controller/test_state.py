"""The State: whatever order news comes in, every index equals one that is built from scratch.

**Pure.**
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.state import HISTORY_MAX, REACH_S, Changed, State
from controller.store import keys
from controller.store.mvcc import Mvcc
from controller.store.protocol import Change, Delete, KeyValue, Put
from cumulet.v1 import event_pb2, flavor_pb2, instance_pb2, meta_pb2, operation_pb2, port_pb2, store_pb2
from tests.sim.loop import run_virtual
from tests.unit.controller.cloud import Paper

NAMES = ("a", "b", "c")
NODES = ("n1", "n2")


def _write(kind: str, name: str, number: int) -> tuple[bytes, bytes]:
    """A key and a value of one kind; a name has the same uid in every version."""
    amounts = meta_pb2.Resources(vcpu=number, memory_mib=number * 10)
    project = "p" if name == "a" else "q"
    meta = meta_pb2.Meta(uid=f"{kind}-{name}", name=name, project=project)
    if kind == "instance":
        meta.labels.update({"parity": str(number % 2)} if number else {})
        made: Any = instance_pb2.Instance(meta=meta, spec=instance_pb2.InstanceSpec(resources=amounts))
        return keys.INSTANCES.key(project, name), made.SerializeToString()
    if kind == "port":
        owner = NAMES[number % 3]
        made = port_pb2.Port(meta=meta, spec=port_pb2.PortSpec(instance=owner))
        return keys.PORTS.key(project, name), made.SerializeToString()
    if kind == "operation":
        target = operation_pb2.ObjectRef(uid=f"instance-{name}")
        made = operation_pb2.Operation(meta=meta, target=target)
        return keys.OPERATIONS.key(project, f"{name}{number % 3}"), made.SerializeToString()
    if kind == "address":
        return keys.ADDRESSES.key("net", f"10.0.0.{number}"), f"port-{name}".encode()
    record = store_pb2.PlacementRecord(instance_uid=f"instance-{name}", resources=amounts)
    node = NODES[NAMES.index(name) % 2]
    return keys.PLACEMENTS.key(node, f"instance-{name}"), record.SerializeToString()


KINDS = st.sampled_from(["instance", "port", "operation", "address", "placement"])
WRITES = st.tuples(KINDS, st.sampled_from(NAMES), st.integers(0, 5), st.booleans())
TXNS = st.lists(st.lists(WRITES, min_size=1, max_size=3), max_size=12)


def _txn(writes: list[tuple[str, str, int, bool]]) -> dict[bytes, bytes | None]:
    made: dict[bytes, bytes | None] = {}
    for kind, name, number, deleted in writes:
        key, value = _write(kind, name, number)
        made[key] = None if deleted else value
    return made


def _apply(mvcc: Mvcc, writes: dict[bytes, bytes | None]) -> None:
    mvcc.apply([Delete(key) if value is None else Put(key, value) for key, value in writes.items()])


def _listing(mvcc: Mvcc, revision: int = 0) -> tuple[int, tuple[KeyValue, ...]]:
    listing = mvcc.list_prefix(keys.PREFIX, revision, b"", 0)
    return listing.revision, listing.items


def _rebuilt(mvcc: Mvcc) -> State:
    state = State()
    state.load(*_listing(mvcc))
    return state


def _everything(state: State) -> dict[str, Any]:
    """All that can be read of a state, by its public methods."""
    uids = [f"instance-{name}" for name in NAMES]
    rows = {table.path: dict(state.rows(table)) for table in keys.TABLES if table.path in state._tables}
    return {
        "rows": rows,
        "projects": {
            (table.path, project): dict(state.rows(table, project))
            for table in (keys.INSTANCES, keys.PORTS, keys.OPERATIONS)
            for project in "pq"
        },
        "uids": {
            f"{kind}-{name}": state.find_uid(f"{kind}-{name}")
            for kind in ("instance", "port")
            for name in NAMES
        },
        "placements": {uid: state.placement_of(uid) for uid in uids},
        "on": {node: dict(state.placements_on(node)) for node in NODES},
        "allocated": {node: state.allocated_on(node) for node in NODES},
        "used": {project: state.used_by(project) for project in "pq"},
        "ports": {(project, name): state.ports_of(project, name) for project in "pq" for name in NAMES},
        "labelled": {
            (project, value): dict(state.instances_labelled(project, "parity", value))
            for project in "pq"
            for value in "01"
        },
        "addresses": dict(state.addresses_in("net")),
        "operations": {uid: list(state.operations_of(uid)) for uid in uids},
    }


@settings(deadline=None)
@given(TXNS)
def test_indexes_follow_every_change(txns: list[Any]) -> None:
    mvcc, state = Mvcc(), State()
    state.load(*_listing(mvcc))
    for writes in txns:
        before = mvcc.revision
        _apply(mvcc, _txn(writes))
        state.apply(mvcc.revision, mvcc.changes_since(b"", before + 1, 1)[1])
        assert _everything(state) == _everything(_rebuilt(mvcc))
    assert state.revision == mvcc.revision


@settings(deadline=None)
@given(TXNS, st.lists(WRITES, max_size=6))
def test_speculation_shows_and_leaves_no_trace(txns: list[Any], speculated: list[Any]) -> None:
    mvcc = Mvcc()
    for writes in txns:
        _apply(mvcc, _txn(writes))
    state = _rebuilt(mvcc)
    told: list[Changed] = []
    state.listen(told.append)
    before = _everything(state)
    half = len(speculated) // 2
    undo = state.speculate(_txn(speculated[:half]))
    undo += state.speculate(_txn(speculated[half:]))
    shown = {key for key, value in {**_txn(speculated[:half]), **_txn(speculated[half:])}.items() if value}
    for key in shown:
        parsed = keys.parse_key(key)
        assert parsed is not None
        row = state.find(parsed[0], *parsed[1])
        assert row is not None
        assert row.mod_revision == -1
    state.undo(undo)
    assert _everything(state) == before
    assert told == []


@settings(deadline=None)
@given(TXNS, st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=6), st.data())
def test_watch_and_listings_converge_in_any_interleaving(
    txns: list[Any], listings: list[tuple[int, int]], data: st.DataObject
) -> None:
    """A listing of revision r arrives when the watch is anywhere before or after r."""
    mvcc = Mvcc()
    history: list[list[Change]] = []
    for writes in txns:
        before = mvcc.revision
        _apply(mvcc, _txn(writes))
        history.append(mvcc.changes_since(b"", before + 1, 1)[1])
    last = mvcc.revision
    state = State()
    state.load(1, ())
    told: list[Changed] = []
    state.listen(told.append)
    lost = data.draw(st.sets(st.integers(0, len(history)), max_size=2))
    arrivals = sorted(((at, min(1 + of, last)) for at, of in listings), key=lambda pair: pair[0])
    for index, changes in enumerate(history):
        for _, revision in (pair for pair in arrivals if pair[0] == index):
            state.load(*_listing(mvcc, revision))
        if changes and index not in lost:
            state.apply(changes[-1].mod_revision, changes)
    state.load(*_listing(mvcc))
    assert _everything(state) == _everything(_rebuilt(mvcc))
    assert [changed.revision for changed in told] == sorted(changed.revision for changed in told)


@settings(deadline=None)
@given(TXNS)
def test_what_was_told_adds_up_to_what_is_there(txns: list[Any]) -> None:
    mvcc, state = Mvcc(), State()
    state.load(*_listing(mvcc))
    seen: dict[tuple[str, Any], Any] = {}

    def listen(changed: Changed) -> None:
        assert seen.get((changed.table.path, changed.parts)) == changed.before
        seen[changed.table.path, changed.parts] = changed.after

    state.listen(listen)
    for writes in txns:
        before = mvcc.revision
        _apply(mvcc, _txn(writes))
        state.apply(mvcc.revision, mvcc.changes_since(b"", before + 1, 1)[1])
    there = {
        (path, parts): row for path, rows in _everything(state)["rows"].items() for parts, row in rows.items()
    }
    assert {where: row for where, row in seen.items() if row is not None} == there


def test_an_old_listing_does_not_bring_back_what_the_watch_saw_deleted() -> None:
    paper = Paper()
    key, value = _write("instance", "a", 1)
    paper.write({key: value})
    old = _listing(paper.mvcc)
    paper.write({key: None})
    paper.state.load(*old)
    assert paper.state.find(keys.INSTANCES, "p", "a") is None


def test_a_change_that_only_a_listing_told_reaches_a_resumed_watch() -> None:
    """It is in `history` after what the watch had come to, not at its own older revision."""
    paper = Paper()
    key, value = _write("instance", "a", 1)
    paper.mvcc.apply([Put(key, value)])  # swallowed by the network
    paper.write({keys.FLAVORS.key("x"): flavor_pb2.Flavor().SerializeToString()})
    seen = paper.state.revision
    paper.state.load(*_listing(paper.mvcc))
    assert [changed.parts for changed in paper.state.history if changed.revision >= seen][-1] == ("p", "a")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (keys.INSTANCES.key("p", "bad"), b"\xff\xff\xff"),
        (
            keys.PLACEMENTS.key("n1", "bad"),
            store_pb2.PlacementRecord(resources=meta_pb2.Resources(vcpu=-5)).SerializeToString(),
        ),
        (keys.VNIS.key("7"), b"\xff"),
        (b"/cumulet/instances/\xff/x", b""),
        (b"/cumulet/of-a-newer-version/x", b"anything"),
        (keys.JOURNAL.key("e"), b"\xff\xff\xff"),
    ],
)
def test_a_damaged_value_counts_as_absent_and_stops_nothing(key: bytes, value: bytes) -> None:
    paper = Paper()
    good, good_value = _write("instance", "a", 1)
    paper.write({key: value, good: good_value})
    assert paper.state.find(keys.INSTANCES, "p", "a") is not None
    assert _rebuilt(paper.mvcc).find(keys.INSTANCES, "p", "a") is not None
    assert paper.state.rows(keys.PLACEMENTS) == {}


async def test_reach_waits_for_its_revision_only() -> None:
    state = State()
    first, second = (asyncio.create_task(state.reach(revision)) for revision in (5, 9))
    await asyncio.sleep(0)
    state.advance(5)
    await first
    assert not second.done()
    state.advance(12)
    await second
    await state.reach(12)


def test_history_is_bounded_and_knows_where_it_starts() -> None:
    paper = Paper()
    key = keys.FLAVORS.key("x")
    value = flavor_pb2.Flavor().SerializeToString()
    start = paper.state.revision
    for number in range(HISTORY_MAX + 3):
        revision = start + 1 + number
        paper.state.apply(revision, [Change(key, value, start + 1, revision, deleted=False)])
    assert len(paper.state.history) == HISTORY_MAX
    assert paper.state.history_start == start + 3
    assert paper.state.history[0].revision == paper.state.history_start + 1


def test_events_are_passed_on_with_their_revision() -> None:
    paper = Paper()
    heard: list[event_pb2.Event] = []
    paper.state.listen_events(heard.append)
    batch = store_pb2.EventBatch(events=[event_pb2.Event(uid="e1", reason="Created")])
    paper.put(keys.JOURNAL, ("e1",), batch)
    assert [(event.uid, event.revision) for event in heard] == [("e1", paper.state.revision)]


def test_a_state_that_is_behind_and_moving_is_not_in_doubt() -> None:
    async def scenario() -> None:
        state = State()
        state.load(1, ())
        waiting = asyncio.create_task(state.catch_up(10))
        for revision in range(2, 11):
            await asyncio.sleep(0.9 * REACH_S)
            state.advance(revision)
        await waiting
        assert not state.doubt.is_set()

    run_virtual(scenario())


def test_a_state_to_which_nothing_comes_is_in_doubt_until_it_is_there() -> None:
    async def scenario() -> None:
        state = State()
        state.load(1, ())
        waiting = asyncio.create_task(state.catch_up(2))
        async with asyncio.timeout(2 * REACH_S):
            await state.doubt.wait()
        assert not waiting.done()
        state.advance(2)
        await waiting

    run_virtual(scenario())
