"""Addresses that the node itself needs: the way out of a network's namespace, and fixed MACs.

**Pure.** Tenants' ranges overlap, so a namespace leaves the node from an address of its own, taken from the
shared address space (RFC 6598) by VNI: unique on a node and the same on every node.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Network
from typing import Final

UPLINK_RANGE: Final = IPv4Network("100.64.0.0/10")
HOST_END: Final = IPv4Address("169.254.0.1")  # the host's end of every uplink; link-local, never routed
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
