"""GPU allocation on openb's workloads, beside FGD and best fit on the same seeds: `openb_default` and others.

**Edge**: reads the node list and pod lists from CUMULET_DATA, places, prints.

Per seed, pods drawn with replacement are appended until 130 % of the GPUs are requested, all are shuffled and
placed in that order, without departures, by the planner (`scheduler.seats`). What is allocated is read when
the arrived requests reach 100 % of the GPUs. No policy is told the workload: what is typical is read off what
runs. The policy's three weights were tuned on seeds 0 to 9; 42 to 51 are reported. Source of the protocol:
Weng et al., ATC 2023.

    python -m tests.bench.scheduler_openb [--seeds 42 43 ...] [--nodes CSV] [--pods CSV ...]
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from scheduler.files import FileError, read_nodes, read_trace
from scheduler.gpu_reference import Weights
from scheduler.model import Request, View
from scheduler.policy import Policy, policy_named
from scheduler.seats import open_seats
from scheduler.topology import SHARE_WHOLE
from scheduler.trace import Trace
from tests.bench.report import Suite
from tests.bench.scheduler_vbp import DATA

WORKLOADS: Final = ("default", "gpushare40", "multigpu20")
SEEDS: Final = range(42, 52)
INFLATED: Final = 1.3  # of the GPUs are requested in all
NODES: Final = DATA / "openb" / "openb_node_list_all_node.csv"
OURS: Final = policy_named("gpu")
FGD: Final = policy_named("fgd")
# No loss counts, so only how much is free does: the sum of its shares, the GPUs' included.
BEST_FIT: Final = replace(FGD, name="best-fit", devices=Weights())


@dataclass(frozen=True, slots=True)
class Run:
    """One seed: percent of the GPUs allocated, CPU seconds of the placements."""

    percent: float
    cpu_s: float
    decisions: int


def pods_of(workload: str) -> Path:
    """The pod list of a workload of openb."""
    return DATA / "openb" / f"openb_pod_list_{workload}.csv"


def asked_milli(request: Request) -> int:
    """Thousandths of GPUs."""
    return sum(want.count * want.share_milli for want in request.devices)


def draw(trace: Trace, total_milli: int, seed: int) -> list[int]:
    """The shapes in the order of arrival."""
    rng = random.Random(seed)
    pods: list[int] = trace.shape.tolist()
    asks = [asked_milli(shape) for shape in trace.shapes]
    drawn = list(pods)
    asked = sum(asks[shape] for shape in drawn)
    while asked < INFLATED * total_milli:
        drawn.append(rng.choice(pods))
        asked += asks[drawn[-1]]
    rng.shuffle(drawn)
    return drawn


def run(view: View, trace: Trace, policy: Policy, seed: int) -> Run:
    """Place until as much is asked for as there is."""
    total_milli = SHARE_WHOLE * sum(len(node.devices) for node in view.nodes)
    order = draw(trace, total_milli, seed)
    rng = random.Random(seed)
    arrived = allocated = decisions = 0
    started_s = time.process_time()
    seats = open_seats(view, policy, trace.shapes)
    for number, shape in enumerate(order):
        request = replace(trace.shapes[shape], uid=f"p{number}")
        placed = seats.place((request,), rng)[0]
        decisions += 1
        arrived += asked_milli(request)
        allocated += asked_milli(request) if placed is not None else 0
        if arrived >= total_milli:
            break
    return Run(100 * allocated / total_milli, time.process_time() - started_s, decisions)


def measure(
    suite: Suite, seeds: Sequence[int] = SEEDS, nodes: Path = NODES, pods: Sequence[Path] | None = None
) -> None:
    """A figure for each workload and policy: the mean over the seeds."""
    view = read_nodes(str(nodes))
    for path in pods or tuple(map(pods_of, WORKLOADS)):
        trace = read_trace(path)
        name = "openb_" + path.stem.removeprefix("openb_pod_list_")
        for policy, suffix in ((OURS, ""), (FGD, "_fgd"), (BEST_FIT, "_best_fit")):
            runs = [run(view, trace, policy, seed) for seed in seeds]
            suite.figure(
                name + suffix,
                sum(one.percent for one in runs) / len(runs),
                "percent",
                policy=policy.name,
                seeds=[round(one.percent, 2) for one in runs],
                nodes=len(view.nodes),
                cpu_s=round(sum(one.cpu_s for one in runs) / len(runs), 2),
                decision_us=round(
                    1e6 * sum(one.cpu_s for one in runs) / sum(one.decisions for one in runs), 1
                ),
            )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="GPU allocation when as much is asked for as there is.")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--nodes", type=Path, default=NODES, help="a node list in openb's format")
    parser.add_argument("--pods", type=Path, nargs="+", help="pod lists in openb's format")
    options = parser.parse_args(arguments)
    try:
        measure(Suite("scheduler-openb"), options.seeds, options.nodes, options.pods)
    except FileError as error:
        print(f"scheduler_openb: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
