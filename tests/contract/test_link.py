"""The agent link: the one in memory, and gRPC with the agent's dialer and the controller's accepting end.

**Edge**: sockets on loopback. Order, ends from either side, bounded sending, redirects.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeAlias

import grpc
import pytest

from agent.link_grpc import GrpcDialer
from controller.api.agent import StreamEnd
from cumulet.link import AgentEnd, ControllerEnd, Dialer, LinkClosedError
from cumulet.v1 import agent_pb2 as pb
from cumulet.v1 import agent_pb2_grpc
from tests.sim.link import Listener, MemoryLink

PATIENCE_S: Final = 10.0
STUCK_S: Final = 0.5  # a sender that is not done after this waits for the reader
MANY: Final = 5_000
LARGE: Final = 64 * 1024

Served: TypeAlias = AbstractAsyncContextManager[tuple[Dialer, str]]
Serve: TypeAlias = Callable[[Callable[[ControllerEnd], Any]], Served]


class _Service(agent_pb2_grpc.AgentServiceServicer):
    """The controller's accepting end, without the controller behind it."""

    def __init__(self, accept: Callable[[ControllerEnd], Any]) -> None:
        self._accept = accept

    async def Session(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        end: StreamEnd[pb.AgentMessage, pb.ControllerMessage] = StreamEnd(context)
        try:
            await self._accept(end)
        except LinkClosedError:
            return

    async def Console(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        raise NotImplementedError

    def ReadFile(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


@asynccontextmanager
async def memory(accept: Callable[[ControllerEnd], Any]) -> AsyncIterator[tuple[Dialer, str]]:
    async with asyncio.TaskGroup() as group:
        link = MemoryLink(group)
        link.serve("c1", Listener(accept))
        yield link, "c1"
        await link.stop("c1")


@asynccontextmanager
async def over_grpc(accept: Callable[[ControllerEnd], Any]) -> AsyncIterator[tuple[Dialer, str]]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    agent_pb2_grpc.add_AgentServiceServicer_to_server(_Service(accept), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    dialer = GrpcDialer()
    try:
        yield dialer, f"127.0.0.1:{port}"
    finally:
        await dialer.close()
        await server.stop(None)


@pytest.fixture(params=[memory, over_grpc], ids=["memory", "grpc"])
def serve(request: pytest.FixtureRequest) -> Serve:
    found: Serve = request.param
    return found


def beat(sequence: int) -> pb.AgentMessage:
    return pb.AgentMessage(heartbeat=pb.Heartbeat(sequence=sequence))


def ack(sequence: int) -> pb.ControllerMessage:
    return pb.ControllerMessage(heartbeat_ack=pb.HeartbeatAck(sequence=sequence))


async def test_messages_keep_their_order_both_ways(serve: Serve) -> None:
    async def echo(end: ControllerEnd) -> None:
        while True:
            message = await end.receive()
            await end.send(ack(message.heartbeat.sequence))

    async with asyncio.timeout(PATIENCE_S), serve(echo) as (dialer, address):
        end = await dialer.open_session(address)
        sending = asyncio.create_task(_send_beats(end, 300))
        got = [(await end.receive()).heartbeat_ack.sequence for _ in range(300)]
        await sending
        await end.close()
    assert got == list(range(300))


async def _send_beats(end: AgentEnd, count: int) -> None:
    for sequence in range(count):
        await end.send(beat(sequence))


async def test_what_the_agent_sends_is_its_own(serve: Serve) -> None:
    """A message changed after it was sent arrives as it was."""
    heard: asyncio.Queue[pb.AgentMessage] = asyncio.Queue()

    async def listen(end: ControllerEnd) -> None:
        heard.put_nowait(await end.receive())

    async with asyncio.timeout(PATIENCE_S), serve(listen) as (dialer, address):
        end = await dialer.open_session(address)
        message = beat(7)
        await end.send(message)
        message.heartbeat.sequence = 8
        assert (await heard.get()).heartbeat.sequence == 7
        await end.close()


async def test_the_controller_learns_that_the_agent_closed(serve: Serve) -> None:
    """By an end of the stream, or as gRPC tells it: the accepting task is cancelled."""
    told: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def listen(end: ControllerEnd) -> None:
        await end.send(ack(0))
        try:
            while True:  # what was sent right before the close may arrive or be lost with it
                await end.receive()
        except (LinkClosedError, asyncio.CancelledError) as error:
            told.set_result(repr(error))
            raise

    async with asyncio.timeout(PATIENCE_S), serve(listen) as (dialer, address):
        end = await dialer.open_session(address)
        await end.send(beat(1))
        await end.receive()
        await end.close()
        assert await told
        with pytest.raises(LinkClosedError):
            await _send_beats(end, MANY)


async def test_the_agent_gets_what_was_sent_and_then_the_end(serve: Serve) -> None:
    async def leave(end: ControllerEnd) -> None:
        await end.receive()
        await end.send(ack(1))
        await end.send(ack(2))
        await end.close()

    async with asyncio.timeout(PATIENCE_S), serve(leave) as (dialer, address):
        end = await dialer.open_session(address)
        await end.send(beat(1))
        assert [(await end.receive()).heartbeat_ack.sequence for _ in range(2)] == [1, 2]
        with pytest.raises(LinkClosedError):
            await end.receive()
        with pytest.raises(LinkClosedError):
            await _send_beats(end, MANY)
        await end.close()


async def test_closing_wakes_a_receive_of_the_same_side(serve: Serve) -> None:
    woken: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def close_under_way(end: ControllerEnd) -> None:
        await end.receive()
        receiving = asyncio.ensure_future(end.receive())
        await asyncio.sleep(0.01)
        await end.close()
        outcome = (await asyncio.gather(receiving, return_exceptions=True))[0]
        woken.set_result(isinstance(outcome, LinkClosedError))

    async with asyncio.timeout(PATIENCE_S), serve(close_under_way) as (dialer, address):
        end = await dialer.open_session(address)
        await end.send(beat(1))
        assert await woken
        await end.close()


async def test_a_sender_waits_for_a_reader_that_does_not_read(serve: Serve) -> None:
    """Backpressure: what is under way is bounded, and a close frees the sender."""
    accepted, released = asyncio.Event(), asyncio.Event()

    async def deaf(end: ControllerEnd) -> None:
        accepted.set()
        await released.wait()

    sent: list[int] = []
    async with asyncio.timeout(PATIENCE_S), serve(deaf) as (dialer, address):
        end = await dialer.open_session(address)
        flooding = asyncio.create_task(_flood(end, sent))
        await accepted.wait()
        done, _ = await asyncio.wait({flooding}, timeout=STUCK_S)
        assert not done
        assert len(sent) < MANY
        await end.close()
        outcome = (await asyncio.gather(flooding, return_exceptions=True))[0]
        assert isinstance(outcome, (LinkClosedError, asyncio.CancelledError))
        released.set()


async def _flood(end: AgentEnd, sent: list[int]) -> None:
    message = pb.AgentMessage(reply=pb.AgentReply(console_log=b"x" * LARGE))
    for number in range(MANY):
        await end.send(message)
        sent.append(number)


async def test_a_redirect_is_an_answer_like_any_other(serve: Serve) -> None:
    async def redirect(end: ControllerEnd) -> None:
        assert (await end.receive()).hello.node == "n1"
        await end.send(pb.ControllerMessage(redirect=pb.Redirect(leader_address="c2:7443")))

    async with asyncio.timeout(PATIENCE_S), serve(redirect) as (dialer, address):
        end = await dialer.open_session(address)
        await end.send(pb.AgentMessage(hello=pb.AgentHello(node="n1")))
        assert (await end.receive()).redirect.leader_address == "c2:7443"
        with pytest.raises(LinkClosedError):
            await end.receive()
        await end.close()


async def test_an_address_where_nobody_listens_is_a_closed_link(serve: Serve) -> None:
    async def never(end: ControllerEnd) -> None:
        raise AssertionError

    async with serve(never) as (dialer, _):
        with pytest.raises((LinkClosedError, TimeoutError)):
            async with asyncio.timeout(2.0):
                await dialer.open_session("127.0.0.1:1")
