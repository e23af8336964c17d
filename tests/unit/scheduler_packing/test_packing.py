"""The slots score: what room is worth, what is typical, and that a scan and plain Python decide alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cext import measure
from cext.index import FleetIndex
from scheduler.packing import (
    AMOUNT_MAX,
    POTENTIAL,
    RATE_BITS,
    TYPICAL_MAX,
    PackingTable,
    build_table,
    is_idle,
    rate,
    slots,
)
from scheduler.reference import Crowd, ReferenceIndex, Scale, Scoring

CAPACITY = (16, 48)
SHAPES = ((1, 2), (2, 4), (4, 7), (8, 14), (2, 14), (16, 48))
counts = st.lists(st.integers(0, 10**6), min_size=len(SHAPES), max_size=len(SHAPES))
SCALES = tuple(Scale.of(most) for most in CAPACITY)
SCORING = Scoring(SCALES, (True, True), "slots", largest=CAPACITY)


def table_of(weights: list[int]) -> PackingTable:
    return build_table(CAPACITY, Counter(dict(zip(SHAPES, weights, strict=True))))


EVEN = Crowd(table_of([10] * len(SHAPES)), idle=False)


def test_a_request_goes_to_the_hole_of_its_size() -> None:
    assert SCORING.key((1, 16), (1, 2), EVEN) < SCORING.key((8, 16), (1, 2), EVEN)


def test_vcpu_is_not_left_without_its_memory() -> None:
    assert SCORING.key((8, 48), (2, 14), EVEN) < SCORING.key((8, 15), (2, 14), EVEN)


def test_an_empty_node_is_last() -> None:
    idle = Crowd(EVEN.table, idle=True)
    assert SCORING.key(CAPACITY, (1, 2), EVEN, empty=True) > SCORING.key((8, 14), (1, 2), idle)
    patient = Crowd(EVEN.table, idle=True, patient=True)
    assert SCORING.key(CAPACITY, (1, 2), EVEN, empty=True) > SCORING.key((8, 14), (1, 2), patient, steps=4)


@given(
    counts,
    st.tuples(st.integers(-3, 16), st.integers(-3, 48)),
    st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_room_is_worth_more_where_there_is_more(
    weights: list[int], free: tuple[int, int], more: tuple[int, int]
) -> None:
    table = table_of(weights)
    assert 0 <= table.potential(free) <= table.potential([a + b for a, b in zip(free, more, strict=True)])
    assert table.potential((10**9, 10**9)) == table.potential(CAPACITY) <= POTENTIAL


def test_only_powers_of_sixteen_change_a_rate() -> None:
    changes = [count for count in range(1, 70_000) if rate(count) != rate(count - 1)]
    assert changes == [1, 16, 256, 4096, 65536]
    assert [rate(count) for count in changes] == [1, 2, 4, 8, 16]
    assert rate(0) == rate(-5) == 0
    assert RATE_BITS == 4


def test_a_large_shape_is_worth_as_much_of_an_empty_node_as_a_small_one() -> None:
    table = table_of([20] * len(SHAPES))
    worth = [shape.weight * slots(CAPACITY, shape.demand) for shape in table.typical]
    assert max(worth) - min(worth) <= 16


def test_what_never_fits_or_asks_for_nothing_has_no_weight() -> None:
    table = build_table(CAPACITY, {(17, 1): 50, (0, 0): 50, (1, 1): 0, (2, 2): -1, (4, 4): 1})
    assert [shape.demand for shape in table.typical] == [(4, 4)]
    assert build_table((AMOUNT_MAX * 2, 1), {(AMOUNT_MAX + 1, 0): 1}).typical == ()


def test_of_many_shapes_the_frequent_and_then_the_large_stay() -> None:
    mix: dict[tuple[int, ...], int] = {(1, size): 1 for size in range(2, 49)}
    mix[1, 1] = 16
    table = build_table(CAPACITY, mix)
    assert [shape.demand for shape in table.typical[:2]] == [(1, 1), (1, 25)]
    assert len(table.typical) == TYPICAL_MAX
    assert (1, 2) not in [shape.demand for shape in table.typical]


def test_a_fleet_is_idle_while_every_resource_has_room_to_spare() -> None:
    assert is_idle([])
    assert is_idle([((1, 10), (16, 48))])
    assert not is_idle([((0, 10), (16, 48))])
    assert is_idle([((0, 10), (16, 48)), ((8, 0), (16, 48))])
    assert is_idle([((0, 10), (0, 48))]), "what no node has does not run out"


def fleet_of(nodes: int, typical: dict[tuple[int, ...], int]) -> FleetIndex:
    index = FleetIndex(
        [scale.multiplier for scale in SCALES],
        [scale.shift for scale in SCALES],
        norm="slots",
        largest=CAPACITY,
    )
    ranks = np.arange(nodes, dtype=np.uint64)
    index.set_nodes(np.tile(np.array(CAPACITY, np.int64), (nodes, 1)), np.zeros(nodes, np.int32), ranks)
    index.set_eligible(0, 0, True)
    for shape in SHAPES:
        index.add_shape(shape)
    for demand, count in typical.items():
        index.count(index.add_kind(demand), count)
    return index


moves = st.lists(st.tuples(st.integers(0, len(SHAPES) - 1), st.booleans()), max_size=200)


@settings(max_examples=60)
@given(moves, st.integers(1, 12))
def test_a_replay_decides_as_a_scan_and_as_the_specification(
    sequence: list[tuple[int, bool]], nodes: int
) -> None:
    """The scan counts for itself, and the specification counts nothing: it looks at every node each time."""
    events: list[int] = []
    waiting: list[int] = []
    for number, (_, release_first) in enumerate(sequence):
        if release_first and waiting:
            events.append(~waiting.pop(len(waiting) // 2))
        events.append(number)
        waiting.append(number)
    trace = np.array(events, np.int32), np.array([shape for shape, _ in sequence], np.int32)
    at, scanned = np.full(len(sequence), -1, np.int32), np.full(len(sequence), -1, np.int32)
    seen = measure.replay(fleet_of(nodes, {}), *trace, at)
    assert seen[:-1] == measure.replay(fleet_of(nodes, {}), *trace, scanned, linear=True)[:-1]
    reference = ReferenceIndex(SCORING)
    reference.set_eligible(0, 0, True)
    for slot in range(nodes):
        reference.set_node(slot, CAPACITY, 0, slot, CAPACITY)
    for shape in SHAPES:
        reference.add_shape(shape)
    where: dict[int, int] = {}
    for event in events:
        if event >= 0:
            where[event] = reference.place(sequence[event][0])
        elif where[~event] >= 0:
            reference.release(where.pop(~event), sequence[~event][0])
    assert [slot for slot in at.tolist() if slot >= 0] == [slot for slot in where.values() if slot >= 0]


def test_what_is_typical_decides() -> None:
    """Two holes of equal largest share: which one is broken depends on what else runs here."""
    chosen = []
    for typical in ((8, 14), (2, 14)):
        index = fleet_of(2, {typical: 40})
        index.take(0, [8, 34])  # leaves room for one of (8, 14), or for one of (2, 14)
        index.take(1, [12, 20])  # leaves none for (8, 14), and two of (2, 14)
        chosen.append(index.place(index.add_shape((4, 7))))
    assert chosen == [1, 0]


def test_an_index_beside_another_asks_it_what_is_typical() -> None:
    """As the sets of cells of nodes do."""
    whole = fleet_of(2, {(8, 14): 40})
    more = (
        [*(scale.multiplier for scale in SCALES), 1],
        [*(scale.shift for scale in SCALES), 0],
        (True, True, False),
    )
    beside = FleetIndex(*more, norm="slots", crowd_of=whole)
    beside.set_eligible(0, 0, True)
    beside.set_node(0, (8, 14, 1), 0, 0, (16, 48, 1))
    beside.set_node(1, (4, 28, 1), 0, 1, (16, 48, 1))
    assert beside.best(beside.add_shape((4, 7, 1))) == 1
    with pytest.raises(ValueError, match="counts nothing"):
        beside.add_kind((1, 1, 1))


@pytest.mark.parametrize(
    "arguments",
    [
        {"norm": "slots"},
        {"norm": "linf", "largest": [1]},
        {"norm": "slots", "largest": [1, 1]},
        {"norm": "slots", "largest": [-1]},
        {"norm": "slots", "largest": [2**63]},
        {"norm": "slots", "crowd_of": FleetIndex([1], [0])},
        {"norm": "slots", "crowd_of": fleet_of(1, {})},
    ],
)
def test_impossible_settings_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  (the messages differ by argument)
        FleetIndex([1], [0], **arguments)  # type: ignore[arg-type]


def test_impossible_calls_are_refused() -> None:
    index = fleet_of(1, {})
    kind = index.add_kind((1, 1))
    calls: tuple[Callable[[], object], ...] = (
        lambda: index.count(kind + 1, 1),
        lambda: index.count(-1, 1),
        lambda: index.count(kind, 1 << 33),
        lambda: index.set_time(1),
        lambda: index.add_shape((1, 1), 0, 0),
        lambda: index.add_shape((1, 1), 0, 5),
        lambda: index.room_lost(len(SHAPES), 0),
    )
    for call in calls:
        with pytest.raises(ValueError):  # noqa: PT011
            call()
    index.mark()
    with pytest.raises(RuntimeError, match="mark is open"):
        index.count(kind, 1)
