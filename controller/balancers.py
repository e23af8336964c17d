"""Load balancers: which ones rest on a network, and who their members are at this moment.

**Pure.** An instance is a member by its port in the first of the balancer's networks that gives it an address
of the balancer's IP version. What vanished is no member; an instance that is switched off or being deleted
drains.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from controller.admit.subnet import addresses_of
from controller.selector import parse_selector, required_label
from controller.state import Changed, State
from controller.store import keys
from cumulet.protocols import protocol_number
from cumulet.v1 import agent_pb2, instance_pb2, loadbalancer_pb2

MEMBERS_MAX: Final = 256  # of one load balancer, resolved: each is a rule on every node with clients


@dataclass(frozen=True, slots=True)
class Member:
    """One resolved member. `port` 0: the listener's; `instance` empty: it was given by its address."""

    address: str
    port: int
    drain: bool
    instance: str = ""


def version_of(balancer: loadbalancer_pb2.LoadBalancer) -> int:
    """The IP version that it is of."""
    return ip_address(balancer.spec.address).version


def networks_near(state: State, project: str, network: str) -> list[str]:
    """A network and those that its router joins to it."""
    router = state.router_of(project, network)
    return list(dict.fromkeys([network, *(router.message.spec.networks if router is not None else ())]))


def resolve_members(state: State, balancer: loadbalancer_pb2.LoadBalancer) -> list[Member]:
    """In order of addresses. Where several entries mean the same address and port, one that drains wins."""
    project = balancer.meta.project
    networks = networks_near(state, project, balancer.spec.network)
    version = version_of(balancer)
    found: dict[tuple[str, int], Member] = {}
    for entry in balancer.spec.members:
        for member in _members_of(state, project, networks, version, entry):
            known = found.get((member.address, member.port))
            if known is None or member.drain:
                found[member.address, member.port] = member
    ordered = sorted(found.values(), key=lambda one: (ip_address(one.address), one.port))
    return ordered[:MEMBERS_MAX]


def concerned_networks(state: State, changed: Changed) -> Iterator[tuple[str, str]]:
    """(project, network) of the balancers whose members may differ after a change of an instance or port."""
    project = changed.parts[0]
    rows = [row.message for row in (changed.before, changed.after) if row is not None]
    if changed.table is keys.PORTS:
        instance = state.find(keys.INSTANCES, project, rows[-1].spec.instance)
        rows = [instance.message] if instance is not None else []
    for balancer in state.rows(keys.LOAD_BALANCERS, project).values():
        if any(_is_meant(balancer.message, instance) for instance in rows):
            yield project, balancer.message.spec.network


def planned_balancers(state: State, project: str, network: str) -> list[agent_pb2.PlannedLoadBalancer]:
    """Those whose address is in a network, as nodes are told of them."""
    return [_planned(state, row.message) for row in state.balancers_in(project, network)]


def _planned(state: State, balancer: loadbalancer_pb2.LoadBalancer) -> agent_pb2.PlannedLoadBalancer:
    spec = balancer.spec
    planned = agent_pb2.PlannedLoadBalancer(
        uid=balancer.meta.uid,
        name=balancer.meta.name,
        address=spec.address,
        by_source=spec.algorithm == loadbalancer_pb2.BALANCING_ALGORITHM_SOURCE_HASH,
    )
    for listener in spec.listeners:
        planned.listeners.add(protocol=protocol_number(listener.protocol, 4), port=listener.port)
    for member in resolve_members(state, balancer):
        health_port = spec.health_check.port or member.port or spec.listeners[0].port
        planned.members.add(
            address=member.address, port=member.port, drain=member.drain, health_port=health_port
        )
    if spec.HasField("health_check"):
        check = spec.health_check
        planned.health_check.CopyFrom(
            agent_pb2.PlannedHealthCheck(
                http_path=check.path,
                interval_s=check.interval_s,
                timeout_s=check.timeout_s,
                rise=check.rise,
                fall=check.fall,
            )
        )
    return planned


def _is_meant(balancer: loadbalancer_pb2.LoadBalancer, instance: instance_pb2.Instance) -> bool:
    return any(
        entry.instance == instance.meta.name
        or (entry.selector and parse_selector(entry.selector)(instance.meta.labels))
        for entry in balancer.spec.members
    )


def _members_of(
    state: State,
    project: str,
    networks: list[str],
    version: int,
    entry: loadbalancer_pb2.LoadBalancerMember,
) -> Iterator[Member]:
    if entry.address:
        yield Member(entry.address, entry.port, entry.drain)
        return
    for instance in _instances_of(state, project, entry):
        address = _address_of(state, instance, networks, version)
        if address is not None:
            is_off = instance.spec.power != instance_pb2.POWER_STATE_ON
            drain = entry.drain or is_off or instance.meta.HasField("deleted_at")
            yield Member(address, entry.port, drain, instance.meta.name)


def _instances_of(
    state: State, project: str, entry: loadbalancer_pb2.LoadBalancerMember
) -> Iterator[instance_pb2.Instance]:
    if entry.instance:
        row = state.find(keys.INSTANCES, project, entry.instance)
        if row is not None:
            yield row.message
        return
    matches, label = parse_selector(entry.selector), required_label(entry.selector)
    rows = state.instances_labelled(project, *label) if label else state.rows(keys.INSTANCES, project)
    for row in rows.values():
        if matches(row.message.meta.labels):
            yield row.message


def _address_of(
    state: State, instance: instance_pb2.Instance, networks: list[str], version: int
) -> str | None:
    ports = {
        row.message.meta.uid: row.message for row in state.ports_of(instance.meta.project, instance.meta.name)
    }
    for attachment in instance.spec.networks:
        port = ports.get(attachment.port_uid)
        if port is None or attachment.network not in networks:
            continue
        for address in addresses_of(state, port):
            if ip_address(address).version == version:
                return address
    return None
