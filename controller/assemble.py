"""Objects as the API shows them: stored meta and spec, with status derived from the other tables.

**Pure.** The result is a new message; stored ones are shared and stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final

from controller.admit.externalnetwork import taken_of
from controller.admit.placementgroup import members_of
from controller.admit.pool import pool_of
from controller.admit.project import external_subnets
from controller.admit.range6 import range6_of
from controller.admit.subnet import Range, addresses_of, range_of
from controller.balancers import resolve_members
from controller.fleet import allocatable, is_ready
from controller.floating import find_way
from controller.scheduling import members_by_domain
from controller.state import State
from controller.store import keys
from controller.store.keys import Table
from controller.tables import Parts, Stored
from cumulet import lifecycle
from cumulet.convert import resources_from, resources_to
from cumulet.v1 import (
    externalnetwork_pb2,
    floatingip_pb2,
    instance_pb2,
    loadbalancer_pb2,
    meta_pb2,
    network_pb2,
    node_pb2,
    placementgroup_pb2,
    port_pb2,
    project_pb2,
    securitygroup_pb2,
    subnet_pb2,
)


def assemble(state: State, table: Table, parts: Parts, row: Stored) -> Any:
    """The object of a row, complete. Secrets (user-data) are left out."""
    message = type(row.message)()
    message.CopyFrom(row.message)
    message.meta.etag = str(row.mod_revision)
    message.meta.revision = row.mod_revision
    fill = _FILL.get(table)
    if fill is not None:
        fill(state, parts, row, message)
    return message


def instance_phase(state: State, row: Stored) -> instance_pb2.InstancePhase.ValueType:
    """The phase at the state's revision: of the last transition, overruled by newer intent."""
    instance: instance_pb2.Instance = row.message
    status = state.status_of(instance.meta.uid)
    placed = state.placement_of(instance.meta.uid) is not None
    if instance.meta.HasField("deleted_at"):
        return lifecycle.DELETING
    if not placed:
        on = instance.spec.power == instance_pb2.POWER_STATE_ON
        return lifecycle.PENDING if on else lifecycle.STOPPED
    if status is None or not status.phase:
        return lifecycle.STARTING
    if status.phase != lifecycle.UNKNOWN and status.observed_generation < instance.meta.generation:
        return _awaited_phase(instance, status)
    return status.phase


def _awaited_phase(
    instance: instance_pb2.Instance, status: instance_pb2.InstanceStatus
) -> instance_pb2.InstancePhase.ValueType:
    """Intent has changed since the node last spoke."""
    if instance.spec.power == instance_pb2.POWER_STATE_OFF:
        return lifecycle.STOPPED if status.phase == lifecycle.STOPPED else lifecycle.STOPPING
    return lifecycle.STARTING if status.boots < instance.spec.boots else status.phase


def _fill_instance(state: State, parts: Parts, row: Stored, message: instance_pb2.Instance) -> None:
    uid = message.meta.uid
    status_row = state.find(keys.INSTANCE_STATUS, uid)
    placement = state.placement_of(uid)
    if status_row is not None:
        message.status.CopyFrom(status_row.message)
        message.meta.revision = max(message.meta.revision, status_row.mod_revision)
    message.status.phase = instance_phase(state, row)
    message.status.node = placement.message.node if placement else ""
    if placement is not None:
        message.status.epoch = placement.message.epoch
        message.status.numa_cells[:] = placement.message.numa_cells
        message.status.devices.extend(placement.message.devices)
        message.meta.revision = max(message.meta.revision, placement.mod_revision)
        if not message.status.conditions:
            text = f"placed on {placement.message.node}; the node prepares it"
            message.status.conditions.append(_condition("Placed", True, "Scheduled", text))
    ports = {port.message.meta.uid: port.message for port in state.ports_of(*parts)}
    message.status.addresses[:] = [
        address
        for attachment in message.spec.networks
        if attachment.port_uid in ports
        for address in addresses_of(state, ports[attachment.port_uid])
    ]
    message.spec.ClearField("user_data")  # may hold secrets; the guest's seed has it


def _condition(kind: str, true: bool, reason: str, text: str) -> meta_pb2.Condition:
    status = meta_pb2.CONDITION_STATUS_TRUE if true else meta_pb2.CONDITION_STATUS_FALSE
    return meta_pb2.Condition(type=kind, status=status, reason=reason, message=text)


def _fill_node(state: State, parts: Parts, row: Stored, message: node_pb2.Node) -> None:
    status_row = state.find(keys.NODE_STATUS, parts[0])
    if status_row is not None:
        message.status.CopyFrom(status_row.message)
        message.meta.revision = max(message.meta.revision, status_row.mod_revision)
    message.status.allocatable.CopyFrom(
        resources_to(allocatable(message.spec, resources_from(message.status.capacity)))
    )
    message.status.allocated.CopyFrom(resources_to(state.allocated_on(parts[0])))
    message.status.instances = len(state.placements_on(parts[0]))


def _fill_project(state: State, parts: Parts, row: Stored, message: project_pb2.Project) -> None:
    message.status.used.CopyFrom(resources_to(state.used_by(parts[0])))
    message.status.instances = len(state.rows(keys.INSTANCES, parts[0]))
    message.status.networks = len(state.rows(keys.NETWORKS, parts[0]))
    message.status.floating_ips = len(state.rows(keys.FLOATING_IPS, parts[0]))
    message.status.external_subnets = len(external_subnets(state, parts[0]))
    message.status.devices_milli = state.devices_used_by(parts[0])


def _fill_network(state: State, parts: Parts, row: Stored, message: network_pb2.Network) -> None:
    message.status.ports = len(state.ports_in(*parts))


def _fill_subnet(state: State, parts: Parts, row: Stored, message: subnet_pb2.Subnet) -> None:
    addresses = range_of(message.spec)
    message.status.addresses_total = addresses.usable
    network = state.find(keys.NETWORKS, parts[0], message.spec.network)
    if network is not None:
        taken = state.addresses_in(network.message.meta.uid)
        message.status.addresses_used = sum(_inside(addresses, text) for text in taken)


def _inside(addresses: Range, text: str) -> bool:
    return ip_address(text) in addresses.cidr


def _fill_placement_group(
    state: State, parts: Parts, row: Stored, message: placementgroup_pb2.PlacementGroup
) -> None:
    message.status.members.update(members_by_domain(state, message))
    message.status.instances = len(members_of(state, *parts))


def _fill_security_group(
    state: State, parts: Parts, row: Stored, message: securitygroup_pb2.SecurityGroup
) -> None:
    message.status.ports = len(state.ports_with(*parts))


def _fill_port(state: State, parts: Parts, row: Stored, message: port_pb2.Port) -> None:
    instance = state.find(keys.INSTANCES, parts[0], message.spec.instance)
    placement = state.placement_of(instance.message.meta.uid) if instance else None
    message.status.node = placement.message.node if placement else ""
    message.status.addresses[:] = addresses_of(state, message)


def _fill_external_network(
    state: State, parts: Parts, row: Stored, message: externalnetwork_pb2.ExternalNetwork
) -> None:
    message.status.addresses_total = pool_of(message.spec).size
    message.status.addresses_used = len(taken_of(state, message.meta.uid, 4))
    range6 = range6_of(message.spec)
    if range6 is not None:
        message.status.subnets_total = range6.size
        message.status.subnets_used = len(taken_of(state, message.meta.uid, 6))
    statuses = state.rows(keys.NODE_STATUS).items()
    attached = (name for (name,), status in statuses if message.spec.uplink in status.message.uplinks)
    message.status.nodes[:] = sorted(attached)


def _fill_floating_ip(state: State, parts: Parts, row: Stored, message: floatingip_pb2.FloatingIP) -> None:
    """Active when the node that is to announce it may, and answers."""
    way, record = find_way(state, row.message), state.find(keys.ANNOUNCEMENTS, message.meta.uid)
    message.status.node = record.message.node if record is not None else ""
    if record is not None:
        message.meta.revision = max(message.meta.revision, record.mod_revision)
    if not way.node:
        condition = _condition("Active", False, way.reason, way.text)
    elif record is None or record.message.node != way.node:
        where = f"{record.message.node} lets it go" if record is not None else "it was just asked for"
        condition = _condition("Active", False, "Moving", f"{way.node} announces it next: {where}")
    elif not is_ready(state, way.node):
        condition = _condition(
            "Active", False, "NodeNotReady", f"{way.node} announces it and does not answer"
        )
    else:
        condition = _condition("Active", True, "Announced", f"{way.node} announces it")
    message.status.conditions.append(condition)


def _fill_load_balancer(
    state: State, parts: Parts, row: Stored, message: loadbalancer_pb2.LoadBalancer
) -> None:
    for member in resolve_members(state, row.message):
        key = message.meta.uid, member.address
        nodes = sorted(node for node, unhealthy in state.unhealthy.items() if key in unhealthy)
        message.status.members.add(
            instance=member.instance, address=member.address, draining=member.drain, unhealthy_on=nodes
        )


_FILL: Final[dict[Table, Callable[[State, Parts, Stored, Any], None]]] = {
    keys.INSTANCES: _fill_instance,
    keys.NODES: _fill_node,
    keys.PROJECTS: _fill_project,
    keys.NETWORKS: _fill_network,
    keys.SUBNETS: _fill_subnet,
    keys.PORTS: _fill_port,
    keys.EXTERNAL_NETWORKS: _fill_external_network,
    keys.FLOATING_IPS: _fill_floating_ip,
    keys.SECURITY_GROUPS: _fill_security_group,
    keys.PLACEMENT_GROUPS: _fill_placement_group,
    keys.LOAD_BALANCERS: _fill_load_balancer,
}
