"""The index equals its specification, whatever led to a state, for every norm and instruction set.

**Pure** but for a thread.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cext.index import RANKED_AT_MOST, FleetIndex, usable_filters
from cext.measure import replay
from scheduler.reference import INT64_MAX, NORMS, UNIT_TOP, Scale
from tests.unit.scheduler_index.pair import CHANGES, NOT_UNDONE, SLOTS, Pair, Setting

SETTINGS = st.builds(
    Setting,
    rows=st.sampled_from([1, 2, 3, 4, 5, 8, 9]),
    norm=st.sampled_from(NORMS),
    largest=st.sampled_from([4, 9, 9, 1 << 30, INT64_MAX]),
    unscored=st.sampled_from([0, 0, 1, 2, 511]),
    lanes_max=st.sampled_from([1, 3, 64]),
    filters=st.sampled_from(usable_filters()),
)
STEPS = st.lists(
    st.tuples(st.integers(0, len(CHANGES) - 1), st.integers(0, SLOTS - 1), st.integers(0, 7**9)), max_size=40
)
PLAIN = Setting(2, "linf", 9, 0, 64, "base")


def run(pair: Pair, steps: list[tuple[int, int, int]]) -> None:
    for which, slot, choice in steps:
        change = CHANGES[which]
        if not (pair.marks and change in NOT_UNDONE):
            change(pair, slot, choice)
            pair.compare([slot, choice % (SLOTS + 2), choice % 3 - 1])


def filled(setting: Setting, nodes: list[int], shapes: list[int]) -> Pair:
    pair = Pair(setting)
    for slot, choice in enumerate(nodes):
        pair.set_node(slot, choice)
    for slot, choice in enumerate(shapes):
        pair.add_shape(slot, choice)
    return pair


NODES = st.lists(st.one_of(st.integers(0, 7**9), st.sampled_from([1, 1, 57, 400])), max_size=SLOTS)
DEMANDS = st.lists(st.integers(0, 7**9), min_size=1, max_size=4)


@settings(max_examples=150)
@given(SETTINGS, NODES, DEMANDS, STEPS)
@example(PLAIN, [1, 1, 1], [0], [(0, 0, 0), (0, 0, 0), (2, 0, 0)])  # ties: the rank decides
def test_the_index_equals_the_specification(
    setting: Setting, nodes: list[int], demands: list[int], steps: list[tuple[int, int, int]]
) -> None:
    run(filled(setting, nodes, demands), steps)


@settings(max_examples=60)
@given(SETTINGS, NODES, DEMANDS, STEPS)
def test_an_index_built_anew_answers_as_the_one_with_a_history(
    setting: Setting, nodes: list[int], demands: list[int], steps: list[tuple[int, int, int]]
) -> None:
    pair = filled(setting, nodes, demands)
    run(pair, steps)
    anew = pair.rebuilt()
    for shape in range(len(pair.reference.shapes)):
        assert anew.rank(shape, SLOTS) == pair.index.rank(shape, SLOTS)
        assert anew.best(shape) == pair.index.best(shape)
        assert anew.place(shape) == pair.index.place(shape)


@settings(max_examples=25)
@given(SETTINGS, st.randoms(use_true_random=False), st.sampled_from([40, 150]))
def test_fleets_larger_than_the_lists(setting: Setting, rng: object, count: int) -> None:
    """More classes than a list has room for, so that bounds, cuts and rebuilding are exercised."""
    draw = rng.randrange  # type: ignore[attr-defined]
    pair = filled(setting, [draw(7**9) for _ in range(count)], [draw(7**9) for _ in range(6)])
    for turn in range(150):
        change = Pair.release if draw(5) < 2 else Pair.place
        change(pair, 0, draw(7**9))
        if turn % 30 == 0:
            pair.compare([draw(count) for _ in range(draw(count))])
    pair.compare([])


@pytest.mark.parametrize("filters", usable_filters())
def test_many_attrs_with_equal_free_amounts(filters: str) -> None:
    """More equals than a list has room for: none may be cut off, the smallest rank wins."""
    index = FleetIndex([1], [0])
    index.filters = filters
    ranks = np.random.default_rng(3).permutation(60).astype(np.uint64)
    index.set_nodes(np.full((60, 1), 9, np.int64), np.arange(60, dtype=np.int32), ranks)
    shape = index.add_shape([4])
    for attr in range(60):
        index.set_eligible(0, attr, attr % 2 == 0)
    first = sorted(range(0, 60, 2), key=lambda slot: ranks[slot])
    assert index.best_excluding(shape, first[:20]) == first[20]
    assert [index.place(shape) for _ in range(60)] == [slot for slot in first for _ in range(2)]
    assert index.place(shape) == -1


def test_a_plan_is_undone() -> None:
    pair = filled(PLAIN, [1, 57, 400, 8], [0, 1])
    before = pair.index.free().tolist()
    mark = pair.index.mark()
    for shape in (0, 1, 0, 1):
        pair.index.place(shape)
    pair.index.take(2, [1, 1])
    pair.index.set_attr(1, 2)
    with pytest.raises(RuntimeError, match="mark is open"):
        pair.index.remove_node(1)
    pair.index.rollback(mark)
    assert pair.index.free().tolist() == before
    pair.compare([1])
    with pytest.raises(ValueError, match="not open"):
        pair.index.rollback(mark)


def test_a_replay_is_the_same_as_calls_and_as_the_linear_scan() -> None:
    rng = np.random.default_rng(5)
    demands = rng.integers(0, 30, (12, 3))
    ranks = rng.permutation(40).astype(np.uint64)

    def fleet() -> FleetIndex:
        scale = Scale.of(100)
        index = FleetIndex([scale.multiplier] * 3, [scale.shift] * 3)
        index.set_nodes(np.full((40, 3), 100, np.int64), np.zeros(40, np.int32), ranks)
        index.set_eligible(0, 0, True)
        for demand in demands.tolist():
            index.add_shape(demand)
        return index

    shape_of = rng.integers(0, 12, 900).astype(np.int32)
    events = np.array([x for i in range(900) for x in ([i, ~(i - 250)] if i >= 250 else [i])], np.int32)
    at, at_linear = np.full(900, -1, np.int32), np.full(900, -1, np.int32)
    ns, used = np.zeros(len(events), np.float32), np.zeros(len(events), np.int32)
    replayed = replay(fleet(), events, shape_of, at, ns=ns, used=used)
    linear = replay(fleet(), events, shape_of, at_linear, linear=True)
    assert replayed[:-1] == linear[:-1]
    assert at.tolist() == at_linear.tolist()
    assert used.max() == replayed.used_peak == 40
    assert (ns >= 0).all()
    by_call = fleet()
    slots: dict[int, int] = {}
    for event in events.tolist():
        if event >= 0:
            slots[event] = by_call.place(int(shape_of[event]))
        elif slots[~event] >= 0:
            by_call.release(slots.pop(~event), int(shape_of[~event]))
    assert [slots.get(i, -1) for i in range(900)] == at.tolist()
    by_call = fleet()
    one_by_one = [by_call.place(int(shape)) for shape in shape_of[:250]]
    assert fleet().place_batch(shape_of[:250]).tolist() == one_by_one


@pytest.mark.parametrize(
    "arguments",
    [
        {"multipliers": []},
        {"multipliers": [0]},
        {"multipliers": [2**63]},
        {"multipliers": [1] * 57, "shifts": [0] * 57},
        {"shifts": [64]},
        {"shifts": [0, 0]},
        {"scored": [True, True]},
        {"norm": "best"},
        {"norm": "potential"},
        {"potential": ([0], [1], [1])},
        {"norm": "potential", "potential": ([1], [1], [1])},
        {"norm": "potential", "potential": ([0], [0], [1])},
        {"norm": "potential", "potential": ([0], [1], [2**30])},
        {"norm": "potential", "potential": ([0], [1], [[1]])},
        {"lanes_max": 0},
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (the messages differ by argument)
        FleetIndex(**{"multipliers": [1], "shifts": [0], **arguments})  # type: ignore[arg-type]


def test_impossible_calls_are_refused_and_nothing_is_changed() -> None:
    pair = filled(PLAIN, [1, 57], [1])
    index, free = pair.index, pair.index.free().tolist()
    at = np.full(1, -1, np.int32)
    zero, one = np.zeros(1, np.int32), np.ones(1, np.int32)
    calls = (
        lambda: index.best(1),
        lambda: index.best(-1),
        lambda: index.place_batch(np.array([0, 1], np.int32)),
        lambda: index.add_shape([1]),
        lambda: index.add_shape([1, -1]),
        lambda: index.add_shape([1, 2**63]),
        lambda: index.add_shape([1, 1], 1 << 20),
        lambda: index.set_eligible(1 << 19, 1 << 19, True),
        lambda: index.set_node(-1, [1, 1], 0, 0),
        lambda: index.set_node(1 << 26, [1, 1], 0, 0),
        lambda: index.set_node(0, [1, 1], -2, 0),
        lambda: index.set_nodes(np.ones((2, 2), np.int64), zero, np.zeros(2, np.uint64)),
        lambda: index.remove_node(7),
        lambda: index.take(7, [1, 1]),
        lambda: index.give(0, [-1, 1]),
        lambda: index.give(0, [INT64_MAX, 1]),
        lambda: index.release(0, 1),
        lambda: index.free_at(5),
        lambda: index.rank(0, 0),
        lambda: index.rank(0, RANKED_AT_MOST + 1),
        lambda: replay(index, one, zero, at),
        lambda: replay(index, np.array([0, 0], np.int32), zero, at),
        lambda: replay(index, zero, one, at),
        lambda: replay(index, zero, zero, np.full(2, -1, np.int32)),
        lambda: replay(index, zero, zero, np.full(1, 9, np.int32)),
        lambda: replay(index, zero, zero, at, ns=np.zeros(2, np.float32)),
    )
    for call in calls:
        with pytest.raises(ValueError):  # noqa: PT011
            call()
    with pytest.raises(TypeError):
        index.take(0, [1.5, 1])  # type: ignore[list-item]
    assert index.free().tolist() == free
    pair.compare([0])


def test_the_unit_form_is_exact_for_what_fits_into_it() -> None:
    assert Scale.of(UNIT_TOP).unit(12345) == 12345
    for largest in (1, 3, 64, 196608, 10**12, INT64_MAX):
        scale = Scale.of(largest)
        assert scale.unit(largest) == UNIT_TOP
        assert scale.unit(0) == scale.unit(-5) == 0
        assert len({scale.unit(x) for x in range(min(largest, 1000) + 1)}) == (
            min(largest, 1000) + 1 if largest <= UNIT_TOP else 1 + scale.unit(min(largest, 1000))
        )


def test_another_thread_is_refused_while_a_batch_runs() -> None:
    """The batch lets go of the interpreter; the index says that it is in use."""
    index = FleetIndex([1], [0])
    index.set_nodes(np.full((50, 1), 2**40, np.int64), np.zeros(50, np.int32), np.arange(50, dtype=np.uint64))
    index.set_eligible(0, 0, True)
    shapes = np.full(3_000_000, index.add_shape([1]), np.int32)
    worker = threading.Thread(target=lambda: index.place_batch(shapes))
    worker.start()
    refused = 0
    while worker.is_alive():
        try:
            index.best(0)
        except RuntimeError:
            refused += 1
        worker.join(0.001)
    assert refused >= 3
    assert index.free().sum() == 50 * 2**40 - 3_000_000
