"""Hard constraints: what speaks against a node, all of it and not only the first.

**Pure**: a node, what is left on it, the groups' members and a request in, reasons out; an empty tuple
means it fits. These functions are the specification of what the planner may do.

A resource that is not asked for never speaks against a node, even where it is overcommitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from scheduler.group import Occupancy, PlacementGroup, Rule, domain_of
from scheduler.model import Effect, NodeView, Request, Room
from scheduler.reasons import (
    AwayFromGroup,
    Cordoned,
    Dedicated,
    DomainFull,
    Excluded,
    GroupMissing,
    LabelMismatch,
    NoCapability,
    NoDomain,
    NotEnough,
    NotEnoughCells,
    NotEnoughDevices,
    NotReady,
    Reason,
    SecurityLevelTooLow,
    Tainted,
)
from scheduler.topology import SHARE_WHOLE, DeviceRequest, part

NodeFilter = Callable[[NodeView, Request], tuple[Reason, ...]]


def cordoned(node: NodeView, request: Request) -> tuple[Reason, ...]:
    return () if node.schedulable else (Cordoned(node.cordon_reason),)


def not_ready(node: NodeView, request: Request) -> tuple[Reason, ...]:
    return () if node.ready else (NotReady(node.not_ready_reason or "no reason was reported"),)


def excluded(node: NodeView, request: Request) -> tuple[Reason, ...]:
    return (Excluded(),) if node.name in request.excluded_nodes else ()


def security_level_too_low(node: NodeView, request: Request) -> tuple[Reason, ...]:
    if node.security_level >= request.security_level:
        return ()
    return (SecurityLevelTooLow(request.security_level, node.security_level),)


def label_mismatch(node: NodeView, request: Request) -> tuple[Reason, ...]:
    if not request.node_selector:  # most requests, and this runs for every node
        return ()
    return tuple(
        LabelMismatch(key, want, node.labels.get(key))
        for key, want in sorted(request.node_selector.items())
        if node.labels.get(key) != want
    )


def tainted(node: NodeView, request: Request) -> tuple[Reason, ...]:
    if not node.taints:
        return ()
    return tuple(
        Tainted(str(taint))
        for taint in node.taints
        if taint.effect is Effect.NO_SCHEDULE and not any(one.covers(taint) for one in request.tolerations)
    )


def dedicated(node: NodeView, request: Request) -> tuple[Reason, ...]:
    if not node.dedicated_to or request.project in node.dedicated_to:
        return ()
    return (Dedicated(tuple(sorted(node.dedicated_to))),)


def no_capability(node: NodeView, request: Request) -> tuple[Reason, ...]:
    if request.capabilities <= node.capabilities:
        return ()
    return tuple(NoCapability(one) for one in sorted(request.capabilities - node.capabilities))


def outside_groups(node: NodeView, request: Request, occupancy: Occupancy) -> tuple[Reason, ...]:
    """What the request's hard groups say against the node."""
    found: list[Reason] = []
    for name in request.groups:
        group = occupancy.find(name)
        if group is None:
            found.append(GroupMissing(name))
        elif group.hard:
            found.extend(_outside(node, group, occupancy))
    return tuple(found)


def _outside(node: NodeView, group: PlacementGroup, occupancy: Occupancy) -> tuple[Reason, ...]:
    domain = domain_of(node, group.scope)
    if not domain:
        return (NoDomain(group.name, group.scope.value),)
    members = occupancy.members(group.name)
    if members.get(domain, 0) >= group.limit:
        return (DomainFull(group.name, domain, members[domain], group.limit),)
    if group.rule is Rule.AFFINITY and members and domain not in members:
        return (AwayFromGroup(group.name, tuple(sorted(members))),)
    return ()


def not_enough(free: Mapping[str, int], request: Request) -> tuple[Reason, ...]:
    """`free`: amount by resource, negative if overcommitted; one that is missing counts as 0."""
    return tuple(
        NotEnough(name, want, free.get(name, 0))
        for name, want in request.resources.as_dict().items()
        if want > 0 and want > free.get(name, 0)
    )


# In the order in which a person would look; "the first failed constraint" means this order.
NODE_FILTERS: Final[tuple[NodeFilter, ...]] = (
    cordoned,
    not_ready,
    excluded,
    security_level_too_low,
    label_mismatch,
    tainted,
    dedicated,
    no_capability,
)


def is_eligible(node: NodeView, request: Request) -> bool:
    """Nothing but resources can speak against the node."""
    for node_filter in NODE_FILTERS:  # noqa: SIM110  (runs for every node; a generator takes twice the time)
        if node_filter(node, request):
            return False
    return True


def not_enough_topology(room: Room, request: Request) -> tuple[Reason, ...]:
    """What cells and devices say against the node: each want by itself, then all together."""
    if room.choose(request) is not None:
        return ()
    found: list[Reason] = []
    if request.numa_cells:
        vcpu = part(request.resources.vcpu, request.numa_cells)
        memory_mib = part(request.resources.memory_mib, request.numa_cells)
        have = sum(cell.vcpu >= vcpu and cell.memory_mib >= memory_mib for cell in room.cells)
        if have < request.numa_cells:
            found.append(NotEnoughCells(request.numa_cells, have, len(room.cells), vcpu, memory_mib))
    for want in request.devices:
        have = sum(want.takes(device, room.devices[device.address]) for device in room.node.devices)
        if have < want.count:
            found.append(NotEnoughDevices(str(want), have))
    return tuple(found) or (_not_together(room, request.devices),)


def _not_together(room: Room, wants: tuple[DeviceRequest, ...]) -> Reason:
    """Each want has devices enough; they are wanted twice, or lie on other cells."""
    free = sum(left == SHARE_WHOLE for left in room.devices.values())
    return NotEnoughDevices(f"together {' and '.join(map(str, wants))} on the chosen cells", free)


def reasons_against(room: Room, request: Request, occupancy: Occupancy) -> tuple[Reason, ...]:
    """Everything that speaks against the node, in the filters' order; empty if it takes the request."""
    node = room.node
    found = tuple(reason for node_filter in NODE_FILTERS for reason in node_filter(node, request))
    return (
        *found,
        *outside_groups(node, request, occupancy),
        *not_enough(room.free, request),
        *not_enough_topology(room, request),
    )
