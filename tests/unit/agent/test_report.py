"""Reports: what was seen, and no conclusion from half of an action. **Pure.**"""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import pytest

from agent.actions import instance_key
from agent.hypervisor.driver import ObservedDomain
from agent.intent import PlanIntent
from agent.memory import Memory
from agent.net.driver import ObservedNet
from agent.observed import Observed
from agent.report import Look, Reporter, Snapshot, build_unknown
from agent.session import ACK_MISSES_MAX
from agent.storage.driver import ObservedStorage
from controller.reconcile.sessions import HEARTBEAT_S, TAKEOVER_S
from cumulet.v1 import agent_pb2 as pb
from tests.unit.agent.build import uid


@pytest.mark.parametrize(
    ("busy", "state", "reason"),
    [(True, pb.DOMAIN_STATE_PREPARING, ""), (False, pb.DOMAIN_STATE_OFF, "HostDown")],
)
def test_a_domain_between_define_and_start_has_not_gone_down_with_the_host(
    busy: bool, state: pb.DomainState.ValueType, reason: str
) -> None:
    """On a busy machine a look fell between the two, and `launch --wait` ended with "stopped"."""
    instance = uid(1, 1)
    seen = ObservedDomain(instance, 1, 1, pb.DOMAIN_STATE_OFF, "HostDown", 0)
    look = Look(
        PlanIntent({}, {}, {}, ()),
        Observed({instance: seen}, ObservedStorage({}, frozenset(), 0), ObservedNet({}, {}, frozenset(), ())),
        Memory(),
        {},
        (),
        frozenset({instance_key(instance)} if busy else ()),
    )
    told = build_unknown(look)[instance]
    assert (told.state, told.reason) == (state, reason)


def snapshot(number: int, announced: frozenset[tuple[str, IPv4Address]] | None) -> Snapshot:
    return Snapshot(number, pb.PlanVersion(revision=1), True, {}, {}, (), 0.0, announced)


def test_what_is_announced_is_told_when_it_changes_and_not_while_it_is_being_changed() -> None:
    """Each look at a node that could not be looked at was a report before."""
    here = frozenset({("internet", IPv4Address("203.0.113.70"))})
    reporter = Reporter(random.Random(1))
    first = reporter.next_report(snapshot(1, frozenset()), 0.0)
    assert first is not None
    assert first.HasField("announced")
    for number in range(2, 5):
        assert reporter.next_report(snapshot(number, None), 1.0) is None
    told = reporter.next_report(snapshot(5, here), 2.0)
    assert told is not None
    assert [one.address for one in told.announced.addresses] == ["203.0.113.70"]
    assert reporter.next_report(snapshot(6, here), 3.0) is None


def test_a_plan_that_was_acted_on_is_told_with_what_is_announced_then() -> None:
    """That something is being changed is told with it: an address is not let go yet."""
    reporter = Reporter(random.Random(1))
    reporter.next_report(snapshot(1, frozenset()), 0.0)
    busy = Snapshot(2, pb.PlanVersion(revision=2), True, {}, {}, (), 0.0, None)
    told = reporter.next_report(busy, 1.0)
    assert told is not None
    assert not told.HasField("announced")


def test_a_leader_waits_longer_than_an_agent_believes_in_its_session() -> None:
    """Else both would answer for an address of the outside, each of them sure of it."""
    assert TAKEOVER_S > HEARTBEAT_S * ACK_MISSES_MAX
