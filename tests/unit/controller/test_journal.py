"""The journal: torn tails, crashes between file and store, tampering.

**Edge**: files in a temporary directory.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict

from controller.commit import Change
from controller.journal import (
    EventLog,
    FileJournal,
    JournalBrokenError,
    MemoryJournal,
    _body_of,
    check_journal,
    read_entries,
)
from controller.reconcile.export import Exporter
from controller.store import keys
from controller.store.memory import MemoryStore
from cumulet.v1 import event_pb2, store_pb2
from tests.unit.controller.cloud import SetClock, running

EMPTY = store_pb2.JournalHead()


def events(*uids: str) -> list[event_pb2.Event]:
    return [event_pb2.Event(uid=uid, reason="Created", revision=n) for n, uid in enumerate(uids, 1)]


def uids(path: Path) -> list[str]:
    return [entry["event"]["uid"] for entry in read_entries(path)]


async def test_entries_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = FileJournal(path)
    head = await journal.append(EMPTY, events("a", "b"))
    head = await journal.append(head, events("c"))
    assert head.sequence == 3
    assert uids(path) == ["a", "b", "c"]
    assert check_journal(path) is None
    assert head == await MemoryJournal().append(EMPTY, [*events("a", "b"), *events("c")])


def test_an_entry_is_what_protobuf_makes_of_the_event() -> None:
    event = event_pb2.Event(
        uid="u", reason="Placed", message="on n1", source="scheduler", warning=True, revision=7
    )
    event.target.kind, event.target.project, event.target.name, event.target.uid = "instance", "p", "vm", "i"
    event.at.FromMilliseconds(1_800_000_000_123)
    partial = event_pb2.Event(uid="u")
    partial.target.SetInParent()
    partial.at.SetInParent()
    for whole in (event, partial, event_pb2.Event()):
        assert _body_of(whole) == MessageToDict(whole, preserving_proto_field_name=True)


@pytest.mark.parametrize("cut", [1, 20, 90])
async def test_a_torn_line_is_none_and_is_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    head = await FileJournal(path).append(EMPTY, events("a"))
    whole = path.stat().st_size
    await FileJournal(path).append(head, events("b"))
    path.write_bytes(path.read_bytes()[: whole + cut])
    assert uids(path) == ["a"]
    await FileJournal(path).append(head, events("b"))
    assert uids(path) == ["a", "b"]
    assert check_journal(path) is None


async def test_a_crash_between_file_and_store_repeats_nothing(tmp_path: Path) -> None:
    """The store has not heard of the second batch; the next leader gets its events again, and a new one."""
    path = tmp_path / "journal"
    known = await FileJournal(path).append(EMPTY, events("a"))
    await FileJournal(path).append(known, events("b", "c"))
    head = await FileJournal(path).append(known, events("b", "c", "d"))
    assert uids(path) == ["a", "b", "c", "d"]
    assert head.sequence == 4
    assert check_journal(path) is None


async def test_the_same_process_may_fail_to_tell_the_store_too(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = FileJournal(path)
    known = await journal.append(EMPTY, events("a"))
    await journal.append(known, events("b"))
    await journal.append(known, events("b", "c"))
    assert uids(path) == ["a", "b", "c"]


def _changed(lines: list[str], number: int) -> list[str]:
    entry = json.loads(lines[number])
    entry["event"]["reason"] = "Innocent"
    return [*lines[:number], json.dumps(entry), *lines[number + 1 :]]


TAMPERING: dict[str, Callable[[list[str]], list[str]]] = {
    "a changed entry": lambda lines: _changed(lines, 1),
    "a lost entry": lambda lines: lines[:1] + lines[2:],
    "a lost beginning": lambda lines: lines[1:],
    "exchanged entries": lambda lines: [lines[1], lines[0], *lines[2:]],
    "a repeated entry": lambda lines: [*lines, lines[-1]],
    "an inserted entry": lambda lines: [lines[0], lines[0], *lines[1:]],
}


@pytest.mark.parametrize("how", TAMPERING)
async def test_tampering_is_found(tmp_path: Path, how: str) -> None:
    path = tmp_path / "journal"
    await FileJournal(path).append(EMPTY, events("a", "b", "c"))
    assert check_journal(path) is None
    path.write_text("".join(f"{line}\n" for line in TAMPERING[how](path.read_text().splitlines())))
    wrong = check_journal(path)
    assert wrong is not None
    assert str(path) in wrong


async def test_a_tail_that_does_not_follow_the_stores_head_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    known = await FileJournal(path).append(EMPTY, events("a"))
    await FileJournal(path).append(known, events("b"))
    path.write_text("".join(f"{line}\n" for line in _changed(path.read_text().splitlines(), 1)))
    with pytest.raises(JournalBrokenError, match=":2: entry 2 does not follow 1"):
        await FileJournal(path).append(known, events("b"))


async def test_a_damaged_file_does_not_keep_the_rest_from_being_read(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    await FileJournal(path).append(EMPTY, events("a", "b"))
    lines = path.read_text().splitlines()
    path.write_text(f"{lines[0]}\n{{damaged\n{lines[1]}\n")
    log = EventLog()
    log.load(path)
    assert [event.uid for event in log.find(lambda event: True)] == ["a"]


def test_the_log_takes_an_event_once_and_keeps_revision_order() -> None:
    log, heard = EventLog(), list[str]()
    stop = log.listen(lambda event: heard.append(event.uid))
    first, second = events("a", "b")
    for event in (second, first, second):
        log.add(event)
    stop()
    log.add(event_pb2.Event(uid="c", revision=9))
    assert heard == ["b", "a"]
    assert [event.uid for event in log.find(lambda event: event.uid != "c")] == ["a", "b"]


async def test_export_moves_everything_in_revision_order(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    store = MemoryStore()
    async with running(store) as cloud:
        exporter = Exporter(store, cloud.state, cloud.committer, FileJournal(path), SetClock())
        for _ in range(3):
            await asyncio.gather(
                *(
                    cloud.committer.commit(lambda state: Change(events=[event_pb2.Event(reason="Created")]))
                    for _ in range(90)
                )
            )
        await exporter.export()
        assert (await store.list(keys.JOURNAL.prefix())).items == ()
        revisions = [int(entry["event"]["revision"]) for entry in read_entries(path)]
        assert len(revisions) == 270
        assert revisions == sorted(revisions)
        assert check_journal(path) is None
        head = cloud.state.find(keys.JOURNAL_HEAD)
        assert head is not None
        assert head.message.sequence == 270
        await exporter.export()
