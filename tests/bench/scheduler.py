"""The suite `scheduler`: decisions in core and planner, explanations, quality on traces, offline packing.

**Edge**: reads traces from CUMULET_DATA (default ../shared/data), prints, writes build/bench/scheduler.jsonl.

    python -m tests.bench.scheduler [--quick]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from tests.bench import (
    durable,
    scheduler_azure,
    scheduler_core,
    scheduler_explain,
    scheduler_openb,
    scheduler_planner,
    scheduler_vbp,
)
from tests.bench.report import Suite

CAPACITY = np.array([64, 192 * scheduler_azure.MIB_PER_GB], dtype=np.int64)  # the protocol's node
NODES, FAILING = 720, 686
# 20,000 pending instances on 500 nodes, then each rate for 5 s; etcd on the disk of the temporary directory.
DURABLE = durable.Sizes(500, 20_000, durable.RATES_PER_S, 5.0, False, Path(gettempdir()), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="traces once, one in 20 packing instances")
    quick = parser.parse_args().quick
    suite = Suite("scheduler")
    scheduler_core.report(suite)
    scheduler_planner.measure(suite)
    scheduler_explain.measure(suite)
    durable.measure(suite, DURABLE)
    trace = scheduler_azure.read_trace(scheduler_azure.TRACE)
    for copies in (1,) if quick else (1, 10, 100):
        scheduler_azure.measure_policies(suite, trace, CAPACITY, NODES, FAILING, copies)
    scheduler_openb.measure(suite, scheduler_openb.SEEDS[: 1 if quick else None])
    scheduler_vbp.measure(suite, every=20 if quick else 1)


if __name__ == "__main__":
    main()
