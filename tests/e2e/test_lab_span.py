"""A network that spans nodes of the lab, with real VMs: both families, whole packets, what is put back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from agent.net import names
from cumulet.v1 import network_pb2, port_pb2
from deploy.lab.lab import Lab
from tests.e2e.lab_cloud import ailment, differences, phases
from tests.support.guest import in_guest
from tests.support.waiting import wait_until

GUESTS = ("span-a", "span-b")
LARGEST = 1450 - 28  # of ICMP's payload in a guest's MTU, behind an underlay of 1500


@dataclass(frozen=True, slots=True)
class Span:
    lab: Lab
    network: network_pb2.Network
    ports: dict[str, port_pb2.Port]  # by instance

    def answered(self, guest: str, target: str, size: int = 56) -> bool:
        verb = "ping6" if ":" in target else "ping"
        with self.lab.client() as cloud:
            said = in_guest(cloud, guest, f"{verb} -c 3 -W 2 -s {size} -q {target}")
        return said.code == 0

    def node(self, guest: str) -> str:
        return self.ports[guest].status.node


@pytest.fixture
def span(lab: Lab) -> Iterator[Span]:
    """A dual-stack network with one guest on each of two nodes."""
    with lab.client() as cloud:
        network = cloud.create("network", {"meta": {"name": "span"}, "spec": {}})
        for name, cidr in (("span4", "10.77.0.0/24"), ("span6", "fd00:77::/64")):
            spec = {"network": "span", "cidr": cidr}
            cloud.create("subnet", {"meta": {"name": name}, "spec": spec})
        group: dict[str, Any] = {"rule": "PLACEMENT_RULE_ANTI_AFFINITY", "scope": "PLACEMENT_SCOPE_NODE"}
        cloud.create("placement-group", {"meta": {"name": "span"}, "spec": group})
        for guest in GUESTS:
            cloud.create("instance", {"meta": {"name": guest}, "spec": _guest_spec()})
    try:
        wait_until(lambda: "".join(ailment(lab, guest) for guest in GUESTS))
        with lab.client() as cloud:
            ports = {port.spec.instance: port for port in cloud.list("port")}
        yield Span(lab, network, {guest: ports[guest] for guest in GUESTS})
    finally:
        _remove(lab)


def _guest_spec() -> dict[str, Any]:
    return {
        "flavor": "tiny",
        "image": "cumulet-guest",
        "networks": [{"network": "span"}],
        "placement_groups": ["span"],
    }


def _remove(lab: Lab) -> None:
    with lab.client() as cloud:
        for guest in GUESTS:
            cloud.delete("instance", guest)
    wait_until(lambda: set(phases(lab)) & set(GUESTS))
    with lab.client() as cloud:
        for subnet in ("span4", "span6"):
            cloud.delete("subnet", subnet)
        cloud.delete("network", "span")
        cloud.delete("placement-group", "span")


def test_guests_of_two_nodes_reach_each_other_whatever_is_deleted_in_between(span: Span) -> None:
    a, b = GUESTS
    assert span.node(a) != span.node(b)
    for guest, other in ((a, b), (b, a)):
        for address in span.ports[other].status.addresses:
            assert span.answered(guest, address), f"{guest} to {address}"
    address = span.ports[b].status.addresses[0]
    assert span.answered(a, address, LARGEST)
    before = _entries(span, a)
    assert len(before) == 4  # of the bridge, of the tunnel, and two neighbours
    for removal in _removals(span, b):
        done = span.lab.call(span.node(a), removal)
        assert done.returncode == 0, done.stderr  # it was there, and may be back before anybody looks
    wait_until(lambda: before - _entries(span, a))
    assert span.answered(a, address)
    wait_until(lambda: differences(span.lab))


def _entries(span: Span, guest: str) -> frozenset[str]:
    """What a guest's node knows of the other guest."""
    mac, uid = (
        next(port.spec.mac for name, port in span.ports.items() if name != guest),
        span.network.meta.uid,
    )
    listings = (
        ("bridge", "fdb", "show", "br", names.bridge_name(uid)),
        ("ip", "neigh", "show", "dev", names.bridge_name(uid)),
    )
    lines = [line for words in listings for line in span.lab.run(span.node(guest), [*words]).splitlines()]
    return frozenset(line.strip() for line in lines if mac in line and "fe80:" not in line)


def _removals(span: Span, other: str) -> list[list[str]]:
    port, uid = span.ports[other], span.network.meta.uid
    tunnel, bridge = names.tunnel_name(uid), names.bridge_name(uid)
    return [
        ["bridge", "fdb", "del", port.spec.mac, "dev", tunnel, "master"],
        ["bridge", "fdb", "del", port.spec.mac, "dev", tunnel, "self"],
        *(["ip", "neigh", "del", address, "dev", bridge] for address in port.status.addresses),
    ]
