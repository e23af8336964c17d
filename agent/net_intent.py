"""The network part of a node's plan, parsed into the values that the network driver takes.

**Pure.** Whatever cannot be given to a driver raises IntentError or ValueError, and is refused by itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from agent.balancer_intent import parse_balancer
from agent.net.driver import (
    GUEST_MTU_DEFAULT,
    AddressPair,
    FloatingIntent,
    ForwardIntent,
    IPAddress,
    IPNetwork,
    NetworkIntent,
    PortIntent,
    RoutedIntent,
    RouterIntent,
    RuleIntent,
    Segment,
    SubnetIntent,
)
from agent.planned import IntentError, check_uid
from cumulet.addresses import parse_address, parse_range
from cumulet.protocols import PORT_MAX, TRANSLATED
from cumulet.v1 import agent_pb2 as pb

_MAC: Final = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_RULE_ID: Final = re.compile(r"[a-z0-9-]{1,64}")  # it becomes a comment in the kernel
VNI_MAX: Final = 2**24 - 1  # Source: RFC 7348, section 5
GUEST_MTU_MIN: Final = 1280  # RFC 8200, section 5
GUEST_MTU_MAX: Final = 65_535
PROTOCOL_MAX: Final = 255


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """A router's part on this node. `routes`: where ranges behind ports lead, as (range, next hop)."""

    intent: RouterIntent
    network_uids: tuple[str, ...]
    routes: tuple[tuple[IPNetwork, IPAddress], ...]


def check_mac(field: str, text: str) -> str:
    """`text`, if it is a MAC address in lower case. Raises IntentError."""
    if not _MAC.fullmatch(text):
        raise IntentError(f"{field} {text!r} is not a MAC address in lower case")
    return text


def parse_network(network: pb.PlannedNetwork) -> NetworkIntent:
    """Without ports: the diff adds those that live on this node."""
    if not 0 < network.vni <= VNI_MAX:
        raise IntentError(f"vni {network.vni} is not in 1..{VNI_MAX}")
    mtu = network.mtu or GUEST_MTU_DEFAULT
    if not GUEST_MTU_MIN <= mtu <= GUEST_MTU_MAX:
        raise IntentError(f"mtu {mtu} is not in {GUEST_MTU_MIN}..{GUEST_MTU_MAX}")
    return NetworkIntent(
        uid=check_uid("uid", network.uid),
        vni=network.vni,
        subnets=tuple(_parse_subnet(subnet) for subnet in network.subnets),
        outbound_nat=network.outbound_nat,
        ports=(),
        mtu=mtu,
        router_uid=check_uid("router_uid", network.router_uid) if network.router_uid else "",
        segment=Segment(network.provider.uplink, network.provider.vlan)
        if network.HasField("provider")
        else None,
    )


def _parse_subnet(subnet: pb.PlannedSubnet) -> SubnetIntent:
    return SubnetIntent(
        uid=check_uid("subnets.uid", subnet.uid),
        cidr=parse_range(subnet.cidr),
        gateway=parse_address(subnet.gateway),
        dns_servers=tuple(parse_address(server) for server in subnet.dns_servers),
    )


def parse_router(router: pb.PlannedRouter, networks: Collection[NetworkIntent]) -> RouterPlan:
    """`networks` are the router's networks that are on this node."""
    if not 0 < router.vni <= VNI_MAX:
        raise IntentError(f"vni {router.vni} is not in 1..{VNI_MAX}")
    here = (subnet.cidr for network in networks for subnet in network.subnets)
    cidrs = {*map(parse_range, router.cidrs_elsewhere), *here}
    intent = RouterIntent(
        uid=check_uid("uid", router.uid),
        vni=router.vni,
        cidrs=tuple(sorted(cidrs, key=lambda cidr: (cidr.version, cidr))),
        outbound_nat=router.outbound_nat,
        mtu=min((network.mtu for network in networks), default=GUEST_MTU_DEFAULT),
        floating=tuple(_parse_floating(one, router.load_balancers) for one in router.floating_addresses),
        announcers=tuple(map(parse_address, router.announcer_vteps)),
        routed=tuple(map(_parse_routed, router.routed_subnets)),
        balancers=tuple(
            parse_balancer(one, _outside(router, one.uid))
            for one in sorted(router.load_balancers, key=lambda one: one.uid)
        ),
    )
    return RouterPlan(
        intent,
        tuple(check_uid("network_uids", uid) for uid in router.network_uids),
        tuple(_parse_route(route) for route in router.routes),
    )


def _outside(router: pb.PlannedRouter, balancer_uid: str) -> list[str]:
    return [one.address for one in router.floating_addresses if one.load_balancer_uid == balancer_uid]


def _parse_floating(
    floating: pb.PlannedFloatingAddress, balancers: Iterable[pb.PlannedLoadBalancer]
) -> FloatingIntent:
    members = [
        member.address for one in balancers if one.uid == floating.load_balancer_uid for member in one.members
    ]
    return FloatingIntent(
        address=IPv4Address(floating.address),
        uplink=floating.uplink,
        cidr=IPv4Network(floating.cidr),
        gateway=IPv4Address(floating.gateway) if floating.gateway else None,
        fixed=IPv4Address(floating.fixed_address) if floating.fixed_address else None,
        forwards=tuple(map(_parse_forward, floating.forwards)),
        members=tuple(sorted(set(map(IPv4Address, members)))),
    )


def _parse_routed(one: pb.PlannedRoutedSubnet) -> RoutedIntent:
    """Without addresses: those of the node's ports are known when its instances are."""
    return RoutedIntent(
        subnet=IPv6Network(one.cidr),
        router_address=IPv6Address(one.gateway),
        uplink=one.uplink,
        cidr=IPv6Network(one.external_cidr),
        gateway=IPv6Address(one.external_gateway) if one.external_gateway else None,
    )


def _parse_forward(forward: pb.PlannedForward) -> ForwardIntent:
    if forward.protocol not in TRANSLATED or not 0 < forward.port <= PORT_MAX:
        raise IntentError(f"forwards: protocol {forward.protocol}, port {forward.port}")
    if not 0 < forward.target_port <= PORT_MAX:
        raise IntentError(f"forwards.target_port {forward.target_port} is not in 1..{PORT_MAX}")
    target = IPv4Address(forward.target_address)
    return ForwardIntent(forward.protocol, forward.port, target, forward.target_port)


def _parse_route(route: pb.PlannedRoute) -> tuple[IPNetwork, IPAddress]:
    cidr, next_hop = parse_range(route.cidr), parse_address(route.next_hop)
    if cidr.version != next_hop.version:
        raise IntentError(f"routes.next_hop {next_hop} is not of IPv{cidr.version}")
    return cidr, next_hop


def parse_port(port: pb.PlannedPort, hostname: str) -> PortIntent:
    """One port of an instance of this node."""
    return PortIntent(
        uid=check_uid("ports.uid", port.uid),
        network_uid=check_uid("ports.network_uid", port.network_uid),
        mac=check_mac("ports.mac", port.mac),
        addresses=tuple(parse_address(address) for address in port.addresses),
        hostname=hostname,
        security_groups=tuple(check_uid("ports.security_groups", uid) for uid in port.security_group_uids),
        allowed_pairs=tuple(_parse_pair(pair) for pair in port.allowed_pairs),
        ingress_bps=port.ingress_bps,
        egress_bps=port.egress_bps,
    )


def _parse_pair(pair: pb.PlannedAddressPair) -> AddressPair:
    return AddressPair(parse_range(pair.cidr), check_mac("allowed_pairs.mac", pair.mac) if pair.mac else "")


def parse_rules(group: pb.PlannedSecurityGroup) -> tuple[RuleIntent, ...]:
    """The rules of a security group, all or none: a part of them would not be what was asked for."""
    check_uid("uid", group.uid)
    return tuple(_parse_rule(rule) for rule in group.rules)


def _parse_rule(rule: pb.PlannedRule) -> RuleIntent:
    if not _RULE_ID.fullmatch(rule.id):
        raise IntentError(f"rules.id {rule.id!r} is not of letters, digits and hyphens")
    if rule.ip_version not in (4, 6) or rule.protocol > PROTOCOL_MAX:
        raise IntentError(f"rule {rule.id}: IP version {rule.ip_version}, protocol {rule.protocol}")
    if not 0 <= rule.port_min <= rule.port_max <= PORT_MAX:
        raise IntentError(f"rule {rule.id}: ports {rule.port_min}-{rule.port_max}")
    return RuleIntent(
        uid=rule.id,
        egress=rule.egress,
        ip_version=rule.ip_version,
        protocol=rule.protocol,
        port_min=rule.port_min,
        port_max=rule.port_max,
        icmp_type=rule.icmp_type if rule.HasField("icmp_type") else None,
        icmp_code=rule.icmp_code if rule.HasField("icmp_code") else None,
        remote_cidr=parse_range(rule.remote_cidr) if rule.remote_cidr else None,
        remote_group=check_uid("rules.remote_group_uid", rule.remote_group_uid)
        if rule.remote_group_uid
        else "",
    )
