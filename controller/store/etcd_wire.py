"""The store's values as etcd's messages and back.

**Pure**: no I/O; one function per message.
"""

from __future__ import annotations

from collections.abc import Iterable

from controller.store.etcdpb import rpc_pb2 as pb
from controller.store.protocol import Change, Compare, Delete, KeyValue, Put, Txn, prefix_end

_DELETE = pb.Event.DELETE
_FIRST_KEY = b"\0"  # etcd refuses the empty key; no key is smaller than this one


def range_request(prefix: bytes, *, start_after: bytes, limit: int, revision: int) -> pb.RangeRequest:
    """The keys of `prefix` greater than `start_after` (all of them when it is empty)."""
    start = max(prefix or _FIRST_KEY, start_after + b"\0" if start_after else b"")
    return pb.RangeRequest(key=start, range_end=prefix_end(prefix), limit=limit, revision=revision)


def watch_request(prefix: bytes, start_revision: int) -> pb.WatchRequest:
    return pb.WatchRequest(
        create_request=pb.WatchCreateRequest(
            key=prefix or _FIRST_KEY,
            range_end=prefix_end(prefix),
            start_revision=start_revision,
            fragment=True,
        )
    )


def txn_request(txn: Txn) -> pb.TxnRequest:
    """Writes are filled in place: a message that is given to another's constructor is copied."""
    request = pb.TxnRequest(compare=[compare_message(compare) for compare in txn.compares])
    for write in txn.writes:
        _fill_write(request.success.add(), write)
    return request


def compare_message(compare: Compare) -> pb.Compare:
    """Raises ValueError unless exactly one bound is set."""
    message = pb.Compare(key=_start(compare.key, compare.range_end), range_end=compare.range_end)
    bounds = (compare.create_equals, compare.mod_equals, compare.mod_below, compare.value_equals)
    if sum(bound is not None for bound in bounds) != 1:
        raise ValueError(f"compare of {compare.key!r}: set exactly one bound")
    if compare.create_equals is not None:
        message.target = pb.Compare.CREATE
        message.create_revision = compare.create_equals
    elif compare.value_equals is not None:
        message.target = pb.Compare.VALUE
        message.value = compare.value_equals
    else:
        message.target = pb.Compare.MOD
        message.mod_revision = (
            compare.mod_equals if compare.mod_equals is not None else compare.mod_below or 0
        )
        message.result = pb.Compare.EQUAL if compare.mod_below is None else pb.Compare.LESS
    return message


def _start(key: bytes, range_end: bytes) -> bytes:
    return key or (_FIRST_KEY if range_end else b"")


def _fill_write(operation: pb.RequestOp, write: Put | Delete) -> None:
    if isinstance(write, Put):
        put = operation.request_put
        put.key, put.value = write.key, write.value
        if write.lease_id:
            put.lease = write.lease_id
    else:
        delete = operation.request_delete_range
        delete.key, delete.range_end = _start(write.key, write.range_end), write.range_end


def key_value(message: pb.KeyValue) -> KeyValue:
    return KeyValue(message.key, message.value, message.create_revision, message.mod_revision, message.lease)


def changes(events: Iterable[pb.Event], since_revision: int) -> tuple[Change, ...]:
    """The events at or after a revision."""
    found: list[Change] = []
    for event in events:
        kv = event.kv
        revision = kv.mod_revision
        if revision >= since_revision:
            found.append(Change(kv.key, kv.value, kv.create_revision, revision, event.type == _DELETE))
    return tuple(found)
