"""Typed errors on the wire and back: `CumuletError` <-> `google.rpc.Status` <-> `grpc.RpcError`.

**Pure.** The reason travels as ErrorInfo (domain `cumulet`), field violations as BadRequest, hints as Help
links whose description is the runnable command, the trace id as RequestInfo. A status always fits in
gRPC's trailers: what does not fit is cut from its end, never the reason and never the trace id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from cumulet.errors import (
    BY_REASON,
    AlreadyExistsError,
    ConflictError,
    CumuletError,
    DeniedError,
    FailedPreconditionError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    RevisionGoneError,
    TimedOutError,
    TooLargeError,
    UnavailableError,
)

if TYPE_CHECKING:
    import grpc

DOMAIN: Final = "cumulet"
# gRPC refuses trailers over 8 KiB. The message travels twice: percent-encoded (3 bytes for one, at worst) as
# grpc-message, and inside the status, which is sent in base64 (4 bytes for three).
MESSAGE_BYTES_MAX: Final = 1024
STATUS_BYTES_MAX: Final = 3072
TRACE_CHARS_MAX: Final = 64  # a W3C trace id has 32
_CUT: Final = " …"

# For a status without our ErrorInfo: a proxy's, gRPC's own, or another server's.
_BY_CODE: Final[dict[str, type[CumuletError]]] = {
    "INVALID_ARGUMENT": InvalidArgumentError,
    "NOT_FOUND": NotFoundError,
    "ALREADY_EXISTS": AlreadyExistsError,
    "ABORTED": ConflictError,
    "FAILED_PRECONDITION": FailedPreconditionError,
    "RESOURCE_EXHAUSTED": TooLargeError,  # gRPC's own: a message over the receive limit
    "PERMISSION_DENIED": DeniedError,
    "UNAUTHENTICATED": DeniedError,
    "OUT_OF_RANGE": RevisionGoneError,
    "UNAVAILABLE": UnavailableError,
    "DEADLINE_EXCEEDED": TimedOutError,
}


def to_status(error: CumuletError, trace_id: str) -> status_pb2.Status:
    """The error as a status with details, small enough for gRPC's trailers."""
    status = status_pb2.Status(
        code=code_pb2.Code.Value(error.grpc_code), message=_clip(error.message, MESSAGE_BYTES_MAX)
    )
    _add(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))
    if trace_id:
        _add(status, error_details_pb2.RequestInfo(request_id=trace_id[:TRACE_CHARS_MAX]))
    room = STATUS_BYTES_MAX - status.ByteSize()
    for part in (_help_of(error), _bad_request_of(error)):
        room -= _add_within(status, part, room)
    return status


def from_status(status: status_pb2.Status) -> CumuletError:
    """The typed error that a status carries. A reason that this version does not know becomes its code's."""
    details = _details_of(status)
    info = details.get("ErrorInfo")
    reason = info.reason if info is not None and info.domain == DOMAIN else ""
    kind = BY_REASON.get(reason) or _BY_CODE.get(_code_name(status.code), InternalError)
    bad_request, links = details.get("BadRequest"), details.get("Help")
    return kind(
        status.message,
        violations=[FieldViolation(v.field, v.description) for v in bad_request.field_violations]
        if bad_request
        else (),
        hints=[link.description for link in links.links] if links else (),
    )


def from_rpc_error(error: grpc.RpcError, endpoint: str = "") -> CumuletError:
    """The typed error of a failed call; the call itself is its `__cause__`.

    What gRPC says of itself (nobody listens, the deadline passed) names the endpoint and the way out.
    """
    status = _status_of(error)
    found = from_status(status) if status is not None else _of_transport(error, endpoint)
    found.__cause__ = error
    return found


def trace_id_of(error: CumuletError) -> str:
    """The server's trace id of the failed call behind an error, or the empty string."""
    status = _status_of(error.__cause__) if error.__cause__ is not None else None
    info = _details_of(status).get("RequestInfo") if status is not None else None
    return str(info.request_id) if info is not None else ""


def _of_transport(error: grpc.RpcError, endpoint: str) -> CumuletError:
    code = error.code().name if hasattr(error, "code") else "UNKNOWN"
    said = (error.details() or "") if hasattr(error, "details") else str(error)
    where = endpoint or "the controller"
    if code == "UNAVAILABLE":
        if said.startswith("failed to connect"):
            said = said.rpartition(": ")[2]  # gRPC's core repeats the address three times before the cause
        cause = said or "nobody answers"
        return UnavailableError(
            f"cannot reach {where}: {cause}", hints=("cumulet up", "cumulet context list")
        )
    if code == "DEADLINE_EXCEEDED":
        return TimedOutError(f"{where} did not answer in time", hints=("cumulet status",))
    if code == "UNIMPLEMENTED":
        return InternalError(f"{where} does not know this call: it may be older than this client")
    return _BY_CODE.get(code, InternalError)(said or f"{where} answered {code}")


def _status_of(error: BaseException) -> status_pb2.Status | None:
    """The rich status in a failed call's trailers, or None (also when the trailers are damaged)."""
    trailers: Any = getattr(error, "trailing_metadata", None)
    for key, value in (trailers() if trailers is not None else None) or ():
        if key == "grpc-status-details-bin":
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _details_of(status: status_pb2.Status) -> dict[str, Any]:
    """Details by message name; those of unknown or damaged types are left out."""
    found: dict[str, Any] = {}
    for detail in status.details:
        kind = getattr(error_details_pb2, detail.TypeName().removeprefix("google.rpc."), None)
        if kind is not None and detail.Is(kind.DESCRIPTOR):
            message = kind()
            try:
                detail.Unpack(message)
            except DecodeError:
                continue
            found.setdefault(kind.DESCRIPTOR.name, message)
    return found


def _code_name(code: int) -> str:
    return code_pb2.Code.Name(code) if code in code_pb2.Code.values() else "UNKNOWN"


def _bad_request_of(error: CumuletError) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(
                field=_clip(v.field, MESSAGE_BYTES_MAX), description=_clip(v.description, MESSAGE_BYTES_MAX)
            )
            for v in error.violations
        ]
    )


def _help_of(error: CumuletError) -> error_details_pb2.Help:
    # A hint is a command line: one that does not fit is dropped, not cut, for it would run as another.
    return error_details_pb2.Help(
        links=[
            error_details_pb2.Help.Link(description=_utf8(hint))
            for hint in error.hints
            if len(_utf8(hint).encode()) <= MESSAGE_BYTES_MAX
        ]
    )


def _add_within(status: status_pb2.Status, message: Any, room: int) -> int:
    """Add a detail with one repeated field, less its last entries if room lacks. Returns the bytes used."""
    entries = getattr(message, message.DESCRIPTOR.fields[0].name)
    before = int(status.ByteSize())
    while entries:
        _add(status, message)
        used = int(status.ByteSize()) - before
        if used <= room:
            return used
        del status.details[-1]
        del entries[-1]
    return 0


def _add(status: status_pb2.Status, message: Any) -> None:
    status.details.add().Pack(message)


def _clip(text: str, bytes_max: int) -> str:
    encoded = _utf8(text).encode()
    if len(encoded) <= bytes_max:
        return encoded.decode()
    return encoded[: bytes_max - len(_CUT.encode())].decode(errors="ignore") + _CUT


def _utf8(text: str) -> str:
    """Without lone surrogates, which no protobuf string can hold."""
    return text.encode("utf-8", "replace").decode()
