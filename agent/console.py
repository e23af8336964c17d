"""One serial console between a guest and the stream to the leader.

**Edge**: copies bytes both ways; a slow reader slows the guest's line, nothing is queued here.
"""

from __future__ import annotations

import asyncio

from agent.errors import DriverError
from agent.hypervisor.driver import Console, Hypervisor
from cumulet.link import ConsoleEnd, LinkClosedError
from cumulet.v1 import agent_pb2 as pb


async def bridge_console(stream: ConsoleEnd, hypervisor: Hypervisor, console_id: str, uid: str) -> None:
    """Attach and carry bytes until the guest, the reader or the link ends. Errors end the stream."""
    try:
        await stream.send(pb.ConsoleData(console_id=console_id))
        try:
            console = await hypervisor.open_console(uid)
        except DriverError as err:
            await stream.send(pb.ConsoleData(error=f"{err.reason}: {err.message}"))
            return
        try:
            await _carry(stream, console)
        finally:
            await console.close()
    except LinkClosedError:
        return  # the reader has gone, or the network


class _EndedError(Exception):
    """One direction is at its end; ends the other."""


async def _carry(stream: ConsoleEnd, console: Console) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_from_guest(stream, console))
            group.create_task(_to_guest(stream, console))
    except* (_EndedError, LinkClosedError):
        pass


async def _from_guest(stream: ConsoleEnd, console: Console) -> None:
    error = "the console ended: the instance stopped, or somebody else attached"
    try:
        while data := await console.read():
            await stream.send(pb.ConsoleData(data=data))
    except DriverError as err:
        error = f"{err.reason}: {err.message}"
    await stream.send(pb.ConsoleData(error=error))
    raise _EndedError


async def _to_guest(stream: ConsoleEnd, console: Console) -> None:
    try:
        while True:
            message = await stream.receive()
            if message.data:
                await console.write(message.data)
    except DriverError as err:
        await stream.send(pb.ConsoleData(error=f"{err.reason}: {err.message}"))
        raise _EndedError from err
