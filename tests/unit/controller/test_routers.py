"""Routers: what they refuse to join, and what nodes are planned of them."""

from __future__ import annotations

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import network as admit_network
from controller.admit import router as admit
from controller.admit import subnet as admit_subnet
from controller.reconcile.directory import Directory, take_changes
from controller.reconcile.nodeplan import compile_plan
from controller.store import keys
from controller.verify import MISSING, compare_inventory
from cumulet.errors import FailedPreconditionError, InvalidArgumentError
from cumulet.v1 import agent_pb2, meta_pb2, network_pb2, node_pb2, router_pb2, subnet_pb2
from tests.unit.controller.cloud import ATTACH, Paper

WHOLE = FieldMask(paths=["spec"])


def add_network(paper: Paper, name: str, *cidrs: str) -> None:
    made = network_pb2.Network(meta=meta_pb2.Meta(name=name))
    paper.do(admit_network.create(paper.state, paper.context, "p1", made))
    for number, cidr in enumerate(cidrs):
        add_subnet(paper, f"{name}-{number}", name, cidr)


def add_subnet(paper: Paper, name: str, network: str, cidr: str) -> None:
    spec = subnet_pb2.SubnetSpec(network=network, cidr=cidr)
    made = subnet_pb2.Subnet(meta=meta_pb2.Meta(name=name), spec=spec)
    paper.do(admit_subnet.create(paper.state, paper.context, "p1", made))


def router_message(name: str, *networks: str, routes: dict[str, str] | None = None) -> router_pb2.Router:
    spec = router_pb2.RouterSpec(networks=networks)
    for cidr, next_hop in (routes or {}).items():
        spec.routes.add(cidr=cidr, next_hop=next_hop)
    return router_pb2.Router(meta=meta_pb2.Meta(name=name), spec=spec)


def add_router(paper: Paper, name: str, *networks: str, routes: dict[str, str] | None = None) -> None:
    made = router_message(name, *networks, routes=routes)
    paper.do(admit.create(paper.state, paper.context, "p1", made))


def two_networks() -> Paper:
    """Networks `a` (10.1.0.0/24, fd00:a::/64) and `b` (10.2.0.0/24); nodes n1 and n2 with an underlay."""
    paper = Paper(seed=11).seed()
    paper.lead()
    add_network(paper, "a", "10.1.0.0/24", "fd00:a::/64")
    add_network(paper, "b", "10.2.0.0/24")
    for number, node in enumerate(("n1", "n2"), start=1):
        paper.add_node(node)
        status = node_pb2.NodeStatus(underlay_address=f"192.0.2.{number}", underlay_mtu=1500)
        paper.put(keys.NODE_STATUS, (node,), status)
    return paper


def uid_of(paper: Paper, network: str) -> str:
    row = paper.state.find(keys.NETWORKS, "p1", network)
    assert row is not None
    uid: str = row.message.meta.uid
    return uid


@pytest.mark.parametrize(
    ("networks", "routes", "field", "problem"),
    [
        (["nope"], {}, "spec.networks[0]", "does not exist"),
        (["a", "a"], {}, "spec.networks[1]", "twice"),
        (["a", "same"], {}, "spec.networks", "overlap"),
        (["taken"], {}, "spec.networks[0]", "attached to router first"),
        (["a"], {"10.9.0.0/16": "10.1.0.1"}, "spec.routes[0].next_hop", "in circles"),
        (["a"], {"10.9.0.0/16": "10.2.0.9"}, "spec.routes[0].next_hop", "in no subnet"),
        (["a"], {"10.9.0.0/16": "fd00:a::9"}, "spec.routes[0].next_hop", "not of IPv4"),
        (["a"], {"10.1.0.0/25": "10.1.0.9"}, "spec.routes[0].cidr", "reached directly"),
        (["a"], {"10.9.0.1/16": "10.1.0.9"}, "spec.routes[0].cidr", "not a range"),
        (["a"], {"10.9.0.0/16": "there"}, "spec.routes[0].next_hop", "not an IP address"),
    ],
)
def test_what_no_router_can_do_is_refused(
    networks: list[str], routes: dict[str, str], field: str, problem: str
) -> None:
    paper = two_networks()
    add_network(paper, "same", "10.1.0.128/25")
    add_network(paper, "taken", "10.7.0.0/24")
    add_router(paper, "first", "taken")
    revision = paper.state.revision
    with pytest.raises(InvalidArgumentError) as refused:
        admit.create(paper.state, paper.context, "p1", router_message("second", *networks, routes=routes))
    assert field in {violation.field for violation in refused.value.violations}
    assert problem in str(refused.value)
    assert paper.state.revision == revision


def test_a_subnet_does_not_overlap_what_its_router_joins() -> None:
    paper = two_networks()
    add_router(paper, "r", "a", "b")
    with pytest.raises(InvalidArgumentError, match=r"overlaps subnet a-0 .* of router r"):
        add_subnet(paper, "more", "b", "10.1.0.64/26")


def test_a_network_leaves_its_router_before_it_goes() -> None:
    paper = two_networks()
    add_network(paper, "empty")
    add_router(paper, "r", "empty")
    with pytest.raises(FailedPreconditionError, match="attached to router r"):
        admit_network.delete(paper.state, paper.context, ("p1", "empty"), "")
    changed = router_message("r")
    paper.do(admit.update(paper.state, paper.context, ("p1", "r"), changed, WHOLE))
    paper.do(admit_network.delete(paper.state, paper.context, ("p1", "empty"), ""))


def test_the_vni_of_a_deleted_router_is_free_again() -> None:
    paper = two_networks()
    before = set(paper.state.rows(keys.VNIS))
    add_router(paper, "r", "a")
    assert len(paper.state.rows(keys.VNIS)) == len(before) + 1
    paper.do(admit.delete(paper.state, paper.context, ("p1", "r"), ""))
    assert set(paper.state.rows(keys.VNIS)) == before


def test_a_node_is_planned_the_router_of_its_networks_and_told_of_the_others_ports() -> None:
    paper = two_networks()
    add_router(paper, "r", "a", "b", routes={"192.168.0.0/16": "10.1.0.9"})
    paper.add_instance("one", networks=[ATTACH(network="a")])
    paper.add_instance("two", networks=[ATTACH(network="b")])
    paper.place("one", "n1")
    paper.place("two", "n2")
    plan = compile_plan(paper.state, "n1", "")
    (router,) = plan.routers
    assert router.name == "r"
    assert [network.router_uid for network in plan.networks] == [router.uid]
    assert list(router.network_uids) == [uid_of(paper, "a"), uid_of(paper, "b")]
    assert list(router.cidrs_elsewhere) == ["10.2.0.0/24"]
    assert [(route.cidr, route.next_hop) for route in router.routes] == [("192.168.0.0/16", "10.1.0.9")]
    (change,) = take_changes(paper.state, "n1", plan, Directory())
    told = {network.network_uid: [entry.vtep for entry in network.put] for network in change.networks}
    assert told == {uid_of(paper, "a"): [], uid_of(paper, "b"): ["192.0.2.2"]}


def test_a_network_without_a_router_has_none_in_the_plan() -> None:
    paper = two_networks()
    paper.add_instance("one", networks=[ATTACH(network="a")])
    paper.place("one", "n1")
    plan = compile_plan(paper.state, "n1", "")
    assert not plan.routers
    assert [network.router_uid for network in plan.networks] == [""]
    assert isinstance(plan, agent_pb2.NodePlan)


def test_verify_wants_a_routers_namespace_in_place_of_its_networks() -> None:
    paper = two_networks()
    add_router(paper, "r", "a", "b")
    paper.add_instance("one", networks=[ATTACH(network="a")])
    paper.place("one", "n1")
    plan = compile_plan(paper.state, "n1", "")
    (planned,), (network,), (router,) = plan.instances, plan.networks, plan.routers
    things = [(kind, planned.uid) for kind in ("disk", "seed", "domain")]
    things += [("tap", port.uid) for port in planned.ports]
    things += [(kind, network.uid) for kind in ("bridge", "tunnel", "veth", "dhcp-server")]
    things += [(kind, router.uid) for kind in ("router-namespace", "tunnel", "veth")]

    def differences(left: list[tuple[str, str]]) -> list[tuple[int, str, str]]:
        items = [agent_pb2.InventoryItem(kind=kind, name="x", owner_uid=uid) for kind, uid in left]
        found = compare_inventory(paper.state, "n1", agent_pb2.Inventory(items=items))
        return [(one.type, one.kind, one.owner_uid) for one in found]

    assert differences(things) == []
    lost = [thing for thing in things if thing[0] != "router-namespace"]
    assert differences(lost) == [(MISSING, "router-namespace", router.uid)]
