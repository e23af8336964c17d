"""What-ifs say what the planner then does; N+k equals trying every loss; documents and steps read back.

**Pure** but for files in a temporary folder.
"""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cumulet.resources import Resources
from scheduler.answer import Placement
from scheduler.files import FileError, read_trace, read_world, write_trace, write_world
from scheduler.model import NodeView, Request, View
from scheduler.pictures import draw_report
from scheduler.plan import plan
from scheduler.policy import PACK, policy_named
from scheduler.resident import resident_of
from scheduler.scene import render_svg, squarify
from scheduler.simulate import simulate
from scheduler.steps import (
    AddInstances,
    AddNodes,
    AddNodesLike,
    CheckFailures,
    DrainNode,
    LoseNodes,
    PlaceAnew,
    Shape,
    StepError,
    UnknownNameError,
    parse_step,
)
from scheduler.trace import STAYS, Arrival, Trace
from scheduler.whatif import what_if
from scheduler.world import World

FLAVORS = {
    name: Request(name, "default", name, Resources(vcpu, memory_mib))
    for name, vcpu, memory_mib in (("small", 1, 2), ("large", 4, 3), ("fat", 1, 6))
}
STEPS = (
    "add=50xsmall",
    "lose-node=n1,n2",
    "lose-rack=r1",
    "lose-zone=a",
    "drain=n1",
    "add-nodes=3x64x196608@rack=r9,zone=a",
    "add-nodes=1x64x196608x20+gpu=2",
    "add-like=3xn1",
    "add-like=1xn1x2@rack=r9",
    "policy=spread",
    "place-anew",
    "n-plus=1",
    "n-plus=2/rack",
)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Two to five nodes with instances that the planner has placed."""
    sizes = draw(st.lists(st.tuples(st.integers(2, 8), st.integers(2, 12)), min_size=2, max_size=5))
    nodes = tuple(
        NodeView(f"n{index}", Resources(vcpu, memory), labels={"rack": f"r{index % 2}"})
        for index, (vcpu, memory) in enumerate(sizes)
    )
    world = World(View(1, nodes), FLAVORS, policy=policy_named(draw(st.sampled_from(("pack", "spread")))))
    adds = draw(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(sorted(FLAVORS))), max_size=4))
    return what_if(world, [AddInstances(*one) for one in adds]).end


@given(worlds(), st.integers(1, 4), st.sampled_from(sorted(FLAVORS)))
@settings(max_examples=60)
def test_what_is_foretold_is_what_the_planner_then_does(world: World, count: int, flavor: str) -> None:
    outcome = what_if(world, [AddInstances(count, flavor)], seed=3).outcomes[0]
    decided = {one.uid for one in outcome.placed} | {one.request.uid for one in outcome.unplaced}
    new = sorted(decided - {request.uid for request in world.waiting})
    assert len(new) == count
    resources = FLAVORS[flavor].resources
    asked = [*world.waiting, *(Request(uid, "default", uid, resources) for uid in new)]
    made = plan(world.view, asked, world.policy, random.Random(3))
    assert made.placements == outcome.placed
    assert [one.uid for one in made.rejections] == [one.request.uid for one in outcome.unplaced]


@given(worlds(), st.integers(1, 2), st.integers(0, 5))
@settings(max_examples=60)
def test_n_plus_k_equals_losing_every_set(world: World, count: int, seed: int) -> None:
    found = what_if(world, [CheckFailures(count)], seed).outcomes[0].resilience
    assert found is not None
    assert found.complete
    expected = {}
    for lost in combinations(sorted(node.name for node in world.view.nodes), count):
        alone = World(world.view, FLAVORS, policy=world.policy)  # who waited already is another question
        unplaced = what_if(alone, [LoseNodes(lost)], seed).outcomes[0].unplaced
        if unplaced:
            expected[lost] = {one.request.uid for one in unplaced}
    assert {one.lost: {request.uid for request in one.unplaced} for one in found.failures} == expected


@given(worlds())
@settings(max_examples=30)
def test_headroom_is_what_fits(world: World) -> None:
    for one in what_if(world, []).before.headroom:
        alone = World(world.view, FLAVORS, policy=world.policy)
        outcome = what_if(alone, [AddInstances(one.count + 1, one.flavor)]).outcomes[0]
        assert (len(outcome.placed), len(outcome.unplaced)) == (one.count, 1)


def occupied(node: NodeView, *requests: Request) -> NodeView:
    for request in requests:
        node = resident_of(node, request, Placement(request.uid, node.name))
    return node


def test_a_node_that_joins_is_as_the_world_says_or_as_the_one_it_is_like() -> None:
    """Without ratio and capabilities of its own cloud a new node would take less than it really will."""
    fresh = NodeView("new", Resources(), allocation_ratio={"vcpu": 4.0}, capabilities=frozenset({"kvm"}))
    old = NodeView("n1", Resources(2, 8), labels={"rack": "r1"}, schedulable=False, cordon_reason="old")
    small = Request("small", "default", "small", Resources(1, 1), capabilities=frozenset({"kvm"}))
    world = World(View(1, (occupied(old, FLAVORS["fat"]),)), {"small": small}, fresh=fresh)
    found = what_if(world, [AddNodes(Shape(1, Resources(1, 8))), AddInstances(5, "small")])
    assert [one.node for one in found.outcomes[1].placed] == ["new-0-00000"] * 4
    assert len(found.outcomes[1].unplaced) == 1
    copies = what_if(world, [AddNodesLike(2, "n1", {"zone": "b"})]).end.view.nodes[1:]
    assert [(one.name, dict(one.labels)) for one in copies] == [
        ("new-0-00000", {"rack": "r1", "zone": "b"}),
        ("new-0-00001", {"rack": "r1", "zone": "b"}),
    ]
    assert all(one.schedulable and one.allocated.is_zero() and not one.residents for one in copies)


@pytest.mark.parametrize("step", [DrainNode("n1"), LoseNodes(("n1",)), PlaceAnew()])
def test_who_is_on_the_way_out_holds_room_and_is_not_placed_again(step: DrainNode) -> None:
    large = FLAVORS["large"]
    leaving = Request("leaving", "default", "leaving", large.resources)
    nodes = (occupied(NodeView("n1", Resources(8, 12)), leaving, large), NodeView("n2", Resources(4, 6)))
    world = World(View(1, nodes), FLAVORS, leaving=frozenset({"leaving"}))
    assert what_if(world, []).before.headroom[1].count == 1  # one large of n2's room: n1 is full
    found = what_if(world, [CheckFailures(1), step])  # of the loss of n1, too
    assert {one.request.uid for one in found.end.residents()} == {"large"}
    assert found.fits


def test_it_fits_when_in_the_end_nobody_new_waits_and_the_last_check_holds() -> None:
    add, check, more = AddInstances(1, "large"), CheckFailures(1), AddNodesLike(1, "n1")
    huge = Request("huge", "default", "huge", Resources(64))
    world = World(View(1, (NodeView("n1", Resources(4, 6)),)), FLAVORS, (huge,))
    assert what_if(world, [add]).fits  # huge waited before
    assert not what_if(world, [add, add]).fits
    assert what_if(world, [add, add, more]).fits
    assert not what_if(world, [add, check]).fits
    assert what_if(world, [add, check, more, check]).fits
    assert not what_if(world, [add, check, more, CheckFailures(2)]).fits  # the first is another question


@pytest.mark.parametrize(
    ("text", "kind"),
    [("add=1xtiny", "flavor"), ("drain=n9", "node"), ("lose-rack=r9", "rack"), ("add-like=1xn9", "node")],
)
def test_an_unknown_name_says_of_what_kind_and_in_which_step(text: str, kind: str) -> None:
    world = World(View(1, (NodeView("n1", Resources(4, 6), labels={"rack": "r1"}),)), FLAVORS)
    with pytest.raises(UnknownNameError) as caught:
        what_if(world, [parse_step("n-plus=1"), parse_step(text)])
    assert (caught.value.kind, caught.value.number) == (kind, 1)


def test_the_pulse_ends_a_what_if_between_its_parts() -> None:
    beats = 0

    def pulse() -> None:
        nonlocal beats
        beats += 1
        if beats > 3:
            raise TimeoutError

    world = World(View(1, tuple(NodeView(f"n{i}", Resources(4, 6)) for i in range(9))), FLAVORS)
    with pytest.raises(TimeoutError):
        what_if(world, [CheckFailures(2)], pulse=pulse)
    assert beats == 4


@pytest.mark.parametrize("text", STEPS)
def test_steps_read_back(text: str) -> None:
    assert str(parse_step(text)) == text


@pytest.mark.parametrize(
    "text", ["add=50", "add=0xsmall", "n-plus=9", "policy=nope", "fly=1", "add-nodes=3x", "add-like=3"]
)
def test_a_bad_step_says_which(text: str) -> None:
    with pytest.raises(StepError, match=text.split("=", maxsplit=1)[0]):
        parse_step(text)


@given(worlds(), st.sampled_from((".yaml", ".json", ".yaml.gz")))
@settings(max_examples=20)
def test_fleet_files_read_back(tmp_path_factory: pytest.TempPathFactory, world: World, suffix: str) -> None:
    path = tmp_path_factory.mktemp("fleet") / f"fleet{suffix}"
    write_world(path, world)
    assert read_world(path) == world


def test_a_fault_in_a_file_has_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("nodes:\n  - name: a\n    capacity: {vcpu: 1}\n  - name: b\n    capacity: {vcpu: -1}\n")
    with pytest.raises(FileError) as caught:
        read_world(path)
    assert (caught.value.line, caught.value.field) == (5, "nodes[1].capacity.vcpu")


def test_traces_read_back(tmp_path: Path) -> None:
    shape = Request("", "shop", "a", Resources(2, 4, 0, (("gpu", 1),)), node_selector={"disk": "ssd"})
    trace = Trace.of([Arrival(1.5, 4.0, shape), Arrival(0.0, STAYS, FLAVORS["small"])])
    write_trace(tmp_path / "t.csv", trace)
    found = read_trace(tmp_path / "t.csv")
    assert [(one.arrival_s, one.departure_s, one.request.resources) for one in found.arrivals()] == [
        (one.arrival_s, one.departure_s, one.request.resources) for one in trace.arrivals()
    ]


def test_a_departure_makes_room_for_an_arrival_of_the_same_time() -> None:
    shape = Request("", "p", "a", Resources(4, 4))
    trace = Trace.of([Arrival(0, 5, shape), Arrival(5, 9, shape), Arrival(6, 9, shape)])
    result, series = simulate(View(0, (NodeView("n", Resources(4, 4)),)), trace, PACK, samples=10)
    assert (result.rejected, result.peak_nodes, result.peak_bound, result.offered_bound_peak) == (1, 1, 1, 2)
    assert result.first_failure is not None
    assert (result.first_failure.time_s, series.rejected[-1]) == (6.0, 1)


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=30))
def test_tiles_have_their_areas_and_fill_the_box(weights: list[float]) -> None:
    tiles = squarify(weights, 0, 0, 30, 20)
    for weight, (x, y, width, height) in zip(weights, tiles, strict=True):
        assert width * height == pytest.approx(600 * weight / sum(weights), rel=1e-6)
        assert -1e-6 <= x <= x + width <= 30 + 1e-6
        assert -1e-6 <= y <= y + height <= 20 + 1e-6


def test_the_picture_shows_every_node_on_both_sides() -> None:
    nodes = tuple(NodeView(f"n{index}", Resources(4, 4)) for index in range(3))
    report = what_if(World(View(1, nodes), FLAVORS), [AddInstances(2, "small"), LoseNodes(("n1",))])
    root = ET.fromstring(render_svg(draw_report(report)))
    tips = [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}title")][1:]
    assert sum(tip.startswith(("n0", "n1", "n2")) for tip in tips) == 6
    assert sum("not ready: lost" in tip for tip in tips) == 1
