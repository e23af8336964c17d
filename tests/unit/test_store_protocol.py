"""The store's pure parts: prefixes, transaction limits, endpoints, and what etcd's errors mean."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.store.etcd_channel import TlsFiles, channel_options, channel_target, store_error
from controller.store.etcd_wire import compare_message
from controller.store.protocol import (
    OPS_MAX,
    REQUEST_BYTES_MAX,
    CompactedError,
    Compare,
    Delete,
    LeaseLostError,
    OutcomeUnknownError,
    Put,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    Txn,
    TxnTooLargeError,
    check_txn_size,
    in_range,
    prefix_end,
)

keys = st.binary(max_size=6) | st.lists(st.sampled_from([0, 1, 0x61, 0xFE, 0xFF]), max_size=6).map(bytes)


@given(prefix=keys, key=keys)
def test_a_prefix_and_its_end_enclose_exactly_its_keys(prefix: bytes, key: bytes) -> None:
    assert in_range(key, prefix, prefix_end(prefix)) == key.startswith(prefix)


@given(prefix=keys, suffix=keys)
def test_every_key_of_a_prefix_is_in_its_range(prefix: bytes, suffix: bytes) -> None:
    assert in_range(prefix + suffix, prefix, prefix_end(prefix))


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"", b"\0"), (b"a", b"b"), (b"a/", b"a0"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"a\0", b"a\1")],
)
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


def test_transactions_at_and_over_each_limit() -> None:
    puts = [Put(b"%d" % number, b"") for number in range(OPS_MAX + 1)]
    compares = [Compare(put.key, mod_equals=0) for put in puts]
    room = REQUEST_BYTES_MAX - 16 - 1
    check_txn_size(Txn(compares[1:], puts[1:], "test"))
    check_txn_size(Txn((), (Put(b"a", b"x" * room),), "test"))
    check_txn_size(Txn((), (Delete(b"a", b"c"), Delete(b"b"), Delete(b"b"), Put(b"c", b"")), "test"))
    over = [
        Txn(compares, (), "guard"),
        Txn((), puts, "guard"),
        Txn((), (Put(b"a", b"x" * (room + 1)),), "guard"),
        Txn((), (Put(b"b", b""), Delete(b"a", b"c")), "guard"),
        Txn((), (Put(b"b", b""), Delete(b"a", b"\0")), "guard"),
        Txn((), (Delete(b"b"), Put(b"b", b"")), "guard"),
    ]
    for txn in over:
        with pytest.raises(TxnTooLargeError, match=r"^guard: "):
            check_txn_size(txn)


@pytest.mark.parametrize("part", [Compare(b"", mod_equals=0), Put(b"", b""), Delete(b"")])
def test_an_empty_key_is_no_key(part: Compare | Put | Delete) -> None:
    is_compare = isinstance(part, Compare)
    txn = Txn((part,) if isinstance(part, Compare) else (), () if is_compare else (part,), "test")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="empty"):
        check_txn_size(txn)


def test_a_compare_has_exactly_one_bound() -> None:
    for compare in (Compare(b"a"), Compare(b"a", mod_equals=1, mod_below=1)):
        with pytest.raises(ValueError, match="exactly one bound"):
            compare_message(compare)


@pytest.mark.parametrize(
    ("endpoints", "target"),
    [
        (["10.0.0.1:2379"], "ipv4:10.0.0.1:2379"),
        (["http://10.0.0.1:2379/"], "ipv4:10.0.0.1:2379"),
        (["10.0.0.1:2379", "10.0.0.2:2379"], "ipv4:10.0.0.1:2379,10.0.0.2:2379"),
        (["[fd00::1]:2379", "[fd00::2]:2379"], "ipv6:[fd00::1]:2379,[fd00::2]:2379"),
        (["etcd.internal:2379"], "dns:///etcd.internal:2379"),
        (["localhost:1", "127.0.0.2:2"], "ipv4:127.0.0.1:1,127.0.0.2:2"),
        (["unix:/run/etcd.sock"], "unix:/run/etcd.sock"),
    ],
)
def test_endpoints_become_one_target(endpoints: list[str], target: str) -> None:
    assert channel_target(endpoints) == target


@pytest.mark.parametrize(
    ("endpoints", "message"),
    [
        ([], "none given"),
        (["10.0.0.1"], "HOST:PORT"),
        (["10.0.0.1:http"], "HOST:PORT"),
        (["unix:/a", "10.0.0.1:1"], "unix socket"),
        (["10.0.0.1:1", "[fd00::1]:1"], "cannot be mixed"),
        (["no-such-host.invalid:1", "10.0.0.1:1"], "does not resolve"),
    ],
)
def test_bad_endpoints_say_what_to_write(endpoints: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        channel_target(endpoints)


def test_tls_checks_one_name() -> None:
    files = TlsFiles(Path("ca.pem"))
    named = TlsFiles(Path("ca.pem"), server_name="etcd")
    assert ("grpc.ssl_target_name_override", "10.0.0.1") in channel_options(["10.0.0.1:2379"], files)
    assert ("grpc.ssl_target_name_override", "etcd") in channel_options(["10.0.0.1:1", "10.0.0.2:1"], named)
    with pytest.raises(ValueError, match=r"tls\.server_name"):
        channel_options(["10.0.0.1:1", "10.0.0.2:1"], files)
    with pytest.raises(ValueError, match="https"):
        channel_options(["https://10.0.0.1:1"], None)


@pytest.mark.parametrize(
    ("code", "details", "for_read", "for_write"),
    [
        ("UNAVAILABLE", "etcdserver: leader changed", StoreUnavailableError, OutcomeUnknownError),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", StoreUnavailableError, OutcomeUnknownError),
        ("UNKNOWN", "", StoreUnavailableError, OutcomeUnknownError),
        (
            "OUT_OF_RANGE",
            "etcdserver: mvcc: required revision has been compacted",
            CompactedError,
            CompactedError,
        ),
        ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision", StoreError, StoreError),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", StoreFullError, StoreFullError),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", StoreUnavailableError, StoreUnavailableError),
        ("INVALID_ARGUMENT", "etcdserver: request is too large", TxnTooLargeError, TxnTooLargeError),
        (
            "INVALID_ARGUMENT",
            "etcdserver: duplicate key given in txn request",
            TxnTooLargeError,
            TxnTooLargeError,
        ),
        ("NOT_FOUND", "etcdserver: requested lease not found", LeaseLostError, LeaseLostError),
        ("PERMISSION_DENIED", "etcdserver: permission denied", StoreError, StoreError),
    ],
)
def test_etcd_errors_have_types(
    code: str, details: str, for_read: type[StoreError], for_write: type[StoreError]
) -> None:
    for is_write, expected in ((False, for_read), (True, for_write)):
        error = store_error(grpc.StatusCode[code], details, "get a", is_write=is_write)
        assert type(error) is expected
        assert expected is CompactedError or str(error).startswith("get a: ")
