"""Errors survive the wire, and never outgrow gRPC's trailers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from hypothesis import given
from hypothesis import strategies as st

from cumulet.errors import (
    BY_REASON,
    ConflictError,
    CumuletError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
)
from cumulet.wire_errors import STATUS_BYTES_MAX, from_rpc_error, from_status, to_status, trace_id_of

SMALL = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ANY = st.text(max_size=4000)


def errors(text: st.SearchStrategy[str], size: int) -> st.SearchStrategy[CumuletError]:
    return st.builds(
        lambda kind, message, violations, hints: kind(message, violations=violations, hints=hints),
        st.sampled_from(sorted(BY_REASON.values(), key=lambda kind: kind.reason)),
        text,
        st.lists(st.builds(FieldViolation, text, text), max_size=size),
        st.lists(text, max_size=size),
    )


def content(error: CumuletError) -> tuple[object, ...]:
    return type(error), error.message, error.violations, error.hints


@given(errors(SMALL, 4))
def test_an_error_comes_back_as_it_went(error: CumuletError) -> None:
    assert content(from_status(to_status(error, "4bf92f3577b34da6"))) == content(error)


@given(errors(ANY, 12), st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_a_status_is_bounded_and_keeps_its_reason(error: CumuletError, trace_id: str) -> None:
    status = to_status(error, trace_id)
    back = from_status(status)
    assert status.ByteSize() <= STATUS_BYTES_MAX
    assert type(back) is type(error)
    assert back.violations == back.violations[: len(error.violations)]
    assert set(back.hints) <= {hint.encode("utf-8", "replace").decode() for hint in error.hints}


@given(st.integers(-5, 40), st.text(st.characters(exclude_categories=["Cs"])), st.binary(max_size=30))
def test_foreign_and_damaged_details_are_no_crash(code: int, message: str, noise: bytes) -> None:
    status = status_pb2.Status(code=code, message=message)
    status.details.append(any_pb2.Any(type_url="type.googleapis.com/google.rpc.Help", value=noise))
    status.details.append(any_pb2.Any(type_url="type.googleapis.com/other.Thing", value=noise))
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="CONFLICT", domain="elsewhere"))
    back = from_status(status)
    assert back.message == message
    if code not in (code_pb2.ABORTED,):
        assert not isinstance(back, ConflictError)


class _Fails(grpc.GenericRpcHandler):
    """Any method fails with the error given; `/raw` with a bare code."""

    def __init__(self, error: CumuletError) -> None:
        self.error = error

    def service(self, details: Any) -> Any:
        def answer(_request: bytes, context: grpc.ServicerContext) -> bytes:
            if details.method == "/raw":
                context.abort(grpc.StatusCode.ABORTED, "bare")
            context.abort_with_status(rpc_status.to_status(to_status(self.error, "trace-1")))

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def worst() -> CumuletError:
    bulky = "ü" * 3000
    return InvalidArgumentError(
        bulky, violations=[FieldViolation("spec.cidr", "wrong")] * 200, hints=["cumulet ls"]
    )


@pytest.fixture
def channel(worst: CumuletError) -> Iterator[grpc.Channel]:
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_Fails(worst),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    server.stop(None).wait()


def _failure(channel: grpc.Channel, method: str, timeout_s: float = 10, wait: bool = False) -> grpc.RpcError:
    call: Any = channel.unary_unary(method)
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=timeout_s, wait_for_ready=wait)
    return caught.value


def test_the_largest_error_passes_through_a_real_call(channel: grpc.Channel) -> None:
    back = from_rpc_error(_failure(channel, "/x"))
    assert isinstance(back, InvalidArgumentError)
    assert back.hints == ("cumulet ls",)
    assert back.message.endswith("…")
    assert back.violations[0] == FieldViolation("spec.cidr", "wrong")
    assert trace_id_of(back) == "trace-1"


def test_a_bare_code_maps_to_its_class(channel: grpc.Channel) -> None:
    back = from_rpc_error(_failure(channel, "/raw"))
    assert isinstance(back, ConflictError)
    assert (back.message, trace_id_of(back)) == ("bare", "")


def test_an_unreachable_endpoint_is_named_with_the_way_to_start_one() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as nobody:
        back = from_rpc_error(_failure(nobody, "/x"), "127.0.0.1:1")
    assert isinstance(back, UnavailableError)
    assert "127.0.0.1:1" in back.message
    assert "cumulet up" in back.hints


def test_a_passed_deadline_is_a_timeout() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as nobody:
        back = from_rpc_error(_failure(nobody, "/x", timeout_s=0.05, wait=True), "127.0.0.1:1")
    assert isinstance(back, TimedOutError)


def test_an_error_without_a_call_has_no_trace() -> None:
    assert trace_id_of(NotFoundError("x")) == ""
    assert trace_id_of(from_rpc_error(grpc.RpcError("odd"))) == ""
    assert isinstance(from_rpc_error(grpc.RpcError("odd")), InternalError)
