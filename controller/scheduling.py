"""Between what the store holds of placement and what the scheduler calls it.

**Pure.** Residents are built from placements alone, so that what is on a node counts as it was placed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Final

from controller.state import State
from controller.store import keys
from controller.tables import Stored
from cumulet.convert import resources_from
from cumulet.resources import ZERO, Resources
from cumulet.v1 import instance_pb2, node_pb2, placement_pb2, placementgroup_pb2, store_pb2
from scheduler.group import PlacementGroup, Rule, Scope, domain_of
from scheduler.model import UPLINK, Effect, NodeView, Request, Resident, Taint
from scheduler.packing import coarse, end_s, lasts_level, later
from scheduler.topology import NO_CELL, Choice, Device, DeviceRequest, DeviceShare

ARCHITECTURE: Final = "arch:"  # how the capability of a CPU architecture begins
_SCOPES: Final[Mapping[int, Scope]] = {
    placementgroup_pb2.PLACEMENT_SCOPE_RACK: Scope.RACK,
    placementgroup_pb2.PLACEMENT_SCOPE_ZONE: Scope.ZONE,
}


def wanted_capabilities(spec: instance_pb2.InstanceSpec) -> frozenset[str]:
    """The instance's, its image's, and the links to its provider networks."""
    image = spec.image_files
    machine = (f"{ARCHITECTURE}{image.architecture}",) if image.architecture else ()
    uplinks = (f"{UPLINK}{one.uplink}" for one in spec.networks if one.uplink)
    return frozenset((*spec.capabilities, *image.capabilities, *machine, *uplinks))


def capabilities_of(status: node_pb2.NodeStatus) -> frozenset[str]:
    """What the node reported. Agents before capabilities were reported ran on x86-64 only."""
    word = "kvm" if status.virt_type == node_pb2.VIRT_TYPE_KVM else "tcg"
    host = status.capabilities or (word, f"{ARCHITECTURE}x86_64")
    return frozenset((*host, *(f"{UPLINK}{name}" for name in status.uplinks)))


def group_name(project: str, name: str) -> str:
    """How the scheduler calls a placement group or a gang of a project."""
    return f"{project}/{name}"


def build_groups(state: State) -> dict[str, PlacementGroup]:
    """All placement groups by the scheduler's name."""
    groups = (_group(row.message) for row in state.rows(keys.PLACEMENT_GROUPS).values())
    return {group.name: group for group in groups}


def members_by_domain(state: State, message: placementgroup_pb2.PlacementGroup) -> dict[str, int]:
    """Placed members of a group by domain; those whose node has no such label are in none."""
    group = _group(message)
    found: Counter[str] = Counter()
    for place, count in _places(state, group.name):
        found[domain_of(place, group.scope)] += count
    return {domain: found[domain] for domain in sorted(found) if domain}


def _places(state: State, group: str) -> Iterator[tuple[NodeView, int]]:
    """Nodes with members of a group, and how many."""
    for node, count in state.members_of(*group.split("/")).items():
        row = state.find(keys.NODES, node)
        labels = row.message.meta.labels if row else {}
        yield _place(node, labels.get(Scope.RACK.value, ""), labels.get(Scope.ZONE.value, "")), count


@lru_cache(maxsize=16_384)  # a node view costs more than counting it
def _place(node: str, rack: str, zone: str) -> NodeView:
    """A node as placement groups see it."""
    labels = {Scope.RACK.value: rack, Scope.ZONE.value: zone}
    return NodeView(node, ZERO, labels={key: value for key, value in labels.items() if value})


def _group(group: placementgroup_pb2.PlacementGroup) -> PlacementGroup:
    spec = group.spec
    affinity = spec.rule == placementgroup_pb2.PLACEMENT_RULE_AFFINITY
    return PlacementGroup(
        name=group_name(group.meta.project, group.meta.name),
        rule=Rule.AFFINITY if affinity else Rule.ANTI_AFFINITY,
        scope=_SCOPES.get(spec.scope, Scope.NODE),
        hard=spec.enforcement != placementgroup_pb2.PLACEMENT_ENFORCEMENT_SOFT,
        max_per_domain=spec.max_per_domain,
    )


def taint_of(taint: placement_pb2.Taint) -> Taint:
    prefer = taint.effect == placement_pb2.TAINT_EFFECT_PREFER_NO_SCHEDULE
    return Taint(taint.key, taint.value, Effect.PREFER_NO_SCHEDULE if prefer else Effect.NO_SCHEDULE)


def device_of(device: placement_pb2.Device) -> Device:
    return Device(device.address, device.model, device.cell if device.HasField("cell") else NO_CELL)


def device_request_of(want: placement_pb2.DeviceRequest) -> DeviceRequest:
    """As it is stored: count and share are filled in when the instance is admitted."""
    return DeviceRequest(frozenset(want.models), want.count, want.share_milli)


def residents_of(placements: Iterable[Stored]) -> Iterator[Resident]:
    """Those that hold more than amounts, from what their placements say: instances may be gone already."""
    for row in placements:
        record: store_pb2.PlacementRecord = row.message
        if _is_resident(record):
            yield Resident(placed_request(record), choice_of(record))


def others_of(placements: Iterable[Stored]) -> tuple[tuple[Resources, int], ...]:
    """What those hold that are no residents, and how many hold it."""
    held = (resources_from(row.message.resources) for row in placements if not _is_resident(row.message))
    return tuple(Counter(held).items())


def busy_until_s(state: State, placements: Iterable[Stored]) -> int | None:
    """When all of them will have gone by their tenants' hints; None if one gave none."""
    last: int | None = 0
    for row in placements:
        record: store_pb2.PlacementRecord = row.message
        found = state.find_instance(record.instance_uid)
        hint_s = found[1].message.spec.expected_lifetime_s if found else 0
        last = later(last, end_s(coarse(record.placed_at.seconds), lasts_level(hint_s or None)))
    return last


def _is_resident(record: store_pb2.PlacementRecord) -> bool:
    return bool(record.groups or record.numa_cells or record.devices)


def placed_request(record: store_pb2.PlacementRecord) -> Request:
    """What a placement alone tells of its instance."""
    return Request(
        uid=record.instance_uid,
        project=record.project,
        name=record.name,
        resources=resources_from(record.resources),
        groups=tuple(group_name(record.project, name) for name in record.groups),
        numa_cells=len(record.numa_cells),
        devices=tuple(map(device_request_of, record.wanted_devices)),
    )


def choice_of(record: store_pb2.PlacementRecord) -> Choice:
    """The cells and devices that a placement holds."""
    shares = tuple(DeviceShare(share.address, share.share_milli) for share in record.devices)
    return Choice(tuple(record.numa_cells), shares)
