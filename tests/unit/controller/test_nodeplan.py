"""A node's plan: pure, the same for the same State, complete.

**Pure.** The golden file is what agents depend on; a change of it is a change of the protocol's use.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from controller.admit import instance as admit
from controller.reconcile.nodeplan import compile_plan
from controller.state import State
from controller.store import keys
from controller.verify import compare_inventory
from cumulet.v1 import agent_pb2, instance_pb2, system_pb2
from tests.unit.controller.cloud import ATTACH, Paper

GOLDEN = Path(__file__).parent / "golden" / "nodeplan.json"


def cloud() -> Paper:
    """Two instances on n1, one that is deleted; one on n2."""
    paper = Paper(seed=7).seed()
    paper.lead(restore_generation=3)
    for name in ("n1", "n2"):
        paper.add_node(name)
    paper.add_instance("web", key_pairs=["me"], user_data=b"#cloud-config\n", stop_timeout_s=5)
    paper.add_instance("db", networks=[ATTACH(network="lan"), ATTACH(network="lan")])
    paper.add_instance("old")
    paper.add_instance("far")
    paper.place("web")
    paper.place("db", epoch=4)
    paper.place("old", epoch=2)
    paper.place("far", "n2", epoch=9)
    paper.do(admit.stop(paper.state, paper.context, ("p1", "db"), True))
    paper.do(admit.delete(paper.state, paper.context, ("p1", "old"), ""))
    return paper


def inventory(items: list[agent_pb2.InventoryItem]) -> agent_pb2.Inventory:
    return agent_pb2.Inventory(items=items)


def rebuilt(paper: Paper) -> State:
    listing = paper.mvcc.list_prefix(keys.PREFIX, 0, b"", 0)
    state = State()
    state.load(listing.revision, reversed(listing.items))
    return state


def test_the_plan_is_as_agents_know_it() -> None:
    plan = compile_plan(cloud().state, "n1", "nonce")
    found = json.dumps(MessageToDict(plan, preserving_proto_field_name=True), indent=1, sort_keys=True) + "\n"
    assert found == GOLDEN.read_text(), f"if this is meant: write it to {GOLDEN}"


def test_the_plan_depends_on_the_state_alone_and_changes_nothing() -> None:
    paper = cloud()
    before = {
        parts: row.message.SerializeToString(deterministic=True)
        for parts, row in paper.state.rows(keys.INSTANCES).items()
    }
    first = compile_plan(paper.state, "n1", "x").SerializeToString(deterministic=True)
    assert compile_plan(paper.state, "n1", "x").SerializeToString(deterministic=True) == first
    assert compile_plan(rebuilt(paper), "n1", "x").SerializeToString(deterministic=True) == first
    assert before == {
        parts: row.message.SerializeToString(deterministic=True)
        for parts, row in paper.state.rows(keys.INSTANCES).items()
    }


def test_a_stray_gets_a_tombstone_only_when_it_is_superseded() -> None:
    paper = cloud()
    moved, unknown = paper.instance("far").meta.uid, "somebody-elses"
    strays = [agent_pb2.ObservedInstance(uid=uid, epoch=8) for uid in (moved, unknown)]
    plan = compile_plan(paper.state, "n1", "", strays)
    tombstones = {tombstone.uid: tombstone.epoch for tombstone in plan.tombstones}
    assert tombstones == {paper.instance("old").meta.uid: 2, moved: 8}


def test_an_unplaced_instance_is_in_no_plan() -> None:
    paper = cloud()
    paper.add_instance("pending")
    uid = paper.instance("pending").meta.uid
    for node in ("n1", "n2"):
        plan = compile_plan(paper.state, node, "")
        assert uid not in {planned.uid for planned in plan.instances}
        assert uid not in {tombstone.uid for tombstone in plan.tombstones}


def test_every_write_makes_a_newer_version() -> None:
    paper = cloud()
    first = compile_plan(paper.state, "n1", "").version
    paper.do(admit.start(paper.state, paper.context, ("p1", "db")))
    second = compile_plan(paper.state, "n1", "").version
    assert (second.restore_generation, second.leader_epoch) == (3, first.leader_epoch)
    assert second.revision == first.revision + 1


def _inventory(paper: Paper, node: str) -> list[agent_pb2.InventoryItem]:
    """Exactly what the plan wants, and what is left of a deleted instance."""
    plan = compile_plan(paper.state, node, "")
    items: list[Any] = []
    for planned in plan.instances:
        started = planned.power == instance_pb2.POWER_STATE_ON
        items += [(kind, planned.uid) for kind in ("disk", "seed", *(["domain"] * started))]
        items += [("tap", port.uid) for port in planned.ports]
    for network in plan.networks:
        items += [(kind, network.uid) for kind in ("bridge", "namespace", "dhcp-server")]
    items += [("disk", tombstone.uid) for tombstone in plan.tombstones]
    return [agent_pb2.InventoryItem(kind=kind, name=f"{kind}-x", owner_uid=uid) for kind, uid in items]


def test_verify_finds_nothing_where_all_is_well() -> None:
    paper = cloud()
    assert compare_inventory(paper.state, "n1", inventory(_inventory(paper, "n1"))) == []
    assert compare_inventory(paper.state, "n2", inventory(_inventory(paper, "n2"))) == []


def test_verify_names_every_missing_and_every_unwanted_thing() -> None:
    paper = cloud()
    complete = _inventory(paper, "n1")
    deleted = {tombstone.uid for tombstone in compile_plan(paper.state, "n1", "").tombstones}
    for item in complete:
        left = [other for other in complete if other is not item]
        found = compare_inventory(paper.state, "n1", inventory(left))
        if item.owner_uid in deleted:
            assert found == []
        else:
            assert [(d.type, d.kind, d.owner_uid) for d in found] == [
                (system_pb2.DIFFERENCE_TYPE_MISSING, item.kind, item.owner_uid)
            ]
    foreign = agent_pb2.InventoryItem(kind="tap", name="cumt-7", owner_uid="nobody")
    moved = agent_pb2.InventoryItem(kind="domain", name="far", owner_uid=paper.instance("far").meta.uid)
    found = compare_inventory(paper.state, "n1", inventory([*complete, foreign, moved]))
    assert [(d.type, d.name) for d in found] == [
        (system_pb2.DIFFERENCE_TYPE_ORPHAN, "cumt-7"),
        (system_pb2.DIFFERENCE_TYPE_ORPHAN, "far"),
    ]


def test_what_an_agent_would_change_is_a_difference() -> None:
    paper = cloud()
    row = paper.state.find(keys.NETWORKS, "p1", "lan")
    assert row is not None
    reply = inventory(_inventory(paper, "n1"))
    reply.differences.add(kind="directory", owner_uid=row.message.meta.uid, message="an entry is missing")
    (found,) = compare_inventory(paper.state, "n1", reply)
    assert (found.type, found.kind, found.name) == (
        system_pb2.DIFFERENCE_TYPE_EDITED,
        "directory",
        "p1/lan",
    )
