"""What nodes offer: each bad field by its name, and what passes is a node that the scheduler can have.

**Pure.**
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.admit.common import Violations
from controller.admit.offers import (
    CAPABILITIES_MAX,
    COST_MILLI_MAX,
    DEDICATED_MAX,
    TAINTS_MAX,
    WATTS_MAX,
    WORD_MAX,
    check_hello,
    check_offers,
)
from controller.fleet import build_node
from controller.state import State
from controller.store import keys
from cumulet.errors import InvalidArgumentError
from cumulet.resources import VCPU_MAX, ZERO
from cumulet.v1 import agent_pb2, meta_pb2, node_pb2, placement_pb2
from scheduler.topology import NODE_CELLS_MAX, NODE_DEVICES_MAX
from tests.unit.controller.cloud import Paper, fields_of

Taint, Cell, Device = placement_pb2.Taint, placement_pb2.NumaCell, placement_pb2.Device


@pytest.fixture(scope="module")
def paper() -> Paper:
    return Paper().seed()


def wrong_in_spec(paper: Paper, **fields: Any) -> set[str]:
    violations = Violations()
    check_offers(paper.state, node_pb2.NodeSpec(**fields), violations)
    return fields_of(violations.found)


OFFERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "nothing": ({}, set()),
    "everything": (
        {
            "taints": [Taint(key="gpu"), Taint(key="gpu", value="a")],
            "dedicated_projects": ["p1"],
            "idle_watts": 100,
            "full_watts": 400,
            "cost_milli": 5,
        },
        set(),
    ),
    "a taint's key": ({"taints": [Taint(key="no key!")]}, {"spec.taints[0]"}),
    "a taint's effect": ({"taints": [Taint(key="a", effect=77)]}, {"spec.taints[0].effect"}),  # type: ignore[arg-type]
    "a taint twice": ({"taints": [Taint(key="a"), Taint(key="a"), Taint(key="a")]}, {"spec.taints[1]"}),
    "too many taints": ({"taints": [Taint(key=f"k{n}") for n in range(TAINTS_MAX + 1)]}, {"spec.taints"}),
    "a project that is not there": ({"dedicated_projects": ["p1", "px"]}, {"spec.dedicated_projects[1]"}),
    "a project twice": ({"dedicated_projects": ["p1", "p1"]}, {"spec.dedicated_projects[1]"}),
    "negative power": ({"idle_watts": -1}, {"spec.idle_watts"}),
    "absurd power": ({"full_watts": WATTS_MAX + 1}, {"spec.full_watts"}),
    "less power at full load": ({"idle_watts": 5, "full_watts": 4}, {"spec.full_watts"}),
    "power at no load only": ({"idle_watts": 5}, set()),
    "an absurd price": ({"cost_milli": COST_MILLI_MAX + 1}, {"spec.cost_milli"}),
}


@pytest.mark.parametrize("name", OFFERS)
def test_each_bad_offer_is_named_by_its_field(paper: Paper, name: str) -> None:
    fields, expected = OFFERS[name]
    assert wrong_in_spec(paper, **fields) == expected


def test_too_many_projects_are_told_beside_those_that_do_not_exist(paper: Paper) -> None:
    projects = [f"x{n}" for n in range(DEDICATED_MAX + 1)]
    assert "spec.dedicated_projects" in wrong_in_spec(paper, dedicated_projects=projects)


def wrong_in_hello(**fields: Any) -> set[str]:
    capacity = fields.pop("capacity", meta_pb2.Resources(vcpu=4, memory_mib=4_096, disk_gib=10))
    try:
        check_hello(State(), agent_pb2.AgentHello(node="n1", capacity=capacity, **fields))
    except InvalidArgumentError as error:
        return fields_of(error.violations)
    return set()


HELLOS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a plain machine": ({}, set()),
    "a machine with all": (
        {
            "capabilities": ["kvm"],
            "numa_cells": [Cell(vcpu=2, memory_mib=2_048)] * 2,
            "devices": [Device(address="0000:01:00.0", model="gpu-a100", cell=1)],
        },
        set(),
    ),
    "too many capabilities": ({"capabilities": ["w"] * (CAPABILITIES_MAX + 1)}, {"capabilities"}),
    "a capability without a word": ({"capabilities": ["kvm", ""]}, {"capabilities[1]"}),
    "a capability that cannot be shown": ({"capabilities": ["\x1b[2J"]}, {"capabilities[0]"}),
    "a capability too long": ({"capabilities": ["w" * (WORD_MAX + 1)]}, {"capabilities[0]"}),
    "too many cells": ({"numa_cells": [Cell()] * (NODE_CELLS_MAX + 1)}, {"numa_cells"}),
    "an absurd cell": ({"numa_cells": [Cell(), Cell(vcpu=VCPU_MAX + 1)]}, {"numa_cells[1]"}),
    "a negative cell": ({"numa_cells": [Cell(memory_mib=-1)]}, {"numa_cells[0]"}),
    "too many devices": (
        {"devices": [Device(address=f"a{n}", model="gpu") for n in range(NODE_DEVICES_MAX + 1)]},
        {"devices"},
    ),
    "an address twice": ({"devices": [Device(address="a", model="gpu")] * 2}, {"devices[1].address"}),
    "no address": ({"devices": [Device(model="gpu")]}, {"devices[0].address"}),
    "a model that is none": ({"devices": [Device(address="a", model="!")]}, {"devices[0].model"}),
    "a device on a cell that is not there": (
        {"devices": [Device(address="a", model="gpu", cell=1)], "numa_cells": [Cell()]},
        {"devices[0].cell"},
    ),
    "a product too long": (
        {"devices": [Device(address="a", model="gpu", product="p" * (WORD_MAX + 1))]},
        {"devices[0].product"},
    ),
}


@pytest.mark.parametrize("name", HELLOS)
def test_a_report_is_checked_like_any_other_input(name: str) -> None:
    fields, expected = HELLOS[name]
    assert wrong_in_hello(**fields) == expected


@given(
    st.lists(
        st.builds(Cell, vcpu=st.integers(-1, 2**31 - 1), memory_mib=st.integers(-1, 2**40)), max_size=18
    ),
    st.lists(
        st.builds(
            Device,
            address=st.sampled_from(["a", "b", ""]),
            model=st.sampled_from(["gpu", "!"]),
            cell=st.integers(-1, 3),
        ),
        max_size=3,
    ),
)
def test_what_passes_is_a_node_that_the_scheduler_can_have(
    cells: list[placement_pb2.NumaCell], devices: list[placement_pb2.Device]
) -> None:
    if wrong_in_hello(numa_cells=cells, devices=devices):
        return
    status = node_pb2.NodeStatus(numa_cells=cells, devices=devices)
    view = build_node(node_pb2.Node(meta=meta_pb2.Meta(name="n1")), status, ZERO, ())
    assert len(view.cells) == len(cells)
    assert len(view.devices) == len(devices)


def test_a_refusal_names_the_node() -> None:
    with pytest.raises(InvalidArgumentError, match="'n1'"):
        check_hello(State(), agent_pb2.AgentHello(node="n1", capabilities=[""]))


@pytest.mark.parametrize(
    ("node", "address", "fits"),
    [
        ("n2", "192.0.2.2", True),
        ("n2", "192.2.2.1", False),  # the low 17 bits are those of 192.0.2.1
        ("n2", "192.1.2.1", True),
        ("n2", "192.0.2.1", False),
        ("n1", "192.0.2.1", True),  # the node itself, again
    ],
)
def test_no_two_nodes_have_one_part_address(node: str, address: str, fits: bool) -> None:
    paper = Paper()
    paper.put(keys.NODE_STATUS, ("n1",), node_pb2.NodeStatus(underlay_address="192.0.2.1"))
    hello = agent_pb2.AgentHello(node=node, underlay_address=address, capacity=meta_pb2.Resources(vcpu=1))
    if fits:
        check_hello(paper.state, hello)
        return
    with pytest.raises(InvalidArgumentError) as caught:
        check_hello(paper.state, hello)
    assert [one.field for one in caught.value.violations] == ["underlay_address"]
    assert "node n1" in caught.value.violations[0].description
