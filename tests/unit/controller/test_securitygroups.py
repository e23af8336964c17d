"""Security groups: refusals before anything changes, stable ids, and what nodes are planned."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st

from cli.rules import parse_rule, render_rule
from controller.admit import instance as admit_instance
from controller.admit import port as admit_port
from controller.admit import project as admit_project
from controller.admit import securitygroup as admit
from controller.reconcile.nodeplan import compile_plan
from controller.store import keys
from controller.store.protocol import created_at
from cumulet.errors import FailedPreconditionError, InvalidArgumentError
from cumulet.v1 import meta_pb2, port_pb2, securitygroup_pb2
from tests.unit.controller.cloud import Paper, instance_message, project_message

WHOLE = FieldMask(paths=["spec"])


def group_message(name: str, *rules: str, **more: Any) -> securitygroup_pb2.SecurityGroup:
    parsed = [securitygroup_pb2.SecurityRule(**parse_rule(text)) for text in rules]
    spec = securitygroup_pb2.SecurityGroupSpec(rules=parsed, **more)
    return securitygroup_pb2.SecurityGroup(meta=meta_pb2.Meta(name=name), spec=spec)


def create(paper: Paper, name: str, *rules: str) -> securitygroup_pb2.SecurityGroup:
    paper.do(admit.create(paper.state, paper.context, "p1", group_message(name, *rules)))
    row = paper.state.find(keys.SECURITY_GROUPS, "p1", name)
    assert row is not None
    found: securitygroup_pb2.SecurityGroup = row.message
    return found


def planned(paper: Paper) -> dict[str, list[Any]]:
    """Rules of node n1's plan by the group's name."""
    plan = compile_plan(paper.state, "n1", "")
    found = {group.uid: list(group.rules) for group in plan.security_groups}
    rows = paper.state.rows(keys.SECURITY_GROUPS)
    return {
        parts[1]: found[row.message.meta.uid] for parts, row in rows.items() if row.message.meta.uid in found
    }


RULES = st.sampled_from(
    [
        "in any",
        "out any",
        "in tcp:22 10.0.0.0/8",
        "in tcp:80-90 group:default",
        "out udp:53 ipv4",
        "in icmp:8 ipv4",
        "in icmp:3.4 ipv4",
        "in icmp ipv6",
        "in 89",
        "in sctp:7 fd00::/8",
    ]
)


@given(RULES)
def test_a_rule_is_written_as_it_is_read(text: str) -> None:
    rule = securitygroup_pb2.SecurityRule(**parse_rule(text))
    assert securitygroup_pb2.SecurityRule(**parse_rule(render_rule(rule))) == rule


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tcp:22", "is no rule"),
        ("inside tcp:22", "neither in"),
        ("in tcp:ssh", "port or a range"),
        ("in icmp:echo", "a type such as 8"),
        ("in tcp:22 10.0.0.0/8 10.1.0.0/16", "says again"),
    ],
)
def test_a_bad_rule_is_refused_with_how_to_write_it(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_rule(text)


@pytest.mark.parametrize(
    ("rules", "field", "problem"),
    [
        (["in tcp:22 10.0.0.1/8"], "spec.rules[0].remote_cidr", "host bits"),
        (["in tcp:90-80"], "spec.rules[0].port_max", "not a range"),
        (["in tcp:70000"], "spec.rules[0].port_max", "not a range"),
        (["in udpp:5"], "spec.rules[0].protocol", "not tcp"),
        (["in 89:5"], "spec.rules[0].port_min", "no ports"),
        (["in icmp:8"], "spec.rules[0].ip_version", "differs"),
        (["in any group:nobody"], "spec.rules[0].remote_group", "does not exist"),
        (["in any 10.0.0.0/8 ipv6"], "spec.rules[0].remote_cidr", "not of IPv6"),
        (["in any 10.0.0.0/8 group:default"], "spec.rules[0].remote_group", "not both"),
        (["in tcp:22", "in tcp:22"], "spec.rules[1]", "twice"),
        (["in any"] * 300, "spec.rules", "at most"),
    ],
)
def test_a_bad_group_is_refused_field_by_field(rules: list[str], field: str, problem: str) -> None:
    paper = Paper().seed()
    revision = paper.state.revision
    with pytest.raises(InvalidArgumentError) as refused:
        create(paper, "web", *rules)
    assert field in {violation.field for violation in refused.value.violations}
    assert problem in str(refused.value)
    assert paper.state.revision == revision


def test_the_id_of_a_rule_follows_from_its_content() -> None:
    first, second = create(Paper(1).seed(), "web", "in tcp:22"), create(Paper(2).seed(), "db", "in tcp:22")
    assert first.spec.rules[0].id == second.spec.rules[0].id
    assert create(Paper().seed(), "x", "in tcp:23").spec.rules[0].id != first.spec.rules[0].id


def test_a_project_comes_and_goes_with_its_default_group() -> None:
    paper = Paper()
    paper.do(admit_project.create(paper.state, paper.context, "", project_message("p9")))
    row = paper.state.find(keys.SECURITY_GROUPS, "p9", "default")
    assert row is not None
    assert [render_rule(rule) for rule in row.message.spec.rules] == ["out any", "in any group:default"]
    paper.do(admit_project.delete(paper.state, paper.context, ("p9",), ""))
    assert not paper.state.rows(keys.SECURITY_GROUPS)


def test_a_project_with_a_group_of_its_own_stays() -> None:
    paper = Paper()
    paper.do(admit_project.create(paper.state, paper.context, "", project_message("p1")))
    create(paper, "web", "in any")
    with pytest.raises(FailedPreconditionError, match="security group"):
        admit_project.delete(paper.state, paper.context, ("p1",), "")


def test_an_instance_is_in_the_default_group_unless_it_names_others() -> None:
    paper = Paper().seed()
    create(paper, "web", "in tcp:80")
    paper.add_instance("plain")
    paper.add_instance("named", security_groups=["web"])
    groups = [
        list(paper.state.ports_of("p1", name)[0].message.spec.security_groups) for name in ("plain", "named")
    ]
    assert groups == [["default"], ["web"]]
    with pytest.raises(InvalidArgumentError, match="security group 'nope' does not exist"):
        paper.add_instance("bad", security_groups=["nope"])


def test_an_instance_rests_on_the_default_group_it_is_put_into() -> None:
    """Else a deletion in between would leave a port in a group that is not there."""
    paper = Paper().seed()
    row = paper.state.find(keys.SECURITY_GROUPS, "p1", "default")
    assert row is not None
    change = admit_instance.create(paper.state, paper.context, "p1", instance_message("web"))
    assert created_at(keys.SECURITY_GROUPS.key("p1", "default"), row.create_revision) in change.compares


def test_a_project_of_an_older_cloud_gets_its_default_group_with_the_next_instance() -> None:
    paper = Paper().seed()
    paper.write({keys.SECURITY_GROUPS.key("p1", "default"): None})
    paper.add_instance("web")
    assert paper.state.find(keys.SECURITY_GROUPS, "p1", "default") is not None


def test_a_group_in_use_is_not_deleted() -> None:
    paper = Paper().seed()
    create(paper, "web", "in tcp:80")
    create(paper, "db", "in tcp:5432 group:web")
    with pytest.raises(FailedPreconditionError, match="db refer to p1/web"):
        admit.delete(paper.state, paper.context, ("p1", "web"), "")
    paper.add_instance("one", security_groups=["db"])
    with pytest.raises(FailedPreconditionError, match=r"has 1 port\(s\)"):
        admit.delete(paper.state, paper.context, ("p1", "db"), "")


def test_what_a_port_may_is_changed_at_the_port() -> None:
    paper = Paper().seed()
    create(paper, "web", "in tcp:80")
    paper.add_instance("one")
    port = paper.state.ports_of("p1", "one")[0].message
    spec = port_pb2.PortSpec(
        security_groups=["web"],
        allowed_pairs=[port_pb2.AddressPair(cidr="10.0.0.99", mac="02:00:00:00:00:AA")],
        egress_bps=10**6,
    )
    mask = FieldMask(paths=["spec.security_groups", "spec.allowed_pairs", "spec.egress_bps"])
    changed = port_pb2.Port(meta=port.meta, spec=spec)
    paper.do(admit_port.update(paper.state, paper.context, ("p1", port.meta.name), changed, mask))
    found = paper.state.ports_of("p1", "one")[0].message.spec
    assert list(found.security_groups) == ["web"]
    assert [(pair.cidr, pair.mac) for pair in found.allowed_pairs] == [("10.0.0.99/32", "02:00:00:00:00:aa")]
    assert found.egress_bps == 10**6


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (port_pb2.PortSpec(security_groups=["nope"]), "spec.security_groups[0]"),
        (port_pb2.PortSpec(allowed_pairs=[port_pb2.AddressPair(cidr="ten")]), "spec.allowed_pairs[0].cidr"),
        (
            port_pb2.PortSpec(allowed_pairs=[port_pb2.AddressPair(cidr="10.0.0.1", mac="01:00:00:00:00:00")]),
            "spec.allowed_pairs[0].mac",
        ),
        (port_pb2.PortSpec(ingress_bps=-1), "spec.ingress_bps"),
        (port_pb2.PortSpec(egress_bps=5), "spec.egress_bps"),
    ],
)
def test_a_bad_change_of_a_port_is_refused(spec: port_pb2.PortSpec, field: str) -> None:
    paper = Paper().seed()
    paper.add_instance("one")
    port = paper.state.ports_of("p1", "one")[0].message
    changed = port_pb2.Port(meta=port.meta, spec=spec)
    mask = FieldMask(paths=list(admit_port.MUTABLE[1:]))
    with pytest.raises(InvalidArgumentError) as refused:
        admit_port.update(paper.state, paper.context, ("p1", port.meta.name), changed, mask)
    assert field in {violation.field for violation in refused.value.violations}


def test_a_node_is_planned_the_groups_of_its_ports_with_each_rule_for_each_ip_version() -> None:
    paper = Paper().seed()
    paper.add_node("n1")
    create(paper, "web", "in tcp:80 10.0.0.0/8", "in icmp", "out any")
    create(paper, "elsewhere", "in any")
    paper.add_instance("one", security_groups=["web"])
    paper.place("one")
    rules = planned(paper)
    assert rules.keys() == {"web"}
    seen = [(rule.ip_version, rule.protocol, rule.port_min, rule.egress) for rule in rules["web"]]
    assert seen == [
        (4, 6, 80, False),
        (4, 1, 0, False),
        (6, 58, 0, False),
        (4, 0, 0, True),
        (6, 0, 0, True),
    ]
    assert len({rule.id for rule in rules["web"]}) == 5
