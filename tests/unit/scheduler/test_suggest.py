"""What would make a refused request fit: it does, and nothing smaller of its kind does. **Pure.**"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from cumulet.resources import Resources
from scheduler.answer import Rejection
from scheduler.apply import apply_change
from scheduler.change import AddLabel, AddNodes, Change, OtherFlavor, Reduce, RelaxDevice, Tolerate, shortfall
from scheduler.columns import Columns
from scheduler.model import Gang, Request, Resident, View
from scheduler.plan import explain, plan
from scheduler.policy import PACK
from scheduler.relief import FlavorOption
from scheduler.suggest import suggest, suggest_for_gang
from scheduler.verdict import judge
from tests.unit.scheduler import brute
from tests.unit.scheduler.fleets import batches, node, request, rich_batches, rich_views, views


def key_of(change: Change) -> object:
    """Changes with one key are of one kind: of them only the smallest is told."""
    match change:
        case RelaxDevice():
            return change.kind, change.want
        case Tolerate():
            return change.kind
        case AddLabel():
            return change.kind, change.key
    if change.kind in ("drop-selector", "drop-capability", "drop-group"):
        return change.kind, str(change).split("=")[0].split()[-1]
    return change.kind


def check_changes(view: View, wanted: Request) -> Counter[str]:
    """The property; returns the kinds that were found."""
    told = suggest(judge(Columns(view), wanted))
    assert [change.step for change in told] == sorted(change.step for change in told)
    by_key = {key_of(change): change for change in told}
    assert len(by_key) == len(told)
    for change in told:
        assert str(change)
        after_view, after = apply_change(view, wanted, change)
        placed = plan(after_view, [after], PACK, random.Random(0))
        assert len(placed.placements) == 1, change
    if brute.fits(view, wanted):
        assert told == ()
        return Counter()
    least: dict[object, Change] = {}
    for change in brute.every_change(view, wanted):
        known = least.get(key_of(change))
        if (known is None or change.size < known.size) and brute.helps(view, wanted, change):
            least[key_of(change)] = change
    if not any(isinstance(change, Reduce) for change in least.values()):
        for joint in brute.joint_reductions(wanted):
            known = least.get("reduce")
            if (known is None or joint.size < known.size) and brute.helps(view, wanted, joint):
                least["reduce"] = joint
    assert {key: change.size for key, change in by_key.items()} == {
        key: change.size for key, change in least.items()
    }
    return Counter(change.kind for change in told)


@settings(max_examples=250)
@given(rich_views(4), rich_batches(2))
def test_every_suggestion_helps_and_nothing_smaller_does(view: View, batch: tuple[Request, ...]) -> None:
    for wanted in batch:
        check_changes(view, wanted)


@settings(max_examples=80)
@given(views(), batches())
def test_the_same_on_plain_fleets(view: View, batch: tuple[Request, ...]) -> None:
    for wanted in batch[:3]:
        check_changes(view, wanted)


@settings(max_examples=120)
@given(rich_views(4), rich_batches(1), st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=5))
def test_of_the_flavors_that_fit_the_nearest_is_told(
    view: View, batch: tuple[Request, ...], sizes: list[tuple[int, int]]
) -> None:
    for wanted in batch:
        options = [
            FlavorOption(f"f{i}", replace(wanted, resources=Resources(*size))) for i, size in enumerate(sizes)
        ]
        told = [one for one in suggest(judge(Columns(view), wanted), options) if isinstance(one, OtherFlavor)]
        fitting = [one for one in options if brute.fits(view, one.request)]
        if brute.fits(view, wanted) or not fitting:
            assert not told
        else:
            least = min(shortfall(wanted.resources, one.request.resources) for one in fitting)
            assert [one.size for one in told] == [least]
            assert brute.helps(view, wanted, told[0])


def places(view: View, members: Sequence[Request]) -> bool:
    return not plan(view, members, PACK, random.Random(0)).rejections


def test_a_gang_is_told_how_many_nodes_it_lacks() -> None:
    gang = Gang("ring", 5)
    members = [request(str(i), vcpu=4, gang=gang) for i in range(5)]
    view = View(1, (node("big", vcpu=9, cost_milli=9), node("full", vcpu=8, allocated=Resources(8))))
    assert not places(view, members)
    # Two are on `big`; `full` is the cheaper shape and holds two as well: three more need two of it.
    assert suggest_for_gang(Columns(view), members, places) == AddNodes("full", 2)


def test_a_move_makes_room_and_every_suggestion_is_a_sentence() -> None:
    small = request("small", vcpu=2)
    crowded = node("crowded", vcpu=8, allocated=Resources(4, 2048), residents=(Resident(small),))
    view = View(1, (crowded, node("spare", vcpu=3), node("shut", vcpu=6, schedulable=False)))
    told = explain(view, request("u", vcpu=6))
    assert isinstance(told, Rejection)
    assert [str(change) for change in told.changes] == [
        "uncordon node shut",
        "ask for vcpu 4 instead of 6",
        "migrate instance default/vm-small from node crowded to spare",
        "add 1 node(s) like shut",
    ]
    assert [change.command for change in told.changes] == ["cumulet node uncordon shut", "", "", ""]
    assert told.advice() == f"{told}; it fits if you uncordon node shut"
    assert plan(view, [request("u", vcpu=6)], PACK, random.Random(0)).rejections[0].changes == told.changes
