"""A network driver in memory, for the simulation and for tests of what stands above the driver.

**Edge**, but without effects outside the process: the world is a `FakeHost`, which outlives drivers as a
kernel outlives agents. Deterministic: no clock, no randomness, no threads. Passes the contract suite that
the kernel driver passes (`tests/contract/test_net.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from agent.errors import DriverError
from agent.net import names
from agent.net.addressing import ROUTER_TUNNEL_LINK
from agent.net.balancer import Probed
from agent.net.counters import ANTI_SPOOFING
from agent.net.directory import digest_of_directory
from agent.net.driver import (
    GroupIntent,
    NetworkIntent,
    ObservedNet,
    ObservedNetwork,
    PortIntent,
    RemotePort,
    RouterDirectory,
    RouterIntent,
    digest_of,
    digest_of_group,
)
from agent.net.intent_check import (
    check_directory,
    check_group,
    check_network,
    check_port,
    check_router,
    check_router_directory,
)
from agent.net.rates import wanted_rates
from agent.net.router_entries import digest_of_router_directory
from agent.net.stats import NO_TRAFFIC, NetStats, NetworkStats, PortStats, RouterStats, Traffic

Method = Literal[
    "observe_net",
    "net_stats",
    "ensure_network",
    "ensure_port",
    "ensure_port_absent",
    "ensure_network_absent",
    "ensure_directory",
    "ensure_group",
    "ensure_group_absent",
    "ensure_router",
    "ensure_router_directory",
    "ensure_router_absent",
    "ensure_health",
]
Moment = Literal["before", "after"]  # the effect has not happened, or has and its answer was lost


@dataclass(slots=True)
class _Network:
    intent: NetworkIntent
    digest: str
    complete: bool = True
    remotes: frozenset[RemotePort] = frozenset()
    holders: dict[object, str] = field(default_factory=dict)  # uids of remote ports by MAC and by address

    def take(self, remotes: frozenset[RemotePort]) -> None:
        """As the kernel does, it looks at what differs only. Raises DriverError."""
        gone, new = self.remotes - remotes, remotes - self.remotes
        check_directory(self.intent.uid, new)
        leaving = {place for remote in gone for place in (remote.mac, *remote.addresses)}
        come: dict[object, str] = {place: one.uid for one in new for place in (one.mac, *one.addresses)}
        if any(place in self.holders and place not in leaving for place in come):
            check_directory(self.intent.uid, remotes)
        for place in leaving:
            del self.holders[place]
        self.holders.update(come)
        self.remotes = remotes


@dataclass(slots=True)
class _Router:
    intent: RouterIntent
    complete: bool = True
    down: dict[str, frozenset[Probed]] = field(default_factory=dict)
    directory: RouterDirectory = field(default_factory=lambda: RouterDirectory(()))


@dataclass(slots=True)
class _Tap:
    intent: PortIntent
    up: bool = True
    traffic: Traffic = NO_TRAFFIC
    refused: int = 0


@dataclass(slots=True)
class FakeHost:
    """One node's kernel: what drivers leave behind. Keep it, and make a new FakeNet, to restart an agent.

    With `auto_lease` every tap that is up holds its addresses, as if its guest had asked DHCP at once;
    else `lease(port_uid)` says when a guest did.
    """

    auto_lease: bool = False
    uplinks: set[str] = field(default_factory=set)  # names of links to external networks
    _networks: dict[str, _Network] = field(default_factory=dict)
    _taps: dict[str, _Tap] = field(default_factory=dict)
    _groups: dict[str, GroupIntent] = field(default_factory=dict)
    _routers: dict[str, _Router] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)  # ports whose guest has asked DHCP
    _refused: int = 0  # frames that guests sent as somebody else, of all ports that ever were
    _faults: dict[Method, list[tuple[Moment, DriverError]]] = field(default_factory=dict)

    def fail_next(self, method: Method, error: DriverError, moment: Moment = "before") -> None:
        """Let one coming call of `method` raise; several faults of one method are raised in order."""
        self._faults.setdefault(method, []).append((moment, error))

    def lease(self, port_uid: str) -> None:
        """The guest behind this port asked DHCP. Without effect while nothing would answer it."""
        tap = self._taps.get(port_uid)
        network = self._networks.get(tap.intent.network_uid) if tap else None
        if tap and tap.up and network and network.complete:
            self._asked.add(port_uid)

    def send(self, source: str, target: str, count: int, size_bytes: int, *, honest: bool = True) -> None:
        """The guest behind a port sent frames to another one; not `honest`: as somebody else."""
        sender, receiver = self._taps[source], self._taps[target]
        sent, got = sender.traffic, receiver.traffic
        size = count * size_bytes
        sender.traffic = replace(
            sent, sent_packets=sent.sent_packets + count, sent_bytes=sent.sent_bytes + size
        )
        if honest:
            receiver.traffic = replace(
                got, received_packets=got.received_packets + count, received_bytes=got.received_bytes + size
            )
        else:
            sender.refused += count
            self._refused += count

    def lose_tap(self, port_uid: str) -> None:
        """Somebody deleted the tap."""
        self._taps.pop(port_uid, None)

    def detach_tap(self, port_uid: str) -> None:
        """Somebody took the tap from its bridge or set it down."""
        if port_uid in self._taps:
            self._taps[port_uid].up = False

    def flush_network(self, network_uid: str) -> None:
        """Somebody flushed the rules, killed dnsmasq or removed an address: present, but not complete."""
        if network_uid in self._networks:
            self._networks[network_uid].complete = False

    def lose_entry(self, network_uid: str) -> None:
        """Somebody deleted what leads to one of the network's remote ports."""
        network = self._networks[network_uid]
        network.take(network.remotes - {min(network.remotes)})

    def lose_route(self, router_uid: str) -> None:
        """Somebody deleted all that leads from a router to other nodes."""
        self._routers[router_uid].directory = RouterDirectory(())

    def flush_router(self, router_uid: str) -> None:
        """Somebody flushed the router's rules, or took its tunnel: present, but not complete."""
        self._routers[router_uid].complete = False

    def lose_router(self, router_uid: str) -> None:
        """Its namespace is gone, and with it the gateways of its networks."""
        if self._routers.pop(router_uid, None):
            for network in self._networks.values():
                network.complete = network.complete and network.intent.router_uid != router_uid

    def lose_network(self, network_uid: str) -> None:
        """Bridge and namespace are gone; its taps hang in the air."""
        if self._networks.pop(network_uid, None):
            for tap in self._taps.values():
                if tap.intent.network_uid == network_uid:
                    tap.up = False

    def reboot(self) -> None:
        """Nothing of a kernel outlives a reboot."""
        self._networks.clear()
        self._groups.clear()
        self._routers.clear()
        self._taps.clear()
        self._asked.clear()
        self._refused = 0

    def _silence_foreign_taps(self, network: NetworkIntent) -> None:
        """A tap whose port the intent no longer has may send nothing."""
        wanted = {port.uid for port in network.ports}
        for uid, tap in self._taps.items():
            if tap.intent.network_uid == network.uid and uid not in wanted:
                tap.up = False

    def _take_fault(self, method: Method, moment: Moment) -> None:
        faults = self._faults.get(method)
        if faults and faults[0][0] == moment:
            raise faults.pop(0)[1]

    def _leased(self) -> frozenset[str]:
        return frozenset(
            str(address)
            for uid, tap in self._taps.items()
            if (self.auto_lease and tap.up) or uid in self._asked
            for address in tap.intent.addresses
        )


class FakeNet:
    """The driver over a `FakeHost`."""

    def __init__(self, host: FakeHost | None = None) -> None:
        self.host = host or FakeHost()

    async def observe_net(self) -> ObservedNet:
        host = self.host
        host._take_fault("observe_net", "before")
        observed = ObservedNet(
            networks={
                uid: ObservedNetwork(uid, network.complete, network.digest, network.intent.router_uid)
                for uid, network in host._networks.items()
            },
            taps={uid: tap.up for uid, tap in host._taps.items()},
            leased=host._leased(),
            directories={
                uid: digest_of_directory(network.remotes) for uid, network in host._networks.items()
            },
            items=tuple(_items(host)),
            groups={uid: digest_of_group(group) for uid, group in host._groups.items()},
            routers={
                uid: digest_of(router.intent) if router.complete else ""
                for uid, router in host._routers.items()
            },
            router_directories={
                uid: digest_of_router_directory(router.directory) for uid, router in host._routers.items()
            },
            announced=frozenset(
                one
                for router in host._routers.values()
                for one in router.intent.answered
                if one[0] in host.uplinks
            ),
        )
        host._take_fault("observe_net", "after")
        return observed

    async def net_stats(self) -> NetStats:
        host = self.host
        host._take_fault("net_stats", "before")
        return NetStats(
            ports={uid: _port_stats(host, tap) for uid, tap in host._taps.items()},
            networks={uid: NetworkStats(_taps_of(host, uid), NO_TRAFFIC) for uid in host._networks},
            routers={uid: RouterStats(NO_TRAFFIC, NO_TRAFFIC) for uid in host._routers},
            rules={(uid, rule.uid): 0 for uid, group in host._groups.items() for rule in group.rules},
            dropped={ANTI_SPOOFING: host._refused} if host._networks or host._routers else {},
        )

    async def ensure_network(self, network: NetworkIntent) -> None:
        check_network(network)
        host = self.host
        host._take_fault("ensure_network", "before")
        if network.router_uid:
            self._get_router(network.router_uid, f"network {network.uid}")
        known = host._networks.get(network.uid)
        if known is None or not known.complete or known.intent != network:
            made = host._networks[network.uid] = _Network(network, digest_of(network))
            if known is not None:
                made.remotes, made.holders = known.remotes, known.holders
            segment = network.segment
            if segment is not None and segment.joined and segment.uplink not in host.uplinks:
                made.digest, made.complete = "", False
                raise DriverError(
                    "UplinkMissing", f"network {network.uid}: this node has no link to {segment.uplink}"
                )
            host._silence_foreign_taps(network)
        host._take_fault("ensure_network", "after")

    async def ensure_port(self, port: PortIntent) -> None:
        check_port(port)
        host = self.host
        host._take_fault("ensure_port", "before")
        if port.network_uid not in host._networks:
            raise DriverError(
                "NetworkMissing",
                f"port {port.uid}: network {port.network_uid} is not on this node; ensure the network first",
            )
        known = host._taps.get(port.uid)
        host._taps[port.uid] = _Tap(port) if known is None else replace(known, intent=port, up=True)
        host._take_fault("ensure_port", "after")

    async def ensure_port_absent(self, uid: str) -> None:
        host = self.host
        host._take_fault("ensure_port_absent", "before")
        host._taps.pop(uid, None)
        host._asked.discard(uid)
        host._take_fault("ensure_port_absent", "after")

    async def ensure_network_absent(self, uid: str) -> None:
        self.host._take_fault("ensure_network_absent", "before")
        self.host.lose_network(uid)
        self.host._take_fault("ensure_network_absent", "after")

    async def ensure_directory(self, network_uid: str, remotes: frozenset[RemotePort]) -> None:
        host = self.host
        host._take_fault("ensure_directory", "before")
        network = host._networks.get(network_uid)
        if network is None:
            raise DriverError(
                "NetworkMissing",
                f"directory: network {network_uid} is not on this node; ensure the network first",
            )
        network.take(remotes)
        host._take_fault("ensure_directory", "after")

    async def ensure_group(self, group: GroupIntent) -> None:
        check_group(group)
        self.host._take_fault("ensure_group", "before")
        self.host._groups[group.uid] = group
        self.host._take_fault("ensure_group", "after")

    async def ensure_group_absent(self, uid: str) -> None:
        self.host._take_fault("ensure_group_absent", "before")
        self.host._groups.pop(uid, None)
        self.host._take_fault("ensure_group_absent", "after")

    async def ensure_router(self, router: RouterIntent) -> None:
        check_router(router)
        host = self.host
        host._take_fault("ensure_router", "before")
        known = host._routers.get(router.uid)
        directory = known.directory if known is not None else RouterDirectory(())
        lost = [f"{address} ({uplink})" for uplink, address in router.answered if uplink not in host.uplinks]
        before = known.down if known is not None else {}
        down = {one.uid: before.get(one.uid, frozenset()) & one.probed() for one in router.balancers}
        host._routers[router.uid] = _Router(router, not lost, down, directory)
        if lost:
            raise DriverError("UplinkMissing", f"router {router.uid}: no link for {', '.join(lost)}")
        host._take_fault("ensure_router", "after")

    async def ensure_router_directory(self, uid: str, directory: RouterDirectory) -> None:
        host = self.host
        host._take_fault("ensure_router_directory", "before")
        router = self._get_router(uid, "directory")
        check_router_directory(uid, directory)
        for network_uid in {route.network_uid for route in directory.routes} - {""}:
            network = host._networks.get(network_uid)
            if network is None or network.intent.router_uid != uid:
                raise DriverError("NetworkMissing", f"router {uid}: network {network_uid} is not in it")
        router.directory = directory
        host._take_fault("ensure_router_directory", "after")

    async def ensure_health(self, router_uid: str, balancer_uid: str, down: frozenset[Probed]) -> None:
        self.host._take_fault("ensure_health", "before")
        router = self.host._routers.get(router_uid)
        if router is not None and balancer_uid in router.down:
            router.down[balancer_uid] = down
        self.host._take_fault("ensure_health", "after")

    async def balancer_health(self, router_uid: str) -> dict[str, frozenset[Probed]]:
        router = self.host._routers.get(router_uid)
        return dict(router.down) if router is not None else {}

    async def ensure_router_absent(self, uid: str) -> None:
        self.host._take_fault("ensure_router_absent", "before")
        self.host.lose_router(uid)
        self.host._take_fault("ensure_router_absent", "after")

    def _get_router(self, uid: str, what: str) -> _Router:
        router = self.host._routers.get(uid)
        if router is None:
            raise DriverError(
                "RouterMissing", f"{what}: router {uid} is not on this node; ensure the router first"
            )
        return router

    async def close(self) -> None:
        """Nothing is held: the world belongs to the host."""


def _port_stats(host: FakeHost, tap: _Tap) -> PortStats:
    network_uid = tap.intent.network_uid if tap.intent.network_uid in host._networks else ""
    rates = wanted_rates(tap.intent)
    over_rate = (0 if rates.towards else None, 0 if rates.away else None)
    return PortStats(network_uid, tap.traffic, tap.refused, *over_rate)


def _taps_of(host: FakeHost, network_uid: str) -> int:
    return sum(tap.intent.network_uid == network_uid for tap in host._taps.values())


def _ways(network: NetworkIntent) -> list[tuple[str, str, str]]:
    """To the network's other nodes."""
    uid, segment = network.uid, network.segment
    if segment is None:
        return [("tunnel", names.tunnel_name(uid), uid)]
    patch = (names.patch_bridge_name(uid), names.patch_uplink_name(uid))
    return [("veth", name, uid) for name in patch] if segment.joined else []


def _items(host: FakeHost) -> list[tuple[str, str, str]]:
    items: list[tuple[str, str, str]] = []
    for uid, network in sorted(host._networks.items()):
        items += [
            ("bridge", names.bridge_name(uid), uid),
            *_ways(network.intent),
            ("veth", names.gateway_link_name(uid), uid),
            ("dhcp-server", names.namespace_name(network.intent.router_uid or uid), uid),
        ]
        if not network.intent.router_uid:
            items += [
                ("veth", names.uplink_name(uid), uid),
                ("namespace", names.namespace_name(uid), uid),
            ]
    for uid in sorted(host._routers):
        items += [
            ("router-namespace", names.namespace_name(uid), uid),
            ("tunnel", ROUTER_TUNNEL_LINK, uid),
            ("veth", names.uplink_name(uid), uid),
        ]
    items += [("tap", names.tap_name(uid), uid) for uid in sorted(host._taps)]
    return items
