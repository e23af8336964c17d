"""Offline packing against known optima: `vbp_bins_over_optimum` of the suite `scheduler`.

**Edge**: reads instances (.vbp files in a folder or a tar archive) and their optima (a tab-separated table
with the columns instance_name and OPT, -1 = unknown), packs, prints. A .vbp file: the number of resources;
the capacities; the number of lines that follow; each an item's amounts and how many there are of it.

    python -m tests.bench.scheduler_vbp [--every 10] [--instances DIR|TAR --optima CSV]
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from scheduler.binpack import pack
from scheduler.binpack_problem import Bins, Ints
from tests.bench.report import Suite

STEPS: Final = 30_000_000  # about half a second on one busy core; the protocol allows a second
SEED: Final = 1
DATA: Final = Path(os.environ.get("CUMULET_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
INSTANCES: Final = DATA / "vbp" / "Panigrahy_instances.tar.gz"
OPTIMA: Final = DATA / "vbp" / "Panigrahy_summary_known.csv"


class InstanceError(Exception):
    """Data that are absent or not of the format. The message names the file."""


@dataclass(frozen=True, slots=True)
class Instance:
    name: str
    items: Ints  # int64[n, d]
    capacity: Ints  # int64[d]
    optimum: int


@dataclass(frozen=True, slots=True)
class Outcome:
    instance: Instance
    bins: int
    bins_first_fit: int
    cpu_s: float


def measure(
    suite: Suite,
    instances: Path = INSTANCES,
    optima: Path = OPTIMA,
    *,
    every: int = 1,
    steps: int = STEPS,
) -> None:
    """`vbp_bins_over_optimum`, and by class in its context; one in `every` instances."""
    outcomes = [measure_instance(instance, steps) for instance in read_instances(instances, optima, every)]
    if not outcomes:
        raise InstanceError(f"{instances} has no instance whose optimum {optima} knows")
    times = [outcome.cpu_s for outcome in outcomes]
    suite.figure(
        "vbp_bins_over_optimum",
        over_optimum(outcomes),
        "ratio",
        ffd=round(over_optimum(outcomes, first_fit=True), 4),
        bins=sum(outcome.bins for outcome in outcomes),
        optimum=sum(outcome.instance.optimum for outcome in outcomes),
        instances=len(outcomes),
        optimal=sum(outcome.bins == outcome.instance.optimum for outcome in outcomes),
        steps=steps,
        seed=SEED,
        mean_s=round(sum(times) / len(times), 4),
        max_s=round(max(times), 4),
        classes={name: round(over_optimum(part), 4) for name, part in _classes(outcomes).items()},
    )


def measure_instance(instance: Instance, steps: int) -> Outcome:
    """Our packing, checked, and first fit decreasing (what no steps give) beside it. CPU seconds."""
    first_fit = pack(instance.items, instance.capacity, steps=0)
    started = time.process_time()
    chosen = pack(instance.items, instance.capacity, steps=steps, seed=SEED)
    cpu_s = time.process_time() - started
    _check(instance, chosen)
    return Outcome(instance, int(chosen.max()) + 1, int(first_fit.max()) + 1, cpu_s)


def over_optimum(outcomes: Sequence[Outcome], *, first_fit: bool = False) -> float:
    bins = sum(outcome.bins_first_fit if first_fit else outcome.bins for outcome in outcomes)
    return bins / sum(outcome.instance.optimum for outcome in outcomes)


def _classes(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """By what stands before the first underscore of the name."""
    classes: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        classes.setdefault(outcome.instance.name.partition("_")[0], []).append(outcome)
    return classes


def _check(instance: Instance, chosen: Bins) -> None:
    used = np.zeros((int(chosen.max()) + 1, len(instance.capacity)), dtype=np.int64)
    np.add.at(used, chosen, instance.items)
    if chosen.min() < 0 or (used > instance.capacity).any():
        raise AssertionError(f"{instance.name}: the packing is not valid")


def read_instances(instances: Path, optima: Path, every: int = 1) -> Iterator[Instance]:
    """In the table's order, those with a known optimum. Raises InstanceError."""
    for path in (instances, optima):
        if not path.exists():
            raise InstanceError(f"{path} is absent: set CUMULET_DATA or give --instances and --optima")
    texts = dict(_texts(instances))
    known = [(name, optimum) for name, optimum in _read_optima(optima) if name in texts and optimum > 0]
    for name, optimum in known[::every]:
        yield parse_instance(name, texts[name], optimum)


def _read_optima(path: Path) -> Iterator[tuple[str, int]]:
    with path.open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            try:
                yield row["instance_name"], int(row["OPT"])
            except (KeyError, TypeError, ValueError) as err:
                raise InstanceError(
                    f"{path}: needs columns instance_name and OPT (a number), tab-separated"
                ) from err


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Name and content of each .vbp file below the folder or in the archive."""
    if path.is_dir():
        for file in sorted(path.rglob("*.vbp")):
            yield file.stem, file.read_text()
        return
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.name.endswith(".vbp") else None
            if content:
                yield Path(member.name).stem, content.read().decode()


def parse_instance(name: str, text: str, optimum: int) -> Instance:
    """Raises InstanceError where the text is not a .vbp file."""
    try:
        lines = [[int(field) for field in line.split()] for line in text.splitlines() if line.strip()]
        (width,), capacity, (count,), *rows = lines
        table = np.array(rows, dtype=np.int64).reshape(count, width + 1)
        return Instance(
            name,
            items=np.repeat(table[:, :-1], table[:, -1], axis=0),
            capacity=np.array(capacity, dtype=np.int64).reshape(width),
            optimum=optimum,
        )
    except ValueError as err:
        raise InstanceError(f"{name}.vbp: not of the format: {err}") from err


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Pack instances and compare with their known optima.")
    parser.add_argument(
        "--instances", type=Path, default=INSTANCES, help="folder or tar archive of .vbp files"
    )
    parser.add_argument("--optima", type=Path, default=OPTIMA, help="tab-separated: instance_name, OPT")
    parser.add_argument("--every", type=int, default=1, help="a sample: one in so many instances")
    parser.add_argument("--steps", type=int, default=STEPS, help="budget of each instance")
    options = parser.parse_args(arguments)
    try:
        measure(
            Suite("scheduler-vbp"),
            options.instances,
            options.optima,
            every=max(options.every, 1),
            steps=options.steps,
        )
    except InstanceError as err:
        print(f"scheduler_vbp: {err}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
