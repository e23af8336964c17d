"""Fleets and batches for the scheduler's tests: small, contended, with every kind of obstacle.

**Pure.** Each node and request is decoded from a few bytes; drawn field by field, an example cost 60 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeVar

from hypothesis import strategies as st

from cumulet.resources import Resources
from scheduler.group import PlacementGroup, Rule, Scope
from scheduler.model import Effect, NodeView, Preference, Request, Resident, Room, Taint, Toleration, View
from scheduler.topology import Cell, Device, DeviceRequest

BYTES: Final = 24  # more than one node or request decodes
T = TypeVar("T")


class Choices:
    """Choices decoded from bytes; zero bytes are the simplest ones, to which Hypothesis shrinks."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def below(self, bound: int) -> int:
        return next(self._data) % bound

    def one_of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def vector(self, bound: int) -> Resources:
        """Small amounts, so that ties, exact fits and zeros are common."""
        gpu = self.below(bound) if self.below(3) == 2 else 0
        fpga = self.below(bound) if self.below(4) == 3 else 0
        extended = (("gpu", gpu), ("fpga", fpga))
        return Resources(self.below(bound), self.below(bound), self.below(bound), extended)

    def labels(self) -> dict[str, str]:
        drawn = {"disk": self.one_of(("", "", "a")), "zone": self.one_of(("", "a", "b"))}
        return {key: value for key, value in drawn.items() if value}


def _node(name: str, choices: Choices) -> NodeView:
    obstacle = choices.one_of(("", "", "", "", "", "", "cordoned", "not ready", "both"))
    ready = obstacle in ("", "cordoned")
    return NodeView(
        name=name,
        schedulable=obstacle in ("", "not ready"),
        ready=ready,
        not_ready_reason="" if ready else "the agent is silent",
        capacity=choices.vector(23),
        allocation_ratio={
            "vcpu": choices.one_of((1.0, 4.0, 1.1)),
            "memory_mib": choices.one_of((1.0, 2.0, 1.0, 0.29)),
        },
        allocated=choices.vector(4),
        reserved=Resources(choices.below(3), choices.below(3)),
        security_level=choices.below(3),
        labels=choices.labels(),
    )


def _request(uid: str, choices: Choices) -> Request:
    return Request(
        uid=uid,
        project="default",
        name=f"vm-{uid}",
        resources=choices.vector(4),
        security_level=choices.one_of((0, 0, 0, 0, 1, 2)),
        node_selector=choices.labels() if choices.below(5) == 4 else {},
        excluded_nodes=frozenset(choices.one_of(((), (), (), ("n0",), ("n1",)))),
    )


def _many(count_max: int) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.binary(min_size=BYTES, max_size=BYTES), max_size=count_max)


def views() -> st.SearchStrategy[View]:
    """A fleet of up to 6 nodes n0, n1, ..."""
    return st.builds(
        View,
        st.integers(1, 9),
        _many(6).map(lambda rows: tuple(_node(f"n{i}", Choices(row)) for i, row in enumerate(rows))),
    )


def batches() -> st.SearchStrategy[tuple[Request, ...]]:
    """Up to 8 requests u0, u1, ..."""
    return _many(8).map(lambda rows: tuple(_request(f"u{i}", Choices(row)) for i, row in enumerate(rows)))


SOFT: Final = (Taint("slow", effect=Effect.PREFER_NO_SCHEDULE),)
GROUP_NAMES: Final = ("default/apart", "default/together", "default/racks")
_DEVICES: Final = (
    DeviceRequest(frozenset({"a"})),
    DeviceRequest(frozenset({"a", "b"}), 2),
    DeviceRequest(frozenset({"b"}), 1, 400),
    DeviceRequest(frozenset()),
)
RICH_BYTES: Final = 64  # more than one rich node or request decodes


def _rich_labels(choices: Choices) -> dict[str, str]:
    rack = choices.one_of(("", "r1", "r2"))
    return {**choices.labels(), **({"rack": rack} if rack else {})}


def _rich_node(name: str, choices: Choices, groups: tuple[str, ...]) -> NodeView:
    plain = _node(name, choices)
    cells = tuple(Cell(choices.below(5), choices.below(5)) for _ in range(choices.one_of((0, 0, 2, 1, 3))))
    devices = tuple(
        Device(f"{slot}", choices.one_of(("a", "b")), choices.below(len(cells) + 1) - 1)
        for slot in range(choices.one_of((0, 0, 1, 2, 4)))
    )
    empty = replace(
        plain,
        labels=_rich_labels(choices),
        taints=choices.one_of(
            ((), (), (), (Taint("old"),), (Taint("gpu", "yes"), Taint("old")), (Taint("gpu", "no"),), SOFT)
        ),
        dedicated_to=frozenset(choices.one_of(((), (), (), ("default",), ("other",)))),
        capabilities=frozenset(choices.one_of((("kvm",), ("kvm", "uplink:lab"), ()))),
        cells=cells,
        devices=devices,
        busy_until_s=choices.one_of((None, 0, 3_000, 50_000)),
    )
    return _with_residents(empty, choices, groups)


def _with_residents(empty: NodeView, choices: Choices, groups: tuple[str, ...]) -> NodeView:
    room = Room(empty)
    residents: list[Resident] = []
    for number in range(choices.one_of((0, 0, 1, 2))):
        wanted = Request(
            uid=f"{empty.name}-{number}",
            project="default",
            name=f"vm-{empty.name}-{number}",
            resources=Resources(choices.below(3), choices.below(3)),
            groups=choices.one_of(((), groups[:1], groups[1:2], groups)),
            numa_cells=choices.one_of((0, 0, 1)),
            devices=choices.one_of(((), (), _DEVICES[:1], _DEVICES[2:3])),
        )
        choice = room.choose(wanted)
        if choice is not None:
            room.enter(wanted, choice)
            residents.append(Resident(wanted, choice))
    held = [resident.request.resources for resident in residents]
    return replace(empty, residents=tuple(residents), allocated=Resources.total([empty.allocated, *held]))


def _rich_request(uid: str, choices: Choices, groups: tuple[str, ...]) -> Request:
    return replace(
        _request(uid, choices),
        tolerations=frozenset(choices.one_of(((), (), (Toleration("old"),), (Toleration("gpu", "yes"),)))),
        capabilities=frozenset(choices.one_of(((), (), ("kvm",), ("uplink:lab", "kvm")))),
        preferences=choices.one_of(((), (), (Preference("zone", "a", 5),))),
        groups=choices.one_of(((), (), groups[:1], groups[1:2], groups[2:], groups[::-1], ("gone",))),
        numa_cells=choices.one_of((0, 0, 0, 1, 2)),
        devices=choices.one_of(((), (), (), _DEVICES[:1], _DEVICES[1:2], _DEVICES[2:3], _DEVICES[:3:2])),
        lifetime_s=choices.one_of((None, 600, 20_000, 10**6, 3_600)),
    )


def _groups(choices: Choices) -> dict[str, PlacementGroup]:
    """A group apart, one together and one by racks; hard or soft, of any scope."""
    apart, together, racks = GROUP_NAMES
    found = (
        PlacementGroup(apart, Rule.ANTI_AFFINITY, hard=choices.one_of((True, True, False))),
        PlacementGroup(
            together,
            Rule.AFFINITY,
            choices.one_of(tuple(Scope)),
            choices.one_of((True, True, False)),
            choices.one_of((0, 0, 2)),
        ),
        PlacementGroup(
            racks, Rule.ANTI_AFFINITY, choices.one_of((Scope.RACK, Scope.ZONE)), True, choices.one_of((0, 2))
        ),
    )
    return {group.name: group for group in found[: choices.one_of((3, 3, 3, 2))]}


def _rich_rows(count_max: int) -> st.SearchStrategy[list[bytes]]:
    return st.lists(st.binary(min_size=RICH_BYTES, max_size=RICH_BYTES), max_size=count_max)


def rich_views(nodes_max: int = 5) -> st.SearchStrategy[View]:
    """A fleet with every kind of constraint: taints, groups, cells, devices, residents that hold them."""
    return st.builds(
        lambda rows, groups: View(
            1,
            tuple(_rich_node(f"n{i}", Choices(row), GROUP_NAMES) for i, row in enumerate(rows)),
            _groups(Choices(groups)),
        ),
        _rich_rows(nodes_max),
        st.binary(min_size=BYTES, max_size=BYTES),
    )


def rich_batches(count_max: int = 6) -> st.SearchStrategy[tuple[Request, ...]]:
    """Up to `count_max` requests u0, u1, ... with every kind of constraint, but gangs."""
    return _rich_rows(count_max).map(
        lambda rows: tuple(_rich_request(f"u{i}", Choices(row), GROUP_NAMES) for i, row in enumerate(rows))
    )


def node(name: str, vcpu: int = 8, memory_mib: int = 8192, **fields: object) -> NodeView:
    """A plain node for examples."""
    return NodeView(name, Resources(vcpu, memory_mib, 100), **fields)  # type: ignore[arg-type]


def request(uid: str, vcpu: int = 1, memory_mib: int = 1024, **fields: object) -> Request:
    """A plain request for examples."""
    return Request(uid, "default", f"vm-{uid}", Resources(vcpu, memory_mib), **fields)  # type: ignore[arg-type]
