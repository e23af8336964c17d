"""Provider networks of a lab with real VMs: on the outside's wire, and on one whose switch allows one MAC.

The outside is a machine of the lab, on the wire of the nodes' uplinks. The fabric is what nodes reach each
other and the controller by.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cli.rules import parse_rule
from cumulet.client import Client
from cumulet.convert import find_condition
from cumulet.v1 import meta_pb2
from deploy.lab.lab import Lab
from deploy.lab.layout import FABRIC, OUTSIDE
from deploy.lab.services import EXTERNAL_NETWORK, FABRIC_NETWORK
from deploy.lab.wiring import outside_addresses, outside_gateway
from tests.e2e.lab_cloud import ailment, delete, differences, emulators, name_nodes, page, ready
from tests.support.guest import in_guest
from tests.support.waiting import wait_until

GUESTS = {"desk-1": "n1", "desk-2": "n2"}
NETWORKS = {"office": EXTERNAL_NETWORK, "wire": FABRIC_NETWORK}
HTTP = 80  # the small guest serves its name
OPEN_AGAIN_S = 30  # a port of the strict switch, after it has seen the last stranger


@pytest.fixture
def cloud(lab: Lab) -> Iterator[Client]:
    with lab.client() as client:
        try:
            _build(lab, client)
            yield client
        finally:
            lab.call(FABRIC, ["nft", "delete", "table", "bridge", "strict"])
            lab.wait_ready()
            _remove(client)


def _build(lab: Lab, cloud: Client) -> None:
    name_nodes(cloud)
    group = {"rules": [parse_rule(text) for text in ("out any", "in tcp:80", "in icmp")]}
    cloud.create("security-group", {"meta": {"name": "served"}, "spec": group})
    for name, uplink in NETWORKS.items():
        cloud.create("network", {"meta": {"name": name}, "spec": {"provider": {"uplink": uplink}}})
    gateway = outside_gateway(lab.layout)
    office = {
        "network": "office",
        "cidr": str(gateway.network),
        "gateway": str(gateway.ip),
        "ranges": [f"{gateway.network[130]}-{gateway.network[150]}"],
    }
    cloud.create("subnet", {"meta": {"name": "office-4"}, "spec": office})
    wire = {"network": "wire", "cidr": "192.168.77.0/24"}
    cloud.create("subnet", {"meta": {"name": "wire-4"}, "spec": wire})
    for name, node in GUESTS.items():
        _launch(cloud, name, node, "office")
    for name in GUESTS:
        wait_until(lambda name=name: ailment(lab, name))  # type: ignore[misc]


def _launch(cloud: Client, name: str, node: str, network: str) -> None:
    spec = {
        "flavor": "tiny",
        "image": "cumulet-guest",
        "networks": [{"network": network}],
        "security_groups": ["served"],
        "node_selector": {"name": node},
    }
    cloud.create("instance", {"meta": {"name": name}, "spec": spec})


def _remove(cloud: Client) -> None:
    for name in (*GUESTS, "wired"):
        delete(cloud, "instance", name)
    wait_until(lambda: [one.meta.name for one in cloud.list("instance")])
    for name in NETWORKS:
        delete(cloud, "subnet", f"{name}-4")
        delete(cloud, "network", name)
    delete(cloud, "security-group", "served")


def test_guests_on_the_outsides_wire(lab: Lab, cloud: Client) -> None:
    """Both are reached there, and reach it, as themselves; also from their own nodes, and each other."""
    addresses = {name: _address(cloud, name) for name in GUESTS}
    *_, far_host, _ = outside_addresses(lab.layout)
    for name, other in zip(GUESTS, reversed(GUESTS), strict=True):
        for machine in (OUTSIDE, *GUESTS.values()):
            assert page(lab, machine, addresses[name], HTTP) == name, machine
        assert in_guest(cloud, name, f"echo | nc -w 5 {far_host} 7").text.split()[0] == addresses[name]
        assert in_guest(cloud, name, f"wget -q -O - http://{addresses[other]}/").text.strip() == other
    told = in_guest(cloud, "desk-1", "wget -q -O - http://169.254.169.254/latest/meta-data/local-hostname")
    assert told.text.startswith("desk-1")
    assert differences(lab) == ""
    _is_taken_back(lab, cloud)


def _is_taken_back(lab: Lab, cloud: Client) -> None:
    """The switch turns off the port of a node that speaks as two stations: the node is back by itself."""
    running = {node: emulators(lab, node) for node in GUESTS.values()}
    _make_strict(lab)
    _launch(cloud, "wired", "n1", "wire")
    wait_until(lambda: "" if _condition(cloud, "n1") == "UplinkTakenBack" else _condition(cloud, "n1"))
    wait_until(lambda: "" if ready(lab)["n1"] == "TRUE" else ready(lab))
    wait_until(lambda: "" if _reason(cloud, "wired") == "UplinkTakenBack" else _reason(cloud, "wired"))
    assert running["n1"] <= emulators(lab, "n1")
    assert running["n2"] == emulators(lab, "n2")
    wait_until(lambda: differences(lab))  # what was taken back is as it is to be
    lab.run(FABRIC, ["nft", "delete", "table", "bridge", "strict"])
    lab.kill_service("n1", "agent")  # the operator has allowed it, and does not wait for the next try
    wait_until(lambda: "" if _condition(cloud, "n1") == "Joined" else _condition(cloud, "n1"))
    wait_until(lambda: ailment(lab, "wired"))
    wired = _address(cloud, "wired")
    lab.run("n2", ["ip", "address", "add", "192.168.77.2/24", "dev", "underlay0"])
    try:
        assert page(lab, "n2", wired, HTTP) == "wired"  # any machine on that wire
    finally:
        lab.run("n2", ["ip", "address", "del", "192.168.77.2/24", "dev", "underlay0"])


def _make_strict(lab: Lab) -> None:
    """As port security with recovery: a port is off from the first frame of another MAC than its first."""
    shown = lab.run("n1", ["cat", "/sys/class/net/underlay0/address"]).strip()
    rules = f"""
table bridge strict {{
    set violators {{ type ifname; flags timeout; }}
    chain prerouting {{
        type filter hook prerouting priority -400; policy accept;
        iifname "n1" ether saddr != {shown} update @violators {{ iifname timeout {OPEN_AGAIN_S}s }}
        iifname @violators drop
    }}
    chain forward {{
        type filter hook forward priority -400; policy accept;
        oifname @violators drop
    }}
}}
"""
    lab.run(FABRIC, ["nft", "-f", "-"], rules)


def _address(cloud: Client, instance: str) -> str:
    return str(cloud.get("instance", instance).status.addresses[0])


def _condition(cloud: Client, node: str) -> str:
    found = find_condition(cloud.get("node", node).status.conditions, "UplinksJoined")
    return found.reason if found is not None else "not told"


def _reason(cloud: Client, instance: str) -> str:
    conditions: list[meta_pb2.Condition] = list(cloud.get("instance", instance).status.conditions)
    return next((one.reason for one in conditions if one.reason == "UplinkTakenBack"), str(conditions))
