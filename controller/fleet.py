"""The scheduler's view and requests from the State.

**Pure.** Readiness is the node's Ready condition as the leader wrote it, so every replica explains alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from controller.scheduling import (
    build_groups,
    capabilities_of,
    device_of,
    group_name,
    residents_of,
    taint_of,
    wanted_capabilities,
)
from controller.state import Changed, State, Stored
from controller.store import keys
from cumulet.convert import find_condition, resources_from
from cumulet.resources import ZERO, Resources
from cumulet.v1 import instance_pb2, meta_pb2, node_pb2
from scheduler.group import PlacementGroup
from scheduler.model import Gang, NodeView, Preference, Request, Toleration, View, derive_allocatable
from scheduler.topology import Cell, DeviceRequest

# Guests rarely use all their vCPUs at once; memory and disk are really taken.
RATIOS_DEFAULT: Final = {"vcpu": 4.0}
READY: Final = "Ready"
_NODE_TABLES: Final = (keys.NODES, keys.NODE_STATUS, keys.PLACEMENTS)


def ratios(spec: node_pb2.NodeSpec) -> Mapping[str, float]:
    """Allocation ratio by resource, with the defaults where the operator set none."""
    return {**RATIOS_DEFAULT, **spec.allocation_ratio}


def allocatable(spec: node_pb2.NodeSpec, capacity: Resources) -> Resources:
    """What may be promised of a node."""
    return derive_allocatable(capacity, resources_from(spec.reserved), ratios(spec))


def build_view(state: State) -> View:
    """All nodes as they are at the state's revision."""
    nodes = tuple(node_view(state, row) for row in state.rows(keys.NODES).values())
    return View(state.revision, nodes, build_groups(state))


class FleetView:
    """`build_view`, kept up to date: only nodes that a change touched are built anew.

    A view of 1,000 nodes costs 20 ms to build and 1 ms to keep.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._nodes: dict[str, NodeView] = {}
        self._touched = {parts[0] for parts in state.rows(keys.NODES)}
        self._groups: Mapping[str, PlacementGroup] | None = None

    def note_change(self, changed: Changed) -> None:
        """Called with every applied change."""
        if changed.table in _NODE_TABLES:
            self._touched.add(changed.parts[0])
        elif changed.table is keys.PLACEMENT_GROUPS:
            self._groups = None

    def view(self) -> View:
        """All nodes as they are at the state's revision."""
        for name in sorted(self._touched):  # ties are broken by the order of nodes
            row = self._state.find(keys.NODES, name)
            if row is None:
                self._nodes.pop(name, None)
            else:
                self._nodes[name] = node_view(self._state, row)
        self._touched.clear()
        if self._groups is None:
            self._groups = build_groups(self._state)
        return View(self._state.revision, tuple(self._nodes.values()), self._groups)


def node_view(state: State, row: Stored) -> NodeView:
    node: node_pb2.Node = row.message
    name = node.meta.name
    status_row = state.find(keys.NODE_STATUS, name)
    status: node_pb2.NodeStatus | None = status_row.message if status_row else None
    ready = find_condition(status.conditions, READY) if status else None
    return NodeView(
        name=name,
        capacity=resources_from(status.capacity) if status else ZERO,
        reserved=resources_from(node.spec.reserved),
        allocation_ratio=ratios(node.spec),
        allocated=state.allocated_on(name),
        schedulable=not node.spec.cordoned and not node.meta.HasField("deleted_at"),
        cordon_reason=node.spec.cordon_reason,
        ready=ready is not None and ready.status == meta_pb2.CONDITION_STATUS_TRUE,
        not_ready_reason=ready.message if ready else "its agent has not connected yet",
        security_level=node.spec.security_level,
        labels=dict(node.meta.labels),
        taints=tuple(map(taint_of, node.spec.taints)),
        dedicated_to=frozenset(node.spec.dedicated_projects),
        capabilities=capabilities_of(status) if status else frozenset(),
        cells=tuple(Cell(cell.vcpu, cell.memory_mib) for cell in status.numa_cells) if status else (),
        devices=tuple(map(device_of, status.devices)) if status else (),
        residents=tuple(residents_of(state.placements_on(name).values())),
        idle_watts=node.spec.idle_watts,
        full_watts=node.spec.full_watts,
        cost_milli=node.spec.cost_milli,
    )


def build_request(instance: instance_pb2.Instance) -> Request:
    """What the scheduler needs to know of an instance."""
    project, spec = instance.meta.project, instance.spec
    return Request(
        uid=instance.meta.uid,
        project=project,
        name=instance.meta.name,
        resources=resources_from(spec.resources),
        security_level=spec.security_level,
        node_selector=dict(spec.node_selector),
        tolerations=frozenset(
            Toleration(one.key, one.value if one.HasField("value") else None) for one in spec.tolerations
        ),
        capabilities=wanted_capabilities(spec),
        preferences=tuple(Preference(one.key, one.value, one.weight) for one in spec.preferences),
        groups=tuple(group_name(project, name) for name in spec.placement_groups),
        numa_cells=spec.numa_cells,
        devices=tuple(
            DeviceRequest(frozenset(one.models), one.count, one.share_milli) for one in spec.devices
        ),
        gang=Gang(group_name(project, spec.gang.name), spec.gang.size) if spec.HasField("gang") else None,
        lifetime_s=spec.expected_lifetime_s or None,
    )
