"""The checker of plans is tested too: each planted violation is caught, and by its kind. **Pure.**"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cumulet.resources import Resources
from scheduler.answer import Placement, Plan, Rejection
from scheduler.check import Kind, check_plan
from scheduler.group import PlacementGroup, Rule, Scope
from scheduler.model import Gang, Request, Taint, View
from scheduler.plan import plan
from scheduler.policy import BY_NAME, PACK, Policy
from scheduler.topology import NOTHING, Cell, Choice, Device, DeviceRequest, DeviceShare
from tests.unit.scheduler.fleets import batches, node, request, rich_batches, rich_views, views

VIEW = View(
    5,
    (
        node("closed", schedulable=False),
        node("good", vcpu=4, memory_mib=4096, labels={"zone": "a"}, security_level=1),
        node("over", vcpu=4, allocated=Resources(6, 0)),
        node("silent", ready=False, not_ready_reason="the agent is silent"),
        node("spare", vcpu=2, memory_mib=4096, labels={"zone": "a"}, security_level=1),
    ),
)
BATCH = (
    request("a", vcpu=2, memory_mib=2048, node_selector={"zone": "a"}, security_level=1),
    request("b", vcpu=2, memory_mib=2048, excluded_nodes=frozenset({"spare"})),
    request("huge", vcpu=64),
)
SOUND = plan(VIEW, BATCH, PACK, random.Random(0))


def placed(uid: str, target: str) -> Plan:
    """The sound plan with one placement moved."""
    return replace(
        SOUND,
        placements=tuple(p._replace(node=target) if p.uid == uid else p for p in SOUND.placements),
    )


def refusal(uid: str) -> Rejection:
    return Rejection(uid, len(VIEW.nodes), (), (), ())


def without(uid: str) -> Plan:
    return replace(SOUND, placements=tuple(p for p in SOUND.placements if p.uid != uid))


PLANTED: dict[str, tuple[Callable[[], Plan], Kind]] = {
    "too many on one node": (
        lambda: replace(SOUND, placements=(*SOUND.placements, Placement("huge", "good")), rejections=()),
        Kind.OVERCOMMIT,
    ),
    "onto a node that is full already": (lambda: placed("b", "over"), Kind.OVERCOMMIT),
    "cordoned": (lambda: placed("b", "closed"), Kind.CORDONED),
    "not ready": (lambda: placed("b", "silent"), Kind.NOT_READY),
    "no such node": (lambda: placed("b", "ghost"), Kind.UNKNOWN_NODE),
    "excluded": (lambda: placed("b", "spare"), Kind.EXCLUDED),
    "security level": (lambda: placed("a", "closed"), Kind.SECURITY_LEVEL),
    "labels": (lambda: placed("a", "over"), Kind.LABELS),
    "forgotten": (lambda: without("a"), Kind.UNDECIDED),
    "forgotten refusal": (lambda: replace(SOUND, rejections=()), Kind.UNDECIDED),
    "placed twice": (
        lambda: replace(SOUND, placements=(*SOUND.placements, SOUND.placements[0])),
        Kind.DECIDED_TWICE,
    ),
    "placed and rejected": (
        lambda: replace(SOUND, rejections=(*SOUND.rejections, refusal("a"))),
        Kind.DECIDED_TWICE,
    ),
    "rejected for nothing": (
        lambda: replace(without("b"), rejections=(*SOUND.rejections, refusal("b"))),
        Kind.WRONG_REFUSAL,
    ),
    "nobody asked": (
        lambda: replace(SOUND, placements=(*SOUND.placements, Placement("stranger", "good"))),
        Kind.UNKNOWN_UID,
    ),
    "of another revision": (lambda: replace(SOUND, revision=4), Kind.OTHER_REVISION),
}


def test_the_sound_plan_is_sound_and_decides_both_ways() -> None:
    assert check_plan(VIEW, BATCH, SOUND) == []
    assert [p.uid for p in SOUND.placements] == ["a", "b"]
    assert [r.uid for r in SOUND.rejections] == ["huge"]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_caught(name: str) -> None:
    make, kind = PLANTED[name]
    violations = check_plan(VIEW, BATCH, make())
    assert kind in {violation.kind for violation in violations}
    assert all(violation.detail for violation in violations)


A, B, WHOLE = DeviceRequest(frozenset({"a"})), DeviceRequest(frozenset({"b"})), 1000
NAMED = View(
    1,
    (
        node(
            "n",
            cells=(Cell(4, 4096), Cell(4, 4096)),
            devices=(Device("0", "a", 0), Device("1", "b", 1)),
            labels={"rack": "r"},
        ),
        node("bare", taints=(Taint("old"),), dedicated_to=frozenset({"other"})),
    ),
    {
        "apart": PlacementGroup("apart", Rule.ANTI_AFFINITY),
        "racks": PlacementGroup("racks", Rule.AFFINITY, Scope.RACK),
    },
)
WRONG: dict[str, tuple[dict[str, object], str, Choice, Kind]] = {
    "taint": ({}, "bare", NOTHING, Kind.TAINT),
    "dedicated": ({}, "bare", NOTHING, Kind.DEDICATED),
    "capability": ({"capabilities": frozenset({"kvm"})}, "n", NOTHING, Kind.CAPABILITY),
    "no such group": ({"groups": ("gone",)}, "n", NOTHING, Kind.GROUP),
    "no rack": ({"groups": ("racks",)}, "bare", NOTHING, Kind.GROUP),
    "too few cells": ({"numa_cells": 2}, "n", Choice((0,)), Kind.CELLS),
    "one cell twice": ({"numa_cells": 2}, "n", Choice((0, 0)), Kind.CELLS),
    "a cell too small": ({"numa_cells": 1, "vcpu": 5}, "n", Choice((1,)), Kind.CELLS),
    "no such cell": ({"numa_cells": 1}, "n", Choice((2,)), Kind.CELLS),
    "no device": ({"devices": (A,)}, "n", NOTHING, Kind.DEVICES),
    "another model": ({"devices": (A,)}, "n", Choice((), (DeviceShare("1", WHOLE),)), Kind.DEVICES),
    "less than asked": ({"devices": (A,)}, "n", Choice((), (DeviceShare("0", 500),)), Kind.DEVICES),
    "off its cell": (
        {"devices": (B,), "numa_cells": 1},
        "n",
        Choice((0,), (DeviceShare("1", WHOLE),)),
        Kind.DEVICES,
    ),
    "unasked for": ({}, "n", Choice((), (DeviceShare("0", WHOLE),)), Kind.DEVICES),
    "half a gang": ({"gang": Gang("g", 2)}, "n", NOTHING, Kind.GANG_BROKEN),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_planted_violation_of_the_rich_model_is_caught(name: str) -> None:
    fields, target, choice, kind = WRONG[name]
    wanted = request("u", **fields)  # type: ignore[arg-type]
    violations = check_plan(NAMED, (wanted,), Plan(1, "pack", (Placement("u", target, choice),), ()))
    assert kind in {violation.kind for violation in violations}


def test_a_second_member_and_a_second_taker_are_caught() -> None:
    pair = tuple(request(uid, groups=("apart",), devices=(A,)) for uid in "uv")
    choice = Choice((), (DeviceShare("0", WHOLE),))
    decided = Plan(1, "pack", tuple(Placement(one.uid, "n", choice) for one in pair), ())
    found = {(one.kind, one.uid) for one in check_plan(NAMED, pair, decided)}
    assert found == {(Kind.GROUP, "v"), (Kind.DEVICES, "v")}


@settings(max_examples=300)
@given(rich_views(), rich_batches(), st.sampled_from(list(BY_NAME.values())))
def test_every_plan_of_every_policy_is_sound(view: View, batch: tuple[Request, ...], policy: Policy) -> None:
    assert check_plan(view, batch, plan(view, batch, policy, random.Random(0))) == []


@pytest.mark.parametrize("seed", range(60))
def test_plans_with_gangs_are_sound(seed: int) -> None:
    chance = random.Random(seed)
    view = View(1, tuple(node(f"n{i}", vcpu=chance.choice((3, 5))) for i in range(3)))
    batch = []
    for number in range(8):
        gang = Gang(chance.choice("gh"), chance.choice((2, 3))) if chance.random() < 0.6 else None
        batch.append(request(f"u{number}", vcpu=chance.choice((1, 2, 3)), gang=gang))
    sizes = {one.gang.name: one.gang for one in batch if one.gang}
    batch = [replace(one, gang=sizes[one.gang.name]) if one.gang else one for one in batch]
    assert check_plan(view, batch, plan(view, batch, PACK, random.Random(seed))) == []


def test_every_kind_has_a_planted_violation() -> None:
    planted = {kind for _, kind in PLANTED.values()} | {kind for *_, kind in WRONG.values()}
    assert planted == set(Kind)


def test_one_unit_too_many_is_caught_and_an_exact_fit_is_not() -> None:
    view = View(1, (node("n", vcpu=4, allocation_ratio={"vcpu": 1.1}),))  # floor(4.4) = 4

    def decided(count: int) -> tuple[tuple[Request, ...], Plan]:
        batch = tuple(request(str(i)) for i in range(count))
        return batch, Plan(1, "pack", tuple(Placement(r.uid, "n") for r in batch), ())

    assert check_plan(view, *decided(4)) == []
    assert [(v.kind, v.uid) for v in check_plan(view, *decided(5))] == [(Kind.OVERCOMMIT, "4")]


@settings(deadline=None)
@given(views(), batches())
def test_any_placement_turned_into_a_refusal_is_caught(view: View, batch: tuple[Request, ...]) -> None:
    decided = plan(view, batch, PACK, random.Random(0))
    for victim in decided.placements:
        forged = replace(
            decided,
            placements=tuple(p for p in decided.placements if p != victim),
            rejections=(*decided.rejections, refusal(victim.uid)),
        )
        found = {(v.kind, v.uid) for v in check_plan(view, batch, forged)}
        assert (Kind.WRONG_REFUSAL, victim.uid) in found


@settings(deadline=None)
@given(views(), batches())
def test_any_refusal_turned_into_a_placement_is_caught(view: View, batch: tuple[Request, ...]) -> None:
    decided = plan(view, batch, PACK, random.Random(0))
    for victim in decided.rejections:
        for target in view.nodes:
            forged = replace(
                decided,
                placements=(*decided.placements, Placement(victim.uid, target.name)),
                rejections=tuple(r for r in decided.rejections if r != victim),
            )
            assert check_plan(view, batch, forged)
