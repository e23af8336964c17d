"""Reach: what decides whether packets arrive, one decisive thing at a time; the request's refusals.

Real packets are compared with these answers in tests/e2e and in `make bench-net`.
"""

from __future__ import annotations

from typing import Any

import pytest

from cli.reach import render_reach
from cli.rules import parse_rule
from controller.admit import network as admit_network
from controller.admit import securitygroup as admit_group
from controller.api.reach import explain_reach
from controller.store import keys
from cumulet.errors import InvalidArgumentError, NotFoundError
from cumulet.v1 import meta_pb2, network_pb2, node_pb2, reach_pb2, securitygroup_pb2
from tests.unit.controller.cloud import ATTACH, Paper
from tests.unit.controller.test_routers import add_network, add_router, add_subnet, two_networks


def add_group(paper: Paper, name: str, *rules: str) -> None:
    spec = securitygroup_pb2.SecurityGroupSpec()
    spec.rules.extend(securitygroup_pb2.SecurityRule(**parse_rule(text)) for text in rules)
    made = securitygroup_pb2.SecurityGroup(meta=meta_pb2.Meta(name=name), spec=spec)
    paper.do(admit_group.create(paper.state, paper.context, "p1", made))


def add(paper: Paper, name: str, network: str, node: str = "n1", groups: tuple[str, ...] = ()) -> None:
    paper.add_instance(name, networks=[ATTACH(network=network)], security_groups=groups)
    if node:
        paper.place(name, node)


def ask(paper: Paper, source: str, target: str, **more: Any) -> reach_pb2.ExplainReachResponse:
    request = reach_pb2.ExplainReachRequest(project="p1", source=source, target=target, **more)
    return explain_reach(paper.state, request)


def address_of(paper: Paper, instance: str) -> str:
    port = paper.state.ports_of("p1", instance)[0].message
    text: str = port.spec.addresses[0].address
    return text


def last_step(found: reach_pb2.ExplainReachResponse, ip_version: int = 4) -> reach_pb2.ReachStep:
    (path,) = [path for path in found.paths if path.ip_version == ip_version]
    return path.steps[-1]


def test_members_of_the_default_group_reach_each_other_across_nodes_in_both_versions() -> None:
    paper = two_networks()
    add(paper, "one", "a", "n1")
    add(paper, "two", "a", "n2")
    found = ask(paper, "one", "two")
    assert found.reachable
    assert [path.ip_version for path in found.paths if path.reachable] == [4, 6]
    kinds = [step.kind for step in found.paths[0].steps]
    assert kinds == [
        reach_pb2.REACH_STEP_KIND_PORT,
        reach_pb2.REACH_STEP_KIND_SECURITY_GROUP,
        reach_pb2.REACH_STEP_KIND_BRIDGE,
        reach_pb2.REACH_STEP_KIND_TUNNEL,
        reach_pb2.REACH_STEP_KIND_SECURITY_GROUP,
        reach_pb2.REACH_STEP_KIND_PORT,
    ]
    assert all(step.rule_id.startswith("sgr-") for step in found.paths[0].steps if step.kind == kinds[1])


def test_on_one_node_there_is_no_tunnel() -> None:
    paper = two_networks()
    add(paper, "one", "a")
    add(paper, "two", "a")
    kinds = {step.kind for step in ask(paper, "one", "two").paths[0].steps}
    assert reach_pb2.REACH_STEP_KIND_TUNNEL not in kinds


@pytest.mark.parametrize(
    ("rule", "asked", "arrives"),
    [
        ("in tcp:80", {"protocol": "tcp", "port": 80}, True),
        ("in tcp:80", {"protocol": "tcp", "port": 81}, False),
        ("in tcp:80-90", {"protocol": "tcp", "port": 90}, True),
        ("in udp:80", {"protocol": "tcp", "port": 80}, False),
        ("in tcp", {"protocol": "tcp", "port": 9}, True),
        ("in any", {"protocol": "89"}, True),
        ("in icmp:8 ipv4", {}, True),
        ("in icmp:13 ipv4", {}, False),
        ("in tcp:80 10.1.0.0/24", {"protocol": "tcp", "port": 80}, True),
        ("in tcp:80 10.7.0.0/16", {"protocol": "tcp", "port": 80}, False),
        ("in any group:default", {"protocol": "tcp", "port": 80}, True),
        ("in any group:closed", {"protocol": "tcp", "port": 80}, False),
        ("in any ipv6", {}, False),
    ],
)
def test_a_rule_decides(rule: str, asked: dict[str, Any], arrives: bool) -> None:
    paper = two_networks()
    add_group(paper, "closed")
    add_group(paper, "guard", rule)
    add(paper, "one", "a")
    add(paper, "two", "a", "n2", groups=("guard",))
    found = ask(paper, "one", "two", ip_version=4, **asked)
    assert found.reachable == arrives
    row = paper.state.find(keys.SECURITY_GROUPS, "p1", "guard")
    assert row is not None
    ids = [step.rule_id for step in found.paths[0].steps if step.name == "guard" and step.passes]
    assert ids == ([row.message.spec.rules[0].id] if arrives else [])


def test_a_sender_without_an_egress_rule_sends_nothing() -> None:
    paper = two_networks()
    add_group(paper, "mute", "in any")
    add(paper, "one", "a", groups=("mute",))
    add(paper, "two", "a")
    step = last_step(ask(paper, "one", "two", ip_version=4))
    assert not step.passes
    assert "lets it out" in step.message


def test_without_a_router_two_networks_are_not_joined_and_with_one_they_are() -> None:
    paper = two_networks()
    add(paper, "one", "a", "n1")
    add(paper, "two", "b", "n2")
    assert "has no router" in last_step(ask(paper, "one", "two")).message
    add_router(paper, "r", "a", "b")
    found = ask(paper, "one", "two")
    assert found.reachable
    assert "router r joins b" in [step.message for step in found.paths[0].steps]
    assert [path.ip_version for path in found.paths] == [4]  # b has no IPv6


def test_an_address_means_the_port_that_the_source_reaches_by_it() -> None:
    paper = two_networks()
    add_router(paper, "r", "a", "b")
    add(paper, "one", "a")
    add(paper, "two", "b", "n2")
    assert ask(paper, "one", address_of(paper, "two")).reachable
    nobody = ask(paper, "one", "10.2.0.250")
    assert "no port has 10.2.0.250" in last_step(nobody).message


def test_what_is_placed_nowhere_is_not_reached() -> None:
    paper = two_networks()
    add(paper, "one", "a")
    add(paper, "two", "a", node="")
    step = last_step(ask(paper, "one", "two", ip_version=4))
    assert "is on no node" in step.message


def test_a_node_without_an_underlay_has_no_tunnel() -> None:
    paper = two_networks()
    paper.put(keys.NODE_STATUS, ("n2",), node_pb2.NodeStatus())
    add(paper, "one", "a")
    add(paper, "two", "a", "n2")
    step = last_step(ask(paper, "one", "two", ip_version=4))
    assert (step.passes, step.kind) == (False, reach_pb2.REACH_STEP_KIND_TUNNEL)


@pytest.mark.parametrize("nat", [True, False])
def test_outbound_nat_decides_the_way_out(nat: bool) -> None:
    paper = two_networks()
    spec = network_pb2.NetworkSpec(outbound_nat=nat)
    made = network_pb2.Network(meta=meta_pb2.Meta(name="out"), spec=spec)
    paper.do(admit_network.create(paper.state, paper.context, "p1", made))
    add_subnet(paper, "out-a", "out", "10.8.0.0/24")
    add(paper, "one", "out")
    assert ask(paper, "one", "198.51.100.7").reachable == nat
    assert not ask(paper, "one", "169.254.169.1").reachable


def test_a_static_route_leads_to_the_port_that_has_its_next_hop() -> None:
    paper = two_networks()
    add(paper, "one", "a")
    add(paper, "gate", "b", "n2")
    add_router(paper, "r", "a", "b", routes={"192.168.0.0/16": address_of(paper, "gate")})
    found = ask(paper, "one", "192.168.3.4")
    assert found.reachable
    assert "instance gate" in last_step(found).message


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"protocol": "tcp"}, "port"),
        ({"protocol": "icmp", "port": 5}, "port"),
        ({"protocol": "tcpp"}, "protocol"),
        ({"ip_version": 5}, "ip_version"),
    ],
)
def test_a_bad_question_is_refused(asked: dict[str, Any], field: str) -> None:
    paper = two_networks()
    add(paper, "one", "a")
    with pytest.raises(InvalidArgumentError) as refused:
        ask(paper, "one", "one", **asked)
    assert [violation.field for violation in refused.value.violations] == [field]


def test_an_end_that_is_nothing_is_not_found() -> None:
    paper = two_networks()
    add(paper, "one", "a")
    with pytest.raises(NotFoundError, match="target 'nobody' is no instance"):
        ask(paper, "one", "nobody")
    with pytest.raises(InvalidArgumentError, match="has no floating IP and is in no provider network"):
        ask(paper, "192.0.2.9", "one")


def test_the_answer_is_told_step_by_step() -> None:
    paper = two_networks()
    add_network(paper, "c", "10.3.0.0/24")
    add(paper, "one", "a")
    add(paper, "two", "c", "n2")
    lines = list(render_reach(ask(paper, "one", "two", protocol="tcp", port=80)))
    assert lines[0].startswith("tcp port 80 from one does not reach two: network a has no router")
    assert any(line.startswith("no") and "Router" in line for line in lines)
