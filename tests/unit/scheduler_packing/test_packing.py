"""The slots score and the replay: one specification, canonical choices, nothing overcommitted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cext.replay import Replay
from scheduler.packing import (
    EMPTY_LAST,
    IDLE,
    LEAN,
    LEAN_IDLE,
    REFRESH,
    Mix,
    PackingError,
    PackingTable,
    build_table,
    is_idle,
    is_refresh,
    slots,
)

CAPACITY = (16, 48)
SHAPES = ((1, 2), (2, 4), (4, 7), (8, 14), (2, 14), (16, 48))
steps = st.lists(st.tuples(st.integers(0, len(SHAPES) - 1), st.booleans()), max_size=60)
counts = st.lists(st.integers(0, 10**6), min_size=len(SHAPES), max_size=len(SHAPES))


def table_of(weights: list[int]) -> PackingTable:
    return build_table(CAPACITY, Counter(dict(zip(SHAPES, weights, strict=True))))


def choose(table: PackingTable, free: list[tuple[int, ...]], demand: tuple[int, ...]) -> int:
    """The specification: every node compared, in plain Python."""
    empty = [amounts == CAPACITY for amounts in free]
    allocated = [sum(most - amounts[r] for amounts in free) for r, most in enumerate(CAPACITY)]
    idle = is_idle(allocated, CAPACITY, empty.count(False))

    def key(node: int) -> tuple[object, ...]:
        shares = sum((amount << 20) // most for amount, most in zip(free[node], CAPACITY, strict=True))
        score = table.score(free[node], demand, empty=empty[node], idle=idle)
        return score, shares, free[node], node

    fitting = [n for n, amounts in enumerate(free) if slots(amounts, demand) >= 1]
    return min(fitting, key=key, default=-1)


@settings(max_examples=150, deadline=None)
@given(steps, counts, st.integers(1, 6))
def test_replay_equals_the_specification(
    sequence: list[tuple[int, bool]], weights: list[int], nodes: int
) -> None:
    table = table_of(weights)
    fleet = Replay(np.array(CAPACITY, dtype=np.int64), np.array(SHAPES, dtype=np.int64), nodes, "slots")
    fleet.set_slots(
        np.array([shape.demand for shape in table.typical], dtype=np.int64).reshape(-1, 2),
        np.array([shape.weight for shape in table.typical], dtype=np.int64),
        LEAN,
        EMPTY_LAST,
        LEAN_IDLE,
        IDLE,
    )
    shape_of = np.array([shape for shape, _ in sequence], dtype=np.int32)
    node_of = np.full((len(sequence), 1), -1, dtype=np.int32)
    free: list[tuple[int, ...]] = [CAPACITY] * nodes
    placed: list[tuple[int, int]] = []
    in_use = np.zeros(1, dtype=np.int32)
    for index, (shape, release_first) in enumerate(sequence):
        if release_first and placed:
            old, node = placed.pop(len(placed) // 2)
            back = SHAPES[shape_of[old]]
            free[node] = tuple(a + b for a, b in zip(free[node], back, strict=True))
            fleet.run(np.array([~old], dtype=np.int32), shape_of, node_of, in_use)
        expected = choose(table, free, SHAPES[shape])
        fleet.run(np.array([index], dtype=np.int32), shape_of, node_of, in_use)
        assert node_of[index, 0] == expected
        if expected >= 0:
            free[expected] = tuple(a - b for a, b in zip(free[expected], SHAPES[shape], strict=True))
            placed.append((index, expected))
        assert [tuple(row) for row in fleet.free_amounts().tolist()] == free
        assert in_use[0] == fleet.nodes_in_use == sum(amounts != CAPACITY for amounts in free)


@pytest.mark.parametrize("rule", ["first", "linf", "l1", "l2", "worst"])
def test_every_rule_places_within_capacity_and_gives_all_back(rule: str) -> None:
    shape_of = np.array([i % len(SHAPES) for i in range(200)], dtype=np.int32)
    fleet = Replay(np.array(CAPACITY, dtype=np.int64), np.array(SHAPES, dtype=np.int64), 30, rule)
    node_of = np.full((200, 2), -1, dtype=np.int32)
    events = np.arange(200, dtype=np.int32)
    in_use = np.zeros(200, dtype=np.int32)
    fleet.run(events, shape_of, node_of, in_use)
    assert (fleet.free_amounts() >= 0).all()
    fleet.run(~events, shape_of, node_of, in_use)
    assert (fleet.free_amounts() == np.array(CAPACITY)).all()
    assert in_use[-1] == 0
    assert (node_of == -1).all()


def test_a_run_that_stops_names_the_event_that_failed() -> None:
    fleet = Replay(np.array(CAPACITY, dtype=np.int64), np.array([[8, 8]], dtype=np.int64), 1, "linf")
    node_of, in_use = np.full((3, 1), -1, dtype=np.int32), np.zeros(3, dtype=np.int32)
    events = np.arange(3, dtype=np.int32)
    assert fleet.run(events, np.zeros(3, dtype=np.int32), node_of, in_use, True) == 2
    assert fleet.allocated_amounts().tolist() == [16, 16]


def test_a_request_goes_to_the_hole_of_its_size() -> None:
    table = table_of([10] * len(SHAPES))
    breaks = table.score((8, 16), (1, 2), empty=False)
    assert table.score((1, 16), (1, 2), empty=False) < breaks


def test_vcpu_is_not_left_without_its_memory() -> None:
    table = table_of([10] * len(SHAPES))
    starves = table.score((8, 15), (2, 14), empty=False)
    assert table.score((8, 48), (2, 14), empty=False) < starves


def test_an_empty_node_is_last() -> None:
    table = table_of([10] * len(SHAPES))
    assert table.score(CAPACITY, (1, 2), empty=True) > table.score((8, 14), (1, 2), empty=False, idle=True)


@given(
    counts, st.tuples(st.integers(0, 16), st.integers(0, 48)), st.tuples(st.integers(0, 9), st.integers(0, 9))
)
def test_room_is_worth_more_where_there_is_more(
    weights: list[int], free: tuple[int, int], more: tuple[int, int]
) -> None:
    table = table_of(weights)
    assert table.potential([a + b for a, b in zip(free, more, strict=True)]) >= table.potential(free)
    assert all(0 <= table.score(CAPACITY, shape, empty=True) < 1 << 27 for shape in SHAPES)


def test_the_mix_is_read_anew_at_powers_of_two_and_then_regularly() -> None:
    mix = Mix()
    due = [mix.learn((1, 2)) for _ in range(3 * REFRESH)]
    assert [n + 1 for n, now in enumerate(due) if now] == [*(1 << k for k in range(14)), 3 * REFRESH]
    assert mix.counts[(1, 2)] == mix.seen == 3 * REFRESH
    assert not is_refresh(0)


@pytest.mark.parametrize(
    ("capacity", "demand"), [((0, 1), (1, 1)), ((1, 1), (-1, 1)), ((1, 1 << 41), (1, 1))]
)
def test_impossible_amounts_are_refused(capacity: tuple[int, ...], demand: tuple[int, ...]) -> None:
    with pytest.raises(PackingError, match="must be"):
        build_table(capacity, Counter({demand: 1}))


def test_bad_arrays_are_refused() -> None:
    capacity, demand = np.array(CAPACITY, dtype=np.int64), np.array(SHAPES, dtype=np.int64)
    with pytest.raises(ValueError, match="rule"):
        Replay(capacity, demand, 1, "best")
    with pytest.raises(ValueError, match="wants nothing"):
        Replay(capacity, demand * 0, 1, "linf")
    fleet = Replay(capacity, demand, 1, "slots")
    one = np.zeros(1, dtype=np.int32)
    with pytest.raises(ValueError, match="names instance 7"):
        fleet.run(one + 7, one, np.full((1, 1), -1, dtype=np.int32), one)
    with pytest.raises(ValueError, match="node_of"):
        fleet.run(one, one, np.full((1, 1), 5, dtype=np.int32), one)
    with pytest.raises(ValueError, match="weight"):
        fleet.set_slots(demand, np.full(len(demand), 1 << 62, dtype=np.int64), LEAN, EMPTY_LAST)
