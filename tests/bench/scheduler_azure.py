"""How well a placement rule packs a trace of arrivals and departures, beside best fit.

**Edge**: reads the trace, prints figures. A trace is CSV (also .gz) with the columns arrival_s, duration_s,
censored (1 = stays to the end), vcpu, mem_gb; times in s. Departures come before arrivals at equal times.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cext.replay import Replay
from scheduler.packing import EMPTY_LAST, IDLE, LEAN, LEAN_IDLE, POTENTIAL, build_table, is_refresh
from tests.bench.report import Suite

DATA = Path(os.environ.get("CUMULET_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
TRACE = DATA / "azure-v1" / "azure_v1_dev_decoded.csv.gz"
MIB_PER_GB = 1024
HOUR_S = 3600
STAYS_S = 30 * 86_400  # what a hint says of an instance that outlives the trace
EXTENSION = POTENTIAL // 64  # cost of each hour by which an instance would outlive its node
EXTENSION_OFF = 0.93  # of the fleet's vcpu: above it only packing counts
BASELINE = "best_fit_linf"
RULES = {BASELINE: "linf", "best_fit_l2": "l2", "first_fit": "first", "slots": "slots"}

Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Trace:
    """events: i >= 0 arrives, ~i leaves, in order; at_s per event; demands [n_shape, 2] in vcpu and MiB."""

    events: Indices
    at_s: Ints
    shape_of: Indices
    demands: Ints
    start_hour: Ints
    end_hour: Ints
    last_arrival_s: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay showed: ratios to the bound, percent of the first resource at the first failure."""

    peak: float
    average: float
    average_last: float
    rejected: int
    seconds: float


def read_trace(path: Path) -> Trace:
    """Raises SystemExit with what to do when the file is absent."""
    if not path.exists():
        sys.exit(f"{path} is absent: set CUMULET_DATA to the folder of the traces, or give --trace FILE")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        rows = list(csv.DictReader(file))
    arrival = np.array([int(row["arrival_s"]) for row in rows], dtype=np.int64)
    duration = np.array([int(float(row["duration_s"])) for row in rows], dtype=np.int64)
    stays = np.array([row["censored"] == "1" for row in rows])
    wanted = [(int(row["vcpu"]), int(float(row["mem_gb"]) * MIB_PER_GB)) for row in rows]
    demands, shape_of = np.unique(np.array(wanted, dtype=np.int64), axis=0, return_inverse=True)
    events, at_s = _in_order(arrival, duration, stays)
    end = arrival + np.where(stays, STAYS_S, duration)
    return Trace(
        events,
        at_s,
        shape_of.astype(np.int32).ravel(),
        np.ascontiguousarray(demands),
        arrival // HOUR_S,
        -(-end // HOUR_S),
        int(arrival.max()),
    )


def _in_order(arrival: Ints, duration: Ints, stays: npt.NDArray[np.bool_]) -> tuple[Indices, Ints]:
    index = np.arange(len(arrival))
    leaving = index[~stays]
    # What lasts no time leaves right after it arrived.
    phase = np.concatenate([np.ones(len(index), np.int64), np.where(duration[leaving] > 0, 0, 1)])
    at_s = np.concatenate([arrival, (arrival + duration)[leaving]])
    which = np.concatenate([index, leaving])
    leaves = np.concatenate([np.zeros(len(index), np.int64), np.ones(len(leaving), np.int64)])
    order = np.lexsort((leaves, which, phase, at_s))
    return np.where(leaves == 1, ~which, which)[order].astype(np.int32), at_s[order]


def lower_bound(trace: Trace, capacity: Ints, copies: int) -> Ints:
    """Nodes that any placement needs after each event."""
    sign = np.where(trace.events >= 0, 1, -1)
    which = np.where(trace.events >= 0, trace.events, ~trace.events)
    demand = np.cumsum(trace.demands[trace.shape_of[which]] * (sign * copies)[:, None], axis=0)
    bound: Ints = (-(-demand // capacity)).max(axis=1)
    return bound


class Run:
    """One replay; the mix of shapes is learned from what has arrived. Changed in place by `advance`."""

    def __init__(self, trace: Trace, capacity: Ints, nodes: int, copies: int, rule: str, hint: bool) -> None:
        self.trace, self.capacity, self.rule = trace, capacity, rule
        self.fleet = Replay(capacity, trace.demands, nodes, rule, rule == "linf")
        self.node_of = np.full((len(trace.shape_of), copies), -1, dtype=np.int32)
        # Without the hint the replay is not given the ends at all.
        self.ends = (trace.start_hour, trace.end_hour) if hint else (None, None)
        self.in_use = np.zeros(len(trace.events), dtype=np.int32)
        if hint:
            self.fleet.set_extension(EXTENSION, int(EXTENSION_OFF * nodes * int(capacity[0])))

    def advance(self, stop_at_failure: bool) -> int:
        """All events, or until the first failure. Returns how many were applied."""
        arrivals = np.flatnonzero(self.trace.events >= 0)
        stops = [int(arrivals[n - 1]) + 1 for n in range(1, len(arrivals) + 1) if is_refresh(n)]
        if self.rule != "slots":
            stops = []
        done = 0
        for stop in [*stops, len(self.trace.events)]:
            part = slice(done, stop)
            done += self.fleet.run(
                self.trace.events[part],
                self.trace.shape_of,
                self.node_of,
                self.in_use[part],
                stop_at_failure,
                *self.ends,
            )
            if done < stop:
                break
            if stops:
                self._learn(stop)
        return done

    def _learn(self, stop: int) -> None:
        seen = self.trace.events[:stop]
        counts = np.bincount(self.trace.shape_of[seen[seen >= 0]], minlength=len(self.trace.demands))
        mix = Counter(dict(zip(map(tuple, self.trace.demands.tolist()), counts.tolist(), strict=True)))
        table = build_table(self.capacity.tolist(), mix)
        self.fleet.set_slots(
            np.array([shape.demand for shape in table.typical], dtype=np.int64).reshape(-1, 2),
            np.array([shape.weight for shape in table.typical], dtype=np.int64),
            LEAN,
            EMPTY_LAST,
            LEAN_IDLE,
            IDLE,
        )


def replay(trace: Trace, capacity: Ints, nodes: int, copies: int, rule: str, hint: bool = False) -> Outcome:
    """The whole trace; a request that fits nowhere is dropped and counted."""
    began = time.perf_counter()
    run = Run(trace, capacity, nodes, copies, rule, hint)
    run.advance(stop_at_failure=False)
    seconds = time.perf_counter() - began
    bound = lower_bound(trace, capacity, copies)
    lasts_s = np.maximum(np.minimum(np.append(trace.at_s[1:], 0), trace.last_arrival_s) - trace.at_s, 0)
    last = trace.at_s >= trace.at_s[0] + (trace.last_arrival_s - trace.at_s[0]) // 4
    never_left = np.zeros(len(trace.shape_of), dtype=bool)
    never_left[trace.events[trace.events >= 0]] = True
    never_left[~trace.events[trace.events < 0]] = False
    return Outcome(
        float(run.in_use.max() / bound.max()),
        float((run.in_use * lasts_s).sum() / (bound * lasts_s).sum()),
        float((run.in_use * lasts_s)[last].sum() / (bound * lasts_s)[last].sum()),
        int((run.node_of[never_left] < 0).sum()),  # of those that stay to the end
        seconds,
    )


def first_failure(trace: Trace, capacity: Ints, nodes: int, copies: int, rule: str, hint: bool) -> float:
    """Percent of the fleet's vcpu that is allocated when a request first fits nowhere; 100 if none does."""
    run = Run(trace, capacity, nodes, copies, rule, hint)
    if run.advance(stop_at_failure=True) == len(trace.events):
        return 100.0
    return 100.0 * int(run.fleet.allocated_amounts()[0]) / (nodes * int(capacity[0]))


def measure(suite: Suite, trace: Trace, capacity: Ints, count: int, failing: int, copies: int) -> None:
    bound = int(lower_bound(trace, capacity, copies).max())
    for name, rule, hint in [*((n, r, False) for n, r in RULES.items()), ("slots", "slots", True)]:
        if hint and copies > 1:
            continue  # with ends nearly every node is a class of its own: too slow for large fleets
        suffix = f"_{name}" if name != "slots" else ""
        context: dict[str, object] = {"policy": name, "copies": copies, "bound": bound}
        if hint:
            context["hint"] = "perfect"
        seen = replay(trace, capacity, count * copies, copies, rule, hint)
        context |= {"replay_s": round(seen.seconds, 2), "rejected_of_staying": seen.rejected}
        suite.figure(f"azure_peak_over_bound{suffix}", seen.peak, "ratio", nodes=count * copies, **context)
        suite.figure(
            f"azure_average_over_bound{suffix}",
            seen.average,
            "ratio",
            last_three_quarters=round(seen.average_last, 4),
            **context,
        )
        failure = first_failure(trace, capacity, failing * copies, copies, rule, hint)
        suite.figure(f"azure_first_failure{suffix}", failure, "percent", nodes=failing * copies, **context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trace", type=Path, default=TRACE, help="CSV or CSV.gz")
    parser.add_argument("--nodes", default="64:192", help="shape of a node, vcpu:GB")
    parser.add_argument("--count", type=int, default=720, help="nodes of the fleet, per copy")
    parser.add_argument("--failing", type=int, default=686, help="nodes for the first failure, per copy")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 10, 100], help="of every instance")
    arguments = parser.parse_args()
    vcpu, memory_gb = map(int, arguments.nodes.split(":"))
    capacity = np.array([vcpu, memory_gb * MIB_PER_GB], dtype=np.int64)
    trace = read_trace(arguments.trace)
    suite = Suite("scheduler-azure")
    for copies in arguments.copies:
        measure(suite, trace, capacity, arguments.count, arguments.failing, copies)


if __name__ == "__main__":
    main()
