"""Explanations on the kept fleet: those of a new one, without a trace. **Pure**: a State over an Mvcc."""

from __future__ import annotations

import random

import pytest

from controller.explain import NODES_SHOWN, explain_placement, foretell_placement
from controller.fleet import build_view
from controller.reconcile.fleetview import FleetView
from controller.store import keys
from cumulet.errors import NoCapacityError
from cumulet.v1 import meta_pb2, store_pb2
from scheduler.policy import PACK
from tests.unit.controller.cloud import Paper
from tests.unit.controller.placing import node, pending


def put(paper: Paper, name: str, where: str, vcpu: int) -> None:
    """An instance, placed there."""
    made = pending(name, vcpu=vcpu)
    resources = meta_pb2.Resources(vcpu=vcpu, memory_mib=512 * vcpu, disk_gib=1)
    record = store_pb2.PlacementRecord(
        instance_uid=made.meta.uid, project="p1", name=name, node=where, epoch=1, resources=resources
    )
    paper.write(
        {
            keys.INSTANCES.key("p1", name): made.SerializeToString(),
            keys.PLACEMENTS.key(where, made.meta.uid): record.SerializeToString(),
        }
    )


@pytest.mark.parametrize("seed", range(10))
def test_the_kept_fleet_explains_like_a_new_one(seed: int) -> None:
    chance, paper = random.Random(seed), Paper()
    kept = FleetView(paper.state, PACK)
    paper.state.listen(kept.note_change)
    for number in range(5):
        paper.write({**node(f"n{number}", vcpu=chance.randrange(2, 9))})
    for number in range(12):
        put(paper, f"vm-{number}", f"n{chance.randrange(5)}", chance.randrange(1, 4))
        if chance.random() < 0.3:
            paper.write({**node(f"n{chance.randrange(5)}", vcpu=chance.randrange(2, 9))})
        asked = pending(f"vm-{chance.randrange(number + 2)}", vcpu=chance.randrange(1, 9))
        told = explain_placement(kept, paper.state, asked)
        assert told == explain_placement(FleetView(paper.state, PACK), paper.state, asked)
        placement = paper.state.placement_of(asked.meta.uid)
        assert told.nodes[0].current == (placement is not None)
        assert kept.fleet().view(paper.state.revision) == build_view(paper.state, PACK)


def test_what_it_holds_itself_does_not_stand_in_its_way() -> None:
    paper = Paper()
    paper.write({**node("n1", vcpu=4), **node("n2", vcpu=2)})
    put(paper, "vm-1", "n1", 4)
    told = explain_placement(FleetView(paper.state, PACK), paper.state, pending("vm-1", vcpu=4))
    assert told.summary.startswith("instance vm-1 is on n1: 1 of 2 node(s) fit")
    assert [(one.node, one.fits, one.current, one.rank) for one in told.nodes] == [
        ("n1", True, True, 1),
        ("n2", False, False, 0),
    ]


def test_of_many_nodes_the_best_are_shown() -> None:
    paper = Paper()
    for number in range(2 * NODES_SHOWN):
        paper.write({**node(f"n{number:02}", vcpu=8 if number % 2 else 3)})
    told = explain_placement(FleetView(paper.state, PACK), paper.state, pending("vm-1", vcpu=8))
    assert len(told.nodes) == NODES_SHOWN
    assert [one.rank for one in told.nodes[:5]] == [1, 2, 3, 4, 0]
    assert all(one.fits for one in told.nodes[:4])
    assert [one.node for one in told.nodes[4:]] == sorted(one.node for one in told.nodes[4:])


def test_a_dry_run_of_what_fits_nowhere_fails_with_the_reasons() -> None:
    paper = Paper()
    paper.write({**node("n1", vcpu=2)})
    kept = FleetView(paper.state, PACK)
    assert "n1" in foretell_placement(kept, paper.state, pending("vm-1", vcpu=2)).steps[0].message
    with pytest.raises(NoCapacityError, match="instance vm-1 fits nowhere"):
        foretell_placement(kept, paper.state, pending("vm-1", vcpu=3))
