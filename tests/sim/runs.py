"""Many seeds on two processes, and the search for planted bugs.

**Edge**: starts processes, afresh (spawn), since a fork would take gRPC's threads along.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from tests.sim.bugs import BUGS, SEEDS_MAX
from tests.sim.world import Result, run_seed

PROCESSES: Final = 2  # of the machines that test us
CHUNK: Final = 4


@dataclass(frozen=True, slots=True)
class Caught:
    """How the search for a planted bug ended; `seed` None: not found."""

    bug: str
    seeds: int
    invariant: str
    seed: int | None


@contextmanager
def workers() -> Iterator[ProcessPoolExecutor]:
    """The processes; each collects garbage between runs only."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=_prepare) as pool:
        yield pool


def run_seeds(pool: ProcessPoolExecutor, seeds: Iterable[int]) -> Iterator[Result]:
    return pool.map(_run_one, seeds, chunksize=CHUNK)


def hunt_all(pool: ProcessPoolExecutor) -> list[Caught]:
    """Every planted bug, each from seed 0 on until it is found."""
    return list(pool.map(hunt, BUGS))


def hunt(name: str) -> Caught:
    """Run seeds with a planted bug until one of its invariants tells."""
    for seed in range(SEEDS_MAX):
        result = run_seed(seed, name)
        gc.collect()
        for violation in result.violations:
            if violation.invariant in BUGS[name].told_by:
                return Caught(name, seed + 1, violation.invariant, seed)
    return Caught(name, SEEDS_MAX, "", None)


def _prepare() -> None:
    gc.freeze()
    gc.disable()


def _run_one(seed: int) -> Result:
    result = run_seed(seed)
    gc.collect()
    return result
