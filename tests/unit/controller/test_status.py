"""Status, ends of operations and removals: pure functions of what the node said.

**Pure.**
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.admit import instance as admit
from controller.admit.common import Context
from controller.assemble import assemble, instance_phase
from controller.reconcile.status import (
    MORE,
    NO_CAPACITY,
    OPERATIONS_AT_ONCE,
    SILENT,
    Facts,
    Refusal,
    build_change,
    build_status,
    end_of_operation,
    is_gone,
)
from controller.store import keys
from controller.store.protocol import OPS_MAX
from controller.tables import Stored
from cumulet import lifecycle
from cumulet.convert import find_condition
from cumulet.v1 import agent_pb2, instance_pb2, meta_pb2, operation_pb2
from tests.unit.controller.cloud import NOW, Paper

ABSENT = agent_pb2.DOMAIN_STATE_ABSENT
RUNNING = agent_pb2.DOMAIN_STATE_RUNNING
OFF = agent_pb2.DOMAIN_STATE_OFF


def seen(state: Any = RUNNING, boots: int = 1, acted: int = 10**6, **more: Any) -> Facts:
    return Facts(True, acted, agent_pb2.ObservedInstance(epoch=1, boots=boots, state=state, **more))


def placed() -> Paper:
    paper = Paper().seed()
    paper.add_node()
    paper.add_instance()
    paper.place()
    return paper


def step(
    paper: Paper, facts: Facts, refusal: Refusal | None = None, at: float = NOW
) -> instance_pb2.Instance:
    """Write what there is to write, then the instance as the API shows it."""
    uid = paper.instance().meta.uid
    change = build_change(paper.state, Context(at, paper.context.rng, "test"), uid, facts, refusal)
    if change is not None:
        paper.do(change)
    return shown(paper)


def shown(paper: Paper) -> instance_pb2.Instance:
    row = paper.state.find(keys.INSTANCES, "p1", "web")
    assert row is not None
    made: instance_pb2.Instance = assemble(paper.state, keys.INSTANCES, ("p1", "web"), row)
    return made


def reason(made: instance_pb2.Instance, kind: str) -> str:
    found = find_condition(made.status.conditions, kind)
    return found.reason if found else ""


def operation(paper: Paper, verb: str) -> Any:
    uid = paper.instance().meta.uid
    found = [row.message for _, row in paper.state.operations_of(uid) if row.message.verb == verb]
    return found[-1]


def test_a_life_from_pending_to_gone() -> None:
    paper = Paper().seed()
    paper.add_instance()
    assert shown(paper).status.phase == lifecycle.PENDING
    made = step(paper, SILENT, Refusal(NO_CAPACITY, "fits nowhere: 1 node is full"))
    assert reason(made, "Placed") == "NoCapacity"
    paper.add_node()
    paper.place()
    assert shown(paper).status.phase == lifecycle.STARTING
    made = step(paper, seen(address_leased=True))
    assert made.status.phase == lifecycle.RUNNING
    assert [condition.type for condition in made.status.conditions] == ["Placed", "Running", "AddressReady"]
    assert operation(paper, "instance.create").done
    paper.do(admit.stop(paper.state, paper.context, ("p1", "web"), False))
    assert shown(paper).status.phase == lifecycle.STOPPING
    made = step(paper, seen(OFF))
    assert made.status.phase == lifecycle.STOPPED
    assert reason(made, "AddressReady") == "NotRunning"
    assert operation(paper, "instance.stop").done
    paper.do(admit.delete(paper.state, paper.context, ("p1", "web"), ""))
    assert shown(paper).status.phase == lifecycle.DELETING
    uid = paper.instance().meta.uid
    step(paper, seen(OFF))
    paper.do(build_change(paper.state, paper.context, uid, seen(ABSENT), None))
    left = {
        table.path: len(paper.state.rows(table))
        for table in (
            keys.INSTANCES,
            keys.PORTS,
            keys.PLACEMENTS,
            keys.ADDRESSES,
            keys.MACS,
            keys.INSTANCE_STATUS,
        )
    }
    assert set(left.values()) == {0}, left
    assert all(row.message.done for row in paper.state.rows(keys.OPERATIONS).values())


def test_nothing_new_is_nothing_to_write() -> None:
    paper = placed()
    uid = paper.instance().meta.uid
    step(paper, seen())
    later = Context(NOW + 1000, paper.context.rng, "test")
    assert build_change(paper.state, later, uid, seen(), None) is None


def test_a_silent_node_means_unknown_never_stopped() -> None:
    paper = placed()
    step(paper, seen())
    made = step(paper, SILENT)
    assert made.status.phase == lifecycle.UNKNOWN
    assert reason(made, "Running") == "NodeSilent"
    assert step(paper, seen()).status.phase == lifecycle.RUNNING


def test_a_session_without_a_word_of_it_changes_nothing() -> None:
    paper = placed()
    step(paper, seen())
    assert step(paper, Facts(True, 0, None)).status.phase == lifecycle.RUNNING


def test_a_copy_of_another_placement_says_nothing() -> None:
    paper = placed()
    stale = agent_pb2.ObservedInstance(epoch=7, boots=1, state=RUNNING)
    assert step(paper, Facts(True, 10**6, stale)).status.phase == lifecycle.STARTING


@pytest.mark.parametrize("word", ["CrashLoop", "ImageNotFound"])
def test_giving_up_fails_the_operation_with_the_nodes_words(word: str) -> None:
    paper = placed()
    made = step(paper, seen(OFF, boots=0, reason=word, message="it did not work"))
    assert made.status.phase == lifecycle.FAILED
    ended = operation(paper, "instance.create")
    assert (ended.done, ended.error.reason, ended.error.message) == (
        True,
        "OPERATION_FAILED",
        "it did not work",
    )


def test_an_agents_words_are_no_format() -> None:
    made = step(placed(), seen(OFF, reason="Odd{0}{node.__class__}"))
    assert reason(made, "Running") == "Odd{0}{node.__class__}"


def test_a_lasting_refusal_is_written_anew_now_and_then_only() -> None:
    paper = Paper().seed()
    paper.add_instance()
    for at, text in ((NOW, "first"), (NOW + 5, "second"), (NOW + 100, "third")):
        step(paper, SILENT, Refusal(NO_CAPACITY, text), at)
    found = find_condition(shown(paper).status.conditions, "Placed")
    assert found is not None
    assert found.message == "third"
    status = paper.state.find(keys.INSTANCE_STATUS, paper.instance().meta.uid)
    assert status is not None
    assert status.mod_revision == paper.state.revision
    assert len(paper.state.rows(keys.INSTANCE_STATUS)) == 1


def _end(
    verb: str,
    *,
    phase: Any,
    boots: int = 1,
    goal: int = 1,
    on: bool = True,
    late: bool = False,
    node: str = "n1",
    observed: int = 1,
) -> Any:
    made = operation_pb2.Operation(verb=verb, goal_boots=goal)
    made.deadline_at.FromSeconds(int(NOW) + (-1 if late else 100))
    power = instance_pb2.POWER_STATE_ON if on else instance_pb2.POWER_STATE_OFF
    target = instance_pb2.Instance(
        meta=meta_pb2.Meta(generation=1), spec=instance_pb2.InstanceSpec(power=power)
    )
    status = instance_pb2.InstanceStatus(phase=phase, boots=boots, node=node, observed_generation=observed)
    end = end_of_operation(made, target, status, NOW)
    return end.reason if isinstance(end, operation_pb2.OperationError) else end


@pytest.mark.parametrize(
    ("verb", "facts", "end"),
    [
        ("instance.create", {"phase": lifecycle.RUNNING}, None),
        ("instance.create", {"phase": lifecycle.STARTING, "boots": 0}, False),
        ("instance.create", {"phase": lifecycle.FAILED, "boots": 0}, "OPERATION_FAILED"),
        ("instance.create", {"phase": lifecycle.STARTING, "boots": 0, "on": False}, "CONFLICT"),
        ("instance.create", {"phase": lifecycle.STARTING, "boots": 0, "late": True}, "TIMED_OUT"),
        ("instance.create", {"phase": lifecycle.STOPPED, "goal": 0, "on": False}, None),
        ("instance.create", {"phase": lifecycle.STOPPED, "goal": 0, "on": False, "node": ""}, False),
        ("instance.reboot", {"phase": lifecycle.RUNNING, "goal": 2}, False),
        ("instance.reboot", {"phase": lifecycle.RUNNING, "goal": 2, "boots": 2}, None),
        ("instance.stop", {"phase": lifecycle.STOPPED, "on": False}, None),
        ("instance.stop", {"phase": lifecycle.STOPPED, "on": False, "observed": 0}, False),
        ("instance.stop", {"phase": lifecycle.STOPPING, "on": False}, False),
        ("instance.stop", {"phase": lifecycle.RUNNING}, "CONFLICT"),
        ("instance.stop", {"phase": lifecycle.STOPPED, "on": False, "node": "", "observed": 0}, None),
        ("instance.delete", {"phase": lifecycle.DELETING}, False),
    ],
)
def test_ends_of_operations(verb: str, facts: dict[str, Any], end: Any) -> None:
    assert _end(verb, **facts) == end


@pytest.mark.parametrize(
    ("alive", "acted", "state", "gone"),
    [
        (True, 20, ABSENT, True),
        (True, 20, None, True),
        (True, 19, ABSENT, False),  # it has not seen the deletion
        (True, 19, None, False),
        (True, 20, OFF, False),
        (False, 20, ABSENT, False),
    ],
)
def test_gone_is_what_the_node_has_looked_for(alive: bool, acted: int, state: int | None, gone: bool) -> None:
    observed = None if state is None else agent_pb2.ObservedInstance(state=state)  # type: ignore[arg-type]
    row, placement = Stored(None, 5, 20), Stored(None, 6, 6)
    assert is_gone(row, placement, Facts(alive, acted, observed)) is gone
    assert is_gone(row, None, SILENT)


def test_any_number_of_operations_ends_with_the_instance() -> None:
    """Each is a guard and a write; together they would be more than a transaction holds."""
    paper = placed()
    for _ in range(3 * OPERATIONS_AT_ONCE):
        paper.do(admit.reboot(paper.state, paper.context, ("p1", "web"), False))
    paper.do(admit.delete(paper.state, paper.context, ("p1", "web"), ""))
    uid, rounds = paper.instance().meta.uid, 0
    while paper.state.find_instance(uid) is not None:
        change = build_change(paper.state, paper.context, uid, seen(ABSENT), None)
        assert change is not None
        assert max(len(change.compares), len(change.writes)) < OPS_MAX
        paper.do(change)
        assert paper.state.find_instance(uid) is None or change.result == MORE
        rounds += 1
        assert rounds < 10
    assert all(row.message.done for row in paper.state.rows(keys.OPERATIONS).values())


FACTS = st.builds(
    lambda state, boots, word: seen(state, boots, reason=word),
    st.sampled_from([value for value in agent_pb2.DomainState.values() if value]),
    st.integers(0, 4),
    st.sampled_from(["", "CrashLoop", "GuestPoweredOff", "Starting"]),
)
STEPS = st.lists(st.one_of(FACTS, st.just(SILENT), st.sampled_from(["start", "stop", "reboot"])), max_size=12)


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_every_sequence_of_words_and_verbs_is_legal_and_shown_truly(steps: list[Any]) -> None:
    """No transition raises, and the phase that is shown is the derived one once the node has spoken."""
    paper = placed()
    for what in steps:
        if isinstance(what, Facts):
            made = step(paper, what)
            row = paper.state.find(keys.INSTANCES, "p1", "web")
            assert row is not None
            assert made.status.phase == instance_phase(paper.state, row)
            built = build_status(paper.state, row.message, what, None, NOW).phase
            assert built in (made.status.phase, 0)  # 0: the node has never spoken of it
        elif what != "reboot" or paper.instance().spec.power == instance_pb2.POWER_STATE_ON:
            verbs: dict[str, Any] = {
                "start": lambda s, c, p: admit.start(s, c, p),
                "stop": lambda s, c, p: admit.stop(s, c, p, False),
                "reboot": lambda s, c, p: admit.reboot(s, c, p, False),
            }
            paper.do(verbs[what](paper.state, paper.context, ("p1", "web")))
