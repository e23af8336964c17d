"""What the leader may ask an agent: its inventory, a console, a console's log.

**Edge**: asks the drivers. Every request is answered, at the latest with an error at its deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from agent.console import bridge_console
from agent.differences import describe_differences
from agent.errors import DriverError
from agent.observed import Observed
from agent.planned import IntentError, check_uid
from agent.reconcile import Agent
from cumulet.link import Dialer, LinkClosedError
from cumulet.v1 import agent_pb2 as pb

# verify asks each node once; people open a handful of consoles. More is refused, not queued.
REQUESTS_MAX: Final = 16
CONSOLES_MAX: Final = 16
# The API's callers wait a little longer than this.
REQUEST_TIMEOUT_S: Final = 20.0
ALL_LINES: Final = 2**31 - 1  # the driver's own byte limit ends it

Send = Callable[[pb.AgentMessage], Awaitable[None]]


class Requests:
    """Answers requests of one session as tasks of the session's group."""

    def __init__(self, agent: Agent, dialer: Dialer, address: str, send: Send) -> None:
        self._agent = agent
        self._dialer = dialer
        self._address = address
        self._send = send
        self._open = 0
        self._consoles = 0

    async def take(self, request: pb.AgentRequest, group: asyncio.TaskGroup) -> None:
        """Begin to answer. Raises LinkClosedError."""
        if request.WhichOneof("kind") == "console":
            await self._take_console(request, group)
        elif self._open >= REQUESTS_MAX:
            await self._refuse(request, f"the agent is busy with {self._open} requests; try again")
        else:
            self._open += 1
            group.create_task(self._answer(request))

    async def _refuse(self, request: pb.AgentRequest, error: str) -> None:
        await self._send(pb.AgentMessage(reply=pb.AgentReply(request_id=request.request_id, error=error)))

    async def _answer(self, request: pb.AgentRequest) -> None:
        reply = pb.AgentReply(request_id=request.request_id)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await self._fill(request, reply)
        except TimeoutError:
            reply.error = f"the node did not answer within {REQUEST_TIMEOUT_S:.0f} s"
        except DriverError as err:
            reply.error = f"{err.reason}: {err.message}"
        except IntentError as err:
            reply.error = str(err)
        except ExceptionGroup as err:
            reply.error = str(err.exceptions[0])
        finally:
            self._open -= 1
        await self._send(pb.AgentMessage(reply=reply))

    async def _fill(self, request: pb.AgentRequest, reply: pb.AgentReply) -> None:
        match request.WhichOneof("kind"):
            case "inventory":
                observed, decision = await self._agent.compare()
                reply.inventory.CopyFrom(build_inventory(observed))
                reply.inventory.differences.extend(describe_differences(decision.works))
            case "console_log":
                wanted = request.console_log
                lines = wanted.tail_lines if wanted.tail_lines > 0 else ALL_LINES
                uid = check_uid("instance_uid", wanted.instance_uid)
                reply.console_log = await self._agent.drivers.storage.read_console_log(uid, lines)
            case kind:
                reply.error = f"this agent does not know requests of kind {kind}; upgrade it"

    async def _take_console(self, request: pb.AgentRequest, group: asyncio.TaskGroup) -> None:
        if self._consoles >= CONSOLES_MAX:
            await self._refuse(request, f"{self._consoles} consoles of this node are open; close one")
            return
        self._consoles += 1
        group.create_task(self._console(request))

    async def _console(self, request: pb.AgentRequest) -> None:
        """Attach, answer the request, and carry bytes until either side ends."""
        wanted = request.console
        try:
            check_uid("instance_uid", wanted.instance_uid)
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                stream = await self._dialer.open_console(self._address)
        except (LinkClosedError, IntentError, TimeoutError) as err:
            self._consoles -= 1
            await self._refuse(request, f"no console stream to {self._address}: {err}")
            return
        try:
            await self._send(pb.AgentMessage(reply=pb.AgentReply(request_id=request.request_id)))
            await bridge_console(
                stream, self._agent.drivers.hypervisor, wanted.console_id, wanted.instance_uid
            )
        finally:
            self._consoles -= 1
            await stream.close()


def build_inventory(observed: Observed) -> pb.Inventory:
    """Every single thing of ours on the node."""
    items = [("domain", uid, uid) for uid in sorted(observed.domains)]
    items += [
        (kind, f"instances/{uid}/{kind}", uid)
        for uid, files in sorted(observed.storage.instances.items())
        for kind in sorted(files)
    ]
    items += observed.net.items
    return pb.Inventory(
        items=[pb.InventoryItem(kind=kind, name=name, owner_uid=owner) for kind, name, owner in items]
    )
