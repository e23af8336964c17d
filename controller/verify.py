"""Verify: what is intended against what is really on a node.

**Pure.** Orphans are things of ours that nobody wants, missing things are wanted and not there.
"""

from __future__ import annotations

from typing import Final

from controller.reconcile.nodeplan import compile_plan
from controller.state import State
from controller.store import keys
from cumulet.v1 import agent_pb2, instance_pb2, system_pb2

ORPHAN: Final = system_pb2.DIFFERENCE_TYPE_ORPHAN
MISSING: Final = system_pb2.DIFFERENCE_TYPE_MISSING
EDITED: Final = system_pb2.DIFFERENCE_TYPE_EDITED
# What an instance, a port, a network and a router have at least, by the kinds that agents report.
OF_INSTANCE: Final = ("domain", "disk", "seed")
OF_PORT: Final = ("tap",)
OF_NETWORK: Final = ("bridge", "dhcp-server")
OF_NETWORK_ALONE: Final = (*OF_NETWORK, "namespace")  # without a router, whose namespace it would be in
OF_ROUTER: Final = ("router-namespace",)


def compare_inventory(state: State, node: str, inventory: agent_pb2.Inventory) -> list[system_pb2.Difference]:
    """Differences of one node: what is missing or nobody's, and what is there but not as planned."""
    items = inventory.items
    plan = compile_plan(state, node, "")
    wanted: dict[tuple[str, str], str] = {}
    owners = {tombstone.uid for tombstone in plan.tombstones}  # still being removed: neither
    for instance in plan.instances:
        owners.add(instance.uid)
        started = instance.power == instance_pb2.POWER_STATE_ON
        for kind in OF_INSTANCE if started else OF_INSTANCE[1:]:
            wanted[kind, instance.uid] = f"instance {instance.project}/{instance.name}"
        for port in instance.ports:
            owners.add(port.uid)
            wanted.update({(kind, port.uid): f"a port of {instance.name}" for kind in OF_PORT})
    for network in plan.networks:
        owners.add(network.uid)
        kinds = OF_NETWORK if network.router_uid else OF_NETWORK_ALONE
        wanted.update({(kind, network.uid): f"network {network.name}" for kind in kinds})
    for router in plan.routers:
        owners.add(router.uid)
        wanted.update({(kind, router.uid): f"router {router.uid}" for kind in OF_ROUTER})
    owners |= _being_removed(state, node)
    found = {(item.kind, item.owner_uid): item for item in items}
    differences = [
        _difference(ORPHAN, node, item.kind, item.name, item.owner_uid, "nothing of this cloud wants it here")
        for item in found.values()
        if item.owner_uid and item.owner_uid not in owners
    ]
    differences += [
        _difference(MISSING, node, kind, "", uid, f"{what} has none on {node}")
        for (kind, uid), what in wanted.items()
        if (kind, uid) not in found
    ]
    differences += [
        _difference(EDITED, node, one.kind, _name_of(state, one.owner_uid), one.owner_uid, one.message)
        for one in inventory.differences
    ]
    return differences


def _name_of(state: State, uid: str) -> str:
    """`project/name` of what a difference is about; the uid where nothing has it."""
    found = state.find_uid(uid)
    return uid if found is None else "/".join(found[1])


def _being_removed(state: State, node: str) -> set[str]:
    """Ports, networks and routers of instances whose removal this node has not reported yet."""
    owners: set[str] = set()
    for uid in state.placements_on(node):
        found = state.find_instance(uid)
        if found is None:
            continue
        (project, name), row = found
        for port in state.ports_of(project, name):
            owners.add(port.message.meta.uid)
            joined = port.message.spec.network
            network = state.find(keys.NETWORKS, project, joined)
            router = state.router_of(project, joined)
            for owner in (network, router) if row.message.meta.HasField("deleted_at") else ():
                if owner is not None:
                    owners.add(owner.message.meta.uid)
    return owners


def _difference(
    kind: system_pb2.DifferenceType.ValueType, node: str, thing: str, name: str, owner: str, text: str
) -> system_pb2.Difference:
    return system_pb2.Difference(type=kind, node=node, kind=thing, name=name, owner_uid=owner, message=text)
