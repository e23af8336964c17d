"""Subnets out of external networks' IPv6 ranges: whose addresses are the outside's, too, and on which nodes.

**Pure.** A port's address is answered for by the port's own node, if that has a link to the external network;
there is no record, since a port is on one node only. A network without a router leads nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv6Address, IPv6Network, ip_network
from typing import Final, NamedTuple

from controller.admit.subnet import Address, addresses_of
from controller.state import State
from controller.store import keys
from controller.tables import Stored
from cumulet.addresses import SLAAC_PREFIX_LENGTH
from cumulet.v1 import agent_pb2, port_pb2

_UNIQUE_LOCAL: Final = IPv6Network("fc00::/7")


def planned_subnets(
    state: State, project: str, networks: Iterable[str], node: str
) -> Iterator[agent_pb2.PlannedRoutedSubnet]:
    """Those of these networks that the node can answer for."""
    for network in networks:
        for row in state.subnets_of(project, network):
            external = external_of(state, row)
            if external is not None and has_uplink(state, external, node):
                spec = external.message.spec
                yield agent_pb2.PlannedRoutedSubnet(
                    cidr=row.message.spec.cidr,
                    gateway=row.message.spec.gateway,
                    uplink=spec.uplink,
                    external_cidr=spec.cidr6,
                    external_gateway=spec.gateway6,
                )


def external_of(state: State, subnet: Stored) -> Stored | None:
    """The external network that a subnet's range is of; None for a tenant's own."""
    name = subnet.message.spec.external_network
    return state.find(keys.EXTERNAL_NETWORKS, name) if name else None


def external_at(state: State, project: str, network: str, address: IPv6Address) -> Stored | None:
    """The external network that an address of a network's port is of."""
    rows = state.subnets_of(project, network)
    found = (row for row in rows if address in ip_network(row.message.spec.cidr))
    return next((external for row in found if (external := external_of(state, row)) is not None), None)


def find_routed(state: State, address: IPv6Address) -> port_pb2.Port | None:
    """The port that the outside means by an address; of any project, since it does not know of projects."""
    own = IPv6Network((address, SLAAC_PREFIX_LENGTH), strict=False)
    for row in state.rows(keys.EXTERNAL_NETWORKS).values():
        uid = state.addresses_in(row.message.meta.uid).get(str(own.network_address), "")
        found = state.find_uid(uid)
        if found is None or found[0] is not keys.SUBNETS:
            continue
        project, network = found[1][0], found[2].message.spec.network
        for port in state.ports_in(project, network):
            if str(address) in addresses_of(state, port.message):
                held: port_pb2.Port = port.message
                return held
    return None


def has_uplink(state: State, external: Stored, node: str) -> bool:
    status = state.find(keys.NODE_STATUS, node)
    return status is not None and external.message.spec.uplink in status.message.uplinks


def missing_uplink(external: Stored, node: str) -> str:
    """What to say of a node that has no link."""
    uplink, name = external.message.spec.uplink, external.message.meta.name
    return f"node {node} has no link to external network {name} (its agent's --uplink {uplink}=LINK)"


class Crossing(NamedTuple):
    """Whether a router's part lets an address through to the outside, or in from there, and why."""

    passes: bool
    text: str
    router: str = ""


def leave_routed(state: State, port: port_pb2.Port, address: IPv6Address, node: str) -> Crossing:
    """Of a port's own address, on the port's node."""
    project, network = port.meta.project, port.spec.network
    router, external = state.router_of(project, network), external_at(state, project, network, address)
    if external is None:
        text = f"IPv6 is not translated, and {address} is of no external network's range"
        return Crossing(False, f"{text}: no route leads outside")
    name = external.message.meta.name
    if router is None:
        hint = f"cumulet router create NAME --network {network}"
        return Crossing(False, f"network {network} has no router, so nothing leads outside: {hint}")
    if not has_uplink(state, external, node):
        return Crossing(False, missing_uplink(external, node), router.message.meta.name)
    text = f"router {router.message.meta.name} sends it to external network {name} as it is"
    return Crossing(True, text, router.message.meta.name)


def enter_routed(state: State, port: port_pb2.Port, address: IPv6Address, node: str) -> Crossing:
    """Of a port's own address, on the port's node; empty for a port that is on none."""
    if not node:
        return Crossing(
            False, f"instance {port.spec.instance} is on no node, so nobody answers for {address}"
        )
    out = leave_routed(state, port, address, node)
    if not out.passes:
        return out
    text = f"{node} answers for {address}, and router {out.router} leads it to {port.spec.network}"
    return out._replace(text=text)


def choose_source(held: Sequence[Address], target: Address | None) -> Address | None:
    """Which of its addresses a guest speaks to another one from (RFC 6724, section 5, rules 6 and 8)."""
    if target is None or target.version == 4:
        return next(iter(held), None)

    def nearness(address: Address) -> tuple[bool, int]:
        apart = (int(address) ^ int(target)).bit_length()
        return (address in _UNIQUE_LOCAL) == (target in _UNIQUE_LOCAL), -apart

    return max(held, key=nearness, default=None)


def choose_goal(
    state: State, source: port_pb2.Port, target: port_pb2.Port, theirs: Sequence[Address]
) -> Address | None:
    """Which of a port's addresses is meant: behind another router, one that is the outside's, too."""
    (mine, other) = (state.router_of(port.meta.project, port.spec.network) for port in (source, target))
    if mine is None or other is None or mine.message.meta.uid != other.message.meta.uid:
        own = (one for one in theirs if isinstance(one, IPv6Address))
        routed = (one for one in own if find_routed(state, one) is not None)
        return next(routed, next(iter(theirs), None))
    return next(iter(theirs), None)


def nodes_routing(state: State, external: str) -> set[str]:
    """Nodes with ports of subnets of an external network."""
    return {
        node
        for (project, _), row in state.rows(keys.SUBNETS).items()
        if row.message.spec.external_network == external
        for node in state.places.of_network(project, row.message.spec.network)
    }
