"""What a session is told of ports elsewhere, one change after the other, is what there is.

A node that applies every message must know exactly what a listing of the State gives, after any history; and
a change of one port must cost one entry.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.admit import port as admit_port
from controller.admit import securitygroup as admit_group
from controller.reconcile import directory as told
from controller.reconcile.directory import Directory, Told, changed_ports, take_changes, underlay_changed
from controller.reconcile.nodeplan import compile_plan, guest_mtu
from controller.state import Changed
from controller.store import keys
from cumulet.v1 import agent_pb2, meta_pb2, node_pb2, port_pb2, securitygroup_pb2
from tests.unit.controller.cloud import ATTACH, Paper

NODES = ("n1", "n2", "n3")


@dataclass
class Listener:
    """A node that keeps what it is told, and the leader's memory of its session."""

    node: str
    directory: Directory = field(default_factory=Directory)
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    entries: int = 0

    def take(self, message: agent_pb2.DirectoryChange) -> None:
        for kept, pieces, uid, key in (
            (self.networks, message.networks, "network_uid", "uid"),
            (self.groups, message.groups, "group_uid", "port_uid"),
        ):
            for piece in pieces:
                book = kept.setdefault(getattr(piece, uid), {})
                if piece.full:
                    book.clear()
                for gone in piece.gone_port_uids:
                    book.pop(gone, None)
                book.update({getattr(entry, key): entry for entry in piece.put})
                self.entries += len(piece.put) + len(piece.gone_port_uids)


class Cloud:
    """Three nodes, of which n3 has no underlay, over a Paper; every change is told at once."""

    def __init__(self, seed: int = 5) -> None:
        self.paper = Paper(seed).seed()
        self.paper.lead()
        self.told: Told[Listener] = Told()
        self.listeners = {name: Listener(name) for name in NODES}
        self.paper.state.listen(self._note)
        for number, name in enumerate(NODES):
            self.paper.add_node(name)
            self.set_underlay(name, f"192.0.2.{number + 1}" if name != "n3" else "")
        self.tell()

    def set_underlay(self, node: str, address: str) -> None:
        status = node_pb2.NodeStatus(underlay_address=address, underlay_mtu=9000 if address else 0)
        self.paper.put(keys.NODE_STATUS, (node,), status)

    def _note(self, changed: Changed) -> None:
        for port in changed_ports(self.paper.state, changed):
            for listener in self.told.about(port):
                listener.directory.note(port)
        if underlay_changed(changed):
            for listener in self.listeners.values():
                self.told.drop(listener.node, listener.directory)
                listener.directory.forget()

    def tell(self) -> None:
        for listener in self.listeners.values():
            self.told.drop(listener.node, listener.directory)
            plan = compile_plan(self.paper.state, listener.node, "")
            for message in take_changes(self.paper.state, listener.node, plan, listener.directory):
                listener.take(message)
            self.told.add(listener.node, listener.directory, listener)
            planned = {network.uid for network in plan.networks}
            listener.networks = {uid: book for uid, book in listener.networks.items() if uid in planned}

    def check(self) -> None:
        """Each node knows what a fresh session would be told."""
        for listener in self.listeners.values():
            fresh = Listener(listener.node)
            plan = compile_plan(self.paper.state, listener.node, "")
            for message in take_changes(self.paper.state, listener.node, plan, fresh.directory):
                fresh.take(message)
            assert listener.networks == fresh.networks
            referred = {rule.remote_group_uid for group in plan.security_groups for rule in group.rules} - {
                ""
            }
            assert {uid: listener.groups.get(uid, {}) for uid in referred} == fresh.groups


def step(cloud: Cloud, rng: random.Random, number: int) -> None:
    """One random change of the cloud."""
    paper, state = cloud.paper, cloud.paper.state
    names = [parts[1] for parts in sorted(state.rows(keys.INSTANCES))]
    kind = rng.choice(("create", "create", "place", "move", "unplace", "regroup", "rule", "underlay"))
    if kind == "create" or not names:
        paper.add_instance(f"i{number}", networks=[ATTACH(network="lan")])
        return
    name = rng.choice(names)
    placed = [parts for parts in state.rows(keys.PLACEMENTS) if parts[1] == paper.instance(name).meta.uid]
    if kind in ("unplace", "move"):
        paper.write({keys.PLACEMENTS.key(*parts): None for parts in placed})
    if kind in ("place", "move") and (kind == "move" or not placed):
        paper.place(name, rng.choice(NODES))
    if kind == "regroup":
        port = state.ports_of("p1", name)[0].message
        groups = rng.choice(([], ["default"], ["web"], ["default", "web"]))
        changed = port_pb2.Port(meta=port.meta, spec=port_pb2.PortSpec(security_groups=groups))
        mask = FieldMask(paths=["spec.security_groups"])
        paper.do(admit_port.update(state, paper.context, ("p1", port.meta.name), changed, mask))
    if kind == "rule":
        remote = rng.choice(("", "web", "default"))
        rule = securitygroup_pb2.SecurityRule(
            direction=securitygroup_pb2.TRAFFIC_DIRECTION_INGRESS, remote_group=remote
        )
        spec = securitygroup_pb2.SecurityGroupSpec(rules=[rule])
        group = securitygroup_pb2.SecurityGroup(meta=meta_pb2.Meta(name="web"), spec=spec)
        paper.do(admit_group.update(state, paper.context, ("p1", "web"), group, FieldMask(paths=["spec"])))
    if kind == "underlay":
        cloud.set_underlay("n2", rng.choice(("192.0.2.2", "192.0.2.22", "")))


def with_web_group(cloud: Cloud) -> None:
    group = securitygroup_pb2.SecurityGroup(meta=meta_pb2.Meta(name="web"))
    cloud.paper.do(admit_group.create(cloud.paper.state, cloud.paper.context, "p1", group))


def run(cloud: Cloud, rng: random.Random, steps: int) -> None:
    with_web_group(cloud)
    for number in range(steps):
        step(cloud, rng, number)
        if rng.random() < 0.7:  # several changes of one burst are told together
            cloud.tell()
            cloud.check()
    cloud.tell()
    cloud.check()


@given(st.integers(0, 2**32))
@settings(max_examples=25)
def test_what_was_told_step_by_step_is_what_there_is(seed: int) -> None:
    run(Cloud(), random.Random(seed), steps=25)


def test_the_test_sees_a_lost_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug: a port that went is never told of."""

    def deaf(*_: Any) -> Any:
        return iter(())

    monkeypatch.setattr(told, "_network_news", deaf)
    with pytest.raises(AssertionError):
        run(Cloud(), random.Random(1), steps=200)


@pytest.mark.parametrize("ports", [2, 40])
def test_one_more_port_is_one_entry_for_each_node_that_is_concerned(ports: int) -> None:
    cloud = Cloud()
    for number in range(ports):
        cloud.paper.add_instance(f"i{number}", networks=[ATTACH(network="lan")])
        cloud.paper.place(f"i{number}", NODES[number % 2])
    cloud.tell()
    for listener in cloud.listeners.values():
        listener.entries = 0
    cloud.paper.add_instance("new", networks=[ATTACH(network="lan")])
    cloud.paper.place("new", "n1")
    cloud.tell()
    # n2: where the port is, and that it is a member; n1: that it is a member, and not elsewhere.
    assert [cloud.listeners[node].entries for node in NODES] == [2, 2, 0]


def test_the_guests_mtu_is_what_the_smallest_underlay_carries() -> None:
    cloud = Cloud()
    assert guest_mtu(cloud.paper.state) == 8950
    cloud.set_underlay("n2", "2001:db8::2")
    assert guest_mtu(cloud.paper.state) == 8930
    assert guest_mtu(Paper().state) == 1450
