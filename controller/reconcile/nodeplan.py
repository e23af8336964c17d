"""A node's plan: everything it is to have, compiled from the State alone.

**Pure.** Not stored anywhere: the same State gives the same plan, whoever leads.
"""

from __future__ import annotations

from collections.abc import Iterable

from controller.admit.instance import STOP_TIMEOUT_DEFAULT_S
from controller.admit.subnet import subnets_of
from controller.state import State, Stored
from controller.store import keys
from cumulet.v1 import agent_pb2, instance_pb2, network_pb2, store_pb2


def compile_plan(
    state: State, node: str, nonce: str, strays: Iterable[agent_pb2.ObservedInstance] = ()
) -> agent_pb2.NodePlan:
    """The plan of one node for one session.

    `strays` are copies that the node reports and no placement there explains. One that is provably
    superseded (its instance is placed elsewhere with a higher epoch) gets a tombstone; all others are
    left alone, since absence is not a delete.
    """
    plan = agent_pb2.NodePlan(version=plan_version(state), session_nonce=nonce, node=node)
    networks: dict[str, network_pb2.Network] = {}
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
            _add_instance(plan, state, instance, placement, networks)
    for uid, tombstone in tombstones_on(state, node):
        plan.tombstones.add(uid=uid, epoch=tombstone.message.epoch)
    for stray in strays:
        elsewhere = state.placement_of(stray.uid)
        if elsewhere is not None and elsewhere.message.node != node:
            plan.tombstones.add(uid=stray.uid, epoch=elsewhere.message.epoch - 1)
    for uid in sorted(networks):
        _add_network(plan, state, networks[uid])
    return plan


def tombstones_on(state: State, node: str) -> list[tuple[str, Stored]]:
    """(uid, row) of copies that were left on a node when it was declared off. There are few, if any."""
    rows = state.rows(keys.TOMBSTONES)
    return [(parts[1], rows[parts]) for parts in sorted(rows) if parts[0] == node]


def plan_version(state: State) -> agent_pb2.PlanVersion:
    return agent_pb2.PlanVersion(
        restore_generation=state.restore_generation, leader_epoch=state.epoch, revision=state.revision
    )


def _add_instance(
    plan: agent_pb2.NodePlan,
    state: State,
    instance: instance_pb2.Instance,
    placement: store_pb2.PlacementRecord,
    networks: dict[str, network_pb2.Network],
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
        networks[network.message.meta.uid] = network.message
        planned.ports.add(
            uid=port.meta.uid,
            network_uid=network.message.meta.uid,
            mac=port.spec.mac,
            addresses=[fixed.address for fixed in port.spec.addresses],
        )


def _add_network(plan: agent_pb2.NodePlan, state: State, network: network_pb2.Network) -> None:
    planned = plan.networks.add(
        uid=network.meta.uid,
        vni=network.status.vni,
        name=network.meta.name,
        outbound_nat=network.spec.outbound_nat,
    )
    for _, row in subnets_of(state, network.meta.project, network.meta.name):
        spec = row.message.spec
        planned.subnets.add(
            uid=row.message.meta.uid, cidr=spec.cidr, gateway=spec.gateway, dns_servers=spec.dns_servers
        )
