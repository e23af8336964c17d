"""Load balancers: what is refused, who their members are, what nodes are planned of them, and reach."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from cli.balancing import parse_health, parse_listener, parse_member
from controller.admit import instance as admit_instance
from controller.admit import loadbalancer as admit
from controller.admit import port as admit_port
from controller.admit import router as admit_router
from controller.admit import subnet as admit_subnet
from controller.api.reach import explain_reach
from controller.assemble import assemble
from controller.balancers import resolve_members
from controller.commit import Change
from controller.floating import find_way
from controller.reconcile.concern import nodes_concerned
from controller.reconcile.nodeplan import compile_plan
from controller.state import Changed
from controller.store import keys
from cumulet.addresses import follows_from_mac, slaac_address
from cumulet.errors import FailedPreconditionError, InvalidArgumentError
from cumulet.v1 import (
    agent_pb2,
    instance_pb2,
    loadbalancer_pb2,
    meta_pb2,
    port_pb2,
    reach_pb2,
    router_pb2,
    subnet_pb2,
)
from tests.unit.controller.cloud import ATTACH, Paper, instance_message
from tests.unit.controller.test_floating import add as add_floating
from tests.unit.controller.test_floating import with_internet
from tests.unit.controller.test_reach import add_group
from tests.unit.controller.test_routed import add as add_routed
from tests.unit.controller.test_routed import with_ipv6
from tests.unit.controller.test_routers import add_network, add_router, add_subnet, two_networks

WHOLE = FieldMask(paths=["spec"])
CHANGEABLE = FieldMask(paths=["spec.listeners", "spec.members", "spec.health_check", "spec.algorithm"])


def spec_of(
    *members: str,
    network: str = "a",
    address: str = "",
    listen: tuple[str, ...] = ("tcp:80",),
    health: str = "",
    version: int = 0,
) -> loadbalancer_pb2.LoadBalancerSpec:
    spec = loadbalancer_pb2.LoadBalancerSpec(network=network, address=address, ip_version=version)
    spec.listeners.extend(loadbalancer_pb2.Listener(**parse_listener(one)) for one in listen)
    spec.members.extend(loadbalancer_pb2.LoadBalancerMember(**parse_member(one)) for one in members)
    if health:
        spec.health_check.CopyFrom(loadbalancer_pb2.HealthCheck(**parse_health(health)))
    return spec


def create(paper: Paper, spec: loadbalancer_pb2.LoadBalancerSpec, name: str = "lb") -> Change:
    made = loadbalancer_pb2.LoadBalancer(meta=meta_pb2.Meta(name=name), spec=spec)
    return admit.create(paper.state, paper.context, "p1", made)


def update(paper: Paper, spec: loadbalancer_pb2.LoadBalancerSpec, mask: FieldMask = CHANGEABLE) -> Change:
    made = loadbalancer_pb2.LoadBalancer(meta=meta_pb2.Meta(name="lb"), spec=spec)
    return admit.update(paper.state, paper.context, ("p1", "lb"), made, mask)


def stored(paper: Paper, name: str = "lb") -> loadbalancer_pb2.LoadBalancer:
    row = paper.state.find(keys.LOAD_BALANCERS, "p1", name)
    assert row is not None
    found: loadbalancer_pb2.LoadBalancer = row.message
    return found


def routed() -> Paper:
    """Networks `a` and `b` in router `r`, `c` (10.3.0.0/24) in none."""
    paper = two_networks()
    add_network(paper, "c", "10.3.0.0/24")
    add_router(paper, "r", "a", "b")
    return paper


def add(paper: Paper, name: str, network: str = "a", node: str = "n1", **labels: str) -> str:
    """Its address."""
    attach = [ATTACH(network=network)]
    made = instance_pb2.Instance(meta=meta_pb2.Meta(name=name, labels=labels))
    made.spec.CopyFrom(_instance_spec(attach))
    paper.do(admit_instance.create(paper.state, paper.context, "p1", made))
    paper.place(name, node)
    address: str = paper.state.ports_of("p1", name)[0].message.spec.addresses[0].address
    return address


def _instance_spec(attach: list[Any]) -> instance_pb2.InstanceSpec:
    spec: instance_pb2.InstanceSpec = instance_message("any", networks=attach).spec
    return spec


# -- admission --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "field", "problem"),
    [
        (spec_of(network="nope"), "spec.network", "does not exist"),
        (spec_of(network="c"), "spec.network", "has no router"),
        (spec_of(address="10.2.0.9"), "spec.address", "outside the network's subnets"),
        (spec_of(address="10.1.0.1"), "spec.address", "reserved"),
        (spec_of(address="fd00:c::9"), "spec.address", "outside the network's IPv6 subnets"),
        (spec_of(address="fd00:a::"), "spec.address", "reserved"),
        (spec_of(address="fd00:a::1"), "spec.address", "reserved"),
        (spec_of(address="fd00:a::9%eth0"), "spec.address", "zone"),
        (spec_of(address="fd00:a::5054:ff:fe00:1"), "spec.address", "of their MACs"),
        (spec_of(network="b", version=6), "spec.address", "no IPv6 subnet"),
        (spec_of(version=5), "spec.ip_version", "neither 4 nor 6"),
        (spec_of(address="fd00:a::9", version=4), "spec.ip_version", "not of IPv4"),
        (spec_of("10.1.0.9", address="fd00:a::9"), "spec.members[0].address", "not of IPv6"),
        (spec_of("fd00:a::7"), "spec.members[0].address", "not of IPv4"),
        (spec_of("[fd00:c::7]:80", version=6), "spec.members[0].address", "no guest's address"),
        (spec_of("fd00:a::9", address="fd00:a::9"), "spec.members[0].address", "own address"),
        (spec_of(listen=()), "spec.listeners", "0 listeners"),
        (spec_of(listen=("tcp:80", "udp:80", "tcp:80")), "spec.listeners[2]", "twice"),
        (spec_of(listen=("tcp:0",)), "spec.listeners[0].port", "not between 1"),
        (spec_of("instance:Not-A-Name"), "spec.members[0].instance", ""),
        (spec_of("label:"), "spec.members[0]", "exactly one"),
        (spec_of("label:=x"), "spec.members[0].selector", ""),
        (spec_of("10.2.0.9", "10.3.0.9"), "spec.members[1].address", "no guest's address"),
        (spec_of("10.1.0.1"), "spec.members[0].address", "no guest's address"),
        (spec_of("10.1.0.9:70000"), "spec.members[0].port", "not between 0"),
        (spec_of("10.1.0.9", address="10.1.0.9"), "spec.members[0].address", "own address"),
        (spec_of(health="tcp interval=0 timeout=61"), "spec.health_check.timeout_s", "not between 1 and 60"),
        (spec_of(health="http:/a\x01b"), "spec.health_check.path", "no path of http"),
    ],
)
def test_what_cannot_be_is_named_by_its_field(
    spec: loadbalancer_pb2.LoadBalancerSpec, field: str, problem: str
) -> None:
    paper = routed()
    with pytest.raises(InvalidArgumentError) as caught:
        create(paper, spec)
    found = {one.field: one.description for one in caught.value.violations}
    assert field in found
    assert problem in found[field]


def test_its_address_is_held_like_a_ports() -> None:
    paper = routed()
    paper.do(create(paper, spec_of(address="10.1.0.9")))
    with pytest.raises(InvalidArgumentError, match="refused") as caught:
        create(paper, spec_of(address="10.1.0.9"), "other")
    assert [one.field for one in caught.value.violations] == ["spec.address"]
    paper.do(create(paper, spec_of(), "other"))
    chosen = stored(paper, "other").spec.address
    network = paper.state.find(keys.NETWORKS, "p1", "a")
    assert network is not None
    held = paper.state.addresses_in(network.message.meta.uid)
    assert held == {"10.1.0.9": stored(paper).meta.uid, chosen: stored(paper, "other").meta.uid}
    late = create(paper, spec_of(address="10.1.0.77"), "late")
    add_at = instance_pb2.Instance(meta=meta_pb2.Meta(name="web"))
    add_at.spec.CopyFrom(_instance_spec([ATTACH(network="a", address="10.1.0.77")]))
    paper.do(admit_instance.create(paper.state, paper.context, "p1", add_at))
    assert not paper.holds(late)
    paper.do(admit.delete(paper.state, paper.context, ("p1", "other"), ""))
    assert chosen not in paper.state.addresses_in(network.message.meta.uid)


def test_an_ipv6_address_is_given_and_held_as_well() -> None:
    paper = routed()
    paper.do(create(paper, spec_of(version=6), "free"))
    free = IPv6Address(stored(paper, "free").spec.address)
    assert free in IPv6Network("fd00:a::/64")
    assert not follows_from_mac(free)
    paper.do(create(paper, spec_of("instance:web", address="fd00:a:0::c8")))
    found = stored(paper).spec
    assert (found.address, found.ip_version) == ("fd00:a::c8", 6)
    with pytest.raises(InvalidArgumentError, match="refused") as caught:
        create(paper, spec_of(address="fd00:a::c8"), "other")
    assert "taken" in caught.value.violations[0].description
    ranges = subnet_pb2.Subnet(meta=meta_pb2.Meta(name="a-0"))
    ranges.spec.ranges.append("10.1.0.10-10.1.0.20")
    mask = FieldMask(paths=["spec.ranges"])
    paper.do(admit_subnet.update(paper.state, paper.context, ("p1", "a-0"), ranges, mask))
    with pytest.raises(FailedPreconditionError, match="load balancer"):
        admit_subnet.delete(paper.state, paper.context, ("p1", "a-1"), "")
    with pytest.raises(InvalidArgumentError) as refused:
        update(paper, spec_of("10.1.0.9"))
    assert "members have the load balancer's IP version" in refused.value.violations[0].description


def test_the_free_address_is_of_the_version_that_the_network_has() -> None:
    paper = routed()
    paper.do(create(paper, spec_of()))
    assert stored(paper).spec.ip_version == 4
    paper = routed()
    add_network(paper, "six", "fd00:6::/64")
    add_router(paper, "r6", "six")
    paper.do(create(paper, spec_of(network="six")))
    assert stored(paper).spec.ip_version == 6
    with pytest.raises(InvalidArgumentError) as caught:
        create(paper, spec_of(network="six", version=4), "other")
    assert [one.field for one in caught.value.violations] == ["spec.ip_version"]


def test_parts_addresses_are_nobody_elses() -> None:
    paper = routed()
    spec = subnet_pb2.SubnetSpec(network="a", cidr="2001:2:0:7::/64")
    subnet = subnet_pb2.Subnet(meta=meta_pb2.Meta(name="parts"), spec=spec)
    with pytest.raises(InvalidArgumentError) as caught:
        admit_subnet.create(paper.state, paper.context, "p1", subnet)
    assert "reserved" in caught.value.violations[0].description
    add(paper, "one")
    port = paper.state.ports_of("p1", "one")[0].message
    pairs = port_pb2.Port(meta=port.meta)
    pairs.spec.allowed_pairs.add(cidr="2001:2::7/128")
    mask, where = FieldMask(paths=["spec.allowed_pairs"]), ("p1", port.meta.name)
    with pytest.raises(InvalidArgumentError) as caught:
        admit_port.update(paper.state, paper.context, where, pairs, mask)
    assert "the nodes' own" in caught.value.violations[0].description


def test_a_floating_ip_leads_to_none_of_ipv6() -> None:
    """Neither when it is asked for, nor when a balancer of the name comes to be one of IPv6."""
    paper = with_internet()
    add_subnet(paper, "a-6", "a", "fd00:a::/64")
    paper.do(create(paper, spec_of()))
    floating = add_floating(paper, target="lb")
    assert find_way(paper.state, floating).balancer
    paper.do(admit.delete(paper.state, paper.context, ("p1", "lb"), ""))
    paper.do(create(paper, spec_of(version=6)))
    way = find_way(paper.state, floating)
    assert (way.node, way.reason, way.text) == ("", "NoAddress", "load balancer lb has an IPv6 address")
    with pytest.raises(InvalidArgumentError) as caught:
        add_floating(paper, "g", target="lb")
    assert "a floating IP is of IPv4" in caught.value.violations[0].description


def test_defaults_are_written_out() -> None:
    paper = routed()
    paper.do(create(paper, spec_of(health="http")))
    found = stored(paper).spec
    assert found.algorithm == loadbalancer_pb2.BALANCING_ALGORITHM_ROUND_ROBIN
    check = found.health_check
    assert (check.path, check.interval_s, check.timeout_s, check.rise, check.fall) == ("/", 5, 2, 2, 3)
    paper.do(update(paper, spec_of("10.1.0.9")))
    assert not stored(paper).spec.HasField("health_check")


def test_its_network_and_address_stay() -> None:
    paper = routed()
    paper.do(create(paper, spec_of()))
    with pytest.raises(InvalidArgumentError, match="refused"):
        update(paper, spec_of(network="b"), WHOLE)


def test_what_it_rests_on_is_not_taken_away() -> None:
    paper = routed()
    paper.do(create(paper, spec_of(address="10.1.0.9")))
    context = paper.context
    with pytest.raises(FailedPreconditionError, match="load balancer lb"):
        admit_router.delete(paper.state, context, ("p1", "r"), "")
    with pytest.raises(FailedPreconditionError, match="load balancer lb"):
        admit_subnet.delete(paper.state, context, ("p1", "a-0"), "")
    smaller = router_pb2.Router(meta=meta_pb2.Meta(name="r"), spec=router_pb2.RouterSpec(networks=["b"]))
    with pytest.raises(InvalidArgumentError) as caught:
        admit_router.update(paper.state, context, ("p1", "r"), smaller, WHOLE)
    assert "has load balancer lb" in caught.value.violations[0].description
    other = router_pb2.Router(meta=meta_pb2.Meta(name="r"), spec=router_pb2.RouterSpec(networks=["a"]))
    paper.do(admit_router.update(paper.state, context, ("p1", "r"), other, WHOLE))
    paper.do(admit.delete(paper.state, context, ("p1", "lb"), ""))
    paper.do(admit_router.delete(paper.state, context, ("p1", "r"), ""))


def test_a_router_that_gets_a_balancer_meanwhile_is_not_deleted() -> None:
    paper = routed()
    removal = admit_router.delete(paper.state, paper.context, ("p1", "r"), "")
    assert paper.holds(removal)
    paper.do(create(paper, spec_of()))
    assert not paper.holds(removal)


# -- members ----------------------------------------------------------------------------------------------


def test_members_are_found_by_name_label_and_address() -> None:
    paper = routed()
    one, two, three = add(paper, "one", app="web"), add(paper, "two", "b", app="web"), add(paper, "three")
    add(paper, "far", "c", app="web")
    paper.do(
        create(paper, spec_of("label:app=web:8080", "instance:three", "10.1.0.250 drain", "instance:nobody"))
    )
    found = {
        (one.address, one.port, one.drain, one.instance)
        for one in resolve_members(paper.state, stored(paper))
    }
    assert found == {
        (one, 8080, False, "one"),
        (two, 8080, False, "two"),
        (three, 0, False, "three"),
        ("10.1.0.250", 0, True, ""),
    }


def test_members_of_an_ipv6_one_are_found_by_the_addresses_that_they_make() -> None:
    """`two` is in a network without IPv6 until it has a subnet of it."""
    paper = routed()
    for name, network in (("one", "a"), ("two", "b")):
        add(paper, name, network, app="web")
    paper.do(create(paper, spec_of("label:app=web:8080", "fd00:a::77", version=6)))
    macs = {name: paper.state.ports_of("p1", name)[0].message.spec.mac for name in ("one", "two")}
    one = slaac_address(IPv6Network("fd00:a::/64"), macs["one"])
    two = slaac_address(IPv6Network("fd00:b::/64"), macs["two"])
    found = {member.address for member in resolve_members(paper.state, stored(paper))}
    assert found == {str(one), "fd00:a::77"}
    add_subnet(paper, "b-6", "b", "fd00:b::/64")
    found = {member.address for member in resolve_members(paper.state, stored(paper))}
    assert found == {str(one), str(two), "fd00:a::77"}


def test_who_is_off_or_goes_drains() -> None:
    paper = routed()
    add(paper, "one", app="web")
    paper.do(create(paper, spec_of("label:app=web")))
    for change in ("power", "deleted"):
        made = paper.instance("one")
        copy = instance_pb2.Instance()
        copy.CopyFrom(made)
        if change == "power":
            copy.spec.power = instance_pb2.POWER_STATE_OFF
        else:
            copy.meta.deleted_at.FromSeconds(1)
        paper.put(keys.INSTANCES, ("p1", "one"), copy)
        assert [one.drain for one in resolve_members(paper.state, stored(paper))] == [True]
        paper.put(keys.INSTANCES, ("p1", "one"), made)
        assert [one.drain for one in resolve_members(paper.state, stored(paper))] == [False]


def test_the_drain_of_one_entry_wins_over_another() -> None:
    paper = routed()
    add(paper, "one", app="web")
    paper.do(create(paper, spec_of("label:app=web", "instance:one drain")))
    assert [one.drain for one in resolve_members(paper.state, stored(paper))] == [True]


# -- plans ------------------------------------------------------------------------------------------------


def test_every_node_with_ports_of_the_router_is_planned_it() -> None:
    paper = routed()
    one, two = add(paper, "one", "a", "n1", app="web"), add(paper, "two", "b", "n2", app="web")
    spec = spec_of(
        "label:app=web:8080", listen=("tcp:80", "udp:53"), address="10.1.0.200", health="http:/x fall=4"
    )
    paper.do(create(paper, spec))
    plans = [compile_plan(paper.state, node, "nonce") for node in ("n1", "n2")]
    found = [plan.routers[0].load_balancers[0] for plan in plans]
    assert found[0] == found[1]
    planned = found[0]
    assert (planned.address, planned.by_source) == ("10.1.0.200", False)
    assert [(one.protocol, one.port) for one in planned.listeners] == [(6, 80), (17, 53)]
    assert [(one.address, one.port, one.health_port) for one in planned.members] == [
        (one, 8080, 8080),
        (two, 8080, 8080),
    ]
    assert planned.health_check == agent_pb2.PlannedHealthCheck(
        http_path="/x", interval_s=5, timeout_s=2, rise=2, fall=4
    )


def concerned(paper: Paper, table: Any, parts: tuple[str, ...], before: Any, after: Any) -> set[str]:
    return nodes_concerned(paper.state, Changed(table, parts, before, after, paper.state.revision))


def test_whatever_changes_its_members_concerns_its_nodes() -> None:
    paper = routed()
    add(paper, "one", "a", "n1")
    add(paper, "two", "b", "n2", app="web")
    paper.do(create(paper, spec_of("label:app=web")))
    balancer = paper.state.find(keys.LOAD_BALANCERS, "p1", "lb")
    two, one = paper.state.find(keys.INSTANCES, "p1", "two"), paper.state.find(keys.INSTANCES, "p1", "one")
    port_of = {name: paper.state.ports_of("p1", name)[0] for name in ("one", "two")}
    assert concerned(paper, keys.LOAD_BALANCERS, ("p1", "lb"), None, balancer) == {"n1", "n2"}
    assert concerned(paper, keys.LOAD_BALANCERS, ("p1", "lb"), balancer, None) == {"n1", "n2"}
    assert concerned(paper, keys.INSTANCES, ("p1", "two"), two, two) == {"n1", "n2"}
    assert concerned(paper, keys.INSTANCES, ("p1", "one"), two, one) == {"n1", "n2"}  # it lost the label
    assert concerned(paper, keys.INSTANCES, ("p1", "one"), one, one) == {"n1"}  # it never had it
    name = port_of["two"].message.meta.name
    assert concerned(paper, keys.PORTS, ("p1", name), None, port_of["two"]) == {"n1", "n2"}
    name = port_of["one"].message.meta.name
    assert concerned(paper, keys.PORTS, ("p1", name), None, port_of["one"]) == {"n1"}


def test_its_status_says_who_gets_no_answer_from_whom() -> None:
    paper = routed()
    address = add(paper, "one", app="web")
    paper.do(create(paper, spec_of("label:app=web", health="tcp")))
    uid = stored(paper).meta.uid
    paper.state.unhealthy["n2"] = frozenset({(uid, address), ("other", "10.1.0.3")})
    row = paper.state.find(keys.LOAD_BALANCERS, "p1", "lb")
    assert row is not None
    (member,) = assemble(paper.state, keys.LOAD_BALANCERS, ("p1", "lb"), row).status.members
    assert (member.instance, member.address, list(member.unhealthy_on)) == ("one", address, ["n2"])


# -- reach ------------------------------------------------------------------------------------------------


def ask(paper: Paper, target: str, **more: Any) -> reach_pb2.ExplainReachResponse:
    request = reach_pb2.ExplainReachRequest(project="p1", source="client", target=target, **more)
    return explain_reach(paper.state, request)


def balancer_step(found: reach_pb2.ExplainReachResponse) -> reach_pb2.ReachStep:
    (step,) = [
        step for path in found.paths for step in path.steps if step.kind == reach_pb2.REACH_STEP_KIND_BALANCER
    ]
    return step


def test_it_is_reached_when_a_member_is_and_says_who_is_not() -> None:
    paper = routed()
    add_group(paper, "closed", "out any")
    add(paper, "client", "a", "n1")
    add(paper, "open", "b", "n2", app="web")
    add(paper, "shut", "a", "n2", app="web")
    port = paper.state.ports_of("p1", "shut")[0].message
    closed = type(port)()
    closed.CopyFrom(port)
    closed.spec.security_groups[:] = ["closed"]
    paper.put(keys.PORTS, ("p1", port.meta.name), closed)
    paper.do(create(paper, spec_of("label:app=web:8080", "10.1.0.250", address="10.1.0.200")))
    for target in ("lb", "10.1.0.200"):
        found = ask(paper, target, protocol="tcp", port=80)
        assert found.reachable
        step = balancer_step(found)
        assert (step.name, step.node, step.passes) == ("lb", "n1", True)
        assert "open:8080" in step.message
        assert (
            "shut:8080 (not reached: no rule of shut's security groups (closed) lets it in)" in step.message
        )
        assert "10.1.0.250 (not reached: no port has this address)" in step.message
        kinds = [step.kind for step in found.paths[0].steps]
        assert kinds == [
            reach_pb2.REACH_STEP_KIND_PORT,
            reach_pb2.REACH_STEP_KIND_SECURITY_GROUP,
            reach_pb2.REACH_STEP_KIND_BALANCER,
            reach_pb2.REACH_STEP_KIND_TUNNEL,
            reach_pb2.REACH_STEP_KIND_SECURITY_GROUP,
            reach_pb2.REACH_STEP_KIND_PORT,
        ]


def test_one_of_ipv6_is_reached_by_ipv6() -> None:
    paper = routed()
    add(paper, "client", "a", "n1")
    add(paper, "web", "a", "n2")
    paper.do(create(paper, spec_of("instance:web:8080", "[fd00:a::77]:80", address="fd00:a::c8")))
    for target in ("lb", "fd00:a::c8"):
        found = ask(paper, target, protocol="tcp", port=80)
        assert found.reachable
        assert [path.ip_version for path in found.paths] == [6]
        said = balancer_step(found).message
        assert "[fd00:a::77]:80 (not reached: no port has this address), web:8080" in said
    assert not ask(paper, "lb", protocol="tcp", port=80, ip_version=4).reachable


def test_outside_nobody_answers_for_one_of_ipv6() -> None:
    """Even where its subnet is the outside's: neither for who is outside nor for another router's ports."""
    paper = with_ipv6()
    out = add_routed(paper)
    paper.do(create(paper, spec_of("instance:web", version=6)))
    address = IPv6Address(stored(paper).spec.address)
    assert address in out
    add_routed(paper, "l-out", "lonely")
    add_router(paper, "r2", "lonely")
    paper.place("away", "n1")
    for source in ("2001:db8:1::9", "away"):
        request = reach_pb2.ExplainReachRequest(
            project="p1", source=source, target="lb", protocol="tcp", port=80, ip_version=6
        )
        found = explain_reach(paper.state, request)
        assert not found.reachable
        assert "outside, nobody answers for its address" in found.paths[0].steps[-1].message


@pytest.mark.parametrize(
    ("rule", "reachable"), [("in any group:closed", False), ("in any", True), ("in any 10.1.0.200/32", True)]
)
def test_a_members_groups_judge_the_balancer_when_it_is_its_own_client(rule: str, reachable: bool) -> None:
    """`explain reach` said yes by a rule for its own group, and no packet came: 5 times in 11,782 probes."""
    paper = routed()
    add_group(paper, "closed", "out any", rule)
    paper.add_instance("client", networks=[ATTACH(network="a")], security_groups=("closed",))
    paper.place("client", "n1")
    paper.do(create(paper, spec_of("instance:client", address="10.1.0.200")))
    found = ask(paper, "lb", protocol="tcp", port=80)
    assert found.reachable == reachable
    assert ("not reached" in balancer_step(found).message) != reachable


@pytest.mark.parametrize(
    ("members", "asked", "reachable", "says"),
    [
        ((), {"protocol": "tcp", "port": 80}, False, "no member that takes connections"),
        (("instance:client drain",), {"protocol": "tcp", "port": 80}, False, "no member that takes"),
        (("instance:client",), {"protocol": "tcp", "port": 81}, False, "does not listen"),
        (("instance:client",), {"protocol": "udp", "port": 80}, False, "does not listen"),
        (("10.1.0.250",), {"protocol": "tcp", "port": 80}, False, "not reached"),
        ((), {}, True, "answers echo requests"),
    ],
)
def test_what_it_does_without_a_member_that_is_reached(
    members: tuple[str, ...], asked: dict[str, Any], reachable: bool, says: str
) -> None:
    paper = routed()
    add(paper, "client", "a", "n1")
    paper.do(create(paper, spec_of(*members)))
    found = ask(paper, "lb", **asked)
    assert found.reachable == reachable
    assert says in balancer_step(found).message
