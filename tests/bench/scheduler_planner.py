"""The whole planner: batches with every filter on, NUMA-exact decisions, and what a large view weighs.

**Edge**: builds fleets in memory, prints. `python -m tests.bench.scheduler_planner`.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from cumulet.resources import Resources
from scheduler.fleet import Fleet
from scheduler.group import PlacementGroup, Rule, Scope
from scheduler.model import NodeView, Request, Resident, View
from scheduler.plan import plan_on
from scheduler.policy import PACK
from scheduler.search import find_seat
from scheduler.topology import Cell
from tests.bench.report import Suite, percentile

NODES: Final = 10_000
BATCH: Final = 1_000
ROUNDS: Final = 5
NUMA_HOSTS: Final = 1_000
NUMA_DECISIONS: Final = 2_000
VIEW_NODES: Final = 100_000
VIEW_INSTANCES_EACH: Final = 10
_SIZES: Final = tuple(Resources(vcpu, 4_096 * vcpu, 20) for vcpu in (1, 2, 4, 8))


def node(number: int, **fields: object) -> NodeView:
    """64 vcpus in two cells, eight labels."""
    labels = {
        "host": f"h{number}",
        "rack": f"r{number // 40}",
        "zone": f"z{number % 5}",
        "disk": "ssd" if number % 3 else "hdd",
        "cpu": f"gen{number % 4}",
        "net": "25g",
        "row": f"w{number // 400}",
        "tier": f"t{number % 2}",
    }
    cells = (Cell(32, 131_072), Cell(32, 131_072))
    whole = NodeView(f"n{number:06}", Resources(64, 262_144, 2_000), labels=labels, cells=cells)
    return replace(whole, **fields)  # type: ignore[arg-type]


def full_requests(rng: random.Random, groups: int) -> list[Request]:
    """Half in groups apart or together, by node and by rack; a quarter with a label, a tenth on one cell."""
    requests = []
    for number in range(BATCH):
        name = (f"g{rng.randrange(groups)}",) if number % 2 else ()
        requests.append(
            Request(
                f"u{number}",
                "default",
                f"vm-{number}",
                rng.choice(_SIZES),
                groups=name,
                node_selector={"disk": "ssd"} if rng.random() < 0.25 else {},
                numa_cells=int(rng.random() < 0.1),
            )
        )
    return requests


def build_groups(count: int) -> tuple[PlacementGroup, ...]:
    kinds = (
        (Rule.ANTI_AFFINITY, Scope.NODE, True),
        (Rule.ANTI_AFFINITY, Scope.RACK, True),
        (Rule.AFFINITY, Scope.RACK, True),
        (Rule.ANTI_AFFINITY, Scope.NODE, False),
    )
    return tuple(PlacementGroup(f"g{number}", *kinds[number % len(kinds)]) for number in range(count))


def _timed(call: Callable[[], object]) -> float:
    """CPU time of this one thread: what it takes where others do not take the processor away meanwhile."""
    started = time.thread_time()
    call()
    return time.thread_time() - started


def report_full_batch(suite: Suite) -> None:
    """`full_batch_per_s`: batches of 1,000 over 10,000 nodes with all filters; `plain` beside it."""
    rng = random.Random(1)
    fleet = Fleet(PACK, build_groups(40))
    for number in range(NODES):
        fleet.update(node(number, allocated=Resources(rng.randrange(60), 4_096 * rng.randrange(60), 0)))
    full = full_requests(rng, 40)
    plain = [replace(one, groups=(), node_selector={}, numa_cells=0) for one in full]
    for name, batch in (("plain", plain), ("full", full)):
        first = plan_on(fleet, batch, random.Random(0), 1)
        times = [_timed(partial(plan_on, fleet, batch, random.Random(0), 1)) for _ in range(ROUNDS)]
        placed = len(first.placements)
        rate = BATCH / median(times)
        suite.figure(f"{name}_batch_per_s", rate, "1/s", nodes=NODES, placed=placed, clock="cpu")


def report_numa(suite: Suite) -> None:
    """`numa_decision_us`: decide and enter on one cell exactly, on a fleet that fills up."""
    fleet = Fleet.of(View(1, tuple(node(number) for number in range(NUMA_HOSTS))))
    rng = random.Random(2)
    batch = [
        Request(f"u{number}", "default", f"vm-{number}", rng.choice(_SIZES), numa_cells=1)
        for number in range(NUMA_DECISIONS)
    ]
    took = []
    for request, asked in zip(batch, fleet.prepare(batch), strict=True):
        started = time.perf_counter()
        seat = find_seat(fleet, request, asked)
        if seat is None:
            raise AssertionError("the fleet has room for all")
        fleet.enter(request, seat)
        took.append(1e6 * (time.perf_counter() - started))
    suite.figure("numa_decision_us", median(took), "us", hosts=NUMA_HOSTS, p99=percentile(took, 0.99))


def _resident_set_gib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4_096 / 2**30


def report_view(suite: Suite) -> None:
    """`view_gib`: a view of 100,000 nodes with 1,000,000 instances, and its kept fleet."""
    gc.collect()
    before = _resident_set_gib()
    nodes = []
    for number in range(VIEW_NODES):
        residents = tuple(
            Resident(
                Request(
                    f"{number:06}-0000-4000-8000-{each:012}",
                    "default",
                    f"vm-{number}-{each}",
                    _SIZES[each % 4],
                )
            )
            for each in range(VIEW_INSTANCES_EACH)
        )
        allocated = Resources.total(one.request.resources for one in residents)
        nodes.append(node(number, residents=residents, allocated=allocated))
    view = View(1, tuple(nodes))
    viewed = _resident_set_gib()
    fleet = Fleet.of(view)
    fleet.prepare(())
    suite.figure(
        "view_gib",
        _resident_set_gib() - before,
        "GiB",
        nodes=len(fleet),
        instances=VIEW_NODES * VIEW_INSTANCES_EACH,
        of_it_nodes_and_instances=round(viewed - before, 3),
    )


def measure(suite: Suite) -> None:
    report_numa(suite)
    report_full_batch(suite)
    report_view(suite)


if __name__ == "__main__":
    measure(Suite("scheduler-planner"))
