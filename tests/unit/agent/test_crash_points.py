"""The agent is killed before and after every single effect, and a new one ends where it would have ended.

**Edge** in appearance only. I5, I13 of correctness.md: no double start, no orphan, no lost disk.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, cast

import pytest

from agent.drivers import Drivers
from agent.hypervisor.driver import DomainSpec
from agent.journal import MemoryJournal
from cumulet.v1 import agent_pb2 as pb

from .build import NODE, instance, plan, uid
from .lab import Lab, in_lab

Moment = Literal["before", "after"]
EFFECTS = (
    "ensure_running",
    "request_shutdown",
    "ensure_off",
    "ensure_absent",
    "ensure_network",
    "ensure_port",
    "ensure_port_absent",
    "ensure_network_absent",
    "ensure_image",
    "ensure_disk",
    "ensure_seed",
    "drop_images",
)


class CrashPoint:
    """Stops the agent at its n-th effect, once; `reached` is set when it hangs there."""

    def __init__(self, at: int, moment: Moment) -> None:
        self._left = at
        self._moment = moment
        self.reached = asyncio.Event()
        self.where = ""

    def wrap(self, drivers: Drivers) -> Drivers:
        return Drivers(
            cast(Any, _Stopping(drivers.hypervisor, self)),
            cast(Any, _Stopping(drivers.net, self)),
            cast(Any, _Stopping(drivers.storage, self)),
            kvm=drivers.kvm,
        )

    async def around(self, name: str, effect: Callable[[], Any]) -> None:
        self._left -= 1
        if self._left != 0:
            await effect()
            return
        if self._moment == "after":
            await effect()
        self.where = name
        self.reached.set()
        await asyncio.Event().wait()


class _Stopping:
    """A driver whose effects pass a crash point."""

    def __init__(self, driver: object, point: CrashPoint) -> None:
        self._driver = driver
        self._point = point

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._driver, name)
        if name not in EFFECTS:
            return method

        async def stopping(*args: Any) -> None:
            await self._point.around(name, lambda: method(*args))

        return stopping


PLANS = (
    plan(instance(1, networks=(1, 2)), instance(2), instance(3)),
    plan(instance(1, networks=(1, 2), boots=2, stop_timeout_s=0), instance(2, epoch=2), tombstones={3: 1}),
    plan(instance(1, networks=(1,), boots=2, on=False), tombstones={2: 2, 3: 1}),
)


def is_settled(lab: Lab) -> bool:
    """The leader has heard that the node is as planned."""
    for planned in lab.leader.plan.instances:
        seen = lab.leader.instances.get(planned.uid)
        wanted = pb.DOMAIN_STATE_RUNNING if planned.power == 1 else pb.DOMAIN_STATE_OFF
        if seen is None or (seen.state, seen.epoch, seen.boots) != (wanted, planned.epoch, planned.boots):
            return False
    return all(lab.state(dead.uid) == pb.DOMAIN_STATE_ABSENT for dead in lab.leader.plan.tombstones)


def is_clean(lab: Lab) -> bool:
    """Nothing is on the host but what the plan names."""
    planned = lab.leader.plan.instances
    ports = {port.uid: port.network_uid for instance_ in planned for port in instance_.ports}
    uids = {instance_.uid for instance_ in planned}
    return (
        lab.machine.domains.keys() == uids
        and lab.disk.disks.keys() == uids
        and lab.disk.seeds.keys() == uids
        and lab.kernel._taps.keys() == ports.keys()
        and lab.kernel._networks.keys() == set(ports.values())
    )


def record_starts(lab: Lab) -> Counter[tuple[str, int, int]]:
    """Counts every emulator that is started, by (uid, epoch, boots)."""
    starts: Counter[tuple[str, int, int]] = Counter()
    start = lab.machine.start

    def counting(spec: DomainSpec, now_s: float) -> Any:
        starts[spec.uid, spec.epoch, spec.boots] += 1
        return start(spec, now_s)

    lab.machine.start = counting  # type: ignore[method-assign]
    return starts


async def play(lab: Lab, point: CrashPoint) -> Counter[tuple[str, int, int]]:
    """Through all plans; the agent that reaches the crash point is killed and replaced by a sound one."""
    starts = record_starts(lab)
    lab.wrap = point.wrap
    lab.start()
    for wanted in PLANS:
        await lab.leader.set_plan(pb.NodePlan.FromString(wanted.SerializeToString()))
        await lab.until(lambda: is_settled(lab) or point.reached.is_set())
        if point.reached.is_set():
            await lab.kill()
            point.reached.clear()
            lab.wrap = lambda drivers: drivers
            lab.start()
            await lab.until(lambda: is_settled(lab))
        await lab.until(lambda: is_clean(lab))
    return starts


@pytest.mark.parametrize("moment", ["before", "after"])
def test_every_crash_point_converges_without_a_double_start(moment: Moment) -> None:
    visited = []

    def crash_at(number: int) -> bool:
        """False when there are fewer effects than that."""
        reached = []

        async def scenario(lab: Lab) -> None:
            lab.machine.boot_s = 0.5
            point = CrashPoint(number, moment)
            starts = await play(lab, point)
            assert starts.keys() == {
                (uid(1, 1), 1, 1),
                (uid(1, 1), 1, 2),
                (uid(1, 2), 1, 1),
                (uid(1, 2), 2, 1),
                (uid(1, 3), 1, 1),
            }
            assert set(starts.values()) == {1}, f"{point.where}: {starts}"
            reached.append(bool(point.where))
            visited.append(point.where)

        in_lab(scenario)
        return reached[0]

    number = 1
    while crash_at(number):
        number += 1
    assert set(visited) >= set(EFFECTS) - {"drop_images"}
    assert number > 35


def test_the_planted_bug_is_found() -> None:
    """A journal that forgets lets an older plan in: the check of the scenarios above sees it."""

    class Forgetful(MemoryJournal):
        def read_acted(self) -> pb.PlanVersion:
            return pb.PlanVersion()

    async def scenario(lab: Lab) -> None:
        lab.journal = Forgetful()
        lab.start()
        await lab.leader.set_plan(plan(tombstones={1: 1}, revision=5))
        await lab.until(lambda: lab.state(uid(1, 1)) == pb.DOMAIN_STATE_ABSENT)
        await lab.kill()
        lab.leader.plan = plan(instance(1), revision=1, node=NODE)
        lab.start()
        await lab.until(lambda: bool(lab.machine.running()))

    in_lab(scenario)
