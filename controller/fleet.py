"""The scheduler's view and requests from the State.

**Pure.** Readiness is the node's Ready condition as the leader wrote it, so every replica explains alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from controller.scheduling import (
    build_groups,
    capabilities_of,
    device_of,
    group_name,
    others_of,
    residents_of,
    taint_of,
    wanted_capabilities,
)
from controller.state import Changed, State, Stored
from controller.store import keys
from cumulet.convert import find_condition, resources_from
from cumulet.resources import ZERO, Resources
from cumulet.v1 import instance_pb2, meta_pb2, node_pb2
from scheduler.fleet import Fleet
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
from scheduler.topology import Cell, DeviceRequest

# Guests rarely use all their vCPUs at once; memory and disk are really taken.
RATIOS_DEFAULT: Final = {"vcpu": 4.0}
READY: Final = "Ready"
_NONE: Final[Mapping[str, Stored]] = {}
_NODE_TABLES: Final = (keys.NODES, keys.NODE_STATUS, keys.PLACEMENTS)


def ratios(spec: node_pb2.NodeSpec) -> Mapping[str, float]:
    """Allocation ratio by resource, with the defaults where the operator set none."""
    return {**RATIOS_DEFAULT, **spec.allocation_ratio}


def allocatable(spec: node_pb2.NodeSpec, capacity: Resources) -> Resources:
    """What may be promised of a node."""
    return derive_allocatable(capacity, resources_from(spec.reserved), ratios(spec))


def build_view(state: State, policy: Policy) -> View:
    """All nodes as they are at the state's revision, with all that the policy looks at."""
    nodes = tuple(node_view(state, row, counts=policy.counts) for row in state.rows(keys.NODES).values())
    return View(state.revision, nodes, build_groups(state))


class FleetView:
    """The planner's fleet, kept up to date: only nodes that a change touched are built anew.

    What was placed and is not in the State yet is assumed to be there: `assume` until it is, or `drop`.
    """

    def __init__(self, state: State, policy: Policy) -> None:
        self._state = state
        self._policy = policy
        self._fleet: Fleet | None = None
        self._touched: set[str] = set()
        self._assumed: dict[str, dict[str, Stored]] = {}
        self._node_of: dict[str, str] = {}

    def note_change(self, changed: Changed) -> None:
        """Called with every applied change."""
        if changed.table in _NODE_TABLES:
            self._touched.add(changed.parts[0])
            if changed.table is keys.PLACEMENTS:
                self.drop(changed.parts[1])
        elif changed.table is keys.PLACEMENT_GROUPS:
            self._fleet = None

    def assume(self, uid: str, node: str, row: Stored) -> None:
        """It is on its way there."""
        self._assumed.setdefault(node, {})[uid] = row
        self._node_of[uid] = node
        self._touched.add(node)

    def drop(self, uid: str) -> str | None:
        """It is assumed no more; the node, if it was."""
        node = self._node_of.pop(uid, None)
        if node is not None:
            del self._assumed[node][uid]
            if not self._assumed[node]:
                del self._assumed[node]
            self._touched.add(node)
        return node

    def look(self, name: str) -> NodeView | None:
        """One node as it is now."""
        row = self._state.find(keys.NODES, name)
        assumed = self._assumed.get(name, _NONE).values()
        return node_view(self._state, row, assumed, self._policy.counts) if row else None

    def fleet(self) -> Fleet:
        """All nodes as they are now. It changes with the next call."""
        if self._fleet is None:
            names = [parts[0] for parts in self._state.rows(keys.NODES)]
            nodes = tuple(node for name in names if (node := self.look(name)) is not None)
            self._fleet = Fleet.of(View(self._state.revision, nodes, build_groups(self._state)), self._policy)
            self._touched.clear()
        for name in sorted(self._touched):
            node = self.look(name)
            if node is None:
                self._fleet.remove(name)
            else:
                self._fleet.update(node)
        self._touched.clear()
        return self._fleet


def node_view(state: State, row: Stored, assumed: Collection[Stored] = (), counts: bool = False) -> NodeView:
    """A node with what is placed there and what is assumed to be.

    `counts`: with what the instances hold that are no residents, too.
    """
    name = row.message.meta.name
    status_row = state.find(keys.NODE_STATUS, name)
    there = (*state.placements_on(name).values(), *assumed)
    return build_node(
        row.message,
        status_row.message if status_row else None,
        state.allocated_on(name)
        if not assumed
        else Resources.total(
            (state.allocated_on(name), *(resources_from(one.message.resources) for one in assumed))
        ),
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
        devices=tuple(
            DeviceRequest(frozenset(one.models), one.count, one.share_milli) for one in spec.devices
        ),
        gang=Gang(group_name(project, spec.gang.name), spec.gang.size) if spec.HasField("gang") else None,
        lifetime_s=spec.expected_lifetime_s or None,
    )
