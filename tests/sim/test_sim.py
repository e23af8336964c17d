"""Seeded simulation of the whole cloud: many seeds, every planted bug, and the same run twice.

**Edge**: processes of their own. `CUMULET_SIM_SEED=N pytest tests/sim` replays one seed with its trace;
`CUMULET_SIM_SEEDS` sets how many are run.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.sim.bugs import BUGS, SEEDS_MAX
from tests.sim.runs import Caught, hunt_all, run_seeds, workers
from tests.sim.world import run_seed

SEEDS: Final = int(os.environ.get("CUMULET_SIM_SEEDS", "200"))
ROOT: Final = Path(__file__).resolve().parents[2]

# Seeds that once found a bug of ours. Runs shift when the code changes, so each bug also has a test by name.
REGRESSIONS: Final = {
    0: "the placer spun on an instance that was being deleted while its node was declared off",
    15: "a lost watch event made a node promise more than it has",
    24: "a lost watch event left a placement behind",
    47: "a lost watch event made a node promise more than it has",
    87: "a judgement of silence overtook the agent's hello: the node stayed not ready",
}


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with workers() as made:
        yield made


@pytest.fixture(scope="module")
def caught(pool: ProcessPoolExecutor) -> dict[str, Caught]:
    return {found.bug: found for found in hunt_all(pool)}


def test_invariants_hold_in_every_seed(pool: ProcessPoolExecutor, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = os.environ.get("CUMULET_SIM_SEED")
    base = int(chosen) if chosen else random.SystemRandom().randrange(10**9)
    count = 1 if chosen else SEEDS
    with capsys.disabled():
        print(f"\nsimulation: {count} seeds from {base}", flush=True)
    for result in run_seeds(pool, range(base, base + count)):
        assert not result.violations, result.describe()
        assert result.ops, result.describe()


@pytest.mark.parametrize("seed", REGRESSIONS, ids=str)
def test_seeds_that_once_failed_hold(seed: int) -> None:
    result = run_seed(seed)
    assert not result.violations, f"{REGRESSIONS[seed]}\n{result.describe()}"


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str, caught: dict[str, Caught]) -> None:
    found = caught[name]
    assert found.seed is not None, f"{BUGS[name].text}: not found in {SEEDS_MAX} seeds"
    assert found.invariant in BUGS[name].told_by


def test_every_invariant_has_a_planted_bug() -> None:
    planted = frozenset().union(*(bug.told_by for bug in BUGS.values()))
    assert planted >= {"I1", "I6", "I7", "I8", "I9", "I10", "I11", "I12", "I13", "I14"}


@pytest.mark.parametrize("seed", [3, 8])
def test_a_seed_replays_exactly_here_and_in_another_process(seed: int) -> None:
    first, second = run_seed(seed), run_seed(seed)
    assert first == second
    hashes = [_hash_elsewhere(seed, hash_seed) for hash_seed in ("1", "2")]
    assert hashes == [first.trace_hash] * 2


def test_a_failure_replays_exactly_and_tells_how(caught: dict[str, Caught]) -> None:
    found = caught["epoch-memory"]
    assert found.seed is not None
    first, second = run_seed(found.seed, "epoch-memory"), run_seed(found.seed, "epoch-memory")
    assert first == second
    assert first.violations
    text = first.describe()
    assert f"CUMULET_SIM_SEED={found.seed}" in text
    assert f"VIOLATION {found.invariant}" in text


def _hash_elsewhere(seed: int, hash_seed: str) -> str:
    """The run's hash in a process whose sets and dictionaries of strings are ordered differently."""
    code = f"from tests.sim.world import run_seed; print(run_seed({seed}).trace_hash)"
    environment = {
        **os.environ,
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
