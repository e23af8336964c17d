"""What the node counts of its networks, for metrics.

**Pure**: values only. Everything here is the kernel's own count: it begins anew when the kernel's object does
(a link is made again, a group's rules change), as counters of Prometheus may.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went through a link, as its owner sees it: a guest, or the network's or router's part here."""

    received_bytes: int = 0
    received_packets: int = 0
    received_dropped: int = 0
    sent_bytes: int = 0
    sent_packets: int = 0
    sent_dropped: int = 0

    def turned(self) -> Traffic:
        """As the other end of the link sees it."""
        return Traffic(
            received_bytes=self.sent_bytes,
            received_packets=self.sent_packets,
            received_dropped=self.sent_dropped,
            sent_bytes=self.received_bytes,
            sent_packets=self.received_packets,
            sent_dropped=self.received_dropped,
        )


NO_TRAFFIC: Final = Traffic()


@dataclass(frozen=True, slots=True)
class Count:
    packets: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class PortStats:
    """`network_uid`: of the bridge that its tap is on, empty for none. `refused`: frames that the guest sent
    as somebody else (anti-spoofing); they are among those that it sent. `received_over_rate`,
    `sent_over_rate`: packets that its limit of rate dropped; None without such a limit."""

    network_uid: str
    traffic: Traffic = NO_TRAFFIC
    refused: int = 0
    received_over_rate: int | None = None
    sent_over_rate: int | None = None


@dataclass(frozen=True, slots=True)
class NetworkStats:
    """`ports`: taps on its bridge. `tunnel`: None for a network that does not span. `unmarked`: packets that
    came to its bridge from where nothing of ours is, and were dropped. `uplink`: None for one that is no
    operator's."""

    ports: int = 0
    tunnel: Traffic | None = None
    unmarked: int = 0
    uplink: Traffic | None = None


@dataclass(frozen=True, slots=True)
class RouterStats:
    """`dropped`: by the rules of its namespace. `listeners`: of its load balancers, by the rule's comment."""

    uplink: Traffic | None = None
    tunnel: Traffic | None = None
    dropped: int = 0
    listeners: Mapping[str, Count] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NetStats:
    """By uid: ports, networks, routers. `rules`: first packets of connections, by group and rule. `dropped`:
    packets by the stage that dropped them (counters.py). `connections`: tracked on the node, in its own
    namespace, of at most `connections_max`."""

    ports: Mapping[str, PortStats]
    networks: Mapping[str, NetworkStats]
    routers: Mapping[str, RouterStats]
    rules: Mapping[tuple[str, str], int]
    dropped: Mapping[str, int]
    connections: int = 0
    connections_max: int = 0
