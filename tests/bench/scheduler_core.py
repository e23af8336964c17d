"""The decision core's figures: single decisions, growth, the scan, calls from Python; suite `scheduler`.

**Edge**: reads the Azure trace of CUMULET_DATA (by default ../shared/data), measures, prints JSON lines.

Every figure is a median over runs, with the cost of the linear scan of the same run beside it. Decisions must
have the hash of a linear scan over the whole trace, or the run fails.
"""

from __future__ import annotations

import csv
import gzip
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cext import measure
from cext.index import FleetIndex
from cext.measure import Replay
from scheduler.reference import Scale
from tests.bench.report import Suite

DATA: Final = Path(os.environ.get("CUMULET_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
TRACE: Final = DATA / "azure-v1" / "azure_v1_dev_decoded.csv.gz"
NODE: Final = (64, 192 * 1024)  # vCPU and MiB
DERIVED: Final = (40, 32, 24, 16, 8)  # further resources that follow vCPU, a node has 64 times as much
NODES_BY_COPY: Final = 720
RUNS: Final = 5
SHAPES: Final = 1_000
SHAPES_BY_NODE: Final = (8, 14)  # so many of one shape fill a node
# Copies of the trace for the same fleet: so many that 720 nodes by copy are almost full at the peak.
INDEPENDENT_SHARE: Final = 0.28
GROWTH_COPIES: Final = (1, 100)
SCAN_NODES: Final = 10_240
CALLS: Final = 300_000
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Trace:
    """Instances with their flavor, and their events: x places instance x, ~x releases it."""

    flavors: tuple[tuple[int, int], ...]  # vCPU, MiB
    flavor_of: Ints
    arrival_s: npt.NDArray[np.int64]
    end_s: npt.NDArray[np.int64]
    stays: npt.NDArray[np.bool_]

    def copies(self, count: int) -> tuple[Ints, Ints]:
        """(events, flavor of each instance): departures before arrivals at equal times."""
        arrival, end, stays = (np.repeat(row, count) for row in (self.arrival_s, self.end_s, self.stays))
        leaving = np.flatnonzero(np.logical_not(stays))
        instances = np.arange(len(arrival))
        times = np.concatenate([end[leaving], arrival])
        order = np.argsort(times, kind="stable")
        events = np.concatenate([-1 - leaving, instances])[order]
        return events.astype(np.int32), np.repeat(self.flavor_of, count)


def read_trace() -> Trace:
    """The Azure dev split. FileNotFoundError says what to set."""
    if not TRACE.exists():
        raise FileNotFoundError(f"{TRACE} is missing: set CUMULET_DATA to the folder with azure-v1")
    with gzip.open(TRACE, "rt") as file:
        rows = list(csv.DictReader(file))
    sizes = [(int(row["vcpu"]), round(float(row["mem_gb"]) * 1024)) for row in rows]
    flavors = tuple(sorted(set(sizes)))
    arrival = np.array([int(row["arrival_s"]) for row in rows])
    return Trace(
        flavors,
        np.array([flavors.index(size) for size in sizes], np.int32),
        arrival,
        arrival + np.array([int(row["duration_s"]) for row in rows]),
        np.array([row["censored"] == "1" for row in rows]),
    )


def empty_fleet(nodes: int, node: tuple[int, ...]) -> FleetIndex:
    scales = [Scale.of(amount) for amount in node]
    index = FleetIndex([scale.multiplier for scale in scales], [scale.shift for scale in scales])
    ranks = np.random.default_rng(1).permutation(nodes).astype(np.uint64) << np.uint64(32)
    index.set_nodes(np.tile(np.array(node, np.int64), (nodes, 1)), np.zeros(nodes, np.int32), ranks)
    index.set_eligible(0, 0, True)
    return index


def azure_fleet(trace: Trace, nodes: int) -> FleetIndex:
    """Eight resources, six of which follow vCPU or memory; shape i is flavor i."""
    index = empty_fleet(nodes, (*NODE, *(NODE[0] * factor for factor in DERIVED), NODE[1] // 2))
    for vcpu, memory_mib in trace.flavors:
        index.add_shape((vcpu, memory_mib, *(vcpu * factor for factor in DERIVED), memory_mib // 2))
    return index


def independent_fleet(nodes: int) -> FleetIndex:
    """Eight independent resources and SHAPES shapes."""
    node = (1_024, 3_145_728, 32_000, 1_600, 16_000, 160_000, 1_280, 640_000)
    index = empty_fleet(nodes, node)
    rng = np.random.default_rng(7)
    fewest, most = SHAPES_BY_NODE
    for parts in rng.uniform(fewest, most, (SHAPES, 8)):
        index.add_shape([max(1, int(amount)) for amount in np.array(node) / parts])
    return index


def replay(
    index: FleetIndex, events: Ints, shape_of: Ints, ns: npt.NDArray[np.float32] | None = None
) -> Replay:
    return measure.replay(index, events, shape_of, np.full(len(shape_of), -1, np.int32), ns=ns)


def by_scan(index: FleetIndex, events: Ints, shape_of: Ints) -> Replay:
    """Every node judged for every decision: the oracle."""
    return measure.replay(index, events, shape_of, np.full(len(shape_of), -1, np.int32), linear=True)


def decisions(index: FleetIndex, events: Ints, shape_of: Ints) -> tuple[Replay, dict[str, float]]:
    """A replay with the cost of every event; percentiles are of placements, their update included."""
    ns = np.empty(len(events), np.float32)
    result = replay(index, events, shape_of, ns)
    place, release = ns[events >= 0], ns[events < 0]
    return result, {
        "p50": float(np.percentile(place, 50)),
        "p99": float(np.percentile(place, 99)),
        "p999": float(np.percentile(place, 99.9)),
        "release_p50": float(np.percentile(release, 50)),
        "release_p99": float(np.percentile(release, 99)),
    }


def scan_speed() -> tuple[float, float]:
    """(ns a node of a scan, ns a node of a read of the same bytes) with all nodes distinct."""
    index = empty_fleet(SCAN_NODES, (4_000,) * 8)
    rng = np.random.default_rng(2)
    free = np.unique(rng.integers(0, 4_000, (SCAN_NODES, 8)), axis=0)
    rng.shuffle(free)
    index.set_nodes(free, np.zeros(len(free), np.int32), np.arange(len(free), dtype=np.uint64))
    for demand in rng.integers(0, 1_200, (64, 8)).tolist():
        index.add_shape(demand)
    scan_ns, read_ns = measure.time_scans(index, 2_000)
    return scan_ns / SCAN_NODES, read_ns / SCAN_NODES


def median(values: list[float]) -> float:
    return statistics.median(values)


def report_scan(suite: Suite) -> None:
    runs = [scan_speed() for _ in range(RUNS)]
    suite.figure("scan_ns_per_node", median([scan for scan, _ in runs]), "ns", nodes=SCAN_NODES, resources=8)
    suite.figure("scan_limit_ns_per_node", median([read for _, read in runs]), "ns", nodes=SCAN_NODES)


def report_decisions(
    suite: Suite, runs: list[tuple[Replay, dict[str, float]]], linear: Replay, **context: object
) -> None:
    result = runs[0][0]
    if {run.decision_hash for run, _ in runs} != {linear.decision_hash}:
        raise AssertionError(f"the index decides otherwise than a linear scan: {result} {linear}")
    calibration = linear.elapsed_ns / (linear.placed + linear.failed + linear.released)
    costs = {name: median([cost[name] for _, cost in runs]) for name in runs[0][1]}
    context |= {
        "resources": 8,
        "placed": result.placed,
        "failed": result.failed,
        "linear_ns_per_event": round(calibration, 1),
        "decision_hash": f"{result.decision_hash:016x}",
    }
    suite.figure("decision_p50_ns", costs.pop("p50"), "ns", **context)
    suite.figure(
        "decision_p99_ns", costs.pop("p99"), "ns", **context, **{k: round(v) for k, v in costs.items()}
    )


def report_azure(suite: Suite, trace: Trace, copies: int = 10) -> None:
    events, shape_of = trace.copies(copies)
    nodes = NODES_BY_COPY * copies
    linear = by_scan(azure_fleet(trace, nodes), events, shape_of)
    runs = [decisions(azure_fleet(trace, nodes), events, shape_of) for _ in range(RUNS)]
    report_decisions(suite, runs, linear, nodes=nodes, shapes=len(trace.flavors))


def independent_events(trace: Trace, copies: int = 10) -> tuple[Ints, Ints]:
    """The trace's order for an even part of its instances, with a shape drawn for each."""
    events, flavor_of = trace.copies(copies)
    rng = np.random.default_rng(11)
    kept = rng.random(len(flavor_of)) < INDEPENDENT_SHARE
    instance_of = np.where(events >= 0, events, -1 - events)
    return events[kept[instance_of]], rng.integers(0, SHAPES, len(flavor_of)).astype(np.int32)


def report_independent(suite: Suite, trace: Trace, copies: int = 10) -> None:
    events, shape_of = independent_events(trace, copies)
    nodes = NODES_BY_COPY * copies
    linear = by_scan(independent_fleet(nodes), events, shape_of)
    runs = [decisions(independent_fleet(nodes), events, shape_of) for _ in range(RUNS)]
    report_decisions(suite, runs, linear, nodes=nodes, shapes=SHAPES)


def report_growth(suite: Suite, trace: Trace) -> None:
    """Cost of an event of the whole replay, placements and releases alike."""
    cost: list[float] = []
    for copies, runs in zip(GROWTH_COPIES, (RUNS, 2), strict=True):
        events, shape_of = trace.copies(copies)
        nodes = NODES_BY_COPY * copies
        elapsed = [replay(azure_fleet(trace, nodes), events, shape_of).elapsed_ns for _ in range(runs)]
        cost.append(min(elapsed) / len(events))
    suite.figure(
        "decision_growth",
        cost[1] / cost[0],
        "ratio",
        nodes=[NODES_BY_COPY * copies for copies in GROWTH_COPIES],
        event_ns=[round(each, 1) for each in cost],
    )


def calls_per_s(trace: Trace) -> float:
    """Single placements from Python, each with its result."""
    shapes = trace.copies(10)[1][:CALLS].tolist()
    index = azure_fleet(trace, NODES_BY_COPY * 10)
    place = index.place
    start = time.perf_counter()
    for shape in shapes:
        place(shape)
    return len(shapes) / (time.perf_counter() - start)


def batch_per_s(trace: Trace) -> float:
    """Placements in batches of 1,000."""
    shapes = trace.copies(10)[1][:CALLS]
    index = azure_fleet(trace, NODES_BY_COPY * 10)
    start = time.perf_counter()
    for batch in _batches(shapes):
        index.place_batch(batch)
    return len(shapes) / (time.perf_counter() - start)


def _batches(shapes: Ints) -> Iterator[Ints]:
    for first in range(0, len(shapes), 1_000):
        yield shapes[first : first + 1_000]


def report_calls(suite: Suite, trace: Trace) -> None:
    nodes = NODES_BY_COPY * 10
    suite.figure("call_per_s", median([calls_per_s(trace) for _ in range(RUNS)]), "1/s", nodes=nodes)
    suite.figure("batch_per_s", median([batch_per_s(trace) for _ in range(RUNS)]), "1/s", nodes=nodes)


def report(suite: Suite) -> None:
    """All figures of the core into a suite; pins this process to one core meanwhile."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        trace = read_trace()
        report_scan(suite)
        report_azure(suite, trace)
        report_independent(suite, trace)
        report_growth(suite, trace)
        report_calls(suite, trace)
    finally:
        os.sched_setaffinity(0, cores)


def main() -> None:
    report(Suite("scheduler-core"))


if __name__ == "__main__":
    main()
