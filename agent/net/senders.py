"""What a port may send as: link, MAC and address, as keys of the bridge's maps.

**Pure.** Single addresses are looked up by hash, ranges (allowed pairs) in maps that hold prefixes.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from agent.net.driver import AddressPair, IPAddress, IPNetwork, PortIntent
from cumulet.addresses import link_local_address

Key = tuple[str, str, str]  # map, MAC, address or prefix


def sender_keys(port: PortIntent) -> frozenset[Key]:
    """An address of nothing too: DHCP, probes and neighbour discovery begin with it."""
    mac = port.mac.lower()
    own = [("senders4", mac, str(address)) for address in port.addresses if address.version == 4]
    own += [("senders6", mac, str(address)) for address in ipv6_addresses(port)]
    nobody = [("senders4", mac, "0.0.0.0"), *([("senders6", mac, "::")] if ipv6_addresses(port) else [])]
    return frozenset([*own, *nobody, *_pair_keys(port)])


def ipv6_addresses(port: PortIntent) -> tuple[IPAddress, ...]:
    """The port's own, and with any the one that every guest makes itself."""
    own = tuple(address for address in port.addresses if address.version == 6)
    return (*own, link_local_address(port.mac)) if own else ()


def ipv6_claims(port: PortIntent) -> frozenset[IPAddress]:
    """Every IPv6 address that it may answer for in neighbour discovery; pairs are small (intent_check.py)."""
    pairs = (pair.cidr for pair in port.allowed_pairs if pair.cidr.version == 6)
    return frozenset([*ipv6_addresses(port), *(address for cidr in pairs for address in cidr)])


def _pair_keys(port: PortIntent) -> Iterator[Key]:
    """Overlapping ranges are one."""
    for mac in {_mac(pair, port) for pair in port.allowed_pairs}:
        cidrs = [pair.cidr for pair in port.allowed_pairs if _mac(pair, port) == mac]
        four = collapse_addresses(cidr for cidr in cidrs if isinstance(cidr, IPv4Network))
        six = collapse_addresses(cidr for cidr in cidrs if isinstance(cidr, IPv6Network))
        both: tuple[IPNetwork, ...] = (*four, *six)
        for cidr in both:
            if cidr.prefixlen == cidr.max_prefixlen:
                yield f"senders{cidr.version}", mac, str(cidr.network_address)
            else:
                yield f"pairs{cidr.version}", mac, str(cidr)


def _mac(pair: AddressPair, port: PortIntent) -> str:
    return (pair.mac or port.mac).lower()
