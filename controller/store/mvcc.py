"""Versioned keys with history: what etcd does with transactions, in memory.

**Pure**: a value with methods, no clock and no I/O; `Mvcc` is changed in place.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from controller.store.protocol import (
    Change,
    CompactedError,
    Compare,
    Delete,
    KeyValue,
    Listing,
    Put,
    StoreError,
    in_range,
    prefix_end,
)

FIRST_REVISION: Final = 1  # an empty etcd's; its first write makes 2


@dataclass(slots=True)
class _History:
    """One key's versions, oldest first; None where it was deleted."""

    revisions: list[int] = field(default_factory=list)
    versions: list[KeyValue | None] = field(default_factory=list)

    def at(self, revision: int) -> KeyValue | None:
        if self.revisions[-1] <= revision:
            return self.versions[-1]
        position = bisect_right(self.revisions, revision)
        return self.versions[position - 1] if position else None

    def add(self, revision: int, version: KeyValue | None) -> None:
        self.revisions.append(revision)
        self.versions.append(version)

    def compact(self, revision: int) -> bool:
        """Forget what no read at `revision` or later can see. False: nothing is left."""
        keep = max(bisect_right(self.revisions, revision) - 1, 0)
        if self.revisions[keep] <= revision and self.versions[keep] is None:
            keep += 1
        del self.revisions[:keep], self.versions[:keep]
        return bool(self.revisions)


class Mvcc:
    """Every key's history since the last compaction, and the changes in revision order."""

    def __init__(self) -> None:
        self.revision = FIRST_REVISION
        self.compacted_revision = 0
        self._keys: list[bytes] = []
        self._histories: dict[bytes, _History] = {}
        self._log: list[tuple[Change, ...]] = []  # entry i is revision _log_start + i
        self._log_start = FIRST_REVISION + 1

    def get(self, key: bytes, revision: int = 0) -> KeyValue | None:
        """Raises CompactedError, StoreError for a future revision or an empty key."""
        if not key:
            raise StoreError("get: the key is empty")
        history = self._histories.get(key)
        at = self._readable(revision)
        return history.at(at) if history else None

    def list_prefix(self, prefix: bytes, revision: int, start_after: bytes, limit: int) -> Listing:
        """Raises CompactedError, StoreError for a future revision."""
        at = self._readable(revision)
        start = max(prefix, start_after + b"\0") if start_after else prefix
        items: list[KeyValue] = []
        for item in self._range(start, prefix_end(prefix), at):
            if limit and len(items) == limit:
                return Listing(at, tuple(items), more=True)
            items.append(item)
        return Listing(at, tuple(items), more=False)

    def holds(self, compare: Compare) -> bool:
        """As etcd judges it: over no key once, with revisions 0; no value equals an absent one."""
        if compare.range_end:
            found = list(self._range(compare.key, compare.range_end, self.revision))
        else:
            one = self.get(compare.key)
            found = [one] if one else []
        if not found:
            return compare.value_equals is None and _meets(compare, _ABSENT)
        return all(_meets(compare, item) for item in found)

    def apply(self, writes: Sequence[Put | Delete]) -> None:
        """All writes in one new revision; none if they change nothing."""
        revision = self.revision + 1
        changes: list[Change] = []
        for write in writes:
            if isinstance(write, Put):
                changes.append(self._put(write, revision))
            else:
                changes.extend(self._delete(write, revision))
        if changes:
            self.revision = revision
            self._log.append(tuple(changes))

    def changes_since(self, prefix: bytes, revision: int, revisions_max: int) -> tuple[int, list[Change]]:
        """The prefix's changes of at most `revisions_max` revisions from `revision` on.

        Returns the last revision looked at with them. Raises CompactedError.
        """
        if revision <= self.compacted_revision:
            raise CompactedError(self.compacted_revision)
        first = max(revision, self._log_start)
        batches = self._log[first - self._log_start : first - self._log_start + revisions_max]
        end = prefix_end(prefix)
        found = [change for batch in batches for change in batch if in_range(change.key, prefix, end)]
        return first + len(batches) - 1, found

    def compact(self, revision: int) -> None:
        """Raises StoreError for a future revision."""
        if revision > self.revision:
            raise StoreError(f"compact at {revision}: the store is only at revision {self.revision}")
        if revision <= self.compacted_revision:
            return
        self.compacted_revision = revision
        del self._log[: revision + 1 - self._log_start]
        self._log_start = max(self._log_start, revision + 1)
        gone = {key for key, history in self._histories.items() if not history.compact(revision)}
        for key in gone:
            del self._histories[key]
        self._keys = [key for key in self._keys if key not in gone]

    def _readable(self, revision: int) -> int:
        if revision > self.revision:
            raise StoreError(f"read at {revision}: the store is only at revision {self.revision}")
        if revision and revision < self.compacted_revision:
            raise CompactedError(self.compacted_revision)
        return revision or self.revision

    def _range(self, start: bytes, range_end: bytes, revision: int) -> Iterator[KeyValue]:
        first = bisect_left(self._keys, start)
        last = len(self._keys) if range_end == b"\0" else bisect_left(self._keys, range_end)
        for key in self._keys[first:last]:
            item = self._histories[key].at(revision)
            if item:
                yield item

    def _put(self, write: Put, revision: int) -> Change:
        history = self._histories.get(write.key)
        if history is None:
            history = self._histories[write.key] = _History()
            insort(self._keys, write.key)
        old = history.versions[-1] if history.versions else None
        created = old.create_revision if old else revision
        history.add(revision, KeyValue(write.key, write.value, created, revision, write.lease_id))
        return Change(write.key, write.value, created, revision, deleted=False)

    def _delete(self, write: Delete, revision: int) -> Iterator[Change]:
        if write.range_end:
            doomed = [item.key for item in self._range(write.key, write.range_end, revision)]
        else:
            doomed = [write.key] if self._histories.get(write.key) else []
        for key in doomed:
            history = self._histories[key]
            if history.versions[-1] is not None:
                history.add(revision, None)
                yield Change(key, b"", 0, revision, deleted=True)


_ABSENT: Final = KeyValue(b"", b"", 0, 0)


def _meets(compare: Compare, item: KeyValue) -> bool:
    if compare.create_equals is not None:
        return item.create_revision == compare.create_equals
    if compare.mod_equals is not None:
        return item.mod_revision == compare.mod_equals
    if compare.mod_below is not None:
        return item.mod_revision < compare.mod_below
    return item.value == compare.value_equals
