"""Planned load balancers as the driver takes them, and what no driver is given."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from agent.balancer_intent import parse_balancer
from agent.net.balancer import HealthIntent, ListenerIntent, MemberIntent
from cumulet.v1 import agent_pb2 as pb

UID = "0b2a42f1-2006-48f2-b445-8d52e7deab09"


def planned() -> pb.PlannedLoadBalancer:
    made = pb.PlannedLoadBalancer(uid=UID, name="lb", address="10.1.0.200", by_source=True)
    made.listeners.add(protocol=6, port=80)
    made.members.add(address="10.1.0.7", port=8080, health_port=8081)
    made.members.add(address="10.1.0.8", drain=True, health_port=80)
    check = pb.PlannedHealthCheck(http_path="/ready", interval_s=5, timeout_s=2, rise=2, fall=3)
    made.health_check.CopyFrom(check)
    return made


def test_everything_is_taken_over() -> None:
    found = parse_balancer(planned())
    assert (found.uid, found.name, found.by_source) == (UID, "lb", True)
    assert found.address == IPv4Address("10.1.0.200")
    assert found.listeners == (ListenerIntent(6, 80),)
    assert found.members == (
        MemberIntent(IPv4Address("10.1.0.7"), 8080, False, 8081),
        MemberIntent(IPv4Address("10.1.0.8"), 0, True, 80),
    )
    assert found.health == HealthIntent("/ready", 5, 2, 2, 3)
    assert found.probed() == {found.members[0].probed}
    unchecked = planned()
    unchecked.ClearField("health_check")
    assert parse_balancer(unchecked).health is None
    assert parse_balancer(unchecked).probed() == frozenset()


DAMAGES: dict[str, Callable[[pb.PlannedLoadBalancer], object]] = {
    "uid": lambda one: setattr(one, "uid", "../lb"),
    "address": lambda one: setattr(one, "address", "fd00::1"),
    "protocol": lambda one: setattr(one.listeners[0], "protocol", 1),
    "listener's port": lambda one: setattr(one.listeners[0], "port", 0),
    "member's address": lambda one: setattr(one.members[0], "address", "web-1"),
    "member's port": lambda one: setattr(one.members[0], "port", 65_536),
    "health port": lambda one: setattr(one.members[0], "health_port", 0),
    "path": lambda one: setattr(one.health_check, "http_path", "/a\r\nHost: b"),
    "interval": lambda one: setattr(one.health_check, "interval_s", 0),
    "fall": lambda one: setattr(one.health_check, "fall", 101),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_no_driver_is_given(name: str) -> None:
    damaged = planned()
    DAMAGES[name](damaged)
    with pytest.raises(ValueError, match=r"load_balancers|address|octets|web-1"):
        parse_balancer(damaged)
