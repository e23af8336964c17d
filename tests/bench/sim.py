"""Figures of the simulation: seeds, virtual hours, operations, faults, planted bugs caught.

**Edge**: starts processes, prints, appends to build/bench/first-vm.jsonl.
Run it with `python -m tests.bench.sim --seeds 5000`.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from typing import Final

from tests.bench.report import OUTPUT
from tests.sim.bugs import BUGS
from tests.sim.runs import hunt_all, run_seeds, workers

SEEDS: Final = 5_000
SHOWN: Final = 5  # violations described in full


def figure(name: str, value: float, unit: str, **context: object) -> None:
    """One line, printed and kept behind those of the suite's other parts."""
    line = json.dumps({"name": name, "value": round(value, 4), "unit": unit, **context})
    print(line, flush=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with (OUTPUT / "first-vm.jsonl").open("a") as file:
        file.write(line + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--base", type=int, default=None, help="first seed (default: random)")
    options = parser.parse_args()
    base = options.base if options.base is not None else random.SystemRandom().randrange(10**9)
    ops: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    violations = 0
    virtual_s = 0.0
    with workers() as pool:
        started = time.perf_counter()
        for result in run_seeds(pool, range(base, base + options.seeds)):
            ops.update(result.ops)
            faults.update(result.faults)
            virtual_s += result.virtual_s
            if result.violations:
                violations += 1
                if violations <= SHOWN:
                    print(result.describe(), file=sys.stderr, flush=True)
        took_s = time.perf_counter() - started
        caught = hunt_all(pool)
    _report(base, options.seeds, violations, virtual_s, took_s, ops, faults)
    found = {hunt.bug: hunt.seeds for hunt in caught if hunt.seed is not None}
    figure("sim_planted_bugs_caught", len(found), "bugs", of=len(BUGS), seeds_needed=found)
    return 1 if violations or len(found) < len(BUGS) else 0


def _report(
    base: int,
    seeds: int,
    violations: int,
    virtual_s: float,
    took_s: float,
    ops: Counter[str],
    faults: Counter[str],
) -> None:
    figure("sim_virtual_hours_per_s", virtual_s / 3600 / took_s, "h/s", wall_s=round(took_s, 1))
    figure("sim_seeds", seeds, "seeds", base=base, per_s=round(seeds / took_s, 2))
    figure("sim_violations", violations, "seeds", of=seeds)
    figure("sim_ops", ops.total(), "operations", **dict(sorted(ops.items())))
    figure("sim_faults", faults.total(), "faults", **dict(sorted(faults.items())))


if __name__ == "__main__":
    sys.exit(main())
