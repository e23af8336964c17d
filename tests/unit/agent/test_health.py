"""When a member of a load balancer counts as unhealthy, and what of it is told."""

from __future__ import annotations

import asyncio
from functools import reduce
from ipaddress import IPv4Address
from itertools import groupby

from hypothesis import given
from hypothesis import strategies as st

from agent.health import Tally, judged
from agent.health_board import Board
from agent.net.balancer import (
    BalancerIntent,
    HealthIntent,
    MemberIntent,
    Probed,
    balancer_from_json,
    balancer_to_json,
    chosen_members,
)

answers = st.lists(st.booleans(), max_size=60)
checks = st.builds(HealthIntent, st.just(""), st.just(1), st.just(1), st.integers(1, 5), st.integers(1, 5))
addresses = st.integers(1, 6).map(lambda number: IPv4Address("10.0.0.0") + number)
members = st.builds(MemberIntent, addresses, st.integers(0, 3), st.booleans(), st.integers(1, 3))
downs = st.sets(st.builds(Probed, addresses, st.integers(1, 3)))


def balancer(*found: MemberIntent, health: HealthIntent | None = None) -> BalancerIntent:
    return BalancerIntent("u", "lb", IPv4Address("10.0.0.200"), (), False, found, health)


@given(answers, checks)
def test_it_turns_after_as_many_in_a_row_as_asked_for_and_not_before(
    given_answers: list[bool], health: HealthIntent
) -> None:
    tally = reduce(lambda known, answered: judged(known, answered, health), given_answers, Tally())
    assert tally.down == _spelled_out(given_answers, health)
    assert 0 <= tally.streak < max(health.rise, health.fall)


def _spelled_out(given_answers: list[bool], health: HealthIntent) -> bool:
    """The specification: of runs of equal answers, the last that was long enough decides."""
    down = False
    for answered, run in groupby(given_answers):
        if len(list(run)) >= (health.rise if answered else health.fall):
            down = not answered
    return down


@given(st.lists(members, max_size=8), downs)
def test_somebody_gets_connections_while_anybody_is_willing(
    found: list[MemberIntent], down: set[Probed]
) -> None:
    chosen = chosen_members(balancer(*found), down)
    willing = [one for one in found if not one.drain]
    assert set(chosen) <= set(willing)
    assert bool(chosen) == bool(willing)
    assert all(one.probed not in down for one in chosen) or chosen == tuple(willing)


@given(st.lists(members, max_size=4), st.none() | checks)
def test_a_balancer_survives_the_disk(found: list[MemberIntent], health: HealthIntent | None) -> None:
    made = balancer(*found, health=health)
    assert balancer_from_json(balancer_to_json(made)) == made


async def test_the_board_wakes_whoever_tells_when_something_is_new() -> None:
    board, down = Board(), frozenset({Probed(IPv4Address("10.0.0.1"), 80)})
    await board.put("a", frozenset())
    assert board.version == 0
    waiting = asyncio.create_task(board.after(0))
    await board.put("a", down)
    assert await waiting == 1
    await board.put("a", down)
    assert (board.version, board.unhealthy) == (1, {"a": down})
    await board.put("a", frozenset())
    assert (board.version, board.unhealthy) == (2, {})
