"""The checker of plans is tested too: each planted violation is caught, and by its kind. **Pure.**"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings

from cumulet.resources import Resources
from scheduler.check import Kind, check_plan
from scheduler.model import Placement, Plan, Rejection, Request, View
from scheduler.plan import plan
from scheduler.policy import PACK
from tests.unit.scheduler.fleets import batches, node, request, views

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
        placements=tuple(replace(p, node=target) if p.uid == uid else p for p in SOUND.placements),
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


def test_every_kind_has_a_planted_violation() -> None:
    assert {kind for _, kind in PLANTED.values()} == set(Kind)


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
