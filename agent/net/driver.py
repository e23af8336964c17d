"""The network driver's protocol and values.

**Pure**: types only. `kernel_driver.py` and `fake.py` implement it and pass
`tests/contract/test_net.py`. Names on the host are derived from uids (`names.py`); what does not carry
our mark is invisible to every method.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SubnetIntent:
    uid: str
    cidr: IPv4Network
    gateway: IPv4Address
    dns_servers: tuple[IPv4Address, ...]


@dataclass(frozen=True, slots=True)
class PortIntent:
    """One port of a local instance: a tap on its network's bridge, and what DHCP answers to its MAC."""

    uid: str
    network_uid: str
    mac: str
    addresses: tuple[IPv4Address, ...]
    hostname: str


@dataclass(frozen=True, slots=True)
class NetworkIntent:
    """A network as it is to be on this node, with the ports of local instances in uid order."""

    uid: str
    vni: int
    subnets: tuple[SubnetIntent, ...]
    outbound_nat: bool
    ports: tuple[PortIntent, ...]


@dataclass(frozen=True, slots=True)
class ObservedNetwork:
    """One network's presence on this node.

    `complete`: every part that the driver makes for a network is there (bridge, namespace, uplink,
    DHCP server alive, rules). `digest`: of the intent that was last programmed completely.
    """

    uid: str
    complete: bool
    digest: str


@dataclass(frozen=True, slots=True)
class ObservedNet:
    """What of ours is on the host. `taps` by port uid: attached to the right bridge and up.

    `leased` are addresses that a DHCP client holds. `items`: (kind, host name, owner uid) of every
    single thing, for `cumulet verify`.
    """

    networks: dict[str, ObservedNetwork]
    taps: dict[str, bool]
    leased: frozenset[str]
    items: tuple[tuple[str, str, str], ...]


class Net(Protocol):
    """Methods raise DriverError. Every ensure is idempotent and safe to stop at any point."""

    async def observe_net(self) -> ObservedNet: ...

    async def ensure_network(self, network: NetworkIntent) -> None:
        """Bridge, namespace, addresses, DHCP, rules, NAT as intended. Running guests keep their packets."""

    async def ensure_port(self, port: PortIntent) -> None:
        """The tap, on its network's bridge, up. The network must be there."""

    async def ensure_port_absent(self, uid: str) -> None: ...

    async def ensure_network_absent(self, uid: str) -> None: ...

    async def close(self) -> None: ...


def digest_of(network: NetworkIntent) -> str:
    """A short digest of the intent that an observed network is compared by."""
    return hashlib.sha256(repr(network).encode()).hexdigest()[:16]
