"""What would make a refused request fit: it does, and nothing smaller of its kind does. **Pure.**"""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings

from scheduler.apply import apply_change
from scheduler.change import AddLabel, Change, Reduce, RelaxDevice, Tolerate
from scheduler.columns import Columns
from scheduler.model import Request, View
from scheduler.plan import plan
from scheduler.policy import PACK
from scheduler.suggest import suggest
from scheduler.verdict import judge
from tests.unit.scheduler import brute
from tests.unit.scheduler.fleets import batches, rich_batches, rich_views, views


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


@settings(max_examples=250, deadline=None)
@given(rich_views(4), rich_batches(2))
def test_every_suggestion_helps_and_nothing_smaller_does(view: View, batch: tuple[Request, ...]) -> None:
    for wanted in batch:
        check_changes(view, wanted)


@settings(max_examples=80, deadline=None)
@given(views(), batches())
def test_the_same_on_plain_fleets(view: View, batch: tuple[Request, ...]) -> None:
    for wanted in batch[:3]:
        check_changes(view, wanted)
