"""The agent link as a protocol: two ends of one ordered, bounded stream of messages.

**Pure**: types only. The gRPC implementation (agent/link_grpc.py dials, controller/api/agent_link.py
accepts) and the in-memory one (tests/sim/link.py) pass one contract suite. A message may be lost with
the stream, never out of order within it; after a break the ends agree on nothing until a new hello.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from cumulet.v1 import agent_pb2 as pb


class LinkClosedError(Exception):
    """The stream has ended, from either side or by the network; `str()` says which."""


class AgentEnd(Protocol):
    """The agent's end of an open session."""

    async def send(self, message: pb.AgentMessage) -> None:
        """Queue a message; waits while the stream is full. Raises LinkClosedError."""

    async def receive(self) -> pb.ControllerMessage:
        """The next message. Raises LinkClosedError."""

    async def close(self) -> None: ...


class ControllerEnd(Protocol):
    """The leader's end of an open session."""

    async def send(self, message: pb.ControllerMessage) -> None:
        """Queue a message; waits while the stream is full. Raises LinkClosedError."""

    async def receive(self) -> pb.AgentMessage:
        """The next message. Raises LinkClosedError."""

    async def close(self) -> None: ...


class ConsoleEnd(Protocol):
    """Either end of one console stream."""

    async def send(self, message: pb.ConsoleData) -> None: ...

    async def receive(self) -> pb.ConsoleData: ...

    async def close(self) -> None: ...


class Dialer(Protocol):
    """What an agent needs of the controller."""

    async def open_session(self, address: str) -> AgentEnd:
        """Dial one controller address. Raises LinkClosedError."""

    async def open_console(self, address: str) -> ConsoleEnd:
        """A stream of its own for one console. Raises LinkClosedError."""

    def read_file(self, address: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """Bytes of an image file from an offset on. Raises LinkClosedError, NotFoundError."""
