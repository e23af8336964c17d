"""The agents' service: sessions, consoles, image files.

**Edge**: gRPC streams, wrapped as the vocabulary's link (cumulet/link.py).
"""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

import grpc

from controller.api.instance import Consoles
from controller.controller import Controller
from cumulet.link import LinkClosedError
from cumulet.v1 import agent_pb2

In = TypeVar("In")
Out = TypeVar("Out")


class StreamEnd(Generic[In, Out]):
    """The accepting end of one gRPC stream. `closed` is set when this side has had enough."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context
        self._writing = asyncio.Lock()
        self.closed = asyncio.Event()

    async def send(self, message: Out) -> None:
        if self.closed.is_set():
            raise LinkClosedError("the stream was closed here")
        try:
            async with self._writing:
                await self._context.write(message)
        except (grpc.aio.BaseError, grpc.RpcError, asyncio.InvalidStateError) as error:
            raise LinkClosedError(f"the stream broke: {error}") from error

    async def receive(self) -> In:
        reading = asyncio.ensure_future(self._context.read())
        closing = asyncio.ensure_future(self.closed.wait())
        try:
            await asyncio.wait({reading, closing}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise LinkClosedError("the stream was closed here")
            message = reading.result()
        except (grpc.aio.BaseError, grpc.RpcError, asyncio.InvalidStateError) as error:
            raise LinkClosedError(f"the stream broke: {error}") from error
        finally:
            reading.cancel()
            closing.cancel()
        if message is grpc.aio.EOF:
            raise LinkClosedError("the other side ended the stream")
        received: In = message
        return received

    async def close(self) -> None:
        self.closed.set()


class AgentMethods:
    def __init__(self, controller: Controller, consoles: Consoles) -> None:
        self._controller = controller
        self._consoles = consoles

    async def session(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        end: StreamEnd[agent_pb2.AgentMessage, agent_pb2.ControllerMessage] = StreamEnd(context)
        await self._controller.accept_agent(end)

    async def console(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Hand the stream to whoever asked for it, and keep it open until that one is done."""
        end: StreamEnd[agent_pb2.ConsoleData, agent_pb2.ConsoleData] = StreamEnd(context)
        try:
            first = await end.receive()
        except LinkClosedError:
            return
        if self._consoles.opened(first.console_id, end):
            await end.closed.wait()
