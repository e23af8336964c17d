"""Typed errors, the same words in every room and on the wire.

**Pure.** Each class has a stable `reason`, a gRPC code by name and the CLI's exit code. The message names
the object and the field; `hints` are commands that help. The controller's interceptor turns these into
gRPC errors (google.rpc.ErrorInfo, BadRequest, Help) and the client turns them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """The command line's exit codes: one published table (docs/reference/exit-codes.md)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    DENIED = 5
    TIMED_OUT = 6
    NO_CAPACITY = 7
    UNREACHABLE = 8
    QUOTA = 9
    DETACHED = 130


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One bad field: its path in the request (`spec.cidr`) and what to do about it."""

    field: str
    description: str


class CumuletError(Exception):
    """Base of every error that a user may see."""

    reason: ClassVar[str] = "INTERNAL"
    grpc_code: ClassVar[str] = "INTERNAL"
    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(
        self, message: str, *, violations: Sequence[FieldViolation] = (), hints: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.hints = tuple(hints)


class InternalError(CumuletError):
    """A fault of ours. The message carries no secrets; the log has the rest under the trace id."""


class InvalidArgumentError(CumuletError):
    """A field of the request is wrong. Nothing was changed."""

    reason = "INVALID_ARGUMENT"
    grpc_code = "INVALID_ARGUMENT"
    exit_code = ExitCode.USAGE

    @classmethod
    def of(cls, what: str, violations: Sequence[FieldViolation]) -> InvalidArgumentError:
        """All violations in one sentence and as details."""
        listed = "; ".join(f"{v.field}: {v.description}" for v in violations)
        return cls(f"{what}: {listed}", violations=violations)


class NotFoundError(CumuletError):
    reason = "NOT_FOUND"
    grpc_code = "NOT_FOUND"
    exit_code = ExitCode.NOT_FOUND


class AlreadyExistsError(CumuletError):
    """The name is taken."""

    reason = "ALREADY_EXISTS"
    grpc_code = "ALREADY_EXISTS"
    exit_code = ExitCode.CONFLICT


class ConflictError(CumuletError):
    """The etag is stale, or others kept changing what this change rests on."""

    reason = "CONFLICT"
    grpc_code = "ABORTED"
    exit_code = ExitCode.CONFLICT


class FailedPreconditionError(CumuletError):
    """The object's state does not allow it: in use, being deleted, protected."""

    reason = "FAILED_PRECONDITION"
    grpc_code = "FAILED_PRECONDITION"
    exit_code = ExitCode.CONFLICT


class QuotaExceededError(CumuletError):
    reason = "QUOTA_EXCEEDED"
    grpc_code = "RESOURCE_EXHAUSTED"
    exit_code = ExitCode.QUOTA


class NoCapacityError(CumuletError):
    """No node fits. In a dry run and at the end of an operation only: a create waits as Pending."""

    reason = "NO_CAPACITY"
    grpc_code = "RESOURCE_EXHAUSTED"
    exit_code = ExitCode.NO_CAPACITY


class TooLargeError(CumuletError):
    """A message or a field is over its limit."""

    reason = "TOO_LARGE"
    grpc_code = "RESOURCE_EXHAUSTED"
    exit_code = ExitCode.USAGE


class DeniedError(CumuletError):
    reason = "PERMISSION_DENIED"
    grpc_code = "PERMISSION_DENIED"
    exit_code = ExitCode.DENIED


class RevisionGoneError(CumuletError):
    """A page token or watch revision is older than the history that is kept: start again."""

    reason = "REVISION_GONE"
    grpc_code = "OUT_OF_RANGE"
    exit_code = ExitCode.CONFLICT


class UnavailableError(CumuletError):
    """Nobody can answer at the moment: no controller, no leader, no etcd. Trying again helps."""

    reason = "UNAVAILABLE"
    grpc_code = "UNAVAILABLE"
    exit_code = ExitCode.UNREACHABLE


class TimedOutError(CumuletError):
    """Waiting ended; the work goes on."""

    reason = "TIMED_OUT"
    grpc_code = "DEADLINE_EXCEEDED"
    exit_code = ExitCode.TIMED_OUT


class OperationFailedError(CumuletError):
    """The object ended in a state that is not what was asked for."""

    reason = "OPERATION_FAILED"
    grpc_code = "INTERNAL"
    exit_code = ExitCode.FAILED


BY_REASON: dict[str, type[CumuletError]] = {
    cls.reason: cls
    for cls in (
        InternalError,
        InvalidArgumentError,
        NotFoundError,
        AlreadyExistsError,
        ConflictError,
        FailedPreconditionError,
        QuotaExceededError,
        NoCapacityError,
        TooLargeError,
        DeniedError,
        RevisionGoneError,
        UnavailableError,
        TimedOutError,
        OperationFailedError,
    )
}
