"""Which tracked connections the groups of a network's ports still allow.

**Pure.** Rules are asked for a connection's first packet only, so what a removed rule allowed has to be found
and ended. The same rules in plain Python: whoever began the connection needs an egress rule, whoever it leads
to an ingress rule; an end that is not on this node is judged by its own node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from agent.net import security
from agent.net.addressing import METADATA_ADDRESS, METADATA_PORT
from agent.net.conntrack_wire import Connection
from agent.net.driver import GroupIntent, IPAddress, IPNetwork, PortIntent, RuleIntent
from agent.net.guest_rules import ROUTED
from cumulet.addresses import is_of_part

_TCP, _UDP, _ICMP, _ICMPV6 = 6, 17, 1, 58
_ICMP_OF: Final = {4: _ICMP, 6: _ICMPV6}
_ECHO_REQUEST: Final = {_ICMP: 8, _ICMPV6: 128}
_DHCP_TARGETS: Final = (IPv4Address("255.255.255.255"), IPv6Address("ff02::1:2"))


@dataclass(frozen=True, slots=True)
class Policy:
    """What judges the connections of one network on this node."""

    ports: tuple[PortIntent, ...]
    gateways: frozenset[IPAddress]
    groups: Mapping[str, GroupIntent]
    cidrs: frozenset[IPNetwork] = frozenset()

    def allows(self, connection: Connection) -> bool:
        sender, receiver = self._find(connection.source), self._find(connection.destination)
        return (
            sender is None
            or self._is_service(connection)
            or self._is_balanced(connection)
            or self._permits(sender, connection, egress=True)
        ) and (
            receiver is None
            or (connection.source in self.gateways and _is_service_answer(connection))
            or is_of_part(connection.source)
            or self._permits(receiver, connection, egress=False)
        )

    def _is_balanced(self, connection: Connection) -> bool:
        """Within a subnet, yet by the gateway: what a load balancer made of one to its own address. That one
        is judged by itself.
        """
        ends = connection.source, connection.destination
        return connection.mark == ROUTED and any(all(end in cidr for end in ends) for cidr in self.cidrs)

    def _find(self, address: IPAddress) -> PortIntent | None:
        for port in self.ports:
            if address in port.addresses:
                return port
        for port in self.ports:
            if any(address in pair.cidr for pair in port.allowed_pairs):
                return port
        return None

    def _permits(self, port: PortIntent, connection: Connection, *, egress: bool) -> bool:
        if not security.is_filtered(port):
            return True
        known = (self.groups[uid] for uid in port.group_uids if uid in self.groups)
        return any(self._rule_permits(rule, connection, egress) for group in known for rule in group.rules)

    def _rule_permits(self, rule: RuleIntent, connection: Connection, egress: bool) -> bool:
        far_end = connection.destination if egress else connection.source
        return (
            rule.egress == egress
            and rule.ip_version == far_end.version
            and self._includes(rule, far_end)
            and _fits_protocol(rule, connection)
        )

    def _includes(self, rule: RuleIntent, far_end: IPAddress) -> bool:
        if rule.remote_group:
            group = self.groups.get(rule.remote_group)
            return group is not None and far_end in group.members
        return rule.remote_cidr is None or far_end in rule.remote_cidr

    def _is_service(self, connection: Connection) -> bool:
        protocol, target, number = connection.protocol, connection.destination, connection.second
        if target in self.gateways:
            is_name = protocol in (_TCP, _UDP) and number == 53
            is_echo = connection.first == _ECHO_REQUEST.get(protocol)
            return is_name or is_echo or (protocol, number) == (_UDP, 67)
        if target in _DHCP_TARGETS:
            return protocol == _UDP and number in (67, 547)
        return (target, protocol, number) == (METADATA_ADDRESS, _TCP, METADATA_PORT)


def affected_networks(uid: str, ports: Iterable[PortIntent], groups: Mapping[str, GroupIntent]) -> set[str]:
    """Networks here with a port that a group judges, or whose groups mean its members."""
    judging = {uid} | {
        other.uid for other in groups.values() if any(rule.remote_group == uid for rule in other.rules)
    }
    return {port.network_uid for port in ports if judging & set(port.group_uids)}


def is_narrower(before: GroupIntent | None, after: GroupIntent) -> bool:
    """Whether something that was allowed may not be any more. Unknown before: it may."""
    return before is None or not (
        set(map(_without_uid, before.rules)) <= set(map(_without_uid, after.rules))
        and before.members <= after.members
    )


def _without_uid(rule: RuleIntent) -> tuple[object, ...]:
    return (
        *(rule.egress, rule.ip_version, rule.protocol, rule.port_min, rule.port_max),
        *(rule.icmp_type, rule.icmp_code, rule.remote_cidr, rule.remote_group),
    )


def _is_service_answer(connection: Connection) -> bool:
    return connection.protocol == _UDP and (connection.first, connection.second) in ((67, 68), (547, 546))


def _fits_protocol(rule: RuleIntent, connection: Connection) -> bool:
    if not rule.protocol:
        return True
    if rule.protocol != connection.protocol:
        return False
    if rule.protocol == _ICMP_OF[rule.ip_version]:
        return rule.icmp_type in (None, connection.first) and rule.icmp_code in (None, connection.second)
    return not rule.port_min or rule.port_min <= connection.second <= rule.port_max
