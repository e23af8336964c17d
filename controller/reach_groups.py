"""Whether a port's security groups let a packet in or out, and by which rule.

**Pure.** Of what the agents' rules do in the kernel (`agent/net/security.py`), from intent alone.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Final

from controller.admit.subnet import Address, addresses_of
from controller.reach_steps import GROUP, Step, Traffic
from controller.state import State
from controller.store import keys
from cumulet.protocols import protocol_number
from cumulet.v1 import port_pb2, securitygroup_pb2

INGRESS: Final = securitygroup_pb2.TRAFFIC_DIRECTION_INGRESS
EGRESS: Final = securitygroup_pb2.TRAFFIC_DIRECTION_EGRESS
ECHO_REQUEST: Final = {4: 8, 6: 128}  # Source: RFC 792; RFC 4443, section 4.1


def judge(
    state: State, port: port_pb2.Port, direction: int, remote: Address, traffic: Traffic, node: str
) -> Step:
    """The first rule, in order of the port's groups, that allows it."""
    project, names = port.meta.project, port.spec.security_groups
    word = "out" if direction == EGRESS else "in"
    for name in names:
        row = state.find(keys.SECURITY_GROUPS, project, name)
        for rule in row.message.spec.rules if row is not None else ():
            if rule.direction == direction and _allows(state, project, rule, remote, traffic):
                text = f"security group {name} of {port.spec.instance} lets it {word}"
                return Step(GROUP, name, node, True, text, rule.id)
    groups = ", ".join(names) or "none"
    text = f"no rule of {port.spec.instance}'s security groups ({groups}) lets it {word}"
    return Step(GROUP, groups, node, False, text)


def _allows(
    state: State, project: str, rule: securitygroup_pb2.SecurityRule, remote: Address, traffic: Traffic
) -> bool:
    if rule.ip_version not in (0, traffic.ip_version) or not _is_of(rule, traffic):
        return False
    if rule.remote_cidr:
        return remote in ip_network(rule.remote_cidr)
    if rule.remote_group:
        ports = (row.message for row in state.ports_with(project, rule.remote_group))
        members = (port for port in ports if state.places.node_of(port) is not None)
        return any(str(remote) in addresses_of(state, port) for port in members)
    return True


def _is_of(rule: securitygroup_pb2.SecurityRule, traffic: Traffic) -> bool:
    """The rule means this protocol and this port."""
    if protocol_number(rule.protocol, traffic.ip_version) not in (0, traffic.protocol):
        return False
    if rule.port_min and not rule.port_min <= traffic.port <= rule.port_max:
        return False
    if rule.HasField("icmp_type") and rule.icmp_type != ECHO_REQUEST[traffic.ip_version]:
        return False
    return not rule.HasField("icmp_code") or rule.icmp_code == 0
