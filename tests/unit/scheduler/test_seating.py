"""Seating: equal to the specification at sizes where the kernel changes its ways; refusals. **Pure.**"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from cext.cells import Cells
from cext.groups import Group, Scope
from cext.index import FleetIndex
from cext.places import MASKS_KEPT
from cext.seating import Asked, Seating
from cumulet.resources import Resources
from scheduler.group import PlacementGroup, Rule
from scheduler.group import Scope as Kind
from scheduler.model import View
from scheduler.policy import PACK
from scheduler.topology import Cell
from tests.unit.scheduler.fleets import node, request
from tests.unit.scheduler.test_specification import check

LARGE = 2600  # nodes, so that a zone has more of them than a group lists


def _large(chance: random.Random) -> View:
    nodes = (
        node(
            f"n{number}",
            vcpu=chance.choice((4, 6, 8)),
            labels={"rack": f"r{number // 20}", "zone": "ab"[number % 2]} if number % 50 else {},
            cells=(Cell(2, 4096), Cell(4, 4096)) if number % 3 else (),
            allocated=Resources(chance.randrange(4), 1024 * chance.randrange(4)),
        )
        for number in range(LARGE)
    )
    groups = {
        f"{rule}-{kind}": PlacementGroup(f"{rule}-{kind}", rule, kind, chance.random() < 0.7, 3)
        for rule in Rule
        for kind in Kind
    }
    return View(1, tuple(nodes), groups)


@pytest.mark.parametrize("seed", range(5))
def test_large_fleets_equal_the_specification(seed: int) -> None:
    chance = random.Random(seed)
    view = _large(chance)
    batch = tuple(
        request(
            f"u{number}",
            vcpu=chance.choice((1, 2, 4)),
            groups=tuple(chance.sample(sorted(view.groups), chance.choice((1, 1, 2)))),
            numa_cells=chance.choice((0, 1, 2)),
            excluded_nodes=frozenset(f"n{chance.randrange(LARGE)}" for _ in range(chance.choice((0, 9)))),
        )
        for number in range(14)
    )
    check(view, batch, PACK)


def test_more_groups_than_masks_equal_the_specification() -> None:
    count = MASKS_KEPT + 40
    groups = {f"g{number}": PlacementGroup(f"g{number}", Rule.ANTI_AFFINITY) for number in range(count)}
    view = View(1, tuple(node(f"n{number}", vcpu=2000, memory_mib=2000) for number in range(2)), groups)
    batch = tuple(
        request(f"u{number}", 1, 1, groups=(f"g{number % count}", f"g{(number + 1) % count}"))
        for number in range(2 * count)
    )
    check(view, batch, PACK)


class Bench:
    """One node of two cells, and the kernel around it."""

    def __init__(self) -> None:
        self.index = FleetIndex([1, 1], [0, 0])
        self.index.set_node(0, [8, 8], 0, 1)
        self.index.set_eligible(0, 0, True)
        self.shape = self.index.add_shape([2, 2])
        self.cells = Cells(self.index)
        self.cells.set_cells(0, [(4, 4), (2, 2)])
        self.scope = Scope()
        self.scope.set_domain(0, "r1")
        self.members: Counter[str] = Counter()
        self.seating: Seating[tuple[int, ...]] = Seating(self.index, self.cells, tuple, (), 100)
        self.seating.set_groups({"apart": Group(self.scope, False, True, 1, self.members)})
        bins = FleetIndex([1] * 4, [0] * 4, [True, True, False, False])
        bins.set_eligible(0, 0, True)
        self.cells.add_bins(bins, 1)
        self.asked = Asked([(0, 0, self.shape, bins.add_shape([2, 2, 2, 2]))], 1, 2, 2)


def test_a_seat_takes_and_gives_back_everything() -> None:
    bench = Bench()
    mark = bench.seating.mark()
    seat = bench.seating.find(bench.asked, ("apart",))
    assert seat is not None
    assert (seat.slot, seat.choice) == (0, (1,)), "the fuller cell"
    bench.seating.enter(seat)
    assert bench.cells.cells_at(0) == [(4, 4), (0, 0)]
    assert bench.index.free_at(0) == (6, 6)
    assert bench.members == {"r1": 1}
    assert bench.seating.find(bench.asked, ("apart",)) is None
    other = bench.seating.find(bench.asked, ())
    assert other is not None
    assert other.choice == (0,)
    bench.seating.rollback(mark)
    assert (bench.cells.cells_at(0), bench.index.free_at(0)) == ([(4, 4), (2, 2)], (8, 8))
    assert bench.members == {}


def test_what_leaves_64_bits_changes_nothing() -> None:
    bench = Bench()
    bench.cells.set_cells(0, [(-(2**63), 1)])
    seat = bench.seating.seat(0, bench.shape, ("apart",), (0,), (0,), 1, 1)
    with pytest.raises(ValueError, match="slot 0: what cells have left would leave 64 bits"):
        bench.seating.enter(seat)
    bench.index.set_node(0, [-(2**63), 8], 0, 1)
    whole = bench.seating.seat(0, bench.shape, ("apart",), ())
    with pytest.raises(ValueError, match="slot 0: what is free would leave 64 bits"):
        bench.seating.enter(whole)
    assert (bench.cells.cells_at(0), bench.members) == ([(-(2**63), 1)], {})


def test_what_cannot_be_asked_is_refused() -> None:
    bench = Bench()
    seating = bench.seating
    assert seating.find(bench.asked, ("gone",)) is None
    assert seating.find(Asked([], 2, 1, 1), ()) is None, "sets of two cells were never made"
    with pytest.raises(ValueError, match="9 groups, at most 8"):
        seating.find(bench.asked, ("apart",) * 9)
    with pytest.raises(ValueError, match="levels must be in order"):
        Asked([(1, 0, 0, 0), (0, 0, 0, 0)])
    with pytest.raises(ValueError, match="17 cells, at most 16"):
        bench.cells.set_cells(0, [(1, 1)] * 17)
    with pytest.raises(ValueError, match="must have 64 bits"):
        bench.cells.set_cells(0, [(2**63, 1)])
    with pytest.raises(ValueError, match="must be 1 to 8"):
        bench.cells.add_bins(FleetIndex([1] * 4, [0] * 4), 9)
    with pytest.raises(ValueError, match="an empty index of their own with two rows more"):
        bench.cells.add_bins(FleetIndex([1] * 3, [0] * 3), 2)
    bench.index.set_node(3000, [8, 8], 0, 2)
    with pytest.raises(ValueError, match="nodes whose domains were not set"):
        seating.find(bench.asked, ("apart",))
    mark = seating.mark()
    found = seating.find(bench.asked, ())
    assert found is not None
    with pytest.raises(RuntimeError, match="a mark is open"):
        seating.leave(found)
    with pytest.raises(RuntimeError, match="a mark is open"):
        seating.set_groups({})
    seating.rollback(mark)


def test_a_node_that_loses_cells_is_asked_as_it_is() -> None:
    bench = Bench()
    assert bench.seating.find(bench.asked, ()) is not None
    bench.cells.set_cells(0, [(1, 9)])
    assert bench.seating.find(bench.asked, ()) is None
    bench.cells.set_cells(0, [(2, 2), (3, 3), (1, 1)])
    found = bench.seating.find(bench.asked, ())
    assert found is not None
    assert found.choice == (0,)
    bench.cells.set_cells(0, ())
    assert bench.seating.find(bench.asked, ()) is None


def test_slots_that_are_the_only_ones_may_be_many() -> None:
    index = FleetIndex([1], [0])
    for slot in range(9000):
        index.set_node(slot, [10 + slot % 97], 0, slot)
    index.set_eligible(0, 0, True)
    asked = Asked([(0, 0, index.add_shape([12]), 0)])
    seating: Seating[tuple[int, ...]] = Seating(index, Cells(index), tuple, (), 100)
    chance = random.Random(1)
    for count in (3, 500, 6000):
        among = chance.sample(range(9000), count)
        left_out = chance.sample(range(9000), 300)
        found = seating.find(asked, (), left_out, among)
        allowed = [slot for slot in among if slot not in left_out]
        assert (found.slot if found else -1) == index.best_among(0, allowed)
        assert seating.admitted((), left_out, among) == allowed
