"""A planned load balancer, parsed into the value that the network driver takes.

**Pure.** Raises IntentError or ValueError: the router that it belongs to is refused with it, since half of
what its plan says would be another plan.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Final

from agent.net.balancer import BalancerIntent, HealthIntent, ListenerIntent, MemberIntent
from agent.planned import IntentError, check_uid
from cumulet.addresses import parse_address
from cumulet.protocols import PORT_MAX, TRANSLATED
from cumulet.v1 import agent_pb2 as pb

SECONDS_MAX: Final = 3_600
ANSWERS_MAX: Final = 100


def parse_balancer(planned: pb.PlannedLoadBalancer, outside: Iterable[str] = ()) -> BalancerIntent:
    """`outside`: addresses of the outside that lead to it here."""
    address = parse_address(planned.address)
    members = tuple(_parse_member(member) for member in planned.members)
    for member in members:
        if member.address.version != address.version:
            problem = f"load_balancers.members.address {member.address} is not of IPv{address.version}"
            raise IntentError(problem)
    leads_here = tuple(sorted(map(IPv4Address, outside)))
    if leads_here and address.version != 4:
        raise IntentError(f"floating_addresses.address {leads_here[0]} leads to a load balancer of IPv6")
    return BalancerIntent(
        uid=check_uid("load_balancers.uid", planned.uid),
        name=planned.name,
        address=address,
        listeners=tuple(_parse_listener(listener) for listener in planned.listeners),
        by_source=planned.by_source,
        members=members,
        health=_parse_health(planned.health_check) if planned.HasField("health_check") else None,
        outside=leads_here,
    )


def _parse_listener(listener: pb.PlannedListener) -> ListenerIntent:
    if listener.protocol not in TRANSLATED:
        raise IntentError(f"load_balancers.listeners.protocol {listener.protocol} is neither TCP nor UDP")
    return ListenerIntent(listener.protocol, _port("listeners.port", listener.port, 1))


def _parse_member(member: pb.PlannedBalancerMember) -> MemberIntent:
    return MemberIntent(
        parse_address(member.address),
        _port("members.port", member.port, 0),
        member.drain,
        _port("members.health_port", member.health_port, 1),
    )


def _parse_health(check: pb.PlannedHealthCheck) -> HealthIntent:
    path = check.http_path
    if path and not (path.startswith("/") and path.isascii() and path.isprintable() and " " not in path):
        raise IntentError(f"load_balancers.health_check.http_path {path[:64]!r} is no path")
    amounts = (
        ("interval_s", check.interval_s, SECONDS_MAX),
        ("timeout_s", check.timeout_s, SECONDS_MAX),
        ("rise", check.rise, ANSWERS_MAX),
        ("fall", check.fall, ANSWERS_MAX),
    )
    for name, amount, most in amounts:
        if not 1 <= amount <= most:
            raise IntentError(f"load_balancers.health_check.{name} {amount} is not in 1..{most}")
    return HealthIntent(path, check.interval_s, check.timeout_s, check.rise, check.fall)


def _port(field: str, port: int, least: int) -> int:
    if not least <= port <= PORT_MAX:
        raise IntentError(f"load_balancers.{field} {port} is not in {least}..{PORT_MAX}")
    return port
