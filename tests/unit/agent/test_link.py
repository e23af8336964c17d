"""What the agent needs of a link beyond tests/contract/test_link.py: files, consoles, addresses.

**Edge**: sockets on loopback. The accepting side of gRPC is a servicer of a few lines.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.link_grpc import GrpcDialer, address_error, dial_target
from cumulet.errors import NotFoundError
from cumulet.link import Dialer, LinkClosedError
from cumulet.v1 import agent_pb2 as pb
from cumulet.v1 import agent_pb2_grpc
from tests.sim.link import Listener, MemoryLink

FILES = {"a" * 64: bytes(range(256)) * 1024}


class _ServerEnd:
    """The accepting end of a gRPC stream."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def send(self, message: Any) -> None:
        try:
            await self._context.write(message)
        except (grpc.RpcError, asyncio.InvalidStateError) as err:
            raise LinkClosedError(str(err)) from err

    async def receive(self) -> Any:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise LinkClosedError("ended by the agent")
        return message

    async def close(self) -> None:
        """The call ends when its handler returns."""


class _Servicer(agent_pb2_grpc.AgentServiceServicer):
    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    async def Session(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await self._hold(self._listener.session, context)

    async def Console(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        assert self._listener.console is not None
        await self._hold(self._listener.console, context)

    async def ReadFile(self, request: Any, context: Any) -> AsyncIterator[pb.ReadFileResponse]:
        content = self._listener.files.get(request.sha256)
        if content is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such file")
        for start in range(request.offset, len(content or b""), 65536):
            yield pb.ReadFileResponse(chunk=(content or b"")[start : start + 65536])

    async def _hold(self, accept: Callable[[Any], Awaitable[None]], context: Any) -> None:
        try:
            await accept(_ServerEnd(context))
        except LinkClosedError:
            return


@asynccontextmanager
async def memory(listener: Listener, directory: Path) -> AsyncIterator[tuple[Dialer, str]]:
    async with asyncio.TaskGroup() as group:
        link = MemoryLink(group)
        link.serve("c1", listener)
        yield link, "c1"
        await link.stop("c1")


@asynccontextmanager
async def grpc_tcp(listener: Listener, directory: Path) -> AsyncIterator[tuple[Dialer, str]]:
    async with _served(listener, "127.0.0.1:0") as (dialer, port):
        yield dialer, f"127.0.0.1:{port}"


@asynccontextmanager
async def grpc_unix(listener: Listener, directory: Path) -> AsyncIterator[tuple[Dialer, str]]:
    async with _served(listener, f"unix:{directory}/agents.sock") as (dialer, _):
        yield dialer, f"unix:{directory}/agents.sock"


@asynccontextmanager
async def _served(listener: Listener, where: str) -> AsyncIterator[tuple[Dialer, int]]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    agent_pb2_grpc.add_AgentServiceServicer_to_server(_Servicer(listener), server)
    port = server.add_insecure_port(where)
    await server.start()
    dialer = GrpcDialer()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, None)
        stack.push_async_callback(dialer.close)
        yield dialer, port


Serve = Callable[[Listener, Path], Any]
SERVES = pytest.mark.parametrize("serve", [memory, grpc_tcp, grpc_unix])


@SERVES
async def test_sends_from_many_tasks_do_not_disturb_each_other(serve: Serve, tmp_path: Path) -> None:
    heard: set[int] = set()
    done = asyncio.Event()

    async def session(end: Any) -> None:
        while len(heard) < 40:
            heard.add((await end.receive()).heartbeat.sequence)
        done.set()
        await end.receive()

    async with serve(Listener(session), tmp_path) as (dialer, address):
        end = await dialer.open_session(address)
        async with asyncio.TaskGroup() as group:
            for sequence in range(40):
                group.create_task(end.send(pb.AgentMessage(heartbeat=pb.Heartbeat(sequence=sequence))))
        async with asyncio.timeout(10):
            await done.wait()
        await end.close()


@SERVES
async def test_files_are_read_from_any_offset(serve: Serve, tmp_path: Path) -> None:
    (digest, content), *_ = FILES.items()

    async def session(end: Any) -> None:
        await end.receive()

    async with serve(Listener(session, files=FILES), tmp_path) as (dialer, address):
        for offset in (0, 1, 70_000, len(content)):
            chunks = [chunk async for chunk in dialer.read_file(address, digest, offset)]
            assert b"".join(chunks) == content[offset:]
        with pytest.raises(NotFoundError):
            await anext(dialer.read_file(address, "b" * 64, 0))


@SERVES
async def test_a_console_is_a_stream_of_its_own(serve: Serve, tmp_path: Path) -> None:
    async def session(end: Any) -> None:
        await end.receive()

    async def console(end: Any) -> None:
        first = await end.receive()
        await end.send(pb.ConsoleData(data=first.console_id.encode()))
        await end.send(pb.ConsoleData(data=(await end.receive()).data.upper()))

    async with serve(Listener(session, console), tmp_path) as (dialer, address):
        end = await dialer.open_console(address)
        await end.send(pb.ConsoleData(console_id="k1"))
        assert (await end.receive()).data == b"k1"
        await end.send(pb.ConsoleData(data=b"ls"))
        assert (await end.receive()).data == b"LS"
        with pytest.raises(LinkClosedError):
            await end.receive()
        await end.close()


async def test_nobody_at_the_address_is_not_an_endless_wait(tmp_path: Path) -> None:
    dialer = GrpcDialer()
    for nobody in (f"unix:{tmp_path}/nobody.sock", "127.0.0.1:1"):
        with pytest.raises(LinkClosedError, match="no connection"):
            await asyncio.wait_for(dialer.open_session(nobody), 5)
    end = await dialer.open_console(f"unix:{tmp_path}/nobody.sock")
    with pytest.raises(LinkClosedError):
        await end.receive()
    with pytest.raises(LinkClosedError):
        await anext(dialer.read_file(f"unix:{tmp_path}/nobody.sock", "a" * 64, 0))
    await dialer.close()


def test_addresses() -> None:
    assert dial_target("unix:/run/c.sock") == "unix:/run/c.sock"
    assert dial_target("10.0.0.1:7443") == "dns:///10.0.0.1:7443"
    assert address_error("c1.example:7443") is None
    assert address_error("unix:/run/c.sock") is None
    for wrong in ("", "c1", "c1:", ":7443", "c1:0", "c1:99999", "c1:x", "unix:relative"):
        assert address_error(wrong)
