"""Methods of instances beyond the standard ones: verbs, explain, console.

**Edge**: commits, asks agents.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from controller.admit import common
from controller.admit import instance as admit
from controller.admit.common import Context
from controller.api.requests import write_once
from controller.api.standard import find_operation
from controller.assemble import assemble
from controller.commit import Change
from controller.controller import Controller
from controller.explain import explain_placement
from controller.state import State
from controller.store import keys
from controller.tables import Parts, Stored
from cumulet.convert import find_condition
from cumulet.errors import UnavailableError
from cumulet.link import ConsoleEnd, LinkClosedError
from cumulet.names import DEFAULT_PROJECT, new_uid
from cumulet.v1 import agent_pb2, instance_pb2, operation_pb2

CONSOLE_OPEN_S: Final = 20.0
EVENTS_SHOWN: Final = 50


class InstanceMethods:
    """`consoles`: console streams that agents open, by id (api/agent.py)."""

    def __init__(self, controller: Controller, consoles: Consoles) -> None:
        self._controller = controller
        self._consoles = consoles

    async def start(self, request: instance_pb2.StartInstanceRequest) -> operation_pb2.Operation:
        return await self._verb(request, "Instance.Start", lambda s, c, p: admit.start(s, c, p))

    async def stop(self, request: instance_pb2.StopInstanceRequest) -> operation_pb2.Operation:
        return await self._verb(request, "Instance.Stop", lambda s, c, p: admit.stop(s, c, p, request.force))

    async def reboot(self, request: instance_pb2.RebootInstanceRequest) -> operation_pb2.Operation:
        return await self._verb(
            request, "Instance.Reboot", lambda s, c, p: admit.reboot(s, c, p, request.force)
        )

    async def _verb(
        self, request: Any, method: str, change: Callable[[State, Context, Parts], Change]
    ) -> operation_pb2.Operation:
        parts, row = self._row(request)
        uid = row.message.meta.uid
        if request.validate_only:
            change(self._controller.state, Context(self._controller.clock.now(), self._controller.rng), parts)
            return operation_pb2.Operation(verb=method.lower())
        record = await write_once(
            self._controller, method, parts[0], request, lambda s, c: change(s, c, parts), lambda _: uid
        )
        found: operation_pb2.Operation = find_operation(self._controller, parts[0], record)
        return found

    def _row(self, request: Any) -> tuple[Parts, Stored]:
        parts = (request.project or DEFAULT_PROJECT, request.name)
        return parts, common.get_row(self._controller.state, keys.INSTANCES, *parts)

    async def explain(
        self, request: instance_pb2.ExplainInstanceRequest
    ) -> instance_pb2.ExplainInstanceResponse:
        """Why the instance is where it is, from the present State."""
        state = self._controller.state
        parts, row = self._row(request)
        response = instance_pb2.ExplainInstanceResponse(
            instance=assemble(state, keys.INSTANCES, parts, row), revision=state.revision
        )
        explained = explain_placement(self._controller.fleet, state, row.message)
        response.nodes.extend(explained.nodes)
        response.summary = explained.summary
        getattr(response, "try").extend(explained.hints)
        uid = row.message.meta.uid
        response.events.extend(
            self._controller.events.find(lambda event: event.target.uid == uid)[-EVENTS_SHOWN:]
        )
        return response

    async def console_log(
        self, request: instance_pb2.GetConsoleLogRequest
    ) -> instance_pb2.GetConsoleLogResponse:
        _, row = self._row(request)
        node = self._node_of(row)
        asked = agent_pb2.ConsoleLogRequest(instance_uid=row.message.meta.uid, tail_lines=request.tail_lines)
        reply = await self._controller.require_leading().sessions.ask(
            node, agent_pb2.AgentRequest(console_log=asked)
        )
        return instance_pb2.GetConsoleLogResponse(data=reply.console_log)

    async def attach_console(
        self, requests: AsyncIterator[instance_pb2.AttachConsoleRequest]
    ) -> AsyncIterator[instance_pb2.AttachConsoleResponse]:
        """The first request names the instance; then bytes both ways until either side ends."""
        first = await anext(requests)
        _, row = self._row(first)
        node = self._node_of(row)
        console_id = new_uid(self._controller.rng)
        asked = agent_pb2.ConsoleRequest(console_id=console_id, instance_uid=row.message.meta.uid)
        opening = self._consoles.expect(console_id)
        try:
            await self._controller.require_leading().sessions.ask(node, agent_pb2.AgentRequest(console=asked))
            async with asyncio.timeout(CONSOLE_OPEN_S):
                end = await opening
        except TimeoutError:
            raise UnavailableError(
                f"node {node} did not open the console in {CONSOLE_OPEN_S:.0f} s"
            ) from None
        finally:
            self._consoles.forget(console_id)
        if first.data:
            await end.send(agent_pb2.ConsoleData(data=first.data))
        typing = asyncio.create_task(_pass_input(requests, end))
        try:
            while True:
                data = await end.receive()
                if data.error:
                    raise UnavailableError(f"the console of {first.name} ended: {data.error}")
                yield instance_pb2.AttachConsoleResponse(data=data.data)
        except LinkClosedError as error:
            if typing.done() and typing.result():
                return  # the caller has had enough
            raise UnavailableError(f"the console of {first.name} broke off: {error}; attach again") from error
        finally:
            typing.cancel()
            await end.close()

    def _node_of(self, row: Stored) -> str:
        placement = self._controller.state.placement_of(row.message.meta.uid)
        if placement is None:
            name = row.message.meta.name
            status = self._controller.state.status_of(row.message.meta.uid)
            placed = find_condition(status.conditions, "Placed") if status else None
            why = placed.message if placed else "pending"
            raise UnavailableError(
                f"instance {name} is on no node, so it has no console ({why})",
                hints=[f"cumulet explain instance/{name}"],
            )
        return str(placement.message.node)


class Consoles:
    """Console streams that were asked for and that an agent is about to open."""

    def __init__(self) -> None:
        self._expected: dict[str, asyncio.Future[ConsoleEnd]] = {}

    def expect(self, console_id: str) -> asyncio.Future[ConsoleEnd]:
        future: asyncio.Future[ConsoleEnd] = asyncio.get_running_loop().create_future()
        self._expected[console_id] = future
        return future

    def forget(self, console_id: str) -> None:
        self._expected.pop(console_id, None)

    def opened(self, console_id: str, end: ConsoleEnd) -> bool:
        """Hand a stream to whoever waits for it; false if nobody does."""
        future = self._expected.get(console_id)
        if future is None or future.done():
            return False
        future.set_result(end)
        return True


async def _pass_input(requests: AsyncIterator[instance_pb2.AttachConsoleRequest], end: ConsoleEnd) -> bool:
    """Whether the caller has ended the stream; false when the node did."""
    try:
        async for request in requests:
            await end.send(agent_pb2.ConsoleData(data=request.data))
    except LinkClosedError:
        return False
    await end.close()
    return True
