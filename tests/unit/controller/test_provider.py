"""Provider networks: which segments and ranges are refused, what is planned of them, who may run where."""

from __future__ import annotations

import random
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given
from hypothesis import strategies as st

from controller.admit import externalnetwork as admit_external
from controller.admit import floatingip as admit_floating
from controller.admit import instance as admit_instance
from controller.admit import loadbalancer as admit_balancer
from controller.admit import network as admit_network
from controller.admit import project as admit_project
from controller.admit import router as admit_router
from controller.admit import subnet as admit_subnet
from controller.admit.pool import RANGES_MAX, Pool
from controller.assemble import assemble
from controller.commit import Change
from controller.explain import explain_placement, foretell_placement
from controller.floating import find_way
from controller.reconcile.fleetview import FleetView
from controller.reconcile.nodeplan import compile_plan
from controller.store import keys
from controller.world import Asker, build_world, copy_tables
from cumulet.errors import CumuletError, FailedPreconditionError, InvalidArgumentError, NoCapacityError
from cumulet.v1 import floatingip_pb2, loadbalancer_pb2, meta_pb2, network_pb2, node_pb2, subnet_pb2
from scheduler.policy import PACK
from tests.unit.controller import cloud
from tests.unit.controller.cloud import ATTACH, Paper
from tests.unit.controller.test_floating import add as add_floating
from tests.unit.controller.test_floating import external_message, with_internet
from tests.unit.controller.test_routers import add_router, router_message

CIDR = "192.168.7.0/24"
RANGE = "192.168.7.100-192.168.7.109"


def network_message(name: str = "office", **segment: Any) -> network_pb2.Network:
    spec = network_pb2.NetworkSpec(provider=network_pb2.ProviderSegment(**{"uplink": "office", **segment}))
    return network_pb2.Network(meta=meta_pb2.Meta(name=name), spec=spec)


def subnet_message(name: str = "office-4", **spec: Any) -> subnet_pb2.Subnet:
    fields = {"network": "office", "cidr": CIDR, "ranges": [RANGE], **spec}
    return subnet_pb2.Subnet(meta=meta_pb2.Meta(name=name), spec=subnet_pb2.SubnetSpec(**fields))


def add_network(paper: Paper, name: str = "office", project: str = "p1", **segment: Any) -> None:
    made = network_message(name, **segment)
    paper.do(admit_network.create(paper.state, paper.context, project, made))


def add_subnet(paper: Paper, name: str = "office-4", **spec: Any) -> None:
    paper.do(admit_subnet.create(paper.state, paper.context, "p1", subnet_message(name, **spec)))


def with_office() -> Paper:
    """Network `office` on the uplink of that name, untagged, with subnet `office-4`; n1 has the uplink."""
    paper = Paper(seed=5).seed()
    paper.lead()
    add_network(paper)
    add_subnet(paper)
    for number, uplinks in enumerate((["office"], []), start=1):
        paper.add_node(f"n{number}")
        set_uplinks(paper, f"n{number}", *uplinks)
    return paper


def set_uplinks(paper: Paper, node: str, *uplinks: str) -> None:
    row = paper.state.find(keys.NODE_STATUS, node)
    assert row is not None
    status = node_pb2.NodeStatus()
    status.CopyFrom(row.message)
    status.uplinks[:] = uplinks
    paper.put(keys.NODE_STATUS, (node,), status)


def update_subnet(paper: Paper, *ranges: str, name: str = "office-4") -> Change:
    given = subnet_message(name, ranges=ranges)
    mask = FieldMask(paths=["spec.ranges"])
    return admit_subnet.update(paper.state, paper.context, ("p1", name), given, mask)


def found_in(refused: pytest.ExceptionInfo[InvalidArgumentError]) -> dict[str, str]:
    return {violation.field: violation.description for violation in refused.value.violations}


def address_of(paper: Paper, instance: str) -> str:
    text: str = paper.state.ports_of("p1", instance)[0].message.spec.addresses[0].address
    return text


# --- segments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segment", "field", "problem"),
    [
        ({"uplink": ""}, "spec.provider.uplink", "is required"),
        ({"uplink": "office; reboot"}, "spec.provider.uplink", "is not a name"),
        ({"uplink": "../vnis/7"}, "spec.provider.uplink", "is not a name"),
        ({"uplink": "o" * 64}, "spec.provider.uplink", "at most 63"),
        ({"uplink": "office\n"}, "spec.provider.uplink", "is not a name"),
        ({"vlan": 4095}, "spec.provider.vlan", "is no VLAN: 1 to 4094"),
        ({"vlan": 2**32 - 1}, "spec.provider.vlan", "is no VLAN"),
        ({"mtu": 1279}, "spec.provider.mtu", "between 1280 and 9216"),
        ({"mtu": 9217}, "spec.provider.mtu", "between 1280 and 9216"),
        ({"vlan": 20}, "spec.provider", "office (VLAN 20) is network tagged of this project"),
        ({"vlan": 21}, "spec.provider", "office (VLAN 21) is another project's"),
        ({}, "spec.provider", "office is network office of this project"),
    ],
)
def test_a_segment_is_refused(segment: dict[str, Any], field: str, problem: str) -> None:
    paper = with_office()
    paper.do(admit_project.create(paper.state, paper.context, "", cloud.project_message("p2")))
    add_network(paper, "tagged", vlan=20)
    add_network(paper, "hidden", "p2", vlan=21)
    with pytest.raises(InvalidArgumentError) as refused:
        admit_network.create(paper.state, paper.context, "p1", network_message("other", **segment))
    assert problem in found_in(refused)[field]
    assert "hidden" not in str(found_in(refused))


def test_flat_and_vlans_share_an_uplink_and_a_vlan_is_another_one_elsewhere() -> None:
    paper = with_office()
    for name, segment in (
        ("low", {"vlan": 1}),
        ("high", {"vlan": 4094}),
        ("other", {"uplink": "lab", "vlan": 1}),
    ):
        add_network(paper, name, **segment)
    assert len(paper.state.rows(keys.SEGMENTS)) == 4


def test_a_segment_is_free_again_when_its_network_is_deleted() -> None:
    paper = Paper().seed()
    add_network(paper, "first", vlan=20)
    paper.do(admit_network.delete(paper.state, paper.context, ("p1", "first"), ""))
    assert not paper.state.rows(keys.SEGMENTS)
    add_network(paper, "second", vlan=20)


def test_a_network_stays_what_it_is() -> None:
    paper = with_office()
    for paths in (["spec.provider"], ["spec.provider.vlan"], ["spec"]):
        with pytest.raises(InvalidArgumentError, match="refused"):
            admit_network.update(
                paper.state, paper.context, ("p1", "office"), network_message(vlan=7), FieldMask(paths=paths)
            )
    changed = network_message(vlan=7)
    changed.spec.description = "where the printers are"
    paper.do(admit_network.update(paper.state, paper.context, ("p1", "office"), changed, FieldMask()))
    row = paper.state.find(keys.NETWORKS, "p1", "office")
    assert row is not None
    assert (row.message.spec.provider.vlan, row.message.spec.description) == (0, "where the printers are")


def test_the_operators_router_is_the_way_out() -> None:
    paper = with_office()
    translated = network_message("other", vlan=9)
    translated.spec.outbound_nat = True
    with pytest.raises(InvalidArgumentError) as refused:
        admit_network.create(paper.state, paper.context, "p1", translated)
    assert "operator's router" in found_in(refused)["spec.outbound_nat"]
    mask = FieldMask(paths=["spec.outbound_nat"])
    with pytest.raises(InvalidArgumentError) as refused:
        admit_network.update(paper.state, paper.context, ("p1", "office"), translated, mask)
    assert "operator's router" in found_in(refused)["spec.outbound_nat"]


def test_no_router_floating_ip_or_load_balancer_of_the_cloud_is_there() -> None:
    paper = with_office()
    paper.add_instance("guest", networks=[ATTACH(network="office")])
    paper.do(admit_external.create(paper.state, paper.context, "", external_message()))
    with pytest.raises(InvalidArgumentError) as refused:
        admit_router.create(paper.state, paper.context, "p1", router_message("r", "office"))
    problem = "network office is a provider network: its router is the operator's"
    assert found_in(refused) == {"spec.networks[0]": problem}
    add_router(paper, "r", "lan")
    given = router_message("r", "lan", "office")
    with pytest.raises(InvalidArgumentError) as refused:
        admit_router.update(paper.state, paper.context, ("p1", "r"), given, FieldMask(paths=["spec"]))
    assert found_in(refused) == {"spec.networks[1]": problem}
    spec = floatingip_pb2.FloatingIPSpec(external_network="internet", target="guest")
    door = floatingip_pb2.FloatingIP(meta=meta_pb2.Meta(name="door"), spec=spec)
    with pytest.raises(InvalidArgumentError) as refused:
        admit_floating.create(paper.state, paper.context, "p1", door)
    assert "is a provider network: the outside comes by" in found_in(refused)["spec.target"]
    assert "router create" not in found_in(refused)["spec.target"]
    front = loadbalancer_pb2.LoadBalancer(meta=meta_pb2.Meta(name="front"))
    front.spec.network = "office"
    front.spec.listeners.add(protocol="tcp", port=80)
    with pytest.raises(InvalidArgumentError) as refused:
        admit_balancer.create(paper.state, paper.context, "p1", front)
    assert "no router of the cloud balances there" in found_in(refused)["spec.network"]


def test_a_floating_ip_whose_target_moved_into_one_leads_nowhere_and_says_why() -> None:
    paper = with_internet()
    add_network(paper)
    add_subnet(paper)
    paper.add_instance("mover", networks=[ATTACH(network="a")])
    floating = add_floating(paper, target="mover")
    paper.write(
        {keys.PORTS.key("p1", row.message.meta.name): None for row in paper.state.ports_of("p1", "mover")}
    )
    paper.write({keys.INSTANCES.key("p1", "mover"): None})
    paper.add_instance("mover", networks=[ATTACH(network="office")])
    way = find_way(paper.state, floating)
    assert (way.reason, way.node) == ("NoRouter", "")
    assert way.text == "network office of mover is a provider network, where no floating IP leads"


# --- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "field", "problem"),
    [
        ({"ranges": ["192.168.7.9-192.168.7.4"]}, "spec.ranges[0]", "ends before it begins"),
        ({"ranges": ["192.168.7.0-192.168.7.9"]}, "spec.ranges[0]", "within the host addresses"),
        ({"ranges": ["192.168.7.250-192.168.7.255"]}, "spec.ranges[0]", "within the host addresses"),
        ({"ranges": ["192.168.8.4"]}, "spec.ranges[0]", "within the host addresses"),
        ({"ranges": ["192.168.7.4-192.168.7.9", "192.168.7.9"]}, "spec.ranges", "overlaps the range"),
        ({"ranges": ["192.168.7.1"]}, "spec.ranges", "no address to give away"),
        ({"ranges": ["a-b; reboot"]}, "spec.ranges[0]", "not a range"),
        ({"ranges": ["fd00::1-fd00::2"]}, "spec.ranges[0]", "not a range"),
        ({"ranges": [""]}, "spec.ranges[0]", "not a range"),
        ({"ranges": [f"192.168.7.{n}" for n in range(2, 3 + RANGES_MAX)]}, "spec.ranges", "at most 64"),
        ({"cidr": "fd00:7::/64"}, "spec.ranges", "guests make IPv6 addresses themselves"),
    ],
)
def test_ranges_are_refused(spec: dict[str, Any], field: str, problem: str) -> None:
    """Of a tenant's own network, too."""
    paper = Paper().seed()
    add_network(paper)
    for network in ("office", "lan"):
        made = subnet_message("s", network=network, **spec)
        with pytest.raises(InvalidArgumentError) as refused:
            admit_subnet.create(paper.state, paper.context, "p1", made)
        assert problem in found_in(refused)[field]


def test_an_address_is_of_the_ranges_until_they_are_used_up() -> None:
    paper = with_office()
    update = update_subnet(paper, "192.168.7.100-192.168.7.101", "192.168.7.1")
    paper.do(update)
    row = paper.state.find(keys.SUBNETS, "p1", "office-4")
    assert row is not None
    for number in range(2):
        paper.add_instance(f"vm-{number}", networks=[ATTACH(network="office")])
    held = {address_of(paper, f"vm-{number}") for number in range(2)}
    assert held == {"192.168.7.100", "192.168.7.101"}
    status = assemble(paper.state, keys.SUBNETS, ("p1", "office-4"), row).status
    assert (status.addresses_used, status.addresses_total) == (2, 2)  # the gateway is nobody's
    with pytest.raises(FailedPreconditionError, match="widen the ranges of subnet office-4, or add") as full:
        paper.add_instance("late", networks=[ATTACH(network="office")])
    assert full.value.hints == ("cumulet subnet show office-4 --project p1",)
    paper.do(update_subnet(paper, "192.168.7.100-192.168.7.101", "192.168.7.7"))
    paper.add_instance("late", networks=[ATTACH(network="office")])
    assert address_of(paper, "late") == "192.168.7.7"


@pytest.mark.parametrize(
    ("wish", "problem"),
    [
        ("192.168.7.99", f"not one that subnet office-4 gives away: {RANGE}"),
        ("192.168.7.1", "reserved in them"),
        ("192.168.8.1", "outside the network's subnets"),
        ("192.168.7.105", "is taken"),
    ],
)
def test_a_wish_is_refused(wish: str, problem: str) -> None:
    paper = with_office()
    paper.add_instance("first", networks=[ATTACH(network="office", address="192.168.7.105")])
    with pytest.raises(InvalidArgumentError) as refused:
        paper.add_instance("other", networks=[ATTACH(network="office", address=wish)])
    assert problem in found_in(refused)["spec.networks.address"]


def test_ranges_are_not_taken_from_under_those_who_have_addresses() -> None:
    paper = with_office()
    paper.add_instance("guest", networks=[ATTACH(network="office", address="192.168.7.105")])
    with pytest.raises(InvalidArgumentError) as refused:
        update_subnet(paper, "192.168.7.100-192.168.7.104")
    assert "192.168.7.105 would be outside" in found_in(refused)["spec.ranges"]
    paper.do(update_subnet(paper, "192.168.7.105"))
    paper.do(update_subnet(paper))
    row = paper.state.find(keys.SUBNETS, "p1", "office-4")
    assert row is not None
    assert assemble(paper.state, keys.SUBNETS, ("p1", "office-4"), row).status.addresses_total == 253


def test_an_update_of_other_things_asks_for_no_ranges() -> None:
    paper = with_office()
    paper.add_instance("guest", networks=[ATTACH(network="office", address="192.168.7.105")])
    given, mask = subnet_message(dns_servers=["192.0.2.53"]), FieldMask(paths=["spec.dns_servers"])
    change = admit_subnet.update(paper.state, paper.context, ("p1", "office-4"), given, mask)
    assert len(change.compares) == 1
    paper.do(change)


OCTETS = st.integers(1, 254)
SPANS = st.lists(st.tuples(OCTETS, OCTETS), min_size=0, max_size=4)


@given(st.lists(SPANS, min_size=1, max_size=4), st.integers(0, 2**32))
def test_a_ports_address_is_always_one_of_its_subnets_ranges(steps: list[Any], seed: int) -> None:
    """Whatever ranges are set, and whoever comes in between: what is refused changes nothing."""
    paper, chance = Paper(seed=seed).seed(), random.Random(seed)
    add_network(paper)
    add_subnet(paper)
    for number, spans in enumerate(steps):
        ranges = [f"192.168.7.{min(span)}-192.168.7.{max(span)}" for span in spans]
        with suppress(InvalidArgumentError):
            paper.do(update_subnet(paper, *ranges))
        wish = f"192.168.7.{chance.randrange(256)}" if chance.random() < 0.5 else ""
        with suppress(CumuletError):
            paper.add_instance(f"vm-{number}", networks=[ATTACH(network="office", address=wish)])
        row = paper.state.find(keys.SUBNETS, "p1", "office-4")
        assert row is not None
        told = [text.partition("-") for text in row.message.spec.ranges]
        for port in paper.state.ports_in("p1", "office"):
            held = IPv4Address(port.message.spec.addresses[0].address)
            assert held != IPv4Address("192.168.7.1")
            assert not told or any(IPv4Address(low) <= held <= IPv4Address(high) for low, _, high in told)


@given(SPANS.filter(bool), st.integers(0, 2**32), st.sets(OCTETS))
def test_a_pool_finds_what_is_free_and_nothing_else(spans: list[Any], seed: int, taken: set[int]) -> None:
    chosen, last = [], 0
    for low, high in sorted((min(span), max(span)) for span in spans):
        if low > last:
            chosen.append((IPv4Address(f"10.0.0.{low}"), IPv4Address(f"10.0.0.{high}")))
            last = high
    pool = Pool(tuple(chosen), IPv4Address("10.0.0.7"))
    all_of = {f"10.0.0.{n}" for n in range(256) if pool.holds(IPv4Address(f"10.0.0.{n}"))}
    assert len(all_of) == pool.size
    free = all_of - {f"10.0.0.{n}" for n in taken}
    found = pool.find_free(random.Random(seed), {f"10.0.0.{n}" for n in taken})
    assert (str(found) in free) if free else found is None


# --- one segment, one giver ----------------------------------------------------------------------


def external(name: str = "internet", **spec: Any) -> Any:
    fields = {"uplink": "office", "cidr": CIDR, "gateway": "192.168.7.1", **spec}
    return external_message(name, **fields)


@pytest.mark.parametrize("ranges", [["192.168.7.109-192.168.7.120"], ["192.168.7.2-192.168.7.254"], []])
def test_an_external_network_gives_away_nothing_that_a_subnet_does(ranges: list[str]) -> None:
    paper = with_office()
    with pytest.raises(InvalidArgumentError) as refused:
        admit_external.create(paper.state, paper.context, "", external(ranges=ranges))
    assert "subnet office-4 of network office in project p1" in found_in(refused)["spec.ranges"]
    paper.do(admit_external.create(paper.state, paper.context, "", external(ranges=["192.168.7.110"])))
    mask = FieldMask(paths=["spec.ranges"])
    given = external(ranges=ranges)
    with pytest.raises(InvalidArgumentError) as refused:
        admit_external.update(paper.state, paper.context, ("internet",), given, mask)
    assert "subnet office-4" in found_in(refused)["spec.ranges"]


def test_a_subnet_gives_away_nothing_that_an_external_network_does() -> None:
    paper = with_office()
    paper.do(admit_external.create(paper.state, paper.context, "", external(ranges=["192.168.7.200"])))
    with pytest.raises(InvalidArgumentError) as refused:
        update_subnet(paper, "192.168.7.100-192.168.7.210")
    assert "192.168.7.200-192.168.7.200 overlaps" in found_in(refused)["spec.ranges"]
    with pytest.raises(InvalidArgumentError) as refused:
        update_subnet(paper)
    assert "external network internet gives away" in found_in(refused)["spec.ranges"]
    paper.do(update_subnet(paper, "192.168.7.100-192.168.7.199"))


def test_a_vlan_another_uplink_and_a_tenants_network_are_other_segments() -> None:
    paper = Paper().seed()
    add_network(paper, "tagged", vlan=20)
    add_subnet(paper, "tagged-4", network="tagged", ranges=())
    paper.do(admit_external.create(paper.state, paper.context, "", external(ranges=())))
    add_network(paper, "lab", uplink="lab")
    add_subnet(paper, "lab-4", network="lab", ranges=())
    add_subnet(paper, "lan-b", network="lan", ranges=())
    paper.do(admit_external.create(paper.state, paper.context, "", external("more", uplink="wan", ranges=())))


def _network(name: str, **segment: Any) -> Any:
    return lambda paper: admit_network.create(
        paper.state, paper.context, "p1", network_message(name, **segment)
    )


def _subnet(**spec: Any) -> Any:
    return lambda paper: admit_subnet.create(
        paper.state, paper.context, "p1", subnet_message("more", cidr="192.168.8.0/24", **spec)
    )


def _external(**spec: Any) -> Any:
    fields = {"cidr": "192.168.8.0/24", "gateway": "", "ranges": (), **spec}
    return lambda paper: admit_external.create(paper.state, paper.context, "", external(**fields))


def _vm(name: str, address: str) -> Any:
    return lambda paper: admit_instance.create(
        paper.state,
        paper.context,
        "p1",
        cloud.instance_message(name, networks=[ATTACH(network="office", address=address)]),
    )


def _narrow(paper: Paper) -> Change:
    return update_subnet(paper, "192.168.7.100-192.168.7.104")


def _widen(paper: Paper) -> Change:
    return update_subnet(paper, "192.168.7.100-192.168.7.199")


RACES = {
    "one segment": (_network("one", vlan=9), _network("other", vlan=9)),
    "a subnet, then floating IPs": (_subnet(ranges=()), _external()),
    "floating IPs, then a subnet": (_external(), _subnet(ranges=())),
    "wider ranges, then floating IPs": (_widen, _external(cidr=CIDR, ranges=["192.168.7.150"])),
    "floating IPs, then wider ranges": (_external(cidr=CIDR, ranges=["192.168.7.150"]), _widen),
    "narrower ranges, then a port": (_narrow, _vm("late", "192.168.7.105")),
    "a port, then narrower ranges": (_vm("early", "192.168.7.105"), _narrow),
}


@pytest.mark.parametrize("race", RACES)
def test_of_two_that_contradict_each_other_the_second_is_refused(race: str) -> None:
    paper = with_office()
    first, second = (act(paper) for act in RACES[race])
    assert paper.holds(first)
    assert paper.holds(second)
    paper.do(first)
    assert not paper.holds(second)


def test_floating_ips_are_not_admitted_beside_a_network_that_comes_meanwhile() -> None:
    paper = Paper().seed()
    late = _external()(paper)
    add_network(paper)
    assert not paper.holds(late)


# --- plans ---------------------------------------------------------------------------------------


def test_a_plan_names_the_segment_and_its_mtu() -> None:
    paper = with_office()
    add_network(paper, "jumbo", uplink="lab", vlan=20, mtu=9000)
    add_subnet(paper, "jumbo-4", network="jumbo", cidr="192.168.9.0/24", ranges=())
    paper.add_instance("guest", networks=[ATTACH(network=name) for name in ("office", "jumbo", "lan")])
    paper.place("guest", "n1")
    plan = compile_plan(paper.state, "n1", "x")
    found = {
        one.name: (one.HasField("provider"), one.provider.uplink, one.provider.vlan, one.mtu)
        for one in plan.networks
    }
    assert found == {
        "office": (True, "office", 0, 1500),
        "jumbo": (True, "lab", 20, 9000),
        "lan": (False, "", 0, 1450),
    }
    assert not any(one.outbound_nat or one.router_uid for one in plan.networks)


# --- who may run there ---------------------------------------------------------------------------


def test_an_instance_goes_where_its_uplinks_are() -> None:
    paper = with_office()
    paper.add_instance("guest", networks=[ATTACH(network="office")])
    kept = FleetView(paper.state, PACK)
    told = explain_placement(kept, paper.state, paper.instance("guest"))
    assert {one.node: (one.fits, list(one.reasons)) for one in told.nodes} == {
        "n1": (True, []),
        "n2": (False, ["no uplink office: its agent has no --uplink office=LINK"]),
    }
    paper.add_instance("free")
    assert all(one.fits for one in explain_placement(kept, paper.state, paper.instance("free")).nodes)


def test_without_a_node_that_has_the_uplink_it_waits_and_a_dry_run_says_why() -> None:
    paper = with_office()
    set_uplinks(paper, "n1", "lab")
    paper.add_instance("guest", networks=[ATTACH(network="office")])
    kept = FleetView(paper.state, PACK)
    refused = explain_placement(kept, paper.state, paper.instance("guest")).summary
    assert "none of 2 nodes fits (uplink:office on 2)" in refused
    assert "attach it to no network of uplink office" in refused
    with pytest.raises(NoCapacityError, match="uplink:office"):
        foretell_placement(kept, paper.state, paper.instance("guest"))


def test_a_what_if_knows_uplinks() -> None:
    paper = with_office()
    paper.add_instance("guest", networks=[ATTACH(network="office")])
    project = paper.state.find(keys.PROJECTS, "p1")
    assert project is not None
    world = build_world(copy_tables(paper.state), Asker(project.message), PACK).world
    assert [one.capabilities for one in world.waiting] == [{"uplink:office"}]
    assert {one.name: "uplink:office" in one.capabilities for one in world.view.nodes} == {
        "n1": True,
        "n2": False,
    }


def test_it_stays_where_it_is_when_the_uplink_goes() -> None:
    paper = with_office()
    paper.add_instance("guest", networks=[ATTACH(network="office")])
    paper.place("guest", "n1")
    set_uplinks(paper, "n1")
    told = explain_placement(FleetView(paper.state, PACK), paper.state, paper.instance("guest"))
    assert [one.node for one in told.nodes if one.current] == ["n1"]
    assert compile_plan(paper.state, "n1", "x").networks[0].provider.uplink == "office"
