"""A load balancer on three nodes with real VMs: clients are spread, the dead are left, faults end nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from cli.balancing import parse_health, parse_listener, parse_member
from cli.rules import parse_rule
from cumulet.client import Client
from cumulet.errors import CumuletError
from cumulet.v1 import instance_pb2
from deploy.lab.lab import Lab
from tests.e2e.lab_cloud import delete, differences, name_nodes
from tests.support.guest import in_guest
from tests.support.waiting import wait_until

PROJECT = "balanced"
RANGES = {"web": "10.60.0.0/24", "db": "10.61.0.0/24", "web-6": "fd00:60::/64", "db-6": "fd00:61::/64"}
NETWORKS = ("web", "db")
MEMBERS = {"web-1": "n1", "web-2": "n2"}
CLIENTS = {"near": ("web", "n1"), "far": ("db", "n3")}  # a member's subnet and node; neither
ADDRESSES = {"lb": "10.60.0.200", "lb6": "fd00:60::c8"}  # of the same members
STREAM_ADDRESS = "10.60.0.201"
ASKED = 6


@pytest.fixture
def cloud(lab: Lab) -> Iterator[Client]:
    with lab.client() as made:
        name_nodes(made)
    with Client([lab.layout.control.layout.controller_target], PROJECT) as own:
        try:
            _build(own)
            for name in (*MEMBERS, *CLIENTS):
                wait_until(lambda name=name: _ailment(own, name))  # type: ignore[misc]
                wait_until(lambda name=name: _lacks_ipv6(own, name))  # type: ignore[misc]
            yield own
        finally:
            _remove(own)


def test_a_load_balancer(lab: Lab, cloud: Client) -> None:
    for name in MEMBERS:
        _says(
            cloud, name, "mkdir -p /www; touch /www/ready; hostname > /www/index.html; httpd -p 8080 -h /www"
        )
    wait_until(lambda: _unhealthy(cloud))
    for client in CLIENTS:
        for name in ADDRESSES:
            found = cloud.explain_reach(client, name, protocol="tcp", port=80, live=True)
            assert found.reachable
            assert not found.differences
        _all_answer(cloud, client)
    _the_dead_are_left(cloud)
    _faults_of_the_node_end_nothing(lab, cloud)
    wait_until(lambda: differences(lab))


def _the_dead_are_left(cloud: Client) -> None:
    _says(cloud, "web-2", "killall httpd")
    everywhere = {"web-2": sorted(f"{node} {name}" for node in ("n1", "n2", "n3") for name in ADDRESSES)}
    wait_until(lambda: (found := _unhealthy(cloud)) != everywhere and f"unhealthy: {found}")
    for client in CLIENTS:
        for address in ADDRESSES.values():
            said = _answers(cloud, client, address)
            assert _names(said) == {"web-1": ASKED}, (client, address, said)
    _says(cloud, "web-2", "httpd -p 8080 -h /www")
    wait_until(lambda: _unhealthy(cloud))
    for client in CLIENTS:
        _all_answer(cloud, client)


def _faults_of_the_node_end_nothing(lab: Lab, cloud: Client) -> None:
    """A connection of the far client is open while its node's agent is killed, and its rules are deleted."""
    _says(
        cloud, "web-1", "(while true; do echo line; sleep 0.2; done | nc -l -p 9000) > /dev/null 2>&1 & true"
    )
    _says(cloud, "far", f"(nc {STREAM_ADDRESS} 9000 < /dev/zero > /tmp/got) > /dev/null 2>&1 & true")
    wait_until(lambda: not _lines(cloud) and "nothing came")
    lab.kill_service("n3", "agent")
    wait_until(lambda: _silence(cloud, "far"))
    _goes_on(cloud)
    _all_answer(cloud, "far")
    wait_until(lambda: differences(lab))
    table = f"cumulet-lb-{cloud.get('load-balancer', 'stream').meta.uid}"
    (owner,) = [one for one in lab.run("n3", ["ls", "/run/netns"]).split() if table in _tables(lab, one)]
    lab.run("n3", [*_nft(owner), "delete", "table", "ip", table])
    assert table not in _tables(lab, owner)
    _goes_on(cloud)
    wait_until(lambda: table not in _tables(lab, owner) and "the table is not back")
    _goes_on(cloud)


def _goes_on(cloud: Client) -> None:
    """More comes over the connection, which was never anew: its listener took one only."""
    before = _lines(cloud)
    wait_until(lambda: _lines(cloud) <= before and f"still {before} lines")


def _lines(cloud: Client) -> int:
    return int(_says(cloud, "far", "wc -l < /tmp/got"))


def _nft(namespace: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, "nft"]


def _tables(lab: Lab, namespace: str) -> str:
    return lab.run("n3", [*_nft(namespace), "list", "tables"])


def _all_answer(cloud: Client, client: str) -> None:
    """In turn, at every address."""
    for address in ADDRESSES.values():
        said = _answers(cloud, client, address)
        assert _names(said) == dict.fromkeys(MEMBERS, ASKED // len(MEMBERS)), (client, address, said)


def _names(said: str) -> Counter[str]:
    """Who answered."""
    return Counter(re.findall(r"web-[0-9]", said))


def _answers(cloud: Client, client: str, address: str) -> str:
    """What came over so many new connections, and what the client complained of."""
    question = "(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 0.3)"
    turns = " ".join(map(str, range(ASKED)))
    return _says(cloud, client, f"for turn in {turns}; do {question} | nc -w 5 {address} 80; done 2>&1")


def _unhealthy(cloud: Client) -> dict[str, list[str]]:
    """Nodes that get no answer, by member; of both balancers, whose members are the same."""
    found: dict[str, set[str]] = {}
    for name in ADDRESSES:
        for one in cloud.get("load-balancer", name).status.members:
            found.setdefault(one.instance, set()).update(f"{node} {name}" for node in one.unhealthy_on)
    return {instance: sorted(nodes) for instance, nodes in found.items() if nodes}


def _says(cloud: Client, guest: str, command: str) -> str:
    said = in_guest(cloud, guest, command)
    assert said.code == 0, (guest, command, said.text)
    return said.text.strip()


def _silence(cloud: Client, guest: str) -> str:
    """Why nobody can type in a guest: consoles go by the agent."""
    try:
        _says(cloud, guest, "true")
    except CumuletError as error:
        return str(error)
    return ""


def _ailment(cloud: Client, guest: str) -> str:
    phase = cloud.get("instance", guest).status.phase
    said = cloud.console_log(guest)
    if phase != instance_pb2.INSTANCE_PHASE_RUNNING:
        return instance_pb2.InstancePhase.Name(phase)
    return "" if b"cumulet-guest: ready" in said else said.decode(errors="replace")[-300:]


def _lacks_ipv6(cloud: Client, guest: str) -> str:
    """A guest is ready by IPv4 alone; the address that it makes itself comes with an advertisement."""
    said = in_guest(cloud, guest, "ip -6 address show dev eth0 scope global").text
    return "" if "inet6 fd00:" in said and "tentative" not in said else f"{guest} has {said!r}"


def _build(cloud: Client) -> None:
    cloud.create("project", {"meta": {"name": PROJECT}})
    rules = [
        parse_rule(text)
        for text in ("out any", "in tcp:8080 10.60.0.0/15", "in tcp:8080 fd00::/8", "in tcp:9000")
    ]
    cloud.create("security-group", {"meta": {"name": "web"}, "spec": {"rules": rules}})
    for name in NETWORKS:
        cloud.create("network", {"meta": {"name": name}})
    for name, cidr in RANGES.items():
        spec = {"network": name.removesuffix("-6"), "cidr": cidr}
        cloud.create("subnet", {"meta": {"name": name}, "spec": spec})
    cloud.create("router", {"meta": {"name": "r"}, "spec": {"networks": list(NETWORKS)}})
    for name, address in ADDRESSES.items():
        _create_balancer(
            cloud, name, address, "tcp:80", "label:app=web:8080", "http:/ready interval=1 fall=2"
        )
    _create_balancer(cloud, "stream", STREAM_ADDRESS, "tcp:9000", "instance:web-1", "")
    for name, node in MEMBERS.items():
        _create_guest(cloud, name, "web", node, security_groups=["web"])
    for name, (network, node) in CLIENTS.items():
        _create_guest(cloud, name, network, node)


def _create_balancer(cloud: Client, name: str, address: str, listener: str, member: str, health: str) -> None:
    spec: dict[str, Any] = {
        "network": "web",
        "address": address,
        "listeners": [parse_listener(listener)],
        "members": [parse_member(member)],
    }
    if health:
        spec["health_check"] = parse_health(health)
    cloud.create("load-balancer", {"meta": {"name": name}, "spec": spec})


def _create_guest(cloud: Client, name: str, network: str, node: str, **more: Any) -> None:
    spec = {
        "flavor": "tiny",
        "image": "cumulet-guest",
        "networks": [{"network": network}],
        "node_selector": {"name": node},
        **more,
    }
    labels = {"app": "web"} if name in MEMBERS else {}
    cloud.create("instance", {"meta": {"name": name, "labels": labels}, "spec": spec})


def _remove(cloud: Client) -> None:
    for name in (*MEMBERS, *CLIENTS):
        delete(cloud, "instance", name)
    wait_until(lambda: [one.meta.name for one in cloud.list("instance")])
    for name in (*ADDRESSES, "stream"):
        delete(cloud, "load-balancer", name)
    delete(cloud, "router", "r")
    for name in RANGES:
        delete(cloud, "subnet", name)
    for name in NETWORKS:
        delete(cloud, "network", name)
    delete(cloud, "security-group", "web")
    delete(cloud, "project", PROJECT)
