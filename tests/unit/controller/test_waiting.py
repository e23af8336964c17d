"""Fairness between projects, and who among the refused is woken when.

**Pure.**
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.reconcile.waiting import RETRY_MAX_S, RETRY_S, FairQueue, RefusedBook
from cumulet.resources import Resources
from scheduler.group import Occupancy
from scheduler.model import Gang, NodeView, Request

NOBODY = Occupancy(())


def request(uid: str, project: str = "p", vcpu: int = 4, **more: object) -> Request:
    return replace(Request(uid, project, uid, Resources(vcpu=vcpu, memory_mib=1024)), **more)  # type: ignore[arg-type]


def node(name: str = "n", vcpu: int = 8, **more: object) -> NodeView:
    return replace(NodeView(name, Resources(vcpu=vcpu, memory_mib=1 << 20)), **more)  # type: ignore[arg-type]


def book(*requests: Request, now: float = 0.0) -> RefusedBook:
    made = RefusedBook(random.Random(1))
    for one in requests:
        made.add(one, now)
    return made


def test_a_project_with_ten_thousand_holds_nobody_up() -> None:
    queue = FairQueue()
    for number in range(10_000):
        queue.add(f"big-{number}", "big")
    queue.add("small-0", "small")
    assert queue.take(3) == ["big-0", "small-0", "big-1"]


def test_turns_go_on_where_they_ended() -> None:
    queue = FairQueue()
    for project in "abc":
        for number in range(3):
            queue.add(f"{project}{number}", project)
    assert queue.take(2) == ["a0", "b0"]
    assert queue.take(2) == ["c0", "a1"]


def test_what_comes_back_is_first_of_its_project() -> None:
    queue = FairQueue()
    for uid in ("a", "b", "c"):
        queue.add(uid, "p")
    (taken,) = queue.take(1)
    queue.add_first(taken, "p")
    assert queue.take(3) == ["a", "b", "c"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add_first", "discard", "take"]), st.integers(0, 12), st.integers(1, 5)
        )
    )
)
def test_the_queue_loses_and_repeats_nobody(steps: list[tuple[str, int, int]]) -> None:
    queue, waiting = FairQueue(), dict[str, str]()
    for step, number, limit in steps:
        uid, project = f"u{number}", f"p{number % 3}"
        if step == "take":
            taken = queue.take(limit)
            assert len(taken) == min(limit, len(waiting))
            each = Counter(waiting[one] for one in taken)
            left = Counter(project for one, project in waiting.items() if one not in taken)
            for one in taken:
                del waiting[one]
            assert all(each[p] >= max(each.values()) - 1 for p in left), "a project was passed over"
        elif step == "discard":
            queue.discard(uid)
            waiting.pop(uid, None)
        else:
            getattr(queue, step)(uid, project)
            waiting.setdefault(uid, project)
        assert len(queue) == len(waiting)
        assert all(one in queue for one in waiting)
    assert sorted(queue.take(100)) == sorted(waiting)


def test_a_refused_one_is_tried_again_later_and_later() -> None:
    refused, now, delays = RefusedBook(random.Random(1)), 0.0, []
    for _ in range(8):
        refused.add(request("a"), now)
        due = refused.next_due()
        assert due is not None
        assert refused.wake_due(due - 0.01) == []
        assert refused.wake_due(due) == ["a"]
        delays.append(due - now)
        now = due
    assert delays[0] == pytest.approx(RETRY_S, rel=0.1)
    assert delays[1] == pytest.approx(2 * RETRY_S, rel=0.1)
    assert delays[-1] == pytest.approx(RETRY_MAX_S, rel=0.1)
    refused.add(request("a"), now)
    refused.forget("a")
    assert refused.next_due() is None
    refused.add(request("a"), now)
    assert refused.next_due() == pytest.approx(now + RETRY_S, abs=0.1 * RETRY_S)


def test_a_node_wakes_only_those_that_it_could_take() -> None:
    refused = book(request("small", vcpu=2), request("large", vcpu=16), request("marked", security_level=3))
    assert refused.wake_fitting([node(vcpu=2)], NOBODY) == ["small"]
    assert refused.wake_fitting([node(vcpu=16, ready=False)], NOBODY) == []
    assert refused.wake_fitting([node(vcpu=16)], NOBODY) == ["large"]
    assert refused.wake_fitting([node(vcpu=4, security_level=3)], NOBODY) == ["marked"]
    assert len(refused) == 0


def test_room_for_two_wakes_two_of_many() -> None:
    refused = book(*(request(f"u{number}") for number in range(100)))
    assert refused.wake_fitting([node(vcpu=9)], NOBODY) == ["u0", "u1"]
    assert "u0" not in refused
    assert len(refused) == 98


def test_a_gang_is_woken_whole() -> None:
    gang = Gang("p/g", 3)
    refused = book(*(request(f"u{number}", gang=gang) for number in range(3)), request("alone"))
    assert refused.wake_fitting([node(vcpu=4)], NOBODY) == ["u0", "u1", "u2", "alone"]


def test_more_than_can_be_looked_at_wakes_everyone() -> None:
    refused = book(*(request(f"u{number}", vcpu=100 + number) for number in range(50)))
    assert len(refused.wake_fitting([node(f"n{number}") for number in range(100)], NOBODY)) == 50
    assert refused.next_due() is None
