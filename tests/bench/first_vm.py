"""The suite `first-vm`: `make bench`.

**Edge**: runs what the other modules here measure. A part that fails is named, and the suite fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.bench import fleet, vm
from tests.bench.report import Suite, percentile

RUNS = 15
SIM_SEEDS = 5_000  # half an hour on two cores


def measure_cli(suite: Suite) -> None:
    """Whole processes, the median, each round beside a bare interpreter. `ls` asks a real controller."""
    cumulet = str(Path(sys.executable).parent / "cumulet")
    with fleet.running_cloud(1) as cloud:
        commands = {
            "python_start_ms": [sys.executable, "-c", "pass"],
            "cli_help_ms": [cumulet, "--help"],
            "cli_ls_ms": [cumulet, "--endpoint", cloud.address, "ls"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(RUNS):
            for name, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                times[name].append(1000 * (time.perf_counter() - started))
    for name, found in times.items():
        suite.figure(name, percentile(found, 0.5), "ms", runs=RUNS, minimum=round(min(found), 1))


def measure_simulation(suite: Suite) -> None:
    """A process of its own, which appends to the suite's file."""
    subprocess.run([sys.executable, "-m", "tests.bench.sim", "--seeds", str(SIM_SEEDS)], check=True)


PARTS: dict[str, Callable[[Suite], None]] = {
    "cli": measure_cli,
    "fleet-100": lambda suite: fleet.measure(suite, 100, 1_000, idle=False),
    "fleet-1000": lambda suite: fleet.measure(suite, 1_000, 1_000, idle=True),
    "vm": vm.measure,
    "sim": measure_simulation,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The suite first-vm")
    parser.add_argument("--only", action="append", choices=sorted(PARTS), help="repeatable; default: all")
    chosen = parser.parse_args().only or list(PARTS)
    suite = Suite("first-vm")
    failed = []
    for name in chosen:
        try:
            PARTS[name](suite)
        except Exception:  # the other figures are still wanted
            traceback.print_exc()
            failed.append(name)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
