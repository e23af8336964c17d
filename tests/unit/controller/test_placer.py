"""The placer on a real store: what is placed, what a conflict or a wrong planner costs, who waits for whom.

**Edge** in virtual time: the memory store, which passes etcd's contract.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import controller.reconcile.placer as placer_module
from controller.reconcile.status import NO_CAPACITY, PLANNER_FAULT
from controller.reconcile.waiting import RETRY_MAX_S
from controller.store import keys
from controller.store.memory import NoFaults
from controller.store.protocol import OutcomeUnknownError, Put, Txn, TxnResult
from cumulet.v1 import store_pb2
from scheduler.answer import Placement, Plan
from scheduler.fleet import Fleet
from scheduler.model import ModelError, Request
from scheduler.plan import plan_on
from tests.sim.loop import run_virtual
from tests.unit.controller.placing import Placing, gang, node, pending, placing

Planner = Callable[[Fleet, Sequence[Request], random.Random, int], Plan]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    run_virtual(scenario)


def quarantined(here: Placing, why: str) -> float:
    return here.metrics.registry.get_sample_value("cumulet_scheduler_quarantined_total", {"why": why}) or 0.0


@settings(max_examples=40)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(1, 10), st.sampled_from("abc")), max_size=40),
)
def test_all_are_decided_and_nothing_is_overcommitted(
    sizes: list[int], wanted: list[tuple[int, str]]
) -> None:
    async def scenario() -> None:
        nodes = {key: value for i, size in enumerate(sizes) for key, value in node(f"n{i}", size).items()}
        waiting = [pending(f"i{i}", project, vcpu) for i, (vcpu, project) in enumerate(wanted)]
        async with placing(nodes, waiting) as here:
            await here.decided(len(waiting))
            vcpu = {one.meta.name: one.spec.resources.vcpu for one in waiting}
            left = {f"n{i}": size for i, size in enumerate(sizes)}
            for name, where in here.placed.items():
                left[where] -= vcpu[name]
            assert min(left.values()) >= 0
            unplaced = [vcpu[name] for name in vcpu if name not in here.placed]
            assert all(want > max(left.values()) for want in unplaced)

    run(scenario())


def test_one_that_fits_nowhere_waits_with_its_reason_until_there_is_room() -> None:
    async def scenario() -> None:
        async with placing(node("n1", 4), [pending("big", vcpu=8), pending("small")]) as here:
            await here.decided(2)
            assert here.placed == {"small": "n1"}
            refusal = here.refusals["uid-big"]
            assert refusal.reason == NO_CAPACITY
            assert "n1" in refusal.text
            await here.write(dict(node("n2", 8)))
            await here.until(lambda: here.placed.get("big") == "n2")
            assert not here.refusals

    run(scenario())


def test_a_project_that_cannot_be_placed_holds_up_nobody() -> None:
    async def scenario() -> None:
        huge = [pending(f"huge{i}", "greedy", vcpu=99) for i in range(2_000)]
        async with placing(node("n1", 8), huge) as here:
            await here.write(
                {keys.INSTANCES.key("modest", "one"): pending("one", "modest").SerializeToString()}
            )
            await here.until(lambda: "one" in here.placed)
            assert len(here.refusals) < 1_500

    run(scenario())


def test_a_gang_is_placed_whole_or_not_at_all() -> None:
    async def scenario() -> None:
        members = [pending(f"g{i}", vcpu=3, gang=gang("ring", 3)) for i in range(3)]
        async with placing(node("n1", 4) | node("n2", 4), members) as here:
            await here.decided(3)
            assert not here.placed
            await here.write(dict(node("n3", 4)))
            await here.until(lambda: len(here.placed) == 3)
            assert set(here.placed.values()) == {"n1", "n2", "n3"}

    run(scenario())


class Interloper(NoFaults):
    """Changes the store while the placer's first transactions are under way."""

    def __init__(self, times: int, act: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self.times = times
        self._act = act

    async def before_commit(self, txn: Txn) -> float:
        if txn.purpose == "place" and self.times:
            self.times -= 1
            await self._act()
        return 0.0


def test_one_whose_guard_fails_takes_no_others_with_it() -> None:
    """It is marked deleted between the plan and its commit, each time something else is tried."""

    async def scenario() -> None:
        made: Placing
        gone = pending("gone")
        gone.meta.deleted_at.GetCurrentTime()

        async def mark() -> None:
            await made.write({keys.INSTANCES.key("p1", "gone"): gone.SerializeToString()})

        waiting = [pending(f"i{i}") for i in range(30)] + [pending("gone")]
        async with placing(node("n1", 64), waiting, Interloper(1, mark)) as here:
            made = here
            await here.until(lambda: len(here.placed) == 30)
            assert "gone" not in here.placed
            await asyncio.sleep(RETRY_MAX_S)
            assert len(here.placed) == 30

    run(scenario())


def test_a_placement_of_somebody_else_is_not_overcommitted() -> None:
    """Another leader's, on the way when ours was planned."""

    async def scenario() -> None:
        made: Placing
        foreign = store_pb2.PlacementRecord(
            instance_uid="uid-foreign", project="p1", name="foreign", node="n1", epoch=1
        )
        foreign.resources.CopyFrom(pending("foreign", vcpu=7).spec.resources)

        async def take() -> None:
            await made.write({keys.PLACEMENTS.key("n1", "uid-foreign"): foreign.SerializeToString()})

        async with placing(node("n1", 8), [pending("ours", vcpu=4)], Interloper(1, take)) as here:
            made = here
            await here.until(lambda: "uid-ours" in here.refusals)
            assert here.placed == {"foreign": "n1"}

    run(scenario())


class Mute(NoFaults):
    """Commits, and does not say so, the first time."""

    def __init__(self) -> None:
        self.done = False

    async def after_commit(self, txn: Txn, result: TxnResult) -> None:
        if txn.purpose == "place" and not self.done:
            self.done = True
            raise OutcomeUnknownError("no answer")


def test_a_commit_that_is_not_answered_is_found_out() -> None:
    async def scenario() -> None:
        async with placing(node("n1", 8), [pending("one")], Mute()) as here:
            await here.until(lambda: here.placed)
            await asyncio.sleep(RETRY_MAX_S)
            record = here.state.placement_of("uid-one")
            assert record is not None
            assert record.message.epoch == 1
            assert record.create_revision == record.mod_revision

    run(scenario())


def wrong_about(culprits: set[str], node_name: str = "n1") -> Planner:
    """The real planner, but for these: they are put on that node, whether it has room or not."""

    def decide(fleet: Fleet, requests: Sequence[Request], rng: random.Random, revision: int) -> Plan:
        made = plan_on(fleet, requests, rng, revision)
        bad = [Placement(request.uid, node_name) for request in requests if request.name in culprits]
        uids = {placed.uid for placed in bad}
        return replace(
            made,
            placements=(*(placed for placed in made.placements if placed.uid not in uids), *bad),
            rejections=tuple(one for one in made.rejections if one.uid not in uids),
        )

    return decide


def test_a_wrong_plan_is_not_committed_and_its_cause_is_set_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(placer_module, "plan_on", wrong_about({"huge1", "huge2"}))
        waiting = [pending(f"i{i}", "abc"[i % 3]) for i in range(100)]
        waiting[37:37] = [pending("huge1", "b", vcpu=99)]
        waiting[80:80] = [pending("huge2", "c", vcpu=99)]
        async with placing(node("n1", 64) | node("n2", 64), waiting) as here:
            await here.until(lambda: len(here.placed) == 100)
            await here.until(lambda: len(here.refusals) == 2)
            assert set(here.refusals) == {"uid-huge1", "uid-huge2"}
            for refusal in here.refusals.values():
                assert refusal.reason == PLANNER_FAULT
                assert "overcommit on node n1" in refusal.text
            assert quarantined(here, "contradiction") == 2
            await here.write(dict(node("n3", 8)))  # what wakes the refused does not wake these
            await asyncio.sleep(1.0)
            assert quarantined(here, "contradiction") == 2

    run(scenario())


def test_one_that_was_set_apart_is_tried_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(placer_module, "plan_on", wrong_about({"odd"}, "nowhere"))
        async with placing(node("n1", 8), [pending("odd"), pending("even")]) as here:
            await here.until(lambda: "uid-odd" in here.refusals and here.placed)
            assert "unknown-node on node nowhere" in here.refusals["uid-odd"].text
            monkeypatch.setattr(placer_module, "plan_on", plan_on)
            await here.until(lambda: len(here.placed) == 2)
            assert not here.refusals

    run(scenario())


def test_the_search_for_who_is_the_cause_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 399 plans to find that all 200 are: who comes meanwhile is placed after a few of them."""
    odd = {f"odd{n}" for n in range(200)}
    wrong, searching = wrong_about(odd, "nowhere"), asyncio.Event()
    plans = 0

    def decide(fleet: Fleet, requests: Sequence[Request], rng: random.Random, revision: int) -> Plan:
        nonlocal plans
        plans += any(request.name in odd for request in requests)
        searching.set()
        return wrong(fleet, requests, rng, revision)

    async def scenario() -> None:
        monkeypatch.setattr(placer_module, "plan_on", decide)
        async with placing(node("n1", 8), [pending(name) for name in sorted(odd)]) as here:
            await searching.wait()
            await here.write({keys.INSTANCES.key("p1", "even"): pending("even").SerializeToString()})
            await here.until(lambda: here.placed)
            assert plans < 20
            await here.until(lambda: len(here.refusals) == 200)
            assert plans >= 399

    run(scenario())


def test_a_planner_that_is_wrong_about_many_at_once_sets_nobody_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each by itself is planned well, so all are placed in the end."""

    def decide(fleet: Fleet, requests: Sequence[Request], rng: random.Random, revision: int) -> Plan:
        made = plan_on(fleet, requests, rng, revision)
        return replace(made, placements=made.placements[1:]) if len(requests) > 1 else made

    async def scenario() -> None:
        monkeypatch.setattr(placer_module, "plan_on", decide)
        async with placing(node("n1", 64), [pending(f"i{i}") for i in range(20)]) as here:
            await here.until(lambda: len(here.placed) == 20)
            assert not here.refusals

    run(scenario())


def test_a_gang_is_set_apart_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(placer_module, "plan_on", wrong_about({"g0"}, "nowhere"))
        members = [pending(f"g{i}", gang=gang("ring", 2)) for i in range(2)]
        async with placing(node("n1", 8), [*members, pending("alone")]) as here:
            await here.until(lambda: len(here.refusals) == 2 and here.placed)
            assert here.placed == {"alone": "n1"}
            assert set(here.refusals) == {"uid-g0", "uid-g1"}

    run(scenario())


@pytest.mark.parametrize("error", [ModelError("a contradiction"), AssertionError("a seat was lost")])
def test_a_planner_that_gives_up_on_one_goes_on_with_the_others(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def decide(fleet: Fleet, requests: Sequence[Request], rng: random.Random, revision: int) -> Plan:
        if any(request.name == "odd" for request in requests):
            raise error
        return plan_on(fleet, requests, rng, revision)

    async def scenario() -> None:
        monkeypatch.setattr(placer_module, "plan_on", decide)
        waiting = [pending(f"i{i}") for i in range(9)] + [pending("odd")]
        async with placing(node("n1", 64), waiting) as here:
            await here.until(lambda: len(here.placed) == 9 and here.refusals)
            assert here.refusals["uid-odd"].reason == PLANNER_FAULT
            assert str(error) in here.refusals["uid-odd"].text
            assert quarantined(here, "unplannable") == 1

    run(scenario())


def test_one_that_cannot_be_read_waits_for_a_change() -> None:
    async def scenario() -> None:
        odd = pending("odd")
        odd.spec.numa_cells = 10_000
        async with placing(node("n1", 8), [odd, pending("even")]) as here:
            await here.decided(2)
            assert here.placed == {"even": "n1"}
            assert "numa_cells" in here.refusals["uid-odd"].text
            await here.store.txn(
                Txn((), [Put(keys.INSTANCES.key("p1", "odd"), pending("odd").SerializeToString())], "test")
            )
            await here.until(lambda: len(here.placed) == 2)

    run(scenario())


def test_an_instance_made_again_under_its_name_is_placed() -> None:
    async def scenario() -> None:
        again = pending("one")
        again.meta.uid = "uid-second"
        async with placing(node("n1", 8), [pending("one", vcpu=99)]) as here:
            await here.decided(1)
            await here.write({keys.INSTANCES.key("p1", "one"): again.SerializeToString()})
            await here.until(lambda: here.state.placement_of("uid-second"))
            assert here.state.placement_of("uid-one") is None

    run(scenario())
