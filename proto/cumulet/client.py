"""The client SDK: typed calls to a Cumulet controller, for scripts and for the command line.

**Edge**: gRPC to one of several endpoints. Every write carries a request id that stays the same over the
SDK's own retries, so that a write whose reply was lost is done once. Errors are `cumulet.errors`.

    from cumulet.client import Client

    with Client(["unix:/run/cumulet/controller.sock"]) as cloud:
        spec = {"flavor": "small", "image": "cumulet-guest", "networks": [{"network": "default"}]}
        operation = cloud.create("instance", {"meta": {"name": "web"}, "spec": spec})
        cloud.wait_operation(operation.meta.name, timeout_s=60)
        print(*cloud.get("instance", "web").status.addresses)
"""

from __future__ import annotations

import hashlib
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import grpc

from cumulet.console_stream import ConsoleStream
from cumulet.errors import (
    BY_REASON,
    CumuletError,
    InvalidArgumentError,
    OperationFailedError,
    TimedOutError,
    UnavailableError,
)
from cumulet.kinds import BY_NOUN, IMAGE, INSTANCE, NODE, OPERATION, Kind
from cumulet.names import DEFAULT_PROJECT

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from cumulet.v1 import (
        event_pb2,
        image_pb2,
        instance_pb2,
        operation_pb2,
        reach_pb2,
        system_pb2,
        whatif_pb2,
    )

T = TypeVar("T")
Progress = Callable[[int, int], None]  # bytes sent, bytes in all

TIMEOUT_S: Final = 30.0  # of one call with its retries; above the server's own deadlines
ROUNDS_MAX: Final = 4  # over all endpoints: a leader election takes 1-2 s
PAUSE_FIRST_S: Final = 0.2
PAUSE_MAX_S: Final = 2.0
PAGE_SIZE: Final = 500
CHUNK_BYTES: Final = 1 << 20  # of an upload; gRPC's own receive limit is 4 MiB
UPLOAD_TIMEOUT_S: Final = 3600.0
WHATIF_TIMEOUT_S: Final = 120.0  # the controller answers one at a time, each in at most 30 s
WAIT_SLICE_S: Final = 60.0  # of one WaitOperation; the server allows 10 minutes
RECEIVE_BYTES_MAX: Final = 64 << 20  # a page of 500 instances with full user-data is 12 MiB
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.min_reconnect_backoff_ms", 3000),  # also how long one connection attempt may take
    ("grpc.keepalive_time_ms", 30_000),  # a watch on a dead link ends
    ("grpc.keepalive_timeout_ms", 10_000),
)


class Client:
    """A connection to one cloud, in one project. Safe to share between threads; close it, or use `with`."""

    def __init__(
        self,
        endpoints: Sequence[str],
        project: str = DEFAULT_PROJECT,
        timeout_s: float = TIMEOUT_S,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`endpoints`: `host:port` or `unix:/path`, tried in order. Dials on the first call."""
        if not endpoints:
            raise InvalidArgumentError("no endpoint given", hints=("cumulet up", "cumulet context list"))
        self.endpoints = tuple(endpoints)
        self.project = project
        self.timeout_s = timeout_s
        self._pause = pause
        self._rng = random.Random()
        self._current = 0
        self._channels: dict[str, grpc.Channel] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every channel; streams that are open end."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    # Standard methods of every kind

    def get(self, kind: Kind | str, name: str, *, project: str = "") -> Any:
        """One object. Raises NotFoundError."""
        kind = _kind(kind)
        return self._unary(
            kind, f"Get{kind.name}", self._request(kind, f"Get{kind.name}", project, name=name)
        )

    def list(self, kind: Kind | str, *, project: str = "", selector: str = "", limit: int = 0) -> list[Any]:
        """All objects (of all projects with project `-`), or the first `limit`."""
        found: list[Any] = []
        for page in self.pages(kind, project=project, selector=selector, page_size=limit):
            found.extend(page)
            if limit and len(found) >= limit:
                return found[:limit]
        return found

    def pages(
        self, kind: Kind | str, *, project: str = "", selector: str = "", page_size: int = 0
    ) -> Iterator[Sequence[Any]]:
        """The same, a page at a time, all at one revision."""
        kind, token = _kind(kind), ""
        method = f"List{kind.plural}"
        size = min(page_size, PAGE_SIZE) or PAGE_SIZE
        while True:
            request = self._request(
                kind, method, project, selector=selector, page_size=size, page_token=token
            )
            reply = self._unary(kind, method, request)
            yield getattr(reply, kind.fields)
            token = reply.next_page_token
            if not token:
                return

    def create(
        self, kind: Kind | str, wanted: Message | Mapping[str, Any], *, validate_only: bool = False
    ) -> Any:
        """Create an object from a message or its JSON form. An instance's reply is the operation to wait for.

        Raises AlreadyExistsError, InvalidArgumentError, QuotaExceededError; with `validate_only` also
        NoCapacityError, since it asks the scheduler.
        """
        kind = _kind(kind)
        method = f"Create{kind.name}"
        request = self._write_request(kind, method, validate_only=validate_only)
        self._fill(kind, getattr(request, kind.field), wanted)
        return self._unary(kind, method, request)

    def update(
        self,
        kind: Kind | str,
        changed: Message | Mapping[str, Any],
        paths: Sequence[str],
        *,
        validate_only: bool = False,
    ) -> Any:
        """Change the fields at `paths`, such as spec.description or meta.labels, and return the object.

        With an etag in meta, ConflictError if somebody else changed the object meanwhile.
        """
        kind = _kind(kind)
        method = f"Update{kind.name}"
        request = self._write_request(kind, method, validate_only=validate_only)
        self._fill(kind, getattr(request, kind.field), changed)
        request.update_mask.paths.extend(paths)
        return self._unary(kind, method, request)

    def delete(
        self, kind: Kind | str, name: str, *, project: str = "", validate_only: bool = False, **more: Any
    ) -> Any:
        """Delete an object. `more`: etag, and `force` for a node that is gone for good.

        Raises NotFoundError, FailedPreconditionError (in use, protected), ConflictError (stale etag).
        """
        kind = _kind(kind)
        method = f"Delete{kind.name}"
        request = self._write_request(kind, method, project, name=name, validate_only=validate_only, **more)
        return self._unary(kind, method, request)

    def watch(
        self,
        kind: Kind | str,
        *,
        project: str = "",
        selector: str = "",
        from_revision: int = 0,
        timeout_s: float | None = None,
    ) -> Iterator[Any]:
        """Changes without an end: from the present objects on (revision 0), or those after a revision.

        A cut stream is resumed; changes at the revision of the cut may then come twice. Raises
        RevisionGoneError when the history that is needed is gone: list again; and TimedOutError.
        """
        kind = _kind(kind)
        method = f"Watch{kind.plural}"
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        resume, listed, cuts = from_revision, from_revision > 0, 0
        while True:
            request = self._request(kind, method, project, selector=selector, from_revision=resume)
            try:
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                for change in self._stream(kind, method, request, left_s):
                    listed = listed or change.type == _BOOKMARK
                    resume = max(resume, change.revision - (change.type != _BOOKMARK)) if listed else 0
                    cuts = 0
                    yield change
                raise UnavailableError(f"the watch of {kind.noun}s was closed by {self._endpoint}")
            except UnavailableError:
                cuts += 1
                if cuts >= ROUNDS_MAX:
                    raise
                self._turn(cuts)

    # Verbs

    def act(self, kind: Kind | str, verb: str, name: str, *, project: str = "", **more: Any) -> Any:
        """A verb of its own, such as `act("instance", "Stop", "web", force=True)`."""
        kind = _kind(kind)
        method = f"{verb}{kind.name}"
        return self._unary(kind, method, self._write_request(kind, method, project, name=name, **more))

    def cordon(self, node: str, reason: str = "") -> Any:
        """Place nothing new on a node."""
        return self.act(NODE, "Cordon", node, reason=reason)

    def explain(self, name: str, *, project: str = "") -> instance_pb2.ExplainInstanceResponse:
        """Why an instance is where it is, or nowhere."""
        request = self._request(INSTANCE, "ExplainInstance", project, name=name)
        found: instance_pb2.ExplainInstanceResponse = self._unary(INSTANCE, "ExplainInstance", request)
        return found

    def explain_reach(
        self,
        source: str,
        target: str,
        *,
        protocol: str = "",
        port: int = 0,
        ip_version: int = 0,
        live: bool = False,
        project: str = "",
    ) -> reach_pb2.ExplainReachResponse:
        """Whether packets from an instance or port reach another, or an address, and what decides it."""
        from cumulet.v1 import reach_pb2

        request = reach_pb2.ExplainReachRequest(
            project=project or self.project,
            source=source,
            target=target,
            protocol=protocol,
            port=port,
            ip_version=ip_version,
            live=live,
        )
        found: reach_pb2.ExplainReachResponse = self._unary("Reach", "ExplainReach", request)
        return found

    def console_log(self, name: str, *, project: str = "", tail_lines: int = 0) -> bytes:
        """What the guest's serial console has printed and is kept."""
        method = "GetConsoleLog"
        request = self._request(INSTANCE, method, project, name=name, tail_lines=tail_lines)
        return bytes(self._unary(INSTANCE, method, request).data)

    def console(self, name: str, *, project: str = "") -> ConsoleStream:
        """The guest's serial console, both ways."""
        request = self._request(INSTANCE, "AttachConsole", project, name=name)
        endpoint = self._endpoint
        call = INSTANCE.stub(self._channel(endpoint)).AttachConsole
        return ConsoleStream(call, request, lambda error: _typed(error, endpoint))

    def upload_file(
        self, path: Path, file_format: image_pb2.FileFormat.ValueType, progress: Progress | None = None
    ) -> image_pb2.ImageFile:
        """Store the bytes of a file and return what to put into an image's spec.

        Raises InvalidArgumentError when the file is not of the format, or changed while it was read.
        """

        def send(stub: Any, timeout_s: float) -> tuple[Any, str]:
            digest = hashlib.sha256()
            parts = _upload_parts(path, file_format, digest.update, progress)
            return stub.UploadFile(parts, timeout=timeout_s).file, digest.hexdigest()

        stored, sent_sha256 = self._retry(IMAGE, send, UPLOAD_TIMEOUT_S)
        if stored.sha256 != sent_sha256:
            raise InvalidArgumentError(f"{path} arrived with other bytes than were read: upload it again")
        found: image_pb2.ImageFile = stored
        return found

    def wait_operation(
        self, name: str, *, project: str = "", timeout_s: float = 600.0
    ) -> operation_pb2.Operation:
        """The operation when it is done. Raises the error that it ended with, or TimedOutError."""
        deadline = time.monotonic() + timeout_s
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            request = self._request(OPERATION, "WaitOperation", project, name=name)
            request.timeout.FromMilliseconds(int(min(left_s, WAIT_SLICE_S) * 1000))
            operation: operation_pb2.Operation = self._unary(
                OPERATION, "WaitOperation", request, timeout_s=WAIT_SLICE_S + self.timeout_s
            )
            if operation.done:
                if operation.HasField("error"):
                    raise operation_error(operation)
                return operation
            if left_s <= 0:
                raise TimedOutError(
                    f"{operation.verb} of {operation.target.name} goes on after {timeout_s:.0f} s of waiting",
                    hints=(f"cumulet operation wait {name}",),
                )

    def events(self, target: str = "", *, project: str = "", page_size: int = 0) -> Sequence[event_pb2.Event]:
        """What happened, oldest first. `target`: KIND/NAME or a uid."""
        found: list[event_pb2.Event] = []
        token = ""
        while True:
            request = _event_request("ListEventsRequest", project or self.project, target)
            request.page_size, request.page_token = page_size, token
            reply = self._unary("Event", "ListEvents", request)
            found.extend(reply.events)
            token = reply.next_page_token
            if not token:
                return found

    def watch_events(self, target: str = "", *, project: str = "") -> Iterator[event_pb2.Event]:
        """Events as they happen, without an end."""
        request = _event_request("WatchEventsRequest", project or self.project, target)
        return self._stream("Event", "WatchEvents", request)

    def verify(self, node: str = "") -> system_pb2.VerifyResponse:
        """Compare what is intended with what is really on every node, or one."""
        from cumulet.v1 import system_pb2

        request = system_pb2.VerifyRequest(node=node)
        found: system_pb2.VerifyResponse = self._unary("System", "Verify", request)
        return found

    def cloud(self) -> system_pb2.GetCloudResponse:
        """The controller's version, its leader, and counts."""
        from cumulet.v1 import system_pb2

        found: system_pb2.GetCloudResponse = self._unary("System", "GetCloud", system_pb2.GetCloudRequest())
        return found

    def what_if(
        self,
        steps: Sequence[Mapping[str, Any]],
        *,
        project: str = "",
        image: str = "",
        revision: int = 0,
        picture: int = 0,
    ) -> whatif_pb2.WhatIfResponse:
        """What would happen: the fleet before and after each step. `revision`: 0 is now; nothing is changed.

        Steps are WhatIfStep in JSON, such as `{"drain_node": {"node": "n1"}}`; `picture` is a PictureFormat.
        Raises NotFoundError for what a step names and the cloud has not.
        """
        from google.protobuf import json_format

        from cumulet.v1 import whatif_pb2

        request = whatif_pb2.WhatIfRequest(project=project or self.project, image=image, revision=revision)
        request.picture = picture  # type: ignore[assignment]  # any number travels; the controller refuses
        for step in steps:
            try:
                json_format.ParseDict(dict(step), request.steps.add())
            except json_format.ParseError as error:
                raise InvalidArgumentError(f"this is no step of a what-if: {error}") from error
        found: whatif_pb2.WhatIfResponse = self._unary("WhatIf", "WhatIf", request, WHATIF_TIMEOUT_S)
        return found

    # Calls

    def _request(self, kind: Kind, method: str, project: str, **values: Any) -> Any:
        scope = {"project": project or self.project} if kind.scoped else {}
        return kind.message(f"{method}Request")(**scope, **values)

    def _write_request(self, kind: Kind, method: str, project: str = "", **values: Any) -> Any:
        message = kind.message(f"{method}Request")
        if kind.scoped and "project" in message.DESCRIPTOR.fields_by_name:
            values["project"] = project or self.project
        return message(request_id=str(uuid.uuid4()), **values)

    def _fill(self, kind: Kind, target: Any, wanted: Message | Mapping[str, Any]) -> None:
        if isinstance(wanted, Mapping):
            from google.protobuf import json_format

            try:
                json_format.ParseDict(dict(wanted), target)
            except json_format.ParseError as error:
                raise InvalidArgumentError(f"this is no {kind.noun}: {error}") from error
        else:
            target.CopyFrom(wanted)
        if kind.scoped and not target.meta.project:
            target.meta.project = self.project

    def _unary(self, kind: Kind | str, method: str, request: Message, timeout_s: float | None = None) -> Any:
        return self._retry(
            kind, lambda stub, left_s: getattr(stub, method)(request, timeout=left_s), timeout_s
        )

    def _retry(self, kind: Kind | str, call: Callable[[Any, float], T], timeout_s: float | None = None) -> T:
        """Make a call, on the next endpoint when one is unavailable, up to a deadline for all of it."""
        deadline = time.monotonic() + (timeout_s or self.timeout_s)
        last = ROUNDS_MAX * len(self.endpoints)
        for attempt in range(1, last + 1):
            endpoint = self._endpoint
            try:
                return call(self._stub(kind, endpoint), max(0.001, deadline - time.monotonic()))
            except grpc.RpcError as error:
                failure = _typed(error, endpoint)
                if not isinstance(failure, UnavailableError) or time.monotonic() >= deadline:
                    raise failure from error
            if attempt < last:
                self._turn(attempt)
        raise failure

    def _stream(
        self, kind: Kind | str, method: str, request: Message, timeout_s: float | None = None
    ) -> Iterator[Any]:
        endpoint = self._endpoint
        call = getattr(self._stub(kind, endpoint), method)(request, timeout=timeout_s)
        try:
            yield from call
        except grpc.RpcError as error:
            raise _typed(error, endpoint) from error
        finally:
            call.cancel()

    @property
    def _endpoint(self) -> str:
        return self.endpoints[self._current % len(self.endpoints)]

    def _turn(self, attempt: int) -> None:
        """To the next endpoint; after a round over all of them with a jittered pause."""
        self._current += 1
        rounds, rest = divmod(attempt, len(self.endpoints))
        if rest == 0:
            ceiling_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2 ** (rounds - 1))
            self._pause(self._rng.uniform(ceiling_s / 2, ceiling_s))

    def _stub(self, kind: Kind | str, endpoint: str) -> Any:
        channel = self._channel(endpoint)
        return kind.stub(channel) if isinstance(kind, Kind) else _service_stub(kind, channel)

    def _channel(self, endpoint: str) -> grpc.Channel:
        if endpoint not in self._channels:
            self._channels[endpoint] = grpc.insecure_channel(endpoint, options=_OPTIONS)
        return self._channels[endpoint]


_BOOKMARK: Final = 3  # ChangeType: a constant of the protocol, here without importing its module


def operation_error(operation: operation_pb2.Operation) -> CumuletError:
    """The typed error that an operation ended with."""
    kind = BY_REASON.get(operation.error.reason, OperationFailedError)
    target = operation.target
    return kind(
        f"{operation.verb} of {target.name} failed: {operation.error.message}",
        hints=(f"cumulet explain {target.kind.lower() or 'operation'}/{target.name}",),
    )


def _kind(kind: Kind | str) -> Kind:
    if isinstance(kind, Kind):
        return kind
    found = BY_NOUN.get(kind)
    if found is None:
        raise InvalidArgumentError(f"{kind!r} is no kind: {', '.join(sorted(BY_NOUN))}")
    return found


def _service_stub(service: str, channel: grpc.Channel) -> Any:
    from importlib import import_module

    module = import_module(f"cumulet.v1.{service.lower()}_pb2_grpc")
    return getattr(module, f"{service}ServiceStub")(channel)


def _event_request(name: str, project: str, target: str) -> Any:
    from cumulet.v1 import event_pb2

    return getattr(event_pb2, name)(project=project, target=target)


def _typed(error: grpc.RpcError, endpoint: str) -> CumuletError:
    from cumulet.wire_errors import from_rpc_error  # only a failed call needs the details' descriptors

    return from_rpc_error(error, endpoint)


def _upload_parts(
    path: Path,
    file_format: image_pb2.FileFormat.ValueType,
    digest: Callable[[bytes], None],
    progress: Progress | None,
) -> Iterator[image_pb2.UploadFileRequest]:
    """The header, then the bytes, while telling digest and progress."""
    from cumulet.v1 import image_pb2

    with path.open("rb") as source:
        size_bytes, sent = os.fstat(source.fileno()).st_size, 0
        header = image_pb2.UploadHeader(format=file_format, size_bytes=size_bytes)
        yield image_pb2.UploadFileRequest(header=header)
        while chunk := source.read(CHUNK_BYTES):
            digest(chunk)
            sent += len(chunk)
            yield image_pb2.UploadFileRequest(chunk=chunk)
            if progress is not None:
                progress(sent, size_bytes)
