"""The kept fleet equals one that is made anew, whatever changed; its witness judges as the whole fleet does.

**Pure**: a State over an Mvcc, no store.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controller.fleet import build_node, build_view
from controller.reconcile.fleetview import FleetView
from controller.scheduling import others_of, residents_of
from controller.store import keys
from controller.tables import Stored
from cumulet.convert import resources_from
from cumulet.resources import Resources
from cumulet.v1 import meta_pb2, placementgroup_pb2, store_pb2
from scheduler.answer import Placement, Plan, Rejection
from scheduler.check import check_plan
from scheduler.fleet import Fleet
from scheduler.model import NodeView, Request
from scheduler.plan import plan_on
from scheduler.policy import PACK, policy_named
from tests.unit.controller.cloud import Paper
from tests.unit.controller.placing import node

NODES = st.sampled_from(["n0", "n1", "n2"])
UIDS = st.sampled_from([f"u{number}" for number in range(6)])
SLOTS = policy_named("slots")


def record(uid: str, where: str, vcpu: int = 1, groups: Iterable[str] = ()) -> store_pb2.PlacementRecord:
    resources = meta_pb2.Resources(vcpu=vcpu, memory_mib=512 * vcpu)
    return store_pb2.PlacementRecord(
        instance_uid=uid, project="p1", name=uid, node=where, epoch=1, resources=resources, groups=groups
    )


def group(
    name: str,
    rule: placementgroup_pb2.PlacementRule.ValueType = placementgroup_pb2.PLACEMENT_RULE_ANTI_AFFINITY,
) -> dict[bytes, bytes | None]:
    made = placementgroup_pb2.PlacementGroup(
        meta=meta_pb2.Meta(name=name, project="p1"),
        spec=placementgroup_pb2.PlacementGroupSpec(rule=rule),
    )
    return {keys.PLACEMENT_GROUPS.key("p1", name): made.SerializeToString()}


class Kept(RuleBasedStateMachine):
    """Anything may happen to nodes and placements, and anything may be assumed."""

    def __init__(self) -> None:
        super().__init__()
        self.paper = Paper()
        self.views = [FleetView(self.paper.state, policy) for policy in (PACK, SLOTS)]
        for view in self.views:
            self.paper.state.listen(view.note_change)
        self.assumed: dict[str, store_pb2.PlacementRecord] = {}

    @rule(name=NODES, vcpu=st.integers(1, 8), cordoned=st.booleans())
    def set_node(self, name: str, vcpu: int, cordoned: bool) -> None:
        self.paper.write(dict(node(name, vcpu, cordoned=cordoned)))

    @rule(name=NODES)
    def remove_node(self, name: str) -> None:
        self.paper.write({keys.NODES.key(name): None})

    @rule(uid=UIDS, where=NODES, vcpu=st.integers(0, 3), groups=st.sampled_from([(), ("apart",)]))
    def assume(self, uid: str, where: str, vcpu: int, groups: tuple[str, ...]) -> None:
        if self.paper.state.placement_of(uid) is None:
            self.assumed[uid] = record(uid, where, vcpu, groups)
            for view in self.views:
                view.assume(uid, where, Stored(self.assumed[uid], -1, -1))

    @rule(uid=UIDS)
    def drop(self, uid: str) -> None:
        known = self.assumed.pop(uid, None)
        for view in self.views:
            assert view.drop(uid) == (known.node if known else None)

    @rule(uid=UIDS)
    def land(self, uid: str) -> None:
        """What was assumed is seen in the State."""
        known = self.assumed.pop(uid, None)
        if known is not None:
            self.paper.put(keys.PLACEMENTS, (known.node, uid), known)

    @rule(uid=UIDS, where=NODES, vcpu=st.integers(0, 3), groups=st.sampled_from([(), ("apart",)]))
    def place(self, uid: str, where: str, vcpu: int, groups: tuple[str, ...]) -> None:
        """Somebody else's placement, which ends what was assumed."""
        if self.paper.state.placement_of(uid) is None:
            self.assumed.pop(uid, None)
            self.paper.put(keys.PLACEMENTS, (where, uid), record(uid, where, vcpu, groups))

    @rule(uid=UIDS)
    def remove(self, uid: str) -> None:
        row = self.paper.state.placement_of(uid)
        if row is not None:
            self.paper.write({keys.PLACEMENTS.key(row.message.node, uid): None})

    @rule()
    def set_group(self) -> None:
        self.paper.write(group("apart"))

    @precondition(lambda self: self.paper.state.rows(keys.NODES))
    @rule()
    def renew(self) -> None:
        for view in self.views:
            view.renew()

    @invariant()
    def nodes_are_as_if_made_anew(self) -> None:
        expected = sorted(
            (self.anew(name) for (name,) in self.paper.state.rows(keys.NODES)), key=lambda n: n.name
        )
        for view, counts in zip(self.views, (False, True), strict=True):
            fleet = view.fleet()
            kept = sorted(fleet.nodes(), key=lambda one: one.name)
            assert list(map(comparable, kept)) == [comparable(one, counts=counts) for one in expected]
            assert all(view.look(one.name) is not None for one in kept)

    def anew(self, name: str) -> NodeView:
        state = self.paper.state
        row, status = state.find(keys.NODES, name), state.find(keys.NODE_STATUS, name)
        assert row is not None
        assert status is not None
        there = [
            *state.placements_on(name).values(),
            *(Stored(one, -1, -1) for one in self.assumed.values() if one.node == name),
        ]
        allocated = Resources.total(resources_from(one.message.resources) for one in there)
        return build_node(
            row.message, status.message, allocated, tuple(residents_of(there)), others_of(there)
        )


def comparable(one: NodeView, *, counts: bool = True) -> object:
    """The node in a form that does not depend on the order of its instances."""
    residents = sorted(one.residents, key=lambda resident: resident.request.uid)
    others = sorted(one.others, key=str) if counts else []
    return one.holding(one.allocated, tuple(residents), tuple(others))


TestKept = Kept.TestCase
TestKept.settings = settings(max_examples=60, stateful_step_count=25)


def test_a_placement_that_lands_as_it_was_assumed_changes_nothing() -> None:
    paper = Paper()
    view = FleetView(paper.state, PACK)
    paper.state.listen(view.note_change)
    paper.write(dict(node("n1")))
    view.assume("u1", "n1", Stored(record("u1", "n1"), -1, -1))
    before = view.fleet().node(0)
    paper.put(keys.PLACEMENTS, ("n1", "u1"), record("u1", "n1"))
    assert view.fleet().node(0) is before
    assert view.look("n1") == before
    assert view.drop("u1") is None


@settings(max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([(), ("apart",), ("near",)])), max_size=6),
    st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from([(), ("apart",), ("near",)])), min_size=1, max_size=5
    ),
    st.lists(st.integers(0, 4), min_size=5, max_size=5),
    st.integers(0, 2**32),
)
def test_the_witness_judges_as_the_whole_fleet_does(
    there: list[tuple[int, tuple[str, ...]]],
    wanted: list[tuple[int, tuple[str, ...]]],
    choices: list[int],
    seed: int,
) -> None:
    """Right plans and wrong ones: any node or a refusal for each request."""
    paper = Paper()
    paper.write(group("apart") | group("near", placementgroup_pb2.PLACEMENT_RULE_AFFINITY))
    for index in range(4):
        paper.write(dict(node(f"n{index}", 6)))
    view = FleetView(paper.state, PACK)
    paper.state.listen(view.note_change)
    for number, (index, groups) in enumerate(there):
        made = record(f"t{number}", f"n{index}", 1, groups)
        if number % 2:
            view.assume(f"t{number}", f"n{index}", Stored(made, -1, -1))
        else:
            paper.put(keys.PLACEMENTS, (f"n{index}", f"t{number}"), made)
    requests = [
        Request(f"u{n}", "p1", f"u{n}", Resources(vcpu=vcpu), groups=tuple(f"p1/{name}" for name in groups))
        for n, (vcpu, groups) in enumerate(wanted)
    ]
    fleet = view.fleet()
    for plan in (plan_on(fleet, requests, random.Random(seed), 7), invented(fleet, requests, choices)):
        assert check_plan(view.witness(fleet, requests, plan), requests, plan) == check_plan(
            fleet.view(7), requests, plan
        )


def invented(fleet: Fleet, requests: list[Request], choices: list[int]) -> Plan:
    placed = [
        Placement(one.uid, f"n{choice}") for one, choice in zip(requests, choices, strict=False) if choice < 4
    ]
    refused = [
        Rejection(one.uid, 4, (), (), ())
        for one, choice in zip(requests, choices, strict=False)
        if choice == 4
    ]
    return Plan(7, fleet.policy.name, tuple(placed), tuple(refused))


def test_without_anything_assumed_it_is_the_view_of_the_state() -> None:
    paper = Paper()
    for index in range(3):
        paper.write(dict(node(f"n{index}")))
    paper.put(keys.PLACEMENTS, ("n1", "u1"), record("u1", "n1", 2, ("apart",)))
    view = FleetView(paper.state, PACK)
    assert view.fleet().view(paper.state.revision).nodes == build_view(paper.state, PACK).nodes


def test_a_node_is_busy_until_the_last_hint_or_nobody_knows() -> None:
    paper = Paper().seed()
    paper.add_node("n9")
    view = FleetView(paper.state, policy_named("lifetime"))
    paper.state.listen(view.note_change)
    assert view.fleet().node(0).busy_until_s == 0
    for name, hint_s, until_s in (
        ("a", 600, 3_600),
        ("b", 30_000, 36_000),
        ("c", 60, 36_000),
        ("d", 0, None),
    ):
        paper.add_instance(name, expected_lifetime_s=hint_s)
        paper.place(name, "n9")
        seen = [node.busy_until_s for node in view.fleet().nodes() if node.name == "n9"]
        assert seen == [until_s]
    plain = FleetView(paper.state, SLOTS)
    assert {node.busy_until_s for node in plain.fleet().nodes()} == {None}
