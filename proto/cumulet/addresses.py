"""IPv6 addresses that follow from a MAC, so that nothing needs to store them.

**Pure.** Source: RFC 4291, appendix A (modified EUI-64); RFC 4862 (SLAAC).
"""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network
from typing import Final

SLAAC_PREFIX_LENGTH: Final = 64  # RFC 4291, section 2.5.1: interface identifiers have 64 bits
_LINK_LOCAL: Final = IPv6Network("fe80::/64")
_UNIVERSAL_BIT: Final = 0x02


def slaac_address(prefix: IPv6Network, mac: str) -> IPv6Address:
    """The address that a guest with this MAC makes itself in a /64. ValueError for another length."""
    if prefix.prefixlen != SLAAC_PREFIX_LENGTH:
        raise ValueError(f"{prefix} is not a /{SLAAC_PREFIX_LENGTH}")
    return prefix.network_address + _interface_identifier(mac)


def link_local_address(mac: str) -> IPv6Address:
    """The link-local address that a guest with this MAC makes itself."""
    return slaac_address(_LINK_LOCAL, mac)


def _interface_identifier(mac: str) -> int:
    first, *rest = bytes.fromhex(mac.replace(":", ""))
    return int.from_bytes(bytes([first ^ _UNIVERSAL_BIT, *rest[:2], 0xFF, 0xFE, *rest[2:]]), "big")
