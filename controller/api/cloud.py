"""Methods about the cloud as a whole, nodes' verbs, operations, events, image files.

**Edge**: commits, asks agents, reads and writes image files.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from typing import Any, Final

from controller.admit import common
from controller.admit import node as admit_node
from controller.api.requests import write_once
from controller.assemble import assemble, instance_phase
from controller.controller import Controller
from controller.files import FileStore
from controller.state import Changed
from controller.store import keys
from controller.verify import compare_inventory
from cumulet import lifecycle
from cumulet.convert import find_condition
from cumulet.errors import FieldViolation, InvalidArgumentError, RevisionGoneError, UnavailableError
from cumulet.names import ALL_PROJECTS, DEFAULT_PROJECT
from cumulet.v1 import agent_pb2, event_pb2, image_pb2, meta_pb2, node_pb2, operation_pb2, system_pb2

WAIT_MAX_S: Final = 600.0
EVENTS_PAGE: Final = 500
EVENT_QUEUE_MAX: Final = 10_000


class NodeMethods:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def cordon(self, request: node_pb2.CordonNodeRequest) -> node_pb2.Node:
        return await self._set(request, True, request.reason)

    async def uncordon(self, request: node_pb2.UncordonNodeRequest) -> node_pb2.Node:
        return await self._set(request, False, "")

    async def _set(self, request: Any, cordoned: bool, reason: str) -> node_pb2.Node:
        controller = self._controller
        row = common.get_row(controller.state, keys.NODES, request.name)
        uid = row.message.meta.uid
        await write_once(
            controller,
            "Node.Cordon" if cordoned else "Node.Uncordon",
            "",
            request,
            lambda state, context: admit_node.cordon(state, context, request.name, cordoned, reason),
            lambda _: uid,
        )
        row = common.get_row(controller.state, keys.NODES, request.name)
        node: node_pb2.Node = assemble(controller.state, keys.NODES, (request.name,), row)
        return node


class OperationMethods:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def wait(self, request: operation_pb2.WaitOperationRequest) -> operation_pb2.Operation:
        """The operation when it is done, or as it is when the time is over."""
        state = self._controller.state
        parts = (request.project or DEFAULT_PROJECT, request.name)
        common.get_row(state, keys.OPERATIONS, *parts)
        changed = asyncio.Event()

        def listen(change: Changed) -> None:
            if change.table is keys.OPERATIONS and change.parts == parts:
                changed.set()

        stop = state.listen(listen)
        seconds = request.timeout.seconds + request.timeout.nanos / 1e9
        if not request.HasField("timeout"):
            seconds = WAIT_MAX_S
        try:
            async with asyncio.timeout(min(max(seconds, 0.0), WAIT_MAX_S)):
                while not common.get_row(state, keys.OPERATIONS, *parts).message.done:
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            pass
        finally:
            stop()
        row = common.get_row(state, keys.OPERATIONS, *parts)
        operation: operation_pb2.Operation = assemble(state, keys.OPERATIONS, parts, row)
        return operation


class EventMethods:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def list(self, request: event_pb2.ListEventsRequest) -> event_pb2.ListEventsResponse:
        found = self._controller.events.find(_event_filter(request.project, request.target))
        if request.page_size < 0:
            raise _refused("page_size", "must not be negative")
        start = 0
        if request.page_token:
            last = _decode_token(request.page_token)
            start = next((i for i, event in enumerate(found, 1) if event.uid == last), 0)
            if not start:
                raise RevisionGoneError("the page's last event is not kept any more: list again")
        size = min(request.page_size or EVENTS_PAGE, EVENTS_PAGE)
        page = found[start : start + size]
        response = event_pb2.ListEventsResponse(events=page)
        if start + size < len(found):
            response.next_page_token = base64.urlsafe_b64encode(page[-1].uid.encode()).decode()
        return response

    async def watch(self, request: event_pb2.WatchEventsRequest) -> AsyncIterator[event_pb2.Event]:
        """New events; a reader that falls behind by EVENT_QUEUE_MAX is told so."""
        matches = _event_filter(request.project, request.target)
        queue: asyncio.Queue[event_pb2.Event] = asyncio.Queue()
        stop = self._controller.events.listen(
            lambda event: queue.put_nowait(event) if queue.qsize() < EVENT_QUEUE_MAX else None
        )
        try:
            while True:
                event = await queue.get()
                if queue.qsize() >= EVENT_QUEUE_MAX - 1:
                    raise UnavailableError("this watch reads too slowly: list events and watch again")
                if matches(event):
                    yield event
        finally:
            stop()


def _event_filter(project: str, target: str) -> Callable[[event_pb2.Event], bool]:
    kind, _, name = target.rpartition("/")

    def matches(event: event_pb2.Event) -> bool:
        found = event.target
        if project != ALL_PROJECTS and found.project not in ("", project or DEFAULT_PROJECT):
            return False
        if not target:
            return True
        return target == found.uid or (kind == found.kind and name in (found.name, found.uid))

    return matches


def _decode_token(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token).decode()
    except ValueError:
        raise _refused("page_token", "is not one that a list has given") from None


def _refused(field: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError.of("the request was refused", [FieldViolation(field, description)])


class ImageFileMethods:
    def __init__(self, files: FileStore) -> None:
        self._files = files

    async def upload(
        self, requests: AsyncIterator[image_pb2.UploadFileRequest]
    ) -> image_pb2.UploadFileResponse:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgumentError.of(
                "the file was refused", [FieldViolation("header", "must be the first message")]
            )

        async def chunks() -> AsyncIterator[bytes]:
            async for request in requests:
                yield request.chunk

        return image_pb2.UploadFileResponse(file=await self._files.receive(first.header, chunks()))

    async def read(self, request: agent_pb2.ReadFileRequest) -> AsyncIterator[agent_pb2.ReadFileResponse]:
        async for chunk, size in self._files.read(request.sha256, request.offset):
            yield agent_pb2.ReadFileResponse(chunk=chunk, size_bytes=size)


class SystemMethods:
    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    async def verify(self, request: system_pb2.VerifyRequest) -> system_pb2.VerifyResponse:
        """Ask every node for its inventory and compare; a node that does not answer is named."""
        leading = self._controller.require_leading()
        state = self._controller.state
        if request.node:
            common.get_row(state, keys.NODES, request.node)
        names = [request.node] if request.node else sorted(parts[0] for parts in state.rows(keys.NODES))
        response = system_pb2.VerifyResponse()
        asked = [
            leading.sessions.ask(name, agent_pb2.AgentRequest(inventory=agent_pb2.InventoryRequest()))
            for name in names
        ]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        response.revision = state.revision
        for name, reply in zip(names, replies, strict=True):
            if isinstance(reply, agent_pb2.AgentReply):
                response.nodes.append(name)
                response.items_compared += len(reply.inventory.items)
                response.differences.extend(compare_inventory(state, name, reply.inventory))
            elif isinstance(reply, UnavailableError):
                response.silent_nodes.append(name)
            else:
                raise reply
        return response

    async def get_cloud(self, request: system_pb2.GetCloudRequest) -> system_pb2.GetCloudResponse:
        state = self._controller.state
        instances = state.rows(keys.INSTANCES).values()
        return system_pb2.GetCloudResponse(
            version=version("cumulet-server"),
            leader_address=self._controller.leader_address,
            leading=self._controller.leading is not None,
            revision=state.revision,
            nodes=len(state.rows(keys.NODES)),
            nodes_ready=sum(_is_ready(row.message) for row in state.rows(keys.NODE_STATUS).values()),
            instances=len(instances),
            instances_running=sum(instance_phase(state, row) == lifecycle.RUNNING for row in instances),
        )


def _is_ready(status: node_pb2.NodeStatus) -> bool:
    ready = find_condition(status.conditions, "Ready")
    return ready is not None and ready.status == meta_pb2.CONDITION_STATUS_TRUE
