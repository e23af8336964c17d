"""The kernel packs item for item and step for step as the plain-Python specification does. **Pure**."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cext import binpack as kernel
from cext.pairbound import pair_bound
from scheduler.binpack_problem import Bins, Ints, Mask, Problem, build_problem
from scheduler.binpack_reference import (
    SearchReference,
    fill_bins_reference,
    find_homeless_reference,
    first_fit_reference,
    pair_bound_reference,
)
from tests.unit.scheduler_binpack.problems import items_and_bins, items_and_capacity

GIVEN = items_and_bins()


def lists(array: Ints) -> list[list[int]]:
    return [[int(amount) for amount in row] for row in array]


def available(bins: Ints) -> list[list[int]]:
    """An overcommitted resource has nothing for who asks for it."""
    return lists(np.maximum(bins, 0))


@given(GIVEN)
def test_find_homeless(case: tuple[Ints, Ints, Mask]) -> None:
    items, bins, eligible = case
    problem = build_problem(items, bins, eligible)
    no_home = eligible * np.arange(len(items))[:, None].astype(bool)  # the first item may go nowhere
    for mask in (eligible, no_home.astype(np.uint8)):
        assert kernel.find_homeless(
            problem.items, problem.guard, problem.free, mask, problem.nothing_chosen()
        ) == find_homeless_reference(lists(items), available(bins), mask.tolist())


@settings(deadline=None)
@given(items_and_capacity(most=14), st.randoms(use_true_random=False))
def test_pair_bound(case: tuple[Ints, Ints], random: Random) -> None:
    items, capacity = case
    problem = build_problem(items, capacity[None], alike=True)
    order = list(range(len(items)))
    random.shuffle(order)
    bound = pair_bound(problem.items, problem.guard, problem.free[0], np.array(order, dtype=np.int32))
    assert bound == pair_bound_reference(lists(items), capacity.tolist(), order)


@given(GIVEN, st.randoms(use_true_random=False))
def test_first_fit(case: tuple[Ints, Ints, Mask], random: Random) -> None:
    items, bins, eligible = case
    problem = build_problem(items, bins, eligible)
    order = list(range(len(items)))
    random.shuffle(order)
    chosen, expected, free = problem.nothing_chosen(), [-1] * len(items), available(bins)
    steps = kernel.first_fit(
        problem.items, problem.guard, problem.free, problem.eligible, np.array(order, dtype=np.int32), chosen
    )
    assert steps == first_fit_reference(lists(items), free, eligible.tolist(), order, expected)
    assert chosen.tolist() == expected


@given(GIVEN, st.booleans(), st.integers(0, 60))
def test_fill_bins(case: tuple[Ints, Ints, Mask], nearest: bool, steps: int) -> None:
    items, bins, eligible = case
    problem = build_problem(items, bins, eligible)
    weight = np.arange(1, items.shape[1] + 1, dtype=np.int64)
    expected, room = [-1] * len(items), lists(problem.room)
    spent = fill_bins_reference(
        lists(items),
        available(bins),
        eligible.tolist(),
        lists(problem.shares),
        room,
        weight.tolist(),
        nearest,
        steps,
        expected,
    )
    chosen = problem.nothing_chosen()
    assert spent == _fill(problem, weight, nearest, steps, chosen)
    assert chosen.tolist() == expected
    assert lists(problem.room) == room


def _fill(problem: Problem, weight: Ints, nearest: bool, steps: int, chosen: Bins) -> int:
    return kernel.fill_bins(
        problem.items,
        problem.guard,
        problem.free,
        problem.eligible,
        problem.shares,
        problem.room,
        weight,
        nearest,
        steps,
        chosen,
    )


@settings(deadline=None)
@given(GIVEN, st.integers(0, 3_000), st.integers(0, 2**64 - 1))
def test_place_rest(case: tuple[Ints, Ints, Mask], steps: int, seed: int) -> None:
    items, bins, eligible = case
    problem = build_problem(items, bins, eligible)
    chosen, expected = problem.nothing_chosen(), [-1] * len(items)
    reference = SearchReference(
        lists(items), available(bins), eligible.tolist(), problem.size.tolist(), expected, seed
    )
    spent = kernel.place_rest(
        problem.items, problem.guard, problem.free, problem.eligible, problem.size, chosen, steps, seed
    )
    assert spent == reference.run(steps)
    assert chosen.tolist() == expected
