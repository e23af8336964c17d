"""Planned load balancers as the driver takes them, and what no driver is given."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from agent.balancer_intent import parse_balancer
from agent.net.balancer import (
    HealthIntent,
    ListenerIntent,
    MemberIntent,
    answered_in,
    balancer_from_json,
    balancer_to_json,
)
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


def test_an_ipv6_one_is_taken_over() -> None:
    made = planned()
    made.address = "fd00:a::c8"
    for member, address in zip(made.members, ("fd00:a::7", "fd00:b::8"), strict=True):
        member.address = address
    found = parse_balancer(made)
    assert found.address == IPv6Address("fd00:a::c8")
    assert [one.address for one in found.members] == [IPv6Address("fd00:a::7"), IPv6Address("fd00:b::8")]
    assert balancer_from_json(balancer_to_json(found)) == found
    assert answered_in([IPv6Network("fd00:a::/64"), IPv4Network("10.1.0.0/24")], [found]) == (found.address,)
    assert answered_in([IPv6Network("fd00:b::/64")], [found]) == ()
    assert answered_in([IPv4Network("10.1.0.0/24")], [parse_balancer(planned())]) == ()
    with pytest.raises(ValueError, match="leads to a load balancer of IPv6"):
        parse_balancer(made, ["203.0.113.7"])


DAMAGES: dict[str, Callable[[pb.PlannedLoadBalancer], object]] = {
    "uid": lambda one: setattr(one, "uid", "../lb"),
    "address": lambda one: setattr(one, "address", "fd00::1%eth0"),
    "members of another IP version": lambda one: setattr(one, "address", "fd00::1"),
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
    with pytest.raises(ValueError, match=r"load_balancers|address|web-1"):
        parse_balancer(damaged)
