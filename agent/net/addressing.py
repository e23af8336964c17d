"""Links and addresses that the node itself needs: a network's way in and out of its namespace.

**Pure.** Tenants' ranges overlap, so a namespace leaves the node from an address of its own, taken from the
shared address space (RFC 6598) by VNI: unique on a node and the same on every node.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Final

from agent.net import names
from agent.net.driver import IPAddress, NetworkIntent, announces_ipv6
from cumulet.addresses import SLAAC_PREFIX_LENGTH, link_local_address

UPLINK_RANGE: Final = IPv4Network("100.64.0.0/10")
METADATA_ADDRESS: Final = IPv4Address("169.254.169.254")  # on the loopback of a routing domain
METADATA_PORT: Final = 80
ANYWHERE: Final = IPv4Address(0)
ANYWHERE6: Final = IPv6Address(0)
HOST_END: Final = IPv4Address("169.254.0.1")  # the host's end of every uplink; link-local, never routed
# The ends of a router's uplink for IPv6: next hops only, which neither end has or asks for.
HOST_HOP: Final = IPv6Address("fe80::1")
ROUTER_HOP: Final = IPv6Address("fe80::2")
UPLINK_LINK: Final = "up0"  # inside the namespace
ROUTER_UPLINK: Final = "router-uplink"  # the kind in its alias: only a router has one
ROUTER_TUNNEL_LINK: Final = "vx0"  # inside a router's namespace
VNI_MAX: Final = UPLINK_RANGE.num_addresses - 1


def uplink_address(vni: int) -> IPv4Address:
    """The address of a network's namespace towards its node. ValueError when the VNI has none."""
    if not 1 <= vni <= VNI_MAX:
        raise ValueError(f"VNI {vni} is not between 1 and {VNI_MAX}")
    return UPLINK_RANGE.network_address + vni


def fixed_mac(role: str, network_uid: str) -> str:
    """A locally administered MAC that is the same on every node, so that a moved guest keeps its gateway."""
    tail = hashlib.sha256(f"{role}:{network_uid}".encode()).digest()[:5]
    return (b"\x0a" + tail).hex(":")


@dataclass(frozen=True, slots=True)
class Pair:
    """A veth pair from the host (`name`) into a routing domain's namespace (`inner`)."""

    kind: str
    name: str
    inner: str
    inner_mac: str


def gateway_pair(uid: str) -> Pair:
    mac = fixed_mac("gateway", uid)
    return Pair("gateway", names.gateway_link_name(uid), names.inner_gateway_name(uid), mac)


def gateway_addresses(network: NetworkIntent) -> set[tuple[IPAddress, int]]:
    """Of the gateway's link, with prefix lengths; the same on every node. Advertisements need a local one.

    On an operator's network gateways are the operator's, and the node answers at the metadata address alone.
    """
    if network.segment is not None:
        return {(METADATA_ADDRESS, METADATA_ADDRESS.max_prefixlen)}
    found: set[tuple[IPAddress, int]] = {
        (subnet.gateway, subnet.cidr.prefixlen) for subnet in network.subnets
    }
    if announces_ipv6(network):
        found.add((link_local_address(fixed_mac("gateway", network.uid)), SLAAC_PREFIX_LENGTH))
    return found


def link_addresses(network: NetworkIntent) -> set[tuple[IPAddress, int]]:
    """All addresses of the gateway's link."""
    return gateway_addresses(network) | {(one, one.max_prefixlen) for one in network.answered}


def uplink_pair(uid: str) -> Pair:
    """Of a network without a router."""
    return Pair("uplink", names.uplink_name(uid), UPLINK_LINK, fixed_mac("uplink", uid))


def router_uplink_pair(uid: str) -> Pair:
    return Pair(ROUTER_UPLINK, names.uplink_name(uid), UPLINK_LINK, fixed_mac("uplink", uid))
