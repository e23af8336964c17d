"""Judges what was gathered from the kernel: is a network complete, is a tap in place, what is ours.

**Pure**: views in, observations out. A network is complete when every single thing that `kernel_network.py`
makes is as its recorded intent says; whatever is missing or edited makes it incomplete, and then the whole
network is ensured again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from agent.net import addressing, guard_rules, kernel_links, kernel_segment, names, ports, ruleset
from agent.net.addressing import Pair, gateway_pair, link_addresses, uplink_pair
from agent.net.directory import EntryMirror, Spot, render_digest
from agent.net.driver import IPAddress, NetworkIntent, ObservedNet, ObservedNetwork, PortIntent
from agent.net.elements import Element
from agent.net.kernel_external import ExternalView
from agent.net.kernel_segment import SegmentView
from agent.net.netlink_ip import Address, Route
from agent.net.netlink_link import BridgePort, Link, Tunnel
from agent.net.rates import Rates, wanted_rates
from agent.net.rules_reader import Tables
from agent.net.segment import PATCH, PATCH_UPLINK
from agent.net.state import NetworkRecord

Item = tuple[str, str, str]  # kind, host name, owner uid
_PAIRS: Final = ("gateway", "uplink", addressing.ROUTER_UPLINK, PATCH, PATCH_UPLINK)


@dataclass(frozen=True, slots=True)
class LinkView:
    """Links, addresses and our routes of one namespace."""

    links: dict[str, Link]
    addresses: frozenset[Address]
    routes: frozenset[Route]

    def addresses_of(self, name: str) -> set[tuple[IPAddress, int]]:
        index = self.links[name].index
        return {(a.address, a.prefix_length) for a in self.addresses if a.link == index}


@dataclass(frozen=True, slots=True)
class NamespaceView:
    links: LinkView
    forwards: bool
    rules: str  # fingerprint


@dataclass(frozen=True, slots=True)
class NetworkView:
    """What there is of one network. `program` is the digest of what its record's intent compiles to.

    `namespace` is the one that its gateway is to be in: its router's, or its own.
    """

    uid: str
    record: NetworkRecord | None
    program: str
    namespace: NamespaceView | None
    has_own_namespace: bool
    server_pid: int | None
    leased: frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class HostView:
    links: LinkView
    tables: Tables
    is_sound: bool
    entries: EntryMirror
    underlay: IPAddress | None
    numbers: Mapping[str, int]  # of ports
    zones: Mapping[str, int]  # of networks
    groups: Mapping[str, str]  # digests
    rates: Mapping[str, Rates]  # of taps
    external: ExternalView = field(default_factory=ExternalView)
    segments: SegmentView = field(default_factory=SegmentView)


def judge(host: HostView, networks: tuple[NetworkView, ...]) -> ObservedNet:
    return ObservedNet(
        networks={
            network.uid: ObservedNetwork(
                network.uid,
                _is_complete(host, network),
                network.record.digest if network.record else "",
                network.record.intent.router_uid if network.record else "",
            )
            for network in networks
        },
        taps=_taps(host, networks),
        leased=frozenset(address for network in networks for address in _leased(network)),
        directories=dict(_directories(host, networks)),
        groups={uid: digest if host.is_sound else "" for uid, digest in host.groups.items()},
        items=tuple(sorted({*_host_items(host), *_network_items(networks)})),
        announced=host.external.announced(),
    )


def _is_complete(host: HostView, network: NetworkView) -> bool:
    record, namespace = network.record, network.namespace
    return (
        record is not None
        and namespace is not None
        and network.server_pid is not None
        and host.is_sound
        and record.program == network.program
        and namespace.forwards
        and network.has_own_namespace != bool(record.intent.router_uid)
        and (bool(record.intent.router_uid) or namespace.rules == record.rules)
        and network.uid in host.zones
        and ruleset.network_elements(record.intent, host.zones[network.uid]) <= host.tables.elements
        and guard_rules.tunnel_elements(record.intent, host.underlay) <= host.tables.elements
        and _guards_fit(host, record.intent)
        and _host_links_fit(host, record.intent)
        and _inner_links_fit(namespace.links, record.intent)
    )


def _guards_fit(host: HostView, network: NetworkIntent) -> bool:
    """Ports with a tap may send as their intent says, and as nothing else."""
    held = host.tables.elements
    wanted = ruleset.guards_by_port(network, held.ports_of(network.uid), host.numbers)
    return all(held.of_owner(uid) == guards for uid, guards in wanted.items())


def _host_links_fit(host: HostView, network: NetworkIntent) -> bool:
    uid, view = network.uid, host.links
    bridge = view.links.get(names.bridge_name(uid))
    gateway = view.links.get(names.gateway_link_name(uid))
    if bridge is None or gateway is None:
        return False
    marks = (bridge, "bridge"), (gateway, "gateway")
    has_way_out = (
        names.uplink_name(uid) not in view.links
        if network.router_uid
        else uplink_fits(host, uplink_pair(uid), uid, network.vni)
    )
    return (
        all(link.up and link.alias == names.alias(kind, uid) for link, kind in marks)
        and bridge.mtu == network.mtu
        and bridge.filters
        and _is_attached(gateway, bridge, ports.GATEWAY)
        and _leads_to(host, bridge, gateway_pair(uid).inner_mac, gateway)
        and has_way_out
        and (_patch_fits if network.segment is not None else _tunnel_fits)(host, network, bridge)
    )


def _patch_fits(host: HostView, network: NetworkIntent, bridge: Link) -> bool:
    near = host.links.links.get(names.patch_bridge_name(network.uid))
    far = host.links.links.get(names.patch_uplink_name(network.uid))
    if network.segment is not None and not network.segment.joined:
        return near is None and host.segments.is_sound
    return (
        near is not None
        and far is not None
        and near.alias == names.alias(PATCH, network.uid)
        and far.alias == names.alias(PATCH_UPLINK, network.uid)
        and (far.up, far.mtu) == (True, network.mtu)
        and _is_attached(near, bridge, ports.SEGMENT)
        and names.tunnel_name(network.uid) not in host.links.links
        and kernel_segment.segment_fits(host.segments, network)
    )


def uplink_fits(host: HostView, pair: Pair, uid: str, vni: int) -> bool:
    """The host's end of the way out of a routing domain."""
    uplink = host.links.links.get(pair.name)
    return (
        uplink is not None
        and (uplink.up, uplink.alias) == (True, names.alias(pair.kind, uid))
        and host.links.addresses_of(uplink.name) == {(addressing.HOST_END, 32)}
        and Route(addressing.uplink_address(vni), 32, uplink.index, None) in host.links.routes
    )


def _tunnel_fits(host: HostView, network: NetworkIntent, bridge: Link) -> bool:
    tunnel = host.links.links.get(names.tunnel_name(network.uid))
    if host.underlay is None or tunnel is None:
        return host.underlay is None and tunnel is None
    return (
        tunnel.tunnel == Tunnel(network.vni, host.underlay)
        and tunnel.alias == names.alias("tunnel", network.uid)
        and _is_attached(tunnel, bridge, ports.TUNNEL)
    )


def _is_attached(link: Link, bridge: Link, port: BridgePort) -> bool:
    return (link.up, link.master, link.mtu, link.bridge_port) == (True, bridge.index, bridge.mtu, port)


def _leads_to(host: HostView, bridge: Link, mac: str, link: Link) -> bool:
    entry = host.entries.ports.get(bridge.index, {}).get(mac)
    return entry is not None and (entry.link, entry.static) == (link.index, True)


def _directories(host: HostView, networks: tuple[NetworkView, ...]) -> Iterator[tuple[str, str]]:
    """Of the networks that have a tunnel. The nodes that may send are part of it."""
    for network in networks:
        if network.record is not None and network.record.intent.segment is not None:
            yield network.uid, host.segments.directories.get(network.uid, "")
            continue
        bridge = host.links.links.get(names.bridge_name(network.uid))
        tunnel = host.links.links.get(names.tunnel_name(network.uid))
        if bridge is None or tunnel is None or tunnel.tunnel is None:
            continue
        spot = Spot(bridge.index, tunnel.index)
        digest = render_digest(host.entries.hash_at(spot))
        elements = host.tables.of_network(network.uid)
        is_filtered = guard_rules.peers_fit(elements, tunnel.tunnel.vni, host.entries.vteps_at(spot))
        yield network.uid, digest if is_filtered else f"{digest}, but others may send or peers may not"


def _inner_links_fit(view: LinkView, network: NetworkIntent) -> bool:
    pair = gateway_pair(network.uid)
    gateway = view.links.get(pair.inner)
    return (
        gateway is not None
        and (gateway.up, gateway.mac, gateway.mtu) == (True, pair.inner_mac, network.mtu)
        and view.addresses_of(gateway.name) == link_addresses(network)
        and (bool(network.router_uid) or _way_out_fits(view, network))
        and view.routes >= kernel_links.near_routes(network, gateway.index)
    )


def _way_out_fits(view: LinkView, network: NetworkIntent) -> bool:
    pair = uplink_pair(network.uid)
    uplink = view.links.get(pair.inner)
    return (
        uplink is not None
        and (uplink.up, uplink.mac) == (True, pair.inner_mac)
        and view.addresses_of(uplink.name) == {(addressing.uplink_address(network.vni), 32)}
        and Route(None, 0, uplink.index, addressing.HOST_END) in view.routes
    )


def _taps(host: HostView, networks: tuple[NetworkView, ...]) -> dict[str, bool]:
    """By port uid. A port of which only guards are there has lost its tap."""
    records = (network.record for network in networks if network.record)
    intents = {port.uid: port for record in records for port in record.intent.ports}
    rates = {uid: wanted_rates(port) for uid, port in intents.items()}
    guards: dict[str, set[Element]] = {}
    for element in host.tables.elements:
        if element.port_uid:
            guards.setdefault(element.port_uid, set()).add(element)
    marked = {
        mark[1]: link
        for link in host.links.links.values()
        if (mark := names.parse_alias(link.alias)) is not None and mark[0] == "tap"
    }
    return {
        uid: host.is_sound
        and _tap_fits(host, marked.get(uid), guards.get(uid, set()), intents.get(uid))
        and host.rates.get(names.tap_name(uid), Rates()) == rates.get(uid, Rates())
        for uid in sorted({*marked, *guards})
    }


def _tap_fits(host: HostView, tap: Link | None, guards: set[Element], port: PortIntent | None) -> bool:
    """Up, on the bridge of the network that its guards name, guarded, and where its MAC leads to."""
    networks = {element.network_uid for element in guards}
    macs = {element.value[1] for element in guards if element.set_name == "senders4"}
    if tap is None or len(networks) != 1 or not macs or not any(one.set_name == "taps" for one in guards):
        return False
    bridge = host.links.links.get(names.bridge_name(networks.pop()))
    return (
        bridge is not None
        and (tap.up, tap.master, tap.mtu) == (True, bridge.index, bridge.mtu)
        and tap.bridge_port in (ports.GUESTS if port is None else (ports.guest_port(port),))
        and any(_leads_to(host, bridge, mac, tap) for mac in macs)
    )


def _leased(network: NetworkView) -> Iterator[str]:
    """A lease counts while it is the one that the intent gives."""
    for port in network.record.intent.ports if network.record else ():
        for address in port.addresses:
            if (port.mac.lower(), str(address)) in network.leased:
                yield str(address)


def _host_items(host: HostView) -> Iterator[Item]:
    for link in host.links.links.values():
        mark = names.parse_alias(link.alias)
        if mark is not None:
            yield ("veth" if mark[0] in _PAIRS else mark[0], link.name, mark[1])
    for element in host.tables.elements:
        yield ("nft-element", f"{element.family}/{element.set_name}/{' '.join(element.value)}", element.owner)


def _network_items(networks: tuple[NetworkView, ...]) -> Iterator[Item]:
    for network in networks:
        if network.has_own_namespace:
            yield ("namespace", names.namespace_name(network.uid), network.uid)
        if network.server_pid is not None:
            yield ("dhcp-server", f"dnsmasq[{network.server_pid}]", network.uid)
