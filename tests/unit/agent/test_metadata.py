"""The metadata trees: what is at each path, nothing besides, and only for who asks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.intent import parse_plan
from agent.metadata import index_askers
from agent.metadata_tree import Asker, find_document
from tests.unit.agent.build import instance, plan, uid

KEYS = ("ssh-ed25519 AAAA one@laptop", "ssh-rsa BBBB two@laptop")


def asker(*, user_data: bytes = b"#cloud-config\n{}\n", keys: tuple[str, ...] = KEYS) -> Asker:
    planned = instance(1, networks=(1,))
    planned.user_data = user_data
    planned.authorized_keys[:] = keys
    planned.ports[0].addresses[:] = ["10.0.0.5", "fd00::5"]
    return index_askers(parse_plan(plan(planned)))[uid(2, 1)]["10.0.0.5"]


def text(path: str, who: Asker | None = None) -> str:
    document = find_document(who or asker(), path)
    assert document is not None, path
    return document.body.decode()


def data(path: str) -> Any:
    return json.loads(text(path))


def test_the_openstack_tree_says_who_the_instance_is() -> None:
    meta = data("/openstack/latest/meta_data.json")
    assert meta["uuid"] == uid(1, 1)
    assert meta["hostname"].endswith(".cumulet.internal")
    assert [key["data"] for key in meta["keys"]] == list(KEYS)
    assert list(meta["public_keys"].values()) == list(KEYS)
    assert text("/openstack/2018-08-27/user_data") == "#cloud-config\n{}\n"


def test_the_network_of_the_openstack_tree_is_by_mac_and_asks_dhcp_and_advertisements() -> None:
    network = data("/openstack/latest/network_data.json")
    (link,) = network["links"]
    assert link["ethernet_mac_address"] == asker().port.mac
    assert link["mtu"] == 1450
    assert [one["type"] for one in network["networks"]] == ["ipv4_dhcp", "ipv6_slaac"]
    assert {one["link"] for one in network["networks"]} == {link["id"]}


def test_the_ec2_tree_lists_and_answers() -> None:
    assert "latest" in text("/").splitlines()
    assert text("/latest").splitlines() == ["meta-data/", "user-data"]
    names = text("/latest/meta-data/").splitlines()
    assert {"instance-id", "local-ipv4", "public-keys/"} <= set(names)
    assert text("/2009-04-04/meta-data/local-ipv4") == "10.0.0.5"
    assert text("/latest/meta-data/public-keys/").splitlines() == ["0=key-0", "1=key-1"]
    assert text("/latest/meta-data/public-keys/1/openssh-key") == KEYS[1]


@pytest.mark.parametrize(
    "path",
    [
        "/latest/meta-data/nothing",
        "/latest/meta-data/instance-id/more",
        "/openstack/1999-01-01/meta_data.json",
        "/openstack/latest/../latest/meta_data.json",
        "/latest/dynamic",
        "/etc/passwd",
    ],
)
def test_what_is_not_in_the_trees_is_not_found(path: str) -> None:
    assert find_document(asker(), path) is None


@given(st.text(max_size=60))
def test_no_path_breaks_it(path: str) -> None:
    find_document(asker(), path)


def walk(path: str) -> list[str]:
    """Every path that the listings lead to."""
    found = []
    for name in text(path).splitlines():
        below = f"{path.rstrip('/')}/{name.partition('=')[0]}"
        if name.endswith("/") or "=" in name:
            found += walk(below)
        else:
            found.append(below)
    return found


def test_every_listed_name_leads_to_a_document() -> None:
    paths = walk("/latest/meta-data/")
    assert len(paths) > 8
    for path in paths:
        text(path)
    for name in text("/openstack/latest").splitlines():
        text(f"/openstack/latest/{name}")


def test_without_user_data_and_keys_their_paths_are_not_there() -> None:
    bare = asker(user_data=b"", keys=())
    assert find_document(bare, "/latest/user-data") is None
    assert find_document(bare, "/openstack/latest/user_data") is None
    assert "user-data" not in text("/latest", bare).splitlines()
    assert "user_data" not in text("/openstack/latest", bare).splitlines()
    assert find_document(bare, "/latest/meta-data/public-keys") is None


def test_who_asks_is_told_by_domain_and_address() -> None:
    first, second = instance(1, networks=(1,)), instance(2, networks=(2,))
    for one in (first, second):
        one.ports[0].addresses[:] = ["10.0.0.5"]  # tenants' ranges overlap
    made = plan(first, second)
    made.networks[1].router_uid = uid(6, 1)
    made.routers.add(uid=uid(6, 1), vni=99)
    askers = index_askers(parse_plan(made))
    assert {domain: sorted(found) for domain, found in askers.items()} == {
        uid(2, 1): ["10.0.0.5"],
        uid(6, 1): ["10.0.0.5"],
    }
    assert askers[uid(2, 1)]["10.0.0.5"].instance.uid == uid(1, 1)
    assert askers[uid(6, 1)]["10.0.0.5"].instance.uid == uid(1, 2)
