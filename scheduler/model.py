"""What the planner reads: the view of a fleet, and requests. What it writes is in `answer.py`.

**Pure**: immutable values that check themselves; nothing here decides.

A view is the fleet at one store revision. What it counts as allocated is the sum over placements
at that revision, so there is no second book that could disagree.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, TypeVar

from cumulet.resources import ZERO, Resources
from scheduler.group import PlacementGroup
from scheduler.topology import (
    CELLS_MAX,
    DEVICES_MAX,
    NODE_CELLS_MAX,
    NODE_DEVICES_MAX,
    NOTHING,
    SHARE_WHOLE,
    Cell,
    Choice,
    Device,
    DeviceRequest,
    choose,
    part,
)

ALLOCATION_RATIO_MAX: Final = 64.0  # beyond it every guest starves; Nova's default for vcpu is 4
PREFERENCES_MAX: Final = 8  # of a request; who wants more has not decided what matters
PREFERENCE_WEIGHT_MAX: Final = 100
GROUPS_MAX: Final = 8  # of a request
UPLINK: Final = "uplink:"  # how the capability of a link to an operator's network begins
GANG_SIZE_MAX: Final = 40  # a gang is committed in one etcd transaction of at most 128 writes
T = TypeVar("T")
Slot = tuple[Callable[[Any], Any], Callable[[Any, Any], None]]  # how a field is read and written
_EMPTY: Final[Mapping[str, str]] = MappingProxyType({})  # shared: a million requests have no selector


class ModelError(ValueError):
    """A view or a batch that contradicts itself. The message names the object and the field."""


class AllocationRatioError(ModelError):
    """A ratio that is not a number above 0 and up to `ALLOCATION_RATIO_MAX`."""


class TopologyMismatchError(ModelError):
    """A node's cells, devices and residents contradict each other."""


class RequestError(ModelError):
    """A request that no node could ever take, or that is not well-formed."""


class DuplicateNodeError(ModelError):
    """Two nodes of a view have one name."""


class DuplicateRequestError(ModelError):
    """Two requests of a batch have one uid."""


@lru_cache(maxsize=1024)  # a fleet has a handful of ratios
def _exact(ratio: float) -> Fraction:
    """The decimal number that the operator wrote: the float 0.29 is slightly less than 29/100."""
    return Fraction(repr(ratio))


def derive_allocatable(capacity: Resources, reserved: Resources, ratios: Mapping[str, float]) -> Resources:
    """floor((capacity - reserved) · ratio) per resource; what is reserved beyond capacity counts as 0.

    Raises QuantityOverflowError if a product leaves 64 bits.
    """
    amounts: dict[str, int] = {}
    for name, amount in capacity.as_dict().items():
        left = max(amount - reserved.get(name), 0)
        ratio = ratios.get(name, 1.0)
        amounts[name] = left if ratio == 1.0 else math.floor(left * _exact(ratio))
    return Resources.of(amounts)


class Effect(StrEnum):
    """What a taint does to a request that does not tolerate it."""

    NO_SCHEDULE = "no-schedule"
    PREFER_NO_SCHEDULE = "prefer-no-schedule"


@dataclass(frozen=True, slots=True)
class Taint:
    """A mark that keeps requests off a node, unless they tolerate it."""

    key: str
    value: str = ""
    effect: Effect = Effect.NO_SCHEDULE

    def __str__(self) -> str:
        return f"{self.key}={self.value}" if self.value else self.key


@dataclass(frozen=True, slots=True)
class Toleration:
    """Tolerates taints with the key, of any value if `value` is None."""

    key: str
    value: str | None = None

    def covers(self, taint: Taint) -> bool:
        return self.key == taint.key and self.value in (None, taint.value)


@dataclass(frozen=True, slots=True)
class Preference:
    """A label that the request would like its node to have; weights of unmet ones add up."""

    key: str
    value: str
    weight: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.weight <= PREFERENCE_WEIGHT_MAX:
            raise RequestError(
                f"preference {self.key}={self.value}: weight is {self.weight},"
                f" must be 1 to {PREFERENCE_WEIGHT_MAX}"
            )


@dataclass(frozen=True, slots=True)
class Gang:
    """Requests that are placed all or none; `size` is how many there are of that name."""

    name: str
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= GANG_SIZE_MAX:
            raise RequestError(f"gang {self.name}: size is {self.size}, must be 1 to {GANG_SIZE_MAX}")


@dataclass(frozen=True, slots=True)
class Request:
    """One instance to place. Every pair of `node_selector` must be a label of the node.

    `groups`: names of placement groups. `capabilities`: what node and host must offer (`kvm`,
    `cpu:x86-64-v3`). `numa_cells`: 0 floats over the node. `lifetime_s`: the tenant's guess, used for
    packing only. Raises RequestError.
    """

    uid: str
    project: str
    name: str
    resources: Resources
    security_level: int = 0
    node_selector: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    excluded_nodes: frozenset[str] = frozenset()
    tolerations: frozenset[Toleration] = frozenset()
    capabilities: frozenset[str] = frozenset()
    preferences: tuple[Preference, ...] = ()
    groups: tuple[str, ...] = ()
    numa_cells: int = 0
    devices: tuple[DeviceRequest, ...] = ()
    gang: Gang | None = None
    lifetime_s: int | None = None

    def __post_init__(self) -> None:
        if self.node_selector is not _EMPTY:
            object.__setattr__(self, "node_selector", MappingProxyType(dict(self.node_selector)))
        if not 0 <= self.numa_cells <= CELLS_MAX:
            raise RequestError(
                f"instance {self.name}: numa_cells is {self.numa_cells}, must be 0 to {CELLS_MAX}"
            )
        if len(self.preferences) > PREFERENCES_MAX or len(self.groups) > GROUPS_MAX:
            raise RequestError(
                f"instance {self.name}: at most {PREFERENCES_MAX} preferences and {GROUPS_MAX} groups"
            )
        if len(set(self.groups)) < len(self.groups):
            raise RequestError(f"instance {self.name}: groups name one group twice")
        if sum(want.count for want in self.devices) > DEVICES_MAX:
            raise RequestError(f"instance {self.name}: at most {DEVICES_MAX} devices")
        if self.lifetime_s is not None and self.lifetime_s < 0:
            raise RequestError(f"instance {self.name}: lifetime_s is {self.lifetime_s}, must not be negative")

    def named(self, uid: str, name: str) -> Request:
        """The same for another instance. What was checked once is not checked again."""
        made = _copied(self, _REQUEST_SLOTS)
        object.__setattr__(made, "uid", uid)
        object.__setattr__(made, "name", name)
        return made

    def constraints(self) -> Hashable:
        """What filters look at but resources, groups and topology: equal constraints, equal eligibility."""
        return (
            self.project,
            self.security_level,
            frozenset(self.node_selector.items()),
            self.excluded_nodes,
            self.tolerations,
            self.capabilities,
        )


@dataclass(frozen=True, slots=True)
class Resident:
    """An instance on a node: its request, and what it holds there by name."""

    request: Request
    choice: Choice = NOTHING


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node. `allocatable` follows from capacity, reserved and ratios (a missing ratio is 1).

    `schedulable` is false on a cordoned node; `cordon_reason` is the operator's word for it and
    `not_ready_reason` says why `ready` is false. `allocated` counts every instance on the node;
    `residents` need only be those with groups, cells or devices (drains and what-ifs want all);
    `others`: what the other instances hold, and how many hold it, for policies that ask what is typical.
    `busy_until_s`: when all that runs there will have gone by the tenants' hints, None if some gave none.
    `dedicated_to`: projects that have the node for themselves; empty means everyone.
    Power in watts at no load and at full load, 0 where it is not known; `cost_milli` is the price of an
    hour in thousandths.
    Raises AllocationRatioError, QuantityOverflowError, TopologyMismatchError.
    """

    name: str
    capacity: Resources
    reserved: Resources = ZERO
    allocation_ratio: Mapping[str, float] = field(default_factory=dict)
    allocated: Resources = ZERO
    schedulable: bool = True
    cordon_reason: str = ""
    ready: bool = True
    not_ready_reason: str = ""
    security_level: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    dedicated_to: frozenset[str] = frozenset()
    capabilities: frozenset[str] = frozenset()
    cells: tuple[Cell, ...] = ()
    devices: tuple[Device, ...] = ()
    residents: tuple[Resident, ...] = ()
    others: tuple[tuple[Resources, int], ...] = ()
    busy_until_s: int | None = None
    idle_watts: int = 0
    full_watts: int = 0
    cost_milli: int = 0
    allocatable: Resources = field(init=False)

    def __post_init__(self) -> None:
        for resource, ratio in self.allocation_ratio.items():
            if not (math.isfinite(ratio) and 0 < ratio <= ALLOCATION_RATIO_MAX):
                raise AllocationRatioError(
                    f"node {self.name}: allocation_ratio.{resource} is {ratio},"
                    f" must be above 0 and at most {ALLOCATION_RATIO_MAX}"
                )
        if self.devices or self.cells:
            _check_topology(self)
        room = derive_allocatable(self.capacity, self.reserved, self.allocation_ratio)
        object.__setattr__(self, "allocatable", room)
        object.__setattr__(self, "labels", MappingProxyType(dict(self.labels)))
        object.__setattr__(self, "allocation_ratio", MappingProxyType(dict(self.allocation_ratio)))

    def kinds(self) -> Counter[Resources]:
        """What the instances on the node hold, and how many hold it."""
        counts = Counter(resident.request.resources for resident in self.residents)
        for resources, count in self.others:
            counts[resources] += count
        return counts

    def holding(
        self,
        allocated: Resources,
        residents: tuple[Resident, ...],
        others: tuple[tuple[Resources, int], ...] = (),
        busy_until_s: int | None = None,
    ) -> NodeView:
        """The same node with other instances on it. What was checked and derived once stays as it is."""
        made = _copied(self, _NODE_SLOTS)
        object.__setattr__(made, "allocated", allocated)
        object.__setattr__(made, "residents", residents)
        object.__setattr__(made, "others", others)
        object.__setattr__(made, "busy_until_s", busy_until_s)
        return made

    def is_same_node(self, other: NodeView) -> bool:
        """Whether they differ at most in what they hold: only `holding` makes two with the same labels."""
        return self.labels is other.labels

    def free(self) -> dict[str, int]:
        """Allocatable less allocated per resource, negative where the node is overcommitted."""
        left = self.allocatable.as_dict()
        for name, amount in self.allocated.as_dict().items():
            left[name] = left.get(name, 0) - amount
        return left


def _slots(kind: type) -> tuple[Slot, ...]:
    return tuple((getattr(kind, one.name).__get__, getattr(kind, one.name).__set__) for one in fields(kind))


def _copied(value: T, slots: tuple[Slot, ...]) -> T:
    """The same value once more: a third of what `dataclasses.replace` costs, as nothing is checked."""
    made = object.__new__(type(value))
    for get, put in slots:
        put(made, get(value))
    return made


_REQUEST_SLOTS: Final = _slots(Request)
_NODE_SLOTS: Final = _slots(NodeView)


def _check_topology(node: NodeView) -> None:
    if len(node.cells) > NODE_CELLS_MAX or len(node.devices) > NODE_DEVICES_MAX:
        raise TopologyMismatchError(
            f"node {node.name}: at most {NODE_CELLS_MAX} cells and {NODE_DEVICES_MAX} devices"
        )
    if len({device.address for device in node.devices}) < len(node.devices):
        raise TopologyMismatchError(f"node {node.name}: two devices have one address")
    for device in node.devices:
        if not -1 <= device.cell < max(len(node.cells), 1):
            raise TopologyMismatchError(
                f"node {node.name}: device {device.address} is on cell {device.cell}, which is not there"
            )


class Room:
    """What is left on a node: amounts, cells and device shares. Changes in place as instances enter."""

    __slots__ = ("cells", "devices", "free", "node")

    def __init__(self, node: NodeView) -> None:
        self.node = node
        self.free = node.free()
        self.cells = list(node.cells)
        self.devices = {device.address: SHARE_WHOLE for device in node.devices}
        for resident in node.residents:
            self.take_named(resident.request, resident.choice)

    def choose(self, request: Request) -> Choice | None:
        """Cells and devices for the request, None if none do; what floats is not looked at."""
        if not request.numa_cells and not request.devices:
            return NOTHING
        return choose(
            self.cells,
            self.node.devices,
            self.devices,
            request.resources.vcpu,
            request.resources.memory_mib,
            request.numa_cells,
            request.devices,
        )

    def enter(self, request: Request, choice: Choice) -> None:
        """Take what the request takes."""
        self._amounts(request.resources, -1)
        self.take_named(request, choice)

    def leave(self, request: Request, choice: Choice) -> None:
        """Give it back."""
        self._amounts(request.resources, +1)
        self.give_named(request, choice)

    def take_named(self, request: Request, choice: Choice) -> None:
        """Take cells and devices only: for whoever counts amounts elsewhere."""
        if choice is not NOTHING:
            self._named(request, choice, -1)

    def give_named(self, request: Request, choice: Choice) -> None:
        """The inverse of `take_named`."""
        if choice is not NOTHING:
            self._named(request, choice, +1)

    def _amounts(self, resources: Resources, sign: int) -> None:
        for name, amount in resources.as_dict().items():
            self.free[name] = self.free.get(name, 0) + sign * amount

    def _named(self, request: Request, choice: Choice, sign: int) -> None:
        for index in choice.cells:
            if index < len(self.cells):  # the host may have lost a cell since
                cell, count = self.cells[index], len(choice.cells)
                self.cells[index] = Cell(
                    cell.vcpu + sign * part(request.resources.vcpu, count),
                    cell.memory_mib + sign * part(request.resources.memory_mib, count),
                )
        for share in choice.devices:
            if share.address in self.devices:
                self.devices[share.address] += sign * share.share_milli


@dataclass(frozen=True, slots=True)
class View:
    """The fleet at a revision; nodes are kept in order of name, groups by name. `at_s`: what time it is.

    Raises DuplicateNodeError.
    """

    revision: int
    nodes: tuple[NodeView, ...]
    groups: Mapping[str, PlacementGroup] = field(default_factory=dict)
    at_s: int = 0

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.nodes, key=lambda node: node.name))
        for before, after in pairwise(ordered):
            if before.name == after.name:
                raise DuplicateNodeError(
                    f"view at revision {self.revision}: node {after.name} is there twice"
                )
        object.__setattr__(self, "nodes", ordered)
