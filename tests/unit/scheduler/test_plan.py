"""Plans: sound for every view, the same for a seed, and explained as they were decided. **Pure.**"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cumulet.resources import AMOUNT_MAX, QuantityOverflowError, Resources
from scheduler.answer import Explanation, Rejection
from scheduler.check import check_plan
from scheduler.filters import reasons_against
from scheduler.fleet import Fleet
from scheduler.group import Occupancy
from scheduler.model import (
    AllocationRatioError,
    DuplicateNodeError,
    DuplicateRequestError,
    NodeView,
    Request,
    Room,
    View,
)
from scheduler.plan import explain, explain_on, plan, plan_on
from scheduler.policy import BY_NAME, PACK, Norm, Policy, PolicyError, policy_named
from scheduler.reasons import Cordoned, LabelMismatch, NotEnough, NotReady
from scheduler.resident import without
from tests.unit.scheduler.fleets import batches, node, request, rich_batches, rich_views, views

seeds = st.integers(0, 2**32)


@settings(max_examples=300)
@given(views(), batches(), seeds)
def test_every_plan_passes_the_independent_check(view: View, batch: tuple[Request, ...], seed: int) -> None:
    assert check_plan(view, batch, plan(view, batch, PACK, random.Random(seed))) == []


@settings(deadline=None)
@given(views(), batches(), seeds, st.randoms(use_true_random=False))
def test_a_plan_does_not_depend_on_the_order_of_nodes(
    view: View, batch: tuple[Request, ...], seed: int, shuffler: random.Random
) -> None:
    shuffled = list(view.nodes)
    shuffler.shuffle(shuffled)
    first = plan(view, batch, PACK, random.Random(seed))
    assert first == plan(View(view.revision, tuple(shuffled)), batch, PACK, random.Random(seed))


@settings(deadline=None)
@given(rich_views(), batches(), seeds, st.sampled_from(list(BY_NAME.values())))
def test_explaining_beforehand_tells_the_first_decision(
    view: View, batch: tuple[Request, ...], seed: int, policy: Policy
) -> None:
    for wanted in batch[:1]:
        decided = plan(view, (wanted,), policy, random.Random(seed))
        told = explain(view, wanted, policy)
        if isinstance(told, Rejection):
            assert decided.rejections == (told,)
        else:
            assert decided.placements[0].node == told.winner.node
            _check_explanation(told, policy)


@settings(deadline=None)
@given(rich_views(), rich_batches(), st.sampled_from(sorted(BY_NAME)))
def test_a_kept_fleet_explains_like_a_new_one(view: View, batch: tuple[Request, ...], policy: str) -> None:
    """Whatever it has planned and explained before, and for an instance that is there already."""
    fleet = Fleet.of(view, BY_NAME[policy])
    for wanted in batch:
        plan_on(fleet, batch, random.Random(0), view.revision)
        assert explain_on(fleet, wanted, view.revision) == explain(view, wanted, BY_NAME[policy])
    for held in [one for one in view.nodes if one.residents]:
        own = held.residents[0].request
        rest = without(held, own)
        with fleet.instead(rest):
            told = explain_on(fleet, own, view.revision)
        nodes = tuple(rest if one is held else one for one in view.nodes)
        assert told == explain(View(view.revision, nodes, view.groups), own, BY_NAME[policy])
    assert fleet.view(view.revision) == view


def _check_explanation(explanation: Explanation, policy: Policy) -> None:
    ranked = [explanation.winner, *explanation.runners_up]
    assert len(ranked) == min(explanation.fitting_count, 4)
    if policy.name in ("pack", "pack-l1", "pack-l2", "slots") and not any(one.penalty for one in ranked):
        scores = [candidate.score for candidate in ranked]
        assert all(before <= after + 1e-6 for before, after in pairwise(scores))
    for candidate in ranked:
        if policy.name in ("pack", "energy", "cost"):
            assert candidate.score == max(0.0, *(term.share for term in candidate.terms))
        if policy.norm is Norm.SLOTS:
            assert candidate.score == sum(value for _, value in candidate.parts)
            assert {name for name, _ in candidate.parts} >= {"room_lost", "largest_share_left"}


@settings(deadline=None)
@given(views(), batches(), seeds)
def test_a_refusal_counts_every_node_and_tells_the_truth_of_the_nearest(
    view: View, batch: tuple[Request, ...], seed: int
) -> None:
    alone = batch[:1]
    for rejection in plan(view, alone, PACK, random.Random(seed)).rejections:
        against = [reasons_against(Room(n), alone[0], Occupancy(())) for n in view.nodes]
        assert rejection.node_count == len(view.nodes) == sum(count for _, count in rejection.by_first)
        assert sum(count for _, count in rejection.by_any) == sum(map(len, against))
        assert dict(rejection.by_any).keys() >= dict(rejection.by_first).keys()
        assert len(rejection.nearest) == min(3, len(view.nodes))
        assert [len(near.reasons) for near in rejection.nearest] == sorted(map(len, against))[:3]
        names = [n.name for n in view.nodes]
        assert all(near.reasons == against[names.index(near.node)] for near in rejection.nearest)
        assert str(rejection)


@settings(deadline=None)
@given(views(), batches(), seeds)
def test_a_refusal_is_told_as_things_stand_after_the_plan(
    view: View, batch: tuple[Request, ...], seed: int
) -> None:
    twice = batch + tuple(replace(r, uid=f"{r.uid}-again") for r in batch)
    decided = plan(view, twice, PACK, random.Random(seed))
    taken = {p.uid: p.node for p in decided.placements}
    after = View(
        view.revision,
        tuple(
            replace(
                n,
                allocated=Resources.total(
                    [n.allocated, *(r.resources for r in twice if taken.get(r.uid) == n.name)]
                ),
            )
            for n in view.nodes
        ),
    )
    told = [explain(after, r) for r in twice if r.uid not in taken]
    assert list(decided.rejections) == told


def test_best_fit_prefers_the_fuller_node_until_it_is_full() -> None:
    view = View(7, (node("big", 16, 16384), node("small", 4, 4096)))
    decided = plan(view, [request(str(i)) for i in range(6)], PACK, random.Random(0))
    assert [p.node for p in decided.placements] == ["small"] * 4 + ["big"] * 2
    assert decided.revision == 7


def test_instances_without_a_gpu_keep_off_gpu_nodes() -> None:
    gpu = NodeView("a-gpu", Resources(8, 8192, 100, (("gpu", 4),)), allocated=Resources(4, 4096))
    decided = plan(View(1, (gpu, node("plain"))), [request("u")], PACK, random.Random(0))
    assert decided.placements[0].node == "plain"


def test_ratios_are_taken_as_written() -> None:
    part = NodeView("n", Resources(104, 1000), Resources(4, 0), {"vcpu": 0.29, "memory_mib": 1.1})
    assert part.allocatable == Resources(29, 1100)
    assert NodeView("n", Resources(2), reserved=Resources(5)).allocatable == Resources(0)


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf"), 65.0])
def test_impossible_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(AllocationRatioError, match=r"node n: allocation_ratio\.vcpu"):
        node("n", allocation_ratio={"vcpu": ratio})


def test_a_ratio_never_wraps_64_bits() -> None:
    with pytest.raises(QuantityOverflowError):
        NodeView("n", Resources(AMOUNT_MAX), allocation_ratio={"vcpu": 4.0})


def test_contradictory_views_and_batches_are_refused() -> None:
    with pytest.raises(DuplicateNodeError, match="n1"):
        View(1, (node("n1"), node("n1")))
    with pytest.raises(DuplicateRequestError, match="vm-u"):
        plan(View(1, ()), [request("u"), request("u")], PACK, random.Random(0))


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("pak", ()),
        ("pack", (("vcpu", float("nan")),)),
        ("pack", (("vcpu", -1.0),)),
        ("pack", (("vcpu", 1e9),)),
        ("pack", (("vcpu", 1.0), ("vcpu", 2.0))),
    ],
)
def test_impossible_policies_are_refused(name: str, weights: tuple[tuple[str, float], ...]) -> None:
    with pytest.raises(PolicyError):
        policy_named(name, weights)


def test_policies_are_found_by_name() -> None:
    assert policy_named("pack") is PACK
    with pytest.raises(PolicyError, match="there is: pack"):
        policy_named("pak")


def test_a_refusal_names_every_reason_and_the_nearest_node() -> None:
    view = View(
        1,
        (
            node("n1", allocated=Resources(7, 0)),
            node("n2", schedulable=False, cordon_reason="new disks", labels={"zone": "b"}),
            node("n3", ready=False, not_ready_reason="the agent is silent", labels={"zone": "b"}),
            node("n4", vcpu=1, labels={"zone": "b"}),
        ),
    )
    told = explain(view, request("u", vcpu=2, node_selector={"zone": "b"}))
    assert isinstance(told, Rejection)
    assert told.by_first == (("cordoned", 1), ("label:zone", 1), ("not-ready", 1), ("resource:vcpu", 1))
    assert dict(told.by_any) == {"cordoned": 1, "label:zone": 1, "not-ready": 1, "resource:vcpu": 2}
    assert [near.node for near in told.nearest] == ["n4", "n2", "n3"]
    assert told.nearest[0].reasons == (NotEnough("vcpu", want=2, have=1),)
    assert told.nearest[1].reasons == (Cordoned("new disks"),)
    assert told.nearest[2].reasons == (NotReady("the agent is silent"),)
    assert str(told) == (
        "none of 4 nodes fits (resource:vcpu on 2, cordoned on 1, label:zone on 1, not-ready on 1);"
        " nearest n4: vcpu 2 is wanted, 1 is free"
    )


def test_reasons_are_sentences() -> None:
    closed = node("n", security_level=1, schedulable=False, cordon_reason="new disks", labels={"zone": "a"})
    wanted = request(
        "u",
        security_level=2,
        node_selector={"zone": "b", "disk": "ssd"},
        excluded_nodes=frozenset({"n"}),
    )
    room = Room(closed)
    room.free = {"memory_mib": -5, "vcpu": 1}
    assert [str(reason) for reason in reasons_against(room, wanted, Occupancy(()))] == [
        "the node is cordoned: new disks",
        "the request excludes the node",
        "security level 2 is wanted, the node has 1",
        "label disk='ssd' is wanted, the node has no such label",
        "label zone='b' is wanted, the node has 'a'",
        "memory_mib 1024 is wanted, -5 is free",
    ]
    assert LabelMismatch("zone", "b", "a").kind == "label:zone"


def test_an_explanation_by_slots_names_what_its_score_adds_up() -> None:
    small = request("r", vcpu=2, memory_mib=2048)
    nodes = (node("n1"), node("n2", others=((small.resources, 2),), allocated=Resources(4, 4096)))
    told = explain(View(1, nodes), request("u"), policy_named("slots"))
    assert str(told) == (
        "2 of 2 nodes fit, slots prefers n2: score 0.344 of room_lost 0.250, largest_share_left 0.094,"
        " vcpu 3 left (0.375), memory_mib 3072 left (0.375), disk_gib 100 left (0.062)"
    )


def test_an_explanation_is_a_sentence() -> None:
    told = explain(View(1, (node("n1"), node("n2", vcpu=4, memory_mib=4096))), request("u"))
    assert isinstance(told, Explanation)
    assert str(told) == (
        "2 of 2 nodes fit, pack prefers n2: score 0.375 of"
        " vcpu 3 left (0.375), memory_mib 3072 left (0.375), disk_gib 100 left (0.062)"
    )
    assert str(explain(View(1, ()), request("u"))) == "there are no nodes"
