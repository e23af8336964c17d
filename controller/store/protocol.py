"""The store's protocol: versioned keys, guarded transactions, watches from a revision, leases.

**Pure**: types only. `etcd.py` and `memory.py` implement it and pass one contract suite
(`tests/contract/test_store.py`).

What every implementation guarantees, and what nobody may assume:

- *Revisions.* One counter for the whole store. A transaction that writes moves it by exactly one.
- *Reads* are linearizable unless a revision is given; every page of a list is of one revision.
- *Transactions* are atomic: all compares hold and all writes apply, or nothing is written.
  A reply that does not come means **unknown** (`OutcomeUnknownError`): read back, never retry blindly.
- *Watches* deliver whole revisions in order, each once, and resume by themselves over disconnects.
  History that is gone raises `CompactedError`: list again, watch from there.
- *Leases* say when a key may be lost. Holding one is never a proof of anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

OPS_MAX: Final = 128  # etcd's --max-txn-ops default, for compares and for writes separately
REQUEST_BYTES_MAX: Final = 1_500_000  # below etcd's --max-request-bytes default of 1.5 MiB
PAGE_KEYS: Final = 5_000  # etcd counts the rest of the range for every page: few large pages


# Told after each answered transaction: its purpose, the seconds it took, whether it committed.
OnTxn = Callable[[str, float, bool], None]


class KeyValue(NamedTuple):  # as Change below: made for every key and event, at half the cost of a dataclass
    """One key at one revision. `lease_id` is 0 for a key without a lease."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """Keys in key order, all at `revision`. `more`: the limit cut the listing."""

    revision: int
    items: tuple[KeyValue, ...]
    more: bool


class Change(NamedTuple):
    """One key's change. A deletion has an empty `value` and `create_revision` 0."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    deleted: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """All watched changes of one or more whole revisions; `revision` is the last of them.

    Watching may go on from `revision + 1`. `changes` is empty for a progress notice.
    """

    revision: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """A guard over one key, or over every key of `[key, range_end)` when that is given.

    Exactly one of the four bounds is set. An absent key has both revisions 0, so
    `created(key, 0)` means "absent", and over a range "no key there".
    """

    key: bytes
    range_end: bytes = b""
    create_equals: int | None = None
    mod_equals: int | None = None
    mod_below: int | None = None
    value_equals: bytes | None = None


def absent(key: bytes) -> Compare:
    """The key does not exist."""
    return Compare(key, create_equals=0)


def range_absent(prefix: bytes) -> Compare:
    """No key starts with the prefix."""
    return Compare(prefix, prefix_end(prefix), create_equals=0)


def created_at(key: bytes, create_revision: int) -> Compare:
    """The key is the very one created at that revision (value changes are allowed)."""
    return Compare(key, create_equals=create_revision)


def unchanged(key: bytes, mod_revision: int) -> Compare:
    """The key was last written at that revision."""
    return Compare(key, mod_equals=mod_revision)


def range_unchanged_since(prefix: bytes, revision: int) -> Compare:
    """No key of the prefix was created or written after `revision` (deletions pass)."""
    return Compare(prefix, prefix_end(prefix), mod_below=revision + 1)


@dataclass(frozen=True, slots=True)
class Put:
    key: bytes
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one key, or `[key, range_end)`. Deleting what is absent is not an error."""

    key: bytes
    range_end: bytes = b""


@dataclass(frozen=True, slots=True)
class Txn:
    """Writes that apply together if every compare holds. `purpose` labels the metric only."""

    compares: Sequence[Compare]
    writes: Sequence[Put | Delete]
    purpose: str


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`revision` is the transaction's own when `committed`, else the store's at the refusal."""

    committed: bool
    revision: int


class StoreError(Exception):
    """Base of what a store raises; `str()` says what was attempted."""


class StoreUnavailableError(StoreError):
    """No endpoint answered a read in time. Nothing was changed."""


class OutcomeUnknownError(StoreError):
    """A write was sent and no answer came: it may have happened or may still happen."""


class CompactedError(StoreError):
    """The asked revision is gone. `compact_revision` is the oldest that exists, 0 if not told."""

    def __init__(self, compact_revision: int) -> None:
        gone = f"before revision {compact_revision}" if compact_revision else "asked for"
        super().__init__(f"the store's history {gone} is gone: list again")
        self.compact_revision = compact_revision


class TxnTooLargeError(StoreError):
    """More than `OPS_MAX` compares or writes, a key written twice, or over `REQUEST_BYTES_MAX`.

    Nothing was changed."""


class StoreFullError(StoreError):
    """The store refuses writes until space is freed (etcd's NOSPACE alarm). Nothing was changed."""


class LeaseLostError(StoreError):
    """The lease has expired or was revoked."""


class Store(Protocol):
    """See the module's text for the guarantees. All methods may raise `StoreUnavailableError`."""

    async def get(self, key: bytes, *, revision: int = 0) -> KeyValue | None:
        """The key at a revision (0: now). Raises CompactedError."""

    async def list(
        self, prefix: bytes, *, revision: int = 0, start_after: bytes = b"", limit: int = 0
    ) -> Listing:
        """Keys of a prefix after `start_after`, at one revision; limit 0 is all of them.

        Raises CompactedError.
        """

    def watch(self, prefix: bytes, start_revision: int) -> AsyncIterator[Batch]:
        """Changes from `start_revision` on (1 or more, also a future one), forever.

        Raises CompactedError from the iterator, also in the middle of a watch that fell behind.
        """

    async def txn(self, txn: Txn) -> TxnResult:
        """Commit atomically.

        Raises OutcomeUnknownError, TxnTooLargeError, StoreFullError, and LeaseLostError when a put
        names a lease that does not exist.
        """

    async def grant_lease(self, ttl_s: int) -> int:
        """A new lease's id; the store may give it longer than `ttl_s`. Raises OutcomeUnknownError."""

    async def keep_alive(self, lease_id: int) -> int:
        """Renew; the seconds it now has. Raises LeaseLostError."""

    async def revoke_lease(self, lease_id: int) -> None:
        """End a lease and delete its keys in one revision; an unknown lease is not an error.

        Raises OutcomeUnknownError.
        """

    async def compact(self, revision: int) -> None:
        """Forget history before `revision`, where reads still work; watches start after it.

        Compacting what is compacted already is not an error. Raises OutcomeUnknownError.
        """

    async def close(self) -> None:
        """Release connections; watches end."""


def prefix_end(prefix: bytes) -> bytes:
    """The smallest key greater than every key with this prefix (etcd's range_end)."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        return b"\0"
    return trimmed[:-1] + bytes([trimmed[-1] + 1])


def check_start_revision(prefix: bytes, start_revision: int) -> None:
    """Raises ValueError: 0 means "now" to etcd, which would skip whatever happened meanwhile."""
    if start_revision < 1:
        raise ValueError(f"watch {prefix!r}: start_revision is {start_revision}, list first for one")


def check_txn_size(txn: Txn) -> None:
    """Refuse what etcd would refuse, before sending it. Raises TxnTooLargeError, StoreError."""
    if len(txn.compares) > OPS_MAX or len(txn.writes) > OPS_MAX:
        raise TxnTooLargeError(
            f"{txn.purpose}: {len(txn.compares)} compares and {len(txn.writes)} writes,"
            f" at most {OPS_MAX} each"
        )
    if not all(map(_names_key, txn.compares)) or not all(map(_names_key, txn.writes)):
        raise StoreError(f"{txn.purpose}: a key is empty")
    _check_written_once(txn)
    size = sum(len(w.key) + (len(w.value) if isinstance(w, Put) else 0) + 16 for w in txn.writes)
    size += sum(len(c.key) + len(c.range_end) + 24 for c in txn.compares)
    if size > REQUEST_BYTES_MAX:
        raise TxnTooLargeError(f"{txn.purpose}: {size} bytes, at most {REQUEST_BYTES_MAX}")


def _names_key(part: Compare | Put | Delete) -> bool:
    return bool(part.key) or (not isinstance(part, Put) and bool(part.range_end))


def _check_written_once(txn: Txn) -> None:
    """etcd refuses a key that is put twice, or put and deleted; several deletions may overlap."""
    put = {write.key for write in txn.writes if isinstance(write, Put)}
    deletes = [write for write in txn.writes if isinstance(write, Delete)]
    deleted_keys = {delete.key for delete in deletes if not delete.range_end}
    ranges = [(delete.key, delete.range_end) for delete in deletes if delete.range_end]
    twice = len(put) + len(deletes) != len(txn.writes) or not deleted_keys.isdisjoint(put)
    if twice or any(in_range(key, start, end) for start, end in ranges for key in put):
        raise TxnTooLargeError(f"{txn.purpose}: a key is written twice in one transaction")


def in_range(key: bytes, start: bytes, range_end: bytes) -> bool:
    """Whether a key is in `[start, range_end)`; a range_end of one zero byte has no end."""
    return start <= key and (range_end == b"\0" or key < range_end)
