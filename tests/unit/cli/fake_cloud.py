"""A small cloud behind a real gRPC server, for what the command line makes of its answers.

**Edge**: serves on loopback. It decides nothing: objects are kept as they come, a test plans what an instance
becomes and which call fails with what. It is no fake of the controller, whose own tests use the real one.
"""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import grpc
from grpc_status import rpc_status

from cumulet.errors import AlreadyExistsError, CumuletError, InvalidArgumentError, NotFoundError
from cumulet.kinds import KINDS, OPERATION, Kind
from cumulet.v1 import (
    event_pb2,
    image_pb2,
    instance_pb2,
    meta_pb2,
    operation_pb2,
    system_pb2,
    whatif_pb2,
)
from cumulet.wire_errors import to_status

Key = tuple[str, str, str]
PAGE_MAX = 3  # small, so that every listing of a test has several pages
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


@dataclass
class Plan:
    """What a watch of an instance is told, and whether the stream then ends or stays open."""

    statuses: Sequence[instance_pb2.InstanceStatus] = ()
    deleted: bool = False


@dataclass
class FakeCloud:
    """State that tests set and read; `calls` has every request in order."""

    objects: dict[Key, Any] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    failures: dict[str, deque[CumuletError]] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    events: list[event_pb2.Event] = field(default_factory=list)
    verdict: system_pb2.VerifyResponse = field(default_factory=system_pb2.VerifyResponse)
    explanation: instance_pb2.ExplainInstanceResponse = field(
        default_factory=instance_pb2.ExplainInstanceResponse
    )
    forecast: whatif_pb2.WhatIfResponse = field(default_factory=whatif_pb2.WhatIfResponse)
    log: bytes = b""
    uploads: list[bytes] = field(default_factory=list)
    revision: int = 10
    closing: threading.Event = field(default_factory=threading.Event)

    def add(self, kind: Kind, name: str, project: str = "default", **spec: Any) -> Any:
        """Put an object in, with a uid that the name determines."""
        one: Any = kind.message()()
        one.meta.name, one.meta.project = name, project if kind.scoped else ""
        one.meta.uid = str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{kind.noun}/{project}/{name}"))
        one.meta.etag, one.meta.revision = "7", self.revision
        one.meta.created_at.FromSeconds(1_700_000_000)
        for key, value in spec.items():
            setattr(one.spec, key, value)
        self.objects[self.key(kind, project, name)] = one
        return one

    def fail(self, method: str, *errors: CumuletError) -> None:
        """Let the next calls of a method fail."""
        self.failures.setdefault(method, deque()).extend(errors)

    def called(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    @staticmethod
    def key(kind: Kind, project: str, name: str) -> Key:
        return kind.noun, project if kind.scoped else "", name

    def find(self, kind: Kind, request: Any) -> Any:
        key = self.key(kind, getattr(request, "project", ""), request.name)
        if key not in self.objects:
            raise NotFoundError(f"{kind.noun} {request.name} does not exist", hints=["cumulet ls"])
        return self.objects[key]

    def listed(self, kind: Kind, request: Any) -> list[Any]:
        project = getattr(request, "project", "")
        return [
            one
            for (noun, of, _), one in sorted(self.objects.items())
            if noun == kind.noun
            and (not kind.scoped or project in ("-", of))
            and (not request.selector or _selected(one, request.selector))
        ]


def _selected(one: Any, selector: str) -> bool:
    key, _, value = selector.partition("=")
    return bool(one.meta.labels.get(key) == value)


class _Methods:
    """The standard methods of one kind."""

    def __init__(self, cloud: FakeCloud, kind: Kind) -> None:
        self.cloud, self.kind = cloud, kind

    def get(self, request: Any) -> Any:
        return self.cloud.find(self.kind, request)

    def list(self, request: Any) -> Any:
        found = self.cloud.listed(self.kind, request)
        start = int(request.page_token or 0)
        size = min(request.page_size or PAGE_MAX, PAGE_MAX)
        reply: Any = self.kind.message(f"List{self.kind.plural}Response")(revision=self.cloud.revision)
        getattr(reply, self.kind.fields).extend(found[start : start + size])
        if start + size < len(found):
            reply.next_page_token = str(start + size)
        return reply

    def create(self, request: Any) -> Any:
        wanted = getattr(request, self.kind.field)
        key = self.cloud.key(self.kind, wanted.meta.project, wanted.meta.name)
        if key in self.cloud.objects:
            raise AlreadyExistsError(f"{self.kind.noun} {wanted.meta.name} exists already")
        if not request.validate_only:
            made = self.cloud.add(self.kind, wanted.meta.name, wanted.meta.project)
            made.spec.CopyFrom(wanted.spec)
            made.meta.labels.update(wanted.meta.labels)
            wanted = made
        return self.reply("create", wanted)

    def update(self, request: Any) -> Any:
        changed = getattr(request, self.kind.field)
        request_like = type("Named", (), {"project": changed.meta.project, "name": changed.meta.name})
        stored = self.cloud.find(self.kind, request_like)
        merged = type(stored)()
        merged.CopyFrom(stored)
        request.update_mask.MergeMessage(changed, merged, True, True)
        if not request.validate_only:
            stored.CopyFrom(merged)
        return merged

    def delete(self, request: Any) -> Any:
        gone = self.cloud.find(self.kind, request)
        if not request.validate_only and request.name not in self.cloud.plans:
            del self.cloud.objects[self.cloud.key(self.kind, getattr(request, "project", ""), request.name)]
        return self.reply("delete", gone)

    def watch(self, request: Any) -> Iterator[Any]:
        change = self.kind.message("{}Change")
        if not request.from_revision:
            for one in self.cloud.listed(self.kind, request):
                put = {self.kind.field: one, "revision": one.meta.revision}
                yield change(type=meta_pb2.CHANGE_TYPE_PUT, **put)
            yield change(type=meta_pb2.CHANGE_TYPE_BOOKMARK, revision=self.cloud.revision)
        for name, plan in list(self.cloud.plans.items()):
            one = self.cloud.objects[self.cloud.key(self.kind, "default", name)]
            for status in plan.statuses:
                one.status.CopyFrom(status)
                yield change(type=meta_pb2.CHANGE_TYPE_PUT, revision=11, **{self.kind.field: one})
            if plan.deleted:
                yield change(type=meta_pb2.CHANGE_TYPE_DELETE, revision=12, **{self.kind.field: one})
        self.cloud.closing.wait(20)

    def act(self, request: Any) -> Any:
        return self.reply(type(request).__name__.removesuffix("InstanceRequest").lower(), self.get(request))

    def reply(self, verb: str, one: Any) -> Any:
        if self.kind.noun != "instance":
            return one if verb == "create" else self.kind.message("Delete{}Response")()
        operation = operation_pb2.Operation(verb=f"instance.{verb}", goal_boots=1)
        operation.meta.name = f"op-{one.meta.name}"
        target = operation.target
        target.kind, target.name, target.uid = "instance", one.meta.name, one.meta.uid
        operation.steps.add(name="placement", message="node n1, the best of 1")
        self.cloud.objects.setdefault(self.cloud.key(OPERATION, "default", operation.meta.name), operation)
        return operation


def _answers(cloud: FakeCloud, kind: Kind) -> dict[str, Callable[[Any], Any]]:
    own = _Methods(cloud, kind)
    found: dict[str, Callable[[Any], Any]] = {
        f"Get{kind.name}": own.get,
        f"List{kind.plural}": own.list,
        f"Create{kind.name}": own.create,
        f"Update{kind.name}": own.update,
        f"Delete{kind.name}": own.delete,
        f"Watch{kind.plural}": own.watch,
    }
    if kind.noun == "node":
        found |= {"CordonNode": own.get, "UncordonNode": own.get}
    if kind.noun == "operation":
        found["WaitOperation"] = own.get
    if kind.noun == "instance":
        found |= {f"{verb}Instance": own.act for verb in ("Start", "Stop", "Reboot")}
        found["ExplainInstance"] = lambda request: own.get(request) and cloud.explanation
        found["GetConsoleLog"] = lambda request: instance_pb2.GetConsoleLogResponse(data=cloud.log)
        found["AttachConsole"] = lambda requests: _echo(cloud, requests)
    if kind.noun == "image":
        found["UploadFile"] = lambda requests: _upload(cloud, requests)
    return found


def _echo(cloud: FakeCloud, requests: Iterator[Any]) -> Iterator[Any]:
    first = next(requests)
    yield instance_pb2.AttachConsoleResponse(data=f"console of {first.name}\r\n".encode())
    for request in requests:
        yield instance_pb2.AttachConsoleResponse(data=request.data.upper())


def _upload(cloud: FakeCloud, requests: Iterator[Any]) -> Any:
    import hashlib

    header = next(requests).header
    data = b"".join(request.chunk for request in requests)
    cloud.uploads.append(data)
    if header.format == image_pb2.FILE_FORMAT_QCOW2 and not data.startswith(b"QFI\xfb"):
        raise InvalidArgumentError("the file is no qcow2 image")
    file = image_pb2.ImageFile(
        sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), format=header.format
    )
    return image_pb2.UploadFileResponse(file=file)


class _Dispatch(grpc.GenericRpcHandler):
    """Every method of cumulet.v1, with the request and reply types of the generated services."""

    def __init__(self, cloud: FakeCloud) -> None:
        self.cloud = cloud
        self.answers: dict[str, Callable[[Any], Any]] = {
            "ListEvents": lambda _request: event_pb2.ListEventsResponse(events=cloud.events),
            "WatchEvents": lambda _request: iter(cloud.events),
            "Verify": lambda _request: cloud.verdict,
            "WhatIf": lambda _request: cloud.forecast,
            "GetCloud": lambda _request: system_pb2.GetCloudResponse(version="0.1.0", leading=True, nodes=1),
        }
        for kind in KINDS:
            self.answers |= _answers(cloud, kind)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        service, method = details.method.removeprefix("/cumulet.v1.").split("/")
        module: Any = import_module(f"cumulet.v1.{service.removesuffix('Service').lower()}_pb2")
        descriptor = module.DESCRIPTOR.services_by_name[service].methods_by_name[method]
        return _handler(descriptor, lambda request, context: self._answer(method, request, context))

    def _answer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.cloud.calls.append((method, request))
        try:
            if self.cloud.failures.get(method):
                raise self.cloud.failures[method].popleft()
            return self.answers[method](request)
        except CumuletError as error:
            context.abort_with_status(rpc_status.to_status(to_status(error, TRACE_ID)))


def _handler(descriptor: Any, answer: Callable[[Any, grpc.ServicerContext], Any]) -> Any:
    sides = (descriptor.client_streaming, descriptor.server_streaming)
    shape = "_".join("stream" if streaming else "unary" for streaming in sides)
    make = getattr(grpc, f"{shape}_rpc_method_handler")
    parse, render = descriptor.input_type._concrete_class.FromString, lambda reply: reply.SerializeToString()
    return make(answer, request_deserializer=parse, response_serializer=render)


def serve(cloud: FakeCloud, endpoint: str = "127.0.0.1:0") -> tuple[grpc.Server, str]:
    """Start a server, on a free port of loopback unless told where; returns it and its endpoint."""
    options = [("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(16), handlers=[_Dispatch(cloud)], options=options)
    port = server.add_insecure_port(endpoint)
    server.start()
    return server, endpoint if endpoint.startswith("unix:") else f"127.0.0.1:{port}"
