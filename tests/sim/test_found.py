"""What the simulation found, each bug by its name and in its smallest form.

**Pure** but for the event loop on virtual time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest

from controller.admit import instance as admit_instance
from controller.admit import node as admit_node
from controller.commit import Committer
from controller.metrics import Metrics
from controller.reconcile.nodeplan import compile_plan
from controller.reconcile.placer import Placer
from controller.reconcile.sessions import SILENCE_S, Sessions
from controller.state import Changed
from controller.store import keys
from controller.store.memory import MemoryStore
from controller.store.protocol import Change
from controller.transact import Transactor
from cumulet import lifecycle
from cumulet.convert import find_condition
from cumulet.v1 import agent_pb2, meta_pb2
from scheduler.policy import PACK
from tests.sim.link import Faults, MemoryEnd, Pipe
from tests.sim.loop import LoopClock, run_virtual
from tests.unit.controller.cloud import Paper, instance_message

HELLO: Final = agent_pb2.AgentHello(
    node="n1",
    session_nonce="nonce",
    capacity=meta_pb2.Resources(vcpu=8, memory_mib=16_384, disk_gib=200),
)


def change_at(revision: int) -> Change:
    return Change(b"/cumulet/x", b"", revision, revision, deleted=False)


def test_a_lost_watch_event_shows_as_a_gap_in_the_revisions() -> None:
    """I10, I17: a later event moved the State past the lost one, and a node was promised twice."""
    paper = Paper()
    here = paper.state.revision
    assert not paper.state.misses(here + 2, [change_at(here + 1), change_at(here + 2)])
    assert not paper.state.misses(here, [change_at(here)])
    assert paper.state.misses(here + 2, [change_at(here + 2)])
    assert paper.state.misses(here + 3, [change_at(here + 1), change_at(here + 3)])
    assert paper.state.misses(here + 1, [])


def test_what_is_being_deleted_is_not_placed_anew() -> None:
    """The gate refused it and the placer asked again at once, without end."""

    async def scenario() -> None:
        paper = _with_deleted_instance()
        row = paper.state.placements_on("n1")[paper.instance().meta.uid]
        transactor = Transactor(MemoryStore(), LoopClock(), random.Random(1), "test")
        placer = Placer(
            paper.state, transactor, LoopClock(), random.Random(1), lambda uid, text: None, Metrics(), PACK
        )
        paper.write({keys.PLACEMENTS.key("n1", paper.instance().meta.uid): None})
        placer.note_change(
            Changed(keys.PLACEMENTS, ("n1", paper.instance().meta.uid), row, None, paper.state.revision)
        )
        assert not placer._queue

    run_virtual(scenario())


def _with_deleted_instance() -> Paper:
    paper = Paper().seed()
    paper.add_node()
    paper.add_instance()
    paper.place()
    paper.do(admit_instance.delete(paper.state, paper.context, ("p1", "web"), ""))
    return paper


def test_what_a_declared_off_node_still_has_is_destroyed_when_it_comes_back() -> None:
    """I13: after the instance was deleted, absence alone would have left the old copy for ever."""
    paper = Paper().seed()
    paper.add_node()
    uid = paper.add_instance().meta.uid
    paper.place(epoch=3)
    paper.do(admit_node.delete(paper.state, paper.context, ("n1",), "", force=True))
    paper.do(admit_node.forget_placement(paper.state, paper.context, "n1", uid))
    paper.write({keys.INSTANCES.key("p1", "web"): None})
    plan = compile_plan(paper.state, "n1", "nonce")
    assert [(tombstone.uid, tombstone.epoch) for tombstone in plan.tombstones] == [(uid, 3)]
    assert not compile_plan(paper.state, "n2", "nonce").tombstones


def test_two_instances_of_one_transaction_never_draw_the_same_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """I12: the second one's guard was dropped, since the transaction itself wrote the key."""
    draws = iter(["02:00:00:00:00:01", "02:00:00:00:00:01", "02:00:00:00:00:02"])
    monkeypatch.setattr(admit_instance, "_new_mac", lambda rng: next(draws))
    paper = Paper().seed()
    first = admit_instance.create(paper.state, paper.context, "p1", instance_message("web"))
    undo = paper.state.speculate(first.writes)
    second = admit_instance.create(paper.state, paper.context, "p1", instance_message("db"))
    paper.state.undo(undo)
    assert not _macs(first.writes) & _macs(second.writes)


def _macs(writes: dict[bytes, bytes | None]) -> set[bytes]:
    return {key for key in writes if key.startswith(keys.MACS.prefix())}


def test_an_instance_that_was_never_reported_may_be_stopping() -> None:
    """It ran before its first report, and was asked to stop meanwhile: no status was ever written."""
    lifecycle.check_transition(lifecycle.PENDING, lifecycle.STOPPING)


def test_a_machine_without_power_is_not_ready_after_a_silence() -> None:
    """I2: nothing ends the stream of a machine that is off, so its session never ended."""

    async def scenario(sessions: Sessions, paper: Paper) -> None:
        end = MemoryEnd[agent_pb2.ControllerMessage, agent_pb2.AgentMessage](Pipe(Faults()), Pipe(Faults()))
        serving = asyncio.ensure_future(sessions.serve(end, HELLO))
        await asyncio.sleep(1.0)
        assert _is_ready(paper)
        await asyncio.sleep(SILENCE_S + 5.0)
        assert not _is_ready(paper)
        assert not sessions.live_nodes()
        await serving

    _with_sessions(scenario)


def test_a_judgement_of_silence_does_not_overtake_a_hello() -> None:
    """The node said hello while it was being judged: it stayed not ready for as long as it was connected."""

    async def scenario(sessions: Sessions, paper: Paper) -> None:
        await asyncio.sleep(SILENCE_S - 0.5)
        end = MemoryEnd[agent_pb2.ControllerMessage, agent_pb2.AgentMessage](Pipe(Faults()), Pipe(Faults()))
        serving = asyncio.ensure_future(sessions.serve(end, HELLO))
        await asyncio.sleep(0)
        assert sessions._silencing(paper.state, "n1") is None
        await asyncio.sleep(2.0)
        assert _is_ready(paper)
        await end.close()
        await serving

    _with_sessions(scenario)


def test_a_node_declared_off_meanwhile_gets_no_session() -> None:
    """I1: the session's guard held although the node had been marked, and its plan started old copies."""

    async def scenario(sessions: Sessions, paper: Paper) -> None:
        uid = paper.add_instance().meta.uid
        paper.place()
        opening = sessions._opening(paper.state, HELLO)
        assert opening is not None
        paper.do(admit_node.delete(paper.state, paper.context, ("n1",), "", force=True))
        assert uid in paper.state.placements_on("n1")
        assert not paper.holds(opening)

    _with_sessions(scenario)


Scenario = Callable[[Sessions, Paper], Coroutine[Any, Any, None]]


class _PaperCommitter(Committer):
    """Commits to a Paper at once."""

    def __init__(self, paper: Paper) -> None:
        super().__init__(MemoryStore(), paper.state, LoopClock(), random.Random(1), "test")
        self._paper = paper

    async def commit(self, compute: Any) -> Any:
        await asyncio.sleep(0.001)
        change = compute(self._paper.state)
        return self._paper.do(change) if change is not None and change.writes else None


def _with_sessions(scenario: Scenario) -> None:
    async def main() -> None:
        paper = Paper().seed()
        paper.add_node()
        sessions = Sessions(
            paper.state, _PaperCommitter(paper), LoopClock(), random.Random(1), lambda uid: None
        )
        judging = asyncio.create_task(sessions.run())
        await scenario(sessions, paper)
        judging.cancel()

    run_virtual(main())


def _is_ready(paper: Paper) -> bool:
    row = paper.state.find(keys.NODE_STATUS, "n1")
    assert row is not None
    ready = find_condition(row.message.conditions, "Ready")
    return ready is not None and ready.status == meta_pb2.CONDITION_STATUS_TRUE
