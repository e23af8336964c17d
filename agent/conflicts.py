"""Somebody else announces an address of the outside that this node answers for.

**Edge**: sockets of ARP and ND. A node that has a live session is right: it says so again. One that has none
may have been replaced, so it lets the address go until a leader's plan has it again. So of two nodes that do
not hear the same leader one answers, from the moment that the new one has announced itself.
"""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

import structlog

from agent.errors import DriverError
from agent.intent import External
from agent.net.driver import IPAddress
from agent.net.ears import Ear, Place
from agent.report import Snapshot
from cumulet.clock import Clock

DEFEND_S: Final = 10.0  # Source: RFC 5227, section 1.1, DEFEND_INTERVAL

_log = structlog.get_logger("agent.conflicts")


class Agent(Protocol):
    """The part of the agent that is needed here."""

    @property
    def announced(self) -> frozenset[External]: ...

    def has_live_session(self) -> bool: ...

    def yield_address(self, external: External) -> None: ...

    async def round_after(self, seen: int) -> Snapshot: ...


class Net(Protocol):
    """The part of the network driver that is needed here."""

    async def ears(self, places: frozenset[Place]) -> dict[Place, Ear]: ...

    async def announce(self, uplink: str, address: IPAddress) -> None: ...


class Conflicts:
    """`run` follows what the agent answers for until cancelled."""

    def __init__(self, agent: Agent, net: Net, clock: Clock) -> None:
        self._agent = agent
        self._net = net
        self._clock = clock
        self._ears: dict[Place, Ear] = {}
        self._defended_at: dict[External, float] = {}
        self._contested: asyncio.Queue[External] = asyncio.Queue(maxsize=1_000)

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._defend())
                seen = -1
                while True:
                    seen = (await self._agent.round_after(seen)).round
                    await self.follow()
        finally:
            for place in list(self._ears):
                self._stop(place)

    async def follow(self) -> None:
        """Listen on exactly the links that an address is announced on."""
        wanted = frozenset((uplink, address.version) for uplink, address in self._agent.announced)
        if not wanted and not self._ears:
            return
        try:
            ears = await self._net.ears(wanted)
        except DriverError as err:
            _log.warning("nobody listens for conflicts", reason=err.reason, message=err.message)
            return
        for place, ear in list(self._ears.items()):
            if ears.get(place) is not ear:
                self._stop(place)
        for place in sorted(ears.keys() - self._ears.keys()):
            self._ears[place] = ears[place]
            asyncio.get_running_loop().add_reader(ears[place].socket, self._hear, place)

    def _hear(self, place: Place) -> None:
        ear, (name, _) = self._ears[place], place
        try:
            heard = ear.hear()
        except BlockingIOError:
            return
        except OSError:  # the link went; the next round finds it again
            self._stop(place)
            return
        if heard is None or heard[0] == ear.mac or (name, heard[1]) not in self._agent.announced:
            return
        external = (name, heard[1])
        if not self._agent.has_live_session():
            _log.warning("let go: another node announces it", address=str(heard[1]), mac=heard[0])
            self._agent.yield_address(external)
        elif not self._contested.full():
            self._contested.put_nowait(external)

    async def _defend(self) -> None:
        while True:
            uplink, address = external = await self._contested.get()
            now = self._clock.monotonic()
            if now - self._defended_at.get(external, -DEFEND_S) < DEFEND_S:
                continue
            self._defended_at[external] = now
            _log.warning("another node announces an address of this one", address=str(address))
            try:
                await self._net.announce(uplink, address)
            except DriverError as err:
                _log.warning("not announced", address=str(address), reason=err.reason, message=err.message)

    def _stop(self, place: Place) -> None:
        ear = self._ears.pop(place)
        asyncio.get_running_loop().remove_reader(ear.socket)
        ear.socket.close()
