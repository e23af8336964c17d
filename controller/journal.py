"""The journal: every event of the cloud, in revision order, in an append-only, hash-chained file.

**Edge**: writes one file. An entry's hash covers the entry and the hash before it, so that a changed, lost or
reordered line shows (`check_journal`). The file is backed up like etcd.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from google.protobuf.json_format import ParseDict

from cumulet.v1 import event_pb2, store_pb2

log = structlog.get_logger(__name__)

RECENT_MAX: Final = 20_000  # events kept at hand for `cumulet events`: some 10 MiB

ZERO_HASH: Final = bytes(32)
_COMPACT: Final = (",", ":")
_TEXTS: Final = ("uid", "reason", "message", "source")
_TARGET: Final = ("kind", "project", "name", "uid")


class JournalBrokenError(Exception):
    """The file does not continue what the store says was written; the message names the line."""


class Journal(Protocol):
    """Where the leader exports events to."""

    async def append(
        self, head: store_pb2.JournalHead, events: Iterable[event_pb2.Event]
    ) -> store_pb2.JournalHead:
        """Durably append after `head`; the new head. What is there already after `head` is not repeated."""


class FileJournal:
    """JSON lines: sequence, event, hash in hex."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last: store_pb2.JournalHead | None = None  # what this object wrote last: no need to read back

    async def append(
        self, head: store_pb2.JournalHead, events: Iterable[event_pb2.Event]
    ) -> store_pb2.JournalHead:
        """Raises JournalBrokenError, OSError. A tail that the store never heard of is taken over first."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        known: set[str] = set()
        if head != self._last:
            head, known = self._take_over(head)
        lines = []
        for event in events:
            if event.uid in known:
                continue
            body = json.dumps(_body_of(event), sort_keys=True, separators=_COMPACT)
            head = store_pb2.JournalHead(sequence=head.sequence + 1, hash=_chain(head, body))
            lines.append(f'{{"sequence":{head.sequence},"event":{body},"hash":"{head.hash.hex()}"}}\n')
        if lines:
            self._last = None  # should this be cut short, look what is there
            await asyncio.to_thread(_append_durably, self._path, lines)  # a disk may take its time
        self._last = head
        return head

    def _take_over(self, head: store_pb2.JournalHead) -> tuple[store_pb2.JournalHead, set[str]]:
        """The file's own end and its events after `head`, which a crash kept the store from hearing of."""
        known = set()
        for number, entry in enumerate(read_entries(self._path), 1):
            if entry["sequence"] <= head.sequence:
                continue
            follows = _following(head, entry)
            if follows is None:
                raise JournalBrokenError(
                    f"{self._path}:{number}: entry {entry['sequence']} does not follow {head.sequence}, "
                    "the last one that the store knows of: keep the file aside and look who changed it"
                )
            head = follows
            known.add(entry["event"].get("uid", ""))
        return head, known


class MemoryJournal:
    """The same without a file, for simulations."""

    def __init__(self) -> None:
        self.events: dict[str, event_pb2.Event] = {}

    async def append(
        self, head: store_pb2.JournalHead, events: Iterable[event_pb2.Event]
    ) -> store_pb2.JournalHead:
        for event in events:
            if event.uid not in self.events:
                self.events[event.uid] = event
                body = json.dumps(_body_of(event), sort_keys=True, separators=_COMPACT)
                head = store_pb2.JournalHead(sequence=head.sequence + 1, hash=_chain(head, body))
        return head


class EventLog:
    """The last events, for reading: filled from the file's end and from the State's watch."""

    def __init__(self) -> None:
        self._recent: deque[event_pb2.Event] = deque(maxlen=RECENT_MAX)
        self._known: set[str] = set()
        self._listeners: list[Callable[[event_pb2.Event], None]] = []

    def load(self, path: Path) -> None:
        """Read a journal's file; a damaged one up to the damage."""
        try:
            for entry in read_entries(path):
                self.add(ParseDict(entry["event"], event_pb2.Event()))
        except JournalBrokenError as error:
            log.error("the journal is damaged", error=str(error))

    def add(self, event: event_pb2.Event) -> None:
        """Take an event once; the oldest one goes when there are too many."""
        if event.uid in self._known:
            return
        if len(self._recent) == RECENT_MAX:
            self._known.discard(self._recent[0].uid)
        self._known.add(event.uid)
        self._recent.append(event)
        for listener in tuple(self._listeners):
            listener(event)

    def listen(self, listener: Callable[[event_pb2.Event], None]) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def find(self, matches: Callable[[event_pb2.Event], bool]) -> list[event_pb2.Event]:
        """Oldest first."""
        return sorted(filter(matches, self._recent), key=lambda event: event.revision)


def check_journal(path: Path) -> str | None:
    """What is wrong with a journal file, naming the line; None when every hash follows."""
    head = store_pb2.JournalHead(hash=ZERO_HASH)
    for number, entry in enumerate(read_entries(path), 1):
        follows = _following(head, entry)
        if follows is None:
            return f"{path}:{number}: entry {entry['sequence']} does not follow entry {head.sequence}"
        head = follows
    return None


def _following(head: store_pb2.JournalHead, entry: dict[str, Any]) -> store_pb2.JournalHead | None:
    """The head with an entry on top; None when the entry is not the next one."""
    expected = _chain(head, json.dumps(entry["event"], sort_keys=True, separators=_COMPACT))
    if entry["sequence"] != head.sequence + 1 or entry["hash"] != expected.hex():
        return None
    return store_pb2.JournalHead(sequence=entry["sequence"], hash=expected)


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """Entries of a file; a last line that a crash tore is not one. Raises JournalBrokenError."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise JournalBrokenError(f"{path}:{number}: not an entry ({error})") from error


def _chain(head: store_pb2.JournalHead, body: str) -> bytes:
    """Over the hash before, the sequence and the event as compact JSON with sorted keys."""
    return hashlib.sha256((head.hash or ZERO_HASH) + f"[{head.sequence + 1},{body}]".encode()).digest()


def _body_of(event: event_pb2.Event) -> dict[str, Any]:
    """What `MessageToDict` would give, at a tenth of its cost: thousands of events a second are exported."""
    body: dict[str, Any] = {name: value for name in _TEXTS if (value := getattr(event, name))}
    if event.HasField("target"):
        target = event.target
        body["target"] = {name: value for name in _TARGET if (value := getattr(target, name))}
    if event.HasField("at"):
        body["at"] = event.at.ToJsonString()
    if event.warning:
        body["warning"] = True
    if event.revision:
        body["revision"] = str(event.revision)
    return body


def _append_durably(path: Path, lines: list[str]) -> None:
    with path.open("r+b" if path.exists() else "w+b") as file:
        end = _end_of_last_line(file)
        file.seek(end)
        file.truncate()
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _end_of_last_line(file: Any) -> int:
    """Where the next line starts: after a torn line, at that line's start."""
    end: int = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        at: int = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
