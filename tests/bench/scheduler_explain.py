"""Explaining refusals over 10,000 nodes: every reason counted, the nearest nodes, the smallest changes.

**Edge**: builds fleets in memory, prints, appends to build/bench/scheduler.jsonl through its Suite. One core.
Run it alone with `python -m tests.bench.scheduler_explain`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Final

from cumulet.resources import Resources
from scheduler.columns import Columns
from scheduler.filters import reasons_against
from scheduler.group import Occupancy, PlacementGroup, Rule, Scope
from scheduler.model import NodeView, Request, Resident, Room, Taint, View
from scheduler.suggest import explain_refusal
from scheduler.topology import Cell, Choice, Device, DeviceRequest, DeviceShare
from tests.bench.report import Suite, percentile

NODES: Final = 10_000
ROUNDS: Final = 60
CHANGED: Final = 100  # nodes that changed since the columns were followed last
_APART: Final = PlacementGroup("default/apart", Rule.ANTI_AFFINITY, Scope.RACK)


def fleet(rng: random.Random) -> View:
    """Nearly full nodes with every obstacle: cordons, silence, taints, dedication, racks, cells, devices."""
    return View(1, tuple(_node(number, rng) for number in range(NODES)), {_APART.name: _APART})


def _node(number: int, rng: random.Random) -> NodeView:
    residents = tuple(_resident(number, slot, rng) for slot in range(4))
    held = [resident.request.resources for resident in residents]
    others = Resources(rng.randrange(30, 40), 1024 * rng.randrange(120, 140), 400)
    return NodeView(
        f"n{number:05}",
        Resources(64, 196_608, 2_000, (("bandwidth_mbps", 25_000),)),
        allocated=Resources.total([others, *held]),
        schedulable=rng.random() > 0.05,
        ready=rng.random() > 0.02,
        not_ready_reason="the agent is silent",
        security_level=rng.randrange(3),
        labels={"rack": f"r{number % 250}", "zone": f"z{number % 5}", "host": str(number)},
        taints=(Taint("old"),) if rng.random() < 0.1 else (),
        dedicated_to=frozenset({"other"}) if rng.random() < 0.1 else frozenset(),
        capabilities=frozenset({"kvm", "cpu:v3"} if rng.random() < 0.8 else {"kvm"}),
        cells=(Cell(32, 98_304), Cell(32, 98_304)),
        devices=tuple(Device(f"{slot}", "a100", slot % 2) for slot in range(4)) if number % 4 == 0 else (),
        residents=residents,
    )


def _resident(number: int, slot: int, rng: random.Random) -> Resident:
    """The first two are pinned to a cell each, with a device where there is one."""
    pinned = slot < 2
    wanted = Request(
        f"{number}-{slot}",
        "default",
        f"vm-{number}-{slot}",
        Resources(rng.choice((4, 6)), rng.choice((8_192, 16_384)), 40),
        groups=(_APART.name,) if number < 245 and slot == 3 else (),
        numa_cells=int(pinned),
    )
    shares = (DeviceShare(f"{slot}", 1_000),) if pinned and number % 4 == 0 else ()
    return Resident(wanted, Choice((slot,) if pinned else (), shares))


def wants() -> dict[str, Request]:
    """Requests that nothing takes, each for other reasons."""
    plain = Request("u", "default", "vm-u", Resources(48, 65_536, 100))
    return {
        "amounts": plain,
        "mixed": replace(
            plain,
            resources=Resources(28, 16_384, 100),
            security_level=2,
            node_selector={"zone": "z3", "disk": "ssd"},
            capabilities=frozenset({"cpu:v3"}),
            groups=(_APART.name,),
        ),
        "numa": replace(plain, resources=Resources(60, 65_536, 100), numa_cells=2),
        "devices": replace(plain, numa_cells=1, devices=(DeviceRequest(frozenset({"a100"}), 4),)),
    }


def _timed_ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def measure(suite: Suite) -> None:
    """`explain_ms` on kept columns, the same from scratch, and node by node as the baseline."""
    view = fleet(random.Random(1))
    columns = Columns(view)
    samples: list[float] = []
    for name, wanted in wants().items():
        first_ms = _timed_ms(lambda wanted=wanted: explain_refusal(columns, wanted))  # type: ignore[misc]
        took = [_timed_ms(lambda wanted=wanted: explain_refusal(columns, wanted)) for _ in range(ROUNDS)]  # type: ignore[misc]
        refused = explain_refusal(columns, wanted)
        if refused is None:
            raise AssertionError(f"request {name} is to be refused, but fits")
        kinds = [change.kind for change in refused.changes]
        suite.figure(
            "explain_kind_ms", median(took), "ms", request=name, nodes=NODES, first=first_ms, changes=kinds
        )
        samples += took
    suite.figure("explain_ms", median(samples), "ms", nodes=NODES, aim=20, p99=percentile(samples, 0.99))
    mixed = wants()["mixed"]
    scratch = median(_timed_ms(lambda: explain_refusal(Columns(view), mixed)) for _ in range(5))
    suite.figure("explain_from_scratch_ms", scratch, "ms", nodes=NODES)
    suite.figure("explain_follow_ms", _follow_ms(columns, view), "ms", nodes=NODES, changed=CHANGED)
    occupancy = Occupancy.of(view)
    slow = _timed_ms(lambda: [reasons_against(Room(node), mixed, occupancy) for node in view.nodes])
    suite.figure("explain_node_by_node_ms", slow, "ms", nodes=NODES, note="reasons only, without changes")


def _follow_ms(columns: Columns, view: View) -> float:
    """Bringing kept columns up to a view in which some nodes changed."""
    nodes = list(view.nodes)
    took: list[float] = []
    for number in range(5):
        for index in range(number, CHANGED * 50, 50):
            nodes[index] = replace(nodes[index], security_level=number % 3)
        after = View(number + 2, tuple(nodes), view.groups)
        took.append(_timed_ms(lambda after=after: columns.follow(after)))  # type: ignore[misc]
    return median(took)


if __name__ == "__main__":
    measure(Suite("scheduler-explain"))
