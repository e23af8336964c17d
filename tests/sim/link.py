"""The agent link in memory: both ends of cumulet.link, for simulations and for tests of either side.

**Pure** but for the event loop. Passes the suite that the gRPC link passes (tests/contract/test_link.py).
Messages are delivered in order within a stream, as objects of their own (sent through their encoding).
`Faults` delay; with `drop` and `duplicate` a link is harsher than any real stream. A stream can be cut, held
(what is sent arrives late, the end of the stream too) and left half open, as when a machine loses power.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from google.protobuf.message import Message

from cumulet.errors import NotFoundError
from cumulet.link import AgentEnd, ConsoleEnd, ControllerEnd, LinkClosedError
from cumulet.v1 import agent_pb2 as pb

QUEUE_MAX = 64  # messages under way in one direction; then the sender waits, as with gRPC's flow control
CHUNK_BYTES = 64 * 1024

M = TypeVar("M", bound=Message)
S = TypeVar("S", bound=Message)
R = TypeVar("R", bound=Message)


@dataclass
class Faults:
    """What a link does to messages: probabilities per message, and a delay's bounds in seconds."""

    rng: random.Random = field(default_factory=lambda: random.Random(0))
    drop: float = 0.0
    duplicate: float = 0.0
    delay_s: tuple[float, float] = (0.0, 0.0)

    def copies(self) -> int:
        """How often a message arrives."""
        if self.drop and self.rng.random() < self.drop:
            return 0
        return 2 if self.duplicate and self.rng.random() < self.duplicate else 1

    def delay(self) -> float:
        low, high = self.delay_s
        return self.rng.uniform(low, high) if high > 0 else 0.0


class Pipe(Generic[M]):
    """One direction: ordered, bounded, delayed. No lock: either side may be frozen at any await."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._queue: deque[tuple[float, bytes, type[M]]] = deque()
        self._waiting: list[asyncio.Future[None]] = []
        self._last_at = 0.0
        self._ends_at = 0.0  # when the reader learns of the end
        self._ended: str | None = None  # by the writer: what is under way arrives
        self._broken: str | None = None  # for the reader at once
        self._held_until = 0.0
        self.tap: Callable[[M], None] | None = None  # hears of every message sent

    @property
    def closed(self) -> str | None:
        return self._broken or self._ended

    async def put(self, message: M) -> None:
        while self.closed is None and len(self._queue) >= QUEUE_MAX:
            await self._wait(None)
        if self._ended is not None:
            raise LinkClosedError(self._ended)
        if self._broken is not None:
            if self._now() < self._held_until:
                return  # the news that nobody reads has not come through
            raise LinkClosedError(self._broken)
        if self.tap is not None:
            self.tap(message)
        arrives = self._arrival()
        data = message.SerializeToString()
        for _ in range(self._faults.copies()):
            self._queue.append((arrives, data, type(message)))
        self._wake()

    async def get(self) -> M:
        while True:
            if self._broken is not None:
                raise LinkClosedError(self._broken)
            now = self._now()
            at = self._queue[0][0] if self._queue else self._ends_at if self._ended is not None else None
            if at is None or at > now:
                await self._wait(at)
            elif self._queue:
                _, data, kind = self._queue.popleft()
                self._wake()
                return kind.FromString(data)
            else:
                raise LinkClosedError(self._ended or "closed")

    def insert(self, message: M) -> None:
        """A message that nobody sent, behind what is under way."""
        self._queue.append((self._arrival(), message.SerializeToString(), type(message)))
        self._wake()

    def hold(self, until: float) -> None:
        """Nothing that is sent from now on arrives before that, not even the end."""
        self._held_until = until

    def end(self, why: str) -> None:
        """The writer sends no more; what is under way arrives."""
        if self._ended is None:
            self._ended, self._ends_at = why, self._arrival()
            self._wake()

    def abandon(self, why: str) -> None:
        """The reader takes no more."""
        self._broken = self._broken or why
        self._queue.clear()
        self._wake()

    def cut(self, why: str) -> None:
        """The network breaks, and both sides know: what is under way is lost."""
        self._ended = self._ended or why
        self.abandon(why)

    def _arrival(self) -> float:
        now = self._now()
        self._last_at = max(self._last_at, now + self._faults.delay(), self._held_until)
        return self._last_at

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _wait(self, until: float | None) -> None:
        """Until something changes, or until then."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        timer = None
        if until is not None and until < math.inf:
            timer = loop.call_at(until, _resolve, future)
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()
            if future in self._waiting:
                self._waiting.remove(future)

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            _resolve(future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class MemoryEnd(Generic[S, R]):
    """One end of a stream: an AgentEnd, a ControllerEnd or a ConsoleEnd, by its type."""

    def __init__(self, out: Pipe[S], into: Pipe[R]) -> None:
        self.out = out
        self.into = into

    async def send(self, message: S) -> None:
        await self.out.put(message)

    async def receive(self) -> R:
        return await self.into.get()

    async def close(self) -> None:
        self.shut()

    def shut(self) -> None:
        """What a kernel does with the sockets of a process that ends."""
        self.out.end("closed by the other end")
        self.into.abandon("closed by this end")


AcceptSession = Callable[[ControllerEnd], Awaitable[None]]
AcceptConsole = Callable[[ConsoleEnd], Awaitable[None]]
Spawn = Callable[..., object]  # as TaskGroup.create_task


@dataclass
class Listener:
    """What a controller serves at one address. The callables hold a stream until it ends.

    `spawn` runs a session as the listening process's own; without one it is a task of the link's group.
    """

    session: AcceptSession
    console: AcceptConsole | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    spawn: Spawn | None = None


@dataclass(eq=False)
class Stream:
    """One session between an agent and a controller, as the network sees it."""

    address: str
    up: Pipe[pb.AgentMessage]
    down: Pipe[pb.ControllerMessage]

    @property
    def open(self) -> bool:
        return self.up.closed is None or self.down.closed is None

    def cut(self) -> None:
        self.up.cut("the network broke")
        self.down.cut("the network broke")

    def hold(self, until: float) -> None:
        """Whatever is sent arrives then; who gives up before sees the other side's backlog never."""
        self.up.hold(until)
        self.down.hold(until)

    def lose_agent(self) -> None:
        """The agent's machine loses power: the controller hears nothing, not even an end."""
        self.hold(math.inf)
        self.down.abandon("the machine is off")

    def drop_agent(self) -> None:
        """The agent sees a break; the controller learns of it late, and hears what was under way."""
        self.up.end("the network broke")
        self.down.abandon("the network broke")


class MemoryLink:
    """The network between agents and controllers. `serve` and `dial` by address.

    Streams run as tasks of the group that is given, so that they have a parent.
    """

    def __init__(self, group: asyncio.TaskGroup | None, faults: Faults | None = None) -> None:
        self._group = group
        self.faults = faults or Faults()
        self._listeners: dict[str, Listener] = {}
        self.streams: list[Stream] = []
        self.unreachable: set[str] = set()  # addresses that cannot be dialed at the moment
        self.dials = 0
        self.on_down: Callable[[pb.ControllerMessage], None] | None = None

    def serve(self, address: str, listener: Listener) -> None:
        self._listeners[address] = listener

    def refuse(self, address: str) -> None:
        """Nobody listens at this address any more."""
        self._listeners.pop(address, None)

    async def stop(self, address: str) -> None:
        """The controller at this address dies."""
        self.refuse(address)
        await self.cut(address)

    async def cut(self, address: str) -> None:
        """Break every session of this address; what is under way is lost."""
        for stream in self.streams:
            if stream.address == address:
                stream.cut()
        self._forget_closed()

    # The agent's side: cumulet.link.Dialer

    async def open_session(self, address: str) -> AgentEnd:
        self.dials += 1
        listener = self._find(address)
        up: Pipe[pb.AgentMessage] = Pipe(self.faults)
        down: Pipe[pb.ControllerMessage] = Pipe(self.faults)
        self._forget_closed()
        down.tap = self.on_down
        self.streams.append(Stream(address, up, down))
        server: MemoryEnd[pb.ControllerMessage, pb.AgentMessage] = MemoryEnd(down, up)
        self._spawn(listener)(_hold(listener.session, server), name=f"session at {address}")
        return MemoryEnd(up, down)

    async def open_console(self, address: str) -> ConsoleEnd:
        listener = self._find(address)
        if listener.console is None:
            raise LinkClosedError(f"{address} serves no consoles")
        up: Pipe[pb.ConsoleData] = Pipe(Faults())
        down: Pipe[pb.ConsoleData] = Pipe(Faults())
        self._spawn(listener)(_hold(listener.console, MemoryEnd(down, up)), name=f"console at {address}")
        return MemoryEnd(up, down)

    async def read_file(self, address: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        content = self._find(address).files.get(sha256)
        if content is None:
            raise NotFoundError(f"image file {sha256} is not at {address}")
        for start in range(offset, len(content), CHUNK_BYTES):
            await asyncio.sleep(0)
            self._find(address)
            yield content[start : start + CHUNK_BYTES]

    def _forget_closed(self) -> None:
        self.streams = [stream for stream in self.streams if stream.open]

    def _spawn(self, listener: Listener) -> Spawn:
        if listener.spawn is not None:
            return listener.spawn
        assert self._group is not None, "a link without a group serves listeners that spawn"
        return self._group.create_task

    def _find(self, address: str) -> Listener:
        listener = self._listeners.get(address)
        if listener is None or address in self.unreachable:
            raise LinkClosedError(f"{address}: connection refused")
        return listener


async def _hold(accept: Callable[[MemoryEnd[S, R]], Awaitable[None]], end: MemoryEnd[S, R]) -> None:
    """Serve one stream to its end, whoever ends it."""
    try:
        await accept(end)
    except LinkClosedError:
        return
    finally:
        end.shut()
