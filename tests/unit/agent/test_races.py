"""What happens between a look and its actions: slow drivers, lost sessions, late tombstones.

**Edge** in appearance only. Each scenario fails without the one line of the agent that it is about.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from agent.drivers import Drivers
from cumulet.v1 import agent_pb2 as pb

from .build import instance, plan, uid
from .lab import ADDRESS, Lab, in_lab
from .test_agent import run_one
from .test_crash_points import record_starts


class _Slow:
    """A driver some of whose methods take seconds before they have their effect."""

    def __init__(self, driver: object, delays_s: dict[str, float]) -> None:
        self._driver = driver
        self._delays_s = delays_s

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._driver, name)
        if name not in self._delays_s:
            return method

        async def slowly(*args: Any) -> Any:
            await asyncio.sleep(self._delays_s[name])
            return await method(*args)

        return slowly


def slow_down(lab: Lab, delays_s: dict[str, float]) -> None:
    """The next agent's drivers are slow; `delays_s` may be changed while it runs."""

    def wrap(drivers: Drivers) -> Drivers:
        slow = [_Slow(d, delays_s) for d in (drivers.hypervisor, drivers.net, drivers.storage)]
        return Drivers(cast(Any, slow[0]), cast(Any, slow[1]), cast(Any, slow[2]), kvm=True)

    lab.wrap = wrap


def test_a_look_that_began_before_an_action_ended_is_not_acted_on() -> None:
    """Else the power is cut a second time, after the new boot."""

    async def scenario(lab: Lab) -> None:
        delays_s: dict[str, float] = {}
        slow_down(lab, delays_s)
        starts = record_starts(lab)
        await run_one(lab)
        delays_s.update(ensure_off=0.3, observe_net=1.5)
        await lab.leader.set_plan(plan(instance(1, boots=2, stop_timeout_s=0)))
        for _ in range(200):
            assert lab.agent is not None
            lab.agent.wake()
            await asyncio.sleep(0.05)
        assert starts[uid(1, 1), 1, 2] == 1

    in_lab(scenario)


def test_a_session_that_is_lost_between_diff_and_start_prevents_the_start() -> None:
    async def scenario(lab: Lab) -> None:
        slow_down(lab, {"ensure_seed": 10.0})
        lab.start()
        await lab.leader.set_plan(plan(instance(1)))
        await lab.until(lambda: uid(1, 1) in lab.disk.disks)
        await lab.link.stop(ADDRESS)
        await asyncio.sleep(60)
        assert uid(1, 1) in lab.disk.seeds, "the work went on up to the start"
        assert not lab.machine.domains

    in_lab(scenario)


def test_absent_is_not_said_while_something_is_still_being_made() -> None:
    """The controller forgets what is absent; a disk that appears afterwards would be an orphan."""

    async def scenario(lab: Lab) -> None:
        slow_down(lab, {"ensure_disk": 10.0})
        lab.start()
        await lab.leader.set_plan(plan(instance(1)))
        await asyncio.sleep(5)
        await lab.leader.set_plan(plan(tombstones={1: 1}))
        acted = lab.leader.plan.version
        await lab.until(lambda: lab.state(uid(1, 1)) == pb.DOMAIN_STATE_ABSENT)
        assert lab.leader.reports[-1].acted_on == acted
        await lab.leader.set_plan(plan())
        await asyncio.sleep(60)
        assert not lab.disk.disks
        assert not lab.disk.seeds

    in_lab(scenario)


def test_without_a_session_the_journaled_plan_stops_nothing() -> None:
    async def scenario(lab: Lab) -> None:
        await run_one(lab)
        pids = lab.machine.pids()
        await lab.kill()
        await lab.link.stop(ADDRESS)
        for journaled in (plan(instance(1, on=False), revision=50), plan(tombstones={1: 1}, revision=51)):
            lab.journal.write_plan(journaled)
            lab.start()
            await asyncio.sleep(90)
            assert lab.machine.pids() == pids
            await lab.kill()

    in_lab(scenario)
