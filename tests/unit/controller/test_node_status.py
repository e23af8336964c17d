"""A node's status: what agents say of it is kept when it is news."""

from __future__ import annotations

import pytest

from controller.reconcile.node_status import with_conditions
from cumulet.convert import find_condition
from cumulet.v1 import meta_pb2, node_pb2

TRUE, FALSE = meta_pb2.CONDITION_STATUS_TRUE, meta_pb2.CONDITION_STATUS_FALSE


def said(truth: meta_pb2.ConditionStatus.ValueType, reason: str, text: str = "") -> meta_pb2.Condition:
    return meta_pb2.Condition(type="UplinksJoined", status=truth, reason=reason, message=text)


def status(*conditions: meta_pb2.Condition) -> node_pb2.NodeStatus:
    return node_pb2.NodeStatus(address="10.0.0.2", conditions=conditions)


@pytest.mark.parametrize(
    ("before", "told", "after"),
    [
        (status(), said(TRUE, "Joined"), None),  # that all is well costs nothing
        (status(), said(FALSE, "UplinkTakenBack", "why"), said(FALSE, "UplinkTakenBack", "why")),
        (status(said(FALSE, "UplinkTakenBack", "why")), said(FALSE, "UplinkTakenBack", "why"), None),
        (status(said(FALSE, "UplinkTakenBack", "why")), said(TRUE, "Joined"), said(TRUE, "Joined")),
        (status(said(TRUE, "Joined")), said(FALSE, "Other"), said(FALSE, "Other")),
    ],
)
def test_only_news_is_kept(
    before: node_pb2.NodeStatus, told: meta_pb2.Condition, after: meta_pb2.Condition | None
) -> None:
    found = with_conditions(before, [told], 1_000.0)
    if after is None:
        assert found is None
        return
    assert found is not None
    kept = find_condition(found.conditions, "UplinksJoined")
    assert kept is not None
    assert (kept.status, kept.reason, kept.message) == (after.status, after.reason, after.message)
    assert kept.changed_at.seconds == 1_000
    assert found.address == before.address


def test_what_is_said_no_more_is_forgotten_and_what_is_not_the_agents_stays() -> None:
    """A condition of a link that no plan needs any more had stayed false for ever."""
    ready = meta_pb2.Condition(type="Ready", status=TRUE, reason="AgentConnected")
    before = status(ready, said(FALSE, "UplinkTakenBack", "why"))
    accepted = meta_pb2.Condition(type="PlanAccepted", status=TRUE, reason="Accepted")
    found = with_conditions(before, [accepted], 1_000.0)
    assert found is not None
    assert list(found.conditions) == [ready]
    assert with_conditions(found, [accepted], 2_000.0) is None
