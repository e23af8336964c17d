"""A simulated controller replica: the real controller with the real API handlers, without sockets.

**Pure** but for the event loop. A supervisor starts it anew whenever it ends, as systemd would.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from controller.api.server import build_handlers
from controller.controller import Controller
from controller.files import FileStore
from controller.journal import MemoryJournal
from controller.metrics import Metrics
from controller.reconcile.election import LeadershipLostError
from controller.store.lease import Keeper, LeaseTask
from controller.store.memory import MemoryStore
from controller.store.protocol import StoreError
from cumulet.errors import CumuletError, UnavailableError
from cumulet.link import ControllerEnd
from tests.sim.link import Listener, MemoryLink
from tests.sim.loop import LoopClock
from tests.sim.process import Process
from tests.sim.store import StoreFaults, StoreRates, WatchedServer, connect
from tests.sim.trace import Trace

RESTART_S: Final = (0.5, 3.0)
METRICS: Final = Metrics()  # one for all: the simulation reads none


class Replica:
    """One controller process at an address, over and over again."""

    def __init__(
        self,
        address: str,
        server: WatchedServer,
        rates: StoreRates,
        links: list[MemoryLink],
        journal: MemoryJournal,
        files: dict[str, bytes],
        trace: Trace,
        seed: str,
        directory: Path,
    ) -> None:
        self.address = address
        self.rng = random.Random(f"{seed}/{address}")
        self.skew_s = self.rng.uniform(-2.0, 2.0)
        self.controller: Controller | None = None
        self.process: Process | None = None
        self.store: MemoryStore | None = None
        self.faults: StoreFaults | None = None
        self._handlers: dict[str, Callable[[Any], Any]] = {}
        self._server = server
        self._rates = rates
        self._links = links
        self._journal = journal
        self._files = files
        self._trace = trace
        self._directory = directory

    @property
    def alive(self) -> bool:
        return self.process is not None and not self.process.dead

    @property
    def leads(self) -> bool:
        return self.alive and self.controller is not None and self.controller.leading is not None

    async def supervise(self) -> None:
        """Run the process, again and again."""
        while True:
            await self._run_once()
            await asyncio.sleep(self.rng.uniform(*RESTART_S))

    def kill(self) -> None:
        if self.process is not None:
            self._trace.note(f"{self.address}: killed")
            self.process.kill()

    async def call(self, method: str, request: Any) -> Any:
        """An RPC's way through the handlers. Raises what the API raises."""
        handler = self._handlers.get(method)
        if not self.alive or handler is None or self.controller is None:
            raise UnavailableError(f"{self.address}: connection refused")
        if not self.controller.ready.is_set():
            raise UnavailableError(f"{self.address} is not serving yet")
        assert self.process is not None
        task = self.process.spawn(_answer(handler, request))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise UnavailableError(f"{self.address}: the connection broke") from None
            raise

    async def _run_once(self) -> None:
        self._start()
        assert self.process is not None
        assert self.controller is not None
        main = self.process.spawn(self._main(self.controller))
        await asyncio.wait({main})
        self.process.kill()
        await self.process.ended()

    def _start(self) -> None:
        self._trace.note(f"{self.address}: starts")
        self.faults = StoreFaults(random.Random(self.rng.random()), self._rates, self._trace)
        store = self.store = connect(self._server, self.faults)
        clock = LoopClock(self.skew_s)

        def keeper(lease_id: int, granted_at: float) -> Keeper:
            return LeaseTask(store, lease_id, granted_at, clock=clock.monotonic)

        rng = random.Random(self.rng.random())
        self.controller = Controller(store, keeper, self._journal, clock, rng, self.address, METRICS)
        self._handlers = build_handlers(self.controller, FileStore(self._directory)).plain
        self.process = Process(self.address, self._cut_off)
        for link in self._links:
            listener = Listener(self._accept, files=self._files, spawn=self.process.spawn)
            link.serve(self.address, listener)

    async def _main(self, controller: Controller) -> None:
        try:
            await controller.run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            leaves = list(_leaves(error))
            self._trace.note(f"{self.address}: ends by {leaves}")
            if not all(isinstance(leaf, (LeadershipLostError, StoreError)) for leaf in leaves):
                self._trace.violate("crash", f"{self.address} died of {leaves}")

    async def _accept(self, end: ControllerEnd) -> None:
        """As api/server.py does: a refusal ends the stream."""
        assert self.controller is not None
        try:
            await self.controller.accept_agent(end)
        except (CumuletError, StoreError) as error:
            self._trace.note(f"{self.address}: refuses an agent: {error}")

    def _cut_off(self) -> None:
        """The kernel closes the sockets of a process that is gone."""
        assert self.store is not None
        self.store._closed = True
        for link in self._links:
            link.refuse(self.address)
            for stream in link.streams:
                if stream.address == self.address:
                    stream.down.end("the controller ended")
                    stream.up.abandon("the controller ended")


async def _answer(handler: Callable[[Any], Any], request: Any) -> Any:
    """A store's error becomes UNAVAILABLE, as in api/server.py."""
    try:
        return await handler(request)
    except StoreError as error:
        raise UnavailableError(f"etcd does not answer: {error}") from error


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
