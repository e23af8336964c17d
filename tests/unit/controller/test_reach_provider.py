"""Reach by an operator's network: between its guests, out to what else is there, in from it."""

from __future__ import annotations

from typing import Any

import pytest

from cli.reach import render_reach
from controller.api.reach import explain_reach
from controller.store import keys
from controller.store.keys import Table
from cumulet.errors import InvalidArgumentError
from cumulet.v1 import reach_pb2
from tests.unit.controller.cloud import ATTACH, Paper
from tests.unit.controller.test_floating import add as add_floating
from tests.unit.controller.test_floating import announce, with_internet
from tests.unit.controller.test_provider import add_network, add_subnet, set_uplinks
from tests.unit.controller.test_reach import add_group, address_of, ask
from tests.unit.controller.test_routers import add_network as add_own
from tests.unit.controller.test_routers import add_router

PRINTER, FAR = "192.168.7.9", "198.51.100.9"
PRINTER_6, FAR_6 = "fd00:7::9", "2001:db8::9"


def with_guests(*rules: str) -> Paper:
    """`one` on n1, `two` and `strict` (let in by these rules only) on n2, in office (VLAN 20)."""
    paper = Paper(seed=9).seed()
    paper.lead()
    add_network(paper, vlan=20)
    add_subnet(paper)
    add_subnet(paper, "office-6", cidr="fd00:7::/64", ranges=())
    add_group(paper, "strict", "out any", *rules)
    for node in ("n1", "n2"):
        paper.add_node(node)
        set_uplinks(paper, node, "office")
    for name, node, groups in (("one", "n1", ()), ("two", "n2", ()), ("strict", "n2", ("strict",))):
        paper.add_instance(name, networks=[ATTACH(network="office")], security_groups=groups)
        paper.place(name, node)
    return paper


def kinds(path: reach_pb2.ReachPath) -> list[str]:
    return [reach_pb2.ReachStepKind.Name(step.kind).removeprefix("REACH_STEP_KIND_") for step in path.steps]


def path_of(paper: Paper, source: str, target: str, ip_version: int = 4, **more: Any) -> reach_pb2.ReachPath:
    (path,) = ask(paper, source, target, ip_version=ip_version, **more).paths
    return path


@pytest.mark.parametrize("ip_version", [4, 6])
def test_between_nodes_it_is_the_segment_on_a_node_the_bridge(ip_version: int) -> None:
    paper = with_guests("in any")
    across = path_of(paper, "one", "two", ip_version)
    assert kinds(across) == ["PORT", "SECURITY_GROUP", "BRIDGE", "SEGMENT", "SECURITY_GROUP", "PORT"]
    assert across.steps[3].message == "by office (VLAN 20) from n1 to n2"
    assert across.reachable
    assert "SEGMENT" not in kinds(path_of(paper, "two", "strict", ip_version))


def test_groups_hold_across_by_the_members_addresses() -> None:
    paper = with_guests("in tcp:80 group:default")
    assert path_of(paper, "one", "strict", protocol="tcp", port=80).reachable
    closed = path_of(paper, "one", "strict", protocol="tcp", port=81)
    assert (kinds(closed)[-1], closed.reachable) == ("SECURITY_GROUP", False)
    stranger = path_of(paper, PRINTER, "strict", protocol="tcp", port=80)
    assert (kinds(stranger)[-1], stranger.reachable) == ("SECURITY_GROUP", False)
    # Judged by address alone: whoever has a member's counts as one.
    assert path_of(paper, address_of(paper, "one"), "strict", protocol="tcp", port=80).reachable


def test_by_an_address_the_guest_that_has_it_is_meant() -> None:
    paper = with_guests("in any")
    assert path_of(paper, "one", address_of(paper, "two")) == path_of(paper, "one", "two")


@pytest.mark.parametrize(
    ("target", "ip_version", "where"),
    [
        (PRINTER, 4, f"{PRINTER} is on office (VLAN 20)"),
        (FAR, 4, f"{FAR} is outside"),
        (PRINTER_6, 6, f"{PRINTER_6} is on office (VLAN 20)"),
        (FAR_6, 6, f"{FAR_6} is outside"),
    ],
)
def test_out_to_anybody_there_by_the_guests_groups_alone(target: str, ip_version: int, where: str) -> None:
    paper = with_guests()
    out = path_of(paper, "one", target, ip_version)
    assert kinds(out) == ["PORT", "SECURITY_GROUP", "SEGMENT", "OUTSIDE"]
    assert out.reachable
    assert out.steps[2].message == "by office (VLAN 20) from n1"
    assert out.steps[3].message == f"{where}: what is there decides"
    add_group(paper, "mute", "in any")
    paper.add_instance("silent", networks=[ATTACH(network="office")], security_groups=["mute"])
    paper.place("silent", "n1")
    closed = path_of(paper, "silent", target, ip_version)
    assert (kinds(closed)[-1], closed.reachable) == ("SECURITY_GROUP", False)


@pytest.mark.parametrize(("source", "ip_version"), [(PRINTER, 4), (FAR, 4), (PRINTER_6, 6), (FAR_6, 6)])
def test_in_from_anybody_there_by_the_guests_groups_alone(source: str, ip_version: int) -> None:
    length = 32 if ip_version == 4 else 128
    paper = with_guests(f"in tcp:80 {source}/{length}")
    path = path_of(paper, source, "strict", ip_version, protocol="tcp", port=80)
    assert kinds(path) == ["OUTSIDE", "SEGMENT", "SECURITY_GROUP", "PORT"]
    assert path.reachable
    assert path.steps[1].message == "by office (VLAN 20) to n2"
    assert path.steps[2].rule_id.startswith("sgr-")
    by_address = path_of(paper, source, path.target_address, ip_version, protocol="tcp", port=80)
    assert by_address == path
    assert not path_of(paper, source, "strict", ip_version, protocol="tcp", port=81).reachable
    assert not path_of(paper, source, "two", ip_version, protocol="tcp", port=80).reachable


def test_without_a_version_the_senders_is_meant_and_another_one_is_refused() -> None:
    paper = with_guests("in any")
    assert [path.ip_version for path in ask(paper, PRINTER_6, "strict").paths] == [6]
    with pytest.raises(InvalidArgumentError, match="another version is asked for"):
        ask(paper, PRINTER_6, "strict", ip_version=4)
    paper.add_instance("inner")
    paper.place("inner", "n1")
    with pytest.raises(InvalidArgumentError, match="has no floating IP and is in no provider network"):
        ask(paper, PRINTER, "inner")
    with pytest.raises(InvalidArgumentError, match="is no floating IP and is in no provider network"):
        ask(paper, FAR, "192.168.7.250")


@pytest.mark.parametrize(("lost", "ends"), [("n1", "n1"), ("n2", "n2")])
def test_a_node_that_lost_its_uplink_is_named(lost: str, ends: str) -> None:
    paper = with_guests("in any")
    set_uplinks(paper, lost)
    path = path_of(paper, "one", "two")
    assert not path.reachable
    assert path.steps[-1].message == f"node {ends} has no link to office: its agent's --uplink office=LINK"
    assert path_of(paper, "one", PRINTER).reachable == (lost != "n1")
    assert path_of(paper, PRINTER, "strict").reachable == (lost != "n2")
    assert path_of(paper, "two", "strict").reachable  # both on n2: the bridge is enough


def test_the_metadata_address_stays_on_the_node() -> None:
    paper = with_guests("in any")
    path = path_of(paper, "one", "169.254.169.254")
    assert (kinds(path)[-1], path.reachable) == ("SEGMENT", False)
    assert "belongs to the node" in path.steps[-1].message
    for forged in ("169.254.169.254", "198.18.0.7"):
        path = path_of(paper, forged, "strict")
        assert (kinds(path), path.reachable) == (["OUTSIDE"], False)


def test_another_subnet_of_it_is_behind_the_operators_router() -> None:
    paper = with_guests("in tcp:80 192.168.7.0/24")
    add_subnet(paper, "office-more", cidr="192.168.8.0/24", ranges=["192.168.8.5"])
    paper.add_instance("beyond", networks=[ATTACH(network="office", address="192.168.8.5")])
    paper.place("beyond", "n1")
    path = path_of(paper, "one", "beyond")
    want = ["PORT", "SECURITY_GROUP", "SEGMENT", "OUTSIDE", "SEGMENT", "SECURITY_GROUP", "PORT"]
    assert kinds(path) == want
    assert "operator's router decides" in path.steps[3].message
    assert path.reachable


def test_between_a_tenants_network_and_it_there_is_the_outside() -> None:
    paper = with_guests("in tcp:80")
    add_own(paper, "a", "10.1.0.0/24")
    paper.add_instance("inner", networks=[ATTACH(network="a")])
    paper.place("inner", "n1")
    back = path_of(paper, "one", "inner")
    assert (kinds(back)[-1], back.reachable) == ("OUTSIDE", False)
    assert "network a is within the cloud" in back.steps[-1].message
    closed = path_of(paper, "inner", "strict", protocol="tcp", port=80)
    assert (kinds(closed)[-1], closed.reachable) == ("BRIDGE", False)  # no outbound NAT
    _let_out(paper, keys.NETWORKS, "a")
    out = path_of(paper, "inner", "strict", protocol="tcp", port=80)
    assert kinds(out)[2:] == ["NAT", "OUTSIDE", "SEGMENT", "SECURITY_GROUP", "PORT"]
    assert out.reachable
    assert not path_of(paper, "inner", "two", protocol="tcp", port=80).reachable  # members only
    add_router(paper, "r", "a")
    _let_out(paper, keys.ROUTERS, "r")
    assert path_of(paper, "inner", "strict", protocol="tcp", port=80).reachable


def test_a_floating_ip_sees_a_guest_of_it_as_itself() -> None:
    paper = with_internet()
    add_network(paper)
    add_subnet(paper)
    for name, address in (("guest", "192.168.7.100"), ("other", "192.168.7.104")):
        paper.add_instance(name, networks=[ATTACH(network="office", address=address)])
        paper.place(name, "n3")
    set_uplinks(paper, "n3", "office")
    add_group(paper, "doors", "in tcp:80 192.168.7.100/30")
    paper.add_instance("open", networks=[ATTACH(network="a")], security_groups=["doors"])
    paper.place("open", "n1")
    add_floating(paper, target="open")
    announce(paper, "n1")
    path = path_of(paper, "guest", "f", protocol="tcp", port=80)
    assert kinds(path)[:5] == ["PORT", "SECURITY_GROUP", "SEGMENT", "FLOATING_IP", "NAT"]
    assert path.reachable
    assert not path_of(paper, "other", "f", protocol="tcp", port=80).reachable


def test_the_command_line_shows_the_segment() -> None:
    paper = with_guests("in any")
    request = reach_pb2.ExplainReachRequest(project="p1", source="one", target="two", ip_version=4)
    lines = list(render_reach(explain_reach(paper.state, request)))
    assert any(
        line.startswith("ok   Segment") and "by office (VLAN 20) from n1 to n2" in line for line in lines
    )


def _let_out(paper: Paper, table: Table, name: str) -> None:
    row = paper.state.find(table, "p1", name)
    assert row is not None
    made = type(row.message)()
    made.CopyFrom(row.message)
    made.spec.outbound_nat = True
    paper.put(table, ("p1", name), made)
