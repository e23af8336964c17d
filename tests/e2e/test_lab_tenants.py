"""Two tenants with the same ranges on three nodes, with real VMs: each has its router, groups and names.

What `explain reach` says is asked first, and packets of real guests must do it; then a node dies and returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cli.rules import parse_rule
from cumulet.client import Client
from cumulet.errors import CumuletError
from cumulet.v1 import instance_pb2
from deploy.lab.lab import Lab
from deploy.lab.wiring import outside_addresses, uplink_address
from tests.e2e.lab_cloud import delete, differences, name_nodes
from tests.support.guest import in_guest
from tests.support.waiting import wait_until

TENANTS = ("red", "blue")
# Network, its ranges, and on which node each tenant's guest of it is: every pair crosses nodes for somebody.
PLACES = {"web": ("n1", "n2"), "db": ("n2", "n3")}
RANGES = {"web": ("10.50.0.0/24", "fd00:50::/64"), "db": ("10.51.0.0/24", "fd00:51::/64")}
GROUPS = {"web": ("out any", "in icmp"), "db": ("out any", "in tcp:5432 group:web")}
DB_ADDRESS = "10.51.0.5"  # of both tenants


@dataclass(frozen=True, slots=True)
class Tenant:
    lab: Lab
    name: str

    def client(self) -> Client:
        return Client([self.lab.layout.control.layout.controller_target], self.name)

    def says(self, guest: str, command: str) -> str:
        """What a command in a guest wrote; its exit code at the end."""
        with self.client() as cloud:
            said = in_guest(cloud, guest, command)
        return f"{said.text.strip()} {said.code}".strip()

    def reaches(self, source: str, target: str, protocol: str, port: int = 0) -> bool:
        """As reach foretells, with the nodes' agreement."""
        with self.client() as cloud:
            found = cloud.explain_reach(source, target, protocol=protocol, port=port, live=True)
        assert not found.differences, str(found.differences)
        assert not found.silent_nodes
        return bool(found.reachable)

    def addresses(self, guest: str) -> list[str]:
        with self.client() as cloud:
            return list(cloud.get("instance", guest).status.addresses)

    def silence(self, guest: str) -> str:
        """Why nobody can type in a guest; its log and its phase may be of the time before it died."""
        try:
            self.says(guest, "true")
        except CumuletError as error:
            return str(error)
        return ""

    def ailment(self, guest: str) -> str:
        with self.client() as cloud:
            phase = cloud.get("instance", guest).status.phase
            said = cloud.console_log(guest)
        if phase != instance_pb2.INSTANCE_PHASE_RUNNING:
            return instance_pb2.InstancePhase.Name(phase)
        return "" if b"cumulet-guest: ready" in said else said.decode(errors="replace")[-300:]


@pytest.fixture
def tenants(lab: Lab) -> Iterator[tuple[Tenant, Tenant]]:
    """Both with a router over two dual-stack networks and a guest on each."""
    red, blue = (Tenant(lab, name) for name in TENANTS)
    try:
        for index, tenant in enumerate((red, blue)):
            _build(tenant, index)
        for tenant in (red, blue):
            for guest in RANGES:
                wait_until(lambda tenant=tenant, guest=guest: tenant.ailment(guest))  # type: ignore[misc]
        yield red, blue
    finally:
        for tenant in (red, blue):
            _remove(tenant)


def _build(tenant: Tenant, index: int) -> None:
    with tenant.client() as cloud:
        cloud.create("project", {"meta": {"name": tenant.name}})
        for name, texts in GROUPS.items():
            spec = {"rules": [parse_rule(text) for text in texts]}
            cloud.create("security-group", {"meta": {"name": name}, "spec": spec})
        for name, cidrs in RANGES.items():
            cloud.create("network", {"meta": {"name": name}})
            for number, cidr in enumerate(cidrs):
                spec_of_subnet = {"network": name, "cidr": cidr}
                cloud.create("subnet", {"meta": {"name": f"{name}-{number}"}, "spec": spec_of_subnet})
        router = {"networks": list(RANGES), "outbound_nat": True}
        cloud.create("router", {"meta": {"name": "r"}, "spec": router})
        for name, nodes in PLACES.items():
            cloud.create("instance", {"meta": {"name": name}, "spec": _guest(name, nodes[index])})


def _guest(name: str, node: str) -> dict[str, Any]:
    attachment = {"network": name} | ({"address": DB_ADDRESS} if name == "db" else {})
    return {
        "flavor": "tiny",
        "image": "cumulet-guest",
        "networks": [attachment],
        "security_groups": [name],
        "node_selector": {"name": node},
    }


def _remove(tenant: Tenant) -> None:
    with tenant.client() as cloud:
        for guest in RANGES:
            delete(cloud, "instance", guest)
        wait_until(lambda: [one.meta.name for one in cloud.list("instance")])
        delete(cloud, "router", "r")
        for name, cidrs in RANGES.items():
            for number in range(len(cidrs)):
                delete(cloud, "subnet", f"{name}-{number}")
            delete(cloud, "network", name)
        for name in reversed(GROUPS):
            delete(cloud, "security-group", name)
        delete(cloud, "project", tenant.name)


@pytest.fixture(autouse=True)
def labelled(lab: Lab) -> None:
    """Nodes can be asked for by name."""
    with lab.client() as cloud:
        name_nodes(cloud)


def test_two_tenants_with_the_same_ranges(lab: Lab, tenants: tuple[Tenant, Tenant]) -> None:
    _each_serves_its_own(tenants)
    for tenant in tenants:
        _groups_decide(tenant)
        _names_and_metadata(tenant)
    _outside(lab, tenants[0])
    _a_node_dies_and_returns(lab, tenants)


def _each_serves_its_own(tenants: tuple[Tenant, Tenant]) -> None:
    """The very same address leads each tenant's guest to its own database, across nodes and a router."""
    for tenant in tenants:
        assert DB_ADDRESS in tenant.addresses("db")
        tenant.says("db", f"(while true; do echo {tenant.name} | nc -l -p 5432; done) & true")
    for tenant in tenants:
        assert tenant.reaches("web", "db", "tcp", 5432)
        assert tenant.says("web", f"nc -w 5 {DB_ADDRESS} 5432 < /dev/null") == f"{tenant.name} 0"


def _groups_decide(tenant: Tenant) -> None:
    assert not tenant.reaches("web", "db", "icmp")
    assert not tenant.says("web", f"ping -c 2 -W 2 -q {DB_ADDRESS} > /dev/null").endswith(" 0")
    assert tenant.reaches("db", "web", "icmp")
    for address in tenant.addresses("web"):  # of both families
        verb = "ping6" if ":" in address else "ping"
        assert tenant.says("db", f"{verb} -c 3 -W 3 -q {address} > /dev/null") == "0", address


def _names_and_metadata(tenant: Tenant) -> None:
    for name, address in (("db", DB_ADDRESS), ("web", tenant.addresses("web")[0])):
        assert address in tenant.says(name, f"nslookup {name}.cumulet.internal")
        # A client that closes its half at once would be hung up on before the answer.
        question = "printf 'GET /latest/meta-data/local-ipv4 HTTP/1.0\\r\\n\\r\\n'; sleep 1"
        assert address in tenant.says(name, f"({question}) | nc -w 5 169.254.169.254 80")


def _outside(lab: Lab, tenant: Tenant) -> None:
    """A guest goes out from the address of its own node."""
    *_, host, _ = outside_addresses(lab.layout)
    told = tenant.says("db", f"echo | nc -w 5 {host} 7")
    assert told.split()[0] == str(uplink_address(lab.layout, lab.layout.machine("n2")).ip)


def _a_node_dies_and_returns(lab: Lab, tenants: tuple[Tenant, Tenant]) -> None:
    """Who is elsewhere goes on; who was there is back with everything that leads to it."""
    red, blue = tenants
    lab.kill("n3")  # blue's database
    assert red.says("web", f"nc -w 5 {DB_ADDRESS} 5432 < /dev/null") == "red 0"
    lab.start("n3")
    lab.wait_ready(["n3"])
    wait_until(lambda: blue.silence("db"))
    blue.says("db", "(while true; do echo blue again | nc -l -p 5432; done) & true")
    assert blue.says("web", f"nc -w 5 {DB_ADDRESS} 5432 < /dev/null") == "blue again 0"
    wait_until(lambda: differences(lab))
