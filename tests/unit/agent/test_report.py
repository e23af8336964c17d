"""Reports: what was seen, and no conclusion from half of an action. **Pure.**"""

from __future__ import annotations

import pytest

from agent.actions import instance_key
from agent.hypervisor.driver import ObservedDomain
from agent.intent import PlanIntent
from agent.memory import Memory
from agent.net.driver import ObservedNet
from agent.observed import Observed
from agent.report import Look, build_unknown
from agent.storage.driver import ObservedStorage
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
