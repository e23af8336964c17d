"""Dials the leader over gRPC: sessions, consoles and image bytes.

**Edge**: sockets. A session has a connection of its own, so that image bytes and consoles never queue
before a heartbeat. Unencrypted until certificates exist (the controller listens on loopback only).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any, Final, Generic, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from cumulet.errors import NotFoundError
from cumulet.link import LinkClosedError
from cumulet.v1 import agent_pb2 as pb
from cumulet.v1 import agent_pb2_grpc

Sent = TypeVar("Sent", bound=Message)
Received = TypeVar("Received", bound=Message)
ChannelOptions: TypeAlias = list[tuple[str, str | int]]

# A plan of 1,000 instances with 16 KiB of user-data each; the leader's limit is the same.
MESSAGE_BYTES_MAX: Final = 32 * 2**20
# stack.md: pings every 2 to 3 s get a connection dropped; silence is found by heartbeats anyway.
KEEPALIVE_MS: Final = 30_000
KEEPALIVE_TIMEOUT_MS: Final = 10_000
# Attempts are ours (session.py); gRPC's own must not wait longer than they do.
RECONNECT_MS_MAX: Final = 1_000

# What the leader may send before the agent has read it. What waits at the leader is merged, what waits here
# holds up the answers to heartbeats: with gRPC's own windows busy agents lost their sessions by that.
SESSION_WINDOW_BYTES: Final = 16 * 2**10

_OPTIONS: Final[ChannelOptions] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
    ("grpc.use_local_subchannel_pool", 1),  # else channels to one address share a connection
    ("grpc.enable_http_proxy", 0),  # the management network is reached directly
]
_SESSION_OPTIONS: Final[ChannelOptions] = [
    *_OPTIONS,
    ("grpc.http2.lookahead_bytes", SESSION_WINDOW_BYTES),
    ("grpc.http2.bdp_probe", 0),  # else the window grows with the link's speed
]


class _StreamEnd(Generic[Sent, Received]):
    """One open bidirectional call. gRPC's flow control bounds what is under way."""

    def __init__(self, call: Any, address: str, own_channel: grpc.aio.Channel | None) -> None:
        self._call = call
        self._address = address
        self._own_channel = own_channel
        self._writing = asyncio.Lock()  # a call takes one write at a time

    async def send(self, message: Sent) -> None:
        async with self._writing:
            try:
                await self._call.write(message)
            except (grpc.RpcError, asyncio.InvalidStateError) as err:
                raise await self._closed(err) from err

    async def receive(self) -> Received:
        try:
            message = await self._call.read()
        except (grpc.RpcError, asyncio.InvalidStateError) as err:
            raise await self._closed(err) from err
        if message is grpc.aio.EOF:
            raise await self._closed(None)
        received: Received = message
        return received

    async def close(self) -> None:
        self._call.cancel()
        if self._own_channel is not None:
            await self._own_channel.close()

    async def _closed(self, err: Exception | None) -> LinkClosedError:
        if isinstance(err, grpc.aio.AioRpcError):
            return LinkClosedError(f"{self._address}: {err.code().name}: {err.details()}")
        if self._call.done():
            code, details = await self._call.code(), await self._call.details()
            return LinkClosedError(f"{self._address}: ended with {code.name}: {details or 'no details'}")
        return LinkClosedError(f"{self._address}: {err or 'ended by the controller'}")


class GrpcDialer:
    """Implements cumulet.link.Dialer."""

    def __init__(self) -> None:
        self._shared: dict[str, grpc.aio.Channel] = {}  # for consoles and files, by address

    async def open_session(self, address: str) -> _StreamEnd[pb.AgentMessage, pb.ControllerMessage]:
        channel = grpc.aio.insecure_channel(dial_target(address), options=_SESSION_OPTIONS)
        try:
            await _connect(channel, address)
        except BaseException:
            await channel.close()
            raise
        call = agent_pb2_grpc.AgentServiceStub(channel).Session()
        return _StreamEnd(call, address, channel)

    async def open_console(self, address: str) -> _StreamEnd[pb.ConsoleData, pb.ConsoleData]:
        return _StreamEnd(self._stub(address).Console(), address, None)

    async def read_file(self, address: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        call = self._stub(address).ReadFile(pb.ReadFileRequest(sha256=sha256, offset=offset))
        try:
            async for response in call:
                yield response.chunk
        except grpc.aio.AioRpcError as err:
            if err.code() == grpc.StatusCode.NOT_FOUND:
                raise NotFoundError(f"image file {sha256} is not at {address}: {err.details()}") from err
            raise LinkClosedError(f"{address}: {err.code().name}: {err.details()}") from err
        finally:
            call.cancel()

    async def close(self) -> None:
        """Close the shared connections; sessions close their own."""
        shared, self._shared = self._shared, {}
        for channel in shared.values():
            await channel.close()

    def _stub(self, address: str) -> agent_pb2_grpc.AgentServiceAsyncStub:
        channel = self._shared.get(address)
        if channel is None:
            channel = grpc.aio.insecure_channel(dial_target(address), options=_OPTIONS)
            self._shared[address] = channel
        return agent_pb2_grpc.AgentServiceStub(channel)


async def _connect(channel: grpc.aio.Channel, address: str) -> None:
    """Wait for the connection, but not for gRPC's next attempts: another address may answer at once."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            raise LinkClosedError(f"{address}: no connection")
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


def dial_target(address: str) -> str:
    """gRPC's target of an address as people write it: `unix:/path` or `host:port`."""
    if address.startswith("unix:"):
        return f"unix:{os.path.abspath(address.removeprefix('unix:'))}"
    return f"dns:///{address}"


def address_error(address: str) -> str | None:
    """What is wrong with a controller's address, or None."""
    if address.startswith("unix:"):
        return None if address.startswith("unix:/") else "the path after unix: must begin with /"
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        return "must be host:port, as in 10.0.0.1:7443, or unix:/path"
    return None
