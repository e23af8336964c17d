"""Seats that are kept decide as plans of the view do, whatever came and went before. **Pure.**"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from scheduler.model import Placement, Request, View
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
