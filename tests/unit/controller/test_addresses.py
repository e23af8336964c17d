"""Addresses of ports: IPv4 ones are held, IPv6 ones follow from the MAC."""

from __future__ import annotations

from ipaddress import IPv6Network, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.admit import network as admit_network
from controller.admit import subnet as admit_subnet
from controller.assemble import assemble
from controller.store import keys
from cumulet.addresses import link_local_address, parse_address, parse_range, slaac_address
from cumulet.errors import InvalidArgumentError
from cumulet.v1 import meta_pb2, network_pb2, subnet_pb2
from tests.unit.controller.cloud import ATTACH, Paper

PREFIX = IPv6Network("fd00:1::/64")


def dual_stack(*cidrs: str) -> Paper:
    """A cloud with network `six` that has these subnets."""
    paper = Paper(seed=3).seed()
    meta = meta_pb2.Meta(name="six")
    paper.do(admit_network.create(paper.state, paper.context, "p1", network_pb2.Network(meta=meta)))
    for number, cidr in enumerate(cidrs):
        add_subnet(paper, f"s{number}", cidr)
    return paper


def add_subnet(paper: Paper, name: str, cidr: str) -> None:
    spec = subnet_pb2.SubnetSpec(network="six", cidr=cidr)
    made = subnet_pb2.Subnet(meta=meta_pb2.Meta(name=name), spec=spec)
    paper.do(admit_subnet.create(paper.state, paper.context, "p1", made))


def shown_addresses(paper: Paper, instance: str) -> list[str]:
    row = paper.state.find(keys.INSTANCES, "p1", instance)
    assert row is not None
    return list(assemble(paper.state, keys.INSTANCES, ("p1", instance), row).status.addresses)


def test_the_example_of_the_rfc() -> None:
    assert str(slaac_address(IPv6Network("2001:db8::/64"), "34:56:78:9a:bc:de")) == (
        "2001:db8::3656:78ff:fe9a:bcde"
    )
    assert str(link_local_address("02:00:00:00:00:01")) == "fe80::ff:fe00:1"


@given(st.lists(st.binary(min_size=6, max_size=6), min_size=2, max_size=2, unique=True))
def test_different_macs_never_share_an_address(macs: list[bytes]) -> None:
    first, second = (slaac_address(PREFIX, mac.hex(":")) for mac in macs)
    assert first != second
    assert first in PREFIX


@pytest.mark.parametrize("text", ["fe80::1%eth0", "fd00:1::1%x\nlog-queries", "::%", "%"])
def test_an_address_with_a_zone_is_refused(text: str) -> None:
    """A zone may be any text, and means something on one node only: it got as far as the nodes."""
    for parse in (parse_address, parse_range):
        with pytest.raises(ValueError, match="on one node only"):
            parse(text)
    paper = dual_stack()
    given: list[dict[str, Any]] = [{"gateway": text}, {"dns_servers": [text]}, {"cidr": f"{text}/64"}]
    for fields in given:
        spec = subnet_pb2.SubnetSpec(**{"network": "six", "cidr": str(PREFIX), **fields})
        made = subnet_pb2.Subnet(meta=meta_pb2.Meta(name="s"), spec=spec)
        with pytest.raises(InvalidArgumentError) as refused:
            admit_subnet.create(paper.state, paper.context, "p1", made)
        assert f"spec.{next(iter(fields))}" in {one.field for one in refused.value.violations}


def test_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="not a /64"):
        slaac_address(IPv6Network("fd00::/80"), "02:00:00:00:00:01")


def test_a_port_has_an_address_of_each_family_and_of_each_ipv6_subnet() -> None:
    paper = dual_stack("10.9.0.0/24", "fd00:1::/64", "fd00:2::/64")
    paper.add_instance("web", networks=[ATTACH(network="six")])
    found = [ip_address(text) for text in shown_addresses(paper, "web")]
    assert [address.version for address in found] == [4, 6, 6]
    port = paper.state.ports_of("p1", "web")[0].message
    assert found[1] == slaac_address(PREFIX, port.spec.mac)
    assert [fixed.subnet for fixed in port.spec.addresses] == ["s0"]


def test_a_network_of_ipv6_only_takes_instances() -> None:
    paper = dual_stack("fd00:1::/64")
    paper.add_instance("web", networks=[ATTACH(network="six")])
    assert len(shown_addresses(paper, "web")) == 1


def test_a_new_ipv6_subnet_reaches_ports_that_are_there() -> None:
    paper = dual_stack("10.9.0.0/24")
    paper.add_instance("web", networks=[ATTACH(network="six")])
    assert len(shown_addresses(paper, "web")) == 1
    add_subnet(paper, "late", "fd00:3::/64")
    assert len(shown_addresses(paper, "web")) == 2


def test_an_ipv6_address_cannot_be_wished_for() -> None:
    paper = dual_stack("10.9.0.0/24", "fd00:1::/64")
    with pytest.raises(InvalidArgumentError, match="refused"):
        paper.add_instance("web", networks=[ATTACH(network="six", address="fd00:1::5")])


def test_families_do_not_overlap_each_other() -> None:
    paper = dual_stack("10.9.0.0/24", "fd00:1::/64")
    with pytest.raises(InvalidArgumentError):
        add_subnet(paper, "twice", "fd00:1::/64")
