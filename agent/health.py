"""Health of load balancers' members, as this node sees it: asked from here, told to this node's rules.

**Edge**: one task for each balancer that is checked; sockets are of its router's namespace. What follows from
an answer is pure. Health needs no controller: a session only hears of it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Protocol

import structlog

from agent.errors import DriverError
from agent.health_board import Board
from agent.intent import PlanIntent
from agent.net.balancer import BalancerIntent, HealthIntent, Probed
from agent.net.probe import ask
from agent.report import Snapshot
from cumulet.addresses import with_port

PROBES_MAX: Final = 64  # of one balancer at a time: sockets that are open

_log = structlog.get_logger("agent.health")

Key = tuple[str, str]  # router, balancer


class Rounds(Protocol):
    """The part of the agent that is needed here."""

    @property
    def intent(self) -> PlanIntent: ...

    async def round_after(self, seen: int) -> Snapshot: ...


class Probing(Protocol):
    """The part of the network driver that is needed here."""

    async def ensure_health(self, router_uid: str, balancer_uid: str, down: frozenset[Probed]) -> None: ...

    async def balancer_health(self, router_uid: str) -> dict[str, frozenset[Probed]]: ...

    async def probe_sockets(self, router_uid: str, ip_version: int, count: int) -> list[socket.socket]: ...


@dataclass(frozen=True, slots=True)
class Tally:
    """What is known of a member: `streak` answers in a row speak against `down`."""

    down: bool = False
    streak: int = 0


def judged(tally: Tally, answered: bool, health: HealthIntent) -> Tally:
    """After one more question. **Pure.**"""
    if answered != tally.down:
        return replace(tally, streak=0)
    streak = tally.streak + 1
    needed = health.rise if tally.down else health.fall
    return Tally(not tally.down) if streak >= needed else replace(tally, streak=streak)


@dataclass(slots=True)
class _Watch:
    """One balancer's members."""

    intent: BalancerIntent
    tallies: dict[Probed, Tally]
    task: asyncio.Task[None] | None = None


class Health:
    """Watches by balancer. `run` follows the agent's plan until cancelled."""

    def __init__(self, agent: Rounds, net: Probing, board: Board) -> None:
        self._agent = agent
        self._net = net
        self._board = board
        self._watches: dict[Key, _Watch] = {}

    async def run(self) -> None:
        """One look after each round of the agent: balancers come and go with plans."""
        seen = -1
        async with asyncio.TaskGroup() as group:
            while True:
                seen = (await self._agent.round_after(seen)).round
                await self.follow(self._agent.intent, group)

    async def follow(self, plan: PlanIntent, group: asyncio.TaskGroup) -> None:
        """Watch exactly the plan's balancers that are to be checked."""
        wanted = {
            (uid, balancer.uid): balancer
            for uid, router in plan.routers.items()
            for balancer in router.intent.balancers
            if balancer.health is not None
        }
        for key in list(self._watches):
            if key not in wanted or self._watches[key].intent != wanted[key]:
                await self._stop(key, keeps=key in wanted)
        for key, balancer in wanted.items():
            watch = self._watches.get(key)
            if watch is None or watch.task is None:
                await self._start(key, balancer, watch, group)

    async def _stop(self, key: Key, *, keeps: bool) -> None:
        watch = self._watches[key]
        if watch.task is not None:
            watch.task.cancel()
            watch.task = None
        if not keeps:
            del self._watches[key]
            await self._board.put(key[1], frozenset())

    async def _start(
        self, key: Key, balancer: BalancerIntent, before: _Watch | None, group: asyncio.TaskGroup
    ) -> None:
        """With what was known before; an agent that starts anew asks the driver for it."""
        known = dict(before.tallies) if before is not None else {}
        if before is None:
            try:
                down = (await self._net.balancer_health(key[0])).get(key[1], frozenset())
            except DriverError as err:
                _log.warning("health of before is unknown", balancer=key[1], message=err.message)
                down = frozenset()
            known = {probed: Tally(True) for probed in down}
        tallies = {probed: known.get(probed, Tally()) for probed in balancer.probed()}
        watch = self._watches[key] = _Watch(balancer, tallies)
        watch.task = group.create_task(self._watch(key[0], watch))

    async def _watch(self, router_uid: str, watch: _Watch) -> None:
        """Ask, tell, and ask again after the interval; forever."""
        health = watch.intent.health
        assert health is not None  # `follow` watches no other
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            await self._look(router_uid, watch, health)
            await asyncio.sleep(max(0.0, started + health.interval_s - loop.time()))

    async def _look(self, router_uid: str, watch: _Watch, health: HealthIntent) -> None:
        """One question to each member, and what follows. Trouble of our own says nothing of members."""
        try:
            answers = await self._ask_all(router_uid, sorted(watch.tallies), health)
            for probed, answered in answers.items():
                before = watch.tallies[probed]
                after = watch.tallies[probed] = judged(before, answered, health)
                if after.down != before.down:
                    word = "unhealthy" if after.down else "healthy"
                    member = with_port(str(probed.address), probed.port)
                    _log.info("member", balancer=watch.intent.name, member=member, now=word)
            down = frozenset(probed for probed, tally in watch.tallies.items() if tally.down)
            # Each time: its router may have been made anew, and it costs nothing when nothing is to be done.
            await self._net.ensure_health(router_uid, watch.intent.uid, down)
            await self._board.put(watch.intent.uid, down)
        except (DriverError, OSError) as err:
            _log.warning("members were not asked", balancer=watch.intent.name, message=str(err))

    async def _ask_all(
        self, router_uid: str, members: list[Probed], health: HealthIntent
    ) -> dict[Probed, bool]:
        answers: dict[Probed, bool] = {}
        for start in range(0, len(members), PROBES_MAX):
            part = members[start : start + PROBES_MAX]
            sockets = await self._net.probe_sockets(router_uid, part[0].address.version, len(part))
            answers |= dict(zip(part, await _ask(part, sockets, health), strict=True))
        return answers


async def _ask(members: Iterable[Probed], sockets: list[socket.socket], health: HealthIntent) -> list[bool]:
    try:
        questions = [
            ask(one, (str(member.address), member.port), health.http_path, health.timeout_s)
            for member, one in zip(members, sockets, strict=True)
        ]
        return list(await asyncio.gather(*questions))
    finally:
        for one in sockets:
            one.close()
