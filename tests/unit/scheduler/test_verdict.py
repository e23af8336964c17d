"""All nodes at once say what node by node says: columns against the filters. **Pure.**"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.columns import Columns
from scheduler.filters import reasons_against
from scheduler.group import Occupancy
from scheduler.model import Request, Room, View
from scheduler.refusal import build_rejection, reject
from scheduler.topology import Cell, Device, DeviceRequest
from scheduler.verdict import judge
from tests.unit.scheduler.fleets import batches, node, request, rich_batches, rich_views, views


def agree(columns: Columns, view: View, wanted: Request) -> None:
    """The verdict counts what the filters list, and both rejections are one."""
    occupancy = Occupancy.of(view)
    verdict = judge(columns, wanted)
    against = [reasons_against(Room(one), wanted, occupancy) for one in view.nodes]
    assert verdict.total.tolist() == list(map(len, against))
    if all(against):
        assert reject(verdict) == build_rejection(map(Room, view.nodes), occupancy, wanted)


@settings(max_examples=250)
@given(rich_views(), rich_batches(3))
def test_columns_and_filters_agree(view: View, batch: tuple[Request, ...]) -> None:
    columns = Columns(view)
    for wanted in batch:
        agree(columns, view, wanted)


@settings(max_examples=60)
@given(views(), batches())
def test_columns_and_filters_agree_on_plain_fleets(view: View, batch: tuple[Request, ...]) -> None:
    columns = Columns(view)
    for wanted in batch:
        agree(columns, view, wanted)


@settings(max_examples=100)
@given(rich_views(), rich_views(), rich_batches(2), st.sets(st.integers(0, 4), max_size=2))
def test_columns_that_follow_equal_columns_made_anew(
    view: View, other: View, batch: tuple[Request, ...], changed: set[int]
) -> None:
    columns = Columns(view)
    for wanted in batch:
        judge(columns, wanted)  # makes the columns that are made when first asked for
    columns.residents()
    pairs = enumerate(zip(view.nodes, other.nodes, strict=False))
    mixed = [new if i in changed else old for i, (old, new) in pairs] + list(view.nodes[len(other.nodes) :])
    after = View(2, tuple(mixed), view.groups)
    columns.follow(after)
    fresh = Columns(after)
    for wanted in batch:
        agree(columns, after, wanted)
    assert columns.residents().node.tolist() == fresh.residents().node.tolist()
    rows = [columns.names.index(name) for name in fresh.names]
    assert columns.residents().amounts[rows].tolist() == fresh.residents().amounts.tolist()


@pytest.mark.parametrize("wants", [1, 9])
def test_many_kinds_of_devices_are_matched_one_by_one(wants: int) -> None:
    """Nine distinct wants have 511 sets: beyond counting."""
    models = [f"m{i}" for i in range(wants)]
    devices = tuple(Device(f"{i}", model, i % 2) for i, model in enumerate(models))
    whole = node("whole", cells=(Cell(8, 8192), Cell(8, 8192)), devices=devices)
    less = node("less", cells=(Cell(8, 8192), Cell(8, 8192)), devices=devices[1:])
    view = View(1, (whole, less))
    asked = tuple(DeviceRequest(frozenset({model})) for model in models)
    for cells in (0, 2):
        wanted = request("u", vcpu=2, devices=asked, numa_cells=cells)
        assert judge(Columns(view), wanted).total.tolist() == [1, 0]
        agree(Columns(view), view, wanted)
