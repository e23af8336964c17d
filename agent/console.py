"""One serial console between a guest and the stream to the leader.

**Edge**: copies bytes both ways; a slow reader slows the guest's line, nothing is queued here.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, NoReturn

from agent.errors import DriverError
from agent.hypervisor.driver import Console, Hypervisor
from cumulet.link import ConsoleEnd, LinkClosedError
from cumulet.v1 import agent_pb2 as pb

# The leader ends the stream at once when it has read why; closing it here takes back what is under way.
FAREWELL_S: Final = 10.0


async def bridge_console(stream: ConsoleEnd, hypervisor: Hypervisor, console_id: str, uid: str) -> None:
    """Attach and carry bytes until the guest, the reader or the link ends. Errors end the stream."""
    try:
        await stream.send(pb.ConsoleData(console_id=console_id))
        try:
            console = await hypervisor.open_console(uid)
        except DriverError as err:
            await stream.send(pb.ConsoleData(error=f"{err.reason}: {err.message}"))
            async with asyncio.timeout(FAREWELL_S):
                await _ignore_input(stream)
    except (LinkClosedError, TimeoutError):
        return  # the reader has gone, or the network
    try:
        await _carry(stream, console)
    finally:
        await console.close()


async def _ignore_input(stream: ConsoleEnd) -> NoReturn:
    """Until the leader ends the stream. Raises LinkClosedError."""
    while True:
        await stream.receive()


async def _carry(stream: ConsoleEnd, console: Console) -> None:
    async with asyncio.TaskGroup() as group:
        showing = group.create_task(_from_guest(stream, console))
        # Whoever cancels a read of gRPC's ends the call: input is read until the leader has seen the end.
        typing = group.create_task(_to_guest(stream, console))
        await asyncio.wait({showing, typing}, return_when=asyncio.FIRST_COMPLETED)
        showing.cancel()
        await asyncio.wait({typing}, timeout=FAREWELL_S)
        typing.cancel()


async def _from_guest(stream: ConsoleEnd, console: Console) -> None:
    error = "the console ended: the instance stopped, or somebody else attached"
    with contextlib.suppress(LinkClosedError):
        try:
            while data := await console.read():
                await stream.send(pb.ConsoleData(data=data))
        except DriverError as err:
            error = f"{err.reason}: {err.message}"
        await stream.send(pb.ConsoleData(error=error))


async def _to_guest(stream: ConsoleEnd, console: Console) -> None:
    """Until the leader ends the stream; what is typed after the guest's end goes nowhere."""
    with contextlib.suppress(LinkClosedError):
        while True:
            message = await stream.receive()
            if message.data:
                with contextlib.suppress(DriverError):  # reading tells of the end
                    await console.write(message.data)
