"""Whom a change of the State concerns: nodes whose plan may differ, floating IPs whose node may.

**Pure.** Too many are no harm, one that is missing is told late.
"""

from __future__ import annotations

from collections.abc import Iterable

from controller.balancers import concerned_networks
from controller.floating import find_way
from controller.routed import nodes_routing
from controller.state import Changed, State
from controller.store import keys
from controller.tables import Stored
from cumulet.v1 import floatingip_pb2, store_pb2


def nodes_concerned(state: State, changed: Changed) -> set[str]:
    """Nodes whose plan may differ after a change."""
    table, parts = changed.table, changed.parts
    row = changed.after or changed.before
    if row is None:
        return set()
    if table is keys.TOMBSTONES:
        return {parts[0]}
    if table is keys.PLACEMENTS:
        return {parts[0]} | _forwarding_beside(state, row.message)
    if table is keys.INSTANCES:
        return _nodes_of(state, [row.message.meta.uid]) | _nodes_balancing(state, changed)
    if table is keys.PORTS:
        node = state.places.node_of(row.message)
        return (set() if node is None else {node}) | _nodes_balancing(state, changed)
    if table is keys.LOAD_BALANCERS:
        return _nodes_near(state, parts[0], row.message.spec.network)
    if table is keys.NETWORKS:
        return _nodes_near(state, parts[0], parts[1])
    if table is keys.SUBNETS:
        return _nodes_near(state, parts[0], row.message.spec.network)
    if table is keys.ROUTERS:
        rows = [one for one in (changed.before, changed.after) if one is not None]
        names = {name for one in rows for name in one.message.spec.networks}
        return {node for name in names for node in state.places.of_network(parts[0], name)}
    if table is keys.SECURITY_GROUPS:
        return set(state.places.of_group(*parts))
    if table is keys.NODE_STATUS:
        return {parts[0]} if _uplinks(changed.before) != _uplinks(changed.after) else set()
    if table is keys.EXTERNAL_NETWORKS:
        return _announcing(state, changed) | nodes_routing(state, parts[0])
    return _announcing(state, changed)


def _uplinks(status: Stored | None) -> list[str]:
    return list(status.message.uplinks) if status is not None else []


def _announcing(state: State, changed: Changed) -> set[str]:
    """Nodes that announce a floating IP, or that its connections go to."""
    rows = [one.message for one in (changed.before, changed.after) if one is not None]
    if changed.table is keys.EXTERNAL_NETWORKS:
        records = state.rows(keys.ANNOUNCEMENTS).values()
        uid = rows[0].meta.uid
        return {one.message.node for one in records if one.message.external_network_uid == uid}
    if changed.table is keys.ANNOUNCEMENTS:
        found = state.find(keys.FLOATING_IPS, rows[0].project, rows[0].name)
        nodes = {one.node for one in rows}
        return nodes if found is None else nodes | _forwarded_to(state, found.message)
    if changed.table is keys.FLOATING_IPS:
        record = state.find(keys.ANNOUNCEMENTS, rows[0].meta.uid)
        nodes = {node for one in rows for node in _forwarded_to(state, one)}
        return nodes if record is None else nodes | {record.message.node}
    return set()


def _forwarding_beside(state: State, placement: store_pb2.PlacementRecord) -> set[str]:
    """Nodes of what floating IPs forward to beside an instance: whose node may take the address over."""
    rows = state.rows(keys.FLOATING_IPS, placement.project).values()
    return {
        node
        for row in rows
        if any(one.target == placement.name for one in row.message.spec.forwards)
        for node in _forwarded_to(state, row.message)
    }


def _forwarded_to(state: State, floating: floatingip_pb2.FloatingIP) -> set[str]:
    return set(find_way(state, floating).targets)


def _nodes_balancing(state: State, changed: Changed) -> set[str]:
    """Nodes with load balancers whose members may differ."""
    near = concerned_networks(state, changed)
    return {node for project, network in near for node in _nodes_near(state, project, network)}


def _nodes_near(state: State, project: str, network: str) -> set[str]:
    """Nodes with ports of a network, or of another one of its router."""
    router = state.router_of(project, network)
    names = {network, *(router.message.spec.networks if router is not None else ())}
    return {node for name in names for node in state.places.of_network(project, name)}


def _nodes_of(state: State, uids: list[str]) -> set[str]:
    placements = [state.placement_of(uid) for uid in uids]
    return {placement.message.node for placement in placements if placement is not None}


def floating_concerned(state: State, changed: Changed) -> Iterable[str]:
    """Uids of the floating IPs whose node may be another after a change."""
    table, parts = changed.table, changed.parts
    row = changed.after or changed.before
    if row is None:
        return ()
    if table is keys.FLOATING_IPS:
        return [one.message.meta.uid for one in (changed.before, changed.after) if one is not None]
    if table is keys.ANNOUNCEMENTS:
        return [parts[0], *state.announced_as(row.message.external_network_uid, row.message.address)]
    if table in (keys.INSTANCES, keys.LOAD_BALANCERS):
        return _to(state, parts[0], {parts[1]})
    if table is keys.PORTS:
        return _to(state, parts[0], {parts[1], row.message.spec.instance})
    if table is keys.PLACEMENTS and state.rows(keys.FLOATING_IPS, row.message.project):
        project, name = row.message.project, row.message.name
        ports = state.ports_of(project, name)
        return _to(state, project, {name, *(one.message.meta.name for one in ports)})
    if table is keys.ROUTERS:
        return [one.message.meta.uid for one in state.rows(keys.FLOATING_IPS, parts[0]).values()]
    if table is keys.NODE_STATUS:
        return _at_node(state, changed)
    return all_floating(state) if table is keys.EXTERNAL_NETWORKS else ()


def _at_node(state: State, changed: Changed) -> Iterable[str]:
    """A node that answers or not, or has other links: those that are there, and those that are nowhere."""
    here = state.announced_by(changed.parts[0])
    nowhere = [uid for uid in all_floating(state) if state.find(keys.ANNOUNCEMENTS, uid) is None]
    return [*here, *nowhere]


def _to(state: State, project: str, words: set[str]) -> list[str]:
    rows = state.rows(keys.FLOATING_IPS, project).values()
    return [
        row.message.meta.uid
        for row in rows
        if row.message.spec.target in words
        or any(one.target in words for one in row.message.spec.forwards)
        or state.find(keys.LOAD_BALANCERS, project, row.message.spec.target) is not None
    ]


def all_floating(state: State) -> list[str]:
    """Uids of all that are, or are announced."""
    held = {row.message.meta.uid for row in state.rows(keys.FLOATING_IPS).values()}
    return sorted(held.union(uid for (uid,) in state.rows(keys.ANNOUNCEMENTS)))
