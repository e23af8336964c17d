"""The kernel of devices equals its specification on every state, whatever led there. **Pure.**"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cext.gpu import DeviceIndex
from cext.gpu_prices import find_prices as find_prices_fast
from scheduler.gpu_prices import find_prices
from scheduler.gpu_reference import (
    ANY_MODEL,
    UNIT,
    WHOLE,
    Node,
    ReferenceDevices,
    Shape,
    Weights,
    Workload,
    after,
    loss,
)

ROWS = 2
SLOTS = 6
FEW_SHARES = (160, 320, 470, 810, 1000)

amounts = st.tuples(*[st.integers(0, 6)] * ROWS)
models = st.sampled_from([ANY_MODEL, 0b01, 0b10, 0b100, 0])
weights = st.builds(Weights, *[st.integers(0, 9)] * 3)


@st.composite
def shapes(draw: st.DrawFn, least: int = 0) -> Shape:
    count = draw(st.integers(least, 4))
    milli = draw(st.sampled_from(FEW_SHARES)) if count == 1 else WHOLE * bool(count)
    return Shape(draw(amounts), count, milli, draw(models))


@st.composite
def nodes(draw: st.DrawFn, rank: int) -> Node:
    left = st.sampled_from((-50, 0, 160, 190, 500, 1000, 1000))
    devices = draw(st.lists(st.tuples(st.integers(0, 2), left), max_size=5))
    free = draw(st.tuples(*[st.integers(-2, 12)] * ROWS))
    return Node(free, tuple(devices), draw(st.integers(-1, 1)), draw(st.integers(0, 3)), rank)


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    typical = draw(st.lists(st.tuples(shapes(1), st.integers(1, UNIT // 8)), max_size=5))
    steps = sorted(draw(st.lists(st.integers(0, UNIT * WHOLE), min_size=len(FEW_SHARES), max_size=5)))
    rises = dict(zip(FEW_SHARES, steps, strict=False))
    prices = [max((step for at, step in rises.items() if at <= room), default=0) for room in range(1001)]
    rates = draw(st.tuples(*[st.sampled_from([0, 1 << 20, 100 << 32, 2**62])] * ROWS))
    scarcity = draw(st.lists(st.integers(0, 9 * UNIT), max_size=3))
    return Workload(tuple(typical), tuple(prices), rates, tuple(scarcity))


@dataclass
class Pair:
    """Both, given the same."""

    kernel: DeviceIndex
    reference: ReferenceDevices

    @classmethod
    def of(cls, weights: Weights, rows_kept: int) -> Pair:
        kept = 16 * rows_kept  # room for so many shapes' costs
        kernel = DeviceIndex(ROWS, weights.fragments, weights.stranded, weights.worth, kept)
        return cls(kernel, ReferenceDevices(weights, Workload(rates=(0,) * ROWS)))

    def set_node(self, slot: int, node: Node) -> None:
        self.kernel.set_node(slot, node.free, node.devices, node.attr, node.room, node.rank)
        self.reference.nodes[slot] = node

    def remove(self, slot: int) -> None:
        self.kernel.remove_node(slot)
        self.reference.nodes.pop(slot, None)

    def set_workload(self, workload: Workload) -> None:
        typical = [(one.amounts, one.count, one.milli, one.models, each) for one, each in workload.typical]
        self.kernel.set_workload(typical, workload.prices, workload.rates)
        self.kernel.set_scarcity(workload.scarcity)
        self.reference.workload = workload

    def add_shape(self, shape: Shape) -> int:
        told = self.kernel.add_shape(shape.amounts, shape.count, shape.milli, shape.models)
        assert told == self.reference.add_shape(shape)
        return told

    def allow(self, cset: int, attr: int) -> None:
        self.kernel.set_eligible(cset, attr, True)
        self.reference.eligible.add((cset, attr))

    def compare(self, shape: int, cset: int, slots: Sequence[int]) -> int:
        """Every question about a shape; returns where it goes."""
        assert self.kernel.able(shape, cset) == self.reference.able(shape, cset)
        best = self.reference.best(shape, cset)
        assert self.kernel.best(shape, cset) == best
        excluded = self.reference.best(shape, cset, excluded=slots)
        assert self.kernel.best_excluding(shape, cset, slots) == excluded
        assert self.kernel.best_among(shape, cset, slots) == self.reference.best(shape, cset, among=slots)
        for slot in self.reference.nodes:
            assert self.kernel.choose(shape, slot) == self.reference.choose(shape, slot)
        return best

    def take(self, shape: int, slot: int) -> None:
        """Place the shape; what the kernel says it loses is what the specification says."""
        found = self.reference.choose(shape, slot)
        assert found is not None
        cost, chosen = found
        node, wanted = self.reference.nodes[slot], self.reference.shapes[shape]
        takes = [(index, wanted.milli) for index in chosen]
        later = after(node, wanted.amounts, takes)
        told = loss(node, later, self.reference.workload)
        assert self.kernel.loss(slot, wanted.amounts, takes) == (told.fragments, told.stranded, told.worth)
        assert told.cost(self.reference.weights) == cost
        self.set_node(slot, replace(later, room=node.room + 1))


@settings(max_examples=300)
@given(st.data(), weights, st.integers(1, 3))
def test_the_kernel_equals_its_specification(data: st.DataObject, weights: Weights, rows_kept: int) -> None:
    pair = Pair.of(weights, rows_kept)
    for slot in range(SLOTS):
        pair.set_node(slot, data.draw(nodes(slot)))
    asked = [pair.add_shape(data.draw(shapes())) for _ in range(3)]
    for cset, attr in data.draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=4)):
        pair.allow(cset, attr)
    for _ in range(data.draw(st.integers(1, 6))):
        match data.draw(st.integers(0, 5)):
            case 0:
                pair.set_workload(data.draw(workloads()))
            case 1:
                pair.remove(data.draw(st.integers(0, SLOTS - 1)))
            case 2:
                slot = data.draw(st.integers(0, 3 * SLOTS))  # beyond what there is room for, too
                pair.set_node(slot, data.draw(nodes(slot)))
            case _:
                shape = data.draw(st.sampled_from(asked))
                among = data.draw(st.lists(st.integers(0, SLOTS + 2), max_size=4))
                best = pair.compare(shape, data.draw(st.integers(0, 2)), among)
                if best >= 0:
                    pair.take(shape, best)
    assert len(pair.kernel) == len(pair.reference.nodes)


sizes = (
    st.integers(1, WHOLE) | st.integers(1, 10).map(lambda part: 100 * part) | st.sampled_from((300, 600, 900))
)
shares = st.dictionaries(sizes, st.integers(1, 1 << 12), max_size=5)


@settings(max_examples=100)
@given(shares, st.integers(1, 12))  # the specification takes a millisecond a round
def test_prices_equal_their_specification(asked: dict[int, int], rounds: int) -> None:
    assert find_prices_fast(list(asked), list(asked.values()), rounds) == list(
        find_prices(list(asked), list(asked.values()), rounds)
    )


@settings(max_examples=200)
@given(shares)
def test_a_device_is_worth_a_device_and_room_never_hurts(asked: dict[int, int]) -> None:
    found = find_prices_fast(list(asked), list(asked.values()))
    assert found[0] == 0
    assert found[WHOLE] == UNIT * WHOLE
    assert found == sorted(found)


def test_a_share_that_wastes_the_rest_of_a_device_is_worth_all_of_it() -> None:
    """810 leaves 190, which holds a 160 at best: of those there are enough. Two 470 fill a device."""
    worth = find_prices_fast([810, 470, 160], [1000, 800, 100])
    assert worth[810] > 0.99 * worth[WHOLE]
    assert abs(worth[470] / worth[WHOLE] - 0.5) < 0.03
    assert worth[160] < 0.02 * worth[WHOLE]


@pytest.mark.parametrize(
    ("sizes", "counts"), [([0], [1]), ([1001], [1]), ([5], [0]), ([5], []), ([5] * 65, [1] * 65)]
)
def test_prices_of_what_cannot_be_are_refused(sizes: list[int], counts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"must|at most|1 to"):
        find_prices_fast(sizes, counts)


def test_what_cannot_be_is_refused() -> None:
    kernel = DeviceIndex(ROWS)
    shape = kernel.add_shape((1, 0))
    kernel.set_node(0, (1, 1), [(0, 10)], 0, 0, 0)
    for attempt in (
        lambda: DeviceIndex(0),
        lambda: DeviceIndex(1, 1001),
        lambda: kernel.add_shape((1,)),
        lambda: kernel.add_shape((-1, 0)),
        lambda: kernel.add_shape((1, 0), 1, 0),
        lambda: kernel.set_node(-1, (1, 1), [], 0, 0, 0),
        lambda: kernel.set_node(0, (1,), [], 0, 0, 0),
        lambda: kernel.set_node(0, (1, 1), [(64, 0)], 0, 0, 0),
        lambda: kernel.set_node(0, (1, 1), [(0, 1001)], 0, 0, 0),
        lambda: kernel.set_workload([((1, 1), 0, 0, 0, 1)], [0] * 1001, [0, 0]),
        lambda: kernel.set_workload([], [0], [0, 0]),
        lambda: kernel.set_scarcity([-1]),
        lambda: kernel.set_scarcity([0] * 65),
        lambda: kernel.best(shape + 1, 0),
        lambda: kernel.choose(shape, 1),
        lambda: kernel.loss(0, (1, 0), [(0, 11)]),
        lambda: kernel.loss(0, (1, 0), [(1, 1)]),
    ):
        with pytest.raises(ValueError, match=r"must|at most|beyond|amounts|not one of|no node|cannot give"):
            attempt()
    assert kernel.choose(shape, 0) == (0, ())
