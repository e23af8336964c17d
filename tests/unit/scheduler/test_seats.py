"""Seats that are kept decide as plans of the view do, whatever came and went before. **Pure.**"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from cext import measure
from cumulet.resources import Resources
from scheduler.answer import Placement
from scheduler.fleet import Fleet
from scheduler.model import NodeView, Request, View
from scheduler.packing import TICK_S
from scheduler.policy import BY_NAME
from scheduler.seats import KeptSeats, ReplannedSeats
from tests.unit.scheduler.test_specification import contended


@pytest.mark.parametrize("seed", range(60))
def test_kept_seats_decide_like_a_plan_of_the_view(seed: int) -> None:
    """Instances with groups, cells and lifetimes come and go, time goes by, nodes close and open."""
    chance = random.Random(seed)
    view, batch = contended(chance)
    policy = chance.choice(sorted(BY_NAME.values(), key=lambda one: one.name))
    kept, anew = KeptSeats(view, policy, batch), ReplannedSeats(view, policy)
    there: list[tuple[Request, Placement]] = []
    closed: list[str] = []
    for number in range(60):
        if there and chance.random() < 0.4:
            wanted, placed = there.pop(chance.randrange(len(there)))
            kept.leave(wanted, placed)
            anew.leave(wanted, placed)
        if number % 4 == 3:
            kept.advance(number * 500)
            anew.advance(number * 500)
        if number % 10 == 5:
            _close_or_open(chance, view, closed, kept, anew)
        lifetime_s = chance.choice((None, 600, 3_600, 20_000))
        wanted = replace(chance.choice(batch), uid=f"t{number}", lifetime_s=lifetime_s)
        found = kept.place((wanted,), chance)
        assert found == anew.place((wanted,), chance)
        there.extend((wanted, placed) for placed in found if placed is not None)


def _close_or_open(
    chance: random.Random, view: View, closed: list[str], kept: KeptSeats, anew: ReplannedSeats
) -> None:
    name = chance.choice(view.nodes).name
    for seats in (kept, anew):
        (seats.reopen if name in closed else seats.close)((name,))
    (closed.remove if name in closed else closed.append)(name)


@pytest.mark.parametrize("policy", ["pack", "slots", "lifetime"])
def test_a_trace_in_the_kernel_is_decided_as_by_the_seats(policy: str) -> None:
    """What the quality bench measures is what users get."""
    chance = random.Random(5)
    view = View(1, tuple(NodeView(f"n{i}", Resources(16, 48)) for i in range(30)))
    shapes = [
        Request("u", "default", "i", Resources(vcpu, mib), lifetime_s=lifetime_s)
        for vcpu, mib in ((1, 2), (2, 4), (4, 7), (8, 14), (2, 14))
        for lifetime_s in (1_800, 20_000, None)
    ]
    fleet = Fleet.of(view, BY_NAME[policy])
    fleet.prepare(shapes)
    ids = [fleet.shape(shape, fleet.levels(shape)[0].constraint) for shape in shapes]
    which = [chance.randrange(len(shapes)) for _ in range(1_500)]
    events = [x for i in range(1_500) for x in ([i, ~(i - 90)] if i >= 90 else [i])]
    time_s = np.arange(len(events)) * 300 // TICK_S * TICK_S
    at = np.full(len(which), -1, np.int32)
    trace = np.array(events, np.int32), np.array([ids[shape] for shape in which], np.int32)
    measure.replay(fleet.index, *trace, at, time_s=time_s if policy == "lifetime" else None)
    seats = KeptSeats(view, BY_NAME[policy], shapes)
    there: dict[int, Placement | None] = {}
    left: set[int] = set()
    for event, at_s in zip(events, time_s.tolist(), strict=True):
        seats.advance(at_s)
        if event >= 0:
            (there[event],) = seats.place((shapes[which[event]],), chance)
        elif (placed := there[~event]) is not None:
            seats.leave(shapes[which[~event]], placed)
            left.add(~event)
    names = [fleet.node(slot).name if slot >= 0 else None for slot in at.tolist()]
    assert names == [
        None if number in left or found is None else found.node for number, found in sorted(there.items())
    ]
    assert len(left) > 1_000
