"""What an intent must satisfy before any of it reaches a file, a path or the kernel.

**Pure.** The controller validates what users write; this is the border at which the agent stops trusting
that: a refused intent touches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from agent.errors import DriverError
from agent.net.addressing import VNI_MAX
from agent.net.driver import NetworkIntent, PortIntent, RemotePort

_UID: Final = re.compile(r"[A-Za-z0-9-]{1,64}")  # it becomes part of paths and comments
_MAC: Final = re.compile(r"[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}")  # unicast
_HOSTNAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)  # RFC 1123, 2.1
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
        for value in (remote.mac, *remote.addresses):
            other = seen.setdefault(value, remote.uid)
            if other != remote.uid:
                problem = f"{value} is that of port {other} of network {network_uid}, too"
                raise _invalid("port", remote.uid, "mac or addresses", problem)


def check_port(port: PortIntent) -> None:
    """Raises DriverError (InvalidIntent, permanent) that names the field."""
    check_uid("port", port.uid)
    check_uid("network", port.network_uid)
    if not _MAC.fullmatch(port.mac):
        raise _invalid("port", port.uid, "mac", f"{port.mac!r} is not a unicast MAC address")
    if not _HOSTNAME.fullmatch(port.hostname):
        raise _invalid("port", port.uid, "hostname", f"{port.hostname!r} is not a DNS label")


def check_uid(kind: str, uid: str) -> None:
    if not _UID.fullmatch(uid):
        raise _invalid(kind, uid[:64], "uid", "letters, digits and hyphens, at most 64")


def _invalid(kind: str, uid: str, field: str, problem: str) -> DriverError:
    message = f"{kind} {uid!r}: {field}: {problem}; correct it at the controller"
    return DriverError("InvalidIntent", message, permanent=True)
