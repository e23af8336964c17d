"""Load balancers of a router, as values.

**Pure.** A balancer's address belongs to every part of its router; each node translates for its own clients.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

BalancedAddress = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True, order=True)
class Probed:
    """Where a member's health is asked for."""

    address: BalancedAddress
    port: int


@dataclass(frozen=True, slots=True)
class ListenerIntent:
    """`protocol`: IANA's number, of TCP or UDP."""

    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class MemberIntent:
    """`port` 0: the listener's. One that drains gets no new connections."""

    address: BalancedAddress
    port: int
    drain: bool
    health_port: int

    @property
    def probed(self) -> Probed:
        return Probed(self.address, self.health_port)


@dataclass(frozen=True, slots=True)
class HealthIntent:
    """`http_path` empty: a TCP connection is enough."""

    http_path: str
    interval_s: int
    timeout_s: int
    rise: int
    fall: int


@dataclass(frozen=True, slots=True)
class BalancerIntent:
    """`members` are in order, of the address's IP version. Without `health` all count as healthy.

    `outside`: addresses of the outside that this node answers for and that its listeners are asked at, too;
    none for an IPv6 balancer.
    """

    uid: str
    name: str
    address: BalancedAddress
    listeners: tuple[ListenerIntent, ...]
    by_source: bool
    members: tuple[MemberIntent, ...]
    health: HealthIntent | None = None
    outside: tuple[IPv4Address, ...] = ()

    def probed(self) -> frozenset[Probed]:
        """Whom to ask; one that drains is not asked."""
        if self.health is None:
            return frozenset()
        return frozenset(member.probed for member in self.members if not member.drain)


def chosen_members(balancer: BalancerIntent, down: Collection[Probed]) -> tuple[MemberIntent, ...]:
    """Who gets new connections: those that are healthy; where nobody is, all, since a check may be wrong."""
    willing = tuple(member for member in balancer.members if not member.drain)
    return tuple(member for member in willing if member.probed not in down) or willing


def answered_in(
    cidrs: Iterable[IPv4Network | IPv6Network], balancers: Iterable[BalancerIntent]
) -> tuple[IPv6Address, ...]:
    """Addresses that a gateway's link has to have so that guests on it find them by ND.

    ARP is answered for any address of the namespace, ND only for those of the link that was asked on.
    """
    ranges = list(cidrs)
    found = (one.address for one in balancers if any(one.address in cidr for cidr in ranges))
    return tuple(sorted(address for address in found if isinstance(address, IPv6Address)))


def balancer_to_json(balancer: BalancerIntent) -> dict[str, Any]:
    health = balancer.health
    return {
        "uid": balancer.uid,
        "name": balancer.name,
        "address": str(balancer.address),
        "listeners": [[one.protocol, one.port] for one in balancer.listeners],
        "by_source": balancer.by_source,
        "outside": list(map(str, balancer.outside)),
        "members": [[str(one.address), one.port, one.drain, one.health_port] for one in balancer.members],
        "health": None
        if health is None
        else [health.http_path, health.interval_s, health.timeout_s, health.rise, health.fall],
    }


def balancer_from_json(raw: dict[str, Any]) -> BalancerIntent:
    """Raises KeyError, TypeError, ValueError for what another version wrote."""
    return BalancerIntent(
        uid=raw["uid"],
        name=raw["name"],
        address=ip_address(raw["address"]),
        listeners=tuple(ListenerIntent(protocol, port) for protocol, port in raw["listeners"]),
        by_source=raw["by_source"],
        members=tuple(
            MemberIntent(ip_address(address), port, drain, health_port)
            for address, port, drain, health_port in raw["members"]
        ),
        health=HealthIntent(*raw["health"]) if raw["health"] is not None else None,
        outside=tuple(map(IPv4Address, raw["outside"])),
    )
