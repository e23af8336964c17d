"""The Cython kernel equals the plain-Python specification and releases the GIL. **Pure** but for a thread."""

from __future__ import annotations

import copy
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cext import bestfit
from scheduler.kernel import best_fit_reference, place_batch_reference

INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Case:
    free: list[list[int]]
    demands: list[list[int]]
    eligible: list[list[int]]
    rows: list[int]
    scale: list[float]
    start: int


@st.composite
def cases(draw: st.DrawFn, largest: int = 6) -> Case:
    """Few distinct amounts make ties; negative free amounts are overcommitted nodes."""
    n_resource, n_node, n_request = draw(st.tuples(st.integers(1, 5), st.integers(1, 12), st.integers(1, 12)))
    lowest = -2 if largest < INT64_MAX else -INT64_MAX
    amounts, wants = st.integers(lowest, largest), st.integers(0, max(largest // 2, 1))

    def matrix(rows: int, columns: int, values: st.SearchStrategy[int]) -> list[list[int]]:
        row = st.lists(values, min_size=columns, max_size=columns)
        return draw(st.lists(row, min_size=rows, max_size=rows))

    eligible = matrix(2, n_node, st.sampled_from([0, 1, 1, 1]))
    weights = st.sampled_from([0.0, 1 / 3, 0.0625, 1.0, 1 / 7, 1e300])
    return Case(
        free=matrix(n_resource, n_node, amounts),
        demands=matrix(n_request, n_resource, wants),
        eligible=eligible,
        rows=draw(st.lists(st.integers(0, 1), min_size=n_request, max_size=n_request)),
        scale=draw(st.lists(weights, min_size=n_resource, max_size=n_resource)),
        start=draw(st.integers(0, n_node - 1)),
    )


def place_both(case: Case) -> tuple[list[int], list[list[int]], list[int], list[list[int]]]:
    """(chosen, free after) of the kernel, then of the reference."""
    free = np.array(case.free, dtype=np.int64)
    chosen = np.full(len(case.demands), -7, dtype=np.int64)
    bestfit.place_batch(
        free,
        np.array(case.demands, dtype=np.int64),
        np.array(case.eligible, dtype=np.uint8),
        np.array(case.rows, dtype=np.int64),
        np.array(case.scale),
        case.start,
        chosen,
    )
    expected_free = copy.deepcopy(case.free)
    expected = place_batch_reference(
        expected_free, case.demands, case.eligible, case.rows, case.scale, case.start
    )
    return chosen.tolist(), free.tolist(), expected, expected_free


@settings(max_examples=200, deadline=None)
@given(st.one_of(cases(), cases(), cases(largest=INT64_MAX)))
@example(Case([[3, 3, 3]], [[1], [1]], [[1, 1, 1]], [0, 0], [1.0], 1))  # a tie: from `start` on
@example(Case([[-1, 0], [5, 5]], [[0, 1]], [[1, 1]], [0], [1.0, 1.0], 0))  # overcommitted, not asked for
@example(Case([[2, 2]], [[0]], [[0, 1]], [0], [0.0], 0))  # nothing wanted, nothing weighed
@example(Case([[-INT64_MAX]], [[INT64_MAX]], [[1]], [0], [1.0], 0))  # the difference leaves 64 bits
def test_the_kernel_equals_the_reference(case: Case) -> None:
    chosen, free, expected, expected_free = place_both(case)
    assert chosen == expected
    assert free == expected_free


@settings(max_examples=100, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_they_stay_equal_over_arrivals_and_departures(case: Case, rng: object) -> None:
    free = np.array(case.free, dtype=np.int64)
    demands, eligible = np.array(case.demands, dtype=np.int64), np.array(case.eligible, dtype=np.uint8)
    expected_free = copy.deepcopy(case.free)
    running: list[tuple[int, int]] = []
    for turn in range(3 * len(case.demands)):
        if running and rng.random() < 0.4:  # type: ignore[attr-defined]
            which, node = running.pop(rng.randrange(len(running)))  # type: ignore[attr-defined]
            free[:, node] += demands[which]
            for amounts, want in zip(expected_free, case.demands[which], strict=True):
                amounts[node] += want
            continue
        which = turn % len(case.demands)
        node = bestfit.best_fit(
            free, demands[which], eligible[case.rows[which]], np.array(case.scale), case.start
        )
        assert node == best_fit_reference(
            expected_free, case.demands[which], case.eligible[case.rows[which]], case.scale, case.start
        )
        if node >= 0:
            running.append((which, node))
            free[:, node] -= demands[which]
            for amounts, want in zip(expected_free, case.demands[which], strict=True):
                amounts[node] -= want
    assert free.tolist() == expected_free


@pytest.mark.parametrize("n_node", [511, 512, 513, 1500])
@pytest.mark.parametrize("seed", range(3))
def test_fleets_larger_than_a_block(n_node: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = Case(
        free=rng.integers(-1, 9, (4, n_node)).tolist(),
        demands=rng.integers(0, 4, (12, 4)).tolist(),
        eligible=rng.integers(0, 2, (2, n_node)).tolist(),
        rows=rng.integers(0, 2, 12).tolist(),
        scale=[1 / 9, 1 / 3, 0.0, 1 / 16],
        start=int(rng.integers(n_node)),
    )
    chosen, free, expected, expected_free = place_both(case)
    assert chosen == expected
    assert free == expected_free
    assert max(chosen) >= 0


def arrays(**changes: object) -> dict[str, object]:
    """Sound arguments of place_batch for 2 resources, 3 nodes and 1 request, with changes."""
    return {
        "free": np.ones((2, 3), np.int64),
        "demands": np.ones((1, 2), np.int64),
        "eligible": np.ones((1, 3), np.uint8),
        "eligible_row": np.zeros(1, np.int64),
        "scale": np.ones(2),
        "start": 0,
        "chosen": np.zeros(1, np.int64),
        **changes,
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"demands": np.ones((1, 3), np.int64)},
        {"demands": -np.ones((1, 2), np.int64)},
        {"eligible": np.ones((1, 2), np.uint8)},
        {"eligible_row": np.ones(1, np.int64)},
        {"eligible_row": np.zeros(2, np.int64)},
        {"scale": np.array([1.0, np.nan])},
        {"scale": np.array([1.0, -1.0])},
        {"scale": np.ones(3)},
        {"start": 3},
        {"start": -1},
        {"chosen": np.zeros(2, np.int64)},
        {"free": np.ones((2, 3), np.int32)},
    ],
)
def test_bad_arrays_are_refused_and_nothing_is_changed(changes: dict[str, object]) -> None:
    arguments = arrays(**changes)
    with pytest.raises(ValueError):  # noqa: PT011  (the messages differ by argument)
        bestfit.place_batch(**arguments)  # type: ignore[arg-type]
    assert (arguments["free"] == 1).all()  # type: ignore[attr-defined]


def test_an_empty_fleet_takes_nothing() -> None:
    empty = arrays(
        free=np.ones((2, 0), np.int64), eligible=np.ones((1, 0), np.uint8), chosen=np.full(1, 5, np.int64)
    )
    bestfit.place_batch(**empty)  # type: ignore[arg-type]
    assert empty["chosen"].tolist() == [-1]  # type: ignore[attr-defined]


def test_the_kernel_releases_the_gil() -> None:
    """While a batch of hundreds of milliseconds runs in a thread, this thread keeps running.

    The interpreter is told not to switch threads by itself for a minute, so that progress here
    during the call can only come from the kernel having let go.
    """
    n_node, n_request = 20_000, 4_000
    arguments = arrays(
        free=np.full((2, n_node), 2**40, np.int64),
        demands=np.ones((n_request, 2), np.int64),
        eligible=np.ones((1, n_node), np.uint8),
        eligible_row=np.zeros(n_request, np.int64),
        chosen=np.full(n_request, -7, np.int64),
    )
    chosen = arguments["chosen"]
    assert isinstance(chosen, np.ndarray)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    try:
        worker = threading.Thread(target=lambda: bestfit.place_batch(**arguments))  # type: ignore[arg-type]
        worker.start()
        seen_at_work = 0
        while worker.is_alive():
            seen_at_work += int(chosen[0] != -7 and chosen[-1] == -7)
            worker.join(0.001)
    finally:
        sys.setswitchinterval(interval)
    assert seen_at_work >= 3
    assert (chosen >= 0).all()
