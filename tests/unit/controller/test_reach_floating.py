"""Reach by floating IPs: from the outside, from ports, and what a port's own address changes."""

from __future__ import annotations

from typing import Any

import pytest

from controller.admit import loadbalancer as admit_balancer
from controller.api.reach import explain_reach
from controller.store import keys
from cumulet.errors import InvalidArgumentError
from cumulet.v1 import loadbalancer_pb2, meta_pb2, reach_pb2
from tests.unit.controller.cloud import ATTACH, Paper
from tests.unit.controller.test_floating import add, announce, with_internet
from tests.unit.controller.test_reach import add_group

CLIENT = "198.51.100.9"


def ask(paper: Paper, source: str, target: str, port: int = 80) -> reach_pb2.ReachPath:
    request = reach_pb2.ExplainReachRequest(
        project="p1", source=source, target=target, protocol="tcp", port=port, ip_version=4
    )
    found = explain_reach(paper.state, request)
    assert found.reachable == all(step.passes for step in found.paths[0].steps)
    return found.paths[0]


def kinds(path: reach_pb2.ReachPath) -> list[str]:
    return [reach_pb2.ReachStepKind.Name(step.kind).removeprefix("REACH_STEP_KIND_") for step in path.steps]


def with_doors(*rules: str) -> Paper:
    """`open` on n1 and `far` on n2 let in by these rules only; n1 announces."""
    paper = with_internet()
    add_group(paper, "doors", "out any", *rules)
    for name, node in (("open", "n1"), ("far", "n2")):
        paper.add_instance(name, networks=[ATTACH(network="a")], security_groups=["doors"])
        paper.place(name, node)
    return paper


def test_the_outside_is_judged_by_the_targets_groups_as_itself() -> None:
    paper = with_doors(f"in tcp:80 {CLIENT}/32")
    floating = add(paper, target="open")
    announce(paper, "n1")
    path = ask(paper, CLIENT, "f")
    assert kinds(path) == ["OUTSIDE", "FLOATING_IP", "NAT", "SECURITY_GROUP", "PORT"]
    assert path.reachable
    assert path.target_address == floating.spec.address
    assert path.steps[3].rule_id.startswith("sgr-")
    assert ask(paper, CLIENT, "open").reachable  # named by the instance that has it
    assert ask(paper, CLIENT, floating.spec.address).reachable
    assert kinds(ask(paper, "198.51.100.10", "f"))[-1] == "SECURITY_GROUP"
    assert not ask(paper, CLIENT, "f", 81).reachable


def test_it_is_not_reached_before_a_node_announces_it_nor_when_it_leads_nowhere() -> None:
    paper = with_doors("in any")
    add(paper, target="open")
    path = ask(paper, CLIENT, "f")
    assert (kinds(path)[-1], path.reachable) == ("FLOATING_IP", False)
    announce(paper, "n1")
    assert ask(paper, CLIENT, "f").reachable
    paper.write({keys.ROUTERS.key("p1", "r"): None})
    assert "no router" in ask(paper, CLIENT, "f").steps[-1].message


def test_forwards_lead_to_the_targets_port_across_nodes() -> None:
    paper = with_doors("in tcp:8080")
    add(paper, forwards=[("tcp", 80, "far", 8080), ("tcp", 81, "far", 81), ("tcp", 82, "open", 0)])
    announce(paper, "n2")
    assert kinds(ask(paper, CLIENT, "f")) == ["OUTSIDE", "FLOATING_IP", "NAT", "SECURITY_GROUP", "PORT"]
    assert kinds(ask(paper, CLIENT, "f", 81))[-1] == "SECURITY_GROUP"
    assert kinds(ask(paper, CLIENT, "f", 82))[-2:] == ["TUNNEL", "SECURITY_GROUP"]
    assert kinds(ask(paper, CLIENT, "f", 83))[-1] == "NAT"


def test_a_port_comes_by_the_outside_only_where_it_is_let_out() -> None:
    paper = with_doors("in tcp:80")
    add(paper, target="open")
    announce(paper, "n1")
    near = ask(paper, "web", "f")  # on the announcing node, of the same router
    assert kinds(near) == [
        *("PORT", "SECURITY_GROUP", "FLOATING_IP", "NAT"),
        *("SECURITY_GROUP", "PORT"),
    ]
    assert near.reachable
    closed = ask(paper, "far", "f")
    assert (kinds(closed)[-1], closed.reachable) == ("ROUTER", False)
    add(paper, "own", target="far")
    announce(paper, "n2", "own")
    out = ask(paper, "far", "f")
    assert out.reachable
    assert "of floating IP own" in next(step.message for step in out.steps if "NAT" in _kind(step))


def test_who_has_an_address_gets_out_without_outbound_nat() -> None:
    paper = with_doors("in any")
    assert not ask(paper, "open", CLIENT).reachable
    floating = add(paper, target="open")
    announce(paper, "n1")
    path = ask(paper, "open", CLIENT)
    assert path.reachable
    assert floating.spec.address in path.steps[-2].message


def test_by_a_balancer_at_least_one_member_is_reached() -> None:
    paper = with_doors("in tcp:80")
    message = loadbalancer_pb2.LoadBalancer(meta=meta_pb2.Meta(name="front"))
    message.spec.network = "a"
    message.spec.listeners.add(protocol="tcp", port=80)
    message.spec.members.add(instance="web")  # in the default group, which the outside does not get into
    message.spec.members.add(instance="far")
    paper.do(admit_balancer.create(paper.state, paper.context, "p1", message))
    add(paper, target="front")
    announce(paper, "n1")
    path = ask(paper, CLIENT, "f")
    assert path.reachable
    assert kinds(path)[:3] == ["OUTSIDE", "FLOATING_IP", "BALANCER"]
    assert "not reached" in path.steps[2].message
    assert kinds(ask(paper, CLIENT, "f", 81))[-1] == "BALANCER"


@pytest.mark.parametrize(
    ("source", "target", "problem"),
    [
        (CLIENT, "web", "has no floating IP"),
        (CLIENT, "192.0.2.7", "is no floating IP"),
        ("2001:db8::9", "f", "no address of an external network's IPv6 range"),
    ],
)
def test_the_outside_comes_by_nothing_else(source: str, target: str, problem: str) -> None:
    paper = with_doors("in any")
    add(paper, target="open")
    with pytest.raises(InvalidArgumentError, match=problem):
        ask(paper, source, target)


def _kind(step: Any) -> str:
    return reach_pb2.ReachStepKind.Name(step.kind)
