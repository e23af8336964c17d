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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cext import measure
from cumulet.resources import Resources
from scheduler.fleet import Fleet
from scheduler.model import NodeView, Request, View
from scheduler.packing import EDGES_S, LEVEL_LAST, TICK_S
from scheduler.policy import policy_named
from tests.bench.report import Suite

DATA = Path(os.environ.get("CUMULET_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
TRACE = DATA / "azure-v1" / "azure_v1_dev_decoded.csv.gz"
MIB_PER_GB = 1024
# (suffix of the figures, policy, whether instances tell how long they last)
POLICIES = (
    ("best_fit_linf", "pack", False),
    ("best_fit_l2", "pack-l2", False),
    ("", "slots", False),
    ("lifetime", "lifetime", True),
    ("lifetime_without_hints", "lifetime", False),
)

Ints = npt.NDArray[np.int64]
Indices = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Trace:
    """events: i >= 0 arrives, ~i leaves, in order; at_s per event; demands [n_shape, 2] in vcpu and MiB.

    `level` of the time that each instance lasts; those that stay to the end are of the last.
    """

    events: Indices
    at_s: Ints
    shape_of: Indices
    demands: Ints
    level: Indices
    last_arrival_s: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay showed: ratios to the bound, and its counts."""

    peak: float
    average: float
    average_last: float
    replay: measure.Replay


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
    edges_s = np.array([edge for edge in EDGES_S if edge])
    level = np.where(stays, LEVEL_LAST, 1 + np.searchsorted(edges_s, duration))
    return Trace(
        events,
        at_s,
        shape_of.astype(np.int32).ravel(),
        np.ascontiguousarray(demands),
        level.astype(np.int32),
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


def open_fleet(trace: Trace, capacity: Ints, nodes: int, policy: str, hints: bool) -> tuple[Fleet, Indices]:
    """An empty fleet under a policy, and the index's shape of each instance."""
    whole = Resources(int(capacity[0]), int(capacity[1]))
    view = View(1, tuple(NodeView(f"n{number}", whole) for number in range(nodes)))
    fleet = Fleet.of(view, policy_named(policy))
    hint_s = (*(edge for edge in EDGES_S if edge), None) if hints else (None,)
    shapes = np.zeros((len(trace.demands), LEVEL_LAST), dtype=np.int32)
    for row, (vcpu, memory_mib) in enumerate(trace.demands.tolist()):
        for column in range(LEVEL_LAST):
            lifetime_s = hint_s[min(column, len(hint_s) - 1)]
            request = Request("u", "default", "i", Resources(vcpu, memory_mib), lifetime_s=lifetime_s)
            fleet.prepare([request])
            shapes[row, column] = fleet.shape(request, fleet.levels(request)[0].constraint)
    return fleet, shapes[trace.shape_of, trace.level - 1]


def replay(
    trace: Trace, capacity: Ints, nodes: int, copies: int, policy: str, hints: bool
) -> tuple[measure.Replay, Indices]:
    """The whole trace, each instance `copies` times, and the nodes in use after each of the trace's events.

    What fits nowhere is dropped and counted.
    """
    fleet, shapes = open_fleet(trace, capacity, nodes, policy, hints)
    ahead = np.arange(copies, dtype=np.int32)
    which = np.where(trace.events >= 0, trace.events, ~trace.events)
    each = (which[:, None] * copies + ahead).astype(np.int32)
    events = np.where(trace.events[:, None] >= 0, each, ~each).ravel()
    shape_of = np.repeat(shapes, copies)
    used = np.empty(len(events), dtype=np.int32)
    time_s = np.repeat(trace.at_s // TICK_S * TICK_S, copies) if fleet.policy.lifetimes else None
    at = np.full(len(shape_of), -1, np.int32)
    seen = measure.replay(fleet.index, events, shape_of, at, used=used, time_s=time_s)
    return seen, used[copies - 1 :: copies]


def outcome(trace: Trace, capacity: Ints, nodes: int, copies: int, policy: str, hints: bool) -> Outcome:
    """Ratios over the time of the whole trace."""
    seen, in_use = replay(trace, capacity, nodes, copies, policy, hints)
    bound = lower_bound(trace, capacity, copies)
    lasts_s = np.maximum(np.minimum(np.append(trace.at_s[1:], 0), trace.last_arrival_s) - trace.at_s, 0)
    last = trace.at_s >= trace.at_s[0] + (trace.last_arrival_s - trace.at_s[0]) // 4
    return Outcome(
        float(in_use.max() / bound.max()),
        float((in_use * lasts_s).sum() / (bound * lasts_s).sum()),
        float((in_use * lasts_s)[last].sum() / (bound * lasts_s)[last].sum()),
        seen,
    )


def first_failure(trace: Trace, capacity: Ints, nodes: int, copies: int, policy: str, hints: bool) -> float:
    """Percent of the fleet's vcpu that is allocated when a request first fits nowhere; 100 if none does."""
    seen, _ = replay(trace, capacity, nodes, copies, policy, hints)
    if seen.first_failure < 0:
        return 100.0
    event, copy = divmod(seen.first_failure, copies)
    sign = np.where(trace.events >= 0, 1, -1)
    which = np.where(trace.events >= 0, trace.events, ~trace.events)
    vcpu = trace.demands[trace.shape_of[which], 0] * sign
    placed = int(vcpu[:event].sum()) * copies + int(vcpu[event]) * copy
    return 100.0 * placed / (nodes * int(capacity[0]))


def measure_policies(
    suite: Suite, trace: Trace, capacity: Ints, count: int, failing: int, copies: int
) -> None:
    bound = int(lower_bound(trace, capacity, copies).max())
    for name, policy, hints in POLICIES:
        suffix = f"_{name}" if name else ""
        seen = outcome(trace, capacity, count * copies, copies, policy, hints)
        context: dict[str, object] = {
            "policy": policy,
            "copies": copies,
            "bound": bound,
            "replay_s": round(seen.replay.elapsed_ns / 1e9, 2),
            "failed": seen.replay.failed,
            "decision_hash": f"{seen.replay.decision_hash:016x}",
        }
        suite.figure(f"azure_peak_over_bound{suffix}", seen.peak, "ratio", nodes=count * copies, **context)
        suite.figure(
            f"azure_average_over_bound{suffix}",
            seen.average,
            "ratio",
            last_three_quarters=round(seen.average_last, 4),
            **context,
        )
        failure = first_failure(trace, capacity, failing * copies, copies, policy, hints)
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
        measure_policies(suite, trace, capacity, arguments.count, arguments.failing, copies)


if __name__ == "__main__":
    main()
