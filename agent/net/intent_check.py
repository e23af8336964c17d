"""What an intent must satisfy before any of it reaches a file, a path or the kernel.

**Pure.** The controller validates what users write; this is the border at which the agent stops trusting
that: a refused intent touches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from agent.errors import DriverError
from agent.net.addressing import VNI_MAX
from agent.net.driver import (
    AddressPair,
    GroupIntent,
    NetworkIntent,
    PortIntent,
    RemotePort,
    RouteIntent,
    RouterDirectory,
    RouterIntent,
    RuleIntent,
)
from cumulet.protocols import PORT_MAX

_UID: Final = re.compile(r"[A-Za-z0-9-]{1,64}")  # it becomes part of paths and comments
_MAC: Final = re.compile(r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}")  # unicast
_HOSTNAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)  # RFC 1123, 2.1
IPV6_PAIR_MAX: Final = 256  # each is an element of the set of what a port may answer for in ND
BYTE_MAX: Final = 255
VLAN_MAX: Final = 4094  # IEEE 802.1Q; 4095 is reserved
WITH_PORTS: Final = frozenset({6, 17, 33, 132, 136})  # TCP, UDP, DCCP, SCTP, UDP-Lite
SUBNETS_MAX: Final = 64  # one DHCP range, tag and gateway address each


def check_network(network: NetworkIntent) -> None:
    """Raises DriverError (InvalidIntent, permanent) that names the field."""
    check_uid("network", network.uid)
    if not 1 <= network.vni <= VNI_MAX:
        raise _invalid("network", network.uid, "vni", f"{network.vni} is not between 1 and {VNI_MAX}")
    if not 1 <= len(network.subnets) <= SUBNETS_MAX:
        raise _invalid("network", network.uid, "subnets", f"1 to {SUBNETS_MAX} subnets are supported")
    for subnet in network.subnets:
        if subnet.gateway not in subnet.cidr:
            problem = f"{subnet.gateway} is outside {subnet.cidr}"
            raise _invalid("network", network.uid, f"subnets[{subnet.uid}].gateway", problem)
    if network.segment is not None and not 0 <= network.segment.vlan <= VLAN_MAX:
        problem = f"{network.segment.vlan} is not between 0 and {VLAN_MAX}"
        raise _invalid("network", network.uid, "segment.vlan", problem)
    if network.segment is not None and network.router_uid:
        raise _invalid(
            "network", network.uid, "router_uid", "an operator's network has the operator's router"
        )
    for port in network.ports:
        check_port(port)
        if port.network_uid != network.uid:
            raise _invalid("port", port.uid, "network_uid", f"{port.network_uid} is another network")


def check_directory(network_uid: str, remotes: Iterable[RemotePort]) -> None:
    """Raises DriverError (InvalidIntent, permanent) that names the port and the field.

    A MAC or an address of two ports cannot be programmed: the kernel holds one of each.
    """
    seen: dict[object, str] = {}
    for remote in remotes:
        if not _MAC.fullmatch(remote.mac) or remote.mac != remote.mac.lower():
            raise _invalid(
                "port", remote.uid, "mac", f"{remote.mac!r} is not a unicast MAC address in lower case"
            )
        if remote.hostname and not _HOSTNAME.fullmatch(remote.hostname):
            raise _invalid("port", remote.uid, "hostname", f"{remote.hostname!r} is not a DNS label")
        for value in (remote.mac, *remote.addresses):
            other = seen.setdefault(value, remote.uid)
            if other != remote.uid:
                problem = f"{value} is that of port {other} of network {network_uid}, too"
                raise _invalid("port", remote.uid, "mac or addresses", problem)


def check_router(router: RouterIntent) -> None:
    """Raises DriverError (InvalidIntent, permanent) that names the field."""
    check_uid("router", router.uid)
    if not 1 <= router.vni <= VNI_MAX:
        raise _invalid("router", router.uid, "vni", f"{router.vni} is not between 1 and {VNI_MAX}")


def check_router_directory(uid: str, directory: RouterDirectory) -> None:
    """Raises DriverError (InvalidIntent, permanent): the kernel holds one route for a destination."""
    seen: dict[object, str] = {}
    for remotes in directory.remotes:
        for remote in remotes:
            for address in remote.addresses:
                other = seen.setdefault(address, remote.uid)
                if other != remote.uid:
                    problem = f"{address} is that of ports {other} and {remote.uid}"
                    raise _invalid("router", uid, "remotes", problem)
    check_static_routes(uid, directory.routes)
    for route in directory.routes:
        if route.cidr.num_addresses == 1 and route.cidr.network_address in seen:
            raise _invalid("router", uid, "routes", f"{route.cidr} is the address of a port")


def check_static_routes(uid: str, routes: Sequence[RouteIntent]) -> None:
    """Raises DriverError (InvalidIntent, permanent): the kernel holds one route for a destination."""
    if len({route.cidr for route in routes}) != len(routes):
        raise _invalid("router", uid, "routes", "a range has two ways")


def check_port(port: PortIntent) -> None:
    """Raises DriverError (InvalidIntent, permanent) that names the field."""
    check_uid("port", port.uid)
    check_uid("network", port.network_uid)
    if not _MAC.fullmatch(port.mac):
        raise _invalid("port", port.uid, "mac", f"{port.mac!r} is not a unicast MAC address")
    if not _HOSTNAME.fullmatch(port.hostname):
        raise _invalid("port", port.uid, "hostname", f"{port.hostname!r} is not a DNS label")
    for uid in port.group_uids:
        check_uid("security group", uid)
    for pair in port.allowed_pairs:
        _check_pair(port, pair)


def _check_pair(port: PortIntent, pair: AddressPair) -> None:
    if pair.mac and not _MAC.fullmatch(pair.mac):
        raise _invalid("port", port.uid, "allowed_pairs", f"{pair.mac!r} is not a unicast MAC address")
    if pair.cidr.version == 6 and pair.cidr.num_addresses > IPV6_PAIR_MAX:
        problem = f"{pair.cidr} has more than {IPV6_PAIR_MAX} addresses; name smaller ranges"
        raise _invalid("port", port.uid, "allowed_pairs", problem)


def check_group(group: GroupIntent) -> None:
    """Raises DriverError (InvalidIntent, permanent) that names the rule and the field."""
    check_uid("security group", group.uid)
    for rule in group.rules:
        problem = _rule_problem(rule)
        if problem:
            raise _invalid("security group", group.uid, f"rules[{rule.uid[:64]}]", problem)


def _rule_problem(rule: RuleIntent) -> str:
    remote = rule.remote_cidr
    checks = (
        (bool(_UID.fullmatch(rule.uid)), "its id has letters, digits and hyphens, at most 64"),
        (rule.ip_version in (4, 6), f"IP version {rule.ip_version} is neither 4 nor 6"),
        (0 <= rule.protocol <= BYTE_MAX, f"protocol {rule.protocol} is not between 0 and {BYTE_MAX}"),
        (
            0 <= rule.port_min <= rule.port_max <= PORT_MAX and (rule.port_min > 0 or rule.port_max == 0),
            f"ports {rule.port_min} to {rule.port_max} are no range between 1 and {PORT_MAX}",
        ),
        (rule.protocol in WITH_PORTS or not rule.port_max, f"protocol {rule.protocol} has no ports"),
        (0 <= (rule.icmp_type or 0) <= BYTE_MAX, f"ICMP type {rule.icmp_type}"),
        (0 <= (rule.icmp_code or 0) <= BYTE_MAX, f"ICMP code {rule.icmp_code}"),
        (remote is None or remote.version == rule.ip_version, f"{remote} is not IPv{rule.ip_version}"),
        (not rule.remote_group or bool(_UID.fullmatch(rule.remote_group)), "its remote group is no uid"),
    )
    return next((problem for fits, problem in checks if not fits), "")


def check_uid(kind: str, uid: str) -> None:
    if not _UID.fullmatch(uid):
        raise _invalid(kind, uid[:64], "uid", "letters, digits and hyphens, at most 64")


def _invalid(kind: str, uid: str, field: str, problem: str) -> DriverError:
    message = f"{kind} {uid!r}: {field}: {problem}; correct it at the controller"
    return DriverError("InvalidIntent", message, permanent=True)
