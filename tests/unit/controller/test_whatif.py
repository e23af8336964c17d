"""What-ifs on a cloud on paper: the world is the State's, the answer is bounded, its time is too."""

from __future__ import annotations

from typing import Any

import pytest

from controller.api.whatif import ANSWER_MAX_S, Pulse
from controller.store import keys
from controller.whatif import ENTRIES_MAX, NAMES_MAX, build_response, parse_steps
from controller.world import Asker, Built, build_world, copy_tables
from cumulet.errors import InvalidArgumentError, TooLargeError, UnavailableError
from cumulet.names import new_uid
from cumulet.resources import Resources
from cumulet.v1 import (
    flavor_pb2,
    image_pb2,
    instance_pb2,
    meta_pb2,
    node_pb2,
    placement_pb2,
    placementgroup_pb2,
    store_pb2,
    whatif_pb2,
)
from scheduler.policy import PACK
from scheduler.steps import AddInstances, AddNodesLike, CheckFailures, DrainNode, PlaceAnew, Step, parse_step
from scheduler.whatif import what_if
from tests.unit.controller.cloud import Paper, SetClock

RACK = placementgroup_pb2.PLACEMENT_SCOPE_RACK
ZONE = placementgroup_pb2.PLACEMENT_SCOPE_ZONE


@pytest.fixture
def paper() -> Paper:
    return Paper().seed()


def build(paper: Paper, image: image_pb2.Image | None = None) -> Built:
    project = paper.state.find(keys.PROJECTS, "p1")
    assert project is not None
    return build_world(copy_tables(paper.state), Asker(project.message, image), PACK)


def names(requests: Any) -> list[str]:
    return [request.name for request in requests]


def test_everybody_is_on_his_node_and_the_oldest_waits_first(paper: Paper) -> None:
    paper.add_node("n1")
    paper.add_node("n2")
    for name in ("c", "a", "b", "d"):
        paper.add_instance(name)
    paper.place("b", "n2")
    built = build(paper)
    assert not built.notes
    assert names(built.world.waiting) == ["c", "a", "d"]
    assert {node.name: names(one.request for one in node.residents) for node in built.world.view.nodes} == {
        "n1": [],
        "n2": ["b"],
    }
    assert built.world.view.revision == paper.state.revision
    assert not built.world.leaving


def test_the_amounts_are_the_placements_and_who_goes_is_leaving(paper: Paper) -> None:
    paper.add_node("n1")
    for name in ("grown", "deleted"):
        paper.add_instance(name)
        paper.place(name)
    deleted = paper.instance("deleted")
    deleted.meta.deleted_at.FromSeconds(1_800_000_000)
    paper.put(keys.INSTANCES, ("p1", "deleted"), deleted)
    amounts = meta_pb2.Resources(vcpu=3, memory_mib=100, disk_gib=1)
    for uid, name in ((paper.instance("grown").meta.uid, "grown"), ("ghost", "ghost")):
        record = store_pb2.PlacementRecord(instance_uid=uid, project="p1", name=name, node="n1")
        record.resources.CopyFrom(amounts)
        paper.put(keys.PLACEMENTS, ("n1", uid), record)
    world = build(paper).world
    (node,) = world.view.nodes
    there = {one.request.name: one.request.resources for one in node.residents}
    assert there["grown"] == there["ghost"] == Resources(3, 100, 1)
    assert world.leaving == {"ghost", deleted.meta.uid}
    assert node.allocated == Resources.total(there.values()) == paper.state.allocated_on("n1")
    drained = what_if(world, [DrainNode("n1")])
    assert names(drained.end.waiting) == ["grown"]


def test_one_who_joins_a_gang_that_is_placed_does_not_wait_for_it(paper: Paper) -> None:
    paper.add_node("n1")
    ring = placement_pb2.Gang(name="ring", size=2)
    paper.add_instance("a", gang=ring)
    assert build(paper).world.waiting[0].gang is not None
    paper.place("a")
    paper.add_instance("b", gang=ring)
    world = build(paper).world
    assert [request.gang for request in world.waiting] == [None]
    assert what_if(world, [PlaceAnew()]).fits  # neither does who has been placed with it


def test_what_cannot_be_read_is_left_out_and_named(paper: Paper) -> None:
    """As an older or a broken writer could have left it; the others are answered for."""
    paper.add_node("n1")
    paper.put(
        keys.NODES,
        ("n2",),
        node_pb2.Node(meta=meta_pb2.Meta(name="n2"), spec=node_pb2.NodeSpec(allocation_ratio={"vcpu": -1})),
    )
    paper.put(
        keys.FLAVORS,
        ("odd",),
        flavor_pb2.Flavor(meta=meta_pb2.Meta(name="odd"), spec=flavor_pb2.FlavorSpec(numa_cells=-1)),
    )
    for number in range(7):
        meta = meta_pb2.Meta(name=f"i{number}", project="p1", uid=new_uid(paper.context.rng))
        bad = instance_pb2.Instance(meta=meta, spec=instance_pb2.InstanceSpec(numa_cells=-1))
        paper.put(keys.INSTANCES, ("p1", meta.name), bad)
    placed = paper.add_instance("runs")
    paper.place("runs")
    placed.spec.numa_cells = -1
    paper.put(keys.INSTANCES, ("p1", "runs"), placed)
    built = build(paper)
    assert [node.name for node in built.world.view.nodes] == ["n1"]
    assert names(one.request for one in built.world.residents()) == ["runs"]
    assert set(built.world.flavors) == {"small"}
    assert built.notes == (
        "left out, since it cannot be read: node n2",
        "left out, since it cannot be read: instance p1/i0, p1/i1, p1/i2, p1/i3, p1/i4 and 2 more",
        "left out, since it cannot be read: flavor odd",
    )
    assert build_response(what_if(built.world, []), built.notes).notes == list(built.notes)


def test_new_instances_ask_for_what_flavor_image_and_project_say(paper: Paper) -> None:
    flavor = flavor_pb2.FlavorSpec(resources=meta_pb2.Resources(vcpu=2, memory_mib=512, disk_gib=5))
    flavor.capabilities.append("kvm")
    flavor.node_selector["disk"] = "ssd"
    paper.put(keys.FLAVORS, ("fast",), flavor_pb2.Flavor(meta=meta_pb2.Meta(name="fast"), spec=flavor))
    image = image_pb2.Image(spec=image_pb2.ImageSpec(architecture="aarch64", capabilities=["uefi"]))
    project = paper.state.find(keys.PROJECTS, "p1")
    assert project is not None
    project.message.spec.security_level = 3
    paper.put(keys.PROJECTS, ("p1",), project.message)
    request = build(paper, image).world.flavors["fast"]
    assert request.capabilities == {"kvm", "uefi", "arch:aarch64"}
    assert (request.project, request.security_level, dict(request.node_selector)) == (
        "p1",
        3,
        {"disk": "ssd"},
    )
    assert build(paper).world.flavors["fast"].capabilities == {"kvm"}


def test_a_node_that_joins_offers_what_all_offer(paper: Paper) -> None:
    for name, extra in (("n1", "cpu:x86-64-v3"), ("n2", "cpu:x86-64-v2")):
        paper.add_node(name)
        row = paper.state.find(keys.NODE_STATUS, name)
        assert row is not None
        row.message.capabilities.extend(["kvm", extra])
        paper.put(keys.NODE_STATUS, (name,), row.message)
    fresh = build(paper).world.fresh
    assert fresh.capabilities == {"kvm"}
    assert dict(fresh.allocation_ratio) == {"vcpu": 4.0}


def test_a_reply_is_bounded_and_its_counts_are_of_all(paper: Paper) -> None:
    for number in range(8):
        paper.add_node(f"n{number}", vcpu=2_000, memory_mib=2**21, disk_gib=2**20)
    world = build(paper).world
    most = AddInstances(ENTRIES_MAX - 5, "small")
    report = what_if(world, [most, most, AddInstances(20_000, "small"), DrainNode("n0"), CheckFailures(1)])
    reply = build_response(report, ())
    assert [len(one.placed) for one in reply.outcomes] == [ENTRIES_MAX - 5, 5, 0, 0, 0]
    assert reply.outcomes[2].placed_count < 20_000
    (waiting,) = reply.outcomes[2].waiting
    assert waiting.count == reply.outcomes[2].waiting_count == 20_000 - reply.outcomes[2].placed_count
    assert len(waiting.instances) == NAMES_MAX
    assert list(reply.notes) == [f"the lists end after {ENTRIES_MAX} entries; the counts are of all"]
    assert reply.ByteSize() < 2**21


def test_a_node_of_the_scenario_gets_no_command(paper: Paper) -> None:
    paper.add_node("n1", vcpu=1)
    paper.put(
        keys.FLAVORS,
        ("zoned",),
        flavor_pb2.Flavor(
            meta=meta_pb2.Meta(name="zoned"),
            spec=flavor_pb2.FlavorSpec(
                resources=meta_pb2.Resources(vcpu=1, memory_mib=1), node_selector={"zone": "z"}
            ),
        ),
    )
    fill = AddInstances(4, "small")
    world = build(paper).world
    (real,) = build_response(what_if(world, [AddInstances(1, "zoned")]), ()).outcomes[0].waiting
    assert "cumulet node update n1 --label zone=z" in [change.command for change in real.changes]
    steps: list[Step] = [fill, AddNodesLike(1, "n1"), AddInstances(1, "zoned")]
    (made_up,) = build_response(what_if(world, steps), ()).outcomes[2].waiting
    told = [(change.description, change.command) for change in made_up.changes]
    assert ("label node new-1-00000 with zone=z", "") in told


def test_steps_that_the_api_takes_are_those_of_the_planner() -> None:
    """Every text of the scheduler's own command has a message, and says the same."""
    step = whatif_pb2.WhatIfStep
    messages = {
        "add=50xsmall": step(add_instances=step.AddInstances(count=50, flavor="small")),
        "lose-node=n1,n2": step(lose_nodes=step.LoseNodes(nodes=["n1", "n2", "n1"])),
        "lose-rack=r1": step(lose_domain=step.LoseDomain(scope=RACK, name="r1")),
        "lose-zone=a": step(lose_domain=step.LoseDomain(scope=ZONE, name="a")),
        "drain=n1": step(drain_node=step.DrainNode(node="n1")),
        "add-like=3xn1@rack=r9": step(add_nodes=step.AddNodes(count=3, like="n1", labels={"rack": "r9"})),
        "add-nodes=3x64x1024x20+gpu=2@rack=r9": step(
            add_nodes=step.AddNodes(
                count=3,
                capacity=meta_pb2.Resources(vcpu=64, memory_mib=1024, disk_gib=20, extended={"gpu": 2}),
                labels={"rack": "r9"},
            )
        ),
        "policy=spread": step(change_policy=step.ChangePolicy(policy="spread")),
        "place-anew": step(place_anew=step.PlaceAnew()),
        "n-plus=2": step(check_failures=step.CheckFailures(count=2)),
        "n-plus=1/zone": step(check_failures=step.CheckFailures(count=1, scope=ZONE)),
    }
    assert [str(one) for one in parse_steps(list(messages.values()))] == list(messages)
    assert {message.WhichOneof("step") for message in messages.values()} == set(
        step.DESCRIPTOR.fields_by_name
    )
    assert all(str(parse_step(text)) == text for text in messages)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    step = whatif_pb2.WhatIfStep
    wrong = step(add_instances=step.AddInstances())
    with pytest.raises(InvalidArgumentError) as caught:
        parse_steps([wrong, step(), wrong])
    assert [violation.field for violation in caught.value.violations] == [
        "steps[0].add_instances.count",
        "steps[0].add_instances.flavor",
        "steps[1]",
        "steps[2].add_instances.count",
        "steps[2].add_instances.flavor",
    ]


def test_the_pulse_stops_when_nobody_waits_and_when_time_is_over() -> None:
    clock = SetClock()
    pulse = Pulse(clock.monotonic)
    clock.up += ANSWER_MAX_S
    pulse()
    clock.up += 0.1
    with pytest.raises(TooLargeError, match="takes more than 30 s"):
        pulse()
    other = Pulse(clock.monotonic)
    other.stop()
    with pytest.raises(UnavailableError):
        other()
