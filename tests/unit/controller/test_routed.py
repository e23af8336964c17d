"""Subnets out of an external network's IPv6 range: what is refused, what is planned, and what is reached."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from controller.admit import externalnetwork as admit_external
from controller.admit import network as admit_network
from controller.admit import router as admit_router
from controller.admit import subnet as admit
from controller.admit.subnet import addresses_of
from controller.api.reach import explain_reach
from controller.assemble import assemble
from controller.reconcile.concern import nodes_concerned
from controller.reconcile.nodeplan import compile_plan
from controller.routed import choose_source
from controller.state import Changed
from controller.store import keys
from controller.store.keys import Table
from controller.tables import Stored
from cumulet.errors import FailedPreconditionError, InvalidArgumentError, QuotaExceededError
from cumulet.v1 import agent_pb2, network_pb2, reach_pb2, router_pb2, subnet_pb2
from tests.unit.controller.cloud import ATTACH, Paper, network_message
from tests.unit.controller.test_floating import external_message, set_node, with_internet
from tests.unit.controller.test_reach import add_group
from tests.unit.controller.test_routers import add_network, add_router

CIDR6 = "2001:db8:100::/61"  # eight subnets, seven to give away
GATEWAY6 = "fe80::1"
CLIENT = "2001:db8:f::7"


def with_ipv6(**spec: Any) -> Paper:
    """As `with_internet`, and internet has IPv6."""
    paper = with_internet()
    update_external(paper, **{"cidr6": CIDR6, "gateway6": GATEWAY6, **spec})
    return paper


def update_external(paper: Paper, **spec: str) -> None:
    mask = FieldMask(paths=[f"spec.{name}" for name in spec])
    given = external_message(**spec)
    paper.do(admit_external.update(paper.state, paper.context, ("internet",), given, mask))


def subnet_message(name: str, network: str = "a", **spec: Any) -> subnet_pb2.Subnet:
    made = subnet_pb2.Subnet(spec=subnet_pb2.SubnetSpec(network=network, **spec))
    made.spec.external_network = spec.get("external_network", "internet")
    made.meta.name = name
    return made


def add(paper: Paper, name: str = "a-out", network: str = "a", **spec: Any) -> IPv6Network:
    paper.do(admit.create(paper.state, paper.context, "p1", subnet_message(name, network, **spec)))
    row = paper.state.find(keys.SUBNETS, "p1", name)
    assert row is not None
    return IPv6Network(row.message.spec.cidr)


def remove(paper: Paper, name: str) -> None:
    paper.do(admit.delete(paper.state, paper.context, ("p1", name), ""))


def address_of(paper: Paper, instance: str, subnet: IPv6Network) -> IPv6Address:
    port = paper.state.ports_of("p1", instance)[0].message
    (found,) = (one for one in map(ip_address, addresses_of(paper.state, port)) if one in subnet)
    assert isinstance(found, IPv6Address)
    return found


def shown(paper: Paper) -> Any:
    row = paper.state.find(keys.EXTERNAL_NETWORKS, "internet")
    assert row is not None
    return assemble(paper.state, keys.EXTERNAL_NETWORKS, ("internet",), row)


# -- the range --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "field", "problem"),
    [
        ({"cidr6": "203.0.113.0/24"}, "spec.cidr6", "not an IPv6 range"),
        ({"cidr6": "2001:db8:100::1/48"}, "spec.cidr6", "host bits"),
        ({"cidr6": "2001:db8:100::/64"}, "spec.cidr6", "between /16 and /63"),
        ({"cidr6": "2000::/8"}, "spec.cidr6", "between /16 and /63"),
        ({"cidr6": "fe80::/16"}, "spec.cidr6", "reserved"),
        ({"cidr6": CIDR6, "gateway6": "2001:db8:200::1"}, "spec.gateway6", "neither link-local nor in"),
        ({"cidr6": CIDR6, "gateway6": "2001:db8:100::"}, "spec.gateway6", "anycast"),
        ({"cidr6": CIDR6, "gateway6": "203.0.113.1"}, "spec.gateway6", "not an IPv6 address"),
        ({"cidr6": CIDR6, "gateway6": "fe80::1%eth0; reboot"}, "spec.gateway6", "not an IPv6 address"),
        ({"cidr6": "2001:db8:100::%eth0\nx/48"}, "spec.cidr6", "on one node only"),
        ({"gateway6": "fe80::1"}, "spec.gateway6", "there is no IPv6 range"),
    ],
)
def test_a_range_that_cannot_be_is_refused(spec: dict[str, str], field: str, problem: str) -> None:
    paper = with_internet()
    with pytest.raises(InvalidArgumentError, match=problem) as refused:
        update_external(paper, **spec)
    assert field in {one.field for one in refused.value.violations}


def test_two_external_networks_have_no_range_in_common() -> None:
    paper = with_ipv6()
    other = external_message("other", uplink="moon", cidr6="2001:db8:100::/48")
    with pytest.raises(
        InvalidArgumentError, match=r"overlaps 2001:db8:100::/61 of external network internet"
    ):
        admit_external.create(paper.state, paper.context, "", other)


def test_what_is_given_away_stays_in_the_range_and_holds_the_network() -> None:
    paper = with_ipv6()
    mine = add(paper)
    for spec in ({"cidr6": ""}, {"cidr6": "2001:db8:200::/61"}, {"gateway6": str(mine[1])}):
        with pytest.raises(InvalidArgumentError, match=f"{mine} would not be given away"):
            update_external(paper, **{"gateway6": "", **spec})
    update_external(paper, cidr6="2001:db8:100::/48")  # wider
    with pytest.raises(FailedPreconditionError, match=r"has 1 subnet\(s\)"):
        admit_external.delete(paper.state, paper.context, ("internet",), "")
    remove(paper, "a-out")
    update_external(paper, cidr6="", gateway6="")
    paper.do(admit_external.delete(paper.state, paper.context, ("internet",), ""))


# -- subnets ----------------------------------------------------------------------------------------------


def test_subnets_are_given_until_none_is_free_and_come_back() -> None:
    paper = with_ipv6()
    for number in range(7):
        add_network(paper, f"n{number}")
    given = [add(paper, f"s{number}", f"n{number}") for number in range(7)]
    assert len(set(given)) == 7
    assert all(one.subnet_of(IPv6Network(CIDR6)) for one in given)
    assert IPv6Network("2001:db8:100::/64") not in given  # the operator's own
    assert (shown(paper).status.subnets_used, shown(paper).status.subnets_total) == (7, 7)
    assert shown(paper).status.addresses_used == 0
    with pytest.raises(FailedPreconditionError, match="all 7 IPv6 subnets of external network internet"):
        add(paper, "one-more")
    remove(paper, "s3")
    assert add(paper, "again") == given[3]


def test_a_wish_is_given_if_it_is_free() -> None:
    paper = with_ipv6(gateway6="2001:db8:100:2::1")
    assert add(paper, cidr="2001:db8:100:5::/64") == IPv6Network("2001:db8:100:5::/64")
    add_network(paper, "b")
    for cidr, problem in (
        ("2001:db8:100:5::/64", "is taken"),
        ("2001:db8:100::/64", "not one that external network internet gives away"),
        ("2001:db8:100:2::/64", "not one that external network internet gives away"),  # the gateway's
        ("2001:db8:200::/64", "a /64 of 2001:db8:100::/61"),
        ("2001:db8:100:4::/63", "must be /64"),
        ("10.9.0.0/24", "is not IPv6"),
    ):
        with pytest.raises(InvalidArgumentError, match=problem) as refused:
            add(paper, "b-out", "b", cidr=cidr)
        assert {one.field for one in refused.value.violations} == {"spec.cidr"}


def test_what_cannot_have_one_is_refused_by_name() -> None:
    paper = with_internet()
    with pytest.raises(InvalidArgumentError, match="external network internet has no IPv6 range"):
        add(paper)
    with pytest.raises(InvalidArgumentError, match=r"external network.*'moon'"):
        add(paper, external_network="moon")
    with pytest.raises(InvalidArgumentError, match="give a range such as"):
        add(paper, external_network="")
    update_external(paper, cidr6=CIDR6)
    given = network_message("lan2")
    given.spec.provider.CopyFrom(network_pb2.ProviderSegment(uplink="internet", vlan=7))
    paper.put(keys.NETWORKS, ("p1", "lan2"), given)
    with pytest.raises(InvalidArgumentError, match="lan2 is the operator's"):
        add(paper, "out", "lan2")


def test_a_given_range_is_none_that_the_router_has_already() -> None:
    """A tenant may have taken such a range for itself, where nobody outside sees it."""
    paper = with_ipv6(cidr6="2001:db8:100::/62")
    add_network(paper, "own")
    for number in (1, 2):
        spec = subnet_pb2.SubnetSpec(network="own", cidr=f"2001:db8:100:{number}::/64")
        made = subnet_pb2.Subnet(spec=spec)
        made.meta.name = f"own-{number}"
        paper.do(admit.create(paper.state, paper.context, "p1", made))
    given = router_pb2.Router(spec=router_pb2.RouterSpec(networks=["a", "own"]))
    given.meta.name = "r"
    mask = FieldMask(paths=["spec.networks"])
    paper.do(admit_router.update(paper.state, paper.context, ("p1", "r"), given, mask))
    assert add(paper) == IPv6Network("2001:db8:100:3::/64")
    with pytest.raises(InvalidArgumentError, match="overlaps subnet own-1"):
        add(paper, "b-out", cidr="2001:db8:100:1::/64")


def with_office(vlan: int = 0) -> Paper:
    """And network `office`, which is the operator's on the same uplink."""
    paper = with_ipv6()
    given = network_message("office")
    given.spec.provider.CopyFrom(network_pb2.ProviderSegment(uplink="internet", vlan=vlan))
    paper.do(admit_network.create(paper.state, paper.context, "p1", given))
    return paper


def add_office(paper: Paper, cidr: str) -> None:
    spec = subnet_pb2.SubnetSpec(network="office", cidr=cidr)
    made = subnet_pb2.Subnet(spec=spec)
    made.meta.name = "office-6"
    paper.do(admit.create(paper.state, paper.context, "p1", made))


def test_a_provider_network_on_the_link_has_none_that_are_given_away() -> None:
    paper = with_office()
    with pytest.raises(InvalidArgumentError, match="external network internet gives away"):
        add_office(paper, "2001:db8:100:5::/64")
    add_office(paper, "2001:db8:100::/64")  # the operator's own
    with pytest.raises(InvalidArgumentError, match="is that of subnet office-6 of network office"):
        update_external(paper, cidr6="2001:db8::/39")
    add_office(with_office(vlan=7), "2001:db8:100:5::/64")  # another link, as it were


def test_a_quota_bounds_them() -> None:
    paper = with_ipv6()
    row = paper.state.find(keys.PROJECTS, "p1")
    assert row is not None
    row.message.spec.quota.external_subnets = 1
    paper.put(keys.PROJECTS, ("p1",), row.message)
    add(paper)
    with pytest.raises(QuotaExceededError, match="external_subnets: 1 of 1 are used"):
        add(paper, "b-out")
    shown_project = assemble(paper.state, keys.PROJECTS, ("p1",), row)
    assert shown_project.status.external_subnets == 1


def test_two_that_ask_at_once_do_not_get_the_same() -> None:
    paper = with_ipv6()
    wish = "2001:db8:100:5::/64"
    first, second = (
        admit.create(paper.state, paper.context, "p1", subnet_message(name, cidr=wish)) for name in ("x", "y")
    )
    paper.do(first)
    assert not paper.holds(second)


# -- plans ------------------------------------------------------------------------------------------------


def planned(paper: Paper, node: str) -> list[agent_pb2.PlannedRoutedSubnet]:
    (router,) = compile_plan(paper.state, node, "nonce").routers
    return list(router.routed_subnets)


def test_nodes_with_a_link_are_planned_to_answer_for_their_ports() -> None:
    paper = with_ipv6()
    mine = add(paper)
    for node in ("n1", "n2"):
        (found,) = planned(paper, node)
        assert (found.cidr, found.gateway) == (str(mine), str(mine[1]))
        assert (found.uplink, found.external_cidr, found.external_gateway) == ("internet", CIDR6, GATEWAY6)
    set_node(paper, "n2", uplink=False)
    assert planned(paper, "n2") == []
    remove(paper, "a-out")
    assert planned(paper, "n1") == []


def test_a_network_of_the_router_that_is_elsewhere_is_not_planned() -> None:
    paper = with_ipv6()
    add_network(paper, "b", "10.3.0.0/24")
    add_router(paper, "other", "b")
    add(paper, "b-out", "b")
    assert planned(paper, "n1") == []


def test_what_changes_concerns_the_nodes_with_ports() -> None:
    paper = with_ipv6()
    add(paper)
    row = paper.state.find(keys.EXTERNAL_NETWORKS, "internet")
    assert concerned(paper, keys.EXTERNAL_NETWORKS, "internet", row, row) == {"n1", "n2"}
    before = paper.state.find(keys.NODE_STATUS, "n2")
    set_node(paper, "n2", uplink=False)
    after = paper.state.find(keys.NODE_STATUS, "n2")
    assert concerned(paper, keys.NODE_STATUS, "n2", before, after) == {"n2"}
    assert concerned(paper, keys.NODE_STATUS, "n2", after, after) == set()


def concerned(paper: Paper, table: Table, name: str, before: Stored | None, after: Stored | None) -> set[str]:
    return nodes_concerned(paper.state, Changed(table, (name,), before, after, paper.state.revision))


# -- reach ------------------------------------------------------------------------------------------------


def ask(paper: Paper, source: str, target: str, port: int = 80, **more: Any) -> reach_pb2.ReachPath:
    fields = {"project": "p1", "protocol": "tcp", "port": port, "ip_version": 6, **more}
    request = reach_pb2.ExplainReachRequest(source=source, target=target, **fields)
    found = explain_reach(paper.state, request)
    assert found.reachable == all(step.passes for step in found.paths[0].steps)
    return found.paths[0]


def with_guests() -> tuple[Paper, IPv6Network]:
    """`open` on n1 and `far` on n2 of network a, `next` on n1 of network b, which has another router."""
    paper = with_ipv6()
    add_group(paper, "doors", "out any", f"in tcp:80 {CLIENT}/128", "in tcp:81 2001:db8:100::/48")
    add_network(paper, "b", "10.3.0.0/24")
    add_router(paper, "other", "b")
    mine = add(paper)
    add(paper, "b-out", "b")
    for name, network, node in (("open", "a", "n1"), ("far", "a", "n2"), ("next", "b", "n1")):
        paper.add_instance(name, networks=[ATTACH(network=network)], security_groups=["doors"])
        paper.place(name, node)
    return paper, mine


def kinds(path: reach_pb2.ReachPath) -> list[str]:
    return [reach_pb2.ReachStepKind.Name(step.kind).removeprefix("REACH_STEP_KIND_") for step in path.steps]


def test_the_outside_reaches_an_instance_by_its_own_address() -> None:
    paper, mine = with_guests()
    address = address_of(paper, "open", mine)
    for target in ("open", str(address)):
        path = ask(paper, CLIENT, target)
        assert kinds(path) == ["OUTSIDE", "ROUTER", "SECURITY_GROUP", "PORT"]
        assert path.reachable
        assert path.target_address == str(address)
        assert path.steps[1].message == f"n1 answers for {address}, and router r leads it to a"
    assert kinds(ask(paper, "2001:db8:f::8", "open"))[-1] == "SECURITY_GROUP"
    assert kinds(ask(paper, CLIENT, "open", 82))[-1] == "SECURITY_GROUP"


def test_an_instance_reaches_the_outside_from_its_own_address() -> None:
    paper, mine = with_guests()
    path = ask(paper, "open", CLIENT)
    assert kinds(path) == ["PORT", "SECURITY_GROUP", "ROUTER", "OUTSIDE"]
    assert path.reachable
    assert path.source_address == str(address_of(paper, "open", mine))


def test_ports_of_two_routers_meet_outside() -> None:
    paper, _ = with_guests()
    path = ask(paper, "open", "next", 81)
    assert kinds(path) == ["PORT", "SECURITY_GROUP", "ROUTER", "ROUTER", "SECURITY_GROUP", "PORT"]
    assert path.reachable
    assert not ask(paper, "open", "next", 80).reachable
    remove(paper, "b-out")
    assert not ask(paper, "open", "far", 80).reachable  # a group decides
    assert ask(paper, "open", "far", 81).reachable  # in one subnet


def test_guests_of_a_provider_network_meet_it_by_the_operators_router() -> None:
    paper = with_office()
    add_office(paper, "2001:db8:100::/64")
    mine = add(paper)
    add_group(paper, "doors", "out any", "in tcp:81 2001:db8:100::/48")
    for name, network, node in (("open", "a", "n1"), ("desk", "office", "n2")):
        paper.add_instance(name, networks=[ATTACH(network=network)], security_groups=["doors"])
        paper.place(name, node)
    address = str(address_of(paper, "open", mine))
    for path in (
        ask(paper, "desk", "open", 81),
        ask(paper, "desk", address, 81),
        ask(paper, "open", "desk", 81),
    ):
        assert path.reachable
        assert "OUTSIDE" in kinds(path)
    assert kinds(ask(paper, "desk", "open", 80))[-1] == "SECURITY_GROUP"


def test_a_node_without_a_link_is_named() -> None:
    paper, _ = with_guests()
    set_node(paper, "n2", uplink=False)
    told = "node n2 has no link to external network internet (its agent's --uplink internet=LINK)"
    for path in (ask(paper, CLIENT, "far"), ask(paper, "far", CLIENT)):
        assert not path.reachable
        assert path.steps[-1].message == told
    assert ask(paper, CLIENT, "open").reachable


def test_without_a_router_or_a_place_nobody_is_reached() -> None:
    paper, _ = with_guests()
    paper.write({keys.ROUTERS.key("p1", "r"): None})
    for path in (ask(paper, CLIENT, "open"), ask(paper, "open", CLIENT)):
        assert "network a has no router" in path.steps[-1].message
    paper, _ = with_guests()
    uid = paper.instance("open").meta.uid
    paper.write({keys.PLACEMENTS.key("n1", uid): None})
    assert "is on no node" in ask(paper, CLIENT, "open").steps[-1].message


def test_a_tenants_own_range_leads_nowhere() -> None:
    paper, _ = with_guests()
    remove(paper, "a-out")
    spec = subnet_pb2.SubnetSpec(network="a", cidr="fd00:a::/64")
    made = subnet_pb2.Subnet(spec=spec)
    made.meta.name = "a-6"
    paper.do(admit.create(paper.state, paper.context, "p1", made))
    path = ask(paper, "open", CLIENT)
    assert not path.reachable
    assert "of no external network's range" in path.steps[-1].message
    with pytest.raises(InvalidArgumentError, match="no address of an external network's IPv6 range"):
        ask(paper, CLIENT, "open")
    add(paper, "again")
    with pytest.raises(InvalidArgumentError, match="is not of IPv4"):
        ask(paper, CLIENT, "open", ip_version=4)


def test_a_guest_speaks_from_the_address_that_is_nearest() -> None:
    held = [IPv6Address("fd00:a::5"), IPv6Address("2001:db8:100:5::5")]
    assert choose_source(held, IPv6Address(CLIENT)) == held[1]
    assert choose_source(held, IPv6Address("fd00:b::7")) == held[0]
    assert choose_source([], IPv6Address(CLIENT)) is None


def test_deleting_a_network_needs_its_subnets_gone() -> None:
    paper = with_ipv6()
    add_network(paper, "b")
    add(paper, "b-out", "b")
    with pytest.raises(FailedPreconditionError):
        admit_network.delete(paper.state, paper.context, ("p1", "b"), "")
