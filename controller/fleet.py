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
    device_request_of,
    group_name,
    others_of,
    residents_of,
    taint_of,
    wanted_capabilities,
)
from controller.state import State
from controller.store import keys
from controller.tables import Stored
from cumulet.convert import find_condition, resources_from
from cumulet.resources import ZERO, Resources
from cumulet.v1 import instance_pb2, meta_pb2, node_pb2
from scheduler.model import (
    Gang,
    NodeView,
    Preference,
    Request,
    Resident,
    Toleration,
    View,
    derive_allocatable,
)
from scheduler.policy import Policy
from scheduler.topology import Cell

# Guests rarely use all their vCPUs at once; memory and disk are really taken.
RATIOS_DEFAULT: Final = {"vcpu": 4.0}
READY: Final = "Ready"


def ratios(spec: node_pb2.NodeSpec) -> Mapping[str, float]:
    """Allocation ratio by resource, with the defaults where the operator set none."""
    return {**RATIOS_DEFAULT, **spec.allocation_ratio}


def allocatable(spec: node_pb2.NodeSpec, capacity: Resources) -> Resources:
    """What may be promised of a node."""
    return derive_allocatable(capacity, resources_from(spec.reserved), ratios(spec))


def is_ready(state: State, node: str) -> bool:
    """The node's agent has a session."""
    row = state.find(keys.NODE_STATUS, node)
    ready = find_condition(row.message.conditions, READY) if row is not None else None
    return ready is not None and ready.status == meta_pb2.CONDITION_STATUS_TRUE


def build_view(state: State, policy: Policy) -> View:
    """All nodes as they are at the state's revision, with all that the policy looks at."""
    nodes = tuple(node_view(state, row, counts=policy.counts) for row in state.rows(keys.NODES).values())
    return View(state.revision, nodes, build_groups(state))


def node_view(state: State, row: Stored, counts: bool = False) -> NodeView:
    """A node with what is placed there. `counts`: with what the instances hold that are no residents, too."""
    name = row.message.meta.name
    status_row = state.find(keys.NODE_STATUS, name)
    there = state.placements_on(name).values()
    return build_node(
        row.message,
        status_row.message if status_row else None,
        state.allocated_on(name),
        tuple(residents_of(there)),
        others_of(there) if counts else (),
    )


def build_node(
    node: node_pb2.Node,
    status: node_pb2.NodeStatus | None,
    allocated: Resources,
    residents: tuple[Resident, ...],
    others: tuple[tuple[Resources, int], ...] = (),
) -> NodeView:
    """A node with what is on it."""
    ready = find_condition(status.conditions, READY) if status else None
    return NodeView(
        name=node.meta.name,
        capacity=resources_from(status.capacity) if status else ZERO,
        reserved=resources_from(node.spec.reserved),
        allocation_ratio=ratios(node.spec),
        allocated=allocated,
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
        residents=residents,
        others=others,
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
        devices=tuple(map(device_request_of, spec.devices)),
        gang=Gang(group_name(project, spec.gang.name), spec.gang.size) if spec.HasField("gang") else None,
        lifetime_s=spec.expected_lifetime_s or None,
    )
