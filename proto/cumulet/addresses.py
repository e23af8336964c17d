"""Addresses that follow from something else, so that nothing needs to store them.

**Pure.** Source: RFC 4291, appendix A (modified EUI-64); RFC 4862 (SLAAC).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

SLAAC_PREFIX_LENGTH: Final = 64  # RFC 4291, section 2.5.1: interface identifiers have 64 bits
# Of routers' parts, one for each node, from where they ask whether a load balancer's members live. RFC 2544
# keeps the range for tests of devices, so no network has it.
PART_RANGE: Final = IPv4Network("198.18.0.0/15")
PART_RANGE6: Final = IPv6Network("2001:2::/48")  # RFC 5180 keeps it for the same tests by IPv6
_LINK_LOCAL: Final = IPv6Network("fe80::/64")
_UNIVERSAL_BIT: Final = 0x02


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """An address that is the same on every node: ValueError for anything else, also for one with a zone
    (fe80::1%eth0), which may be any text."""
    return ip_address(_without_zone(text))


def parse_range(text: str) -> IPv4Network | IPv6Network:
    """A range whose host bits are 0. ValueError as of `parse_address`."""
    return ip_network(_without_zone(text))


def slaac_address(prefix: IPv6Network, mac: str) -> IPv6Address:
    """The address that a guest with this MAC makes itself in a /64. ValueError for another length."""
    if prefix.prefixlen != SLAAC_PREFIX_LENGTH:
        raise ValueError(f"{prefix} is not a /{SLAAC_PREFIX_LENGTH}")
    return prefix.network_address + _interface_identifier(mac)


def link_local_address(mac: str) -> IPv6Address:
    """The link-local address that a guest with this MAC makes itself."""
    return slaac_address(_LINK_LOCAL, mac)


def part_address(underlay: IPv4Address | IPv6Address | None) -> IPv4Address:
    """Of a node's part of every router: it follows from the node's underlay address, of which it has the low
    bits, so two nodes of a cloud must differ in these."""
    return PART_RANGE.network_address + _part_number(underlay)


def part_address6(underlay: IPv4Address | IPv6Address | None) -> IPv6Address:
    """The IPv6 one of the same part, with the same number."""
    return PART_RANGE6.network_address + _part_number(underlay)


def is_of_part(address: IPv4Address | IPv6Address) -> bool:
    return address in PART_RANGE or address in PART_RANGE6


def follows_from_mac(address: IPv6Address) -> bool:
    """Whether it could be one that a guest makes of some MAC: then it is nobody else's."""
    return address.packed[11:13] == b"\xff\xfe"


def with_port(address: str, port: int) -> str:
    """Both as one word; of IPv6 in brackets (RFC 3986, section 3.2.2)."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _part_number(underlay: IPv4Address | IPv6Address | None) -> int:
    return int(underlay) % PART_RANGE.num_addresses if underlay is not None else 0


def _without_zone(text: str) -> str:
    if "%" in text:
        raise ValueError("an address with a zone, after a percent sign, means something on one node only")
    return text


def _interface_identifier(mac: str) -> int:
    first, *rest = bytes.fromhex(mac.replace(":", ""))
    return int.from_bytes(bytes([first ^ _UNIVERSAL_BIT, *rest[:2], 0xFF, 0xFE, *rest[2:]]), "big")
