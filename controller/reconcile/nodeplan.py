"""A node's plan: everything it is to have, compiled from the State alone.

**Pure.** Not stored anywhere: the same State gives the same plan, whoever leads. What a node needs to know of
ports on other nodes is told apart from it (`directory.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from controller.admit.instance import STOP_TIMEOUT_DEFAULT_S
from controller.admit.provider import MTU_DEFAULT
from controller.admit.subnet import addresses_of
from controller.balancers import planned_balancers
from controller.floating import announcers_of, floating_on
from controller.routed import planned_subnets
from controller.state import State
from controller.store import keys
from controller.tables import TUNNEL_BYTES, UNDERLAY_MTU_DEFAULT, Stored
from cumulet.protocols import protocol_number
from cumulet.v1 import (
    agent_pb2,
    instance_pb2,
    network_pb2,
    port_pb2,
    router_pb2,
    securitygroup_pb2,
    store_pb2,
)

GUEST_MTU_DEFAULT: Final = UNDERLAY_MTU_DEFAULT - TUNNEL_BYTES[4]


@dataclass(slots=True)
class _Needs:
    """What a node's instances need besides themselves, by uid."""

    networks: dict[str, network_pb2.Network] = field(default_factory=dict)
    groups: dict[str, securitygroup_pb2.SecurityGroup] = field(default_factory=dict)
    routers: dict[str, router_pb2.Router] = field(default_factory=dict)


def compile_plan(
    state: State, node: str, nonce: str, strays: Iterable[agent_pb2.ObservedInstance] = ()
) -> agent_pb2.NodePlan:
    """The plan of one node for one session.

    `strays` are copies that the node reports and no placement there explains. One that is provably
    superseded (its instance is placed elsewhere with a higher epoch) gets a tombstone; all others are
    left alone, since absence is not a delete.
    """
    plan = agent_pb2.NodePlan(version=plan_version(state), session_nonce=nonce, node=node)
    needs = _Needs()
    placements = state.placements_on(node)
    for uid in sorted(placements):
        placement: store_pb2.PlacementRecord = placements[uid].message
        found = state.find_instance(uid)
        if found is None:
            continue
        instance: instance_pb2.Instance = found[1].message
        if instance.meta.HasField("deleted_at"):
            plan.tombstones.add(uid=uid, epoch=placement.epoch)
        else:
            _add_instance(plan, state, instance, placement, needs)
    for uid, tombstone in tombstones_on(state, node):
        plan.tombstones.add(uid=uid, epoch=tombstone.message.epoch)
    for stray in strays:
        elsewhere = state.placement_of(stray.uid)
        if elsewhere is not None and elsewhere.message.node != node:
            plan.tombstones.add(uid=stray.uid, epoch=elsewhere.message.epoch - 1)
    mtu = guest_mtu(state)
    floating = _floating_by_router(state, node)
    for uid in sorted(needs.networks):
        _add_network(plan, state, needs.networks[uid], mtu, needs)
    for uid in sorted(needs.routers):
        planned = _add_router(plan, state, needs.routers[uid], needs)
        planned.floating_addresses.extend(floating.get(uid, ()))
        vteps = (state.underlays.get(name) for name in announcers_of(state, needs.routers[uid], node))
        _add_routed(planned, state, needs.routers[uid], needs, node)
        planned.announcer_vteps.extend(sorted(one.address for one in vteps if one is not None))
    for uid in sorted(needs.groups):
        _add_group(plan, state, needs.groups[uid])
    return plan


def tombstones_on(state: State, node: str) -> list[tuple[str, Stored]]:
    """(uid, row) of copies that were left on a node when it was declared off. There are few, if any."""
    rows = state.rows(keys.TOMBSTONES)
    return [(parts[1], rows[parts]) for parts in sorted(rows) if parts[0] == node]


def plan_version(state: State) -> agent_pb2.PlanVersion:
    return agent_pb2.PlanVersion(
        restore_generation=state.restore_generation, leader_epoch=state.epoch, revision=state.revision
    )


def guest_mtu(state: State) -> int:
    """What every guest may send in one frame: the same on all nodes, since a guest may go to any."""
    return min((underlay.guest_mtu for underlay in state.underlays.values()), default=GUEST_MTU_DEFAULT)


def _add_instance(
    plan: agent_pb2.NodePlan,
    state: State,
    instance: instance_pb2.Instance,
    placement: store_pb2.PlacementRecord,
    needs: _Needs,
) -> None:
    meta, spec = instance.meta, instance.spec
    planned = plan.instances.add(
        uid=meta.uid,
        name=meta.name,
        project=meta.project,
        epoch=placement.epoch,
        generation=meta.generation,
        resources=spec.resources,
        image=spec.image_files,
        power=spec.power,
        boots=spec.boots,
        stop_timeout_s=0 if spec.power_forced else spec.stop_timeout_s or STOP_TIMEOUT_DEFAULT_S,
        hostname=meta.name,
        authorized_keys=spec.authorized_keys,
        user_data=spec.user_data,
    )
    by_uid = {row.message.meta.uid: row.message for row in state.ports_of(meta.project, meta.name)}
    for attachment in spec.networks:
        port = by_uid.get(attachment.port_uid)
        network = state.find(keys.NETWORKS, meta.project, attachment.network)
        if port is None or network is None:
            continue
        needs.networks[network.message.meta.uid] = network.message
        _add_port(planned, state, port, network.message.meta.uid, needs)


def _add_port(
    planned: agent_pb2.PlannedInstance, state: State, port: port_pb2.Port, network_uid: str, needs: _Needs
) -> None:
    groups = [state.find(keys.SECURITY_GROUPS, port.meta.project, name) for name in port.spec.security_groups]
    found = [group.message for group in groups if group is not None]
    needs.groups.update((group.meta.uid, group) for group in found)
    planned.ports.add(
        uid=port.meta.uid,
        network_uid=network_uid,
        mac=port.spec.mac,
        addresses=addresses_of(state, port),
        security_group_uids=[group.meta.uid for group in found],
        allowed_pairs=[
            agent_pb2.PlannedAddressPair(cidr=pair.cidr, mac=pair.mac) for pair in port.spec.allowed_pairs
        ],
        ingress_bps=port.spec.ingress_bps,
        egress_bps=port.spec.egress_bps,
    )


def _add_network(
    plan: agent_pb2.NodePlan,
    state: State,
    network: network_pb2.Network,
    guest_mtu_bytes: int,
    needs: _Needs,
) -> None:
    planned = plan.networks.add(
        uid=network.meta.uid,
        vni=network.status.vni,
        name=network.meta.name,
        outbound_nat=network.spec.outbound_nat,
        mtu=guest_mtu_bytes,
    )
    if network.spec.HasField("provider"):
        segment = network.spec.provider
        planned.provider.uplink, planned.provider.vlan = segment.uplink, segment.vlan
        planned.mtu = segment.mtu or MTU_DEFAULT
    router = state.router_of(network.meta.project, network.meta.name)
    if router is not None:
        planned.router_uid = router.message.meta.uid
        needs.routers[planned.router_uid] = router.message
    for row in state.subnets_of(network.meta.project, network.meta.name):
        spec = row.message.spec
        planned.subnets.add(
            uid=row.message.meta.uid, cidr=spec.cidr, gateway=spec.gateway, dns_servers=spec.dns_servers
        )


def _add_router(
    plan: agent_pb2.NodePlan, state: State, router: router_pb2.Router, needs: _Needs
) -> agent_pb2.PlannedRouter:
    planned = plan.routers.add(
        uid=router.meta.uid,
        vni=router.status.vni,
        outbound_nat=router.spec.outbound_nat,
        name=router.meta.name,
    )
    for route in router.spec.routes:
        planned.routes.add(cidr=route.cidr, next_hop=route.next_hop)
    for name in router.spec.networks:
        network = state.find(keys.NETWORKS, router.meta.project, name)
        if network is None:
            continue
        uid = network.message.meta.uid
        planned.network_uids.append(uid)
        if uid not in needs.networks:
            subnets = state.subnets_of(router.meta.project, name)
            planned.cidrs_elsewhere.extend(row.message.spec.cidr for row in subnets)
        planned.load_balancers.extend(planned_balancers(state, router.meta.project, name))
    return planned


def _add_routed(
    planned: agent_pb2.PlannedRouter, state: State, router: router_pb2.Router, needs: _Needs, node: str
) -> None:
    """Of the router's networks that are here."""
    project = router.meta.project
    here = {network.meta.name for network in needs.networks.values() if network.meta.project == project}
    names = [name for name in router.spec.networks if name in here]
    planned.routed_subnets.extend(planned_subnets(state, project, names, node))


def _floating_by_router(state: State, node: str) -> dict[str, list[agent_pb2.PlannedFloatingAddress]]:
    """What the node announces, by the router's uid."""
    found: dict[str, list[agent_pb2.PlannedFloatingAddress]] = {}
    for uid, floating, way in floating_on(state, node):
        network = state.find(keys.EXTERNAL_NETWORKS, floating.spec.external_network)
        if network is None or way.router is None:
            continue
        spec = network.message.spec
        planned = agent_pb2.PlannedFloatingAddress(
            uid=uid,
            address=floating.spec.address,
            uplink=spec.uplink,
            cidr=spec.cidr,
            gateway=spec.gateway,
            fixed_address=way.fixed_address,
            load_balancer_uid=way.balancer,
        )
        for forward in way.forwards:
            planned.forwards.add(
                protocol=protocol_number(forward.protocol, 4) or 0,
                port=forward.port,
                target_address=forward.address,
                target_port=forward.target_port,
            )
        found.setdefault(way.router.meta.uid, []).append(planned)
    return found


def _add_group(plan: agent_pb2.NodePlan, state: State, group: securitygroup_pb2.SecurityGroup) -> None:
    planned = plan.security_groups.add(uid=group.meta.uid, name=group.meta.name)
    for rule in group.spec.rules:
        planned.rules.extend(_planned_rules(state, group.meta.project, rule))


def _planned_rules(
    state: State, project: str, rule: securitygroup_pb2.SecurityRule
) -> Iterator[agent_pb2.PlannedRule]:
    """One for each IP version. A rule whose remote group is gone allows nobody, so it has none."""
    remote_uid = ""
    if rule.remote_group:
        remote = state.find(keys.SECURITY_GROUPS, project, rule.remote_group)
        if remote is None:
            return
        remote_uid = remote.message.meta.uid
    for version in (rule.ip_version,) if rule.ip_version else (4, 6):
        planned = agent_pb2.PlannedRule(
            id=f"{rule.id}-{version}",
            egress=rule.direction == securitygroup_pb2.TRAFFIC_DIRECTION_EGRESS,
            ip_version=version,
            protocol=protocol_number(rule.protocol, version) or 0,
            port_min=rule.port_min,
            port_max=rule.port_max,
            remote_cidr=rule.remote_cidr,
            remote_group_uid=remote_uid,
        )
        for name in ("icmp_type", "icmp_code"):
            if rule.HasField(name):
                setattr(planned, name, getattr(rule, name))
        yield planned
