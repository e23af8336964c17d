"""The gate looks again and guards everything that a placement rests on.

**Pure**: a State over an Mvcc, which judges the guards as etcd does.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.admit.common import Context
from controller.reconcile.fleetview import FleetView
from controller.reconcile.gate import Bundle, Gate
from controller.reconcile.shapes import Shapes
from controller.store import keys
from controller.store.protocol import OPS_MAX
from controller.tables import Stored
from cumulet.v1 import instance_pb2, store_pb2
from scheduler.answer import Placement
from scheduler.model import Request
from scheduler.policy import PACK
from scheduler.topology import Choice
from tests.unit.controller.cloud import NOW, Paper
from tests.unit.controller.placing import gang, node, pending, rows_of
from tests.unit.controller.test_fleetview import group, record

RESERVE = 3


class Desk:
    """A gate on a State with nodes `n0`, `n1`, ... of 8 vcpu and the given instances."""

    def __init__(self, *instances: instance_pb2.Instance, nodes: int = 2) -> None:
        self.paper = Paper()
        for index in range(nodes):
            self.paper.write(dict(node(f"n{index}")))
        self.paper.write(group("apart"))
        for key, value in rows_of(instances).items():
            self.paper.write({key: value})
        self.view = FleetView(self.paper.state, PACK)
        self.paper.state.listen(self.view.note_change)

    def request(self, name: str) -> Request:
        row = self.paper.state.find(keys.INSTANCES, "p1", name)
        assert row is not None
        return Shapes().request(row.message)

    def pass_units(self, *units: dict[str, str], reserve: int = RESERVE) -> tuple[list[Bundle], list[str]]:
        """Bundles and the names of what failed, for units of node by name."""
        asked = [
            [(self.request(name), Placement(f"uid-{name}", where)) for name, where in unit.items()]
            for unit in units
        ]
        occupancy = self.view.fleet().occupancy.copy()
        gate = Gate(self.paper.state, self.view, Context(NOW, random.Random(1), "scheduler"), occupancy)
        bundles, failed = gate.bundles(asked, reserve)
        return bundles, [request.name for request in failed]

    def holds(self, bundle: Bundle) -> bool:
        return all(map(self.paper.mvcc.holds, bundle.guards({})))


def test_what_is_written_is_the_placement_and_its_event() -> None:
    desk = Desk(pending("web", vcpu=2))
    desk.paper.put(keys.INSTANCE_STATUS, ("uid-web",), instance_pb2.InstanceStatus(epoch=6))
    (bundle,), failed = desk.pass_units({"web": "n1"})
    assert not failed
    (written,) = bundle.writes.items()
    assert written[0] == keys.PLACEMENTS.key("n1", "uid-web")
    made = store_pb2.PlacementRecord.FromString(written[1] or b"")
    assert made == bundle.members[0].row.message
    assert (made.instance_uid, made.project, made.name, made.node, made.epoch) == (
        "uid-web",
        "p1",
        "web",
        "n1",
        7,
    )
    assert made.resources == pending("web", vcpu=2).spec.resources
    assert made.placed_at.seconds == NOW
    (event,) = bundle.events
    assert (event.reason, event.message, event.target.uid) == ("Placed", "placed on node n1", "uid-web")
    assert desk.holds(bundle)


def change_instance(desk: Desk) -> None:
    desk.paper.write(dict(rows_of([pending("web", vcpu=3)])))


def change_node(desk: Desk) -> None:
    desk.paper.write(dict(node("n1", cordoned=True)))


def add_placement(desk: Desk) -> None:
    desk.paper.put(keys.PLACEMENTS, ("n1", "uid-x"), record("uid-x", "n1"))


def change_group(desk: Desk) -> None:
    desk.paper.write(group("apart"))


@pytest.mark.parametrize("change", [change_instance, change_node, add_placement, change_group])
def test_a_transaction_fails_when_what_it_rests_on_has_changed(change: Callable[[Desk], None]) -> None:
    desk = Desk(pending("web", placement_groups=["apart"]))
    (bundle,), _ = desk.pass_units({"web": "n1"})
    assert desk.holds(bundle)
    change(desk)
    assert not desk.holds(bundle)


def test_what_goes_elsewhere_is_none_of_its_business() -> None:
    desk = Desk(pending("web"))
    (bundle,), _ = desk.pass_units({"web": "n1"})
    desk.paper.put(keys.PLACEMENTS, ("n0", "uid-x"), record("uid-x", "n0"))
    desk.paper.write(dict(rows_of([pending("other")])))
    assert desk.holds(bundle)


def test_our_own_last_commit_to_a_node_is_known() -> None:
    desk = Desk(pending("web"))
    (bundle,), _ = desk.pass_units({"web": "n1"})
    add_placement(desk)
    own = {"n1": desk.paper.state.revision}
    assert all(map(desk.paper.mvcc.holds, bundle.guards(own)))


def delete(desk: Desk) -> None:
    gone = pending("web", vcpu=5)
    gone.meta.deleted_at.GetCurrentTime()
    desk.paper.write(dict(rows_of([gone])))


def place_already(desk: Desk) -> None:
    desk.paper.put(keys.PLACEMENTS, ("n0", "uid-web"), record("uid-web", "n0"))


def fill(desk: Desk) -> None:
    desk.paper.put(keys.PLACEMENTS, ("n1", "uid-x"), record("uid-x", "n1", 4))


def fill_soon(desk: Desk) -> None:
    desk.view.assume("uid-x", "n1", Stored(record("uid-x", "n1", 4), -1, -1))


def remove_node(desk: Desk) -> None:
    desk.paper.write({keys.NODES.key("n1"): None})


@pytest.mark.parametrize("change", [delete, place_already, fill, fill_soon, remove_node, change_node])
def test_what_does_not_hold_any_more_is_handed_back(change: Callable[[Desk], None]) -> None:
    desk = Desk(pending("web", vcpu=5))
    assert desk.pass_units({"web": "n1"})[1] == []
    change(desk)
    assert desk.pass_units({"web": "n1"}) == ([], ["web"])


def test_an_instance_that_is_gone_is_handed_back() -> None:
    desk = Desk(pending("web"))
    request = desk.request("web")
    desk.paper.write({keys.INSTANCES.key("p1", "web"): None})
    gate = Gate(
        desk.paper.state, desk.view, Context(NOW, random.Random(1)), desk.view.fleet().occupancy.copy()
    )
    assert gate.bundles([[(request, Placement("uid-web", "n1"))]], RESERVE) == ([], [request])


def test_each_counts_those_before_it() -> None:
    desk = Desk(*(pending(name, vcpu=3) for name in "abc"))
    bundles, failed = desk.pass_units({"a": "n1"}, {"b": "n1"}, {"c": "n1"})
    assert ([one.request.name for one in bundles[0].members], failed) == (["a", "b"], ["c"])


def test_hard_groups_are_looked_at_again() -> None:
    desk = Desk(*(pending(name, placement_groups=["apart"]) for name in "ab"))
    bundles, failed = desk.pass_units({"a": "n1"}, {"b": "n1"})
    assert ([one.request.name for one in bundles[0].members], failed) == (["a"], ["b"])


def test_a_gang_fails_whole() -> None:
    desk = Desk(*(pending(name, vcpu=5, gang=gang("g", 2)) for name in "ab"), pending("c"))
    bundles, failed = desk.pass_units({"a": "n1", "b": "n1"}, {"c": "n0"})
    assert failed == ["a", "b"]
    assert [one.request.name for bundle in bundles for one in bundle.members] == ["c"]


def test_cells_and_devices_are_written_down() -> None:
    desk = Desk(pending("web", vcpu=2, numa_cells=1))
    status = desk.paper.state.find(keys.NODE_STATUS, "n1")
    assert status is not None
    with_cells = type(status.message).FromString(status.message.SerializeToString())
    for _ in range(2):
        with_cells.numa_cells.add(vcpu=4, memory_mib=2_048)
    desk.paper.put(keys.NODE_STATUS, ("n1",), with_cells)
    units = [[(desk.request("web"), Placement("uid-web", "n1", Choice((1,))))]]
    gate = Gate(
        desk.paper.state, desk.view, Context(NOW, random.Random(1)), desk.view.fleet().occupancy.copy()
    )
    (bundle,), _ = gate.bundles(units, RESERVE)
    made = store_pb2.PlacementRecord.FromString(bundle.writes[keys.PLACEMENTS.key("n1", "uid-web")] or b"")
    assert len(made.numa_cells) == 1


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 79), min_size=1, max_size=300),
    st.integers(1, 8),
    st.integers(1, 40),
    st.booleans(),
)
def test_no_transaction_is_larger_than_etcd_takes(
    where: list[int], reserve: int, gang_size: int, grouped: bool
) -> None:
    groups = ["apart"] if grouped else []
    count = len(where)
    desk = Desk(*(pending(f"i{n}", vcpu=0, placement_groups=groups) for n in range(count)), nodes=80)
    units = [
        {f"i{n}": f"n{where[n]}" for n in range(start, min(start + gang_size, count))}
        for start in range(0, count, gang_size)
    ]
    bundles, failed = desk.pass_units(*units, reserve=reserve)
    for bundle in bundles:
        guards = list(bundle.guards({}))
        assert len(set(guards)) == len(guards)
        assert len(guards) + reserve <= OPS_MAX
        assert len(bundle.writes) + 2 <= OPS_MAX
        assert desk.holds(bundle)
    names = [one.request.name for bundle in bundles for one in bundle.members]
    assert sorted([*names, *failed]) == sorted(f"i{n}" for n in range(count))
    assert grouped or not failed
    homes = {
        name: number
        for number, bundle in enumerate(bundles)
        for name in (m.request.name for m in bundle.members)
    }
    assert all(len({homes[name] for name in unit if name in homes}) <= 1 for unit in units), (
        "a unit was split"
    )
