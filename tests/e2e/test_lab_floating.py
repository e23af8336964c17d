"""Floating IPs of a lab with real VMs: from the outside in, moved under traffic, and taken over.

The outside is a machine of the lab, on the wire of the nodes' uplinks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv6Interface

import pytest

from cli.rules import parse_rule
from cumulet.client import Client
from cumulet.errors import CumuletError
from cumulet.v1 import floatingip_pb2
from deploy.lab.lab import Lab
from deploy.lab.layout import OUTSIDE
from deploy.lab.services import EXTERNAL_NETWORK
from deploy.lab.wiring import GATEWAY_IPV6, outside_addresses, outside_gateway
from tests.e2e.lab_cloud import ailment, delete, differences, name_nodes, page
from tests.support.guest import in_guest
from tests.support.waiting import wait_until

GUESTS = {"web-1": "n1", "web-2": "n2"}
HTTP = 80  # the small guest serves its name
FORWARDED = {8001: "web-1", 8002: "web-2"}
PINGS = 60
LOST_MAX = 10  # of a move, at ten a second: what is lost is one change of plans, and no cache's patience


@pytest.fixture
def cloud(lab: Lab) -> Iterator[Client]:
    with lab.client() as client:
        try:
            _build(lab, client)
            yield client
        finally:
            lab.heal()
            lab.wait_ready()
            _remove(client)


def _build(lab: Lab, cloud: Client) -> None:
    name_nodes(cloud)
    group = {"rules": [parse_rule(text) for text in ("out any", "in any")]}
    cloud.create("security-group", {"meta": {"name": "open"}, "spec": group})
    cloud.create("network", {"meta": {"name": "web"}})
    subnet = {"network": "web", "cidr": "10.60.0.0/24"}
    cloud.create("subnet", {"meta": {"name": "web-4"}, "spec": subnet})
    gateway, gateway6 = outside_gateway(lab.layout), IPv6Interface(GATEWAY_IPV6)
    outside = {
        "uplink": EXTERNAL_NETWORK,
        "cidr": str(gateway.network),
        "gateway": str(gateway.ip),
        "ranges": [f"{gateway.network[64]}-{gateway.network[127]}"],
        "cidr6": str(gateway6.network),
        "gateway6": str(gateway6.ip),
    }
    cloud.create("external-network", {"meta": {"name": "internet"}, "spec": outside})
    routed = {"network": "web", "external_network": "internet"}
    cloud.create("subnet", {"meta": {"name": "web-6"}, "spec": routed})
    cloud.create("router", {"meta": {"name": "r"}, "spec": {"networks": ["web"]}})
    for name, node in GUESTS.items():
        spec = {
            "flavor": "tiny",
            "image": "cumulet-guest",
            "networks": [{"network": "web"}],
            "security_groups": ["open"],
            "node_selector": {"name": node},
        }
        cloud.create("instance", {"meta": {"name": name}, "spec": spec})
    for name in GUESTS:
        wait_until(lambda name=name: ailment(lab, name))  # type: ignore[misc]


def _remove(cloud: Client) -> None:
    for noun, names in {
        "floating-ip": ("site", "ports", "balanced"),
        "load-balancer": ("front",),
        "instance": tuple(GUESTS),
        "router": ("r",),
    }.items():
        for name in names:
            delete(cloud, noun, name)
    wait_until(lambda: [one.meta.name for one in cloud.list("instance")])
    for noun, name in (
        ("subnet", "web-4"),
        ("subnet", "web-6"),
        ("external-network", "internet"),
        ("network", "web"),
        ("security-group", "open"),
    ):
        delete(cloud, noun, name)


def test_floating_ips_from_the_outside(lab: Lab, cloud: Client) -> None:
    site = _assign(cloud, "site", {"target": "web-1"})
    assert page(lab, OUTSIDE, site, HTTP) == "web-1"
    *_, far_host, _ = outside_addresses(lab.layout)
    assert in_guest(cloud, "web-1", f"echo | nc -w 5 {far_host} 7").text.split()[0] == site
    assert in_guest(cloud, "web-2", f"echo | nc -w 2 {far_host} 7").text.split()[0] != site  # has no address
    forwards = [
        {"protocol": "tcp", "port": port, "target": target, "target_port": HTTP}
        for port, target in FORWARDED.items()
    ]
    ports = _assign(cloud, "ports", {"forwards": forwards})
    assert {port: page(lab, OUTSIDE, ports, port) for port in FORWARDED} == FORWARDED
    assert page(lab, OUTSIDE, ports, HTTP) == ""
    _has_ipv6_of_its_own(lab, cloud)
    _leads_to_a_balancer(lab, cloud)
    _moves_under_traffic(lab, cloud, site)
    _is_taken_over(lab, cloud, ports)
    assert differences(lab) == ""


def _has_ipv6_of_its_own(lab: Lab, cloud: Client) -> None:
    """Each guest is reached, and reaches out, by the address that it made itself in its subnet."""
    *_, far_host = outside_addresses(lab.layout)
    for name in GUESTS:
        address = _address6(cloud, name)
        wait_until(lambda url=f"[{address}]": "" if page(lab, OUTSIDE, url, HTTP) else "nobody answers")  # type: ignore[misc]
        assert page(lab, OUTSIDE, f"[{address}]", HTTP) == name
        assert in_guest(cloud, name, f"echo | nc -w 5 {far_host} 7").text.split()[0] == address
        assert cloud.explain_reach(far_host, name, protocol="tcp", port=HTTP, live=True).reachable


def _address6(cloud: Client, name: str) -> str:
    (port,) = [one for one in cloud.list("port") if one.spec.instance == name]
    (address,) = [text for text in port.status.addresses if ":" in text]
    return str(address)


def _leads_to_a_balancer(lab: Lab, cloud: Client) -> None:
    """The outside is served by both guests in turn, whichever node announces the address."""
    listener = {"protocol": "tcp", "port": HTTP}
    spec = {"network": "web", "listeners": [listener], "members": [{"instance": name} for name in GUESTS]}
    cloud.create("load-balancer", {"meta": {"name": "front"}, "spec": spec})
    address = _assign(cloud, "balanced", {"target": "front"})
    wait_until(lambda: "" if page(lab, OUTSIDE, address, HTTP) else "nobody answers")
    assert Counter(page(lab, OUTSIDE, address, HTTP) for _ in range(10)) == dict.fromkeys(GUESTS, 5)


def _moves_under_traffic(lab: Lab, cloud: Client, address: str) -> None:
    """Its old node lets go before the new one announces it, and the outside learns it at once."""
    script = f"ping -i 0.1 -c {PINGS} -W 1 -q {address} > /tmp/pings & echo"
    lab.run(OUTSIDE, ["sh", "-c", script])
    _update(cloud, "site", "web-2")
    assert page(lab, OUTSIDE, address, HTTP) == "web-2"
    wait_until(lambda: "" if "received" in lab.run(OUTSIDE, ["cat", "/tmp/pings"]) else "still pinging")
    found = re.search(r"(\d+) received", lab.run(OUTSIDE, ["cat", "/tmp/pings"]))
    assert found is not None
    assert int(found[1]) >= PINGS - LOST_MAX


def _is_taken_over(lab: Lab, cloud: Client, address: str) -> None:
    """A node that hears no controller still answers outside, until it hears another one announce itself."""
    assert _node(cloud, "ports") == "n1"
    lab.cut("n1", "control")
    wait_until(lambda: "" if _node(cloud, "ports") == "n2" else "n1 still has it")
    wait_until(lambda: lab.run("n1", ["ip", "-4", "neigh", "show", "proxy"]).strip())
    assert page(lab, OUTSIDE, f"[{_address6(cloud, 'web-1')}]", HTTP) == "web-1"  # which is nobody else's
    assert {port: page(lab, OUTSIDE, address, port) for port in FORWARDED} == FORWARDED
    lab.heal()
    lab.wait_ready()
    wait_until(lambda: differences(lab))
    assert _node(cloud, "ports") == "n2"
    assert {port: page(lab, OUTSIDE, address, port) for port in FORWARDED} == FORWARDED


def _assign(cloud: Client, name: str, spec: dict[str, object]) -> str:
    """The address, once a node announces it."""
    fields = {"external_network": "internet", **spec}
    made = cloud.create("floating-ip", {"meta": {"name": name}, "spec": fields})
    wait_until(lambda: _inactivity(cloud, name))
    return str(made.spec.address)


def _update(cloud: Client, name: str, target: str) -> None:
    floating = cloud.get("floating-ip", name)
    floating.spec.target = target
    cloud.update("floating-ip", floating, ["spec.target"])
    wait_until(lambda: _inactivity(cloud, name))


def _inactivity(cloud: Client, name: str) -> str:
    status: floatingip_pb2.FloatingIPStatus = cloud.get("floating-ip", name).status
    condition = status.conditions[0]
    return "" if condition.reason == "Announced" else str(condition)


def _node(cloud: Client, name: str) -> str:
    try:
        return str(cloud.get("floating-ip", name).status.node)
    except CumuletError as error:
        return error.message
