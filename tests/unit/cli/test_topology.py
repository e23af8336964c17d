"""`topology`: the tree, the JSON and the picture of one project."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

from cli.topology import build_topology, render_tree, to_plain
from cli.topology_picture import SVG, render_topology
from cumulet.v1 import (
    floatingip_pb2,
    instance_pb2,
    loadbalancer_pb2,
    meta_pb2,
    network_pb2,
    port_pb2,
    router_pb2,
    subnet_pb2,
)


def named(message: Any, name: str) -> Any:
    message.meta.CopyFrom(meta_pb2.Meta(name=name))
    return message


def network(name: str, *, nat: bool = False) -> network_pb2.Network:
    made: network_pb2.Network = named(network_pb2.Network(), name)
    made.spec.outbound_nat = nat
    return made


def subnet(of: str, cidr: str) -> subnet_pb2.Subnet:
    made: subnet_pb2.Subnet = named(subnet_pb2.Subnet(), f"{of}-{cidr}")
    made.spec.network, made.spec.cidr = of, cidr
    return made


def port(instance: str, on: str, address: str, node: str = "n1") -> port_pb2.Port:
    made: port_pb2.Port = named(port_pb2.Port(), f"{instance}-port")
    made.spec.instance, made.spec.network = instance, on
    made.spec.security_groups.append("web")
    made.status.node = node
    made.status.addresses.append(address)
    return made


def router(name: str, *networks: str) -> router_pb2.Router:
    made: router_pb2.Router = named(router_pb2.Router(), name)
    made.spec.networks.extend(networks)
    made.spec.outbound_nat = True
    made.spec.routes.add(cidr="192.168.0.0/16", next_hop="10.1.0.9")
    return made


JOINTS = build_topology(
    [router("r", "db", "web")],
    [network("web"), network("db"), network("alone", nat=True)],
    [subnet("web", "10.1.0.0/24"), subnet("web", "fd00::/64"), subnet("db", "10.2.0.0/24")],
    [port("w1", "web", "10.1.0.5"), port("w2", "web", "10.1.0.6", "n2"), port("d1", "db", "10.2.0.5", "")],
)


def test_the_tree() -> None:
    assert list(render_tree(JOINTS)) == [
        "router r  reaches the outside",
        "├─ route 192.168.0.0/16 via 10.1.0.9",
        "├─ network db  10.2.0.0/24",
        "│  └─ d1  10.2.0.5  on not placed  [web]",
        "└─ network web  10.1.0.0/24, fd00::/64",
        "   ├─ w1  10.1.0.5  on n1  [web]",
        "   └─ w2  10.1.0.6  on n2  [web]",
        "network alone  no subnet  reaches the outside",
    ]


def test_a_provider_network_says_which_segment_it_is() -> None:
    tagged, flat = network("office"), network("printers")
    tagged.spec.provider.uplink, tagged.spec.provider.vlan = "office", 20
    flat.spec.provider.uplink = "office"
    joints = build_topology([], [tagged, flat], [subnet("office", "192.168.7.0/24")], [])
    assert list(render_tree(joints)) == [
        "network office  192.168.7.0/24  provider office, VLAN 20",
        "network printers  no subnet  provider office",
    ]
    assert to_plain(joints[0])["segments"][0]["provider"] == "provider office, VLAN 20"
    texts = [element.text for element in ET.fromstring(render_topology(joints)).iter(f"{{{SVG}}}text")]
    assert "office 192.168.7.0/24 (provider office, VLAN 20)" in texts


def test_what_leads_there_from_the_outside_is_shown_where_it_leads() -> None:
    """To the first port of an instance only, to a port by its name, and to a load balancer."""
    first, second = port("w1", "web", "10.1.0.5"), port("w1", "db", "10.2.0.5")
    first.meta.uid, second.meta.uid, second.meta.name = "u1", "u2", "w1-db"
    owner: instance_pb2.Instance = named(instance_pb2.Instance(), "w1")
    for uid in ("u1", "u2"):
        owner.spec.networks.add(port_uid=uid)
    balancer: loadbalancer_pb2.LoadBalancer = named(loadbalancer_pb2.LoadBalancer(), "lb")
    balancer.spec.network, balancer.spec.address = "web", "10.1.0.200"
    balancer.spec.listeners.add(protocol="tcp", port=80)
    floating = []
    for number, target in enumerate(("w1", "lb", "")):
        one: floatingip_pb2.FloatingIP = named(floatingip_pb2.FloatingIP(), f"f{number}")
        one.spec.address, one.spec.target = f"203.0.113.{70 + number}", target
        floating.append(one)
    floating[2].spec.forwards.add(protocol="tcp", port=22, target="w1-db")
    joints = build_topology(
        [router("r", "db", "web")],
        [network("web"), network("db")],
        [],
        [first, second],
        [owner],
        [balancer],
        floating,
    )
    assert list(render_tree(joints))[2:] == [
        "├─ network db  no subnet",
        "│  └─ w1  10.2.0.5  on n1  [web]  by 203.0.113.72 tcp:22",
        "└─ network web  no subnet",
        "   ├─ load balancer lb  10.1.0.200  tcp:80  by 203.0.113.71",
        "   └─ w1  10.1.0.5  on n1  [web]  by 203.0.113.70",
    ]
    root = ET.fromstring(render_topology(joints))
    texts = [element.text or "" for element in root.iter(f"{{{SVG}}}text")]
    assert {"lb", "by 203.0.113.70", "by 203.0.113.71", "by 203.0.113.72 tcp:22"} <= set(texts)


def test_nothing_says_how_to_begin() -> None:
    assert list(render_tree([])) == ["no networks: cumulet network create NAME"]


def test_the_picture_holds_every_name_once_and_nothing_lies_outside_of_it() -> None:
    root = ET.fromstring(render_topology(JOINTS))
    texts = [element.text or "" for element in root.iter(f"{{{SVG}}}text")]
    for name in ("w1", "w2", "d1", "10.1.0.5"):
        assert texts.count(name) == 1
    width, height = int(root.attrib["width"]), int(root.attrib["height"])
    for box in list(root.iter(f"{{{SVG}}}rect"))[1:]:
        assert int(box.attrib["x"]) + int(box.attrib["width"]) <= width
        assert int(box.attrib["y"]) + int(box.attrib["height"]) <= height


def test_boxes_of_instances_do_not_overlap() -> None:
    root = ET.fromstring(render_topology(JOINTS))
    cards = [
        (int(box.attrib["x"]), int(box.attrib["y"]))
        for box in root.iter(f"{{{SVG}}}rect")
        if box.attrib["fill"] == "#f4f6f8"
    ]
    assert len(cards) == 3
    assert len(set(cards)) == 3


def test_hostile_names_stay_text() -> None:
    joints = build_topology([], [network("<script>")], [], [port("a&b", "<script>", "10.1.0.5")])
    root = ET.fromstring(render_topology(joints))
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert any(element.text == "a&b" for element in root.iter(f"{{{SVG}}}text"))


def test_json_is_the_same_for_programs() -> None:
    plain = json.loads(json.dumps([to_plain(joint) for joint in JOINTS]))
    assert plain[0]["segments"][1]["places"][0]["instance"] == "w1"
