"""Links to operators' networks on trial: a switch that cuts the node off for it gets it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.trial import (
    BLAMED_WITHIN_S,
    PROVEN_AFTER_S,
    TAKEN_BACK,
    TAKEN_BACK_AFTER_S,
    TRIED_AGAIN_AFTER_S,
    Stage,
    Trial,
    next_trial,
)
from agent.trials import UPLINKS_JOINED
from cumulet.v1 import agent_pb2 as pb
from cumulet.v1 import meta_pb2
from tests.sim.link import Faults

from .build import instance, plan, uid
from .lab import ADDRESS, Lab, in_lab

OFFICE = uid(2, 1)
STEP_S = 1.0


def in_office(*numbers: int) -> pb.NodePlan:
    made = plan(*(instance(number) for number in numbers or (1,)))
    made.networks[0].provider.uplink = "office"
    return made


def is_joined(lab: Lab) -> bool:
    found = lab.kernel._networks.get(OFFICE)
    return found is not None and found.intent.segment is not None and found.intent.segment.joined


def reach(lab: Lab, *, reachable: bool) -> None:
    lab.leader.silent = not reachable
    (lab.link.unreachable.discard if reachable else lab.link.unreachable.add)(ADDRESS)


@asynccontextmanager
async def strict_switch(lab: Lab, allowed: int = 0) -> AsyncIterator[None]:
    """The node's port is off for as long as more than `allowed` stations besides the node speak there."""

    async def watch() -> None:
        while True:
            found = lab.kernel._networks.get(OFFICE)
            stations = len(found.intent.ports) if found is not None and is_joined(lab) else 0
            reach(lab, reachable=stations <= allowed)
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


def last_condition(lab: Lab) -> tuple[bool, str]:
    told = lab.conditions(UPLINKS_JOINED)
    return (told[-1].status == meta_pb2.CONDITION_STATUS_TRUE, told[-1].reason) if told else (False, "")


def test_a_link_that_cuts_nobody_off_is_proven_and_needs_no_leader_any_more() -> None:
    async def scenario(lab: Lab) -> None:
        lab.start()
        await lab.leader.set_plan(in_office())
        await lab.until(lambda: is_joined(lab) and lab.state(uid(1, 1)) == pb.DOMAIN_STATE_RUNNING)
        assert lab.journal.read_proven() == {}
        await lab.until(lambda: lab.journal.read_proven() == {"office=eth1": 1})
        assert last_condition(lab) == (True, "Joined")
        reach(lab, reachable=False)
        await asyncio.sleep(5 * TAKEN_BACK_AFTER_S)
        assert is_joined(lab)
        await lab.kill()
        lab.start()
        await asyncio.sleep(60)
        assert is_joined(lab)

    in_lab(scenario)


def test_a_switch_that_cuts_the_node_off_gets_the_link_back_and_everybody_is_told() -> None:
    async def scenario(lab: Lab) -> None:
        async with strict_switch(lab):
            lab.start()
            await lab.leader.set_plan(in_office())
            await lab.until(lambda: is_joined(lab))
            await lab.until(lambda: not is_joined(lab))
            await lab.until(lambda: last_condition(lab) == (False, TAKEN_BACK))
            await lab.until(lambda: lab.leader.instances[uid(1, 1)].reason == TAKEN_BACK)
            assert "switch" in lab.leader.instances[uid(1, 1)].message
            assert lab.journal.read_proven() == {}
            for _ in range(int(TRIED_AGAIN_AFTER_S / 2)):
                await asyncio.sleep(STEP_S)
                assert not is_joined(lab)
            await lab.until(lambda: is_joined(lab))
            await lab.until(lambda: not is_joined(lab))
        reach(lab, reachable=True)  # the operator has allowed it
        await lab.until(lambda: lab.journal.read_proven() == {"office=eth1": 1})
        await lab.until(lambda: last_condition(lab) == (True, "Joined"))
        await lab.until(lambda: lab.leader.instances[uid(1, 1)].reason == "")

    in_lab(scenario)


def test_one_guest_more_than_the_switch_allows_is_another_trial() -> None:
    async def scenario(lab: Lab) -> None:
        async with strict_switch(lab, allowed=2):
            lab.start()
            await lab.leader.set_plan(in_office(1, 2))
            await lab.until(lambda: lab.journal.read_proven() == {"office=eth1": 2})
            await lab.leader.set_plan(in_office(1, 2, 3))
            await lab.until(lambda: not is_joined(lab))
            await lab.until(lambda: last_condition(lab) == (False, TAKEN_BACK))
            assert "3 guest" in lab.leader.instances[uid(1, 1)].message
            fewer = in_office(1, 2)
            fewer.tombstones.add(uid=uid(1, 3), epoch=1)
            await lab.leader.set_plan(fewer)
            async with asyncio.timeout(60):
                await lab.until(lambda: is_joined(lab))
            await lab.until(lambda: last_condition(lab) == (True, "Joined"))
            assert lab.journal.read_proven() == {"office=eth1": 2}

    in_lab(scenario)


def test_a_leader_that_was_only_away_is_no_blame() -> None:
    async def scenario(lab: Lab) -> None:
        lab.start()
        await lab.leader.set_plan(in_office())
        await lab.until(lambda: is_joined(lab))
        reach(lab, reachable=False)
        await lab.until(lambda: not is_joined(lab))
        await asyncio.sleep(BLAMED_WITHIN_S + 60)
        reach(lab, reachable=True)
        async with asyncio.timeout(60):
            await lab.until(lambda: lab.journal.read_proven() == {"office=eth1": 1})

    in_lab(scenario)


def test_an_agent_killed_during_a_trial_takes_the_link_back_when_it_starts() -> None:
    async def scenario(lab: Lab) -> None:
        lab.start()
        await lab.leader.set_plan(in_office())
        await lab.until(lambda: is_joined(lab) and lab.state(uid(1, 1)) == pb.DOMAIN_STATE_RUNNING)
        await lab.kill()
        reach(lab, reachable=False)
        lab.start()
        async with asyncio.timeout(10):
            await lab.until(lambda: not is_joined(lab))
        reach(lab, reachable=True)
        await lab.until(lambda: is_joined(lab))

    in_lab(scenario)


@pytest.mark.parametrize("seed", range(5))
def test_a_bad_link_to_the_leader_proves_in_the_end(seed: int) -> None:
    async def scenario(lab: Lab) -> None:
        lab.start()
        await lab.leader.set_plan(in_office())
        await lab.until(lambda: lab.journal.read_proven() == {"office=eth1": 1})

    in_lab(scenario, Faults(drop=0.02, delay_s=(0.001, 0.4)), seed)


_STAGES = [stage for stage in Stage if stage is not Stage.PROVEN]
_TIMES = st.floats(0.0, 2 * TRIED_AGAIN_AFTER_S)


@given(stage=st.sampled_from(_STAGES), since=_TIMES, silent_for=_TIMES)
def test_no_stage_is_stuck_while_the_leader_answers(stage: Stage, since: float, silent_for: float) -> None:
    now = 3 * TRIED_AGAIN_AFTER_S
    trial = Trial(stage, now - since, now - silent_for)
    end = now + TRIED_AGAIN_AFTER_S + PROVEN_AFTER_S + 5 * STEP_S
    while now < end:
        now += STEP_S
        trial = next_trial(trial, now, now - STEP_S)
    assert trial.stage is Stage.PROVEN


@given(answers=st.lists(st.booleans(), max_size=200), lives_for=st.integers(1, 30))
def test_an_unproven_link_is_never_joined_for_long_in_silence(answers: list[bool], lives_for: int) -> None:
    """Any history of a leader that answers and does not, a second each; sessions outlive it for a while."""
    trial, heard_at, joined_at = Trial(Stage.WAITING, 0.0, 0.0), 0.0, 0.0
    for second, answered in enumerate(answers):
        heard_at = float(second) if answered else heard_at
        is_live = second - heard_at < lives_for
        before, trial = trial, next_trial(trial, float(second), heard_at if is_live else None)
        if trial.joins and not before.joins:
            joined_at = float(second)
        if trial.stage is Stage.PROVEN:
            assert heard_at >= joined_at + PROVEN_AFTER_S
            return
        assert not trial.joins or second - max(joined_at, heard_at) < TAKEN_BACK_AFTER_S
